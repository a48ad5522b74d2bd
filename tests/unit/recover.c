/* Gradients against finite differences of the functions that they belong to, and AdamW against its formulas in f64. */
#include "mdp/recover.h"

#include <math.h>
#include <setjmp.h>
#include <string.h>

#include <cmocka.h>

enum { N = 6, MAX_K = 3 };

/* ---- routers ---- */

static double weighed(const mdp_router_rule *rule, const mdp_route_set *set, const double *logits, int32_t k,
                      const double *dg, mdp_expert_t *index) {
    double scratch[2 * N], sum = 0.0;
    float weight[MAX_K];
    mdp_route_logits(rule, set, logits, k, scratch, index, weight);
    for (int32_t j = 0; j < k; j++) sum += dg[j] * (double)weight[j];
    return sum;
}

/* Weights are f32, so steps are large and differences are central; logits are far enough apart to keep the choice. */
static void compare(const mdp_router_rule *rule, int32_t k) {
    const double logits[N] = {0.9, -0.4, 1.7, 0.2, 1.3, -1.1}, dg[MAX_K] = {0.8, -0.5, 1.4};
    const float bias[N] = {0.0F, 0.0F, -0.1F, 0.0F, 0.0F, 0.0F};
    const mdp_route_set set = {.n = N, .bias = rule->score == MDP_SIGMOID ? bias : NULL};
    double scratch[2 * N], dz[N], at[N];
    mdp_expert_t index[MAX_K], same[MAX_K];
    weighed(rule, &set, logits, k, dg, index);
    mdp_route_back(rule, logits, N, index, k, dg, scratch, dz);
    for (int32_t e = 0; e < N; e++) {
        double step = 1e-2, side[2];
        for (int s = 0; s < 2; s++) {
            memcpy(at, logits, sizeof at);
            at[e] += s == 0 ? step : -step;
            side[s] = weighed(rule, &set, at, k, dg, same);
            assert_memory_equal(same, index, (size_t)k * sizeof *same);
        }
        assert_true(fabs((side[0] - side[1]) / (2.0 * step) - dz[e]) < 2e-4);
    }
}

static void every_kind_of_router_has_the_slope_of_its_weights(void **state) {
    (void)state;
    const mdp_router_rule rules[] = {
        {.score = MDP_SOFTMAX_ALL, .scale = 2.5, .n_group = 1},
        {.score = MDP_SOFTMAX_ALL, .scale = 1.0, .n_group = 1, .normalise = true},
        {.score = MDP_SOFTMAX_ALL, .scale = 1.5, .n_group = 1, .normalise = true, .added = 0.3},
        {.score = MDP_SOFTMAX_ALL, .scale = 1.0, .n_group = 1, .normalise = true, .least = 2.0},
        {.score = MDP_SOFTMAX_CHOSEN, .scale = 1.0, .n_group = 1},
        {.score = MDP_SIGMOID, .scale = 2.5, .n_group = 1},
        {.score = MDP_SIGMOID, .scale = 2.5, .n_group = 1, .normalise = true, .added = 1e-20},
        {.score = MDP_SIGMOID, .scale = 1.0, .n_group = 3, .n_open = 2, .group_size = 2, .normalise = true}};
    for (size_t i = 0; i < sizeof rules / sizeof rules[0]; i++)
        for (int32_t k = 2; k <= MAX_K; k++) compare(&rules[i], k);
    const mdp_router_rule mixer = {.score = MDP_SPARSEMIXER, .jitter = 0.2, .n_group = 1, .scale = 1.0};
    compare(&mixer, 2);
}

static void a_weight_that_is_divided_by_itself_has_no_slope(void **state) {
    (void)state;
    const mdp_router_rule rules[] = {{.score = MDP_SOFTMAX_ALL, .scale = 1.0, .n_group = 1, .normalise = true},
                                     {.score = MDP_SOFTMAX_CHOSEN, .scale = 1.0, .n_group = 1},
                                     {.score = MDP_SIGMOID, .scale = 2.5, .n_group = 1, .normalise = true}};
    const double logits[N] = {0.1, 0.2, 0.7, -0.3, 0.0, 0.4}, dg = 0.37;
    const mdp_expert_t index = 2;
    double scratch[2 * N], dz[N];
    for (size_t i = 0; i < sizeof rules / sizeof rules[0]; i++) {
        mdp_route_back(&rules[i], logits, N, &index, 1, &dg, scratch, dz);
        for (int32_t e = 0; e < N; e++) assert_true(dz[e] == 0.0);
    }
}

/* ---- activations ---- */

static double gated(const mdp_activation *activation, double a, double u) {
    double half = a * 0.70710678118654752, z = 0.79788456080286536 * (a + 0.044715 * a * a * a);
    switch (activation->kind) {
    case MDP_SILU:
        return a / (1.0 + exp(-a)) * u;
    case MDP_GELU:
        return 0.5 * a * erfc(-half) * u;
    case MDP_GELU_TANH:
        return 0.5 * a * (1.0 + tanh(z)) * u;
    case MDP_SWIGLU_CLAMPED:
        break;
    }
    double limit = (double)activation->limit, g = fmin(a, limit), c = fmax(-limit, fmin(u, limit));
    return g / (1.0 + exp(-(double)activation->alpha * g)) * (c + 1.0);
}

