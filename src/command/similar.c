/* similar.c - see similar.h. */
#include "command/similar.h"
#include "command/cutting.h"
#include "command/decide.h"
#include "command/masking.h"

mdp_status mdp_session_similarity(const mdp_session *session, mdp_similarity_request *out) {
    unsigned wanted;
    bool merges;
    mdp_merge_request merge;
    MDP_TRY(mdp_similarity_parse(mdp_session_option(session, OPTION_SIMILARITY)->text, &wanted));
    int norms = (int)mdp_session_option(session, OPTION_CHANNEL_NORMS)->integer;
    if (session->options->bit == COMMAND_RUN) {
        norms |= (int)mdp_session_mask_norms(session);
        MDP_TRY(mdp_session_merge_request(session, &merges, &merge));
        if (merges && mdp_merge_has_groups(&merge)) wanted |= 1u << merge.similarity;
    }
    mdp_cut_request cut;
    bool cuts;
    MDP_TRY(mdp_session_cut_request(session, &cuts, &cut));
    *out = mdp_similarity_request_of(wanted, mdp_session_option(session, OPTION_PROBE_TOKENS)->integer,
                                     (uint64_t)mdp_session_option(session, OPTION_SEED)->integer,
                                     (mdp_channel_norms)norms);
    out->neurons = mdp_session_option(session, OPTION_NEURON_SCORES)->flag || cuts;
    return mdp_ok();
}

int64_t mdp_session_stats_memory(const mdp_session *session, const mdp_similarity_request *request) {
    int size = session->layout->size;
    return mdp_stats_memory(session->model, session->tokens->n_category, size, request) +
           mdp_similarity_memory(session->model, request, session->tokens->n_token, size, session->n_thread);
}

mdp_status mdp_session_add_similarity(const mdp_session *session, const mdp_similarity_request *request,
                                      mdp_estimate *estimate) {
    int size = session->layout->size;
    mdp_rank_cost *ranks = NULL, total = {0}, least = {0}, most = {0};
    if (request->neurons && mdp_gemm_type_of(session->gemm) == MDP_GEMM_BF16)
        return MDP_ERROR(MDP_USAGE, "sums for neurons multiply outputs with columns of stored matrices, which products "
                                    "in bfloat16 cannot; leave --compute bf16 out.");
    if (request->wanted == 0 && !request->neurons) return mdp_ok();
    MDP_TRY(MDP_ALLOC(&ranks, size, "costs of ranks"));
    mdp_similarity_cost(session->layout, session->model, request, session->tokens->n_token, ranks);
    for (int r = 0; r < size; r++) mdp_rank_cost_add(&ranks[r], &total);
    mdp_rank_cost_bound(ranks, size, &least, &most);
    mdp_free(ranks);
    return mdp_session_add_costs(session, "similarity", total.bytes_read, &total, &least, &most, estimate);
}
