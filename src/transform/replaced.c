/* replaced.c - experts with parts in plan.h5: which arrays those are, and the expert that computes with them. */
#include "mdp/replaced.h"

#include <string.h>

const char *const mdp_expert_part_names[MDP_N_EXPERT_PART] = {
    [MDP_PART_DOWN] = "down", [MDP_PART_DOWN_SCALE] = "down_scale", [MDP_PART_DOWN_BIAS] = "down_bias"};

/* Stored tensors of the parts that can be replaced; NULL: the expert has none. */
static void list_stored(const mdp_expert *expert, const mdp_tensor *out[MDP_N_EXPERT_PART]) {
    out[MDP_PART_DOWN] = expert->down.tensor;
    out[MDP_PART_DOWN_SCALE] = expert->down.scaling.tensor;
    out[MDP_PART_DOWN_BIAS] = expert->down_bias.tensor;
}

static const mdp_expert_tensor *find_entry(const mdp_moe *moe, const mdp_tensor *tensor) {
    for (int64_t i = 0; i < moe->n_expert_tensor; i++)
        if (moe->expert_tensors[i].tensor == tensor) return &moe->expert_tensors[i];
    return NULL;
}

/* ---- lists ----------------------------------------------------------------------------------------------------- */

/* The array of a part: the tensor, or an expert's slice of one along its first dimension. */
static mdp_status describe(const mdp_moe *moe, const mdp_tensor *stored, mdp_array *out) {
    const mdp_expert_tensor *entry = find_entry(moe, stored);
    *out = (mdp_array){.type = stored->type, .n_dim = stored->n_dim};
    memcpy(out->shape, stored->shape, sizeof out->shape);
    if (entry && entry->expert >= 0) return mdp_ok();
    if (!entry || entry->axis != 0 || stored->n_dim < 1)
        return MDP_ERROR(MDP_INTERNAL, "'%s': the slices of its experts do not lie one after the other.", stored->name);
    if (entry->n_each > 0) {
        out->shape[0] = entry->n_each;
        return mdp_ok();
    }
    out->n_dim--;
    memmove(out->shape, out->shape + 1, (size_t)out->n_dim * sizeof *out->shape);
    return mdp_ok();
}

static const mdp_plan_array *find_array(const mdp_plan_expert *expert, const char *name) {
    for (int a = 0; a < expert->n_array; a++)
        if (strcmp(expert->arrays[a].name, name) == 0) return &expert->arrays[a];
    return NULL;
}

static mdp_status add_part(mdp_replaced *out, mdp_replaced_expert *expert, const mdp_plan_expert *planned,
                           mdp_expert_part part, bool all) {
    const mdp_plan_array *array = find_array(planned, mdp_expert_part_names[part]);
    const mdp_tensor *stored = expert->stored[part];
    expert->array[part] = -1;
    if (!stored && array)
        return MDP_ERROR(MDP_BAD_INPUT,
                         "layer %lld, expert %d: the plan has '%s' for it, which the model's experts have "
                         "not.",
                         (long long)expert->layer, (int)expert->from, mdp_expert_part_names[part]);
    if (!stored || (!all && !array)) return mdp_ok();
    int64_t at = out->n_array++;
    MDP_TRY(describe(&out->model->layers[expert->layer].moe, stored, &out->list[at]));
    if (array)
        MDP_TRY(mdp_copy_text(&out->names[at], array->path));
    else
        MDP_TRY(mdp_format(&out->names[at], "/layers/%lld/experts/%d/%s", (long long)expert->layer, (int)expert->kept,
                           mdp_expert_part_names[part]));
    out->list[at].name = out->names[at];
    expert->array[part] = at;
    return mdp_ok();
}

static bool is_replaced(const mdp_plan_expert *planned, bool all) {
    return planned->action == MDP_KEEP && (all || planned->n_array > 0);
}

static mdp_status add_layer(mdp_replaced *out, const mdp_plan_layer *planned, bool all) {
    const mdp_moe *moe = &out->model->layers[planned->layer].moe;
    for (int32_t i = 0; i < planned->n_kept; i++) {
        if (!is_replaced(&planned->kept[i], all)) continue;
        mdp_replaced_expert *expert = &out->experts[out->n++];
        expert->layer = planned->layer;
        expert->kept = i;
        expert->from = planned->kept[i].from[0];
        list_stored(&moe->experts[expert->from], expert->stored);
        for (int part = 0; part < MDP_N_EXPERT_PART; part++)
            MDP_TRY(add_part(out, expert, &planned->kept[i], (mdp_expert_part)part, all));
    }
    return mdp_ok();
}

