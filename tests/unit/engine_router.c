/* Choosing by bias and groups, worked out by hand: what the golden checkpoints leave open (ties, subsets of experts).
 */
#include "mdp/engine.h"

#include <math.h>
#include <setjmp.h>
#include <string.h>

#include <cmocka.h>

enum { MAX_EXPERT = 8 };

/* Logit whose sigmoid is p. */
static double logit(double p) {
    return log(p / (1.0 - p));
}

static void expect(const mdp_router_rule *rule, const mdp_route_set *set, const double *logits, int32_t k,
                   const mdp_expert_t *index, const double *weight) {
    double scratch[2 * MAX_EXPERT];
    mdp_expert_t found[MAX_EXPERT];
    float applied[MAX_EXPERT];
    mdp_route_logits(rule, set, logits, k, scratch, found, applied);
    for (int32_t j = 0; j < k; j++) {
        assert_int_equal(found[j], index[j]);
        assert_true(fabs((double)applied[j] - weight[j]) < 1e-6);
    }
}

static void a_bias_chooses_and_does_not_weigh(void **state) {
    (void)state;
    mdp_router_rule rule = {.score = MDP_SIGMOID, .scale = 2.0, .n_group = 1, .n_open = 1};
    const double logits[3] = {logit(0.6), logit(0.5), logit(0.2)};
    const float bias[3] = {-0.5F, 0.0F, 0.0F};
    mdp_route_set set = {.n = 3, .bias = bias};
    expect(&rule, &set, logits, 2, (mdp_expert_t[]){1, 2}, (double[]){1.0, 0.4});
    rule.normalise = true;
    rule.added = 1e-20;
    expect(&rule, &set, logits, 2, (mdp_expert_t[]){1, 2}, (double[]){2.0 * 0.5 / 0.7, 2.0 * 0.2 / 0.7});
    set.bias = NULL;
    expect(&rule, &set, logits, 2, (mdp_expert_t[]){0, 1}, (double[]){2.0 * 0.6 / 1.1, 2.0 * 0.5 / 1.1});
}

static void a_softmax_may_have_a_bias_and_a_least_sum(void **state) {
    (void)state;
    mdp_router_rule rule = {.score = MDP_SOFTMAX_ALL, .scale = 1.0, .normalise = true, .n_group = 1, .n_open = 1};
    const double logits[3] = {log(0.5), log(0.3), log(0.2)};
    const float bias[3] = {-1.0F, 0.0F, 0.0F};
    mdp_route_set set = {.n = 3, .bias = bias};
    expect(&rule, &set, logits, 1, (mdp_expert_t[]){1}, (double[]){1.0});
    rule.least = 0.6;
    expect(&rule, &set, logits, 1, (mdp_expert_t[]){1}, (double[]){0.5});
}

static void groups_open_by_their_best_or_their_two_best(void **state) {
    (void)state;
    mdp_router_rule rule = {.score = MDP_SIGMOID, .scale = 1.0, .n_group = 2, .n_open = 1, .group_size = 3};
    const double logits[6] = {logit(0.9), logit(0.1), logit(0.1), logit(0.6), logit(0.5), logit(0.2)};
    const mdp_route_set set = {.n = 6};
    expect(&rule, &set, logits, 2, (mdp_expert_t[]){0, 1}, (double[]){0.9, 0.1});
    rule.group_score = MDP_GROUP_BEST_TWO;
    expect(&rule, &set, logits, 2, (mdp_expert_t[]){3, 4}, (double[]){0.6, 0.5});
    rule.n_open = 2;
    expect(&rule, &set, logits, 2, (mdp_expert_t[]){0, 3}, (double[]){0.9, 0.6});
}

static void closed_groups_stay_closed_below_zero(void **state) {
    (void)state;
    mdp_router_rule rule = {.score = MDP_SIGMOID,
                            .scale = 1.0,
                            .n_group = 2,
                            .n_open = 1,
                            .group_size = 2,
                            .group_score = MDP_GROUP_BEST_TWO};
    const double logits[4] = {logit(0.5), logit(0.4), logit(0.6), logit(0.6)};
    const float bias[4] = {-1.0F, -1.0F, -3.0F, -3.0F}; /* all below 0, where a mask of 0 would open what is closed */
    const mdp_route_set set = {.n = 4, .bias = bias};
    expect(&rule, &set, logits, 2, (mdp_expert_t[]){0, 1}, (double[]){0.5, 0.4});
}

static void ties_go_to_the_lower_group_and_expert(void **state) {
    (void)state;
    const mdp_router_rule rule = {.score = MDP_SIGMOID,
                                  .scale = 1.0,
                                  .n_group = 4,
                                  .n_open = 2,
                                  .group_size = 2,
                                  .group_score = MDP_GROUP_BEST_TWO};
    const double logits[8] = {0};
    const mdp_route_set set = {.n = 8};
    expect(&rule, &set, logits, 3, (mdp_expert_t[]){0, 1, 2}, (double[]){0.5, 0.5, 0.5});
}

/* Groups and biases are those of the experts' numbers in the model. */
static void a_subset_keeps_its_groups(void **state) {
    (void)state;
    mdp_router_rule rule = {.score = MDP_SIGMOID,
                            .scale = 1.0,
                            .n_group = 2,
                            .n_open = 1,
                            .group_size = 4,
                            .group_score = MDP_GROUP_BEST_TWO};
    const double logits[5] = {logit(0.5), logit(0.5), logit(0.2), logit(0.7), logit(0.4)};
    const mdp_expert_t source[5] = {0, 2, 3, 5, 6};
    float bias[8] = {0};
    const mdp_route_set set = {.n = 5, .source = source, .bias = bias};
    expect(&rule, &set, logits, 2, (mdp_expert_t[]){3, 4}, (double[]){0.7, 0.4});
    bias[2] = 0.2F;
    expect(&rule, &set, logits, 2, (mdp_expert_t[]){1, 0}, (double[]){0.5, 0.5});
    const mdp_expert_t lonely[3] = {0, 1, 5}; /* one expert has no second best */
    const mdp_route_set few = {.n = 3, .source = lonely};
    expect(&rule, &few, logits + 1, 2, (mdp_expert_t[]){0, 1}, (double[]){0.5, 0.2});
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_bias_chooses_and_does_not_weigh),
        cmocka_unit_test(a_softmax_may_have_a_bias_and_a_least_sum),
        cmocka_unit_test(groups_open_by_their_best_or_their_two_best),
        cmocka_unit_test(closed_groups_stay_closed_below_zero),
        cmocka_unit_test(ties_go_to_the_lower_group_and_expert),
        cmocka_unit_test(a_subset_keeps_its_groups),
    };
    return cmocka_run_group_tests_name("engine_router", tests, NULL, NULL);
}
