/* criteria.c - the table of criteria: one number per expert from the sums of a statistics file, or from weights.
 *
 * In: the sums over categories (optionally weighted) that a criterion's row names, or sums over weights. Out:
 * score[n_expert], finite; lower is pruned first. A criterion is one function and one row of the table at the end;
 * help, validation and reports read the table. Formulas: methods.md, section 1. */
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

const char *const mdp_soft_mask_names[] = {
    [MDP_SOFT_CHOSEN] = "chosen", [MDP_SOFT_ROUTED_P] = "routed-p", [MDP_SOFT_ALL] = "all", NULL};

static mdp_status score_soft(const mdp_score_input *input, double *score) {
    static const mdp_statistic_id statistics[] = {
        [MDP_SOFT_CHOSEN] = MDP_GATE_SUM, [MDP_SOFT_ROUTED_P] = MDP_ROUTED_P_SUM, [MDP_SOFT_ALL] = MDP_ALL_P_SUM};
    return fill_sum(input, statistics[input->soft_mask], score);
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

static mdp_status score_msan(const mdp_score_input *input, double *score) {
    return fill_mean(input, MDP_NORM2_SUM, score);
}

static mdp_status score_easy(const mdp_score_input *input, double *score) {
    return fill_sum(input, MDP_SHIFT_SUM, score);
}

static mdp_status score_tenp(const mdp_score_input *input, double *score) {
    return fill_sum(input, MDP_TURN_SUM, score);
}

static mdp_status score_tenp_mean(const mdp_score_input *input, double *score) {
    return fill_mean(input, MDP_TURN_SUM, score);
}

/* norm2 of the mean output. */
static mdp_status score_characteristic(const mdp_score_input *input, double *score) {
    const mdp_short_sum *sums = input->stats->layers[input->layer_index].vectors[MDP_OUTPUT_SUM];
    int64_t d = input->stats->d_model;
    if (!sums)
        return MDP_ERROR(MDP_INTERNAL, "layer %lld: the sums of outputs were not read.", (long long)input->layer);
    for (mdp_expert_t e = 0; e < input->n_expert; e++) {
        double n_row = count_of(input, e), square = 0.0;
        for (int64_t j = 0; j < d && n_row > 0.0; j++) {
            double mean = mdp_short_value(&sums[e * d + j]) / n_row;
            square += mean * mean;
        }
        score[e] = sqrt(square);
    }
    return check_finite(input, score);
}

/* ---- from weights ---- */

static mdp_status score_magnitude(const mdp_score_input *input, double *score) {
    const mdp_layer_weights *layer = &input->weights->layers[input->layer_index];
    for (mdp_expert_t e = 0; e < input->n_expert; e++) score[e] = mdp_exact_value(&layer->square_sum[e]);
    return check_finite(input, score);
}

static mdp_status score_aimer(const mdp_score_input *input, double *score) {
    const mdp_layer_weights *layer = &input->weights->layers[input->layer_index];
    double n = (double)layer->n_value;
    for (mdp_expert_t e = 0; e < input->n_expert; e++) {
        double rms = sqrt(mdp_exact_value(&layer->square_sum[e]) / n);
        score[e] = rms > 0.0 ? -(mdp_exact_value(&layer->abs_sum[e]) / n) / rms : 0.0;
    }
    return check_finite(input, score);
}

static mdp_status score_router_norm(const mdp_score_input *input, double *score) {
    const mdp_layer_weights *layer = &input->weights->layers[input->layer_index];
    for (mdp_expert_t e = 0; e < input->n_expert; e++) score[e] = layer->router_norm[e];
    return mdp_ok();
}

static mdp_status score_router_norm_change(const mdp_score_input *input, double *score) {
    const mdp_layer_weights *layer = &input->weights->layers[input->layer_index];
    for (mdp_expert_t e = 0; e < input->n_expert; e++) score[e] = layer->router_norm[e] - layer->pretrained_norm[e];
    return mdp_ok();
}

static mdp_status score_router_change_abs(const mdp_score_input *input, double *score) {
    MDP_TRY(score_router_norm_change(input, score));
    for (mdp_expert_t e = 0; e < input->n_expert; e++) score[e] = fabs(score[e]);
    return mdp_ok();
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
     .statistics = NEEDS(MDP_GATE_SUM) | NEEDS(MDP_ROUTED_P_SUM) | NEEDS(MDP_ALL_P_SUM),
     .needs_stats = true,
     .has_soft_mask = true,
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
    {.name = "man",
     .help = "the same as ean-mean, by its name in arXiv 2606.15716",
     .statistics = NEEDS(MDP_NORM_SUM),
     .needs_stats = true,
     .score = score_ean_mean},
    {.name = "msan",
     .help = "mean squared norm of the expert's outputs (after arXiv 2606.15716, for task-agnostic pruning)",
     .statistics = NEEDS(MDP_NORM2_SUM),
     .needs_stats = true,
     .score = score_msan},
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
    {.name = "characteristic",
     .help = "norm of the mean output (after REAP's ean_ca, arXiv 2510.13999); over all categories only",
     .needs_stats = true,
     .needs_vectors = true,
     .score = score_characteristic},
    {.name = "easy",
     .help = "routing weight times output norm, where the block turns the residual stream (after EASY-EP)",
     .statistics = NEEDS(MDP_SHIFT_SUM),
     .needs_stats = true,
     .score = score_easy},
    {.name = "tenp",
     .help = "routing weight times output norm, where the output turns from the input (after TENP, arXiv 2606.09885)",
     .statistics = NEEDS(MDP_TURN_SUM),
     .needs_stats = true,
     .score = score_tenp},
    {.name = "tenp-mean",
     .help = "tenp divided by the tokens routed (after TENP, arXiv 2606.09885)",
     .statistics = NEEDS(MDP_TURN_SUM),
     .needs_stats = true,
     .score = score_tenp_mean},
    {.name = "proficiency",
     .help = "share of the routing weight among the experts still alive, window by window (after TSEP, arXiv "
             "2206.00277; windows and beta are ours); runs the model on --tokens itself, once for each --keep",
     .own_pass = true},
    {.name = "router-norm-change",
     .help = "growth of the router row's norm in fine-tuning, signed; needs --pretrained, no text (after arXiv "
             "2405.16646: proven for binary classification on a simplified MoE, verified on vision models after "
             "fine-tuning on the downstream task; fine-tuning belongs after it too)",
     .tensors = MDP_ROUTER_PAIRS,
     .score = score_router_norm_change},
    {.name = "router-change-abs",
     .help = "absolute value of router-norm-change; needs --pretrained (a variant of arXiv 2405.16646)",
     .tensors = MDP_ROUTER_PAIRS,
     .score = score_router_change_abs},
    {.name = "router-norm",
     .help = "norm of the router row, no text (a variant of arXiv 2405.16646)",
     .tensors = MDP_ROUTER_TENSORS,
     .score = score_router_norm},
    {.name = "magnitude",
     .help = "sum of the squared weights of the expert, no text",
     .tensors = MDP_EXPERT_TENSORS,
     .score = score_magnitude},
    {.name = "aimer",
     .help = "minus mean |w| over the root mean square of w, of all weights of the expert, no text",
     .tensors = MDP_EXPERT_TENSORS,
     .is_negative = true,
     .score = score_aimer},
    {.name = "naee",
     .help = "the set of experts without which a layer's output changes least, of all sets of that size (after NAEE, "
             "arXiv 2402.14800)",
     .needs_stats = true,
     .needs_vectors = true,
     .needs_subsets = true},
    {.name = "random",
     .help = "seeded random scores, the floor of every comparison",
     .is_seeded = true,
     .score = score_random},
};
const int mdp_n_criterion = (int)(sizeof mdp_criteria / sizeof mdp_criteria[0]);

const mdp_criterion *mdp_criterion_find(const char *name) {
    for (int i = 0; i < mdp_n_criterion; i++) {
        if (strcmp(mdp_criteria[i].name, name) == 0) return &mdp_criteria[i];
    }
    return NULL;
}
