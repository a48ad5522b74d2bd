/* write.c - a described result to files: see write.h. */
#include "command/write.h"
#include "command/feasible.h"

#define COPY_BYTE (16ll << 20) /* memory for copying, per rank */
#define STEP_BYTE 1000000ll

/* Steps of the progress line: megabytes begun. */
static int64_t count_steps(int64_t n_byte) {
    return (n_byte + STEP_BYTE - 1) / STEP_BYTE;
}

static void show(void *context, int64_t n_byte_done, int64_t n_byte_total) {
    int64_t n_step = n_byte_done == n_byte_total ? count_steps(n_byte_total) : n_byte_done / STEP_BYTE;
    mdp_progress_update(context, n_step, (double)n_byte_done);
}

static mdp_status write_with_all(mdp_container container, const mdp_session *session, const mdp_output *output,
                                 const char *path) {
    mdp_progress *progress = NULL;
    mdp_status status = mdp_agree_all(session->comm, mdp_progress_new(&progress, session->log, "write", "MB",
                                                                      count_steps(output->tensor_byte), "bytes"));
    mdp_write_options options = {.overwrite = mdp_session_option(session, OPTION_OVERWRITE)->flag,
                                 .shard_byte = mdp_session_option(session, OPTION_SHARD_SIZE)->integer,
                                 .buffer_byte = COPY_BYTE,
                                 .written = show,
                                 .context = progress};
    if (status.code == MDP_OK && container == MDP_NATIVE)
        status = mdp_write_native_all(session->comm, session->reader, output, path, &options);
    else if (status.code == MDP_OK)
        status = mdp_write_hf_all(session->comm, session->reader, output, path, &options);
    mdp_progress_destroy(progress);
    return status;
}

mdp_status mdp_session_write_native_all(const mdp_session *session, const mdp_output *output, const char *path) {
    return write_with_all(MDP_NATIVE, session, output, path);
}

mdp_status mdp_session_write_hf_all(const mdp_session *session, const mdp_output *output, const char *folder) {
    return write_with_all(MDP_HF_FOLDER, session, output, folder);
}

static mdp_status write_below_all(mdp_container container, const mdp_session *session, const mdp_output *output,
                                  const char *name) {
    char *path = NULL;
    mdp_status status = mdp_agree_all(session->comm, mdp_session_path(session, name, &path));
    if (status.code == MDP_OK) status = write_with_all(container, session, output, path);
    mdp_free(path);
    return status;
}

mdp_status mdp_session_write_all(mdp_session *session, const mdp_output *output) {
    if (mdp_session_wants_native(session)) {
        MDP_TRY(write_below_all(MDP_NATIVE, session, output, "model.h5"));
        session->result_kept = true;
    }
    if (mdp_session_wants_hf(session)) {
        MDP_TRY(write_below_all(MDP_HF_FOLDER, session, output, "hf"));
        session->result_kept = true;
    }
    return mdp_ok();
}
