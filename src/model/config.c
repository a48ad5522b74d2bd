/* config.c - config.json to numbers. A key counts under every spelling of the family; an absent one takes the class
 * default of its model_type. Refuses, naming the key: values of the wrong kind, sizes that are not positive, heads that
 * do not divide, more experts per token than experts, unknown activations. */
#include "model/config.h"

#include <math.h>
#include <string.h>

const json_t *mdp_config_get(const json_t *json, const char *key) {
    const char *dot = key == NULL ? NULL : strchr(key, '.');
    char part[64];
    if (dot == NULL || (size_t)(dot - key) >= sizeof part) return json_object_get(json, key);
    (void)snprintf(part, sizeof part, "%.*s", (int)(dot - key), key);
    return mdp_config_get(json_object_get(json, part), dot + 1);
}

/* A list becomes its first entry; all must be the same. */
static mdp_status first_of_equals(const char *name, const char *path, const json_t **value) {
    const json_t *list = *value, *other;
    size_t i;
    if (!json_is_array(list) || json_array_size(list) == 0) return mdp_ok();
    *value = json_array_get(list, 0);
    json_array_foreach(list, i, other) {
        if (json_equal(*value, other)) continue;
        return MDP_ERROR(MDP_BAD_INPUT,
                         "%s: '%s' has different numbers for layers 0 and %zu; supported is the same "
                         "number for all layers.",
                         path, name, i);
    }
    return mdp_ok();
}

/* One spelling of a whole-number key. *found tells whether it is there (null counts as absent where it may be). */
static mdp_status read_spelling(const json_t *json, const mdp_int_key *key, const char *name, const char *path,
                                bool *found, int64_t *out) {
    const json_t *value = mdp_config_get(json, name);
    bool minus_one = json_is_integer(value) && json_integer_value(value) == -1;
    *found = value != NULL && !(json_is_null(value) && key->null_is_absent) && !(minus_one && key->minus_one_is_absent);
    if (!*found) return mdp_ok();
    if (key->may_be_list) MDP_TRY(first_of_equals(name, path, &value));
    if (!json_is_integer(value)) {
        return MDP_ERROR(MDP_BAD_INPUT, "%s: '%s' is %s; expected a whole number.", path, name, mdp_json_kind(value));
    }
    *out = json_integer_value(value);
    int least = key->may_be_zero ? 0 : 1;
    if (*out < least || *out > INT32_MAX) {
        return MDP_ERROR(MDP_BAD_INPUT, "%s: '%s' is %lld; expected a number from %d to %d.", path, name,
                         (long long)*out, least, INT32_MAX);
    }
    return mdp_ok();
}

mdp_status mdp_config_int(const json_t *json, const mdp_int_key *key, const char *path, int64_t *out) {
    bool has_first = false, has_other = false;
    int64_t first = key->absent, other = 0;
    if (key->name != NULL) MDP_TRY(read_spelling(json, key, key->name, path, &has_first, &first));
    if (key->other != NULL) MDP_TRY(read_spelling(json, key, key->other, path, &has_other, &other));
    if (has_first && key->other_yields) has_other = false;
    if (has_first && has_other && first != other) {
        return MDP_ERROR(MDP_BAD_INPUT, "%s: '%s' is %lld and '%s' is %lld; both mean the same, so make them equal.",
                         path, key->name, (long long)first, key->other, (long long)other);
    }
    *out = has_other ? other : first;
    return mdp_ok();
}

/* The library asks whether a flag holds, and null does not. */
static mdp_status read_bool(const json_t *json, const mdp_bool_key *key, const char *path, bool *out) {
    *out = key->absent;
    const json_t *value = key->name == NULL ? NULL : mdp_config_get(json, key->name);
    if (value == NULL) return mdp_ok();
    if (!json_is_boolean(value) && !json_is_null(value)) {
        return MDP_ERROR(MDP_BAD_INPUT, "%s: '%s' is %s; expected true or false.", path, key->name,
                         mdp_json_kind(value));
    }
    *out = json_is_true(value);
    return mdp_ok();
}

