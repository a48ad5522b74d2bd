/* scaled.c - rows of a matrix of codes with block scales (FP8, MXFP4) as f32: the code's value times its block's scale,
 * one f32 product, rounded to fewer bits only where the model is taken as if its codes were widened to bf16.
 *
 * Rows are read in groups: one run of bytes from the first stored row of a group to its last (rows between those wanted
 * come along where they are few), one run of scales, both into scratch. Refuses: columns of a row that are not side by
 * side (our bug; no family stores such codes), rows too wide for the scratch. */
#include "checkpoint/matrix.h"
#include "mdp/linalg.h"

#include <inttypes.h>

/* Rows further apart than this are read one by one. */
#define NEAR_ROWS 2

/* What one group reads. Stored rows are counted over all matrices of the tensor, and so are rows of scales. */
typedef struct group {
    int64_t n_row;           /* rows of the logical matrix */
    int64_t first, n_stored; /* stored rows */
    int64_t scale, n_scale;  /* rows of scales */
    int64_t n_byte;          /* scratch: codes, scales as stored, scales widened */
} group;

static int64_t code_bytes(const mdp_matrix *matrix, int64_t n_value) {
    return n_value * mdp_dtype_bits(matrix->scaling.code) / 8;
}

/* Scales as U8 are E8M0 codes by another name. */
static mdp_dtype scale_type(const mdp_matrix *matrix) {
    mdp_dtype type = matrix->scaling.tensor->type;
    return type == MDP_U8 ? MDP_F8_E8M0 : type;
}

static int64_t scales_in_row(const mdp_matrix *matrix) {
    return mdp_divide_up(matrix->scaling.n_col, matrix->scaling.block_col);
}

/* The row of scales that a stored row uses. */
static int64_t scale_row(const mdp_matrix *matrix, int64_t stored) {
    const mdp_scaling *s = &matrix->scaling;
    return stored / s->n_row * mdp_divide_up(s->n_row, s->block_row) + stored % s->n_row / s->block_row;
}

mdp_matrix mdp_matrix_scaled(const mdp_tensor *tensor, const mdp_scaling *scaling) {
    mdp_matrix matrix = {.tensor = tensor, .n_col = scaling->n_col, .row_stride = scaling->n_col, .col_stride = 1};
    matrix.scaling = *scaling;
    matrix.n_row = scaling->n_col > 0 ? mdp_scaled_values(&matrix) / scaling->n_col : 0;
    return matrix;
}

int64_t mdp_scaled_values(const mdp_matrix *matrix) {
    return matrix->tensor->n_byte * (8 / mdp_dtype_bits(matrix->scaling.code));
}

int64_t mdp_scaled_bytes(const mdp_matrix *matrix) {
    const mdp_scaling *s = &matrix->scaling;
    int64_t n_scale = mdp_divide_up(matrix->n_row, s->block_row) * mdp_divide_up(matrix->n_col, s->block_col);
    return code_bytes(matrix, matrix->n_row * matrix->n_col) + n_scale * mdp_dtype_bits(s->tensor->type) / 8;
}

static mdp_status check(const mdp_matrix *matrix, int64_t n_row) {
    const mdp_scaling *s = &matrix->scaling;
    int64_t column = matrix->first % s->n_col;
    bool whole_bytes = column * mdp_dtype_bits(s->code) % 8 == 0 && s->n_col * mdp_dtype_bits(s->code) % 8 == 0;
    bool whole_rows = n_row == 1 || matrix->row_stride % s->n_col == 0;
    if (matrix->col_stride == 1 && whole_rows && whole_bytes && column + matrix->n_col <= s->n_col) return mdp_ok();
    return MDP_ERROR(MDP_INTERNAL, "'%s': a matrix of strides %" PRId64 " and %" PRId64 " cannot be read with scales.",
                     matrix->tensor->name, matrix->row_stride, matrix->col_stride);
}

/* The group of n_row rows from row0 on. */
static group make_group(const mdp_matrix *matrix, int64_t row0, int64_t n_row) {
    const mdp_scaling *s = &matrix->scaling;
    group g = {.n_row = n_row};
    g.first = (matrix->first + row0 * matrix->row_stride) / s->n_col;
    int64_t last = (matrix->first + (row0 + n_row - 1) * matrix->row_stride) / s->n_col;
    g.n_stored = last - g.first + 1;
    g.scale = scale_row(matrix, g.first);
    g.n_scale = scale_row(matrix, last) - g.scale + 1;
    int64_t scale_byte = mdp_dtype_bits(s->tensor->type) / 8 + (int64_t)sizeof(float);
    g.n_byte = code_bytes(matrix, g.n_stored * s->n_col) + g.n_scale * scales_in_row(matrix) * scale_byte;
    return g;
}

