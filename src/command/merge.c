/* merge.c - the command `merge`: a model and a plan that merges experts -> the plan with the merged experts, in plan.h5
 * beside it. */
#include "command/continue.h"
#include "command/made.h"
#include "command/merging.h"
#include "command/outputs.h"
#include "command/widen.h"

static mdp_status open_all(mdp_session *session, mdp_plan **plan) {
    MDP_AGREE(session->comm, mdp_session_check_one_plan(session, "merge"));
    MDP_TRY(mdp_session_open_plan_all(session, plan));
    MDP_AGREE(session->comm, mdp_session_check_merge(session, *plan));
    MDP_AGREE(session->comm, mdp_session_widen_plan(session, *plan));
    return mdp_session_open_outputs_all(
        session, &(mdp_results){.is_done = mdp_made_is_done, .context = "made", .with_arrays = true});
}

static mdp_status make_all(mdp_session *session, const mdp_plan *plan, const void *context, const char *published,
                           char **text) {
    (void)context;
    return mdp_session_merge_all(session, plan, published, NULL, text);
}

static mdp_status perform_all(mdp_session *session, mdp_plan **plan) {
    mdp_estimate estimate = {.phase = "merge"};
    MDP_TRY(open_all(session, plan));
    if (session->finished) return mdp_ok();
    MDP_TRY(mdp_session_weigh_all(session, mdp_session_merge_memory(session, *plan)));
    MDP_TRY(mdp_session_add_merge_all(session, *plan, false, &estimate));
    return mdp_session_make_plan_all(session, *plan, &estimate, make_all, NULL);
}

mdp_status mdp_command_merge_all(mdp_session *session) {
    mdp_plan *plan = NULL;
    mdp_status status = perform_all(session, &plan);
    mdp_plan_destroy(plan);
    return status;
}
