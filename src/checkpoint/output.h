/* output.h - what the writers of checkpoints share besides copying: checks of the result and of its place on disk. */
#ifndef MDP_CHECKPOINT_OUTPUT_H
#define MDP_CHECKPOINT_OUTPUT_H

#include "mdp/checkpoint.h"

/* Names ascending, sizes equal to shapes and to segments, segments inside their sources. MDP_INTERNAL otherwise. */
mdp_status mdp_output_check_tensors(const mdp_output *output);
/* May `path` be created, or replaced by something of that kind? An empty folder counts as absent. */
mdp_status mdp_output_check_target(const char *path, bool is_folder, bool overwrite);
/* The path without slashes at its end, as a new text. */
mdp_status mdp_output_trim(char **out, const char *path);
/* The source's side files as tensors and one segment each, so that they are copied like weights. Both arrays are new,
 * [source->n_side_file]. */
mdp_status mdp_output_side_segments(const mdp_catalogue *source, mdp_tensor **tensors, mdp_segment **segments);
/* Has the file system of `path` fewer than n_byte bytes free? HDF5 does not say why a write failed. */
bool mdp_output_is_full(const char *path, int64_t n_byte);
/* Rename a finished partial output to its name and make that durable. An existing folder is moved aside before and
 * removed after. Rank 0. */
mdp_status mdp_output_publish(const char *partial, const char *path);
/* Tell the caller of a writer how far it is: rank 0's share stands for all, because shares are equal. */
void mdp_output_progress(const mdp_comm *comm, const mdp_write_options *options, const mdp_output *output,
                         int64_t n_byte_done, int64_t n_byte_own);
/* Collective on `comm`. Bring every rank's digests to rank 0, in the order of items. *out (new) is NULL elsewhere. */
mdp_status mdp_output_gather_all(const mdp_comm *comm, const mdp_digest *digests, int64_t n, int64_t n_item,
                                 mdp_digest **out);

#endif
