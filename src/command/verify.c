/* verify.c - the command `verify`: every byte of a checkpoint or of statistics of ours against the checksums in it. */
#include "command/kind.h"
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

static bool tells(const mdp_session *session) {
    return session->comm->rank == 0 && !mdp_session_option(session, OPTION_QUIET)->flag;
}

static void tell(const mdp_session *session, const mdp_verified *verified) {
    const mdp_catalogue *catalogue = session->catalogue;
    char n_byte[32], n_tensor[32], others[64] = "";
    if (!tells(session)) return;
    if (verified->n_without > 0)
        snprintf(others, sizeof others, "; %lld side files have none", (long long)verified->n_without);
    mdp_print("%s: %s bytes read; %s tensors and %lld side files equal their checksums%s\n", catalogue->path,
              mdp_print_count(n_byte, verified->n_byte), mdp_print_count(n_tensor, catalogue->n_tensor),
              (long long)(catalogue->n_side_file - verified->n_without), others);
}

static mdp_status verify_checkpoint_all(mdp_session *session, const char *path) {
    mdp_progress *progress = NULL;
    mdp_verified verified = {0};
    MDP_TRY(mdp_catalogue_open_all(session->comm, path, &session->catalogue));
    int64_t n_step = (count_bytes(session->catalogue) + STEP_BYTE - 1) / STEP_BYTE;
    mdp_status status =
        mdp_agree_all(session->comm, mdp_progress_new(&progress, session->log, "verify", "MB", n_step, "bytes"));
    if (status.code == MDP_OK) status = mdp_verify_all(session->comm, session->catalogue, show, progress, &verified);
    mdp_progress_destroy(progress);
    if (status.code == MDP_OK) tell(session, &verified);
    return status;
}

/* Rank 0: readable as statistics, and under an unbroken seal. */
static mdp_status verify_stats(const mdp_session *session, const char *path) {
    mdp_stats *stats = NULL;
    int64_t n_byte = 0;
    char count[32];
    MDP_TRY(mdp_stats_read(path, &stats));
    mdp_stats_destroy(stats);
    MDP_TRY(mdp_verify_sealed(path, &n_byte));
    if (tells(session))
        mdp_print("%s: %s bytes read; they equal their checksum\n", path, mdp_print_count(count, n_byte));
    return mdp_ok();
}

mdp_status mdp_command_verify_all(mdp_session *session) {
    const char *path = session->options->arguments[0];
    mdp_kind what;
    MDP_TRY(mdp_kind_find_all(session->comm, path, &what));
    if (what == MDP_KIND_CHECKPOINT) return verify_checkpoint_all(session, path);
    if (what == MDP_KIND_STATS)
        return mdp_agree_all(session->comm, session->comm->rank == 0 ? verify_stats(session, path) : mdp_ok());
    return MDP_ERROR(
        MDP_BAD_INPUT,
        "%s: verify reads checkpoints (model.h5, or a folder) and stats.h5; %s has no checksums of its own.", path,
        what == MDP_KIND_TOKENS ? "a tokens file" : "a JSON file, which may be edited,");
}
