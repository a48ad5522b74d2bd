/* subset_loss.h - losses of a list of sets. Private to src/observe. */
#ifndef MDP_OBSERVE_SUBSET_LOSS_H
#define MDP_OBSERVE_SUBSET_LOSS_H

#include "mdp/subsets.h"

#define MDP_SUBSETS_AT_ONCE 1024 /* sets in a list, at most */

/* Add the tokens at hand to the losses of n sets [n, size]: sums and partial [n] come in as they are on every rank, and
 * go out so on rank `root`, which changes from list to list; others' stay. Collective on layer->comm (agrees).
 * MDP_BAD_INPUT: not finite. */
mdp_status mdp_subset_losses_all(const mdp_subset_layer *layer, int root, const mdp_expert_t *sets, int32_t size,
                                 int64_t n, double *sums, double *partial);

#endif
