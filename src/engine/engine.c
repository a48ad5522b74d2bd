/* engine.c - life of an engine, batches, and the order of the steps of a layer.
 *
 * Owns the residual streams of this rank. Streams share one state until the first layer in which their views differ:
 * there, after the common attention, the state forks. Errors of local work are agreed on before the next collective. */
#include "engine/engine.h"

#include <math.h>
#include <omp.h>
#include <string.h>

void mdp_view_destroy(mdp_view *view) {
    if (!view) return;
    mdp_free(view->layers);
    mdp_free(view->memory);
    mdp_free(view->zeros);
    mdp_free(view);
}

static mdp_status new_local(mdp_engine *engine) {
    MDP_TRY(MDP_ALLOC(&engine->states, engine->n_stream, "states"));
    MDP_TRY(MDP_ALLOC(&engine->stream_state, engine->n_stream, "states"));
    MDP_TRY(mdp_stack_new(&engine->stack));
    const mdp_panel_size panel = mdp_largest_panel(engine->model, mdp_gemm_type_of(engine->gemm));
    MDP_TRY(mdp_panel_stream_new(engine->reader, mdp_stream_depth(engine->n_thread), panel.type, panel.n_byte,
                                 engine->profile, &engine->stream));
    return mdp_attention_prepare(engine);
}

mdp_status mdp_engine_new_all(const mdp_comm *comm, const mdp_model *model, mdp_reader *reader,
                              const mdp_tokens *tokens, const mdp_partition *partition,
                              const mdp_engine_options *options, mdp_engine **out) {
    mdp_engine *engine = NULL;
    *out = NULL;
    mdp_status status = MDP_ALLOC(&engine, 1, "the engine");
    if (status.code == MDP_OK) {
        engine->comm = comm;
        engine->model = model;
        engine->reader = reader;
        engine->tokens = tokens;
        engine->partition = partition;
        engine->n_thread = options->n_thread;
        engine->gemm = options->gemm;
        engine->n_stream = options->pass.n_stream;
        engine->recompute = options->pass.recompute;
        engine->views = options->views;
        if (options->observers) engine->observers = *options->observers;
        engine->allow_nonfinite = options->allow_nonfinite;
        engine->profile = options->profile;
        engine->nonfinite_key = INT64_MAX;
        engine->first_nonfinite = -1;
        engine->unshared = mdp_ok();
        status = new_local(engine);
    }
    status = mdp_agree_all(comm, status);
    if (status.code == MDP_OK)
        status =
            mdp_exchange_room_new_all(comm, MDP_MESSAGE_BYTES, mdp_dispatch_longest_row(comm, model), &engine->room);
    if (status.code == MDP_OK) status = mdp_team_prepare_all(engine);
    if (status.code != MDP_OK) {
        mdp_engine_destroy_all(engine);
        return status;
    }
    *out = engine;
    return mdp_ok();
}

static void free_state(mdp_state *state) {
    mdp_free(state->x);
    mdp_free(state->index);
    mdp_free(state->weight);
    memset(state, 0, sizeof *state);
}

void mdp_engine_destroy_all(mdp_engine *engine) {
    if (!engine) return;
    mdp_panel_stream_destroy(engine->stream);
    mdp_stack_destroy(engine->stack);
    mdp_exchange_room_destroy(engine->room);
    for (int s = 0; engine->states && s < engine->n_state; s++) free_state(&engine->states[s]);
    mdp_free(engine->states);
    mdp_free(engine->stream_state);
    mdp_free(engine->cosine);
    mdp_free(engine->sine);
    mdp_free(engine->input);
    mdp_free(engine->ids);
    mdp_free(engine->category);
    mdp_shared_destroy_all(engine->shared); /* last: who leaves it later has it for others too */
    mdp_free(engine);
}

/* ---- what the profile is told ---- */

mdp_reading mdp_engine_begin_reading(mdp_engine *engine) {
    return (mdp_reading){.before = mdp_profile_switch(engine->profile, MDP_PHASE_READ),
                         .n_byte = mdp_reader_bytes(engine->reader)};
}

void mdp_engine_end_reading(mdp_engine *engine, const mdp_reading *reading) {
    mdp_profile_read(engine->profile, mdp_reader_bytes(engine->reader) - reading->n_byte);
    mdp_profile_switch(engine->profile, reading->before);
}

mdp_status mdp_engine_load(mdp_engine *engine, const mdp_matrix *matrix, float **out) {
    mdp_reading reading = mdp_engine_begin_reading(engine);
    mdp_status status = mdp_matrix_load(engine->reader, matrix, out);
    mdp_engine_end_reading(engine, &reading);
    return status;
}

mdp_phase mdp_engine_begin_observing(const mdp_engine *engine) {
    return omp_get_thread_num() == 0 ? mdp_profile_switch(engine->profile, MDP_PHASE_OBSERVERS) : MDP_PHASE_OTHER;
}

