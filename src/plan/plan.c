/* plan.c - the life of a plan, and its check against a model.
 *
 * A plan owns all its arrays and its recipe. The check against a model is the last gate before anything is written or
 * computed by a plan: fingerprint, family, layers, expert counts, and that every token still finds its k experts. */
#include "mdp/plan.h"

#include <string.h>

void mdp_plan_clear_arrays(mdp_plan_expert *expert) {
    for (int i = 0; i < expert->n_array; i++) {
        mdp_free(expert->arrays[i].name);
        mdp_free(expert->arrays[i].path);
    }
    mdp_free(expert->arrays);
    expert->arrays = NULL;
    expert->n_array = 0;
}

static void destroy_expert(mdp_plan_expert *expert) {
    mdp_plan_clear_arrays(expert);
    mdp_free(expert->weights);
    mdp_free(expert->neurons);
    mdp_free(expert->from);
}

static void destroy_layer(mdp_plan_layer *layer) {
    for (int32_t i = 0; i < layer->n_kept && layer->kept; i++) destroy_expert(&layer->kept[i]);
    mdp_free(layer->scores);
    mdp_free(layer->mass);
    mdp_free(layer->must_keep);
    mdp_free(layer->gone);
    mdp_free(layer->unseen);
    mdp_free(layer->kept);
    mdp_free(layer->dropped);
}

mdp_status mdp_plan_new(int64_t n_layer, mdp_plan **out) {
    mdp_plan *plan = NULL;
    *out = NULL;
    MDP_TRY(MDP_ALLOC(&plan, 1, "a plan"));
    mdp_status status = MDP_ALLOC(&plan->layers, n_layer, "the layers of a plan");
    if (status.code == MDP_OK) {
        plan->n_layer = n_layer;
        plan->recipe = json_object();
        if (!plan->recipe) status = MDP_ERROR(MDP_EXHAUSTED, "out of memory for the recipe of a plan.");
    }
    if (status.code != MDP_OK) {
        mdp_plan_destroy(plan);
        return status;
    }
    *out = plan;
    return status;
}

void mdp_plan_destroy(mdp_plan *plan) {
    if (!plan) return;
    for (int64_t i = 0; i < plan->n_layer; i++) destroy_layer(&plan->layers[i]);
    json_decref(plan->recipe);
    mdp_free(plan->path);
    mdp_free(plan->layers);
    mdp_free(plan);
}

/* ---- experts that no token reached ------------------------------------------------------------------------------ */

static int32_t count_unseen(const mdp_plan_layer *layer) {
    int32_t n = 0;
    for (mdp_expert_t e = 0; layer->unseen && e < layer->n_expert; e++) n += layer->unseen[e] != 0;
    return n;
}

/* Of those, the ones that have no effect in the result. */
static int32_t count_unseen_gone(const mdp_plan_layer *layer) {
    int32_t n = 0;
    for (int32_t i = 0; layer->unseen && i < layer->n_dropped; i++) n += layer->unseen[layer->dropped[i]] != 0;
    for (int32_t i = 0; layer->unseen && i < layer->n_kept; i++)
        n += layer->kept[i].action == MDP_ZERO && layer->unseen[layer->kept[i].from[0]];
    return n;
}

const char *mdp_plan_describe_unseen(const mdp_plan *plan, char out[MDP_PLAN_UNSEEN_TEXT]) {
    enum { MOST_LISTED = 12 };
    int64_t n_layer = 0, n = 0, n_gone = 0;
    char layers[240] = "";
    size_t used = 0;
    for (int64_t i = 0; i < plan->n_layer; i++) {
        const mdp_plan_layer *layer = &plan->layers[i];
        int32_t here = count_unseen(layer);
        n += here;
        n_gone += count_unseen_gone(layer);
        if (here == 0 || ++n_layer > MOST_LISTED) continue;
        int more = snprintf(layers + used, sizeof layers - used, "%s%lld: %d of %d", n_layer > 1 ? ", " : "",
                            (long long)layer->layer, (int)here, (int)layer->n_expert);
        if (more > 0 && used + (size_t)more < sizeof layers) used += (size_t)more;
    }
    if (n == 0) return NULL;
    snprintf(out, MDP_PLAN_UNSEEN_TEXT,
             "no token reached %lld expert%s (layer %s%s), of which %lld go%s; their scores say nothing, so among them "
             "the lower number goes first: calibrate on more text",
             (long long)n, n == 1 ? "" : "s", layers, n_layer > MOST_LISTED ? ", ..." : "", (long long)n_gone,
             n_gone == 1 ? "es" : "");
    return out;
}

