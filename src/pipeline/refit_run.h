/* refit_run.h - one refit under way: what its pass, its sums and its solves share. */
#ifndef MDP_SRC_PIPELINE_REFIT_RUN_H
#define MDP_SRC_PIPELINE_REFIT_RUN_H

#include "mdp/fit.h"
#include "mdp/refit.h"
#include "pipeline/forward.h"

#define MDP_REFIT_MOST_SETS 64 /* sets of tokens that sums are kept apart for, and the held-out ones */

/* Sums over the tokens of a set, exact. */
typedef struct mdp_refit_sums {
    mdp_exact target, before, after; /* of |target|^2, |target - Z'|^2 before and after */
    mdp_exact along, change;         /* <target - Z', change of Z'>, |change|^2, in a trial */
} mdp_refit_sums;

/* What a resume point holds, packed. */
typedef struct mdp_refit_saved {
    int64_t *numbers; /* of each layer of the plan */
    double *values;   /* the same */
    int64_t *rows;    /* of each expert of the plan: rows, fitted */
    int64_t *digests; /* of each array */
} mdp_refit_saved;

typedef struct mdp_refit_run {
    const mdp_comm *comm;
    const mdp_model *model;
    mdp_reader *reader;
    const mdp_tokens *tokens;
    const mdp_plan *plan;
    const mdp_replaced *before; /* what is made already of the plan; NULL: nothing */
    mdp_replaced *replaced;
    const mdp_refit_options *options;
    const mdp_forward_options *forward;
    mdp_profile *profile; /* NULL: nothing is counted */
    mdp_view *view;       /* of the second stream; gets the fitted experts */
    mdp_refit *result;
    mdp_refit_saved saved;

    /* the batch */
    const mdp_engine *engine;
    int64_t n_local, first_token;
    int n_set;          /* of the fit */
    unsigned char *set; /* [n_local] of each token: below n_set; n_set: held out; n_set + 1: neither */
    float *original;    /* [n_local, d] routed output of the original */
    float *stream;      /* [n_local, d] its residual stream entering the block; NULL: the target is the output */
    float *rest;        /* [n_local, d] target - Z'; where layers are trained: the target */
    float *input;       /* [n_local, d] what the block of the second stream reads; NULL: layers are solved */

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
/* Is a sequence held out as a whole? */
bool mdp_refit_holds_out(const mdp_refit_run *run, int64_t sequence);
/* Which tokens of the pass chose whom, into the record, where layers are trained. Collective. */
mdp_status mdp_refit_count_all(mdp_refit_run *run);
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

/* ---- refit_system.c: how a layer is solved ----------------------------------------------------------------------- */

typedef struct mdp_refit_system {
    mdp_fit_mode mode;
    int64_t order;
    bool fixed;     /* the same bytes on any number of ranks */
    int64_t n_byte; /* the most that a rank has of sums and of what is factored */
    mdp_product_layout *layout;
} mdp_refit_system;
/* What its size depends on. */
typedef struct mdp_refit_size {
    int n_rank, n_thread, n_set;
    int32_t n_side; /* experts that are fitted */
    int64_t width;  /* neurons of each of them */
    int64_t n_token;
    int64_t unit; /* rows of W that are put together */
    bool chooses; /* a ridge is to be found */
} mdp_refit_size;
mdp_refit_size mdp_refit_size_of(int n_rank, int n_thread, const mdp_moe *moe, const mdp_plan *plan,
                                 const mdp_tokens *tokens, const mdp_refit_options *options, int32_t n_side);
/* The way that is asked for; auto: the first whose sums and factors fit options->memory. rows [n_side, n_side]: tokens
 * that chose both. Local, the same on every rank; the layout is freed by the caller. */
mdp_status mdp_refit_choose_system(const mdp_refit_size *size, const mdp_model *model, int64_t layer,
                                   const mdp_refit_options *options, const int64_t *rows, mdp_refit_system *out);
mdp_refit_mode mdp_refit_mode_of(mdp_fit_mode mode);
/* Sets that sums are kept apart for: one where the ridge is given; else categories, or two parts of one. */
int mdp_refit_count_sets(const mdp_tokens *tokens, const mdp_refit_options *options);

/* ---- refit_train.c: layers that are trained ---------------------------------------------------------------------- */

/* Train the layer, put what comes out into the plan's arrays and let the view have it. sums: as mdp_refit_sum_all has
 * them. Collective (agrees). */
mdp_status mdp_refit_train_all(mdp_refit_run *run, const mdp_refit_sums *sums);
mdp_refit_cost mdp_refit_train_cost_of(const mdp_comm *layout, const mdp_model *model, const mdp_tokens *tokens,
                                       const mdp_plan *plan, const mdp_refit_options *options, int n_thread);

/* ---- refit_point.c: resume points -------------------------------------------------------------------------------- */

mdp_status mdp_refit_saved_new(mdp_refit_run *run);
void mdp_refit_saved_clear(mdp_refit_saved *saved);
/* Steps of the pass, with the run as context (mdp_forward). Collective where their names say so. */
mdp_status mdp_refit_gather_all(void *context);
mdp_status mdp_refit_describe(void *context, const mdp_position *at, bool taken, mdp_point *point);
mdp_status mdp_refit_restored_all(void *context, const mdp_position *at);

/* ---- refit_carry.c: merged experts ------------------------------------------------------------------------------- */

/* Bring what stands of the layer's experts in the plan's plan.h5 into the new one. Collective (agrees). MDP_BAD_INPUT:
 * it is damaged. */
mdp_status mdp_refit_carry_all(mdp_refit_run *run);

/* ---- refit_solve.c: sums become new down projections ------------------------------------------------------------- */

/* Solve for the layer: this rank's columns of D [n_col, order] (new) with their first number, by the ridge that is
 * given or chosen. sums: as mdp_refit_sum_all has them. Collective (agrees). */
mdp_status mdp_refit_solve_all(mdp_refit_run *run, const mdp_refit_sums *sums, mdp_fit *fit, double **d);
/* Put W + step * D into the plan's arrays, for all fitted experts, and let the view have them. Collective (agrees). */
mdp_status mdp_refit_put_all(mdp_refit_run *run, const mdp_fit *fit, const double *d, double step);
/* Rows of W that are put together, for all experts of a layer. */
int64_t mdp_refit_unit(const mdp_moe *moe);

#endif
