/* make.c - statistics -> scores -> choice: a plan with the recipe that says how it was made.
 *
 * The layers come from the statistics or, for a criterion that needs none, from the model. Super experts are looked for
 * whenever there are statistics, and named in the recipe. The recipe holds what
 * determines the plan and nothing else (no ranks, no times), so that equal decisions give equal bytes. */
#include "mdp/plan.h"

#include <string.h>

const char *const mdp_pruned_route_names[] = {[MDP_ROUTE_SLICE] = "slice", [MDP_ROUTE_ZERO] = "zero", NULL};

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

/* The scores that the model's own pass left, and the experts that it did not drop. */
static mdp_status take_proficiency(const mdp_proficiency *from, mdp_plan_layer *layer) {
    MDP_TRY(MDP_ALLOC(&layer->must_keep, layer->n_expert, "the kept experts of a layer"));
    memcpy(layer->scores, from->score, (size_t)layer->n_expert * sizeof *layer->scores);
    for (int32_t i = 0; i < from->n_alive; i++) layer->must_keep[from->alive[i]] = 1;
    return mdp_ok();
}

static mdp_status score_layer(const mdp_plan_request *request, const mdp_score_input *input, mdp_plan_layer *layer) {
    const mdp_criterion *criterion = request->criterion;
    if (criterion->own_pass) return take_proficiency(request->proficiency[layer->layer], layer);
    if (criterion->needs_subsets) return mdp_ok(); /* mdp_plan_take_subsets */
    if (request->worst_category) return mdp_score_worst_category(criterion, input, layer->scores);
    return criterion->score(input, layer->scores);
}

/* What the round before removed, with the scores that it had then. */
static mdp_status take_previous(const mdp_plan_layer *previous, mdp_plan_layer *layer) {
    MDP_TRY(MDP_ALLOC(&layer->gone, layer->n_expert, "the removed experts of a layer"));
    for (int32_t i = 0; i < previous->n_dropped; i++) layer->gone[previous->dropped[i]] = 1;
    for (int32_t i = 0; i < previous->n_kept; i++) {
        if (previous->kept[i].action == MDP_ZERO) layer->gone[previous->kept[i].from[0]] = 1;
    }
    for (mdp_expert_t e = 0; e < layer->n_expert; e++) {
        if (layer->gone[e]) layer->scores[e] = previous->scores[e];
    }
    return mdp_ok();
}

/* Experts of which the text that counts says nothing. A round after the first knows it of those that are left. */
static mdp_status find_unseen(const mdp_plan_request *request, int64_t i, mdp_plan_layer *layer) {
    const mdp_plan_layer *previous = request->previous ? &request->previous->layers[i] : NULL;
    if (!request->criterion->needs_stats) return mdp_ok();
    MDP_TRY(MDP_ALLOC(&layer->unseen, layer->n_expert, "the experts that no token reached"));
    for (mdp_expert_t e = 0; e < layer->n_expert; e++) {
        if (previous && layer->gone && layer->gone[e])
            layer->unseen[e] = previous->unseen && previous->unseen[e];
        else
            layer->unseen[e] = mdp_stats_count(request->stats, i, e, request->weight) == 0.0;
    }
    return mdp_ok();
}

static mdp_status score_layers(const mdp_plan_request *request, mdp_plan *plan) {
    for (int64_t i = 0; i < plan->n_layer; i++) {
        mdp_plan_layer *layer = &plan->layers[i];
        MDP_TRY(MDP_ALLOC(&layer->scores, layer->n_expert, "the scores of a layer"));
        mdp_score_input input = {.stats = request->stats,
                                 .weights = request->weights,
                                 .weight = request->weight,
                                 .soft_mask = request->soft_mask,
                                 .seed = request->seed,
                                 .layer_index = i,
                                 .layer = layer->layer,
                                 .n_expert = layer->n_expert};
        MDP_TRY(score_layer(request, &input, layer));
        if (request->previous) MDP_TRY(take_previous(&request->previous->layers[i], layer));
        MDP_TRY(find_unseen(request, i, layer));
    }
    return mdp_ok();
}

static mdp_status protect(const mdp_super_expert *all, int64_t n, const mdp_plan *plan) {
    for (int64_t i = 0; i < n; i++) {
        mdp_plan_layer *layer = &plan->layers[all[i].layer_index];
        if (!layer->must_keep)
            MDP_TRY(MDP_ALLOC(&layer->must_keep, layer->n_expert, "the protected experts of a layer"));
        layer->must_keep[all[i].expert] = 1;
    }
    return mdp_ok();
}

