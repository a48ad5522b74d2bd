/* eval.c - the command `eval`: measures of a model and of any number of plans, applied in memory, in one forward over
 * text and one over multiple choice. */
#include "command/compute.h"
#include "command/continue.h"
#include "command/feasible.h"
#include "command/measured.h"
#include "command/opening.h"

#include <math.h>
#include <string.h>

/* The original and one stream for each plan; all [n] with n = 1 + plans. */
typedef struct streams {
    int n;
    mdp_eval_request *requests;
    struct owned_view {
        mdp_view *view;         /* NULL: the original */
        mdp_replaced *replaced; /* what it points into; NULL: nothing */
    } * owned;
    const mdp_view **views; /* the same */
} streams;

static void free_streams(streams *all) {
    for (int i = 0; all->owned && i < all->n; i++) {
        mdp_view_destroy(all->owned[i].view);
        mdp_replaced_destroy(all->owned[i].replaced);
    }
    mdp_free(all->owned);
    mdp_free(all->views);
    mdp_free(all->requests);
}

static mdp_status allocate_streams(int n, streams *all) {
    MDP_TRY(MDP_ALLOC(&all->requests, n, "the streams"));
    MDP_TRY(MDP_ALLOC(&all->owned, n, "the streams"));
    MDP_TRY(mdp_alloc((void **)&all->views, n, sizeof(void *), "the streams"));
    all->n = n;
    all->requests[0] = (mdp_eval_request){.name = "original"};
    return mdp_ok();
}

static mdp_status add_plan_all(mdp_session *session, const char *path, int stream, streams *all) {
    mdp_plan *plan = NULL;
    MDP_TRY(mdp_session_load_plan_all(session, path, &plan, &all->owned[stream].replaced, NULL));
    mdp_status status = mdp_agree_all(
        session->comm, mdp_transform_view(session->model, plan, all->owned[stream].replaced, &all->owned[stream].view));
    mdp_plan_destroy(plan);
    all->views[stream] = all->owned[stream].view;
    all->requests[stream] = (mdp_eval_request){.name = path, .plan = path, .view = all->owned[stream].view};
    return status;
}

static mdp_status open_all(mdp_session *session, streams *all) {
    const mdp_option_value *plans = mdp_session_option(session, OPTION_PLAN);
    const char *dump = mdp_session_option(session, OPTION_DUMP)->text;
    if (dump && mdp_session_option(session, OPTION_RESUME)->flag)
        return MDP_ERROR(MDP_USAGE, "--resume does not go with --dump, which is for small inputs.");
    MDP_AGREE(session->comm, allocate_streams(1 + plans->n_text, all));
    MDP_TRY(mdp_session_open_model_all(session));
    MDP_TRY(mdp_session_choose_compute_all(session, false));
    MDP_TRY(mdp_session_open_tokens_all(session, mdp_session_option(session, OPTION_TOKENS)->text,
                                        mdp_session_option(session, OPTION_CATEGORIES)->text, &session->tokens));
    MDP_TRY(mdp_session_open_tasks_all(session));
    for (int i = 0; i < plans->n_text; i++) MDP_TRY(add_plan_all(session, plans->texts[i], 1 + i, all));
    if (mdp_session_option(session, OPTION_DUMP)->present)
        MDP_AGREE(session->comm, mdp_dump_check(session->model, session->tokens, all->n));
    return mdp_session_open_outputs_all(session, &(mdp_results){.is_done = mdp_measured_is_done});
}

static void print_row(const char *name, int n, const double *values) {
    char start[25];
    mdp_print("%-24s", mdp_text_show(start, sizeof start, name));
    for (int s = 0; s < n; s++) {
        if (isfinite(values[s]))
            mdp_print(" %12.4g", values[s]);
        else
            mdp_print(" %12s", "-");
    }
    mdp_print("\n");
}

/* A measure over all categories, and over each when there are several. */
static void print_measure(const mdp_evaluation *evaluation, const mdp_measure *measure, double *values) {
    int end = evaluation->n_category > 1 ? evaluation->n_category : 0;
    for (int c = -1; c < end; c++) {
        char name[64];
        snprintf(name, sizeof name, c < 0 ? "%s" : "  %s", c < 0 ? measure->name : evaluation->category[c]);
        for (int s = 0; s < evaluation->n_stream; s++) values[s] = measure->of(evaluation, s, c);
        print_row(name, evaluation->n_stream, values);
    }
}

