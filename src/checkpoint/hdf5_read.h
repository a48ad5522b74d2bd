/* hdf5_read.h - the few HDF5 calls that our readers make, as statuses. Main thread only. Private to src/checkpoint. */
#ifndef MDP_CHECKPOINT_HDF5_READ_H
#define MDP_CHECKPOINT_HDF5_READ_H

#include "mdp/checkpoint.h"

#include <hdf5.h>

/* Open an existing HDF5 file for reading, and keep the library's own messages off stderr. `what` says what it should
 * be, for the error sentence ("a tokens file"). Local: every rank may open the same file. */
mdp_status mdp_hdf5_open(const char *path, const char *what, hid_t *file);
bool mdp_hdf5_has_attribute(hid_t object, const char *name);
/* A plain (mdp_text_is_plain) fixed-length text attribute, as a new text without its padding. `place` names the object
 * in errors. */
mdp_status mdp_hdf5_text_attribute(const char *path, const char *place, hid_t object, const char *name, char **out);
mdp_status mdp_hdf5_integer_attribute(const char *path, const char *place, hid_t object, const char *name,
                                      int64_t *out);
/* A scalar fixed-length text dataset, as a new text without its padding; *n_byte is its length. */
mdp_status mdp_hdf5_text_dataset(const char *path, hid_t file, const char *name, char **out, int64_t *n_byte);
/* Does the link exist? Every group on the way to it must. */
bool mdp_hdf5_has(hid_t file, const char *name);
/* Names of the groups in the root, in byte order; names and list are new. MDP_BAD_INPUT: one is not plain. */
mdp_status mdp_hdf5_groups(const char *path, hid_t file, char ***names, int *n);
/* A whole 1-D dataset of integers, new; *n may be 0. */
mdp_status mdp_hdf5_integers(const char *path, hid_t file, const char *place, int64_t **out, int64_t *n);
/* Number of dimensions and sizes of a dataset. */
mdp_status mdp_hdf5_shape(const char *path, const char *place, hid_t dataset, int *n_dim, int64_t shape[MDP_MAX_DIM]);

#endif
