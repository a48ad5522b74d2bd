/* run.c - the command `run`: observe, plan, compare, apply, report, in one go.
 *
 * Order: everything that can be refused is refused; then statistics and plan are computed and written (they stay when a
 * later step fails); the plan is tried in memory on --eval-tokens; then the checkpoint is written; then the report. */
#include "command/compute.h"
#include "command/continue.h"
#include "command/cutting.h"
#include "command/decide.h"
#include "command/feasible.h"
#include "command/foresee.h"
#include "command/masking.h"
#include "command/merging.h"
#include "command/mtp.h"
#include "command/next.h"
#include "command/refitting.h"
#include "command/similar.h"
#include "command/subsets.h"
#include "command/widen.h"
#include "command/write.h"
#include "mdp/report.h"

#include <string.h>

/* What the steps make, one after the other. */
typedef struct products {
    mdp_budget_options budget;
    int64_t n_round;
    mdp_similarity_request similarity;
    mdp_subset_request subsets;
    bool merges; /* experts are made: of several, or cut */
    bool fits;   /* by least squares */
    bool cuts;
    bool refits;
    char phase_names[96];
    mdp_refit_options refit;
    mdp_stats *stats;
    mdp_plan *plan;
    char *plan_text;
    mdp_output *output;
    mdp_view *view;
    mdp_evaluation *evaluation;
    int n_phase;
    mdp_report_phase phases[MDP_REPORT_MAX_PHASE];
} products;

static void free_products(products *made) {
    mdp_stats_destroy(made->stats);
    mdp_plan_destroy(made->plan);
    mdp_free(made->plan_text);
    mdp_output_destroy(made->output);
    mdp_view_destroy(made->view);
    mdp_evaluation_destroy(made->evaluation);
}

/* ---- before anything heavy ----------------------------------------------------------------------------------- */

/* Everything beside run.log and effective-config.json. */
static mdp_status open_outputs_all(mdp_session *session, const products *made) {
    const char *names[9] = {"stats.h5", "plan.json", "report.json", "report.html"};
    int n = 4;
    if (made->merges || made->refits || mdp_session_mask_norms(session) != MDP_NORMS_NONE) names[n++] = "plan.h5";
    if (mdp_session_evaluates(session)) names[n++] = "eval.json";
    if (mdp_session_wants_native(session)) names[n++] = "model.h5";
    if (mdp_session_wants_hf(session)) names[n++] = "hf";
    return mdp_session_open_outputs_all(session, &(mdp_results){.members = names});
}

/* Rounds are for criteria that see what is left; vectors are read back from stats.h5, which is that of the first. */
static mdp_status check_rounds(const mdp_session *session) {
    const mdp_criterion *criterion = mdp_session_criterion(session);
    if (mdp_session_option(session, OPTION_ROUNDS)->integer <= 1) return mdp_ok();
    if (!criterion->needs_stats || criterion->needs_vectors)
        return MDP_ERROR(
            MDP_USAGE,
            "--rounds observes again what is left, which changes nothing for method '%s' or cannot be done "
            "with its statistics.",
            criterion->name);
    return mdp_ok();
}

/* A layer is decided before the next is seen. */
static mdp_status check_propagation(const mdp_session *session) {
    const mdp_criterion *criterion = mdp_session_criterion(session);
    if (!mdp_session_propagates(session)) return mdp_ok();
    if (!criterion->needs_stats || criterion->needs_vectors)
        return MDP_ERROR(MDP_USAGE,
                         "--propagate pruned changes what layers see, which changes nothing for method '%s' or cannot "
                         "be done with its statistics.",
                         criterion->name);
    if (mdp_session_option(session, OPTION_BUDGET)->integer == MDP_BUDGET_GLOBAL)
        return MDP_ERROR(MDP_USAGE,
                         "--propagate pruned decides layer after layer, so it must know how many experts each keeps; "
                         "--budget global compares all layers. Use --budget uniform or trapezoid, or --keep-file.");
    if (mdp_session_option(session, OPTION_PROTECT_SUPER_EXPERTS)->flag)
        return MDP_ERROR(MDP_USAGE, "--protect-super-experts compares all layers, and --propagate pruned decides layer "
                                    "after layer; they do not go together.");
    if (mdp_session_option(session, OPTION_ROUNDS)->integer > 1)
        return MDP_ERROR(MDP_USAGE, "--rounds and --propagate pruned do not go together: both observe what is left.");
    return mdp_ok();
}