/* What goes stays in its place instead, and returns 0. */
static mdp_status zero_dropped(mdp_plan *plan) {
    for (int64_t i = 0; i < plan->n_layer; i++) {
        mdp_plan_layer *layer = &plan->layers[i];
        mdp_plan_expert *all = NULL;
        MDP_TRY(MDP_ALLOC(&all, layer->n_expert, "the experts of a plan"));
        for (int32_t j = 0; j < layer->n_kept; j++) all[layer->kept[j].from[0]] = layer->kept[j];
        mdp_free(layer->kept);
        layer->kept = all;
        layer->n_kept = layer->n_expert;
        for (int32_t j = 0; j < layer->n_dropped; j++) {
            mdp_plan_expert *expert = &all[layer->dropped[j]];
            MDP_TRY(MDP_ALLOC(&expert->from, 1, "an expert of a plan"));
            *expert = (mdp_plan_expert){.action = MDP_ZERO, .n_from = 1, .from = expert->from};
            expert->from[0] = layer->dropped[j];
        }
        layer->n_dropped = 0;
    }
    plan->uniform = true;
    for (int64_t i = 1; i < plan->n_layer; i++)
        plan->uniform = plan->uniform && plan->layers[i].n_kept == plan->layers[0].n_kept;
    return mdp_ok();
}

/* ---- the recipe ---------------------------------------------------------------------------------------------- */

static json_t *describe_super(const mdp_super_expert *all, int64_t n) {
    json_t *list = json_array();
    for (int64_t i = 0; i < n; i++)
        mdp_json_add(&list, json_pack("{s:I, s:i, s:f}", "layer", (json_int_t)all[i].layer, "expert",
                                      (int)all[i].expert, "max_abs", all[i].max_abs));
    return list;
}

/* Categories that count, with their weights. */
static json_t *describe_weights(const mdp_stats *stats, const double *weight) {
    json_t *object = json_object();
    for (int c = 0; c < stats->n_category; c++) {
        if (weight[c] > 0.0 && !json_object_get(object, stats->category[c]))
            mdp_json_put(&object, stats->category[c],
                         json_real(weight[c] / (stats->category_weight ? stats->category_weight[c] : 1.0)));
    }
    return object;
}

static json_t *describe_options(const mdp_plan_request *request, int32_t min_keep) {
    const mdp_budget_options *budget = &request->budget;
    const mdp_criterion *criterion = request->criterion;
    json_t *options = json_object();
    if (!options) return NULL;
    if (mdp_budget_spreads(budget->budget)) mdp_json_put(&options, "min_keep", json_integer(min_keep));
    if (budget->budget == MDP_BUDGET_GLOBAL)
        mdp_json_put(&options, "normalise", json_string(mdp_score_normalise_names[budget->normalise]));
    if (budget->multiple_of > 1) mdp_json_put(&options, "keep_multiple_of", json_integer(budget->multiple_of));
    if (request->n_round > 1) mdp_json_put(&options, "rounds", json_integer((json_int_t)request->n_round));
    if (budget->top_k > 0) mdp_json_put(&options, "top_k", json_integer(budget->top_k));
    if (criterion->is_seeded) mdp_json_put(&options, "seed", json_integer((json_int_t)request->seed));
    if (criterion->has_soft_mask)
        mdp_json_put(&options, "soft_mask", json_string(mdp_soft_mask_names[request->soft_mask]));
    if (request->stats && request->weight)
        mdp_json_put(&options, "categories", describe_weights(request->stats, request->weight));
    if (request->stats && request->stats->pruned_inputs) mdp_json_put(&options, "propagate", json_string("pruned"));
    if (request->worst_category) mdp_json_put(&options, "worst_category", json_true());
    if (request->protect_super_experts) mdp_json_put(&options, "protect_super_experts", json_true());
    if (request->pruned_route != MDP_ROUTE_SLICE)
        mdp_json_put(&options, "pruned_route", json_string(mdp_pruned_route_names[request->pruned_route]));
    if (request->weights && request->weights->pretrained_routers[0])
        mdp_json_put(&options, "pretrained_routers", json_string(request->weights->pretrained_routers));
    return options;
}

static json_t *describe_calibration(const mdp_plan_request *request) {
    const mdp_stats *stats = request->stats;
    if (request->criterion->own_pass)
        return json_pack("{s:s, s:I, s:s}", "tokens", request->tokens->fingerprint, "n_tokens",
                         (json_int_t)request->tokens->n_token, "compute", request->compute);
    json_t *object =
        json_pack("{s:s, s:I}", "tokens", stats->tokens_fingerprint, "n_tokens", (json_int_t)stats->n_token);
    if (stats->compute[0] != '\0') mdp_json_put(&object, "compute", json_string(stats->compute));
    json_t *parts = stats->n_part > 0 ? json_array() : NULL;
    for (int i = 0; i < stats->n_part; i++)
        mdp_json_add(&parts, json_pack("{s:s, s:I, s:f}", "tokens", stats->parts[i].tokens_fingerprint, "n_tokens",
                                       (json_int_t)stats->parts[i].n_token, "weight", stats->parts[i].weight));
    if (parts) mdp_json_put(&object, "parts", parts);
    return object;
}

