/* others.h - the option --for: not a plan, but what other software reads. */
#ifndef MDP_COMMAND_OTHERS_H
#define MDP_COMMAND_OTHERS_H

#include "command/session.h"

/* Does --for go with the method and the other options? Local. MDP_USAGE. */
mdp_status mdp_session_check_other(const mdp_session *session);
/* Bits of the vectors that it wants of statistics beside those of the decision. Local. */
unsigned mdp_session_other_vectors(const mdp_session *session);
/* Write what --for asks for in place of the plan, which was made of these statistics (rank 0; NULL: none). Collective.
 */
mdp_status mdp_session_put_other_all(mdp_session *session, const mdp_stats *stats, const mdp_budget_options *budget,
                                     const mdp_plan *plan);

#endif
