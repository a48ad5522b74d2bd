/* verify.c - what a checkpoint of ours says of its own bytes, and all bytes that belong to no tensor.
 *
 * In: a model.h5, or a HF folder with moe-dist-prune.json. Out: the checksums of tensors and side files (checksums.h).
 * All other bytes are compared on the way: those of a model.h5 under its seal, those of a folder as headers of shards,
 * whole files, and the record itself. Refused: checksums of what is not there, tensors without one. Rank 0 alone does
 * this. Shares nothing with the writers but the hash. */
#include "checkpoint/checksums.h"
#include "checkpoint/hdf5_read.h"
#include "checkpoint/native.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define CHUNK_BYTE ((int64_t)4 << 20)
#define MANIFEST "moe-dist-prune.json"
#define MANIFEST_FORMAT "moe-dist-prune manifest"
#define MAX_MANIFEST_BYTE ((int64_t)1 << 30)
#define MAX_HEADER_BYTE 100000000u
#define INDEX "model.safetensors.index.json"
#define SIDE_FILES "/files/"
#define SEAL "/seal"
#define SEAL_BYTE 32

typedef mdp_checksums verifier;

/* ---- items --------------------------------------------------------------------------------------------------- */

/* Index of a side file among the items, or -1. */
static int64_t find_side_file(const verifier *v, const char *name) {
    for (int64_t i = 0; i < v->catalogue->n_side_file; i++) {
        if (strcmp(v->catalogue->side_files[i].name, name) == 0) return v->catalogue->n_tensor + i;
    }
    return -1;
}

static int64_t find_tensor(const verifier *v, const char *name) {
    const mdp_tensor *tensor = mdp_catalogue_find(v->catalogue, name);
    return tensor ? tensor - v->catalogue->tensors : -1;
}

static bool is_digest(const char *text, size_t n_char) {
    return n_char == 32 && strspn(text, "0123456789abcdef") >= 32;
}

/* Take the checksum of item i (-1: there is none of that name); n_char characters, not ended by a 0. */
static mdp_status note(verifier *v, const char *path, const char *name, int64_t i, const char *hex, size_t n_char) {
    if (i < 0)
        return MDP_ERROR(MDP_BAD_INPUT, "%s: there is a checksum of '%s', but no such tensor or file.", path, name);
    if (!is_digest(hex, n_char))
        return MDP_ERROR(MDP_BAD_INPUT, "%s: the checksum of '%s' is not 32 hexadecimal digits (XXH3-128).", path,
                         name);
    memcpy(v->digests[i].hex, hex, 32);
    v->digests[i].hex[32] = '\0';
    return mdp_ok();
}

/* ---- what a Hugging Face folder says (rank 0) ---------------------------------------------------------------- */

static mdp_status differs(const char *path, const char *what, const char *found, const char *expected) {
    return MDP_ERROR(MDP_BAD_INPUT,
                     "%s: %s has checksum %s; expected %s. The file is damaged, or was changed after it was written; "
                     "copy or write it again.",
                     path, what, found, expected);
}

/* Compare n_byte bytes read on rank 0 with a checksum of n_char characters. */
static mdp_status compare(verifier *v, const char *path, const char *what, const void *data, int64_t n_byte,
                          const char *hex, size_t n_char) {
    mdp_digest found = mdp_hash_bytes(data, n_byte);
    v->n_byte += n_byte;
    if (n_char == 32 && memcmp(found.hex, hex, 32) == 0) return mdp_ok();
    return differs(path, what, found.hex, n_char == 32 ? hex : "32 hexadecimal digits");
}

/* The record ends with the checksum of all of it before that. */
static mdp_status check_record(verifier *v, const char *path, const char *text, int64_t n_byte) {
    static const char before[] = ",\n \"seal\": \"", after[] = "\"\n}\n";
    char hex[33] = {0};
    int64_t n_before = (int64_t)strlen(before), n_after = (int64_t)strlen(after);
    int64_t n_sealed = n_byte - n_before - 32 - n_after;
    if (n_sealed < 0 || memcmp(text + n_sealed, before, (size_t)n_before) != 0 ||
        memcmp(text + n_byte - n_after, after, (size_t)n_after) != 0)
        return MDP_ERROR(MDP_BAD_INPUT,
                         "%s: it does not end with its own checksum (\"seal\"); it is damaged, was edited, or is of an "
                         "older version.",
                         path);
    memcpy(hex, text + n_sealed + n_before, 32);
    return compare(v, path, "the record up to its seal", text, n_sealed, hex, 32);
}

