/* refit_sums.c - what tokens of a layer give: the rest that the fit is to explain, errors, and row products.
 *
 * Tokens come from observers: of the original stream first, which leaves its routed output and residual stream, then of
 * the changed one, whose rest follows; at the end of a wave the activations of the changed stream are there, and rows
 * go into the products, block of tokens by block. Before the first wave is added, all tokens of the batch have chosen
 * their experts: so many rows decide who is fitted and who has which block. */
#include "pipeline/refit_run.h"

#include <math.h>
#include <string.h>

#define SEQUENCES_TO_HOLD_OUT 20 /* with fewer, single tokens are held out */
#define HOLDOUT_STREAM 101       /* of random numbers */
#define SAMPLE_STREAM 102
#define FOLD_STREAM 103

/* ---- which tokens ---------------------------------------------------------------------------------------------- */

static double draw(const mdp_refit_run *run, uint64_t stream, int64_t number) {
    return mdp_random_uniform(run->options->seed, stream, (uint64_t)number);
}

static unsigned char set_of(const mdp_refit_run *run, int64_t sequence, int64_t token) {
    const mdp_refit_options *options = run->options;
    bool whole = run->tokens->n_sequence >= SEQUENCES_TO_HOLD_OUT;
    if (draw(run, HOLDOUT_STREAM, whole ? sequence : token) < options->holdout) return (unsigned char)run->n_set;
    if (options->n_token > 0 &&
        draw(run, SAMPLE_STREAM, token) * (double)run->tokens->n_token >= (double)options->n_token)
        return (unsigned char)(run->n_set + 1);
    if (run->n_set == 1) return 0;
    if (run->tokens->n_category > 1) return (unsigned char)(run->tokens->sequence_category[sequence] % run->n_set);
    return draw(run, FOLD_STREAM, whole ? sequence : token) < 0.1;
}

bool mdp_refit_holds_out(const mdp_refit_run *run, int64_t sequence) {
    return run->tokens->n_sequence >= SEQUENCES_TO_HOLD_OUT &&
           draw(run, HOLDOUT_STREAM, sequence) < run->options->holdout;
}

mdp_status mdp_refit_begin_batch(mdp_refit_run *run, const mdp_engine *engine) {
    const mdp_local_batch *batch = mdp_engine_batch(engine);
    int64_t n_value = batch->n_token * run->model->d_model, sequence = 0;
    mdp_refit_clear(run);
    run->engine = engine;
    run->n_local = batch->n_token;
    run->first_token = batch->first_token;
    MDP_TRY(MDP_ALLOC(&run->set, batch->n_token, "sets of tokens"));
    MDP_TRY(MDP_ALLOC(&run->original, n_value, "outputs of the original"));
    MDP_TRY(MDP_ALLOC(&run->rest, n_value, "what a fit is to explain"));
    if (run->options->target == MDP_REFIT_RESIDUAL && !run->options->original_inputs)
        MDP_TRY(MDP_ALLOC(&run->stream, n_value, "residual streams of the original"));
    if (run->options->train) MDP_TRY(MDP_ALLOC(&run->input, n_value, "inputs of experts"));
    for (int64_t i = 0; i < batch->n_token; i++) {
        int64_t token = batch->first_token + i;
        while (run->tokens->offset[sequence + 1] <= token) sequence++;
        run->set[i] = set_of(run, sequence, token);
    }
    return mdp_ok();
}

void mdp_refit_clear(mdp_refit_run *run) {
    mdp_free(run->set);
    mdp_free(run->original);
    mdp_free(run->stream);
    mdp_free(run->rest);
    mdp_free(run->input);
    run->set = NULL;
    run->original = run->stream = run->rest = run->input = NULL;
}

/* ---- tokens ---------------------------------------------------------------------------------------------------- */

/* Squares of a token's target, of what is left of it, and of what a trial changes. */
typedef struct token_sums {
    double target, rest, along, change;
} token_sums;

/* rest = target - Z'; what was there is what the block gave before. */
static token_sums compare(const mdp_refit_run *run, const mdp_combined_token *token) {
    int64_t d = run->model->d_model;
    const float *original = run->original + token->local * d;
    const float *stream = run->stream ? run->stream + token->local * d : NULL;
    float *rest = run->rest + token->local * d;
    token_sums sums = {0};
    for (int64_t j = 0; j < d; j++) {
        double drift = stream ? ((double)stream[j] - (double)token->residual[j]) / (double)token->scale : 0.0;
        double target = (double)original[j] + drift, left = target - (double)token->routed[j];
        double change = (double)rest[j] - left;
        sums.target += target * target;
        sums.rest += left * left;
        sums.along += (double)rest[j] * change;
        sums.change += change * change;
        if (!run->trial) rest[j] = (float)(run->input ? target : left);
    }
    return sums;
}

