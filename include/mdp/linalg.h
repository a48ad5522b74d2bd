/* linalg.h - matrix products, row kernels with one defined order.
 *
 * Every kernel here gives the same bits for the same arguments, whatever the alignment, the thread that calls it or the
 * number of threads: GEMM is single-threaded and called with shapes fixed by the input; row kernels have one order. */
#ifndef MDP_LINALG_H
#define MDP_LINALG_H

#include "mdp/comm.h"

/* ---- BLAS ---------------------------------------------------------------------------------------------------- */

#define MDP_SUM_MESSAGE_BYTE (8 << 20) /* buffers of an exchange of rows, entries or right-hand sides */

/* Set the BLAS library to one thread of its own and check that it obeyed (MDP_INTERNAL otherwise). Call at start. */
mdp_status mdp_blas_start(void);
/* Let OpenBLAS take now what it will need when n_thread threads multiply at once: when it cannot have that (ulimit -v),
 * it would try for ever. MDP_EXHAUSTED when it could not. */
mdp_status mdp_blas_reserve(int n_thread);
/* "OpenBLAS 0.3.21 SkylakeX" or what can be known of another library; written to out. */
void mdp_blas_name(char *out, size_t n_byte);

/* ---- matrix products ----------------------------------------------------------------------------------------- */

typedef enum mdp_gemm_library { MDP_OPENBLAS, MDP_ONEDNN, MDP_N_GEMM_LIBRARY } mdp_gemm_library;
typedef enum mdp_gemm_type { MDP_GEMM_F32, MDP_GEMM_BF16, MDP_N_GEMM_TYPE } mdp_gemm_type;
extern const char *const mdp_gemm_library_names[MDP_N_GEMM_LIBRARY];
extern const char *const mdp_gemm_type_names[MDP_N_GEMM_TYPE];

/* A library that multiplies, and the numbers in which it multiplies by weights. MDP_OPENBLAS is whatever CBLAS the
 * program is linked with. Results are the same bits for the same library, type and processor kind. */
typedef struct mdp_gemm mdp_gemm;
/* For n_thread threads of OpenMP at once. Local. Errors: MDP_USAGE when the program is built without the library, when
 * the library has no products of that type, or the processor none. */
mdp_status mdp_gemm_new(mdp_gemm_library library, mdp_gemm_type type, int n_thread, mdp_gemm **out);
void mdp_gemm_destroy(mdp_gemm *gemm); /* NULL is allowed */
/* "OpenBLAS 0.3.21 SkylakeX f32": all that its bits depend on; written to out. */
void mdp_gemm_describe(const mdp_gemm *gemm, char *out, size_t n_byte);
mdp_gemm_type mdp_gemm_type_of(const mdp_gemm *gemm);
int64_t mdp_gemm_memory(const mdp_gemm *gemm); /* bytes that it and its library come to hold */
/* MDP_INTERNAL when a product failed since the gemm was made: what it was to write is undefined. */
mdp_status mdp_gemm_check(const mdp_gemm *gemm);

/* y [n, m] = x [n, k] w [m, k]^T, row-major with leading dimensions ldx, ldw, ldy (elements): activations times rows of
 * a weight matrix. With MDP_GEMM_F32 w is of float; with MDP_GEMM_BF16 it is of bf16 (uint16_t), x is rounded to bf16
 * (mdp_round_bf16), and products are summed in f32. Single-threaded. */
void mdp_gemm_weights(mdp_gemm *gemm, int n, int m, int k, const float *x, int ldx, const void *w, int ldw, float *y,
                      int ldy);
/* The same with x of bf16 too, as mdp_round_bf16 gives it; with MDP_GEMM_BF16 only. */
void mdp_gemm_rounded(mdp_gemm *gemm, int n, int m, int k, const uint16_t *x, int ldx, const uint16_t *w, int ldw,
                      float *y, int ldy);
/* The same with x and w of float, in f32, whatever the type. */
void mdp_gemm_nt(mdp_gemm *gemm, int n, int m, int k, const float *x, int ldx, const float *w, int ldw, float *y,
                 int ldy);
/* y [n, m] += x [n, k] w [m, k]^T, the same. */
void mdp_gemm_nt_add(mdp_gemm *gemm, int n, int m, int k, const float *x, int ldx, const float *w, int ldw, float *y,
                     int ldy);
/* y [n, m] += x [n, k] w [k, m], the same. */
void mdp_gemm_nn_add(mdp_gemm *gemm, int n, int m, int k, const float *x, int ldx, const float *w, int ldw, float *y,
                     int ldy);