/* The bytes of a shard before its tensors. */
static mdp_status check_header(verifier *v, const char *path, const char *hex) {
    unsigned char raw[8];
    char *header = NULL;
    uint64_t length = 0;
    int fd;
    MDP_TRY(mdp_file_open_read(path, &fd));
    mdp_status status = mdp_file_pread(path, fd, raw, 8, 0);
    for (int i = 7; i >= 0; i--) length = length << 8 | raw[i];
    if (status.code == MDP_OK && length > MAX_HEADER_BYTE)
        status = MDP_ERROR(MDP_BAD_INPUT, "%s: the header length at byte 0 is %" PRIu64 ".", path, length);
    if (status.code == MDP_OK) status = MDP_ALLOC(&header, 8 + (int64_t)length, "a header");
    if (status.code == MDP_OK) status = mdp_file_pread(path, fd, header, 8 + (int64_t)length, 0);
    if (status.code == MDP_OK) status = compare(v, path, "the header", header, 8 + (int64_t)length, hex, strlen(hex));
    mdp_free(header);
    mdp_status closed = mdp_file_close(path, fd);
    return status.code != MDP_OK ? status : closed;
}

/* A file that is no shard: config.json, which the catalogue holds, the index, or a side file, which is read later. */
static mdp_status check_file(verifier *v, const char *record, const char *name, const char *hex) {
    const mdp_catalogue *catalogue = v->catalogue;
    char *path = NULL, *text = NULL;
    int64_t n_byte = 0;
    bool config = strcmp(name, "config.json") == 0;
    if (!config && strcmp(name, INDEX) != 0) return note(v, record, name, find_side_file(v, name), hex, strlen(hex));
    MDP_TRY(mdp_path_join(&path, catalogue->path, name));
    mdp_status status = config ? mdp_ok() : mdp_file_read_all(path, MAX_MANIFEST_BYTE, &text, &n_byte);
    if (status.code == MDP_OK)
        status = config ? compare(v, path, "it", catalogue->config_text, catalogue->config_byte, hex, strlen(hex))
                        : compare(v, path, "it", text, n_byte, hex, strlen(hex));
    mdp_free(text);
    mdp_free(path);
    return status;
}

/* "files" and "headers" of the record: every shard and config.json must be there. */
static mdp_status check_files(verifier *v, const char *record, json_t *files, json_t *headers) {
    const mdp_catalogue *catalogue = v->catalogue;
    const char *name;
    json_t *value;
    size_t n_shard = 0;
    if (!json_is_object(files) || !json_is_object(headers) || !json_object_get(files, "config.json"))
        return MDP_ERROR(MDP_BAD_INPUT, "%s: it has no checksums of config.json (\"files\") or of \"headers\".",
                         record);
    json_object_foreach(files, name, value) {
        const char *hex = json_is_string(value) ? json_string_value(value) : "";
        MDP_TRY(check_file(v, record, name, hex));
    }
    for (int32_t f = 0; f < catalogue->n_file; f++) {
        const char *plain = mdp_path_name(catalogue->files[f]);
        const char *hex = json_string_value(json_object_get(headers, plain));
        if (!hex) continue;
        MDP_TRY(check_header(v, catalogue->files[f], hex));
        n_shard++;
    }
    for (int64_t i = 0; i < catalogue->n_tensor; i++) {
        const char *path = catalogue->files[catalogue->tensors[i].file];
        if (json_object_get(headers, mdp_path_name(path))) continue;
        return MDP_ERROR(MDP_BAD_INPUT, "%s: there is no checksum of the header of %s.", record, path);
    }
    if (n_shard == json_object_size(headers)) return mdp_ok();
    return MDP_ERROR(MDP_BAD_INPUT, "%s: it names %zu shards, but %zu are there.", record, json_object_size(headers),
                     n_shard);
}

