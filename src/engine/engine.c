/* engine.c - life of an engine, and the order of the steps of a layer.
 *
 * Owns the residual streams of this rank. Errors of local work are agreed on before the next collective. */
#include "engine/attention.h"
#include "engine/dispatch.h"
#include "engine/finite.h"
#include "engine/mlp.h"
#include "engine/moe.h"
#include "engine/norm.h"
#include "engine/router.h"

#include <string.h>

static mdp_status new_local(mdp_engine *engine) {
    MDP_TRY(MDP_ALLOC(&engine->branches, engine->n_stream, "branches"));
    MDP_TRY(MDP_ALLOC(&engine->stream_branch, engine->n_stream, "branches"));
    MDP_TRY(mdp_stack_new(&engine->stack));
    const mdp_panel_size panel =
        mdp_largest_panel(engine->model, engine->views, engine->n_stream, mdp_gemm_type_of(engine->gemm));
    MDP_TRY(mdp_panel_feed_new(engine->reader, mdp_feed_depth(engine->n_thread), panel.type, panel.n_byte,
                               engine->profile, &engine->feed));
    return mdp_attention_prepare(engine);
}

/* Values of a row of activations that comes back, at most; 0: none do. */
static int64_t activation_values(const mdp_engine *engine) {
    return engine->activations ? mdp_widest_expert(engine->model, engine->views, engine->n_stream) : 0;
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
        engine->redo_block = options->pass.redo_block || options->pass.aside_slots > 0;
        engine->activations = options->pass.activations;
        engine->projected = options->pass.projected;
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
        status = mdp_exchange_room_new_all(
            comm, MDP_MESSAGE_BYTES, mdp_dispatch_longest_row(comm, model, activation_values(engine)), &engine->room);
    if (status.code == MDP_OK) status = mdp_team_prepare_all(engine);
    if (status.code != MDP_OK) {
        mdp_engine_destroy_all(engine);
        return status;
    }
    *out = engine;
    return mdp_ok();
}

void mdp_engine_destroy_all(mdp_engine *engine) {
    if (!engine) return;
    mdp_panel_feed_destroy(engine->feed);
    mdp_stack_destroy(engine->stack);
    mdp_exchange_room_destroy(engine->room);
    for (int s = 0; engine->branches && s < engine->n_branch; s++) mdp_branch_free(&engine->branches[s]);
    mdp_free(engine->branches);
    mdp_roster_clear(&engine->roster);
    mdp_free(engine->stream_branch);
    mdp_free(engine->cosine);
    mdp_free(engine->sine);
    mdp_free(engine->input);
    mdp_free(engine->ids);
    mdp_free(engine->category);
    mdp_shared_destroy_all(engine->shared); /* last: who leaves it later has it for others too */
    mdp_free(engine);
}

/* ---- layers ---- */

/* Set every branch's view of the layer, list who computes in them, and make room for routes. */
static mdp_status set_views(mdp_engine *engine, int64_t layer) {
    mdp_layer_view *views = NULL;
    MDP_TRY(MDP_ALLOC(&views, engine->n_branch, "views"));
    for (int s = 0; s < engine->n_branch; s++) views[s] = mdp_engine_view(engine, engine->branches[s].leader, layer);
    mdp_roster_clear(&engine->roster);
    mdp_status status = mdp_roster_new(&engine->model->layers[layer].moe, views, engine->n_branch, &engine->roster);
    mdp_free(views);
    MDP_TRY(status);
    for (int s = 0; s < engine->n_branch; s++) {
        mdp_branch *branch = &engine->branches[s];
        mdp_layer_view view = mdp_engine_view(engine, branch->leader, layer);
        mdp_free(branch->index);
        mdp_free(branch->weight);
        branch->index = NULL;
        branch->weight = NULL;
        branch->n_expert = view.n_expert;
        branch->top_k = view.top_k;
        branch->n_used = mdp_view_used(&view);
        branch->source = view.source;
        branch->zero = view.zero;
        MDP_TRY(MDP_ALLOC(&branch->index, engine->batch.n_token * view.top_k, "routes"));
        MDP_TRY(MDP_ALLOC(&branch->weight, engine->batch.n_token * view.top_k, "routes"));
    }
    return mdp_ok();
}

/* Everything of a MoE layer before tokens travel. Local. */
static mdp_status prepare_moe(mdp_engine *engine, int64_t layer_number, float **norm) {
    mdp_router_rows rows;
    MDP_TRY(mdp_branches_fork(engine, layer_number));
    MDP_TRY(set_views(engine, layer_number));
    MDP_TRY(mdp_norm_load(engine, &engine->model->layers[layer_number].norm2, norm));
    mdp_status status = mdp_router_rows_load(engine, layer_number, *norm, &rows);
    if (status.code == MDP_OK) status = mdp_route(engine, layer_number, &rows);
    mdp_router_rows_free(&rows);
    return status;
}