/* A number that is not negative; the class default when it is absent. */
static mdp_status read_real(const json_t *json, const mdp_real_key *key, const char *path, double *out) {
    *out = key->absent;
    const json_t *value = mdp_config_get(json, key->name);
    if (value == NULL) return mdp_ok();
    if (!json_is_number(value)) {
        return MDP_ERROR(MDP_BAD_INPUT, "%s: '%s' is %s; expected a number.", path, key->name, mdp_json_kind(value));
    }
    *out = json_number_value(value);
    if (!(*out >= 0.0 && isfinite(*out))) {
        return MDP_ERROR(MDP_BAD_INPUT, "%s: '%s' is %g; expected a number that is not negative.", path, key->name,
                         *out);
    }
    return mdp_ok();
}

/* A bound above 0; absent and null mean that there is none. */
static mdp_status read_clip(const json_t *json, const mdp_real_key *key, const char *path, double *out) {
    *out = 0.0;
    const json_t *value = key->name == NULL ? NULL : mdp_config_get(json, key->name);
    if (value == NULL || json_is_null(value)) return mdp_ok();
    MDP_TRY(read_real(json, key, path, out));
    if (*out > 0.0) return mdp_ok();
    return MDP_ERROR(MDP_BAD_INPUT, "%s: '%s' is 0; expected a number above 0, or null for no bound.", path, key->name);
}

/* A multiplier above 0; `otherwise` in families that have none. */
static mdp_status read_factor(const json_t *json, const mdp_real_key *key, double otherwise, const char *path,
                              double *out) {
    *out = otherwise;
    if (key->name == NULL) return mdp_ok();
    MDP_TRY(read_real(json, key, path, out));
    if (*out > 0.0) return mdp_ok();
    return MDP_ERROR(MDP_BAD_INPUT, "%s: '%s' is 0; expected a number above 0.", path, key->name);
}

static mdp_status read_factors(const json_t *json, const mdp_family *family, const char *path, mdp_config *c) {
    MDP_TRY(read_factor(json, &family->embedding_scale, 1.0, path, &c->embedding_scale));
    MDP_TRY(read_factor(json, &family->residual_scale, 1.0, path, &c->residual_scale));
    MDP_TRY(read_factor(json, &family->logit_divisor, 1.0, path, &c->logit_divisor));
    return read_factor(json, &family->attention_scale, 1.0 / sqrt((double)c->head_dim), path, &c->attention_scale);
}

/* The window of those layers that have one. Its number says nothing when the flag is off. */
static mdp_status read_window(const json_t *json, const mdp_family *family, const char *path, int64_t *out) {
    bool flag;
    *out = 0;
    MDP_TRY(read_bool(json, &family->window_flag, path, &flag));
    if (!flag) return mdp_ok();
    MDP_TRY(mdp_config_int(json, &family->window, path, out));
    if (json_is_null(mdp_config_get(json, family->window.name))) *out = 0;
    return mdp_ok();
}

/* The number of a key that may be null, then its class default holds. */
static mdp_status read_positive(const json_t *json, const mdp_real_key *key, const char *path, double *out) {
    *out = key->absent;
    if (json_is_null(mdp_config_get(json, key->name))) return mdp_ok();
    return read_factor(json, key, key->absent, path, out);
}

static mdp_status read_clamps(const json_t *json, const mdp_family *family, const char *path, mdp_activation *out) {
    double alpha, limit;
    MDP_TRY(read_positive(json, &family->alpha, path, &alpha));
    MDP_TRY(read_positive(json, &family->limit, path, &limit));
    *out = (mdp_activation){.kind = MDP_SWIGLU_CLAMPED, .alpha = (float)alpha, .limit = (float)limit};
    return mdp_ok();
}

