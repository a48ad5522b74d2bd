/* peak.c - how fast this machine multiplies matrices: the yardstick of tools/bench.
 *
 *   peak                 median GFLOP/s of each library and shape, in one JSON object a line
 *   peak loop            1,024 x 4,096 x 4,096 products over and over, in parts, from "ready" to SIGTERM; then the
 * GFLOP
 *
 * y [n, m] = x [n, k] w [m, k]^T in f32, and from values that are bf16 already, on one thread, straight from the
 * libraries: nothing of the program is used but what makes oneDNN 2 and 3 look alike. */
#include <cblas.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#ifdef MDP_HAVE_ONEDNN
#include "../src/linalg/onednn_matmul.h"
#endif

#define REPEATS 3

typedef struct shape {
    int n, m, k;
} shape;

static const shape SHAPES[] = {{2048, 2048, 2048}, {512, 256, 6144}, {1024, 4096, 4096}, {512, 512, 1024}};
enum { N_SHAPE = sizeof SHAPES / sizeof SHAPES[0] };

typedef void multiply_fn(const shape *s, const float *x, const float *w, float *y);

static void multiply_cblas(const shape *s, const float *x, const float *w, float *y) {
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, s->n, s->m, s->k, 1.0F, x, s->k, w, s->k, 0.0F, y, s->m);
}

#ifdef MDP_HAVE_ONEDNN
static void multiply_onednn(const shape *s, const float *x, const float *w, float *y) {
    if (dnnl_sgemm('N', 'T', s->n, s->m, s->k, 1.0F, x, s->k, w, s->k, 0.0F, y, s->m) != dnnl_success) exit(1);
}

/* Half of the bytes of the values count as twice as many in bf16; products are made ready once for a shape. */
static void multiply_bf16(const shape *s, const float *x, const float *w, float *y) {
    static dnnl_engine_t engine;
    static dnnl_stream_t stream;
    static mdp_matmul ready[N_SHAPE];
    mdp_matmul *product = &ready[s - SHAPES];
    if (!engine && (dnnl_engine_create(&engine, dnnl_cpu, 0) != dnnl_success ||
                    dnnl_stream_create(&stream, engine, dnnl_stream_default_flags) != dnnl_success))
        exit(1);
    if (!product->run) {
        *product = (mdp_matmul){.n = s->n, .m = s->m, .k = s->k, .ldx = s->k, .ldw = s->k, .ldy = s->m};
        if (mdp_matmul_prepare(engine, product) != dnnl_success) exit(1);
    }
    if (mdp_matmul_run(product, stream, x, w, y) != dnnl_success) exit(1);
}
#endif

static const struct library {
    const char *name, *type;
    multiply_fn *multiply;
} LIBRARIES[] = {
    {"openblas", "f32", multiply_cblas},
#ifdef MDP_HAVE_ONEDNN
    {"onednn", "f32", multiply_onednn},
    {"onednn", "bf16", multiply_bf16},
#endif
};
enum { N_LIBRARY = sizeof LIBRARIES / sizeof LIBRARIES[0] };

static double seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static double flops(const shape *s) {
    return 2.0 * s->n * s->m * s->k;
}

/* Normal numbers around 0: products of subnormal ones or zeros would not be typical. */
static float *new_values(size_t n) {
    float *values = malloc(n * sizeof *values);
    if (!values) exit(1);
    unsigned state = 1;
    for (size_t i = 0; i < n; i++) {
        state = state * 1664525U + 1013904223U;
        values[i] = (float)(state >> 8) / 8388608.0F - 1.0F;
    }
    return values;
}

static int compare(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* One product of each library and shape in turn, so that other work on the machine slows all of them alike. */
static void print_medians(const float *x, const float *w, float *y) {
    double rate[N_LIBRARY][N_SHAPE][REPEATS];
    for (int r = -1; r < REPEATS; r++) { /* the first round warms up */
        for (int s = 0; s < N_SHAPE; s++) {
            for (int l = 0; l < N_LIBRARY; l++) {
                double start = seconds();
                LIBRARIES[l].multiply(&SHAPES[s], x, w, y);
                if (r >= 0) rate[l][s][r] = flops(&SHAPES[s]) / (seconds() - start) * 1e-9;
            }
        }
    }
    for (int l = 0; l < N_LIBRARY; l++) {
        for (int s = 0; s < N_SHAPE; s++) {
            qsort(rate[l][s], REPEATS, sizeof(double), compare);
            printf("{\"library\": \"%s\", \"type\": \"%s\", \"shape\": [%d, %d, %d], \"gflops\": %.2f}\n",
                   LIBRARIES[l].name, LIBRARIES[l].type, SHAPES[s].n, SHAPES[s].m, SHAPES[s].k,
                   rate[l][s][REPEATS / 2]);
        }
    }
}

static volatile sig_atomic_t stopped;

static void stop(int number) {
    (void)number;
    stopped = 1;
}

/* In parts of some 20 ms: whoever stops the loop wants to know how far it came. */
static void print_work(const float *x, const float *w, float *y) {
    const shape part = {1024, 256, 4096};
    const int n_part = 4096 / part.m;
    int64_t n = 0;
    printf("ready\n");
    fflush(stdout);
    for (; !stopped; n++) multiply_cblas(&part, x, w + (size_t)(n % n_part) * (size_t)(part.m * part.k), y);
    printf("%.2f\n", flops(&part) * (double)n * 1e-9);
}

int main(int argc, char **argv) {
    size_t largest = (size_t)4096 * 4096;
    float *x = new_values(largest), *w = new_values(largest), *y = new_values(largest);
    if (argc > 1 && strcmp(argv[1], "loop") == 0) {
        signal(SIGTERM, stop);
        print_work(x, w, y);
    } else {
        print_medians(x, w, y);
    }
    free(x);
    free(w);
    free(y);
    return 0;
}
