/* widen.c - weights in FP8 and MXFP4 that are to be bf16: see widen.h.
 *
 * The model is then read as the result will have it, for every stream of every pass: what is measured is what is
 * written, and the original is measured in bf16 too. */
#include "command/widen.h"

bool mdp_session_widens(const mdp_session *session) {
    return mdp_session_option(session, OPTION_CHANGED_TYPE)->integer == CHANGED_BF16;
}

/* Experts that are cut are in shapes of their own, which codes are not widened in. */
static mdp_status check_cut(bool cuts) {
    if (!cuts) return mdp_ok();
    return MDP_ERROR(MDP_USAGE, "--changed-type does not go with cut experts; export --type bf16 first, and cut those "
                                "of the result.");
}

static mdp_status widen(mdp_session *session) {
    if (session->widened) return mdp_ok();
    MDP_TRY(mdp_transform_check_widen(session->model));
    mdp_model_round_codes(session->model);
    session->widened = true;
    return mdp_ok();
}

mdp_status mdp_session_widen_model(mdp_session *session, bool makes) {
    if (!mdp_session_widens(session)) return mdp_ok();
    MDP_TRY(check_cut(mdp_session_option(session, OPTION_NEURONS)->integer > 0));
    if (!makes)
        return MDP_ERROR(MDP_USAGE, "--changed-type has no meaning without --merge or --refit: no expert is made; "
                                    "export --type bf16 writes a whole checkpoint so.");
    return widen(session);
}

mdp_status mdp_session_widen_plan(mdp_session *session, mdp_plan *plan) {
    if (!mdp_session_widens(session) || plan->widened) return mdp_ok();
    MDP_TRY(check_cut(mdp_plan_width(plan) > 0));
    if (mdp_plan_has_arrays(plan))
        return MDP_ERROR(MDP_USAGE,
                         "%s: its experts were made in the type of the checkpoint; make them again with --changed-type "
                         "bf16.",
                         plan->path ? plan->path : "the plan");
    plan->widened = true;
    return widen(session);
}

mdp_status mdp_session_follow_type(mdp_session *session, const mdp_plan *plan) {
    session->made_as_stored = session->made_as_stored || (mdp_plan_has_arrays(plan) && !plan->widened);
    if (plan->widened && !session->widened && session->comm->rank == 0)
        mdp_log_message(session->log, MDP_LEVEL_INFO, "%s: weights in FP8 and MXFP4 are taken in bf16, in all streams",
                        plan->path ? plan->path : "the plan");
    if (plan->widened) MDP_TRY(widen(session));
    if (!session->widened || !session->made_as_stored) return mdp_ok();
    return MDP_ERROR(MDP_USAGE,
                     "%s: of these plans some have experts in bf16 (--changed-type) and some in the type of the "
                     "checkpoint; the model cannot be both, so evaluate them one by one.",
                     plan->path ? plan->path : "the plan");
}
