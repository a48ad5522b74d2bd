/* fit_parts.h - what fit.c and fit_blocks.c share. Private to src/linalg. */
#ifndef MDP_SRC_LINALG_FIT_PARTS_H
#define MDP_SRC_LINALG_FIT_PARTS_H

#include "mdp/fit.h"

#include "linalg/grid.h"

struct mdp_fit {
    const mdp_comm *comm;
    mdp_products *products;
    const mdp_product_layout *layout;
    mdp_profile *profile;
    mdp_fit_mode mode;
    int64_t alone, unit, d;
    int n_thread;
    int32_t n_expert;
    int64_t *offset;      /* [n_expert + 1] */
    int64_t *first_block; /* [n_pair + 1] blocks of each pair */
    int64_t first, n_col; /* columns of this rank */
    const int64_t *own;   /* [n_own] blocks */
    int64_t n_own;
    mdp_exchange_room *room;
    mdp_grid **grids; /* [n_expert + 1] of the orders that were factored, in the order of their first use */
    int64_t *orders;  /* [n_expert + 1] which these are */
    int n_grid;
    double *shown; /* [BLOCK_VALUES] a block that all see */
};

/* An entry of a block of this rank (number in own), of the sets that count. */
double mdp_fit_value(const mdp_fit *fit, const mdp_fit_sets *sets, int64_t own, int64_t at);
/* A + lambda I of one expert (-1: of all), factored; *rcond is lowered to its own. Collective (agrees). */
mdp_status mdp_fit_factor_all(mdp_fit *fit, const mdp_fit_sets *sets, int32_t expert, double lambda, mdp_spd **out,
                              double *rcond);
/* b becomes D by sweeps or for each expert alone. Collective (agrees). */
mdp_status mdp_fit_by_experts_all(mdp_fit *fit, const mdp_fit_sets *sets, double lambda, int n_sweep, double *b,
                                  double *rcond);
/* The sum over all ranks' columns, exact but for one rounding. Collective (agrees). */
mdp_status mdp_fit_sum_columns_all(const mdp_fit *fit, const double *columns, double *out);

#endif
