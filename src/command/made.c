/* made.c - plan.h5 in the making: see made.h. */
#include "command/made.h"
#include "command/compute.h"
#include "command/outputs.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define MAX_PLAN (INT64_C(1) << 30)

/* ---- beginning -------------------------------------------------------------------------------------------------- */

mdp_status mdp_session_check_one_plan(const mdp_session *session, const char *command) {
    int n_plan = mdp_session_option(session, OPTION_PLAN)->n_text;
    if (n_plan == 1) return mdp_ok();
    return MDP_ERROR(MDP_USAGE, "%s takes one --plan, found %d.", command, n_plan);
}

mdp_status mdp_session_open_plan_all(mdp_session *session, mdp_plan **plan) {
    MDP_TRY(mdp_session_open_model_all(session));
    MDP_TRY(mdp_session_choose_compute_all(session, true));
    if (mdp_session_option(session, OPTION_TOKENS)->present)
        MDP_TRY(mdp_session_open_tokens_all(session, mdp_session_option(session, OPTION_TOKENS)->text,
                                            mdp_session_option(session, OPTION_CATEGORIES)->text, &session->tokens));
    return mdp_session_load_plan_all(session, mdp_session_option(session, OPTION_PLAN)->text, plan, &session->replaced,
                                     NULL);
}

mdp_status mdp_made_is_done(const mdp_session *session, const void *context, const char *path, bool *done) {
    char *text = NULL;
    int64_t n_byte;
    mdp_plan *plan = NULL;
    *done = false;
    if (mdp_file_read_all(path, MAX_PLAN, &text, &n_byte).code != MDP_OK) return mdp_ok(); /* refused as it is */
    if (mdp_plan_parse(text, n_byte, path, &plan).code == MDP_OK) {
        const json_t *made = json_object_get(plan->recipe, (const char *)context);
        const char *identity = json_string_value(json_object_get(made, "identity"));
        *done = identity && strcmp(identity, session->resume->digest) == 0 &&
                mdp_plan_check_arrays(plan, 0, 1).code == MDP_OK;
    }
    mdp_plan_destroy(plan);
    mdp_free(text);
    return mdp_ok();
}

/* Rank 0: what a killed run has left half made. */
static mdp_status clear_path(const mdp_comm *comm, const char *path) {
    if (comm->rank == 0) (void)unlink(path);
    return mdp_ok();
}

/* Rank 0: what the run that is gone on with has published already goes back to where it is made. */
static mdp_status take_back(const mdp_session *session, const char *made, const char *published) {
    if (session->comm->rank != 0 || mdp_path_exists(made) || !mdp_path_exists(published)) return mdp_ok();
    if (!mdp_places_find(&session->places, published)) return mdp_ok(); /* it is somebody else's */
    if (rename(published, made) == 0) return mdp_ok();
    return MDP_ERROR(MDP_IO, "%s: cannot be moved to %s: %s.", published, made, strerror(errno));
}

/* Rank 0: arrays that cannot be opened, since a run was killed while it wrote what describes them, are made again, all
 * of them. */
static mdp_status forget_point(const mdp_session *session) {
    char *point = NULL;
    if (session->comm->rank != 0) return mdp_ok();
    MDP_TRY(mdp_resume_next_point(session->resume, &point));
    (void)unlink(point);
    mdp_free(point);
    return mdp_ok();
}

/* plan.h5 in the making: that of the run that is gone on with, or a new one. Collective. */
static mdp_status open_arrays_all(const mdp_session *session, const char *path, const char *published,
                                  const mdp_replaced *replaced, mdp_arrays **out) {
    const mdp_comm *comm = session->comm;
    *out = NULL;
    if (session->resume && session->resume->continues) {
        MDP_AGREE(comm, take_back(session, path, published));
        mdp_status status = mdp_arrays_go_on_all(comm, path, replaced->n_array, replaced->list, out);
        if (status.code != MDP_BAD_INPUT) return status;
        MDP_AGREE(comm, forget_point(session));
    }
    MDP_AGREE(comm, clear_path(comm, path));
    return mdp_arrays_create_all(comm, path, replaced->n_array, replaced->list, out);
}

