/* hf_layout.c - tensors into safetensors shards, without touching the disk.
 *
 * Tensors fill shards in order of name, never split, up to a number of bytes; inside a shard they lie as the
 * safetensors library writes them: larger number formats first, then by name, header padded to a multiple of 8. Refuses
 * a header that readers would refuse. */
#include "checkpoint/hf_layout.h"

#include "checkpoint/output.h"

#include <stdlib.h>
#include <string.h>

#define MAX_HEADER 100000000 /* bytes; the format's own limit */

static int compare_in_shard(const void *left, const void *right) {
    const mdp_output_tensor *a = *(const mdp_output_tensor *const *)left;
    const mdp_output_tensor *b = *(const mdp_output_tensor *const *)right;
    if (a->type != b->type) return a->type > b->type ? -1 : 1;
    return strcmp(a->name, b->name);
}

/* Index of the first tensor after `first` that opens a new shard. */
static int64_t end_of_shard(const mdp_output *output, int64_t first, int64_t shard_byte) {
    int64_t n_byte = 0, i = first;
    for (; i < output->n_tensor; i++) {
        n_byte += output->tensors[i].n_byte;
        if (i > first && n_byte > shard_byte) break;
    }
    return i;
}

static int64_t count_shards(const mdp_output *output, int64_t shard_byte) {
    int64_t n = 0;
    for (int64_t first = 0; first < output->n_tensor; n++) first = end_of_shard(output, first, shard_byte);
    return n > 0 ? n : 1;
}

static mdp_status allocate(const mdp_output *output, int64_t n_shard, mdp_hf_layout *layout) {
    int64_t n_side = output->source->n_side_file;
    layout->n_shard = n_shard;
    layout->n_file = n_shard + n_side;
    layout->n_item = output->n_tensor + n_side;
    MDP_TRY(MDP_ALLOC(&layout->files, layout->n_file, "the list of files"));
    MDP_TRY(MDP_ALLOC(&layout->items, layout->n_item, "the list of tensors"));
    MDP_TRY(MDP_ALLOC(&layout->item_file, layout->n_item, "the list of tensors"));
    MDP_TRY(MDP_ALLOC(&layout->item_offset, layout->n_item, "the list of tensors"));
    MDP_TRY(
        mdp_alloc((void **)&layout->tensors, layout->n_item, sizeof(const mdp_output_tensor *), "the list of tensors"));
    return mdp_output_side_segments(output->source, &layout->side_tensors, &layout->side_segments);
}

static mdp_status name_shard(char **out, int64_t shard, int64_t n_shard) {
    if (n_shard == 1) return mdp_copy_text(out, "model.safetensors");
    return mdp_format(out, "model-%05lld-of-%05lld.safetensors", (long long)shard + 1, (long long)n_shard);
}

static mdp_status add_shard(const mdp_output *output, int64_t shard, int64_t first, int64_t end,
                            mdp_hf_layout *layout) {
    mdp_hf_file *file = &layout->files[shard];
    MDP_TRY(name_shard(&file->name, shard, layout->n_shard));
    file->first_item = first;
    file->n_item = end - first;
    for (int64_t i = first; i < end; i++) layout->tensors[i] = &output->tensors[i];
    qsort(layout->tensors + first, (size_t)(end - first), sizeof(const mdp_output_tensor *), compare_in_shard);
    int64_t offset = 0;
    for (int64_t i = first; i < end; i++) {
        const mdp_output_tensor *tensor = layout->tensors[i];
        layout->items[i] = (mdp_copy_item){
            .n_byte = tensor->n_byte, .n_segment = tensor->n_segment, .segments = tensor->segments, .unit = 1};
        layout->item_file[i] = shard;
        layout->item_offset[i] = offset;
        offset += tensor->n_byte;
    }
    char *header = NULL;
    MDP_TRY(mdp_hf_layout_header(layout, shard, &header, &file->data_start));
    mdp_free(header);
    file->n_byte = file->data_start + offset;
    return mdp_ok();
}

