/* Products of every library against exact integer arithmetic, their bits at other alignments and from several threads
 * at once, and what bf16 rounds. */
#include "mdp/linalg.h"

#include <math.h>
#include <omp.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { N = 67, M = 45, K = 130, LDX = 140, LDW = 133, LDY = 50 };

static bool is_there(mdp_gemm_library library) {
#ifdef MDP_HAVE_ONEDNN
    return library == MDP_OPENBLAS || library == MDP_ONEDNN;
#else
    return library == MDP_OPENBLAS;
#endif
}

/* NULL, where this processor cannot. */
static mdp_gemm *make(mdp_gemm_library library, mdp_gemm_type type) {
    mdp_gemm *gemm = NULL;
    mdp_status status = mdp_gemm_new(library, type, 1, &gemm);
    if (status.code == MDP_OK) return gemm;
    assert_int_equal(status.code, MDP_USAGE);
    print_message("%s\n", status.text);
    assert_true(type == MDP_GEMM_BF16 || !is_there(library));
    return NULL;
}

/* Small integers: every sum is exact in f32, so any order must give the same; so are they in bf16. */
static float entry(int i, int j, int salt) {
    return (float)((i * 7 + j * 3 + i * j + salt) % 11 - 5);
}

static void blas_start_leaves_one_thread(void **state) {
    (void)state;
    char name[128];
    assert_int_equal(mdp_blas_start().code, MDP_OK);
    mdp_blas_name(name, sizeof name);
    print_message("BLAS: %s\n", name);
    assert_true(strlen(name) > 4);
}

static uint16_t rounded[M * LDW];
static float x[N * LDX], wt[M * LDW], w[K * LDY], weights[N * LDY], y[N * LDY], sum[N * LDY];

static void fill_operands(void) {
    for (int i = 0; i < N; i++) {
        for (int j = 0; j < LDX; j++) x[i * LDX + j] = j < K ? entry(i, j, 1) : NAN;
    }
    for (int i = 0; i < M; i++) {
        for (int j = 0; j < LDW; j++) wt[i * LDW + j] = j < K ? entry(i, j, 2) : NAN;
    }
    for (int i = 0; i < K; i++) {
        for (int j = 0; j < LDY; j++) w[i * LDY + j] = j < M ? entry(j, i, 2) : NAN;
    }
    mdp_round_bf16(wt, M * LDW, rounded);
    for (int i = 0; i < N * LDY; i++) weights[i] = y[i] = sum[i] = 1000.0F;
}

static void check_products(mdp_gemm_library library, mdp_gemm_type type) {
    mdp_gemm *gemm = make(library, type);
    char name[128];
    if (!gemm) return;
    mdp_gemm_describe(gemm, name, sizeof name);
    print_message("%s\n", name);
    fill_operands();
    mdp_gemm_weights(gemm, N, M, K, x, LDX, type == MDP_GEMM_BF16 ? (void *)rounded : wt, LDW, weights, LDY);
    mdp_gemm_nt(gemm, N, M, K, x, LDX, wt, LDW, y, LDY);
    mdp_gemm_nn_add(gemm, N, M, K, x, LDX, w, LDY, sum, LDY);
    mdp_gemm_nt_add(gemm, N, M, K, x, LDX, wt, LDW, sum, LDY);
    for (int i = 0; i < N; i++) {
        for (int j = 0; j < LDY; j++) {
            int64_t exact = 0;
            for (int k = 0; k < K; k++) exact += (int64_t)entry(i, k, 1) * (int64_t)entry(j, k, 2);
            assert_true(weights[i * LDY + j] == (j < M ? (float)exact : 1000.0F));
            assert_true(y[i * LDY + j] == (j < M ? (float)exact : 1000.0F));
            assert_true(sum[i * LDY + j] == (j < M ? (float)(2 * exact + 1000) : 1000.0F));
        }
    }
    assert_int_equal(mdp_gemm_check(gemm).code, MDP_OK);
    mdp_gemm_destroy(gemm);
}

static void products_equal_exact_integer_sums_and_leave_padding_alone(void **state) {
    (void)state;
    for (int library = 0; library < MDP_N_GEMM_LIBRARY; library++) {
        for (int type = 0; type < MDP_N_GEMM_TYPE; type++)
            check_products((mdp_gemm_library)library, (mdp_gemm_type)type);
    }
}

static float random_value(int64_t i) {
    return (float)(mdp_random_uniform(5, 0, (uint64_t)i) - 0.5);
}

/* One product on data placed `offset` floats from an aligned address; result without padding. */
typedef struct job {
    mdp_gemm *gemm;
    int offset;
    float y[N * M];
} job;

