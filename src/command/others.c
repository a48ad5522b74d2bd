/* others.c - plans for other software: see others.h. Rank 0 makes the text: all of it follows from the plan and the
 * statistics. */
#include "command/others.h"
#include "command/categories.h"
#include "command/decide.h"
#include "command/outputs.h"
#include "mdp/others.h"

#include <string.h>

static mdp_other other_of(const mdp_session *session) {
    return (mdp_other)mdp_session_option(session, OPTION_FOR)->integer;
}

mdp_status mdp_session_check_other(const mdp_session *session) {
    const mdp_criterion *criterion = mdp_session_criterion(session);
    if (!mdp_session_option(session, OPTION_FOR)->present) return mdp_ok();
    if (mdp_session_option(session, OPTION_MERGE)->integer > 0 ||
        mdp_session_option(session, OPTION_PRUNED_ROUTE)->integer != MDP_ROUTE_SLICE)
        return MDP_ERROR(MDP_USAGE, "--for says which experts stay and which go; --merge and --pruned-route zero do "
                                    "not go with it.");
    if (mdp_session_option(session, OPTION_TOP_K)->present)
        return MDP_ERROR(MDP_USAGE, "--for cannot say how many experts a token uses; leave --top-k out.");
    if (other_of(session) != MDP_FOR_PER_CATEGORY) return mdp_ok();
    if (!criterion->needs_stats || criterion->needs_vectors)
        return MDP_ERROR(MDP_USAGE, "--for per-category: method '%s' does not tell categories apart.", criterion->name);
    if (mdp_session_option(session, OPTION_CATEGORIES)->present ||
        mdp_session_option(session, OPTION_WORST_CATEGORY)->flag)
        return MDP_ERROR(MDP_USAGE, "--for per-category makes a list for each category; --categories and "
                                    "--worst-category do not go with it.");
    return mdp_ok();
}

unsigned mdp_session_other_vectors(const mdp_session *session) {
    bool scores = mdp_session_option(session, OPTION_FOR)->present && other_of(session) == MDP_FOR_SCORES;
    return scores ? 1u << MDP_OUTPUT_SUM : 0;
}

/* ---- rank 0 ----------------------------------------------------------------------------------------------------- */

/* By one category alone; weight [n_category] is room. */
static mdp_status plan_category(const mdp_session *session, const mdp_stats *stats, const mdp_budget_options *budget,
                                int category, double *weight, mdp_plan **out) {
    mdp_plan_request request = mdp_session_plan_request(session, stats, budget);
    for (int c = 0; c < stats->n_category; c++) weight[c] = c == category ? 1.0 : 0.0;
    request.weight = weight;
    return mdp_plan_make(&request, out);
}

static mdp_status print_categories(const mdp_session *session, const mdp_stats *stats, const mdp_budget_options *budget,
                                   char **out) {
    int n = stats->n_category;
    mdp_plan **plans = NULL;
    double *weight = NULL;
    for (int c = 1; c < n; c++) {
        if (strcmp(stats->category[c], stats->category[c - 1]) == 0)
            return MDP_ERROR(MDP_USAGE, "--for per-category: files of statistics with weights keep their categories "
                                        "apart; leave the weights out.");
    }
    mdp_status status = mdp_alloc((void **)&plans, n, sizeof(void *), "plans of categories");
    if (status.code == MDP_OK) status = MDP_ALLOC(&weight, n, "weights of categories");
    for (int c = 0; c < n && status.code == MDP_OK; c++)
        status = plan_category(session, stats, budget, c, weight, &plans[c]);
    if (status.code == MDP_OK) status = mdp_category_lists_print(n, stats->category, plans, out);
    for (int c = 0; plans && c < n; c++) mdp_plan_destroy(plans[c]);
    mdp_free(plans);
    mdp_free(weight);
    return status;
}

static mdp_status print_scores(const mdp_session *session, const mdp_stats *stats, const mdp_plan *plan, char **out) {
    double *weight = NULL;
    if (stats) MDP_TRY(mdp_category_weights(mdp_session_option(session, OPTION_CATEGORIES)->text, stats, &weight));
    mdp_status status = mdp_scores_print(plan, stats, weight, out);
    mdp_free(weight);
    return status;
}

static mdp_status print(const mdp_session *session, const mdp_stats *stats, const mdp_budget_options *budget,
                        const mdp_plan *plan, char **out) {
    switch (other_of(session)) {
    case MDP_FOR_KEEP_LIST:
        return mdp_keep_list_print(plan, out);
    case MDP_FOR_SCORES:
        return print_scores(session, stats, plan, out);
    case MDP_FOR_VLLM_ASCEND:
        return mdp_expert_order_print(plan, out);
    case MDP_FOR_PRECISION:
        return mdp_precision_print(plan, out);
    default:
        return print_categories(session, stats, budget, out);
    }
}

/* What goes with the file on the command line of the one who reads it. */
static void tell_ratio(const mdp_session *session, const mdp_plan *plan) {
    const mdp_plan_layer *layer = &plan->layers[0];
    if (other_of(session) == MDP_FOR_VLLM_ASCEND)
        mdp_log_message(session->log, MDP_LEVEL_INFO,
                        "next: vllm serve MODEL --additional-config '{\"expert_list_file\": \"%s\", "
                        "\"expert_prune_ratio\": %.6g}'",
                        mdp_session_option(session, OPTION_OUT)->text,
                        (double)layer->n_dropped / (double)layer->n_expert);
}

mdp_status mdp_session_put_other_all(mdp_session *session, const mdp_stats *stats, const mdp_budget_options *budget,
                                     const mdp_plan *plan) {
    char *text = NULL;
    mdp_status status = mdp_ok();
    if (session->comm->rank == 0) {
        status = print(session, stats, budget, plan, &text);
        if (status.code == MDP_OK) status = mdp_session_put_text(session, NULL, text);
        mdp_free(text);
    }
    MDP_AGREE(session->comm, status);
    tell_ratio(session, plan);
    return mdp_ok();
}
