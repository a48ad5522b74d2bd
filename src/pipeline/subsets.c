/* subsets.c - the forward pass that measures sets of experts: every expert on every token, layer by layer.
 *
 * The model computes as ever; that its tokens visit the other experts, too, adds nothing (mdp_layer_view.n_used). A
 * token's owner multiplies what came back, and after each layer of each batch the losses of the sets are added up. Sets
 * that are all tried go on from batch to batch; a search sees all tokens as one. */
#include "pipeline/forward.h"

#include <string.h>

/* One layer and one size. */
typedef struct place {
    mdp_subset_kind kind;
    bool every;
    int64_t n_set;         /* of every */
    mdp_subset_sums *sums; /* [2, n_set] */
    mdp_subsets found;     /* of a search */
    double losses[2];      /* of it, for a resume point: loss and next */
} place;

typedef struct subset_run {
    const mdp_comm *comm;
    const mdp_model *model;
    mdp_reader *reader;
    const mdp_tokens *tokens;
    const mdp_subset_request *request;
    int n_thread;
    const mdp_partition *partition;
    mdp_local_batch batch;
    int64_t *first_row; /* [n_sequence + 1] of this rank's */
    int64_t n_sequence;
    mdp_subset_tokens at_hand;
    place *places; /* [n_layer, n_keep]; keep 0: there is nothing to measure */
} subset_run;

/* ---- what there is to do --------------------------------------------------------------------------------------- */

static mdp_subset_kind kind_of(const mdp_moe *moe, int32_t keep) {
    return (mdp_subset_kind){
        .n_expert = moe->n_expert, .keep = keep, .n_group = moe->rule.n_group > 1 ? moe->rule.n_group : 1};
}

/* Does a layer have anything to choose? */
static bool is_measured(const mdp_layer *layer, int32_t keep) {
    return layer->is_moe && keep < layer->moe.n_expert;
}

static bool tries_every(const mdp_subset_kind *kind, const mdp_subset_request *request) {
    return mdp_subset_count(kind) <= request->most;
}

mdp_status mdp_subsets_check(const mdp_model *model, const mdp_subset_request *request) {
    for (int64_t l = 0; l < model->n_layer; l++) {
        const mdp_moe *moe = &model->layers[l].moe;
        if (!model->layers[l].is_moe) continue;
        if (moe->rule.weigh_input && moe->rule.normalise)
            return MDP_ERROR(MDP_USAGE,
                             "layer %lld: weights of chosen experts that multiply what experts read depend on each "
                             "other; sets of experts cannot be measured in this model.",
                             (long long)l);
        for (int i = 0; i < request->n_keep; i++) {
            mdp_budget_layer layer = {l, moe->n_expert, moe->n_expert, moe->top_k};
            mdp_budget_options budget = {
                .keep = request->keep[i], .n_group = moe->rule.n_group, .n_open = moe->rule.n_open};
            MDP_TRY(mdp_budget_check(&layer, 1, &budget));
        }
    }
    return mdp_ok();
}

/* Every token visits all experts of every layer. Local. */
static mdp_status new_view(const mdp_model *model, mdp_view **out) {
    *out = NULL;
    MDP_TRY(MDP_ALLOC(out, 1, "a view of the model"));
    (*out)->n_layer = model->n_layer;
    mdp_status status = MDP_ALLOC(&(*out)->layers, model->n_layer, "the layers of a view");
    for (int64_t l = 0; status.code == MDP_OK && l < model->n_layer; l++) {
        const mdp_moe *moe = &model->layers[l].moe;
        if (model->layers[l].is_moe)
            (*out)->layers[l] =
                (mdp_layer_view){.n_expert = moe->n_expert, .top_k = moe->n_expert, .n_used = moe->top_k};
    }
    if (status.code == MDP_OK) return status;
    mdp_view_destroy(*out);
    *out = NULL;
    return status;
}

