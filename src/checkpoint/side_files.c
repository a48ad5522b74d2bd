/* side_files.c - one rule for whatever lies beside the weights of a Hugging Face folder.
 *
 * Written anew: config.json, the index, moe-dist-prune.json. Copied: all that a loader might read, and documents, so
 * every file but those that follow; links are followed. Left out, and named to who copies: weights and indexes that are
 * not the model, archives, downloads that did not end, names that begin with a dot, folders. Refused: an adapter, which
 * loaders would add to the weights; what is to be copied and is a link to nothing, no regular file, or has no plain
 * name. */
#include "checkpoint/side_files.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>

#define SINGLE "model.safetensors"
#define INDEX "model.safetensors.index.json"
#define MAX_NAMED 8 /* of what is left out */

static bool ends_with(const char *text, const char *end) {
    size_t n = strlen(text), m = strlen(end);
    return n >= m && strcmp(text + n - m, end) == 0;
}

static bool begins_with(const char *text, const char *begin) {
    return strncmp(text, begin, strlen(begin)) == 0;
}

/* Nothing that a loader of the result would read, by its name. */
static bool is_of_no_use(const char *name) {
    static const char *const endings[] = {
        ".safetensors", ".index.json", ".bin",     ".pt",   ".pth",       ".ckpt",   ".gguf",     ".ggml",
        ".h5",          ".hdf5",       ".msgpack", ".onnx", ".onnx_data", ".tflite", ".pdparams", ".nemo", /* weights */
        ".tar",         ".gz",         ".tgz",     ".zip",  ".zst",       ".xz",     ".bz2",      ".7z", /* archives */
        ".incomplete",  ".partial",    ".part",    ".tmp",  ".lock",      "~"}; /* not complete */
    if (name[0] == '.' || begins_with(name, "consolidated")) return true;
    for (size_t i = 0; i < sizeof endings / sizeof *endings; i++)
        if (ends_with(name, endings[i])) return true;
    return false;
}

/* The index is of use to nobody where there is a single file (hf_folder.c). */
static bool is_written_anew(const char *name, bool single) {
    if (!single && strcmp(name, INDEX) == 0) return true;
    return strcmp(name, "config.json") == 0 || strcmp(name, "moe-dist-prune.json") == 0;
}

/* Does the draft have weights in this file? */
static bool is_model(const mdp_draft *draft, const char *path) {
    for (int64_t i = 0; i < draft->n_file; i++)
        if (strcmp(mdp_draft_file(draft, (int32_t)i), path) == 0) return true;
    return false;
}

static mdp_status add_file(mdp_draft *draft, const char *path, const char *name, int64_t n_byte) {
    mdp_side_file side_file = {.n_byte = n_byte};
    MDP_TRY(mdp_draft_add_file(draft, path, n_byte, &side_file.file));
    return mdp_draft_add_side_file(draft, name, &side_file);
}

/* What is left out, for one line. */
typedef struct leftovers {
    char *names; /* "a, b/"; owned; NULL: none */
    int64_t n;
} leftovers;

static mdp_status leave_out(leftovers *left, const char *name, bool is_folder) {
    char *names = NULL;
    if (left->n++ >= MAX_NAMED) return mdp_ok();
    MDP_TRY(mdp_format(&names, "%s%s%s%s", left->names ? left->names : "", left->names ? ", " : "", name,
                       is_folder ? "/" : ""));
    mdp_free(left->names);
    left->names = names;
    return mdp_ok();
}

static mdp_status add_path(mdp_draft *draft, const char *path, const char *name, leftovers *left) {
    struct stat info;
    int error = stat(path, &info) == 0 ? 0 : errno;
    bool is_folder = error == 0 && S_ISDIR(info.st_mode);
    if (is_folder || is_of_no_use(name)) return leave_out(left, name, is_folder);
    if (error == ENOENT || error == ELOOP)
        return MDP_ERROR(
            MDP_BAD_INPUT,
            "%s: is a link to a file that is not there, so the result would lack it; download it again, or "
            "remove the link.",
            path);
    if (error != 0) return MDP_ERROR(MDP_IO, "%s: cannot be looked at: %s.", path, strerror(error));
    if (!S_ISREG(info.st_mode))
        return MDP_ERROR(MDP_BAD_INPUT, "%s: is no regular file, so it cannot be copied to the result; remove it.",
                         path);
    return add_file(draft, path, name, info.st_size);
}

static mdp_status add_one(mdp_draft *draft, const char *folder, const char *name, leftovers *left) {
    char *path = NULL;
    MDP_TRY(mdp_path_join(&path, folder, name));
    mdp_status status = is_model(draft, path) ? mdp_ok() : add_path(draft, path, name, left);
    mdp_free(path);
    return status;
}

/* Loaders add an adapter to the weights by themselves, or it is what the folder is for. */
static mdp_status refuse_adapter(const char *folder, const char *name) {
    bool weights = begins_with(name, "adapter_model") && is_of_no_use(name);
    if (!weights && strcmp(name, "adapter_config.json") != 0) return mdp_ok();
    return MDP_ERROR(MDP_BAD_INPUT,
                     "%s: there is an adapter (LoRA: %s) beside the weights, and it would be lost: merge it into the "
                     "weights first (merge_and_unload of peft), or take it out of the folder.",
                     folder, name);
}

static mdp_status note_left_out(mdp_draft *draft, const leftovers *left) {
    char *text = NULL;
    if (left->n == 0) return mdp_ok();
    if (left->n > MAX_NAMED)
        MDP_TRY(mdp_format(&text, "%s and %lld more", left->names, (long long)left->n - MAX_NAMED));
    const char *whole = text ? text : left->names;
    mdp_status status = mdp_draft_add_text(draft, whole, (int64_t)strlen(whole), &draft->left_out_at);
    mdp_free(text);
    return status;
}

mdp_status mdp_side_files_add(mdp_draft *draft, const char *folder, const mdp_names *names) {
    leftovers left = {NULL, 0};
    mdp_status status = mdp_ok();
    bool single = mdp_names_have(names, SINGLE);
    for (int64_t i = 0; i < names->n && status.code == MDP_OK; i++) status = refuse_adapter(folder, names->name[i]);
    for (int64_t i = 0; i < names->n && status.code == MDP_OK; i++) {
        if (is_written_anew(names->name[i], single)) continue;
        status = add_one(draft, folder, names->name[i], &left);
    }
    if (status.code == MDP_OK) status = note_left_out(draft, &left);
    mdp_free(left.names);
    return status;
}
