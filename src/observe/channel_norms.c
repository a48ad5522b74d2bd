/* channel_norms.c - how strong each channel is that the matrices of an expert read: what masks weigh weights by.
 *
 * The sums are vectors (vectors.c), exact like all others; here they become norms. */
#include "mdp/observe.h"

#include <math.h>

const char *const mdp_channel_norms_names[] = {[MDP_NORMS_NONE] = "none",
                                               [MDP_NORMS_GATED] = "gated",
                                               [MDP_NORMS_PLAIN] = "plain",
                                               [MDP_NORMS_BOTH] = "both",
                                               NULL};

unsigned mdp_channel_norms_vectors(mdp_channel_norms norms) {
    unsigned bits = 0;
    if (norms & MDP_NORMS_GATED) bits |= 1u << MDP_GATED_INPUT_SQUARE | 1u << MDP_GATED_HIDDEN_SQUARE;
    if (norms & MDP_NORMS_PLAIN) bits |= 1u << MDP_INPUT_SQUARE | 1u << MDP_HIDDEN_SQUARE;
    return bits;
}

void mdp_stats_channel_norms(const mdp_stats *stats, int64_t layer_index, mdp_expert_t expert, bool gated, bool hidden,
                             float *out, bool *seen) {
    const mdp_layer_stats *layer = &stats->layers[layer_index];
    mdp_vector_id id = gated ? (hidden ? MDP_GATED_HIDDEN_SQUARE : MDP_GATED_INPUT_SQUARE)
                             : (hidden ? MDP_HIDDEN_SQUARE : MDP_INPUT_SQUARE);
    int64_t n = hidden ? layer->d_ff : stats->d_model;
    const mdp_short_sum *sums = layer->vectors[id] + expert * n;
    *seen = mdp_stats_count(stats, layer_index, expert, NULL) > 0.0;
    for (int64_t j = 0; j < n; j++) out[j] = *seen ? (float)sqrt(fmax(mdp_short_value(&sums[j]), 0.0)) : 1.0f;
}
