/* merge.h - the experts that a plan merges, made: weighted sums of aligned members, as the checkpoint would store them,
 * in the plan's arrays (doc/merge.md). */
#ifndef MDP_MERGE_H
#define MDP_MERGE_H

#include "mdp/pipeline.h"
#include "mdp/replaced.h"

typedef struct mdp_merge_options {
    int n_thread;
    mdp_gemm *gemm; /* for as many threads; multiplies where neurons are aligned; borrowed */
    mdp_log *log;
    bool progress;
    mdp_resume *resume; /* NULL: no resume points, no stopping */
    json_t *profiles;   /* array that gets where the time went; NULL: not wanted; borrowed */
} mdp_merge_options;

/* What it takes, foretold. */
typedef struct mdp_merge_cost {
    int64_t bytes_read, bytes_read_most; /* of all ranks, and of the one with the most */
    int64_t flop, flop_most;
    int64_t memory; /* bytes of a rank */
} mdp_merge_cost;
/* Local. */
mdp_status mdp_merge_cost_of(const mdp_model *model, const mdp_plan *plan, int n_rank, int n_thread,
                             mdp_merge_cost *out);

/* Make every array of `replaced`, which lists the plan's merged experts (MDP_REPLACED_MERGED) and is bound to
 * unfinished arrays, layer after layer; each expert's matrix is made by one rank. With a resume that continues, layers
 * that were done are compared with what was noted, and not made again. Collective on `comm` (agrees). MDP_STOPPED;
 * MDP_BAD_INPUT: weights that are not finite. */
mdp_status mdp_merge_all(const mdp_comm *comm, const mdp_model *model, mdp_reader *reader, const mdp_plan *plan,
                         mdp_replaced *replaced, const mdp_merge_options *options);

/* ---- with fitted down projections ---------------------------------------------------------------------------------
 */

#define MDP_MERGE_LEAST_ROWS 32 /* tokens of a group; with fewer it keeps the weighted sum */
#define MDP_MERGE_SLOTS 8       /* experts that a token is sent to at once, for a fit */

/* What became of an expert that is to be fitted. */
typedef struct mdp_merge_fit {
    int64_t layer;   /* of the model */
    int32_t kept;    /* number in the result */
    int64_t n_token; /* that chose any of its members */
    int64_t order;   /* unknowns of a row of its down projection */
    bool solved;     /* else it keeps the weighted sum */
    bool fixed;      /* the same bytes on any number of ranks */
    double lambda, rcond;
    double before, after; /* sum of |Y - W h|^2 / sum of |Y|^2 with the weighted sum, and with what was solved */
} mdp_merge_fit;

typedef struct mdp_merge_fits {
    int64_t n;
    mdp_merge_fit *fits; /* [n] by layer, then kept */
} mdp_merge_fits;
void mdp_merge_fits_destroy(mdp_merge_fits *fits); /* NULL is allowed */

/* Experts of a plan that are to be fitted. */
int64_t mdp_merge_count_fits(const mdp_plan *plan);

/* mdp_merge_all, and then, layer by layer of one forward over all tokens (one batch) of the original, the down
 * projections of experts that are to be fitted: W = Y P^T (P P^T + lambda I)^-1 over the tokens that chose any member,
 * P their activations in the merged expert, Y the weighted sum of what its members give for them, lambda = ridge times
 * the mean of diag P P^T (MergeMoE, 2510.14436). `options`: its resume and profiles are the forward's. Collective on
 * `comm`. Errors: those of both. */
mdp_status mdp_merge_fit_all(const mdp_comm *comm, const mdp_model *model, mdp_reader *reader, const mdp_tokens *tokens,
                             const mdp_plan *plan, mdp_replaced *replaced, double ridge,
                             const mdp_merge_options *options, const mdp_forward_options *forward,
                             mdp_merge_fits **out);
/* The pass of it, what it takes beside the pass, and bytes of a rank for rows of all of its tokens. Local. */
mdp_pass mdp_merge_fit_pass(void);
mdp_status mdp_merge_fit_cost_of(const mdp_comm *layout, const mdp_model *model, const mdp_tokens *tokens,
                                 const mdp_plan *plan, int n_thread, mdp_merge_cost *out);
int64_t mdp_merge_fit_token_memory(const mdp_comm *layout, const mdp_model *model, const mdp_tokens *tokens);

#endif
