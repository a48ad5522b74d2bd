/* plan_json.c - plan.json: printing, and parsing with every check that needs no model.
 *
 * The text may be written by hand, so nothing in it is believed: each layer's experts are named once, kept ones in
 * ascending order, every action is known, counts agree with scores. Errors name the file, the layer and the
 * expert. Equal plans print to equal bytes. */
#include "mdp/plan.h"

#include <stdlib.h>
#include <string.h>

#define PLAN_FORMAT "moe-dist-prune plan"
#define PLAN_VERSION "1.0"
#define MAX_EXPERT 1000000 /* far beyond any model; bounds what a hand-written number can make us allocate */

static const char *const action_names[] = {[MDP_KEEP] = "keep", [MDP_DROP] = "drop", [MDP_ZERO] = "zero"};

/* ---- printing ------------------------------------------------------------------------------------------------ */

static json_t *print_kept(const mdp_plan_layer *layer) {
    json_t *list = json_array();
    for (int32_t i = 0; i < layer->n_kept; i++) {
        const mdp_plan_expert *expert = &layer->kept[i];
        json_t *from = json_array();
        for (int32_t j = 0; j < expert->n_from; j++) json_array_append_new(from, json_integer(expert->from[j]));
        json_array_append_new(list, json_pack("{s:o, s:s}", "from", from, "action", action_names[expert->action]));
    }
    return list;
}

static json_t *print_dropped(const mdp_plan_layer *layer) {
    json_t *list = json_array();
    for (int32_t i = 0; i < layer->n_dropped; i++) {
        json_t *item = json_pack("{s:i}", "expert", (int)layer->dropped[i]);
        if (layer->scores) json_object_set_new(item, "score", json_real(layer->scores[layer->dropped[i]]));
        json_object_set_new(item, "action", json_string(action_names[MDP_DROP]));
        json_array_append_new(list, item);
    }
    return list;
}

static json_t *print_layer(const mdp_plan_layer *layer) {
    json_t *object = json_pack("{s:I}", "layer", (json_int_t)layer->layer);
    if (layer->scores) {
        json_t *scores = json_array();
        for (mdp_expert_t e = 0; e < layer->n_expert; e++) json_array_append_new(scores, json_real(layer->scores[e]));
        json_object_set_new(object, "scores", scores);
    }
    json_object_set_new(object, "experts", print_kept(layer));
    json_object_set_new(object, "dropped", print_dropped(layer));
    json_object_set_new(object, "router", json_string("slice"));
    if (layer->top_k > 0) json_object_set_new(object, "k", json_integer(layer->top_k));
    return object;
}

mdp_status mdp_plan_print(const mdp_plan *plan, char **out) {
    json_t *layers = json_array();
    for (int64_t i = 0; i < plan->n_layer; i++) json_array_append_new(layers, print_layer(&plan->layers[i]));
    json_t *root = json_pack("{s:s, s:s, s:{s:s, s:s}, s:O, s:b, s:o}", "format", PLAN_FORMAT, "version", PLAN_VERSION,
                             "model", "fingerprint", plan->fingerprint, "model_type", plan->model_type, "recipe",
                             plan->recipe, "uniform", (int)plan->uniform, "layers", layers);
    if (!root) return MDP_ERROR(MDP_INTERNAL, "out of memory for the text of a plan.");
    mdp_status status = mdp_json_print(root, out);
    json_decref(root);
    return status;
}

/* ---- parsing ------------------------------------------------------------------------------------------------- */

/* Where we are, for error sentences. */
typedef struct place {
    const char *path;
    int64_t layer;
} place;

#define REFUSE(where, format, ...)                                                                                     \
    MDP_ERROR(MDP_BAD_INPUT, "%s: layer %lld: " format ".", (where)->path, (long long)(where)->layer, __VA_ARGS__)

static mdp_status check_keys(const json_t *object, const char *const *known, const place *where) {
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)object, key, value) {
        const char *const *name = known;
        while (*name && strcmp(*name, key) != 0) name++;
        if (!*name) return REFUSE(where, "this version does not understand '%s'", key);
    }
    return mdp_ok();
}

