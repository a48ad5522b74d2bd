/* sparsemixer.c - the router of Phi-3.5-MoE: two experts, each weighed by a softmax of its own.
 *
 * An expert's weight is its softmax among those that come close: further than 2 jitter below it, relative to the larger
 * of the two (and to the other's size), does not count. For the second choice the first is out. The two weights do not
 * add up to 1. Source: transformers, sparsemixer() in eval mode; arXiv 2409.12136. */
#include "engine/router.h"

#include <math.h>

/* Is logit z too far below the best to count beside it? */
static bool is_far(double best, double z, double jitter) {
    return (best - z) / fmax(fabs(z), best) > 2.0 * jitter;
}

/* The best of logits [n] without `out` (-1: with all), and its weight. Equal ones: the lower index. */
static mdp_expert_t choose_one(double jitter, const double *logits, int32_t n, mdp_expert_t out, float *weight) {
    mdp_expert_t at = out == 0 ? 1 : 0;
    for (mdp_expert_t e = at + 1; e < n; e++) {
        if (e != out && logits[e] > logits[at]) at = e;
    }
    double sum = 0.0;
    for (mdp_expert_t e = 0; e < n; e++) {
        if (e != out && !is_far(logits[at], logits[e], jitter)) sum += exp(logits[e] - logits[at]);
    }
    *weight = (float)(1.0 / sum);
    return at;
}

void mdp_sparsemixer(double jitter, const double *logits, int32_t n, int32_t k, mdp_expert_t *index, float *weight) {
    index[0] = choose_one(jitter, logits, n, -1, &weight[0]);
    if (k > 1) index[1] = choose_one(jitter, logits, n, index[0], &weight[1]);
}
