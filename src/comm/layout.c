/* layout.c - ranks that need not exist, for asking what a pass would take on them. */
#include "mdp/comm.h"

static mdp_status fill(int size, int per_node, mdp_comm *layout) {
    layout->world = MPI_COMM_NULL;
    layout->size = size;
    layout->node_size = per_node < size ? per_node : size;
    layout->n_node = (size + per_node - 1) / per_node;
    MDP_TRY(MDP_ALLOC(&layout->rank_node, size, "ranks to ask about"));
    MDP_TRY(MDP_ALLOC(&layout->by_node, size, "ranks to ask about"));
    MDP_TRY(MDP_ALLOC(&layout->node_first, layout->n_node + 1, "ranks to ask about"));
    for (int r = 0; r < size; r++) {
        layout->rank_node[r] = r / per_node;
        layout->by_node[r] = r;
    }
    for (int node = 0; node <= layout->n_node; node++)
        layout->node_first[node] = node < layout->n_node ? node * per_node : size;
    return mdp_ok();
}

mdp_status mdp_layout_new(int size, int per_node, mdp_comm **out) {
    *out = NULL;
    mdp_comm *layout = NULL;
    MDP_TRY(MDP_ALLOC(&layout, 1, "ranks to ask about"));
    mdp_status status = fill(size, per_node, layout);
    if (status.code == MDP_OK)
        *out = layout;
    else
        mdp_layout_destroy(layout);
    return status;
}

void mdp_layout_destroy(mdp_comm *layout) {
    if (!layout) return;
    mdp_free(layout->rank_node);
    mdp_free(layout->by_node);
    mdp_free(layout->node_first);
    mdp_free(layout);
}
