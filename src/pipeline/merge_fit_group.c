/* merge_fit_group.c - one expert that is fitted: the tokens that chose any of its members go to all of them and to the
 * merged expert, and their activations and what the members give together become row products, and those its down
 * projection. */
#include "pipeline/merge_fit.h"
#include "pipeline/put_down.h"

#include <string.h>

#define MEMBERS (MDP_MERGE_SLOTS - 1) /* that compute at once; so much is held of what they give */

/* Who computes: the merged expert, then its members of some weight. */
typedef struct cast {
    mdp_expert_t *source;    /* [n] */
    const mdp_expert **made; /* [n] */
    double *shares;          /* [n] */
    unsigned char *member;   /* [experts of the layer] */
    int32_t n;
} cast;

static void free_cast(cast *c) {
    mdp_free(c->source);
    mdp_free(c->made);
    mdp_free(c->shares);
    mdp_free(c->member);
}

static mdp_status list_cast(const mdp_merge_fitting *run, const mdp_plan_expert *planned, cast *c) {
    MDP_TRY(MDP_ALLOC(&c->source, planned->n_from + 1, "members"));
    MDP_TRY(MDP_ALLOC(&c->made, planned->n_from + 1, "members"));
    MDP_TRY(MDP_ALLOC(&c->shares, planned->n_from + 1, "members"));
    MDP_TRY(MDP_ALLOC(&c->member, run->merge.moe->n_expert, "members"));
    c->source[0] = planned->from[0];
    c->made[0] = run->to;
    c->n = 1;
    for (int32_t i = 0; i < planned->n_from; i++) {
        c->member[planned->from[i]] = 1;
        if (planned->weights[i] == 0.0) continue;
        c->source[c->n] = planned->from[i];
        c->shares[c->n++] = planned->weights[i];
    }
    return mdp_ok();
}

/* Send this rank's tokens that chose a member to n_slot experts, and the others nowhere; their number. */
static int64_t fill_routes(const mdp_merge_fitting *run, const mdp_engine *engine, const cast *c, int32_t n_slot) {
    int32_t top_k = run->merge.moe->top_k;
    const mdp_expert_t *chosen;
    const float *weight;
    int64_t n = 0;
    mdp_engine_routes(engine, 0, &chosen, &weight);
    for (int64_t i = 0; i < run->n_local; i++) {
        bool any = false;
        for (int32_t k = 0; k < top_k; k++) any = any || c->member[chosen[i * top_k + k]];
        for (int32_t s = 0; s < n_slot; s++) run->index[i * n_slot + s] = any ? s : -1;
        n += any;
    }
    return n;
}

/* ---- rows -------------------------------------------------------------------------------------------------------- */

/* The target grows by what some members give; with the last of them, what the weighted sum of down projections leaves
 * of it is known. */
static void see_combined(void *context, const mdp_combined_token *token) {
    mdp_merge_fitting *run = context;
    int64_t d = run->merge.model->d_model;
    float *target = run->target + token->local * d;
    double whole = 0.0, rest = 0.0;
    int32_t first = run->is_last; /* slot 0 is the merged expert's */
    if (token->index[0] < 0) return;
    for (int64_t j = 0; j < d; j++) {
        double sum = run->adds ? (double)target[j] : 0.0;
        for (int32_t s = first; s < token->top_k; s++) sum += run->shares[s - first] * (double)token->y[s * d + j];
        double left = sum - (double)token->y[j];
        target[j] = (float)sum;
        whole += sum * sum;
        rest += left * left;
    }
    if (!run->is_last) return;
    (void)mdp_exact_add(&run->whole, whole); /* what is not finite has been refused by the engine */
    (void)mdp_exact_add(&run->rest, rest);
}

/* Rows of one block of tokens. */
typedef struct block_rows {
    int64_t *token;       /* [n] */
    const float **values; /* [2, n] activations, then targets */
} block_rows;

static mdp_status list_rows(const mdp_merge_fitting *run, const mdp_wave_rows *wave, int64_t first, int64_t end,
                            block_rows *rows, mdp_product_rows sides[2]) {
    int64_t n = 0;
    MDP_TRY(MDP_ALLOC(&rows->token, end - first, "rows of a fit"));
    MDP_TRY(MDP_ALLOC(&rows->values, 2 * (end - first), "rows of a fit"));
    for (int64_t i = first; i < end; i++) {
        int64_t local = wave->first_local + i;
        if (wave->index[i * wave->top_k] < 0) continue;
        rows->token[n] = run->first_token + local;
        rows->values[n] = wave->h + i * wave->stride;
        rows->values[end - first + n] = run->target + local * run->merge.model->d_model;
        n++;
    }
    for (int s = 0; s < 2; s++)
        sides[s] = (mdp_product_rows){.n = n, .token = rows->token, .values = rows->values + s * (end - first)};
    return mdp_ok();
}