static mdp_status read_activation(const json_t *json, const mdp_family *family, const char *path, mdp_activation *out) {
    static const struct {
        const char *name;
        mdp_activation_kind kind;
    } known[] = {
        {"silu", MDP_SILU},           {"swish", MDP_SILU},         {"gelu", MDP_GELU},
        {"gelu_python", MDP_GELU},    {"gelu_new", MDP_GELU_TANH}, {"gelu_pytorch_tanh", MDP_GELU_TANH},
        {"gelu_fast", MDP_GELU_TANH},
    };
    const json_t *value = mdp_config_get(json, family->activation_key);
    const char *name = value == NULL ? family->activation : json_string_value(value);
    for (size_t i = 0; name != NULL && i < sizeof known / sizeof known[0]; i++) {
        if (strcmp(name, known[i].name) == 0) {
            *out = (mdp_activation){.kind = known[i].kind};
            return mdp_ok();
        }
    }
    return MDP_ERROR(MDP_BAD_INPUT, "%s: '%s' is %s%s%s; supported are silu, gelu and its tanh form gelu_pytorch_tanh.",
                     path, family->activation_key, name == NULL ? mdp_json_kind(value) : "'", name == NULL ? "" : name,
                     name == NULL ? "" : "'");
}

static mdp_status check_heads(const mdp_family *family, const char *path, const mdp_config *c) {
    if (c->n_head % c->n_kv_head != 0) {
        return MDP_ERROR(MDP_BAD_INPUT,
                         "%s: '%s' is %lld, which is not a multiple of '%s' %lld, so heads cannot share "
                         "keys evenly.",
                         path, family->n_head.name, (long long)c->n_head, family->n_kv_head.name,
                         (long long)c->n_kv_head);
    }
    if (c->head_dim % 2 != 0) {
        return MDP_ERROR(MDP_BAD_INPUT, "%s: heads have %lld values ('%s'); expected an even number.", path,
                         (long long)c->head_dim, family->head_dim.name);
    }
    int64_t width;
    if (!mdp_multiply(c->n_head, 2 * c->head_dim, &width) || width > INT32_MAX) { /* with a gate for every value */
        return MDP_ERROR(MDP_BAD_INPUT, "%s: '%s' %lld times '%s' %lld is beyond %d.", path, family->n_head.name,
                         (long long)c->n_head, family->head_dim.name, (long long)c->head_dim, INT32_MAX);
    }
    return mdp_ok();
}

/* Queries and keys of latent attention: own values, then rotated ones. */
static mdp_status read_latent(const json_t *json, const mdp_family *family, const char *path, mdp_config *c) {
    mdp_latent *latent = &c->latent;
    MDP_TRY(mdp_config_int(json, &family->q_rank, path, &latent->q_rank));
    if (json_is_null(json_object_get(json, family->q_rank.name))) latent->q_rank = 0;
    MDP_TRY(mdp_config_int(json, &family->kv_rank, path, &latent->kv_rank));
    MDP_TRY(mdp_config_int(json, &family->n_own, path, &latent->n_own));
    MDP_TRY(mdp_config_int(json, &family->n_rope, path, &latent->n_rope));
    MDP_TRY(mdp_config_int(json, &family->n_value, path, &latent->n_value));
    c->head_dim = latent->n_own + latent->n_rope;
    c->n_kv_head = c->n_head;
    int64_t width, wide = latent->n_own + (latent->n_rope > latent->n_value ? latent->n_rope : latent->n_value);
    bool fits = mdp_multiply(c->n_head, wide, &width) && width <= INT32_MAX;
    if (fits && latent->n_rope % 2 == 0) return mdp_ok();
    return MDP_ERROR(
        MDP_BAD_INPUT,
        "%s: %lld heads ('%s') of %lld + %lld values ('%s', '%s') and %lld outputs ('%s'): the second must "
        "be even, and all together at most %d.",
        path, (long long)c->n_head, family->n_head.name, (long long)latent->n_own, (long long)latent->n_rope,
        family->n_own.name, family->n_rope.name, (long long)latent->n_value, family->n_value.name, INT32_MAX);
}

