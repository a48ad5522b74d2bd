/* kernels.h - centred kernels of an expert's outputs over the probe, as long vectors. Private to src/observe. */
#ifndef MDP_OBSERVE_KERNELS_H
#define MDP_OBSERVE_KERNELS_H

#include "mdp/observe.h"

typedef enum mdp_kernel_kind { MDP_KERNEL_LINEAR, MDP_KERNEL_RBF } mdp_kernel_kind;

/* Values of the vector of a kernel of n tokens. */
int64_t mdp_kernel_values(int64_t n);
/* Scratch of mdp_kernel_fill, in doubles. */
int64_t mdp_kernel_scratch(int64_t n);
/* The kernel K [n, n] of y [n, d]: Y Y^T, or exp(-dist^2 / (2 s^2)) with s the median of the distances of two tokens.
 * out: of (K - row means - column means + mean) / its norm the lower triangle by rows, what is off the diagonal times
 * sqrt 2, so that products of such vectors are those of the kernels; 0 where the kernel is constant. Local, one thread.
 * (arXiv 2407.09590) */
void mdp_kernel_fill(mdp_kernel_kind kind, const float *y, int64_t n, int64_t d, double *scratch, float *out);

#endif
