/* matrix.c - rows of a logical matrix as f32 or bf16, whatever its layout in the stored tensor.
 *
 * Three ways to read, by layout: dense rows (one run of bytes, widened chunk by chunk, f32 straight into place), runs
 * along the column index (interleaved rows), and runs along the row index (transposed, transposed and interleaved);
 * scaled.c reads weights with scales. Scratch never exceeds MDP_MATRIX_CHUNK_BYTE, whatever the matrix. Refuses: rows
 * or strides outside the tensor (our bug), number formats that do not widen. */
#include "checkpoint/matrix.h"
#include "mdp/linalg.h"
#include "mdp/mask.h"

#include <inttypes.h>
#include <string.h>

/* The same loop for both strided ways: `n_outer` runs of `n_inner` elements. */
typedef struct runs {
    int64_t n_outer, n_inner;
    int64_t first;                    /* element of the tensor */
    int64_t outer_stride, stride;     /* elements of the tensor, between runs and inside one */
    int64_t outer_place, inner_place; /* elements of the output */
} runs;

mdp_matrix mdp_matrix_whole(const mdp_tensor *tensor) {
    mdp_matrix matrix = {.tensor = tensor, .n_row = 1, .n_col = 1};
    for (int i = 0; i < tensor->n_dim; i++) {
        if (i == tensor->n_dim - 1) {
            matrix.n_col = tensor->shape[i];
        } else {
            matrix.n_row *= tensor->shape[i];
        }
    }
    matrix.row_stride = matrix.n_col;
    matrix.col_stride = 1;
    return matrix;
}

static int64_t element_byte(const mdp_matrix *matrix) {
    return mdp_dtype_bits(matrix->tensor->type) / 8;
}

static bool is_dense(const mdp_matrix *matrix, int64_t n_row) {
    return matrix->col_stride == 1 && (matrix->row_stride == matrix->n_col || n_row == 1);
}

int64_t mdp_matrix_bytes(const mdp_matrix *matrix) {
    if (matrix->tensor == NULL) return 0;
    if (matrix->scaling.tensor != NULL) return mdp_scaled_bytes(matrix);
    return matrix->n_row * matrix->n_col * element_byte(matrix);
}

int64_t mdp_matrix_scratch(const mdp_matrix *matrix, int64_t n_row) {
    if (matrix->scaling.tensor != NULL || matrix->mask != NULL) return MDP_MATRIX_CHUNK_BYTE;
    bool dense = is_dense(matrix, n_row);
    if (dense && matrix->tensor->type == MDP_F32) return 0;
    if (!dense) return MDP_MATRIX_CHUNK_BYTE;
    int64_t n_byte = n_row * matrix->n_col * element_byte(matrix);
    return n_byte < MDP_MATRIX_CHUNK_BYTE ? n_byte : MDP_MATRIX_CHUNK_BYTE;
}

void mdp_matrix_announce(mdp_reader *reader, const mdp_matrix *matrix) {
    const mdp_tensor *tensor = matrix->tensor;
    if (!tensor || matrix->n_row == 0 || matrix->n_col == 0) return;
    int64_t bits = mdp_dtype_bits(tensor->type);
    int64_t last = matrix->first + (matrix->n_row - 1) * matrix->row_stride + (matrix->n_col - 1) * matrix->col_stride;
    int64_t begin = matrix->first * bits / 8, end = (last * bits + bits + 7) / 8;
    if (end > tensor->n_byte) end = tensor->n_byte;
    mdp_reader_announce(reader, tensor->file, tensor->offset + begin, end - begin);
    if (matrix->scaling.tensor)
        mdp_reader_announce(reader, matrix->scaling.tensor->file, matrix->scaling.tensor->offset,
                            matrix->scaling.tensor->n_byte);
}

static mdp_status check(const mdp_matrix *matrix, int64_t row0, int64_t n_row) {
    const mdp_tensor *tensor = matrix->tensor;
    bool scaled = matrix->scaling.tensor != NULL;
    if (!scaled && !mdp_dtype_widens(tensor->type)) {
        return MDP_ERROR(MDP_BAD_INPUT, "'%s' is stored as %s; only F32, F16 and BF16 weights can be computed with.",
                         tensor->name, mdp_dtype_name(tensor->type));
    }
    bool inside = row0 >= 0 && n_row >= 0 && row0 <= matrix->n_row - n_row && matrix->row_stride >= 0 &&
                  matrix->col_stride >= 0 && matrix->first >= 0;
    if (inside && n_row > 0 && matrix->n_col > 0) {
        int64_t last =
            matrix->first + (row0 + n_row - 1) * matrix->row_stride + (matrix->n_col - 1) * matrix->col_stride;
        inside = last < (scaled ? mdp_scaled_values(matrix) : tensor->n_byte / element_byte(matrix));
    }
    if (inside) return mdp_ok();
    return MDP_ERROR(MDP_INTERNAL,
                     "'%s': rows %" PRId64 " to %" PRId64 " of a matrix of %" PRId64 " x %" PRId64
                     " are outside the tensor.",
                     tensor->name, row0, row0 + n_row, matrix->n_row, matrix->n_col);
}

