/* recover.c - the command `recover`: a model, a plan and text -> the plan with experts and routers that are trained to
 * give what was there, in plan.h5 beside it. */
#include "command/continue.h"
#include "command/made.h"
#include "command/merging.h"
#include "command/outputs.h"
#include "command/recovering.h"

static mdp_status open_all(mdp_session *session, mdp_plan **plan, mdp_recovery *recovery) {
    MDP_AGREE(session->comm, mdp_session_check_one_plan(session, "recover"));
    MDP_AGREE(session->comm, mdp_session_recovery(session, recovery));
    MDP_TRY(mdp_session_open_plan_all(session, plan));
    MDP_AGREE(session->comm, mdp_session_check_recovery(session, *plan, recovery));
    return mdp_session_open_outputs_all(
        session, &(mdp_results){.is_done = mdp_made_is_done, .context = "recover", .with_arrays = true});
}

static mdp_status make_all(mdp_session *session, const mdp_plan *plan, const void *context, const char *published,
                           char **text) {
    return mdp_session_recover_all(session, plan, context, published, text);
}

static mdp_status perform_all(mdp_session *session, mdp_plan **plan) {
    mdp_estimate estimate = {.phase = "recover"};
    mdp_recovery recovery;
    MDP_TRY(open_all(session, plan, &recovery));
    if (session->finished) return mdp_ok();
    MDP_TRY(mdp_session_weigh_all(session, mdp_session_refit_memory(session, &recovery.refit)));
    MDP_TRY(mdp_session_add_refit_all(session, *plan, &recovery.refit, &estimate));
    return mdp_session_make_plan_all(session, *plan, &estimate, make_all, &recovery);
}

mdp_status mdp_command_recover_all(mdp_session *session) {
    mdp_plan *plan = NULL;
    mdp_status status = perform_all(session, &plan);
    mdp_plan_destroy(plan);
    return status;
}
