/* frontier.c - the command `frontier`: quality against size of many plans, from one observation and a few forwards. */
#include "mdp/frontier.h"
#include "command/candidates.h"
#include "command/compute.h"
#include "command/continue.h"
#include "command/lots.h"
#include "command/measured.h"
#include "command/statistics.h"

#include <stdlib.h>
#include <string.h>

/* What the steps make. */
typedef struct made {
    mdp_candidates candidates;
    mdp_stats *stats; /* rank 0; NULL: none are given */
    mdp_frontier *frontier;
    mdp_candidate_plans plans;
    mdp_lots lots;
    mdp_evaluation **evaluations; /* [lots.n] */
} made;

static void free_made(made *all) {
    for (int i = 0; all->evaluations && i < all->lots.n; i++) mdp_evaluation_destroy(all->evaluations[i]);
    mdp_free(all->evaluations);
    mdp_frontier_destroy(all->frontier);
    mdp_candidate_plans_free(&all->plans);
    mdp_stats_destroy(all->stats);
    mdp_candidates_free(&all->candidates);
}

/* ---- before anything heavy -------------------------------------------------------------------------------------- */

/* "5%" or "0.05". */
static mdp_status parse_within(const mdp_session *session, double *out) {
    const char *text = mdp_session_option(session, OPTION_WITHIN)->text;
    char *end = NULL;
    *out = 0.0;
    if (!text) return mdp_ok();
    *out = strtod(text, &end);
    bool percent = end != text && *end == '%';
    if (percent) *out /= 100.0;
    if (end != text && *(percent ? end + 1 : end) == '\0' && *out > 0.0 && *out <= 1000.0) return mdp_ok();
    return MDP_ERROR(MDP_USAGE, "--within %s: expected how much the perplexity may grow, like 5%%.", text);
}

/* Local. */
static mdp_status read_options(const mdp_session *session, made *all) {
    MDP_TRY(mdp_session_parse_candidates(session, &all->candidates));
    MDP_TRY(MDP_ALLOC(&all->frontier, 1, "the frontier"));
    return parse_within(session, &all->frontier->within);
}

/* What is known of the statistics, so that a run does not go on with others. */
static mdp_status digest_stats(const mdp_stats *stats, mdp_digest *out) {
    mdp_hash *hash = NULL;
    MDP_TRY(mdp_hash_new(&hash));
    mdp_hash_update(hash, stats->tokens_fingerprint, (int64_t)strlen(stats->tokens_fingerprint));
    for (int i = 0; i < stats->n_part; i++)
        mdp_hash_update(hash, &stats->parts[i].weight, (int64_t)sizeof stats->parts[i].weight);
    for (int64_t i = 0; i < stats->n_layer; i++) {
        const mdp_layer_stats *layer = &stats->layers[i];
        int64_t n = (int64_t)stats->n_category * layer->n_expert;
        mdp_hash_update(hash, layer->counts, n * (int64_t)sizeof *layer->counts);
        mdp_hash_update(hash, layer->sums, n * MDP_N_SUM * (int64_t)sizeof *layer->sums);
        mdp_hash_update(hash, layer->maxima, n * MDP_N_MAX * (int64_t)sizeof *layer->maxima);
    }
    *out = mdp_hash_digest(hash);
    mdp_hash_destroy(hash);
    return mdp_ok();
}

static mdp_status read_stats_all(mdp_session *session, made *all) {
    mdp_digest digest = {""};
    mdp_status status = mdp_ok();
    if (!mdp_session_option(session, OPTION_STATS)->present) return mdp_ok();
    if (session->comm->rank == 0) {
        status = mdp_session_read_stats(session, all->candidates.vectors, &all->stats);
        if (status.code == MDP_OK) status = digest_stats(all->stats, &digest);
    }
    MDP_AGREE(session->comm, status);
    MDP_TRY(mdp_bcast_all(session->comm, &digest, (int64_t)sizeof digest, 0));
    mdp_session_note_plan(session, digest.hex, (int64_t)strlen(digest.hex));
    return mdp_ok();
}

