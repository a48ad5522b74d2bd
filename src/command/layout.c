/* layout.c - ranks that need not exist: see layout.h. */
#include "command/layout.h"

static mdp_status new_layout(int size, int per_node, mdp_comm **out) {
    MDP_TRY(MDP_ALLOC(out, 1, "ranks to ask about"));
    (*out)->world = MPI_COMM_NULL;
    (*out)->size = size;
    (*out)->node_size = per_node < size ? per_node : size;
    (*out)->n_node = (size + per_node - 1) / per_node;
    MDP_TRY(MDP_ALLOC(&(*out)->rank_node, size, "ranks to ask about"));
    MDP_TRY(MDP_ALLOC(&(*out)->by_node, size, "ranks to ask about"));
    MDP_TRY(MDP_ALLOC(&(*out)->node_first, (*out)->n_node + 1, "ranks to ask about"));
    for (int r = 0; r < size; r++) {
        (*out)->rank_node[r] = r / per_node;
        (*out)->by_node[r] = r;
    }
    for (int node = 0; node <= (*out)->n_node; node++)
        (*out)->node_first[node] = node < (*out)->n_node ? node * per_node : size;
    return mdp_ok();
}

mdp_status mdp_session_lay_out(mdp_session *session) {
    const mdp_option_value *ranks = mdp_session_option(session, OPTION_RANKS);
    const mdp_option_value *per_node = mdp_session_option(session, OPTION_RANKS_PER_NODE);
    session->layout = session->comm;
    if (!ranks->present && !per_node->present) return mdp_ok();
    if (!mdp_session_option(session, OPTION_DRY_RUN)->flag)
        return MDP_ERROR(MDP_USAGE,
                         "--%s asks about ranks that need not exist, so it goes with --dry-run only; mpirun -n "
                         "gives a run its ranks.",
                         ranks->present ? "ranks" : "ranks-per-node");
    int size = ranks->present ? (int)ranks->integer : session->comm->size;
    MDP_TRY(new_layout(size, per_node->present ? (int)per_node->integer : size, &session->asked));
    session->layout = session->asked;
    return mdp_ok();
}

void mdp_session_free_layout(mdp_session *session) {
    if (session->asked) {
        mdp_free(session->asked->rank_node);
        mdp_free(session->asked->by_node);
        mdp_free(session->asked->node_first);
    }
    mdp_free(session->asked);
}