static mdp_status note_manifest(verifier *v, const char *path, const json_t *root) {
    const char *format = NULL, *name;
    json_t *value;
    MDP_TRY(mdp_json_text(root, "format", path, &format));
    if (strcmp(format, MANIFEST_FORMAT) != 0)
        return MDP_ERROR(MDP_BAD_INPUT, "%s: this file is a \"%s\"; expected a \"" MANIFEST_FORMAT "\".", path, format);
    json_t *list = json_object_get(root, "checksums");
    if (!json_is_object(list)) return MDP_ERROR(MDP_BAD_INPUT, "%s: it has no object \"checksums\".", path);
    json_object_foreach(list, name, value) {
        const char *hex = json_is_string(value) ? json_string_value(value) : "";
        MDP_TRY(note(v, path, name, find_tensor(v, name), hex, strlen(hex)));
    }
    return check_files(v, path, json_object_get(root, "files"), json_object_get(root, "headers"));
}

static mdp_status note_folder(verifier *v) {
    char *path = NULL, *text = NULL;
    int64_t n_byte = 0;
    json_t *root = NULL;
    MDP_TRY(mdp_path_join(&path, v->catalogue->path, MANIFEST));
    mdp_status status = mdp_ok();
    if (!mdp_path_exists(path))
        status = MDP_ERROR(MDP_BAD_INPUT,
                           "%s: there is no " MANIFEST " in it, so there are no checksums to verify; moe-dist-prune "
                           "writes one into every folder that it makes.",
                           v->catalogue->path);
    if (status.code == MDP_OK) status = mdp_file_read_all(path, MAX_MANIFEST_BYTE, &text, &n_byte);
    if (status.code == MDP_OK) status = check_record(v, path, text, n_byte);
    if (status.code == MDP_OK) status = mdp_json_parse(text, n_byte, path, &root);
    if (status.code == MDP_OK) status = note_manifest(v, path, root);
    json_decref(root);
    mdp_free(text);
    mdp_free(path);
    return status;
}

/* ---- what a model.h5 says (rank 0) --------------------------------------------------------------------------- */

/* The attribute xxh3_128: n texts of 32 characters, new. */
static mdp_status read_digests(const char *path, const char *place, hid_t dataset, char **out, int64_t *n) {
    int64_t width;
    *out = NULL;
    if (!mdp_hdf5_has_attribute(dataset, "xxh3_128"))
        return MDP_ERROR(MDP_BAD_INPUT, "%s: %s has no checksum (attribute 'xxh3_128').", path, place);
    MDP_TRY(mdp_hdf5_texts_attribute(path, place, dataset, "xxh3_128", n, &width, out));
    if (width == 32) return mdp_ok();
    mdp_free(*out);
    *out = NULL;
    return MDP_ERROR(MDP_BAD_INPUT, "%s: the checksums of %s are not texts of 32 characters.", path, place);
}

static mdp_status note_stack(verifier *v, const char *path, const char *pattern, const char *digests, int64_t n) {
    const char *mark = strstr(pattern, MDP_EXPERT_MARK);
    for (int64_t e = 0; e < n; e++) {
        char *name = NULL;
        MDP_TRY(
            mdp_format(&name, "%.*s%" PRId64 "%s", (int)(mark - pattern), pattern, e, mark + strlen(MDP_EXPERT_MARK)));
        mdp_status status = note(v, path, name, find_tensor(v, name), digests + 32 * e, 32);
        mdp_free(name);
        MDP_TRY(status);
    }
    return mdp_ok();
}

static mdp_status note_tensor(verifier *v, const char *path, const char *place, hid_t dataset, const char *digests,
                              int64_t n) {
    char *name = NULL;
    MDP_TRY(mdp_hdf5_text_attribute(path, place, dataset, "hf_name", &name));
    mdp_status status;
    if (strstr(name, MDP_EXPERT_MARK))
        status = note_stack(v, path, name, digests, n);
    else if (n != 1)
        status = MDP_ERROR(MDP_BAD_INPUT, "%s: %s has %" PRId64 " checksums; expected one.", path, place, n);
    else
        status = note(v, path, name, find_tensor(v, name), digests, 32);
    mdp_free(name);
    return status;
}

/* The texts are small: they are checked here and now. */
static mdp_status check_text(const char *path, hid_t file, const char *place, const char *digests, int64_t n) {
    char *text = NULL;
    int64_t n_byte = 0;
    MDP_TRY(mdp_hdf5_text_dataset(path, file, place, &text, &n_byte));
    mdp_digest found = mdp_hash_bytes(text, n_byte);
    mdp_free(text);
    if (n == 1 && memcmp(found.hex, digests, 32) == 0) return mdp_ok();
    return MDP_ERROR(MDP_BAD_INPUT,
                     "%s: the text %s has checksum %s, which is not the one that the file states. The file is damaged; "
                     "copy or write it again.",
                     path, place, found.hex);
}

