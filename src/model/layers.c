/* layers.c - what the layers of a model differ in, from config.json: which have experts and which a dense MLP, and over
 * which of them attention slides in a window. Refuses, naming the key: lists of the wrong kind, types of layers that no
 * family here has, a model in which no layer has experts. */
#include "model/config.h"

#include <stdlib.h>
#include <string.h>

void mdp_layers_dense_keys(const mdp_family *family, char *out, size_t n_byte) {
    const char *const keys[] = {family->sparse_step.name, family->sparse_every.name, family->first_sparse.name,
                                family->last_sparse.name, family->dense_layers,      family->mlp_types,
                                family->sparse_layers};
    size_t used = 0;
    out[0] = '\0';
    for (size_t i = 0; i < sizeof keys / sizeof keys[0] && used < n_byte; i++) {
        if (keys[i] == NULL) continue;
        used += (size_t)snprintf(out + used, n_byte - used, "%s%s", used == 0 ? "" : ", ", keys[i]);
    }
}

/* Mark the layers of the list `key` as dense. Numbers beyond the last layer mean nothing, as in the library. */
static mdp_status mark_dense(const json_t *json, const char *key, const char *path, mdp_config *config) {
    const json_t *list = key == NULL ? NULL : json_object_get(json, key), *value;
    if (list == NULL || json_is_null(list)) return mdp_ok();
    if (!json_is_array(list)) {
        return MDP_ERROR(MDP_BAD_INPUT, "%s: '%s' is %s; expected a list of layers.", path, key, mdp_json_kind(list));
    }
    size_t i;
    json_array_foreach(list, i, value) {
        if (!json_is_integer(value)) {
            return MDP_ERROR(MDP_BAD_INPUT, "%s: '%s' holds %s; expected a list of layers.", path, key,
                             mdp_json_kind(value));
        }
        json_int_t layer = json_integer_value(value);
        if (layer >= 0 && layer < config->n_layer) config->layers[layer].dense = true;
    }
    return mdp_ok();
}

/* The list mlp_types calls every layer "dense" or "sparse". */
static mdp_status read_mlp_types(const json_t *list, const mdp_family *family, const char *path, mdp_config *config) {
    const char *key = family->mlp_types;
    if (!json_is_array(list) || (int64_t)json_array_size(list) != config->n_layer) {
        return MDP_ERROR(MDP_BAD_INPUT, "%s: '%s' must be a list that says dense or sparse for each of %lld layers.",
                         path, key, (long long)config->n_layer);
    }
    for (int64_t l = 0; l < config->n_layer; l++) {
        const json_t *value = json_array_get(list, (size_t)l);
        const char *type = json_is_string(value) ? json_string_value(value) : mdp_json_kind(value);
        config->layers[l].dense = strcmp(type, "dense") == 0;
        if (config->layers[l].dense || strcmp(type, "sparse") == 0) continue;
        return MDP_ERROR(MDP_BAD_INPUT, "%s: layer %lld is '%s' ('%s'); supported are dense and sparse.", path,
                         (long long)l, type, key);
    }
    return mdp_ok();
}

/* Layers by the first and last with experts, and by the steps between them. */
static mdp_status read_steps(const json_t *json, const mdp_family *family, const char *path, mdp_config *config) {
    int64_t step = 1, every = 1, first = 0, last = config->n_layer - 1;
    if (family->sparse_step.name != NULL) MDP_TRY(mdp_config_int(json, &family->sparse_step, path, &step));
    if (family->sparse_every.name != NULL) MDP_TRY(mdp_config_int(json, &family->sparse_every, path, &every));
    MDP_TRY(mdp_config_int(json, &family->first_sparse, path, &first));
    if (family->last_sparse.name != NULL) {
        mdp_int_key key = family->last_sparse;
        key.absent = last;
        MDP_TRY(mdp_config_int(json, &key, path, &last));
    }
    for (int64_t l = 0; l < config->n_layer; l++)
        config->layers[l].dense = (l + 1) % step != 0 || l % every != 0 || l < first || l > last;
    return mdp_ok();
}

/* Layers in the list sparse_layers have experts, the others have none. */
static mdp_status read_sparse(const json_t *json, const mdp_family *family, const char *path, mdp_config *config) {
    const json_t *list = family->sparse_layers == NULL ? NULL : json_object_get(json, family->sparse_layers);
    if (list == NULL || json_is_null(list)) return mdp_ok();
    for (int64_t l = 0; l < config->n_layer; l++) config->layers[l].dense = false;
    MDP_TRY(mark_dense(json, family->sparse_layers, path, config));
    for (int64_t l = 0; l < config->n_layer; l++) config->layers[l].dense = !config->layers[l].dense;
    return mdp_ok();
}