static mdp_status open_all(mdp_session *session, made *all) {
    MDP_AGREE(session->comm, read_options(session, all));
    MDP_TRY(mdp_session_open_model_all(session));
    MDP_TRY(mdp_session_choose_compute_all(session, false));
    MDP_TRY(mdp_session_open_tokens_all(session, mdp_session_option(session, OPTION_EVAL_TOKENS)->text, NULL,
                                        &session->eval_tokens));
    all->frontier->model = session->model;
    all->frontier->tokens = session->eval_tokens;
    MDP_TRY(read_stats_all(session, all));
    return mdp_session_open_outputs_all(session, &(mdp_results){.is_done = mdp_measured_is_done, .with_page = true});
}

/* A plan there is, or else why there is none. Local. */
static mdp_status check_plans(const made *all) {
    for (int i = 1; i < all->frontier->n && all->plans.n == 0; i++) {
        const mdp_frontier_point *point = &all->frontier->points[i];
        if (point->refused)
            return MDP_ERROR(MDP_USAGE, "--ratios: there is nothing to measure; method '%s' with ratio %.4g: %s.",
                             point->method, point->ratio, point->refused);
    }
    if (all->plans.n > 0) return mdp_ok();
    return MDP_ERROR(MDP_USAGE, "--ratios: no ratio is large enough to remove an expert of a layer.");
}

static mdp_status prepare_all(mdp_session *session, made *all, mdp_estimate *estimate) {
    MDP_TRY(mdp_session_make_candidates_all(session, &all->candidates, all->stats, all->frontier, &all->plans));
    MDP_AGREE(session->comm, check_plans(all));
    const mdp_view *const *views = (const mdp_view *const *)all->plans.views;
    MDP_TRY(mdp_session_weigh_all(session, 0));
    MDP_TRY(mdp_session_choose_lots_all(session, all->plans.n, views, &all->lots));
    MDP_TRY(mdp_session_add_lots_all(session, &all->lots, views, estimate));
    MDP_AGREE(session->comm, mdp_session_check_memory(session, estimate));
    MDP_TRY(mdp_session_check_room_all(session, estimate->bytes_saved));
    return mdp_session_open_lines_all(session, estimate);
}

/* ---- measuring -------------------------------------------------------------------------------------------------- */

/* The streams of a lot: requests [1 + plans of it], names of theirs [the same]. Local. */
static mdp_status name_streams(const made *all, int begin, int n, mdp_eval_request *requests, char **names) {
    requests[0] = (mdp_eval_request){.name = "original"};
    for (int i = 0; i < n; i++) {
        const mdp_frontier_point *point = &all->frontier->points[all->plans.point[begin + i]];
        MDP_TRY(mdp_format(&names[1 + i], "%s %.4g", point->method, point->ratio));
        requests[1 + i] = (mdp_eval_request){.name = names[1 + i], .view = all->plans.views[begin + i]};
    }
    return mdp_ok();
}

/* Plans begin .. begin + n - 1 and the original in one forward. */
static mdp_status measure_streams_all(mdp_session *session, made *all, int lot, mdp_eval_request *requests,
                                      char **names) {
    int begin = mdp_lots_begin(&all->lots, lot), n = mdp_lots_begin(&all->lots, lot + 1) - begin;
    mdp_forward_options options = mdp_session_forward_options(session);
    char phase[MDP_LOT_NAME];
    options.phase = mdp_lots_name(&all->lots, lot, phase);
    MDP_AGREE(session->comm, name_streams(all, begin, n, requests, names));
    MDP_TRY(mdp_evaluate_all(session->comm, session->model, session->reader, session->eval_tokens, requests, 1 + n,
                             &options, NULL, &all->evaluations[lot]));
    for (int i = 0; i < n; i++) {
        mdp_frontier_point *point = &all->frontier->points[all->plans.point[begin + i]];
        point->evaluation = all->evaluations[lot];
        point->stream = 1 + i;
    }
    return mdp_ok();
}

static mdp_status measure_lot_all(mdp_session *session, made *all, int lot) {
    int n_most = 1 + all->plans.n;
    mdp_eval_request *requests = NULL;
    char **names = NULL;
    mdp_status status = MDP_ALLOC(&requests, n_most, "the streams");
    if (status.code == MDP_OK) status = MDP_ALLOC(&names, n_most, "the streams");
    status = mdp_agree_all(session->comm, status);
    if (status.code == MDP_OK) status = measure_streams_all(session, all, lot, requests, names);
    for (int i = 0; names && i < n_most; i++) mdp_free(names[i]);
    mdp_free(names);
    mdp_free(requests);
    return status;
}

