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

/* ---- rows of matrices -------------------------------------------------------------------------------------------- */

/* n_byte bytes that belong at `offset` of a tensor. */
typedef mdp_status mdp_put_fn(void *context, const mdp_tensor *tensor, int64_t offset, int64_t n_byte,
                              const void *data);

/* Rows that are put at once begin at a multiple of this: blocks of codes are not divided. 1 where one scale is for all
 * rows. */
int64_t mdp_matrix_put_unit(const mdp_matrix *matrix);
/* About `about` rows at once: so many that every step but the last is of whole units. */
int64_t mdp_matrix_put_step(const mdp_matrix *matrix, int64_t about);
/* Columns of blocks whose scale is for all rows; 0: none is. */
int64_t mdp_matrix_common_scales(const mdp_matrix *matrix);
/* Raise largest [mdp_matrix_common_scales] to what values [n_row, n_col] have: to be raised by all rows of the matrix
 * before any is put. */
void mdp_matrix_raise_largest(const mdp_matrix *matrix, const double *values, int64_t n_row, float *largest);
/* Put rows row0 .. row0 + n_row - 1 of a matrix, values [n_row, n_col], as its tensor stores them: rounded once, or as
 * codes with scales. row0 is a multiple of the unit, and n_row is, or the rows are the last ones. largest: of the whole
 * matrix, where scales are common; else NULL. Afterwards `values` are what will be read. Local. */
mdp_status mdp_matrix_put(const mdp_matrix *matrix, int64_t row0, int64_t n_row, double *values, const float *largest,
                          mdp_put_fn *put, void *context);

#endif