mdp_status mdp_subset_pass_new(const mdp_model *model, const mdp_subset_request *request, mdp_view **view,
                               mdp_pass *pass) {
    *pass = (mdp_pass){.n_stream = 1, .batches_byte = mdp_subset_sums_memory(model, request)};
    for (int64_t l = 0; l < model->n_layer; l++) {
        const mdp_moe *moe = &model->layers[l].moe;
        for (int i = 0; i < request->n_keep; i++) {
            const mdp_subset_kind kind = kind_of(moe, request->keep[i]);
            if (is_measured(&model->layers[l], kind.keep) && !tries_every(&kind, request)) pass->one_batch = true;
        }
        if (model->layers[l].is_moe)
            pass->token_byte = mdp_larger(pass->token_byte, mdp_subset_token_bytes(moe->n_expert, moe->top_k));
    }
    return new_view(model, view);
}

/* ---- sizes ----------------------------------------------------------------------------------------------------- */

int64_t mdp_subset_sums_memory(const mdp_model *model, const mdp_subset_request *request) {
    int64_t n_byte = 0;
    for (int64_t l = 0; l < model->n_layer; l++)
        for (int i = 0; i < request->n_keep; i++) {
            const mdp_subset_kind kind = kind_of(&model->layers[l].moe, request->keep[i]);
            if (!is_measured(&model->layers[l], kind.keep)) continue;
            n_byte += 8 * (2 * (int64_t)kind.n_expert + 8);
            if (tries_every(&kind, request)) n_byte += 8 * 2 * mdp_subset_count(&kind);
        }
    return n_byte;
}

/* ---- observing ------------------------------------------------------------------------------------------------- */

static void see_routes(void *context, const mdp_routed_token *token) {
    const subset_run *run = context;
    mdp_subset_tokens at_hand = run->at_hand;
    at_hand.n_expert = token->n_expert;
    at_hand.top_k = token->top_k;
    mdp_subset_tokens_route(&at_hand, token);
}

static void see_outputs(void *context, const mdp_combined_token *token) {
    const subset_run *run = context;
    mdp_subset_tokens at_hand = run->at_hand;
    at_hand.n_expert = token->top_k; /* all */
    mdp_subset_tokens_multiply(&at_hand, token, run->model->d_model);
}

/* ---- steps ----------------------------------------------------------------------------------------------------- */

static void cut(void *context, const mdp_partition *partition) {
    subset_run *run = context;
    run->partition = partition;
}

/* Rows at which this rank's sequences begin. */
static mdp_status list_sequences(subset_run *run) {
    const mdp_pack *packs = run->partition->packs + run->batch.first_pack;
    run->n_sequence = 0;
    for (int64_t p = 0; p < run->batch.n_pack; p++) run->n_sequence += packs[p].n_sequence;
    mdp_free(run->first_row);
    run->first_row = NULL;
    MDP_TRY(MDP_ALLOC(&run->first_row, run->n_sequence + 1, "sequences of a batch"));
    for (int64_t s = 0; s < run->n_sequence; s++)
        run->first_row[s + 1] = run->tokens->offset[packs->first_sequence + s + 1] - run->batch.first_token;
    return mdp_ok();
}

static mdp_status begin_batch(void *context, const mdp_engine *engine) {
    subset_run *run = context;
    run->batch = *mdp_engine_batch(engine);
    MDP_TRY(list_sequences(run));
    run->at_hand.n_token = run->batch.n_token;
    run->at_hand.n_expert = run->at_hand.top_k = 0;
    for (int64_t l = 0; l < run->model->n_layer; l++) {
        if (!run->model->layers[l].is_moe) continue;
        run->at_hand.n_expert = (int32_t)mdp_larger(run->at_hand.n_expert, run->model->layers[l].moe.n_expert);
        run->at_hand.top_k = (int32_t)mdp_larger(run->at_hand.top_k, run->model->layers[l].moe.top_k);
    }
    return mdp_subset_tokens_take(&run->at_hand);
}

static mdp_status measure_all(const subset_run *run, const mdp_subset_layer *layer, place *at) {
    if (at->every) return mdp_subsets_add_all(layer, &at->kind, at->sums);
    mdp_subsets_clear(&at->found);
    MDP_TRY(mdp_subsets_search_all(layer, &at->kind, run->request->search, &at->found));
    at->losses[0] = at->found.loss;
    at->losses[1] = at->found.next;
    return mdp_ok();
}

