/* rows.c - kernels over one row: sums, norm, maxima, rotation. One defined order each (lanes.h): the same bits on
 * every machine, at every alignment, from every thread.
 *
 * Sums of products of f32 values are taken in f64, where each product is exact. */
#include "linalg/lanes.h"
#include "mdp/linalg.h"

#include <math.h>

MDP_INLINE double dot(const float *restrict a, const float *restrict b, int64_t n) {
    double lane[MDP_LANES] = {0.0};
    int64_t whole = n - n % MDP_LANES;
    for (int64_t i = 0; i < whole; i += MDP_LANES) {
        for (int j = 0; j < MDP_LANES; j++) lane[j] += (double)a[i + j] * (double)b[i + j];
    }
    for (int64_t i = whole; i < n; i++) lane[i - whole] += (double)a[i] * (double)b[i];
    return lanes_sum(lane);
}

MDP_CLONES double mdp_dot(const float *a, const float *b, int64_t n) {
    return dot(a, b, n);
}

MDP_CLONES double mdp_sum_squares(const float *x, int64_t n) {
    return dot(x, x, n);
}

MDP_CLONES void mdp_rms_norm(const float *x, const float *weight, double eps, int64_t n, float *y) {
    float scale = (float)(1.0 / sqrt(dot(x, x, n) / (double)n + eps));
    for (int64_t i = 0; i < n; i++) y[i] = weight[i] * (x[i] * scale);
}

MDP_CLONES void mdp_layer_norm(const float *x, const float *weight, const float *bias, double eps, int64_t n,
                               float *y) {
    double lane[MDP_LANES] = {0.0}, square[MDP_LANES] = {0.0};
    int64_t whole = n - n % MDP_LANES;
    for (int64_t i = 0; i < whole; i += MDP_LANES) {
        for (int j = 0; j < MDP_LANES; j++) lane[j] += (double)x[i + j];
    }
    for (int64_t i = whole; i < n; i++) lane[i - whole] += (double)x[i];
    double mean = lanes_sum(lane) / (double)n;
    for (int64_t i = 0; i < whole; i += MDP_LANES) {
        for (int j = 0; j < MDP_LANES; j++) {
            square[j] += ((double)x[i + j] - mean) * ((double)x[i + j] - mean);
        }
    }
    for (int64_t i = whole; i < n; i++) square[i - whole] += ((double)x[i] - mean) * ((double)x[i] - mean);
    double scale = 1.0 / sqrt(lanes_sum(square) / (double)n + eps);
    for (int64_t i = 0; i < n; i++) y[i] = (float)(((double)x[i] - mean) * scale) * weight[i] + bias[i];
}

MDP_CLONES void mdp_axpy(float a, const float *restrict x, int64_t n, float *restrict y) {
    for (int64_t i = 0; i < n; i++) y[i] += a * x[i];
}

MDP_CLONES float mdp_max(const float *x, int64_t n) {
    float lane[MDP_LANES];
    for (int j = 0; j < MDP_LANES; j++) lane[j] = x[0];
    int64_t whole = n - n % MDP_LANES;
    for (int64_t i = 0; i < whole; i += MDP_LANES) {
        for (int j = 0; j < MDP_LANES; j++) lane[j] = x[i + j] > lane[j] ? x[i + j] : lane[j];
    }
    for (int64_t i = whole; i < n; i++) lane[i - whole] = x[i] > lane[i - whole] ? x[i] : lane[i - whole];
    float largest = lane[0];
    for (int j = 1; j < MDP_LANES; j++) largest = lane[j] > largest ? lane[j] : largest;
    return largest;
}

MDP_CLONES float mdp_max_abs(const float *x, int64_t n) {
    float lane[MDP_LANES] = {0.0F};
    int64_t whole = n - n % MDP_LANES;
    for (int64_t i = 0; i < whole; i += MDP_LANES) {
        for (int j = 0; j < MDP_LANES; j++) lane[j] = fabsf(x[i + j]) > lane[j] ? fabsf(x[i + j]) : lane[j];
    }
    for (int64_t i = whole; i < n; i++) lane[i - whole] = fabsf(x[i]) > lane[i - whole] ? fabsf(x[i]) : lane[i - whole];
    float largest = 0.0F;
    for (int j = 0; j < MDP_LANES; j++) largest = lane[j] > largest ? lane[j] : largest;
    return largest;
}

MDP_CLONES double mdp_sum_abs(const float *x, int64_t n) {
    double lane[MDP_LANES] = {0.0};
    int64_t whole = n - n % MDP_LANES;
    for (int64_t i = 0; i < whole; i += MDP_LANES) {
        for (int j = 0; j < MDP_LANES; j++) lane[j] += (double)fabsf(x[i + j]);
    }
    for (int64_t i = whole; i < n; i++) lane[i - whole] += (double)fabsf(x[i]);
    return lanes_sum(lane);
}

MDP_INLINE void rotate_halves(const float *restrict cosine, const float *restrict sine, int64_t n_pair,
                              float *restrict first, float *restrict second) {
    for (int64_t i = 0; i < n_pair; i++) {
        float a = first[i], b = second[i];
        first[i] = a * cosine[i] - b * sine[i];
        second[i] = b * cosine[i] + a * sine[i];
    }
}

MDP_INLINE void rotate_pairs(const float *restrict cosine, const float *restrict sine, int64_t n_pair,
                             float *restrict head) {
    for (int64_t i = 0; i < n_pair; i++) {
        float a = head[2 * i], b = head[2 * i + 1];
        head[2 * i] = a * cosine[i] - b * sine[i];
        head[2 * i + 1] = b * cosine[i] + a * sine[i];
    }
}

MDP_CLONES void mdp_rope_rotate(mdp_rope_layout layout, const float *cosine, const float *sine, int64_t n_pair,
                                float *head) {
    if (layout == MDP_ROPE_HALF) {
        rotate_halves(cosine, sine, n_pair, head, head + n_pair);
    } else {
        rotate_pairs(cosine, sine, n_pair, head);
    }
}
