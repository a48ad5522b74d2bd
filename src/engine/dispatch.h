/* dispatch.h - what a wave of the MoE block and one round of its dispatch share. */
#ifndef MDP_SRC_ENGINE_DISPATCH_H
#define MDP_SRC_ENGINE_DISPATCH_H

#include "engine/engine.h"

/* One (state, token, slot) of this rank, with where its tile is computed. */
typedef struct mdp_route_entry {
    int64_t local;
    int32_t state, slot;
    int32_t position; /* in the owner's round */
} mdp_route_entry;

/* Everything of one wave on this rank. */
typedef struct mdp_wave {
    int64_t first_block, n_block;
    int64_t first_local, n_local; /* rows of this rank in these blocks */
    mdp_placement *placement;
    mdp_route_entry *entries; /* [n_entry] by (round, owner), then state, token, slot */
    int64_t *bucket;          /* [n_round * size + 1] first entry of each (round, owner) */
    int64_t *state_first;     /* [n_state] first row of y of each state */
    float *y;                 /* [sum over states of n_local * top_k, d_model] returned rows */
} mdp_wave;

/* Buffers of the block, kept over waves and rounds. */
typedef struct mdp_moe_buffers {
    int64_t capacity; /* rows of a round */
    mdp_round round;
    mdp_expert_scratch scratch;
    mdp_row_note *notes; /* [capacity] of the round, by source rank */
    int64_t *counts;     /* [10 * size] rows to send and to receive, see dispatch.c */
    float *shared_gate;  /* [d_model]; NULL: none */
} mdp_moe_buffers;

/* One round: notes and token rows to the owners of the tiles, the experts, and the outputs back into wave->y.
 * Collective on the engine's communicator. */
mdp_status mdp_dispatch_round_all(mdp_engine *engine, const mdp_wave *w, const mdp_layer *layer, int64_t layer_number,
                                  const float *norm, int32_t number, mdp_moe_buffers *buffers);

#endif