static mdp_status note_dataset(verifier *v, hid_t file, const char *place, hid_t dataset) {
    static const char *const texts[] = {"/config", "/plan", "/provenance"};
    const char *path = v->catalogue->path;
    char *digests = NULL;
    int64_t n = 0;
    mdp_status status = read_digests(path, place, dataset, &digests, &n);
    bool text = false;
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) text = text || strcmp(place, texts[i]) == 0;
    if (status.code == MDP_OK && text)
        status = check_text(path, file, place, digests, n);
    else if (status.code == MDP_OK && strncmp(place, SIDE_FILES, strlen(SIDE_FILES)) == 0)
        status = note(v, path, place, find_side_file(v, place + strlen(SIDE_FILES)), digests, n == 1 ? 32 : 0);
    else if (status.code == MDP_OK)
        status = note_tensor(v, path, place, dataset, digests, n);
    mdp_free(digests);
    return status;
}

/* ---- the seal of an HDF5 file (rank 0) ----------------------------------------------------------------------- */

/* Where the seal lies in the open file. */
static mdp_status find_seal(const char *path, hid_t file, int64_t *offset) {
    int n_dim = 0;
    int64_t shape[MDP_MAX_DIM] = {0};
    hid_t dataset;
    if (!mdp_hdf5_has(file, SEAL))
        return MDP_ERROR(MDP_BAD_INPUT,
                         "%s: it has no seal (/seal), so what is not a tensor cannot be verified; it was written by an "
                         "older version, or is damaged.",
                         path);
    MDP_TRY(mdp_hdf5_open_dataset(path, file, SEAL, &dataset));
    haddr_t address = H5Dget_offset(dataset);
    bool whole = H5Dget_storage_size(dataset) == SEAL_BYTE && address < INT64_MAX;
    mdp_status status = mdp_hdf5_shape(path, SEAL, dataset, &n_dim, shape);
    H5Dclose(dataset);
    *offset = (int64_t)address;
    if (status.code == MDP_OK && (!whole || n_dim != 1 || shape[0] != SEAL_BYTE))
        status = MDP_ERROR(MDP_BAD_INPUT, "%s: " SEAL " is not a seal of %d bytes.", path, SEAL_BYTE);
    return status;
}

static int compare_runs(const void *left, const void *right) {
    const mdp_run *a = left, *b = right;
    return a->offset < b->offset ? -1 : a->offset > b->offset;
}

/* Hash what lies outside the runs [n]; where two overlap, the later is shorter. */
static mdp_status hash_outside(const char *path, int fd, mdp_run *runs, int64_t n, char *buffer, mdp_hash *hash,
                               int64_t *n_hashed) {
    int64_t size, at = 0;
    MDP_TRY(mdp_file_size(path, fd, &size));
    qsort(runs, (size_t)n, sizeof *runs, compare_runs);
    for (int64_t i = 0; i <= n; i++) {
        int64_t end = i < n && runs[i].offset < size ? runs[i].offset : size;
        for (; at < end; at += CHUNK_BYTE < end - at ? CHUNK_BYTE : end - at) {
            int64_t now = end - at < CHUNK_BYTE ? end - at : CHUNK_BYTE;
            MDP_TRY(mdp_file_pread(path, fd, buffer, now, at));
            mdp_hash_update(hash, buffer, now);
            *n_hashed += now;
        }
        if (i < n && runs[i].offset + runs[i].n_byte > at) at = runs[i].offset + runs[i].n_byte;
    }
    return mdp_ok();
}

static mdp_status compare_seal(const char *path, int fd, mdp_run *runs, int64_t n, int64_t seal, int64_t *n_byte) {
    char hex[SEAL_BYTE + 1] = {0}, *buffer = NULL;
    mdp_hash *hash = NULL;
    mdp_status status = mdp_file_pread(path, fd, hex, SEAL_BYTE, seal);
    if (status.code == MDP_OK) status = mdp_hash_new(&hash);
    if (status.code == MDP_OK) status = MDP_ALLOC(&buffer, CHUNK_BYTE, "the bytes to verify");
    if (status.code == MDP_OK) status = hash_outside(path, fd, runs, n, buffer, hash, n_byte);
    if (status.code == MDP_OK) {
        mdp_digest found = mdp_hash_digest(hash);
        if (memcmp(found.hex, hex, SEAL_BYTE) != 0)
            status = differs(path, "what lies outside the tensors (structure, names, attributes, texts)", found.hex,
                             is_digest(hex, SEAL_BYTE) ? hex : "32 hexadecimal digits");
    }
    mdp_free(buffer);
    mdp_hash_destroy(hash);
    return status;
}

