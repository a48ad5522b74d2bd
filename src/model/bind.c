/* bind.c - tensor names to matrices. Every tensor of the model must be there, of a readable type and of the shape that
 * config.json gives. Tensors that nobody asked for travel along untouched, except what belongs to an expert: that could
 * not be renumbered, so it is refused.
 *
 * In our own files layers may hold different numbers of experts: there the tensors present give the number. */
#include "model/bind.h"

#include "model/names.h"
#include "model/scales.h"

#include <string.h>

/* The expert matrices of a layout, in the order of mdp_expert. */
enum { GATE, UP, DOWN, N_PROJECTION };

typedef struct binder {
    const mdp_catalogue *catalogue;
    const mdp_family *family;
    const mdp_config *config;
    const mdp_expert_layout *layouts; /* [MDP_MAX_LAYOUT] that experts may be stored in */
    mdp_model *model;
    bool *bound;                /* [n_tensor] */
    const unsigned char *marks; /* [n_tensor] nonzero: of layers that predict tokens further ahead; of those alone */
} binder;

/* A tensor to be bound: where it is, what it is called in sentences, and its shape with the keys that give it. */
typedef struct wanted {
    const char *pattern;
    const char *what;
    int64_t layer, expert; /* -1: none */
    int n_dim;
    int64_t shape[3];
    const char *keys;
} wanted;

/* "model: layer 3: " or "model: " */
static void write_place(const binder *b, int64_t layer, char *out, size_t n_byte) {
    if (layer >= 0) {
        (void)snprintf(out, n_byte, "%s: layer %lld: ", b->catalogue->path, (long long)layer);
    } else {
        (void)snprintf(out, n_byte, "%s: ", b->catalogue->path);
    }
}

static void write_shape(int n_dim, const int64_t *shape, char *out, size_t n_byte) {
    size_t used = 0;
    out[0] = '\0';
    for (int i = 0; i < n_dim && used < n_byte; i++) {
        used += (size_t)snprintf(out + used, n_byte - used, "%s%lld", i == 0 ? "" : ", ", (long long)shape[i]);
    }
}

/* "expert 5 has no w2" or "the router is missing" */
static mdp_status missing(const binder *b, const wanted *w, const char *name) {
    char place[600], what[64];
    write_place(b, w->layer, place, sizeof place);
    if (w->expert >= 0) {
        (void)snprintf(what, sizeof what, "expert %lld has no %s", (long long)w->expert, w->what);
    } else {
        (void)snprintf(what, sizeof what, "the %s is missing", w->what);
    }
    return MDP_ERROR(MDP_BAD_INPUT, "%s%s ('%s' is not in the checkpoint).", place, what, name);
}

static mdp_status wrong_shape(const binder *b, const wanted *w, const mdp_tensor *tensor) {
    char place[600], found[200], expected[100];
    write_place(b, w->layer, place, sizeof place);
    write_shape(tensor->n_dim, tensor->shape, found, sizeof found);
    write_shape(w->n_dim, w->shape, expected, sizeof expected);
    return MDP_ERROR(
        MDP_BAD_INPUT,
        "%s%s '%s' has shape [%s], config.json says [%s] (%s); the checkpoint and its config do not belong "
        "together.",
        place, w->what, tensor->name, found, expected, w->keys);
}

/* The matrix of a tensor of few bits: its scales are bound with it. */
static mdp_status bind_scaled(binder *b, const mdp_tensor *tensor, mdp_matrix *out) {
    mdp_scaling scaling;
    MDP_TRY(mdp_scales_find(b->catalogue, &b->config->quantisation, tensor, &scaling));
    b->bound[scaling.tensor - b->catalogue->tensors] = true;
    b->model->n_value[scaling.tensor - b->catalogue->tensors] = 0;
    *out = mdp_matrix_scaled(tensor, &scaling);
    return mdp_ok();
}

/* Find a tensor, check it, and bind it as one matrix (or one row). out->tensor is NULL when it is not there and
 * `may_miss`. */
static mdp_status bind_whole(binder *b, const wanted *w, bool may_miss, mdp_matrix *out) {
    char name[MDP_NAME_BYTES];
    mdp_name_fill(w->pattern, w->layer, w->expert, name);
    const mdp_tensor *tensor = mdp_catalogue_find(b->catalogue, name);
    if (tensor == NULL) return may_miss ? mdp_ok() : missing(b, w, name);
    bool same = tensor->n_dim == w->n_dim;
    for (int i = 0; same && i < w->n_dim; i++) same = tensor->shape[i] == w->shape[i];
    if (!same) return wrong_shape(b, w, tensor);
    b->bound[tensor - b->catalogue->tensors] = true;
    if (tensor->type == MDP_F8_E4M3 && tensor->n_dim > 1) return bind_scaled(b, tensor, out);
    if (!mdp_dtype_widens(tensor->type)) {
        return MDP_ERROR(MDP_BAD_INPUT,
                         "%s: '%s' is stored as %s; supported are F32, F16 and BF16, and for matrices F8_E4M3 with "
                         "scales of blocks.",
                         b->catalogue->path, name, mdp_dtype_name(tensor->type));
    }
    *out = mdp_matrix_whole(tensor);
    return mdp_ok();
}

/* A vector of n values: a norm or a bias. */
static mdp_status bind_vector(binder *b, const char *pattern, const char *what, int64_t layer, int64_t n,
                              const char *keys, mdp_matrix *out) {
    const wanted w = {pattern, what, layer, -1, 1, {n, 0, 0}, keys};
    return bind_whole(b, &w, false, out);
}

/* bias NULL: the norm has none. */
static mdp_status bind_norm(binder *b, const char *weight, const char *bias, const char *what, int64_t layer,
                            mdp_norm *out) {
    int64_t n = b->config->d_model;
    MDP_TRY(bind_vector(b, weight, what, layer, n, b->family->d_model.name, &out->weight));
    return bias == NULL ? mdp_ok() : bind_vector(b, bias, what, layer, n, b->family->d_model.name, &out->bias);
}

