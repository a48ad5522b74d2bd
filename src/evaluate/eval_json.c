/* eval_json.c - eval.json: what was measured, for programs. */
#include "mdp/evaluate.h"

/* {"total": ..., "categories": {...}} of one measure. */
static json_t *print_measure(const mdp_evaluation *evaluation, int stream, mdp_measure_fn *of) {
    json_t *categories = json_object();
    for (int c = 0; c < evaluation->n_category; c++) {
        mdp_json_put(&categories, evaluation->category[c], mdp_json_number_or_null(of(evaluation, stream, c)));
    }
    return json_pack("{s:o, s:o}", "total", mdp_json_number_or_null(of(evaluation, stream, -1)), "categories",
                     categories);
}

/* One number for each layer of the model; empty without text. */
static json_t *print_layers(const mdp_evaluation *evaluation, int stream) {
    json_t *list = json_array();
    for (int64_t l = 0; evaluation->n_category > 0 && l < evaluation->n_layer; l++)
        mdp_json_add(&list, mdp_json_number_or_null(mdp_evaluation_layer_error(evaluation, stream, l)));
    return list;
}

static json_t *print_predicted(const mdp_evaluation *evaluation) {
    json_t *categories = json_object();
    int64_t total = 0;
    for (int c = 0; c < evaluation->n_category; c++) {
        mdp_json_put(&categories, evaluation->category[c], json_integer(evaluation->n_predicted[c]));
        total += evaluation->n_predicted[c];
    }
    return json_pack("{s:I, s:o}", "total", (json_int_t)total, "categories", categories);
}

static json_t *print_task(const mdp_evaluation *evaluation, int stream, int task) {
    const mdp_tasks *tasks = evaluation->tasks;
    json_t *items = json_array(), *object = json_object();
    for (int64_t i = tasks->task_item[task]; i < tasks->task_item[task + 1]; i++) {
        json_t *choices = json_array();
        for (int64_t c = tasks->item_choice[i]; c < tasks->item_choice[i + 1]; c++) {
            mdp_json_add(&choices, mdp_json_number_or_null(evaluation->streams[stream].loglikelihood[c]));
        }
        mdp_json_add(&items, choices);
    }
    mdp_json_put(&object, "n", json_integer(tasks->task_item[task + 1] - tasks->task_item[task]));
    for (int by = 0; by < MDP_N_CHOICE_BY; by++) {
        double accuracy = mdp_evaluation_accuracy(evaluation, stream, task, (mdp_choice_by)by);
        mdp_json_put(&object, mdp_choice_names[by], mdp_json_number_or_null(accuracy));
    }
    mdp_json_put(&object, "loglikelihood", items);
    return object;
}

static json_t *print_tasks(const mdp_evaluation *evaluation, int stream) {
    json_t *tasks = json_object();
    for (int t = 0; evaluation->tasks && t < evaluation->tasks->tokens->n_category; t++) {
        mdp_json_put(&tasks, evaluation->tasks->tokens->category[t], print_task(evaluation, stream, t));
    }
    return tasks;
}

void mdp_evaluation_print_measures(const mdp_evaluation *evaluation, int stream, json_t **object) {
    for (int m = 0; m < mdp_evaluation_n_measure(evaluation); m++)
        mdp_json_put(object, mdp_measures[m].name, print_measure(evaluation, stream, mdp_measures[m].of));
    mdp_json_put(object, "layer_error", print_layers(evaluation, stream));
}

static json_t *print_stream(const mdp_evaluation *evaluation, int s) {
    const mdp_eval_stream *stream = &evaluation->streams[s];
    json_t *object = json_pack("{s:s, s:s?, s:o}", "name", stream->name, "plan", stream->plan, "n_predicted",
                               print_predicted(evaluation));
    mdp_evaluation_print_measures(evaluation, s, &object);
    mdp_json_put(&object, "tasks", print_tasks(evaluation, s));
    return object;
}

mdp_status mdp_evaluation_print(const mdp_evaluation *evaluation, const char *identity, char **out) {
    json_t *streams = json_array();
    for (int s = 0; s < evaluation->n_stream; s++) mdp_json_add(&streams, print_stream(evaluation, s));
    json_t *root =
        json_pack("{s:s, s:s, s:i, s:o, s:o, s:o}", "format", "moe-dist-prune eval", "version", "1.0", "n_ranks",
                  evaluation->n_rank, "seconds", mdp_json_number_or_null(evaluation->seconds), "tokens_per_second",
                  mdp_json_number_or_null(evaluation->tokens_per_second), "streams", streams);
    if (!root) return MDP_ERROR(MDP_EXHAUSTED, "out of memory for eval.json.");
    if (identity) mdp_json_put(&root, "identity", json_string(identity));
    mdp_status status = mdp_json_print(root, out);
    json_decref(root);
    return status;
}