/* Will experts have other numbers? */
static bool renumbers(const mdp_session *session, const mdp_budget_options *budget) {
    if (mdp_session_option(session, OPTION_PRUNED_ROUTE)->integer == MDP_ROUTE_ZERO) return false;
    return budget->budget == MDP_BUDGET_LIST || budget->keep < mdp_census_of_model(session->model).largest;
}

/* Can experts be cut as is asked? Local. */
static mdp_status find_cut(const mdp_session *session, products *made) {
    int64_t width;
    MDP_TRY(mdp_session_cut_width(session, &width));
    made->cuts = width > 0;
    made->merges = made->merges || made->cuts;
    return mdp_ok();
}

static mdp_status open_all(mdp_session *session, products *made) {
    MDP_AGREE(session->comm, mdp_session_check_budget(session));
    MDP_TRY(mdp_session_read_keep_file_all(session));
    MDP_AGREE(session->comm, mdp_session_check_method(session));
    MDP_AGREE(session->comm, check_rounds(session));
    MDP_AGREE(session->comm, check_propagation(session));
    MDP_AGREE(session->comm, mdp_session_similarity(session, &made->similarity));
    MDP_AGREE(session->comm, mdp_session_check_subset_options(session));
    MDP_AGREE(session->comm, mdp_session_will_merge(session, &made->merges));
    made->fits = mdp_session_option(session, OPTION_MERGE)->integer == MDP_MERGE_LEAST_SQUARES + 1;
    MDP_AGREE(session->comm, mdp_session_refit_options(session, &made->refits, &made->refit));
    MDP_TRY(mdp_session_open_model_all(session));
    MDP_AGREE(session->comm, find_cut(session, made));
    MDP_AGREE(session->comm, mdp_session_widen_model(session, made->merges || made->refits));
    MDP_TRY(mdp_session_open_pretrained_all(session));
    MDP_TRY(mdp_session_open_mtp_all(session));
    MDP_TRY(mdp_session_read_routers_all(session));
    MDP_TRY(mdp_session_choose_compute_all(session, true));
    MDP_AGREE(session->comm, mdp_session_check_mask_widths(session));
    MDP_AGREE(session->comm, mdp_session_budget(session, NULL, &made->budget));
    MDP_AGREE(session->comm, mdp_session_subset_request(session, &made->budget, &made->subsets));
    if (renumbers(session, &made->budget)) MDP_TRY(mdp_session_check_names_all(session));
    MDP_TRY(mdp_session_open_tokens_all(session, mdp_session_option(session, OPTION_TOKENS)->text,
                                        mdp_session_option(session, OPTION_CATEGORIES)->text, &session->tokens));
    if (mdp_session_option(session, OPTION_EVAL_TOKENS)->present)
        MDP_TRY(mdp_session_open_tokens_all(session, mdp_session_option(session, OPTION_EVAL_TOKENS)->text, NULL,
                                            &session->eval_tokens));
    MDP_TRY(mdp_session_open_subsets_all(session, &made->subsets));
    return mdp_session_open_tasks_all(session);
}

static const char *name_phases(const mdp_session *session, products *made) {
    snprintf(made->phase_names, sizeof made->phase_names, "observe%s%s%s%s%s",
             mdp_session_propagates(session) ? " (experts twice, for --propagate pruned)" : "",
             made->subsets.n_keep > 0 ? ", subsets" : "",
             made->cuts     ? ", cut"
             : made->merges ? ", merge"
                            : "",
             made->refits ? ", refit" : "", mdp_session_evaluates(session) ? ", eval" : "");
    return made->phase_names;
}