static mdp_status layer_all(void *context, int64_t number) {
    subset_run *run = context;
    const mdp_moe *moe = &run->model->layers[number].moe;
    const mdp_partition *partition = run->partition;
    const mdp_pack *first = &partition->packs[partition->block_pack[partition->batch_block[run->batch.number]]];
    const mdp_pack *last = &partition->packs[partition->block_pack[partition->batch_block[run->batch.number + 1]] - 1];
    mdp_subset_tokens at_hand = run->at_hand;
    float *bias = NULL;
    if (!run->model->layers[number].is_moe) return mdp_ok();
    mdp_status status = mdp_ok();
    if (moe->choice_bias.tensor) status = mdp_matrix_load(run->reader, &moe->choice_bias, &bias);
    status = mdp_agree_all(run->comm, status);
    at_hand.n_expert = moe->n_expert;
    at_hand.top_k = moe->top_k;
    const mdp_subset_layer layer = {.comm = run->comm,
                                    .layer = number,
                                    .rule = &moe->rule,
                                    .bias = bias,
                                    .n_thread = run->n_thread,
                                    .tokens = &at_hand,
                                    .first_row = run->first_row,
                                    .n_sequence = run->n_sequence,
                                    .first_sequence = first->first_sequence,
                                    .end_sequence = last->first_sequence + last->n_sequence,
                                    .all_sequences = run->tokens->n_sequence,
                                    .batch = run->request->batch};
    for (int i = 0; i < run->request->n_keep && status.code == MDP_OK; i++) {
        place *at = &run->places[number * run->request->n_keep + i];
        if (at->kind.keep > 0) status = measure_all(run, &layer, at);
    }
    mdp_free(bias);
    return status;
}

/* ---- resume points ---------------------------------------------------------------------------------------------- */

/* What has been added up is the same on every rank. */
static mdp_status gather_all(void *context) {
    (void)context;
    return mdp_ok();
}

static mdp_status describe_place(place *at, int64_t number, bool wanted, mdp_point *point) {
    char name[3][64];
    snprintf(name[0], sizeof name[0], "sums-%lld", (long long)number);
    if (at->every) return mdp_point_add_array(point, name[0], MDP_F64, 2 * at->n_set, at->sums, wanted);
    snprintf(name[0], sizeof name[0], "kept-%lld", (long long)number);
    snprintf(name[1], sizeof name[1], "without-%lld", (long long)number);
    snprintf(name[2], sizeof name[2], "losses-%lld", (long long)number);
    MDP_TRY(mdp_point_add_array(point, name[0], MDP_I32, at->kind.keep, at->found.kept, wanted));
    MDP_TRY(mdp_point_add_array(point, name[1], MDP_F64, at->kind.n_expert, at->found.without, wanted));
    MDP_TRY(mdp_point_add_array(point, name[2], MDP_F64, 2, at->losses, wanted));
    snprintf(name[0], sizeof name[0], "tried-%lld", (long long)number);
    return mdp_point_add_array(point, name[0], MDP_I64, 1, &at->found.n_tried, wanted);
}

static mdp_status describe(void *context, const mdp_position *position, bool taken, mdp_point *point) {
    const subset_run *run = context;
    (void)position;
    for (int64_t i = 0; i < run->model->n_layer * run->request->n_keep; i++)
        if (run->places[i].kind.keep > 0)
            MDP_TRY(describe_place(&run->places[i], i, run->comm->rank == 0 || taken, point));
    return mdp_ok();
}

static mdp_status restored_all(void *context, const mdp_position *position) {
    const subset_run *run = context;
    (void)position;
    for (int64_t i = 0; i < run->model->n_layer * run->request->n_keep; i++) {
        run->places[i].found.loss = run->places[i].losses[0];
        run->places[i].found.next = run->places[i].losses[1];
    }
    return mdp_ok();
}

/* ---- the pass --------------------------------------------------------------------------------------------------- */

