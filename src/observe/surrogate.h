/* surrogate.h - what an expert does without its activation, S = W_d (W_g o W_u) with o elementwise: a matrix
 * [d_model, d_model] that does not change when neurons change places. Private to src/observe. */
#ifndef MDP_OBSERVE_SURROGATE_H
#define MDP_OBSERVE_SURROGATE_H

#include "observe/compare.h"

/* Add to sum [n_expert, n_expert] this rank's part of the inner products of the surrogates of a layer's experts.
 * Collective on `comm` (agrees). */
mdp_status mdp_surrogate_add_all(const mdp_comm *comm, const mdp_compare *compare, int64_t layer, mdp_short_sum *sum,
                                 int64_t *flop);
/* Bytes that it takes of a rank, and what rank `rank` of a layout does. */
int64_t mdp_surrogate_memory(const mdp_moe *moe, int64_t d_model, int n_rank, int n_thread);
void mdp_surrogate_cost(const mdp_comm *layout, const mdp_moe *moe, int64_t d_model, int rank, mdp_rank_cost *out);

#endif