void mdp_engine_end_observing(const mdp_engine *engine, mdp_phase before) {
    if (omp_get_thread_num() == 0) mdp_profile_switch(engine->profile, before);
}

/* ---- batches ---- */

static void describe_batch(mdp_engine *engine, int64_t batch) {
    const mdp_partition *partition = engine->partition;
    int64_t first, end;
    mdp_partition_share(partition, batch, engine->comm->rank, engine->comm->size, &first, &end);
    engine->batch_number = batch;
    engine->team = mdp_team_of_batch(engine, batch);
    engine->batch = (mdp_local_batch){.first_pack = first, .n_pack = end - first};
    if (first == end) return;
    engine->batch.first_token = partition->packs[first].first_token;
    engine->batch.n_token =
        partition->packs[end - 1].first_token + partition->packs[end - 1].n_token - engine->batch.first_token;
}

static void fill_categories(mdp_engine *engine) {
    const mdp_tokens *tokens = engine->tokens;
    for (int64_t p = 0; p < engine->batch.n_pack; p++) {
        const mdp_pack *pack = &engine->partition->packs[engine->batch.first_pack + p];
        for (int64_t s = pack->first_sequence; s < pack->first_sequence + pack->n_sequence; s++) {
            for (int64_t t = tokens->offset[s]; t < tokens->offset[s + 1]; t++) {
                engine->category[t - engine->batch.first_token] = tokens->sequence_category[s];
            }
        }
    }
}

/* One row of the embedding for every token, read where it lies. */
static mdp_status read_embeddings(mdp_engine *engine) {
    const mdp_matrix *embedding = &engine->model->embedding;
    int64_t d = engine->model->d_model;
    float scale = (float)engine->model->embedding_scale;
    mdp_status failed = mdp_ok();
#pragma omp parallel num_threads(engine->n_thread)
    {
        void *scratch = NULL;
        mdp_status status = mdp_alloc(&scratch, mdp_matrix_scratch(embedding, 1), 1, "an embedding row");
#pragma omp for schedule(static)
        for (int64_t i = 0; i < engine->batch.n_token; i++) {
            if (status.code != MDP_OK) continue;
            float *x = engine->states[0].x + i * d;
            status = mdp_matrix_read(engine->reader, embedding, engine->ids[i], 1, scratch, x);
            for (int64_t j = 0; j < d && scale != 1.0F; j++) x[j] *= scale;
        }
        if (status.code != MDP_OK) {
#pragma omp critical(mdp_embedding)
            failed = status;
        }
        mdp_free(scratch);
    }
    return failed;
}

/* The batch's tokens, and n_state empty residual streams. */
static mdp_status take_tokens(mdp_engine *engine, int n_state) {
    int64_t n = engine->batch.n_token;
    mdp_free(engine->ids);
    mdp_free(engine->category);
    engine->ids = NULL;
    engine->category = NULL;
    MDP_TRY(MDP_ALLOC(&engine->ids, n, "token ids"));
    MDP_TRY(MDP_ALLOC(&engine->category, n, "categories"));
    engine->batch.ids = engine->ids;
    engine->batch.category = engine->category;
    MDP_TRY(mdp_tokens_read(engine->tokens, engine->batch.first_token, n, engine->ids));
    fill_categories(engine);
    for (int s = 0; s < engine->n_state; s++) free_state(&engine->states[s]);
    engine->n_state = n_state;
    for (int s = 0; s < n_state; s++)
        MDP_TRY(MDP_ALLOC(&engine->states[s].x, n * engine->model->d_model, "the residual stream"));
    mdp_free(engine->input);
    engine->input = NULL;
    if (!engine->recompute) return mdp_ok();
    return MDP_ALLOC(&engine->input, n * engine->model->d_model, "the input of a MoE block");
}

static mdp_status begin_local(mdp_engine *engine) {
    MDP_TRY(take_tokens(engine, 1));
    memset(engine->stream_state, 0, (size_t)engine->n_stream * sizeof *engine->stream_state);
    mdp_reading reading = mdp_engine_begin_reading(engine);
    mdp_status status = read_embeddings(engine);
    mdp_engine_end_reading(engine, &reading);
    return status;
}

mdp_status mdp_engine_begin_batch_all(mdp_engine *engine, int64_t batch) {
    describe_batch(engine, batch);
    mdp_status status = begin_local(engine);
    MDP_ENGINE_AGREE(engine, status);
    return status;
}

mdp_status mdp_engine_restore_batch_all(mdp_engine *engine, int64_t batch, int n_state, const int *leader,
                                        const int *stream_state) {
    describe_batch(engine, batch);
    MDP_AGREE(engine->comm, take_tokens(engine, n_state));
    for (int s = 0; s < n_state; s++) engine->states[s].leader = leader[s];
    memcpy(engine->stream_state, stream_state, (size_t)engine->n_stream * sizeof *stream_state);
    return mdp_ok();
}