static void add(mdp_exact *sum, double value) {
    (void)mdp_exact_add(sum, value); /* what is not finite has been refused by the engine */
}

static void see_original(const mdp_refit_run *run, const mdp_combined_token *token) {
    size_t n_byte = (size_t)run->model->d_model * sizeof(float);
    memcpy(run->original + token->local * run->model->d_model, token->routed, n_byte);
    if (run->stream) memcpy(run->stream + token->local * run->model->d_model, token->residual, n_byte);
}

static void see_routed(void *context, const mdp_routed_token *token) {
    mdp_refit_run *run = context;
    int64_t d = run->model->d_model;
    if (token->branch == mdp_engine_branch_of(run->engine, 1))
        memcpy(run->input + token->local * d, token->x, (size_t)d * sizeof(float));
}

static void see_combined(void *context, const mdp_combined_token *token) {
    mdp_refit_run *run = context;
    if (token->branch == mdp_engine_branch_of(run->engine, 0)) see_original(run, token);
    if (token->branch != mdp_engine_branch_of(run->engine, 1) || token->branch == mdp_engine_branch_of(run->engine, 0))
        return;
    token_sums own = compare(run, token);
    if (run->set[token->local] > run->n_set) return;
    mdp_refit_sums *sums = &run->sums[run->set[token->local]];
    add(&sums->target, own.target);
    add(&sums->before, own.rest);
}

static void see_redone(void *context, const mdp_combined_token *token) {
    mdp_refit_run *run = context;
    if (token->branch != mdp_engine_branch_of(run->engine, 1)) return;
    token_sums own = compare(run, token);
    if (run->set[token->local] > run->n_set) return;
    mdp_refit_sums *sums = &run->sums[run->set[token->local]];
    add(run->trial ? &sums->along : &sums->after, run->trial ? own.along : own.rest);
    if (run->trial) add(&sums->change, own.change);
}

/* ---- who is fitted --------------------------------------------------------------------------------------------- */

/* rows [n, n]: tokens in the fit that chose both of two experts. Collective. */
static mdp_status count_rows_all(const mdp_refit_run *run, int32_t n, int32_t top_k, int64_t *rows) {
    const mdp_expert_t *index;
    const float *weight;
    mdp_engine_routes(run->engine, run->branch, &index, &weight);
    for (int64_t i = 0; i < run->n_local; i++) {
        if (run->set[i] >= run->n_set) continue;
        for (int32_t a = 0; a < top_k; a++)
            for (int32_t b = 0; b < top_k; b++) rows[index[i * top_k + a] * n + index[i * top_k + b]]++;
    }
    return mdp_sum_i64_all(run->comm, rows, (int64_t)n * n);
}

static mdp_status choose_sides(mdp_refit_run *run, const mdp_layer_view *view, const int64_t *rows) {
    int32_t n = view->n_expert;
    MDP_TRY(MDP_ALLOC(&run->side, n, "fitted experts"));
    MDP_TRY(MDP_ALLOC(&run->expert, n, "fitted experts"));
    run->n_side = 0;
    for (int32_t e = 0; e < n; e++) {
        run->record->rows[e] = rows[e * n + e];
        bool fitted = rows[e * n + e] >= MDP_REFIT_LEAST_ROWS && !(view->zero && view->zero[e]);
        run->side[e] = fitted ? run->n_side : -1;
        if (fitted) run->expert[run->n_side++] = e;
        run->record->fitted[e] = fitted;
    }
    return mdp_ok();
}

/* rows of the fitted experts alone, [n_side, n_side]. */
static void pick_rows(const mdp_refit_run *run, int32_t n, const int64_t *rows, int64_t *out) {
    for (int32_t a = 0; a < run->n_side; a++)
        for (int32_t b = 0; b < run->n_side; b++)
            out[a * run->n_side + b] = rows[(int64_t)run->expert[a] * n + run->expert[b]];
}

