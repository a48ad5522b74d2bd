/* replaced.c - experts with parts in plan.h5: which arrays those are, and the expert that computes with them. */
#include "mdp/replaced.h"
#include "transform/width.h"

#include <string.h>

const char *const mdp_expert_part_names[MDP_N_EXPERT_PART] = {[MDP_PART_GATE] = "gate",
                                                              [MDP_PART_GATE_SCALE] = "gate_scale",
                                                              [MDP_PART_GATE_BIAS] = "gate_bias",
                                                              [MDP_PART_UP] = "up",
                                                              [MDP_PART_UP_SCALE] = "up_scale",
                                                              [MDP_PART_UP_BIAS] = "up_bias",
                                                              [MDP_PART_DOWN] = "down",
                                                              [MDP_PART_DOWN_SCALE] = "down_scale",
                                                              [MDP_PART_DOWN_BIAS] = "down_bias",
                                                              [MDP_PART_ROUTER] = "router",
                                                              [MDP_PART_ROUTER_BIAS] = "router_bias",
                                                              [MDP_PART_CHOICE_BIAS] = "choice_bias",
                                                              [MDP_PART_INPUT_NORM] = "input_norm",
                                                              [MDP_PART_HIDDEN_NORM] = "hidden_norm"};

/* Stored tensors of the parts that can be replaced; NULL: the expert has none. */
static void list_stored(const mdp_moe *moe, mdp_expert_t number, const mdp_tensor *out[MDP_N_EXPERT_PART]) {
    const mdp_expert *expert = &moe->experts[number];
    out[MDP_PART_GATE] = expert->gate.tensor;
    out[MDP_PART_GATE_SCALE] = expert->gate.scaling.tensor;
    out[MDP_PART_GATE_BIAS] = expert->gate_bias.tensor;
    out[MDP_PART_UP] = expert->up.tensor;
    out[MDP_PART_UP_SCALE] = expert->up.scaling.tensor;
    out[MDP_PART_UP_BIAS] = expert->up_bias.tensor;
    out[MDP_PART_DOWN] = expert->down.tensor;
    out[MDP_PART_DOWN_SCALE] = expert->down.scaling.tensor;
    out[MDP_PART_DOWN_BIAS] = expert->down_bias.tensor;
    out[MDP_PART_ROUTER] = moe->router.tensor;
    out[MDP_PART_ROUTER_BIAS] = moe->router_bias.tensor;
    out[MDP_PART_CHOICE_BIAS] = moe->choice_bias.tensor;
    out[MDP_PART_INPUT_NORM] = out[MDP_PART_HIDDEN_NORM] = NULL;
}

/* The codes of a part; NULL: it has none. */
static const mdp_scaling *scaling_of(const mdp_expert *expert, mdp_expert_part part) {
    const mdp_scaling *scaling = part == MDP_PART_GATE   ? &expert->gate.scaling
                                 : part == MDP_PART_UP   ? &expert->up.scaling
                                 : part == MDP_PART_DOWN ? &expert->down.scaling
                                                         : NULL;
    return scaling && scaling->tensor ? scaling : NULL;
}

static bool is_scale(mdp_expert_part part) {
    return part == MDP_PART_GATE_SCALE || part == MDP_PART_UP_SCALE || part == MDP_PART_DOWN_SCALE;
}

const mdp_model *mdp_replaced_shapes(const mdp_replaced *replaced, const mdp_model *model) {
    return replaced && replaced->width ? replaced->width->model : model;
}

/* The layer in whose shapes an expert's arrays are. */
static const mdp_moe *moe_of(const mdp_replaced *replaced, const mdp_replaced_expert *expert) {
    const mdp_model *model = expert->cut ? replaced->width->model : replaced->model;
    return &model->layers[expert->layer].moe;
}