mdp_status mdp_engine_unshared(const mdp_engine *engine) {
    return engine->unshared;
}

const mdp_local_batch *mdp_engine_batch(const mdp_engine *engine) {
    return &engine->batch;
}

int mdp_engine_n_state(const mdp_engine *engine) {
    return engine->n_state;
}

int mdp_engine_state_of(const mdp_engine *engine, int stream) {
    return engine->stream_state[stream];
}

int mdp_engine_leader_of(const mdp_engine *engine, int state) {
    return engine->states[state].leader;
}

float *mdp_engine_residual(const mdp_engine *engine, int state) {
    return engine->states[state].x;
}

/* ---- layers ---- */

mdp_layer_view mdp_view_layer(const mdp_model *model, const mdp_view *view, int64_t layer) {
    const mdp_moe *moe = &model->layers[layer].moe;
    if (view && view->layers[layer].n_expert > 0) return view->layers[layer];
    return (mdp_layer_view){.n_expert = moe->n_expert, .top_k = moe->top_k, .source = NULL};
}

static mdp_layer_view layer_view(const mdp_engine *engine, int stream, int64_t layer) {
    return mdp_view_layer(engine->model, engine->views ? engine->views[stream] : NULL, layer);
}

bool mdp_view_is_same(const mdp_layer_view *a, const mdp_layer_view *b) {
    if (a->n_expert != b->n_expert || a->top_k != b->top_k) return false;
    for (int32_t e = 0; e < a->n_expert; e++) {
        if ((a->source ? a->source[e] : e) != (b->source ? b->source[e] : e)) return false;
        if ((a->zero && a->zero[e]) != (b->zero && b->zero[e])) return false;
    }
    return true;
}

/* The state that `stream`, so far in state `old`, joins at this layer: `old` itself while it agrees with its leader, a
 * state that parted from `old` here with the same view, or a new copy. */
static mdp_status join_state(mdp_engine *engine, int stream, int old, int first_new, int64_t layer, int *out) {
    mdp_layer_view own = layer_view(engine, stream, layer);
    mdp_layer_view other = layer_view(engine, engine->states[old].leader, layer);
    *out = old;
    if (mdp_view_is_same(&own, &other)) return mdp_ok();
    for (int s = first_new; s < engine->n_state; s++) {
        other = layer_view(engine, engine->states[s].leader, layer);
        *out = s;
        if (engine->states[s].origin == old && mdp_view_is_same(&own, &other)) return mdp_ok();
    }
    int64_t n = engine->batch.n_token * engine->model->d_model;
    mdp_state *fork = &engine->states[engine->n_state];
    MDP_TRY(MDP_ALLOC(&fork->x, n, "the residual stream"));
    memcpy(fork->x, engine->states[old].x, (size_t)n * sizeof(float));
    fork->leader = stream;
    fork->origin = old;
    *out = engine->n_state++;
    return mdp_ok();
}

/* Part the streams whose views differ in this layer. */
static mdp_status fork_states(mdp_engine *engine, int64_t layer) {
    int first_new = engine->n_state;
    for (int stream = 0; stream < engine->n_stream; stream++) {
        int *state = &engine->stream_state[stream];
        MDP_TRY(join_state(engine, stream, *state, first_new, layer, state));
    }
    return mdp_ok();
}

/* Set every state's view of the layer and make room for its routes. */
static mdp_status set_views(mdp_engine *engine, int64_t layer) {
    for (int s = 0; s < engine->n_state; s++) {
        mdp_state *state = &engine->states[s];
        mdp_layer_view view = layer_view(engine, state->leader, layer);
        mdp_free(state->index);
        mdp_free(state->weight);
        state->index = NULL;
        state->weight = NULL;
        state->n_expert = view.n_expert;
        state->top_k = view.top_k;
        state->source = view.source;
        state->zero = view.zero;
        MDP_TRY(MDP_ALLOC(&state->index, engine->batch.n_token * view.top_k, "routes"));
        MDP_TRY(MDP_ALLOC(&state->weight, engine->batch.n_token * view.top_k, "routes"));
    }
    return mdp_ok();
}

/* Values of a router, `n_each` for each expert; NaN and Inf are refused, since they would silently send every token to
 * one expert. */
static mdp_status load_router(mdp_engine *engine, int64_t layer, const mdp_matrix *values, int64_t n_each,
                              float **out) {
    MDP_TRY(mdp_engine_load(engine, values, out));
    for (int64_t i = 0; i < values->n_row * values->n_col; i++) {
        if (isfinite((*out)[i])) continue;
        return MDP_ERROR(MDP_BAD_INPUT,
                         "%s: layer %lld: the router's row of expert %lld holds %s ('%s'); the checkpoint is damaged",
                         engine->model->catalogue->path, (long long)layer, (long long)(i / n_each),
                         isnan((*out)[i]) ? "a NaN" : "an infinity", values->tensor->name);
    }
    return mdp_ok();
}