static mdp_status choose_system(mdp_refit_run *run, const int64_t *rows) {
    const mdp_refit_size size =
        mdp_refit_size_of(run->comm->size, run->forward->n_thread, &run->model->layers[run->layer].moe, run->plan,
                          run->tokens, run->options, run->n_side);
    mdp_refit_system system;
    MDP_TRY(mdp_refit_choose_system(&size, run->model, run->layer, run->options, rows, &system));
    run->layout = system.layout;
    run->mode = system.mode;
    run->record->mode = mdp_refit_mode_of(system.mode);
    run->record->order = system.order;
    run->record->fixed = system.fixed;
    return mdp_ok();
}

mdp_status mdp_refit_count_all(mdp_refit_run *run) {
    const mdp_layer_view *view = &run->view->layers[run->layer];
    int64_t *rows = NULL, n = view->n_expert;
    mdp_status status = mdp_agree_all(run->comm, MDP_ALLOC(&rows, n * n, "rows of experts"));
    if (status.code == MDP_OK) status = count_rows_all(run, view->n_expert, view->top_k, rows);
    for (int32_t e = 0; status.code == MDP_OK && e < n; e++) run->record->rows[e] = rows[e * n + e];
    mdp_free(rows);
    return status;
}

/* Before the first rows of a layer: who is fitted, and room for the sums. Collective. */
static mdp_status open_products_all(mdp_refit_run *run, const mdp_wave_rows *wave) {
    const mdp_layer_view *view = &run->view->layers[run->layer];
    int64_t *rows = NULL, *picked = NULL, n = wave->n_expert;
    mdp_status status = MDP_ALLOC(&rows, n * n, "rows of experts");
    if (status.code == MDP_OK) status = MDP_ALLOC(&picked, n * n, "rows of experts");
    status = mdp_agree_all(run->comm, status);
    if (status.code == MDP_OK) status = count_rows_all(run, wave->n_expert, wave->top_k, rows);
    if (status.code == MDP_OK) {
        status = choose_sides(run, view, rows);
        if (status.code == MDP_OK) {
            pick_rows(run, wave->n_expert, rows, picked);
            status = run->n_side > 0 ? choose_system(run, picked) : mdp_ok();
        }
        status = mdp_agree_all(run->comm, status);
    }
    if (status.code == MDP_OK && run->n_side > 0)
        status = mdp_products_new_all(run->comm, run->layout, run->n_set, run->forward->n_thread, run->profile,
                                      &run->products);
    mdp_free(rows);
    mdp_free(picked);
    return status;
}

/* ---- rows ------------------------------------------------------------------------------------------------------ */

/* Rows of one set in one block of tokens, side by side. */
typedef struct side_rows {
    mdp_product_rows *sides; /* [n_side + 1] */
    int64_t *token;
    const float **values;
    float *scale;
} side_rows;

static void free_rows(side_rows *rows) {
    mdp_free(rows->sides);
    mdp_free(rows->token);
    mdp_free(rows->values);
    mdp_free(rows->scale);
}

/* Room for all rows of first .. end-1: each side's where the rows of those before it end. */
static mdp_status make_rows(const mdp_refit_run *run, const mdp_wave_rows *wave, int64_t first, int64_t end, int set,
                            side_rows *out) {
    int64_t n = (end - first) * (wave->top_k + 1), at = 0;
    MDP_TRY(MDP_ALLOC(&out->sides, run->n_side + 1, "rows of a fit"));
    MDP_TRY(MDP_ALLOC(&out->token, n, "rows of a fit"));
    MDP_TRY(MDP_ALLOC(&out->values, n, "rows of a fit"));
    MDP_TRY(MDP_ALLOC(&out->scale, n, "rows of a fit"));
    for (int64_t i = first; i < end; i++) {
        if (run->set[wave->first_local + i] != set) continue;
        out->sides[run->n_side].n++;
        for (int32_t k = 0; k < wave->top_k; k++) {
            int32_t side = run->side[wave->index[i * wave->top_k + k]];
            if (side >= 0) out->sides[side].n++;
        }
    }
    for (int32_t s = 0; s <= run->n_side; s++) {
        out->sides[s].token = out->token + at;
        out->sides[s].values = out->values + at;
        out->sides[s].scale = out->scale + at;
        at += out->sides[s].n;
        out->sides[s].n = 0;
    }
    return mdp_ok();
}

static void put_row(side_rows *rows, int32_t side, int64_t token, const float *values, float scale) {
    mdp_product_rows *to = &rows->sides[side];
    int64_t at = to->token - rows->token + to->n++;
    rows->token[at] = token;
    rows->values[at] = values;
    rows->scale[at] = scale;
}