static mdp_status prepare_place(const mdp_subset_request *request, place *at) {
    at->every = tries_every(&at->kind, request);
    if (at->every) {
        at->n_set = mdp_subset_count(&at->kind);
        return MDP_ALLOC(&at->sums, 2 * at->n_set, "losses of sets of experts");
    }
    at->found = (mdp_subsets){.keep = at->kind.keep, .search = request->search};
    MDP_TRY(MDP_ALLOC(&at->found.kept, at->kind.keep, "the best set of experts"));
    return MDP_ALLOC(&at->found.without, at->kind.n_expert, "losses without an expert");
}

static mdp_status prepare(subset_run *run) {
    int n = run->request->n_keep;
    MDP_TRY(MDP_ALLOC(&run->places, run->model->n_layer * n, "sets of experts"));
    for (int64_t i = 0; i < run->model->n_layer * n; i++) {
        const mdp_layer *layer = &run->model->layers[i / n];
        if (!is_measured(layer, run->request->keep[i % n])) continue;
        run->places[i].kind = kind_of(&layer->moe, run->request->keep[i % n]);
        MDP_TRY(prepare_place(run->request, &run->places[i]));
    }
    return mdp_ok();
}

/* Results to where they stay. Local. */
static mdp_status keep_results(subset_run *run, mdp_stats *stats) {
    int n = run->request->n_keep;
    MDP_TRY(mdp_subset_request_print(run->request, &stats->subsets));
    for (int64_t i = 0; i < stats->n_layer; i++) {
        mdp_layer_stats *layer = &stats->layers[i];
        MDP_TRY(MDP_ALLOC(&layer->subsets, n, "sets of experts"));
        for (int j = 0; j < n; j++) {
            place *at = &run->places[layer->layer * n + j];
            if (at->kind.keep == 0) continue;
            mdp_subsets *found = &layer->subsets[layer->n_subsets++];
            if (at->every) {
                MDP_TRY(mdp_subsets_choose(&at->kind, at->sums, found));
                continue;
            }
            *found = at->found;
            at->found = (mdp_subsets){0};
        }
    }
    return mdp_ok();
}

static void clear(subset_run *run) {
    for (int64_t i = 0; run->places && i < run->model->n_layer * run->request->n_keep; i++) {
        mdp_free(run->places[i].sums);
        mdp_subsets_clear(&run->places[i].found);
    }
    mdp_free(run->places);
    mdp_free(run->first_row);
    mdp_subset_tokens_clear(&run->at_hand);
}

static mdp_status forward_all(subset_run *run, const mdp_forward_options *options, const mdp_view *view,
                              const mdp_pass *pass) {
    mdp_observers observers = {.routed = see_routes, .combined = see_outputs, .context = run};
    mdp_forward forward = {.comm = run->comm,
                           .model = run->model,
                           .reader = run->reader,
                           .tokens = run->tokens,
                           .options = options,
                           .phase = "subsets",
                           .pass = *pass,
                           .views = &view,
                           .observers = &observers,
                           .cut = cut,
                           .begin_batch = begin_batch,
                           .layer_all = layer_all,
                           .gather_all = gather_all,
                           .describe = describe,
                           .restored_all = restored_all,
                           .context = run};
    forward.pass.views = &view;
    return mdp_forward_all(&forward);
}

mdp_status mdp_subsets_all(const mdp_comm *comm, const mdp_model *model, mdp_reader *reader, const mdp_tokens *tokens,
                           const mdp_subset_request *request, const mdp_forward_options *options, mdp_stats *stats) {
    subset_run run = {.comm = comm,
                      .model = model,
                      .reader = reader,
                      .tokens = tokens,
                      .request = request,
                      .n_thread = options->n_thread};
    mdp_view *view = NULL;
    mdp_pass pass;
    mdp_status status = mdp_subset_pass_new(model, request, &view, &pass);
    if (status.code == MDP_OK) status = prepare(&run);
    status = mdp_agree_all(comm, status);
    if (status.code == MDP_OK) status = forward_all(&run, options, view, &pass);
    if (status.code == MDP_OK) status = mdp_agree_all(comm, keep_results(&run, stats));
    clear(&run);
    mdp_view_destroy(view);
    return status;
}