static mdp_status add_block_all(mdp_merge_fitting *run, const mdp_wave_rows *wave, int64_t block) {
    block_rows rows = {NULL, NULL};
    mdp_product_rows sides[2] = {{0}, {0}};
    mdp_status status = mdp_agree_all(
        run->merge.comm, list_rows(run, wave, wave->block_first[block], wave->block_first[block + 1], &rows, sides));
    if (status.code == MDP_OK) status = mdp_products_add_all(run->products, 0, sides);
    mdp_free(rows.token);
    mdp_free(rows.values);
    return status;
}

static mdp_status see_wave_all(void *context, const mdp_wave_rows *wave) {
    mdp_merge_fitting *run = context;
    mdp_phase before = mdp_profile_switch(run->profile, MDP_PHASE_SUMS);
    mdp_status status = mdp_ok();
    for (int64_t b = 0; b < wave->n_block && status.code == MDP_OK; b++) status = add_block_all(run, wave, b);
    mdp_profile_switch(run->profile, before);
    return status;
}

/* The errors' sums, over all ranks. Collective. */
static mdp_status sum_all(const mdp_merge_fitting *run, double *whole, double *rest) {
    mdp_exact sums[2] = {run->whole, run->rest};
    for (int i = 0; i < 2; i++) mdp_exact_normalise(&sums[i]);
    MDP_TRY(mdp_sum_i64_all(run->merge.comm, sums[0].limb, 2 * MDP_LIMBS));
    for (int i = 0; i < 2; i++) mdp_exact_normalise(&sums[i]);
    *whole = mdp_exact_value(&sums[0]);
    *rest = mdp_exact_value(&sums[1]);
    return mdp_ok();
}

/* ---- the system -------------------------------------------------------------------------------------------------- */

mdp_status mdp_merge_fit_system(int n_rank, int n_thread, const mdp_model *model, int64_t layer,
                                const mdp_tokens *tokens, int64_t n_row, mdp_refit_system *out) {
    const mdp_refit_size size = {.n_rank = n_rank,
                                 .n_thread = n_thread,
                                 .n_set = 1,
                                 .n_side = 1,
                                 .width = model->layers[layer].moe.experts[0].gate.n_row,
                                 .n_token = tokens->n_token,
                                 .unit = mdp_refit_unit(&model->layers[layer].moe),
                                 .chooses = true}; /* B is kept beside D */
    const mdp_refit_options options = {.mode = MDP_REFIT_JOINT};
    return mdp_refit_choose_system(&size, model, layer, &options, &n_row, out);
}

/* B, D and the errors. b, d: this rank's columns. Collective. */
static mdp_status solve_all(mdp_merge_fitting *run, mdp_fit *fit, double *b, double *d, int64_t n_value) {
    static const double one = 1.0;
    const mdp_fit_sets sets = {1, &one};
    double mean, whole, rest, quadratic, linear;
    mdp_merge_fit *out = run->fit;
    MDP_TRY(sum_all(run, &whole, &rest));
    MDP_TRY(mdp_fit_mean_diagonal_all(fit, &sets, &mean));
    if (mean <= 0.0 || whole <= 0.0) return mdp_ok(); /* nothing is there to be fitted */
    MDP_TRY(mdp_fit_right_hand_side_all(fit, &sets, b));
    memcpy(d, b, (size_t)n_value * sizeof *d);
    out->lambda = run->ridge * mean;
    MDP_TRY(mdp_fit_solve_all(fit, &sets, out->lambda, 1, d, &out->rcond));
    MDP_TRY(mdp_fit_forms_all(fit, &sets, b, d, &quadratic, &linear));
    out->before = rest / whole;
    out->after = (whole - 2.0 * linear + quadratic) / whole;
    out->solved = true;
    return mdp_ok();
}

static mdp_status put_all(const mdp_merge_fitting *run, const mdp_fit *fit, const double *d) {
    mdp_put_down w = {.comm = run->merge.comm,
                      .reader = run->merge.reader,
                      .arrays = run->merge.replaced->arrays,
                      .from = run->to,
                      .to = run->to,
                      .d = d,
                      .order = mdp_fit_order(fit),
                      .step = 1.0};
    mdp_fit_columns(fit, &w.first, &w.n_col);
    return mdp_put_down_all(&w);
}

