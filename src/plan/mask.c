/* mask.c - experts that stay lose single weights: the rule, and where the norms of their channels stand.
 *
 * A plan holds no masks: which weights go follows from the rule, the norms in plan.h5 and the weights themselves
 * (mdp/mask.h). Here the norms are made of statistics, and named with their checksums; who writes plan.h5 makes the
 * same ones. An expert that no token reached has norms of 1, and is listed in the recipe. */
#include "mdp/plan.h"

#include <string.h>

const char *const mdp_mask_by_names[] = {[MDP_MASK_BY_MOE_PRUNER] = "moe-pruner",
                                         [MDP_MASK_BY_WANDA] = "wanda",
                                         [MDP_MASK_BY_MAGNITUDE] = "magnitude",
                                         NULL};
const char *const mdp_mask_norm_names[2] = {"input_norm", "hidden_norm"};

mdp_channel_norms mdp_mask_norms(mdp_mask_by by) {
    if (by == MDP_MASK_BY_MAGNITUDE) return MDP_NORMS_NONE;
    return by == MDP_MASK_BY_WANDA ? MDP_NORMS_PLAIN : MDP_NORMS_GATED;
}

int64_t mdp_mask_norm_width(const mdp_stats *stats, int64_t layer_index, bool hidden) {
    return hidden ? stats->layers[layer_index].d_ff : stats->d_model;
}

/* The digest of norms that stand in for those to come is all zeros. */
static mdp_status digest_of(const mdp_plan_request *request, int64_t i, mdp_expert_t expert, bool hidden, bool *seen,
                            mdp_digest *out) {
    static const char none[] = "00000000000000000000000000000000";
    float *norm = NULL;
    *seen = true;
    memcpy(out->hex, none, sizeof none);
    if (!request->stats) return mdp_ok();
    int64_t n = mdp_mask_norm_width(request->stats, i, hidden);
    MDP_TRY(MDP_ALLOC(&norm, n, "the norms of channels"));
    mdp_stats_channel_norms(request->stats, i, expert, request->mask->by == MDP_MASK_BY_MOE_PRUNER, hidden, norm, seen);
    *out = mdp_hash_bytes(norm, n * (int64_t)sizeof *norm);
    mdp_free(norm);
    return mdp_ok();
}

static mdp_status add_norms(const mdp_plan_request *request, int64_t i, int64_t layer, int32_t kept,
                            mdp_plan_expert *expert, json_t **unrouted) {
    for (int hidden = 0; hidden < 2; hidden++) {
        mdp_digest digest;
        char *path = NULL;
        bool seen;
        MDP_TRY(digest_of(request, i, expert->from[0], hidden != 0, &seen, &digest));
        if (!seen) {
            mdp_json_add(unrouted, json_pack("{s:I, s:i}", "layer", (json_int_t)layer, "expert", (int)expert->from[0]));
            return mdp_ok();
        }
        MDP_TRY(
            mdp_format(&path, "/layers/%lld/experts/%d/%s", (long long)layer, (int)kept, mdp_mask_norm_names[hidden]));
        mdp_status status = mdp_plan_add_array(expert, mdp_mask_norm_names[hidden], path, digest.hex);
        mdp_free(path);
        MDP_TRY(status);
    }
    return mdp_ok();
}

static mdp_status check_widths(const mdp_plan_request *request) {
    const mdp_stats *stats = request->stats;
    if (!stats || mdp_mask_norms(request->mask->by) == MDP_NORMS_NONE) return mdp_ok();
    MDP_TRY(mdp_mask_rule_fits(&request->mask->rule, stats->d_model, "hidden states"));
    for (int64_t i = 0; i < stats->n_layer; i++)
        MDP_TRY(mdp_mask_rule_fits(&request->mask->rule, stats->layers[i].d_ff, "neurons of experts"));
    return mdp_ok();
}

static json_t *describe(const mdp_mask_request *mask, json_t *unrouted) {
    json_t *root = json_pack("{s:s}", "by", mdp_mask_by_names[mask->by]);
    if (mask->rule.of == 0) mdp_json_put(&root, "sparsity", json_real(mask->rule.sparsity));
    if (mask->rule.of > 0) mdp_json_put(&root, "keep", json_integer(mask->rule.keep));
    if (mask->rule.of > 0) mdp_json_put(&root, "of", json_integer(mask->rule.of));
    if (json_array_size(unrouted) > 0) mdp_json_put(&root, "unrouted", json_incref(unrouted));
    return root;
}

mdp_status mdp_plan_mask(const mdp_plan_request *request, mdp_plan *plan, json_t **recipe) {
    json_t *unrouted = json_array();
    mdp_status status = check_widths(request);
    bool normed = mdp_mask_norms(request->mask->by) != MDP_NORMS_NONE;
    for (int64_t i = 0; i < plan->n_layer; i++) {
        mdp_plan_layer *layer = &plan->layers[i];
        for (int32_t j = 0; j < layer->n_kept && status.code == MDP_OK; j++) {
            if (layer->kept[j].action != MDP_KEEP) continue;
            layer->kept[j].action = MDP_MASK;
            layer->kept[j].mask = request->mask->rule;
            if (normed) status = add_norms(request, i, layer->layer, j, &layer->kept[j], &unrouted);
        }
    }
    if (status.code == MDP_OK) mdp_json_put(recipe, "mask", describe(request->mask, unrouted));
    json_decref(unrouted);
    return status;
}

/* ---- how much -------------------------------------------------------------------------------------------------- */

double mdp_plan_masked_share(const mdp_plan *plan, const mdp_model *model) {
    double masked = 0.0, all = 0.0;
    for (int64_t i = 0; i < plan->n_layer; i++) {
        for (int32_t j = 0; j < plan->layers[i].n_kept; j++) {
            const mdp_plan_expert *expert = &plan->layers[i].kept[j];
            const mdp_expert *source = &model->layers[plan->layers[i].layer].moe.experts[expert->from[0]];
            const mdp_matrix *matrices[] = {&source->gate, &source->up, &source->down};
            for (int m = 0; m < 3; m++) {
                all += (double)(matrices[m]->n_row * matrices[m]->n_col);
                if (expert->action == MDP_MASK)
                    masked += (double)(matrices[m]->n_row * mdp_mask_count(&expert->mask, matrices[m]->n_col));
            }
        }
    }
    return all > 0.0 ? masked / all : 0.0;
}
