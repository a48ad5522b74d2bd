/* announce.c - tell the system early what the next layer will read.
 *
 * In: the number of the layer at hand. Its successor's attention and the run of experts that its node will probably
 * compute (placement.c deals them in consecutive runs) are announced while this layer computes; ranks of a node share
 * the work out, so each byte is announced once for each node. What was announced in vain costs reading, not results. */
#include "engine/attention.h"

/* Deals matrices to the ranks of a node in turn. */
typedef struct dealer {
    mdp_engine *engine;
    int64_t n; /* dealt so far */
} dealer;

static void announce(dealer *d, const mdp_matrix *matrix) {
    const mdp_comm *comm = d->engine->comm;
    if (matrix->tensor && d->n++ % comm->node_size == comm->node_rank) mdp_matrix_announce(d->engine->reader, matrix);
}

static void announce_expert(dealer *d, const mdp_expert *expert) {
    announce(d, &expert->gate);
    announce(d, &expert->up);
    announce(d, &expert->down);
}

void mdp_engine_announce(mdp_engine *engine, int64_t layer_number) {
    if (layer_number >= engine->model->n_layer) return;
    const mdp_layer *layer = &engine->model->layers[layer_number];
    const mdp_matrix *attention[MDP_N_PROJECTION];
    dealer d = {.engine = engine};
    mdp_attention_projections(&layer->attention, attention);
    for (int i = 0; i < MDP_N_PROJECTION; i++) announce(&d, attention[i]);
    if (!layer->is_moe) {
        announce_expert(&d, &layer->dense);
        return;
    }
    int64_t n_expert = layer->moe.n_expert, node = engine->comm->node, n_node = engine->comm->n_node;
    for (int64_t e = node * n_expert / n_node; e < (node + 1) * n_expert / n_node; e++)
        announce_expert(&d, &layer->moe.experts[e]);
    announce_expert(&d, &layer->moe.shared);
}
