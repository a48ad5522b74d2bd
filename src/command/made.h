/* made.h - plan.h5 in the making, for the commands that make what experts of a plan are to be. */
#ifndef MDP_MADE_H
#define MDP_MADE_H

#include "command/opening.h"

/* The command takes one plan. Local. MDP_USAGE. */
mdp_status mdp_session_check_one_plan(const mdp_session *session, const char *command);
/* Open model, arithmetic, text where it is given, and the plan with what is made of it. Collective. */
mdp_status mdp_session_open_plan_all(mdp_session *session, mdp_plan **plan);
/* mdp_results: is the plan at `path` the one that this very command makes? context: the key of the recipe under which
 * it says so. */
mdp_status mdp_made_is_done(const mdp_session *session, const void *context, const char *path, bool *done);
/* List what of a plan's experts is to be made, and let it lie in plan.h5 in the making: that of the run that is gone on
 * with, or a new one, to be published as `published`. Collective. */
mdp_status mdp_session_make_arrays_all(const mdp_session *session, const mdp_plan *plan, mdp_replaced_which which,
                                       const char *published, mdp_replaced **out);
/* They are finished (mdp_arrays_finish_all): read them where they are, by the length that they have now. Collective. */
mdp_status mdp_session_reopen_arrays_all(const mdp_session *session, const char *published, mdp_replaced *replaced);
/* What a command that makes a plan with arrays does: *text (new) is the plan, and its arrays are made to be published
 * as `published`. Collective. */
typedef mdp_status mdp_make_fn(mdp_session *session, const mdp_plan *plan, const void *context, const char *published,
                               char **text);
/* When everything is open and foretold: say so, check memory and room, and unless it is a dry run make and publish the
 * plan and its arrays. Collective. */
mdp_status mdp_session_make_plan_all(mdp_session *session, const mdp_plan *plan, mdp_estimate *estimate,
                                     mdp_make_fn *make, const void *context);
/* Let the plan say that an expert's parts are in plan.h5. Local. */
mdp_status mdp_made_name_arrays(const mdp_replaced *replaced, int64_t number, mdp_plan_expert *planned);

#endif
