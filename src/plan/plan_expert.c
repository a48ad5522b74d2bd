/* plan_expert.c - one expert of a plan as JSON: what it is made of, by which action, and the arrays that the action
 * needs. Every action is a row of a table, so that what a hand-written entry lacks or has too much is said by name. The
 * arrays themselves lie in plan.h5 (plan_arrays.c). */
#include "plan/plan_expert.h"

#include <math.h>
#include <string.h>

#define WEIGHT_SLACK 1e-6 /* weights are printed with nine digits */
#define LEAST_SQUARES "least-squares"

enum { MAX_ARRAY = 12 };

/* What an entry with this action may and must say. */
typedef struct action_row {
    const char *name;
    bool single;                     /* made of one expert */
    bool weighted;                   /* has weights */
    bool sums_to_one;                /* which are shares */
    bool aligned;                    /* may say how neurons were aligned */
    const char *required[MAX_ARRAY]; /* arrays; NULL at the end */
    const char *allowed[MAX_ARRAY];  /* beside those */
} action_row;

#define ANY_PART                                                                                                       \
    {                                                                                                                  \
        "gate", "gate_scale", "gate_bias", "up", "up_scale", "up_bias", "down", "down_scale", "down_bias", "router",   \
            "router_bias", "choice_bias"                                                                               \
    }

static const action_row actions[MDP_N_ACTION] = {
    [MDP_KEEP] = {.name = "keep", .single = true, .allowed = ANY_PART},
    [MDP_DROP] = {.name = "drop"},
    [MDP_ZERO] = {.name = "zero", .single = true},
    [MDP_MERGE] = {.name = "merge", .weighted = true, .sums_to_one = true, .aligned = true, .allowed = ANY_PART},
    [MDP_CONSTANT] = {.name = "constant", .single = true, .required = {"value"}},
    [MDP_CONDENSE] = {.name = "condense", .weighted = true},
    [MDP_NEURONS] = {.name = "neurons",
                     .single = true,
                     .allowed = {"gate", "gate_scale", "gate_bias", "up", "up_scale", "up_bias", "down", "down_scale",
                                 "down_bias"}},
    [MDP_MASK] = {.name = "mask", .single = true, .allowed = {"input_norm", "hidden_norm"}},
};

static const char *const align_names[] = {[MDP_ALIGN_UNSAID] = "",
                                          [MDP_ALIGN_NONE] = "none",
                                          [MDP_ALIGN_WEIGHT] = "weight",
                                          [MDP_ALIGN_ACTIVATION] = "activation"};
#define N_ALIGN ((int)(sizeof align_names / sizeof align_names[0]))

const char *const mdp_merge_router_names[] = {[MDP_ROUTER_MEAN] = "mean",
                                              [MDP_ROUTER_SUM] = "sum",
                                              [MDP_ROUTER_MAX] = "max",
                                              [MDP_ROUTER_DOMINANT] = "dominant",
                                              [MDP_N_MERGE_ROUTER] = NULL};

const char *mdp_action_name(mdp_action action) {
    return actions[action].name;
}

mdp_status mdp_plan_add_array(mdp_plan_expert *expert, const char *name, const char *path, const char *xxh3) {
    MDP_TRY(MDP_GROW(&expert->arrays, expert->n_array, expert->n_array + 1, "the arrays of a plan"));
    mdp_plan_array *array = &expert->arrays[expert->n_array++];
    snprintf(array->xxh3, sizeof array->xxh3, "%s", xxh3);
    MDP_TRY(mdp_copy_text(&array->name, name));
    return mdp_copy_text(&array->path, path);
}

/* ---- printing -------------------------------------------------------------------------------------------------- */

static json_t *print_arrays(const mdp_plan_expert *expert) {
    json_t *object = json_object();
    for (int i = 0; i < expert->n_array; i++)
        mdp_json_put(&object, expert->arrays[i].name,
                     json_pack("{s:s, s:s}", "path", expert->arrays[i].path, "xxh3", expert->arrays[i].xxh3));
    return object;
}

static json_t *print_mask(const mdp_mask_rule *rule) {
    if (rule->of == 0) return json_pack("{s:f}", "sparsity", rule->sparsity);
    return json_pack("{s:i, s:i}", "keep", (int)rule->keep, "of", (int)rule->of);
}

