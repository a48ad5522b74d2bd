/* probe.h - every expert of a layer on the same sample of tokens. Private to src/observe.
 *
 * The sample is drawn from all tokens by a seed, so neither ranks nor batches show. What a layer's block sees of its
 * tokens is kept by the layer's keeper until the last batch; then experts are dealt to ranks and run on all of it. */
#ifndef MDP_OBSERVE_PROBE_H
#define MDP_OBSERVE_PROBE_H

#include "observe/kernels.h"

typedef struct mdp_probe {
    const mdp_model *model;
    mdp_reader *reader;
    mdp_gemm *gemm;
    int n_thread;
    bool allow_nonfinite;
    int64_t n;      /* tokens; 0: there is no probe */
    int64_t *token; /* [n] ascending */
    int64_t first;  /* in token: of this rank's of the batch at hand, and */
    int64_t n_own;  /* how many */
    float *rows;    /* [n_own, d_model] what the layer at hand sees of them */
    int64_t n_layer;
    float **inputs; /* [n_layer] with experts: [n, d_model], where this rank keeps them; else NULL */
} mdp_probe;

/* Draw the sample; the first members are set. Local. */
mdp_status mdp_probe_draw(mdp_probe *probe, const mdp_stats *stats);
void mdp_probe_clear(mdp_probe *probe);
/* Tokens of the probe below a number. */
int64_t mdp_probe_below(const mdp_probe *probe, int64_t token);
/* Room for the batch's. Local. */
mdp_status mdp_probe_begin_batch(mdp_probe *probe, const mdp_local_batch *batch);
/* What a token's block sees, from any thread. */
void mdp_probe_see(const mdp_probe *probe, int64_t token, const float *x);
/* Room for what a layer's block sees, at its keeper. Local. */
mdp_status mdp_probe_make_room(mdp_probe *probe, int64_t layer_index);
/* After a layer of a batch whose first token is `token`: its rows go to the keeper. Collective on `comm` (agrees). */
mdp_status mdp_probe_gather_all(const mdp_comm *comm, mdp_probe *probe, int64_t layer_index, int keeper, int64_t token);
/* After that in the last batch: run the experts, and add this rank's part to the vectors [MDP_N_VECTOR] that are
 * wanted. Then the inputs go. Collective on `comm` (agrees). */
mdp_status mdp_probe_run_all(const mdp_comm *comm, mdp_probe *probe, int64_t layer, int64_t layer_index, int keeper,
                             unsigned wanted, mdp_short_sum *const *vectors, mdp_profile *profile);

#endif
