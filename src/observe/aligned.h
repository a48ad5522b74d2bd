/* aligned.h - inner products of the weights of two experts after the best permutation of the neurons of one of them.
 * Private to src/observe. */
#ifndef MDP_OBSERVE_ALIGNED_H
#define MDP_OBSERVE_ALIGNED_H

#include "observe/compare.h"

#define MDP_ALIGNED_MOST 32 /* experts of a layer of which all pairs are matched; above: */
#define MDP_ALIGNED_NEAR                                                                                               \
    8 /* those of which one is among the other's nearest as neurons stand; of the others the                           \
       * product is that of the neurons as they stand */

/* Add to sum [n_expert, n_expert] this rank's part; product: all ranks' parts of the products of the neurons as they
 * stand (MDP_WEIGHT_PRODUCT). Collective on `comm` (agrees). */
mdp_status mdp_aligned_add_all(const mdp_comm *comm, const mdp_compare *compare, int64_t layer,
                               const mdp_short_sum *product, mdp_short_sum *sum, int64_t *flop);
/* Bytes that it takes of a rank, and what rank `rank` of a layout does, at most. */
int64_t mdp_aligned_memory(const mdp_moe *moe, int64_t d_model, int n_thread);
void mdp_aligned_cost(const mdp_comm *layout, const mdp_moe *moe, int64_t d_model, int rank, mdp_rank_cost *out);

#endif
