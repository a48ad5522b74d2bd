/* statistics.h - the files of --stats as one: read, joined by their weights, and of the open model. */
#ifndef MDP_COMMAND_STATISTICS_H
#define MDP_COMMAND_STATISTICS_H

#include "command/session.h"

/* What the files of --stats say together, new, with these vectors (a bit for each mdp_vector_id). Local: rank 0.
 * MDP_USAGE: a weight that is none; MDP_BAD_INPUT: not such files, or of another model than the open one. */
mdp_status mdp_session_read_stats(const mdp_session *session, unsigned vectors, mdp_stats **out);

#endif