/* Both tables on disk: both are used, as the library does when they differ. One of them and tied: it serves as both. */
static mdp_status bind_ends(binder *b) {
    mdp_model *model = b->model;
    char keys[128];
    (void)snprintf(keys, sizeof keys, "%s, %s", b->family->vocab_size.name, b->family->d_model.name);
    wanted embedding = {.pattern = b->family->embedding, .what = "embedding", .layer = -1, .expert = -1, .n_dim = 2};
    embedding.shape[0] = b->config->vocab_size;
    embedding.shape[1] = b->config->d_model;
    embedding.keys = keys;
    wanted head = embedding;
    head.pattern = b->family->head;
    head.what = "output head";
    bool has_head = mdp_catalogue_find(b->catalogue, b->family->head) != NULL;
    MDP_TRY(bind_whole(b, &embedding, b->config->tied && has_head, &model->embedding));
    MDP_TRY(bind_whole(b, &head, b->config->tied, &model->head));
    if (model->head.tensor == NULL) model->head = model->embedding;
    if (model->embedding.tensor == NULL) model->embedding = model->head;
    if (b->config->head_bias)
        MDP_TRY(bind_vector(b, b->family->head_bias, "bias of the output head", -1, b->config->vocab_size,
                            b->family->vocab_size.name, &model->head_bias));
    return bind_norm(b, b->family->final_norm, b->family->final_norm_bias, "final norm", -1, &model->final_norm);
}

/* Biases of the projections that the family has names for. */
static mdp_status bind_biases(binder *b, int64_t layer, mdp_attention *out) {
    const mdp_family *f = b->family;
    const struct {
        const char *pattern, *what;
        const mdp_matrix *projection;
        mdp_matrix *bias;
    } biases[] = {
        {f->q_bias, "query bias", &out->q, &out->q_bias},
        {f->k_bias, "key bias", &out->k, &out->k_bias},
        {f->v_bias, "value bias", &out->v, &out->v_bias},
        {f->o_bias, "output bias", &out->o, &out->o_bias},
    };
    char keys[160];
    (void)snprintf(keys, sizeof keys, "%s: one for each row of its projection", f->bias.name);
    for (size_t i = 0; i < sizeof biases / sizeof biases[0]; i++) {
        if (biases[i].pattern == NULL) continue;
        MDP_TRY(bind_vector(b, biases[i].pattern, biases[i].what, layer, biases[i].projection->n_row, keys,
                            biases[i].bias));
    }
    return mdp_ok();
}

/* Norms of queries and keys: of a head, or of all heads together. */
static mdp_status bind_qk_norms(binder *b, int64_t layer, mdp_attention *out) {
    const mdp_config *c = b->config;
    bool whole = b->family->qk_norm == MDP_QK_NORM_WHOLE;
    int64_t n_q = whole ? c->n_head * c->head_dim : c->head_dim;
    int64_t n_k = whole ? c->n_kv_head * c->head_dim : c->head_dim;
    const char *keys = whole ? "all heads" : "head size";
    out->qk_norm = b->family->qk_norm;
    out->qk_norm_last = b->family->qk_norm_last;
    if (b->family->q_norm == NULL) return mdp_ok();
    MDP_TRY(bind_vector(b, b->family->q_norm, "query norm", layer, n_q, keys, &out->q_norm));
    return bind_vector(b, b->family->k_norm, "key norm", layer, n_k, keys, &out->k_norm);
}

/* Queries, keys and values as runs of rows of one tensor. */
static mdp_status bind_qkv(binder *b, int64_t layer, int64_t q_width, int64_t kv_width, mdp_attention *out) {
    char keys[200];
    mdp_matrix all = {0};
    (void)snprintf(keys, sizeof keys, "(%s + 2 x %s) x head size, %s", b->family->n_head.name,
                   b->family->n_kv_head.name, b->family->d_model.name);
    const wanted w = {b->family->qkv,
                      "query, key and value projection",
                      layer,
                      -1,
                      2,
                      {q_width + 2 * kv_width, b->config->d_model, 0},
                      keys};
    MDP_TRY(bind_whole(b, &w, false, &all));
    out->q = out->k = out->v = all;
    out->q.n_row = q_width;
    out->k.n_row = out->v.n_row = kv_width;
    out->k.first = q_width * all.row_stride;
    out->v.first = (q_width + kv_width) * all.row_stride;
    return mdp_ok();
}

/* Projections to the latent rows, their norms, and from there to heads. Biases are those of the first step alone. */
static mdp_status bind_latent(binder *b, int64_t layer, mdp_attention *out) {
    const mdp_family *f = b->family;
    const mdp_latent *n = &b->config->latent;
    const int64_t d = b->config->d_model, n_head = b->config->n_head, q_width = n_head * b->config->head_dim;
    const char *q_keys = f->q_rank.name, *kv_keys = f->kv_rank.name;
    const wanted q_a = {f->q_a, "first query projection", layer, -1, 2, {n->q_rank, d, 0}, q_keys};
    const wanted q_b = {f->q, "query projection", layer, -1, 2, {q_width, n->q_rank, 0}, q_keys};
    const wanted q = {f->whole_q, "query projection", layer, -1, 2, {q_width, d, 0}, f->n_own.name};
    const wanted kv_a = {f->kv_a, "first key and value projection", layer,  -1,
                         2,       {n->kv_rank + n->n_rope, d, 0},   kv_keys};
    const wanted kv_b = {
        f->kv_b, "key and value projection", layer, -1, 2, {n_head * (n->n_own + n->n_value), n->kv_rank, 0}, kv_keys};
    const wanted o = {f->o, "output projection", layer, -1, 2, {d, n_head * n->n_value, 0}, f->n_value.name};
    const char *bias_keys = f->bias.name;
    if (n->q_rank > 0) {
        MDP_TRY(bind_whole(b, &q_a, false, &out->q_a));
        MDP_TRY(bind_vector(b, f->q_a_norm, "query norm", layer, n->q_rank, q_keys, &out->q_a_norm));
        if (b->config->bias)
            MDP_TRY(bind_vector(b, f->q_a_bias, "query bias", layer, n->q_rank, bias_keys, &out->q_a_bias));
    }
    MDP_TRY(bind_whole(b, n->q_rank > 0 ? &q_b : &q, false, &out->q));
    MDP_TRY(bind_whole(b, &kv_a, false, &out->kv_a));
    MDP_TRY(bind_vector(b, f->kv_a_norm, "key and value norm", layer, n->kv_rank, kv_keys, &out->kv_a_norm));
    MDP_TRY(bind_whole(b, &kv_b, false, &out->kv_b));
    MDP_TRY(bind_whole(b, &o, false, &out->o));
    if (!b->config->bias) return mdp_ok();
    MDP_TRY(bind_vector(b, f->kv_a_bias, "key and value bias", layer, kv_a.shape[0], bias_keys, &out->kv_a_bias));
    return bind_vector(b, f->o_bias, "output bias", layer, d, bias_keys, &out->o_bias);
}

