/* onednn.c - matrix products by oneDNN: its sgemm, and products in bf16.
 *
 * Built where the library was found. oneDNN splits a product among the OpenMP threads that the caller may start, unless
 * it is called from inside an active parallel region: so the caller may start one, for the time of a call. Products in
 * bf16 go in pieces of at most MOST x MOST x DEPTH, so that what a thread holds is bounded and known. */
#include "linalg/gemm.h"

#ifdef MDP_HAVE_ONEDNN

#include <omp.h>
#include <string.h>

#include "linalg/onednn_matmul.h"

#define MOST 512    /* rows of x and of w in a piece */
#define DEPTH 4096  /* inner dimension of a piece */
#define PREPARED 16 /* shapes that a thread keeps ready */
/* Pages of the library's code, and the kernels that it makes (some 20 KB a shape) and keeps: measured. */
#define LIBRARY_BYTE ((int64_t)16 << 20)

static void describe(char *out, size_t n_byte) {
    static const struct {
        dnnl_cpu_isa_t isa;
        const char *name;
    } known[] = {{dnnl_cpu_isa_sse41, "SSE41"},
                 {dnnl_cpu_isa_avx, "AVX"},
                 {dnnl_cpu_isa_avx2, "AVX2"},
                 {dnnl_cpu_isa_avx512_core, "AVX512_CORE"},
                 {dnnl_cpu_isa_avx512_core_vnni, "AVX512_CORE_VNNI"},
                 {dnnl_cpu_isa_avx512_core_bf16, "AVX512_CORE_BF16"},
                 {dnnl_cpu_isa_avx512_core_amx, "AVX512_CORE_AMX"}};
    const dnnl_version_t *version = dnnl_version();
    dnnl_cpu_isa_t isa = dnnl_get_effective_cpu_isa();
    char other[24];
    (void)snprintf(other, sizeof other, "instructions %x", (unsigned)isa);
    const char *name = other;
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++) {
        if (known[i].isa == isa) name = known[i].name;
    }
    (void)snprintf(out, n_byte, "oneDNN %d.%d.%d %s", version->major, version->minor, version->patch, name);
}

static const char *explain(int code) {
    switch ((dnnl_status_t)code) {
    case dnnl_out_of_memory:
        return "out of memory";
    case dnnl_unimplemented:
        return "this processor has no such product";
    default:
        return "the library refused it";
    }
}

/* Begin and end the time in which this thread may start no other. */
static int begin_single(void) {
    int before = omp_get_max_threads();
    omp_set_num_threads(1);
    return before;
}

static void end_single(int before) {
    omp_set_num_threads(before);
}

static int multiply_f32(const mdp_product *p) {
    int before = begin_single();
    dnnl_status_t status = dnnl_sgemm('N', p->transposed ? 'T' : 'N', p->n, p->m, p->k, 1.0F, p->x, p->ldx, p->w,
                                      p->ldw, p->add ? 1.0F : 0.0F, p->y, p->ldy);
    end_single(before);
    return (int)status;
}

/* ---- bf16 ---------------------------------------------------------------------------------------------------- */

typedef struct own {
    uint16_t *x; /* [MOST, DEPTH] rounded, rows as long as the piece is deep */
    dnnl_stream_t stream;
    mdp_matmul shapes[PREPARED];
    int oldest;
} own;

typedef struct bf16 {
    dnnl_engine_t engine;
    own *threads; /* [n_thread] */
} bf16;

/* The piece's shape, ready to run: one that was kept, or in the place of the oldest. */
static dnnl_status_t find_prepared(dnnl_engine_t engine, own *mine, const mdp_matmul *wanted, mdp_matmul **out) {
    for (int i = 0; i < PREPARED; i++) {
        mdp_matmul *shape = &mine->shapes[i];
        *out = shape;
        if (shape->run && shape->n == wanted->n && shape->m == wanted->m && shape->k == wanted->k &&
            shape->ldx == wanted->ldx && shape->ldw == wanted->ldw && shape->ldy == wanted->ldy &&
            shape->add == wanted->add)
            return dnnl_success;
    }
    *out = &mine->shapes[mine->oldest];
    mine->oldest = (mine->oldest + 1) % PREPARED;
    mdp_matmul_discard(*out);
    **out = *wanted;
    dnnl_status_t status = mdp_matmul_prepare(engine, *out);
    if (status != dnnl_success) mdp_matmul_discard(*out);
    return status;
}

static dnnl_status_t multiply_piece(dnnl_engine_t engine, own *mine, const mdp_matmul *wanted, const uint16_t *x,
                                    const uint16_t *w, float *y) {
    mdp_matmul *shape;
    dnnl_status_t status = find_prepared(engine, mine, wanted, &shape);
    return status == dnnl_success ? mdp_matmul_run(shape, mine->stream, x, w, y) : status;
}

