/* Weights of few bits with block scales: every way in which rows lie in a stored tensor, against values that the test
 * computes for one element at a time from the definition of the formats. */
#include "mdp/checkpoint.h"

#include <math.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#define START 5 /* bytes before the data: stored values are not aligned */

/* A file with the codes of one tensor and then its scales, all bytes at random. */
typedef struct store {
    char path[64];
    char *paths[1];
    int64_t sizes[1];
    unsigned char *bytes; /* of the file */
    mdp_tensor codes, scales;
    mdp_scaling scaling;
    mdp_catalogue catalogue;
    mdp_reader *reader;
} store;

static void assert_ok(mdp_status status) {
    if (status.code != MDP_OK) print_error("%s\n", status.text);
    assert_int_equal(status.code, MDP_OK);
}

static int64_t blocks(int64_t n, int64_t block) {
    return (n + block - 1) / block;
}

/* n_matrix matrices of n_row x n_col codes. */
static store *make(mdp_dtype code, mdp_dtype scale, int64_t n_matrix, int64_t n_row, int64_t n_col, int64_t block_row,
                   int64_t block_col) {
    store *s = calloc(1, sizeof *s);
    int64_t n_code = n_matrix * n_row * n_col * mdp_dtype_bits(code) / 8;
    int64_t n_scale = n_matrix * blocks(n_row, block_row) * blocks(n_col, block_col) * mdp_dtype_bits(scale) / 8;
    int64_t n_byte = START + n_code + n_scale;
    uint64_t state = 88172645463325252u;
    s->bytes = malloc((size_t)n_byte);
    for (int64_t i = 0; i < n_byte; i++) {
        state ^= state << 13, state ^= state >> 7, state ^= state << 17;
        s->bytes[i] = (unsigned char)(state >> 32);
    }
    for (int64_t i = START + n_code + 3; scale == MDP_F32 && i < n_byte; i += 4)
        s->bytes[i] = 0x3e + i % 3; /* near 1 */
    for (int64_t i = START + n_code; mdp_dtype_bits(scale) == 8 && i < n_byte; i++) s->bytes[i] = 100 + i % 50;
    (void)snprintf(s->path, sizeof s->path, "/tmp/mdp-scaled-XXXXXX");
    FILE *file = fdopen(mkstemp(s->path), "wb");
    assert_int_equal(fwrite(s->bytes, 1, (size_t)n_byte, file), n_byte);
    fclose(file);
    s->codes = (mdp_tensor){.name = "codes", .type = code == MDP_F4 ? MDP_U8 : code, .offset = START, .n_byte = n_code};
    s->scales = (mdp_tensor){.name = "scales", .type = scale, .offset = START + n_code, .n_byte = n_scale};
    s->scaling = (mdp_scaling){.tensor = &s->scales,
                               .code = code,
                               .n_row = n_row,
                               .n_col = n_col,
                               .block_row = block_row,
                               .block_col = block_col};
    s->paths[0] = s->path;
    s->sizes[0] = n_byte;
    s->catalogue = (mdp_catalogue){.path = s->path, .n_file = 1, .files = s->paths, .file_bytes = s->sizes};
    assert_ok(mdp_reader_new(&s->catalogue, &s->reader));
    return s;
}

static void destroy(store *s) {
    mdp_reader_destroy(s->reader);
    assert_int_equal(unlink(s->path), 0);
    free(s->bytes);
    free(s);
}

/* The value of a code with n_exponent and n_mantissa bits, of bias `bias`, that is no NaN. */
static float code_value(unsigned code, int n_exponent, int n_mantissa, int bias) {
    int exponent = (int)(code >> n_mantissa) & ((1 << n_exponent) - 1);
    double mantissa = (double)(code & ((1u << n_mantissa) - 1));
    double value = exponent == 0 ? ldexp(mantissa, 1 - bias - n_mantissa)
                                 : ldexp(mantissa + (double)(1 << n_mantissa), exponent - bias - n_mantissa);
    return (float)(code >> (n_exponent + n_mantissa) ? -value : value);
}

/* Element number i of the stored tensor. */
static float element(const store *s, int64_t i) {
    const mdp_scaling *g = &s->scaling;
    int64_t matrix = i / (g->n_row * g->n_col), row = i / g->n_col % g->n_row, column = i % g->n_col;
    int64_t at = (matrix * blocks(g->n_row, g->block_row) + row / g->block_row) * blocks(g->n_col, g->block_col) +
                 column / g->block_col;
    const unsigned char *codes = s->bytes + START, *scales = codes + s->codes.n_byte;
    float scale;
    if (s->scales.type == MDP_F32)
        memcpy(&scale, scales + 4 * at, 4);
    else
        scale = ldexpf(1.0f, scales[at] - 127);
    if (g->code == MDP_F4) return code_value(codes[i / 2] >> (i % 2 * 4) & 15u, 2, 1, 1) * scale;
    return (codes[i] & 0x7f) == 0x7f ? NAN : code_value(codes[i], 4, 3, 7) * scale;
}

