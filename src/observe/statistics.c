/* statistics.c - the table of what is summed, and sums over categories. */
#include "mdp/observe.h"

const mdp_statistic mdp_statistics[MDP_N_STATISTIC] = {
    [MDP_GATE_SUM] = {.name = "gate_sum",
                      .meaning = "sum over the routed tokens of the applied weight g",
                      .unit = "1",
                      .source = "SEER-MoE, arXiv 2404.05089"},
    [MDP_NORM_SUM] = {.name = "norm_sum",
                      .meaning = "sum over the routed tokens of norm2(y), y the expert's unweighted output",
                      .unit = "norm of the hidden state",
                      .source = "MC-Suite, arXiv 2504.05586"},
    [MDP_GATE_NORM_SUM] = {.name = "gate_norm_sum",
                           .meaning = "sum over the routed tokens of g * norm2(y)",
                           .unit = "norm of the hidden state",
                           .source = "REAP, arXiv 2510.13999"},
};

void mdp_stats_destroy(mdp_stats *stats) {
    if (!stats) return;
    for (int64_t l = 0; stats->layers && l < stats->n_layer; l++) {
        mdp_free(stats->layers[l].counts);
        mdp_free(stats->layers[l].sums);
    }
    for (int c = 0; stats->category && c < stats->n_category; c++) mdp_free(stats->category[c]);
    mdp_free(stats->layers);
    mdp_free(stats->category);
    mdp_free(stats->category_token);
    mdp_free(stats);
}

static const mdp_exact *sum_at(const mdp_stats *stats, const mdp_layer_stats *layer, mdp_statistic_id id, int category,
                               mdp_expert_t expert) {
    return &layer->sums[((int64_t)id * stats->n_category + category) * layer->n_expert + expert];
}

double mdp_stats_sum(const mdp_stats *stats, int64_t layer_index, mdp_statistic_id id, mdp_expert_t expert,
                     const double *weight) {
    const mdp_layer_stats *layer = &stats->layers[layer_index];
    mdp_exact all = {{0}};
    double weighted = 0.0;
    for (int c = 0; c < stats->n_category; c++) {
        const mdp_exact *sum = sum_at(stats, layer, id, c, expert);
        if (weight) {
            weighted += weight[c] * mdp_exact_value(sum);
            continue;
        }
        for (int i = 0; i < MDP_LIMBS; i++) all.limb[i] += sum->limb[i];
    }
    return weight ? weighted : mdp_exact_value(&all);
}

double mdp_stats_count(const mdp_stats *stats, int64_t layer_index, mdp_expert_t expert, const double *weight) {
    const mdp_layer_stats *layer = &stats->layers[layer_index];
    double weighted = 0.0;
    int64_t all = 0;
    for (int c = 0; c < stats->n_category; c++) {
        int64_t n = layer->counts[(int64_t)c * layer->n_expert + expert];
        all += n;
        if (weight) weighted += weight[c] * (double)n;
    }
    return weight ? weighted : (double)all;
}
