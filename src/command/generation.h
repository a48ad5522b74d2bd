/* generation.h - whose results are in the folder --out: the record moe-dist-prune.json of run and apply. Rank 0. */
#ifndef MDP_COMMAND_GENERATION_H
#define MDP_COMMAND_GENERATION_H

#include "command/session.h"

/* What the record says of the command's own generation. */
typedef struct mdp_generation {
    bool begun;    /* it is on the record */
    bool finished; /* and is complete */
} mdp_generation;

/* Look up the generation of this command (session->resume->digest). */
mdp_generation mdp_generation_find(const mdp_session *session);
/* The results of other commands that this one will do away with, when its own are known (session->members): with
 * --overwrite, what run will not write itself. */
mdp_status mdp_generation_list_stale(const mdp_session *session, mdp_names *stale);
/* Before the first result appears: do away with all that will be replaced and with the stale ones, and put this
 * generation, with all that it will write, on the record. Not when a run goes on that has done so. */
mdp_status mdp_generation_begin(const mdp_session *session);
/* It is complete. */
mdp_status mdp_generation_finish(const mdp_session *session);

#endif
