/* route_step.c - what a token's owner does in a step: routes by the router as it is, errors, and the way back to the
 * router's rows. */
#include "recover/trainer.h"

#include <omp.h>
#include <string.h>

/* ---- routes ----------------------------------------------------------------------------------------------------- */

static void score(const mdp_trainer *t, const float *x, double *logits) {
    int64_t d = t->layer.d_model;
    int32_t n = t->layer.n_expert;
    for (int32_t e = 0; e < n; e++) logits[e] = mdp_dot(x, t->router + e * d, d);
    for (int32_t e = 0; t->has_bias && e < n; e++) logits[e] += (double)t->router[n * d + e];
}

static void list_visits(mdp_train_step *step) {
    const mdp_trainer *t = step->trainer;
    int32_t n_expert = t->layer.n_expert, top_k = t->layer.top_k;
    const unsigned char *zero = t->layer.zero;
    memset(step->count, 0, (size_t)n_expert * sizeof *step->count);
    for (int64_t i = 0; i < step->rows->n * top_k; i++)
        if (!zero || !zero[step->index[i]]) step->count[step->index[i]]++;
    for (int32_t e = 0; e < n_expert; e++) step->first[e + 1] = step->first[e] + step->count[e];
    memset(step->count, 0, (size_t)n_expert * sizeof *step->count);
    for (int64_t i = 0; i < step->rows->n * top_k; i++) {
        mdp_expert_t e = step->index[i];
        if (zero && zero[e]) continue;
        step->visits[step->first[e] + step->count[e]++] =
            (mdp_train_visit){.row = (int32_t)(i / top_k), .slot = (int32_t)(i % top_k)};
    }
}

void mdp_train_route(mdp_train_step *step) {
    const mdp_trainer *t = step->trainer;
    int32_t n = t->layer.n_expert, top_k = t->layer.top_k;
    const mdp_route_set set = {.n = n, .source = t->layer.source, .row = t->own_row, .bias = t->choice_bias};
#pragma omp parallel for schedule(static) num_threads(t->n_thread)
    for (int64_t i = 0; i < step->rows->n; i++) {
        double *logits = step->logits + 4 * i * n;
        score(t, step->rows->x[i], logits);
        mdp_route_logits(&t->layer.moe->rule, &set, logits, top_k, logits + n, step->index + i * top_k,
                         step->weight + i * top_k);
        for (int32_t j = 0; t->layer.zero && j < top_k; j++)
            if (t->layer.zero[step->index[i * top_k + j]]) step->weight[i * top_k + j] = 0.0F;
    }
    list_visits(step);
}

/* ---- errors ----------------------------------------------------------------------------------------------------- */

/* y of a slot into the first of its parts: in the order of neurons. */
static float *join(const mdp_train_step *step, int64_t slot) {
    const mdp_trainer *t = step->trainer;
    int64_t d = t->layer.d_model;
    float *y = step->parts + slot * t->n_slice * d;
    for (int32_t s = 1; s < t->n_slice; s++)
        for (int64_t j = 0; j < d; j++) y[j] += y[s * d + j];
    return y;
}

/* |Z' - Z|^2 of a token; its gradients by outputs and weights. sum [d]: room. */
static double compare(mdp_train_step *step, int64_t i, double *sum) {
    const mdp_trainer *t = step->trainer;
    int64_t d = t->layer.d_model;
    int32_t top_k = t->layer.top_k;
    bool weighed = t->layer.moe->rule.weigh_input;
    double square = 0.0;
    float *back = step->back + i * d;
    memset(sum, 0, (size_t)d * sizeof *sum);
    for (int32_t k = 0; k < top_k; k++) {
        const float *y = join(step, i * top_k + k);
        double weight = weighed ? 1.0 : (double)step->weight[i * top_k + k];
        for (int64_t j = 0; j < d; j++) sum[j] += weight * (double)y[j];
    }
    for (int64_t j = 0; j < d; j++) {
        double error = sum[j] - (double)step->rows->target[i][j];
        square += error * error;
        back[j] = (float)(2.0 * step->rows->scale * error);
    }
    for (int32_t k = 0; k < top_k; k++)
        step->dg[i * top_k + k] = mdp_dot(back, step->parts + (i * top_k + k) * t->n_slice * d, d);
    return square;
}