/* A stored tensor in the expert's shape. */
static const mdp_tensor *shaped(const mdp_replaced *replaced, const mdp_replaced_expert *expert,
                                const mdp_tensor *stored) {
    return expert->cut ? &replaced->width->catalogue.tensors[stored - replaced->model->catalogue->tensors] : stored;
}

static const mdp_expert_tensor *find_entry(const mdp_moe *moe, const mdp_tensor *tensor) {
    for (int64_t i = 0; i < moe->n_expert_tensor; i++)
        if (moe->expert_tensors[i].tensor == tensor) return &moe->expert_tensors[i];
    return NULL;
}

/* ---- lists ----------------------------------------------------------------------------------------------------- */

/* The array of a part: the tensor, or an expert's slice of one along the first dimension that is more than 1. */
static mdp_status describe(const mdp_moe *moe, const mdp_tensor *stored, mdp_array *out) {
    const mdp_expert_tensor *entry = find_entry(moe, stored);
    int64_t n_outer = 1;
    *out = (mdp_array){.type = stored->type, .n_dim = stored->n_dim};
    memcpy(out->shape, stored->shape, sizeof out->shape);
    if (entry && entry->expert >= 0) return mdp_ok();
    for (int i = 0; entry && i < entry->axis; i++) n_outer *= stored->shape[i];
    if (!entry || n_outer != 1 || stored->n_dim < 1)
        return MDP_ERROR(MDP_INTERNAL, "'%s': the slices of its experts do not lie one after the other.", stored->name);
    out->n_dim = stored->n_dim - entry->axis;
    memmove(out->shape, out->shape + entry->axis, (size_t)out->n_dim * sizeof *out->shape);
    if (entry->n_each > 0 || out->n_dim == 1) {
        out->shape[0] = entry->n_each > 0 ? entry->n_each : 1; /* a number for each expert */
        return mdp_ok();
    }
    out->n_dim--;
    memmove(out->shape, out->shape + 1, (size_t)out->n_dim * sizeof *out->shape);
    return mdp_ok();
}

/* Codes that become bf16: the expert's rows, as the codes have them. */
static void describe_widened(const mdp_moe *moe, const mdp_tensor *stored, const mdp_scaling *scaling, mdp_array *out) {
    const mdp_expert_tensor *entry = find_entry(moe, stored);
    int64_t n_value = stored->n_byte * 8 / mdp_dtype_bits(scaling->code);
    if (entry && entry->expert < 0) n_value /= moe->n_expert;
    *out = (mdp_array){.type = MDP_BF16, .n_dim = 2};
    out->shape[0] = n_value / scaling->n_col;
    out->shape[1] = scaling->n_col;
}

static const mdp_plan_array *find_array(const mdp_plan_expert *expert, const char *name) {
    for (int a = 0; a < expert->n_array; a++)
        if (strcmp(expert->arrays[a].name, name) == 0) return &expert->arrays[a];
    return NULL;
}

/* Parts that are stored as one tensor have one array, under the name of the first. */
static int64_t find_shared(const mdp_replaced_expert *expert, mdp_expert_part part) {
    for (int before = 0; before < (int)part; before++)
        if (expert->stored[before] == expert->stored[part]) return expert->array[before];
    return -1;
}

bool mdp_replaced_is_shared(const mdp_replaced_expert *expert, mdp_expert_part part) {
    return expert->array[part] >= 0 && find_shared(expert, part) == expert->array[part];
}

static bool is_down(mdp_expert_part part) {
    return part >= MDP_PART_DOWN && part <= MDP_PART_DOWN_BIAS;
}

static bool is_norm(mdp_expert_part part) {
    return part == MDP_PART_INPUT_NORM || part == MDP_PART_HIDDEN_NORM;
}