static mdp_status add_side_file(mdp_hf_layout *layout, int64_t side) {
    const mdp_tensor *tensor = &layout->side_tensors[side];
    int64_t index = layout->n_shard + side, item = layout->n_item - (layout->n_file - layout->n_shard) + side;
    mdp_hf_file *file = &layout->files[index];
    MDP_TRY(mdp_copy_text(&file->name, tensor->name));
    file->n_byte = tensor->n_byte;
    file->first_item = item;
    file->n_item = 1;
    layout->items[item] =
        (mdp_copy_item){.n_byte = tensor->n_byte, .n_segment = 1, .segments = &layout->side_segments[side], .unit = 1};
    layout->item_file[item] = index;
    return mdp_ok();
}

mdp_status mdp_hf_layout_make(const mdp_output *output, int64_t shard_byte, mdp_hf_layout *out) {
    *out = (mdp_hf_layout){0};
    MDP_TRY(mdp_output_check_tensors(output));
    MDP_TRY(allocate(output, count_shards(output, shard_byte), out));
    for (int64_t shard = 0, first = 0; shard < out->n_shard; shard++) {
        int64_t end = end_of_shard(output, first, shard_byte);
        MDP_TRY(add_shard(output, shard, first, end, out));
        first = end;
    }
    for (int64_t i = 0; i < output->source->n_side_file; i++) MDP_TRY(add_side_file(out, i));
    return mdp_ok();
}

void mdp_hf_layout_destroy(mdp_hf_layout *layout) {
    for (int64_t i = 0; layout->files && i < layout->n_file; i++) mdp_free(layout->files[i].name);
    mdp_free(layout->files);
    mdp_free(layout->items);
    mdp_free(layout->item_file);
    mdp_free(layout->item_offset);
    mdp_free((void *)layout->tensors);
    mdp_free(layout->side_tensors);
    mdp_free(layout->side_segments);
    *layout = (mdp_hf_layout){0};
}

/* {"dtype": ..., "shape": [...], "data_offsets": [begin, end]}; NULL when memory ran out. */
static json_t *describe_tensor(const mdp_output_tensor *tensor, int64_t offset) {
    json_t *shape = json_array();
    for (int d = 0; d < tensor->n_dim; d++) mdp_json_add(&shape, json_integer(tensor->shape[d]));
    return json_pack("{s:s, s:o, s:[I, I]}", "dtype", mdp_dtype_name(tensor->type), "shape", shape, "data_offsets",
                     (json_int_t)offset, (json_int_t)offset + tensor->n_byte);
}

static json_t *describe_shard(const mdp_hf_layout *layout, const mdp_hf_file *file) {
    json_t *root = json_object();
    mdp_json_put(&root, "__metadata__", json_pack("{s:s}", "format", "pt"));
    for (int64_t i = file->first_item; i < file->first_item + file->n_item; i++)
        mdp_json_put(&root, layout->tensors[i]->name, describe_tensor(layout->tensors[i], layout->item_offset[i]));
    return root;
}

/* Length, text and spaces as one block. */
static mdp_status frame_header(const mdp_hf_file *file, const char *text, char **out, int64_t *n_byte) {
    uint64_t n_text = strlen(text), n = (n_text + 7) / 8 * 8;
    if (n > MAX_HEADER)
        return MDP_ERROR(MDP_USAGE,
                         "%s: its header would have %llu bytes, readers accept %d; give a smaller "
                         "--shard-size.",
                         file->name, (unsigned long long)n, MAX_HEADER);
    MDP_TRY(MDP_ALLOC(out, (mdp_count_t)(8 + n), "a safetensors header"));
    for (int i = 0; i < 8; i++) (*out)[i] = (char)(n >> (8 * i) & 0xff);
    memcpy(*out + 8, text, n_text);
    memset(*out + 8 + n_text, ' ', n - n_text);
    *n_byte = (int64_t)(8 + n);
    return mdp_ok();
}

mdp_status mdp_hf_layout_header(const mdp_hf_layout *layout, int64_t shard, char **out, int64_t *n_byte) {
    const mdp_hf_file *file = &layout->files[shard];
    MDP_TRY(mdp_fault(MDP_EXHAUSTED, "make JSON"));
    json_t *root = describe_shard(layout, file);
    char *text = root ? json_dumps(root, JSON_COMPACT) : NULL;
    mdp_status status = text ? frame_header(file, text, out, n_byte)
                             : MDP_ERROR(MDP_EXHAUSTED, "no memory for the header of %s.", file->name);
    mdp_json_free(text);
    json_decref(root);
    return status;
}
