/* delta.h - linear attention by the gated delta rule. */
#ifndef MDP_SRC_ENGINE_DELTA_H
#define MDP_SRC_ENGINE_DELTA_H

#include "engine/engine.h"

/* What is loaded of a layer. */
typedef struct mdp_delta_weights {
    float *kernel; /* [n_kernel, n_channel] */
    float *rate;   /* [n_value] the decay in one token is e^(rate * softplus(a + shift)), rate < 0 */
    float *shift;  /* [n_value] */
    float *norm;   /* [d_value] */
} mdp_delta_weights;
mdp_status mdp_delta_load(mdp_engine *engine, const mdp_delta *delta, mdp_delta_weights *out);
void mdp_delta_clear(mdp_delta_weights *weights);
/* Values of a row: in, z, b, a one after the other. */
int64_t mdp_delta_row_values(const mdp_delta_sizes *sizes);

/* One value head of one sequence. */
typedef struct mdp_delta_job {
    mdp_gemm *gemm;
    const mdp_delta_sizes *sizes;
    const mdp_delta_weights *weights;
    mdp_activation activation;
    bool grouped;
    double norm_eps;
    int64_t head, length;
    const float *rows; /* [length, mdp_delta_row_values], leading dimension ld */
    int64_t ld;
    float *out; /* [length, n_value * d_value], leading dimension ldo; the head's columns are filled */
    int64_t ldo;
} mdp_delta_job;
/* scratch [mdp_delta_scratch]. Local. */
void mdp_delta_head(const mdp_delta_job *job, float *scratch);
int64_t mdp_delta_scratch(const mdp_delta_sizes *sizes);

#endif
