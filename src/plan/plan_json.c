/* plan_json.c - plan.json: printing, and parsing with every check that needs no model.
 *
 * The text may be written by hand, so nothing in it is believed: each layer's experts are named once, kept ones in
 * ascending order, every action is known, counts agree with scores. Errors name the file, the layer and the
 * expert. Equal plans print to equal bytes. */
#include "plan/plan_expert.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define PLAN_FORMAT "moe-dist-prune plan"
#define CHANGED_TYPE "bf16"
#define PLAN_VERSION "1.0"

/* ---- printing ------------------------------------------------------------------------------------------------ */

static json_t *print_kept(const mdp_plan_layer *layer) {
    json_t *list = json_array();
    for (int32_t i = 0; i < layer->n_kept; i++) mdp_json_add(&list, mdp_plan_print_expert(&layer->kept[i]));
    return list;
}

static json_t *print_dropped(const mdp_plan_layer *layer) {
    json_t *list = json_array();
    for (int32_t i = 0; i < layer->n_dropped; i++) {
        json_t *item = json_pack("{s:i}", "expert", (int)layer->dropped[i]);
        if (layer->scores) mdp_json_put(&item, "score", json_real(layer->scores[layer->dropped[i]]));
        mdp_json_put(&item, "action", json_string(mdp_action_name(MDP_DROP)));
        mdp_json_add(&list, item);
    }
    return list;
}

/* Nothing where tokens reached all. */
static void print_unseen(const mdp_plan_layer *layer, json_t **object) {
    if (!layer->unseen || !memchr(layer->unseen, 1, (size_t)layer->n_expert)) return;
    json_t *list = json_array();
    for (mdp_expert_t e = 0; e < layer->n_expert; e++)
        if (layer->unseen[e]) mdp_json_add(&list, json_integer(e));
    mdp_json_put(object, "unseen", list);
}

static json_t *print_layer(const mdp_plan_layer *layer) {
    json_t *object = json_pack("{s:I}", "layer", (json_int_t)layer->layer);
    if (layer->scores) {
        json_t *scores = json_array();
        for (mdp_expert_t e = 0; e < layer->n_expert; e++) mdp_json_add(&scores, json_real(layer->scores[e]));
        mdp_json_put(&object, "scores", scores);
    }
    if (layer->mass) {
        json_t *mass = json_array();
        for (mdp_expert_t e = 0; e < layer->n_expert; e++) mdp_json_add(&mass, json_real(layer->mass[e]));
        mdp_json_put(&object, "mass", mass);
    }
    mdp_json_put(&object, "experts", print_kept(layer));
    mdp_json_put(&object, "dropped", print_dropped(layer));
    mdp_json_put(&object, "router", json_string("slice"));
    if (layer->top_k > 0) mdp_json_put(&object, "k", json_integer(layer->top_k));
    print_unseen(layer, &object);
    return object;
}

mdp_status mdp_plan_print(const mdp_plan *plan, char **out) {
    json_t *layers = json_array();
    for (int64_t i = 0; i < plan->n_layer; i++) mdp_json_add(&layers, print_layer(&plan->layers[i]));
    json_t *root = json_pack("{s:s, s:s, s:{s:s, s:s}, s:O, s:b, s:o}", "format", PLAN_FORMAT, "version", PLAN_VERSION,
                             "model", "fingerprint", plan->fingerprint, "model_type", plan->model_type, "recipe",
                             plan->recipe, "uniform", (int)plan->uniform, "layers", layers);
    if (root && plan->widened) mdp_json_put(&root, "changed_type", json_string(CHANGED_TYPE));
    if (!root) return MDP_ERROR(MDP_EXHAUSTED, "out of memory for the text of a plan.");
    mdp_status status = mdp_json_print(root, out);
    json_decref(root);
    return status;
}

/* ---- parsing ------------------------------------------------------------------------------------------------- */

static mdp_status parse_kept(const json_t *list, const mdp_plan_place *where, mdp_plan_layer *layer) {
    MDP_TRY(MDP_ALLOC(&layer->kept, (mdp_count_t)json_array_size(list), "the kept experts of a plan"));
    for (size_t i = 0; i < json_array_size(list); i++) {
        layer->n_kept++;
        MDP_TRY(mdp_plan_parse_expert(json_array_get(list, i), where, &layer->kept[i]));
        if (i > 0 && layer->kept[i].from[0] <= layer->kept[i - 1].from[0])
            return MDP_REFUSE(where,
                              "expert %d is kept after expert %d; keep each once, in ascending order of the first",
                              (int)layer->kept[i].from[0], (int)layer->kept[i - 1].from[0]);
    }
    return mdp_ok();
}

static int compare_experts(const void *left, const void *right) {
    mdp_expert_t a = *(const mdp_expert_t *)left, b = *(const mdp_expert_t *)right;
    return a < b ? -1 : a > b;
}

