/* stored.c - what every stored tensor is to whoever writes the model in another type.
 *
 * In: a bound model. What a layer computes with is known by its place in the layer; what is not computed with (layers
 * that predict tokens further ahead, parts that see images) by its type, and by the tensor of the last layer that is
 * called like it. Refuses codes without scales. */
#include "model/config.h"
#include "model/names.h"
#include "model/scales.h"

#include <string.h>

typedef struct lister {
    const mdp_model *model;
    const mdp_catalogue *catalogue;
    mdp_quantisation quantisation;
    mdp_stored *stored; /* [n_tensor] */
    bool *is_plain;     /* [n_tensor] embedding, head, routers: no loader expects them in FP8 */
} lister;

static int64_t index_of(const lister *l, const mdp_tensor *tensor) {
    return tensor - l->catalogue->tensors;
}

static bool ends_in(const char *text, const char *ending) {
    size_t n = strlen(text), n_ending = strlen(ending);
    return n >= n_ending && strcmp(text + n - n_ending, ending) == 0;
}

/* ---- by type and name -------------------------------------------------------------------------------------------- */

static mdp_status read_quantisation(lister *l) {
    json_t *json = NULL;
    MDP_TRY(mdp_json_parse(l->catalogue->config_text, l->catalogue->config_byte, l->catalogue->path, &json));
    mdp_status status = mdp_quantisation_read(json, l->catalogue, l->catalogue->path, &l->quantisation);
    json_decref(json);
    return status;
}

/* Scales of what a layer reads, and of the keys and values that it keeps. */
static bool is_scale_of_inputs(const char *name) {
    static const char *const ENDINGS[] = {".input_scale", ".activation_scale", ".k_scale", ".v_scale"};
    for (size_t i = 0; i < sizeof ENDINGS / sizeof ENDINGS[0]; i++)
        if (ends_in(name, ENDINGS[i])) return true;
    return false;
}

static mdp_status list_by_type(const lister *l) {
    bool quantised = false;
    for (int64_t t = 0; t < l->catalogue->n_tensor; t++) {
        const mdp_tensor *tensor = &l->catalogue->tensors[t];
        bool coded = tensor->type == MDP_F8_E4M3 && tensor->n_dim > 1;
        l->stored[t].is_real = coded || mdp_dtype_widens(tensor->type);
        if (!coded) continue;
        MDP_TRY(mdp_scales_find(l->catalogue, &l->quantisation, tensor, &l->stored[t].scaling));
        l->stored[index_of(l, l->stored[t].scaling.tensor)].is_beside = true;
        quantised = true;
    }
    for (int64_t t = 0; quantised && t < l->catalogue->n_tensor; t++)
        l->stored[t].is_beside = l->stored[t].is_beside || is_scale_of_inputs(l->catalogue->tensors[t].name);
    return mdp_ok();
}

/* ---- by place ---------------------------------------------------------------------------------------------------- */

/* Codes of four bits have no type of their own: who binds them knows. */
static void see(void *context, const mdp_matrix *matrix, mdp_expert_t expert) {
    lister *l = context;
    (void)expert;
    if (!matrix->scaling.tensor || matrix->scaling.code != MDP_F4) return;
    mdp_stored *stored = &l->stored[index_of(l, matrix->tensor)];
    stored->scaling = matrix->scaling;
    stored->is_real = stored->is_packed = true;
    l->stored[index_of(l, matrix->scaling.tensor)].is_beside = true;
}

static void mark_linear(const lister *l, const mdp_matrix *matrix) {
    if (!matrix->tensor || matrix->tensor->n_dim < 2) return;
    mdp_stored *stored = &l->stored[index_of(l, matrix->tensor)];
    *(matrix->col_stride == 1 ? &stored->is_linear : &stored->is_turned) = true;
}

static void mark_mlp(const lister *l, const mdp_expert *mlp) {
    mark_linear(l, &mlp->gate);
    mark_linear(l, &mlp->up);
    mark_linear(l, &mlp->down);
}

static void mark_plain(const lister *l, const mdp_matrix *matrix) {
    if (matrix->tensor) l->is_plain[index_of(l, matrix->tensor)] = true;
}

static void mark_f32(const lister *l, const mdp_matrix *matrix) {
    if (matrix->tensor && matrix->tensor->type == MDP_F32) l->stored[index_of(l, matrix->tensor)].stays_f32 = true;
}

