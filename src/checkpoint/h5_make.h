/* h5_make.h - making things in an HDF5 file: number types, groups, texts, datasets for weights, errors in words.
 * Main thread only. Every function that can fail returns a status; `path` names the file in its sentence. */
#ifndef MDP_CHECKPOINT_H5_MAKE_H
#define MDP_CHECKPOINT_H5_MAKE_H

#include "mdp/checkpoint.h"

#include <hdf5.h>

/* HDF5 prints its errors by itself unless told not to. Pair these; they nest. */
typedef struct mdp_h5_silence {
    H5E_auto2_t print;
    void *data;
} mdp_h5_silence;
mdp_h5_silence mdp_h5_silence_begin(void);
void mdp_h5_silence_end(mdp_h5_silence silence);

/* "cannot <what> <name> in <path>: <the first cause in HDF5's error stack>". Where MPI failed, which gives no cause,
 * the system's word in errno is taken if it is that there is no space: set errno to 0 before a call that writes. */
mdp_status mdp_h5_error(mdp_code code, const char *what, const char *name, const char *path);
/* Was the first cause in HDF5's error stack a system call that failed? Then its reason is put into `reason`. */
#define MDP_H5_REASON 300
bool mdp_h5_system_error(char reason[MDP_H5_REASON]);

/* A new type for file and memory alike: bf16 and f16 as 2-byte floats, the rest native little-endian; bytes for types
 * that HDF5 1.10 has no number for. Negative on failure. To be closed. */
hid_t mdp_h5_number_type(mdp_dtype type, bool as_bytes);
/* Fixed-length UTF-8 string of n bytes (at least 1), padded with zeros. To be closed. */
hid_t mdp_h5_text_type(int64_t n_byte);

/* A new file that HDF5 1.10 reads and whose bytes hold no times. Nobody else looks at a file that is being made, so
 * these files are never locked, and file systems without locks will do. */
mdp_status mdp_h5_create_file(const char *path, hid_t *file);
/* Open such a file again for writing, on this rank alone. */
mdp_status mdp_h5_reopen_file(const char *path, hid_t *file);
/* A new file in the oldest format that will do, with a superblock that HDF5 1.8 reads. */
mdp_status mdp_h5_create_old_file(const char *path, hid_t *file);
/* The same for a moment, in memory where the system has files there; what is never written takes no room. Its name, to
 * be unlinked in any case, is put into `path`. */
#define MDP_H5_SCRATCH_PATH 64
mdp_status mdp_h5_create_scratch(char path[MDP_H5_SCRATCH_PATH], hid_t *file);
/* All groups on the way to `name` ("/a/b/c": /a and /a/b), without times. */
mdp_status mdp_h5_make_groups(hid_t file, const char *name, const char *path);
/* A contiguous dataset, allocated now and not filled. *out is to be closed. n_dim = 0: scalar. */
mdp_status mdp_h5_make_dataset(hid_t file, const char *name, hid_t type, int n_dim, const int64_t *shape,
                               const char *path, hid_t *out);
/* A scalar dataset of text. */
mdp_status mdp_h5_make_text(hid_t file, const char *name, const char *text, int64_t n_byte, const char *path);

/* Attributes. n < 0: scalar; else 1-D of n values. data == NULL: zeros, to be written later. */
mdp_status mdp_h5_make_attribute(hid_t object, const char *name, hid_t type, int64_t n, const void *data,
                                 const char *path);
/* Write all of one that is there. Of an open dataset, not by H5Aopen_by_name: such attributes cannot be written in HDF5
 * 1.10.8. */
mdp_status mdp_h5_write_attribute(hid_t dataset, const char *name, hid_t type, const void *data, const char *path);
mdp_status mdp_h5_make_text_attribute(hid_t object, const char *name, const char *text, const char *path);

#endif
