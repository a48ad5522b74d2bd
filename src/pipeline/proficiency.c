/* proficiency.c - the forward pass of the criterion proficiency: windows of tokens, layer by layer.
 *
 * Inputs of every layer come from the original model, so only its router logits are needed. They are kept for the
 * tokens of a batch; when a layer is done its windows are walked in token order, each rank with its own tokens of the
 * window. A window that a batch cuts stays open until the next, so that batches cannot show. */
#include "pipeline/forward.h"

#include <string.h>

typedef struct window_run {
    const mdp_comm *comm;
    const mdp_tokens *tokens;
    int64_t n_layer;
    mdp_proficiency **layers; /* [n_layer] NULL: without experts */
    int64_t *numbers;         /* [n_layer, 2] experts alive and windows, for a resume point */
    int64_t widest;           /* experts of the largest layer */
    double *logits;           /* [n_token, experts of the layer] of this rank's tokens of the batch */
    mdp_local_batch batch;
    bool begun;         /* the batch's first layer is still to come */
    int64_t first, end; /* tokens of the batch, over all ranks */
} window_run;

static void take_logits(void *context, const mdp_routed_token *token) {
    const window_run *run = context;
    memcpy(run->logits + token->local * token->n_expert, token->logits, (size_t)token->n_expert * sizeof(double));
}

static mdp_status begin_batch(void *context, const mdp_engine *engine) {
    window_run *run = context;
    run->batch = *mdp_engine_batch(engine);
    run->begun = true;
    mdp_free(run->logits);
    run->logits = NULL;
    return MDP_ALLOC(&run->logits, run->batch.n_token * run->widest, "router logits of a batch");
}

/* The range of tokens that all ranks' shares of the batch make together. */
static mdp_status find_range_all(window_run *run) {
    bool any = run->batch.n_token > 0;
    int64_t bound[2] = {any ? run->batch.first_token + run->batch.n_token : 0,
                        any ? -run->batch.first_token : INT64_MIN};
    MDP_TRY(mdp_max_i64_all(run->comm, bound, 2));
    run->first = -bound[1];
    run->end = bound[0];
    run->begun = false;
    return mdp_ok();
}

/* This rank's tokens of first .. end-1. */
static mdp_status add_range(const window_run *run, mdp_proficiency *layer, int64_t first, int64_t end) {
    int64_t low = run->batch.first_token, high = low + run->batch.n_token;
    if (low < first) low = first;
    if (high > end) high = end;
    if (low >= high) return mdp_ok();
    return mdp_proficiency_add(layer, run->logits + (low - run->batch.first_token) * layer->n_expert, high - low);
}

static mdp_status layer_all(void *context, int64_t number) {
    window_run *run = context;
    mdp_proficiency *layer = run->layers[number];
    if (run->begun) MDP_TRY(find_range_all(run));
    if (!layer) return mdp_ok();
    for (int64_t first = run->first; first < run->end;) {
        int64_t end = (first / MDP_PROFICIENCY_WINDOW + 1) * MDP_PROFICIENCY_WINDOW;
        bool complete = end <= run->end || run->end == run->tokens->n_token;
        if (end > run->end) end = run->end;
        MDP_AGREE(run->comm, add_range(run, layer, first, end));
        if (complete) MDP_TRY(mdp_proficiency_close_window_all(run->comm, layer));
        first = end;
    }
    return mdp_ok();
}

/* ---- resume points ---- */

/* The window in the making to rank 0; what windows have decided is the same on every rank. */
static mdp_status gather_all(void *context) {
    const window_run *run = context;
    for (int64_t l = 0; l < run->n_layer; l++) {
        mdp_proficiency *layer = run->layers[l];
        if (!layer) continue;
        for (mdp_expert_t e = 0; e < layer->n_expert; e++) mdp_exact_normalise(&layer->gate_sum[e]);
        MDP_TRY(mdp_sum_i64_all(run->comm, &layer->gate_sum[0].limb[0], (int64_t)layer->n_expert * MDP_LIMBS));
        if (run->comm->rank != 0) memset(layer->gate_sum, 0, (size_t)layer->n_expert * sizeof *layer->gate_sum);
        run->numbers[2 * l] = layer->n_alive;
        run->numbers[2 * l + 1] = layer->n_window;
    }
    return mdp_ok();
}

