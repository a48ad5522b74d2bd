/* super.c - experts that carry massive activations: few, and not to be judged by what they do on average.
 *
 * In: the largest |y| of every expert. Out: those that stand out, by the rule of arXiv 2507.23279 as methods.md has
 * it. Where there are under 200 experts the 99.5th percentile is the largest of all, and none can stand out. */
#include "mdp/score.h"

#include <stdlib.h>

static int compare_values(const void *left, const void *right) {
    double a = *(const double *)left, b = *(const double *)right;
    return a < b ? -1 : a > b;
}

/* The value that an expert must exceed. sorted [n] ascending, n >= 1. */
static double threshold(const double *sorted, int64_t n) {
    int64_t rank = (995 * n + 999) / 1000; /* nearest rank: ceil(0.995 n), counted from 1 */
    double percentile = sorted[rank - 1], tenth = sorted[n - 1] / 10.0;
    return percentile > tenth ? percentile : tenth;
}

mdp_status mdp_super_experts(const mdp_stats *stats, const double *weight, mdp_super_expert **out, int64_t *n) {
    int64_t total = 0, at = 0, n_early = (3 * stats->n_layer + 3) / 4; /* ceil(0.75 L) */
    double *sorted = NULL;
    *out = NULL;
    *n = 0;
    for (int64_t l = 0; l < stats->n_layer; l++) total += stats->layers[l].n_expert;
    MDP_TRY(MDP_ALLOC(&sorted, total, "the largest outputs of experts"));
    for (int64_t l = 0; l < stats->n_layer; l++) {
        for (mdp_expert_t e = 0; e < stats->layers[l].n_expert; e++)
            sorted[at++] = mdp_stats_max(stats, l, MDP_MAX_ABS, e, weight);
    }
    qsort(sorted, (size_t)total, sizeof *sorted, compare_values);
    double least = total > 0 ? threshold(sorted, total) : 0.0;
    mdp_free(sorted);
    MDP_TRY(MDP_ALLOC(out, total, "super experts"));
    for (int64_t l = 0; l < n_early; l++) {
        for (mdp_expert_t e = 0; e < stats->layers[l].n_expert; e++) {
            double value = mdp_stats_max(stats, l, MDP_MAX_ABS, e, weight);
            if (value > least)
                (*out)[(*n)++] = (mdp_super_expert){
                    .layer_index = l, .layer = stats->layers[l].layer, .expert = e, .max_abs = value};
        }
    }
    return mdp_ok();
}
