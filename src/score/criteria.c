/* criteria.c - the table of criteria: one number per expert from the sums of a statistics file.
 *
 * In: the sums over categories (optionally weighted) that a criterion's row names. Out: score[n_expert], finite; lower
 * is pruned first. A criterion is one function and one row of the table at the end; help, validation and reports read
 * the table. Formulas: methods.md, section 1. */
#include "mdp/score.h"

#include <math.h>
#include <string.h>

#define NEEDS(id) (1u << (id))

static double sum_of(const mdp_score_input *input, mdp_statistic_id id, mdp_expert_t expert) {
    return mdp_stats_sum(input->stats, input->layer_index, id, expert, input->weight);
}

static double count_of(const mdp_score_input *input, mdp_expert_t expert) {
    return mdp_stats_count(input->stats, input->layer_index, expert, input->weight);
}

/* A sum divided by the rows that were routed; an expert that was never routed scores 0. */
static double mean_of(const mdp_score_input *input, mdp_statistic_id id, mdp_expert_t expert) {
    double n_row = count_of(input, expert);
    return n_row > 0.0 ? sum_of(input, id, expert) / n_row : 0.0;
}

/* Every score must be a number that can be ranked. */
static mdp_status check_finite(const mdp_score_input *input, const double *score) {
    for (mdp_expert_t e = 0; e < input->n_expert; e++) {
        if (!isfinite(score[e]))
            return MDP_ERROR(MDP_BAD_INPUT,
                             "layer %lld: the score of expert %d is not a finite number; the statistics "
                             "are damaged, observe again.",
                             (long long)input->layer, (int)e);
    }
    return mdp_ok();
}

static mdp_status fill_sum(const mdp_score_input *input, mdp_statistic_id id, double *score) {
    for (mdp_expert_t e = 0; e < input->n_expert; e++) score[e] = sum_of(input, id, e);
    return check_finite(input, score);
}

static mdp_status fill_mean(const mdp_score_input *input, mdp_statistic_id id, double *score) {
    for (mdp_expert_t e = 0; e < input->n_expert; e++) score[e] = mean_of(input, id, e);
    return check_finite(input, score);
}

static mdp_status score_frequency(const mdp_score_input *input, double *score) {
    for (mdp_expert_t e = 0; e < input->n_expert; e++) score[e] = count_of(input, e);
    return check_finite(input, score);
}

static mdp_status score_soft(const mdp_score_input *input, double *score) {
    return fill_sum(input, MDP_GATE_SUM, score);
}

static mdp_status score_ean(const mdp_score_input *input, double *score) {
    return fill_sum(input, MDP_NORM_SUM, score);
}

static mdp_status score_ean_mean(const mdp_score_input *input, double *score) {
    return fill_mean(input, MDP_NORM_SUM, score);
}

static mdp_status score_weighted_ean(const mdp_score_input *input, double *score) {
    return fill_sum(input, MDP_GATE_NORM_SUM, score);
}

static mdp_status score_reap(const mdp_score_input *input, double *score) {
    return fill_mean(input, MDP_GATE_NORM_SUM, score);
}

/* Depends on (seed, layer, expert) alone: the same for every rank, calibration set and build. */
static mdp_status score_random(const mdp_score_input *input, double *score) {
    for (mdp_expert_t e = 0; e < input->n_expert; e++)
        score[e] = mdp_random_uniform(input->seed, (uint64_t)input->layer, (uint64_t)e);
    return mdp_ok();
}

const mdp_criterion mdp_criteria[] = {
    {.name = "frequency",
     .help = "how often the router chose the expert (after SEER-MoE, arXiv 2404.05089)",
     .needs_stats = true,
     .score = score_frequency},
    {.name = "soft",
     .help = "sum of the applied routing weights (after SEER-MoE, arXiv 2404.05089)",
     .statistics = NEEDS(MDP_GATE_SUM),
     .needs_stats = true,
     .score = score_soft},
    {.name = "ean",
     .help = "sum of the norms of the expert's outputs (after MC-Suite, arXiv 2504.05586)",
     .statistics = NEEDS(MDP_NORM_SUM),
     .needs_stats = true,
     .score = score_ean},
    {.name = "ean-mean",
     .help = "mean norm of the expert's outputs (after MC-Suite, arXiv 2504.05586)",
     .statistics = NEEDS(MDP_NORM_SUM),
     .needs_stats = true,
     .score = score_ean_mean},
    {.name = "weighted-ean",
     .help = "sum of routing weight times output norm (after REAP, arXiv 2510.13999)",
     .statistics = NEEDS(MDP_GATE_NORM_SUM),
     .needs_stats = true,
     .score = score_weighted_ean},
    {.name = "reap",
     .help = "mean of routing weight times output norm (after REAP, arXiv 2510.13999, eq. 9)",
     .statistics = NEEDS(MDP_GATE_NORM_SUM),
     .needs_stats = true,
     .score = score_reap},
    {.name = "random", .help = "seeded random scores, the floor of every comparison", .score = score_random},
};
const int mdp_n_criterion = (int)(sizeof mdp_criteria / sizeof mdp_criteria[0]);

const mdp_criterion *mdp_criterion_find(const char *name) {
    for (int i = 0; i < mdp_n_criterion; i++) {
        if (strcmp(mdp_criteria[i].name, name) == 0) return &mdp_criteria[i];
    }
    return NULL;
}
