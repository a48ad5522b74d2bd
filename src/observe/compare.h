/* compare.h - what similarities of experts take beside tiles and sums: logits and choices of all tokens, weights, the
 * outputs of all experts for a probe.
 * Private to src/observe; a collector has one. */
#ifndef MDP_OBSERVE_COMPARE_H
#define MDP_OBSERVE_COMPARE_H

#include "observe/gram.h"
#include "observe/probe.h"

#define MDP_COMPARE_PANEL 32768 /* values of an expert in a panel of weights, about: 64 KiB as bf16 */

typedef struct mdp_compare {
    const mdp_model *model;
    mdp_reader *reader;
    const mdp_stats *stats;
    int n_thread;
    unsigned vectors;               /* that are wanted: a bit for each mdp_vector_id */
    const mdp_partition *partition; /* how tokens are cut; borrowed */
    mdp_local_batch batch;          /* at hand */
    mdp_profile *profile;           /* of the pass; may be NULL */
    mdp_probe probe;
    int64_t most_expert; /* of any layer */
    float *logits;       /* [batch.n_token, most_expert] of the layer at hand; NULL: not wanted */
} mdp_compare;

static inline bool mdp_compare_wants(const mdp_compare *compare, mdp_vector_id id) {
    return compare->vectors >> id & 1;
}

/* MDP_BAD_INPUT: experts of a layer differ in width and their weights are to be compared. Local. */
mdp_status mdp_compare_begin(const mdp_collecting *with, const mdp_stats *stats, mdp_compare *out);
void mdp_compare_clear(mdp_compare *compare);
/* Room for the batch's tokens. Local. */
mdp_status mdp_compare_begin_batch(mdp_compare *compare, const mdp_engine *engine);
/* Is it the last batch of the pass? */
bool mdp_compare_is_last(const mdp_compare *compare);
/* A token of a layer, from any thread: its pairs are added to vectors[MDP_PAIR_COUNT], its logits and, where it is of
 * the probe, its input are kept. */
void mdp_compare_routed(const mdp_compare *compare, const mdp_routed_token *token, mdp_short_sum *const *vectors);
/* After a layer of a batch (the layer_index'th with experts): add this rank's part to vectors [MDP_N_VECTOR] of the
 * layer; of late ones after the last batch. keeper: the rank that keeps the layer's vectors. Collective on `comm`
 * (agrees). */
mdp_status mdp_compare_layer_all(const mdp_comm *comm, mdp_compare *compare, int64_t layer, int64_t layer_index,
                                 int keeper, mdp_short_sum *const *vectors);
/* For a resume point when `layer` layers of the model have been done in batch number `batch`: what of the probe waits
 * for the last one, at the layers' keepers. Local. */
mdp_status mdp_compare_describe(const mdp_comm *comm, mdp_compare *compare, int64_t batch, int64_t layer,
                                mdp_point *point);

#endif
