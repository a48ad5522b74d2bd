/* GEMM against exact integer arithmetic, and its bits at other alignments and from several threads at once. */
#include "mdp/linalg.h"

#include <math.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { N = 67, M = 45, K = 130, LDX = 140, LDW = 133, LDY = 50 };

/* Small integers: every sum is exact in f32, so any order must give the same. */
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

static void products_equal_exact_integer_sums_and_leave_padding_alone(void **state) {
    (void)state;
    static float x[N * LDX], wt[M * LDW], w[K * LDY], y[N * LDY], sum[N * LDY];
    for (int i = 0; i < N; i++) {
        for (int j = 0; j < LDX; j++) x[i * LDX + j] = j < K ? entry(i, j, 1) : NAN;
    }
    for (int i = 0; i < M; i++) {
        for (int j = 0; j < LDW; j++) wt[i * LDW + j] = j < K ? entry(i, j, 2) : NAN;
    }
    for (int i = 0; i < K; i++) {
        for (int j = 0; j < LDY; j++) w[i * LDY + j] = j < M ? entry(j, i, 2) : NAN;
    }
    for (int i = 0; i < N * LDY; i++) y[i] = sum[i] = 1000.0F;
    mdp_gemm_nt(N, M, K, x, LDX, wt, LDW, y, LDY);
    mdp_gemm_nn_add(N, M, K, x, LDX, w, LDY, sum, LDY);
    for (int i = 0; i < N; i++) {
        for (int j = 0; j < LDY; j++) {
            int64_t exact = 0;
            for (int k = 0; k < K; k++) exact += (int64_t)entry(i, k, 1) * (int64_t)entry(j, k, 2);
            assert_true(y[i * LDY + j] == (j < M ? (float)exact : 1000.0F));
            assert_true(sum[i * LDY + j] == (j < M ? (float)(exact + 1000) : 1000.0F));
        }
    }
}

static float random_value(int64_t i) {
    return (float)(mdp_random_uniform(5, 0, (uint64_t)i) - 0.5);
}

/* One product on data placed `offset` floats from an aligned address; result without padding. */
typedef struct job {
    int offset;
    float y[N * M];
} job;

static void *multiply(void *argument) {
    job *j = argument;
    float *memory = aligned_alloc(64, 64 * ((N * K + M * K + 32) * sizeof(float) / 64 + 1));
    float *x = memory + j->offset, *w = x + N * K + 1;
    for (int i = 0; i < N * K; i++) x[i] = random_value(i);
    for (int i = 0; i < M * K; i++) w[i] = random_value(N * K + i);
    mdp_gemm_nt(N, M, K, x, K, w, K, j->y, M);
    free(memory);
    return NULL;
}

static void a_product_has_the_same_bits_at_every_alignment_and_from_every_thread(void **state) {
    (void)state;
    enum { N_JOB = 8 };
    static job jobs[N_JOB], first;
    pthread_t threads[N_JOB];
    multiply(&first);
    for (int i = 0; i < N_JOB; i++) {
        jobs[i].offset = 3 * i;
        assert_int_equal(pthread_create(&threads[i], NULL, multiply, &jobs[i]), 0);
    }
    for (int i = 0; i < N_JOB; i++) {
        assert_int_equal(pthread_join(threads[i], NULL), 0);
        assert_memory_equal(first.y, jobs[i].y, sizeof first.y);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(blas_start_leaves_one_thread),
        cmocka_unit_test(products_equal_exact_integer_sums_and_leave_padding_alone),
        cmocka_unit_test(a_product_has_the_same_bits_at_every_alignment_and_from_every_thread),
    };
    return cmocka_run_group_tests_name("linalg_gemm", tests, NULL, NULL);
}
