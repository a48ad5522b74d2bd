/* observe.c - calibration: one forward pass of the model, or of what a plan leaves of it, with every statistic
 * on. With pruned propagation the plan comes into being on the way: a layer's statistics are complete when its only
 * batch is done, its decision is taken, and the engine computes the block again as the decision leaves it. */
#include "pipeline/forward.h"

typedef struct observe_run {
    const mdp_comm *comm;
    mdp_stats *stats;
    mdp_collector *collector;
    int64_t n_layer; /* of the model */
    mdp_similarity_request similarity;
    const mdp_propagation *propagation; /* NULL: inputs from the layers as they are */
    mdp_observers observers;            /* of the collector */
} observe_run;

static void cut(void *context, const mdp_partition *partition) {
    const observe_run *run = context;
    mdp_collector_cut(run->collector, partition);
}

static mdp_status begin_batch(void *context, const mdp_engine *engine) {
    const observe_run *run = context;
    return mdp_collector_begin_batch(run->collector, engine);
}

static mdp_status layer_all(void *context, int64_t layer) {
    const observe_run *run = context;
    const mdp_propagation *propagation = run->propagation;
    MDP_TRY(mdp_collector_layer_all(run->comm, run->collector, layer));
    if (!propagation || !mdp_collector_sees(run->collector, layer)) return mdp_ok();
    MDP_TRY(mdp_collector_finish_layer_all(run->comm, run->collector, layer));
    return propagation->decide_all(propagation->context, layer, run->stats, propagation->view);
}

static mdp_status gather_all(void *context) {
    const observe_run *run = context;
    return mdp_collector_gather_all(run->comm, run->collector);
}

static mdp_status describe(void *context, const mdp_position *at, bool taken, mdp_point *point) {
    const observe_run *run = context;
    (void)taken;
    return mdp_collector_describe(run->comm, run->collector, at->batch, at->layer, point);
}

/* Decide again what was decided: the same statistics say the same. */
static mdp_status restored_all(void *context, const mdp_position *at) {
    const observe_run *run = context;
    const mdp_propagation *propagation = run->propagation;
    for (int64_t l = 0; propagation && (at->batch > 0 || l < at->layer) && l < run->n_layer; l++) {
        if (!mdp_collector_sees(run->collector, l)) continue;
        MDP_TRY(mdp_collector_finish_layer_all(run->comm, run->collector, l));
        MDP_TRY(propagation->decide_all(propagation->context, l, run->stats, propagation->view));
    }
    return mdp_ok();
}

static mdp_status new_collection(const mdp_forward *forward, observe_run *run) {
    const mdp_model *model = forward->model;
    MDP_TRY(mdp_stats_new(model, forward->tokens, &run->similarity, &run->stats));
    mdp_gemm_describe(forward->options->gemm, run->stats->compute, sizeof run->stats->compute);
    run->n_layer = model->n_layer;
    run->stats->pruned_inputs = run->propagation != NULL;
    const mdp_collecting with = {.model = model,
                                 .reader = forward->reader,
                                 .gemm = forward->options->gemm,
                                 .n_thread = forward->options->n_thread,
                                 .allow_nonfinite = forward->options->allow_nonfinite};
    return mdp_collector_new(&with, run->stats, &run->collector);
}

/* `forward` has what the two kinds do not share. */
static mdp_status collect_all(observe_run *run, mdp_forward *forward, const mdp_view *seen, mdp_stats **out) {
    *out = NULL;
    mdp_status status = mdp_agree_all(run->comm, new_collection(forward, run));
    if (status.code == MDP_OK) {
        /* the observers' context is the collector, the steps' context the run */
        mdp_collector_use_view(run->collector, seen);
        run->observers = mdp_collector_observers(run->collector);
        forward->comm = run->comm;
        forward->phase = "observe";
        forward->observers = &run->observers;
        mdp_similarity_enlarge(forward->model, &run->similarity, forward->tokens->n_token, run->comm->size,
                               &forward->pass);
        forward->cut = cut;
        forward->begin_batch = begin_batch;
        forward->layer_all = layer_all;
        forward->gather_all = gather_all;
        forward->describe = describe;
        forward->restored_all = restored_all;
        forward->context = run;
        status = mdp_forward_all(forward);
    }
    if (status.code == MDP_OK) status = mdp_collector_finish_all(run->comm, run->collector);
    mdp_collector_destroy(run->collector);
    if (status.code != MDP_OK) {
        mdp_stats_destroy(run->stats);
        return status;
    }
    *out = run->stats;
    return mdp_ok();
}

mdp_status mdp_observe_all(const mdp_comm *comm, const mdp_model *model, mdp_reader *reader, const mdp_tokens *tokens,
                           const mdp_view *view, const mdp_similarity_request *similarity,
                           const mdp_forward_options *options, mdp_stats **out) {
    observe_run run = {.comm = comm};
    if (similarity) run.similarity = *similarity;
    mdp_forward forward = {.model = model,
                           .reader = reader,
                           .tokens = tokens,
                           .options = options,
                           .pass = {.n_stream = 1},
                           .views = view ? &view : NULL};
    return collect_all(&run, &forward, view, out);
}

mdp_status mdp_observe_pruned_all(const mdp_comm *comm, const mdp_model *model, mdp_reader *reader,
                                  const mdp_tokens *tokens, const mdp_propagation *propagation,
                                  const mdp_similarity_request *similarity, const mdp_forward_options *options,
                                  mdp_stats **out) {
    observe_run run = {.comm = comm, .propagation = propagation};
    if (similarity) run.similarity = *similarity;
    const mdp_view *view = propagation->view;
    mdp_forward forward = {.model = model,
                           .reader = reader,
                           .tokens = tokens,
                           .options = options,
                           .pass = {.n_stream = 1, .redo_block = true},
                           .views = &view};
    return collect_all(&run, &forward, NULL, out);
}
