/* refit.c - the command `refit`: a model, a plan and text -> the plan with down projections that are fitted to what was
 * there, in plan.h5 beside it. */
#include "command/compute.h"
#include "command/continue.h"
#include "command/outputs.h"
#include "command/refitting.h"

#include <string.h>

#define MAX_PLAN (INT64_C(1) << 30)

/* Is this the plan that is to be written? */
static mdp_status is_done(const mdp_session *session, const void *context, const char *path, bool *done) {
    char *text = NULL;
    int64_t n_byte;
    mdp_plan *plan = NULL;
    (void)context;
    *done = false;
    if (mdp_file_read_all(path, MAX_PLAN, &text, &n_byte).code != MDP_OK) return mdp_ok(); /* refused as it is */
    if (mdp_plan_parse(text, n_byte, path, &plan).code == MDP_OK) {
        const json_t *refit = json_object_get(plan->recipe, "refit");
        const char *identity = json_string_value(json_object_get(refit, "identity"));
        *done = identity && strcmp(identity, session->resume->digest) == 0 &&
                mdp_plan_check_arrays(plan, 0, 1).code == MDP_OK;
    }
    mdp_plan_destroy(plan);
    mdp_free(text);
    return mdp_ok();
}

static mdp_status check_plans(const mdp_session *session) {
    int n_plan = mdp_session_option(session, OPTION_PLAN)->n_text;
    if (n_plan == 1) return mdp_ok();
    return MDP_ERROR(MDP_USAGE, "refit takes one --plan, found %d.", n_plan);
}

static mdp_status open_all(mdp_session *session, mdp_plan **plan, mdp_refit_options *options) {
    bool wanted;
    MDP_AGREE(session->comm, check_plans(session));
    MDP_AGREE(session->comm, mdp_session_refit_options(session, &wanted, options));
    MDP_TRY(mdp_session_open_model_all(session));
    MDP_TRY(mdp_session_choose_compute_all(session, true));
    MDP_TRY(mdp_session_open_tokens_all(session, mdp_session_option(session, OPTION_TOKENS)->text,
                                        mdp_session_option(session, OPTION_CATEGORIES)->text, &session->tokens));
    MDP_TRY(mdp_session_load_plan_all(session, mdp_session_option(session, OPTION_PLAN)->text, plan, &session->replaced,
                                      NULL));
    MDP_AGREE(session->comm, mdp_session_check_refit(*plan));
    return mdp_session_open_outputs_all(session, &(mdp_results){.is_done = is_done, .with_arrays = true});
}

static mdp_status write_all(mdp_session *session, const mdp_plan *plan, const mdp_refit_options *options) {
    char *path = NULL, *text = NULL;
    mdp_status status = mdp_agree_all(session->comm, mdp_session_arrays_name(session, &path));
    if (status.code == MDP_OK) status = mdp_session_refit_all(session, plan, options, path, &text);
    if (status.code == MDP_OK) status = mdp_session_publish_arrays_all(session);
    if (status.code == MDP_OK) status = mdp_session_put_text_all(session, NULL, text);
    mdp_free(path);
    mdp_free(text);
    return status;
}

static mdp_status perform_all(mdp_session *session, mdp_plan **plan) {
    mdp_estimate estimate = {.phase = "refit"};
    mdp_refit_options options;
    MDP_TRY(open_all(session, plan, &options));
    if (session->finished) return mdp_ok();
    MDP_TRY(mdp_session_weigh_all(session, mdp_session_refit_memory(session, &options)));
    MDP_TRY(mdp_session_add_refit_all(session, *plan, &options, &estimate));
    MDP_AGREE(session->comm, mdp_session_check_memory(session, &estimate));
    MDP_TRY(mdp_session_check_room_all(session, estimate.bytes_written + estimate.bytes_saved));
    MDP_TRY(mdp_session_open_lines_all(session, &estimate));
    if (mdp_session_option(session, OPTION_DRY_RUN)->flag) return mdp_ok();
    MDP_TRY(write_all(session, *plan, &options));
    return mdp_session_log_memory_all(session);
}

mdp_status mdp_command_refit_all(mdp_session *session) {
    mdp_plan *plan = NULL;
    mdp_status status = perform_all(session, &plan);
    mdp_plan_destroy(plan);
    return status;
}
