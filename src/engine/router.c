/* router.c - which experts a token goes to, and with what weight.
 *
 * In: the residual stream, the layer's second norm and its router rows. Out: index and weight of every local token of
 * every state, by the family's rule. Logits are accumulated in f64; equal logits go to the lower index. */
#include "engine/engine.h"

#include <math.h>
#include <omp.h>
#include <string.h>

/* Scratch of one thread. */
typedef struct router_scratch {
    float *x;       /* [d_model] normalised row */
    double *logits; /* [n_expert] */
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

/* Applied weights of the chosen experts. */
static void weigh(const mdp_router_rule *rule, const double *logits, int32_t n, const mdp_expert_t *index, int32_t k,
                  float *weight) {
    double top = logits[index[0]], all = 0.0, chosen = 0.0;
    for (int32_t e = 0; e < n; e++) all += exp(logits[e] - top);
    for (int32_t j = 0; j < k; j++) chosen += exp(logits[index[j]] - top);
    double total = rule->normalise || rule->score == MDP_SOFTMAX_CHOSEN ? chosen : all;
    for (int32_t j = 0; j < k; j++) weight[j] = (float)(exp(logits[index[j]] - top) / total);
}

void mdp_route_logits(const mdp_router_rule *rule, const double *logits, int32_t n, int32_t k, mdp_expert_t *index,
                      float *weight) {
    if (rule->score == MDP_SPARSEMIXER) {
        mdp_sparsemixer(rule->jitter, logits, n, k, index, weight);
        return;
    }
    choose_top(logits, n, k, index);
    weigh(rule, logits, n, index, k, weight);
}

static void route_token(mdp_engine *engine, int64_t layer_number, int state_number, int64_t local, const float *norm,
                        const float *router, const router_scratch *scratch) {
    const mdp_model *model = engine->model;
    const mdp_moe *moe = &model->layers[layer_number].moe;
    mdp_state *state = &engine->states[state_number];
    int64_t d = model->d_model;
    mdp_expert_t *index = state->index + local * state->top_k;
    float *weight = state->weight + local * state->top_k;
    mdp_norm_row(model, norm, state->x + local * d, scratch->x);
    for (int32_t e = 0; e < state->n_expert; e++) {
        mdp_expert_t row = state->source ? state->source[e] : e;
        scratch->logits[e] = mdp_dot(scratch->x, router + row * d, d);
    }
    mdp_route_logits(&moe->rule, scratch->logits, state->n_expert, state->top_k, index, weight);
    if (engine->observers.routed) {
        mdp_routed_token token = {.layer = layer_number,
                                  .state = state_number,
                                  .local = local,
                                  .n_expert = state->n_expert,
                                  .top_k = state->top_k,
                                  .x = scratch->x,
                                  .logits = scratch->logits,
                                  .index = index,
                                  .weight = weight};
        engine->observers.routed(engine->observers.context, &token);
    }
    for (int32_t j = 0; state->zero && j < state->top_k; j++) {
        if (state->zero[index[j]]) weight[j] = 0.0F; /* chosen as before, returns 0 */
    }
}

mdp_status mdp_route(mdp_engine *engine, int64_t layer_number, const float *norm, const float *router) {
    int64_t d = engine->model->d_model, n_expert = engine->model->layers[layer_number].moe.n_expert;
    int64_t n_token = engine->batch.n_token, n_row = n_token * engine->n_state;
    float *x = NULL;
    double *logits = NULL;
    mdp_status status = MDP_ALLOC(&x, engine->n_thread * d, "router input");
    if (status.code == MDP_OK) status = MDP_ALLOC(&logits, engine->n_thread * n_expert, "router logits");
    if (status.code == MDP_OK) {
#pragma omp parallel for schedule(static) num_threads(engine->n_thread)
        for (int64_t row = 0; row < n_row; row++) {
            int thread = omp_get_thread_num();
            router_scratch scratch = {.x = x + thread * d, .logits = logits + thread * n_expert};
            route_token(engine, layer_number, (int)(row / n_token), row % n_token, norm, router, &scratch);
        }
    }
    mdp_free(x);
    mdp_free(logits);
    return status;
}
