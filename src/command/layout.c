/* layout.c - ranks that need not exist: see layout.h. */
#include "command/layout.h"

mdp_status mdp_session_lay_out(mdp_session *session) {
    const mdp_option_value *ranks = mdp_session_option(session, OPTION_RANKS);
    const mdp_option_value *per_node = mdp_session_option(session, OPTION_RANKS_PER_NODE);
    session->layout = session->comm;
    if (!ranks->present && !per_node->present) return mdp_ok();
    if (!mdp_session_option(session, OPTION_DRY_RUN)->flag)
        return MDP_ERROR(MDP_USAGE,
                         "--%s asks about ranks that need not exist, so it goes with --dry-run only; mpirun -n "
                         "gives a run its ranks.",
                         ranks->present ? "ranks" : "ranks-per-node");
    int size = ranks->present ? (int)ranks->integer : session->comm->size;
    MDP_TRY(mdp_layout_new(size, per_node->present ? (int)per_node->integer : size, &session->asked));
    session->layout = session->asked;
    return mdp_ok();
}

void mdp_session_free_layout(mdp_session *session) {
    mdp_layout_destroy(session->asked);
}
