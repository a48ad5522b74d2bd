/* kind.c - what a file or folder is, told from its content: an HDF5 file by its attribute "format" (tokens files have
 * none), a text file by its JSON. */
#include "command/kind.h"

#include <hdf5.h>
#include <string.h>

/* The text attribute "format" of the root of an open file; empty when there is none. */
static void read_format(hid_t file, char out[100]) {
    out[0] = '\0';
    if (H5Aexists(file, "format") <= 0) return;
    hid_t attribute = H5Aopen(file, "format", H5P_DEFAULT);
    hid_t stored = attribute >= 0 ? H5Aget_type(attribute) : -1;
    hid_t wanted = H5Tcopy(H5T_C_S1);
    bool fixed = stored >= 0 && H5Tget_class(stored) == H5T_STRING && H5Tis_variable_str(stored) == 0;
    if (fixed && H5Tset_size(wanted, 100) >= 0 && H5Tset_cset(wanted, H5Tget_cset(stored)) >= 0 &&
        H5Aread(attribute, wanted, out) < 0)
        out[0] = '\0';
    out[99] = '\0';
    H5Tclose(wanted);
    if (stored >= 0) H5Tclose(stored);
    if (attribute >= 0) H5Aclose(attribute);
}

static mdp_status find_hdf5_kind(const char *path, mdp_kind *out) {
    char format[100];
    H5Eset_auto2(H5E_DEFAULT, NULL, NULL);
    hid_t file = H5Fopen(path, H5F_ACC_RDONLY, H5P_DEFAULT);
    if (file < 0)
        return MDP_ERROR(MDP_BAD_INPUT, "%s: looks like an HDF5 file but cannot be opened; it may be incomplete.",
                         path);
    read_format(file, format);
    H5Fclose(file);
    *out = strstr(format, "checkpoint") ? MDP_KIND_CHECKPOINT : format[0] ? MDP_KIND_STATS : MDP_KIND_TOKENS;
    return mdp_ok();
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