/* A norm has a value for each column of the matrices that it is for. */
static mdp_status add_norm(mdp_replaced *out, mdp_replaced_expert *expert, const mdp_plan_expert *planned,
                           mdp_expert_part part) {
    const mdp_expert *of = &out->model->layers[expert->layer].moe.experts[expert->from];
    const mdp_plan_array *array = find_array(planned, mdp_expert_part_names[part]);
    expert->array[part] = -1;
    if (!array) return mdp_ok();
    int64_t at = expert->array[part] = out->n_array++;
    out->list[at] = (mdp_array){
        .type = MDP_F32, .n_dim = 1, .shape = {part == MDP_PART_INPUT_NORM ? of->gate.n_col : of->down.n_col}};
    MDP_TRY(mdp_copy_text(&out->names[at], array->path));
    out->list[at].name = out->names[at];
    return mdp_ok();
}

/* Is the part of the expert itself, not of its router? */
static bool is_inside(mdp_expert_part part) {
    return part <= MDP_PART_DOWN_BIAS;
}

/* Is the part new by what the plan does to the expert, a merge or a cut? */
static bool is_new(const mdp_plan_expert *planned, mdp_expert_part part) {
    return planned->action == MDP_MERGE || (planned->action == MDP_NEURONS && is_inside(part));
}

/* Is the part to be made of an expert that is kept? */
static bool is_made(mdp_expert_part part, mdp_replaced_which which) {
    if (which == MDP_REPLACED_ROUTERS) return part >= MDP_PART_ROUTER;
    if (which == MDP_REPLACED_EXPERTS) return part < MDP_PART_ROUTER;
    return which == MDP_REPLACED_BLOCKS || (which == MDP_REPLACED_FITTED && is_down(part));
}

static mdp_status add_part(mdp_replaced *out, mdp_replaced_expert *expert, const mdp_plan_expert *planned,
                           mdp_expert_part part, mdp_replaced_which which) {
    if (is_norm(part)) return add_norm(out, expert, planned, part);
    const mdp_plan_array *array = find_array(planned, mdp_expert_part_names[part]);
    const mdp_tensor *stored = expert->stored[part];
    expert->array[part] = stored ? find_shared(expert, part) : -1;
    if (!stored && array)
        return MDP_ERROR(MDP_BAD_INPUT,
                         "layer %lld, expert %d: the plan has '%s' for it, which the model's experts have "
                         "not.",
                         (long long)expert->layer, (int)expert->from, mdp_expert_part_names[part]);
    bool wanted = array != NULL || (which != MDP_REPLACED_NAMED && is_new(planned, part)) || is_made(part, which);
    if (!stored || !wanted || expert->array[part] >= 0) return mdp_ok();
    int64_t at = out->n_array++;
    const mdp_moe *moe = moe_of(out, expert);
    const mdp_tensor *shape = shaped(out, expert, stored);
    const mdp_scaling *scaling = out->widened ? scaling_of(&moe->experts[expert->from], part) : NULL;
    if (scaling)
        describe_widened(moe, shape, scaling, &out->list[at]);
    else
        MDP_TRY(describe(moe, shape, &out->list[at]));
    if (which == MDP_REPLACED_NAMED)
        MDP_TRY(mdp_copy_text(&out->names[at], array->path));
    else
        MDP_TRY(mdp_format(&out->names[at], "/layers/%lld/experts/%d/%s", (long long)expert->layer, (int)expert->kept,
                           mdp_expert_part_names[part]));
    out->list[at].name = out->names[at];
    expert->array[part] = at;
    return mdp_ok();
}

/* A merged expert is wholly in plan.h5, a cut one but for its router row. */
static mdp_status check_whole(const mdp_replaced_expert *expert, const mdp_plan_expert *planned) {
    for (int part = 0; part < MDP_N_EXPERT_PART; part++)
        if (is_new(planned, (mdp_expert_part)part) && expert->stored[part] && expert->array[part] < 0)
            return MDP_ERROR(MDP_BAD_INPUT, "layer %lld, expert %d: the plan %s it, and has no '%s' for it.",
                             (long long)expert->layer, (int)expert->from,
                             planned->action == MDP_MERGE ? "merges" : "cuts", mdp_expert_part_names[part]);
    return mdp_ok();
}