static void *multiply(void *argument) {
    job *j = argument;
    float *memory = aligned_alloc(64, 64 * ((N * K + M * K + 32) * sizeof(float) / 64 + 1));
    float *own_x = memory + j->offset, *own_w = own_x + N * K + 1;
    uint16_t own_rounded[M * K + 32], *at = own_rounded + j->offset;
    for (int i = 0; i < N * K; i++) own_x[i] = random_value(i);
    for (int i = 0; i < M * K; i++) own_w[i] = random_value(N * K + i);
    mdp_round_bf16(own_w, M * K, at);
    mdp_gemm_weights(j->gemm, N, M, K, own_x, K, mdp_gemm_type_of(j->gemm) == MDP_GEMM_BF16 ? (void *)at : own_w, K,
                     j->y, M);
    free(memory);
    return NULL;
}

enum { N_JOB = 8 };

/* In f32 from several threads at once; in bf16, whose threads are those of OpenMP, one after the other. */
static void check_bits(mdp_gemm_library library, mdp_gemm_type type) {
    static job jobs[N_JOB], first;
    pthread_t threads[N_JOB];
    mdp_gemm *gemm = make(library, type);
    if (!gemm) return;
    first.gemm = gemm;
    multiply(&first);
    for (int i = 0; i < N_JOB; i++) {
        jobs[i].gemm = gemm;
        jobs[i].offset = 3 * i;
        if (type == MDP_GEMM_F32)
            assert_int_equal(pthread_create(&threads[i], NULL, multiply, &jobs[i]), 0);
        else
            multiply(&jobs[i]);
    }
    for (int i = 0; i < N_JOB; i++) {
        if (type == MDP_GEMM_F32) assert_int_equal(pthread_join(threads[i], NULL), 0);
        assert_memory_equal(first.y, jobs[i].y, sizeof first.y);
    }
    mdp_gemm_destroy(gemm);
}

static void a_product_has_the_same_bits_at_every_alignment_and_from_every_thread(void **state) {
    (void)state;
    for (int library = 0; library < MDP_N_GEMM_LIBRARY; library++) {
        for (int type = 0; type < MDP_N_GEMM_TYPE; type++) check_bits((mdp_gemm_library)library, (mdp_gemm_type)type);
    }
}

/* As large as a tile with a panel, and long enough for several pieces of bf16. */
enum { LARGE_N = 512, LARGE_M = 512, LARGE_K = 4500 };

static void large_product(mdp_gemm *gemm, const float *a, const float *b, float *out) {
    bool in_bf16 = mdp_gemm_type_of(gemm) == MDP_GEMM_BF16;
    uint16_t *b_rounded = malloc((size_t)LARGE_M * LARGE_K * sizeof *b_rounded);
    mdp_round_bf16(b, LARGE_M * LARGE_K, b_rounded);
    mdp_gemm_weights(gemm, LARGE_N, LARGE_M, LARGE_K, a, LARGE_K, in_bf16 ? (const void *)b_rounded : b, LARGE_K, out,
                     LARGE_M);
    free(b_rounded);
}

static void fill_large(float **a, float **b, float **out) {
    *a = malloc((size_t)LARGE_N * LARGE_K * sizeof **a);
    *b = malloc((size_t)LARGE_M * LARGE_K * sizeof **b);
    *out = malloc((size_t)LARGE_N * LARGE_M * sizeof **out);
    for (int i = 0; i < LARGE_N * LARGE_K; i++) (*a)[i] = random_value(i);
    for (int i = 0; i < LARGE_M * LARGE_K; i++) (*b)[i] = random_value(LARGE_N * LARGE_K + i);
}

/* Threads of this process, by the kernel's count. */
static int count_threads(void) {
    char line[200];
    int n = -1;
    FILE *file = fopen("/proc/self/status", "re");
    assert_non_null(file);
    while (n < 0 && fgets(line, sizeof line, file)) (void)sscanf(line, "Threads: %d", &n);
    fclose(file);
    assert_true(n > 0);
    return n;
}