mdp_status mdp_train_compare(mdp_train_step *step) {
    const mdp_trainer *t = step->trainer;
    int64_t d = t->layer.d_model, n_bad = 0;
    double *room = NULL;
    MDP_TRY(MDP_ALLOC(&room, t->n_thread * d, "errors of a step"));
#pragma omp parallel for schedule(static) num_threads(t->n_thread)
    for (int64_t i = 0; i < step->rows->n; i++) {
        double square = compare(step, i, room + omp_get_thread_num() * d);
        if (!mdp_exact_add(&step->error, square)) __atomic_fetch_add(&n_bad, 1, __ATOMIC_RELAXED);
    }
    mdp_free(room);
    if (n_bad == 0) return mdp_ok();
    return MDP_ERROR(
        MDP_BAD_INPUT,
        "training went astray: outputs of %lld tokens are not finite after %lld steps; give a smaller --lr.",
        (long long)n_bad, (long long)t->n_update);
}

/* ---- the router ------------------------------------------------------------------------------------------------- */

/* Gradients of the logits of all rows, dz [n, n_expert]. */
static void fill_logits_back(const mdp_train_step *step, float *dz) {
    const mdp_trainer *t = step->trainer;
    int32_t n = t->layer.n_expert, top_k = t->layer.top_k;
#pragma omp parallel for schedule(static) num_threads(t->n_thread)
    for (int64_t i = 0; i < step->rows->n; i++) {
        double *logits = step->logits + 4 * i * n, *out = logits + 3 * n;
        mdp_route_back(&t->layer.moe->rule, logits, n, step->index + i * top_k, top_k, step->dg + i * top_k, logits + n,
                       out);
        for (int32_t e = 0; e < n; e++) dz[i * n + e] = t->layer.zero && t->layer.zero[e] ? 0.0F : (float)out[e];
    }
}

/* Blocks of the sum to all ranks: each value is one rank's, and 0 bits elsewhere. Collective. */
static mdp_status spread_all(mdp_trainer *t, int64_t *bits) {
    const int64_t *own, d = t->layer.d_model, n = t->layer.n_expert;
    int64_t n_own = mdp_products_own(t->products, &own);
    for (int64_t i = 0; i < n_own; i++) {
        const mdp_product_block *block = &t->layout->blocks[own[i]];
        double *values = mdp_products_values(t->products, 0, i);
        for (int64_t r = 0; r < block->n_row; r++)
            for (int64_t c = 0; c < block->n_col; c++) {
                int64_t row = block->row0 + r, col = block->col0 + c;
                memcpy(&bits[col < d ? row * d + col : n * d + row], &values[r * block->n_col + c], sizeof *bits);
            }
        memset(values, 0, (size_t)(block->n_row * block->n_col) * sizeof *values);
    }
    MDP_TRY(mdp_sum_i64_all(t->comm, bits, t->n_router));
    for (int64_t i = 0; i < t->n_router; i++) {
        double value;
        memcpy(&value, &bits[i], sizeof value);
        t->router_gradient[i] = (float)value;
    }
    return mdp_ok();
}

typedef struct router_room {
    float *dz;
    const float **left;
    int64_t *bits;
} router_room;

static mdp_status take_room(const mdp_train_step *step, router_room *room) {
    int64_t n = step->rows->n;
    MDP_TRY(MDP_ALLOC(&room->dz, n * step->trainer->layer.n_expert, "gradients of logits"));
    MDP_TRY(MDP_ALLOC(&room->left, n, "gradients of logits"));
    return MDP_ALLOC(&room->bits, step->trainer->n_router, "the gradient of a router");
}

mdp_status mdp_train_router_back_all(mdp_train_step *step) {
    mdp_trainer *t = step->trainer;
    int64_t n = step->rows->n;
    router_room room = {0};
    mdp_status status = mdp_agree_all(t->comm, take_room(step, &room));
    if (status.code == MDP_OK) {
        fill_logits_back(step, room.dz);
        for (int64_t i = 0; i < n; i++) room.left[i] = room.dz + i * t->layer.n_expert;
        const mdp_product_rows sides[2] = {{.n = n, .token = step->rows->token, .values = room.left},
                                           {.n = n, .token = step->rows->token, .values = step->rows->x}};
        status = mdp_products_add_all(t->products, 0, sides);
    }
    if (status.code == MDP_OK) status = spread_all(t, room.bits);
    mdp_free(room.dz);
    mdp_free(room.left);
    mdp_free(room.bits);
    return status;
}
