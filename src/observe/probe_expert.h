/* probe_expert.h - one expert on all rows of a probe, by one rank. Private to src/observe. */
#ifndef MDP_OBSERVE_PROBE_EXPERT_H
#define MDP_OBSERVE_PROBE_EXPERT_H

#include "mdp/observe.h"

/* What the experts of a layer have in common, and scratch. */
typedef struct mdp_probe_bench {
    mdp_reader *reader;
    mdp_gemm *gemm;
    int n_thread;
    mdp_activation activation;
    int64_t n, d_model, d_ff; /* rows; sizes of the largest expert */
    const float *x;           /* [n, d_model] */
    float *h;                 /* [n, d_ff] */
    float *panels;            /* [2 n_thread, MDP_PANEL_ROWS, larger of the sizes] */
    float *up;                /* [n_thread, MDP_TILE_ROWS, MDP_PANEL_ROWS] */
    void **stored;            /* [2 n_thread] room to read panels */
    int64_t n_stored;
} mdp_probe_bench;

/* Room for the experts of a layer; the other members are set. Local. */
mdp_status mdp_probe_bench_take(mdp_probe_bench *bench, const mdp_moe *moe);
void mdp_probe_bench_clear(mdp_probe_bench *bench);
/* Bytes that it takes. */
int64_t mdp_probe_bench_memory(int64_t n, int64_t d_model, int64_t d_ff, int n_thread);
/* y [n, d_model]: what the expert makes of x, in f32 whatever --compute says, tile by tile as in the forward pass.
 * Local. */
mdp_status mdp_probe_expert(const mdp_probe_bench *bench, const mdp_expert *expert, float *y);

#endif
