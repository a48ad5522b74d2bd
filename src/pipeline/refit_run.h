/* refit_run.h - one refit under way: what its pass, its sums and its solves share. */
#ifndef MDP_SRC_PIPELINE_REFIT_RUN_H
#define MDP_SRC_PIPELINE_REFIT_RUN_H

#include "mdp/fit.h"
#include "mdp/refit.h"

#define MDP_REFIT_MOST_SETS 64 /* sets of tokens that sums are kept apart for, and the held-out ones */

/* Sums over the tokens of a set, exact. */
typedef struct mdp_refit_sums {
    mdp_exact target, before, after; /* of |target|^2, |target - Z'|^2 before and after */
    mdp_exact along, change;         /* <target - Z', change of Z'>, |change|^2, in a trial */
} mdp_refit_sums;

typedef struct mdp_refit_run {
    const mdp_comm *comm;
    const mdp_model *model;
    mdp_reader *reader;
    const mdp_tokens *tokens;
    const mdp_plan *plan;
    mdp_replaced *replaced;
    const mdp_refit_options *options;
    const mdp_forward_options *forward;
    mdp_profile *profile; /* NULL: nothing is counted */
    mdp_view *view;       /* of the second stream; gets the fitted experts */
    mdp_refit *result;

    /* the batch */
    const mdp_engine *engine;
    int64_t n_local, first_token;
    int n_set;          /* of the fit */
    unsigned char *set; /* [n_local] of each token: below n_set; n_set: held out; n_set + 1: neither */
    float *original;    /* [n_local, d] routed output of the original */
    float *stream;      /* [n_local, d] its residual stream entering the block; NULL: the target is the output */
    float *rest;        /* [n_local, d] target - Z' */

    /* the layer at hand */
    int64_t layer;
    mdp_refit_layer *record;
    int original_branch, branch;
    bool parted;     /* the streams have different layers or inputs */
    bool trial;      /* the block is redone with a change whose step is not known yet */
    int32_t n_side;  /* fitted experts */
    int32_t *side;   /* [experts of the layer] their numbers, -1: not fitted */
    int32_t *expert; /* [n_side] and back */
    mdp_product_layout *layout;
    mdp_products *products; /* NULL: none yet */
    mdp_fit_mode mode;
    mdp_refit_sums *sums; /* [n_set + 1] */
} mdp_refit_run;

/* ---- refit_sums.c: rows of tokens become sums -------------------------------------------------------------------- */

/* Which tokens of the batch are fitted to, and which are held out. Local. */
mdp_status mdp_refit_begin_batch(mdp_refit_run *run, const mdp_engine *engine);
void mdp_refit_clear(mdp_refit_run *run);
/* Observers of the pass, and of blocks that are redone; both have the run as context. */
mdp_observers mdp_refit_observers(mdp_refit_run *run);
mdp_observers mdp_refit_redo_observers(mdp_refit_run *run);
/* A layer begins: nothing has been added. */
void mdp_refit_begin_layer(mdp_refit_run *run, int64_t layer);
/* Forget the layer's products. */
void mdp_refit_end_layer(mdp_refit_run *run);
/* Bring the sums of the layer together, on all ranks. Collective (agrees). */
mdp_status mdp_refit_sum_all(const mdp_refit_run *run, mdp_refit_sums *out);
double mdp_refit_ratio(const mdp_exact *part, const mdp_exact *whole); /* -1: whole is 0 */

/* ---- refit_solve.c: sums become new down projections ------------------------------------------------------------- */

/* Solve for the layer: this rank's columns of D [n_col, order] (new) with their first number, by the ridge that is
 * given or chosen. sums: as mdp_refit_sum_all has them. Collective (agrees). */
mdp_status mdp_refit_solve_all(mdp_refit_run *run, const mdp_refit_sums *sums, mdp_fit *fit, double **d);
/* Put W + step * D into the plan's arrays, for all fitted experts, and let the view have them. Collective (agrees). */
mdp_status mdp_refit_put_all(mdp_refit_run *run, const mdp_fit *fit, const double *d, double step);
/* Rows of W that are put together, for all experts of a layer. */
int64_t mdp_refit_unit(const mdp_moe *moe);

#endif