static mdp_status read_elements(mdp_reader *reader, const mdp_matrix *matrix, int64_t first, int64_t n, void *out) {
    int64_t size = element_byte(matrix);
    return mdp_reader_read(reader, matrix->tensor->file, matrix->tensor->offset + first * size, n * size, out);
}

/* n consecutive elements as f32. */
static mdp_status read_dense(mdp_reader *reader, const mdp_matrix *matrix, int64_t first, int64_t n, void *scratch,
                             float *out) {
    if (matrix->tensor->type == MDP_F32) return read_elements(reader, matrix, first, n, out);
    int64_t chunk = MDP_MATRIX_CHUNK_BYTE / element_byte(matrix);
    for (int64_t done = 0; done < n; done += chunk) {
        int64_t now = n - done < chunk ? n - done : chunk;
        MDP_TRY(read_elements(reader, matrix, first + done, now, scratch));
        mdp_widen(matrix->tensor->type, scratch, now, out + done);
    }
    return mdp_ok();
}

static runs choose_runs(const mdp_matrix *matrix, int64_t row0, int64_t n_row) {
    runs r = {.first = matrix->first + row0 * matrix->row_stride};
    if (matrix->col_stride <= matrix->row_stride) {
        r.n_outer = n_row, r.n_inner = matrix->n_col;
        r.outer_stride = matrix->row_stride, r.stride = matrix->col_stride;
        r.outer_place = matrix->n_col, r.inner_place = 1;
    } else {
        r.n_outer = matrix->n_col, r.n_inner = n_row;
        r.outer_stride = matrix->col_stride, r.stride = matrix->row_stride;
        r.outer_place = 1, r.inner_place = matrix->n_col;
    }
    return r;
}

/* Elements that fit scratch, and how many of a run come at once. */
static int64_t pieces_of_run(const mdp_matrix *matrix, const runs *r, int64_t *room, int64_t *stride) {
    *room = MDP_MATRIX_CHUNK_BYTE / (element_byte(matrix) + (int64_t)sizeof(float)) / 64 * 64;
    *stride = r->stride > 0 ? r->stride : 1; /* 0 only when a run has one element */
    return *stride > *room ? 1 : (*room - 1) / *stride + 1;
}

/* Of rows without their mask. */
static int64_t plain_read_bytes(const mdp_matrix *matrix, int64_t row0, int64_t n_row) {
    int64_t room, stride, span = 0;
    if (matrix->scaling.tensor != NULL) return mdp_scaled_read_bytes(matrix, row0, n_row);
    if (is_dense(matrix, n_row)) return n_row * matrix->n_col * element_byte(matrix);
    runs r = choose_runs(matrix, row0, n_row);
    int64_t most = pieces_of_run(matrix, &r, &room, &stride);
    for (int64_t inner = 0; inner < r.n_inner; inner += most)
        span += ((r.n_inner - inner < most ? r.n_inner - inner : most) - 1) * stride + 1;
    return r.n_outer * span * element_byte(matrix);
}

int64_t mdp_matrix_read_bytes(const mdp_matrix *matrix, int64_t row0, int64_t n_row) {
    if (n_row == 0 || matrix->n_col == 0) return 0;
    return plain_read_bytes(matrix, row0, n_row) + mdp_mask_read_bytes(matrix->mask);
}

/* Scratch holds a piece of a run twice: widened, and behind that as stored. Elements between those of a run are read
 * with it, since the system reads whole pages anyway; what lies between runs is not. */
static mdp_status read_runs(mdp_reader *reader, const mdp_matrix *matrix, const runs *r, void *scratch, float *out) {
    int64_t room, stride, most = pieces_of_run(matrix, r, &room, &stride);
    float *wide = scratch;
    void *stored = wide + room;
    for (int64_t outer = 0; outer < r->n_outer; outer++) {
        for (int64_t inner = 0; inner < r->n_inner; inner += most) {
            int64_t n = r->n_inner - inner < most ? r->n_inner - inner : most;
            int64_t span = (n - 1) * stride + 1;
            MDP_TRY(read_elements(reader, matrix, r->first + outer * r->outer_stride + inner * stride, span, stored));
            mdp_widen(matrix->tensor->type, stored, span, wide);
            float *to = out + outer * r->outer_place + inner * r->inner_place;
            for (int64_t i = 0; i < n; i++) to[i * r->inner_place] = wide[i * stride];
        }
    }
    return mdp_ok();
}

static mdp_status read_plain(mdp_reader *reader, const mdp_matrix *matrix, int64_t row0, int64_t n_row, void *scratch,
                             float *out) {
    if (matrix->scaling.tensor != NULL) return mdp_scaled_read(reader, matrix, row0, n_row, scratch, out);
    if (is_dense(matrix, n_row)) {
        return read_dense(reader, matrix, matrix->first + row0 * matrix->row_stride, n_row * matrix->n_col, scratch,
                          out);
    }
    runs r = choose_runs(matrix, row0, n_row);
    return read_runs(reader, matrix, &r, scratch, out);
}