/* Rounds beyond one for each expert that goes would observe for nothing. Local. */
static mdp_status count_rounds(const mdp_session *session, products *made) {
    int64_t n = mdp_census_of_model(session->model).n_layer;
    int64_t asked = mdp_session_option(session, OPTION_ROUNDS)->integer;
    mdp_budget_layer *layers = NULL;
    MDP_TRY(mdp_session_list_layers(session->model, NULL, n, &layers));
    made->n_round = mdp_budget_rounds(layers, n, &made->budget, asked);
    mdp_free(layers);
    if (made->n_round < asked)
        mdp_log_message(session->log, MDP_LEVEL_INFO,
                        "--rounds %lld: %lld are enough to remove experts one by one (or in their multiples)",
                        (long long)asked, (long long)made->n_round);
    return mdp_ok();
}

static mdp_status prepare_all(mdp_session *session, products *made) {
    mdp_estimate estimate = {0};
    MDP_TRY(open_all(session, made));
    estimate.phase = name_phases(session, made);
    MDP_AGREE(session->comm, count_rounds(session, made));
    MDP_TRY(open_outputs_all(session, made));
    if (session->finished) return mdp_ok();
    int64_t held =
        mdp_session_stats_memory(session, &made->similarity) + mdp_session_subsets_memory(session, &made->subsets);
    if (made->fits) held += mdp_merge_fit_token_memory(session->layout, session->model, session->tokens);
    if (made->refits) held += mdp_session_refit_memory(session, &made->refit);
    MDP_TRY(mdp_session_weigh_all(session, held));
    MDP_TRY(
        mdp_session_foresee_all(session, &made->budget, made->n_round, made->refits ? &made->refit : NULL, &estimate));
    MDP_AGREE(session->comm, mdp_session_add_similarity(session, &made->similarity, &estimate));
    /* Sums are as large in a resume point as in stats.h5; there may be two points beside it. */
    int64_t stats_byte = mdp_stats_file_bytes(session->model, session->tokens->n_category, &made->similarity) +
                         mdp_subset_sums_memory(session->model, &made->subsets);
    MDP_TRY(mdp_session_check_room_all(session, estimate.bytes_written + estimate.bytes_saved + 3 * stats_byte));
    if (!mdp_session_option(session, OPTION_DRY_RUN)->flag) MDP_TRY(mdp_session_begin_all(session));
    return mdp_session_open_lines_all(session, &estimate);
}

/* ---- the steps ----------------------------------------------------------------------------------------------- */

/* Write the statistics; a criterion that wants vectors reads them again, since no rank has them all. */
static mdp_status write_stats_all(mdp_session *session, mdp_stats *stats) {
    char *path = NULL;
    mdp_status status = mdp_agree_all(session->comm, mdp_session_make_path(session, "stats.h5", &path));
    if (status.code == MDP_OK) status = mdp_stats_write_all(session->comm, stats, path);
    if (status.code == MDP_OK && mdp_session_vectors(session) != 0) {
        if (session->comm->rank == 0) status = mdp_stats_read_vectors(path, stats, mdp_session_vectors(session));
        if (session->comm->rank == 0 && status.code == MDP_OK) status = mdp_session_compare_experts(session, stats);
        status = mdp_agree_all(session->comm, status);
    }
    mdp_free(path);
    return status.code == MDP_OK ? mdp_session_publish_all(session, "stats.h5") : status;
}

/* What pruned propagation decides with. */
typedef struct decider {
    mdp_session *session;
    const mdp_budget_options *budget;
} decider;

