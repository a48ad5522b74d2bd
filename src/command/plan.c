/* plan.c - the command `plan`: statistics (or, for a criterion that needs none, a model; or, for one that runs it, a
 * model and text) -> plan.json. */
#include "command/compute.h"
#include "command/decide.h"
#include "command/feasible.h"
#include "command/masking.h"
#include "command/merging.h"
#include "command/others.h"
#include "command/outputs.h"
#include "command/statistics.h"

/* What the options say before any file is opened. Local. */
static mdp_status check_options(const mdp_session *session) {
    const mdp_criterion *criterion = mdp_criterion_find(mdp_session_option(session, OPTION_METHOD)->text);
    bool has_stats = mdp_session_option(session, OPTION_STATS)->present;
    bool has_model = mdp_session_option(session, OPTION_MODEL)->present;
    bool has_tokens = mdp_session_option(session, OPTION_TOKENS)->present;
    MDP_TRY(mdp_session_check_budget(session));
    MDP_TRY(mdp_session_check_method(session));
    MDP_TRY(mdp_session_check_other(session));
    if (criterion->needs_stats && !has_stats)
        return MDP_ERROR(MDP_USAGE, "method '%s' needs --stats FILE, which the command observe writes.",
                         criterion->name);
    if (criterion->tensors != MDP_NO_TENSORS && !has_model)
        return MDP_ERROR(MDP_USAGE, "method '%s' reads weights: it needs --model PATH.", criterion->name);
    if (criterion->own_pass && (!has_model || !has_tokens || has_stats))
        return MDP_ERROR(MDP_USAGE,
                         "method '%s' runs the model itself: it needs --model PATH and --tokens FILE, and no "
                         "--stats.",
                         criterion->name);
    if (has_tokens && !criterion->own_pass)
        return MDP_ERROR(MDP_USAGE, "--tokens has no meaning for method '%s', which plans from what observe found.",
                         criterion->name);
    if (mdp_session_option(session, OPTION_MERGE)->integer > 0 && !has_stats)
        return MDP_ERROR(MDP_USAGE, "--merge compares experts by statistics; it needs --stats FILE.");
    if (mdp_session_mask_norms(session) != MDP_NORMS_NONE && !has_stats)
        return MDP_ERROR(MDP_USAGE, "--mask weighs weights by norms of channels; it needs --stats FILE, observed with "
                                    "--channel-norms.");
    if (!has_stats && !has_model)
        return MDP_ERROR(MDP_USAGE, "method '%s' needs --stats FILE or --model PATH.", criterion->name);
    if (!has_stats && mdp_session_option(session, OPTION_PROTECT_SUPER_EXPERTS)->flag)
        return MDP_ERROR(MDP_USAGE, "--protect-super-experts finds them in statistics; give --stats FILE too.");
    if (!has_stats && !has_tokens && mdp_session_option(session, OPTION_CATEGORIES)->present)
        return MDP_ERROR(MDP_USAGE, "--categories has no meaning without --stats FILE.");
    return mdp_ok();
}

/* The norms that a mask needs, in plan.h5 beside the plan. */
static mdp_status write_norms_all(mdp_session *session, const mdp_plan *plan, const mdp_stats *stats) {
    char *path = NULL;
    bool made = false;
    if (mdp_session_mask_norms(session) == MDP_NORMS_NONE) return mdp_ok();
    mdp_status status = mdp_agree_all(session->comm, mdp_session_arrays_name(session, &path));
    if (status.code == MDP_OK) status = mdp_session_write_norms_all(session, plan, stats, path, &made);
    mdp_free(path);
    return status.code == MDP_OK && made ? mdp_session_publish_arrays_all(session) : status;
}

/* Choose and write. stats is set on rank 0 only. */
static mdp_status decide_and_write_all(mdp_session *session, const mdp_stats *stats, const mdp_budget_options *budget) {
    const char *path = mdp_session_option(session, OPTION_OUT)->text;
    mdp_plan *plan = NULL;
    char *text = NULL;
    MDP_TRY(mdp_session_decide_all(session, stats, budget, (mdp_round){0, NULL}, &plan, &text));
    mdp_session_tell_unseen(session, plan);
    if (mdp_session_option(session, OPTION_FOR)->present) {
        mdp_status status = mdp_session_put_other_all(session, stats, budget, plan);
        mdp_plan_destroy(plan);
        mdp_free(text);
        return status;
    }
    mdp_status status = write_norms_all(session, plan, stats);
    if (status.code == MDP_OK) status = mdp_session_put_text_all(session, NULL, text);
    if (status.code == MDP_OK)
        mdp_log_message(session->log, MDP_LEVEL_INFO, "%s: %lld layers, %s", path, (long long)plan->n_layer,
                        plan->uniform ? "the same number of experts in each" : "different numbers of experts");
    if (status.code == MDP_OK && mdp_plan_is_unmerged(plan))
        mdp_log_message(session->log, MDP_LEVEL_INFO, "next: moe-dist-prune merge --model MODEL --plan %s --out PLAN",
                        path);
    mdp_plan_destroy(plan);
    mdp_free(text);
    return status;
}

mdp_status mdp_command_plan_all(mdp_session *session) {
    mdp_stats *stats = NULL;
    mdp_budget_options budget = {0};
    MDP_AGREE(session->comm, check_options(session));
    MDP_TRY(mdp_session_read_keep_file_all(session));
    if (mdp_session_option(session, OPTION_MODEL)->present) MDP_TRY(mdp_session_open_model_all(session));
    if (mdp_session_option(session, OPTION_TOKENS)->present) {
        MDP_TRY(mdp_session_choose_compute_all(session, false));
        MDP_TRY(mdp_session_open_tokens_all(session, mdp_session_option(session, OPTION_TOKENS)->text,
                                            mdp_session_option(session, OPTION_CATEGORIES)->text, &session->tokens));
    }
    MDP_TRY(mdp_session_open_pretrained_all(session));
    MDP_AGREE(session->comm, mdp_session_check_mask_widths(session));
    const mdp_results results = {.with_arrays = mdp_session_mask_norms(session) != MDP_NORMS_NONE};
    MDP_TRY(mdp_session_open_outputs_all(session, &results));
    mdp_status status = mdp_ok();
    if (session->comm->rank == 0 && mdp_session_option(session, OPTION_STATS)->present) {
        status =
            mdp_session_read_stats(session, mdp_session_vectors(session) | mdp_session_other_vectors(session), &stats);
        if (status.code == MDP_OK) status = mdp_session_compare_experts(session, stats);
    }
    if (status.code == MDP_OK && session->comm->rank == 0) status = mdp_session_budget(session, stats, &budget);
    status = mdp_agree_all(session->comm, status);
    if (status.code == MDP_OK) status = decide_and_write_all(session, stats, &budget);
    mdp_stats_destroy(stats);
    return status;
}