mdp_status mdp_matrix_read(mdp_reader *reader, const mdp_matrix *matrix, int64_t row0, int64_t n_row, void *scratch,
                           float *out) {
    MDP_TRY(check(matrix, row0, n_row));
    if (n_row == 0 || matrix->n_col == 0) return mdp_ok();
    MDP_TRY(read_plain(reader, matrix, row0, n_row, scratch, out));
    return matrix->mask ? mdp_mask_rows(reader, matrix, n_row, scratch, out) : mdp_ok();
}

/* Can rows be read as bf16 straight into place? */
static bool is_plain_bf16(const mdp_matrix *matrix, int64_t n_row) {
    return matrix->tensor->type == MDP_BF16 && matrix->scaling.tensor == NULL && matrix->mask == NULL &&
           is_dense(matrix, n_row);
}

int64_t mdp_matrix_room(const mdp_matrix *matrix, mdp_dtype type, int64_t n_row) {
    bool plain = type == MDP_BF16 && is_plain_bf16(matrix, n_row);
    return n_row * matrix->n_col * (plain ? (int64_t)sizeof(uint16_t) : (int64_t)sizeof(float));
}

/* n values of f32 become bf16 at the front of their own place. */
static void round_in_place(int64_t n, char *values) {
    float piece[256];
    int64_t most = (int64_t)(sizeof piece / sizeof piece[0]);
    for (int64_t done = 0; done < n; done += most) {
        int64_t now = n - done < most ? n - done : most;
        memcpy(piece, values + done * (int64_t)sizeof(float), (size_t)now * sizeof(float));
        mdp_round_bf16(piece, now, (uint16_t *)(void *)(values + done * (int64_t)sizeof(uint16_t)));
    }
}

mdp_status mdp_matrix_read_as(mdp_reader *reader, const mdp_matrix *matrix, mdp_dtype type, int64_t row0, int64_t n_row,
                              void *scratch, void *out) {
    if (type == MDP_F32) return mdp_matrix_read(reader, matrix, row0, n_row, scratch, out);
    if (is_plain_bf16(matrix, n_row)) {
        MDP_TRY(check(matrix, row0, n_row));
        int64_t n = n_row * matrix->n_col;
        return n > 0 ? read_elements(reader, matrix, matrix->first + row0 * matrix->row_stride, n, out) : mdp_ok();
    }
    MDP_TRY(mdp_matrix_read(reader, matrix, row0, n_row, scratch, out));
    round_in_place(n_row * matrix->n_col, out);
    return mdp_ok();
}

mdp_status mdp_matrix_load(mdp_reader *reader, const mdp_matrix *matrix, float **out) {
    void *scratch = NULL;
    float *values = NULL;
    mdp_status status;
    *out = NULL;
    MDP_TRY_GOTO(status, failed, mdp_alloc(&scratch, mdp_matrix_scratch(matrix, matrix->n_row), 1, "read buffer"));
    MDP_TRY_GOTO(status, failed, MDP_ALLOC(&values, matrix->n_row * matrix->n_col, matrix->tensor->name));
    MDP_TRY_GOTO(status, failed, mdp_matrix_read(reader, matrix, 0, matrix->n_row, scratch, values));
    mdp_free(scratch);
    *out = values;
    return status;
failed:
    mdp_free(scratch);
    mdp_free(values);
    return status;
}

#define LINE_ROWS 64 /* read at a time */

static mdp_status read_lines(mdp_reader *reader, const mdp_matrix *matrix, bool by_column, void *scratch, float *rows,
                             int64_t stride, float *out) {
    for (int64_t row = 0; row < matrix->n_row; row += LINE_ROWS) {
        int64_t n = mdp_smaller(matrix->n_row - row, LINE_ROWS);
        MDP_TRY(mdp_matrix_read(reader, matrix, row, n, scratch, rows));
        for (int64_t r = 0; r < n; r++)
            for (int64_t c = 0; c < matrix->n_col; c++)
                out[by_column ? c * stride + row + r : (row + r) * stride + c] = rows[r * matrix->n_col + c];
    }
    return mdp_ok();
}

mdp_status mdp_matrix_read_lines(mdp_reader *reader, const mdp_matrix *matrix, bool by_column, int64_t stride,
                                 float *out) {
    void *scratch = NULL;
    float *rows = NULL;
    mdp_status status = mdp_alloc(&scratch, mdp_matrix_scratch(matrix, LINE_ROWS) + 1, 1, "rows of a matrix");
    if (status.code == MDP_OK) status = MDP_ALLOC(&rows, LINE_ROWS * matrix->n_col, "rows of a matrix");
    if (status.code == MDP_OK) status = read_lines(reader, matrix, by_column, scratch, rows, stride, out);
    mdp_free(scratch);
    mdp_free(rows);
    return status;
}
