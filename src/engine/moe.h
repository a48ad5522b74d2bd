/* moe.h - the MoE block of a layer, and how much of it is done at a time. */
#ifndef MDP_SRC_ENGINE_MOE_H
#define MDP_SRC_ENGINE_MOE_H

#include "engine/engine.h"

#define MDP_GROUP_TILES 4     /* tiles that one widened panel serves at least, where there are so many */
#define MDP_ROUND_ROWS 4096   /* rows that a rank takes in one round of dispatch, at least */
#define MDP_WAVE_TOKENS 16384 /* tokens whose expert outputs a rank keeps until they are combined, about */

/* The MoE block of a layer for all branches, after routing: placement, dispatch, experts, return, combine. Collective.
 */
mdp_status mdp_moe_all(mdp_engine *engine, int64_t layer_number, const float *norm);
/* Blocks of the wave of a batch that begins at block `first` of those below `end`: as many as keep every rank's tokens
 * within MDP_WAVE_TOKENS, at least one. */
int64_t mdp_wave_blocks(const mdp_comm *comm, const mdp_partition *partition, int64_t batch, int64_t first,
                        int64_t end);
/* Room for rows of a round and tiles of a group: no more than the largest batch has, and no more tiles than an expert
 * has when tokens choose evenly, and a quarter, or than keep the threads busy. n_roster: see mdp_roster_most. */
typedef struct mdp_moe_room {
    int64_t n_row, n_tile;
    bool ahead; /* there can be more than one round, and other ranks */
} mdp_moe_room;
mdp_moe_room mdp_moe_room_of(const mdp_comm *comm, const mdp_partition *partition, int32_t top_k, int32_t n_expert,
                             int32_t n_roster, int n_thread, int n_stream);
/* Values of scratch.up for one thread: a panel of products, or a row of the combine. */
int64_t mdp_moe_thread_scratch(int64_t d_model);

/* Rows of a round and tiles of a group, from the number of threads alone. */
static inline int64_t mdp_group_tiles(int n_thread) {
    return n_thread > MDP_GROUP_TILES ? n_thread : MDP_GROUP_TILES;
}
static inline int32_t mdp_round_rows(int n_thread) {
    int32_t rows = 2 * (int32_t)mdp_group_tiles(n_thread) * MDP_TILE_ROWS;
    return rows > MDP_ROUND_ROWS ? rows : MDP_ROUND_ROWS;
}

#endif