/* Tokens to their experts and back; norm is taken over. `status`: how what went before it on this rank ended.
 * Collective. */
static mdp_status experts_all(mdp_engine *engine, int64_t layer_number, float *norm, mdp_status status) {
    status = mdp_engine_agree_all(engine, status);
    mdp_profile_switch(engine->profile, MDP_PHASE_DISPATCH);
    if (status.code == MDP_OK) status = mdp_moe_all(engine, layer_number, norm);
    mdp_free(norm);
    mdp_profile_switch(engine->profile, MDP_PHASE_WAIT_RANKS);
    return status.code == MDP_OK ? mdp_finite_agree_all(engine, layer_number) : status;
}

/* The MoE block; `status`: as of experts_all. Collective. */
static mdp_status moe_all(mdp_engine *engine, int64_t layer_number, mdp_status status) {
    float *norm = NULL;
    mdp_profile_switch(engine->profile, MDP_PHASE_ROUTER);
    if (status.code == MDP_OK) status = prepare_moe(engine, layer_number, &norm);
    status = experts_all(engine, layer_number, norm, status);
    mdp_profile_switch(engine->profile, MDP_PHASE_COMBINE);
    if (status.code != MDP_OK) return status;
    status = mdp_finite_residual(engine, layer_number, "the output of the MoE block");
    status = mdp_engine_agree_all(engine, status);
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

/* The branch that is redone: the last stream's. */
static mdp_branch *last_branch(const mdp_engine *engine) {
    return &engine->branches[engine->stream_branch[engine->n_stream - 1]];
}

mdp_status mdp_engine_layer_all(mdp_engine *engine, int64_t layer_number) {
    const mdp_layer *layer = &engine->model->layers[layer_number];
    mdp_profile_switch(engine->profile, MDP_PHASE_READ);
    mdp_engine_announce(engine, layer_number + 1);
    mdp_status status = attend_all(engine, layer, layer_number);
    if (layer->is_moe) {
        if (engine->redo_block && status.code == MDP_OK)
            memcpy(engine->input, last_branch(engine)->x, residual_bytes(engine));
        return moe_all(engine, layer_number, status);
    }
    status = mdp_engine_agree_all(engine, status);
    mdp_profile_switch(engine->profile, MDP_PHASE_OTHER);
    return status;
}

mdp_status mdp_engine_redo_block_all(mdp_engine *engine, int64_t layer_number, const mdp_observers *observers) {
    const mdp_observers own = engine->observers;
    if (!engine->model->layers[layer_number].is_moe) return mdp_ok();
    mdp_status status = mdp_agree_all(engine->comm, mdp_branches_fork(engine, layer_number));
    if (status.code != MDP_OK) return status;
    memcpy(last_branch(engine)->x, engine->input, residual_bytes(engine));
    for (int s = 0; s < engine->n_branch; s++) engine->branches[s].idle = &engine->branches[s] != last_branch(engine);
    engine->observers = observers ? *observers : (mdp_observers){0};
    status = moe_all(engine, layer_number, mdp_ok());
    engine->observers = own;
    for (int s = 0; s < engine->n_branch; s++) engine->branches[s].idle = false;
    return status;
}

/* ---- aside ---- */

/* Let the one branch be what is computed aside. */
static void begin_aside(mdp_engine *engine, const mdp_aside *aside) {
    mdp_branch *branch = &engine->branches[0];
    branch->x = engine->input;
    branch->n_expert = aside->view.n_expert;
    branch->top_k = branch->n_used = aside->view.top_k;
    branch->source = aside->view.source;
    branch->zero = NULL;
    branch->index = aside->index;
    branch->weight = aside->weight;
    engine->aside = aside;
    engine->observers = *aside->observers;
}

static mdp_status compute_aside_all(mdp_engine *engine, int64_t layer_number) {
    float *norm = NULL;
    const mdp_layer *layer = &engine->model->layers[layer_number];
    mdp_status status = mdp_roster_new(&layer->moe, &engine->aside->view, 1, &engine->roster);
    if (status.code == MDP_OK) status = mdp_norm_load(engine, &layer->norm2, &norm);
    status = experts_all(engine, layer_number, norm, status);
    mdp_profile_switch(engine->profile, MDP_PHASE_OTHER);
    return status;
}

mdp_status mdp_engine_aside_all(mdp_engine *engine, int64_t layer_number, const mdp_aside *aside) {
    const mdp_observers own = engine->observers;
    const mdp_branch branch = engine->branches[0];
    const mdp_roster roster = engine->roster;
    begin_aside(engine, aside);
    engine->roster = (mdp_roster){0};
    mdp_status status = compute_aside_all(engine, layer_number);
    mdp_roster_clear(&engine->roster);
    engine->roster = roster;
    engine->branches[0] = branch;
    engine->observers = own;
    engine->aside = NULL;
    return status;
}
