/* Fits: the equations that joint, sweeps and diagonal solve, by plain loops over dense matrices; errors as quadratic
 * forms; two sets of which one is left out; the same bytes on any number of ranks and threads. */
#include "mdp/fit.h"
#include "mpi_check.h"

#include <math.h>
#include <string.h>

enum { N_EXPERT = 3, TOP_K = 2, N_TOKEN = 700, D = 150, N = 640 + 34 + 21, N_PAIR = 9 };

static const mdp_product_side sides[N_EXPERT + 1] = {{640, false}, {33, true}, {21, false}, {D, false}};
static const int64_t offset[N_EXPERT + 1] = {0, 640, 674, N};

static float value_of(int64_t token, int32_t side, int64_t j) {
    return (float)mdp_random_uniform(9, (uint64_t)side, (uint64_t)(token * 1000 + j)) - 0.4F;
}

static int32_t left_out(int64_t token) { /* the expert that a token does not choose */
    return (int32_t)(mdp_random_bits(5, 0, (uint64_t)token) % N_EXPERT);
}

static bool has(int64_t token, int32_t side) {
    return side == N_EXPERT || left_out(token) != side;
}

static int set_of(int64_t token) {
    return token >= N_TOKEN / 2;
}

/* ---- the oracle: dense, one token after the other ---- */

typedef struct dense {
    double *a, *b; /* [N, N], [N, D] */
} dense;

static dense make_dense(const double part[2]) {
    dense out;
    double phi[N], r[D];
    CHECK_OK(MDP_ALLOC(&out.a, (int64_t)N * N, "A"));
    CHECK_OK(MDP_ALLOC(&out.b, (int64_t)N * D, "B"));
    for (int64_t t = 0; t < N_TOKEN; t++) {
        if (part[set_of(t)] == 0.0) continue;
        memset(phi, 0, sizeof phi);
        for (int32_t e = 0; e < N_EXPERT; e++)
            for (int64_t j = 0; has(t, e) && j < mdp_product_width(&sides[e]); j++)
                phi[offset[e] + j] = j < sides[e].n_value ? (double)value_of(t, e, j) : 1.0;
        for (int64_t j = 0; j < D; j++) r[j] = (double)value_of(t, N_EXPERT, j);
        for (int64_t i = 0; i < N; i++) {
            for (int64_t j = 0; phi[i] != 0.0 && j < N; j++) out.a[i * N + j] += phi[i] * phi[j];
            for (int64_t j = 0; phi[i] != 0.0 && j < D; j++) out.b[i * D + j] += phi[i] * r[j];
        }
    }
    return out;
}

static void free_dense(dense *m) {
    mdp_free(m->a);
    mdp_free(m->b);
}

/* Solve a [n, n] x = rhs in place by Gauss with the rows as they are: diagonally heavy enough. */
static void solve_dense(int64_t n, double *a, double *rhs) {
    for (int64_t k = 0; k < n; k++) {
        for (int64_t i = k + 1; i < n; i++) {
            double factor = a[i * n + k] / a[k * n + k];
            for (int64_t j = k; factor != 0.0 && j < n; j++) a[i * n + j] -= factor * a[k * n + j];
            rhs[i] -= factor * rhs[k];
        }
    }
    for (int64_t k = n - 1; k >= 0; k--) {
        for (int64_t j = k + 1; j < n; j++) rhs[k] -= a[k * n + j] * rhs[j];
        rhs[k] /= a[k * n + k];
    }
}

/* Largest |(A + lambda I) d - b| of a column, as part of the largest |b|. */
static double residual_of(const dense *m, double lambda, const double *d, int64_t col) {
    double worst = 0.0, largest = 0.0;
    for (int64_t i = 0; i < N; i++) {
        double sum = lambda * d[i];
        for (int64_t j = 0; j < N; j++) sum += m->a[i * N + j] * d[j];
        worst = fmax(worst, fabs(sum - m->b[i * D + col]));
        largest = fmax(largest, fabs(m->b[i * D + col]));
    }
    return worst / largest;
}

