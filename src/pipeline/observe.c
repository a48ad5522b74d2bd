/* observe.c - calibration: one forward pass of the model as it is, with every statistic on. */
#include "pipeline/forward.h"

mdp_status mdp_observe_all(const mdp_comm *comm, const mdp_model *model, mdp_reader *reader, const mdp_tokens *tokens,
                           const mdp_forward_options *options, mdp_stats **out) {
    mdp_stats *stats = NULL;
    *out = NULL;
    MDP_AGREE(comm, mdp_stats_new(model, tokens, &stats));
    mdp_observers observers = {.tile = mdp_stats_observe, .context = stats};
    mdp_forward forward = {.comm = comm,
                           .model = model,
                           .reader = reader,
                           .tokens = tokens,
                           .options = options,
                           .phase = "observe",
                           .n_stream = 1,
                           .observers = &observers};
    mdp_status status = mdp_forward_all(&forward);
    if (status.code == MDP_OK) status = mdp_stats_reduce_all(comm, stats);
    if (status.code != MDP_OK) {
        mdp_stats_destroy(stats);
        return status;
    }
    *out = stats;
    return mdp_ok();
}
