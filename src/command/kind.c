/* kind.c - what a file or folder is, told from its content: an HDF5 file by its attribute "format" (tokens files have
 * none), a text file by its JSON. */
#include "command/kind.h"
#include "checkpoint/hdf5_read.h"

#include <string.h>

/* By the text attribute "format" of the root; whatever else is there is a file of somebody else's, like one of tokens.
 */
static mdp_status find_format(const char *path, hid_t file, mdp_kind *out) {
    char format[100] = "";
    if (mdp_hdf5_has_attribute(file, "format")) {
        mdp_status status = mdp_hdf5_short_attribute(path, "the file", file, "format", format, sizeof format);
        if (status.code != MDP_OK && status.code != MDP_BAD_INPUT) return status;
    }
    *out = strstr(format, "checkpoint") ? MDP_KIND_CHECKPOINT : format[0] ? MDP_KIND_STATS : MDP_KIND_TOKENS;
    return mdp_ok();
}

static mdp_status find_hdf5_kind(const char *path, mdp_kind *out) {
    hid_t file;
    MDP_TRY(mdp_hdf5_open(path, "a file of moe-dist-prune", &file));
    mdp_status status = find_format(path, file, out);
    H5Fclose(file);
    return status;
}

/* JSON: a plan, or another document of ours that is shown as it is. */
static mdp_status find_json_kind(const char *path, mdp_kind *out) {
    char *text = NULL;
    int64_t n_byte = 0;
    json_t *root = NULL;
    MDP_TRY(mdp_file_read_all(path, 1ll << 30, &text, &n_byte));
    mdp_status status = mdp_json_parse(text, n_byte, path, &root);
    const char *format = json_string_value(json_object_get(root, "format"));
    if (status.code == MDP_OK && (!format || strncmp(format, "moe-dist-prune ", 15) != 0))
        status = MDP_ERROR(MDP_BAD_INPUT, "%s: is JSON, but not a file of moe-dist-prune (no such \"format\").", path);
    if (status.code == MDP_OK) *out = strcmp(format, "moe-dist-prune plan") == 0 ? MDP_KIND_PLAN : MDP_KIND_JSON;
    json_decref(root);
    mdp_free(text);
    return status;
}

static mdp_status find_kind(const char *path, mdp_kind *out) {
    static const char signature[8] = {'\x89', 'H', 'D', 'F', '\r', '\n', '\x1a', '\n'};
    char head[8] = {0};
    int file = -1;
    int64_t n_byte = 0;
    if (mdp_path_is_folder(path)) {
        *out = MDP_KIND_CHECKPOINT;
        return mdp_ok();
    }
    MDP_TRY(mdp_file_open_read(path, &file));
    mdp_status status = mdp_file_size(path, file, &n_byte);
    if (status.code == MDP_OK && n_byte >= 8) status = mdp_file_pread(path, file, head, 8, 0);
    mdp_status closed = mdp_file_close(path, file);
    MDP_TRY(status);
    MDP_TRY(closed);
    return memcmp(head, signature, 8) == 0 ? find_hdf5_kind(path, out) : find_json_kind(path, out);
}

mdp_status mdp_kind_find_all(const mdp_comm *comm, const char *path, mdp_kind *out) {
    *out = MDP_KIND_CHECKPOINT;
    MDP_AGREE(comm, comm->rank == 0 ? find_kind(path, out) : mdp_ok());
    return mdp_bcast_all(comm, out, (int64_t)sizeof *out, 0);
}
