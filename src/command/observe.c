/* observe.c - the command `observe`: run the model on text, write the statistics of its experts (stats.h5). */
#include "command/compute.h"
#include "command/continue.h"
#include "command/feasible.h"
#include "command/similar.h"

#include <string.h>

static bool is_same_request(const mdp_similarity_request *a, const mdp_similarity_request *b) {
    return a->wanted == b->wanted && a->probe_tokens == b->probe_tokens && a->seed == b->seed &&
           a->neurons == b->neurons;
}

/* Are these the statistics that are to be written? */
static mdp_status is_done(const mdp_session *session, const void *context, const char *path, bool *done) {
    mdp_stats *stats = NULL;
    *done = false;
    if (mdp_stats_read(path, &stats).code != MDP_OK) return mdp_ok(); /* something else, to be refused as such */
    *done = !stats->pruned_inputs && strcmp(stats->model_fingerprint, session->catalogue->fingerprint) == 0 &&
            strcmp(stats->tokens_fingerprint, session->tokens->fingerprint) == 0 &&
            strcmp(stats->compute, session->compute) == 0 && is_same_request(&stats->similarity, context) &&
            mdp_verify_seal_if_any(path).code == MDP_OK;
    mdp_stats_destroy(stats);
    return mdp_ok();
}

static mdp_status open_all(mdp_session *session, mdp_similarity_request *request) {
    MDP_AGREE(session->comm, mdp_session_similarity(session, request));
    MDP_TRY(mdp_session_open_model_all(session));
    MDP_TRY(mdp_session_choose_compute_all(session, false));
    MDP_TRY(mdp_session_open_tokens_all(session, mdp_session_option(session, OPTION_TOKENS)->text,
                                        mdp_session_option(session, OPTION_CATEGORIES)->text, &session->tokens));
    return mdp_session_open_outputs_all(session, &(mdp_results){.is_done = is_done, .context = request});
}

static mdp_status write_all(mdp_session *session, const mdp_stats *stats) {
    char *path = NULL;
    mdp_status status = mdp_agree_all(session->comm, mdp_session_make_path(session, NULL, &path));
    if (status.code == MDP_OK) status = mdp_stats_write_all(session->comm, stats, path);
    mdp_free(path);
    return status.code == MDP_OK ? mdp_session_publish_all(session, NULL) : status;
}

mdp_status mdp_command_observe_all(mdp_session *session) {
    mdp_estimate estimate = {.phase = "observe"};
    mdp_similarity_request request;
    mdp_stats *stats = NULL;
    MDP_TRY(open_all(session, &request));
    if (session->finished) return mdp_ok();
    MDP_TRY(mdp_session_weigh_all(session, mdp_session_stats_memory(session, &request)));
    mdp_pass pass = {.n_stream = 1};
    mdp_similarity_enlarge(session->model, &request, session->tokens->n_token, session->layout->size, &pass);
    MDP_TRY(mdp_session_add_pass_all(session, "observe", session->tokens, pass, &estimate));
    MDP_AGREE(session->comm, mdp_session_add_similarity(session, &request, &estimate));
    MDP_AGREE(session->comm, mdp_session_check_memory(session, &estimate));
    estimate.bytes_written = mdp_stats_file_bytes(session->model, session->tokens->n_category, &request);
    /* Sums are as large in a resume point as in the file; there may be two points beside it. */
    MDP_TRY(mdp_session_check_room_all(session, 3 * estimate.bytes_written + estimate.bytes_saved));
    MDP_TRY(mdp_session_open_lines_all(session, &estimate));
    if (mdp_session_option(session, OPTION_DRY_RUN)->flag) return mdp_ok();
    mdp_forward_options options = mdp_session_forward_options(session);
    mdp_status status = mdp_observe_all(session->comm, session->model, session->reader, session->tokens, NULL, &request,
                                        &options, &stats);
    if (status.code == MDP_OK) status = write_all(session, stats);
    mdp_stats_destroy(stats);
    MDP_TRY(status);
    return mdp_session_log_memory_all(session);
}
