/* write.c - a described result to files: see write.h. */
#include "command/write.h"
#include "command/continue.h"
#include "command/feasible.h"
#include "command/mtp.h"

#define COPY_BYTE (16ll << 20)      /* memory for copying, per rank */
#define LEAST_COPY_BYTE (1ll << 20) /* what is taken where --memory leaves little */

/* What MPI and HDF5 come to hold once they work (measured, doc/engine.md). */
#define LIBRARY_BYTE (1ll << 20)
#define STEP_BYTE 1000000ll

/* Steps of the progress line: megabytes begun. */
static int64_t count_steps(int64_t n_byte) {
    return (n_byte + STEP_BYTE - 1) / STEP_BYTE;
}

static void show(void *context, int64_t n_byte_done, int64_t n_byte_total) {
    int64_t n_step = n_byte_done == n_byte_total ? count_steps(n_byte_total) : n_byte_done / STEP_BYTE;
    mdp_progress_update(context, n_step, (double)n_byte_done);
}

static const char *name_of(mdp_container container) {
    return container == MDP_NATIVE ? "write model.h5" : "write hf";
}

static mdp_write_options options_of(const mdp_session *session) {
    return (mdp_write_options){.shard_byte = mdp_session_option(session, OPTION_SHARD_SIZE)->integer,
                               .buffer_byte = session->copy_byte > 0 ? session->copy_byte : COPY_BYTE,
                               .resume = session->resume};
}

/* `path`: what the result will be called; `made`: where it is made. */
static mdp_status copy_all(mdp_container container, const mdp_session *session, const mdp_output *output,
                           const char *path, const char *made) {
    mdp_progress *progress = NULL;
    mdp_profile profile;
    mdp_profile_begin(&profile);
    mdp_status status = mdp_agree_all(session->comm, mdp_progress_new(&progress, session->log, "write", "MB",
                                                                      count_steps(output->tensor_byte), "bytes"));
    mdp_write_options options = options_of(session);
    options.name = path;
    options.written = show;
    options.context = progress;
    options.profile = session->profiles ? &profile : NULL;
    if (status.code == MDP_OK && container == MDP_NATIVE)
        status = mdp_write_native_all(session->comm, session->reader, output, made, &options);
    else if (status.code == MDP_OK)
        status = mdp_write_hf_all(session->comm, session->reader, output, made, &options);
    mdp_progress_destroy(progress);
    if (status.code == MDP_OK && session->profiles)
        status = mdp_profile_tell_all(session->comm, &profile, name_of(container), session->log, session->profiles);
    return status;
}

/* The file that says that a checkpoint was written, among the resume points. */
static mdp_status name_mark(const mdp_session *session, const char *path, char **out) {
    char *name = NULL;
    MDP_TRY(mdp_format(&name, "write-%s.done", mdp_path_name(path)));
    mdp_status status = mdp_resume_path(session->resume, name, out);
    mdp_free(name);
    return status;
}

static mdp_status is_done_all(const mdp_session *session, const char *path, const char *mark, bool *out) {
    int64_t done =
        session->comm->rank == 0 && session->resume->continues && mdp_path_exists(mark) && mdp_path_exists(path);
    MDP_TRY(mdp_bcast_all(session->comm, &done, (int64_t)sizeof done, 0));
    *out = done != 0;
    return mdp_ok();
}

static mdp_status mark_all(const mdp_session *session, const char *mark, double start) {
    bool worth = session->resume->saved;
    if (!worth) MDP_TRY(mdp_watch_worth_all(session->comm, &session->resume->watch, start, &worth));
    if (!worth) return mdp_ok();
    MDP_TRY(mdp_resume_prepare_all(session->comm, session->resume));
    session->resume->saved = true;
    return mdp_agree_all(session->comm, session->comm->rank == 0 ? mdp_file_write_all(mark, "", 0) : mdp_ok());
}

/* Make a checkpoint and give it its name, unless an earlier run of the command has. `name`: in --out, or NULL. */
static mdp_status make_all(mdp_container container, mdp_session *session, const mdp_output *output, const char *name,
                           const char *path) {
    char *made = NULL;
    MDP_AGREE(session->comm, mdp_session_make_path(session, name, &made));
    mdp_status status = copy_all(container, session, output, path, made);
    mdp_free(made);
    return status.code == MDP_OK ? mdp_session_publish_all(session, name) : status;
}

static mdp_status write_at_all(mdp_container container, mdp_session *session, const mdp_output *output,
                               const char *name, const char *path) {
    char *mark = NULL;
    bool done = false;
    double start = mdp_seconds();
    mdp_status status = mdp_agree_all(session->comm, name_mark(session, path, &mark));
    if (status.code == MDP_OK) status = is_done_all(session, path, mark, &done);
    if (status.code == MDP_OK && done) mdp_log_message(session->log, MDP_LEVEL_INFO, "%s is written already", path);
    if (status.code == MDP_OK && !done) status = make_all(container, session, output, name, path);
    if (status.code == MDP_OK && !done) status = mark_all(session, mark, start);
    mdp_free(mark);
    return status;
}

static mdp_status write_with_all(mdp_container container, mdp_session *session, const mdp_output *output,
                                 const char *name) {
    char *path = NULL;
    const char *out = mdp_session_option(session, OPTION_OUT)->text;
    mdp_status status =
        mdp_agree_all(session->comm, name ? mdp_session_path(session, name, &path) : mdp_path_trim(&path, out));
    if (status.code == MDP_OK) status = write_at_all(container, session, output, name, path);
    mdp_free(path);
    return status;
}

mdp_status mdp_session_write_out_all(mdp_container container, mdp_session *session, const mdp_output *output) {
    return write_with_all(container, session, output, NULL);
}

