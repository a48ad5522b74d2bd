/* refit_train.c - a layer is trained in the place of being solved: its inputs and targets are there, batch after batch
 * goes through the trainer, and what comes out is put into the plan's arrays.
 *
 * Matrices are put by ranks in turn, whole: an expert's parts come together at one of them. */
#include "pipeline/put_matrix.h"
#include "pipeline/refit_run.h"

#include <string.h>

/* ---- what is trained -------------------------------------------------------------------------------------------- */

typedef struct training {
    mdp_refit_run *run;
    mdp_train_layer layer;
    const mdp_expert **expert, **row; /* of the layer */
    mdp_train_batches batches;
    mdp_trainer *trainer;
    unsigned char *skip; /* [n_sequence] */
    int64_t *token;      /* rows of a step */
    const float **x, **target;
    double scale; /* of squared errors, times the number of tokens of a step */
} training;

static mdp_status list_experts(training *at) {
    const mdp_refit_run *run = at->run;
    const mdp_moe *moe = &run->model->layers[run->layer].moe;
    const mdp_layer_view *view = &run->view->layers[run->layer];
    MDP_TRY(MDP_ALLOC(&at->expert, view->n_expert, "experts in training"));
    MDP_TRY(MDP_ALLOC(&at->row, view->n_expert, "experts in training"));
    for (int32_t e = 0; e < view->n_expert; e++) {
        const mdp_expert *made = view->made ? view->made[e] : NULL;
        at->expert[e] = made ? made : &moe->experts[view->source[e]];
        at->row[e] = made && made->router.tensor ? made : NULL;
    }
    at->layer = (mdp_train_layer){.moe = moe,
                                  .d_model = run->model->d_model,
                                  .n_expert = view->n_expert,
                                  .top_k = view->top_k,
                                  .source = view->source,
                                  .zero = view->zero,
                                  .expert = at->expert,
                                  .row = at->row};
    return mdp_ok();
}

static mdp_status open(training *at) {
    const mdp_refit_run *run = at->run;
    const mdp_tokens *tokens = run->tokens;
    MDP_TRY(list_experts(at));
    MDP_TRY(MDP_ALLOC(&at->token, run->n_local, "rows of a step"));
    MDP_TRY(MDP_ALLOC(&at->x, run->n_local, "rows of a step"));
    MDP_TRY(MDP_ALLOC(&at->target, run->n_local, "rows of a step"));
    MDP_TRY(MDP_ALLOC(&at->skip, tokens->n_sequence, "sequences that are held out"));
    for (int64_t s = 0; s < tokens->n_sequence; s++) at->skip[s] = mdp_refit_holds_out(run, s);
    return mdp_train_batches_new(tokens, at->skip, run->options->train, &at->batches);
}

static void close_training(training *at) {
    mdp_trainer_destroy(at->trainer);
    mdp_train_batches_clear(&at->batches);
    mdp_free(at->expert);
    mdp_free(at->row);
    mdp_free(at->skip);
    mdp_free(at->token);
    mdp_free(at->x);
    mdp_free(at->target);
}

/* ---- steps ------------------------------------------------------------------------------------------------------ */

/* This rank's rows of a step, but for those that are not fitted to. */
static int64_t list_rows(training *at, int64_t step) {
    const mdp_refit_run *run = at->run;
    int64_t n = 0, d = run->model->d_model;
    for (int64_t i = at->batches.first[step]; i < at->batches.first[step + 1]; i++) {
        int64_t sequence = at->batches.sequence[i];
        int64_t first = mdp_larger(run->tokens->offset[sequence], run->first_token);
        int64_t end = mdp_smaller(run->tokens->offset[sequence + 1], run->first_token + run->n_local);
        for (int64_t token = first; token < end; token++) {
            int64_t local = token - run->first_token;
            if (run->set[local] != 0) continue;
            at->token[n] = token;
            at->x[n] = run->input + local * d;
            at->target[n++] = run->rest + local * d;
        }
    }
    return n;
}

static mdp_status take_step_all(training *at, int64_t step) {
    const mdp_refit_run *run = at->run;
    const mdp_train_options *options = run->options->train;
    mdp_train_rows rows = {.n = list_rows(at, step), .token = at->token, .x = at->x, .target = at->target};
    int64_t n_all = rows.n;
    double loss, norm, rate = mdp_train_rate(options, step, at->batches.n_step);
    MDP_TRY(mdp_sum_i64_all(run->comm, &n_all, 1));
    if (n_all == 0) return mdp_ok();
    rows.scale = at->scale / (double)n_all;
    MDP_TRY(mdp_trainer_gradient_all(at->trainer, &rows, &loss));
    MDP_TRY(mdp_trainer_update_all(at->trainer, rate, &norm));
    mdp_log_message(run->forward->log, MDP_LEVEL_DEBUG,
                    "recover  layer %lld, step %lld of %lld: loss %.7g, norm %.7g, rate %.3g", (long long)run->layer,
                    (long long)step + 1, (long long)at->batches.n_step, loss, norm, rate);
    return mdp_ok();
}