/* One column by Gauss-Seidel over experts, or each alone. */
static void by_experts(const dense *m, double lambda, int n_sweep, bool cross, int64_t col, double *d) {
    double *a = NULL, rhs[640];
    CHECK_OK(MDP_ALLOC(&a, 640 * 640, "a block"));
    memset(d, 0, N * sizeof *d);
    for (int s = 0; s < n_sweep; s++) {
        for (int32_t e = 0; e < N_EXPERT; e++) {
            int64_t w = offset[e + 1] - offset[e];
            for (int64_t i = 0; i < w; i++) {
                rhs[i] = m->b[(offset[e] + i) * D + col];
                for (int64_t j = 0; cross && j < N; j++)
                    if (j < offset[e] || j >= offset[e + 1]) rhs[i] -= m->a[(offset[e] + i) * N + j] * d[j];
                for (int64_t j = 0; j < w; j++)
                    a[i * w + j] = m->a[(offset[e] + i) * N + offset[e] + j] + (i == j ? lambda : 0.0);
            }
            solve_dense(w, a, rhs);
            memcpy(d + offset[e], rhs, (size_t)w * sizeof *d);
        }
    }
    mdp_free(a);
}

/* ---- products of some ranks ---- */

static void add_rows(const mdp_comm *comm, mdp_products *products, int set) {
    mdp_product_rows rows[N_EXPERT + 1] = {0};
    int64_t token[N_EXPERT + 1][N_TOKEN];
    float *memory = NULL;
    const float *values[N_EXPERT + 1][N_TOKEN];
    CHECK_OK(MDP_ALLOC(&memory, (int64_t)N_TOKEN * 1000, "rows"));
    float *at = memory;
    for (int64_t t = N_TOKEN * comm->rank / comm->size; t < N_TOKEN * (comm->rank + 1) / comm->size; t++) {
        for (int32_t side = 0; side <= N_EXPERT; side++) {
            if (set_of(t) != set || !has(t, side)) continue;
            for (int64_t j = 0; j < sides[side].n_value; j++) at[j] = value_of(t, side, j);
            values[side][rows[side].n] = at;
            token[side][rows[side].n++] = t;
            at += sides[side].n_value;
        }
    }
    for (int32_t side = 0; side <= N_EXPERT; side++) {
        rows[side].token = token[side];
        rows[side].values = values[side];
    }
    CHECK_OK(mdp_products_add_all(products, set, rows));
    mdp_free(memory);
}

typedef struct trial {
    mdp_product_layout *layout;
    mdp_products *products;
    mdp_fit *fit;
    double *b, *d;
    int64_t first, n_col;
} trial;

static trial begin(const mdp_comm *comm, mdp_fit_mode mode, int64_t alone, int n_thread) {
    trial t;
    mdp_product_pair pairs[N_PAIR];
    int64_t rows[N_EXPERT * N_EXPERT];
    for (int i = 0; i < N_EXPERT * N_EXPERT; i++) rows[i] = 200;
    mdp_fit_list_pairs(N_EXPERT, mode, rows, pairs);
    CHECK_OK(
        mdp_product_layout_new(comm->size, N_EXPERT + 1, sides, mdp_fit_count_pairs(N_EXPERT, mode), pairs, &t.layout));
    CHECK_OK(mdp_products_new_all(comm, t.layout, 2, n_thread, NULL, &t.products));
    add_rows(comm, t.products, 0);
    add_rows(comm, t.products, 1);
    CHECK_OK(mdp_fit_new_all(comm, t.products, t.layout, mode, alone, MDP_SPD_COLUMNS, n_thread, NULL, &t.fit));
    mdp_fit_columns(t.fit, &t.first, &t.n_col);
    CHECK(mdp_fit_order(t.fit) == N);
    CHECK_OK(MDP_ALLOC(&t.b, N * t.n_col, "B"));
    CHECK_OK(MDP_ALLOC(&t.d, N * t.n_col, "D"));
    return t;
}

static void end(trial *t) {
    mdp_fit_destroy_all(t->fit);
    mdp_products_destroy(t->products);
    mdp_product_layout_destroy(t->layout);
    mdp_free(t->b);
    mdp_free(t->d);
}

static double solve(trial *t, const mdp_fit_sets *sets, int n_sweep) {
    double mean, rcond;
    CHECK_OK(mdp_fit_mean_diagonal_all(t->fit, sets, &mean));
    CHECK_OK(mdp_fit_right_hand_side_all(t->fit, sets, t->b));
    memcpy(t->d, t->b, (size_t)(N * t->n_col) * sizeof *t->d);
    CHECK_OK(mdp_fit_solve_all(t->fit, sets, 0.5 * mean, n_sweep, t->d, &rcond));
    CHECK(rcond > 0.0 && rcond < 1.0);
    return 0.5 * mean;
}