/* Compare the file without the runs [n], of which the last is left for the seal itself, with its seal. */
static mdp_status check_seal(const char *path, hid_t file, mdp_run *runs, int64_t n, int64_t *n_byte) {
    int64_t seal;
    int fd;
    MDP_TRY(find_seal(path, file, &seal));
    runs[n - 1] = (mdp_run){.offset = seal, .n_byte = SEAL_BYTE};
    MDP_TRY(mdp_file_open_read(path, &fd));
    mdp_status status = compare_seal(path, fd, runs, n, seal, n_byte);
    mdp_status closed = mdp_file_close(path, fd);
    return status.code != MDP_OK ? status : closed;
}

/* Of a file that was not damaged, but given another structure, all that is copied has checksums still. */
static mdp_status check_native_seal(verifier *v, hid_t file) {
    mdp_run *runs = NULL;
    MDP_TRY(MDP_ALLOC(&runs, v->n_item + 1, "places of tensors"));
    for (int64_t i = 0; i < v->n_item; i++) {
        mdp_item it = mdp_item_at(v->catalogue, i);
        runs[i] = (mdp_run){.offset = it.offset, .n_byte = it.n_byte};
    }
    mdp_status status = check_seal(v->catalogue->path, file, runs, v->n_item + 1, &v->n_byte);
    mdp_free(runs);
    v->unsealed = status.code == MDP_BAD_INPUT;
    return v->unsealed && v->seal_may_be_broken ? mdp_ok() : status;
}

mdp_status mdp_verify_sealed(const char *path, int64_t *n_byte) {
    hid_t file;
    mdp_run run;
    *n_byte = 0;
    MDP_TRY(mdp_hdf5_open(path, "an HDF5 file of moe-dist-prune", &file));
    mdp_status status = check_seal(path, file, &run, 1, n_byte);
    H5Fclose(file);
    return status;
}

mdp_status mdp_verify_seal_if_any(const char *path) {
    hid_t file;
    mdp_run run;
    int64_t n_byte = 0;
    MDP_TRY(mdp_hdf5_open(path, "an HDF5 file of moe-dist-prune", &file));
    mdp_status status = mdp_hdf5_has(file, SEAL) ? check_seal(path, file, &run, 1, &n_byte) : mdp_ok();
    H5Fclose(file);
    return status;
}

/* ---- the walk over a model.h5 (rank 0) ----------------------------------------------------------------------- */

static mdp_status visit(void *context, hid_t file, const char *name, hid_t dataset) {
    char *place = NULL;
    if (strcmp(name, SEAL + 1) == 0) return mdp_ok();
    MDP_TRY(mdp_format(&place, "/%s", name));
    mdp_status status = note_dataset(context, file, place, dataset);
    mdp_free(place);
    return status;
}

static mdp_status note_native(verifier *v) {
    hid_t file;
    MDP_TRY(mdp_hdf5_open(v->catalogue->path, "a model.h5 of moe-dist-prune", &file));
    mdp_status status = mdp_hdf5_walk(v->catalogue->path, file, visit, v);
    if (status.code == MDP_OK) status = check_native_seal(v, file);
    H5Fclose(file);
    return status;
}

/* ---- the whole ----------------------------------------------------------------------------------------------- */

/* Every tensor has a checksum; side files of a folder need none, they may be the user's own. */
static mdp_status check_known(const verifier *v) {
    for (int64_t i = 0; i < v->catalogue->n_tensor; i++) {
        if (v->digests[i].hex[0] == '\0')
            return MDP_ERROR(MDP_BAD_INPUT, "%s: there is no checksum of tensor '%s'.", v->catalogue->path,
                             v->catalogue->tensors[i].name);
    }
    return mdp_ok();
}

mdp_status mdp_checksums_read(mdp_checksums *v) {
    MDP_TRY(v->catalogue->container == MDP_NATIVE ? note_native(v) : note_folder(v));
    return check_known(v);
}
