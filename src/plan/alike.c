/* alike.c - the budget grape: layers whose experts are most alike merge most.
 *
 * In: similarities of the experts of every layer. Out: how many groups each is merged to (group.h says how layers take
 * turns); which experts they are is for the way to group. Similarities count as they are; distances, which have another
 * unit in each layer, as 1 - D / (the layer's largest). Formulas: methods.md, section 2. */
#include "mdp/plan.h"

#include <math.h>

/* A layer's similarities, as layers can be compared by: out [n, n]. */
static void compare_layer(const mdp_similarity *how, int32_t n, const double *stored, double *out) {
    double most = 0.0, sign = how->is_negative ? -1.0 : 1.0;
    bool distance = how->is_distance || how->is_negative;
    for (int64_t at = 0; distance && at < (int64_t)n * n; at++) most = fmax(most, sign * stored[at]);
    for (int64_t at = 0; at < (int64_t)n * n; at++)
        out[at] = !distance ? stored[at] : most > 0.0 ? 1.0 - sign * stored[at] / most : 1.0;
}

static mdp_status fill_layer(const mdp_plan_request *request, const mdp_plan *plan, const int32_t *top_k, int64_t i,
                             mdp_grape_layer *out) {
    const mdp_plan_layer *layer = &plan->layers[i];
    mdp_similarity_id id = request->merge->similarity;
    const double *stored = mdp_stats_similarity(request->stats, i, id);
    const mdp_budget_layer as_budget = {
        .layer = layer->layer, .n_expert = layer->n_expert, .n_alive = layer->n_expert, .top_k = top_k[i]};
    double *similarity = NULL;
    if (!stored)
        return MDP_ERROR(MDP_BAD_INPUT, "the statistics have no similarity '%s' for layer %lld; observe with it.",
                         mdp_similarities[id].name, (long long)layer->layer);
    *out = (mdp_grape_layer){.n = layer->n_expert, .min_keep = mdp_budget_least(&as_budget, &request->budget)};
    MDP_TRY(MDP_ALLOC(&out->group, layer->n_expert, "groups of experts"));
    MDP_TRY(MDP_ALLOC(&similarity, (int64_t)layer->n_expert * layer->n_expert, "similarities of experts"));
    compare_layer(&mdp_similarities[id], layer->n_expert, stored, similarity);
    out->similarity = similarity;
    return mdp_ok();
}

mdp_status mdp_plan_share_alike(const mdp_plan_request *request, const mdp_plan *plan, const int32_t *top_k,
                                mdp_keep_entry *list) {
    int32_t unit = mdp_budget_unit(&request->budget);
    int64_t total = (plan->n_layer * request->budget.keep + unit / 2) / unit * unit;
    mdp_grape_layer *layers = NULL;
    mdp_status status = MDP_ALLOC(&layers, plan->n_layer, "layers that merge");
    for (int64_t i = 0; i < plan->n_layer && status.code == MDP_OK; i++)
        status = fill_layer(request, plan, top_k, i, &layers[i]);
    if (status.code == MDP_OK)
        status = mdp_grape(plan->n_layer, layers, total, request->budget.n_group, MDP_GRAPE_GAMMA);
    for (int64_t i = 0; layers && i < plan->n_layer; i++) {
        list[i] = (mdp_keep_entry){plan->layers[i].layer, layers[i].keep};
        mdp_free((double *)layers[i].similarity);
        mdp_free(layers[i].group);
    }
    mdp_free(layers);
    return status;
}