/* Everything of a MoE layer before tokens travel. Local. */
static mdp_status prepare_moe(mdp_engine *engine, int64_t layer_number, float **norm) {
    const mdp_moe *moe = &engine->model->layers[layer_number].moe;
    float *router = NULL, *logit_bias = NULL, *bias = NULL;
    MDP_TRY(fork_states(engine, layer_number));
    MDP_TRY(set_views(engine, layer_number));
    MDP_TRY(mdp_norm_load(engine, &engine->model->layers[layer_number].norm2, norm));
    mdp_status status = load_router(engine, layer_number, &moe->router, engine->model->d_model, &router);
    if (status.code == MDP_OK && moe->router_bias.tensor)
        status = load_router(engine, layer_number, &moe->router_bias, 1, &logit_bias);
    if (status.code == MDP_OK && moe->choice_bias.tensor)
        status = load_router(engine, layer_number, &moe->choice_bias, 1, &bias);
    const mdp_router_rows rows = {.norm = *norm, .router = router, .logit_bias = logit_bias, .bias = bias};
    if (status.code == MDP_OK) status = mdp_route(engine, layer_number, &rows);
    mdp_free(router);
    mdp_free(logit_bias);
    mdp_free(bias);
    return status;
}

/* The MoE block; `status`: how what went before it on this rank ended. Collective. */
static mdp_status moe_all(mdp_engine *engine, int64_t layer_number, mdp_status status) {
    float *norm = NULL;
    mdp_profile_switch(engine->profile, MDP_PHASE_ROUTER);
    if (status.code == MDP_OK) status = prepare_moe(engine, layer_number, &norm);
    MDP_ENGINE_AGREE(engine, status);
    mdp_profile_switch(engine->profile, MDP_PHASE_DISPATCH);
    if (status.code == MDP_OK) status = mdp_moe_all(engine, layer_number, norm);
    mdp_free(norm);
    mdp_profile_switch(engine->profile, MDP_PHASE_WAIT_RANKS);
    if (status.code == MDP_OK) status = mdp_finite_agree_all(engine, layer_number);
    mdp_profile_switch(engine->profile, MDP_PHASE_COMBINE);
    if (status.code != MDP_OK) return status;
    status = mdp_finite_residual(engine, layer_number, "the output of the MoE block");
    MDP_ENGINE_AGREE(engine, status);
    mdp_profile_switch(engine->profile, MDP_PHASE_OTHER);
    return status;
}

/* What a layer does before its MoE block; all of it, where it has none. Collective on the team. */
static mdp_status attend_all(mdp_engine *engine, const mdp_layer *layer, int64_t layer_number) {
    mdp_profile_switch(engine->profile, MDP_PHASE_ATTENTION);
    MDP_TRY(mdp_attend_all(engine, layer));
    MDP_TRY(mdp_finite_residual(engine, layer_number, "the output of attention"));
    mdp_profile_switch(engine->profile, MDP_PHASE_MLP);
    if (layer->is_moe) return mdp_ok();
    MDP_TRY(mdp_dense(engine, layer));
    return mdp_finite_residual(engine, layer_number, "the output of the dense MLP");
}

static size_t residual_bytes(const mdp_engine *engine) {
    return (size_t)(engine->batch.n_token * engine->model->d_model) * sizeof(float);
}

mdp_status mdp_engine_layer_all(mdp_engine *engine, int64_t layer_number) {
    const mdp_layer *layer = &engine->model->layers[layer_number];
    mdp_profile_switch(engine->profile, MDP_PHASE_READ);
    mdp_engine_announce(engine, layer_number + 1);
    mdp_status status = attend_all(engine, layer, layer_number);
    if (layer->is_moe) {
        if (engine->recompute && status.code == MDP_OK)
            memcpy(engine->input, engine->states[0].x, residual_bytes(engine));
        return moe_all(engine, layer_number, status);
    }
    MDP_ENGINE_AGREE(engine, status);
    mdp_profile_switch(engine->profile, MDP_PHASE_OTHER);
    return status;
}

mdp_status mdp_engine_recompute_all(mdp_engine *engine, int64_t layer_number) {
    mdp_observers observers = engine->observers;
    if (!engine->model->layers[layer_number].is_moe) return mdp_ok();
    memcpy(engine->states[0].x, engine->input, residual_bytes(engine));
    engine->observers = (mdp_observers){0};
    mdp_status status = moe_all(engine, layer_number, mdp_ok());
    engine->observers = observers;
    return status;
}