mdp_status mdp_session_check_names_all(const mdp_session *session) {
    mdp_extra extra;
    mdp_status status = mdp_transform_check_names(session->model, mdp_session_extra(session, &extra));
    if (status.code == MDP_OK && session->comm->rank == 0)
        status = mdp_transform_check_side_files(session->catalogue, session->reader);
    return mdp_agree_all(session->comm, status);
}

mdp_status mdp_session_excerpt(const mdp_session *session, mdp_output *output) {
    const mdp_option_value *layers = mdp_session_option(session, OPTION_LAYERS);
    long long first = 0, last = 0;
    int end = 0;
    if (!layers->present) return mdp_ok();
    if (sscanf(layers->text, "%lld-%lld%n", &first, &last, &end) != 2 || layers->text[end] != '\0')
        return MDP_ERROR(MDP_USAGE, "--layers '%s' is not a range such as 0-3.", layers->text);
    return mdp_transform_excerpt(output, first, last);
}

/* The result with layers of different numbers of experts as --non-uniform wants them in a folder. Local. */
static mdp_status describe_folder(const mdp_session *session, const mdp_plan *plan, const mdp_output *output,
                                  mdp_output **out) {
    mdp_extra extra;
    MDP_TRY(mdp_transform_output(session->model, plan, session->replaced, mdp_session_extra(session, &extra),
                                 output->plan_text, output->provenance_text, mdp_session_unequal(session), out));
    return mdp_session_excerpt(session, *out);
}

/* ---- what it will take ----------------------------------------------------------------------------------------- */

static mdp_status cost_of(mdp_container container, const mdp_session *session, const mdp_output *output,
                          mdp_write_cost *out) {
    const mdp_write_options options = options_of(session);
    bool exactly = session->comm->rank == 0 && mdp_session_option(session, OPTION_DRY_RUN)->flag;
    if (container == MDP_NATIVE) return mdp_write_native_cost(output, &options, session->layout->size, exactly, out);
    return mdp_write_hf_cost(output, &options, session->layout->size, out);
}

/* Buffers as --memory allows, and what the largest rank has with them. Local. */
static mdp_status fit(mdp_session *session, const mdp_write_cost *cost, mdp_estimate *estimate) {
    int64_t given = mdp_session_option(session, OPTION_MEMORY)->integer, copying = cost->copying;
    int64_t fixed = session->at_start + session->held + LIBRARY_BYTE + cost->beside;
    if (given > 0 && fixed + copying > given) {
        int64_t least = copying < LEAST_COPY_BYTE ? copying : LEAST_COPY_BYTE;
        copying = given - fixed > least ? given - fixed : least;
        if (given - fixed < least)
            mdp_estimate_note_shortage(estimate, (mdp_shortage){.need = fixed + least, .writing = true});
        if (session->copy_byte == 0 || copying < session->copy_byte) session->copy_byte = copying;
    }
    if (fixed + copying > estimate->memory) estimate->memory = fixed + copying;
    return mdp_session_check_node(session, estimate->memory);
}

static mdp_status add_write(mdp_container container, mdp_session *session, const mdp_output *output,
                            mdp_estimate *estimate) {
    mdp_write_cost cost = {0};
    mdp_status status = cost_of(container, session, output, &cost);
    if (status.code == MDP_OK) status = fit(session, &cost, estimate);
    if (status.code == MDP_OK) status = mdp_session_add_shares(session, name_of(container), cost.shares, estimate);
    mdp_write_cost_free(&cost);
    return status;
}

static mdp_status add_folder(mdp_session *session, const mdp_plan *plan, const mdp_output *output,
                             mdp_estimate *estimate) {
    mdp_output *unequal = NULL;
    mdp_status status = output->uniform ? mdp_ok() : describe_folder(session, plan, output, &unequal);
    if (status.code == MDP_OK) status = add_write(MDP_HF_FOLDER, session, unequal ? unequal : output, estimate);
    mdp_output_destroy(unequal);
    return status;
}

static mdp_status add_writes(mdp_session *session, const mdp_plan *plan, const mdp_output *output,
                             mdp_estimate *estimate) {
    if (mdp_session_wants_native(session)) MDP_TRY(add_write(MDP_NATIVE, session, output, estimate));
    return mdp_session_wants_hf(session) ? add_folder(session, plan, output, estimate) : mdp_ok();
}

mdp_status mdp_session_add_writes_all(mdp_session *session, const mdp_plan *plan, const mdp_output *output,
                                      mdp_estimate *estimate) {
    return mdp_agree_all(session->comm, add_writes(session, plan, output, estimate));
}

mdp_status mdp_session_add_out_all(mdp_container container, mdp_session *session, const mdp_output *output,
                                   mdp_estimate *estimate) {
    return mdp_agree_all(session->comm, add_write(container, session, output, estimate));
}

/* ---- both containers ------------------------------------------------------------------------------------------- */

static mdp_status write_unequal_all(mdp_session *session, const mdp_plan *plan, const mdp_output *output) {
    mdp_output *unequal = NULL;
    mdp_status status = mdp_agree_all(session->comm, describe_folder(session, plan, output, &unequal));
    if (status.code == MDP_OK && unequal) status = write_with_all(MDP_HF_FOLDER, session, unequal, "hf");
    mdp_output_destroy(unequal);
    return status;
}

mdp_status mdp_session_write_all(mdp_session *session, const mdp_plan *plan, const mdp_output *output) {
    if (mdp_session_wants_native(session)) MDP_TRY(write_with_all(MDP_NATIVE, session, output, "model.h5"));
    if (!mdp_session_wants_hf(session)) return mdp_ok();
    return output->uniform ? write_with_all(MDP_HF_FOLDER, session, output, "hf")
                           : write_unequal_all(session, plan, output);
}
