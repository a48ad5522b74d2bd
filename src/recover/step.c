/* step.c - one step of training: loss and gradients of a batch, the norm, AdamW. */
#include "recover/trainer.h"

#include <math.h>

/* ---- gradients -------------------------------------------------------------------------------------------------- */

static mdp_status open_step(mdp_train_step *step) {
    const mdp_trainer *t = step->trainer;
    int64_t n = step->rows->n, n_expert = t->layer.n_expert, top_k = t->layer.top_k, d = t->layer.d_model;
    int64_t size = t->comm->size;
    if (n > INT32_MAX)
        return MDP_ERROR(MDP_USAGE, "%lld tokens of a step are on one rank; give a smaller --batch-tokens.",
                         (long long)n);
    MDP_TRY(MDP_ALLOC(&step->logits, 4 * n * n_expert, "logits of a step"));
    MDP_TRY(MDP_ALLOC(&step->index, n * top_k, "routes of a step"));
    MDP_TRY(MDP_ALLOC(&step->weight, n * top_k, "routes of a step"));
    MDP_TRY(MDP_ALLOC(&step->count, n_expert, "routes of a step"));
    MDP_TRY(MDP_ALLOC(&step->first, n_expert + 1, "routes of a step"));
    MDP_TRY(MDP_ALLOC(&step->visits, n * top_k, "routes of a step"));
    MDP_TRY(MDP_ALLOC(&step->told, size * n_expert, "row counts"));
    MDP_TRY(MDP_ALLOC(&step->telling, size * n_expert, "row counts"));
    MDP_TRY(MDP_ALLOC(&step->n_send, size, "row counts"));
    MDP_TRY(MDP_ALLOC(&step->n_recv, size, "row counts"));
    MDP_TRY(MDP_ALLOC(&step->x, n_expert, "rows of experts"));
    MDP_TRY(MDP_ALLOC(&step->dy, n_expert, "rows of experts"));
    MDP_TRY(MDP_ALLOC(&step->n_row, n_expert, "rows of experts"));
    MDP_TRY(MDP_ALLOC(&step->parts, n * top_k * t->n_slice * d, "outputs of a step"));
    MDP_TRY(MDP_ALLOC(&step->back, n * d, "gradients of outputs"));
    return MDP_ALLOC(&step->dg, n * top_k, "gradients of weights");
}

static void close_step(mdp_train_step *step) {
    for (int32_t e = 0; e < step->trainer->layer.n_expert; e++) {
        if (step->x) mdp_free(step->x[e]);
        if (step->dy) mdp_free(step->dy[e]);
    }
    mdp_train_close_units(step);
    void *all[] = {step->logits, step->index,   step->weight, step->count,  step->first, step->visits,
                   step->told,   step->telling, step->n_send, step->n_recv, step->x,     step->dy,
                   step->n_row,  step->parts,   step->back,   step->dg};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) mdp_free(all[i]);
}

static mdp_status forward_all(mdp_train_step *step) {
    mdp_trainer *t = step->trainer;
    mdp_profile_switch(t->profile, MDP_PHASE_ROUTER);
    mdp_train_route(step);
    mdp_profile_switch(t->profile, MDP_PHASE_DISPATCH);
    MDP_TRY(mdp_train_meet_all(step));
    MDP_TRY(mdp_train_send_rows_all(step, false));
    mdp_profile_switch(t->profile, MDP_PHASE_EXPERTS);
    mdp_train_forward(step);
    mdp_profile_switch(t->profile, MDP_PHASE_DISPATCH);
    MDP_TRY(mdp_train_return_all(step));
    mdp_profile_switch(t->profile, MDP_PHASE_COMBINE);
    mdp_status status = mdp_train_compare(step);
    if (status.code == MDP_OK) status = mdp_gemm_check(t->gemm);
    return mdp_agree_all(t->comm, status);
}

