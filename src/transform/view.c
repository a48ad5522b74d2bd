/* view.c - a plan as the engine reads it: which of the model's experts each layer still has. Nothing is written or
 * copied; the engine reads kept experts and their router rows from the original tensors, made ones from plan.h5. */
#include "mdp/transform.h"

#include <string.h>

static bool has_array(const mdp_plan_expert *expert, mdp_expert_part part) {
    for (int i = 0; i < expert->n_array; i++)
        if (strcmp(expert->arrays[i].name, mdp_expert_part_names[part]) == 0) return true;
    return false;
}

/* A merged expert has all of it in plan.h5; what its tensors share is checked with the model. */
static bool is_made(const mdp_plan_expert *expert) {
    return has_array(expert, MDP_PART_GATE) && has_array(expert, MDP_PART_DOWN) && has_array(expert, MDP_PART_ROUTER);
}

mdp_status mdp_transform_check(const mdp_plan *plan) {
    for (int64_t i = 0; i < plan->n_layer; i++) {
        for (int32_t j = 0; j < plan->layers[i].n_kept; j++) {
            const mdp_plan_expert *expert = &plan->layers[i].kept[j];
            if (expert->action == MDP_KEEP || (expert->action == MDP_ZERO && expert->n_array == 0)) continue;
            if (expert->action == MDP_MASK || (expert->action == MDP_MERGE && is_made(expert))) continue;
            if (expert->action == MDP_NEURONS && has_array(expert, MDP_PART_GATE) && has_array(expert, MDP_PART_DOWN))
                continue;
            if (expert->action == MDP_NEURONS)
                return MDP_ERROR(MDP_USAGE,
                                 "%s: layer %lld: neurons of expert %d are to be cut, and have not been; the command "
                                 "merge makes such a plan one that can be carried out.",
                                 plan->path ? plan->path : "the plan", (long long)plan->layers[i].layer,
                                 (int)expert->from[0]);
            if (expert->action == MDP_MERGE)
                return MDP_ERROR(MDP_USAGE,
                                 "%s: layer %lld: experts %d and others are to be merged, and have not been; the "
                                 "command merge makes such a plan one that can be carried out.",
                                 plan->path ? plan->path : "the plan", (long long)plan->layers[i].layer,
                                 (int)expert->from[0]);
            return MDP_ERROR(
                MDP_USAGE,
                "%s: layer %lld, expert %d: the action '%s'%s is understood, but cannot be carried out by "
                "this version; it can keep (also with another down projection), cut, mask, merge, drop and "
                "zero experts.",
                plan->path ? plan->path : "the plan", (long long)plan->layers[i].layer, (int)expert->from[0],
                mdp_action_name(expert->action), expert->n_array > 0 ? " with arrays" : "");
        }
    }
    return mdp_ok();
}

mdp_status mdp_transform_view_new(const mdp_model *model, mdp_view **out) {
    mdp_view *view = NULL;
    int64_t n_expert = 0;
    *out = NULL;
    for (int64_t l = 0; l < model->n_layer; l++) n_expert += model->layers[l].moe.n_expert;
    MDP_TRY(MDP_ALLOC(&view, 1, "a view of the model"));
    view->n_layer = model->n_layer;
    mdp_status status = MDP_ALLOC(&view->layers, model->n_layer, "the layers of a view");
    if (status.code == MDP_OK) status = MDP_ALLOC(&view->memory, n_expert, "the experts of a view");
    if (status.code == MDP_OK) status = MDP_ALLOC(&view->zeros, n_expert, "the experts of a view");
    if (status.code == MDP_OK) status = MDP_ALLOC(&view->made, n_expert, "the experts of a view");
    if (status.code != MDP_OK) {
        mdp_view_destroy(view);
        return status;
    }
    *out = view;
    return mdp_ok();
}

/* Experts of all layers before one, which have their places in the view. */
static int64_t experts_before(const mdp_model *model, int64_t layer) {
    int64_t n = 0;
    for (int64_t l = 0; l < layer; l++) n += model->layers[l].moe.n_expert;
    return n;
}

void mdp_transform_view_make(const mdp_model *model, int64_t layer, int32_t kept, const mdp_expert *expert,
                             mdp_view *view) {
    const mdp_expert **made = view->made + experts_before(model, layer);
    made[kept] = expert;
    view->layers[layer].made = made;
}

void mdp_transform_view_layer(const mdp_model *model, const mdp_plan_layer *planned, const mdp_replaced *replaced,
                              mdp_view *view) {
    const mdp_moe *moe = &model->layers[planned->layer].moe;
    int64_t first = experts_before(model, planned->layer);
    mdp_expert_t *source = view->memory + first;
    unsigned char *zero = view->zeros + first;
    for (int32_t i = 0; i < planned->n_kept; i++) {
        source[i] = planned->kept[i].from[0];
        zero[i] = planned->kept[i].action == MDP_ZERO;
    }
    int32_t k = planned->top_k > 0 ? planned->top_k : moe->top_k;
    view->layers[planned->layer] =
        (mdp_layer_view){.n_expert = planned->n_kept, .top_k = k, .source = source, .zero = zero};
    for (int32_t i = 0; i < planned->n_kept; i++) {
        int64_t at = mdp_replaced_find(replaced, planned->layer, i);
        if (at >= 0) mdp_transform_view_make(model, planned->layer, i, &replaced->experts[at].expert, view);
    }
}

mdp_status mdp_transform_view(const mdp_model *model, const mdp_plan *plan, const mdp_replaced *replaced,
                              mdp_view **out) {
    *out = NULL;
    MDP_TRY(mdp_transform_check(plan));
    MDP_TRY(mdp_transform_view_new(model, out));
    for (int64_t i = 0; i < plan->n_layer; i++) mdp_transform_view_layer(model, &plan->layers[i], replaced, *out);
    return mdp_ok();
}
