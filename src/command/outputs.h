/* outputs.h - what a command reads and writes, checked and owned before it begins, and how its results appear
 * (doc/outputs.md). */
#ifndef MDP_COMMAND_OUTPUTS_H
#define MDP_COMMAND_OUTPUTS_H

#include "command/session.h"

/* What a command writes. */
typedef struct mdp_results {
    const char *const *members; /* names in the folder --out, NULL at the end; NULL: --out is the one result itself */
    bool is_folder;             /* that is a folder */
    bool with_arrays;           /* it is a plan, and plan.h5 stands beside it */
    bool with_page;             /* a page of the same stem stands beside it */
    /* Is the complete file or folder at `path` what this very command writes? Rank 0. NULL: it cannot go on. */
    mdp_status (*is_done)(const mdp_session *session, const void *context, const char *path, bool *done);
    const void *context; /* of that */
} mdp_results;

/* When all inputs are open: list and check what the command reads and writes, own the output (not with --dry-run), and
 * find what an earlier run has left. session->finished is set when nothing is left to do: the command then returns.
 * Collective. Errors: MDP_CANNOT_CREATE, and those of mdp_session_look_back. */
mdp_status mdp_session_open_outputs_all(mdp_session *session, const mdp_results *results);
/* Are n_byte bytes free where the results will be? Collective. */
mdp_status mdp_session_check_room_all(const mdp_session *session, int64_t n_byte);
/* Start run.log in the folder --out, and say in the state folder whose results these are. Collective. */
mdp_status mdp_session_begin_all(mdp_session *session);

/* Where a result is made. `name`: in the folder --out; NULL: --out itself. New text. Local. */
mdp_status mdp_session_make_path(const mdp_session *session, const char *name, char **out);
/* Give it its final name. Rank 0. */
mdp_status mdp_session_publish(mdp_session *session, const char *name);
/* The same on all ranks. Collective. */
mdp_status mdp_session_publish_all(mdp_session *session, const char *name);
/* Write a text by rank 0 and publish it. Rank 0. */
mdp_status mdp_session_put_text(mdp_session *session, const char *name, const char *text);
/* The same on all ranks. Collective. */
mdp_status mdp_session_put_text_all(mdp_session *session, const char *name, const char *text);
/* plan.h5 beside the plan --out: its name (new text), and giving it to what was made under that. Collective. */
mdp_status mdp_session_arrays_name(const mdp_session *session, char **out);
mdp_status mdp_session_publish_arrays_all(mdp_session *session);
/* The same for a text beside --out, whose name has this ending. Rank 0. */
mdp_status mdp_session_put_beside(mdp_session *session, const char *ending, const char *text);
/* The page beside --out: a name that ends in .html instead of .json. Rank 0. */
mdp_status mdp_session_put_page(mdp_session *session, const char *text);
/* Where the file of --dump is made; NULL: not asked for. New text. Local. */
mdp_status mdp_session_dump_path(const mdp_session *session, char **out);
/* Give it its final name, if one was made. Collective. */
mdp_status mdp_session_publish_dump_all(mdp_session *session);

/* The command has succeeded: the state folders go. Collective. */
mdp_status mdp_session_end_all(mdp_session *session);
/* It has ended, in whatever way: give back what is still owned, and leave nothing of a failed command but what is worth
 * keeping. Local. */
void mdp_session_close_outputs(mdp_session *session, bool failed);

#endif
