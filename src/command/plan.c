/* plan.c - the command `plan`: statistics (or, for a criterion that needs none, a model) -> plan.json. */
#include "command/decide.h"
#include "command/feasible.h"

#include <string.h>

/* What the options say before any file is opened. Local. */
static mdp_status check_options(const mdp_session *session) {
    const mdp_criterion *criterion = mdp_criterion_find(mdp_session_option(session, OPTION_METHOD)->text);
    bool has_stats = mdp_session_option(session, OPTION_STATS)->present;
    MDP_TRY(mdp_session_check_budget(session));
    if (criterion->needs_stats && !has_stats)
        return MDP_ERROR(MDP_USAGE, "method '%s' needs --stats FILE, which the command observe writes.",
                         criterion->name);
    if (!has_stats && !mdp_session_option(session, OPTION_MODEL)->present)
        return MDP_ERROR(MDP_USAGE, "method '%s' needs --stats FILE or --model PATH.", criterion->name);
    return mdp_ok();
}

/* Rank 0: statistics and the census of their layers. */
static mdp_status read_stats(const mdp_session *session, mdp_stats **stats, mdp_census *census) {
    MDP_TRY(mdp_stats_read(mdp_session_option(session, OPTION_STATS)->text, stats));
    *census = mdp_census_of_stats(*stats);
    return mdp_ok();
}

static mdp_status check_same_model(const mdp_session *session, const mdp_stats *stats) {
    if (session->comm->rank != 0 || !stats || !session->catalogue) return mdp_ok();
    if (strcmp(stats->model_fingerprint, session->catalogue->fingerprint) == 0) return mdp_ok();
    return MDP_ERROR(MDP_BAD_INPUT,
                     "%s: these statistics are of another model (fingerprint %s), %s has fingerprint %s; observe this "
                     "model.",
                     mdp_session_option(session, OPTION_STATS)->text, stats->model_fingerprint,
                     session->catalogue->path, session->catalogue->fingerprint);
}

/* Choose and write. stats is set on rank 0 only. */
static mdp_status decide_and_write_all(mdp_session *session, const mdp_stats *stats, const mdp_budget_options *budget) {
    const char *path = mdp_session_option(session, OPTION_OUT)->text;
    mdp_plan *plan = NULL;
    char *text = NULL;
    MDP_TRY(mdp_session_check_output_all(session, path, 0));
    MDP_TRY(mdp_session_decide_all(session, stats, budget, &plan, &text));
    mdp_status status = mdp_session_write_text_all(session, path, text);
    if (status.code == MDP_OK)
        mdp_log_message(session->log, MDP_LEVEL_INFO, "%s: %lld layers, %s", path, (long long)plan->n_layer,
                        plan->uniform ? "the same number of experts in each" : "different numbers of experts");
    mdp_plan_destroy(plan);
    mdp_free(text);
    return status;
}

mdp_status mdp_command_plan_all(mdp_session *session) {
    mdp_stats *stats = NULL;
    mdp_census census = {0};
    mdp_budget_options budget = {0};
    MDP_AGREE(session->comm, check_options(session));
    if (mdp_session_option(session, OPTION_MODEL)->present) {
        MDP_TRY(mdp_session_open_model_all(session));
        census = mdp_census_of_model(session->model);
    }
    mdp_status status = mdp_ok();
    if (session->comm->rank == 0 && mdp_session_option(session, OPTION_STATS)->present)
        status = read_stats(session, &stats, &census);
    if (status.code == MDP_OK) status = check_same_model(session, stats);
    if (status.code == MDP_OK && session->comm->rank == 0) status = mdp_session_budget(session, &census, &budget);
    status = mdp_agree_all(session->comm, status);
    if (status.code == MDP_OK) status = decide_and_write_all(session, stats, &budget);
    mdp_stats_destroy(stats);
    return status;
}