/* ---- into the arrays -------------------------------------------------------------------------------------------- */

/* A whole matrix in memory, [n_row, n_col] of what computes. */
typedef struct held {
    const float *values;
    int64_t n_row, n_col;
    bool turned; /* the rows that are put are its columns */
} held;

static mdp_status fill(void *context, int64_t row, int64_t n, double *values) {
    const held *from = context;
    int64_t width = from->turned ? from->n_row : from->n_col;
    for (int64_t r = 0; r < n; r++)
        for (int64_t c = 0; c < width; c++)
            values[r * width + c] = (double)(from->turned ? from->values[c * from->n_col + row + r]
                                                          : from->values[(row + r) * from->n_col + c]);
    return mdp_ok();
}

/* One matrix, or two of one tensor. Local. */
static mdp_status put_held(const mdp_refit_run *run, const mdp_matrix *const *to, float *const *values, int n) {
    held from[2];
    mdp_made_matrix made[2];
    for (int i = 0; i < n; i++) {
        from[i] = (held){values[i], to[i]->n_row, to[i]->n_col, mdp_matrix_is_turned(to[i])};
        made[i] = (mdp_made_matrix){.to = mdp_matrix_as_stored(to[i]), .fill = fill, .context = &from[i]};
    }
    return mdp_put_matrices(made, n, run->replaced->arrays);
}

/* n parts from `part` on, `step` apart, together, put by the rank whose turn it is. Collective (agrees). */
static mdp_status put_parts_all(const training *at, int32_t e, const mdp_matrix *const *to, const mdp_train_part *part,
                                int n, int64_t *turn) {
    const mdp_comm *comm = at->run->comm;
    float *values[2] = {NULL, NULL};
    mdp_status status = mdp_ok();
    int root = (int)(*turn % comm->size);
    if (!to[0]->tensor) return mdp_ok();
    (*turn)++;
    for (int i = 0; i < n && status.code == MDP_OK; i++)
        status = mdp_trainer_gather_all(at->trainer, e, part[i], false, root, &values[i]);
    if (status.code == MDP_OK && comm->rank == root) status = put_held(at->run, to, values, n);
    mdp_free(values[0]);
    mdp_free(values[1]);
    return mdp_agree_all(comm, status);
}

static mdp_status put_expert_all(const training *at, int32_t e, const mdp_expert *to, int64_t *turn) {
    const mdp_matrix *const matrices[] = {&to->gate, &to->up, &to->down};
    const mdp_matrix *const biases[] = {&to->gate_bias, &to->up_bias, &to->down_bias};
    static const mdp_train_part parts[] = {MDP_TRAIN_GATE, MDP_TRAIN_UP, MDP_TRAIN_DOWN},
                                of_biases[] = {MDP_TRAIN_GATE_BIAS, MDP_TRAIN_UP_BIAS, MDP_TRAIN_DOWN_BIAS};
    int n = to->gate.tensor == to->up.tensor ? 2 : 1; /* one tensor is put at once */
    int n_bias = to->gate_bias.tensor && to->gate_bias.tensor == to->up_bias.tensor ? 2 : 1;
    MDP_TRY(put_parts_all(at, e, matrices, parts, n, turn));
    if (n == 1) MDP_TRY(put_parts_all(at, e, matrices + 1, parts + 1, 1, turn));
    MDP_TRY(put_parts_all(at, e, matrices + 2, parts + 2, 1, turn));
    MDP_TRY(put_parts_all(at, e, biases, of_biases, n_bias, turn));
    if (n_bias == 1) MDP_TRY(put_parts_all(at, e, biases + 1, of_biases + 1, 1, turn));
    return put_parts_all(at, e, biases + 2, of_biases + 2, 1, turn);
}

/* What a layer's list has of an expert, which only chooses, as it is. */
static mdp_status put_choice_bias(const training *at, int32_t e, const mdp_expert *to) {
    const mdp_matrix *all = &at->layer.moe->choice_bias;
    float *values = NULL;
    if (!to->choice_bias.tensor || at->row[e]) return mdp_ok(); /* none, or carried over */
    MDP_TRY(mdp_matrix_load(at->run->reader, all, &values));
    float *one = values + at->layer.source[e];
    const mdp_matrix *const matrix = &to->choice_bias;
    mdp_status status = put_held(at->run, &matrix, &one, 1);
    mdp_free(values);
    return status;
}