json_t *mdp_plan_print_expert(const mdp_plan_expert *expert) {
    json_t *from = json_array(), *weights = expert->weights ? json_array() : NULL;
    for (int32_t i = 0; i < expert->n_from; i++) mdp_json_add(&from, json_integer(expert->from[i]));
    for (int32_t i = 0; weights && i < expert->n_from; i++) mdp_json_add(&weights, json_real(expert->weights[i]));
    json_t *item = json_pack("{s:o, s:s}", "from", from, "action", actions[expert->action].name);
    if (weights) mdp_json_put(&item, "weights", weights);
    if (expert->align != MDP_ALIGN_UNSAID) mdp_json_put(&item, "align", json_string(align_names[expert->align]));
    if (expert->action == MDP_MERGE) {
        mdp_json_put(&item, "dominant", json_integer(expert->from[expert->dominant]));
        mdp_json_put(&item, "router", json_string(mdp_merge_router_names[expert->router]));
        if (expert->takes_in) mdp_json_put(&item, "takes_in", json_real(expert->alpha));
        if (expert->fitted) mdp_json_put(&item, "fit", json_string(LEAST_SQUARES));
    }
    if (expert->action == MDP_MASK) mdp_json_put(&item, "mask", print_mask(&expert->mask));
    if (expert->neurons) mdp_json_put(&item, "neurons", json_string(expert->neurons));
    if (expert->n_array > 0) mdp_json_put(&item, "arrays", print_arrays(expert));
    return item;
}

json_t *mdp_plan_list_merged(const mdp_plan_layer *layer) {
    json_t *list = json_array();
    for (int32_t i = 0; i < layer->n_kept; i++) {
        const mdp_plan_expert *expert = &layer->kept[i];
        json_t *members = json_array();
        for (int32_t j = 0; j < expert->n_from; j++) mdp_json_add(&members, json_integer(expert->from[j]));
        if (expert->action == MDP_MERGE && !expert->takes_in)
            mdp_json_add(&list, members);
        else
            json_decref(members);
    }
    return list;
}

json_t *mdp_plan_describe_merged(const mdp_plan_layer *layer) {
    json_t *list = json_array();
    for (int32_t i = 0; i < layer->n_kept; i++) {
        if (layer->kept[i].action != MDP_MERGE) continue;
        json_t *item = mdp_plan_print_expert(&layer->kept[i]);
        json_object_del(item, "arrays");
        mdp_json_add(&list, item);
    }
    return list;
}

/* ---- parsing --------------------------------------------------------------------------------------------------- */

mdp_status mdp_plan_check_keys(const json_t *object, const char *const *known, const mdp_plan_place *where) {
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)object, key, value) {
        const char *const *name = known;
        while (*name && strcmp(*name, key) != 0) name++;
        if (!*name) return MDP_REFUSE(where, "this version does not understand '%s'", key);
    }
    return mdp_ok();
}

mdp_status mdp_plan_parse_number(const json_t *value, const mdp_plan_place *where, mdp_expert_t *out) {
    if (!json_is_integer(value) || json_integer_value(value) < 0 || json_integer_value(value) >= MDP_PLAN_MAX_EXPERT)
        return MDP_REFUSE(where, "an expert's number must be an integer from 0 to %d", MDP_PLAN_MAX_EXPERT - 1);
    *out = (mdp_expert_t)json_integer_value(value);
    return mdp_ok();
}

static mdp_status parse_action(const json_t *item, const mdp_plan_place *where, mdp_action *out) {
    const char *action = json_string_value(json_object_get(item, "action"));
    for (int i = 0; action && i < MDP_N_ACTION; i++) {
        if (i == MDP_DROP || strcmp(action, actions[i].name) != 0) continue;
        *out = (mdp_action)i;
        return mdp_ok();
    }
    return MDP_REFUSE(where,
                      "action '%s' where only keep, zero, merge, constant, condense, neurons and mask are possible",
                      action ? action : "(none)");
}

/* The cosine above which neurons of dropped experts are taken in. */
static mdp_status parse_takes_in(const json_t *value, const mdp_plan_place *where, mdp_plan_expert *out) {
    if (!value) return mdp_ok();
    out->takes_in = true;
    out->alpha = json_number_value(value);
    if (out->action != MDP_MERGE)
        return MDP_REFUSE(where, "an expert with action '%s' has no 'takes_in'", actions[out->action].name);
    if (json_is_number(value) && out->alpha >= -1.0 && out->alpha < 1.0) return mdp_ok();
    return MDP_REFUSE(where, "'takes_in' must be a %s from -1 to below 1", "cosine");
}

