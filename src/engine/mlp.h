/* mlp.h - what every token meets: dense layers and shared experts. */
#ifndef MDP_SRC_ENGINE_MLP_H
#define MDP_SRC_ENGINE_MLP_H

#include "engine/engine.h"
#include "engine/memory.h"

/* A gated MLP over rows of this rank: out = down(act(gate(x)) * up(x)) [* sigmoid(output_gate . x)], x the normalised
 * rows first_local .. first_local + n_local - 1 of a branch (whole packs). */
typedef struct mdp_mlp {
    const mdp_expert *expert;
    int64_t d_ff;
    mdp_activation activation;
    const float *output_gate; /* [d_model] or NULL */
    const float *norm;        /* as loaded */
} mdp_mlp;
/* out [n_local, d_model]. Local. */
mdp_status mdp_mlp_compute(mdp_engine *engine, const mdp_mlp *mlp, const mdp_branch *branch, int64_t first_local,
                           int64_t n_local, float *out);
/* x += MLP(Norm2(x)) for every branch: a layer without experts. Local. */
mdp_status mdp_dense(mdp_engine *engine, const mdp_layer *layer);
/* Groups of tiles of packs that mdp_mlp_compute takes together, and of those that mdp_dense does: times that the
 * matrices are read for one branch. */
int64_t mdp_mlp_groups(const mdp_pack *packs, int64_t n_pack, int n_thread);
int64_t mdp_dense_groups(const mdp_partition *partition, const mdp_pack *packs, int64_t n_pack, int n_thread);
/* Bytes that each of the two takes. */
int64_t mdp_mlp_memory(const mdp_model *model, mdp_gemm_type type, int64_t d_ff, const mdp_rank_share *share,
                       int n_thread);
int64_t mdp_dense_memory(const mdp_model *model, mdp_gemm_type type, const mdp_partition *partition, int64_t d_ff,
                         const mdp_rank_share *share, int n_thread);

#endif
