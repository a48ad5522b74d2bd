/* put_rows.c - rows of a matrix as its tensor stores them: the way back of matrix.c and scaled.c.
 *
 * In: rows in f64. Out: runs of bytes for whoever writes them, along rows, or along columns where the tensor is stored
 * transposed; for weights with scales, codes and the scales of the blocks that the rows are in. Refuses layouts that no
 * family has. */
#include "checkpoint/matrix.h"

#include "mdp/narrow.h"

#include <string.h>

int64_t mdp_matrix_common_scales(const mdp_matrix *matrix) {
    const mdp_scaling *s = &matrix->scaling;
    return s->tensor && s->block_row >= matrix->n_row && matrix->n_row > 1 ? mdp_divide_up(matrix->n_col, s->block_col)
                                                                           : 0;
}

int64_t mdp_matrix_put_unit(const mdp_matrix *matrix) {
    return matrix->scaling.tensor && mdp_matrix_common_scales(matrix) == 0 ? matrix->scaling.block_row : 1;
}

int64_t mdp_matrix_put_step(const mdp_matrix *matrix, int64_t about) {
    int64_t unit = mdp_matrix_put_unit(matrix);
    return mdp_larger(about / unit * unit, unit);
}

void mdp_matrix_raise_largest(const mdp_matrix *matrix, const double *values, int64_t n_row, float *largest) {
    int64_t width = matrix->scaling.block_col, n = matrix->n_col;
    for (int64_t c = 0; c < mdp_matrix_common_scales(matrix); c++)
        mdp_block_largest(values + c * width, n_row, n - c * width < width ? n - c * width : width, n, &largest[c]);
}

/* ---- values that are stored as they are -------------------------------------------------------------------------- */

/* n values, `stride` apart, to be stored side by side from element `first` of the tensor on; they become what is read.
 */
static mdp_status put_run(const mdp_matrix *matrix, int64_t first, int64_t n, double *values, int64_t stride,
                          mdp_put_fn *put, void *context) {
    enum { CHUNK = 1024 };
    unsigned char stored[CHUNK * sizeof(float)];
    double side_by_side[CHUNK];
    float back[CHUNK];
    const mdp_tensor *tensor = matrix->tensor;
    int64_t size = mdp_dtype_bits(tensor->type) / 8;
    for (int64_t done = 0; done < n; done += CHUNK) {
        int64_t now = n - done < CHUNK ? n - done : CHUNK;
        for (int64_t i = 0; i < now; i++) side_by_side[i] = values[(done + i) * stride];
        mdp_narrow(tensor->type, side_by_side, now, stored);
        mdp_widen(tensor->type, stored, now, back);
        for (int64_t i = 0; i < now; i++) values[(done + i) * stride] = (double)back[i];
        MDP_TRY(put(context, tensor, (first + done) * size, now * size, stored));
    }
    return mdp_ok();
}

static mdp_status put_plain(const mdp_matrix *matrix, int64_t row0, int64_t n_row, double *values, mdp_put_fn *put,
                            void *context) {
    int64_t n = matrix->n_col, first = matrix->first + row0 * matrix->row_stride;
    if (matrix->col_stride == 1 && (matrix->row_stride == n || n_row == 1))
        return put_run(matrix, first, n_row * n, values, 1, put, context);
    for (int64_t r = 0; matrix->col_stride == 1 && r < n_row; r++)
        MDP_TRY(put_run(matrix, first + r * matrix->row_stride, n, values + r * n, 1, put, context));
    for (int64_t c = 0; matrix->col_stride != 1 && c < n; c++) {
        int64_t at = first + c * matrix->col_stride;
        if (matrix->row_stride == 1) MDP_TRY(put_run(matrix, at, n_row, values + c, n, put, context));
        for (int64_t r = 0; matrix->row_stride != 1 && r < n_row; r++) /* neither rows nor columns lie together */
            MDP_TRY(put_run(matrix, at + r * matrix->row_stride, 1, values + r * n + c, 1, put, context));
    }
    return mdp_ok();
}

/* ---- codes with scales ------------------------------------------------------------------------------------------ */

/* One row of blocks on its way. */
typedef struct block_row {
    const mdp_matrix *matrix;
    int64_t row0, n_row; /* rows of the matrix */
    double *values;      /* [n_row, n_col] */
    unsigned char *scales, *codes;
    int64_t scale_byte;
} block_row;

static mdp_dtype scale_type(const mdp_matrix *matrix) {
    mdp_dtype type = matrix->scaling.tensor->type;
    return type == MDP_U8 ? MDP_F8_E8M0 : type;
}

