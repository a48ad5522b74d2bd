/* subsets.c - see subsets.h. */
#include "command/subsets.h"
#include "command/compute.h"
#include "command/continue.h"
#include "command/decide.h"
#include "command/feasible.h"

static const mdp_tokens *tokens_of(const mdp_session *session) {
    return session->naee_tokens ? session->naee_tokens : session->tokens;
}

static bool is_run(const mdp_session *session) {
    return session->options->bit == COMMAND_RUN;
}

/* Will sets be measured? */
static bool is_asked(const mdp_session *session) {
    return is_run(session) ? mdp_session_criterion(session)->needs_subsets
                           : mdp_session_option(session, OPTION_SUBSETS)->present;
}

mdp_status mdp_session_check_subset_options(const mdp_session *session) {
    static const mdp_option_id only[] = {OPTION_MAX_SUBSETS, OPTION_SUBSET_SEARCH, OPTION_NAEE_BATCH,
                                         OPTION_NAEE_TOKENS};
    if (is_asked(session)) return mdp_ok();
    return mdp_session_check_unused(session, only, sizeof only / sizeof only[0],
                                    is_run(session) ? "method naee" : "subsets");
}

/* The sizes that layers keep. */
static mdp_status add_keeps(const mdp_session *session, const mdp_budget_options *budget, mdp_subset_request *out) {
    int64_t n = mdp_census_of_model(session->model).n_layer;
    mdp_budget_layer *layers = NULL;
    int32_t *count = NULL;
    mdp_status status = mdp_session_list_layers(session->model, NULL, n, &layers);
    if (status.code == MDP_OK) status = MDP_ALLOC(&count, n, "the budgets of layers");
    if (status.code == MDP_OK) status = mdp_budget_counts(layers, n, budget, count);
    for (int64_t i = 0; i < n && status.code == MDP_OK; i++)
        if (count[i] < layers[i].n_expert) status = mdp_subset_keeps_add(out, count[i]);
    mdp_free(layers);
    mdp_free(count);
    return status;
}

mdp_status mdp_session_subset_request(const mdp_session *session, const mdp_budget_options *budget,
                                      mdp_subset_request *out) {
    *out =
        (mdp_subset_request){.batch = mdp_session_option(session, OPTION_NAEE_BATCH)->integer,
                             .n_token = mdp_session_option(session, OPTION_NAEE_TOKENS)->integer,
                             .most = mdp_session_option(session, OPTION_MAX_SUBSETS)->integer,
                             .search = (mdp_subset_search)mdp_session_option(session, OPTION_SUBSET_SEARCH)->integer};
    if (out->n_token > 0) out->seed = (uint64_t)mdp_session_option(session, OPTION_SEED)->integer;
    if (!is_asked(session)) return mdp_ok();
    if (budget) return add_keeps(session, budget, out);
    return mdp_subset_keeps_parse(mdp_session_option(session, OPTION_SUBSETS)->text, out);
}

mdp_status mdp_session_open_subsets_all(mdp_session *session, const mdp_subset_request *request) {
    if (request->n_keep == 0) return mdp_ok();
    mdp_status status = mdp_subsets_check(session->model, request);
    if (status.code == MDP_OK && request->n_token > 0 && request->n_token < session->tokens->n_token)
        status = mdp_tokens_sample(session->tokens, request->n_token, request->seed, &session->naee_tokens);
    return mdp_agree_all(session->comm, status);
}

/* Sums, and two lists of errors of sequences on their way. */
int64_t mdp_session_subsets_memory(const mdp_session *session, const mdp_subset_request *request) {
    if (request->n_keep == 0) return 0;
    int64_t n_sequence = tokens_of(session)->n_sequence, list = mdp_smaller(INT64_C(1) << 21, 1024 * n_sequence);
    return 2 * mdp_subset_sums_memory(session->model, request) + 3 * 8 * list +
           (session->naee_tokens ? 4 * session->naee_tokens->n_token : 0);
}

mdp_status mdp_session_add_subsets_all(mdp_session *session, const mdp_subset_request *request,
                                       mdp_estimate *estimate) {
    mdp_view *view = NULL;
    mdp_pass pass;
    if (request->n_keep == 0) return mdp_ok();
    mdp_status status = mdp_agree_all(session->comm, mdp_subset_pass_new(session->model, request, &view, &pass));
    const mdp_view *views[1] = {view};
    pass.views = views;
    if (status.code == MDP_OK)
        status = mdp_session_add_pass_all(session, "subsets", tokens_of(session), pass, estimate);
    mdp_view_destroy(view);
    return status;
}

mdp_status mdp_session_subsets_all(mdp_session *session, const mdp_subset_request *request, mdp_stats *stats) {
    mdp_forward_options options = mdp_session_forward_options(session);
    if (request->n_keep == 0) return mdp_ok();
    return mdp_subsets_all(session->comm, session->model, session->reader, tokens_of(session), request, &options,
                           stats);
}