/* The plan of all layers by what is known so far; only its word on `layer` counts, and the last plan says the same. */
static mdp_status decide_layer_all(void *context, int64_t layer, const mdp_stats *stats, mdp_view *view) {
    const decider *with = context;
    mdp_session *session = with->session;
    mdp_plan *plan = NULL;
    char *text = NULL;
    MDP_TRY(mdp_session_decide_all(session, stats, with->budget, (mdp_round){0, NULL}, &plan, &text));
    for (int64_t i = 0; i < plan->n_layer; i++) {
        if (plan->layers[i].layer == layer) mdp_transform_view_layer(session->model, &plan->layers[i], NULL, view);
    }
    mdp_plan_destroy(plan);
    mdp_free(text);
    return mdp_ok();
}

static mdp_status observe_pruned_all(mdp_session *session, products *made) {
    mdp_forward_options options = mdp_session_forward_options(session);
    decider with = {.session = session, .budget = &made->budget};
    mdp_propagation propagation = {.decide_all = decide_layer_all, .context = &with};
    mdp_status status = mdp_agree_all(session->comm, mdp_transform_view_new(session->model, &propagation.view));
    if (status.code == MDP_OK)
        status = mdp_observe_pruned_all(session->comm, session->model, session->reader, session->tokens, &propagation,
                                        &made->similarity, &options, &made->stats);
    mdp_view_destroy(propagation.view);
    return status;
}

static mdp_status observe_all(mdp_session *session, products *made) {
    mdp_forward_options options = mdp_session_forward_options(session);
    if (mdp_session_propagates(session))
        MDP_TRY(observe_pruned_all(session, made));
    else
        MDP_TRY(mdp_observe_all(session->comm, session->model, session->reader, session->tokens, NULL,
                                &made->similarity, &options, &made->stats));
    MDP_TRY(mdp_session_subsets_all(session, &made->subsets, made->stats));
    MDP_TRY(write_stats_all(session, made->stats));
    session->stats_made = true;
    return mdp_ok();
}

/* The described result and its view. Local. */
static mdp_status transform(const mdp_session *session, products *made) {
    char *provenance = NULL;
    MDP_TRY(mdp_plan_check(made->plan, session->model));
    MDP_TRY(mdp_session_check_uniform(session, made->plan));
    MDP_TRY(mdp_transform_view(session->model, made->plan, session->replaced, &made->view));
    MDP_TRY(mdp_session_provenance(session, made->plan, NULL, &provenance));
    mdp_extra extra;
    mdp_status status =
        mdp_transform_output(session->model, made->plan, session->replaced, mdp_session_extra(session, &extra),
                             made->plan_text, provenance, MDP_UNEQUAL_STACKED, &made->output);
    mdp_free(provenance);
    return status;
}

/* One round after the first: what the plan of the round before leaves is observed, and more of it removed. */
static mdp_status go_on_all(mdp_session *session, const mdp_budget_options *budget, products *made) {
    mdp_forward_options options = mdp_session_forward_options(session);
    mdp_round round = {.n = made->n_round, .previous = made->plan};
    mdp_view *view = NULL;
    mdp_stats *stats = NULL;
    mdp_plan *plan = NULL;
    char *text = NULL;
    mdp_status status = mdp_agree_all(session->comm, mdp_transform_view(session->model, made->plan, NULL, &view));
    if (status.code == MDP_OK)
        status = mdp_observe_all(session->comm, session->model, session->reader, session->tokens, view, NULL, &options,
                                 &stats);
    if (status.code == MDP_OK) status = mdp_session_decide_all(session, stats, budget, round, &plan, &text);
    mdp_view_destroy(view);
    mdp_stats_destroy(stats);
    MDP_TRY(status);
    mdp_plan_destroy(made->plan);
    mdp_free(made->plan_text);
    made->plan = plan;
    made->plan_text = text;
    return status;
}