/* ---- row kernels --------------------------------------------------------------------------------------------- */

/* y = x / sqrt(mean(x^2) + eps) * weight, [n]; sum of squares in f64, lane order fixed; y may be x. (N1 of the
 * families: in f32 the same as N2.) */
void mdp_rms_norm(const float *x, const float *weight, double eps, int64_t n, float *y);
/* y = (x - mean) / sqrt(mean((x - mean)^2) + eps) * weight + bias, [n]; both means in f64, lane order fixed; y may be
 * x. */
void mdp_layer_norm(const float *x, const float *weight, const float *bias, double eps, int64_t n, float *y);
/* Sum of a[i] * b[i] in f64, fixed lane order. */
double mdp_dot(const float *a, const float *b, int64_t n);
/* out[r] = mdp_dot(x, row[r], n), to the same bits. */
#define MDP_DOT_ROWS 4
void mdp_dot_rows(const float *x, const float *const row[MDP_DOT_ROWS], int64_t n, double out[MDP_DOT_ROWS]);
/* Sum of x[i]^2 in f64, fixed lane order. */
double mdp_sum_squares(const float *x, int64_t n);
/* Sum of the lesser of a[i] and b[i] in f64, fixed lane order. */
double mdp_sum_least(const float *a, const float *b, int64_t n);
/* Sum of |x[i]| in f64, fixed lane order. */
double mdp_sum_abs(const float *x, int64_t n);
/* Sums over two rows in one pass, to the same bits as mdp_sum_squares and mdp_dot, and the largest |y[i]|. */
typedef struct mdp_moments {
    double xx, xy, yy;
    float max_abs_y; /* 0 for n = 0; NaN is passed over */
} mdp_moments;
mdp_moments mdp_row_moments(const float *x, const float *y, int64_t n);
/* sum[j] += y[i, j] over rows i in ascending order, in f64; y [n_row, n], leading dimension ldy. */
void mdp_add_rows(const float *y, int64_t ldy, int64_t n_row, int64_t n, double *sum);
/* sum[j] += (weight[row] x[row, j])^2 over rows 0 .. n_row-1 in row order; x [n_row, n]; weight NULL: all 1. */
void mdp_add_squares(const float *x, int64_t n, const float *weight, int64_t n_row, double *sum);
/* out[i] = x[i] as bf16, the upper half of an f32: to nearest, ties to even; a NaN stays one. */
void mdp_round_bf16(const float *x, int64_t n, uint16_t *out);
/* Is no x[i] a NaN or an infinity? */
bool mdp_all_finite(const float *x, int64_t n);
/* y[i] += a * x[i], f32. */
void mdp_axpy(float a, const float *x, int64_t n, float *y);

typedef enum mdp_activation_kind { MDP_SILU, MDP_GELU, MDP_GELU_TANH, MDP_SWIGLU_CLAMPED } mdp_activation_kind;
typedef struct mdp_activation {
    mdp_activation_kind kind;
    float alpha, limit; /* of MDP_SWIGLU_CLAMPED */
} mdp_activation;
/* h[i] = act(h[i]) * u[i], f32; MDP_SWIGLU_CLAMPED: h[i] = g / (1 + e^(-alpha g)) * (c + 1), g = min(h[i], limit),
 * c = u[i] within +-limit. Our own exp so that every machine of one kernel gives the same bits. */
void mdp_gate(const mdp_activation *activation, const float *u, int64_t n, float *h);
/* The way back through mdp_gate: from its arguments gate[i] and u[i] and the gradient dh[i] of what it gives, those of
 * both arguments. f32. */
void mdp_gate_back(const mdp_activation *activation, const float *gate, const float *u, const float *dh, int64_t n,
                   float *dgate, float *du);
/* exp(x) in f32, relative error below 2e-7 over the whole range; -inf gives 0. Vectorisable, used by softmax. */
float mdp_exp(float x);
/* x[i] = exp(x[i] - shift), [n]; returns the sum in f64, fixed lane order. */
double mdp_exp_shift(float *x, float shift, int64_t n);
/* Largest of x [n], n >= 1. */
float mdp_max(const float *x, int64_t n);

/* Rotate the first 2 * n_pair values of a head in place; cosine, sine [n_pair]. */
typedef enum mdp_rope_layout { MDP_ROPE_HALF, MDP_ROPE_PAIR } mdp_rope_layout;
void mdp_rope_rotate(mdp_rope_layout layout, const float *cosine, const float *sine, int64_t n_pair, float *head);

#endif