/* The next group: as many of the n_row rows left as fit the scratch. */
static mdp_status next_group(const mdp_matrix *matrix, int64_t row0, int64_t n_row, group *out) {
    int64_t n = matrix->row_stride > NEAR_ROWS * matrix->scaling.n_col ? 1 : n_row;
    for (*out = make_group(matrix, row0, n); out->n_byte > MDP_MATRIX_CHUNK_BYTE && n > 1;) {
        n = n / 2;
        *out = make_group(matrix, row0, n);
    }
    if (out->n_byte <= MDP_MATRIX_CHUNK_BYTE) return mdp_ok();
    return MDP_ERROR(MDP_BAD_INPUT,
                     "'%s': rows of %" PRId64 " values with scales are too wide to be read; a row and its scales may "
                     "have at most %" PRId64 " bytes.",
                     matrix->tensor->name, matrix->scaling.n_col, MDP_MATRIX_CHUNK_BYTE);
}

/* To bf16, as whoever widens the codes for good writes them (recast.c). */
static void round_values(int64_t n, float *values) {
    uint16_t piece[256];
    int64_t most = (int64_t)(sizeof piece / sizeof piece[0]);
    for (int64_t done = 0; done < n; done += most) {
        int64_t now = n - done < most ? n - done : most;
        mdp_round_bf16(values + done, now, piece);
        mdp_widen(MDP_BF16, piece, now, values + done);
    }
}

/* Codes to values of one row: the columns of the matrix begin at `column` of the stored row. */
static void decode_row(const mdp_matrix *matrix, const unsigned char *codes, int64_t column, const float *scales,
                       float *out) {
    int64_t block = matrix->scaling.block_col;
    mdp_widen(matrix->scaling.code, codes, matrix->n_col, out);
    for (int64_t c = 0; c < matrix->n_col;) {
        float scale = scales[(column + c) / block];
        int64_t end = ((column + c) / block + 1) * block - column;
        if (end > matrix->n_col) end = matrix->n_col;
        for (; c < end; c++) out[c] *= scale;
    }
    if (matrix->scaling.rounded) round_values(matrix->n_col, out);
}

static mdp_status read_group(mdp_reader *reader, const mdp_matrix *matrix, const group *g, void *scratch, float *out) {
    const mdp_scaling *s = &matrix->scaling;
    int64_t column = matrix->first % s->n_col, n_scale = g->n_scale * scales_in_row(matrix);
    int64_t scale_byte = mdp_dtype_bits(s->tensor->type) / 8, row_byte = code_bytes(matrix, s->n_col);
    float *scales = scratch; /* first, for its alignment */
    unsigned char *stored_scales = (unsigned char *)(scales + n_scale);
    unsigned char *codes = stored_scales + n_scale * scale_byte;
    MDP_TRY(mdp_reader_read(reader, s->tensor->file, s->tensor->offset + g->scale * scales_in_row(matrix) * scale_byte,
                            n_scale * scale_byte, stored_scales));
    MDP_TRY(mdp_reader_read(reader, matrix->tensor->file, matrix->tensor->offset + g->first * row_byte,
                            g->n_stored * row_byte, codes));
    mdp_widen(scale_type(matrix), stored_scales, n_scale, scales);
    for (int64_t r = 0; r < g->n_row; r++) {
        int64_t at = r * (matrix->row_stride / s->n_col); /* stored rows from the group's first */
        const float *row_scales = scales + (scale_row(matrix, g->first + at) - g->scale) * scales_in_row(matrix);
        decode_row(matrix, codes + at * row_byte + code_bytes(matrix, column), column, row_scales,
                   out + r * matrix->n_col);
    }
    return mdp_ok();
}

int64_t mdp_scaled_read_bytes(const mdp_matrix *matrix, int64_t row0, int64_t n_row) {
    int64_t n_byte = 0, scale_byte = scales_in_row(matrix) * mdp_dtype_bits(matrix->scaling.tensor->type) / 8;
    for (int64_t done = 0; done < n_row;) {
        group g;
        if (next_group(matrix, row0 + done, n_row - done, &g).code != MDP_OK) break; /* reading will say why */
        n_byte += g.n_scale * scale_byte + code_bytes(matrix, g.n_stored * matrix->scaling.n_col);
        done += g.n_row;
    }
    return n_byte;
}

mdp_status mdp_scaled_read(mdp_reader *reader, const mdp_matrix *matrix, int64_t row0, int64_t n_row, void *scratch,
                           float *out) {
    MDP_TRY(check(matrix, n_row));
    for (int64_t done = 0; done < n_row;) {
        group g;
        MDP_TRY(next_group(matrix, row0 + done, n_row - done, &g));
        MDP_TRY(read_group(reader, matrix, &g, scratch, out + done * matrix->n_col));
        done += g.n_row;
    }
    return mdp_ok();
}
