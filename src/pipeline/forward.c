/* forward.c - batches, layers, head: the loop that every calibrated command runs.
 *
 * In: a model, tokens, streams. Out: whatever observers and the caller's steps take from it. Weights are read once for
 * each batch; nothing of the model is kept. */
#include "pipeline/stage.h"

/* What n_step layers of all batches amount to. */
static double tokens_of(const mdp_stage *stage, int64_t n_step) {
    const mdp_forward *forward = stage->forward;
    return (double)forward->tokens->n_token * (double)n_step /
           (double)(stage->partition->n_batch * forward->model->n_layer);
}

static mdp_status look_all(mdp_stage *stage, mdp_engine *engine, mdp_position at, mdp_profile *profile) {
    mdp_phase before = mdp_profile_switch(profile, MDP_PHASE_SAVE);
    mdp_status status = mdp_stage_look_all(stage, engine, at);
    mdp_profile_switch(profile, before);
    return status;
}

/* Layers and head of the batch at stage->at, from where it stands. */
static mdp_status run_batch_all(const mdp_forward *forward, mdp_engine *engine, mdp_stage *stage,
                                mdp_progress *progress, mdp_profile *profile) {
    const mdp_comm *comm = forward->comm;
    int64_t n_layer = forward->model->n_layer, batch = stage->at.batch;
    if (stage->at.layer == 0) MDP_TRY(mdp_engine_begin_batch_all(engine, batch));
    if (forward->begin_batch) MDP_AGREE(comm, forward->begin_batch(forward->context, engine));
    for (int64_t layer = stage->at.layer; layer < n_layer; layer++) {
        MDP_TRY(mdp_engine_layer_all(engine, layer));
        mdp_profile_switch(profile, MDP_PHASE_OBSERVERS);
        if (forward->layer_done) MDP_AGREE(comm, forward->layer_done(forward->context, layer));
        if (forward->layer_all) MDP_TRY(forward->layer_all(forward->context, layer));
        mdp_profile_switch(profile, MDP_PHASE_OTHER);
        if (forward->redo_all)
            MDP_TRY(forward->redo_all(forward->context, engine, layer));
        else if (forward->pass.redo_block)
            MDP_TRY(mdp_engine_redo_block_all(engine, layer, NULL));
        int64_t done = batch * n_layer + layer + 1;
        mdp_progress_update(progress, done, tokens_of(stage, done));
        if (layer < n_layer - 1 || forward->head_all)
            MDP_TRY(look_all(stage, engine, (mdp_position){batch, layer + 1}, profile));
    }
    if (forward->head_all) MDP_TRY(forward->head_all(forward->context, engine));
    return look_all(stage, engine, (mdp_position){batch + 1, 0}, profile);
}

/* Bytes of the residual streams of the largest batch, of all ranks: most of a resume point. */
static int64_t residual_bytes(const mdp_forward *forward, const mdp_partition *partition) {
    return forward->pass.n_stream * partition->batch_tokens * forward->model->d_model * (int64_t)sizeof(float);
}

/* engine NULL: the pass was done already. Collective on forward->comm. */
static mdp_status tell_nonfinite_all(const mdp_forward *forward, const mdp_stage *stage, const mdp_engine *engine) {
    int64_t n, layer;
    char count[32];
    MDP_TRY(mdp_stage_nonfinite_all(stage, engine, &n, &layer));
    if (n > 0)
        mdp_log_message(forward->options->log, MDP_LEVEL_WARN,
                        "%s: %s activations were not finite and counted as 0, the first in layer %lld", forward->phase,
                        mdp_print_count(count, n), (long long)layer);
    return mdp_ok();
}

/* Packs that a rank has for itself though others of its node have less to do. */
static void tell_unshared(const mdp_forward *forward, const mdp_engine *engine) {
    const mdp_status why = mdp_engine_unshared(engine);
    if (why.code == MDP_OK) return;
    mdp_log_message(
        forward->options->log, MDP_LEVEL_WARN,
        "%s: attention to few or long texts is not shared by the ranks of a node, which takes longer and, on ranks "
        "with texts, more memory than foretold: %s",
        forward->phase, why.text);
}