static bool is_replaced(const mdp_plan_expert *planned, mdp_replaced_which which) {
    if (planned->action == MDP_MASK) return which == MDP_REPLACED_NAMED;
    if (planned->action == MDP_MERGE || planned->action == MDP_NEURONS)
        return which != MDP_REPLACED_NAMED || planned->n_array > 0;
    if (planned->action != MDP_KEEP) return false;
    return which >= MDP_REPLACED_FITTED || (which == MDP_REPLACED_NAMED && planned->n_array > 0);
}

static mdp_status add_layer(mdp_replaced *out, const mdp_plan_layer *planned, mdp_replaced_which which) {
    const mdp_moe *moe = &out->model->layers[planned->layer].moe;
    for (int32_t i = 0; i < planned->n_kept; i++) {
        if (!is_replaced(&planned->kept[i], which)) continue;
        mdp_replaced_expert *expert = &out->experts[out->n++];
        expert->layer = planned->layer;
        expert->kept = i;
        expert->from = planned->kept[i].from[0];
        expert->cut = planned->kept[i].action == MDP_NEURONS;
        list_stored(moe, expert->from, expert->stored);
        expert->masked = planned->kept[i].action == MDP_MASK;
        for (int m = 0; m < 2; m++) expert->mask[m].rule = planned->kept[i].mask;
        for (int part = 0; out->widened && part < MDP_N_EXPERT_PART; part++)
            if (is_scale((mdp_expert_part)part)) expert->stored[part] = NULL;
        for (int part = 0; part < MDP_N_EXPERT_PART; part++)
            MDP_TRY(add_part(out, expert, &planned->kept[i], (mdp_expert_part)part, which));
        MDP_TRY(check_whole(expert, &planned->kept[i]));
    }
    return mdp_ok();
}

static mdp_status fill(mdp_replaced *out, const mdp_plan *plan, mdp_replaced_which which) {
    int64_t n = 0;
    if (mdp_plan_width(plan) > 0) MDP_TRY(mdp_width_new(out->model, mdp_plan_width(plan), &out->width));
    for (int64_t i = 0; i < plan->n_layer; i++)
        for (int32_t j = 0; j < plan->layers[i].n_kept; j++) n += is_replaced(&plan->layers[i].kept[j], which);
    MDP_TRY(MDP_ALLOC(&out->experts, n, "replaced experts"));
    MDP_TRY(MDP_ALLOC(&out->list, n * MDP_N_EXPERT_PART, "replaced experts"));
    MDP_TRY(MDP_ALLOC(&out->names, n * MDP_N_EXPERT_PART, "replaced experts"));
    for (int64_t i = 0; i < plan->n_layer; i++) MDP_TRY(add_layer(out, &plan->layers[i], which));
    return mdp_ok();
}

mdp_status mdp_replaced_list(const mdp_model *model, const mdp_plan *plan, mdp_replaced_which which,
                             mdp_replaced **out) {
    mdp_replaced *replaced = NULL;
    *out = NULL;
    MDP_TRY(MDP_ALLOC(&replaced, 1, "replaced experts"));
    replaced->model = model;
    replaced->widened = plan->widened;
    mdp_status status = fill(replaced, plan, which);
    if (status.code != MDP_OK) {
        mdp_replaced_destroy(replaced);
        return status;
    }
    *out = replaced;
    return status;
}

int64_t mdp_replaced_bytes(const mdp_replaced *replaced) {
    int64_t sum = 0, n_byte;
    for (int64_t i = 0; i < replaced->n_array; i++) {
        const mdp_array *array = &replaced->list[i];
        if (mdp_dtype_bytes(array->type, array->n_dim, array->shape, &n_byte)) sum += n_byte;
    }
    return sum;
}

