/* placement.h - which rank computes which tile, and in which round. */
#ifndef MDP_SRC_ENGINE_PLACEMENT_H
#define MDP_SRC_ENGINE_PLACEMENT_H

#include "mdp/engine.h"

/* One tile of the wave: rows first .. first+n_row-1 (in token order) of an expert in a block of a branch. */
typedef struct mdp_tile_place {
    mdp_expert_t expert; /* number in the layer's roster */
    int32_t branch;
    int64_t block;
    int32_t n_row;
    int32_t owner;    /* rank that computes it */
    int32_t round;    /* of the owner */
    int32_t position; /* of its first row among the rows of that round */
} mdp_tile_place;

typedef struct mdp_placement {
    int64_t n_tile;
    mdp_tile_place *tiles; /* ascending by expert, block, branch; the same on every rank */
    int32_t n_round;       /* rounds of the busiest rank */
    int64_t *first_tile;   /* [n_branch, n_block of the wave, n_expert] index of the first tile, -1: no rows */
    int64_t first_block, n_block;
    int32_t n_expert, n_branch;
} mdp_placement;

/* Place the tiles of blocks first_block .. first_block + n_block - 1. rows [n_branch, n_block, n_expert]: rows over all
 * ranks. n_thread, of every rank, decides how many rows make a round and how many tiles share panels. Local, the same
 * on every rank. */
mdp_status mdp_placement_new(const mdp_comm *comm, const int64_t *rows, int32_t n_branch, int64_t first_block,
                             int64_t n_block, int32_t n_expert, int n_thread, mdp_placement **out);
void mdp_placement_destroy(mdp_placement *placement); /* NULL is allowed */
/* The most rows that a rank can have of a wave of n_row rows in n_cell (branch, block, expert), however routed. */
int64_t mdp_placement_most_rows(const mdp_comm *comm, int64_t n_row, int64_t n_cell);

#endif
