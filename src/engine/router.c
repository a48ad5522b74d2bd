/* router.c - which experts a token goes to, and with what weight.
 *
 * In: the residual stream, the layer's second norm, its router rows and, where it has one, its choice bias. Out: index
 * and weight of every local token of every branch, by the family's rule. Logits are accumulated in f64; equal ones go
 * to the lower index. Experts of closed groups are chosen by minus infinity, so never while k others are open. */
#include "engine/router.h"
#include "engine/norm.h"

#include <math.h>
#include <omp.h>
#include <string.h>

/* Scratch of one thread. */
typedef struct router_scratch {
    float *x;       /* [d_model] normalised row */
    double *logits; /* [n_expert] */
    double *choice; /* [2 n_expert] */
} router_scratch;

/* The k largest of value [n], best first; equal values: the lower index. Insertion into a short sorted list. */
static void choose_top(const double *value, int32_t n, int32_t k, mdp_expert_t *index) {
    int32_t have = 0;
    for (int32_t e = 0; e < n; e++) {
        if (have == k && !(value[e] > value[index[k - 1]])) continue;
        int32_t at = have < k ? have++ : k - 1;
        while (at > 0 && value[e] > value[index[at - 1]]) {
            index[at] = index[at - 1];
            at--;
        }
        index[at] = e;
    }
}

static double sigmoid(double z) {
    return 1.0 / (1.0 + exp(-z));
}

static double largest(const double *value, int32_t n) {
    double top = value[0];
    for (int32_t e = 1; e < n; e++) top = value[e] > top ? value[e] : top;
    return top;
}

static double sum_of_exponentials(const double *logits, int32_t n, double top) {
    double sum = 0.0;
    for (int32_t e = 0; e < n; e++) sum += exp(logits[e] - top);
    return sum;
}

/* What experts are chosen by. Where p alone decides, its logits do, which tell apart what p rounds to the same. */
static void fill_choice(const mdp_router_rule *rule, const mdp_route_set *set, const double *logits, double *choice) {
    bool grouped_by_sums = rule->n_group > 1 && rule->group_score == MDP_GROUP_BEST_TWO;
    if (!set->bias && !grouped_by_sums) {
        memcpy(choice, logits, (size_t)set->n * sizeof *choice);
    } else if (rule->score == MDP_SIGMOID) {
        for (int32_t e = 0; e < set->n; e++) choice[e] = sigmoid(logits[e]);
    } else {
        double top = largest(logits, set->n), all = sum_of_exponentials(logits, set->n, top);
        for (int32_t e = 0; e < set->n; e++) choice[e] = exp(logits[e] - top) / all;
    }
    const int32_t *row = set->row ? set->row : set->source;
    for (int32_t e = 0; set->bias && e < set->n; e++) choice[e] += (double)set->bias[row ? row[e] : e];
}

static int32_t group_of(const mdp_router_rule *rule, const mdp_route_set *set, int32_t e) {
    return (set->source ? set->source[e] : e) / rule->group_size;
}

/* score [n_group]: what each group is chosen by; minus infinity where it has too few experts. */
static void score_groups(const mdp_router_rule *rule, const mdp_route_set *set, const double *choice, double *score) {
    for (int32_t g = 0; g < rule->n_group; g++) score[g] = -INFINITY;
    for (int32_t e = 0; e < set->n;) { /* experts ascend, so a group's lie side by side */
        int32_t g = group_of(rule, set, e);
        double best = -INFINITY, second = -INFINITY;
        for (; e < set->n && group_of(rule, set, e) == g; e++) {
            if (choice[e] > best) {
                second = best;
                best = choice[e];
            } else if (choice[e] > second) {
                second = choice[e];
            }
        }
        score[g] = rule->group_score == MDP_GROUP_BEST_TWO ? best + second : best;
    }
}

/* Is group g among the n_open best? Of equal groups the lower goes first. */
static bool is_open(const mdp_router_rule *rule, const double *score, int32_t g) {
    int32_t n_better = 0;
    for (int32_t other = 0; other < rule->n_group; other++)
        n_better += score[other] > score[g] || (other < g && score[other] == score[g]);
    return n_better < rule->n_open;
}

static void close_groups(const mdp_router_rule *rule, const mdp_route_set *set, double *choice, double *score) {
    score_groups(rule, set, choice, score);
    for (int32_t e = 0; e < set->n;) {
        int32_t g = group_of(rule, set, e);
        bool open = is_open(rule, score, g);
        for (; e < set->n && group_of(rule, set, e) == g; e++) choice[e] = open ? choice[e] : -INFINITY;
    }
}

/* p of a logit, times what is common to all experts of a token: 1 for sigmoid; for softmax, what p adds up to. */
static double part_of(const mdp_router_rule *rule, double logit, double top) {
    return rule->score == MDP_SIGMOID ? sigmoid(logit) : exp(logit - top);
}

/* Applied weights of the chosen experts. */
static void weigh(const mdp_router_rule *rule, const double *logits, int32_t n, const mdp_expert_t *index, int32_t k,
                  float *weight) {
    double top = 0.0, all = 1.0, chosen = 0.0; /* p = part / all */
    if (rule->score != MDP_SIGMOID) {
        top = largest(logits, n);
        all = sum_of_exponentials(logits, n, top);
    }
    for (int32_t j = 0; j < k; j++) chosen += part_of(rule, logits[index[j]], top);
    double total = rule->normalise ? fmax(chosen + rule->added * all, rule->least * all) : all;
    if (rule->score == MDP_SOFTMAX_CHOSEN) total = chosen;
    for (int32_t j = 0; j < k; j++) weight[j] = (float)(part_of(rule, logits[index[j]], top) / total * rule->scale);
}