static mdp_status put_row(const training *at, int32_t e, const mdp_expert *to) {
    const float *bias, *rows = mdp_trainer_router(at->trainer, false, &bias);
    float *row = (float *)rows + e * at->layer.d_model, *one = bias ? (float *)bias + e : NULL;
    const mdp_matrix *const router = &to->router, *const router_bias = &to->router_bias;
    MDP_TRY(put_held(at->run, &router, &row, 1));
    if (bias) MDP_TRY(put_held(at->run, &router_bias, &one, 1));
    return put_choice_bias(at, e, to);
}

/* Collective (agrees). */
static mdp_status put_all(const training *at) {
    mdp_refit_run *run = at->run;
    mdp_status status = mdp_ok();
    int64_t turn = 0, first, n;
    for (int32_t e = 0; e < at->layer.n_expert && status.code == MDP_OK; e++) {
        int64_t number = mdp_replaced_find(run->replaced, run->layer, e);
        if (number < 0) continue; /* it returns 0 */
        const mdp_expert *to = &run->replaced->experts[number].expert;
        if (run->options->train->experts) status = put_expert_all(at, e, to, &turn);
        if (status.code == MDP_OK && run->options->train->router)
            status = mdp_agree_all(run->comm, run->comm->rank == e % run->comm->size ? put_row(at, e, to) : mdp_ok());
        run->record->fitted[e] = 1;
    }
    mdp_replaced_arrays(run->replaced, run->layer, run->layer + 1, &first, &n);
    if (status.code == MDP_OK) status = mdp_arrays_settle_all(run->comm, run->replaced->arrays, first, n);
    return status;
}

/* Let the engine have what was trained. */
static void show(const training *at) {
    const mdp_refit_run *run = at->run;
    for (int32_t e = 0; e < at->layer.n_expert; e++) {
        int64_t number = mdp_replaced_find(run->replaced, run->layer, e);
        if (number >= 0)
            mdp_transform_view_make(run->model, run->layer, e, &run->replaced->experts[number].expert, run->view);
    }
}

/* ---- the layer -------------------------------------------------------------------------------------------------- */

static mdp_status train_all(training *at, const mdp_refit_sums *sums) {
    mdp_refit_run *run = at->run;
    int64_t n_fitted = 0;
    for (int64_t i = 0; i < run->n_local; i++) n_fitted += run->set[i] == 0;
    MDP_TRY(mdp_sum_i64_all(run->comm, &n_fitted, 1));
    double whole = mdp_exact_value(&sums[0].target);
    at->scale = whole > 0.0 ? (double)n_fitted / whole : 0.0;
    MDP_TRY(mdp_trainer_new_all(run->comm, run->reader, run->forward->gemm, run->forward->n_thread, run->profile,
                                &at->layer, run->options->train, &at->trainer));
    run->record->order = mdp_trainer_values(at->trainer);
    for (int64_t step = 0; step < at->batches.n_step; step++) MDP_TRY(take_step_all(at, step));
    return put_all(at);
}

mdp_status mdp_refit_train_all(mdp_refit_run *run, const mdp_refit_sums *sums) {
    training at = {.run = run};
    mdp_status status = mdp_agree_all(run->comm, open(&at));
    if (status.code == MDP_OK) status = train_all(&at, sums);
    if (status.code == MDP_OK) show(&at);
    close_training(&at);
    return status;
}

/* ---- forecast --------------------------------------------------------------------------------------------------- */

mdp_refit_cost mdp_refit_train_cost_of(const mdp_comm *layout, const mdp_model *model, const mdp_tokens *tokens,
                                       const mdp_plan *plan, const mdp_refit_options *options, int n_thread) {
    mdp_refit_cost out = {0};
    int64_t n_token = (int64_t)((1.0 - options->holdout) * (double)tokens->n_token);
    if (options->n_token > 0) n_token = mdp_smaller(n_token, options->n_token);
    for (int64_t i = 0; i < plan->n_layer; i++) {
        const mdp_plan_layer *planned = &plan->layers[i];
        const mdp_moe *moe = &model->layers[planned->layer].moe;
        int32_t top_k = planned->top_k > 0 ? planned->top_k : moe->top_k;
        const mdp_train_cost cost = mdp_train_cost_of(options->train, moe, model->d_model, planned->n_kept, top_k,
                                                      n_token, layout->size, n_thread);
        out.flop += cost.flop * options->train->epochs;
        out.flop_most += cost.flop_most * options->train->epochs;
        out.memory = mdp_larger(out.memory, cost.memory);
    }
    return out;
}
