/* record.c - what this program says that it has put into a folder: moe-dist-prune.json.
 *
 * Owns: which files of a folder are ours. Only those are ever removed, and a folder with others is not replaced. */
#include "mdp/outputs.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#define MAX_RECORD ((int64_t)1 << 30)
#define MAX_NAMED 3 /* in a sentence */

static mdp_record_kind kind_of(const json_t *root) {
    const char *format = json_string_value(json_object_get(root, "format"));
    if (!format) return MDP_RECORD_NONE;
    if (strcmp(format, "moe-dist-prune manifest") == 0) return MDP_RECORD_CHECKPOINT;
    return strcmp(format, "moe-dist-prune results") == 0 ? MDP_RECORD_RESULTS : MDP_RECORD_NONE;
}

static mdp_status read_record(const char *path, json_t **out) {
    char *text = NULL;
    int64_t n_byte;
    MDP_TRY(mdp_file_read_all(path, MAX_RECORD, &text, &n_byte));
    mdp_status status = mdp_json_parse(text, n_byte, path, out);
    mdp_free(text);
    return status;
}

void mdp_record_read(const char *folder, mdp_record *out) {
    char *path = NULL;
    *out = (mdp_record){.kind = MDP_RECORD_NONE, .root = NULL};
    mdp_status status = mdp_path_join(&path, folder, MDP_RECORD_NAME);
    if (status.code == MDP_OK && mdp_path_look(path) == MDP_PATH_FILE) status = read_record(path, &out->root);
    mdp_free(path);
    if (status.code == MDP_OK) out->kind = kind_of(out->root);
}

void mdp_record_clear(mdp_record *record) {
    json_decref(record->root);
    *record = (mdp_record){.kind = MDP_RECORD_NONE, .root = NULL};
}

bool mdp_record_lists(const mdp_record *record, const char *name) {
    if (record->kind != MDP_RECORD_CHECKPOINT) return false;
    return strcmp(name, MDP_RECORD_NAME) == 0 || json_object_get(json_object_get(record->root, "headers"), name) ||
           json_object_get(json_object_get(record->root, "files"), name);
}

/* Network file systems keep an open file that was removed under such a name until it is closed. */
static bool is_leaving(const char *name) {
    return strncmp(name, ".nfs", 4) == 0;
}

mdp_status mdp_record_foreign(const char *folder, const mdp_record *record, char *words, size_t n_byte) {
    mdp_names names;
    int64_t n = 0;
    words[0] = '\0';
    mdp_status status = mdp_folder_list(folder, &names);
    for (int64_t i = 0; status.code == MDP_OK && i < names.n; i++) {
        if (mdp_record_lists(record, names.name[i]) || is_leaving(names.name[i])) continue;
        size_t used = strlen(words);
        if (n++ < MAX_NAMED) snprintf(words + used, n_byte - used, "%s%.100s", n > 1 ? ", " : "", names.name[i]);
    }
    mdp_names_clear(&names);
    size_t used = strlen(words);
    if (n > MAX_NAMED) snprintf(words + used, n_byte - used, " and %lld more", (long long)(n - MAX_NAMED));
    return status;
}

static mdp_status remove_file(const char *folder, const char *name) {
    char *path = NULL;
    MDP_TRY(mdp_path_join(&path, folder, name));
    mdp_status status = mdp_ok();
    if (unlink(path) != 0 && errno != ENOENT)
        status = MDP_ERROR(MDP_IO, "%s: cannot be removed: %s.", path, strerror(errno));
    mdp_free(path);
    return status;
}

/* Whatever of these is there, but not the record. */
static mdp_status remove_members(const char *folder, json_t *members) {
    const char *name;
    json_t *value;
    json_object_foreach(members, name, value) {
        if (strchr(name, '/') || strcmp(name, MDP_RECORD_NAME) == 0) continue;
        MDP_TRY(remove_file(folder, name));
    }
    return mdp_ok();
}

mdp_status mdp_record_remove(const char *folder) {
    mdp_record record;
    char words[400];
    MDP_TRY(mdp_fault(MDP_IO, "remove a folder"));
    mdp_record_read(folder, &record);
    mdp_status status = mdp_ok();
    if (record.kind == MDP_RECORD_CHECKPOINT) {
        status = remove_members(folder, json_object_get(record.root, "headers"));
        if (status.code == MDP_OK) status = remove_members(folder, json_object_get(record.root, "files"));
        if (status.code == MDP_OK) status = remove_file(folder, MDP_RECORD_NAME);
    }
    if (status.code == MDP_OK && rmdir(folder) != 0 && errno != ENOENT) {
        int error = errno;
        (void)mdp_record_foreign(folder, &record, words, sizeof words);
        status = MDP_ERROR(MDP_IO, "%s: cannot be removed: %s%s%s.", folder,
                           words[0] != '\0' ? "it holds what this program did not write, " : strerror(error), words,
                           words[0] != '\0' ? "; move that away" : "");
    }
    mdp_record_clear(&record);
    return status;
}