/* One item in a section of its own. */
static mdp_status describe_array(const char *what, int64_t layer, mdp_dtype type, int64_t n, void *data, bool wanted,
                                 mdp_point *point) {
    char name[64];
    snprintf(name, sizeof name, "%s-%lld", what, (long long)layer);
    return mdp_point_add_array(point, name, type, n, data, wanted);
}

static mdp_status describe(void *context, const mdp_position *at, bool taken, mdp_point *point) {
    const window_run *run = context;
    bool first = run->comm->rank == 0, wanted = first || taken;
    (void)at;
    MDP_TRY(describe_array("numbers", 0, MDP_I64, 2 * run->n_layer, run->numbers, wanted, point));
    for (int64_t l = 0; l < run->n_layer; l++) {
        mdp_proficiency *layer = run->layers[l];
        if (!layer) continue;
        int64_t n = layer->n_expert;
        MDP_TRY(describe_array("alive", l, MDP_I32, n, layer->alive, wanted, point));
        MDP_TRY(describe_array("share-sum", l, MDP_F64, n, layer->share_sum, wanted, point));
        MDP_TRY(describe_array("score", l, MDP_F64, n, layer->score, wanted, point));
        MDP_TRY(describe_array("gate-sum", l, MDP_I64, n * MDP_LIMBS, layer->gate_sum, first, point));
    }
    return mdp_ok();
}

static mdp_status restored_all(void *context, const mdp_position *at) {
    const window_run *run = context;
    (void)at;
    for (int64_t l = 0; l < run->n_layer; l++) {
        if (!run->layers[l]) continue;
        run->layers[l]->n_alive = (int32_t)run->numbers[2 * l];
        run->layers[l]->n_window = run->numbers[2 * l + 1];
    }
    return mdp_ok();
}

/* ---- the pass ---- */

static mdp_status new_layers(const mdp_model *model, mdp_reader *reader, int32_t keep, window_run *run) {
    run->n_layer = model->n_layer;
    MDP_TRY(MDP_ALLOC(&run->numbers, 2 * model->n_layer, "proficiencies"));
    MDP_TRY(MDP_ALLOC(&run->layers, model->n_layer, "proficiencies"));
    for (int64_t l = 0; l < model->n_layer; l++) {
        if (!model->layers[l].is_moe) continue;
        MDP_TRY(mdp_proficiency_new(reader, &model->layers[l].moe, keep, &run->layers[l]));
        if (model->layers[l].moe.n_expert > run->widest) run->widest = model->layers[l].moe.n_expert;
    }
    return mdp_ok();
}

void mdp_proficiencies_destroy(mdp_proficiency **layers, int64_t n_layer) {
    for (int64_t l = 0; layers && l < n_layer; l++) mdp_proficiency_destroy(layers[l]);
    mdp_free(layers);
}

mdp_status mdp_proficiency_all(const mdp_comm *comm, const mdp_model *model, mdp_reader *reader,
                               const mdp_tokens *tokens, int32_t keep, const mdp_forward_options *options,
                               mdp_proficiency ***out) {
    window_run run = {.comm = comm, .tokens = tokens};
    *out = NULL;
    mdp_status status = mdp_agree_all(comm, new_layers(model, reader, keep, &run));
    if (status.code == MDP_OK) {
        mdp_observers observers = {.routed = take_logits, .context = &run};
        mdp_forward forward = {.comm = comm,
                               .model = model,
                               .reader = reader,
                               .tokens = tokens,
                               .options = options,
                               .phase = "proficiency",
                               .pass = {.n_stream = 1},
                               .observers = &observers,
                               .begin_batch = begin_batch,
                               .layer_all = layer_all,
                               .gather_all = gather_all,
                               .describe = describe,
                               .restored_all = restored_all,
                               .context = &run};
        status = mdp_forward_all(&forward);
    }
    mdp_free(run.logits);
    mdp_free(run.numbers);
    if (status.code != MDP_OK) {
        mdp_proficiencies_destroy(run.layers, model->n_layer);
        return status;
    }
    for (int64_t l = 0; l < model->n_layer; l++) {
        if (run.layers[l]) mdp_proficiency_trim(run.layers[l]);
    }
    *out = run.layers;
    return status;
}
