/* fuzz.h - what the fuzz targets share. A target is one file with LLVMFuzzerTestOneInput; it is linked with libFuzzer
 * (MDP_FUZZ) or with replay.c, which runs it over files.
 *
 * What every reader must keep, whatever the bytes are: it ends, it says success or one sentence with the code of a bad
 * file, and it gives back all memory and every HDF5 object. fuzz_end aborts when it does not. */
#ifndef MDP_TESTS_FUZZ_H
#define MDP_TESTS_FUZZ_H

#include "mdp/checkpoint.h"

#include <stdint.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_byte);

/* Abort, with the sentence, unless `good`. */
void fuzz_require(bool good, const char *sentence);

/* A communicator of this process alone. */
const mdp_comm *fuzz_comm(void);

/* Path of a file in a folder of this process that is removed at its end. Lives until the end. */
const char *fuzz_path(const char *name);
/* Make the file `path` hold exactly these bytes. */
void fuzz_write(const char *path, const void *data, size_t n_byte);

/* Before and after the call of a reader. */
void fuzz_begin(void);
void fuzz_end(const mdp_status *status);

/* What a catalogue promises: every extent lies in its file and has the bytes of its shape, names ascend. */
void fuzz_check_catalogue(const mdp_catalogue *catalogue);

/* ---- HDF5 files from bytes: build.c ---- */

/* An HDF5 file that is to be built: objects in order, each a group, a dataset or an attribute. libhdf5's own reading of
 * damaged bytes is not what is tested, so files are made by the library, of any content that it can hold. */
typedef struct fuzz_file fuzz_file;

typedef enum fuzz_type {
    FUZZ_GROUP,
    FUZZ_TEXT, /* of fixed length, as long as the data */
    FUZZ_U8,
    FUZZ_I32,
    FUZZ_U32,
    FUZZ_I64,
    FUZZ_F16,
    FUZZ_BF16,
    FUZZ_F32,
    FUZZ_F64,
    FUZZ_TEXT_LIST /* n texts of fixed length: the data's bytes divided by the number of elements */
} fuzz_type;

fuzz_file *fuzz_file_new(void);
void fuzz_file_destroy(fuzz_file *file);
/* Add an object. attribute: NULL for a dataset or group. n_dim 0: scalar. Data (copied) may be shorter than the shape:
 * it is repeated. */
void fuzz_file_add(fuzz_file *file, const char *path, const char *attribute, fuzz_type type, int n_dim,
                   const int64_t *shape, const void *data, size_t n_byte);
void fuzz_file_add_text(fuzz_file *file, const char *path, const char *attribute, const char *text);
/* Change the objects as the bytes say; no bytes: nothing changes. */
void fuzz_file_edit(fuzz_file *file, const uint8_t *data, size_t n_byte);
/* Build the file; what HDF5 refuses to make is left out. */
void fuzz_file_write(const fuzz_file *file, const char *path);

#endif
