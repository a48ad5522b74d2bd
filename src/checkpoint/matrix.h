/* matrix.h - what the panel feed and the reading of scaled weights share with matrix reading. Private to
 * src/checkpoint. */
#ifndef MDP_CHECKPOINT_MATRIX_H
#define MDP_CHECKPOINT_MATRIX_H

#include "mdp/checkpoint.h"

/* The most scratch that mdp_matrix_read ever needs, bytes. Large enough for a parallel file system, small enough to be
 * in cache still when it is widened. */
#define MDP_MATRIX_CHUNK_BYTE ((int64_t)4 << 20)

/* Of a matrix with scales (scaled.c): values in its tensor, its stored bytes with their scales, and reading rows that
 * lie inside the tensor, through MDP_MATRIX_CHUNK_BYTE of scratch. */
int64_t mdp_scaled_values(const mdp_matrix *matrix);
int64_t mdp_scaled_bytes(const mdp_matrix *matrix);
int64_t mdp_scaled_read_bytes(const mdp_matrix *matrix, int64_t row0, int64_t n_row);
mdp_status mdp_scaled_read(mdp_reader *reader, const mdp_matrix *matrix, int64_t row0, int64_t n_row, void *scratch,
                           float *out);

#endif
