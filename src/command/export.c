/* export.c - the command `export`: a model (usually a model.h5) -> a Hugging Face folder or a model.h5, bit for bit, or
 * in another type of numbers. What determined the bytes of a model.h5 travels with it, so that the files equal those of
 * the direct route. */
#include "command/continue.h"
#include "command/decide.h"
#include "command/feasible.h"
#include "command/opening.h"
#include "command/write.h"

#include <string.h>

/* What becomes of layers that have different numbers of experts; refused unless --non-uniform says. */
static mdp_status check_uniform(const mdp_session *session, mdp_unequal *unequal) {
    const mdp_model *model = session->model;
    int64_t first = -1;
    *unequal = MDP_UNEQUAL_STACKED;
    for (int64_t l = 0; l < model->n_layer; l++) {
        if (!model->layers[l].is_moe) continue;
        if (first < 0) first = l;
        if (model->layers[l].moe.n_expert == model->layers[first].moe.n_expert) continue;
        *unequal = mdp_session_unequal(session);
        if (*unequal != MDP_UNEQUAL_STACKED) return mdp_ok();
        return MDP_ERROR(MDP_BAD_INPUT,
                         "%s: layers differ: it has %d experts in layer %lld and %d in layer %lld, which no loader of "
                         "Hugging Face folders accepts; use the model.h5, --non-uniform pad or per-layer-config, or "
                         "prune again with "
                         "--budget uniform.",
                         session->catalogue->path, (int)model->layers[first].moe.n_expert, (long long)first,
                         (int)model->layers[l].moe.n_expert, (long long)l);
    }
    return mdp_ok();
}

/* What is written: a model.h5 where --out has such a name, else a Hugging Face folder. */
static mdp_container container_of(const mdp_session *session) {
    const char *out = mdp_session_option(session, OPTION_OUT)->text;
    size_t n = strlen(out);
    return n > 3 && strcmp(out + n - 3, ".h5") == 0 ? MDP_NATIVE : MDP_HF_FOLDER;
}

/* What determined the bytes, as --type has changed them (NULL: it has not): the plan that made the source is not what
 * makes these. */
static mdp_status set_provenance(const mdp_session *session, const char *type, mdp_output *output) {
    if (output->provenance_text && !type) return mdp_ok();
    mdp_free(output->provenance_text);
    output->provenance_text = NULL;
    if (type) mdp_free(output->plan_text);
    if (type) output->plan_text = NULL;
    return mdp_session_provenance(session, NULL, type, &output->provenance_text);
}

static mdp_status describe(const mdp_session *session, mdp_output **out) {
    const mdp_option_value *type = mdp_session_option(session, OPTION_TYPE);
    mdp_unequal unequal = MDP_UNEQUAL_STACKED;
    bool changed = false;
    if (container_of(session) == MDP_HF_FOLDER) MDP_TRY(check_uniform(session, &unequal));
    MDP_TRY(mdp_session_check_side_files(session));
    MDP_TRY(mdp_transform_output(session->model, NULL, NULL, NULL, session->catalogue->plan_text,
                                 session->catalogue->provenance_text, unequal, out));
    if (type->present) MDP_TRY(mdp_transform_retype(session->model, (mdp_retype)type->integer, *out, &changed));
    return set_provenance(session, changed ? type->text : NULL, *out);
}

/* Is the folder the one that is to be written? */
static mdp_status is_done(const mdp_session *session, const void *context, const char *path, bool *done) {
    return mdp_hf_is_of(path, context, mdp_session_option(session, OPTION_SHARD_SIZE)->integer, done);
}

static mdp_status write_all(mdp_session *session, const mdp_output *output) {
    mdp_container container = container_of(session);
    bool is_folder = container == MDP_HF_FOLDER;
    mdp_estimate estimate = {.phase = "export"};
    MDP_TRY(mdp_session_open_outputs_all(
        session, &(mdp_results){.is_folder = is_folder, .is_done = is_folder ? is_done : NULL, .context = output}));
    if (session->finished) return mdp_ok();
    MDP_TRY(mdp_session_weigh_all(session, 0));
    MDP_TRY(mdp_session_add_out_all(container, session, output, &estimate));
    MDP_AGREE(session->comm, mdp_session_check_memory(session, &estimate));
    MDP_TRY(mdp_session_check_room_all(session, estimate.bytes_written));
    MDP_TRY(mdp_session_open_lines_all(session, &estimate));
    if (mdp_session_option(session, OPTION_DRY_RUN)->flag) return mdp_ok();
    MDP_TRY(mdp_session_write_out_all(container, session, output));
    return mdp_session_log_memory_all(session);
}

mdp_status mdp_command_export_all(mdp_session *session) {
    mdp_output *output = NULL;
    MDP_TRY(mdp_session_open_model_all(session));
    mdp_status status = mdp_agree_all(session->comm, describe(session, &output));
    if (status.code == MDP_OK && output) status = write_all(session, output);
    mdp_output_destroy(output);
    return status;
}
