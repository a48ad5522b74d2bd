/* gemm.c - matrix products by one of the libraries that the program is linked with, each kept to one thread.
 *
 * A rank's threads share out whole products, so a product is never split: its bits then depend on its shape and on the
 * library's kernel alone. A product cannot return an error from inside a parallel loop, so the first one is kept until
 * mdp_gemm_check. Here is the CBLAS library; its OpenBLAS calls are weak references, so that any other links as well.
 */
#include "linalg/gemm.h"

#include <cblas.h>
#include <omp.h>
#include <string.h>

extern void openblas_set_num_threads(int n) __attribute__((weak));
extern int openblas_get_num_threads(void) __attribute__((weak));
extern char *openblas_get_config(void) __attribute__((weak));
extern char *openblas_get_corename(void) __attribute__((weak));
extern void *blas_memory_alloc(int place) __attribute__((weak)); /* OpenBLAS's buffers: not in its headers, exported */
extern void blas_memory_free(void *buffer) __attribute__((weak));

#define BLAS_BUFFER (INT64_C(128) << 20) /* bytes of address space of a buffer of OpenBLAS on x86-64 and arm64 */

mdp_status mdp_blas_start(void) {
    MDP_TRY(mdp_fault(MDP_INTERNAL, "set the BLAS library to one thread"));
    if (openblas_set_num_threads == NULL || openblas_get_num_threads == NULL) return mdp_ok();
    openblas_set_num_threads(1);
    int n = openblas_get_num_threads();
    if (n != 1) {
        return MDP_ERROR(MDP_INTERNAL,
                         "the BLAS library was told to use 1 thread and says that it uses %d; start the program with "
                         "OPENBLAS_NUM_THREADS=1 OMP_NUM_THREADS=1, or link another BLAS.",
                         n);
    }
    return mdp_ok();
}

mdp_status mdp_blas_reserve(int n_thread) {
    void **buffers = NULL;
    if (blas_memory_alloc == NULL || blas_memory_free == NULL) return mdp_ok();
    MDP_TRY(mdp_memory_spare(n_thread * BLAS_BUFFER, "OpenBLAS needs to multiply"));
    MDP_TRY(MDP_ALLOC(&buffers, n_thread, "the buffers of OpenBLAS"));
    for (int i = 0; i < n_thread; i++) buffers[i] = blas_memory_alloc(0);
    for (int i = 0; i < n_thread; i++) blas_memory_free(buffers[i]); /* which keeps them */
    mdp_free(buffers);
    return mdp_ok();
}

void mdp_blas_name(char *out, size_t n_byte) {
    char name[32] = "CBLAS", version[32] = "of unknown make";
    const char *core = "";
    /* config reads "OpenBLAS 0.3.21 NO_LAPACKE DYNAMIC_ARCH ..." */
    if (openblas_get_config != NULL) (void)sscanf(openblas_get_config(), "%31s %31s", name, version);
    if (openblas_get_corename != NULL) core = openblas_get_corename();
    (void)snprintf(out, n_byte, "%s %s%s%s", name, version, core[0] == '\0' ? "" : " ", core);
}

static int multiply_cblas(const mdp_product *p) {
    cblas_sgemm(CblasRowMajor, CblasNoTrans, p->transposed ? CblasTrans : CblasNoTrans, p->n, p->m, p->k, 1.0F, p->x,
                p->ldx, p->w, p->ldw, p->add ? 1.0F : 0.0F, p->y, p->ldy);
    return 0;
}

/* ---- the libraries ------------------------------------------------------------------------------------------- */

const char *const mdp_gemm_library_names[MDP_N_GEMM_LIBRARY] = {[MDP_OPENBLAS] = "openblas", [MDP_ONEDNN] = "onednn"};
const char *const mdp_gemm_type_names[MDP_N_GEMM_TYPE] = {[MDP_GEMM_F32] = "f32", [MDP_GEMM_BF16] = "bf16"};

static const mdp_gemm_backend cblas = {.describe = mdp_blas_name, .f32 = multiply_cblas};

static const mdp_gemm_backend *const backends[MDP_N_GEMM_LIBRARY] = {
    [MDP_OPENBLAS] = &cblas,
#ifdef MDP_HAVE_ONEDNN
    [MDP_ONEDNN] = &mdp_gemm_onednn,
#endif
};

struct mdp_gemm {
    const mdp_gemm_backend *backend;
    mdp_gemm_type type;
    int n_thread;
    void *scratch; /* of bf16; the backend's */
    int failed;    /* the library's code of the first product that failed; 0: none */
};

static mdp_status open_type(mdp_gemm *gemm, mdp_gemm_library library) {
    if (gemm->type == MDP_GEMM_F32) return mdp_ok();
    if (!gemm->backend->bf16_open)
        return MDP_ERROR(MDP_USAGE, "--compute bf16 needs oneDNN; --gemm %s multiplies in f32 only.",
                         mdp_gemm_library_names[library]);
    return gemm->backend->bf16_open(gemm->n_thread, &gemm->scratch);
}

