/* refit.c - the pass of a refit: two streams over all tokens, the original and what a plan leaves of it.
 *
 * A layer is computed for both; its sums become new down projections; the block of the second stream is computed again
 * with them, as they are stored, and goes on. So every layer is fitted on what the fitted layers before it give. */
#include "pipeline/refit_run.h"

#include <string.h>

void mdp_refit_destroy(mdp_refit *refit) {
    if (!refit) return;
    for (int64_t i = 0; refit->layers && i < refit->n_layer; i++) {
        mdp_free(refit->layers[i].rows);
        mdp_free(refit->layers[i].fitted);
    }
    mdp_free(refit->layers);
    mdp_free(refit);
}

static mdp_status new_result(const mdp_plan *plan, mdp_refit **out) {
    MDP_TRY(MDP_ALLOC(out, 1, "what a refit did"));
    MDP_TRY(MDP_ALLOC(&(*out)->layers, plan->n_layer, "what a refit did"));
    (*out)->n_layer = plan->n_layer;
    for (int64_t i = 0; i < plan->n_layer; i++) {
        mdp_refit_layer *layer = &(*out)->layers[i];
        layer->layer = plan->layers[i].layer;
        layer->n_expert = plan->layers[i].n_kept;
        layer->before = layer->after = (mdp_refit_error){-1.0, -1.0};
        layer->step = 1.0;
        layer->fixed = true;
        MDP_TRY(MDP_ALLOC(&layer->rows, layer->n_expert, "what a refit did"));
        MDP_TRY(MDP_ALLOC(&layer->fitted, layer->n_expert, "what a refit did"));
    }
    return mdp_ok();
}

/* ---- a layer --------------------------------------------------------------------------------------------------- */

/* Errors of the tokens that are fitted to and of those held out, from sums [n_set + 1]. */
static mdp_refit_error errors_of(const mdp_refit_run *run, const mdp_refit_sums *sums, bool after) {
    mdp_exact whole = {{0}}, part = {{0}};
    const mdp_refit_sums *held = &sums[run->n_set];
    for (int s = 0; s < run->n_set; s++) {
        for (int i = 0; i < MDP_LIMBS; i++) {
            whole.limb[i] += sums[s].target.limb[i];
            part.limb[i] += after ? sums[s].after.limb[i] : sums[s].before.limb[i];
        }
    }
    return (mdp_refit_error){.fitted = mdp_refit_ratio(&part, &whole),
                             .held_out = mdp_refit_ratio(after ? &held->after : &held->before, &held->target)};
}

static mdp_status redo_all(mdp_refit_run *run, mdp_engine *engine, bool trial) {
    const mdp_observers observers = mdp_refit_redo_observers(run);
    run->trial = trial;
    mdp_status status = mdp_engine_redo_block_all(engine, run->layer, &observers);
    run->trial = false;
    return status;
}

/* The step along the change of `diagonal` that makes the error least, by a trial of the whole change. Collective. */
static mdp_status find_step_all(mdp_refit_run *run, mdp_engine *engine, mdp_refit_sums *sums) {
    double along = 0.0, change = 0.0;
    MDP_TRY(redo_all(run, engine, true));
    MDP_TRY(mdp_refit_sum_all(run, sums));
    for (int s = 0; s < run->n_set; s++) {
        along += mdp_exact_value(&sums[s].along);
        change += mdp_exact_value(&sums[s].change);
    }
    run->record->step = change > 0.0 ? along / change : 0.0;
    return mdp_ok();
}

static mdp_status fit_all(mdp_refit_run *run, mdp_engine *engine, mdp_refit_sums *sums, mdp_fit *fit) {
    double *d = NULL;
    mdp_status status = mdp_refit_solve_all(run, sums, fit, &d);
    if (status.code == MDP_OK) status = mdp_refit_put_all(run, fit, d, 1.0);
    if (status.code == MDP_OK && run->mode == MDP_FIT_DIAGONAL) {
        status = find_step_all(run, engine, sums);
        if (status.code == MDP_OK) status = mdp_refit_put_all(run, fit, d, run->record->step);
    }
    mdp_free(d);
    return status;
}

