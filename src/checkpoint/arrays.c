/* arrays.c - plan.h5, made and read.
 *
 * Rank 0 makes the datasets, contiguous and allocated at once, and tells all where they lie; then HDF5 has no part in
 * it until the end: ranks write runs of bytes. Each dataset has `stored_type` and `xxh3_128` as those of a model.h5;
 * root attributes are `format`, `version` and, written last, `complete`. */
#include "mdp/arrays.h"

#include "checkpoint/h5_make.h"
#include "checkpoint/h5_parallel.h"
#include "checkpoint/hdf5_read.h"

#include <string.h>

#define FORMAT "moe-dist-prune plan arrays"
#define VERSION "1.0"
#define CHUNK_BYTE ((int64_t)4 << 20)
#define DIGEST_LENGTH 32

/* ---- life ------------------------------------------------------------------------------------------------------ */

static mdp_status fill(const char *path, int64_t n, const mdp_array *arrays, mdp_arrays *all) {
    int64_t n_char = 0, at = 0;
    all->fd = -1;
    all->n = n;
    for (int64_t i = 0; i < n; i++) n_char += (int64_t)strlen(arrays[i].name) + 1;
    MDP_TRY(mdp_copy_text(&all->path, path));
    MDP_TRY(MDP_ALLOC(&all->names, n_char, "arrays of a plan"));
    MDP_TRY(MDP_ALLOC(&all->tensors, n, "arrays of a plan"));
    MDP_TRY(MDP_ALLOC(&all->digests, n, "arrays of a plan"));
    for (int64_t i = 0; i < n; i++) {
        mdp_tensor *tensor = &all->tensors[i];
        memcpy(all->names + at, arrays[i].name, strlen(arrays[i].name) + 1);
        *tensor = (mdp_tensor){.name = all->names + at, .type = arrays[i].type, .n_dim = arrays[i].n_dim};
        memcpy(tensor->shape, arrays[i].shape, sizeof tensor->shape);
        at += (int64_t)strlen(arrays[i].name) + 1;
        if (!mdp_dtype_bytes(tensor->type, tensor->n_dim, tensor->shape, &tensor->n_byte))
            return MDP_ERROR(MDP_INTERNAL, "%s: array '%s' has an impossible size.", path, arrays[i].name);
    }
    return mdp_ok();
}

mdp_status mdp_arrays_put_bytes(void *arrays, const mdp_tensor *tensor, int64_t offset, int64_t n_byte,
                                const void *data) {
    const mdp_arrays *all = arrays;
    return mdp_arrays_put(all, tensor - all->tensors, offset, n_byte, data);
}

mdp_status mdp_arrays_new(const char *path, int64_t n, const mdp_array *arrays, mdp_arrays **out) {
    mdp_arrays *all = NULL;
    *out = NULL;
    MDP_TRY(MDP_ALLOC(&all, 1, "arrays of a plan"));
    mdp_status status = fill(path, n, arrays, all);
    if (status.code == MDP_OK)
        *out = all;
    else
        mdp_arrays_destroy(all);
    return status;
}

void mdp_arrays_destroy(mdp_arrays *arrays) {
    if (!arrays) return;
    if (arrays->fd >= 0) {
        mdp_status ignored = mdp_file_close(arrays->path, arrays->fd); /* what counts was synced */
        (void)ignored;
    }
    mdp_free(arrays->path);
    mdp_free(arrays->names);
    mdp_free(arrays->tensors);
    mdp_free(arrays->digests);
    mdp_free(arrays);
}

mdp_status mdp_arrays_add(mdp_arrays *arrays, mdp_reader *reader) {
    int32_t file;
    MDP_TRY(mdp_reader_add(reader, arrays->path, arrays->n_byte, &file));
    for (int64_t i = 0; i < arrays->n; i++) arrays->tensors[i].file = file;
    return mdp_ok();
}

/* ---- making ---------------------------------------------------------------------------------------------------- */