static int smaller(int a, int b) {
    return a < b ? a : b;
}

/* Rows and columns of x from row n and column k on, as the piece reads them: where they are, or rounded to the thread's
 * own. */
static const uint16_t *find_rows(own *mine, const mdp_product *p, int n, int k, mdp_matmul *piece) {
    int64_t first = (int64_t)n * p->ldx + k;
    piece->ldx = p->rounded ? p->ldx : piece->k;
    if (p->rounded) return (const uint16_t *)p->x + first;
    const float *x = (const float *)p->x + first;
    for (int i = 0; i < piece->n; i++)
        mdp_round_bf16(x + (int64_t)i * p->ldx, piece->k, mine->x + (size_t)i * (size_t)piece->k);
    return mine->x;
}

static dnnl_status_t multiply_pieces(dnnl_engine_t engine, own *mine, const mdp_product *p) {
    const uint16_t *w = p->w;
    for (int k = 0; k < p->k; k += DEPTH) {
        mdp_matmul piece = {.k = smaller(p->k - k, DEPTH), .ldw = p->ldw, .ldy = p->ldy, .add = p->add || k > 0};
        for (int n = 0; n < p->n; n += MOST) {
            piece.n = smaller(p->n - n, MOST);
            const uint16_t *x = find_rows(mine, p, n, k, &piece);
            for (int m = 0; m < p->m; m += MOST) {
                piece.m = smaller(p->m - m, MOST);
                dnnl_status_t status = multiply_piece(engine, mine, &piece, x, w + (int64_t)m * p->ldw + k,
                                                      p->y + (int64_t)n * p->ldy + m);
                if (status != dnnl_success) return status;
            }
        }
    }
    return dnnl_success;
}

static int multiply_bf16(void *scratch, int thread, const mdp_product *p) {
    const bf16 *all = scratch;
    int before = begin_single();
    dnnl_status_t status = multiply_pieces(all->engine, &all->threads[thread], p);
    end_single(before);
    return (int)status;
}

static void close_bf16(int n_thread, void *scratch) {
    bf16 *all = scratch;
    for (int t = 0; all->threads && t < n_thread; t++) {
        own *mine = &all->threads[t];
        for (int i = 0; i < PREPARED; i++) mdp_matmul_discard(&mine->shapes[i]);
        if (mine->stream) dnnl_stream_destroy(mine->stream);
        mdp_free(mine->x);
    }
    mdp_free(all->threads);
    if (all->engine) dnnl_engine_destroy(all->engine);
    mdp_free(all);
}

static mdp_status refused(dnnl_status_t status) {
    if (status == dnnl_success) return mdp_ok();
    return MDP_ERROR(MDP_USAGE, "oneDNN cannot multiply in bf16 here: %s; use --compute f32.", explain((int)status));
}

static mdp_status fill_bf16(int n_thread, bf16 *all) {
    MDP_TRY(refused(dnnl_engine_create(&all->engine, dnnl_cpu, 0)));
    MDP_TRY(MDP_ALLOC(&all->threads, n_thread, "bf16 products"));
    for (int t = 0; t < n_thread; t++) {
        own *mine = &all->threads[t];
        MDP_TRY(MDP_ALLOC(&mine->x, MOST * DEPTH, "bf16 products"));
        MDP_TRY(refused(dnnl_stream_create(&mine->stream, all->engine, dnnl_stream_default_flags)));
    }
    /* a small one shows whether the processor can */
    const float x[16] = {1.0F};
    const uint16_t w[16] = {0x3f80};
    float y[16];
    const mdp_product product = {.n = 4, .m = 4, .k = 4, .x = x, .ldx = 4, .w = w, .ldw = 4, .y = y, .ldy = 4};
    return refused((dnnl_status_t)multiply_bf16(all, 0, &product));
}

static mdp_status open_bf16(int n_thread, void **scratch) {
    bf16 *all = NULL;
    *scratch = NULL;
    MDP_TRY(MDP_ALLOC(&all, 1, "bf16 products"));
    mdp_status status = fill_bf16(n_thread, all);
    if (status.code == MDP_OK)
        *scratch = all;
    else
        close_bf16(n_thread, all);
    return status;
}

static int64_t bf16_memory(int n_thread) {
    return n_thread * (int64_t)sizeof(uint16_t) * MOST * DEPTH;
}

const mdp_gemm_backend mdp_gemm_onednn = {.describe = describe,
                                          .n_byte = LIBRARY_BYTE,
                                          .f32 = multiply_f32,
                                          .explain = explain,
                                          .bf16_open = open_bf16,
                                          .bf16 = multiply_bf16,
                                          .bf16_close = close_bf16,
                                          .bf16_memory = bf16_memory};

#endif