static mdp_status fill(mdp_replaced *out, const mdp_plan *plan, bool all) {
    int64_t n = 0;
    for (int64_t i = 0; i < plan->n_layer; i++)
        for (int32_t j = 0; j < plan->layers[i].n_kept; j++) n += is_replaced(&plan->layers[i].kept[j], all);
    MDP_TRY(MDP_ALLOC(&out->experts, n, "replaced experts"));
    MDP_TRY(MDP_ALLOC(&out->list, n * MDP_N_EXPERT_PART, "replaced experts"));
    MDP_TRY(MDP_ALLOC(&out->names, n * MDP_N_EXPERT_PART, "replaced experts"));
    for (int64_t i = 0; i < plan->n_layer; i++) MDP_TRY(add_layer(out, &plan->layers[i], all));
    return mdp_ok();
}

mdp_status mdp_replaced_list(const mdp_model *model, const mdp_plan *plan, bool all, mdp_replaced **out) {
    mdp_replaced *replaced = NULL;
    *out = NULL;
    MDP_TRY(MDP_ALLOC(&replaced, 1, "replaced experts"));
    replaced->model = model;
    mdp_status status = fill(replaced, plan, all);
    if (status.code != MDP_OK) {
        mdp_replaced_destroy(replaced);
        return status;
    }
    *out = replaced;
    return status;
}

void mdp_replaced_destroy(mdp_replaced *replaced) {
    if (!replaced) return;
    for (int64_t i = 0; replaced->names && i < replaced->n_array; i++) mdp_free(replaced->names[i]);
    mdp_arrays_destroy(replaced->arrays);
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

static void bind(const mdp_replaced *replaced, mdp_replaced_expert *expert) {
    const mdp_moe *moe = &replaced->model->layers[expert->layer].moe;
    const mdp_tensor *tensors = replaced->arrays->tensors;
    expert->expert = moe->experts[expert->from];
    mdp_matrix *down = &expert->expert.down, *bias = &expert->expert.down_bias;
    if (expert->array[MDP_PART_DOWN] >= 0) {
        down->first -= values_before(moe, down, expert->from);
        down->tensor = &tensors[expert->array[MDP_PART_DOWN]];
        if (expert->array[MDP_PART_DOWN_SCALE] >= 0)
            down->scaling.tensor = &tensors[expert->array[MDP_PART_DOWN_SCALE]];
    }
    if (expert->array[MDP_PART_DOWN_BIAS] >= 0) {
        bias->first -= values_before(moe, bias, expert->from);
        bias->tensor = &tensors[expert->array[MDP_PART_DOWN_BIAS]];
    }
}

mdp_status mdp_replaced_bind(mdp_replaced *replaced, mdp_arrays *arrays, mdp_reader *reader) {
    replaced->arrays = arrays;
    MDP_TRY(mdp_arrays_add(arrays, reader));
    for (int64_t i = 0; i < replaced->n; i++) bind(replaced, &replaced->experts[i]);
    return mdp_ok();
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
        if (expert->stored[part] == stored && expert->array[part] >= 0)
            return &replaced->arrays->tensors[expert->array[part]];
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

static mdp_status place_arrays(mdp_replaced *replaced, const mdp_model *result, const int32_t *file_of) {
    for (int64_t i = 0; i < replaced->n; i++) {
        const mdp_replaced_expert *expert = &replaced->experts[i];
        const mdp_moe *moe = &result->layers[expert->layer].moe;
        const mdp_tensor *stored[MDP_N_EXPERT_PART];
        if (expert->kept >= moe->n_expert)
            return MDP_ERROR(MDP_BAD_INPUT, "%s: layer %lld has no expert %d, which its plan keeps.",
                             result->catalogue->path, (long long)expert->layer, (int)expert->kept);
        list_stored(&moe->experts[expert->kept], stored);
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
    MDP_TRY(mdp_replaced_list(model, plan, false, &replaced));
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
    mdp_status status = mdp_agree_all(comm, mdp_replaced_list(model, plan, false, &replaced));
    if (status.code == MDP_OK && replaced->n_array > 0) status = open_arrays_all(comm, plan, reader, replaced);
    if (status.code != MDP_OK || replaced->n == 0) {
        mdp_replaced_destroy(replaced);
        return status;
    }
    *out = replaced;
    return status;
}
