/* merge_dern.h - experts that take in neurons of dropped ones: matching, and what an expert's neurons become. */
#ifndef MDP_SRC_PIPELINE_MERGE_DERN_H
#define MDP_SRC_PIPELINE_MERGE_DERN_H

#include "pipeline/merge_run.h"

#include <omp.h>

#define MDP_DERN_TILE 256
#define MDP_DERN_DEPTH 1024
/* Values of f64 that a thread's tile takes, with room for products in f32. */
#define MDP_DERN_TILE_VALUES ((int64_t)MDP_DERN_TILE * MDP_DERN_TILE * 3 / 2)
#define MDP_DERN_ROUNDS 20

/* ---- merge_dern.c ------------------------------------------------------------------------------------------------ */

/* Bring values to length 1, which they had not: the length; 0 stays 0. */
double mdp_merge_scale(float *values, int64_t n);
/* Does neuron `neuron` of the layer's dropped expert number `dropped` go to kept one number `kept`? */
bool mdp_merge_goes_to(const mdp_merge_run *run, int32_t dropped, int64_t neuron, int32_t kept);
/* This thread's tile of those of all threads. */
static inline double *mdp_merge_tile_of(double *tiles) {
    return tiles + omp_get_thread_num() * MDP_DERN_TILE_VALUES;
}
/* tile [n, k] of rows of MDP_DERN_TILE = left [n, depth] right [k, depth]^T, in f32 summed in f64. */
void mdp_merge_multiply(mdp_gemm *gemm, const float *left, int64_t n, const float *right, int64_t k, int64_t depth,
                        double *tile);

/* ---- merge_pool.c ------------------------------------------------------------------------------------------------ */

/* Neurons of an expert and those that it takes in, as [gate; up; down]. */
typedef struct mdp_merge_pool {
    int64_t f, n, width; /* that it has; that there are; values of each */
    float *values;       /* [n, width] */
    double *length;      /* [n] */
    double *weight;      /* [n] */
    int64_t *name;       /* [n] expert and neuron, one number: all differ */
    float *centre;       /* [f, width] of length 1 */
    double *size;        /* [f] their lengths */
    int64_t *assigned;   /* [n] */
} mdp_merge_pool;

/* Room for n neurons. Freed on error too. Local. */
mdp_status mdp_merge_pool_new(int64_t f, int64_t n, int64_t width, mdp_merge_pool *out);
void mdp_merge_pool_clear(mdp_merge_pool *pool);
/* From values, weights and names (d: values of the gate's row): centres and their sizes, by at most MDP_DERN_ROUNDS
 * rounds; *n_round of them. Local. */
mdp_status mdp_merge_pool_reduce(mdp_merge_pool *pool, int64_t d, mdp_gemm *gemm, int n_thread, int *n_round);
int64_t mdp_merge_pool_memory(int64_t f, int64_t n, int64_t width, int n_thread);

#endif