/* The shape of the dataset: types that HDF5 has no number for are bytes. */
static mdp_status make_dataset(hid_t file, const mdp_tensor *tensor, const char *path, int64_t *offset) {
    char none[DIGEST_LENGTH] = {0};
    int64_t shape[MDP_MAX_DIM];
    hid_t type = mdp_h5_number_type(tensor->type, false), dataset = -1;
    memcpy(shape, tensor->shape, sizeof shape);
    if (tensor->n_dim > 0 && mdp_dtype_bits(tensor->type) < 8)
        shape[tensor->n_dim - 1] = shape[tensor->n_dim - 1] * mdp_dtype_bits(tensor->type) / 8;
    mdp_status status = type < 0 ? mdp_h5_error(MDP_INTERNAL, "make the type of", tensor->name, path)
                                 : mdp_h5_make_groups(file, tensor->name, path);
    if (status.code == MDP_OK)
        status = mdp_h5_make_dataset(file, tensor->name, type, tensor->n_dim, shape, path, &dataset);
    if (status.code == MDP_OK)
        status = mdp_h5_make_text_attribute(dataset, "stored_type", mdp_dtype_name(tensor->type), path);
    hid_t text = mdp_h5_text_type(DIGEST_LENGTH);
    if (status.code == MDP_OK) status = mdp_h5_make_attribute(dataset, "xxh3_128", text, -1, none, path);
    if (text >= 0) H5Tclose(text);
    *offset = dataset >= 0 ? (int64_t)H5Dget_offset(dataset) : -1;
    if (dataset >= 0) H5Dclose(dataset);
    if (type >= 0) H5Tclose(type);
    if (status.code == MDP_OK && tensor->n_byte > 0 && *offset == (int64_t)HADDR_UNDEF)
        return mdp_h5_error(MDP_IO, "find", tensor->name, path);
    return status;
}

/* Rank 0. */
static mdp_status make_file(mdp_arrays *arrays, int64_t *offset) {
    hid_t file = -1;
    MDP_TRY(mdp_h5_create_file(arrays->path, &file));
    mdp_status status = mdp_h5_make_text_attribute(file, "format", FORMAT, arrays->path);
    if (status.code == MDP_OK) status = mdp_h5_make_text_attribute(file, "version", VERSION, arrays->path);
    for (int64_t i = 0; i < arrays->n && status.code == MDP_OK; i++)
        status = make_dataset(file, &arrays->tensors[i], arrays->path, &offset[i]);
    return mdp_hdf5_close_written(file, arrays->path, status);
}

/* Where arrays lie and how long the file is, from rank 0 to all. */
static mdp_status tell_all(const mdp_comm *comm, mdp_arrays *arrays, int64_t *offset) {
    MDP_TRY(mdp_bcast_all(comm, offset, (arrays->n + 1) * (int64_t)sizeof *offset, 0));
    for (int64_t i = 0; i < arrays->n; i++) arrays->tensors[i].offset = offset[i];
    arrays->n_byte = offset[arrays->n];
    return mdp_ok();
}

static mdp_status measure(const char *path, int64_t *n_byte) {
    int fd;
    MDP_TRY(mdp_file_open_read(path, &fd));
    mdp_status status = mdp_file_size(path, fd, n_byte);
    mdp_status closed = mdp_file_close(path, fd);
    return status.code != MDP_OK ? status : closed;
}

/* For writing, on every rank; on error *arrays is gone. */
static mdp_status reopen_all(const mdp_comm *comm, mdp_arrays **arrays) {
    mdp_status status = mdp_agree_all(comm, mdp_file_open_write((*arrays)->path, &(*arrays)->fd));
    if (status.code == MDP_OK) return status;
    mdp_arrays_destroy(*arrays);
    *arrays = NULL;
    return status;
}

/* Local steps of making or opening end in offsets [n + 1] on rank 0. */
typedef mdp_status find_fn(mdp_arrays *arrays, int64_t *offset);

static mdp_status open_all(const mdp_comm *comm, const char *path, int64_t n, const mdp_array *list, find_fn *find,
                           mdp_arrays **out) {
    mdp_arrays *arrays = NULL;
    int64_t *offset = NULL;
    *out = NULL;
    mdp_status status = mdp_arrays_new(path, n, list, &arrays);
    if (status.code == MDP_OK) status = MDP_ALLOC(&offset, n + 1, "arrays of a plan");
    status = mdp_agree_all(comm, status);
    if (status.code == MDP_OK && comm->rank == 0) {
        status = find(arrays, offset);
        if (status.code == MDP_OK) status = measure(path, &offset[n]);
    }
    status = mdp_agree_all(comm, status);
    if (status.code == MDP_OK) status = tell_all(comm, arrays, offset);
    mdp_free(offset);
    if (status.code != MDP_OK) {
        mdp_arrays_destroy(arrays);
        return status;
    }
    *out = arrays;
    return status;
}