static void equations_hold(const mdp_comm *comm, const double part[2]) {
    dense m = make_dense(part);
    const mdp_fit_sets sets = {.n_set = 2, .part = part};
    double mean = 0.0, quadratic, linear, expected[2] = {0}, own[2];
    for (int64_t i = 0; i < N; i++) mean += m.a[i * N + i] / N;
    for (int64_t alone = 0; alone <= MDP_SPD_ALONE; alone += MDP_SPD_ALONE) {
        trial t = begin(comm, MDP_FIT_JOINT, alone, 1);
        double lambda = solve(&t, &sets, 0);
        CHECK(fabs(lambda - 0.5 * mean) < 1e-12 * mean);
        for (int64_t c = 0; c < t.n_col; c += 13) CHECK(residual_of(&m, lambda, t.d + c * N, t.first + c) < 1e-11);
        CHECK_OK(mdp_fit_forms_all(t.fit, &sets, t.b, t.d, &quadratic, &linear));
        own[0] = own[1] = 0.0;
        for (int64_t c = 0; c < t.n_col; c++) {
            for (int64_t i = 0; i < N; i++) {
                own[1] += m.b[i * D + t.first + c] * t.d[c * N + i];
                for (int64_t j = 0; j < N; j++) own[0] += t.d[c * N + i] * m.a[i * N + j] * t.d[c * N + j];
            }
        }
        MPI_Allreduce(own, expected, 2, MPI_DOUBLE, MPI_SUM, comm->world);
        CHECK(fabs(quadratic - expected[0]) < 1e-11 * expected[0] && fabs(linear - expected[1]) < 1e-11 * expected[1]);
        end(&t);
    }
    for (int cross = 0; cross < 2; cross++) {
        trial t = begin(comm, cross ? MDP_FIT_SWEEPS : MDP_FIT_DIAGONAL, MDP_SPD_ALONE, 1);
        double lambda = solve(&t, &sets, 2), d[N], worst = 0.0, largest = 0.0;
        for (int64_t c = 0; c < t.n_col; c += 61) {
            by_experts(&m, lambda, cross ? 2 : 1, cross, t.first + c, d);
            for (int64_t i = 0; i < N; i++) {
                worst = fmax(worst, fabs(d[i] - t.d[c * N + i]));
                largest = fmax(largest, fabs(d[i]));
            }
        }
        CHECK(worst <= 1e-11 * largest);
        end(&t);
    }
    free_dense(&m);
}

static int64_t bits_of(const mdp_comm *comm, mdp_fit_mode mode, int n_thread) {
    const double part[2] = {1.0, 1.0};
    const mdp_fit_sets sets = {.n_set = 2, .part = part};
    trial t = begin(comm, mode, MDP_SPD_ALONE, n_thread);
    int64_t sum = 0;
    double forms[2] = {0};
    (void)solve(&t, &sets, 2);
    if (mode != MDP_FIT_DIAGONAL) CHECK_OK(mdp_fit_forms_all(t.fit, &sets, t.b, t.d, &forms[0], &forms[1]));
    for (int64_t i = 0; i < N * t.n_col; i++) {
        uint64_t bits;
        memcpy(&bits, &t.d[i], sizeof bits);
        sum += (int64_t)mdp_random_bits(bits, 1, (uint64_t)(t.first * N + i));
    }
    CHECK_OK(mdp_sum_i64_all(comm, &sum, 1));
    for (int i = 0; i < 2; i++) {
        uint64_t bits;
        memcpy(&bits, &forms[i], sizeof bits);
        sum += (int64_t)mdp_random_bits(bits, 2, (uint64_t)i);
    }
    end(&t);
    return sum;
}

static void compare_bits(const mdp_comm *comm, void *context) {
    int64_t *alone = context; /* [3] */
    for (int mode = 0; mode < 3; mode++) {
        int64_t sum = bits_of(comm, (mdp_fit_mode)mode, comm->size == 2 ? 2 : 1);
        if (comm->size == 1) alone[mode] = sum;
        if (comm->rank == 0) CHECK(sum == alone[mode]);
    }
}

static void bits_are_the_same_on_any_ranks(void) {
    int64_t alone[3] = {0};
    check_on_parts_all(compare_bits, alone);
}

int main(int argc, char **argv) {
    const double all[2] = {1.0, 1.0}, first[2] = {1.0, 0.0};
    mdp_comm *comm = NULL;
    MPI_Init(&argc, &argv);
    CHECK_OK(mdp_blas_start());
    CHECK_OK(mdp_comm_new_all(MPI_COMM_WORLD, &comm));
    equations_hold(comm, all);
    if (comm->size <= 3) equations_hold(comm, first);
    bits_are_the_same_on_any_ranks();
    mdp_comm_destroy_all(comm);
    return check_end_all("fit");
}
