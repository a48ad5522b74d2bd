/* matrix.h - what the panel stream must know of matrix reading. Private to src/checkpoint. */
#ifndef MDP_CHECKPOINT_MATRIX_H
#define MDP_CHECKPOINT_MATRIX_H

/* The most scratch that mdp_matrix_read ever needs, bytes. Large enough for a parallel file system, small enough to be
 * in cache still when it is widened. */
#define MDP_MATRIX_CHUNK_BYTE ((int64_t)4 << 20)

#endif
