/* neurons.h - what is summed for every neuron of an expert: how much it does for the expert's output.
 * Private to src/observe. */
#ifndef MDP_OBSERVE_NEURONS_H
#define MDP_OBSERVE_NEURONS_H

#include "observe/compare.h"

/* Add a tile's activations, and their products with its outputs, to vectors [MDP_N_VECTOR] of the layer at hand. From
 * any thread. MDP_BAD_INPUT: a sum is not finite or too large. */
mdp_status mdp_neurons_add(const mdp_stats *stats, const mdp_tile *tile, mdp_short_sum *const *vectors);
/* Add the squares of the columns of the down projections that are this rank's to read: sum [n_expert, d_ff]. Local. */
mdp_status mdp_neurons_add_columns(const mdp_comm *comm, const mdp_compare *compare, int64_t layer, mdp_short_sum *sum);
/* Bytes that this takes, beside the sums. */
int64_t mdp_neurons_memory(const mdp_moe *moe, int n_thread);

#endif