/* One projection each for queries, keys, values and outputs. */
static mdp_status bind_heads(binder *b, int64_t layer, mdp_attention *out) {
    const mdp_family *f = b->family;
    const mdp_config *c = b->config;
    char q_keys[160], kv_keys[160], o_keys[160];
    (void)snprintf(q_keys, sizeof q_keys, "%s x head size, %s", f->n_head.name, f->d_model.name);
    (void)snprintf(kv_keys, sizeof kv_keys, "%s x head size, %s", f->n_kv_head.name, f->d_model.name);
    (void)snprintf(o_keys, sizeof o_keys, "%s, %s x head size", f->d_model.name, f->n_head.name);
    int64_t q_width = c->n_head * c->head_dim, kv_width = c->n_kv_head * c->head_dim;
    const wanted q = {f->q, "query projection", layer, -1, 2, {c->n_head * b->model->q_step, c->d_model, 0}, q_keys};
    const wanted k = {f->k, "key projection", layer, -1, 2, {kv_width, c->d_model, 0}, kv_keys};
    const wanted v = {f->v, "value projection", layer, -1, 2, {kv_width, c->d_model, 0}, kv_keys};
    const wanted o = {f->o, "output projection", layer, -1, 2, {c->d_model, q_width, 0}, o_keys};
    if (f->qkv != NULL) {
        MDP_TRY(bind_qkv(b, layer, q_width, kv_width, out));
    } else {
        MDP_TRY(bind_whole(b, &q, false, &out->q));
        MDP_TRY(bind_whole(b, &k, false, &out->k));
        MDP_TRY(bind_whole(b, &v, false, &out->v));
    }
    MDP_TRY(bind_whole(b, &o, false, &out->o));
    if (c->bias) MDP_TRY(bind_biases(b, layer, out));
    if (f->sinks != NULL) MDP_TRY(bind_vector(b, f->sinks, "sinks", layer, c->n_head, f->n_head.name, &out->sinks));
    bool normed = c->qk_norm && (!c->layers[layer].plain || f->plain_beyond_window);
    return normed ? bind_qk_norms(b, layer, out) : mdp_ok();
}

/* Linear attention. Grouped, the first projection has the output gates too, and that of learning rates the decays. */
static mdp_status bind_delta(binder *b, int64_t layer, mdp_attention *out) {
    const mdp_family *f = b->family;
    const mdp_delta_names *names = &f->delta;
    const mdp_delta_sizes *n = &b->config->delta;
    mdp_delta *to = &out->delta;
    const int64_t d = b->config->d_model, values = n->n_value * n->d_value;
    char keys[300];
    (void)snprintf(keys, sizeof keys, "%s, %s, %s, %s, %s", f->n_delta_key.name, f->d_delta_key.name,
                   f->n_delta_value.name, f->d_delta_value.name, f->d_model.name);
    to->grouped = names->z == NULL;
    to->activation = b->config->activation;
    const wanted in = {
        names->in, "projection of linear attention", layer, -1, 2, {n->n_channel + (to->grouped ? values : 0), d, 0},
        keys};
    const wanted z = {names->z, "projection of output gates", layer, -1, 2, {values, d, 0}, keys};
    const wanted rates = {
        names->b, "projection of learning rates", layer, -1, 2, {(to->grouped ? 2 : 1) * n->n_value, d, 0}, keys};
    const wanted a = {names->a, "projection of decays", layer, -1, 2, {n->n_value, d, 0}, keys};
    const wanted kernel = {names->kernel,         "convolution", layer, -1, 3, {n->n_channel, 1, n->n_kernel},
                           f->n_delta_kernel.name};
    const wanted o = {names->o, "output projection", layer, -1, 2, {d, values, 0}, keys};
    MDP_TRY(bind_whole(b, &in, false, &to->in));
    if (!to->grouped) MDP_TRY(bind_whole(b, &z, false, &to->z));
    MDP_TRY(bind_whole(b, &rates, false, &to->b));
    if (!to->grouped) MDP_TRY(bind_whole(b, &a, false, &to->a));
    MDP_TRY(bind_whole(b, &kernel, false, &to->kernel));
    MDP_TRY(bind_vector(b, names->rate, "rate of decay", layer, n->n_value, f->n_delta_value.name, &to->rate));
    MDP_TRY(bind_vector(b, names->shift, "bias of decays", layer, n->n_value, f->n_delta_value.name, &to->shift));
    MDP_TRY(bind_vector(b, names->norm, "norm of outputs", layer, n->d_value, f->d_delta_value.name, &to->norm));
    return bind_whole(b, &o, false, &out->o);
}

static mdp_status bind_attention(binder *b, int64_t layer, mdp_attention *out) {
    const mdp_config *c = b->config;
    if (c->layers[layer].linear) return bind_delta(b, layer, out);
    MDP_TRY(c->latent.kv_rank > 0 ? bind_latent(b, layer, out) : bind_heads(b, layer, out));
    out->clip = c->clip;
    out->window = c->layers[layer].window;
    out->chunk = c->layers[layer].chunk;
    out->plain = c->layers[layer].plain;
    out->temper_scale = c->temper_scale;
    out->temper_floor = out->plain ? c->temper_floor : 0;
    out->scale = c->attention_scale * b->model->rope.score_factor;
    return mdp_ok();
}

/* A gated MLP that every token meets: dense, or a shared expert. `what` begins the names of its matrices. */
static mdp_status bind_mlp(binder *b, const mdp_mlp_names *names, const char *what, const mdp_int_key *ff_key,
                           int64_t ff, int64_t layer, mdp_expert *out) {
    const int64_t d_model = b->config->d_model;
    char in_keys[160], out_keys[160], gate_what[64], up_what[64], down_what[64];
    (void)snprintf(in_keys, sizeof in_keys, "%s, %s", ff_key->name, b->family->d_model.name);
    (void)snprintf(out_keys, sizeof out_keys, "%s, %s", b->family->d_model.name, ff_key->name);
    (void)snprintf(gate_what, sizeof gate_what, "%s's gate projection", what);
    (void)snprintf(up_what, sizeof up_what, "%s's up projection", what);
    (void)snprintf(down_what, sizeof down_what, "%s's down projection", what);
    const wanted gate = {names->gate, gate_what, layer, -1, 2, {ff, d_model, 0}, in_keys};
    const wanted up = {names->up, up_what, layer, -1, 2, {ff, d_model, 0}, in_keys};
    const wanted down = {names->down, down_what, layer, -1, 2, {d_model, ff, 0}, out_keys};
    const wanted both = {names->gate_up, gate_what, layer, -1, 2, {2 * ff, d_model, 0}, in_keys};
    MDP_TRY(bind_whole(b, names->gate_up != NULL ? &both : &gate, false, &out->gate));
    if (names->gate_up == NULL) {
        MDP_TRY(bind_whole(b, &up, false, &out->up));
    } else {
        out->up = out->gate;
        out->gate.n_row = out->up.n_row = ff;
        out->up.first = ff * out->up.row_stride;
    }
    return bind_whole(b, &down, false, &out->down);
}

