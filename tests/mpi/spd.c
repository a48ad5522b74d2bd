/* Symmetric positive definite systems: known solutions by one rank and on grids, the same bytes on any number of ranks
 * that are enough, again and again; a matrix that is not positive definite is the same error on every rank. */
#include "mdp/spd.h"
#include "mpi_check.h"

#include <math.h>
#include <string.h>

/* Kac, Murdock and Szego: entries 2^-|i - j| are positive definite; the diagonal is made larger. */
static double matrix_entry(int64_t i, int64_t j) {
    return ldexp(1.0, -(int)(i > j ? i - j : j - i)) + (i == j ? 1.0 : 0.0);
}

static double solution_entry(int64_t i, int64_t j) {
    return (double)((i * 37 + j * 11) % 23) - 7.0;
}

/* Rows of the triangle that this rank puts, in two runs each. */
typedef struct rows {
    int64_t first, step; /* row number i / 2 is first + i / 2 * step */
    double *row;         /* [n] */
} rows;

static mdp_spd_run give(void *context, int64_t i) {
    const rows *own = context;
    int64_t row = own->first + i / 2 * own->step, half = (row + 1) / 2;
    mdp_spd_run run = {.row = row, .col = i % 2 ? half : 0, .n = i % 2 ? row + 1 - half : half, .values = own->row};
    for (int64_t j = 0; j < run.n; j++) own->row[j] = matrix_entry(row, run.col + j);
    return run;
}

/* This rank's columns of n_rhs: multiples of MDP_SPD_COLUMNS, the last rank none where there are several. */
static void share(const mdp_comm *comm, int64_t n_rhs, int64_t *first, int64_t *n_col) {
    int64_t n_unit = (n_rhs + MDP_SPD_COLUMNS - 1) / MDP_SPD_COLUMNS, n_rank = comm->size > 1 ? comm->size - 1 : 1;
    int64_t end = (comm->rank + 1) * n_unit / n_rank * MDP_SPD_COLUMNS;
    *first = comm->rank * n_unit / n_rank * MDP_SPD_COLUMNS;
    if (end > n_rhs || comm->rank >= n_rank) end = n_rhs;
    if (*first > n_rhs) *first = n_rhs;
    *n_col = end - *first;
}

static void fill_right_hand_side(int64_t n, int64_t first, int64_t n_col, double *x) {
    for (int64_t c = 0; c < n_col; c++) {
        for (int64_t i = 0; i < n; i++) {
            double sum = 0.0;
            for (int64_t j = i > 60 ? i - 60 : 0; j < n && j < i + 60; j++)
                sum += matrix_entry(i, j) * solution_entry(j, first + c);
            x[c * n + i] = sum;
        }
    }
}

/* Put, factor, solve; the same number on every rank for the same bits of the solution. */
static int64_t solve(const mdp_comm *comm, const mdp_grid *grid, int64_t n, int64_t n_rhs, int n_thread) {
    mdp_spd *spd = NULL;
    double *x = NULL, rcond, worst = 0.0;
    rows own = {.first = comm->rank, .step = comm->size};
    int64_t first, n_col, sum = 0, n_row = n > comm->rank ? (n - comm->rank + comm->size - 1) / comm->size : 0;
    share(comm, n_rhs, &first, &n_col);
    CHECK_OK(MDP_ALLOC(&x, n * n_col, "x"));
    CHECK_OK(MDP_ALLOC(&own.row, n, "a row"));
    fill_right_hand_side(n, first, n_col, x);
    CHECK_OK(mdp_spd_new_all(grid, 1, NULL, &spd));
    CHECK_OK(mdp_spd_put_all(spd, 2 * n_row, give, &own));
    mdp_spd_add_diagonal(spd, 0.0);
    CHECK_OK(mdp_spd_factor_all(spd, &rcond));
    CHECK(rcond > 0.05 && rcond < 1.0 + 1e-12);
    CHECK_OK(mdp_spd_solve_all(spd, n_rhs, first, n_col, n_thread, x));
    for (int64_t c = 0; c < n_col; c++) {
        for (int64_t i = 0; i < n; i++) {
            uint64_t bits;
            worst = fmax(worst, fabs(x[c * n + i] - solution_entry(i, first + c)));
            memcpy(&bits, &x[c * n + i], sizeof bits);
            sum += (int64_t)mdp_random_bits(bits, (uint64_t)i, (uint64_t)(first + c));
        }
    }
    CHECK(worst < 1e-10);
    CHECK_OK(mdp_sum_i64_all(comm, &sum, 1));
    mdp_spd_destroy(spd);
    mdp_free(own.row);
    mdp_free(x);
    return sum;
}