static void a_product_starts_no_threads_and_has_the_same_bits_when_it_might(void **state) {
    (void)state;
    float *a, *b, *out, *other = malloc((size_t)LARGE_N * LARGE_M * sizeof *other);
    int before = omp_get_max_threads();
    fill_large(&a, &b, &out);
    for (int i = 0; i < MDP_N_GEMM_LIBRARY * MDP_N_GEMM_TYPE; i++) {
        mdp_gemm *gemm = make((mdp_gemm_library)(i / MDP_N_GEMM_TYPE), (mdp_gemm_type)(i % MDP_N_GEMM_TYPE));
        if (!gemm) continue;
        omp_set_num_threads(1);
        large_product(gemm, a, b, out);
        omp_set_num_threads(3);
        int n_thread = count_threads();
        large_product(gemm, a, b, other);
        assert_int_equal(count_threads(), n_thread);
        assert_int_equal(omp_get_max_threads(), 3); /* a product leaves the caller's number alone */
        assert_memory_equal(out, other, (size_t)LARGE_N * LARGE_M * sizeof *out);
        assert_int_equal(mdp_gemm_check(gemm).code, MDP_OK);
        mdp_gemm_destroy(gemm);
    }
    omp_set_num_threads(before);
    free(a);
    free(b);
    free(out);
    free(other);
}

/* Rows that are rounded once, and lie in wider ones, against rows that each product rounds. */
static void rows_rounded_before_give_the_same_bits(void **state) {
    (void)state;
    enum { WIDE = LARGE_K + 37 };
    float *a, *b, *out, *other = malloc((size_t)LARGE_N * LARGE_M * sizeof *other);
    uint16_t *a_rounded = calloc((size_t)LARGE_N * WIDE, sizeof *a_rounded), *b_rounded;
    mdp_gemm *gemm = make(MDP_ONEDNN, MDP_GEMM_BF16);
    if (!gemm) skip();
    fill_large(&a, &b, &out);
    b_rounded = malloc((size_t)LARGE_M * LARGE_K * sizeof *b_rounded);
    mdp_round_bf16(b, LARGE_M * LARGE_K, b_rounded);
    for (int i = 0; i < LARGE_N; i++) mdp_round_bf16(a + i * LARGE_K, LARGE_K, a_rounded + i * WIDE);
    large_product(gemm, a, b, out);
    mdp_gemm_rounded(gemm, LARGE_N, LARGE_M, LARGE_K, a_rounded, WIDE, b_rounded, LARGE_K, other, LARGE_M);
    assert_memory_equal(out, other, (size_t)LARGE_N * LARGE_M * sizeof *out);
    assert_int_equal(mdp_gemm_check(gemm).code, MDP_OK);
    mdp_gemm_destroy(gemm);
    free(a);
    free(b);
    free(out);
    free(other);
    free(a_rounded);
    free(b_rounded);
}

/* The nearest of the two neighbours with 8 bits, the even one at a tie, by arithmetic of libm. */
static double nearest_bf16(float value) {
    int exponent;
    double fraction = frexp((double)value, &exponent);
    return ldexp(nearbyint(ldexp(fraction, 8)), exponent - 8);
}

static void bf16_rounds_both_sides_to_nearest_even_and_sums_in_f32(void **state) {
    (void)state;
    float *a, *b, *out;
    mdp_gemm *gemm = make(MDP_ONEDNN, MDP_GEMM_BF16);
    if (!gemm) skip();
    fill_large(&a, &b, &out);
    a[0] = 0x1.01p0F, b[0] = 0x1.03p0F; /* ties: to 1, and to 0x1.04p0 */
    large_product(gemm, a, b, out);
    double worst = 0.0;
    for (int i = 0; i < LARGE_N; i += 31) {
        for (int j = 0; j < LARGE_M; j += 37) {
            double exact = 0.0, size = 0.0;
            for (int k = 0; k < LARGE_K; k++) {
                double product = nearest_bf16(a[i * LARGE_K + k]) * nearest_bf16(b[j * LARGE_K + k]);
                exact += product;
                size += fabs(product);
            }
            worst = fmax(worst, fabs((double)out[i * LARGE_M + j] - exact) / size);
        }
    }
    print_message("largest error against the sum of magnitudes: %.2g\n", worst);
    assert_true(worst < 1e-6); /* of sums in f32; products of numbers that are not rounded differ by some 1e-4 */
    mdp_gemm_destroy(gemm);
    free(a);
    free(b);
    free(out);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(blas_start_leaves_one_thread),
        cmocka_unit_test(products_equal_exact_integer_sums_and_leave_padding_alone),
        cmocka_unit_test(a_product_has_the_same_bits_at_every_alignment_and_from_every_thread),
        cmocka_unit_test(a_product_starts_no_threads_and_has_the_same_bits_when_it_might),
        cmocka_unit_test(rows_rounded_before_give_the_same_bits),
        cmocka_unit_test(bf16_rounds_both_sides_to_nearest_even_and_sums_in_f32),
    };
    return cmocka_run_group_tests_name("linalg_gemm", tests, NULL, NULL);
}
