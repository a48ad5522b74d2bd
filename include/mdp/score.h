/* score.h - statistics -> one number per expert; lower is pruned first. A criterion is a row of a table. */
#ifndef MDP_SCORE_H
#define MDP_SCORE_H

#include "mdp/observe.h"

typedef struct mdp_score_input {
    const mdp_stats *stats; /* NULL for criteria that need none */
    const double *weight;   /* [n_category] or NULL */
    uint64_t seed;
    int64_t layer_index; /* index into stats->layers */
    int64_t layer;       /* layer of the model */
    int32_t n_expert;
} mdp_score_input;

typedef struct mdp_criterion {
    const char *name;    /* --method NAME */
    const char *help;    /* one line, "after <paper>" */
    unsigned statistics; /* bit per mdp_statistic_id that the formula reads */
    bool needs_stats;
    /* Fill score[n_expert]. Local. An expert never routed scores 0 under a calibrated unsigned criterion. */
    mdp_status (*score)(const mdp_score_input *input, double *score);
} mdp_criterion;

extern const mdp_criterion mdp_criteria[];
extern const int mdp_n_criterion;
const mdp_criterion *mdp_criterion_find(const char *name); /* NULL when unknown */

#endif