static void tell(const mdp_refit_run *run) {
    const mdp_refit_layer *r = run->record;
    char held[80] = "";
    int32_t n_fitted = 0;
    for (int32_t e = 0; e < r->n_expert; e++) n_fitted += r->fitted[e] != 0;
    if (r->before.held_out >= 0.0)
        snprintf(held, sizeof held, ", held out %.4f -> %.4f", r->before.held_out, r->after.held_out);
    mdp_log_message(run->forward->log, MDP_LEVEL_DEBUG,
                    "%-8s layer %lld: %d of %d experts, ridge %g, error %.4f -> %.4f%s",
                    run->options->train ? "recover" : "refit", (long long)r->layer, (int)n_fitted, (int)r->n_expert,
                    r->ridge, r->before.fitted, r->after.fitted, held);
}

static mdp_status solve_layer_all(mdp_refit_run *run, mdp_engine *engine, mdp_refit_sums *sums) {
    mdp_fit *fit = NULL;
    int64_t unit = mdp_refit_unit(&run->model->layers[run->layer].moe);
    mdp_phase before = mdp_profile_switch(run->profile, MDP_PHASE_SOLVE);
    mdp_status status = mdp_fit_new_all(run->comm, run->products, run->layout, run->mode, MDP_SPD_ALONE, unit,
                                        run->forward->n_thread, run->profile, &fit);
    if (status.code == MDP_OK) status = fit_all(run, engine, sums, fit);
    mdp_fit_destroy_all(fit);
    mdp_refit_end_layer(run); /* what it took is free for the block */
    mdp_profile_switch(run->profile, before);
    return status;
}

/* Sums, solve or train, redo. Collective. */
static mdp_status refit_layer_all(mdp_refit_run *run, mdp_engine *engine, mdp_refit_sums *sums) {
    MDP_TRY(mdp_refit_sum_all(run, sums));
    run->record->before = run->record->after = errors_of(run, sums, false);
    if (!run->options->train && !run->products) return mdp_ok();
    mdp_status status = run->options->train ? mdp_refit_train_all(run, sums) : solve_layer_all(run, engine, sums);
    if (status.code == MDP_OK) status = redo_all(run, engine, false);
    if (status.code == MDP_OK) status = mdp_refit_sum_all(run, sums);
    if (status.code == MDP_OK) run->record->after = errors_of(run, sums, true);
    return status;
}

/* The second stream goes on from what the original has come to, where layers are fitted on the original's inputs. */
static void follow_original(const mdp_engine *engine, int64_t n_byte) {
    int original = mdp_engine_branch_of(engine, 0), branch = mdp_engine_branch_of(engine, 1);
    if (branch != original)
        memcpy(mdp_engine_residual(engine, branch), mdp_engine_residual(engine, original), (size_t)n_byte);
}

/* Where no wave says so: have the streams parted, and who was chosen? Collective. */
static mdp_status see_branches_all(mdp_refit_run *run) {
    run->branch = mdp_engine_branch_of(run->engine, 1);
    run->parted = run->branch != mdp_engine_branch_of(run->engine, 0);
    return mdp_refit_count_all(run);
}

static mdp_status end_layer_all(void *context, mdp_engine *engine, int64_t layer) {
    mdp_refit_run *run = context;
    mdp_refit_sums *sums = NULL;
    mdp_status status = run->record ? mdp_refit_carry_all(run) : mdp_ok();
    if (status.code == MDP_OK && run->record && run->options->train) status = see_branches_all(run);
    if (status.code == MDP_OK && run->record && run->parted) {
        status = mdp_agree_all(run->comm, MDP_ALLOC(&sums, run->n_set + 1, "sums of a layer"));
        if (status.code == MDP_OK) status = refit_layer_all(run, engine, sums);
        if (status.code == MDP_OK) tell(run);
        mdp_free(sums);
    }
    mdp_refit_end_layer(run);
    if (run->options->original_inputs)
        follow_original(engine, run->n_local * run->model->d_model * (int64_t)sizeof(float));
    mdp_refit_begin_layer(run, layer + 1);
    return status;
}