void mdp_route_logits(const mdp_router_rule *rule, const mdp_route_set *set, const double *logits, int32_t k,
                      double *scratch, mdp_expert_t *index, float *weight) {
    if (rule->score == MDP_SPARSEMIXER) {
        mdp_sparsemixer(rule->jitter, logits, set->n, k, index, weight);
        return;
    }
    fill_choice(rule, set, logits, scratch);
    if (rule->n_group > 1 && rule->n_open < rule->n_group) close_groups(rule, set, scratch, scratch + set->n);
    choose_top(scratch, set->n, k, index);
    weigh(rule, logits, set->n, index, k, weight);
}

/* Logits of a token. */
static void score_experts(const mdp_branch *branch, const mdp_router_rows *rows, const router_scratch *scratch,
                          int64_t d) {
    int32_t n = branch->n_expert, e = 0;
    for (; e + MDP_DOT_ROWS <= n; e += MDP_DOT_ROWS) {
        const float *row[MDP_DOT_ROWS];
        for (int32_t i = 0; i < MDP_DOT_ROWS; i++) row[i] = rows->router + mdp_router_row(branch, e + i) * d;
        mdp_dot_rows(scratch->x, row, d, scratch->logits + e);
    }
    for (; e < n; e++) scratch->logits[e] = mdp_dot(scratch->x, rows->router + mdp_router_row(branch, e) * d, d);
    for (e = 0; rows->logit_bias && e < n; e++)
        scratch->logits[e] += (double)rows->logit_bias[mdp_router_row(branch, e)];
}

/* After those that are used, the others in ascending order, with weights of 0; where weights multiply what experts
 * read, with the weight that each would have. */
static void visit_others(const mdp_router_rule *rule, const mdp_branch *branch, const router_scratch *scratch,
                         mdp_expert_t *index, float *weight) {
    int32_t at = branch->n_used;
    for (int32_t e = 0; e < branch->n_expert && at < branch->top_k; e++) {
        bool used = false;
        for (int32_t j = 0; j < branch->n_used; j++) used = used || index[j] == e;
        if (used) continue;
        weight[at] = 0.0F;
        if (rule->weigh_input) weigh(rule, scratch->logits, branch->n_expert, &e, 1, &weight[at]);
        index[at++] = e;
    }
}

static void route_token(mdp_engine *engine, int64_t layer_number, int branch_number, int64_t local,
                        const mdp_router_rows *rows, const router_scratch *scratch) {
    const mdp_model *model = engine->model;
    const mdp_moe *moe = &model->layers[layer_number].moe;
    mdp_branch *branch = &engine->branches[branch_number];
    int64_t d = model->d_model;
    mdp_expert_t *index = branch->index + local * branch->top_k;
    float *weight = branch->weight + local * branch->top_k;
    mdp_route_set set = {.n = branch->n_expert, .source = branch->source, .row = branch->row, .bias = rows->bias};
    mdp_norm_row(model, rows->norm, branch->x + local * d, scratch->x);
    score_experts(branch, rows, scratch, d);
    mdp_route_logits(&moe->rule, &set, scratch->logits, branch->n_used, scratch->choice, index, weight);
    if (branch->n_used < branch->top_k) visit_others(&moe->rule, branch, scratch, index, weight);
    if (engine->observers.routed) {
        mdp_routed_token token = {.layer = layer_number,
                                  .branch = branch_number,
                                  .local = local,
                                  .n_expert = branch->n_expert,
                                  .top_k = branch->n_used,
                                  .x = scratch->x,
                                  .logits = scratch->logits,
                                  .index = index,
                                  .weight = weight,
                                  .scratch = scratch->choice};
        mdp_phase before = mdp_engine_begin_observing(engine);
        engine->observers.routed(engine->observers.context, &token);
        mdp_engine_end_observing(engine, before);
    }
    for (int32_t j = 0; branch->zero && j < branch->top_k; j++) {
        if (branch->zero[index[j]]) weight[j] = 0.0F; /* chosen as before, returns 0 */
    }
}

mdp_status mdp_route(mdp_engine *engine, int64_t layer_number, const mdp_router_rows *rows) {
    int64_t d = engine->model->d_model, n_expert = engine->model->layers[layer_number].moe.n_expert;
    int64_t n_token = engine->batch.n_token, n_row = n_token * engine->n_branch;
    float *x = NULL;
    double *logits = NULL;
    mdp_mark mark = mdp_stack_mark(engine->stack);
    mdp_status status = MDP_TAKE(engine->stack, &x, engine->n_thread * d, "router input");
    if (status.code == MDP_OK)
        status = MDP_TAKE(engine->stack, &logits, 3 * engine->n_thread * n_expert, "router logits");
    if (status.code == MDP_OK) {
#pragma omp parallel for schedule(static) num_threads(engine->n_thread)
        for (int64_t row = 0; row < n_row; row++) {
            if (engine->branches[row / n_token].idle) continue;
            int thread = omp_get_thread_num();
            router_scratch scratch = {.x = x + thread * d,
                                      .logits = logits + 3 * thread * n_expert,
                                      .choice = logits + (3 * thread + 1) * n_expert};
            route_token(engine, layer_number, (int)(row / n_token), row % n_token, rows, &scratch);
        }
        for (int s = 0; s < engine->n_branch; s++)
            if (!engine->branches[s].idle)
                mdp_profile_flop(engine->profile, 2 * n_token * engine->branches[s].n_expert * d);
    }
    mdp_stack_return(engine->stack, mark);
    return status;
}