static mdp_status bind_dense(binder *b, int64_t layer, mdp_layer *out) {
    out->dense_ff = b->config->dense_ff;
    out->activation = b->config->activation;
    return bind_mlp(b, &b->family->dense, "dense MLP", &b->family->dense_ff, out->dense_ff, layer, &out->dense);
}

static mdp_status bind_shared(binder *b, int64_t layer, mdp_moe *moe) {
    const mdp_family *f = b->family;
    moe->shared_ff = b->config->shared_ff;
    if (moe->shared_ff == 0) return mdp_ok();
    const mdp_int_key *key = f->n_shared.name != NULL ? &f->n_shared : &f->shared_ff;
    MDP_TRY(bind_mlp(b, &f->shared, "shared expert", key, moe->shared_ff, layer, &moe->shared));
    if (f->shared_gate == NULL) return mdp_ok();
    const wanted gate = {f->shared_gate, "gate of the shared expert", layer, -1, 2, {1, b->config->d_model, 0},
                         f->d_model.name};
    return bind_whole(b, &gate, false, &moe->shared_gate);
}

/* Does the catalogue hold a tensor called `prefix`<number>...? */
static bool has_numbered(const mdp_catalogue *catalogue, const char *prefix) {
    int64_t low = 0, high = catalogue->n_tensor, number;
    const char *rest;
    while (low < high) {
        int64_t middle = low + (high - low) / 2;
        if (strcmp(catalogue->tensors[middle].name, prefix) < 0) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    size_t length = strlen(prefix);
    return low < catalogue->n_tensor && strncmp(catalogue->tensors[low].name, prefix, length) == 0 &&
           mdp_name_number(catalogue->tensors[low].name + length, &number, &rest);
}

/* Do the stacks of a layer lie as the layout says? Only their shapes tell one that is transposed from one that is not.
 */
static bool fits(const binder *b, const mdp_expert_layout *layout, int64_t layer) {
    const char *patterns[2] = {layout->fused_gate_up, layout->fused_down};
    const int64_t rows[2] = {2 * b->config->d_ff, b->config->d_model};
    const int64_t columns[2] = {b->config->d_model, b->config->d_ff};
    for (int i = 0; i < 2; i++) {
        char name[MDP_NAME_BYTES];
        mdp_name_fill(patterns[i], layer, -1, name);
        const mdp_tensor *tensor = mdp_catalogue_find(b->catalogue, name);
        if (tensor == NULL || tensor->n_dim != 3) return false;
        if (tensor->shape[layout->transposed ? 2 : 1] != rows[i]) return false;
        if (tensor->shape[layout->transposed ? 1 : 2] != columns[i]) return false;
    }
    return true;
}

/* The layout that a layer is stored in; the family's usual one when there is no trace of any. */
static const mdp_expert_layout *find_layout(const binder *b, int64_t layer) {
    char name[MDP_NAME_BYTES];
    const mdp_expert_layout *named = NULL; /* by the names of its tensors alone */
    for (int i = 0; i < MDP_MAX_LAYOUT && b->layouts[i].router != NULL; i++) {
        const mdp_expert_layout *layout = &b->layouts[i];
        if (layout->fused_gate_up != NULL) {
            mdp_name_fill(layout->fused_gate_up, layer, -1, name);
            if (mdp_catalogue_find(b->catalogue, name) == NULL) continue;
            if (fits(b, layout, layer)) return layout;
            if (named == NULL) named = layout;
        } else {
            mdp_name_fill(layout->experts, layer, -1, name);
            if (has_numbered(b->catalogue, name)) return layout;
        }
    }
    return named != NULL ? named : &b->layouts[0];
}

/* Experts that a layer of our own files holds. */
static int64_t count_stored(const binder *b, const mdp_expert_layout *layout, int64_t layer) {
    char name[MDP_NAME_BYTES];
    const char *first = layout->fused_gate_up == NULL ? layout->gate : layout->fused_gate_up;
    for (int64_t expert = 0;; expert++) {
        mdp_name_fill(first, layer, expert, name);
        const mdp_tensor *tensor = mdp_catalogue_find(b->catalogue, name);
        int64_t n_each = layout->fused_up != NULL ? b->config->d_ff : 1;
        if (layout->fused_gate_up != NULL) return tensor != NULL && tensor->n_dim > 0 ? tensor->shape[0] / n_each : 0;
        if (tensor == NULL) return expert;
    }
}

/* "w1" of "...experts.{expert}.w1.weight" */
static void write_part(const char *pattern, char out[32]) {
    const char *part = strstr(pattern, "{expert}.");
    part = part == NULL ? pattern : part + strlen("{expert}.");
    (void)snprintf(out, 32, "%.*s", (int)strcspn(part, "."), part);
}

/* What may stand beside the weight of an expert: its scales, and those of what it reads, which are not used here. */
static const char *const BESIDE[] = {"weight_scale", "weight_scale_inv", "input_scale", "activation_scale"};
enum { N_BESIDE = sizeof BESIDE / sizeof BESIDE[0], N_SCALE = 2 };

/* Name patterns of the stacks of one projection of the experts of a layer, kept by the model. */
typedef struct projection_stacks {
    const char *weight, *beside[N_BESIDE]; /* NULL: not met yet */
} projection_stacks;

/* The name pattern of a stack of experts, whose last part may become another; NULL: stays. */
static mdp_status keep_stack(mdp_model *model, const char *pattern, const char *part, int64_t layer, const char **out) {
    char name[MDP_NAME_BYTES];
    mdp_name_fill(pattern, layer, -1, name);
    size_t n = part == NULL ? strlen(name) : strlen(name) - strlen("weight");
    MDP_TRY(mdp_format(&model->names[model->n_name], "%.*s%s", (int)n, name, part == NULL ? "" : part));
    *out = model->names[model->n_name++];
    return mdp_ok();
}

/* Enter a matrix of all experts in the list of what changes when some are removed, and its scales. */
static void list_tensors(mdp_moe *moe, const mdp_matrix *matrix) {
    moe->expert_tensors[moe->n_expert_tensor++] = (mdp_expert_tensor){.tensor = matrix->tensor, .expert = -1};
    if (matrix->scaling.tensor == NULL) return;
    moe->expert_tensors[moe->n_expert_tensor++] = (mdp_expert_tensor){.tensor = matrix->scaling.tensor, .expert = -1};
}

/* Enter a matrix of one expert, and what stands beside it. */
static mdp_status list_own_tensors(binder *b, const mdp_matrix *matrix, const char *pattern, int64_t layer,
                                   mdp_expert_t expert, projection_stacks *stacks, mdp_moe *moe) {
    const char *weight = matrix->tensor->name;
    size_t n = strlen(weight) - strlen("weight");
    moe->expert_tensors[moe->n_expert_tensor++] =
        (mdp_expert_tensor){.tensor = matrix->tensor, .expert = expert, .stack = stacks->weight};
    for (int i = 0; matrix->scaling.tensor != NULL && i < N_BESIDE; i++) {
        char name[MDP_NAME_BYTES];
        (void)snprintf(name, sizeof name, "%.*s%s", (int)n, weight, BESIDE[i]);
        const mdp_tensor *tensor = mdp_catalogue_find(b->catalogue, name);
        if (tensor == NULL || (i < N_SCALE && tensor != matrix->scaling.tensor)) continue;
        if (stacks->beside[i] == NULL) MDP_TRY(keep_stack(b->model, pattern, BESIDE[i], layer, &stacks->beside[i]));
        b->bound[tensor - b->catalogue->tensors] = true;
        b->model->n_value[tensor - b->catalogue->tensors] = 0;
        moe->expert_tensors[moe->n_expert_tensor++] = (mdp_expert_tensor){
            .tensor = tensor, .expert = expert, .stack = stacks->beside[i], .of_inputs = i >= N_SCALE};
    }
    return mdp_ok();
}

static mdp_status bind_separate(binder *b, const mdp_expert_layout *layout, int64_t layer, mdp_moe *moe) {
    const int64_t d_ff = b->config->d_ff, d_model = b->config->d_model;
    const char *patterns[N_PROJECTION] = {layout->gate, layout->up, layout->down};
    projection_stacks stacks[N_PROJECTION] = {{0}};
    char in_keys[128], out_keys[128], parts[N_PROJECTION][32];
    (void)snprintf(in_keys, sizeof in_keys, "%s, %s", b->family->d_ff.name, b->family->d_model.name);
    (void)snprintf(out_keys, sizeof out_keys, "%s, %s", b->family->d_model.name, b->family->d_ff.name);
    for (int p = 0; p < N_PROJECTION; p++) {
        write_part(patterns[p], parts[p]);
        MDP_TRY(keep_stack(b->model, patterns[p], NULL, layer, &stacks[p].weight));
    }
    for (mdp_expert_t e = 0; e < moe->n_expert; e++) {
        mdp_matrix *matrices[N_PROJECTION] = {&moe->experts[e].gate, &moe->experts[e].up, &moe->experts[e].down};
        for (int p = 0; p < N_PROJECTION; p++) {
            wanted w = {patterns[p], parts[p], layer, e, 2, {d_ff, d_model, 0}, in_keys};
            if (p == DOWN) {
                w.shape[0] = d_model;
                w.shape[1] = d_ff;
                w.keys = out_keys;
            }
            MDP_TRY(bind_whole(b, &w, false, matrices[p]));
            MDP_TRY(list_own_tensors(b, matrices[p], patterns[p], layer, e, &stacks[p], moe));
        }
    }
    return mdp_ok();
}

/* A fused matrix of logical shape w->shape that is stored as MXFP4: blocks called w->pattern, and their scales. */
static mdp_status bind_mxfp4(binder *b, const wanted *w, const char *scales_pattern, mdp_matrix *out) {
    const char *patterns[2] = {w->pattern, scales_pattern};
    const mdp_tensor *tensors[2];
    for (int i = 0; i < 2; i++) {
        char name[MDP_NAME_BYTES];
        mdp_name_fill(patterns[i], w->layer, -1, name);
        tensors[i] = mdp_catalogue_find(b->catalogue, name);
        if (tensors[i] == NULL) return missing(b, w, name);
        b->bound[tensors[i] - b->catalogue->tensors] = true;
    }
    b->model->n_value[tensors[0] - b->catalogue->tensors] *= 2;
    b->model->n_value[tensors[1] - b->catalogue->tensors] = 0;
    return mdp_mxfp4_bind(b->catalogue, tensors[0], tensors[1], w->shape, out);
}

/* The matrices of one entry of a fused tensor lie at every `step`-th row from row0; a row is a column where the tensor
 * is stored transposed. */
typedef struct fused_rows {
    int64_t row0, n_row, n_col, step;
    bool transposed;
} fused_rows;

static mdp_matrix fused_part(const mdp_matrix *whole, mdp_expert_t expert, const fused_rows *part) {
    int64_t width = whole->n_col, first = expert * whole->tensor->shape[1] * width;
    mdp_matrix out = *whole;
    int64_t row_stride = part->transposed ? 1 : width, col_stride = part->transposed ? width : 1;
    out.n_row = part->n_row;
    out.n_col = part->n_col;
    out.first = first + part->row0 * row_stride;
    out.row_stride = part->step * row_stride;
    out.col_stride = col_stride;
    return out;
}

/* Every step-th value from `from` of entry `expert` of fused biases. */
static mdp_matrix fused_bias(const mdp_matrix *whole, mdp_expert_t expert, int64_t from, int64_t n, int64_t step) {
    int64_t width = whole->n_col;
    return (mdp_matrix){.tensor = whole->tensor,
                        .n_row = 1,
                        .n_col = n,
                        .first = expert * width + from,
                        .row_stride = width,
                        .col_stride = step};
}

static mdp_status bind_fused_biases(binder *b, const mdp_expert_layout *layout, int64_t layer, mdp_moe *moe) {
    const int64_t d_ff = b->config->d_ff, d_model = b->config->d_model, step = layout->interleaved ? 2 : 1;
    const mdp_family *f = b->family;
    mdp_matrix gate_up = {0}, down = {0};
    char in_keys[160], out_keys[160];
    if (layout->fused_gate_up_bias == NULL) return mdp_ok();
    (void)snprintf(in_keys, sizeof in_keys, "%s, 2 x %s", f->n_expert.name, f->d_ff.name);
    (void)snprintf(out_keys, sizeof out_keys, "%s, %s", f->n_expert.name, f->d_model.name);
    const wanted first = {
        layout->fused_gate_up_bias, "stack of gate and up biases", layer, -1, 2, {moe->n_expert, 2 * d_ff, 0}, in_keys};
    const wanted second = {
        layout->fused_down_bias, "stack of down biases", layer, -1, 2, {moe->n_expert, d_model, 0}, out_keys};
    MDP_TRY(bind_whole(b, &first, false, &gate_up));
    MDP_TRY(bind_whole(b, &second, false, &down));
    for (mdp_expert_t e = 0; e < moe->n_expert; e++) {
        moe->experts[e].gate_bias = fused_bias(&gate_up, e, 0, d_ff, step);
        moe->experts[e].up_bias = fused_bias(&gate_up, e, layout->interleaved ? 1 : d_ff, d_ff, step);
        moe->experts[e].down_bias = fused_bias(&down, e, 0, d_model, 1);
    }
    list_tensors(moe, &gate_up);
    list_tensors(moe, &down);
    return mdp_ok();
}

static void swap(int64_t *a, int64_t *b) {
    int64_t kept = *a;
    *a = *b;
    *b = kept;
}

static mdp_status bind_fused(binder *b, const mdp_expert_layout *layout, int64_t layer, mdp_moe *moe) {
    const int64_t d_ff = b->config->d_ff, d_model = b->config->d_model;
    mdp_matrix gate_up = {0}, down = {0};
    char in_keys[160], out_keys[160];
    const mdp_family *f = b->family;
    (void)snprintf(in_keys, sizeof in_keys, "%s, 2 x %s, %s%s", f->n_expert.name, f->d_ff.name, f->d_model.name,
                   layout->transposed ? ", transposed" : "");
    (void)snprintf(out_keys, sizeof out_keys, "%s, %s, %s%s", f->n_expert.name, f->d_model.name, f->d_ff.name,
                   layout->transposed ? ", transposed" : "");
    wanted first = {layout->fused_gate_up,
                    "stack of gate and up projections",
                    layer,
                    -1,
                    3,
                    {moe->n_expert, 2 * d_ff, d_model},
                    in_keys};
    wanted second = {
        layout->fused_down, "stack of down projections", layer, -1, 3, {moe->n_expert, d_model, d_ff}, out_keys};
    if (layout->transposed) {
        swap(&first.shape[1], &first.shape[2]);
        swap(&second.shape[1], &second.shape[2]);
    }
    if (layout->fused_gate_up_scales != NULL) {
        MDP_TRY(bind_mxfp4(b, &first, layout->fused_gate_up_scales, &gate_up));
        MDP_TRY(bind_mxfp4(b, &second, layout->fused_down_scales, &down));
    } else {
        MDP_TRY(bind_whole(b, &first, false, &gate_up));
        MDP_TRY(bind_whole(b, &second, false, &down));
    }
    if (layout->transposed && (gate_up.scaling.tensor != NULL || down.scaling.tensor != NULL)) {
        return MDP_ERROR(MDP_BAD_INPUT,
                         "%s: layer %lld: '%s' is stored in few bits with scales, which is not supported "
                         "for stacks of experts that are stored transposed.",
                         b->catalogue->path, (long long)layer, gate_up.tensor->name);
    }
    const fused_rows gate = {0, d_ff, d_model, layout->interleaved ? 2 : 1, layout->transposed};
    fused_rows up = gate;
    up.row0 = layout->interleaved ? 1 : d_ff;
    const fused_rows out = {0, d_model, d_ff, 1, layout->transposed};
    for (mdp_expert_t e = 0; e < moe->n_expert; e++) {
        moe->experts[e].gate = fused_part(&gate_up, e, &gate);
        moe->experts[e].up = fused_part(&gate_up, e, &up);
        moe->experts[e].down = fused_part(&down, e, &out);
    }
    list_tensors(moe, &gate_up);
    list_tensors(moe, &down);
    return bind_fused_biases(b, layout, layer, moe);
}

/* All rows of all experts under each other. */
static mdp_status bind_rows(binder *b, const mdp_expert_layout *layout, int64_t layer, mdp_moe *moe) {
    const int64_t d_ff = b->config->d_ff, d_model = b->config->d_model;
    const char *patterns[N_PROJECTION] = {layout->fused_gate_up, layout->fused_up, layout->fused_down};
    const char *what[N_PROJECTION] = {"rows of gates", "rows of up projections", "rows of down projections"};
    mdp_matrix all[N_PROJECTION] = {{0}};
    char keys[200];
    (void)snprintf(keys, sizeof keys, "%s x %s, %s", b->family->n_expert.name, b->family->d_ff.name,
                   b->family->d_model.name);
    for (int p = 0; p < N_PROJECTION; p++) {
        const wanted w = {patterns[p], what[p], layer, -1, 2, {moe->n_expert * d_ff, d_model, 0}, keys};
        MDP_TRY(bind_whole(b, &w, false, &all[p]));
        list_tensors(moe, &all[p]);
        moe->expert_tensors[moe->n_expert_tensor - 1].n_each = d_ff;
        if (all[p].scaling.tensor == NULL) continue;
        return MDP_ERROR(MDP_BAD_INPUT,
                         "%s: layer %lld: '%s' is stored in few bits with scales, which is not supported "
                         "for rows of all experts in one tensor.",
                         b->catalogue->path, (long long)layer, all[p].tensor->name);
    }
    for (mdp_expert_t e = 0; e < moe->n_expert; e++) {
        mdp_expert *expert = &moe->experts[e];
        expert->gate = all[GATE];
        expert->up = all[UP];
        expert->down = all[DOWN];
        expert->gate.n_row = expert->up.n_row = expert->down.n_col = d_ff;
        expert->down.n_row = d_model;
        expert->down.row_stride = 1;
        expert->down.col_stride = d_model;
        expert->gate.first = expert->up.first = expert->down.first = e * d_ff * d_model;
    }
    return mdp_ok();
}

static mdp_status count_experts(const binder *b, const mdp_expert_layout *layout, int64_t layer, int32_t *out) {
    int64_t own = layer < b->config->n_layer ? b->config->layers[layer].n_expert : 0;
    int64_t n = own > 0 ? own : b->config->n_expert;
    if (b->catalogue->container == MDP_NATIVE) n = count_stored(b, layout, layer);
    if (n < b->config->top_k || n > INT32_MAX) {
        return MDP_ERROR(MDP_BAD_INPUT, "%s: layer %lld: %lld experts are stored, but each token chooses %lld (%s).",
                         b->catalogue->path, (long long)layer, (long long)n, (long long)b->config->top_k,
                         b->family->top_k.name);
    }
    *out = (int32_t)n;
    return mdp_ok();
}

/* A value for each expert that is added when they are chosen: a vector, or a matrix of one row. */
static mdp_status bind_choice_bias(binder *b, const mdp_expert_layout *layout, int64_t layer, const char *keys,
                                   mdp_moe *moe) {
    char name[MDP_NAME_BYTES];
    if (layout->choice_bias == NULL) return mdp_ok();
    mdp_name_fill(layout->choice_bias, layer, -1, name);
    const mdp_tensor *tensor = mdp_catalogue_find(b->catalogue, name);
    wanted w = {layout->choice_bias, "correction bias of the router", layer, -1, 1, {moe->n_expert, 0, 0}, keys};
    if (tensor != NULL && tensor->n_dim == 2) {
        w.n_dim = 2;
        w.shape[0] = 1;
        w.shape[1] = moe->n_expert;
    }
    MDP_TRY(bind_whole(b, &w, false, &moe->choice_bias));
    moe->expert_tensors[moe->n_expert_tensor++] =
        (mdp_expert_tensor){.tensor = moe->choice_bias.tensor, .expert = -1, .axis = w.n_dim - 1};
    return mdp_ok();
}

static mdp_status bind_router(binder *b, const mdp_expert_layout *layout, int64_t layer, mdp_moe *moe) {
    bool native = b->catalogue->container == MDP_NATIVE;
    const char *count = native ? "experts stored" : b->family->n_expert.name;
    char keys[128];
    (void)snprintf(keys, sizeof keys, "%s, %s", count, b->family->d_model.name);
    const wanted w = {layout->router, "router", layer, -1, 2, {moe->n_expert, b->config->d_model, 0}, keys};
    MDP_TRY(bind_whole(b, &w, false, &moe->router)); /* its rows vouch for the number before memory is taken */
    bool fused = layout->fused_gate_up != NULL;
    int64_t n_tensor = 3 + (fused ? 2 * 4 : 3 * (int64_t)N_PROJECTION * moe->n_expert); /* with scales, and of inputs */
    MDP_TRY(MDP_ALLOC(&moe->expert_tensors, n_tensor, "the expert tensors of a layer"));
    moe->expert_tensors[moe->n_expert_tensor++] = (mdp_expert_tensor){.tensor = moe->router.tensor, .expert = -1};
    if (layout->router_bias != NULL) {
        MDP_TRY(bind_vector(b, layout->router_bias, "router bias", layer, moe->n_expert, count, &moe->router_bias));
        list_tensors(moe, &moe->router_bias);
    }
    return bind_choice_bias(b, layout, layer, count, moe);
}

/* The rule of a layer; groups of equal size, each with two experts or more, which together hold what a token uses. */
static mdp_status resolve_rule(const binder *b, int64_t layer, mdp_moe *moe) {
    const mdp_family *f = b->family;
    const mdp_config *c = b->config;
    moe->rule = (mdp_router_rule){.score = f->score,
                                  .normalise = c->normalise,
                                  .jitter = c->jitter,
                                  .weigh_input = f->weigh_input,
                                  .added = f->normalise_added,
                                  .least = c->normalise_least,
                                  .scale = c->weight_scale,
                                  .n_group = (int32_t)c->n_group,
                                  .n_open = (int32_t)c->n_open,
                                  .group_score = f->group_score};
    if (c->n_group == 1) return mdp_ok();
    moe->rule.group_size = moe->n_expert / moe->rule.n_group;
    if (moe->n_expert % moe->rule.n_group == 0 && moe->rule.group_size >= 2 &&
        (int64_t)moe->rule.group_size * moe->rule.n_open >= moe->top_k)
        return mdp_ok();
    return MDP_ERROR(MDP_BAD_INPUT,
                     "%s: layer %lld: %d experts in %d groups (%s), %d of which are open to a token (%s): groups must "
                     "have equal numbers of at least 2 experts, and open ones the %d that a token uses (%s).",
                     b->catalogue->path, (long long)layer, (int)moe->n_expert, (int)moe->rule.n_group, f->n_group.name,
                     (int)moe->rule.n_open, f->n_open.name, (int)moe->top_k, f->top_k.name);
}

/* The router of a layer and what it routes to. */
static mdp_status bind_experts(binder *b, int64_t layer, mdp_moe *moe) {
    const mdp_expert_layout *layout = find_layout(b, layer);
    MDP_TRY(count_experts(b, layout, layer, &moe->n_expert));
    moe->top_k = (int32_t)b->config->top_k;
    moe->d_ff = b->config->d_ff;
    moe->activation = b->config->activation;
    bool fused = layout->fused_gate_up != NULL;
    MDP_TRY(resolve_rule(b, layer, moe));
    MDP_TRY(bind_router(b, layout, layer, moe));
    MDP_TRY(MDP_ALLOC(&moe->experts, moe->n_expert, "the experts of a layer"));
    if (layout->fused_up != NULL) return bind_rows(b, layout, layer, moe);
    return fused ? bind_fused(b, layout, layer, moe) : bind_separate(b, layout, layer, moe);
}

static mdp_status bind_moe(binder *b, int64_t layer, mdp_moe *moe) {
    MDP_TRY(bind_experts(b, layer, moe));
    return bind_shared(b, layer, moe);
}

static mdp_status bind_layer(binder *b, int64_t layer, mdp_layer *out) {
    const mdp_family *f = b->family;
    MDP_TRY(bind_norm(b, f->norm1, f->norm1_bias, "attention norm", layer, &out->norm1));
    MDP_TRY(bind_norm(b, f->norm2, f->norm2_bias, "expert norm", layer, &out->norm2));
    MDP_TRY(bind_attention(b, layer, &out->attention));
    out->is_moe = !b->config->layers[layer].dense;
    return out->is_moe ? bind_moe(b, layer, &out->moe) : bind_dense(b, layer, out);
}

/* A tensor of an expert that was not bound: say which of the possible mistakes it is. */
static mdp_status stray_expert_tensor(const binder *b, const char *name, int64_t layer, const char *rest) {
    int64_t expert;
    if (layer >= b->model->n_layer) {
        return MDP_ERROR(MDP_BAD_INPUT,
                         "%s: '%s' belongs to an expert of layer %lld, but config.json says %lld layers (%s); the "
                         "checkpoint and its config do not belong together.",
                         b->catalogue->path, name, (long long)layer, (long long)b->model->n_layer,
                         b->family->n_layer.name);
    }
    if (!b->model->layers[layer].is_moe) {
        char keys[200];
        mdp_layers_dense_keys(b->family, keys, sizeof keys);
        return MDP_ERROR(MDP_BAD_INPUT,
                         "%s: '%s' belongs to an expert of layer %lld, which is dense by config.json (%s); the "
                         "checkpoint and its config do not belong together.",
                         b->catalogue->path, name, (long long)layer, keys);
    }
    int64_t n_expert = b->model->layers[layer].moe.n_expert;
    if (mdp_name_number(rest, &expert, &rest) && expert >= n_expert) {
        return MDP_ERROR(MDP_BAD_INPUT,
                         "%s: layer %lld: '%s' belongs to expert %lld, but the layer has %lld experts (%s); the "
                         "checkpoint and its config do not belong together.",
                         b->catalogue->path, (long long)layer, name, (long long)expert, (long long)n_expert,
                         b->family->n_expert.name);
    }
    return MDP_ERROR(MDP_BAD_INPUT,
                     "%s: layer %lld: '%s' lies among the experts, but is no tensor that model_type '%s' has; it could "
                     "not be renumbered when experts are removed.",
                     b->catalogue->path, (long long)layer, name, b->family->model_type);
}

/* Mark what belongs to layers that predict tokens further ahead: of those after the last, as many as config.json says
 * there are. */
static mdp_status mark_extra(binder *b) {
    mdp_model *model = b->model;
    const char *prefix = b->family->extra, *rest;
    MDP_TRY(MDP_ALLOC(&model->extra, b->catalogue->n_tensor, "the marks of tensors beyond the last layer"));
    for (int64_t t = 0; t < b->catalogue->n_tensor; t++) {
        const char *name = b->catalogue->tensors[t].name;
        int64_t layer = -1;
        if (prefix != NULL) {
            model->extra[t] = mdp_name_begins(name, prefix, &layer, &rest);
        } else if (mdp_name_begins(name, "model.layers.{layer}.", &layer, &rest)) {
            model->extra[t] = layer >= model->n_layer && layer < model->n_layer + b->config->n_extra;
        }
        model->n_extra += model->extra[t];
    }
    return mdp_ok();
}

/* Does a name begin as those of experts do? */
static bool lies_among_experts(const binder *b, const char *name, int64_t *layer, const char **rest) {
    for (int i = 0; i < MDP_MAX_LAYOUT && b->layouts[i].router != NULL; i++)
        if (mdp_name_begins(name, b->layouts[i].experts, layer, rest)) return true;
    return false;
}

static mdp_status refuse_stray_expert_tensors(const binder *b) {
    for (int64_t t = 0; t < b->catalogue->n_tensor; t++) {
        if (b->bound[t] || b->model->extra[t]) continue;
        const char *name = b->catalogue->tensors[t].name, *rest;
        int64_t layer;
        if (lies_among_experts(b, name, &layer, &rest)) return stray_expert_tensor(b, name, layer, rest);
    }
    return mdp_ok();
}

static void count_parameters(const binder *b) {
    mdp_model *model = b->model;
    for (int64_t t = 0; t < b->catalogue->n_tensor; t++) {
        if (b->bound[t]) model->n_parameter += model->n_value[t];
    }
    model->n_active = model->n_parameter;
    for (int64_t l = 0; l < model->n_layer; l++) {
        const mdp_moe *moe = &model->layers[l].moe;
        int64_t n_bias = moe->n_expert > 0 && moe->experts[0].gate_bias.tensor ? 2 * moe->d_ff + model->d_model : 0;
        model->n_active -= (moe->n_expert - moe->top_k) * (3 * moe->d_ff * model->d_model + n_bias);
    }
}

static mdp_status bind_all(binder *b) {
    mdp_model *model = b->model;
    MDP_TRY(bind_ends(b));
    for (int64_t l = 0; l < model->n_layer; l++) MDP_TRY(bind_layer(b, l, &model->layers[l]));
    MDP_TRY(mark_extra(b));
    MDP_TRY(refuse_stray_expert_tensors(b));
    count_parameters(b);
    return mdp_ok();
}

/* Values of every stored tensor by its shape. */
static mdp_status count_values(const mdp_catalogue *catalogue, int64_t **out) {
    MDP_TRY(MDP_ALLOC(out, catalogue->n_tensor, "the sizes of the tensors"));
    for (int64_t t = 0; t < catalogue->n_tensor; t++) {
        (*out)[t] = 1;
        for (int i = 0; i < catalogue->tensors[t].n_dim; i++) (*out)[t] *= catalogue->tensors[t].shape[i];
    }
    return mdp_ok();
}

/* Bind with `bind` what the binder names; at most n_layer layers. */
static mdp_status bind_with(binder *b, int64_t n_layer, mdp_status (*bind)(binder *b)) {
    mdp_model *model = b->model;
    b->catalogue = model->catalogue;
    b->family = model->family;
    MDP_TRY(MDP_ALLOC(&model->layers, n_layer, "the layers of the model"));
    MDP_TRY(MDP_ALLOC(&model->names, (1 + N_BESIDE) * N_PROJECTION * n_layer, "the names of the expert stacks"));
    MDP_TRY(count_values(b->catalogue, &model->n_value));
    MDP_TRY(MDP_ALLOC(&b->bound, b->catalogue->n_tensor, "the marks of bound tensors"));
    mdp_status status = bind(b);
    mdp_free(b->bound);
    return status;
}

mdp_status mdp_bind_tensors(const mdp_config *config, mdp_model *model) {
    binder b = {.config = config, .layouts = model->family->layouts, .model = model};
    return bind_with(&b, model->n_layer, bind_all);
}

/* ---- layers that predict tokens further ahead ------------------------------------------------------------------ */

/* Every tensor among their experts must be one that can be renumbered. */
static mdp_status refuse_stray_extra(const binder *b) {
    for (int64_t t = 0; t < b->catalogue->n_tensor; t++) {
        const char *name = b->catalogue->tensors[t].name, *rest;
        int64_t layer;
        if (b->bound[t] || !b->marks[t] || !lies_among_experts(b, name, &layer, &rest)) continue;
        return MDP_ERROR(MDP_BAD_INPUT,
                         "%s: '%s' lies among the experts of a layer that predicts tokens further ahead, but could not "
                         "be renumbered when experts are removed; use --mtp drop.",
                         b->catalogue->path, name);
    }
    return mdp_ok();
}

static mdp_status bind_extra_layers(binder *b) {
    mdp_model *model = b->model;
    int64_t first = b->family->extra != NULL ? 0 : b->config->n_layer;
    char name[MDP_NAME_BYTES];
    for (int64_t i = 0; b->layouts[0].router != NULL && i < b->config->n_extra; i++) {
        mdp_name_fill(find_layout(b, first + i)->router, first + i, -1, name);
        if (mdp_catalogue_find(b->catalogue, name) == NULL) continue; /* it has no experts */
        mdp_layer *layer = &model->layers[model->n_layer++];
        layer->is_moe = true;
        MDP_TRY(bind_experts(b, first + i, &layer->moe));
    }
    return refuse_stray_extra(b);
}

mdp_status mdp_bind_extra_tensors(const mdp_config *config, const unsigned char *marks, mdp_model *model) {
    const mdp_family *f = model->family;
    binder b = {
        .config = config, .layouts = f->extra != NULL ? f->extra_layouts : f->layouts, .model = model, .marks = marks};
    return bind_with(&b, config->n_extra, bind_extra_layers);
}