/* The order of dropped experts means nothing, so any is accepted and made ascending. */
static mdp_status parse_dropped(const json_t *list, const mdp_plan_place *where, mdp_plan_layer *layer) {
    static const char *const known[] = {"expert", "score", "action", NULL};
    MDP_TRY(MDP_ALLOC(&layer->dropped, (mdp_count_t)json_array_size(list), "the dropped experts of a plan"));
    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_t *item = json_array_get(list, i);
        if (!json_is_object(item)) return MDP_REFUSE(where, "each entry of '%s' must be an object", "dropped");
        MDP_TRY(mdp_plan_check_keys(item, known, where));
        const char *action = json_string_value(json_object_get(item, "action"));
        if (!action || strcmp(action, mdp_action_name(MDP_DROP)) != 0)
            return MDP_REFUSE(where, "action '%s' where only 'drop' is possible", action ? action : "(none)");
        MDP_TRY(mdp_plan_parse_number(json_object_get(item, "expert"), where, &layer->dropped[i]));
        layer->n_dropped++;
    }
    qsort(layer->dropped, (size_t)layer->n_dropped, sizeof *layer->dropped, compare_experts);
    for (int32_t i = 1; i < layer->n_dropped; i++) {
        if (layer->dropped[i] == layer->dropped[i - 1])
            return MDP_REFUSE(where, "expert %d is dropped twice", (int)layer->dropped[i]);
    }
    return mdp_ok();
}

/* Note an expert as named: kept ones by 1, dropped ones by 2. One beyond the number of names is not noted: then another
 * is missing. */
static mdp_status name_expert(const mdp_plan_place *where, mdp_expert_t expert, unsigned char how, int32_t n_expert,
                              unsigned char *named) {
    if (expert >= n_expert) return mdp_ok();
    if (named[expert] + how == 3) return MDP_REFUSE(where, "expert %d is both kept and dropped", (int)expert);
    if (named[expert]) return MDP_REFUSE(where, "expert %d is named twice", (int)expert);
    named[expert] = how;
    return mdp_ok();
}

static mdp_status name_all(const mdp_plan_place *where, const mdp_plan_layer *layer, unsigned char *named) {
    for (int32_t i = 0; i < layer->n_kept; i++) {
        for (int32_t j = 0; j < layer->kept[i].n_from; j++)
            MDP_TRY(name_expert(where, layer->kept[i].from[j], 1, layer->n_expert, named));
    }
    for (int32_t i = 0; i < layer->n_dropped; i++)
        MDP_TRY(name_expert(where, layer->dropped[i], 2, layer->n_expert, named));
    return mdp_ok();
}

/* There are as many experts as names, so each is named once when none is missing. */
static mdp_status find_missing(const mdp_plan_place *where, const mdp_plan_layer *layer, const unsigned char *named) {
    for (mdp_expert_t e = 0; e < layer->n_expert; e++) {
        if (!named[e])
            return MDP_REFUSE(
                where, "expert %d is neither kept nor dropped; the plan lists %d experts, each must be named once",
                (int)e, (int)layer->n_expert);
    }
    return mdp_ok();
}

static mdp_status check_every_expert(const mdp_plan_place *where, const mdp_plan_layer *layer) {
    unsigned char *named = NULL;
    MDP_TRY(MDP_ALLOC(&named, layer->n_expert, "the experts of a plan"));
    mdp_status status = name_all(where, layer, named);
    if (status.code == MDP_OK) status = find_missing(where, layer, named);
    mdp_free(named);
    return status;
}

static int32_t count_named(const mdp_plan_layer *layer) {
    int32_t n = layer->n_dropped;
    for (int32_t i = 0; i < layer->n_kept; i++) n += layer->kept[i].n_from;
    return n;
}

static mdp_status parse_scores(const json_t *list, const mdp_plan_place *where, mdp_plan_layer *layer) {
    if (!list) return mdp_ok();
    if (!json_is_array(list) || json_array_size(list) != (size_t)layer->n_expert)
        return MDP_REFUSE(where, "the plan names %d experts, but 'scores' has numbers for %zu", (int)layer->n_expert,
                          json_array_size(list));
    MDP_TRY(MDP_ALLOC(&layer->scores, layer->n_expert, "the scores of a layer"));
    for (mdp_expert_t e = 0; e < layer->n_expert; e++) {
        const json_t *value = json_array_get(list, (size_t)e);
        if (!json_is_number(value)) return MDP_REFUSE(where, "the score of expert %d is not a number", (int)e);
        layer->scores[e] = json_number_value(value);
    }
    return mdp_ok();
}

