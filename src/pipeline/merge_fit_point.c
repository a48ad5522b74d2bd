/* merge_fit_point.c - resume points of a merge with fitted down projections: what became of the experts of layers that
 * are done, and the checksums of their arrays, which lie in the unfinished plan.h5. */
#include "pipeline/merge_fit.h"

#define N_NUMBER 4 /* tokens, order, solved, fixed */
#define N_VALUE 4  /* lambda, rcond, two errors */

mdp_status mdp_merge_saved_new(mdp_merge_fitting *run) {
    mdp_merge_saved *saved = &run->saved;
    MDP_TRY(MDP_ALLOC(&saved->numbers, N_NUMBER * run->result->n, "what a merge did"));
    MDP_TRY(MDP_ALLOC(&saved->values, N_VALUE * run->result->n, "what a merge did"));
    return MDP_ALLOC(&saved->digests, MDP_NOTED * run->merge.replaced->arrays->n, "what a merge did");
}

void mdp_merge_saved_clear(mdp_merge_saved *saved) {
    mdp_free(saved->numbers);
    mdp_free(saved->values);
    mdp_free(saved->digests);
}

/* All is the same on every rank. */
mdp_status mdp_merge_fit_gather_all(void *context) {
    mdp_merge_fitting *run = context;
    for (int64_t i = 0; i < run->result->n; i++) {
        const mdp_merge_fit *fit = &run->result->fits[i];
        int64_t *number = run->saved.numbers + N_NUMBER * i;
        double *value = run->saved.values + N_VALUE * i;
        number[0] = fit->n_token;
        number[1] = fit->order;
        number[2] = fit->solved;
        number[3] = fit->fixed;
        value[0] = fit->lambda;
        value[1] = fit->rcond;
        value[2] = fit->before;
        value[3] = fit->after;
    }
    mdp_arrays_note(run->merge.replaced->arrays, run->saved.digests);
    return mdp_ok();
}

mdp_status mdp_merge_fit_describe(void *context, const mdp_position *at, bool taken, mdp_point *point) {
    const mdp_merge_fitting *run = context;
    const mdp_merge_saved *saved = &run->saved;
    bool wanted = run->merge.comm->rank == 0 || taken;
    (void)at;
    MDP_TRY(mdp_point_add_array(point, "numbers", MDP_I64, N_NUMBER * run->result->n, saved->numbers, wanted));
    MDP_TRY(mdp_point_add_array(point, "values", MDP_F64, N_VALUE * run->result->n, saved->values, wanted));
    return mdp_point_add_array(point, "digests", MDP_I64, MDP_NOTED * run->merge.replaced->arrays->n, saved->digests,
                               wanted);
}

/* What was written then is still there. Local. */
static mdp_status compare(const mdp_merge_fitting *run, int64_t n) {
    for (int64_t i = 0; i < n; i++)
        MDP_TRY(mdp_arrays_compare_noted(run->merge.replaced->arrays, i, run->saved.digests));
    return mdp_ok();
}

mdp_status mdp_merge_fit_restored_all(void *context, const mdp_position *at) {
    mdp_merge_fitting *run = context;
    int64_t done = at->batch > 0 ? run->merge.model->n_layer : at->layer, first, n;
    for (int64_t i = 0; i < run->result->n; i++) {
        mdp_merge_fit *fit = &run->result->fits[i];
        const int64_t *number = run->saved.numbers + N_NUMBER * i;
        const double *value = run->saved.values + N_VALUE * i;
        fit->n_token = number[0];
        fit->order = number[1];
        fit->solved = number[2] != 0;
        fit->fixed = number[3] != 0;
        fit->lambda = value[0];
        fit->rcond = value[1];
        fit->before = value[2];
        fit->after = value[3];
    }
    mdp_replaced_arrays(run->merge.replaced, 0, done, &first, &n);
    MDP_TRY(mdp_arrays_settle_all(run->merge.comm, run->merge.replaced->arrays, first, n));
    return mdp_agree_all(run->merge.comm, compare(run, first + n));
}