static mdp_status parse_expert_number(const json_t *value, const place *where, mdp_expert_t *out) {
    if (!json_is_integer(value) || json_integer_value(value) < 0 || json_integer_value(value) >= MAX_EXPERT)
        return REFUSE(where, "an expert's number must be an integer from 0 to %d", MAX_EXPERT - 1);
    *out = (mdp_expert_t)json_integer_value(value);
    return mdp_ok();
}

/* What becomes of an expert in the list that `kept` names: it is kept or zeroed there, dropped in the other. */
static mdp_status parse_action(const json_t *item, bool kept, const place *where, mdp_action *out) {
    const char *action = json_string_value(json_object_get(item, "action"));
    for (int i = 0; action && i < (int)(sizeof action_names / sizeof action_names[0]); i++) {
        if ((i == MDP_DROP) == kept || strcmp(action, action_names[i]) != 0) continue;
        *out = (mdp_action)i;
        return mdp_ok();
    }
    return REFUSE(where, "action '%s' where only %s possible", action ? action : "(none)",
                  kept ? "'keep' and 'zero' are" : "'drop' is");
}

static mdp_status parse_kept_expert(const json_t *item, const place *where, mdp_plan_expert *out) {
    static const char *const known[] = {"from", "action", NULL};
    json_t *from = json_object_get(item, "from");
    if (!json_is_object(item) || !json_is_array(from))
        return REFUSE(where, "each entry of 'experts' must be an object with the array '%s'", "from");
    MDP_TRY(check_keys(item, known, where));
    MDP_TRY(parse_action(item, true, where, &out->action));
    if (json_array_size(from) != 1)
        return REFUSE(where, "an expert with action '%s' comes from one expert, not from %zu",
                      action_names[out->action], json_array_size(from));
    mdp_expert_t expert = 0;
    MDP_TRY(parse_expert_number(json_array_get(from, 0), where, &expert));
    MDP_TRY(MDP_ALLOC(&out->from, 1, "an expert of a plan"));
    out->n_from = 1;
    out->from[0] = expert;
    return mdp_ok();
}

static mdp_status parse_kept(const json_t *list, const place *where, mdp_plan_layer *layer) {
    MDP_TRY(MDP_ALLOC(&layer->kept, (mdp_count_t)json_array_size(list), "the kept experts of a plan"));
    for (size_t i = 0; i < json_array_size(list); i++) {
        MDP_TRY(parse_kept_expert(json_array_get(list, i), where, &layer->kept[i]));
        layer->n_kept++;
        if (i > 0 && layer->kept[i].from[0] <= layer->kept[i - 1].from[0])
            return REFUSE(where, "expert %d is kept after expert %d; keep each once, in ascending order",
                          (int)layer->kept[i].from[0], (int)layer->kept[i - 1].from[0]);
    }
    return mdp_ok();
}

static int compare_experts(const void *left, const void *right) {
    mdp_expert_t a = *(const mdp_expert_t *)left, b = *(const mdp_expert_t *)right;
    return a < b ? -1 : a > b;
}

/* The order of dropped experts means nothing, so any is accepted and made ascending. */
static mdp_status parse_dropped(const json_t *list, const place *where, mdp_plan_layer *layer) {
    static const char *const known[] = {"expert", "score", "action", NULL};
    MDP_TRY(MDP_ALLOC(&layer->dropped, (mdp_count_t)json_array_size(list), "the dropped experts of a plan"));
    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_t *item = json_array_get(list, i);
        if (!json_is_object(item)) return REFUSE(where, "each entry of '%s' must be an object", "dropped");
        MDP_TRY(check_keys(item, known, where));
        mdp_action action = MDP_DROP;
        MDP_TRY(parse_action(item, false, where, &action));
        MDP_TRY(parse_expert_number(json_object_get(item, "expert"), where, &layer->dropped[i]));
        layer->n_dropped++;
    }
    qsort(layer->dropped, (size_t)layer->n_dropped, sizeof *layer->dropped, compare_experts);
    for (int32_t i = 1; i < layer->n_dropped; i++) {
        if (layer->dropped[i] == layer->dropped[i - 1])
            return REFUSE(where, "expert %d is dropped twice", (int)layer->dropped[i]);
    }
    return mdp_ok();
}

