/* scales.h - the scales that belong to a stored weight. */
#ifndef MDP_MODEL_SCALES_H
#define MDP_MODEL_SCALES_H

#include "model/config.h"

/* The scales of an FP8 tensor of two or more dimensions, found beside it and checked: one for each block of the block
 * size, for each row, or one for the whole.
 * Errors: MDP_BAD_INPUT: there are none, they are no numbers, or their shape does not fit. */
mdp_status mdp_scales_find(const mdp_catalogue *catalogue, const mdp_quantisation *quantisation,
                           const mdp_tensor *tensor, mdp_scaling *out);

/* An MXFP4 tensor [n_matrix, n_row, n_col / 32, 16] with its scales [n_matrix, n_row, n_col / 32] as one matrix.
 * Errors: MDP_BAD_INPUT: types or shapes are others. */
mdp_status mdp_mxfp4_bind(const mdp_catalogue *catalogue, const mdp_tensor *blocks, const mdp_tensor *scales,
                          const int64_t shape[3], mdp_matrix *out);

#endif
