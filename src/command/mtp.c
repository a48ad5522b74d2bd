/* mtp.c - layers that predict tokens further ahead, pruned like the others: see mtp.h. */
#include "command/mtp.h"

#include <string.h>

static bool prunes(const mdp_session *session) {
    return mdp_session_option(session, OPTION_MTP)->integer == MTP_PRUNE;
}

mdp_status mdp_session_open_mtp_all(mdp_session *session) {
    if (!prunes(session)) return mdp_ok();
    MDP_AGREE(session->comm, mdp_model_bind_extra(session->model, &session->mtp_model));
    if (session->model->n_extra == 0)
        mdp_log_message(session->log, MDP_LEVEL_INFO, "--mtp prune: %s has no layers that predict tokens further ahead",
                        session->catalogue->path);
    return mdp_ok();
}

/* The criterion that scores their experts. */
static const mdp_criterion *find_criterion(const mdp_plan *plan, bool stand_in) {
    if (stand_in) return mdp_criterion_find("random");
    const char *method = json_string_value(json_object_get(plan->recipe, "method"));
    const mdp_criterion *criterion = method ? mdp_criterion_find(method) : NULL;
    bool by_weights = criterion && !criterion->needs_stats && !criterion->own_pass &&
                      (criterion->tensors == MDP_EXPERT_TENSORS || criterion->tensors == MDP_ROUTER_TENSORS);
    return by_weights ? criterion : mdp_criterion_find("aimer");
}

/* On rank 0. Collective. */
static mdp_status read_weights_all(const mdp_session *session, const mdp_criterion *criterion, mdp_weights **out) {
    if (criterion->tensors == MDP_EXPERT_TENSORS)
        return mdp_weights_of_experts_all(session->comm, session->mtp_model, session->reader, session->n_thread, out);
    mdp_status status = mdp_ok();
    if (criterion->tensors == MDP_ROUTER_TENSORS && session->comm->rank == 0)
        status = mdp_weights_of_routers(session->mtp_model, session->reader, NULL, NULL, out);
    return mdp_agree_all(session->comm, status);
}

/* Rank 0. */
static mdp_status choose(const mdp_session *session, const mdp_criterion *criterion, const mdp_weights *weights,
                         const mdp_plan *plan, char **text, int64_t *n_byte) {
    const mdp_router_rule *rule = &session->mtp_model->layers[0].moe.rule;
    mdp_plan_request request = {.criterion = criterion,
                                .model = session->mtp_model,
                                .weights = weights,
                                .budget = {.keep = mdp_transform_count(plan),
                                           .n_group = rule->n_group,
                                           .n_open = rule->n_open,
                                           .top_k = plan->layers[0].top_k}};
    mdp_plan *chosen = NULL;
    MDP_TRY(mdp_plan_make(&request, &chosen));
    mdp_status status = mdp_plan_print(chosen, text);
    mdp_plan_destroy(chosen);
    if (status.code == MDP_OK) *n_byte = (int64_t)strlen(*text);
    return status;
}

mdp_status mdp_session_plan_mtp_all(mdp_session *session, const mdp_plan *plan, bool stand_in) {
    const mdp_model *model = session->mtp_model;
    mdp_plan_destroy(session->mtp_plan);
    session->mtp_plan = NULL;
    if (!model || model->n_layer == 0 || model->layers[0].moe.n_expert <= mdp_transform_count(plan)) return mdp_ok();
    const mdp_criterion *criterion = find_criterion(plan, stand_in);
    mdp_weights *weights = NULL;
    char *text = NULL;
    int64_t n_byte = 0;
    mdp_status status = read_weights_all(session, criterion, &weights);
    if (status.code == MDP_OK) {
        if (session->comm->rank == 0) status = choose(session, criterion, weights, plan, &text, &n_byte);
        status = mdp_agree_all(session->comm, status);
    }
    mdp_weights_destroy(weights);
    if (status.code == MDP_OK) status = mdp_bcast_text_all(session->comm, &text, &n_byte, 0);
    if (status.code == MDP_OK)
        status = mdp_agree_all(session->comm, mdp_plan_parse(text, n_byte, "the plan of --mtp", &session->mtp_plan));
    mdp_free(text);
    return status;
}

const mdp_extra *mdp_session_extra(const mdp_session *session, mdp_extra *out) {
    *out = (mdp_extra){.model = session->mtp_model, .plan = session->mtp_plan};
    return session->mtp_model ? out : NULL;
}