mdp_status mdp_session_make_arrays_all(const mdp_session *session, const mdp_plan *plan, mdp_replaced_which which,
                                       const char *published, mdp_replaced **out) {
    mdp_replaced *replaced = NULL;
    mdp_arrays *arrays = NULL;
    char *path = NULL;
    *out = NULL;
    mdp_status status = mdp_session_make_path(session, mdp_path_name(published), &path);
    if (status.code == MDP_OK) status = mdp_replaced_list(session->model, plan, which, &replaced);
    status = mdp_agree_all(session->comm, status);
    if (status.code == MDP_OK) status = mdp_resume_prepare_all(session->comm, session->resume);
    if (status.code == MDP_OK) status = open_arrays_all(session, path, published, replaced, &arrays);
    if (status.code == MDP_OK)
        status = mdp_agree_all(session->comm, mdp_replaced_bind(replaced, arrays, session->reader));
    mdp_free(path);
    if (status.code == MDP_OK)
        *out = replaced;
    else
        mdp_replaced_destroy(replaced);
    return status;
}

mdp_status mdp_session_reopen_arrays_all(const mdp_session *session, const char *published, mdp_replaced *replaced) {
    char *path = NULL;
    mdp_arrays *arrays = NULL;
    mdp_status status = mdp_agree_all(session->comm, mdp_session_make_path(session, mdp_path_name(published), &path));
    if (status.code == MDP_OK)
        status = mdp_arrays_open_all(session->comm, path, replaced->n_array, replaced->list, &arrays);
    mdp_free(path);
    MDP_TRY(status);
    for (int64_t i = 0; i < arrays->n; i++) {
        arrays->digests[i] = replaced->arrays->digests[i];
        arrays->tensors[i].digest = arrays->digests[i].hex;
    }
    mdp_arrays_destroy(replaced->arrays);
    replaced->arrays = NULL;
    return mdp_agree_all(session->comm, mdp_replaced_bind(replaced, arrays, session->reader));
}

mdp_status mdp_made_name_arrays(const mdp_replaced *replaced, int64_t number, mdp_plan_expert *planned) {
    const mdp_replaced_expert *expert = &replaced->experts[number];
    mdp_plan_clear_arrays(planned);
    for (int part = 0; part < MDP_N_EXPERT_PART; part++) {
        int64_t array = expert->array[part];
        if (array < 0 || mdp_replaced_is_shared(expert, (mdp_expert_part)part)) continue;
        MDP_TRY(mdp_plan_add_array(planned, mdp_expert_part_names[part], replaced->list[array].name,
                                   replaced->arrays->digests[array].hex));
    }
    return mdp_ok();
}

/* ---- the command ------------------------------------------------------------------------------------------------ */

static mdp_status write_all(mdp_session *session, const mdp_plan *plan, mdp_make_fn *make, const void *context) {
    char *path = NULL, *text = NULL;
    mdp_status status = mdp_agree_all(session->comm, mdp_session_arrays_name(session, &path));
    if (status.code == MDP_OK) status = make(session, plan, context, path, &text);
    if (status.code == MDP_OK) status = mdp_session_publish_arrays_all(session);
    if (status.code == MDP_OK) status = mdp_session_put_text_all(session, NULL, text);
    mdp_free(path);
    mdp_free(text);
    return status;
}

mdp_status mdp_session_make_plan_all(mdp_session *session, const mdp_plan *plan, mdp_estimate *estimate,
                                     mdp_make_fn *make, const void *context) {
    MDP_AGREE(session->comm, mdp_session_check_memory(session, estimate));
    MDP_TRY(mdp_session_check_room_all(session, estimate->bytes_written + estimate->bytes_saved));
    MDP_TRY(mdp_session_open_lines_all(session, estimate));
    if (mdp_session_option(session, OPTION_DRY_RUN)->flag) return mdp_ok();
    MDP_TRY(write_all(session, plan, make, context));
    return mdp_session_log_memory_all(session);
}