static mdp_status backward_all(mdp_train_step *step) {
    mdp_trainer *t = step->trainer;
    if (t->options.experts) {
        mdp_profile_switch(t->profile, MDP_PHASE_DISPATCH);
        MDP_TRY(mdp_train_send_rows_all(step, true));
        mdp_profile_switch(t->profile, MDP_PHASE_EXPERTS);
        mdp_train_backward(step);
        MDP_AGREE(t->comm, mdp_gemm_check(t->gemm));
    }
    mdp_profile_switch(t->profile, MDP_PHASE_SUMS);
    return t->options.router ? mdp_train_router_back_all(step) : mdp_ok();
}

mdp_status mdp_trainer_gradient_all(mdp_trainer *t, const mdp_train_rows *rows, double *loss) {
    mdp_train_step step = {.trainer = t, .rows = rows};
    mdp_phase before = mdp_profile_switch(t->profile, MDP_PHASE_OTHER);
    mdp_status status = mdp_agree_all(t->comm, open_step(&step));
    if (status.code == MDP_OK) status = forward_all(&step);
    if (status.code == MDP_OK) {
        mdp_exact_normalise(&step.error);
        status = mdp_sum_i64_all(t->comm, step.error.limb, MDP_LIMBS);
        *loss = mdp_exact_value(&step.error) * rows->scale;
    }
    if (status.code == MDP_OK) status = backward_all(&step);
    close_step(&step);
    mdp_profile_switch(t->profile, before);
    return status;
}

/* ---- the step --------------------------------------------------------------------------------------------------- */

static mdp_status add_squares(const mdp_trainer *t, mdp_exact *sum) {
    bool finite = true;
    for (int64_t u = t->first_unit; t->options.experts && u < t->end_unit; u++)
        finite = mdp_exact_add(sum, mdp_sum_squares(t->units[u].gradient, t->units[u].at[MDP_TRAIN_N_PART])) && finite;
    if (t->options.router && t->comm->rank == 0)
        finite = mdp_exact_add(sum, mdp_sum_squares(t->router_gradient, t->n_router)) && finite;
    if (finite) return mdp_ok();
    return MDP_ERROR(MDP_BAD_INPUT,
                     "training went astray: the gradient is not finite after %lld steps; give a smaller --lr.",
                     (long long)t->n_update);
}

static void update_units(mdp_trainer *t, const mdp_adamw *by) {
    for (int64_t u = t->first_unit; u < t->end_unit; u++) {
        mdp_train_unit *unit = &t->units[u];
        int64_t n = unit->at[MDP_TRAIN_N_PART];
#pragma omp parallel for schedule(static) num_threads(t->n_thread)
        for (int64_t i = 0; i < n; i += MDP_TRAIN_CHUNK)
            mdp_adamw_step(by, mdp_smaller(MDP_TRAIN_CHUNK, n - i), unit->gradient + i, unit->value + i, unit->mean + i,
                           unit->square + i);
    }
}

/* n values of each expert, from `at` on: those of experts that return 0 stay. */
static void update_rows(mdp_trainer *t, const mdp_adamw *by, int64_t at, int64_t n) {
    for (int32_t e = 0; e < t->layer.n_expert; e++, at += n) {
        if (t->layer.zero && t->layer.zero[e]) continue;
        mdp_adamw_step(by, n, t->router_gradient + at, t->router + at, t->router_mean + at, t->router_square + at);
    }
}

mdp_status mdp_trainer_update_all(mdp_trainer *t, double rate, double *norm) {
    mdp_exact sum = {{0}};
    int64_t d = t->layer.d_model;
    MDP_AGREE(t->comm, add_squares(t, &sum));
    mdp_exact_normalise(&sum);
    MDP_TRY(mdp_sum_i64_all(t->comm, sum.limb, MDP_LIMBS));
    *norm = sqrt(mdp_exact_value(&sum));
    const mdp_adamw by = {.rate = rate,
                          .decay = t->options.decay,
                          .scale = mdp_clip_scale(t->options.clip, *norm),
                          .number = ++t->n_update};
    mdp_phase before = mdp_profile_switch(t->profile, MDP_PHASE_SOLVE);
    if (t->options.experts) update_units(t, &by);
    if (t->options.router) {
        update_rows(t, &by, 0, d);
        if (t->has_bias) update_rows(t, &by, t->layer.n_expert * d, 1);
    }
    mdp_profile_switch(t->profile, before);
    return mdp_ok();
}
