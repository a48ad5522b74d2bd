/* width.c - a model of another width: the shapes of expert tensors are changed along their neurons, config.json is
 * patched, and the family binds both, so that strides, scales and everything that could not be are its business.
 *
 * Which side of a tensor is neurons follows from the strides of the matrices in it: rows of gate and up, columns of
 * down. Scales have a block's share of the neurons, and four-bit codes lie 32 to 16 bytes. */
#include "transform/width.h"

#include "mdp/plan.h"

#include <string.h>

#define CODES 32 /* of four bits, in a run of 16 bytes */

/* How a width changes. */
typedef struct change {
    const mdp_model *model;
    mdp_tensor *tensors; /* [tensors of the model] */
    unsigned char *done; /* [tensors of the model] */
    int64_t from, to;
} resizing;

/* A matrix of an expert, as far as its neurons go. */
typedef struct side {
    const mdp_matrix *matrix;
    bool columns; /* its columns are neurons, not its rows */
} side;

static mdp_status refuse(const resizing *c, const mdp_tensor *tensor) {
    return MDP_ERROR(MDP_USAGE, "'%s' cannot be cut to %lld of %lld neurons; keep a multiple of %d.", tensor->name,
                     (long long)c->to, (long long)c->from, CODES);
}

/* The dimension whose entries are neurons: the outermost that is stepped over by going on to the next one. */
static int find_axis(const mdp_tensor *tensor, const side *of) {
    const mdp_matrix *m = of->matrix;
    int64_t stride = of->columns ? m->col_stride : m->row_stride, step = 1;
    if (m->scaling.tensor) {
        int last = tensor->n_dim - 1 - (m->scaling.code == MDP_F4);
        return of->columns ? last : last - 1;
    }
    if (m->n_row == 1) stride = m->col_stride; /* a bias */
    int axis = tensor->n_dim - 1;
    while (axis > 0 && step * tensor->shape[axis] <= stride) step *= tensor->shape[axis--];
    return axis;
}

static mdp_status resize(const resizing *c, const mdp_tensor *tensor, int axis, int64_t length) {
    mdp_tensor *to = &c->tensors[tensor - c->model->catalogue->tensors];
    to->shape[axis] = length;
    if (!mdp_dtype_bytes(to->type, to->n_dim, to->shape, &to->n_byte)) return refuse(c, tensor);
    c->done[tensor - c->model->catalogue->tensors] = 1;
    return mdp_ok();
}

static bool is_done(const resizing *c, const mdp_tensor *tensor) {
    return !tensor || c->done[tensor - c->model->catalogue->tensors];
}

static mdp_status change_values(const resizing *c, const side *of) {
    const mdp_tensor *tensor = of->matrix->tensor;
    if (is_done(c, tensor)) return mdp_ok();
    int axis = find_axis(tensor, of);
    int64_t unit = of->matrix->scaling.tensor && of->matrix->scaling.code == MDP_F4 && of->columns ? CODES : 1;
    int64_t n = tensor->shape[axis] * unit; /* a whole number of experts' */
    if (axis < 0 || n % c->from != 0 || c->to % unit != 0) return refuse(c, tensor);
    return resize(c, tensor, axis, n / c->from * c->to / unit);
}

static mdp_status change_scales(const resizing *c, const side *of) {
    const mdp_scaling *s = &of->matrix->scaling;
    if (is_done(c, s->tensor)) return mdp_ok();
    int64_t n = of->columns ? s->n_col : s->n_row, block = of->columns ? s->block_col : s->block_row;
    int64_t stored = (n + block - 1) / block, wide = n / c->from * c->to;
    if (stored == 1 && block >= n && block > c->from) return mdp_ok(); /* one for all */
    int axis = of->columns || s->tensor->n_dim < 2 ? s->tensor->n_dim - 1 : s->tensor->n_dim - 2;
    if (axis < 0 || (stored == 1 && s->tensor->shape[axis] == 1 && wide <= block)) return mdp_ok();
    if (s->tensor->shape[axis] % stored != 0) return refuse(c, s->tensor);
    return resize(c, s->tensor, axis, s->tensor->shape[axis] / stored * ((wide + block - 1) / block));
}

static mdp_status change_expert(const resizing *c, const mdp_expert *expert) {
    const side sides[] = {{&expert->gate, false},
                          {&expert->up, false},
                          {&expert->down, true},
                          {&expert->gate_bias, true},
                          {&expert->up_bias, true}};
    for (size_t i = 0; i < sizeof sides / sizeof sides[0]; i++) {
        if (!sides[i].matrix->tensor) continue;
        MDP_TRY(change_values(c, &sides[i]));
        MDP_TRY(change_scales(c, &sides[i]));
    }
    return mdp_ok();
}

static mdp_status change_tensors(const mdp_model *model, int64_t d_ff, mdp_width *out) {
    resizing c = {.model = model, .tensors = out->catalogue.tensors, .to = d_ff};
    mdp_status status = MDP_ALLOC(&c.done, model->catalogue->n_tensor, "tensors of another width");
    for (int64_t l = 0; l < model->n_layer && status.code == MDP_OK; l++) {
        const mdp_moe *moe = &model->layers[l].moe;
        for (mdp_expert_t e = 0; model->layers[l].is_moe && e < moe->n_expert && status.code == MDP_OK; e++) {
            c.from = moe->experts[e].gate.n_row;
            status = change_expert(&c, &moe->experts[e]);
        }
    }
    mdp_free(c.done);
    return status;
}

static mdp_status fill(const mdp_model *model, int64_t d_ff, mdp_width *out) {
    mdp_config_change change = {.d_ff = d_ff, .n_expert = 0};
    for (int64_t l = 0; l < model->n_layer; l++)
        if (model->layers[l].is_moe) change.n_expert = mdp_larger(change.n_expert, model->layers[l].moe.n_expert);
    out->catalogue = *model->catalogue;
    out->catalogue.tensors = NULL;
    out->catalogue.config_text = NULL;
    MDP_TRY(mdp_model_patch_config(model, &change, &out->catalogue.config_text, &out->catalogue.config_byte));
    MDP_TRY(MDP_ALLOC(&out->catalogue.tensors, model->catalogue->n_tensor, "tensors of another width"));
    memcpy(out->catalogue.tensors, model->catalogue->tensors,
           (size_t)model->catalogue->n_tensor * sizeof *out->catalogue.tensors);
    MDP_TRY(change_tensors(model, d_ff, out));
    mdp_status status = mdp_model_bind(&out->catalogue, &out->model);
    if (status.code != MDP_BAD_INPUT) return status;
    return MDP_ERROR(MDP_USAGE, "experts of %lld neurons: no checkpoint of a %s could have them: %s", (long long)d_ff,
                     model->model_type, status.text);
}

mdp_status mdp_width_new(const mdp_model *model, int64_t d_ff, mdp_width **out) {
    mdp_width *width = NULL;
    *out = NULL;
    MDP_TRY(MDP_ALLOC(&width, 1, "a model of another width"));
    mdp_status status = fill(model, d_ff, width);
    if (status.code != MDP_OK) {
        mdp_width_destroy(width);
        return status;
    }
    *out = width;
    return status;
}

void mdp_width_destroy(mdp_width *width) {
    if (!width) return;
    mdp_model_destroy(width->model);
    mdp_free(width->catalogue.tensors);
    mdp_free(width->catalogue.config_text);
    mdp_free(width);
}