static mdp_status solve_and_put_all(mdp_merge_fitting *run, mdp_fit *fit) {
    double *b = NULL, *d = NULL;
    int64_t first, n_col;
    mdp_fit_columns(fit, &first, &n_col);
    mdp_status status = MDP_ALLOC(&b, n_col * mdp_fit_order(fit), "a new down projection");
    if (status.code == MDP_OK) status = MDP_ALLOC(&d, n_col * mdp_fit_order(fit), "a new down projection");
    status = mdp_agree_all(run->merge.comm, status);
    if (status.code == MDP_OK) status = solve_all(run, fit, b, d, n_col * mdp_fit_order(fit));
    if (status.code == MDP_OK && run->fit->solved) status = put_all(run, fit, d);
    mdp_free(b);
    mdp_free(d);
    return status;
}

/* Some members compute, from number `first` of the cast on; with the last of them the merged expert does. Collective.
 */
static mdp_status compute_all(mdp_merge_fitting *run, mdp_engine *engine, cast *c, int32_t first) {
    int32_t n = c->n - first < MEMBERS ? c->n - first : MEMBERS;
    run->adds = first > 1;
    run->is_last = first + n == c->n;
    run->shares = c->shares + first;
    int32_t from = run->is_last ? first - 1 : first, n_slot = n + run->is_last;
    c->source[first - 1] = c->source[0]; /* who is before them has computed */
    c->made[first - 1] = run->to;
    const mdp_observers observers = {
        .combined = see_combined, .wave_all = run->is_last ? see_wave_all : NULL, .context = run};
    const mdp_aside aside = {
        .view = {.n_expert = n_slot, .top_k = n_slot, .source = c->source + from, .made = c->made + from},
        .index = run->index,
        .weight = run->weight,
        .observers = &observers};
    fill_routes(run, engine, c, n_slot);
    return mdp_engine_aside_all(engine, run->fit->layer, &aside);
}

/* Products of what the expert and its members compute, and what follows from them. Collective. */
static mdp_status fit_all(mdp_merge_fitting *run, mdp_engine *engine, cast *c, mdp_refit_system *system) {
    const mdp_comm *comm = run->merge.comm;
    mdp_fit *fit = NULL;
    run->whole = run->rest = (mdp_exact){{0}};
    MDP_TRY(mdp_products_new_all(comm, system->layout, 1, run->forward->n_thread, run->profile, &run->products));
    mdp_status status = mdp_ok();
    for (int32_t i = 1; i < c->n && status.code == MDP_OK; i += MEMBERS) status = compute_all(run, engine, c, i);
    mdp_phase before = mdp_profile_switch(run->profile, MDP_PHASE_SOLVE);
    if (status.code == MDP_OK)
        status = mdp_fit_new_all(comm, run->products, system->layout, system->mode, MDP_SPD_ALONE,
                                 mdp_refit_unit(run->merge.moe), run->forward->n_thread, run->profile, &fit);
    if (status.code == MDP_OK) status = solve_and_put_all(run, fit);
    mdp_fit_destroy_all(fit);
    mdp_profile_switch(run->profile, before);
    mdp_products_destroy(run->products);
    run->products = NULL;
    return status;
}

static mdp_status fit_cast_all(mdp_merge_fitting *run, mdp_engine *engine, cast *c) {
    const mdp_comm *comm = run->merge.comm;
    mdp_merge_fit *fit = run->fit;
    mdp_refit_system system = {.fixed = true};
    fit->n_token = fill_routes(run, engine, c, 0);
    MDP_TRY(mdp_sum_i64_all(comm, &fit->n_token, 1));
    if (fit->n_token < MDP_MERGE_LEAST_ROWS) return mdp_ok();
    MDP_AGREE(comm, mdp_merge_fit_system(comm->size, run->forward->n_thread, run->merge.model, fit->layer, run->tokens,
                                         fit->n_token, &system));
    fit->order = system.order;
    fit->fixed = system.fixed;
    mdp_status status = fit_all(run, engine, c, &system);
    mdp_product_layout_destroy(system.layout);
    return status;
}

mdp_status mdp_merge_fit_group_all(mdp_merge_fitting *run, mdp_engine *engine, const mdp_plan_expert *planned,
                                   mdp_merge_fit *fit) {
    cast c = {0};
    run->fit = fit;
    run->to = &run->merge.replaced->experts[mdp_replaced_find(run->merge.replaced, fit->layer, fit->kept)].expert;
    mdp_status status = mdp_agree_all(run->merge.comm, list_cast(run, planned, &c));
    if (status.code == MDP_OK) status = fit_cast_all(run, engine, &c);
    if (status.code == MDP_OK)
        mdp_log_message(run->forward->log, MDP_LEVEL_DEBUG,
                        "merge    layer %lld, expert %d: %lld tokens, error %.4f -> %.4f%s", (long long)fit->layer,
                        (int)fit->kept, (long long)fit->n_token, fit->before, fit->after,
                        fit->solved ? "" : " (not fitted)");
    free_cast(&c);
    return status;
}
