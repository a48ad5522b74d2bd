/* merge_fit.c - the pass of a merge with fitted down projections: when a layer of the original has been computed, its
 * merged experts are made, and those that are to be fitted are, one after the other, on what it has seen.
 *
 * Nothing that is made changes what later layers see. A resume point between two layers has what became of those that
 * are done. */
#include "pipeline/merge_fit.h"

void mdp_merge_fits_destroy(mdp_merge_fits *fits) {
    if (!fits) return;
    mdp_free(fits->fits);
    mdp_free(fits);
}

int64_t mdp_merge_count_fits(const mdp_plan *plan) {
    int64_t n = 0;
    for (int64_t i = 0; i < plan->n_layer; i++)
        for (int32_t j = 0; j < plan->layers[i].n_kept; j++) n += plan->layers[i].kept[j].fitted;
    return n;
}

mdp_pass mdp_merge_fit_pass(void) {
    return (mdp_pass){.n_stream = 1, .activations = true, .aside_slots = MDP_MERGE_SLOTS};
}

static mdp_status new_result(const mdp_plan *plan, mdp_merge_fits **out) {
    int64_t n = mdp_merge_count_fits(plan), at = 0;
    MDP_TRY(MDP_ALLOC(out, 1, "what a merge did"));
    MDP_TRY(MDP_ALLOC(&(*out)->fits, n, "what a merge did"));
    (*out)->n = n;
    for (int64_t i = 0; i < plan->n_layer; i++)
        for (int32_t j = 0; j < plan->layers[i].n_kept; j++)
            if (plan->layers[i].kept[j].fitted)
                (*out)->fits[at++] = (mdp_merge_fit){.layer = plan->layers[i].layer, .kept = j, .fixed = true};
    return mdp_ok();
}

/* ---- the pass --------------------------------------------------------------------------------------------------- */

static mdp_status begin_batch(void *context, const mdp_engine *engine) {
    mdp_merge_fitting *run = context;
    const mdp_local_batch *batch = mdp_engine_batch(engine);
    int64_t n_slot = batch->n_token * MDP_MERGE_SLOTS;
    run->profile = run->merge.profile = mdp_engine_profile(engine);
    run->n_local = batch->n_token;
    run->first_token = batch->first_token;
    MDP_TRY(MDP_ALLOC(&run->index, n_slot, "routes to members"));
    MDP_TRY(MDP_ALLOC(&run->weight, n_slot, "routes to members"));
    MDP_TRY(MDP_ALLOC(&run->target, batch->n_token * run->merge.model->d_model, "outputs of members"));
    for (int64_t i = 0; i < n_slot; i++) run->weight[i] = 1.0F;
    return mdp_ok();
}

static const mdp_plan_layer *find_layer(const mdp_plan *plan, int64_t layer) {
    for (int64_t i = 0; i < plan->n_layer; i++)
        if (plan->layers[i].layer == layer) return &plan->layers[i];
    return NULL;
}

/* Make the layer's experts, and fit. Collective. */
static mdp_status end_layer_all(void *context, mdp_engine *engine, int64_t layer) {
    mdp_merge_fitting *run = context;
    const mdp_plan_layer *planned = find_layer(run->merge.plan, layer);
    bool any = false;
    int64_t first, n;
    if (!planned) return mdp_ok();
    MDP_TRY(mdp_merge_layer_all(&run->merge, planned));
    for (int64_t i = 0; i < run->result->n; i++) {
        mdp_merge_fit *fit = &run->result->fits[i];
        if (fit->layer != layer) continue;
        MDP_TRY(mdp_merge_fit_group_all(run, engine, &planned->kept[fit->kept], fit));
        any = any || fit->solved;
    }
    if (!any) return mdp_ok();
    mdp_phase before = mdp_profile_switch(run->profile, MDP_PHASE_SYNC);
    mdp_replaced_arrays(run->merge.replaced, layer, layer + 1, &first, &n);
    mdp_status status = mdp_arrays_settle_all(run->merge.comm, run->merge.replaced->arrays, first, n);
    mdp_profile_switch(run->profile, before);
    return status;
}

static mdp_status forward_all(mdp_merge_fitting *run) {
    static const mdp_observers none = {0};
    const mdp_forward forward = {.comm = run->merge.comm,
                                 .model = run->merge.model,
                                 .reader = run->merge.reader,
                                 .tokens = run->tokens,
                                 .options = run->forward,
                                 .phase = "merge",
                                 .pass = mdp_merge_fit_pass(),
                                 .observers = &none,
                                 .begin_batch = begin_batch,
                                 .redo_all = end_layer_all,
                                 .gather_all = mdp_merge_fit_gather_all,
                                 .describe = mdp_merge_fit_describe,
                                 .restored_all = mdp_merge_fit_restored_all,
                                 .context = run};
    return mdp_forward_all(&forward);
}

mdp_status mdp_merge_fit_all(const mdp_comm *comm, const mdp_model *model, mdp_reader *reader, const mdp_tokens *tokens,
                             const mdp_plan *plan, mdp_replaced *replaced, double ridge,
                             const mdp_merge_options *options, const mdp_forward_options *forward,
                             mdp_merge_fits **out) {
    mdp_merge_fitting run = {
        .merge =
            {.comm = comm, .model = model, .reader = reader, .plan = plan, .replaced = replaced, .options = options},
        .tokens = tokens,
        .ridge = ridge,
        .forward = forward};
    *out = NULL;
    mdp_status status = new_result(plan, &run.result);
    if (status.code == MDP_OK) status = mdp_merge_saved_new(&run);
    status = mdp_agree_all(comm, status);
    if (status.code == MDP_OK) status = forward_all(&run);
    mdp_merge_saved_clear(&run.saved);
    mdp_free(run.index);
    mdp_free(run.weight);
    mdp_free(run.target);
    if (status.code == MDP_OK)
        *out = run.result;
    else
        mdp_merge_fits_destroy(run.result);
    return status;
}