/* head_dim is its own number where it is given, else the width divided by the heads. */
static mdp_status read_heads(const json_t *json, const mdp_family *family, const char *path, mdp_config *c) {
    MDP_TRY(mdp_config_int(json, &family->n_head, path, &c->n_head));
    if (family->kv_rank.name != NULL) return read_latent(json, family, path, c);
    MDP_TRY(mdp_config_int(json, &family->n_kv_head, path, &c->n_kv_head));
    bool as_many = c->n_kv_head == 0 || json_is_null(mdp_config_get(json, family->n_kv_head.name));
    if (as_many) c->n_kv_head = c->n_head;
    MDP_TRY(mdp_config_int(json, &family->head_dim, path, &c->head_dim));
    if (c->head_dim == 0) {
        if (c->d_model % c->n_head != 0) {
            return MDP_ERROR(MDP_BAD_INPUT, "%s: '%s' %lld is not a multiple of '%s' %lld and there is no '%s'.", path,
                             family->d_model.name, (long long)c->d_model, family->n_head.name, (long long)c->n_head,
                             family->head_dim.name);
        }
        c->head_dim = c->d_model / c->n_head;
    }
    return check_heads(family, path, c);
}

/* Linear attention: value heads share key heads evenly. */
static mdp_status read_delta(const json_t *json, const mdp_family *family, const char *path, mdp_config *c) {
    mdp_delta_sizes *n = &c->delta;
    if (family->linear_step.name == NULL) return mdp_ok();
    MDP_TRY(mdp_config_int(json, &family->n_delta_key, path, &n->n_key));
    MDP_TRY(mdp_config_int(json, &family->d_delta_key, path, &n->d_key));
    MDP_TRY(mdp_config_int(json, &family->n_delta_value, path, &n->n_value));
    MDP_TRY(mdp_config_int(json, &family->d_delta_value, path, &n->d_value));
    MDP_TRY(mdp_config_int(json, &family->n_delta_kernel, path, &n->n_kernel));
    if (n->n_value % n->n_key != 0) {
        return MDP_ERROR(
            MDP_BAD_INPUT,
            "%s: '%s' is %lld, which is not a multiple of '%s' %lld, so value heads cannot share keys evenly.", path,
            family->n_delta_value.name, (long long)n->n_value, family->n_delta_key.name, (long long)n->n_key);
    }
    int64_t keys, values, state;
    bool fits = mdp_multiply(n->n_key, n->d_key, &keys) && mdp_multiply(n->n_value, n->d_value, &values) &&
                mdp_multiply(n->d_key, n->d_value, &state) && keys <= INT32_MAX / 8 && values <= INT32_MAX / 8 &&
                state <= INT32_MAX;
    n->n_channel = fits ? 2 * keys + values : 0;
    if (fits) return mdp_ok();
    return MDP_ERROR(
        MDP_BAD_INPUT,
        "%s: '%s' %lld times '%s' %lld, or '%s' %lld times '%s' %lld, is beyond what linear attention here "
        "can hold.",
        path, family->n_delta_key.name, (long long)n->n_key, family->d_delta_key.name, (long long)n->d_key,
        family->n_delta_value.name, (long long)n->n_value, family->d_delta_value.name, (long long)n->d_value);
}

