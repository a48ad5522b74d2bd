/* hf_folder.c - which files of a Hugging Face folder are the model.
 *
 * model.safetensors is the model when it is there (transformers prefers it to an index too); otherwise
 * model.safetensors.index.json says in which file each tensor is. The index must be exact: plain file names in the same
 * folder, every mapped tensor in its file and nowhere else, no tensor that it does not map. What becomes of all else
 * is decided in side_files.c. Symbolic links are followed. */
#include "checkpoint/hf_folder.h"

#include "checkpoint/safetensors.h"
#include "checkpoint/side_files.h"

#include <inttypes.h>
#include <string.h>

#define SINGLE "model.safetensors"
#define INDEX "model.safetensors.index.json"
#define MAX_CONFIG_BYTE ((int64_t)64 << 20)
#define MAX_INDEX_BYTE ((int64_t)1 << 30)

static bool ends_with(const char *text, const char *end) {
    size_t n = strlen(text), m = strlen(end);
    return n >= m && strcmp(text + n - m, end) == 0;
}

/* ---- the index ----------------------------------------------------------------------------------------------- */

static bool is_plain_name(const char *name) {
    return name[0] != '\0' && strchr(name, '/') == NULL && strcmp(name, ".") != 0 && strcmp(name, "..") != 0;
}

/* Every value of the weight map is a plain file name; the distinct ones, in byte order, go to `shards`. */
static mdp_status list_shards(const char *path, json_t *weight_map, mdp_names *shards) {
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
        MDP_TRY_GOTO(status, done, mdp_names_add(shards, name));
    }
done:
    json_decref(seen);
    mdp_names_sort(shards);
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
    mdp_names shards = {0};
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
        MDP_TRY_GOTO(status, done, add_shard(draft, folder, index, shards.name[i], weight_map));
    }
    MDP_TRY_GOTO(status, done, check_missing(draft, index, weight_map));
done:
    mdp_names_clear(&shards);
    json_decref(root);
    mdp_free(text);
    return status;
}

/* ---- the folder ---------------------------------------------------------------------------------------------- */

/* What people have instead of a checkpoint: a name that begins and ends so (NULL: any way), and what to do. */
static const struct {
    const char *begin, *end, *what;
} others[] = {
    {"adapter_", NULL, "a LoRA adapter alone; merge it into its model first (peft: merge_and_unload)"},
    {"pytorch_model", ".bin",
     "weights in the older form of PyTorch; save them as safetensors (transformers: from_pretrained, save_pretrained)"},
    {"consolidated", NULL,
     "weights in the form of the model's authors; convert them, or download the Hugging Face files of the model"},
    {"snapshots", "snapshots", "a model's folder in the cache of Hugging Face; name a folder in its snapshots"},
    {"models--", NULL, "the cache of Hugging Face; name a folder models--.../snapshots/... in it"},
    {NULL, ".gguf", "weights in the form of llama.cpp; take the model that they were converted from"},
    {"params.json", "params.json", "the form of the model's authors, not of Hugging Face; convert it"},
    {"tf_model", ".h5", "weights of TensorFlow; save them as safetensors"},
    {"flax_model", NULL, "weights of Flax; save them as safetensors"},
    {"model-", ".safetensors", "shards without their index; download " INDEX " too"},
};

static bool is_like(const char *name, const char *begin, const char *end) {
    return (begin == NULL || strncmp(name, begin, strlen(begin)) == 0) && (end == NULL || ends_with(name, end));
}

/* What to say of a folder without a model: name what is there instead. */
static mdp_status no_weights(const char *folder, const mdp_names *list) {
    if (mdp_names_have(list, "model.h5")) {
        return MDP_ERROR(MDP_BAD_INPUT,
                         "%s: no " SINGLE " and no " INDEX " in this folder; for the model.h5 in it, "
                         "name the file itself: %s/model.h5.",
                         folder, folder);
    }
    for (size_t o = 0; o < sizeof others / sizeof *others; o++) {
        for (int64_t i = 0; i < list->n; i++) {
            if (is_like(list->name[i], others[o].begin, others[o].end))
                return MDP_ERROR(MDP_BAD_INPUT, "%s: there is %.100s, and no " SINGLE " here: %s.", folder,
                                 list->name[i], others[o].what);
        }
    }
    for (int64_t i = 0; i < list->n; i++) {
        if (ends_with(list->name[i], ".safetensors"))
            return MDP_ERROR(MDP_BAD_INPUT,
                             "%s: no " SINGLE " and no " INDEX " in this folder, only %s; without an index the weights "
                             "must be in one file of the former name.",
                             folder, list->name[i]);
    }
    return MDP_ERROR(MDP_BAD_INPUT,
                     "%s: no " SINGLE " and no " INDEX " in this folder; a checkpoint needs one of them.", folder);
}

static mdp_status add_config(mdp_draft *draft, const char *folder, const mdp_names *list) {
    if (!mdp_names_have(list, "config.json")) {
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

static mdp_status add_weights(mdp_draft *draft, const char *folder, const mdp_names *list) {
    bool single = mdp_names_have(list, SINGLE);
    if (!single && !mdp_names_have(list, INDEX)) return no_weights(folder, list);
    char *path = NULL;
    MDP_TRY(mdp_path_join(&path, folder, single ? SINGLE : INDEX));
    mdp_status status = single ? mdp_safetensors_add(draft, path) : add_indexed(draft, folder, path);
    mdp_free(path);
    return status;
}

mdp_status mdp_hf_folder_add(mdp_draft *draft, const char *folder) {
    mdp_names list = {0};
    mdp_status status;
    MDP_TRY_GOTO(status, done, mdp_folder_list(folder, &list));
    MDP_TRY_GOTO(status, done, add_weights(draft, folder, &list));
    MDP_TRY_GOTO(status, done, add_config(draft, folder, &list));
    MDP_TRY_GOTO(status, done, mdp_side_files_add(draft, folder, &list));
done:
    mdp_names_clear(&list);
    return status;
}
