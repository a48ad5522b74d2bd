/* masked.c - stored bytes with the codes of masked entries set to 0: see masked.h.
 *
 * In whatever order and layout a tensor stores a matrix, an entry is one code of it. So first all rows of the matrices
 * in the slice are looked at, as they are computed with, and one bit is kept for each code of the slice; then bytes are
 * copied, and the codes of entries that go become 0. What is read from the result is then, to the bit, what is read
 * through the mask. */
#include "checkpoint/masked.h"
#include "checkpoint/matrix.h"
#include "mdp/mask.h"

#include <string.h>

#define BAND_VALUES (INT64_C(1) << 20)

static int64_t code_bits(const mdp_matrix *matrix) {
    return mdp_dtype_bits(matrix->scaling.tensor ? matrix->scaling.code : matrix->tensor->type);
}

/* Bytes of one bit for each code of the slice. */
static int64_t bits_bytes(const mdp_masked *masked) {
    return (masked->n_byte * 8 / code_bits(masked->matrices[0]) + 7) / 8;
}

static int64_t band_rows(const mdp_matrix *matrix) {
    int64_t n = BAND_VALUES / matrix->n_col;
    return n > matrix->n_row ? matrix->n_row : n > 1 ? n : 1;
}

int64_t mdp_masked_read_bytes(const mdp_recast *recast) {
    const mdp_masked *masked = &recast->masked;
    int64_t n_byte = masked->n_byte;
    for (int m = 0; m < masked->n; m++) {
        mdp_matrix plain = *masked->matrices[m];
        int64_t step = band_rows(&plain);
        n_byte += mdp_mask_read_bytes(plain.mask);
        plain.mask = NULL;
        for (int64_t row = 0; row < plain.n_row; row += step)
            n_byte += mdp_matrix_read_bytes(&plain, row, plain.n_row - row < step ? plain.n_row - row : step);
    }
    return n_byte;
}

/* Bytes of the buffers: the band, what reading it takes, which is also the mask's scratch and norms, and the bits. */
static void rooms_of(const mdp_recast *recast, int64_t *values, int64_t *scratch, int64_t *bits) {
    const mdp_masked *masked = &recast->masked;
    *values = *scratch = 0;
    *bits = bits_bytes(masked);
    for (int m = 0; m < masked->n; m++) {
        const mdp_matrix *matrix = masked->matrices[m];
        *values = mdp_larger(*values, band_rows(matrix) * matrix->n_col * (int64_t)sizeof(float));
        *scratch = mdp_larger(*scratch, MDP_MATRIX_CHUNK_BYTE + mdp_mask_scratch(matrix->n_col));
    }
}

int64_t mdp_masked_memory(const mdp_recast *recast) {
    int64_t values, scratch, bits;
    rooms_of(recast, &values, &scratch, &bits);
    return values + scratch + bits;
}

/* Note rows row0 .. row0 + n - 1 of a matrix, whose values are there. at: the slice's first code in the tensor. */
static void note_rows(const mdp_matrix *matrix, const float *norm, int64_t row0, int64_t n, const float *values,
                      int64_t at, double *scores, unsigned char *drop, unsigned char *bits) {
    for (int64_t r = 0; r < n; r++) {
        int64_t code = matrix->first + (row0 + r) * matrix->row_stride - at;
        mdp_mask_choose(&matrix->mask->rule, values + r * matrix->n_col, norm, matrix->n_col, scores, drop);
        for (int64_t c = 0; c < matrix->n_col; c++, code += matrix->col_stride)
            if (drop[c]) bits[code / 8] |= (unsigned char)(1u << code % 8);
    }
}

static mdp_status note_matrix(mdp_recaster *to, mdp_reader *reader, const mdp_masked *masked, const mdp_matrix *matrix,
                              int64_t *n_read) {
    int64_t step = band_rows(matrix), n_col = matrix->n_col, at = masked->first_byte * 8 / code_bits(matrix);
    double *scores = (double *)(void *)((char *)to->scratch + MDP_MATRIX_CHUNK_BYTE);
    float *room = (float *)(scores + 2 * n_col);
    unsigned char *drop = (unsigned char *)(room + n_col);
    const float *norm;
    mdp_matrix plain = *matrix;
    plain.mask = NULL;
    MDP_TRY(mdp_mask_load_norm(reader, matrix, room, &norm));
    *n_read += mdp_mask_read_bytes(matrix->mask);
    for (int64_t row = 0; row < matrix->n_row; row += step) {
        int64_t n = matrix->n_row - row < step ? matrix->n_row - row : step;
        MDP_TRY(mdp_matrix_read(reader, &plain, row, n, to->scratch, to->values));
        *n_read += mdp_matrix_read_bytes(&plain, row, n);
        note_rows(matrix, norm, row, n, to->values, at, scores, drop, to->made);
    }
    return mdp_ok();
}

static mdp_status note_all(mdp_recaster *to, mdp_reader *reader, const mdp_recast *recast, int64_t *n_read) {
    const mdp_masked *masked = &recast->masked;
    int64_t values, scratch, bits;
    rooms_of(recast, &values, &scratch, &bits);
    to->recast = NULL; /* until it is whole */
    MDP_TRY(mdp_recaster_make_rooms(to, values, scratch, bits));
    memset(to->made, 0, (size_t)bits);
    for (int m = 0; m < masked->n; m++) MDP_TRY(note_matrix(to, reader, masked, masked->matrices[m], n_read));
    to->recast = recast;
    return mdp_ok();
}

static bool is_noted(const unsigned char *bits, int64_t code) {
    return bits[code / 8] >> code % 8 & 1;
}

/* n bytes of the slice from `offset` on: two codes in a byte, or one code in so many. */
static void clear_codes(const unsigned char *bits, int64_t n_bit, int64_t offset, int64_t n, unsigned char *bytes) {
    for (int64_t i = 0; i < n && n_bit >= 8; i++)
        if (is_noted(bits, (offset + i) * 8 / n_bit)) bytes[i] = 0;
    for (int64_t i = 0; i < n && n_bit == 4; i++) {
        if (is_noted(bits, 2 * (offset + i))) bytes[i] &= 0xf0;
        if (is_noted(bits, 2 * (offset + i) + 1)) bytes[i] &= 0x0f;
    }
}

mdp_status mdp_masked_read(mdp_recaster *recaster, mdp_reader *reader, const mdp_recast *recast, int64_t offset,
                           int64_t n_byte, void *out, int64_t *n_read) {
    const mdp_matrix *first = recast->masked.matrices[0];
    if (recaster->recast != recast) MDP_TRY(note_all(recaster, reader, recast, n_read));
    MDP_TRY(mdp_reader_read(reader, first->tensor->file, first->tensor->offset + recast->masked.first_byte + offset,
                            n_byte, out));
    *n_read += n_byte;
    clear_codes(recaster->made, code_bits(first), offset, n_byte, out);
    return mdp_ok();
}