/* Every round decides by its own share of the budget. */
static mdp_status rounds_all(mdp_session *session, const mdp_budget_layer *layers, int64_t n_layer,
                             mdp_keep_entry *list, products *made) {
    int64_t n_round = made->n_round;
    for (int64_t r = 1; r <= n_round; r++) {
        mdp_budget_options budget = mdp_budget_of_round(layers, n_layer, &made->budget, r, n_round, list);
        if (n_round > 1)
            mdp_log_message(session->log, MDP_LEVEL_INFO, "round %lld of %lld", (long long)r, (long long)n_round);
        if (r == 1)
            MDP_TRY(mdp_session_decide_all(session, made->stats, &budget, (mdp_round){.n = n_round}, &made->plan,
                                           &made->plan_text));
        else
            MDP_TRY(go_on_all(session, &budget, made));
    }
    return mdp_ok();
}

/* The plan becomes that of `text`, which is taken over. Collective. */
static mdp_status adopt_all(mdp_session *session, char *text, products *made) {
    char *path = NULL;
    mdp_plan *plan = NULL;
    mdp_status status = mdp_session_path(session, "plan.json", &path);
    if (status.code == MDP_OK) status = mdp_plan_parse(text, (int64_t)strlen(text), path, &plan);
    mdp_free(path);
    status = mdp_agree_all(session->comm, status);
    if (status.code != MDP_OK) {
        mdp_free(text);
        mdp_plan_destroy(plan);
        return status;
    }
    mdp_plan_destroy(made->plan);
    mdp_free(made->plan_text);
    made->plan = plan;
    made->plan_text = text;
    return status;
}

/* What the plan has made of experts is published, and opened where it is. Collective. */
static mdp_status open_made_all(mdp_session *session, const products *made) {
    mdp_replaced_destroy(session->replaced);
    session->replaced = NULL;
    MDP_TRY(mdp_session_publish_all(session, "plan.h5"));
    return mdp_replaced_open_all(session->comm, session->model, made->plan, session->reader, &session->replaced);
}

/* The plan becomes one whose merged experts are made: in plan.h5, or for a refit to go on from. */
static mdp_status merge_all(mdp_session *session, products *made) {
    char *text = NULL, *arrays = NULL;
    bool last = !made->refits;
    if (!mdp_plan_is_unmerged(made->plan)) return mdp_ok();
    mdp_status status =
        mdp_agree_all(session->comm, mdp_session_path(session, last ? "plan.h5" : "merged.h5", &arrays));
    if (status.code == MDP_OK)
        status = mdp_session_merge_all(session, made->plan, arrays, last ? NULL : &session->replaced, &text);
    mdp_free(arrays);
    if (status.code == MDP_OK) status = adopt_all(session, text, made);
    return status.code == MDP_OK && last ? open_made_all(session, made) : status;
}

/* The norms that masks need stand in plan.h5, and experts are read through their masks. Collective. */
static mdp_status mask_all(mdp_session *session, products *made) {
    char *text = NULL, *arrays = NULL;
    bool normed = false;
    mdp_status status = mdp_session_path(session, "plan.h5", &arrays);
    if (status.code == MDP_OK) status = mdp_copy_text(&text, made->plan_text);
    status = mdp_agree_all(session->comm, status);
    if (status.code == MDP_OK) status = mdp_session_write_norms_all(session, made->plan, made->stats, arrays, &normed);
    mdp_free(arrays);
    if (status.code != MDP_OK) {
        mdp_free(text);
        return status;
    }
    MDP_TRY(adopt_all(session, text, made)); /* so that it knows where its arrays are */
    if (normed) return open_made_all(session, made);
    return mdp_replaced_open_all(session->comm, session->model, made->plan, session->reader, &session->replaced);
}

/* The plan becomes one with fitted down projections, which stand in plan.h5. */
static mdp_status refit_all(mdp_session *session, products *made) {
    char *text = NULL, *arrays = NULL;
    mdp_status status = mdp_agree_all(session->comm, mdp_session_path(session, "plan.h5", &arrays));
    if (status.code == MDP_OK) status = mdp_session_refit_all(session, made->plan, &made->refit, arrays, &text);
    mdp_free(arrays);
    if (status.code == MDP_OK) status = adopt_all(session, text, made);
    return status.code == MDP_OK ? open_made_all(session, made) : status;
}