/* What an earlier run has finished. */
static mdp_status take_finished_all(const mdp_forward *forward, mdp_stage *stage) {
    MDP_TRY(mdp_stage_restore_all(stage, NULL));
    return forward->options->allow_nonfinite ? tell_nonfinite_all(forward, stage, NULL) : mdp_ok();
}

static mdp_status run_all(const mdp_forward *forward, mdp_stage *stage) {
    mdp_engine *engine = NULL;
    mdp_progress *progress = NULL;
    mdp_profile profile;
    mdp_engine_options options = {.n_thread = forward->options->n_thread,
                                  .profile = &profile,
                                  .gemm = forward->options->gemm,
                                  .pass = forward->pass,
                                  .views = forward->views,
                                  .observers = forward->observers,
                                  .allow_nonfinite = forward->options->allow_nonfinite};
    mdp_profile_begin(&profile);
    MDP_TRY(mdp_engine_new_all(forward->comm, forward->model, forward->reader, forward->tokens, stage->partition,
                               &options, &engine));
    tell_unshared(forward, engine);
    mdp_status status = mdp_ok();
    if (forward->options->progress) {
        status = mdp_progress_new(&progress, forward->options->log, forward->phase, "layer",
                                  stage->partition->n_batch * forward->model->n_layer, "tokens");
    }
    status = mdp_agree_all(forward->comm, status);
    if (status.code == MDP_OK) status = mdp_stage_restore_all(stage, engine);
    int64_t old = stage->at.batch * forward->model->n_layer + stage->at.layer;
    mdp_progress_go_on(progress, old, tokens_of(stage, old));
    if (stage->resume) mdp_watch_begin_phase(&stage->resume->watch, residual_bytes(forward, stage->partition));
    while (status.code == MDP_OK && !mdp_stage_is_finished(stage))
        status = run_batch_all(forward, engine, stage, progress, &profile);
    mdp_progress_destroy(progress);
    if (status.code == MDP_OK) status = mdp_resume_check_inputs_all(forward->comm, stage->resume, forward->reader);
    if (status.code == MDP_OK && forward->options->allow_nonfinite) status = tell_nonfinite_all(forward, stage, engine);
    mdp_engine_destroy_all(engine);
    if (status.code == MDP_OK && forward->options->profiles)
        status = mdp_profile_tell_all(forward->comm, &profile, forward->phase, forward->options->log,
                                      forward->options->profiles);
    return status;
}

/* A pass that goes on keeps the batches that it began with. */
static mdp_status cut(const mdp_forward *forward, mdp_stage *stage, mdp_partition **partition) {
    mdp_forward_cost cost;
    mdp_forward_options options = *forward->options;
    if (stage->batch_tokens > 0) options.batch_tokens = stage->batch_tokens;
    MDP_TRY(mdp_forward_choose_batch(forward->comm, forward->model, forward->tokens, &forward->pass, &options, &cost));
    MDP_TRY(mdp_partition_new(forward->tokens, cost.batch_tokens, partition));
    return mdp_stage_cut(stage, *partition, cost.batch_tokens);
}

mdp_status mdp_forward_all(const mdp_forward *forward) {
    mdp_partition *partition = NULL;
    mdp_stage stage;
    mdp_status status = mdp_stage_open_all(forward, &stage);
    if (status.code == MDP_OK) status = mdp_agree_all(forward->comm, cut(forward, &stage, &partition));
    if (status.code == MDP_OK && partition) { /* agreed: there on every rank */
        if (forward->cut) forward->cut(forward->context, partition);
        if (mdp_stage_is_finished(&stage))
            status = take_finished_all(forward, &stage);
        else
            status = run_all(forward, &stage);
    }
    mdp_stage_close(&stage);
    mdp_partition_destroy(partition);
    return status;
}
