/* native_layout.c - from the tensors of an mdp_output to the datasets of a model.h5, without HDF5.
 *
 * Tensors stand alone or belong to a stack (same HF name pattern); a stack becomes one dataset [n_expert, ...]. Order
 * in the file: by pattern or name, experts by number, then side files. Refuses names that make no HDF5 path, or one
 * that another dataset is at or above, and stacks whose members are not alike or not numbered 0 .. n-1. */
#include "checkpoint/native_layout.h"

#include "checkpoint/output.h"

#include <stdlib.h>
#include <string.h>

static const char *sort_key(const mdp_output_tensor *tensor) {
    return tensor->stack ? tensor->stack : tensor->name;
}

static int compare_tensors(const void *left, const void *right) {
    const mdp_output_tensor *a = *(const mdp_output_tensor *const *)left;
    const mdp_output_tensor *b = *(const mdp_output_tensor *const *)right;
    int order = strcmp(sort_key(a), sort_key(b));
    return order ? order : (a->expert > b->expert) - (a->expert < b->expert);
}

/* "a.b.{expert}.c" -> "/a/b/c". */
static mdp_status make_path(char **out, const char *name) {
    MDP_TRY(mdp_format(out, "/%s", name));
    char *to = *out + 1;
    for (const char *from = name; *from;) {
        size_t n = strcspn(from, ".");
        char next = from[n];
        if (n == 0 || memchr(from, '/', n) || (next && !from[n + 1]))
            return MDP_ERROR(
                MDP_BAD_INPUT,
                "the tensor name \"%s\" has an empty part or a \"/\"; it cannot be written to model.h5, use "
                "--format safetensors.",
                name);
        if (n != strlen("{expert}") || strncmp(from, "{expert}", n) != 0) {
            if (to != *out + 1) *to++ = '/';
            memcpy(to, from, n);
            to += n;
        }
        from += n + (next != '\0');
    }
    *to = '\0';
    return mdp_ok();
}

/* A slash comes before every other character, so that what lies below a path follows it. */
static int compare_paths(const void *left, const void *right) {
    const char *a = (*(const mdp_native_set *const *)left)->path, *b = (*(const mdp_native_set *const *)right)->path;
    while (*a && *a == *b) a++, b++;
    int x = *a == '\0' ? 0 : *a == '/' ? 1 : (unsigned char)*a + 1;
    int y = *b == '\0' ? 0 : *b == '/' ? 1 : (unsigned char)*b + 1;
    return (x > y) - (x < y);
}

static const char *set_name(const mdp_native_set *set) {
    return set->hf_name ? set->hf_name : set->path;
}

/* Is the first part of the path one that the file itself uses? Side files have theirs. */
static bool is_reserved(const mdp_native_set *set) {
    static const char *const parts[] = {"config", "plan", "provenance", "files"};
    size_t n = strcspn(set->path + 1, "/");
    for (size_t i = 0; set->hf_name && i < sizeof parts / sizeof *parts; i++)
        if (strlen(parts[i]) == n && strncmp(set->path + 1, parts[i], n) == 0) return true;
    return false;
}

static mdp_status check_sorted(const mdp_native_set *const *sets, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        const char *path = sets[i]->path, *next = i + 1 < n ? sets[i + 1]->path : "";
        size_t length = strlen(path);
        if (is_reserved(sets[i]))
            return MDP_ERROR(MDP_BAD_INPUT,
                             "the tensor %s would be where model.h5 keeps other things (%s); it cannot be written "
                             "there, use --format safetensors.",
                             set_name(sets[i]), path);
        if (strncmp(path, next, length) != 0 || (next[length] != '\0' && next[length] != '/')) continue;
        return MDP_ERROR(
            MDP_BAD_INPUT,
            "the tensors %s and %s would be datasets at the same place of model.h5, or one below the other "
            "(%s, %s); they cannot be written there, use --format safetensors.",
            set_name(sets[i]), set_name(sets[i + 1]), path, next);
    }
    return mdp_ok();
}

/* HDF5 has one thing at a path, and below a dataset nothing. */
static mdp_status check_paths(const mdp_native_layout *layout) {
    const mdp_native_set **sets = NULL;
    MDP_TRY(mdp_alloc((void **)&sets, layout->n_set, sizeof *sets, "the list of datasets"));
    for (int64_t i = 0; i < layout->n_set; i++) sets[i] = &layout->sets[i];
    qsort(sets, (size_t)layout->n_set, sizeof *sets, compare_paths);
    mdp_status status = check_sorted(sets, layout->n_set);
    mdp_free(sets);
    return status;
}

/* Types for which every HDF5 1.10 reader shows the right values; the others are bytes with a name. */
static bool has_number_type(mdp_dtype type) {
    switch (type) {
    case MDP_U8:
    case MDP_I8:
    case MDP_I16:
    case MDP_U16:
    case MDP_F16:
    case MDP_BF16:
    case MDP_I32:
    case MDP_U32:
    case MDP_F32:
    case MDP_F64:
    case MDP_I64:
    case MDP_U64:
        return true;
    default:
        return false;
    }
}

