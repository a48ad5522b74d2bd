/* subsets.h - what sets of experts lose (method naee): options, forecast and the pass. */
#ifndef MDP_COMMAND_SUBSETS_H
#define MDP_COMMAND_SUBSETS_H

#include "command/opening.h"
#include "mdp/plan.h"

/* What the options ask for; run: for the sizes of the budget (NULL: of --subsets), where the method needs them. The
 * model is open. Local. MDP_USAGE. */
mdp_status mdp_session_subset_request(const mdp_session *session, const mdp_budget_options *budget,
                                      mdp_subset_request *out);
/* The same, checked before any file is opened. Local. MDP_USAGE. */
mdp_status mdp_session_check_subset_options(const mdp_session *session);
/* Draw the tokens that it runs on; checks the request. Nothing is asked for: nothing is done. Collective. */
mdp_status mdp_session_open_subsets_all(mdp_session *session, const mdp_subset_request *request);
/* Bytes that a rank will hold for it beside the engine. Local. */
int64_t mdp_session_subsets_memory(const mdp_session *session, const mdp_subset_request *request);
/* Add its pass to what is foretold. Collective. */
mdp_status mdp_session_add_subsets_all(mdp_session *session, const mdp_subset_request *request, mdp_estimate *estimate);
/* Measure. Collective. */
mdp_status mdp_session_subsets_all(mdp_session *session, const mdp_subset_request *request, mdp_stats *stats);

#endif