void mdp_replaced_destroy(mdp_replaced *replaced) {
    if (!replaced) return;
    for (int64_t i = 0; replaced->names && i < replaced->n_array; i++) mdp_free(replaced->names[i]);
    mdp_arrays_destroy(replaced->arrays);
    mdp_width_destroy(replaced->width);
    mdp_free(replaced->experts);
    mdp_free(replaced->list);
    mdp_free(replaced->names);
    mdp_free(replaced);
}

/* ---- binding --------------------------------------------------------------------------------------------------- */

/* Bytes, and values, of a stored tensor before an expert's slice of it. */
static int64_t bytes_before(const mdp_moe *moe, const mdp_tensor *tensor, mdp_expert_t expert) {
    const mdp_expert_tensor *entry = find_entry(moe, tensor);
    return entry && entry->expert < 0 ? tensor->n_byte / moe->n_expert * expert : 0;
}

static int64_t values_before(const mdp_moe *moe, const mdp_matrix *matrix, mdp_expert_t expert) {
    mdp_dtype type = matrix->scaling.tensor ? matrix->scaling.code : matrix->tensor->type;
    return bytes_before(moe, matrix->tensor, expert) * 8 / mdp_dtype_bits(type);
}

/* Let a matrix that is stored like `matrix` lie in an array of its own (-1: it stays where it is), where what is before
 * the expert's slice is not. */
static void move_matrix(const mdp_replaced *replaced, const mdp_replaced_expert *expert, mdp_expert_part part,
                        mdp_matrix *matrix) {
    const mdp_moe *moe = moe_of(replaced, expert);
    int64_t at = expert->array[part];
    if (at < 0) return;
    matrix->first -= values_before(moe, matrix, expert->from);
    matrix->tensor = &replaced->arrays->tensors[at];
}

static void move_scaled(const mdp_replaced *replaced, const mdp_replaced_expert *expert, mdp_expert_part part,
                        mdp_expert_part scale, mdp_matrix *matrix) {
    move_matrix(replaced, expert, part, matrix);
    if (expert->array[scale] >= 0) matrix->scaling.tensor = &replaced->arrays->tensors[expert->array[scale]];
    if (expert->array[part] >= 0 && replaced->widened) matrix->scaling = (mdp_scaling){0};
}

/* A row of the layer's that the expert has of its own. */
static void move_row(const mdp_replaced *replaced, const mdp_replaced_expert *expert, mdp_expert_part part,
                     const mdp_matrix *of_all, int64_t stride, int64_t n_col, mdp_matrix *row) {
    if (expert->array[part] < 0) return;
    *row = *of_all;
    row->n_row = 1;
    row->n_col = n_col;
    row->first += expert->from * stride;
    move_matrix(replaced, expert, part, row);
}

static void bind_masks(const mdp_replaced *replaced, mdp_replaced_expert *expert) {
    for (int m = 0; m < 2; m++) {
        int64_t at = expert->array[MDP_PART_INPUT_NORM + m];
        expert->mask[m].norm = at >= 0 ? &replaced->arrays->tensors[at] : NULL;
    }
    expert->expert.gate.mask = expert->expert.up.mask = &expert->mask[0];
    expert->expert.down.mask = &expert->mask[1];
}

static void bind(const mdp_replaced *replaced, mdp_replaced_expert *expert) {
    const mdp_moe *moe = moe_of(replaced, expert);
    mdp_expert *to = &expert->expert;
    *to = moe->experts[expert->from];
    if (expert->masked) bind_masks(replaced, expert);
    move_scaled(replaced, expert, MDP_PART_GATE, MDP_PART_GATE_SCALE, &to->gate);
    move_scaled(replaced, expert, MDP_PART_UP, MDP_PART_UP_SCALE, &to->up);
    move_scaled(replaced, expert, MDP_PART_DOWN, MDP_PART_DOWN_SCALE, &to->down);
    move_matrix(replaced, expert, MDP_PART_GATE_BIAS, &to->gate_bias);
    move_matrix(replaced, expert, MDP_PART_UP_BIAS, &to->up_bias);
    move_matrix(replaced, expert, MDP_PART_DOWN_BIAS, &to->down_bias);
    move_row(replaced, expert, MDP_PART_ROUTER, &moe->router, moe->router.row_stride, moe->router.n_col, &to->router);
    move_row(replaced, expert, MDP_PART_ROUTER_BIAS, &moe->router_bias, moe->router_bias.col_stride, 1,
             &to->router_bias);
    move_row(replaced, expert, MDP_PART_CHOICE_BIAS, &moe->choice_bias, moe->choice_bias.col_stride, 1,
             &to->choice_bias);
}

