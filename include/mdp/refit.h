/* refit.h - what a plan leaves of each layer is fitted to what was there: new down projections, by one forward pass
 * (doc/refit.md). */
#ifndef MDP_REFIT_H
#define MDP_REFIT_H

#include "mdp/pipeline.h"
#include "mdp/recover.h"
#include "mdp/replaced.h"

typedef enum mdp_refit_mode { MDP_REFIT_AUTO, MDP_REFIT_JOINT, MDP_REFIT_SWEEPS, MDP_REFIT_DIAGONAL } mdp_refit_mode;
typedef enum mdp_refit_target { MDP_REFIT_RESIDUAL, MDP_REFIT_OUTPUT } mdp_refit_target;

#define MDP_REFIT_LEAST_ROWS 32 /* tokens of an expert; with fewer it keeps its weights */
#define MDP_REFIT_SWEEP 3       /* sweeps by default */

typedef struct mdp_refit_options {
    mdp_refit_mode mode;
    int n_sweep;
    double ridge; /* lambda as a part of the mean of diag A; 0: chosen for each layer */
    mdp_refit_target target;
    bool original_inputs; /* the changed layers are computed from the original's inputs */
    double holdout;       /* part of the text that is left out of the fit, and measured */
    int64_t n_token;      /* tokens that are fitted to, about; 0: all */
    uint64_t seed;
    int64_t memory;                 /* bytes of a rank for sums and factors; 0: no bound */
    const mdp_train_options *train; /* layers are trained instead (doc/recover.md); NULL: they are solved */
} mdp_refit_options;

/* Errors are sum over tokens of |target - Z'|^2 / sum of |target|^2; -1: there are no such tokens. */
typedef struct mdp_refit_error {
    double fitted, held_out;
} mdp_refit_error;

/* What became of a layer. */
typedef struct mdp_refit_layer {
    int64_t layer;         /* of the model */
    int32_t n_expert;      /* of the result */
    int64_t *rows;         /* [n_expert] tokens that chose each, of those that are fitted to */
    unsigned char *fitted; /* [n_expert] nonzero: its down projection is new */
    int64_t order;         /* unknowns of one row, or values that were trained; 0: nothing was fitted */
    mdp_refit_mode mode;   /* what auto came to */
    double ridge, mean_diagonal;
    double rcond;    /* reciprocal condition number, about; of the worst system */
    double step;     /* that the change of `diagonal` was multiplied by; else 1 */
    double rounding; /* |stored - fitted| / |fitted|, of all new down projections together: what their type takes */
    bool fixed;      /* the same bytes on any number of ranks */
    mdp_refit_error before, after;
} mdp_refit_layer;

typedef struct mdp_refit {
    int64_t n_layer;
    mdp_refit_layer *layers; /* [n_layer] layers of the plan, ascending */
} mdp_refit;
void mdp_refit_destroy(mdp_refit *refit); /* NULL is allowed */

/* What sums and solves take beside the pass, foretold: tokens choose among the kept experts at random. */
typedef struct mdp_refit_cost {
    int64_t flop, flop_most; /* of all ranks, and of the one with the most */
    int64_t memory;          /* bytes of a rank, in the layer with the most */
} mdp_refit_cost;
mdp_status mdp_refit_cost_of(const mdp_comm *layout, const mdp_model *model, const mdp_tokens *tokens,
                             const mdp_plan *plan, const mdp_refit_options *options, int n_thread, mdp_refit_cost *out);
/* Bytes of a rank for rows of all of its tokens. */
int64_t mdp_refit_token_memory(const mdp_comm *layout, const mdp_model *model, const mdp_tokens *tokens,
                               const mdp_refit_options *options);
/* The pass of a refit, of two streams. */
mdp_pass mdp_refit_pass(const mdp_refit_options *options, const mdp_view *const *views);
/* Which parts of experts are made. */
mdp_replaced_which mdp_refit_replaces(const mdp_refit_options *options);

/* Fit (or train) the experts that a plan keeps or has merged, over all tokens, which are one batch. `before`: those
 * that are made already, as plan.h5 has them (NULL: there are none). `replaced` lists all (mdp_refit_replaces), with
 * arrays to be written into (mdp_arrays_create_all, bound to `reader`); on success the checksums of all arrays are
 * known. Of an expert that is kept and not fitted the arrays mean nothing. Collective on `comm`. Errors: those of a
 * forward pass; MDP_USAGE: the tokens are more than one batch can hold, naming the memory that would do. */
mdp_status mdp_refit_all(const mdp_comm *comm, const mdp_model *model, mdp_reader *reader, const mdp_tokens *tokens,
                         const mdp_plan *plan, const mdp_replaced *before, mdp_replaced *replaced,
                         const mdp_refit_options *refit, const mdp_forward_options *options, mdp_refit **out);

#endif