/* Columns of one block: its scale, and values as parts of it; they become what is read. */
static void encode_block(const block_row *b, int64_t column, int64_t width, const float *largest) {
    const mdp_scaling *s = &b->matrix->scaling;
    int64_t n = b->matrix->n_col, bits = mdp_dtype_bits(s->code), block = column / s->block_col;
    float most = largest ? largest[block] : 0.0F;
    if (!largest) mdp_block_largest(b->values + column, b->n_row, width, n, &most);
    float scale = mdp_block_scale(s->code, scale_type(b->matrix), most, b->scales + block * b->scale_byte);
    for (int64_t r = 0; r < b->n_row; r++) {
        double *row = b->values + r * n + column;
        unsigned char *codes = b->codes + (r * n + column) * bits / 8;
        for (int64_t j = 0; j < width; j++) row[j] /= (double)scale;
        mdp_narrow(s->code, row, width, codes);
        for (int64_t j = 0; j < width; j += 2) { /* two codes may share a byte */
            float back[2];
            int64_t now = width - j < 2 ? 1 : 2;
            mdp_widen(s->code, codes + j * bits / 8, now, back);
            for (int64_t i = 0; i < now; i++) row[j + i] = (double)(back[i] * scale);
        }
    }
}

static mdp_status put_block_row(const block_row *b, const float *largest, mdp_put_fn *put, void *context) {
    const mdp_matrix *matrix = b->matrix;
    const mdp_scaling *s = &matrix->scaling;
    int64_t n = matrix->n_col, bits = mdp_dtype_bits(s->code), n_scale = mdp_divide_up(n, s->block_col);
    for (int64_t column = 0; column < n; column += s->block_col)
        encode_block(b, column, n - column < s->block_col ? n - column : s->block_col, largest);
    for (int64_t r = 0; r < b->n_row; r++) {
        int64_t at = matrix->first + (b->row0 + r) * matrix->row_stride;
        MDP_TRY(put(context, matrix->tensor, at * bits / 8, n * bits / 8, b->codes + r * n * bits / 8));
    }
    int64_t stored_row =
        (matrix->first + b->row0 * matrix->row_stride) / s->n_col; /* over all matrices of the tensor */
    int64_t row = stored_row / s->n_row * mdp_divide_up(s->n_row, s->block_row) + stored_row % s->n_row / s->block_row;
    if (largest && b->row0 > 0) return mdp_ok(); /* the scale of all rows comes with the first */
    return put(context, s->tensor, row * n_scale * b->scale_byte, n_scale * b->scale_byte, b->scales);
}

static mdp_status check_scaled(const mdp_matrix *matrix, int64_t row0) {
    const mdp_scaling *s = &matrix->scaling;
    bool next = matrix->row_stride == s->n_col, /* rows with scales of their own may lie between others' */
        apart = s->block_row == 1 && matrix->row_stride % s->n_col == 0;
    bool whole_rows =
        matrix->col_stride == 1 && matrix->n_col == s->n_col && (next || apart) && matrix->first % s->n_col == 0;
    if (whole_rows && row0 % mdp_matrix_put_unit(matrix) == 0 && mdp_dtype_narrows(s->code)) return mdp_ok();
    return MDP_ERROR(MDP_INTERNAL,
                     "'%s': rows from %lld on cannot be put into a matrix of strides %lld and %lld with "
                     "scales.",
                     matrix->tensor->name, (long long)row0, (long long)matrix->row_stride,
                     (long long)matrix->col_stride);
}

static mdp_status put_scaled(const mdp_matrix *matrix, int64_t row0, int64_t n_row, double *values,
                             const float *largest, mdp_put_fn *put, void *context) {
    const mdp_scaling *s = &matrix->scaling;
    int64_t step = largest ? n_row : s->block_row, n = matrix->n_col;
    block_row b = {.matrix = matrix, .scale_byte = mdp_dtype_bits(s->tensor->type) / 8};
    MDP_TRY(check_scaled(matrix, row0));
    mdp_status status = MDP_ALLOC(&b.scales, mdp_divide_up(n, s->block_col) * b.scale_byte, "scales");
    if (status.code == MDP_OK) status = MDP_ALLOC(&b.codes, (step < n_row ? step : n_row) * n, "codes");
    for (int64_t r = 0; r < n_row && status.code == MDP_OK; r += step) {
        b.row0 = row0 + r;
        b.n_row = n_row - r < step ? n_row - r : step;
        b.values = values + r * n;
        status = put_block_row(&b, largest, put, context);
    }
    mdp_free(b.scales);
    mdp_free(b.codes);
    return status;
}

mdp_status mdp_matrix_put(const mdp_matrix *matrix, int64_t row0, int64_t n_row, double *values, const float *largest,
                          mdp_put_fn *put, void *context) {
    if (n_row == 0) return mdp_ok();
    if (matrix->scaling.tensor) return put_scaled(matrix, row0, n_row, values, largest, put, context);
    if (!mdp_dtype_narrows(matrix->tensor->type))
        return MDP_ERROR(MDP_BAD_INPUT, "'%s': tensors of type %s cannot be made.", matrix->tensor->name,
                         mdp_dtype_name(matrix->tensor->type));
    return put_plain(matrix, row0, n_row, values, put, context);
}
