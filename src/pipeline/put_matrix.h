/* put_matrix.h - made matrices into the arrays of a plan, as the checkpoint stores them. Private to src/pipeline. */
#ifndef MDP_SRC_PIPELINE_PUT_MATRIX_H
#define MDP_SRC_PIPELINE_PUT_MATRIX_H

#include "mdp/arrays.h"
#include "mdp/narrow.h"

#define MDP_PUT_ROWS 64 /* of a matrix at a time, about */

/* Make rows row .. row + n - 1 of a matrix, as it is stored: values [n, columns]. */
typedef mdp_status mdp_fill_fn(void *context, int64_t row, int64_t n, double *values);
typedef struct mdp_made_matrix {
    mdp_matrix to; /* in the arrays, as stored */
    mdp_fill_fn *fill;
    void *context;
} mdp_made_matrix;

/* Is it stored column by column? Then it is worked on as what is stored. */
bool mdp_matrix_is_turned(const mdp_matrix *matrix);
mdp_matrix mdp_matrix_as_stored(const mdp_matrix *matrix);
/* Are neighbours in neither rows nor columns stored side by side? */
bool mdp_matrix_is_scattered(const mdp_matrix *matrix);
/* Put one matrix, or two that are stored as one tensor. Rows are made once, or twice where one scale is for all of
 * them. Local. */
mdp_status mdp_put_matrices(const mdp_made_matrix *all, int n, mdp_arrays *arrays);

#endif