static int64_t solve_on(const mdp_comm *comm, int64_t n, int64_t alone, int64_t n_rhs, int n_thread) {
    mdp_grid *grid = NULL;
    CHECK_OK(mdp_grid_new_all(comm, n, alone, &grid));
    int64_t sum = solve(comm, grid, n, n_rhs, n_thread);
    CHECK(solve(comm, grid, n, n_rhs, n_thread) == sum);
    mdp_grid_destroy_all(grid);
    return sum;
}

static void known_systems_are_solved(const mdp_comm *comm) {
    static const int64_t orders[] = {1, 257, 640};
    for (int i = 0; i < 3; i++) {
        int64_t sum = solve_on(comm, orders[i], MDP_SPD_ALONE, 200, 1);
        if (comm->size <= 2) CHECK(solve_on(comm, orders[i], MDP_SPD_ALONE, 200, 2) == sum);
        (void)solve_on(comm, orders[i], 0, 200, 1);
    }
}

typedef struct solved {
    int64_t of_one, of_grid;
} solved;

static void compare_bits(const mdp_comm *comm, void *context) {
    solved *first = context;
    int n = comm->size;
    int64_t one = solve_on(comm, 400, MDP_SPD_ALONE, 130, 1), grid = solve_on(comm, 400, 0, 130, 1);
    CHECK(mdp_grid_is_fixed(400, 0, n) == (n >= 4));
    if (n == 1) first->of_one = one;
    if (n == 4) first->of_grid = grid;
    if (comm->rank == 0) CHECK(one == first->of_one);
    if (comm->rank == 0 && n > 4) CHECK(grid == first->of_grid);
}

/* The same bits on every number of ranks, where they are enough for the grid. */
static void bits_do_not_depend_on_ranks(void) {
    solved first = {0, 0};
    check_on_parts_all(compare_bits, &first);
}

/* The identity, but for one negative entry: the leading minor of that order is the first that is not positive. */
static void indefinite_matrix_is_refused_on_every_rank(const mdp_comm *comm, int64_t alone) {
    mdp_grid *grid = NULL;
    mdp_spd *spd = NULL;
    double row[200] = {0}, rcond;
    rows own = {.first = comm->rank == 0 ? 130 : 200, .step = 200, .row = row};
    CHECK_OK(mdp_grid_new_all(comm, 200, alone, &grid));
    CHECK_OK(mdp_spd_new_all(grid, 0, NULL, &spd));
    CHECK_OK(mdp_spd_put_all(spd, comm->rank == 0 ? 2 : 0, give, &own));
    mdp_spd_add_diagonal(spd, 1.0);
    CHECK_OK(mdp_spd_factor_all(spd, &rcond));
    CHECK_OK(mdp_spd_put_all(spd, comm->rank == 0 ? 2 : 0, give, &own));
    mdp_spd_add_diagonal(spd, -40.0);
    mdp_status status = mdp_spd_factor_all(spd, &rcond);
    CHECK(status.code == MDP_BAD_INPUT);
    CHECK(strstr(status.text, "leading minor of order 1 is not positive") != NULL);
    mdp_spd_destroy(spd);
    mdp_grid_destroy_all(grid);
}

/* 200,000 x 200,000 on at most 8 ranks: refused on every rank before anything is touched. */
static void too_large_a_piece_is_refused_on_every_rank(const mdp_comm *comm) {
    mdp_grid *grid = NULL;
    mdp_status status = mdp_grid_new_all(comm, 200000, MDP_SPD_ALONE, &grid);
    CHECK(status.code == MDP_INTERNAL && strstr(status.text, "use more ranks") != NULL);
}

int main(int argc, char **argv) {
    mdp_comm *comm = NULL;
    MPI_Init(&argc, &argv);
    CHECK_OK(mdp_blas_start());
    CHECK_OK(mdp_comm_new_all(MPI_COMM_WORLD, &comm));
    known_systems_are_solved(comm);
    bits_do_not_depend_on_ranks();
    indefinite_matrix_is_refused_on_every_rank(comm, MDP_SPD_ALONE);
    indefinite_matrix_is_refused_on_every_rank(comm, 0);
    too_large_a_piece_is_refused_on_every_rank(comm);
    mdp_comm_destroy_all(comm);
    return check_end_all("spd");
}