mdp_status mdp_replaced_bind(mdp_replaced *replaced, mdp_arrays *arrays, mdp_reader *reader) {
    replaced->arrays = arrays;
    if (arrays) MDP_TRY(mdp_arrays_add(arrays, reader));
    for (int64_t i = 0; i < replaced->n; i++) bind(replaced, &replaced->experts[i]);
    return mdp_ok();
}

#define COPY_BYTE ((int64_t)4 << 20) /* at a time */

static mdp_status copy_part(const mdp_replaced *replaced, const mdp_replaced_expert *expert, mdp_expert_part part,
                            mdp_reader *reader, void *buffer) {
    const mdp_moe *moe = &replaced->model->layers[expert->layer].moe;
    const mdp_tensor *from = expert->stored[part], *to = &replaced->arrays->tensors[expert->array[part]];
    int64_t before = bytes_before(moe, from, expert->from);
    for (int64_t at = 0; at < to->n_byte; at += COPY_BYTE) {
        int64_t n = to->n_byte - at < COPY_BYTE ? to->n_byte - at : COPY_BYTE;
        MDP_TRY(mdp_reader_read(reader, from->file, from->offset + before + at, n, buffer));
        MDP_TRY(mdp_arrays_put(replaced->arrays, expert->array[part], at, n, buffer));
    }
    return mdp_ok();
}

mdp_status mdp_replaced_copy(const mdp_replaced *replaced, const mdp_replaced_expert *expert, mdp_reader *reader) {
    void *buffer = NULL;
    MDP_TRY(mdp_alloc(&buffer, COPY_BYTE, 1, "what is copied"));
    mdp_status status = mdp_ok();
    for (int part = 0; part < MDP_N_EXPERT_PART && status.code == MDP_OK; part++)
        if (expert->array[part] >= 0 && !mdp_replaced_is_shared(expert, (mdp_expert_part)part))
            status = copy_part(replaced, expert, (mdp_expert_part)part, reader, buffer);
    mdp_free(buffer);
    return status;
}

mdp_status mdp_replaced_stand_in(const mdp_model *model, const mdp_plan *plan, mdp_replaced **out) {
    mdp_replaced *replaced = NULL;
    *out = NULL;
    MDP_TRY(mdp_replaced_list(model, plan, MDP_REPLACED_NAMED, &replaced));
    mdp_status status = mdp_ok();
    if (replaced->n_array > 0)
        status = mdp_arrays_new("the arrays to come", replaced->n_array, replaced->list, &replaced->arrays);
    for (int64_t i = 0; i < replaced->n && status.code == MDP_OK; i++) bind(replaced, &replaced->experts[i]);
    if (status.code == MDP_OK && replaced->n > 0)
        *out = replaced;
    else
        mdp_replaced_destroy(replaced);
    return status;
}

