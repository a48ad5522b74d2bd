/* verify.c - the command `verify`: every byte of a checkpoint of ours against the checksums beside it. */
#include "command/session.h"

#define STEP_BYTE 1000000ll

/* Steps of the progress line: megabytes begun. */
static void show(void *context, int64_t n_byte_done, int64_t n_byte_total) {
    int64_t n_step = n_byte_done == n_byte_total ? (n_byte_total + STEP_BYTE - 1) / STEP_BYTE : n_byte_done / STEP_BYTE;
    mdp_progress_update(context, n_step, (double)n_byte_done);
}

static int64_t count_bytes(const mdp_catalogue *catalogue) {
    int64_t n_byte = catalogue->tensor_byte;
    for (int64_t i = 0; i < catalogue->n_side_file; i++) n_byte += catalogue->side_files[i].n_byte;
    return n_byte;
}

static void tell(const mdp_session *session, const mdp_verified *verified) {
    const mdp_catalogue *catalogue = session->catalogue;
    char n_byte[32], n_tensor[32], others[64] = "";
    if (session->comm->rank != 0 || mdp_session_option(session, OPTION_QUIET)->flag) return;
    if (verified->n_without > 0)
        snprintf(others, sizeof others, "; %lld side files have none", (long long)verified->n_without);
    printf("%s: %s bytes read; %s tensors and %lld side files equal their checksums%s\n", catalogue->path,
           mdp_print_count(n_byte, verified->n_byte), mdp_print_count(n_tensor, catalogue->n_tensor),
           (long long)(catalogue->n_side_file - verified->n_without), others);
}

mdp_status mdp_command_verify_all(mdp_session *session) {
    mdp_progress *progress = NULL;
    mdp_verified verified = {0};
    MDP_TRY(mdp_catalogue_open_all(session->comm, session->options->arguments[0], &session->catalogue));
    int64_t n_step = (count_bytes(session->catalogue) + STEP_BYTE - 1) / STEP_BYTE;
    mdp_status status =
        mdp_agree_all(session->comm, mdp_progress_new(&progress, session->log, "verify", "MB", n_step, "bytes"));
    if (status.code == MDP_OK) status = mdp_verify_all(session->comm, session->catalogue, show, progress, &verified);
    mdp_progress_destroy(progress);
    if (status.code == MDP_OK) tell(session, &verified);
    return status;
}
