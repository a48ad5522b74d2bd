/* gemm.c - matrix products by the CBLAS library, kept to one thread of its own.
 *
 * A rank's threads share out whole products, so a product is never split: its bits then depend on its shape and on the
 * library's kernel alone. The OpenBLAS calls are weak references, so that any other CBLAS links as well. */
#include "mdp/linalg.h"

#include <cblas.h>
#include <string.h>

extern void openblas_set_num_threads(int n) __attribute__((weak));
extern int openblas_get_num_threads(void) __attribute__((weak));
extern char *openblas_get_config(void) __attribute__((weak));
extern char *openblas_get_corename(void) __attribute__((weak));

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

void mdp_blas_name(char *out, size_t n_byte) {
    char name[32] = "CBLAS", version[32] = "of unknown make";
    const char *core = "";
    /* config reads "OpenBLAS 0.3.21 NO_LAPACKE DYNAMIC_ARCH ..." */
    if (openblas_get_config != NULL) (void)sscanf(openblas_get_config(), "%31s %31s", name, version);
    if (openblas_get_corename != NULL) core = openblas_get_corename();
    (void)snprintf(out, n_byte, "%s %s%s%s", name, version, core[0] == '\0' ? "" : " ", core);
}

void mdp_gemm_nt(int n, int m, int k, const float *x, int ldx, const float *w, int ldw, float *y, int ldy) {
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, n, m, k, 1.0F, x, ldx, w, ldw, 0.0F, y, ldy);
}

void mdp_gemm_nt_add(int n, int m, int k, const float *x, int ldx, const float *w, int ldw, float *y, int ldy) {
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, n, m, k, 1.0F, x, ldx, w, ldw, 1.0F, y, ldy);
}

void mdp_gemm_nn_add(int n, int m, int k, const float *x, int ldx, const float *w, int ldw, float *y, int ldy) {
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, n, m, k, 1.0F, x, ldx, w, ldw, 1.0F, y, ldy);
}