/* ---- against a model -------------------------------------------------------------------------------------------- */

static const char *name_of(const mdp_plan *plan) {
    return plan->path ? plan->path : "the plan";
}

/* Every group of experts keeps equally many, at least two, and those that a token sees hold the k that it uses. */
static mdp_status check_groups(const mdp_plan *plan, const mdp_plan_layer *planned, const mdp_router_rule *rule,
                               int32_t k) {
    if (rule->n_group <= 1) return mdp_ok();
    int32_t each = planned->n_kept / rule->n_group, i = 0;
    for (int32_t j = 0; j < planned->n_kept; j++) {
        const mdp_plan_expert *expert = &planned->kept[j];
        if (expert->from[expert->n_from - 1] / rule->group_size == expert->from[0] / rule->group_size) continue;
        return MDP_ERROR(MDP_BAD_INPUT,
                         "%s: layer %lld: experts %d and %d, which are merged, are in other groups of the router "
                         "(n_group); only experts of one group can be.",
                         name_of(plan), (long long)planned->layer, (int)expert->from[0],
                         (int)expert->from[expert->n_from - 1]);
    }
    for (int32_t g = 0; g < rule->n_group; g++) {
        int32_t n = 0;
        for (; i < planned->n_kept && planned->kept[i].from[0] / rule->group_size == g; i++) n++;
        if (n == each && n >= 2) continue;
        return MDP_ERROR(MDP_BAD_INPUT,
                         "%s: layer %lld: group %d keeps %d of its %d experts, %d are kept in %d groups (n_group); "
                         "every group must keep the same number, 2 or more.",
                         name_of(plan), (long long)planned->layer, (int)g, (int)n, (int)rule->group_size,
                         (int)planned->n_kept, (int)rule->n_group);
    }
    if (each * rule->n_open >= k) return mdp_ok();
    return MDP_ERROR(
        MDP_BAD_INPUT,
        "%s: layer %lld: a token sees %d groups (topk_group) of %d kept experts, fewer than the %d that it "
        "uses; keep more.",
        name_of(plan), (long long)planned->layer, (int)rule->n_open, (int)each, (int)k);
}

/* Do masks go with the widths of the experts? */
static mdp_status check_masks(const mdp_plan *plan, const mdp_plan_layer *planned, const mdp_moe *moe) {
    for (int32_t j = 0; j < planned->n_kept; j++) {
        const mdp_plan_expert *expert = &planned->kept[j];
        if (expert->action != MDP_MASK) continue;
        mdp_status status =
            mdp_mask_rule_fits(&expert->mask, moe->experts[expert->from[0]].gate.n_col, "hidden states");
        if (status.code == MDP_OK)
            status = mdp_mask_rule_fits(&expert->mask, moe->experts[expert->from[0]].down.n_col, "neurons of experts");
        if (status.code == MDP_OK) continue;
        return MDP_ERROR(MDP_BAD_INPUT, "%s: layer %lld, expert %d: %s", name_of(plan), (long long)planned->layer,
                         (int)expert->from[0], status.text);
    }
    return mdp_ok();
}

