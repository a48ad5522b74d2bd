/* router_back.c - from gradients of the applied weights of a token to those of its logits.
 *
 * Which experts are chosen has no gradient. With q_i the derivative of part_i (exp z_i, or sigmoid z_i) and total the
 * sum that parts are divided by, g_j = scale part_j / total, so
 *   dz_i = [i chosen] scale dg_i q_i / total - (sum_j g_j dg_j / total) * q_i * d total / d part_i. */
#include "mdp/engine.h"

#include <math.h>

/* total = of_chosen * (sum of chosen parts) + of_all * (sum of all of them) + what is constant. */
typedef struct divisor {
    double of_chosen, of_all, total;
} divisor;

static bool is_chosen(const mdp_expert_t *index, int32_t k, mdp_expert_t e) {
    for (int32_t j = 0; j < k; j++)
        if (index[j] == e) return true;
    return false;
}

/* part [n] and its derivative by the logit, slope [n], both times one number that is common to all. */
static void fill_parts(const mdp_router_rule *rule, const double *logits, int32_t n, double *part, double *slope) {
    double top = logits[0];
    for (int32_t e = 1; e < n; e++) top = logits[e] > top ? logits[e] : top;
    for (int32_t e = 0; e < n; e++) {
        part[e] = rule->score == MDP_SIGMOID ? 1.0 / (1.0 + exp(-logits[e])) : exp(logits[e] - top);
        slope[e] = rule->score == MDP_SIGMOID ? part[e] * (1.0 - part[e]) : part[e];
    }
}

static divisor find_divisor(const mdp_router_rule *rule, const double *part, int32_t n, const mdp_expert_t *index,
                            int32_t k) {
    double chosen = 0.0, all = rule->score == MDP_SIGMOID ? 1.0 : 0.0;
    double depends = rule->score == MDP_SIGMOID ? 0.0 : 1.0; /* does what stands for all depend on logits? */
    for (int32_t e = 0; rule->score != MDP_SIGMOID && e < n; e++) all += part[e];
    for (int32_t j = 0; j < k; j++) chosen += part[index[j]];
    if (rule->score == MDP_SOFTMAX_CHOSEN) return (divisor){1.0, 0.0, chosen};
    if (!rule->normalise) return (divisor){0.0, depends, all};
    double sum = chosen + rule->added * all, least = rule->least * all;
    if (sum >= least) return (divisor){1.0, rule->added * depends, sum};
    return (divisor){0.0, rule->least * depends, least};
}

/* One choice of the sparsemixer: a softmax among those that come close to the chosen one. */
static void add_one_choice(double jitter, const double *logits, int32_t n, mdp_expert_t chosen, mdp_expert_t out,
                           double dg, double *dz) {
    double sum = 0.0, best = logits[chosen];
    for (mdp_expert_t e = 0; e < n; e++)
        if (e != out && (best - logits[e]) / fmax(fabs(logits[e]), best) <= 2.0 * jitter) sum += exp(logits[e] - best);
    for (mdp_expert_t e = 0; e < n; e++) {
        if (e == out || (best - logits[e]) / fmax(fabs(logits[e]), best) > 2.0 * jitter) continue;
        dz[e] += dg / sum * ((e == chosen ? 1.0 : 0.0) - exp(logits[e] - best) / sum);
    }
}

void mdp_route_back(const mdp_router_rule *rule, const double *logits, int32_t n, const mdp_expert_t *index, int32_t k,
                    const double *dg, double *scratch, double *dz) {
    double *part = scratch, *slope = scratch + n, along = 0.0;
    for (int32_t e = 0; e < n; e++) dz[e] = 0.0;
    if (rule->score == MDP_SPARSEMIXER) {
        for (int32_t j = 0; j < k; j++)
            add_one_choice(rule->jitter, logits, n, index[j], j == 0 ? -1 : index[0], dg[j], dz);
        return;
    }
    if (mdp_route_is_constant(rule, k)) return;
    fill_parts(rule, logits, n, part, slope);
    const divisor by = find_divisor(rule, part, n, index, k);
    for (int32_t j = 0; j < k; j++) along += rule->scale * part[index[j]] / by.total * dg[j];
    for (int32_t e = 0; e < n; e++) {
        double share = by.of_all + (is_chosen(index, k, e) ? by.of_chosen : 0.0);
        dz[e] = -(along / by.total) * share * slope[e];
    }
    for (int32_t j = 0; j < k; j++) dz[index[j]] += rule->scale * dg[j] / by.total * slope[index[j]];
}

bool mdp_route_is_constant(const mdp_router_rule *rule, int32_t k) {
    return k == 1 && (rule->score == MDP_SOFTMAX_CHOSEN || (rule->normalise && rule->score != MDP_SPARSEMIXER));
}
