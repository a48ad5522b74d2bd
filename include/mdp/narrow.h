/* narrow.h - values to stored types: the way back of mdp_widen, for tensors that are made. */
#ifndef MDP_NARROW_H
#define MDP_NARROW_H

#include "mdp/checkpoint.h"

/* Can values be stored as this type: f32, f16, bf16, and codes for scaled weights F8_E4M3 and F4 (E2M1)? */
bool mdp_dtype_narrows(mdp_dtype type);
/* n values to stored ones, little-endian, each rounded once to nearest, ties to even. What is too large becomes
 * infinity in f32, f16 and bf16, else the largest value of its sign. F4: two in a byte, the lower half first. */
void mdp_narrow(mdp_dtype type, const double *values, int64_t n, void *stored);

/* The scale of a block of codes (F8_E4M3 or F4) whose largest absolute value is `largest`, stored as type `scale` (one
 * value) and returned as it will be read. F32, BF16, F16: largest / 448 in f32, then rounded. E8M0 (or U8): a power of
 * two, for E4M3 that ratio rounded up, for F4 the rule of the OCP Microscaling formats: 2^(floor(log2 largest) - 2). */
float mdp_block_scale(mdp_dtype code, mdp_dtype scale, float largest, void *stored);
/* Raise *largest to the largest absolute value, as f32, of values [n_row, n_col] with leading dimension ld. */
void mdp_block_largest(const double *values, int64_t n_row, int64_t n_col, int64_t ld, float *largest);

#endif