static mdp_status measure_all(mdp_session *session, made *all) {
    mdp_frontier *frontier = all->frontier;
    MDP_AGREE(session->comm, MDP_ALLOC(&all->evaluations, all->lots.n, "evaluations"));
    for (int lot = 0; lot < all->lots.n; lot++) MDP_TRY(measure_lot_all(session, all, lot));
    frontier->points[0].evaluation = all->evaluations[0];
    for (int i = 1; i < frontier->n; i++) {
        mdp_frontier_point *point = &frontier->points[i];
        if (point->same_as < 0) continue;
        point->evaluation = frontier->points[point->same_as].evaluation;
        point->stream = frontier->points[point->same_as].stream;
    }
    mdp_frontier_judge(frontier);
    return mdp_ok();
}

/* ---- results ---------------------------------------------------------------------------------------------------- */

/* The command that makes the plan of the answer; NULL: there is none. New text. */
static mdp_status next_step(const mdp_session *session, const mdp_frontier *frontier, char **out) {
    const mdp_option_value *stats = mdp_session_option(session, OPTION_STATS);
    const char *words[24] = {"moe-dist-prune", "plan", stats->present ? "--stats" : "--model",
                             stats->present ? stats->text : mdp_session_option(session, OPTION_MODEL)->text};
    int n = 4;
    char ratio[32];
    *out = NULL;
    if (frontier->answer <= 0 || stats->n_text > 1) return mdp_ok();
    const mdp_frontier_point *point = &frontier->points[frontier->answer];
    snprintf(ratio, sizeof ratio, "%.12g", point->ratio);
    words[n++] = "--method";
    words[n++] = point->method;
    words[n++] = "--budget";
    words[n++] = mdp_budget_names[point->budget];
    words[n++] = "--prune-ratio";
    words[n++] = ratio;
    static const mdp_option_id more[] = {OPTION_MIN_KEEP, OPTION_NORMALISE, OPTION_KEEP_MULTIPLE_OF, OPTION_SEED};
    static const char *const names[] = {"--min-keep", "--normalise", "--keep-multiple-of", "--seed"};
    for (int i = 0; i < 4; i++) {
        if (!mdp_session_option(session, more[i])->given) continue;
        words[n++] = names[i];
        words[n++] = mdp_session_option(session, more[i])->text;
    }
    words[n++] = "--out";
    words[n++] = "plan.json";
    return mdp_shell_line(n, words, out);
}

/* Rank 0. */
static mdp_status show(const mdp_session *session, const mdp_frontier *frontier, const char *json) {
    char *next = NULL, *table = NULL;
    if (mdp_session_option(session, OPTION_JSON)->flag) {
        mdp_print_text(json);
        return mdp_ok();
    }
    if (mdp_session_option(session, OPTION_QUIET)->flag) return mdp_ok();
    mdp_status status = next_step(session, frontier, &next);
    if (status.code == MDP_OK) status = mdp_frontier_table(frontier, next, &table);
    if (status.code == MDP_OK) mdp_print_text(table);
    mdp_free(next);
    mdp_free(table);
    return status;
}

/* Rank 0. The page is first: who finds frontier.json has both. */
static mdp_status tell(mdp_session *session, const mdp_frontier *frontier) {
    char *json = NULL, *page = NULL;
    mdp_status status = mdp_frontier_print(frontier, session->resume->digest, &json);
    if (status.code == MDP_OK) status = mdp_frontier_page(json, &page);
    if (status.code == MDP_OK) status = mdp_session_put_page(session, page);
    if (status.code == MDP_OK) status = mdp_session_put_text(session, NULL, json);
    if (status.code == MDP_OK) status = show(session, frontier, json);
    mdp_free(json);
    mdp_free(page);
    return status;
}

static mdp_status perform_all(mdp_session *session, made *all) {
    mdp_estimate estimate = {.phase = "eval"};
    MDP_TRY(open_all(session, all));
    if (session->finished) return mdp_ok();
    MDP_TRY(prepare_all(session, all, &estimate));
    if (mdp_session_option(session, OPTION_DRY_RUN)->flag) return mdp_ok();
    MDP_TRY(measure_all(session, all));
    MDP_AGREE(session->comm, session->comm->rank == 0 ? tell(session, all->frontier) : mdp_ok());
    return mdp_session_log_memory_all(session);
}

mdp_status mdp_command_frontier_all(mdp_session *session) {
    made all = {.stats = NULL};
    mdp_status status = perform_all(session, &all);
    free_made(&all);
    return status;
}