static mdp_status read_dense(const json_t *json, const mdp_family *family, const char *path, mdp_config *config) {
    int64_t n_dense = 0;
    const json_t *types = family->mlp_types == NULL ? NULL : json_object_get(json, family->mlp_types);
    MDP_TRY(read_steps(json, family, path, config));
    if (types != NULL && !json_is_null(types)) MDP_TRY(read_mlp_types(types, family, path, config));
    MDP_TRY(mark_dense(json, family->dense_layers, path, config));
    MDP_TRY(read_sparse(json, family, path, config));
    for (int64_t l = 0; l < config->n_layer; l++) n_dense += config->layers[l].dense;
    if (n_dense < config->n_layer) return mdp_ok();
    char keys[200];
    mdp_layers_dense_keys(family, keys, sizeof keys);
    return MDP_ERROR(MDP_BAD_INPUT, "%s: none of the %lld layers has experts (%s); there is nothing to prune.", path,
                     (long long)config->n_layer, keys);
}

/* The list layer_types gives every layer its type. */
static mdp_status read_types(const json_t *list, const mdp_family *family, const char *path, mdp_config *config) {
    const char *key = family->layer_types;
    if (!json_is_array(list)) {
        return MDP_ERROR(MDP_BAD_INPUT, "%s: '%s' is %s; expected a list of types of layers.", path, key,
                         mdp_json_kind(list));
    }
    if ((int64_t)json_array_size(list) != config->n_layer) {
        return MDP_ERROR(MDP_BAD_INPUT, "%s: '%s' names %lld layers, '%s' is %lld; make them equal.", path, key,
                         (long long)json_array_size(list), family->n_layer.name, (long long)config->n_layer);
    }
    for (int64_t l = 0; l < config->n_layer; l++) {
        const json_t *value = json_array_get(list, (size_t)l);
        const char *type = json_is_string(value) ? json_string_value(value) : mdp_json_kind(value);
        bool slides = strcmp(type, "sliding_attention") == 0;
        bool chunked = family->chunk.name != NULL && strcmp(type, "chunked_attention") == 0;
        config->layers[l].linear = family->linear_step.name != NULL && strcmp(type, "linear_attention") == 0;
        if (!slides && !chunked && !config->layers[l].linear && strcmp(type, "full_attention") != 0) {
            return MDP_ERROR(MDP_BAD_INPUT, "%s: layer %lld is '%s' ('%s'); supported are full_attention and %s.", path,
                             (long long)l, type, key,
                             family->linear_step.name != NULL ? "linear_attention"
                             : family->chunk.name != NULL     ? "chunked_attention"
                                                              : "sliding_attention");
        }
        config->layers[l].chunk = chunked ? config->chunk : 0;
        if (slides && config->window == 0) {
            return MDP_ERROR(MDP_BAD_INPUT,
                             "%s: layer %lld is 'sliding_attention' ('%s'), but there is no window ('%s').", path,
                             (long long)l, key, family->window.name);
        }
        config->layers[l].window = slides ? config->window : 0;
    }
    return mdp_ok();
}

/* Every linear_step-th layer has full attention, the others have linear attention. */
static mdp_status read_linear(const json_t *json, const mdp_family *family, const char *path, mdp_config *config) {
    int64_t step;
    MDP_TRY(mdp_config_int(json, &family->linear_step, path, &step));
    for (int64_t l = 0; l < config->n_layer; l++) config->layers[l].linear = (l + 1) % step != 0;
    return mdp_ok();
}

static mdp_status read_windows(const json_t *json, const mdp_family *family, const char *path, mdp_config *config) {
    const json_t *list = family->layer_types == NULL ? NULL : json_object_get(json, family->layer_types);
    if (list != NULL && !json_is_null(list)) return read_types(list, family, path, config);
    if (family->linear_step.name != NULL) return read_linear(json, family, path, config);
    if (config->window == 0) return mdp_ok();
    int64_t end = config->n_layer, step = 0;
    if (family->window_step.name != NULL) MDP_TRY(mdp_config_int(json, &family->window_step, path, &step));
    if (family->window_end.name != NULL) MDP_TRY(mdp_config_int(json, &family->window_end, path, &end));
    for (int64_t l = 0; l < config->n_layer; l++) {
        bool slides = family->window_rule == MDP_WINDOW_FROM ? l >= end : l < end;
        if (family->window_rule == MDP_WINDOW_EVEN && l % 2 != 0) slides = false;
        if (step > 0 && (l + 1) % step == 0) slides = false;
        if (slides) config->layers[l].window = config->window;
    }
    return mdp_ok();
}

