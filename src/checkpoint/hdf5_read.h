/* hdf5_read.h - the only way in which HDF5 files are opened and read, as statuses. Main thread only. Private to libmdp.
 *
 * `path` names the file, `place` or `name` the object, in sentences. Without another word, errors are MDP_BAD_INPUT;
 * MDP_EXHAUSTED where memory is not to be had. */
#ifndef MDP_CHECKPOINT_HDF5_READ_H
#define MDP_CHECKPOINT_HDF5_READ_H

#include "mdp/checkpoint.h"

#include <hdf5.h>

/* ---- opening: hdf5_open.c ---- */

/* Open an existing HDF5 file for reading, and keep the library's own messages off stderr. `what` says what it should
 * be, for the error sentence ("a tokens file"). Local: every rank may open the same file. */
mdp_status mdp_hdf5_open(const char *path, const char *what, hid_t *file);
/* Let HDF5 open a file with this access list without locking it: some file systems have no locks. For files that no
 * other process looks at. */
void mdp_hdf5_leave_unlocked(hid_t access);
/* Does the link exist, and every one on the way to it? */
bool mdp_hdf5_has(hid_t parent, const char *name);
/* Refused are links into other files, datasets whose values are in other files, filters that are not here. To be closed
 * with H5Dclose or H5Gclose. */
mdp_status mdp_hdf5_open_dataset(const char *path, hid_t parent, const char *name, hid_t *out);
mdp_status mdp_hdf5_open_group(const char *path, hid_t parent, const char *name, hid_t *out);
/* Names of the groups in the root, in byte order; names and list are new. MDP_BAD_INPUT: one is not plain. */
mdp_status mdp_hdf5_groups(const char *path, hid_t file, char ***names, int *n);
/* Call `visit` for every dataset below the root ("a/b/c", open for the time of the call), groups in order of their
 * names, until there is an error. Links that are not the object itself are refused. */
typedef mdp_status mdp_hdf5_visit_fn(void *context, hid_t file, const char *name, hid_t dataset);
mdp_status mdp_hdf5_walk(const char *path, hid_t file, mdp_hdf5_visit_fn *visit, void *context);

/* ---- reading: hdf5_read.c ---- */

/* All n values of an attribute or dataset into out [n] of the type `memory`: integers, floats or texts of fixed length,
 * like those stored. Texts are padded; numbers may be of any size up to 8 bytes, and what does not fit is clipped. */
mdp_status mdp_hdf5_read(const char *path, const char *place, hid_t source, hid_t memory, int64_t n, void *out);
/* The same of values first .. first+n-1 of a 1-D dataset. */
mdp_status mdp_hdf5_read_run(const char *path, const char *place, hid_t dataset, hid_t memory, int64_t first, int64_t n,
                             void *out);
/* The same of a box in a dataset of n_dim (1 .. MDP_MAX_DIM) dimensions: count [n_dim] values from first [n_dim] on, in
 * the order in which they are stored. */
mdp_status mdp_hdf5_read_box(const char *path, const char *place, hid_t dataset, hid_t memory, int n_dim,
                             const int64_t *first, const int64_t *count, void *out);
/* All texts of an attribute or dataset: *out [*n, *width], new, padded as they are stored, and a 0 byte. */
mdp_status mdp_hdf5_read_texts(const char *path, const char *place, hid_t source, int64_t *n, int64_t *width,
                               char **out);

bool mdp_hdf5_has_attribute(hid_t object, const char *name);
/* An attribute that is one plain (mdp_text_is_plain) fixed-length text, as a new text without its padding. `place`
 * names the object. */
mdp_status mdp_hdf5_text_attribute(const char *path, const char *place, hid_t object, const char *name, char **out);
/* The same into out [n_byte], if it fits with a 0 byte. */
mdp_status mdp_hdf5_short_attribute(const char *path, const char *place, hid_t object, const char *name, char *out,
                                    size_t n_byte);
/* mdp_hdf5_read_texts of an attribute. */
mdp_status mdp_hdf5_texts_attribute(const char *path, const char *place, hid_t object, const char *name, int64_t *n,
                                    int64_t *width, char **out);
mdp_status mdp_hdf5_integer_attribute(const char *path, const char *place, hid_t object, const char *name,
                                      int64_t *out);

/* A scalar fixed-length text dataset, as a new text without its padding; *n_byte is its length. */
mdp_status mdp_hdf5_text_dataset(const char *path, hid_t file, const char *name, char **out, int64_t *n_byte);
/* Number of dimensions and sizes of a dataset. */
mdp_status mdp_hdf5_shape(const char *path, const char *place, hid_t dataset, int *n_dim, int64_t shape[MDP_MAX_DIM]);
/* Has it this shape, and all of its values? To be asked before memory is taken for them. */
mdp_status mdp_hdf5_check_shape(const char *path, const char *place, hid_t dataset, int n_dim, const int64_t *shape);
/* Is there a dataset of this shape, with all of its values? */
mdp_status mdp_hdf5_check_array(const char *path, hid_t parent, const char *name, int n_dim, const int64_t *shape);
/* The values of a dataset of this shape. */
mdp_status mdp_hdf5_array(const char *path, hid_t parent, const char *name, hid_t memory, int n_dim,
                          const int64_t *shape, void *out);
/* A 1-D dataset of integers, all of them written, open; *n may be 0. To be closed with H5Dclose. */
mdp_status mdp_hdf5_open_row(const char *path, hid_t file, const char *place, hid_t *out, int64_t *n);
/* A whole 1-D dataset of integers, new; *n may be 0. */
mdp_status mdp_hdf5_integers(const char *path, hid_t file, const char *place, int64_t **out, int64_t *n);

#endif
