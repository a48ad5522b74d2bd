/* masked.h - stored bytes with the codes of masked entries set to 0, for who copies them. Private to src/checkpoint. */
#ifndef MDP_CHECKPOINT_MASKED_H
#define MDP_CHECKPOINT_MASKED_H

#include "mdp/recast.h"

/* Norms of a matrix with a mask into room [n_col]; *out NULL: all 1. */
mdp_status mdp_mask_load_norm(mdp_reader *reader, const mdp_matrix *matrix, float *room, const float **out);
/* As of recasts: bytes that are read for all of it, and held. */
int64_t mdp_masked_read_bytes(const mdp_recast *recast);
int64_t mdp_masked_memory(const mdp_recast *recast);
mdp_status mdp_masked_read(mdp_recaster *recaster, mdp_reader *reader, const mdp_recast *recast, int64_t offset,
                           int64_t n_byte, void *out, int64_t *n_read);

#endif