static void every_activation_has_its_slope(void **state) {
    (void)state;
    static const mdp_activation all[] = {
        {.kind = MDP_SILU}, {.kind = MDP_GELU}, {.kind = MDP_GELU_TANH}, {MDP_SWIGLU_CLAMPED, 1.702F, 2.0F}};
    static const float gate[] = {-3.1F, -0.7F, 0.0F, 0.4F, 1.3F, 2.6F, 5.0F},
                       u[] = {0.3F, -1.2F, 2.7F, -2.5F, 1.0F, 0.6F, -0.1F};
    enum { N_VALUE = sizeof gate / sizeof gate[0] };
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) {
        float dgate[N_VALUE], du[N_VALUE], dh[N_VALUE];
        for (int j = 0; j < N_VALUE; j++) dh[j] = 0.5F + 0.25F * (float)j;
        mdp_gate_back(&all[i], gate, u, dh, N_VALUE, dgate, du);
        for (int j = 0; j < N_VALUE; j++) {
            double a = (double)gate[j], b = (double)u[j], step = 1e-5, d = (double)dh[j] / (2.0 * step);
            double by_a = d * (gated(&all[i], a + step, b) - gated(&all[i], a - step, b));
            double by_b = d * (gated(&all[i], a, b + step) - gated(&all[i], a, b - step));
            assert_true(fabs(by_a - (double)dgate[j]) < 3e-5 * (1.0 + fabs(by_a)));
            assert_true(fabs(by_b - (double)du[j]) < 3e-5 * (1.0 + fabs(by_b)));
        }
    }
}

/* ---- the optimiser ---- */

static void adamw_goes_where_its_formulas_say(void **state) {
    (void)state;
    float value = 0.5F, mean = 0.0F, square = 0.0F;
    double v = 0.5, m = 0.0, s = 0.0;
    for (int t = 1; t <= 50; t++) {
        const mdp_adamw step = {.rate = 1e-2, .decay = 0.1, .scale = 0.5, .number = t};
        float gradient = (float)cos(0.7 * t);
        double g = 0.5 * (double)gradient;
        mdp_adamw_step(&step, 1, &gradient, &value, &mean, &square);
        v *= 1.0 - 1e-2 * 0.1;
        m = 0.9 * m + 0.1 * g;
        s = 0.95 * s + 0.05 * g * g;
        v -= 1e-2 * (m / (1.0 - pow(0.9, t))) / (sqrt(s / (1.0 - pow(0.95, t))) + 1e-8);
        assert_true(fabs(v - (double)value) < 1e-6);
    }
    assert_true(mdp_clip_scale(1.0, 0.5) == 1.0 && mdp_clip_scale(0.0, 1e9) == 1.0);
    assert_true(fabs(mdp_clip_scale(1.0, 4.0) - 1.0 / 4.000001) < 1e-15);
}

static void rates_rise_and_fall(void **state) {
    (void)state;
    mdp_train_options options = {.rate = 2.0, .warmup = 0.1};
    assert_true(fabs(mdp_train_rate(&options, 0, 100) - 0.2) < 1e-12);
    assert_true(mdp_train_rate(&options, 9, 100) == 2.0 && mdp_train_rate(&options, 10, 100) == 2.0);
    assert_true(fabs(mdp_train_rate(&options, 55, 100) - 1.0) < 1e-12);
    options.schedule = MDP_SCHEDULE_LINEAR;
    assert_true(fabs(mdp_train_rate(&options, 82, 100) - 0.4) < 1e-12);
    options.schedule = MDP_SCHEDULE_CONSTANT;
    assert_true(mdp_train_rate(&options, 99, 100) == 2.0);
}

static void each_epoch_takes_every_sequence_once(void **state) {
    (void)state;
    int64_t offset[] = {0, 10, 30, 35, 75, 80, 90};
    const unsigned char skip[] = {0, 0, 1, 0, 0, 0};
    const mdp_tokens tokens = {.n_sequence = 6, .offset = offset, .n_token = 90};
    const mdp_train_options options = {.epochs = 3, .batch_tokens = 30, .seed = 4};
    mdp_train_batches batches;
    int seen[6] = {0};
    assert_int_equal(mdp_train_batches_new(&tokens, skip, &options, &batches).code, MDP_OK);
    for (int64_t i = 0; i < batches.n_step; i++) {
        int64_t n = 0;
        for (int64_t j = batches.first[i]; j < batches.first[i + 1]; j++) {
            int64_t s = batches.sequence[j];
            seen[s]++;
            n += offset[s + 1] - offset[s];
            assert_true(j == batches.first[i] || batches.sequence[j - 1] < s);
        }
        assert_true(n <= 30 || batches.first[i + 1] - batches.first[i] == 1);
    }
    for (int s = 0; s < 6; s++) assert_int_equal(seen[s], skip[s] ? 0 : 3);
    mdp_train_batches_clear(&batches);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_kind_of_router_has_the_slope_of_its_weights),
        cmocka_unit_test(a_weight_that_is_divided_by_itself_has_no_slope),
        cmocka_unit_test(every_activation_has_its_slope),
        cmocka_unit_test(adamw_goes_where_its_formulas_say),
        cmocka_unit_test(rates_rise_and_fall),
        cmocka_unit_test(each_epoch_takes_every_sequence_once),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