static mdp_status decide_all(mdp_session *session, products *made) {
    int64_t n_layer = mdp_census_of_model(session->model).n_layer;
    mdp_budget_layer *layers = NULL;
    mdp_keep_entry *list = NULL;
    mdp_status status = mdp_session_list_layers(session->model, NULL, n_layer, &layers);
    if (status.code == MDP_OK) status = MDP_ALLOC(&list, n_layer, "the list of a budget");
    status = mdp_agree_all(session->comm, status);
    if (status.code == MDP_OK) status = rounds_all(session, layers, n_layer, list, made);
    mdp_free(layers);
    mdp_free(list);
    return status;
}

/* The plan is what it stays. */
static mdp_status settle_all(mdp_session *session, products *made) {
    MDP_TRY(mdp_session_put_text_all(session, "plan.json", made->plan_text));
    session->plan_made = true;
    mdp_session_tell_unseen(session, made->plan);
    MDP_TRY(mdp_session_plan_mtp_all(session, made->plan, false));
    return mdp_agree_all(session->comm, transform(session, made));
}

/* Original and pruned as two streams of one forward, before anything is written. */
static mdp_status evaluate_all(mdp_session *session, products *made) {
    mdp_forward_options options = mdp_session_forward_options(session);
    char *plan_path = NULL, *text = NULL;
    if (!mdp_session_evaluates(session)) return mdp_ok();
    mdp_status status = mdp_agree_all(session->comm, mdp_session_path(session, "plan.json", &plan_path));
    mdp_eval_request requests[2] = {{.name = "original"}, {.name = "pruned", .plan = plan_path, .view = made->view}};
    if (status.code == MDP_OK)
        status = mdp_evaluate_all(session->comm, session->model, session->reader, session->eval_tokens, requests, 2,
                                  &options, NULL, &made->evaluation);
    if (status.code == MDP_OK && session->tasks)
        status = mdp_evaluate_tasks_all(session->comm, session->model, session->reader, session->tasks, requests,
                                        &options, made->evaluation);
    if (status.code == MDP_OK)
        status = mdp_agree_all(session->comm, mdp_evaluation_print(made->evaluation, session->resume->digest, &text));
    if (status.code == MDP_OK) status = mdp_session_put_text_all(session, "eval.json", text);
    mdp_free(plan_path);
    mdp_free(text);
    return status;
}

/* ---- the report ---------------------------------------------------------------------------------------------- */

/* Texts that the report borrows. */
typedef struct paths {
    int n;
    char *path[MDP_REPORT_MAX_WRITTEN];
    char *next;
} paths;

static mdp_status name_results(const mdp_session *session, paths *out) {
    const char *names[8];
    int n = 0;
    if (mdp_session_wants_native(session)) names[n++] = "model.h5";
    if (mdp_session_wants_hf(session)) names[n++] = "hf";
    names[n++] = "plan.json";
    if (session->replaced && session->replaced->n_array > 0) names[n++] = "plan.h5";
    names[n++] = "stats.h5";
    if (mdp_session_evaluates(session)) names[n++] = "eval.json";
    names[n++] = "report.json";
    names[n++] = "report.html";
    for (int i = 0; i < n; i++) {
        MDP_TRY(mdp_session_path(session, names[i], &out->path[out->n]));
        out->n++;
    }
    return mdp_session_next_step(session, &out->next);
}

/* Rank 0: report.json, report.html and stdout. */
static mdp_status tell(mdp_session *session, const mdp_report *report) {
    char *json = NULL, *page = NULL, *table = NULL;
    mdp_status status = mdp_report_print(report, &json);
    if (status.code == MDP_OK) status = mdp_report_page(json, &page);
    if (status.code == MDP_OK) status = mdp_report_table(report, &table);
    if (status.code == MDP_OK) status = mdp_session_put_text(session, "report.json", json);
    if (status.code == MDP_OK) status = mdp_session_put_text(session, "report.html", page);
    if (status.code == MDP_OK && mdp_session_option(session, OPTION_JSON)->flag)
        mdp_print_text(json);
    else if (status.code == MDP_OK && !mdp_session_option(session, OPTION_QUIET)->flag)
        mdp_print_text(table);
    mdp_free(json);
    mdp_free(page);
    mdp_free(table);
    return status;
}

