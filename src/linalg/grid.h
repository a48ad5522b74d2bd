/* grid.h - what grid.c, spd.c and spread.c share. Private to src/linalg. */
#ifndef MDP_SRC_LINALG_GRID_H
#define MDP_SRC_LINALG_GRID_H

#include "mdp/spd.h"

#define MDP_GRID_BLOCK 64  /* rows and columns of a block of the cyclic layout */
#define MDP_N_DESCRIPTOR 9 /* integers of a descriptor of ScaLAPACK */

struct mdp_grid {
    const mdp_comm *comm;
    int64_t n;
    bool alone;       /* one rank holds a whole matrix */
    int n_row, n_col; /* shape */
    int row, col;     /* of this rank; -1 outside */
    int handle, context;
    bool is_open;
};

/* This rank's part of a column-major matrix with n_row rows, all of whose columns or n_col of them it has. */
typedef struct mdp_piece {
    double *data;
    int64_t leading; /* rows here, at least 1 */
    int64_t n_col;   /* columns here */
    int descriptor[MDP_N_DESCRIPTOR];
} mdp_piece;

struct mdp_spd {
    const mdp_grid *grid;
    mdp_profile *profile;
    mdp_exchange_room *room;
    int root; /* who holds all, where one rank does */
    mdp_piece a;
};

/* Part of an m x n matrix, zeroed. Local. */
mdp_status mdp_piece_new(const mdp_grid *grid, int root, int64_t m, int64_t n, mdp_piece *out);
/* The rank that holds an entry, and where it lies there. */
int mdp_grid_owner(const mdp_grid *grid, int root, int64_t row, int64_t col);
int64_t mdp_grid_local(const mdp_grid *grid, int64_t index, int n_process);

/* ---- spread.c -------------------------------------------------------------------------------------------------- */

/* Up to a block's side of entries that go to one rank, along a row or down a column. */
typedef struct mdp_strip {
    int64_t row, col;
    int32_t n;
    bool down;
    int to;
    const double *values; /* at the sender; at the receiver until the function returns */
    int64_t stride;       /* from one value to the next */
} mdp_strip;

typedef struct mdp_spread {
    const mdp_comm *comm;
    mdp_exchange_room *room;
    mdp_profile *profile;
    int64_t n; /* strips of this rank */
    mdp_strip (*give)(void *context, int64_t i);
    void (*take)(void *context, const mdp_strip *strip);
    void *context;
} mdp_spread;
/* Bytes of a strip on its way. */
int64_t mdp_spread_row_bytes(void);
/* Every strip to the rank that it is for. Collective (agrees). */
mdp_status mdp_spread_all(const mdp_spread *spread);

#endif
