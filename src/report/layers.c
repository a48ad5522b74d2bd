/* layers.c - the layers of report.json: see layers.h.
 *
 * Kept, dropped and the deciding scores come from the plan; the rows routed and all other scores from the statistics.
 * Both list the model's layers with experts in ascending order. */
#include "report/layers.h"

/* Can this criterion be computed from the statistics at hand? Vectors lie spread over the ranks that summed them. */
static bool has_scores(const mdp_report *report, const mdp_criterion *criterion) {
    return report->stats && criterion->needs_stats && !criterion->needs_vectors;
}

static json_t *print_reals(int32_t n, const double *values) {
    json_t *list = json_array();
    for (int32_t i = 0; i < n; i++) mdp_json_add(&list, mdp_json_number_or_null(values[i]));
    return list;
}

/* {"category": [rows routed to each expert], ...} */
static json_t *print_counts(const mdp_stats *stats, const mdp_layer_stats *layer) {
    json_t *counts = json_object();
    for (int c = 0; c < stats->n_category; c++) {
        json_t *list = json_array();
        for (int32_t e = 0; e < layer->n_expert; e++)
            mdp_json_add(&list, json_integer((json_int_t)layer->counts[(int64_t)c * layer->n_expert + e]));
        mdp_json_put(&counts, stats->category[c], list);
    }
    return counts;
}

/* The scores of a layer by one criterion; `score` is scratch for them. */
static mdp_status add_criterion(const mdp_criterion *criterion, const mdp_score_input *input, double *score,
                                json_t **out) {
    MDP_TRY(criterion->score(input, score));
    mdp_json_put(out, criterion->name, print_reals(input->n_expert, score));
    return mdp_ok();
}

/* {"criterion": [score of each expert], ...} into *out, a new object, which the caller releases also after an error. */
static mdp_status print_criteria(const mdp_report *report, int64_t i, json_t **out) {
    const mdp_layer_stats *layer = &report->stats->layers[i];
    mdp_score_input input = {
        .stats = report->stats, .layer_index = i, .layer = layer->layer, .n_expert = layer->n_expert};
    double *score = NULL;
    MDP_TRY(MDP_ALLOC(&score, layer->n_expert, "the scores of a layer in the report"));
    mdp_status status = mdp_ok();
    *out = json_object();
    for (int c = 0; c < mdp_n_criterion && status.code == MDP_OK; c++) {
        if (has_scores(report, &mdp_criteria[c])) status = add_criterion(&mdp_criteria[c], &input, score, out);
    }
    mdp_free(score);
    return status;
}

static json_t *print_choice(const mdp_plan_layer *layer, int32_t top_k) {
    json_t *kept = json_array(), *zeroed = json_array(), *dropped = json_array();
    for (int32_t j = 0; j < layer->n_kept; j++)
        mdp_json_add(layer->kept[j].action == MDP_ZERO ? &zeroed : &kept, json_integer(layer->kept[j].from[0]));
    for (int32_t j = 0; j < layer->n_dropped; j++) mdp_json_add(&dropped, json_integer(layer->dropped[j]));
    json_t *scores = layer->scores ? print_reals(layer->n_expert, layer->scores) : json_null();
    return json_pack("{s:I, s:i, s:i, s:i, s:o, s:o, s:o, s:o, s:o, s:o}", "layer", (json_int_t)layer->layer, "experts",
                     (int)layer->n_expert, "top_k_before", (int)top_k, "top_k_after",
                     (int)(layer->top_k > 0 ? layer->top_k : top_k), "kept", kept, "zeroed", zeroed, "merged",
                     mdp_plan_list_merged(layer), "merges", mdp_plan_describe_merged(layer), "dropped", dropped,
                     "scores", scores);
}

/* What the statistics say of a layer. */
static mdp_status add_observed(const mdp_report *report, int64_t i, json_t **layer) {
    json_t *criteria = NULL;
    mdp_json_put(layer, "counts", print_counts(report->stats, &report->stats->layers[i]));
    mdp_status status = print_criteria(report, i, &criteria);
    mdp_json_put(layer, "criteria", criteria);
    return status;
}

int64_t mdp_report_neurons(const mdp_report *report) {
    return report->model->layers[report->plan->layers[0].layer].moe.d_ff;
}

static mdp_status add_layer(const mdp_report *report, int64_t i, json_t **list) {
    const mdp_plan_layer *planned = &report->plan->layers[i];
    json_t *layer = print_choice(planned, report->model->layers[planned->layer].moe.top_k);
    mdp_status status = mdp_ok();
    if (mdp_plan_width(report->plan) > 0)
        mdp_json_put(&layer, "neurons",
                     json_pack("{s:I, s:I}", "before", (json_int_t)mdp_report_neurons(report), "after",
                               (json_int_t)mdp_plan_width(report->plan)));
    if (report->evaluation && report->evaluation->n_category > 0)
        mdp_json_put(&layer, "error",
                     mdp_json_number_or_null(mdp_evaluation_layer_error(report->evaluation, 1, planned->layer)));
    if (report->stats) status = add_observed(report, i, &layer);
    json_t *alike = NULL;
    if (status.code == MDP_OK) status = mdp_report_alike(report, i, &alike);
    if (alike) mdp_json_put(&layer, "similarity", alike);
    mdp_json_add(list, layer);
    return status;
}

mdp_status mdp_report_layers(const mdp_report *report, json_t **out) {
    mdp_status status = mdp_ok();
    *out = json_array();
    for (int64_t i = 0; i < report->plan->n_layer && status.code == MDP_OK; i++) status = add_layer(report, i, out);
    if (status.code == MDP_OK) return status;
    json_decref(*out);
    *out = NULL;
    return status;
}

json_t *mdp_report_observed(const mdp_report *report) {
    if (!report->stats) return json_null();
    json_t *categories = json_array(), *criteria = json_array();
    for (int c = 0; c < report->stats->n_category; c++)
        mdp_json_add(&categories, json_pack("{s:s, s:I}", "name", report->stats->category[c], "tokens",
                                            (json_int_t)report->stats->category_token[c]));
    for (int c = 0; c < mdp_n_criterion; c++) {
        if (has_scores(report, &mdp_criteria[c]))
            mdp_json_add(&criteria,
                         json_pack("{s:s, s:s}", "name", mdp_criteria[c].name, "help", mdp_criteria[c].help));
    }
    return json_pack("{s:o, s:o}", "categories", categories, "criteria", criteria);
}
