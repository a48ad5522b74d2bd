/* hf_folder.c - which files of a Hugging Face folder are the model.
 *
 * model.safetensors is the model when it is there (transformers prefers it to an index too); otherwise
 * model.safetensors.index.json says in which file each tensor is. The index must be exact: plain file names in the same
 * folder, every mapped tensor in its file and nowhere else, no tensor that it does not map. What becomes of all else
 * is decided in side_files.c. Symbolic links are followed. */
#include "checkpoint/hf_folder.h"

#include "checkpoint/safetensors.h"
#include "checkpoint/side_files.h"

#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define SINGLE "model.safetensors"
#define INDEX "model.safetensors.index.json"
#define MAX_CONFIG_BYTE ((int64_t)64 << 20)
#define MAX_INDEX_BYTE ((int64_t)1 << 30)

/* ---- folder listing ------------------------------------------------------------------------------------------ */

typedef struct listing {
    char **names; /* [n] ascending; owned */
    int64_t n, capacity;
} listing;

static void clear_listing(listing *list) {
    for (int64_t i = 0; i < list->n; i++) mdp_free(list->names[i]);
    mdp_free(list->names);
}

static int compare_names(const void *left, const void *right) {
    return strcmp(*(char *const *)left, *(char *const *)right);
}

static mdp_status add_name(listing *list, const char *name) {
    if (list->n == list->capacity) {
        int64_t capacity = list->capacity == 0 ? 64 : 2 * list->capacity;
        MDP_TRY(MDP_GROW(&list->names, list->n, capacity, "list of files"));
        list->capacity = capacity;
    }
    MDP_TRY(mdp_copy_text(&list->names[list->n], name));
    list->n++;
    return mdp_ok();
}

/* Names in a folder, in byte order, whatever the file system's own order is. */
static mdp_status list_folder(const char *folder, listing *list) {
    MDP_TRY(mdp_fault(MDP_IO, "list folder"));
    DIR *directory = opendir(folder);
    if (directory == NULL) {
        return MDP_ERROR(MDP_IO, "%s: the folder cannot be listed (%s).", folder, strerror(errno));
    }
    mdp_status status = mdp_ok();
    for (;;) {
        errno = 0;
        const struct dirent *entry = readdir(directory);
        if (entry == NULL) break;
        MDP_TRY_GOTO(status, done, add_name(list, entry->d_name));
    }
    if (errno != 0) status = MDP_ERROR(MDP_IO, "%s: the folder cannot be listed (%s).", folder, strerror(errno));
done:
    closedir(directory);
    if (status.code == MDP_OK && list->n > 0) qsort(list->names, (size_t)list->n, sizeof *list->names, compare_names);
    return status;
}

static bool ends_with(const char *text, const char *end) {
    size_t n = strlen(text), m = strlen(end);
    return n >= m && strcmp(text + n - m, end) == 0;
}

/* ---- the index ----------------------------------------------------------------------------------------------- */

static bool is_plain_name(const char *name) {
    return name[0] != '\0' && strchr(name, '/') == NULL && strcmp(name, ".") != 0 && strcmp(name, "..") != 0;
}

/* Every value of the weight map is a plain file name; the distinct ones, in byte order, go to `shards`. */
static mdp_status list_shards(const char *path, json_t *weight_map, listing *shards) {
    mdp_status status = mdp_ok();
    json_t *seen = json_object();
    if (seen == NULL) return MDP_ERROR(MDP_EXHAUSTED, "%s: out of memory for the list of shards.", path);
    const char *tensor;
    json_t *value;
    json_object_foreach(weight_map, tensor, value) {
        const char *name = json_string_value(value);
        if (name == NULL || !is_plain_name(name) || !mdp_text_is_plain(name)) {
            status =
                MDP_ERROR(MDP_BAD_INPUT,
                          "%s: '%s' is mapped to %s%s%s, which is not the plain name of a file in the same folder.",
                          path, tensor, name ? "\"" : "", name ? name : "something that is no text", name ? "\"" : "");
            break;
        }
        if (json_object_get(seen, name) != NULL) continue;
        mdp_json_put(&seen, name, json_incref(value));
        if (seen == NULL) return MDP_ERROR(MDP_EXHAUSTED, "%s: out of memory for the list of shards.", path);
        MDP_TRY_GOTO(status, done, add_name(shards, name));
    }
done:
    json_decref(seen);
    if (status.code == MDP_OK && shards->n > 0)
        qsort(shards->names, (size_t)shards->n, sizeof *shards->names, compare_names);
    return status;
}

/* Tensors first .. n_tensor-1 of the draft came from `shard`: each must be mapped to it. */
static mdp_status check_shard(const mdp_draft *draft, int64_t first, const char *index, const char *shard,
                              const json_t *weight_map) {
    for (int64_t i = first; i < draft->n_tensor; i++) {
        const char *name = draft->pool + draft->tensor_at[i];
        const char *mapped = json_string_value(json_object_get(weight_map, name));
        if (mapped == NULL) {
            return MDP_ERROR(MDP_BAD_INPUT, "%s: '%s' is stored in %s, but the index does not name it.", index, name,
                             shard);
        }
        if (strcmp(mapped, shard) != 0) {
            return MDP_ERROR(
                MDP_BAD_INPUT,
                "%s: '%s' is mapped to %s, but is stored in %s; every tensor must be stored once, where the "
                "index says.",
                index, name, mapped, shard);
        }
    }
    return mdp_ok();
}

