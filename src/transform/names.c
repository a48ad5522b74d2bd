/* names.c - side files that name experts by number. They are copied as they are, so experts cannot be numbered anew
 * beside them.
 *
 * Loaders read settings of quantisation beside config.json (hf_quant_config.json, quantize_config.json): every side
 * file of JSON with "quant" in its name is looked through. What is no JSON is nobody's settings. */
#include "mdp/transform.h"

#include <string.h>

#define MAX_BYTE ((int64_t)64 << 20)

static bool has_settings(const mdp_side_file *file) {
    size_t n = strlen(file->name);
    return strstr(file->name, "quant") && n > 5 && strcmp(file->name + n - 5, ".json") == 0 && file->n_byte <= MAX_BYTE;
}

/* The first text or key below `value` that names experts by number, and the innermost key that leads to it; NULL: none.
 */
static const char *find_name(const json_t *value, const char **key) {
    const char *name, *found = NULL;
    json_t *inner;
    size_t i;
    if (json_is_string(value)) return mdp_names_expert(json_string_value(value)) ? json_string_value(value) : NULL;
    json_object_foreach((json_t *)value, name, inner) {
        if (found) break;
        *key = name;
        found = mdp_names_expert(name) ? name : find_name(inner, key);
    }
    json_array_foreach(value, i, inner) {
        if (!found) found = find_name(inner, key);
    }
    return found;
}

static mdp_status check_text(const mdp_side_file *file, const char *path, const char *text) {
    json_t *root = NULL;
    const char *key = "";
    mdp_status status = mdp_json_parse(text, file->n_byte, path, &root);
    if (status.code == MDP_BAD_INPUT) return mdp_ok();
    MDP_TRY(status);
    const char *name = find_name(root, &key);
    if (name)
        status = MDP_ERROR(MDP_BAD_INPUT,
                           "%s: '%.100s' in %s names experts by number ('%.200s'), and would speak of others when "
                           "experts are numbered anew; take the file out where config.json says the same, or use "
                           "--pruned-route zero.",
                           path, key, file->name, name);
    json_decref(root);
    return status;
}

static mdp_status check_file(mdp_reader *reader, const mdp_side_file *file, const char *path) {
    char *text = NULL;
    MDP_TRY(MDP_ALLOC(&text, file->n_byte + 1, file->name));
    mdp_status status = mdp_reader_read(reader, file->file, file->offset, file->n_byte, text);
    if (status.code == MDP_OK) status = check_text(file, path, text);
    mdp_free(text);
    return status;
}

mdp_status mdp_transform_check_side_files(const mdp_catalogue *catalogue, mdp_reader *reader) {
    for (int64_t i = 0; i < catalogue->n_side_file; i++)
        if (has_settings(&catalogue->side_files[i]))
            MDP_TRY(check_file(reader, &catalogue->side_files[i], catalogue->path));
    return mdp_ok();
}
