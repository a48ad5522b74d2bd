/* observe.c - calibration: one forward pass of the model, or of what a plan leaves of it, with every statistic
 * on. */
#include "pipeline/forward.h"

typedef struct observe_run {
    const mdp_comm *comm;
    mdp_collector *collector;
} observe_run;

static mdp_status begin_batch(void *context, const mdp_engine *engine) {
    const observe_run *run = context;
    mdp_collector_begin_batch(run->collector, engine);
    return mdp_ok();
}

static mdp_status layer_all(void *context, int64_t layer) {
    const observe_run *run = context;
    return mdp_collector_layer_all(run->comm, run->collector, layer);
}

static mdp_status new_collection(const mdp_model *model, const mdp_tokens *tokens, mdp_stats **stats,
                                 mdp_collector **collector) {
    MDP_TRY(mdp_stats_new(model, tokens, stats));
    return mdp_collector_new(model, *stats, collector);
}

mdp_status mdp_observe_all(const mdp_comm *comm, const mdp_model *model, mdp_reader *reader, const mdp_tokens *tokens,
                           const mdp_view *view, const mdp_forward_options *options, mdp_stats **out) {
    mdp_stats *stats = NULL;
    observe_run run = {.comm = comm};
    *out = NULL;
    mdp_status status = mdp_agree_all(comm, new_collection(model, tokens, &stats, &run.collector));
    if (status.code == MDP_OK) {
        /* the observers' context is the collector, the steps' context the run */
        mdp_collector_use_view(run.collector, view);
        mdp_observers observers = mdp_collector_observers(run.collector);
        mdp_forward forward = {.comm = comm,
                               .model = model,
                               .reader = reader,
                               .tokens = tokens,
                               .options = options,
                               .phase = "observe",
                               .n_stream = 1,
                               .views = view ? &view : NULL,
                               .observers = &observers,
                               .begin_batch = begin_batch,
                               .layer_all = layer_all,
                               .context = &run};
        status = mdp_forward_all(&forward);
    }
    if (status.code == MDP_OK) status = mdp_collector_finish_all(comm, run.collector);
    mdp_collector_destroy(run.collector);
    if (status.code != MDP_OK) {
        mdp_stats_destroy(stats);
        return status;
    }
    *out = stats;
    return mdp_ok();
}
