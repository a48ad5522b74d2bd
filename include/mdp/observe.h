/* observe.h - statistics: what is summed over rows while the forward pass runs, and stats.h5.
 * A statistic is a row of the table in src/observe/statistics.c; scores (score.h) are formulas of the sums. */
#ifndef MDP_OBSERVE_H
#define MDP_OBSERVE_H

#include "mdp/engine.h"

typedef enum mdp_statistic_id {
    MDP_GATE_SUM,      /* sum over T_e of g_te */
    MDP_NORM_SUM,      /* sum over T_e of norm2(y_te) */
    MDP_GATE_NORM_SUM, /* sum over T_e of g_te norm2(y_te) */
    MDP_N_STATISTIC
} mdp_statistic_id;

typedef struct mdp_statistic {
    const char *name;    /* dataset name in stats.h5 */
    const char *meaning; /* one sentence */
    const char *unit;
    const char *source; /* paper */
} mdp_statistic;
extern const mdp_statistic mdp_statistics[MDP_N_STATISTIC];

/* Statistics of one MoE layer; experts numbered as in the model. */
typedef struct mdp_layer_stats {
    int64_t layer; /* index of the layer in the model */
    int32_t n_expert, top_k;
    int64_t *counts; /* [n_category, n_expert] rows routed */
    mdp_exact *sums; /* [MDP_N_STATISTIC, n_category, n_expert], normalised */
} mdp_layer_stats;

/* What stats.h5 holds. The sums are complete on rank 0 after mdp_stats_reduce_all. */
typedef struct mdp_stats {
    char model_fingerprint[33], tokens_fingerprint[33];
    char model_type[64];
    int64_t n_token;
    int n_category;
    char **category;         /* [n_category] ascending by byte order */
    int64_t *category_token; /* [n_category] tokens of each */
    int64_t n_layer;         /* MoE layers */
    mdp_layer_stats *layers; /* ascending by layer */
} mdp_stats;

/* An empty one for a model and tokens: names, fingerprints, and zeroed arrays for every MoE layer. Local. */
mdp_status mdp_stats_new(const mdp_model *model, const mdp_tokens *tokens, mdp_stats **out);
void mdp_stats_destroy(mdp_stats *stats); /* NULL is allowed */
/* The tile observer: adds a tile's rows to the statistics of its layer. context is a mdp_stats; may run in several
 * threads at once, since all additions are of integers. MDP_BAD_INPUT: a sum is not finite or out of range. */
mdp_status mdp_stats_observe(void *context, const mdp_tile *tile);
/* Add all ranks' sums of every layer at rank 0 and bring them to normal form. Collective on `comm`. */
mdp_status mdp_stats_reduce_all(const mdp_comm *comm, mdp_stats *stats);
/* Write to path.partial, then rename; byte-identical for equal content. Local: rank 0 calls it. */
mdp_status mdp_stats_write(const mdp_stats *stats, const char *path);
/* Read and check a stats.h5. Local: rank 0 calls it. MDP_BAD_INPUT: not such a file, newer version, incomplete. */
mdp_status mdp_stats_read(const char *path, mdp_stats **out);
/* Sum over categories, each times weight[c] (NULL: 1), of a statistic or of the counts. Unweighted sums are exact
 * before the one rounding to double. */
double mdp_stats_sum(const mdp_stats *stats, int64_t layer_index, mdp_statistic_id id, mdp_expert_t expert,
                     const double *weight);
double mdp_stats_count(const mdp_stats *stats, int64_t layer_index, mdp_expert_t expert, const double *weight);

#endif
