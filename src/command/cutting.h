/* cutting.h - --neurons and its kin: what they ask for, and what a plan that cuts will be, for a forecast. */
#ifndef MDP_CUTTING_H
#define MDP_CUTTING_H

#include "command/session.h"

/* *wanted: neurons are to be cut. Local. MDP_USAGE. */
mdp_status mdp_session_cut_request(const mdp_session *session, bool *wanted, mdp_cut_request *out);
/* Neurons that experts of the open model are to keep; 0: all. Local. MDP_USAGE: there are not so many, or none stays,
 * or no checkpoint of the family could have experts of that width. */
mdp_status mdp_session_cut_width(const mdp_session *session, int64_t *width);
/* For a forecast: let a plan cut the experts that it keeps, to their first neurons, and name arrays that are nowhere
 * (mdp_replaced_stand_in). Local. */
mdp_status mdp_session_pretend_cut(const mdp_session *session, mdp_plan *plan);

#endif
