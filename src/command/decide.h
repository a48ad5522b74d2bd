/* decide.h - rank 0 decides a plan, every rank has it: the decision, its text, and where it came from. */
#ifndef MDP_DECIDE_H
#define MDP_DECIDE_H

#include "command/session.h"

/* A plan from statistics (on rank 0; NULL: of the open model by a criterion that needs none). Rank 0 chooses and
 * prints, the text is broadcast and parsed, so that every rank works from the same bytes. Collective. */
mdp_status mdp_session_decide_all(mdp_session *session, const mdp_stats *stats, const mdp_budget_options *budget,
                                  mdp_plan **plan, char **text);
/* What determines the bytes of a checkpoint, as JSON: writer, model, recipe, compute mode. plan NULL: none. New text.
 * Local. */
mdp_status mdp_session_provenance(const mdp_session *session, const mdp_plan *plan, char **out);

#endif
