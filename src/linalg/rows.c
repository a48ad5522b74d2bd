/* rows.c - kernels over one row: sums, norm, maxima, rotation. One defined order each (lanes.h): the same bits on
 * every machine, at every alignment, from every thread.
 *
 * Sums of products of f32 values are taken in f64, where each product is exact. */
#include "linalg/lanes.h"
#include "mdp/linalg.h"

#include <math.h>
#include <string.h>

#define MDP_COLUMNS 32 /* of a sum over rows at a time */

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

/* Four at a time keep the adders busy, where the sums of one wait for each other, and convert x once. One array for
 * each row, so that all of them stay in registers. */
MDP_CLONES void mdp_dot_rows(const float *restrict x, const float *const row[MDP_DOT_ROWS], int64_t n,
                             double out[MDP_DOT_ROWS]) {
    const float *restrict p = row[0], *restrict q = row[1], *restrict r = row[2], *restrict s = row[3];
    double xp[MDP_LANES] = {0.0}, xq[MDP_LANES] = {0.0}, xr[MDP_LANES] = {0.0}, xs[MDP_LANES] = {0.0};
    int64_t whole = n - n % MDP_LANES;
    for (int64_t i = 0; i < whole; i += MDP_LANES) {
        for (int j = 0; j < MDP_LANES; j++) {
            double a = (double)x[i + j];
            xp[j] += a * (double)p[i + j];
            xq[j] += a * (double)q[i + j];
            xr[j] += a * (double)r[i + j];
            xs[j] += a * (double)s[i + j];
        }
    }
    for (int64_t i = whole; i < n; i++) {
        double a = (double)x[i];
        xp[i - whole] += a * (double)p[i];
        xq[i - whole] += a * (double)q[i];
        xr[i - whole] += a * (double)r[i];
        xs[i - whole] += a * (double)s[i];
    }
    out[0] = lanes_sum(xp);
    out[1] = lanes_sum(xq);
    out[2] = lanes_sum(xr);
    out[3] = lanes_sum(xs);
}

MDP_CLONES double mdp_sum_squares(const float *x, int64_t n) {
    return dot(x, x, n);
}

/* Three sums of 16 lanes: six registers of AVX-512, and one for the maximum. */
MDP_CLONES mdp_moments mdp_row_moments(const float *restrict x, const float *restrict y, int64_t n) {
    double xx[MDP_LANES] = {0.0}, xy[MDP_LANES] = {0.0}, yy[MDP_LANES] = {0.0};
    float most[MDP_LANES] = {0.0F};
    int64_t whole = n - n % MDP_LANES;
    for (int64_t i = 0; i < whole; i += MDP_LANES) {
        for (int j = 0; j < MDP_LANES; j++) {
            double a = (double)x[i + j], b = (double)y[i + j];
            xx[j] += a * a;
            xy[j] += a * b;
            yy[j] += b * b;
            most[j] = fabsf(y[i + j]) > most[j] ? fabsf(y[i + j]) : most[j];
        }
    }
    for (int64_t i = whole; i < n; i++) {
        double a = (double)x[i], b = (double)y[i];
        xx[i - whole] += a * a;
        xy[i - whole] += a * b;
        yy[i - whole] += b * b;
        most[i - whole] = fabsf(y[i]) > most[i - whole] ? fabsf(y[i]) : most[i - whole];
    }
    mdp_moments out = {.xx = lanes_sum(xx), .xy = lanes_sum(xy), .yy = lanes_sum(yy)};
    for (int j = 0; j < MDP_LANES; j++) out.max_abs_y = most[j] > out.max_abs_y ? most[j] : out.max_abs_y;
    return out;
}

MDP_INLINE void add_columns(const float *restrict y, int64_t ldy, int64_t n_row, int64_t n, double *restrict sum) {
    double column[MDP_COLUMNS];
    for (int64_t j = 0; j < n; j++) column[j] = sum[j];
    for (int64_t i = 0; i < n_row; i++) {
        for (int64_t j = 0; j < n; j++) column[j] += (double)y[i * ldy + j];
    }
    for (int64_t j = 0; j < n; j++) sum[j] = column[j];
}

/* MDP_COLUMNS at a time, whose sums stay in registers; what is left over has a loop of its own. */
MDP_CLONES void mdp_add_rows(const float *y, int64_t ldy, int64_t n_row, int64_t n, double *sum) {
    int64_t first = 0;
    for (; first + MDP_COLUMNS <= n; first += MDP_COLUMNS) add_columns(y + first, ldy, n_row, MDP_COLUMNS, sum + first);
    add_columns(y + first, ldy, n_row, n - first, sum + first);
}

MDP_CLONES void mdp_add_squares(const float *restrict x, int64_t n, const float *restrict weight, int64_t n_row,
                                double *restrict sum) {
    for (int64_t row = 0; row < n_row; row++) {
        double w = weight ? (double)weight[row] : 1.0;
        for (int64_t j = 0; j < n; j++) {
            double value = w * (double)x[row * n + j];
            sum[j] += value * value;
        }
    }
}

MDP_CLONES void mdp_round_bf16(const float *restrict x, int64_t n, uint16_t *restrict out) {
    for (int64_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, x + i, sizeof bits);
        uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
        uint32_t nan = (bits >> 16) | 0x40u;
        out[i] = (uint16_t)((bits & 0x7fffffffu) > 0x7f800000u ? nan : rounded);
    }
}

/* By bits, without branches: exponents of NaN and infinity are the largest. */
MDP_CLONES bool mdp_all_finite(const float *x, int64_t n) {
    uint32_t most = 0;
    for (int64_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, x + i, sizeof bits);
        bits &= 0x7fffffffu;
        most = bits > most ? bits : most;
    }
    return most < 0x7f800000u;
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

MDP_INLINE float least(float a, float b) {
    return a < b ? a : b;
}

MDP_CLONES double mdp_sum_least(const float *a, const float *b, int64_t n) {
    double lane[MDP_LANES] = {0.0};
    int64_t whole = n - n % MDP_LANES;
    for (int64_t i = 0; i < whole; i += MDP_LANES) {
        for (int j = 0; j < MDP_LANES; j++) lane[j] += (double)least(a[i + j], b[i + j]);
    }
    for (int64_t i = whole; i < n; i++) lane[i - whole] += (double)least(a[i], b[i]);
    return lanes_sum(lane);
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
