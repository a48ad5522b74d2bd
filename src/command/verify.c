/* verify.c - the command `verify`: every byte of a checkpoint or of statistics of ours against the checksums in it, and
 * with --model against what it was made of. */
#include "command/kind.h"
#include "command/session.h"
#include "command/trace.h"

#include <string.h>

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

/* --model: the result, which the session has had as its catalogue, made anew from that. */
static mdp_status trace_all(mdp_session *session, const mdp_verified *verified) {
    mdp_catalogue *result = session->catalogue;
    if (!mdp_session_option(session, OPTION_MODEL)->present) return mdp_ok();
    session->catalogue = NULL;
    mdp_status status = mdp_session_open_model_all(session);
    if (status.code == MDP_OK) status = mdp_session_trace_all(session, result, verified->digests);
    if (status.code == MDP_OK && tells(session))
        mdp_print("%s: every tensor is what %s and the plan in it give\n", result->path, session->catalogue->path);
    mdp_catalogue_destroy(result);
    return status;
}

static mdp_status verify_checkpoint_all(mdp_session *session, const char *path) {
    mdp_progress *progress = NULL;
    mdp_verified verified = {0};
    if (mdp_session_option(session, OPTION_TOKENS)->present)
        return MDP_ERROR(MDP_USAGE, "verify: --tokens belongs to a stats.h5; %s is a checkpoint.", path);
    MDP_TRY(mdp_catalogue_open_all(session->comm, path, &session->catalogue));
    int64_t n_step = (count_bytes(session->catalogue) + STEP_BYTE - 1) / STEP_BYTE;
    mdp_status status =
        mdp_agree_all(session->comm, mdp_progress_new(&progress, session->log, "verify", "MB", n_step, "bytes"));
    if (status.code == MDP_OK) status = mdp_verify_all(session->comm, session->catalogue, show, progress, &verified);
    mdp_progress_destroy(progress);
    if (status.code == MDP_OK) tell(session, &verified);
    if (status.code == MDP_OK) status = trace_all(session, &verified);
    mdp_free(verified.digests);
    return status;
}

/* Are the statistics of the model of --model and the text of --tokens, as far as these are given? Rank 0. */
static mdp_status compare_stats(const mdp_session *session, const char *path, const mdp_stats *stats) {
    const mdp_catalogue *model = session->catalogue;
    const mdp_tokens *tokens = session->tokens;
    if (model && strcmp(stats->model_fingerprint, model->fingerprint) != 0)
        return MDP_ERROR(MDP_BAD_INPUT, "%s: these statistics are of a model with fingerprint %s; %s has %s.", path,
                         stats->model_fingerprint, model->path, model->fingerprint);
    if (tokens && strcmp(stats->tokens_fingerprint, tokens->fingerprint) != 0)
        return MDP_ERROR(MDP_BAD_INPUT, "%s: these statistics are of a text with fingerprint %s; %s has %s.", path,
                         stats->tokens_fingerprint, tokens->path, tokens->fingerprint);
    if (model && tells(session)) mdp_print("%s: of the model %s\n", path, model->path);
    if (tokens && tells(session)) mdp_print("%s: of the text %s\n", path, tokens->path);
    return mdp_ok();
}

/* Rank 0: readable as statistics, and under an unbroken seal. */
static mdp_status verify_stats(const mdp_session *session, const char *path) {
    mdp_stats *stats = NULL;
    int64_t n_byte = 0;
    char count[32];
    MDP_TRY(mdp_stats_read(path, &stats));
    mdp_status status = mdp_verify_sealed(path, &n_byte);
    if (status.code == MDP_OK && tells(session))
        mdp_print("%s: %s bytes read; they equal their checksum\n", path, mdp_print_count(count, n_byte));
    if (status.code == MDP_OK) status = compare_stats(session, path, stats);
    mdp_stats_destroy(stats);
    return status;
}

static mdp_status verify_stats_all(mdp_session *session, const char *path) {
    const mdp_option_value *tokens = mdp_session_option(session, OPTION_TOKENS);
    bool has_model = mdp_session_option(session, OPTION_MODEL)->present;
    if (tokens->present && !has_model)
        return MDP_ERROR(MDP_USAGE, "verify: --tokens needs --model too, whose vocabulary it is of.");
    if (has_model) MDP_TRY(mdp_session_open_model_all(session));
    if (tokens->present)
        MDP_TRY(mdp_session_open_tokens_all(session, tokens->text, mdp_session_option(session, OPTION_CATEGORIES)->text,
                                            &session->tokens));
    return mdp_agree_all(session->comm, session->comm->rank == 0 ? verify_stats(session, path) : mdp_ok());
}

mdp_status mdp_command_verify_all(mdp_session *session) {
    const char *path = session->options->arguments[0];
    mdp_kind what;
    MDP_TRY(mdp_kind_find_all(session->comm, path, &what));
    if (what == MDP_KIND_CHECKPOINT) return verify_checkpoint_all(session, path);
    if (what == MDP_KIND_STATS) return verify_stats_all(session, path);
    return MDP_ERROR(
        MDP_BAD_INPUT,
        "%s: verify reads checkpoints (model.h5, or a folder) and stats.h5; %s has no checksums of its own.", path,
        what == MDP_KIND_TOKENS ? "a tokens file" : "a JSON file, which may be edited,");
}