static mdp_status parse_from(const json_t *list, const mdp_plan_place *where, mdp_plan_expert *out) {
    size_t n = json_array_size(list);
    const action_row *row = &actions[out->action];
    if (row->single && n != 1)
        return MDP_REFUSE(where, "'from': an expert with action '%s' comes from one expert, not from %zu", row->name,
                          n);
    if (out->takes_in && n != 1)
        return MDP_REFUSE(where, "'from': an expert with 'takes_in' comes from one expert, not from %zu", n);
    if (n < (out->action == MDP_MERGE && !out->takes_in ? 2u : 1u) || n > MDP_PLAN_MAX_EXPERT)
        return MDP_REFUSE(where, "'from': an expert with action '%s' cannot come from %zu", row->name, n);
    MDP_TRY(MDP_ALLOC(&out->from, (mdp_count_t)n, "an expert of a plan"));
    for (size_t i = 0; i < n; i++) {
        MDP_TRY(mdp_plan_parse_number(json_array_get(list, i), where, &out->from[i]));
        out->n_from++;
        if (i > 0 && out->from[i] <= out->from[i - 1])
            return MDP_REFUSE(where, "expert %d comes after expert %d in 'from'; name each once, in ascending order",
                              (int)out->from[i], (int)out->from[i - 1]);
    }
    return mdp_ok();
}

static mdp_status parse_weights(const json_t *list, const mdp_plan_place *where, mdp_plan_expert *out) {
    const action_row *row = &actions[out->action];
    double sum = 0.0;
    if (!list && !row->weighted) return mdp_ok();
    if (!row->weighted)
        return MDP_REFUSE(where, "expert %d: action '%s' has no 'weights'", (int)out->from[0], row->name);
    if (!json_is_array(list) || json_array_size(list) != (size_t)out->n_from)
        return MDP_REFUSE(where, "expert %d: action '%s' needs 'weights', one for each of its %d experts",
                          (int)out->from[0], row->name, (int)out->n_from);
    MDP_TRY(MDP_ALLOC(&out->weights, out->n_from, "the weights of a plan"));
    for (int32_t i = 0; i < out->n_from; i++) {
        const json_t *value = json_array_get(list, (size_t)i);
        out->weights[i] = json_number_value(value);
        if (!json_is_number(value) || !isfinite(out->weights[i]) || out->weights[i] < 0.0)
            return MDP_REFUSE(where, "expert %d: the weight of expert %d is not a number from 0 on", (int)out->from[0],
                              (int)out->from[i]);
        sum += out->weights[i];
    }
    if (row->sums_to_one && fabs(sum - 1.0) > WEIGHT_SLACK)
        return MDP_REFUSE(where, "expert %d: the weights add up to %.9g, not to 1", (int)out->from[0], sum);
    return mdp_ok();
}

static mdp_status parse_align(const json_t *value, const mdp_plan_place *where, mdp_plan_expert *out) {
    const char *name = json_string_value(value);
    if (!value) return mdp_ok();
    if (!actions[out->action].aligned)
        return MDP_REFUSE(where, "expert %d: action '%s' has no 'align'", (int)out->from[0], actions[out->action].name);
    for (int i = 1; name && i < N_ALIGN; i++) {
        if (strcmp(name, align_names[i]) == 0) out->align = (mdp_plan_align)i;
    }
    if (out->align != MDP_ALIGN_UNSAID) return mdp_ok();
    return MDP_REFUSE(where, "expert %d: 'align' is '%s'; none, weight and activation are possible", (int)out->from[0],
                      name ? name : "(none)");
}

/* The member of the largest weight (ties: the lower number), where the plan does not say. */
static int32_t heaviest(const mdp_plan_expert *expert) {
    int32_t best = 0;
    for (int32_t i = 1; i < expert->n_from; i++)
        if (expert->weights[i] > expert->weights[best]) best = i;
    return best;
}