/* Memory beyond the stated scratch and output must stay as it is: both are followed by a guard. */
static void assert_rows(store *s, const mdp_matrix *m, int64_t row0, int64_t n_row) {
    int64_t n = n_row * m->n_col, n_scratch = mdp_matrix_scratch(m, n_row);
    assert_true(n_scratch <= 4 << 20);
    float *out = malloc((size_t)(n + 1) * sizeof *out);
    unsigned char *scratch = malloc((size_t)n_scratch + 1);
    out[n] = 12345.0f;
    scratch[n_scratch] = 77;
    assert_ok(mdp_matrix_read(s->reader, m, row0, n_row, scratch, out));
    for (int64_t r = 0; r < n_row; r++) {
        for (int64_t c = 0; c < m->n_col; c++) {
            float expected = element(s, m->first + (row0 + r) * m->row_stride + c), got = out[r * m->n_col + c];
            if (isnan(expected) ? !isnan(got) : memcmp(&got, &expected, sizeof got) != 0)
                fail_msg("row %lld column %lld: %g, not %g", (long long)(row0 + r), (long long)c, (double)got,
                         (double)expected);
        }
    }
    assert_true(out[n] == 12345.0f);
    assert_int_equal(scratch[n_scratch], 77);
    free(scratch);
    free(out);
}

static void fp8_with_ragged_blocks_reads_right(void **state) {
    (void)state;
    store *s = make(MDP_F8_E4M3, MDP_F32, 1, 300, 201, 128, 128);
    mdp_matrix whole = mdp_matrix_scaled(&s->codes, &s->scaling);
    assert_int_equal(whole.n_row, 300);
    assert_int_equal(whole.n_col, 201);
    assert_int_equal(mdp_matrix_bytes(&whole), 300 * 201 + 3 * 2 * 4);
    assert_rows(s, &whole, 0, 300);
    assert_rows(s, &whole, 127, 2);
    assert_rows(s, &whole, 299, 1);
    assert_rows(s, &whole, 0, 0);
    destroy(s);
}

/* The up projection begins inside a block of rows; experts begin their blocks anew. */
static void halves_of_fused_experts_read_right(void **state) {
    (void)state;
    store *s = make(MDP_F8_E4M3, MDP_F8_E8M0, 3, 264, 130, 128, 64);
    for (int64_t e = 0; e < 3; e++) {
        mdp_matrix up = mdp_matrix_scaled(&s->codes, &s->scaling);
        up.n_row = 132;
        up.first = (e * 264 + 132) * 130;
        assert_rows(s, &up, 0, 132);
        assert_rows(s, &up, 100, 32);
    }
    mdp_matrix all = mdp_matrix_scaled(&s->codes, &s->scaling);
    assert_rows(s, &all, 0, 3 * 264);
    destroy(s);
}

static void interleaved_mxfp4_rows_read_right(void **state) {
    (void)state;
    store *s = make(MDP_F4, MDP_U8, 4, 128, 96, 1, 32);
    for (int64_t e = 0; e < 4; e++) {
        for (int64_t odd = 0; odd < 2; odd++) {
            mdp_matrix half = mdp_matrix_scaled(&s->codes, &s->scaling);
            half.n_row = 64;
            half.first = (e * 128 + odd) * 96;
            half.row_stride = 2 * 96;
            assert_rows(s, &half, 0, 64);
            assert_rows(s, &half, 63, 1);
        }
    }
    mdp_matrix part = mdp_matrix_scaled(&s->codes, &s->scaling); /* columns of far rows */
    part.first = 40;
    part.n_col = 50;
    part.n_row = 20;
    part.row_stride = 5 * 96;
    assert_rows(s, &part, 0, 20);
    destroy(s);
}

/* More than the scratch holds: several groups, of many rows and of one row. */
static void rows_beyond_the_scratch_are_read_in_groups(void **state) {
    (void)state;
    store *s = make(MDP_F8_E4M3, MDP_F32, 1, 700, 9000, 128, 128);
    mdp_matrix many = mdp_matrix_scaled(&s->codes, &s->scaling);
    assert_rows(s, &many, 3, 690);
    destroy(s);
    s = make(MDP_F8_E4M3, MDP_F32, 1, 3, 3000000, 128, 128);
    mdp_matrix wide = mdp_matrix_scaled(&s->codes, &s->scaling);
    assert_rows(s, &wide, 0, 3);
    destroy(s);
    s = make(MDP_F8_E4M3, MDP_F32, 1, 1, 5000000, 128, 128);
    mdp_matrix wider = mdp_matrix_scaled(&s->codes, &s->scaling);
    float *out = NULL;
    mdp_status status = mdp_matrix_load(s->reader, &wider, &out);
    assert_int_equal(status.code, MDP_BAD_INPUT);
    assert_non_null(strstr(status.text, "too wide"));
    destroy(s);
}

static void misuse_is_an_error(void **state) {
    (void)state;
    store *s = make(MDP_F4, MDP_U8, 1, 8, 64, 1, 32);
    const mdp_matrix whole = mdp_matrix_scaled(&s->codes, &s->scaling);
    mdp_matrix wrong[4] = {whole, whole, whole, whole};
    wrong[0].col_stride = 2; /* columns not side by side */
    wrong[0].n_col = 32;
    wrong[1].first = 1; /* half a byte */
    wrong[1].n_col = 32;
    wrong[2].first = 32; /* over the end of a stored row */
    wrong[2].n_row = 7;
    wrong[3].n_row = 9; /* beyond the tensor */
    for (int i = 0; i < 4; i++) {
        float *out = NULL;
        assert_int_equal(mdp_matrix_load(s->reader, &wrong[i], &out).code, MDP_INTERNAL);
        assert_null(out);
    }
    destroy(s);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(fp8_with_ragged_blocks_reads_right),
        cmocka_unit_test(halves_of_fused_experts_read_right),
        cmocka_unit_test(interleaved_mxfp4_rows_read_right),
        cmocka_unit_test(rows_beyond_the_scratch_are_read_in_groups),
        cmocka_unit_test(misuse_is_an_error),
    };
    return cmocka_run_group_tests_name("checkpoint_scaled", tests, NULL, NULL);
}
