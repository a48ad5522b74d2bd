/* seal.c - the last thing that is written into an HDF5 file of ours: the checksum of all bytes that no other checksum
 * covers, so that structure, names, attributes and even unused bytes cannot change unseen.
 *
 * The seal is the dataset /seal, 32 hex digits as bytes. It covers the file from its first to its last byte but for the
 * runs that the caller names (which have checksums of their own) and itself; it is filled in when HDF5 has closed the
 * file. Rank 0 alone does this. */
#include "checkpoint/h5_make.h"
#include "checkpoint/hdf5_read.h"

#include <stdlib.h>

#define SEAL "/seal"
#define SEAL_BYTE 32
#define CHUNK_BYTE ((int64_t)1 << 22)

mdp_status mdp_seal_make(int64_t file, const char *path) {
    const int64_t shape[] = {SEAL_BYTE};
    hid_t dataset;
    mdp_status status = mdp_h5_make_dataset(file, SEAL, H5T_STD_U8LE, 1, shape, path, &dataset);
    if (dataset >= 0) H5Dclose(dataset);
    return status;
}

/* Where the seal lies in the file. */
static mdp_status find_seal(const char *path, int64_t *offset) {
    hid_t file, dataset = -1;
    MDP_TRY(mdp_hdf5_open(path, "the file just written", &file));
    mdp_status status = mdp_hdf5_open_dataset(path, file, SEAL, &dataset);
    haddr_t address = dataset >= 0 ? H5Dget_offset(dataset) : HADDR_UNDEF;
    *offset = (int64_t)address;
    if (status.code == MDP_OK && address == HADDR_UNDEF) status = mdp_h5_error(MDP_IO, "find", SEAL, path);
    if (dataset >= 0) H5Dclose(dataset);
    H5Fclose(file);
    return status;
}

static int compare_runs(const void *left, const void *right) {
    const mdp_run *a = left, *b = right;
    return a->offset < b->offset ? -1 : a->offset > b->offset;
}

static mdp_status hash_bytes(const char *path, int fd, int64_t begin, int64_t end, char *buffer, mdp_hash *hash) {
    for (int64_t at = begin; at < end; at += CHUNK_BYTE) {
        int64_t n = end - at < CHUNK_BYTE ? end - at : CHUNK_BYTE;
        MDP_TRY(mdp_file_pread(path, fd, buffer, n, at));
        mdp_hash_update(hash, buffer, n);
    }
    return mdp_ok();
}

/* The bytes between the runs [n], which ascend. */
static mdp_status hash_between(const char *path, int fd, const mdp_run *runs, int64_t n, mdp_hash *hash) {
    int64_t at = 0, n_byte;
    char *buffer = NULL;
    MDP_TRY(mdp_file_size(path, fd, &n_byte));
    MDP_TRY(MDP_ALLOC(&buffer, CHUNK_BYTE, "the bytes to seal"));
    mdp_status status = mdp_ok();
    for (int64_t i = 0; i < n && status.code == MDP_OK; i++) {
        status = hash_bytes(path, fd, at, runs[i].offset, buffer, hash);
        at = runs[i].offset + runs[i].n_byte;
    }
    if (status.code == MDP_OK) status = hash_bytes(path, fd, at, n_byte, buffer, hash);
    mdp_free(buffer);
    return status;
}

static mdp_status seal_opened(const char *path, int fd, const mdp_run *runs, int64_t n, int64_t seal) {
    mdp_hash *hash = NULL;
    MDP_TRY(mdp_hash_new(&hash));
    mdp_status status = hash_between(path, fd, runs, n, hash);
    mdp_digest digest = mdp_hash_digest(hash);
    mdp_hash_destroy(hash);
    MDP_TRY(status);
    return mdp_file_pwrite(path, fd, digest.hex, SEAL_BYTE, seal);
}

mdp_status mdp_seal_write(const char *path, const mdp_run *covered, int64_t n) {
    mdp_run *runs = NULL;
    int64_t seal;
    int fd;
    MDP_TRY(find_seal(path, &seal));
    MDP_TRY(MDP_ALLOC(&runs, n + 1, "the bytes to seal"));
    for (int64_t i = 0; i < n; i++) runs[i] = covered[i];
    runs[n] = (mdp_run){.offset = seal, .n_byte = SEAL_BYTE};
    qsort(runs, (size_t)n + 1, sizeof *runs, compare_runs);
    mdp_status status = mdp_file_open_write(path, &fd);
    if (status.code == MDP_OK) {
        status = seal_opened(path, fd, runs, n + 1, seal);
        mdp_status closed = mdp_file_close(path, fd);
        if (status.code == MDP_OK) status = closed;
    }
    mdp_free(runs);
    return status;
}