/* Experts lie one after the other in a tensor that holds those of a layer (checked by describe for made parts). */
mdp_masked mdp_replaced_masked(const mdp_replaced *replaced, int64_t layer, int32_t kept, const mdp_tensor *stored) {
    int64_t at = mdp_replaced_find(replaced, layer, kept);
    mdp_masked masked = {0};
    if (at < 0 || !replaced->experts[at].masked) return masked;
    const mdp_replaced_expert *expert = &replaced->experts[at];
    const mdp_matrix *matrices[] = {&expert->expert.gate, &expert->expert.up, &expert->expert.down};
    const mdp_moe *moe = &replaced->model->layers[layer].moe;
    const mdp_expert_tensor *entry = find_entry(moe, stored);
    for (int m = 0; m < 3 && masked.n < 2; m++)
        if (matrices[m]->tensor == stored) masked.matrices[masked.n++] = matrices[m];
    masked.first_byte = bytes_before(moe, stored, expert->from);
    masked.n_byte = entry && entry->expert < 0 ? stored->n_byte / moe->n_expert : stored->n_byte;
    return masked;
}

int64_t mdp_replaced_find(const mdp_replaced *replaced, int64_t layer, int32_t kept) {
    int64_t low = 0, high = replaced ? replaced->n - 1 : -1;
    while (low <= high) {
        int64_t middle = low + (high - low) / 2;
        const mdp_replaced_expert *at = &replaced->experts[middle];
        if (at->layer == layer && at->kept == kept) return middle;
        if (at->layer < layer || (at->layer == layer && at->kept < kept))
            low = middle + 1;
        else
            high = middle - 1;
    }
    return -1;
}

void mdp_replaced_arrays(const mdp_replaced *replaced, int64_t first_layer, int64_t end_layer, int64_t *first,
                         int64_t *n) {
    int64_t least = INT64_MAX, end = 0;
    for (int64_t i = 0; i < replaced->n; i++) {
        const mdp_replaced_expert *expert = &replaced->experts[i];
        if (expert->layer < first_layer || expert->layer >= end_layer) continue;
        for (int part = 0; part < MDP_N_EXPERT_PART; part++) {
            if (expert->array[part] < 0) continue;
            if (expert->array[part] < least) least = expert->array[part];
            if (expert->array[part] >= end) end = expert->array[part] + 1;
        }
    }
    *first = end > 0 ? least : 0;
    *n = end - *first;
}

const mdp_tensor *mdp_replaced_tensor(const mdp_replaced *replaced, int64_t layer, int32_t kept,
                                      const mdp_tensor *stored) {
    int64_t i = mdp_replaced_find(replaced, layer, kept);
    for (int part = 0; i >= 0 && part < MDP_N_EXPERT_PART; part++) {
        const mdp_replaced_expert *expert = &replaced->experts[i];
        if (expert->stored[part] != stored || expert->array[part] < 0) continue;
        return replaced->arrays ? &replaced->arrays->tensors[expert->array[part]] : shaped(replaced, expert, stored);
    }
    return NULL;
}

/* ---- beside a plan --------------------------------------------------------------------------------------------- */

/* The checksums that the plan has of its arrays. */
static void note_digests(const mdp_replaced *replaced, const mdp_plan *plan) {
    for (int64_t i = 0; i < plan->n_layer; i++) {
        for (int32_t j = 0; j < plan->layers[i].n_kept; j++) {
            int64_t at = mdp_replaced_find(replaced, plan->layers[i].layer, j);
            for (int part = 0; at >= 0 && part < MDP_N_EXPERT_PART; part++) {
                const mdp_plan_array *array = find_array(&plan->layers[i].kept[j], mdp_expert_part_names[part]);
                int64_t number = replaced->experts[at].array[part];
                if (!array || number < 0) continue;
                memcpy(replaced->arrays->digests[number].hex, array->xxh3, sizeof array->xxh3);
                replaced->arrays->tensors[number].digest = replaced->arrays->digests[number].hex;
            }
        }
    }
}

/* ---- in a result ----------------------------------------------------------------------------------------------- */

/* Are codes that were widened stored the other way round? */
static bool is_turned(const mdp_model *model, const mdp_replaced_expert *expert) {
    const mdp_scaling *scaling = scaling_of(&model->layers[expert->layer].moe.experts[expert->from], MDP_PART_DOWN);
    return scaling && scaling->code == MDP_F4;
}

