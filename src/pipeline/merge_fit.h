/* merge_fit.h - one merge with fitted down projections under way: what its pass, its groups and its resume points
 * share.
 */
#ifndef MDP_SRC_PIPELINE_MERGE_FIT_H
#define MDP_SRC_PIPELINE_MERGE_FIT_H

#include "mdp/fit.h"
#include "pipeline/forward.h"
#include "pipeline/merge_run.h"
#include "pipeline/refit_run.h"

/* What a resume point holds, packed. */
typedef struct mdp_merge_saved {
    int64_t *numbers; /* of each expert that is fitted */
    double *values;   /* the same */
    int64_t *digests; /* of each array */
} mdp_merge_saved;

typedef struct mdp_merge_fitting {
    mdp_merge_run merge; /* makes what is fitted */
    const mdp_tokens *tokens;
    double ridge;
    const mdp_forward_options *forward;
    mdp_merge_fits *result;
    mdp_merge_saved saved;

    /* the batch */
    mdp_profile *profile; /* NULL: nothing is counted */
    int64_t n_local, first_token;
    mdp_expert_t *index; /* [n_local, slots at hand], with room for MDP_MERGE_SLOTS */
    float *weight;       /* the same; all 1 */
    float *target;       /* [n_local, d] what its members give together */

    /* the expert at hand */
    mdp_merge_fit *fit;
    const mdp_expert *to;   /* in the plan's arrays */
    const double *shares;   /* weights of the members that compute */
    bool adds, is_last;     /* others have before; nobody will after them, and the expert itself does with them */
    mdp_products *products; /* sides: activations, target */
    mdp_exact whole, rest;  /* sums of |Y|^2 and of |Y - W h|^2 on this rank */
} mdp_merge_fitting;

/* ---- merge_fit_group.c ------------------------------------------------------------------------------------------- */

/* Fit an expert of the layer just computed, which has been made. Collective (agrees). */
mdp_status mdp_merge_fit_group_all(mdp_merge_fitting *run, mdp_engine *engine, const mdp_plan_expert *planned,
                                   mdp_merge_fit *fit);
/* The system of an expert whose members n_row tokens choose. Local. */
mdp_status mdp_merge_fit_system(int n_rank, int n_thread, const mdp_model *model, int64_t layer,
                                const mdp_tokens *tokens, int64_t n_row, mdp_refit_system *out);

/* ---- merge_fit_point.c: resume points ---------------------------------------------------------------------------- */

mdp_status mdp_merge_saved_new(mdp_merge_fitting *run);
void mdp_merge_saved_clear(mdp_merge_saved *saved);
/* Steps of the pass, with the run as context (mdp_forward). Collective where their names say so. */
mdp_status mdp_merge_fit_gather_all(void *context);
mdp_status mdp_merge_fit_describe(void *context, const mdp_position *at, bool taken, mdp_point *point);
mdp_status mdp_merge_fit_restored_all(void *context, const mdp_position *at);

#endif
