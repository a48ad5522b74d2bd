/* decide.c - one decision for all ranks: see decide.h. */
#include "command/decide.h"

#include <string.h>

static mdp_status decide(const mdp_session *session, const mdp_stats *stats, const mdp_budget_options *budget,
                         char **text, int64_t *n_byte) {
    const char *method = mdp_session_option(session, OPTION_METHOD)->text;
    mdp_plan_request request = {.criterion = mdp_criterion_find(method),
                                .stats = stats,
                                .model = session->model,
                                .seed = (uint64_t)mdp_session_option(session, OPTION_SEED)->integer,
                                .budget = *budget};
    mdp_plan *plan = NULL;
    MDP_TRY(mdp_plan_make(&request, &plan));
    mdp_status status = mdp_plan_print(plan, text);
    mdp_plan_destroy(plan);
    if (status.code == MDP_OK) *n_byte = (int64_t)strlen(*text);
    return status;
}

mdp_status mdp_session_decide_all(mdp_session *session, const mdp_stats *stats, const mdp_budget_options *budget,
                                  mdp_plan **plan, char **text) {
    mdp_status status = mdp_ok();
    int64_t n_byte = 0;
    *plan = NULL;
    *text = NULL;
    if (session->comm->rank == 0) status = decide(session, stats, budget, text, &n_byte);
    MDP_AGREE(session->comm, status);
    status = mdp_bcast_text_all(session->comm, text, &n_byte, 0);
    if (status.code == MDP_OK)
        status = mdp_agree_all(session->comm, mdp_plan_parse(*text, n_byte, "the plan just made", plan));
    if (status.code == MDP_OK) return status;
    mdp_plan_destroy(*plan);
    mdp_free(*text);
    *plan = NULL;
    *text = NULL;
    return status;
}

mdp_status mdp_session_provenance(const mdp_session *session, const mdp_plan *plan, char **out) {
    json_t *root = json_pack("{s:s, s:s, s:s, s:{s:s, s:s}, s:O?, s:{s:s, s:s}}", "format", "moe-dist-prune provenance",
                             "version", "1.0", "writer", "moe-dist-prune " MDP_VERSION, "model", "fingerprint",
                             session->catalogue->fingerprint, "model_type", session->model->model_type, "recipe",
                             plan ? plan->recipe : NULL, "compute", "type", "f32", "blas", session->blas);
    *out = NULL;
    if (!root) return MDP_ERROR(MDP_INTERNAL, "out of memory for the provenance of a checkpoint.");
    mdp_status status = mdp_json_print(root, out);
    json_decref(root);
    return status;
}