mdp_status mdp_arrays_create_all(const mdp_comm *comm, const char *path, int64_t n, const mdp_array *arrays,
                                 mdp_arrays **out) {
    MDP_TRY(open_all(comm, path, n, arrays, make_file, out));
    return reopen_all(comm, out);
}

/* ---- finding --------------------------------------------------------------------------------------------------- */

static mdp_status find_array(hid_t file, const mdp_tensor *tensor, const char *path, int64_t *offset) {
    hid_t dataset;
    MDP_TRY(mdp_hdf5_open_dataset(path, file, tensor->name, &dataset));
    hsize_t n_byte = H5Dget_storage_size(dataset);
    haddr_t address = H5Dget_offset(dataset);
    H5Dclose(dataset);
    *offset = (int64_t)address;
    if (address != HADDR_UNDEF && (int64_t)n_byte == tensor->n_byte) return mdp_ok();
    return MDP_ERROR(MDP_BAD_INPUT,
                     "%s: array '%s' has %lld bytes in one run, expected %lld (%s); it is not of this model, or was "
                     "rewritten by another program.",
                     path, tensor->name, address == HADDR_UNDEF ? -1ll : (long long)n_byte, (long long)tensor->n_byte,
                     mdp_dtype_name(tensor->type));
}

/* Rank 0. `may_miss`: what is not there has been left out, its offset is -1. */
static mdp_status find_those(mdp_arrays *arrays, bool may_miss, int64_t *offset) {
    hid_t file;
    mdp_status status = mdp_hdf5_open(arrays->path, "the arrays of a plan", &file);
    for (int64_t i = 0; i < arrays->n && status.code == MDP_OK; i++) {
        offset[i] = -1;
        if (may_miss && H5Lexists(file, arrays->tensors[i].name, H5P_DEFAULT) == 0) continue;
        status = find_array(file, &arrays->tensors[i], arrays->path, &offset[i]);
    }
    if (file >= 0) H5Fclose(file);
    return status;
}

static mdp_status find_arrays(mdp_arrays *arrays, int64_t *offset) {
    return find_those(arrays, false, offset);
}

static mdp_status find_left(mdp_arrays *arrays, int64_t *offset) {
    return find_those(arrays, true, offset);
}

mdp_status mdp_arrays_open_all(const mdp_comm *comm, const char *path, int64_t n, const mdp_array *arrays,
                               mdp_arrays **out) {
    return open_all(comm, path, n, arrays, find_arrays, out);
}

mdp_status mdp_arrays_go_on_all(const mdp_comm *comm, const char *path, int64_t n, const mdp_array *arrays,
                                mdp_arrays **out) {
    MDP_TRY(open_all(comm, path, n, arrays, find_left, out));
    return reopen_all(comm, out);
}

/* ---- content --------------------------------------------------------------------------------------------------- */

mdp_status mdp_arrays_put(const mdp_arrays *arrays, int64_t i, int64_t offset, int64_t n_byte, const void *data) {
    const mdp_tensor *tensor = &arrays->tensors[i];
    if (tensor->offset < 0 || offset < 0 || offset + n_byte > tensor->n_byte)
        return MDP_ERROR(MDP_INTERNAL, "%s: bytes %lld to %lld are beyond array '%s'.", arrays->path, (long long)offset,
                         (long long)(offset + n_byte), tensor->name);
    return mdp_file_pwrite(arrays->path, arrays->fd, data, n_byte, tensor->offset + offset);
}

static mdp_status digest_array(const mdp_arrays *arrays, int64_t i, mdp_hash *hash, char *buffer) {
    const mdp_tensor *tensor = &arrays->tensors[i];
    arrays->digests[i] = (mdp_digest){""};
    if (tensor->offset < 0) return mdp_ok();
    mdp_hash_reset(hash);
    for (int64_t at = 0; at < tensor->n_byte; at += CHUNK_BYTE) {
        int64_t n = tensor->n_byte - at < CHUNK_BYTE ? tensor->n_byte - at : CHUNK_BYTE;
        MDP_TRY(mdp_file_pread(arrays->path, arrays->fd, buffer, n, tensor->offset + at));
        mdp_hash_update(hash, buffer, n);
    }
    arrays->digests[i] = mdp_hash_digest(hash);
    return mdp_ok();
}

