/* session.h - opening what a command needs: log, threads, model, tokens, plans, and paths below --out. Everything is
 * closed by mdp_session_close. */
#ifndef MDP_SESSION_H
#define MDP_SESSION_H

#include "command/command.h"

/* Log, faults on request, BLAS and threads, from the options. Collective on session->comm. */
mdp_status mdp_session_start_all(mdp_session *session);
/* Release everything; after a failure also remove what this run made and is not worth keeping
 * (mdp_session_close_outputs). */
void mdp_session_close(mdp_session *session, bool failed);

/* --model: catalogue with fingerprint, model, reader. Collective. */
mdp_status mdp_session_open_model_all(mdp_session *session);
/* --pretrained, when it is given: catalogue with fingerprint. Collective. */
mdp_status mdp_session_open_pretrained_all(mdp_session *session);
/* A tokens file for the open model; `categories` NULL: all. Collective. */
mdp_status mdp_session_open_tokens_all(mdp_session *session, const char *path, const char *categories,
                                       mdp_tokens **out);
/* --tasks, when it is given, for the open model. Collective. */
mdp_status mdp_session_open_tasks_all(mdp_session *session);
/* A small text file, read by rank 0, new text on every rank. Collective on `comm`. */
mdp_status mdp_session_read_text_all(const mdp_comm *comm, const char *path, char **text, int64_t *n_byte);
/* A plan file, parsed and checked against the open model. *text (new) may be NULL: not wanted. Collective. */
mdp_status mdp_session_load_plan_all(mdp_session *session, const char *path, mdp_plan **out, mdp_replaced **replaced,
                                     char **text);

/* Options that have a use only with --`with` are not given, or say what is so anyway. Local. MDP_USAGE. */
mdp_status mdp_session_check_unused(const mdp_session *session, const mdp_option_id *only, size_t n, const char *with);
/* Options of the forward pass. */
mdp_forward_options mdp_session_forward_options(const mdp_session *session);
/* name below the folder --out, new text. */
mdp_status mdp_session_path(const mdp_session *session, const char *name, char **out);
/* What --profile asks for, when all passes are done. Collective. */
mdp_status mdp_session_write_profiles_all(mdp_session *session);
/* Largest and smallest peak memory of a rank, bytes. Collective. */
mdp_status mdp_session_memory_all(const mdp_session *session, int64_t *largest, int64_t *smallest);
/* Say the peak memory on stderr. Collective. */
mdp_status mdp_session_log_memory_all(const mdp_session *session);

#endif
