/* kernels.c - see kernels.h. In f64: distances are differences of products. */
#include "observe/kernels.h"

#include <cblas.h>
#include <math.h>
#include <string.h>

#define COLUMNS 512 /* of y that are multiplied at a time */

int64_t mdp_kernel_values(int64_t n) {
    return n * (n + 1) / 2;
}

/* The kernel, then columns of y or distances or means. */
int64_t mdp_kernel_scratch(int64_t n) {
    return n * n + mdp_larger(n * COLUMNS, n * n / 2 + n);
}

/* Lower triangle of k [n, n] = y y^T. */
static void fill_products(const float *y, int64_t n, int64_t d, double *columns, double *k) {
    for (int64_t first = 0; first < d; first += COLUMNS) {
        int64_t m = d - first < COLUMNS ? d - first : COLUMNS;
        for (int64_t i = 0; i < n; i++)
            for (int64_t j = 0; j < m; j++) columns[i * COLUMNS + j] = (double)y[i * d + first + j];
        cblas_dsyrk(CblasRowMajor, CblasLower, CblasNoTrans, (int)n, (int)m, 1.0, columns, COLUMNS,
                    first > 0 ? 1.0 : 0.0, k, (int)n);
    }
}

/* ---- the median ---------------------------------------------------------------------------------------------- */

/* Median of the square roots of value [n], which is reordered; of an even number the mean of the two in the middle. */
static double median_root(double *value, int64_t n) {
    if (n == 0) return 0.0;
    int64_t middle = n / 2;
    mdp_select_rank(value, n, middle);
    double upper = sqrt(value[middle]), lower = value[0];
    if (n % 2 == 1) return upper;
    for (int64_t i = 1; i < middle; i++) lower = value[i] > lower ? value[i] : lower;
    return 0.5 * (sqrt(lower) + upper);
}

/* ---- kernels ------------------------------------------------------------------------------------------------- */

/* Squared distance of tokens a >= b from their products. */
static double distance2(const double *k, int64_t n, int64_t a, int64_t b) {
    return fmax(k[a * n + a] + k[b * n + b] - 2.0 * k[a * n + b], 0.0);
}

/* Products of the lower triangle become the gaussian kernel. */
static void make_gaussian(int64_t n, double *distance, double *k) {
    int64_t n_pair = 0;
    for (int64_t a = 0; a < n; a++)
        for (int64_t b = 0; b < a; b++) distance[n_pair++] = distance2(k, n, a, b);
    double s = median_root(distance, n_pair);
    for (int64_t a = 0; a < n; a++)
        for (int64_t b = 0; b < a; b++) k[a * n + b] = s > 0.0 ? exp(-distance2(k, n, a, b) / (2.0 * s * s)) : 1.0;
    for (int64_t a = 0; a < n; a++) k[a * n + a] = 1.0;
}

/* mean [n] of the rows of the symmetric matrix, and the mean of all. */
static double find_means(const double *k, int64_t n, double *mean) {
    double all = 0.0;
    memset(mean, 0, (size_t)n * sizeof *mean);
    for (int64_t a = 0; a < n; a++) {
        for (int64_t b = 0; b < a; b++) {
            mean[a] += k[a * n + b];
            mean[b] += k[a * n + b];
        }
        mean[a] += k[a * n + a];
    }
    for (int64_t a = 0; a < n; a++) {
        mean[a] /= (double)n;
        all += mean[a];
    }
    return all / (double)n;
}

void mdp_kernel_fill(mdp_kernel_kind kind, const float *y, int64_t n, int64_t d, double *scratch, float *out) {
    double *k = scratch, *mean = scratch + n * n, square = 0.0;
    fill_products(y, n, d, mean, k);
    if (kind == MDP_KERNEL_RBF) make_gaussian(n, mean, k);
    double all = find_means(k, n, mean);
    for (int64_t a = 0; a < n; a++) {
        for (int64_t b = 0; b <= a; b++) {
            double *value = &k[a * n + b];
            *value = (*value - mean[a] - mean[b] + all) * (a == b ? 1.0 : sqrt(2.0));
            square += *value * *value;
        }
    }
    double factor = square > 0.0 ? 1.0 / sqrt(square) : 0.0;
    for (int64_t a = 0, at = 0; a < n; a++)
        for (int64_t b = 0; b <= a; b++) out[at++] = (float)(k[a * n + b] * factor);
}