static mdp_status name_and_tell(mdp_session *session, mdp_report *report) {
    paths results = {0};
    mdp_status status = name_results(session, &results);
    report->n_written = results.n;
    for (int i = 0; i < results.n; i++) report->written[i] = results.path[i];
    report->next = report->plan->uniform ? results.next : NULL;
    if (status.code == MDP_OK) status = tell(session, report);
    for (int i = 0; i < results.n; i++) mdp_free(results.path[i]);
    mdp_free(results.next);
    return status;
}

static mdp_status report_all(mdp_session *session, const products *made) {
    mdp_report report = {.model = session->model,
                         .plan = made->plan,
                         .output = made->output,
                         .stats = made->stats,
                         .evaluation = made->evaluation,
                         .tokens = session->tokens,
                         .n_rank = session->comm->size,
                         .n_node = session->comm->n_node,
                         .n_thread = session->n_thread,
                         .blas = session->compute,
                         .n_word = session->n_word,
                         .words = session->words};
    MDP_TRY(mdp_session_memory_all(session, &report.memory_largest, &report.memory_smallest));
    report.seconds = mdp_seconds() - session->start;
    report.n_phase = made->n_phase;
    memcpy(report.phases, made->phases, sizeof report.phases);
    mdp_status status = mdp_ok();
    if (session->comm->rank == 0) status = name_and_tell(session, &report);
    MDP_AGREE(session->comm, status);
    return mdp_session_log_memory_all(session);
}

/* The phase that began when the one before it ended is over; it may be the second part of an earlier one. */
static void end_phase(const mdp_session *session, products *made, const char *name) {
    double begun = session->start;
    int at = 0;
    for (int i = 0; i < made->n_phase; i++) begun += made->phases[i].seconds;
    while (at < made->n_phase && strcmp(made->phases[at].name, name) != 0) at++;
    if (at == made->n_phase) made->phases[made->n_phase++] = (mdp_report_phase){name, 0.0};
    made->phases[at].seconds += mdp_seconds() - begun;
}

static mdp_status perform_all(mdp_session *session, products *made) {
    MDP_TRY(prepare_all(session, made));
    if (session->finished || mdp_session_option(session, OPTION_DRY_RUN)->flag) return mdp_ok();
    end_phase(session, made, "prepare");
    MDP_TRY(observe_all(session, made));
    end_phase(session, made, "observe");
    MDP_TRY(decide_all(session, made));
    if (made->merges || made->refits) /* hours before it is written */
        MDP_TRY(mdp_agree_all(session->comm, mdp_session_check_uniform(session, made->plan)));
    end_phase(session, made, "plan");
    if (made->merges) MDP_TRY(merge_all(session, made));
    if (made->merges) end_phase(session, made, "merge");
    if (mdp_session_option(session, OPTION_MASK)->integer > 0) MDP_TRY(mask_all(session, made));
    if (made->refits) MDP_TRY(refit_all(session, made));
    if (made->refits) end_phase(session, made, "refit");
    MDP_TRY(settle_all(session, made));
    end_phase(session, made, "plan");
    MDP_TRY(evaluate_all(session, made));
    if (mdp_session_evaluates(session)) end_phase(session, made, "evaluate");
    MDP_TRY(mdp_session_write_all(session, made->plan, made->output));
    end_phase(session, made, "write");
    return report_all(session, made);
}

mdp_status mdp_command_run_all(mdp_session *session) {
    products made = {0};
    mdp_status status = perform_all(session, &made);
    free_products(&made);
    return status;
}
