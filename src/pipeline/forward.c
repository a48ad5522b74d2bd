/* forward.c - batches, layers, head: the loop that every calibrated command runs.
 *
 * In: a model, tokens, streams. Out: whatever observers and the caller's steps take from it. Weights are read once for
 * each batch; nothing of the model is kept. */
#include "pipeline/forward.h"

static mdp_status run_batch_all(const mdp_forward *forward, mdp_engine *engine, int64_t batch, int64_t n_batch,
                                mdp_progress *progress) {
    const mdp_comm *comm = forward->comm;
    int64_t n_layer = forward->model->n_layer;
    MDP_TRY(mdp_engine_begin_batch_all(engine, batch));
    if (forward->begin_batch) MDP_AGREE(comm, forward->begin_batch(forward->context, engine));
    for (int64_t layer = 0; layer < n_layer; layer++) {
        MDP_TRY(mdp_engine_layer_all(engine, layer));
        if (forward->layer_done) MDP_AGREE(comm, forward->layer_done(forward->context, layer));
        if (forward->layer_all) MDP_TRY(forward->layer_all(forward->context, layer));
        if (forward->pass.recompute) MDP_TRY(mdp_engine_recompute_all(engine, layer));
        int64_t done = batch * n_layer + layer + 1;
        if (progress) {
            mdp_progress_update(progress, done,
                                (double)forward->tokens->n_token * (double)done / (double)(n_batch * n_layer));
        }
    }
    return forward->head_all ? forward->head_all(forward->context, engine) : mdp_ok();
}

static mdp_status run_all(const mdp_forward *forward, const mdp_partition *partition) {
    mdp_engine *engine = NULL;
    mdp_progress *progress = NULL;
    mdp_engine_options options = {.n_thread = forward->options->n_thread,
                                  .pass = forward->pass,
                                  .views = forward->views,
                                  .observers = forward->observers};
    MDP_TRY(mdp_engine_new_all(forward->comm, forward->model, forward->reader, forward->tokens, partition, &options,
                               &engine));
    mdp_status status = mdp_ok();
    if (forward->options->progress) {
        status = mdp_progress_new(&progress, forward->options->log, forward->phase, "layer",
                                  partition->n_batch * forward->model->n_layer, "tokens");
    }
    status = mdp_agree_all(forward->comm, status);
    for (int64_t batch = 0; status.code == MDP_OK && batch < partition->n_batch; batch++) {
        status = run_batch_all(forward, engine, batch, partition->n_batch, progress);
    }
    mdp_progress_destroy(progress);
    mdp_engine_destroy(engine);
    return status;
}

mdp_status mdp_forward_all(const mdp_forward *forward) {
    mdp_forward_cost cost;
    mdp_partition *partition = NULL;
    mdp_status status =
        mdp_forward_cost_of(forward->comm, forward->model, forward->tokens, &forward->pass, forward->options, &cost);
    if (status.code == MDP_OK) status = mdp_partition_new(forward->tokens, cost.batch_tokens, &partition);
    status = mdp_agree_all(forward->comm, status);
    if (status.code == MDP_OK && partition) status = run_all(forward, partition); /* agreed: there on every rank */
    mdp_partition_destroy(partition);
    return status;
}
