/* refit.c - the command `refit`: a model, a plan and text -> the plan with down projections that are fitted to what was
 * there, in plan.h5 beside it. */
#include "command/continue.h"
#include "command/made.h"
#include "command/outputs.h"
#include "command/refitting.h"
#include "command/widen.h"

static mdp_status open_all(mdp_session *session, mdp_plan **plan, mdp_refit_options *options) {
    bool wanted;
    MDP_AGREE(session->comm, mdp_session_check_one_plan(session, "refit"));
    MDP_AGREE(session->comm, mdp_session_refit_options(session, &wanted, options));
    MDP_TRY(mdp_session_open_plan_all(session, plan));
    MDP_AGREE(session->comm, mdp_session_check_refit(*plan));
    MDP_AGREE(session->comm, mdp_session_widen_plan(session, *plan));
    return mdp_session_open_outputs_all(
        session, &(mdp_results){.is_done = mdp_made_is_done, .context = "refit", .with_arrays = true});
}

static mdp_status make_all(mdp_session *session, const mdp_plan *plan, const void *context, const char *published,
                           char **text) {
    return mdp_session_refit_all(session, plan, context, published, text);
}

static mdp_status perform_all(mdp_session *session, mdp_plan **plan) {
    mdp_estimate estimate = {.phase = "refit"};
    mdp_refit_options options;
    MDP_TRY(open_all(session, plan, &options));
    if (session->finished) return mdp_ok();
    MDP_TRY(mdp_session_weigh_all(session, mdp_session_refit_memory(session, &options)));
    MDP_TRY(mdp_session_add_refit_all(session, *plan, &options, &estimate));
    return mdp_session_make_plan_all(session, *plan, &estimate, make_all, &options);
}

mdp_status mdp_command_refit_all(mdp_session *session) {
    mdp_plan *plan = NULL;
    mdp_status status = perform_all(session, &plan);
    mdp_plan_destroy(plan);
    return status;
}