static mdp_status parse_merge(const json_t *item, const mdp_plan_place *where, mdp_plan_expert *out) {
    const json_t *dominant = json_object_get(item, "dominant"), *router = json_object_get(item, "router");
    const char *name = json_string_value(router);
    if (out->action != MDP_MERGE) {
        if (!dominant && !router) return mdp_ok();
        return MDP_REFUSE(where, "expert %d: action '%s' has no '%s'", (int)out->from[0], actions[out->action].name,
                          dominant ? "dominant" : "router");
    }
    out->dominant = heaviest(out);
    if (dominant) {
        mdp_expert_t number;
        MDP_TRY(mdp_plan_parse_number(dominant, where, &number));
        for (out->dominant = 0; out->dominant < out->n_from && out->from[out->dominant] != number;) out->dominant++;
        if (out->dominant == out->n_from)
            return MDP_REFUSE(where, "expert %d: 'dominant' is %d, which is not in 'from'", (int)out->from[0],
                              (int)number);
    }
    for (int i = 0; name && i < MDP_N_MERGE_ROUTER; i++) {
        if (strcmp(name, mdp_merge_router_names[i]) != 0) continue;
        out->router = (mdp_merge_router)i;
        return mdp_ok();
    }
    if (!router) return mdp_ok();
    return MDP_REFUSE(where, "expert %d: 'router' is '%s'; mean, sum, max and dominant are possible", (int)out->from[0],
                      name ? name : "(none)");
}

static mdp_status parse_fit(const json_t *value, const mdp_plan_place *where, mdp_plan_expert *out) {
    const char *name = json_string_value(value);
    if (!value) return mdp_ok();
    out->fitted = true;
    if (out->takes_in)
        return MDP_REFUSE(where, "expert %d: 'fit' and 'takes_in' do not go together", (int)out->from[0]);
    if (out->action != MDP_MERGE)
        return MDP_REFUSE(where, "expert %d: action '%s' has no 'fit'", (int)out->from[0], actions[out->action].name);
    if (name && strcmp(name, LEAST_SQUARES) == 0) return mdp_ok();
    return MDP_REFUSE(where, "expert %d: 'fit' is '%s'; " LEAST_SQUARES " is possible", (int)out->from[0],
                      name ? name : "(none)");
}

static mdp_status parse_mask(const json_t *mask, const mdp_plan_place *where, mdp_plan_expert *out) {
    static const char *const known[] = {"sparsity", "keep", "of", NULL};
    const json_t *sparsity = json_object_get(mask, "sparsity"), *keep = json_object_get(mask, "keep"),
                 *of = json_object_get(mask, "of");
    if (!mask && out->action != MDP_MASK) return mdp_ok();
    if (out->action != MDP_MASK)
        return MDP_REFUSE(where, "expert %d: action '%s' has no 'mask'", (int)out->from[0], actions[out->action].name);
    bool share = json_is_number(sparsity) && !keep && !of;
    bool runs = !sparsity && json_is_integer(keep) && json_is_integer(of);
    if (share) out->mask = (mdp_mask_rule){.sparsity = json_number_value(sparsity)};
    if (runs && json_integer_value(of) >= 1 && json_integer_value(of) <= MDP_MASK_MOST_OF &&
        json_integer_value(keep) >= 0 && json_integer_value(keep) <= json_integer_value(of))
        out->mask = (mdp_mask_rule){.keep = (int32_t)json_integer_value(keep), .of = (int32_t)json_integer_value(of)};
    if ((!share && !runs) || mdp_mask_rule_check(&out->mask).code != MDP_OK)
        return MDP_REFUSE(where,
                          "expert %d: action 'mask' needs a 'mask', {\"sparsity\": between 0 and 1} or {\"keep\": N, "
                          "\"of\": M} with N from 1 to M - 1 and M at most %d",
                          (int)out->from[0], MDP_MASK_MOST_OF);
    return mdp_plan_check_keys(mask, known, where);
}

static mdp_status parse_neurons(const json_t *value, const mdp_plan_place *where, mdp_plan_expert *out) {
    const char *text = json_string_value(value);
    bool cut = out->action == MDP_NEURONS;
    if (!value && !cut) return mdp_ok();
    if (!cut)
        return MDP_REFUSE(where, "expert %d: action '%s' has no 'neurons'", (int)out->from[0],
                          actions[out->action].name);
    if (!text || text[0] == '\0' || text[strspn(text, "0123456789abcdef")] != '\0' || text[strspn(text, "0")] == '\0')
        return MDP_REFUSE(where,
                          "expert %d: 'neurons' must be hex digits (0 to 9, a to f), one for four neurons, that keep "
                          "one or more",
                          (int)out->from[0]);
    return mdp_copy_text(&out->neurons, text);
}