static void list_rows(const mdp_refit_run *run, const mdp_wave_rows *wave, int64_t first, int64_t end, int set,
                      side_rows *rows) {
    bool weighed = run->model->layers[run->layer].moe.rule.weigh_input;
    for (int64_t i = first; i < end; i++) {
        int64_t local = wave->first_local + i, token = run->first_token + local;
        if (run->set[local] != set) continue;
        put_row(rows, run->n_side, token, run->rest + local * run->model->d_model, 1.0F);
        for (int32_t k = 0; k < wave->top_k; k++) {
            int64_t at = i * wave->top_k + k;
            int32_t side = run->side[wave->index[at]];
            if (side >= 0) put_row(rows, side, token, wave->h + at * wave->stride, weighed ? 1.0F : wave->weight[at]);
        }
    }
}

/* One set's rows of one block of tokens. Collective. */
static mdp_status add_block_all(mdp_refit_run *run, const mdp_wave_rows *wave, int64_t block, int set) {
    int64_t first = wave->block_first[block], end = wave->block_first[block + 1];
    side_rows rows = {0};
    mdp_status status = mdp_agree_all(run->comm, make_rows(run, wave, first, end, set, &rows));
    if (status.code == MDP_OK) {
        list_rows(run, wave, first, end, set, &rows);
        status = mdp_products_add_all(run->products, set, rows.sides);
    }
    free_rows(&rows);
    return status;
}

static mdp_status see_wave_all(void *context, const mdp_wave_rows *wave) {
    mdp_refit_run *run = context;
    run->branch = mdp_engine_branch_of(run->engine, 1);
    run->parted = run->branch != mdp_engine_branch_of(run->engine, 0);
    if (!run->parted) return mdp_ok();
    mdp_phase before = mdp_profile_switch(run->profile, MDP_PHASE_SUMS);
    mdp_status status = run->side ? mdp_ok() : open_products_all(run, wave);
    for (int64_t b = 0; run->products && b < wave->n_block; b++)
        for (int s = 0; s < run->n_set && status.code == MDP_OK; s++) status = add_block_all(run, wave, b, s);
    mdp_profile_switch(run->profile, before);
    return status;
}

/* ---- layers ---------------------------------------------------------------------------------------------------- */

mdp_observers mdp_refit_observers(mdp_refit_run *run) {
    if (run->options->train) return (mdp_observers){.routed = see_routed, .combined = see_combined, .context = run};
    return (mdp_observers){.combined = see_combined, .wave_all = see_wave_all, .context = run};
}

mdp_observers mdp_refit_redo_observers(mdp_refit_run *run) {
    return (mdp_observers){.combined = see_redone, .context = run};
}

void mdp_refit_begin_layer(mdp_refit_run *run, int64_t layer) {
    run->layer = layer;
    run->record = NULL;
    for (int64_t i = 0; i < run->result->n_layer; i++)
        if (run->result->layers[i].layer == layer) run->record = &run->result->layers[i];
    memset(run->sums, 0, (size_t)(run->n_set + 1) * sizeof *run->sums);
}

void mdp_refit_end_layer(mdp_refit_run *run) {
    mdp_products_destroy(run->products);
    mdp_product_layout_destroy(run->layout);
    mdp_free(run->side);
    mdp_free(run->expert);
    run->products = NULL;
    run->layout = NULL;
    run->side = run->expert = NULL;
    run->n_side = 0;
}

mdp_status mdp_refit_sum_all(const mdp_refit_run *run, mdp_refit_sums *out) {
    int n = (run->n_set + 1) * (int)(sizeof *out / sizeof(mdp_exact));
    memcpy(out, run->sums, (size_t)(run->n_set + 1) * sizeof *out);
    mdp_exact *all = &out[0].target;
    for (int i = 0; i < n; i++) mdp_exact_normalise(&all[i]);
    MDP_TRY(mdp_sum_i64_all(run->comm, all[0].limb, (int64_t)n * MDP_LIMBS));
    for (int i = 0; i < n; i++) mdp_exact_normalise(&all[i]);
    return mdp_ok();
}

double mdp_refit_ratio(const mdp_exact *part, const mdp_exact *whole) {
    double all = mdp_exact_value(whole);
    return all > 0.0 ? mdp_exact_value(part) / all : -1.0;
}
