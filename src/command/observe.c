/* observe.c - the command `observe`: run the model on text, write the statistics of its experts (stats.h5). */
#include "command/compute.h"
#include "command/continue.h"
#include "command/feasible.h"
#include "command/similar.h"
#include "command/subsets.h"

#include <string.h>

/* What is asked for. */
typedef struct wanted {
    mdp_similarity_request similarity;
    mdp_subset_request subsets;
    char *line; /* of subsets, as the statistics have it; NULL: none are asked for */
} wanted;

static bool is_same_line(const char *a, const char *b) {
    return a && b ? strcmp(a, b) == 0 : a == b;
}

static bool is_same_request(const mdp_similarity_request *a, const mdp_similarity_request *b) {
    return a->wanted == b->wanted && a->norms == b->norms && a->probe_tokens == b->probe_tokens && a->seed == b->seed &&
           a->neurons == b->neurons;
}

/* Are these the statistics that are to be written? */
static mdp_status is_done(const mdp_session *session, const void *context, const char *path, bool *done) {
    const wanted *asked = context;
    mdp_stats *stats = NULL;
    *done = false;
    if (mdp_stats_read(path, &stats).code != MDP_OK) return mdp_ok(); /* something else, to be refused as such */
    *done = !stats->pruned_inputs && strcmp(stats->model_fingerprint, session->catalogue->fingerprint) == 0 &&
            strcmp(stats->tokens_fingerprint, session->tokens->fingerprint) == 0 &&
            strcmp(stats->compute, session->compute) == 0 && is_same_request(&stats->similarity, &asked->similarity) &&
            is_same_line(stats->subsets, asked->line) && mdp_verify_seal_if_any(path).code == MDP_OK;
    mdp_stats_destroy(stats);
    return mdp_ok();
}

static mdp_status ask(const mdp_session *session, wanted *out) {
    MDP_TRY(mdp_session_check_subset_options(session));
    MDP_TRY(mdp_session_similarity(session, &out->similarity));
    MDP_TRY(mdp_session_subset_request(session, NULL, &out->subsets));
    return out->subsets.n_keep > 0 ? mdp_subset_request_print(&out->subsets, &out->line) : mdp_ok();
}

static mdp_status open_all(mdp_session *session, wanted *request) {
    MDP_AGREE(session->comm, ask(session, request));
    MDP_TRY(mdp_session_open_model_all(session));
    MDP_TRY(mdp_session_choose_compute_all(session, false));
    MDP_TRY(mdp_session_open_tokens_all(session, mdp_session_option(session, OPTION_TOKENS)->text,
                                        mdp_session_option(session, OPTION_CATEGORIES)->text, &session->tokens));
    MDP_TRY(mdp_session_open_subsets_all(session, &request->subsets));
    return mdp_session_open_outputs_all(session, &(mdp_results){.is_done = is_done, .context = request});
}

static mdp_status write_all(mdp_session *session, const mdp_stats *stats) {
    char *path = NULL;
    mdp_status status = mdp_agree_all(session->comm, mdp_session_make_path(session, NULL, &path));
    if (status.code == MDP_OK) status = mdp_stats_write_all(session->comm, stats, path);
    mdp_free(path);
    return status.code == MDP_OK ? mdp_session_publish_all(session, NULL) : status;
}

/* What it will take. Collective. */
static mdp_status foresee_all(mdp_session *session, const wanted *request, mdp_estimate *estimate) {
    const mdp_similarity_request *similarity = &request->similarity;
    if (request->subsets.n_keep > 0) estimate->phase = "observe, subsets";
    MDP_TRY(mdp_session_weigh_all(session, mdp_session_stats_memory(session, similarity) +
                                               mdp_session_subsets_memory(session, &request->subsets)));
    mdp_pass pass = {.n_stream = 1};
    mdp_similarity_enlarge(session->model, similarity, session->tokens->n_token, session->layout->size, &pass);
    MDP_TRY(mdp_session_add_pass_all(session, "observe", session->tokens, pass, estimate));
    MDP_AGREE(session->comm, mdp_session_add_similarity(session, similarity, estimate));
    MDP_TRY(mdp_session_add_subsets_all(session, &request->subsets, estimate));
    MDP_AGREE(session->comm, mdp_session_check_memory(session, estimate));
    estimate->bytes_written = mdp_stats_file_bytes(session->model, session->tokens->n_category, similarity) +
                              mdp_subset_sums_memory(session->model, &request->subsets);
    /* Sums are as large in a resume point as in the file; there may be two points beside it. */
    MDP_TRY(mdp_session_check_room_all(session, 3 * estimate->bytes_written + estimate->bytes_saved));
    return mdp_session_open_lines_all(session, estimate);
}

static mdp_status measure_all(mdp_session *session, const wanted *request) {
    mdp_forward_options options = mdp_session_forward_options(session);
    mdp_stats *stats = NULL;
    mdp_status status = mdp_observe_all(session->comm, session->model, session->reader, session->tokens, NULL,
                                        &request->similarity, &options, &stats);
    if (status.code == MDP_OK) status = mdp_session_subsets_all(session, &request->subsets, stats);
    if (status.code == MDP_OK) status = write_all(session, stats);
    mdp_stats_destroy(stats);
    MDP_TRY(status);
    return mdp_session_log_memory_all(session);
}

mdp_status mdp_command_observe_all(mdp_session *session) {
    mdp_estimate estimate = {.phase = "observe"};
    wanted request = {.line = NULL};
    mdp_status status = open_all(session, &request);
    if (status.code == MDP_OK && !session->finished) status = foresee_all(session, &request, &estimate);
    if (status.code == MDP_OK && !session->finished && !mdp_session_option(session, OPTION_DRY_RUN)->flag)
        status = measure_all(session, &request);
    mdp_free(request.line);
    return status;
}