/* All stored tensors are mapped, and to their own file; with equal numbers, all mapped ones are stored. */
static mdp_status check_missing(const mdp_draft *draft, const char *index, json_t *weight_map) {
    if ((int64_t)json_object_size(weight_map) == draft->n_tensor) return mdp_ok();
    mdp_status status = mdp_ok();
    json_t *stored = json_object();
    for (int64_t i = 0; stored != NULL && i < draft->n_tensor; i++) {
        mdp_json_put(&stored, draft->pool + draft->tensor_at[i], json_true());
    }
    if (stored == NULL) return MDP_ERROR(MDP_EXHAUSTED, "%s: out of memory for the list of tensors.", index);
    const char *tensor;
    json_t *value;
    json_object_foreach(weight_map, tensor, value) {
        if (json_object_get(stored, tensor) != NULL) continue;
        status = MDP_ERROR(MDP_BAD_INPUT, "%s: '%s' is mapped to %s, but is not stored there.", index, tensor,
                           json_string_value(value));
        break;
    }
    json_decref(stored);
    return status;
}

static mdp_status add_shard(mdp_draft *draft, const char *folder, const char *index, const char *shard,
                            const json_t *weight_map) {
    char *path = NULL;
    MDP_TRY(mdp_path_join(&path, folder, shard));
    int64_t first = draft->n_tensor;
    mdp_status status;
    if (!mdp_path_exists(path)) {
        status =
            MDP_ERROR(MDP_BAD_INPUT, "%s: the index names %s, which is not in the folder. Download the missing file.",
                      index, shard);
    } else {
        status = mdp_safetensors_add(draft, path);
    }
    if (status.code == MDP_OK) status = check_shard(draft, first, index, shard, weight_map);
    mdp_free(path);
    return status;
}

static mdp_status add_indexed(mdp_draft *draft, const char *folder, const char *index) {
    char *text = NULL;
    int64_t n_byte;
    json_t *root = NULL;
    listing shards = {0};
    MDP_TRY(mdp_file_read_all(index, MAX_INDEX_BYTE, &text, &n_byte));
    mdp_status status;
    MDP_TRY_GOTO(status, done, mdp_json_parse(text, n_byte, index, &root));
    json_t *weight_map = json_object_get(root, "weight_map");
    if (!json_is_object(weight_map) || json_object_size(weight_map) == 0) {
        status = MDP_ERROR(MDP_BAD_INPUT, "%s: there is no object \"weight_map\" that maps tensors to files.", index);
        goto done;
    }
    MDP_TRY_GOTO(status, done, list_shards(index, weight_map, &shards));
    for (int64_t i = 0; i < shards.n; i++) {
        MDP_TRY_GOTO(status, done, add_shard(draft, folder, index, shards.names[i], weight_map));
    }
    MDP_TRY_GOTO(status, done, check_missing(draft, index, weight_map));
done:
    clear_listing(&shards);
    json_decref(root);
    mdp_free(text);
    return status;
}

/* ---- the folder ---------------------------------------------------------------------------------------------- */

static const char *find_name(const listing *list, const char *name) {
    if (list->n == 0) return NULL;
    char *const *found = bsearch(&name, list->names, (size_t)list->n, sizeof *list->names, compare_names);
    return found == NULL ? NULL : *found;
}

/* What to say of a folder without a model that we know: name what is there instead. */
static mdp_status no_weights(const char *folder, const listing *list) {
    for (int64_t i = 0; i < list->n; i++) {
        const char *name = list->names[i];
        if (strcmp(name, "model.h5") == 0) {
            return MDP_ERROR(MDP_BAD_INPUT,
                             "%s: no " SINGLE " and no " INDEX " in this folder; for the model.h5 in it, "
                             "name the file itself: %s/model.h5.",
                             folder, folder);
        }
        if (ends_with(name, ".safetensors") && strncmp(name, "consolidated", strlen("consolidated")) != 0) {
            return MDP_ERROR(MDP_BAD_INPUT,
                             "%s: no " SINGLE " and no " INDEX " in this folder, only %s; without an index "
                             "the weights must be in one file of the former name.",
                             folder, name);
        }
    }
    return MDP_ERROR(MDP_BAD_INPUT,
                     "%s: no " SINGLE " and no " INDEX " in this folder; a checkpoint needs one of them.", folder);
}

static mdp_status add_config(mdp_draft *draft, const char *folder, const listing *list) {
    if (find_name(list, "config.json") == NULL) {
        return MDP_ERROR(MDP_BAD_INPUT, "%s: no config.json in this folder; it is no Hugging Face checkpoint.", folder);
    }
    char *path = NULL, *text = NULL;
    MDP_TRY(mdp_path_join(&path, folder, "config.json"));
    mdp_status status = mdp_file_read_all(path, MAX_CONFIG_BYTE, &text, &draft->config_byte);
    if (status.code == MDP_OK) status = mdp_draft_add_text(draft, text, draft->config_byte, &draft->config_at);
    mdp_free(text);
    mdp_free(path);
    return status;
}

static mdp_status add_weights(mdp_draft *draft, const char *folder, const listing *list) {
    bool single = find_name(list, SINGLE) != NULL;
    if (!single && find_name(list, INDEX) == NULL) return no_weights(folder, list);
    char *path = NULL;
    MDP_TRY(mdp_path_join(&path, folder, single ? SINGLE : INDEX));
    mdp_status status = single ? mdp_safetensors_add(draft, path) : add_indexed(draft, folder, path);
    mdp_free(path);
    return status;
}

mdp_status mdp_hf_folder_add(mdp_draft *draft, const char *folder) {
    listing list = {0};
    mdp_status status;
    MDP_TRY_GOTO(status, done, list_folder(folder, &list));
    MDP_TRY_GOTO(status, done, add_weights(draft, folder, &list));
    MDP_TRY_GOTO(status, done, add_config(draft, folder, &list));
    MDP_TRY_GOTO(status, done, mdp_side_files_add(draft, folder, list.names, list.n));
done:
    clear_listing(&list);
    return status;
}
