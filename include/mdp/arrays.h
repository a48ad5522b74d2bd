/* arrays.h - plan.h5: large arrays that a plan needs, made by all ranks and read like tensors of a checkpoint.
 *
 * The file is a plain HDF5 file of contiguous datasets; one rank makes it, all write into it at known places. */
#ifndef MDP_ARRAYS_H
#define MDP_ARRAYS_H

#include "mdp/checkpoint.h"

/* What an array is to be. */
typedef struct mdp_array {
    const char *name; /* path of its dataset; borrowed */
    mdp_dtype type;
    int n_dim;
    int64_t shape[MDP_MAX_DIM];
} mdp_array;

/* An open plan.h5. Its tensors have the names of the datasets; `file` is the number that a reader gave it. */
typedef struct mdp_arrays {
    char *path;
    int64_t n_byte; /* of the file */
    int64_t n;
    mdp_tensor *tensors; /* [n] in the order of the arrays that were asked for */
    char *names;         /* backing store */
    mdp_digest *digests; /* [n] "" where not known */
    int fd;              /* open for writing; -1 */
} mdp_arrays;

/* Make the file at `path`, which must not exist, with room for n arrays whose values are not set, and open it for
 * writing on every rank. Collective on `comm` (agrees). MDP_CANNOT_CREATE, MDP_IO. */
mdp_status mdp_arrays_create_all(const mdp_comm *comm, const char *path, int64_t n, const mdp_array *arrays,
                                 mdp_arrays **out);
/* Find arrays of an existing file, of the types and shapes that are expected. Collective on `comm` (agrees).
 * MDP_BAD_INPUT naming the array that is not there, or not so. */
mdp_status mdp_arrays_open_all(const mdp_comm *comm, const char *path, int64_t n, const mdp_array *arrays,
                               mdp_arrays **out);
/* The same arrays without a file of their own: where they lie is for the caller to set. `path` names the place.
 * Local. */
mdp_status mdp_arrays_new(const char *path, int64_t n, const mdp_array *arrays, mdp_arrays **out);
/* The same of a file in the making, opened for writing on every rank. It may be finished: arrays that are not there
 * have been left out then, and stay so (offset -1). Collective on `comm` (agrees). */
mdp_status mdp_arrays_go_on_all(const mdp_comm *comm, const char *path, int64_t n, const mdp_array *arrays,
                                mdp_arrays **out);
void mdp_arrays_destroy(mdp_arrays *arrays); /* NULL is allowed */

/* Let a reader read the arrays: sets the tensors' file. Local. */
mdp_status mdp_arrays_add(mdp_arrays *arrays, mdp_reader *reader);
/* n_byte bytes of array i from `offset` in it. Local; any rank, no two the same bytes. */
mdp_status mdp_arrays_put(const mdp_arrays *arrays, int64_t i, int64_t offset, int64_t n_byte, const void *data);
/* The same for whoever puts rows of a matrix (mdp_put_fn): `arrays` are those that the tensor is of. */
mdp_status mdp_arrays_put_bytes(void *arrays, const mdp_tensor *tensor, int64_t offset, int64_t n_byte,
                                const void *data);
/* What ranks have put into arrays first .. first + n - 1 is on storage, and their checksums are known on all ranks: the
 * arrays are shared out, and read. Collective on `comm` (agrees). */
mdp_status mdp_arrays_settle_all(const mdp_comm *comm, mdp_arrays *arrays, int64_t first, int64_t n);
/* The checksums known so far as numbers for a resume point, noted [MDP_NOTED * n], zeros where one is not; and is that
 * of array i still what was noted, where something was? MDP_BAD_INPUT. Local. */
#define MDP_NOTED 4
void mdp_arrays_note(const mdp_arrays *arrays, int64_t *noted);
mdp_status mdp_arrays_compare_noted(const mdp_arrays *arrays, int64_t i, const int64_t *noted);
/* An array is not wanted after all. The same on every rank. */
void mdp_arrays_leave_out(mdp_arrays *arrays, int64_t i);
/* Write the checksums into the file, take out what was left out or never settled, and mark it as complete. Collective
 * on `comm` (agrees). */
mdp_status mdp_arrays_finish_all(const mdp_comm *comm, mdp_arrays *arrays);

#endif
