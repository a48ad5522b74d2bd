/* output.h - what the writers of checkpoints share besides copying. */
#ifndef MDP_CHECKPOINT_OUTPUT_H
#define MDP_CHECKPOINT_OUTPUT_H

#include "mdp/checkpoint.h"

/* Names ascending, sizes equal to shapes and to segments, segments inside their sources. MDP_INTERNAL otherwise. */
mdp_status mdp_output_check_tensors(const mdp_output *output);
/* The source's side files as tensors and one segment each, so that they are copied like weights. Both arrays are new,
 * [source->n_side_file]. */
mdp_status mdp_output_side_segments(const mdp_catalogue *source, mdp_tensor **tensors, mdp_segment **segments);
/* Has the file system of `path` fewer than n_byte bytes free? HDF5 does not say why a write failed. */
bool mdp_output_is_full(const char *path, int64_t n_byte);
/* Tell the caller of a writer how far it is: rank 0's share stands for all, because shares are equal. */
void mdp_output_progress(const mdp_comm *comm, const mdp_write_options *options, const mdp_output *output,
                         int64_t n_byte_done, int64_t n_byte_own);
/* Collective on `comm`. Bring every rank's digests to rank 0, in the order of items. *out (new) is NULL elsewhere. */
mdp_status mdp_output_gather_all(const mdp_comm *comm, const mdp_digest *digests, int64_t n, int64_t n_item,
                                 mdp_digest **out);

#endif