static mdp_status check_layer(const mdp_plan *plan, const mdp_plan_layer *planned, const mdp_model *model) {
    long long l = (long long)planned->layer;
    if (planned->layer >= model->n_layer || !model->layers[planned->layer].is_moe)
        return MDP_ERROR(
            MDP_BAD_INPUT,
            "%s: layer %lld is not a layer with experts of %s (%lld layers); the plan and the model do not "
            "belong together.",
            name_of(plan), l, model->catalogue->path, (long long)model->n_layer);
    const mdp_moe *moe = &model->layers[planned->layer].moe;
    if (planned->n_expert != moe->n_expert)
        return MDP_ERROR(MDP_BAD_INPUT,
                         "%s: layer %lld: the plan speaks of %d experts, the model has %d; the plan and the model do "
                         "not belong together.",
                         name_of(plan), l, (int)planned->n_expert, (int)moe->n_expert);
    if (planned->top_k > moe->top_k)
        return MDP_ERROR(MDP_BAD_INPUT,
                         "%s: layer %lld: \"k\" is %d, but each token uses %d experts now; it can only become less.",
                         name_of(plan), l, (int)planned->top_k, (int)moe->top_k);
    if (moe->rule.score == MDP_SPARSEMIXER && planned->top_k > 0 && planned->top_k != moe->top_k)
        return MDP_ERROR(MDP_BAD_INPUT, "%s: layer %lld: \"k\" is %d, but the routers of %s always choose %d experts.",
                         name_of(plan), l, (int)planned->top_k, model->model_type, (int)moe->top_k);
    int32_t k = planned->top_k > 0 ? planned->top_k : moe->top_k;
    if (planned->n_kept < k)
        return MDP_ERROR(
            MDP_BAD_INPUT,
            "%s: layer %lld: the plan keeps %d of %d experts, fewer than the %d that each token uses; keep "
            "more.",
            name_of(plan), l, (int)planned->n_kept, (int)planned->n_expert, (int)k);
    MDP_TRY(check_masks(plan, planned, moe));
    return check_groups(plan, planned, &moe->rule, k);
}

/* Every layer with experts is planned; the plan's layers ascend, so the two lists are walked together. */
static mdp_status check_all_planned(const mdp_plan *plan, const mdp_model *model) {
    int64_t i = 0;
    for (int64_t l = 0; l < model->n_layer; l++) {
        if (!model->layers[l].is_moe) continue;
        if (i >= plan->n_layer || plan->layers[i].layer != l)
            return MDP_ERROR(MDP_BAD_INPUT,
                             "%s: layer %lld of the model is missing; a plan lists every layer that has experts.",
                             name_of(plan), (long long)l);
        i++;
    }
    return mdp_ok();
}

static mdp_status check_uniform(const mdp_plan *plan) {
    const mdp_plan_layer *first = &plan->layers[0], *odd = NULL;
    for (int64_t i = 1; i < plan->n_layer && !odd; i++) {
        if (plan->layers[i].n_kept != first->n_kept) odd = &plan->layers[i];
    }
    if (plan->uniform && odd)
        return MDP_ERROR(MDP_BAD_INPUT,
                         "%s: \"uniform\" is true, but layer %lld keeps %d experts and layer %lld keeps %d; set it to "
                         "false.",
                         name_of(plan), (long long)first->layer, (int)first->n_kept, (long long)odd->layer,
                         (int)odd->n_kept);
    if (!plan->uniform && !odd)
        return MDP_ERROR(MDP_BAD_INPUT, "%s: \"uniform\" is false, but every layer keeps %d experts; set it to true.",
                         name_of(plan), (int)first->n_kept);
    return mdp_ok();
}

mdp_status mdp_plan_check(const mdp_plan *plan, const mdp_model *model) {
    const char *fingerprint = model->catalogue->fingerprint;
    if (strcmp(plan->fingerprint, fingerprint) != 0 || strcmp(plan->model_type, model->model_type) != 0)
        return MDP_ERROR(MDP_BAD_INPUT,
                         "%s: is for another model: it names a %s with fingerprint %s, %s is a %s with fingerprint %s; "
                         "make a plan from statistics of this model.",
                         name_of(plan), plan->model_type, plan->fingerprint, model->catalogue->path, model->model_type,
                         fingerprint);
    for (int64_t i = 0; i < plan->n_layer; i++) MDP_TRY(check_layer(plan, &plan->layers[i], model));
    MDP_TRY(check_all_planned(plan, model));
    MDP_TRY(mdp_plan_check_cut(plan, model));
    return check_uniform(plan);
}