static mdp_status place_arrays(mdp_replaced *replaced, const mdp_model *result, const int32_t *file_of) {
    for (int64_t i = 0; i < replaced->n; i++) {
        const mdp_replaced_expert *expert = &replaced->experts[i];
        const mdp_moe *moe = &result->layers[expert->layer].moe;
        const mdp_tensor *stored[MDP_N_EXPERT_PART];
        if (expert->kept >= moe->n_expert)
            return MDP_ERROR(MDP_BAD_INPUT, "%s: layer %lld has no expert %d, which its plan keeps.",
                             result->catalogue->path, (long long)expert->layer, (int)expert->kept);
        list_stored(moe, expert->kept, stored);
        if (replaced->widened && is_turned(replaced->model, expert))
            return MDP_ERROR(MDP_USAGE,
                             "%s: what was made of experts in MXFP4 stands in bf16 with rows and columns exchanged, so "
                             "it cannot be compared with the plan; verify it without --model.",
                             result->catalogue->path);
        for (int part = 0; part < MDP_N_EXPERT_PART; part++) {
            if (expert->array[part] < 0 || !stored[part]) continue;
            mdp_tensor *tensor = &replaced->arrays->tensors[expert->array[part]];
            tensor->file = file_of[stored[part]->file];
            tensor->offset = stored[part]->offset + bytes_before(moe, stored[part], expert->kept);
        }
    }
    return mdp_ok();
}

mdp_status mdp_replaced_find_in(const mdp_model *model, const mdp_plan *plan, const mdp_model *result,
                                const int32_t *file_of, mdp_replaced **out) {
    mdp_replaced *replaced = NULL;
    *out = NULL;
    MDP_TRY(mdp_replaced_list(model, plan, MDP_REPLACED_NAMED, &replaced));
    mdp_status status = mdp_ok();
    if (replaced->n > 0)
        status = mdp_arrays_new(result->catalogue->path, replaced->n_array, replaced->list, &replaced->arrays);
    if (status.code == MDP_OK && replaced->n > 0) status = place_arrays(replaced, result, file_of);
    if (status.code != MDP_OK || replaced->n == 0) {
        mdp_replaced_destroy(replaced);
        return status;
    }
    note_digests(replaced, plan);
    *out = replaced;
    return status;
}

/* ---- in plan.h5 ------------------------------------------------------------------------------------------------ */

static mdp_status open_arrays_all(const mdp_comm *comm, const mdp_plan *plan, mdp_reader *reader,
                                  mdp_replaced *replaced) {
    mdp_arrays *arrays = NULL;
    char *path = NULL;
    mdp_status status = mdp_agree_all(comm, mdp_plan_arrays_path(plan, &path));
    if (status.code == MDP_OK) status = mdp_arrays_open_all(comm, path, replaced->n_array, replaced->list, &arrays);
    mdp_free(path);
    if (status.code == MDP_OK) status = mdp_agree_all(comm, mdp_replaced_bind(replaced, arrays, reader));
    if (status.code == MDP_OK) note_digests(replaced, plan);
    return status;
}

mdp_status mdp_replaced_open_all(const mdp_comm *comm, const mdp_model *model, const mdp_plan *plan, mdp_reader *reader,
                                 mdp_replaced **out) {
    mdp_replaced *replaced = NULL;
    *out = NULL;
    mdp_status status = mdp_agree_all(comm, mdp_replaced_list(model, plan, MDP_REPLACED_NAMED, &replaced));
    if (status.code == MDP_OK && replaced->n_array > 0) status = open_arrays_all(comm, plan, reader, replaced);
    if (status.code == MDP_OK && replaced->n_array == 0)
        status = mdp_agree_all(comm, mdp_replaced_bind(replaced, NULL, reader));
    if (status.code != MDP_OK || replaced->n == 0) {
        mdp_replaced_destroy(replaced);
        return status;
    }
    *out = replaced;
    return status;
}
