/* write.h - a described result to files: model.h5, a Hugging Face folder, or both, with progress. */
#ifndef MDP_WRITE_H
#define MDP_WRITE_H

#include "command/opening.h"

/* Experts will be numbered anew: refuse what names them by number and cannot follow. Collective. MDP_BAD_INPUT. */
mdp_status mdp_session_check_names_all(const mdp_session *session);
/* Leave the layers of --layers in a result, all where it is not given. MDP_USAGE when they are not layers. Local. */
mdp_status mdp_session_excerpt(const mdp_session *session, mdp_output *output);
/* Add what writing `output`, which `plan` makes, takes in each container that --format asks for, and fit the buffers of
 * copying into --memory. Collective. Errors: MDP_USAGE when that cannot be done, with the memory that would do. */
mdp_status mdp_session_add_writes_all(mdp_session *session, const mdp_plan *plan, const mdp_output *output,
                                      mdp_estimate *estimate);
/* The same where --out itself is the result. Collective. */
mdp_status mdp_session_add_out_all(mdp_container container, mdp_session *session, const mdp_output *output,
                                   mdp_estimate *estimate);
/* Write `output` as --out. Collective. */
mdp_status mdp_session_write_out_all(mdp_container container, mdp_session *session, const mdp_output *output);
/* Write `output`, which `plan` makes, below --out in the containers that --format asks for: model.h5, hf. The latter
 * as --non-uniform says where layers differ. Collective. */
mdp_status mdp_session_write_all(mdp_session *session, const mdp_plan *plan, const mdp_output *output);

#endif