/* What neurons count for, where an expert takes some in. */
static mdp_status parse_mass(const json_t *list, const mdp_plan_place *where, mdp_plan_layer *layer) {
    bool wanted = false;
    for (int32_t i = 0; i < layer->n_kept; i++) wanted = wanted || layer->kept[i].takes_in;
    if (!list && !wanted) return mdp_ok();
    if (!json_is_array(list) || json_array_size(list) != (size_t)layer->n_expert)
        return MDP_REFUSE(where, "experts take in neurons of others, so 'mass' must be a list of %d numbers",
                          (int)layer->n_expert);
    MDP_TRY(MDP_ALLOC(&layer->mass, layer->n_expert, "the experts of a layer"));
    for (mdp_expert_t e = 0; e < layer->n_expert; e++) {
        const json_t *value = json_array_get(list, (size_t)e);
        layer->mass[e] = json_number_value(value);
        if (!json_is_number(value) || !isfinite(layer->mass[e]) || layer->mass[e] < 0.0)
            return MDP_REFUSE(where, "the mass of expert %d is not a number from 0 on", (int)e);
    }
    return mdp_ok();
}

static mdp_status parse_top_k(const json_t *value, const mdp_plan_place *where, mdp_plan_layer *layer) {
    if (!value) return mdp_ok();
    if (!json_is_integer(value) || json_integer_value(value) < 1 || json_integer_value(value) > layer->n_kept)
        return MDP_REFUSE(where, "'k' must be an integer from 1 to the %d experts that are kept", (int)layer->n_kept);
    layer->top_k = (int32_t)json_integer_value(value);
    return mdp_ok();
}

static mdp_status parse_unseen(const json_t *list, const mdp_plan_place *where, mdp_plan_layer *layer) {
    if (!list) return mdp_ok();
    if (!json_is_array(list)) return MDP_REFUSE(where, "'unseen' is not a list of %s", "experts");
    MDP_TRY(MDP_ALLOC(&layer->unseen, layer->n_expert, "the experts that no token reached"));
    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_t *value = json_array_get(list, i);
        json_int_t e = json_is_integer(value) ? json_integer_value(value) : -1;
        if (e < 0 || e >= layer->n_expert)
            return MDP_REFUSE(where, "entry %zu of 'unseen' is no expert of the layer's %d", i, (int)layer->n_expert);
        layer->unseen[e] = 1;
    }
    return mdp_ok();
}

static mdp_status parse_layer(const json_t *object, const char *path, int64_t index, int64_t previous,
                              mdp_plan_layer *layer) {
    static const char *const known[] = {"layer", "scores", "mass", "experts", "dropped", "router", "k", "unseen", NULL};
    if (!json_is_object(object))
        return MDP_ERROR(MDP_BAD_INPUT, "%s: entry %lld of 'layers' is not an object.", path, (long long)index);
    MDP_TRY(mdp_json_int(object, "layer", path, &layer->layer));
    mdp_plan_place where = {path, layer->layer};
    if (layer->layer <= previous)
        return MDP_REFUSE(&where, "listed after layer %lld; layers must ascend from 0", (long long)previous);
    MDP_TRY(mdp_plan_check_keys(object, known, &where));
    json_t *kept = NULL, *dropped = NULL;
    MDP_TRY(mdp_json_array(object, "experts", path, &kept));
    MDP_TRY(mdp_json_array(object, "dropped", path, &dropped));
    if (json_array_size(kept) + json_array_size(dropped) > MDP_PLAN_MAX_EXPERT || json_array_size(kept) == 0)
        return MDP_REFUSE(&where, "keeps %zu experts and drops %zu; at least one must be kept", json_array_size(kept),
                          json_array_size(dropped));
    MDP_TRY(parse_kept(kept, &where, layer));
    MDP_TRY(parse_dropped(dropped, &where, layer));
    layer->n_expert = count_named(layer);
    MDP_TRY(check_every_expert(&where, layer));
    MDP_TRY(parse_scores(json_object_get(object, "scores"), &where, layer));
    MDP_TRY(parse_mass(json_object_get(object, "mass"), &where, layer));
    MDP_TRY(parse_top_k(json_object_get(object, "k"), &where, layer));
    MDP_TRY(parse_unseen(json_object_get(object, "unseen"), &where, layer));
    const char *router = json_string_value(json_object_get(object, "router"));
    if (!router || strcmp(router, "slice") != 0)
        return MDP_REFUSE(&where, "'router' is '%s'; this version knows 'slice'", router ? router : "(none)");
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
static mdp_status parse_type(const json_t *root, const char *path, mdp_plan *plan) {
    const json_t *type = json_object_get(root, "changed_type");
    plan->widened = type && json_is_string(type) && strcmp(json_string_value(type), CHANGED_TYPE) == 0;
    if (!type || plan->widened) return mdp_ok();
    return MDP_ERROR(MDP_BAD_INPUT, "%s: \"changed_type\" must be \"" CHANGED_TYPE "\", or not be there.", path);
}

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
    MDP_TRY(parse_type(root, path, plan));
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

mdp_status mdp_plan_copy(const mdp_plan *plan, const char *path, mdp_plan **out) {
    char *text = NULL;
    *out = NULL;
    MDP_TRY(mdp_plan_print(plan, &text));
    mdp_status status = mdp_plan_parse(text, (int64_t)strlen(text), path, out);
    mdp_free(text);
    return status;
}
