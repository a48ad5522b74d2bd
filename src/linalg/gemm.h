/* gemm.h - what gemm.c and the libraries behind it share. Private to src/linalg. */
#ifndef MDP_SRC_LINALG_GEMM_H
#define MDP_SRC_LINALG_GEMM_H

#include "mdp/linalg.h"

/* y [n, m] = x [n, k] w, or y += x w; w [k, m], or its transpose [m, k]. Row-major, leading dimensions in elements. */
typedef struct mdp_product {
    int n, m, k;
    const void *x, *w; /* of float, or of uint16_t */
    float *y;
    int ldx, ldw, ldy;
    bool transposed, add;
    bool rounded; /* x is of uint16_t */
} mdp_product;

/* A library, as far as it is asked. Products are multiplied by one thread, from several threads at once. */
typedef struct mdp_gemm_backend {
    void (*describe)(char *out, size_t n_byte);
    int64_t n_byte; /* that it comes to hold by itself, beside what it has when the program starts */
    /* 0, or the library's code of what went wrong */
    int (*f32)(const mdp_product *product);
    const char *(*explain)(int code);
    /* y = x w with w transposed and in bf16, to which x is rounded: scratch for n_thread threads, used by thread
     * `thread`; NULL: it has none */
    mdp_status (*bf16_open)(int n_thread, void **scratch);
    int (*bf16)(void *scratch, int thread, const mdp_product *product);
    void (*bf16_close)(int n_thread, void *scratch);
    int64_t (*bf16_memory)(int n_thread);
} mdp_gemm_backend;

#ifdef MDP_HAVE_ONEDNN
extern const mdp_gemm_backend mdp_gemm_onednn;
#endif

#endif
