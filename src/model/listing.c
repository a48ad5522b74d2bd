/* listing.c - the family table as JSON: what `info --json` says of every family, and what doc/families.md is made from.
 */
#include "model/family.h"

static const char *const CHOICES[] = {
    [MDP_SOFTMAX_ALL] = "softmax over all",
    [MDP_SOFTMAX_CHOSEN] = "softmax over the chosen",
    [MDP_SIGMOID] = "sigmoid",
    [MDP_SPARSEMIXER] = "sparsemixer",
};

/* A name, or null. */
static json_t *name_or_null(const char *name) {
    return name ? json_string(name) : json_null();
}

/* One way in which experts are stored: the names of what changes when some are removed. */
static json_t *list_layout(const mdp_expert_layout *layout) {
    return json_pack("{s:o, s:o, s:o, s:o, s:b, s:b}", "experts",
                     json_string(layout->gate ? layout->gate : layout->fused_gate_up), "router",
                     json_string(layout->router), "router_bias", name_or_null(layout->router_bias), "choice_bias",
                     name_or_null(layout->choice_bias), "stacked", layout->gate == NULL, "mxfp4",
                     layout->fused_gate_up_scales != NULL);
}

static json_t *list_family(const mdp_family *family) {
    json_t *layouts = json_array();
    for (int i = 0; i < MDP_MAX_LAYOUT && family->layouts[i].router; i++)
        mdp_json_add(&layouts, list_layout(&family->layouts[i]));
    return json_pack("{s:s, s:o, s:s, s:o, s:s, s:b, s:b, s:b, s:b, s:o}", "model_type", family->model_type, "scope",
                     name_or_null(family->scope), "count_key", family->n_expert.name, "other_count_key",
                     name_or_null(family->n_expert.other), "choice", CHOICES[family->score], "groups",
                     family->n_group.name != NULL, "shared_expert", family->shared.down != NULL, "latent_attention",
                     family->kv_rank.name != NULL, "layers_ahead", family->n_extra.name != NULL, "layouts", layouts);
}

mdp_status mdp_families_list(json_t **out) {
    json_t *list = json_array();
    for (const char *const *name = mdp_family_names(); *name; name++) {
        const mdp_family *family = NULL;
        mdp_status status = mdp_family_find(*name, "the family table", &family);
        if (status.code != MDP_OK) {
            json_decref(list);
            return status;
        }
        mdp_json_add(&list, list_family(family));
    }
    *out = list;
    if (list) return mdp_ok();
    return MDP_ERROR(MDP_EXHAUSTED, "out of memory for the list of families.");
}