static bool is_listed(const char *name, const char *const *list) {
    for (int i = 0; i < MAX_ARRAY && list[i]; i++) {
        if (strcmp(name, list[i]) == 0) return true;
    }
    return false;
}

static bool is_digest(const char *text) {
    return strlen(text) == 32 && strspn(text, "0123456789abcdef") == 32;
}

static mdp_status parse_array(const char *name, const json_t *value, const mdp_plan_place *where,
                              const mdp_plan_expert *owner, mdp_plan_array *out) {
    static const char *const known[] = {"path", "xxh3", NULL};
    const char *path = json_string_value(json_object_get(value, "path"));
    const char *digest = json_string_value(json_object_get(value, "xxh3"));
    if (!path || path[0] != '/' || !digest || !is_digest(digest))
        return MDP_REFUSE(
            where,
            "expert %d: the array '%s' needs a \"path\" in plan.h5 that begins with '/', and its \"xxh3\" "
            "of 32 hex digits",
            (int)owner->from[0], name);
    MDP_TRY(mdp_plan_check_keys(value, known, where));
    memcpy(out->xxh3, digest, sizeof out->xxh3);
    MDP_TRY(mdp_copy_text(&out->name, name));
    return mdp_copy_text(&out->path, path);
}

static mdp_status parse_arrays(const json_t *object, const mdp_plan_place *where, mdp_plan_expert *out) {
    const action_row *row = &actions[out->action];
    const char *key;
    json_t *value;
    for (int i = 0; i < MAX_ARRAY && row->required[i]; i++) {
        if (!json_object_get(object, row->required[i]))
            return MDP_REFUSE(where, "expert %d: action '%s' needs the array '%s'", (int)out->from[0], row->name,
                              row->required[i]);
    }
    if (!object) return mdp_ok();
    if (!json_is_object(object)) return MDP_REFUSE(where, "expert %d: 'arrays' is not an object", (int)out->from[0]);
    MDP_TRY(MDP_ALLOC(&out->arrays, (mdp_count_t)json_object_size(object), "the arrays of a plan"));
    json_object_foreach((json_t *)object, key, value) {
        if (!is_listed(key, row->required) && !is_listed(key, row->allowed))
            return MDP_REFUSE(where, "expert %d: action '%s' has no array '%s'", (int)out->from[0], row->name, key);
        out->n_array++;
        MDP_TRY(parse_array(key, value, where, out, &out->arrays[out->n_array - 1]));
    }
    if (out->action == MDP_MASK && out->n_array == 1)
        return MDP_REFUSE(where, "expert %d: action 'mask' needs both norms or none", (int)out->from[0]);
    return mdp_ok();
}

mdp_status mdp_plan_parse_expert(const json_t *item, const mdp_plan_place *where, mdp_plan_expert *out) {
    static const char *const known[] = {"from", "action",   "weights", "align",   "dominant", "router",
                                        "fit",  "takes_in", "mask",    "neurons", "arrays",   NULL};
    const json_t *from = json_object_get(item, "from");
    if (!json_is_object(item) || !json_is_array(from))
        return MDP_REFUSE(where, "each entry of 'experts' must be an object with the array '%s'", "from");
    MDP_TRY(mdp_plan_check_keys(item, known, where));
    MDP_TRY(parse_action(item, where, &out->action));
    MDP_TRY(parse_takes_in(json_object_get(item, "takes_in"), where, out));
    MDP_TRY(parse_from(from, where, out));
    MDP_TRY(parse_weights(json_object_get(item, "weights"), where, out));
    MDP_TRY(parse_align(json_object_get(item, "align"), where, out));
    MDP_TRY(parse_merge(item, where, out));
    MDP_TRY(parse_fit(json_object_get(item, "fit"), where, out));
    MDP_TRY(parse_mask(json_object_get(item, "mask"), where, out));
    MDP_TRY(parse_neurons(json_object_get(item, "neurons"), where, out));
    return parse_arrays(json_object_get(item, "arrays"), where, out);
}
