/* make.c - statistics -> scores -> choice: a plan with the recipe that says how it was made.
 *
 * The layers come from the statistics or, for a criterion that needs none, from the model. The recipe holds what
 * determines the plan and nothing else (no ranks, no times), so that equal decisions give equal bytes. */
#include "mdp/plan.h"

#include <string.h>

static int64_t count_moe_layers(const mdp_model *model) {
    int64_t n = 0;
    for (int64_t l = 0; l < model->n_layer; l++) n += model->layers[l].is_moe;
    return n;
}

/* Layer numbers, expert counts and k, from where they are known. top_k [n_layer]. */
static void describe_layers(const mdp_plan_request *request, mdp_plan *plan, int32_t *top_k) {
    if (request->stats) {
        for (int64_t i = 0; i < plan->n_layer; i++) {
            plan->layers[i].layer = request->stats->layers[i].layer;
            plan->layers[i].n_expert = request->stats->layers[i].n_expert;
            top_k[i] = request->stats->layers[i].top_k;
        }
        return;
    }
    int64_t i = 0;
    for (int64_t l = 0; l < request->model->n_layer; l++) {
        if (!request->model->layers[l].is_moe) continue;
        plan->layers[i].layer = l;
        plan->layers[i].n_expert = request->model->layers[l].moe.n_expert;
        top_k[i] = request->model->layers[l].moe.top_k;
        i++;
    }
}

static mdp_status score_layers(const mdp_plan_request *request, mdp_plan *plan) {
    for (int64_t i = 0; i < plan->n_layer; i++) {
        mdp_plan_layer *layer = &plan->layers[i];
        MDP_TRY(MDP_ALLOC(&layer->scores, layer->n_expert, "the scores of a layer"));
        mdp_score_input input = {.stats = request->stats,
                                 .seed = request->seed,
                                 .layer_index = i,
                                 .layer = layer->layer,
                                 .n_expert = layer->n_expert};
        MDP_TRY(request->criterion->score(&input, layer->scores));
    }
    return mdp_ok();
}

/* {"method", "budget", "keep", "options": {...}, "calibration": {...}}; new, or NULL when memory is out. */
static json_t *describe_recipe(const mdp_plan_request *request, int32_t min_keep) {
    const mdp_budget_options *budget = &request->budget;
    json_t *options = json_object();
    if (!options) return NULL;
    if (budget->budget == MDP_BUDGET_GLOBAL) {
        json_object_set_new(options, "min_keep", json_integer(min_keep));
        json_object_set_new(options, "normalise", json_string(mdp_score_normalise_names[budget->normalise]));
    }
    if (!request->criterion->needs_stats) json_object_set_new(options, "seed", json_integer((json_int_t)request->seed));
    json_t *recipe = json_pack("{s:s, s:s, s:i, s:o}", "method", request->criterion->name, "budget",
                               mdp_budget_names[budget->budget], "keep", (int)budget->keep, "options", options);
    if (recipe && request->criterion->needs_stats)
        json_object_set_new(recipe, "calibration",
                            json_pack("{s:s, s:I}", "tokens", request->stats->tokens_fingerprint, "n_tokens",
                                      (json_int_t)request->stats->n_token));
    return recipe;
}

static mdp_status fill_plan(const mdp_plan_request *request, int32_t *top_k, mdp_plan *plan) {
    const mdp_stats *stats = request->stats;
    memcpy(plan->fingerprint, stats ? stats->model_fingerprint : request->model->catalogue->fingerprint,
           sizeof plan->fingerprint);
    memcpy(plan->model_type, stats ? stats->model_type : request->model->model_type, sizeof plan->model_type);
    describe_layers(request, plan, top_k);
    MDP_TRY(score_layers(request, plan));
    MDP_TRY(mdp_plan_choose(plan, top_k, &request->budget));
    int32_t min_keep = request->budget.min_keep;
    for (int64_t i = 0; i < plan->n_layer && request->budget.min_keep == 0; i++)
        min_keep = top_k[i] > min_keep ? top_k[i] : min_keep;
    json_t *recipe = describe_recipe(request, min_keep);
    if (!recipe) return MDP_ERROR(MDP_INTERNAL, "out of memory for the recipe of a plan.");
    json_decref(plan->recipe);
    plan->recipe = recipe;
    return mdp_ok();
}

mdp_status mdp_plan_make(const mdp_plan_request *request, mdp_plan **out) {
    *out = NULL;
    if (request->criterion->needs_stats && !request->stats)
        return MDP_ERROR(MDP_USAGE, "method '%s' needs statistics; observe the model first and give --stats.",
                         request->criterion->name);
    mdp_plan *plan = NULL;
    int32_t *top_k = NULL;
    int64_t n_layer = request->stats ? request->stats->n_layer : count_moe_layers(request->model);
    MDP_TRY(MDP_ALLOC(&top_k, n_layer, "the layers of a plan"));
    mdp_status status = mdp_plan_new(n_layer, &plan);
    if (status.code == MDP_OK) status = fill_plan(request, top_k, plan);
    mdp_free(top_k);
    if (status.code != MDP_OK) {
        mdp_plan_destroy(plan);
        return status;
    }
    *out = plan;
    return status;
}
