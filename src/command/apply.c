/* apply.c - the command `apply`: a model and a plan -> the pruned checkpoint (model.h5, hf). */
#include "command/continue.h"
#include "command/decide.h"
#include "command/feasible.h"
#include "command/mtp.h"
#include "command/opening.h"
#include "command/write.h"

static mdp_status check_options(const mdp_session *session) {
    int n_plan = mdp_session_option(session, OPTION_PLAN)->n_text;
    if (n_plan == 1) return mdp_ok();
    return MDP_ERROR(MDP_USAGE, "apply takes one --plan, found %d; eval compares several.", n_plan);
}

/* Will experts have other numbers? */
static bool renumbers(const mdp_plan *plan) {
    bool dropped = false;
    for (int64_t i = 0; i < plan->n_layer; i++) dropped = dropped || plan->layers[i].n_dropped > 0;
    return dropped;
}

/* Describe the result on every rank. Local. */
static mdp_status describe(const mdp_session *session, const mdp_plan *plan, const char *text, mdp_output **out) {
    char *provenance = NULL;
    MDP_TRY(mdp_session_check_uniform(session, plan));
    MDP_TRY(mdp_session_check_side_files(session));
    MDP_TRY(mdp_session_provenance(session, plan, NULL, &provenance));
    mdp_extra extra;
    mdp_status status =
        mdp_transform_output(session->model, plan, session->replaced, mdp_session_extra(session, &extra), text,
                             provenance, MDP_UNEQUAL_STACKED, out);
    mdp_free(provenance);
    if (status.code == MDP_OK) status = mdp_session_excerpt(session, *out);
    return status;
}

static mdp_status open_outputs_all(mdp_session *session) {
    const char *names[3] = {NULL};
    int n = 0;
    if (mdp_session_wants_native(session)) names[n++] = "model.h5";
    if (mdp_session_wants_hf(session)) names[n++] = "hf";
    return mdp_session_open_outputs_all(session, &(mdp_results){.members = names});
}

static mdp_status write_result_all(mdp_session *session, const mdp_plan *plan, const mdp_output *output) {
    mdp_estimate estimate = {.phase = "apply"};
    MDP_TRY(open_outputs_all(session));
    if (session->finished) return mdp_ok();
    MDP_TRY(mdp_session_weigh_all(session, 0));
    MDP_TRY(mdp_session_add_writes_all(session, plan, output, &estimate));
    MDP_AGREE(session->comm, mdp_session_check_memory(session, &estimate));
    MDP_TRY(mdp_session_check_room_all(session, estimate.bytes_written));
    if (!mdp_session_option(session, OPTION_DRY_RUN)->flag) MDP_TRY(mdp_session_begin_all(session));
    MDP_TRY(mdp_session_open_lines_all(session, &estimate));
    if (mdp_session_option(session, OPTION_DRY_RUN)->flag) return mdp_ok();
    MDP_TRY(mdp_session_write_all(session, plan, output));
    return mdp_session_log_memory_all(session);
}

mdp_status mdp_command_apply_all(mdp_session *session) {
    mdp_plan *plan = NULL;
    mdp_output *output = NULL;
    char *text = NULL;
    MDP_AGREE(session->comm, check_options(session));
    MDP_TRY(mdp_session_open_model_all(session));
    MDP_TRY(mdp_session_open_mtp_all(session));
    MDP_TRY(mdp_session_load_plan_all(session, mdp_session_option(session, OPTION_PLAN)->text, &plan,
                                      &session->replaced, &text));
    mdp_status status = renumbers(plan) ? mdp_session_check_names_all(session) : mdp_ok();
    if (status.code == MDP_OK)
        status = mdp_session_plan_mtp_all(session, plan, mdp_session_option(session, OPTION_DRY_RUN)->flag);
    if (status.code == MDP_OK) status = mdp_agree_all(session->comm, describe(session, plan, text, &output));
    if (status.code == MDP_OK && output) status = write_result_all(session, plan, output);
    mdp_output_destroy(output);
    mdp_plan_destroy(plan);
    mdp_free(text);
    return status;
}