static void print_tasks(const mdp_evaluation *evaluation, double *values) {
    const mdp_tokens *tasks = evaluation->tasks->tokens;
    for (int t = tasks->n_category > 1 ? -1 : 0; t < tasks->n_category; t++) {
        char name[64];
        snprintf(name, sizeof name, t < 0 ? "%s" : "  %s", t < 0 ? "accuracy_byte" : tasks->category[t]);
        for (int s = 0; s < evaluation->n_stream; s++) {
            values[s] = mdp_evaluation_accuracy(evaluation, s, t, MDP_BY_BYTE);
        }
        print_row(name, evaluation->n_stream, values);
    }
}

/* Every measure of every stream: what people compare. Rank 0. */
static mdp_status print_table(const mdp_evaluation *evaluation) {
    double *values = NULL;
    MDP_TRY(MDP_ALLOC(&values, evaluation->n_stream, "the table"));
    mdp_print("%-24s", "");
    for (int s = 0; s < evaluation->n_stream; s++) mdp_print(" %12s", s == 0 ? "original" : "plan");
    mdp_print(evaluation->n_stream > 2 ? "   (plans in the order given)\n" : "\n");
    for (int m = 0; m < mdp_evaluation_n_measure(evaluation); m++) {
        if (mdp_measures[m].of != mdp_evaluation_loss) print_measure(evaluation, &mdp_measures[m], values);
    }
    if (evaluation->tasks) print_tasks(evaluation, values);
    mdp_free(values);
    return mdp_ok();
}

static mdp_status write_result_all(mdp_session *session, const mdp_evaluation *evaluation) {
    char *text = NULL;
    mdp_status status = mdp_agree_all(session->comm, mdp_evaluation_print(evaluation, session->resume->digest, &text));
    if (status.code == MDP_OK) status = mdp_session_put_text_all(session, NULL, text);
    mdp_status shown = mdp_ok();
    if (status.code == MDP_OK && session->comm->rank == 0) {
        if (mdp_session_option(session, OPTION_JSON)->flag)
            mdp_print_text(text);
        else if (!mdp_session_option(session, OPTION_QUIET)->flag)
            shown = print_table(evaluation);
    }
    mdp_free(text);
    return status.code == MDP_OK ? mdp_agree_all(session->comm, shown) : status;
}

/* Both forward passes, and the dump of the first. */
static mdp_status measure_all(mdp_session *session, const streams *all, mdp_evaluation **out) {
    mdp_forward_options options = mdp_session_forward_options(session);
    char *dump = NULL;
    mdp_status status = mdp_agree_all(session->comm, mdp_session_dump_path(session, &dump));
    if (status.code == MDP_OK)
        status = mdp_evaluate_all(session->comm, session->model, session->reader, session->tokens, all->requests,
                                  all->n, &options, dump, out);
    mdp_free(dump);
    if (status.code == MDP_OK) status = mdp_session_publish_dump_all(session);
    if (status.code == MDP_OK && session->tasks)
        status = mdp_evaluate_tasks_all(session->comm, session->model, session->reader, session->tasks, all->requests,
                                        &options, *out);
    return status;
}

static mdp_status evaluate_all(mdp_session *session, streams *all) {
    mdp_estimate estimate = {.phase = "eval"};
    mdp_evaluation *evaluation = NULL;
    MDP_TRY(open_all(session, all));
    if (session->finished) return mdp_ok();
    mdp_pass pass = mdp_loss_pass(all->n, all->views), text = pass;
    text.head_again = mdp_session_option(session, OPTION_OVERLAP)->flag;
    MDP_TRY(mdp_session_weigh_all(session, 0));
    MDP_TRY(mdp_session_add_pass_all(session, "eval", session->tokens, text, &estimate));
    if (session->tasks) MDP_TRY(mdp_session_add_pass_all(session, "tasks", session->tasks->tokens, pass, &estimate));
    MDP_AGREE(session->comm, mdp_session_check_memory(session, &estimate));
    MDP_TRY(mdp_session_check_room_all(session, estimate.bytes_saved));
    MDP_TRY(mdp_session_open_lines_all(session, &estimate));
    if (mdp_session_option(session, OPTION_DRY_RUN)->flag) return mdp_ok();
    mdp_status status = measure_all(session, all, &evaluation);
    if (status.code == MDP_OK) status = write_result_all(session, evaluation);
    mdp_evaluation_destroy(evaluation);
    MDP_TRY(status);
    return mdp_session_log_memory_all(session);
}

mdp_status mdp_command_eval_all(mdp_session *session) {
    streams all = {0};
    mdp_status status = evaluate_all(session, &all);
    free_streams(&all);
    return status;
}