mdp_status mdp_gemm_new(mdp_gemm_library library, mdp_gemm_type type, int n_thread, mdp_gemm **out) {
    *out = NULL;
    if (!backends[library])
        return MDP_ERROR(MDP_USAGE,
                         "this program was built without %s; install it (Debian: libdnnl-dev) and build again, or use "
                         "--gemm openblas --compute f32.",
                         library == MDP_ONEDNN ? "oneDNN" : mdp_gemm_library_names[library]);
    mdp_gemm *gemm = NULL;
    MDP_TRY(MDP_ALLOC(&gemm, 1, "matrix products"));
    gemm->backend = backends[library];
    gemm->type = type;
    gemm->n_thread = n_thread;
    mdp_status status = open_type(gemm, library);
    if (status.code == MDP_OK)
        *out = gemm;
    else
        mdp_gemm_destroy(gemm);
    return status;
}

void mdp_gemm_destroy(mdp_gemm *gemm) {
    if (!gemm) return;
    if (gemm->scratch) gemm->backend->bf16_close(gemm->n_thread, gemm->scratch);
    mdp_free(gemm);
}

void mdp_gemm_describe(const mdp_gemm *gemm, char *out, size_t n_byte) {
    char name[100];
    gemm->backend->describe(name, sizeof name);
    (void)snprintf(out, n_byte, "%s %s", name, mdp_gemm_type_names[gemm->type]);
}

mdp_gemm_type mdp_gemm_type_of(const mdp_gemm *gemm) {
    return gemm->type;
}

int64_t mdp_gemm_memory(const mdp_gemm *gemm) {
    return gemm->backend->n_byte + (gemm->scratch ? gemm->backend->bf16_memory(gemm->n_thread) : 0);
}

mdp_status mdp_gemm_check(const mdp_gemm *gemm) {
    int code = __atomic_load_n(&gemm->failed, __ATOMIC_RELAXED);
    if (code == 0) return mdp_ok();
    char name[100];
    gemm->backend->describe(name, sizeof name);
    return MDP_ERROR(MDP_INTERNAL, "a matrix product failed in %s: %s.", name, gemm->backend->explain(code));
}

/* ---- products ------------------------------------------------------------------------------------------------ */

static void keep_failure(mdp_gemm *gemm, int code) {
    if (code != 0) __atomic_store_n(&gemm->failed, code, __ATOMIC_RELAXED);
}

void mdp_gemm_weights(mdp_gemm *gemm, int n, int m, int k, const float *x, int ldx, const void *w, int ldw, float *y,
                      int ldy) {
    const mdp_product product = {
        .n = n, .m = m, .k = k, .x = x, .ldx = ldx, .w = w, .ldw = ldw, .y = y, .ldy = ldy, .transposed = true};
    keep_failure(gemm, gemm->type == MDP_GEMM_BF16 ? gemm->backend->bf16(gemm->scratch, omp_get_thread_num(), &product)
                                                   : gemm->backend->f32(&product));
}

void mdp_gemm_rounded(mdp_gemm *gemm, int n, int m, int k, const uint16_t *x, int ldx, const uint16_t *w, int ldw,
                      float *y, int ldy) {
    const mdp_product product = {.n = n,
                                 .m = m,
                                 .k = k,
                                 .x = x,
                                 .ldx = ldx,
                                 .w = w,
                                 .ldw = ldw,
                                 .y = y,
                                 .ldy = ldy,
                                 .transposed = true,
                                 .rounded = true};
    keep_failure(gemm, gemm->backend->bf16(gemm->scratch, omp_get_thread_num(), &product));
}

/* y (+)= x w, or x w^T. */
static void multiply_f32(mdp_gemm *gemm, bool transposed, bool add, int n, int m, int k, const float *x, int ldx,
                         const float *w, int ldw, float *y, int ldy) {
    const mdp_product product = {.n = n,
                                 .m = m,
                                 .k = k,
                                 .x = x,
                                 .ldx = ldx,
                                 .w = w,
                                 .ldw = ldw,
                                 .y = y,
                                 .ldy = ldy,
                                 .transposed = transposed,
                                 .add = add};
    keep_failure(gemm, gemm->backend->f32(&product));
}

void mdp_gemm_nt(mdp_gemm *gemm, int n, int m, int k, const float *x, int ldx, const float *w, int ldw, float *y,
                 int ldy) {
    multiply_f32(gemm, true, false, n, m, k, x, ldx, w, ldw, y, ldy);
}

void mdp_gemm_nt_add(mdp_gemm *gemm, int n, int m, int k, const float *x, int ldx, const float *w, int ldw, float *y,
                     int ldy) {
    multiply_f32(gemm, true, true, n, m, k, x, ldx, w, ldw, y, ldy);
}

void mdp_gemm_nn_add(mdp_gemm *gemm, int n, int m, int k, const float *x, int ldx, const float *w, int ldw, float *y,
                     int ldy) {
    multiply_f32(gemm, false, true, n, m, k, x, ldx, w, ldw, y, ldy);
}
