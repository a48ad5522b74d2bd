/* model.c - a catalogue becomes a model: config.json is parsed, its family found, its tensors bound. After this nothing
 * compares strings. Local: every rank does the same on the broadcast catalogue; only shapes are looked at. */
#include "model/bind.h"

#include <string.h>

static mdp_status find_family(const json_t *json, const char *where, const mdp_family **out) {
    if (!json_is_object(json)) {
        return MDP_ERROR(MDP_BAD_INPUT, "%s: expected a JSON object, found %s.", where, mdp_json_kind(json));
    }
    const json_t *type = json_object_get(json, "model_type");
    if (!json_is_string(type)) {
        return MDP_ERROR(MDP_BAD_INPUT, "%s: 'model_type' is %s; expected a text such as \"%s\".", where,
                         mdp_json_kind(type), mdp_family_names()[0]);
    }
    return mdp_family_find(json_string_value(type), where, out);
}

/* The object that has the family's keys: the whole, or a part of it. */
static const json_t *find_scope(const json_t *json, const mdp_family *family) {
    const json_t *part = family->scope == NULL ? NULL : mdp_config_get(json, family->scope);
    return json_is_object(part) ? part : json;
}

static mdp_status read_config(const json_t *json, const char *where, mdp_model *model, mdp_config *config) {
    MDP_TRY(find_family(json, where, &model->family));
    mdp_quantisation quantisation; /* refused before anything else is */
    MDP_TRY(mdp_quantisation_read(json, model->catalogue, where, &quantisation));
    json = find_scope(json, model->family);
    MDP_TRY(mdp_config_read(json, model->family, where, config));
    config->quantisation = quantisation;
    if (config->n_layer > model->catalogue->n_tensor) { /* before memory is taken for every layer */
        return MDP_ERROR(MDP_BAD_INPUT, "%s: '%s' is %lld, but the checkpoint has only %lld tensors.", where,
                         model->family->n_layer.name, (long long)config->n_layer,
                         (long long)model->catalogue->n_tensor);
    }
    MDP_TRY(mdp_layers_read(json, model->family, where, config));
    return mdp_rope_read(json, model->family, config, where, &model->rope);
}

int64_t mdp_attention_values(const mdp_attention *attention) {
    const mdp_delta *delta = &attention->delta;
    const mdp_matrix *all[] = {&attention->q,   &attention->k,    &attention->v,    &attention->o,
                               &attention->q_a, &attention->kv_a, &attention->kv_b, &delta->in,
                               &delta->z,       &delta->b,        &delta->a,        &delta->kernel};
    int64_t n = 0;
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) n += all[i]->tensor ? all[i]->n_row * all[i]->n_col : 0;
    return n;
}

static void copy_sizes(const mdp_config *config, mdp_model *model) {
    (void)snprintf(model->model_type, sizeof model->model_type, "%s", model->family->model_type);
    model->count_key = model->family->n_expert.name;
    model->count_is_nested = strchr(model->count_key, '.') != NULL;
    model->n_layer = config->n_layer;
    model->d_model = config->d_model;
    model->vocab_size = config->vocab_size;
    model->n_head = config->n_head;
    model->n_kv_head = config->n_kv_head;
    model->head_dim = config->head_dim;
    model->q_step = model->family->gated_queries ? 2 * config->head_dim : config->head_dim;
    model->latent = config->latent;
    model->delta = config->delta;
    model->max_position = config->max_position;
    model->most_tokens = config->most_tokens;
    model->norm_eps = config->norm_eps;
    model->norm_kind = model->family->norm_kind;
    model->embedding_scale = config->embedding_scale;
    model->residual_scale = config->residual_scale;
    model->logit_divisor = config->logit_divisor;
}

/* `main` is the model whose layers that predict tokens further ahead are meant; NULL: the model itself. */
static mdp_status fill(const json_t *json, const char *where, const mdp_model *main, mdp_model *model) {
    mdp_config config = {0};
    mdp_status status = read_config(json, where, model, &config);
    if (status.code == MDP_OK) {
        copy_sizes(&config, model);
        if (main != NULL) model->n_layer = 0; /* grows with those that are found */
        status = main != NULL ? mdp_bind_extra_tensors(&config, main->extra, model) : mdp_bind_tensors(&config, model);
    }
    mdp_free(config.layers);
    return status;
}

static mdp_status bind(const mdp_catalogue *catalogue, const mdp_model *main, mdp_model **out) {
    char *where;
    json_t *json = NULL;
    mdp_model *model = NULL;
    *out = NULL;
    MDP_TRY(mdp_format(&where, "%s%s", catalogue->path,
                       catalogue->container == MDP_NATIVE ? ": config.json" : "/config.json"));
    mdp_status status = mdp_json_parse(catalogue->config_text, catalogue->config_byte, where, &json);
    if (status.code == MDP_OK) status = MDP_ALLOC(&model, 1, "the model");
    if (status.code == MDP_OK) {
        model->catalogue = catalogue;
        status = fill(json, where, main, model);
    }
    json_decref(json);
    mdp_free(where);
    if (status.code == MDP_OK) {
        *out = model;
    } else {
        mdp_model_destroy(model);
    }
    return status;
}

mdp_status mdp_model_bind(const mdp_catalogue *catalogue, mdp_model **out) {
    return bind(catalogue, NULL, out);
}

mdp_status mdp_model_bind_extra(const mdp_model *model, mdp_model **out) {
    return bind(model->catalogue, model, out);
}

void mdp_model_destroy(mdp_model *model) {
    if (model == NULL) return;
    for (int64_t l = 0; model->layers != NULL && l < model->n_layer; l++) {
        mdp_free(model->layers[l].moe.experts);
        mdp_free(model->layers[l].moe.expert_tensors);
    }
    for (int64_t i = 0; i < model->n_name; i++) mdp_free(model->names[i]);
    mdp_free(model->names);
    mdp_free(model->n_value);
    mdp_free(model->layers);
    mdp_free(model->extra);
    mdp_free(model->rope.frequency);
    mdp_free(model->rope.long_frequency);
    mdp_free(model);
}