/* Experts in groups of equal size, some of which are open to a token. */
static mdp_status read_groups(const json_t *json, const mdp_family *family, const char *path, mdp_config *c) {
    const char *method =
        family->group_method_key == NULL ? NULL : json_string_value(mdp_config_get(json, family->group_method_key));
    bool counts = family->group_method == NULL || (method != NULL && strcmp(method, family->group_method) == 0);
    c->n_group = c->n_open = 1;
    if (family->n_group.name == NULL) return mdp_ok();
    if (method != NULL && !counts && strcmp(method, "greedy") != 0) {
        return MDP_ERROR(MDP_BAD_INPUT, "%s: '%s' is '%s'; supported are greedy and %s.", path,
                         family->group_method_key, method, family->group_method);
    }
    if (!counts) return mdp_ok();
    MDP_TRY(mdp_config_int(json, &family->n_group, path, &c->n_group));
    MDP_TRY(mdp_config_int(json, &family->n_open, path, &c->n_open));
    if (c->n_open <= c->n_group) return mdp_ok();
    return MDP_ERROR(MDP_BAD_INPUT, "%s: '%s' is %lld, but there are only %lld groups of experts ('%s').", path,
                     family->n_open.name, (long long)c->n_open, (long long)c->n_group, family->n_group.name);
}

static mdp_status missing_key(const mdp_int_key *key, const char *path) {
    return MDP_ERROR(MDP_BAD_INPUT, "%s: '%s' is missing; expected a whole number.", path, key->name);
}

/* What layers without rotation do to their queries. */
static mdp_status read_temper(const json_t *json, const mdp_family *family, const char *path, mdp_config *c) {
    bool flag;
    MDP_TRY(read_bool(json, &family->temper_flag, path, &flag));
    if (!flag) return mdp_ok();
    MDP_TRY(read_real(json, &family->temper_scale, path, &c->temper_scale));
    return mdp_config_int(json, &family->temper_floor, path, &c->temper_floor);
}

/* Weights are divided by their p-norm where p is given: 1, for weights are positive and then add up to 1; or not. */
static mdp_status read_power(const json_t *json, const mdp_family *family, const char *path, mdp_config *c) {
    const json_t *value = mdp_config_get(json, family->normalise_power);
    c->normalise = !json_is_null(value);
    if (value == NULL || json_is_null(value) || json_number_value(value) == 1.0) return mdp_ok();
    return MDP_ERROR(MDP_BAD_INPUT, "%s: '%s' is %s (%g); supported are 1 and null.", path, family->normalise_power,
                     mdp_json_kind(value), json_number_value(value));
}

static mdp_status read_routing(const json_t *json, const mdp_family *family, const char *path, mdp_config *c) {
    MDP_TRY(mdp_config_int(json, &family->n_expert, path, &c->n_expert));
    MDP_TRY(mdp_config_int(json, &family->top_k, path, &c->top_k));
    if (c->n_expert == 0) return missing_key(&family->n_expert, path);
    if (c->top_k == 0) return missing_key(&family->top_k, path);
    if (c->top_k > c->n_expert) {
        return MDP_ERROR(MDP_BAD_INPUT,
                         "%s: '%s' is %lld, but there are only %lld experts ('%s'); a token cannot choose "
                         "more experts than there are.",
                         path, family->top_k.name, (long long)c->top_k, (long long)c->n_expert, family->n_expert.name);
    }
    if (family->score == MDP_SPARSEMIXER) {
        MDP_TRY(read_real(json, &family->jitter, path, &c->jitter));
        if (c->top_k != 2) {
            return MDP_ERROR(MDP_BAD_INPUT, "%s: '%s' is %lld; the sparsemixer router of %s always chooses 2.", path,
                             family->top_k.name, (long long)c->top_k, family->model_type);
        }
    }
    bool flag;
    MDP_TRY(read_bool(json, &family->normalise_flag, path, &flag));
    c->normalise = family->normalise == MDP_NORMALISE_ALWAYS || (family->normalise == MDP_NORMALISE_BY_FLAG && flag);
    if (family->normalise_power != NULL) MDP_TRY(read_power(json, family, path, c));
    c->weight_scale = 1.0;
    if (family->weight_scale.name != NULL) MDP_TRY(read_real(json, &family->weight_scale, path, &c->weight_scale));
    MDP_TRY(read_real(json, &family->normalise_least, path, &c->normalise_least));
    return read_groups(json, family, path, c);
}

