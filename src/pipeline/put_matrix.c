/* put_matrix.c - made matrices into the arrays of a plan: rows at a time, rounded once to the stored type.
 *
 * Where gate and up are one stored tensor whose runs are single values, its bytes are put together in memory first. */
#include "pipeline/put_matrix.h"

#include <string.h>

/* Bytes of arrays on their way. */
typedef struct image {
    mdp_arrays *arrays;
    const mdp_tensor *tensor; /* whose bytes are put together; NULL: none are */
    unsigned char *bytes;
} image;

static mdp_status put_bytes(void *context, const mdp_tensor *tensor, int64_t offset, int64_t n_byte, const void *data) {
    const image *out = context;
    if (tensor != out->tensor) return mdp_arrays_put_bytes(out->arrays, tensor, offset, n_byte, data);
    memcpy(out->bytes + offset, data, (size_t)n_byte);
    return mdp_ok();
}

bool mdp_matrix_is_turned(const mdp_matrix *matrix) {
    return !matrix->scaling.tensor && matrix->n_row > 1 && matrix->col_stride > matrix->row_stride;
}

mdp_matrix mdp_matrix_as_stored(const mdp_matrix *matrix) {
    mdp_matrix turned = *matrix;
    if (!mdp_matrix_is_turned(matrix)) return turned;
    turned.n_row = matrix->n_col;
    turned.n_col = matrix->n_row;
    turned.row_stride = matrix->col_stride;
    turned.col_stride = matrix->row_stride;
    return turned;
}

bool mdp_matrix_is_scattered(const mdp_matrix *matrix) {
    return !matrix->scaling.tensor && matrix->col_stride != 1 && matrix->row_stride != 1;
}

/* What is done with rows: raise the largest, or put them. values: room for a step. */
static mdp_status walk(const mdp_made_matrix *made, double *values, image *out, float *raised, const float *largest) {
    int64_t step = mdp_matrix_put_step(&made->to, MDP_PUT_ROWS);
    for (int64_t row = 0; row < made->to.n_row; row += step) {
        int64_t n = made->to.n_row - row < step ? made->to.n_row - row : step;
        MDP_TRY(made->fill(made->context, row, n, values));
        if (raised)
            mdp_matrix_raise_largest(&made->to, values, n, raised);
        else
            MDP_TRY(mdp_matrix_put(&made->to, row, n, values, largest, put_bytes, out));
    }
    return mdp_ok();
}

/* Do both matrices have one scale for all of their rows, the same? */
static bool share_scales(const mdp_matrix *a, const mdp_matrix *b) {
    const mdp_scaling *s = &a->scaling;
    return mdp_matrix_common_scales(a) > 0 && s->tensor == b->scaling.tensor && a->tensor == b->tensor &&
           a->first / s->n_col / s->block_row == b->first / s->n_col / s->block_row;
}

static mdp_status put_matrices(const mdp_made_matrix *all, int n, double *values, image *out) {
    int64_t n_common = mdp_matrix_common_scales(&all[0].to);
    bool together = n > 1 && share_scales(&all[0].to, &all[1].to);
    float *largest = NULL;
    if (n_common == 0) {
        for (int i = 0; i < n; i++) MDP_TRY(walk(&all[i], values, out, NULL, NULL));
        return mdp_ok();
    }
    MDP_TRY(MDP_ALLOC(&largest, n_common, "scales"));
    mdp_status status = mdp_ok();
    for (int i = 0; i < n && status.code == MDP_OK && together; i++) status = walk(&all[i], values, out, largest, NULL);
    for (int i = 0; i < n && status.code == MDP_OK; i++) {
        if (!together) memset(largest, 0, (size_t)n_common * sizeof *largest);
        if (!together) status = walk(&all[i], values, out, largest, NULL);
        if (status.code == MDP_OK) status = walk(&all[i], values, out, NULL, largest);
    }
    mdp_free(largest);
    return status;
}

mdp_status mdp_put_matrices(const mdp_made_matrix *all, int n, mdp_arrays *arrays) {
    image out = {.arrays = arrays};
    double *values = NULL;
    int64_t most = 0;
    for (int i = 0; i < n; i++)
        most = mdp_larger(most, mdp_matrix_put_step(&all[i].to, MDP_PUT_ROWS) * all[i].to.n_col);
    mdp_status status = MDP_ALLOC(&values, most, "rows of a made matrix");
    if (status.code == MDP_OK && mdp_matrix_is_scattered(&all[0].to)) {
        out.tensor = all[0].to.tensor;
        status = mdp_alloc((void **)&out.bytes, out.tensor->n_byte, 1, "a made expert");
    }
    if (status.code == MDP_OK) status = put_matrices(all, n, values, &out);
    if (status.code == MDP_OK && out.tensor)
        status = mdp_arrays_put_bytes(arrays, out.tensor, 0, out.tensor->n_byte, out.bytes);
    mdp_free(values);
    mdp_free(out.bytes);
    return status;
}