/* Both lists ascend, so walking them together must meet 0, 1, 2, ... n_expert - 1. */
static mdp_status check_every_expert(const place *where, const mdp_plan_layer *layer) {
    int32_t k = 0, d = 0;
    for (mdp_expert_t e = 0; e < layer->n_expert; e++) {
        bool kept = k < layer->n_kept && layer->kept[k].from[0] == e;
        bool dropped = d < layer->n_dropped && layer->dropped[d] == e;
        if (kept && dropped) return REFUSE(where, "expert %d is both kept and dropped", (int)e);
        if (!kept && !dropped)
            return REFUSE(where,
                          "expert %d is neither kept nor dropped; the plan lists %d experts, each must be named once",
                          (int)e, (int)layer->n_expert);
        k += kept;
        d += dropped;
    }
    return mdp_ok();
}

static mdp_status parse_scores(const json_t *list, const place *where, mdp_plan_layer *layer) {
    if (!list) return mdp_ok();
    if (!json_is_array(list) || json_array_size(list) != (size_t)layer->n_expert)
        return REFUSE(where, "the plan names %d experts, but 'scores' has numbers for %zu", (int)layer->n_expert,
                      json_array_size(list));
    MDP_TRY(MDP_ALLOC(&layer->scores, layer->n_expert, "the scores of a layer"));
    for (mdp_expert_t e = 0; e < layer->n_expert; e++) {
        const json_t *value = json_array_get(list, (size_t)e);
        if (!json_is_number(value)) return REFUSE(where, "the score of expert %d is not a number", (int)e);
        layer->scores[e] = json_number_value(value);
    }
    return mdp_ok();
}

static mdp_status parse_top_k(const json_t *value, const place *where, mdp_plan_layer *layer) {
    if (!value) return mdp_ok();
    if (!json_is_integer(value) || json_integer_value(value) < 1 || json_integer_value(value) > layer->n_kept)
        return REFUSE(where, "'k' must be an integer from 1 to the %d experts that are kept", (int)layer->n_kept);
    layer->top_k = (int32_t)json_integer_value(value);
    return mdp_ok();
}

static mdp_status parse_layer(const json_t *object, const char *path, int64_t index, int64_t previous,
                              mdp_plan_layer *layer) {
    static const char *const known[] = {"layer", "scores", "experts", "dropped", "router", "k", NULL};
    if (!json_is_object(object))
        return MDP_ERROR(MDP_BAD_INPUT, "%s: entry %lld of 'layers' is not an object.", path, (long long)index);
    MDP_TRY(mdp_json_int(object, "layer", path, &layer->layer));
    place where = {path, layer->layer};
    if (layer->layer <= previous)
        return REFUSE(&where, "listed after layer %lld; layers must ascend from 0", (long long)previous);
    MDP_TRY(check_keys(object, known, &where));
    json_t *kept = NULL, *dropped = NULL;
    MDP_TRY(mdp_json_array(object, "experts", path, &kept));
    MDP_TRY(mdp_json_array(object, "dropped", path, &dropped));
    if (json_array_size(kept) + json_array_size(dropped) > MAX_EXPERT || json_array_size(kept) == 0)
        return REFUSE(&where, "keeps %zu experts and drops %zu; at least one must be kept", json_array_size(kept),
                      json_array_size(dropped));
    MDP_TRY(parse_kept(kept, &where, layer));
    MDP_TRY(parse_dropped(dropped, &where, layer));
    layer->n_expert = layer->n_kept + layer->n_dropped;
    MDP_TRY(check_every_expert(&where, layer));
    MDP_TRY(parse_scores(json_object_get(object, "scores"), &where, layer));
    MDP_TRY(parse_top_k(json_object_get(object, "k"), &where, layer));
    const char *router = json_string_value(json_object_get(object, "router"));
    if (!router || strcmp(router, "slice") != 0)
        return REFUSE(&where, "'router' is '%s'; this version knows 'slice'", router ? router : "(none)");
    return mdp_ok();
}