/* One MLP of several shared experts is as wide as all of them. */
static mdp_status read_shared(const json_t *json, const mdp_family *family, const char *path, mdp_config *c) {
    int64_t n_shared;
    if (family->n_shared.name == NULL) return mdp_config_int(json, &family->shared_ff, path, &c->shared_ff);
    MDP_TRY(mdp_config_int(json, &family->n_shared, path, &n_shared));
    if (json_is_null(mdp_config_get(json, family->n_shared.name))) n_shared = 0;
    if (mdp_multiply(n_shared, c->d_ff, &c->shared_ff) && c->shared_ff <= INT32_MAX) return mdp_ok();
    return MDP_ERROR(MDP_BAD_INPUT, "%s: '%s' %lld times '%s' %lld is beyond %d.", path, family->n_shared.name,
                     (long long)n_shared, family->d_ff.name, (long long)c->d_ff, INT32_MAX);
}

/* Keys that would change how the model computes must say what the family computes. */
static mdp_status check_fixed(const json_t *json, const mdp_family *family, const char *path) {
    for (const mdp_fixed_key *key = family->fixed; key != NULL && key->name != NULL; key++) {
        const json_t *value = mdp_config_get(json, key->name);
        if (value == NULL || json_is_null(value)) continue;
        char found[64] = "";
        size_t n = json_dumpb(value, found, sizeof found - 1, JSON_COMPACT | JSON_ENCODE_ANY);
        if (n < sizeof found && strcmp(found, key->value) == 0) continue;
        return MDP_ERROR(MDP_BAD_INPUT, "%s: '%s' is %s; a model of type '%s' is supported with %s only.", path,
                         key->name, n < sizeof found ? found : mdp_json_kind(value), family->model_type, key->value);
    }
    return mdp_ok();
}

mdp_status mdp_config_read(const json_t *json, const mdp_family *family, const char *path, mdp_config *out) {
    mdp_config c = {0};
    MDP_TRY(check_fixed(json, family, path));
    MDP_TRY(mdp_config_int(json, &family->d_model, path, &c.d_model));
    MDP_TRY(mdp_config_int(json, &family->d_ff, path, &c.d_ff));
    MDP_TRY(mdp_config_int(json, &family->n_layer, path, &c.n_layer));
    MDP_TRY(mdp_config_int(json, &family->n_extra, path, &c.n_extra));
    MDP_TRY(mdp_config_int(json, &family->vocab_size, path, &c.vocab_size));
    MDP_TRY(mdp_config_int(json, &family->max_position, path, &c.max_position));
    MDP_TRY(mdp_config_int(json, &family->most_tokens, path, &c.most_tokens));
    MDP_TRY(mdp_config_int(json, &family->dense_ff, path, &c.dense_ff));
    MDP_TRY(read_shared(json, family, path, &c));
    MDP_TRY(read_window(json, family, path, &c.window));
    MDP_TRY(read_real(json, &family->norm_eps, path, &c.norm_eps));
    MDP_TRY(read_clip(json, &family->clip, path, &c.clip));
    MDP_TRY(read_bool(json, &family->bias, path, &c.bias));
    MDP_TRY(read_bool(json, &family->head_bias_flag, path, &c.head_bias));
    MDP_TRY(read_bool(json, &family->qk_norm_flag, path, &c.qk_norm));
    if (family->qk_norm_flag.name == NULL) c.qk_norm = true;
    if (family->qk_norm == MDP_QK_NORM_NONE) c.qk_norm = false;
    MDP_TRY(read_bool(json, &family->tied, path, &c.tied));
    MDP_TRY(family->limit.name != NULL ? read_clamps(json, family, path, &c.activation)
                                       : read_activation(json, family, path, &c.activation));
    MDP_TRY(read_heads(json, family, path, &c));
    MDP_TRY(read_factors(json, family, path, &c));
    MDP_TRY(read_delta(json, family, path, &c));
    MDP_TRY(read_temper(json, family, path, &c));
    MDP_TRY(read_routing(json, family, path, &c));
    *out = c;
    return mdp_ok();
}
