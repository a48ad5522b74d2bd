/* subsets.c - a plan from what sets of experts lose (method naee): each layer keeps the set that loses least. */
#include "mdp/plan.h"

#include <math.h>
#include <string.h>

static const mdp_subsets *find(const mdp_layer_stats *layer, int32_t keep) {
    for (int i = 0; i < layer->n_subsets; i++)
        if (layer->subsets[i].keep == keep) return &layer->subsets[i];
    return NULL;
}

/* Members of the best set stay. Some may be in every set that was tried: no number says what they are worth, and they
 * get the largest. */
static mdp_status take_layer(const mdp_layer_stats *stats, int32_t keep, mdp_plan_layer *layer) {
    const mdp_subsets *sets = find(stats, keep);
    double most = 0.0;
    if (keep == layer->n_expert) return mdp_ok(); /* all stay, with scores of 0 */
    if (!sets)
        return MDP_ERROR(MDP_USAGE,
                         "layer %lld: the statistics do not say what sets of %d experts lose; observe one text with "
                         "--subsets %d.",
                         (long long)layer->layer, (int)keep, (int)keep);
    MDP_TRY(MDP_ALLOC(&layer->must_keep, layer->n_expert, "the kept experts of a layer"));
    for (int32_t i = 0; i < keep; i++) layer->must_keep[sets->kept[i]] = 1;
    for (mdp_expert_t e = 0; e < layer->n_expert; e++)
        if (isfinite(sets->without[e])) most = fmax(most, sets->without[e]);
    for (mdp_expert_t e = 0; e < layer->n_expert; e++)
        layer->scores[e] = isfinite(sets->without[e]) ? sets->without[e] : most;
    return mdp_ok();
}

static mdp_status take_layers(const mdp_plan_request *request, const int32_t *top_k, mdp_budget_layer *layers,
                              int32_t *count, mdp_plan *plan) {
    for (int64_t i = 0; i < plan->n_layer; i++) {
        const mdp_plan_layer *layer = &plan->layers[i];
        layers[i] = (mdp_budget_layer){layer->layer, layer->n_expert, layer->n_expert, top_k[i]};
    }
    MDP_TRY(mdp_budget_check(layers, plan->n_layer, &request->budget));
    MDP_TRY(mdp_budget_counts(layers, plan->n_layer, &request->budget, count));
    for (int64_t i = 0; i < plan->n_layer; i++)
        MDP_TRY(take_layer(&request->stats->layers[i], count[i], &plan->layers[i]));
    return mdp_ok();
}

mdp_status mdp_plan_take_subsets(const mdp_plan_request *request, const int32_t *top_k, mdp_plan *plan) {
    mdp_budget_layer *layers = NULL;
    int32_t *count = NULL;
    if (request->budget.budget == MDP_BUDGET_GLOBAL)
        return MDP_ERROR(MDP_USAGE,
                         "method '%s' compares sets of one layer, and --budget global ranks all layers "
                         "together; use uniform, trapezoid or --keep-file.",
                         request->criterion->name);
    mdp_status status = MDP_ALLOC(&layers, plan->n_layer, "the layers of a budget");
    if (status.code == MDP_OK) status = MDP_ALLOC(&count, plan->n_layer, "the budgets of layers");
    if (status.code == MDP_OK) status = take_layers(request, top_k, layers, count, plan);
    mdp_free(layers);
    mdp_free(count);
    return status;
}

json_t *mdp_plan_describe_subsets(const mdp_stats *stats, const mdp_plan *plan) {
    json_t *root = json_object(), *list = json_array();
    json_t *how = stats->subsets ? json_loads(stats->subsets, 0, NULL) : json_null();
    for (int64_t i = 0; i < plan->n_layer; i++) {
        const mdp_subsets *sets = find(&stats->layers[i], plan->layers[i].n_kept);
        if (!sets) continue;
        mdp_json_add(&list, json_pack("{s:I, s:s, s:I, s:f, s:o}", "layer", (json_int_t)plan->layers[i].layer, "search",
                                      mdp_subset_search_names[sets->search], "n_tried", (json_int_t)sets->n_tried,
                                      "loss", sets->loss, "next", mdp_json_number_or_null(sets->next)));
    }
    mdp_json_put(&root, "measured", how);
    mdp_json_put(&root, "layers", list);
    return root;
}
