/* hf_same.c - is a HF folder of ours the one that would be written? Told from its record, without its tensors: what
 * determined the bytes (provenance, plan), the headers of all shards, config.json. */
#include "checkpoint/hf_layout.h"
#include "mdp/outputs.h"

#include <string.h>

/* Does the record hold this text as this member? */
static mdp_status has_text(const json_t *root, const char *key, const char *text, bool *same) {
    json_t *value = NULL;
    const json_t *found = json_object_get(root, key);
    if (text) MDP_TRY(mdp_json_parse(text, (int64_t)strlen(text), key, &value));
    *same = *same && (text ? json_equal(value, found) : found == NULL);
    json_decref(value);
    return mdp_ok();
}

static bool has_digest(const json_t *object, const char *name, const char *data, int64_t n_byte) {
    const char *found = json_string_value(json_object_get(object, name));
    return found && strcmp(found, mdp_hash_bytes(data, n_byte).hex) == 0;
}

static mdp_status has_headers(const json_t *headers, const mdp_hf_layout *layout, bool *same) {
    *same = *same && json_object_size(headers) == (size_t)layout->n_shard;
    for (int64_t i = 0; i < layout->n_shard && *same; i++) {
        char *header = NULL;
        int64_t n_byte;
        MDP_TRY(mdp_hf_layout_header(layout, i, &header, &n_byte));
        *same = has_digest(headers, layout->files[i].name, header, n_byte);
        mdp_free(header);
    }
    return mdp_ok();
}

/* Every file of the layout at its size. */
static mdp_status has_files(const char *folder, const mdp_hf_layout *layout, bool *same) {
    for (int64_t i = 0; i < layout->n_file && *same; i++) {
        char *path = NULL;
        mdp_stamp stamp;
        MDP_TRY(mdp_path_join(&path, folder, layout->files[i].name));
        *same = mdp_stamp_take(path, &stamp).code == MDP_OK && stamp.n_byte == layout->files[i].n_byte;
        mdp_free(path);
    }
    return mdp_ok();
}

static mdp_status compare(const char *folder, const json_t *root, const mdp_output *output, int64_t shard_byte,
                          bool *same) {
    mdp_hf_layout layout = {0};
    MDP_TRY(has_text(root, "provenance", output->provenance_text, same));
    MDP_TRY(has_text(root, "plan", output->plan_text, same));
    *same =
        *same && has_digest(json_object_get(root, "files"), "config.json", output->config_text, output->config_byte);
    mdp_status status = *same ? mdp_hf_layout_make(output, shard_byte, &layout) : mdp_ok();
    if (status.code == MDP_OK && *same) status = has_headers(json_object_get(root, "headers"), &layout, same);
    if (status.code == MDP_OK && *same) status = has_files(folder, &layout, same);
    mdp_hf_layout_destroy(&layout);
    return status;
}

mdp_status mdp_hf_is_of(const char *folder, const mdp_output *output, int64_t shard_byte, bool *same) {
    mdp_record record;
    mdp_record_read(folder, &record);
    *same = record.kind == MDP_RECORD_CHECKPOINT;
    mdp_status status = *same ? compare(folder, record.root, output, shard_byte, same) : mdp_ok();
    mdp_record_clear(&record);
    return status;
}