/* This rank's run of the arrays. */
static mdp_status digest_run(const mdp_arrays *arrays, int64_t first, int64_t end) {
    mdp_hash *hash = NULL;
    char *buffer = NULL;
    mdp_status status = mdp_hash_new(&hash);
    if (status.code == MDP_OK) status = MDP_ALLOC(&buffer, CHUNK_BYTE, "checksums of arrays");
    for (int64_t i = first; i < end && status.code == MDP_OK; i++) status = digest_array(arrays, i, hash, buffer);
    mdp_hash_destroy(hash);
    mdp_free(buffer);
    return status;
}

mdp_status mdp_arrays_settle_all(const mdp_comm *comm, mdp_arrays *arrays, int64_t first, int64_t n) {
    int64_t begin = first + n * comm->rank / comm->size, end = first + n * (comm->rank + 1) / comm->size, n_got;
    void *got = NULL;
    MDP_AGREE(comm, mdp_file_sync(arrays->path, arrays->fd));
    MDP_AGREE(comm, digest_run(arrays, begin, end));
    MDP_TRY(mdp_gather_bytes_all(comm, arrays->digests + begin, (end - begin) * (int64_t)sizeof *arrays->digests, 0,
                                 &got, &n_got));
    if (comm->rank == 0 && n > 0) memcpy(arrays->digests + first, got, (size_t)n_got);
    mdp_free(got);
    return mdp_bcast_all(comm, arrays->digests + first, n * (int64_t)sizeof *arrays->digests, 0);
}

void mdp_arrays_note(const mdp_arrays *arrays, int64_t *noted) {
    for (int64_t i = 0; i < arrays->n; i++)
        memcpy(noted + MDP_NOTED * i, arrays->digests[i].hex, MDP_NOTED * sizeof *noted);
}

mdp_status mdp_arrays_compare_noted(const mdp_arrays *arrays, int64_t i, const int64_t *noted) {
    char then[MDP_NOTED * sizeof(int64_t) + 1] = "";
    memcpy(then, noted + MDP_NOTED * i, MDP_NOTED * sizeof *noted);
    if (then[0] == '\0' || strcmp(then, arrays->digests[i].hex) == 0) return mdp_ok();
    return MDP_ERROR(MDP_BAD_INPUT, "%s: '%s' is not what the resume point was taken of; start again with --overwrite.",
                     arrays->path, arrays->tensors[i].name);
}

void mdp_arrays_leave_out(mdp_arrays *arrays, int64_t i) {
    arrays->digests[i] = (mdp_digest){""};
}

/* Its room in the file stays. */
static mdp_status take_out(hid_t file, const mdp_arrays *arrays, int64_t i) {
    if (H5Ldelete(file, arrays->tensors[i].name, H5P_DEFAULT) >= 0) return mdp_ok();
    return mdp_h5_error(MDP_IO, "take out", arrays->tensors[i].name, arrays->path);
}

static mdp_status write_digest(hid_t file, const mdp_arrays *arrays, int64_t i) {
    if (arrays->digests[i].hex[0] == '\0') return take_out(file, arrays, i);
    hid_t dataset = H5Dopen2(file, arrays->tensors[i].name, H5P_DEFAULT), type = mdp_h5_text_type(DIGEST_LENGTH);
    mdp_status status = dataset >= 0
                            ? mdp_h5_write_attribute(dataset, "xxh3_128", type, arrays->digests[i].hex, arrays->path)
                            : mdp_h5_error(MDP_IO, "open", arrays->tensors[i].name, arrays->path);
    if (type >= 0) H5Tclose(type);
    if (dataset >= 0) H5Dclose(dataset);
    return status;
}

/* Rank 0. */
static mdp_status finish(const mdp_arrays *arrays) {
    const int32_t complete = 1;
    hid_t file;
    MDP_TRY(mdp_h5_reopen_file(arrays->path, &file));
    mdp_status status = mdp_ok();
    if (mdp_hdf5_has_attribute(file, "complete")) /* by a run that was stopped after it */
        return mdp_hdf5_close_written(file, arrays->path, status);
    for (int64_t i = 0; i < arrays->n && status.code == MDP_OK; i++) status = write_digest(file, arrays, i);
    if (status.code == MDP_OK)
        status = mdp_h5_make_attribute(file, "complete", H5T_STD_I32LE, -1, &complete, arrays->path);
    status = mdp_hdf5_close_written(file, arrays->path, status);
    return status.code == MDP_OK ? mdp_h5_sync(arrays->path) : status;
}

mdp_status mdp_arrays_finish_all(const mdp_comm *comm, mdp_arrays *arrays) {
    return mdp_agree_all(comm, comm->rank == 0 ? finish(arrays) : mdp_ok());
}