/* Layers without rotation, and the chunks of the others. */
static mdp_status read_plain(const json_t *json, const mdp_family *family, const char *path, mdp_config *config) {
    int64_t step;
    if (family->plain_layers == NULL) return mdp_ok();
    const json_t *list = json_object_get(json, family->plain_layers);
    bool given = json_is_array(list) && json_array_size(list) > 0;
    if ((list != NULL && !json_is_null(list) && !json_is_array(list)) ||
        (given && (int64_t)json_array_size(list) != config->n_layer)) {
        return MDP_ERROR(MDP_BAD_INPUT, "%s: '%s' must be a list of 0 or 1 for each of %lld layers, or null.", path,
                         family->plain_layers, (long long)config->n_layer);
    }
    MDP_TRY(mdp_config_int(json, &family->plain_step, path, &step));
    MDP_TRY(mdp_config_int(json, &family->chunk, path, &config->chunk));
    for (int64_t l = 0; l < config->n_layer; l++) {
        mdp_layer_config *layer = &config->layers[l];
        layer->plain = given ? json_integer_value(json_array_get(list, (size_t)l)) == 0 : (l + 1) % step == 0;
        layer->chunk = layer->plain ? 0 : config->chunk;
    }
    return mdp_ok();
}

/* One entry of per_layer_config: nothing but the number of experts may differ. */
static mdp_status read_own_layer(const char *layer, const json_t *keys, const mdp_family *family, const char *path,
                                 mdp_config *config) {
    char *end = NULL;
    long long l = strtoll(layer, &end, 10);
    const char *key;
    json_t *value;
    if (*layer == '\0' || *end != '\0' || l < 0 || l >= config->n_layer)
        return MDP_ERROR(MDP_BAD_INPUT, "%s: '%s' has the key '%s'; the layers are 0 to %lld.", path, MDP_PER_LAYER,
                         layer, (long long)config->n_layer - 1);
    if (!json_is_object(keys))
        return MDP_ERROR(MDP_BAD_INPUT, "%s: layer %lld of '%s' is %s; expected an object.", path, l, MDP_PER_LAYER,
                         mdp_json_kind(keys));
    json_object_foreach((json_t *)keys, key, value) {
        bool known = strcmp(key, family->n_expert.name) == 0 ||
                     (family->n_expert.other != NULL && strcmp(key, family->n_expert.other) == 0);
        if (!known)
            return MDP_ERROR(MDP_BAD_INPUT,
                             "%s: '%s' sets '%s' of layer %lld; only '%s' may differ between layers here.", path,
                             MDP_PER_LAYER, key, l, family->n_expert.name);
        if (!json_is_integer(value) || json_integer_value(value) < 1 || json_integer_value(value) > INT32_MAX)
            return MDP_ERROR(MDP_BAD_INPUT, "%s: '%s' of layer %lld in '%s' must be a number of 1 or more.", path, key,
                             l, MDP_PER_LAYER);
        config->layers[l].n_expert = json_integer_value(value);
    }
    return mdp_ok();
}

static mdp_status read_own_layers(const json_t *json, const mdp_family *family, const char *path, mdp_config *config) {
    json_t *list = json_object_get(json, MDP_PER_LAYER), *keys;
    const char *layer;
    if (list == NULL || json_is_null(list)) return mdp_ok();
    if (!json_is_object(list))
        return MDP_ERROR(MDP_BAD_INPUT, "%s: '%s' is %s; expected an object.", path, MDP_PER_LAYER,
                         mdp_json_kind(list));
    json_object_foreach(list, layer, keys) MDP_TRY(read_own_layer(layer, keys, family, path, config));
    return mdp_ok();
}

mdp_status mdp_layers_read(const json_t *json, const mdp_family *family, const char *path, mdp_config *config) {
    MDP_TRY(MDP_ALLOC(&config->layers, config->n_layer, "what the layers differ in"));
    MDP_TRY(read_dense(json, family, path, config));
    MDP_TRY(read_plain(json, family, path, config));
    MDP_TRY(read_own_layers(json, family, path, config));
    MDP_TRY(read_windows(json, family, path, config));
    for (int64_t l = 0; family->plain_beyond_window && config->window > 0 && l < config->n_layer; l++)
        config->layers[l].plain = config->layers[l].window == 0;
    return mdp_ok();
}