/* Element type and shape of a dataset that holds tensors like this one. */
static mdp_status describe_set(mdp_native_set *set, const mdp_output_tensor *tensor, int64_t n_expert) {
    set->type = tensor->type;
    set->as_bytes = !has_number_type(tensor->type);
    set->unit = set->as_bytes ? 1 : mdp_dtype_bits(tensor->type) / 8;
    set->n_element = tensor->n_byte / set->unit;
    set->stacked = tensor->stack != NULL;
    if (set->stacked) set->shape[set->n_dim++] = n_expert;
    for (int d = 0; d < tensor->n_dim; d++) set->shape[set->n_dim++] = tensor->shape[d];
    int bits = mdp_dtype_bits(tensor->type);
    if (!set->as_bytes || bits == 8) return mdp_ok();
    int64_t last = tensor->n_dim > 0 ? tensor->shape[tensor->n_dim - 1] : 1;
    if (tensor->n_dim == 0)
        set->shape[set->n_dim++] = bits / 8; /* a scalar of several bytes */
    else if (last * bits % 8 == 0)
        set->shape[set->n_dim - 1] = last * bits / 8;
    else
        return MDP_ERROR(MDP_BAD_INPUT,
                         "tensor %s: its last dimension of %lld %s values is not a whole number of bytes; it cannot be "
                         "written to model.h5, use --format safetensors.",
                         tensor->name, (long long)last, mdp_dtype_name(tensor->type));
    return mdp_ok();
}

static bool is_alike(const mdp_output_tensor *a, const mdp_output_tensor *b) {
    if (a->type != b->type || a->n_dim != b->n_dim) return false;
    for (int d = 0; d < a->n_dim; d++)
        if (a->shape[d] != b->shape[d]) return false;
    return true;
}

/* The transform numbers experts; what their tensors are like is the input's doing. */
static mdp_status check_stack(const mdp_output_tensor *const *members, int64_t n) {
    for (int64_t i = 0; members[0]->stack && i < n; i++) {
        if (members[i]->expert == i && is_alike(members[0], members[i])) continue;
        return MDP_ERROR(MDP_BAD_INPUT,
                         "%s: expert %d of the result is stored otherwise than expert %d (%s), and model.h5 stacks the "
                         "experts of a layer; use --format safetensors.",
                         members[i]->stack, (int)members[i]->expert, (int)members[0]->expert, members[0]->name);
    }
    if (!members[0]->stack && n != 1)
        return MDP_ERROR(MDP_INTERNAL, "tensor %s of the result appears twice.", members[0]->name);
    return mdp_ok();
}

/* One dataset of the n tensors that begin at item `first`. */
static mdp_status add_tensor_set(mdp_native_layout *layout, int64_t first, int64_t n) {
    const mdp_output_tensor *tensor = layout->tensors[first];
    mdp_native_set *set = &layout->sets[layout->n_set++];
    MDP_TRY(check_stack(&layout->tensors[first], n));
    MDP_TRY(make_path(&set->path, sort_key(tensor)));
    set->hf_name = sort_key(tensor);
    set->first_item = first;
    set->n_item = n;
    MDP_TRY(describe_set(set, tensor, n));
    for (int64_t i = first; i < first + n; i++) {
        const mdp_output_tensor *member = layout->tensors[i];
        layout->items[i] = (mdp_copy_item){
            .n_byte = member->n_byte, .n_segment = member->n_segment, .segments = member->segments, .unit = set->unit};
        layout->item_set[i] = layout->n_set - 1;
    }
    return mdp_ok();
}

static mdp_status add_side_set(mdp_native_layout *layout, int64_t item, int64_t side) {
    const mdp_tensor *tensor = &layout->side_tensors[side];
    mdp_native_set *set = &layout->sets[layout->n_set++];
    MDP_TRY(mdp_format(&set->path, "/files/%s", tensor->name));
    set->type = MDP_U8;
    set->unit = 1;
    set->n_dim = 1;
    set->shape[0] = tensor->n_byte;
    set->n_element = tensor->n_byte;
    set->first_item = item;
    set->n_item = 1;
    layout->items[item] =
        (mdp_copy_item){.n_byte = tensor->n_byte, .n_segment = 1, .segments = &layout->side_segments[side], .unit = 1};
    layout->item_set[item] = layout->n_set - 1;
    return mdp_ok();
}

mdp_status mdp_native_layout_make(const mdp_output *output, mdp_native_layout *out) {
    int64_t n_side = output->source->n_side_file;
    *out = (mdp_native_layout){.n_item = output->n_tensor + n_side};
    MDP_TRY(mdp_output_check_tensors(output));
    MDP_TRY(MDP_ALLOC(&out->sets, out->n_item, "the list of datasets"));
    MDP_TRY(MDP_ALLOC(&out->items, out->n_item, "the list of tensors"));
    MDP_TRY(MDP_ALLOC(&out->item_set, out->n_item, "the list of tensors"));
    MDP_TRY(mdp_alloc((void **)&out->tensors, out->n_item, sizeof(const mdp_output_tensor *), "the list of tensors"));
    MDP_TRY(mdp_output_side_segments(output->source, &out->side_tensors, &out->side_segments));
    for (int64_t i = 0; i < output->n_tensor; i++) out->tensors[i] = &output->tensors[i];
    qsort(out->tensors, (size_t)output->n_tensor, sizeof(const mdp_output_tensor *), compare_tensors);
    for (int64_t first = 0, n; first < output->n_tensor; first += n) {
        for (n = 1; first + n < output->n_tensor; n++)
            if (strcmp(sort_key(out->tensors[first]), sort_key(out->tensors[first + n])) != 0) break;
        MDP_TRY(add_tensor_set(out, first, n));
    }
    for (int64_t i = 0; i < n_side; i++) MDP_TRY(add_side_set(out, output->n_tensor + i, i));
    return check_paths(out);
}

void mdp_native_layout_destroy(mdp_native_layout *layout) {
    for (int64_t i = 0; layout->sets && i < layout->n_set; i++) mdp_free(layout->sets[i].path);
    mdp_free(layout->sets);
    mdp_free(layout->items);
    mdp_free(layout->item_set);
    mdp_free((void *)layout->tensors);
    mdp_free(layout->side_tensors);
    mdp_free(layout->side_segments);
    *layout = (mdp_native_layout){0};
}