static mdp_status copy_name(const json_t *object, const char *key, const char *path, char *out, size_t n_byte) {
    const char *text = NULL;
    MDP_TRY(mdp_json_text(object, key, path, &text));
    if (strlen(text) >= n_byte)
        return MDP_ERROR(MDP_BAD_INPUT, "%s: '%s' has %zu characters, at most %zu are possible.", path, key,
                         strlen(text), n_byte - 1);
    memcpy(out, text, strlen(text) + 1);
    return mdp_ok();
}

static mdp_status check_format(const json_t *root, const char *path) {
    const char *format = json_string_value(json_object_get(root, "format"));
    const char *version = json_string_value(json_object_get(root, "version"));
    if (!format || strcmp(format, PLAN_FORMAT) != 0)
        return MDP_ERROR(MDP_BAD_INPUT, "%s: not a plan: \"format\" is not \"%s\".", path, PLAN_FORMAT);
    if (!version || strncmp(version, "1.", 2) != 0)
        return MDP_ERROR(MDP_BAD_INPUT, "%s: plan of version %s; this program reads version 1, use a newer one.", path,
                         version ? version : "(none)");
    return mdp_ok();
}

/* Whether it is true is checked against the model's layers (mdp_plan_check). */
static mdp_status parse_uniform(const json_t *root, const char *path, mdp_plan *plan) {
    const json_t *flag = json_object_get(root, "uniform");
    plan->uniform = json_is_true(flag);
    if (json_is_boolean(flag)) return mdp_ok();
    return MDP_ERROR(MDP_BAD_INPUT, "%s: \"uniform\" must be true or false.", path);
}

static mdp_status parse_head(const json_t *root, const char *path, mdp_plan *plan) {
    const json_t *model = json_object_get(root, "model");
    json_t *recipe = json_object_get(root, "recipe");
    if (!json_is_object(model) || !json_is_object(recipe))
        return MDP_ERROR(MDP_BAD_INPUT, "%s: \"model\" and \"recipe\" must both be objects.", path);
    MDP_TRY(copy_name(model, "fingerprint", path, plan->fingerprint, sizeof plan->fingerprint));
    MDP_TRY(copy_name(model, "model_type", path, plan->model_type, sizeof plan->model_type));
    json_decref(plan->recipe);
    plan->recipe = json_incref(recipe);
    return mdp_ok();
}

static mdp_status parse_root(const json_t *root, const char *path, mdp_plan **out) {
    if (!json_is_object(root)) return MDP_ERROR(MDP_BAD_INPUT, "%s: not a plan: not a JSON object.", path);
    MDP_TRY(check_format(root, path));
    json_t *layers = NULL;
    MDP_TRY(mdp_json_array(root, "layers", path, &layers));
    if (json_array_size(layers) == 0) return MDP_ERROR(MDP_BAD_INPUT, "%s: the plan has no layers.", path);
    MDP_TRY(mdp_plan_new((int64_t)json_array_size(layers), out));
    mdp_plan *plan = *out;
    MDP_TRY(parse_head(root, path, plan));
    int64_t previous = -1;
    for (int64_t i = 0; i < plan->n_layer; i++) {
        MDP_TRY(parse_layer(json_array_get(layers, (size_t)i), path, i, previous, &plan->layers[i]));
        previous = plan->layers[i].layer;
    }
    MDP_TRY(mdp_copy_text(&plan->path, path));
    return parse_uniform(root, path, plan);
}

mdp_status mdp_plan_parse(const char *text, int64_t n_byte, const char *path, mdp_plan **out) {
    json_t *root = NULL;
    mdp_plan *plan = NULL;
    *out = NULL;
    MDP_TRY(mdp_json_parse(text, n_byte, path, &root));
    mdp_status status = parse_root(root, path, &plan);
    json_decref(root);
    if (status.code != MDP_OK) {
        mdp_plan_destroy(plan);
        return status;
    }
    *out = plan;
    return status;
}