/* ---- the pass -------------------------------------------------------------------------------------------------- */

static mdp_status begin_batch(void *context, const mdp_engine *engine) {
    mdp_refit_run *run = context;
    run->profile = mdp_engine_profile(engine);
    mdp_refit_begin_layer(run, run->layer);
    return mdp_refit_begin_batch(run, engine);
}

int mdp_refit_count_sets(const mdp_tokens *tokens, const mdp_refit_options *options) {
    if (options->ridge > 0.0 || options->train) return 1;
    if (tokens->n_category == 1) return 2;
    return tokens->n_category < MDP_REFIT_MOST_SETS ? tokens->n_category : MDP_REFIT_MOST_SETS - 1;
}

static mdp_status open_run(mdp_refit_run *run) {
    run->n_set = mdp_refit_count_sets(run->tokens, run->options);
    MDP_TRY(mdp_transform_view(run->model, run->plan, run->before, &run->view));
    MDP_TRY(MDP_ALLOC(&run->sums, run->n_set + 1, "sums of a layer"));
    MDP_TRY(new_result(run->plan, &run->result));
    return mdp_refit_saved_new(run);
}

mdp_pass mdp_refit_pass(const mdp_refit_options *options, const mdp_view *const *views) {
    return (mdp_pass){.n_stream = 2, .redo_block = true, .activations = !options->train, .views = views};
}

mdp_replaced_which mdp_refit_replaces(const mdp_refit_options *options) {
    const mdp_train_options *train = options->train;
    if (!train) return MDP_REPLACED_FITTED;
    if (train->router && train->experts) return MDP_REPLACED_BLOCKS;
    return train->router ? MDP_REPLACED_ROUTERS : MDP_REPLACED_EXPERTS;
}

mdp_status mdp_refit_all(const mdp_comm *comm, const mdp_model *model, mdp_reader *reader, const mdp_tokens *tokens,
                         const mdp_plan *plan, const mdp_replaced *before, mdp_replaced *replaced,
                         const mdp_refit_options *refit, const mdp_forward_options *options, mdp_refit **out) {
    mdp_refit_run run = {.comm = comm,
                         .model = model,
                         .reader = reader,
                         .tokens = tokens,
                         .plan = plan,
                         .before = before,
                         .replaced = replaced,
                         .options = refit,
                         .forward = options};
    *out = NULL;
    mdp_status status = mdp_agree_all(comm, open_run(&run));
    if (status.code == MDP_OK) {
        const mdp_view *views[2] = {NULL, run.view};
        const mdp_observers observers = mdp_refit_observers(&run);
        const mdp_forward forward = {.comm = comm,
                                     .model = model,
                                     .reader = reader,
                                     .tokens = tokens,
                                     .options = options,
                                     .phase = refit->train ? "recover" : "refit",
                                     .pass = mdp_refit_pass(refit, views),
                                     .views = views,
                                     .observers = &observers,
                                     .begin_batch = begin_batch,
                                     .redo_all = end_layer_all,
                                     .gather_all = mdp_refit_gather_all,
                                     .describe = mdp_refit_describe,
                                     .restored_all = mdp_refit_restored_all,
                                     .context = &run};
        status = mdp_forward_all(&forward);
    }
    mdp_refit_end_layer(&run);
    mdp_refit_clear(&run);
    mdp_refit_saved_clear(&run.saved);
    mdp_view_destroy(run.view);
    mdp_free(run.sums);
    if (status.code != MDP_OK) {
        mdp_refit_destroy(run.result);
        return status;
    }
    *out = run.result;
    return status;
}