static void mark_moe(const lister *l, const mdp_moe *moe) {
    mark_plain(l, &moe->router);
    mark_f32(l, &moe->choice_bias);
    if (l->model->family->router_is_f32) mark_f32(l, &moe->router);
    for (mdp_expert_t e = 0; e < moe->n_expert; e++) mark_mlp(l, &moe->experts[e]);
    mark_mlp(l, &moe->shared);
}

static void mark_layer(lister *l, const mdp_layer *layer) {
    const mdp_attention *a = &layer->attention;
    const mdp_matrix *linear[] = {&a->q, &a->k, &a->v, &a->o, &a->q_a, &a->kv_a, &a->kv_b, &a->delta.in, &a->delta.z};
    mdp_layer_visit(layer, see, l);
    for (size_t i = 0; i < sizeof linear / sizeof linear[0]; i++) mark_linear(l, linear[i]);
    if (layer->is_moe)
        mark_moe(l, &layer->moe);
    else
        mark_mlp(l, &layer->dense);
}

/* The tensor of the last layer that is called like one of a layer that predicts tokens further ahead; NULL: none. */
static const mdp_tensor *find_model_of(const lister *l, const char *name) {
    char other[MDP_NAME_BYTES];
    const char *layer = strstr(name, ".layers.");
    if (!layer) return NULL;
    layer += strlen(".layers.");
    size_t n_digit = strspn(layer, "0123456789");
    int n = snprintf(other, sizeof other, "%.*s%lld%s", (int)(layer - name), name, (long long)l->model->n_layer - 1,
                     layer + n_digit);
    return n > 0 && (size_t)n < sizeof other ? mdp_catalogue_find(l->catalogue, other) : NULL;
}

static void mark_extra(const lister *l) {
    for (int64_t t = 0; l->model->n_extra > 0 && t < l->catalogue->n_tensor; t++) {
        const mdp_tensor *like = l->model->extra[t] ? find_model_of(l, l->catalogue->tensors[t].name) : NULL;
        if (!like) continue;
        const mdp_stored *other = &l->stored[index_of(l, like)];
        l->stored[t].is_linear = other->is_linear;
        l->stored[t].is_turned = other->is_turned;
        l->stored[t].stays_f32 = other->stays_f32 && l->catalogue->tensors[t].type == MDP_F32;
    }
}

/* What has more digits than the embedding was meant to; but weights of linear layers follow the type. Matrices that are
 * none of the known ones may be of linear layers. */
static void mark_rest(const lister *l) {
    mdp_dtype own = l->model->embedding.tensor->type;
    for (int64_t t = 0; t < l->catalogue->n_tensor; t++) {
        const mdp_tensor *tensor = &l->catalogue->tensors[t];
        mdp_stored *stored = &l->stored[t];
        bool is_weight = stored->is_linear || stored->is_turned;
        if (own != MDP_F32 && tensor->type == MDP_F32 && !is_weight) stored->stays_f32 = true;
        stored->is_left = stored->is_real && !stored->is_linear && !l->is_plain[t] && !l->model->extra[t] &&
                          tensor->n_dim == 2 && ends_in(tensor->name, ".weight");
    }
}

static mdp_status list(lister *l) {
    MDP_TRY(read_quantisation(l));
    MDP_TRY(list_by_type(l));
    mark_plain(l, &l->model->embedding);
    mark_plain(l, &l->model->head);
    for (int64_t i = 0; i < l->model->n_layer; i++) mark_layer(l, &l->model->layers[i]);
    mark_extra(l);
    mark_rest(l);
    return mdp_ok();
}

mdp_status mdp_model_list_stored(const mdp_model *model, mdp_stored **out) {
    lister l = {.model = model, .catalogue = model->catalogue};
    MDP_TRY(MDP_ALLOC(&l.stored, model->catalogue->n_tensor, "the tensors of the model"));
    mdp_status status = MDP_ALLOC(&l.is_plain, model->catalogue->n_tensor, "the tensors of the model");
    if (status.code == MDP_OK) status = list(&l);
    mdp_free(l.is_plain);
    *out = l.stored;
    if (status.code == MDP_OK) return status;
    mdp_free(l.stored);
    *out = NULL;
    return status;
}