/* One number, or with the budget list one for each layer. */
static json_t *describe_keep(const mdp_budget_options *budget) {
    if (budget->budget != MDP_BUDGET_LIST) return json_integer(budget->keep);
    json_t *list = json_array();
    for (int64_t i = 0; i < budget->n_list; i++) mdp_json_add(&list, json_integer(budget->list[i].keep));
    return list;
}

/* {"method", "budget", "keep", "options": {...}, "calibration": {...}}; new, or NULL when memory is out. */
static json_t *describe_recipe(const mdp_plan_request *request, int32_t min_keep) {
    json_t *options = describe_options(request, min_keep);
    if (!options) return NULL;
    json_t *recipe = json_pack("{s:s, s:s, s:o, s:o}", "method", request->criterion->name, "budget",
                               mdp_budget_names[request->budget.budget], "keep", describe_keep(&request->budget),
                               "options", options);
    if (recipe && (request->criterion->needs_stats || request->criterion->own_pass))
        mdp_json_put(&recipe, "calibration", describe_calibration(request));
    return recipe;
}

/* By the numbers of the budget. */
static mdp_status choose_by_budget(const mdp_plan_request *request, const int32_t *top_k, mdp_plan *plan) {
    mdp_budget_options budget = request->budget;
    mdp_keep_entry *list = NULL;
    if (budget.budget != MDP_BUDGET_GRAPE || !request->merge) return mdp_plan_choose(plan, top_k, &budget);
    MDP_TRY(MDP_ALLOC(&list, plan->n_layer, "the list of a budget"));
    mdp_status status = mdp_plan_share_alike(request, plan, top_k, list);
    budget.budget = MDP_BUDGET_LIST;
    budget.list = list;
    budget.n_list = plan->n_layer;
    if (status.code == MDP_OK) status = mdp_plan_choose(plan, top_k, &budget);
    mdp_free(list);
    return status;
}

/* Choose, with super experts found and, where that was asked for, protected. */
static mdp_status choose(const mdp_plan_request *request, const int32_t *top_k, mdp_plan *plan, json_t **super) {
    mdp_super_expert *all = NULL;
    int64_t n = 0;
    if (request->stats) MDP_TRY(mdp_super_experts(request->stats, request->weight, &all, &n));
    mdp_status status = mdp_ok();
    if (request->protect_super_experts) status = protect(all, n, plan);
    if (status.code == MDP_OK) status = choose_by_budget(request, top_k, plan);
    if (status.code == MDP_OK && request->merge) status = mdp_plan_group(request, plan);
    if (status.code == MDP_OK && request->cut) status = mdp_plan_cut(request->cut, request->stats, plan);
    if (status.code == MDP_OK && request->pruned_route == MDP_ROUTE_ZERO) status = zero_dropped(plan);
    if (status.code == MDP_OK && request->stats) *super = describe_super(all, n);
    mdp_free(all);
    return status;
}

static mdp_status fill_plan(const mdp_plan_request *request, int32_t *top_k, mdp_plan *plan) {
    const mdp_stats *stats = request->stats;
    memcpy(plan->fingerprint, stats ? stats->model_fingerprint : request->model->catalogue->fingerprint,
           sizeof plan->fingerprint);
    memcpy(plan->model_type, stats ? stats->model_type : request->model->model_type, sizeof plan->model_type);
    describe_layers(request, plan, top_k);
    MDP_TRY(score_layers(request, plan));
    if (request->criterion->needs_subsets) MDP_TRY(mdp_plan_take_subsets(request, top_k, plan));
    json_t *super = NULL;
    MDP_TRY(choose(request, top_k, plan, &super));
    int32_t min_keep = request->budget.min_keep;
    for (int64_t i = 0; i < plan->n_layer && request->budget.min_keep == 0; i++)
        min_keep = top_k[i] > min_keep ? top_k[i] : min_keep;
    if (request->budget.min_keep == 0 && request->budget.top_k > 0) min_keep = request->budget.top_k;
    json_t *recipe = describe_recipe(request, min_keep);
    if (recipe && request->merge) mdp_json_put(&recipe, "merge", mdp_plan_describe_merge(request->merge));
    if (recipe && request->criterion->needs_subsets)
        mdp_json_put(&recipe, "subsets", mdp_plan_describe_subsets(request->stats, plan));
    if (recipe && request->cut)
        mdp_json_put(&recipe, "neurons", mdp_plan_describe_cut(request->cut, request->stats, plan));
    if (recipe && super) mdp_json_put(&recipe, "super_experts", json_incref(super));
    json_decref(super);
    if (!recipe) return MDP_ERROR(MDP_EXHAUSTED, "out of memory for the recipe of a plan.");
    mdp_status masked = request->mask ? mdp_plan_mask(request, plan, &recipe) : mdp_ok();
    if (masked.code != MDP_OK) {
        json_decref(recipe);
        return masked;
    }
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
