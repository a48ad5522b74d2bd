/* Cholesky over all ranks: a system whose solution is known, on every rank of the communicator and on grids that leave
 * ranks over; a matrix that is not positive definite is the same error on every rank. */
#include "mdp/linalg.h"

#include <math.h>
#include <string.h>

static int n_wrong = 0;

static void expect(bool truth, const char *what, int64_t n, int64_t n_rhs, int size) {
    if (truth) return;
    n_wrong++;
    fprintf(stderr, "solve_spd: %s (n %lld, n_rhs %lld, size %d)\n", what, (long long)n, (long long)n_rhs, size);
}

/* Kac, Murdock and Szego: entries 2^-|i - j| are positive definite; the diagonal is made larger to stay well
 * conditioned. */
static double matrix_entry(int64_t i, int64_t j) {
    return ldexp(1.0, -(int)(i > j ? i - j : j - i)) + (i == j ? 1.0 : 0.0);
}

static double solution_entry(int64_t i, int64_t j) {
    return (double)((i * 37 + j * 11) % 23) - 7.0;
}

static void known_system_is_solved(const mdp_comm *comm, int64_t n, int64_t n_rhs) {
    int64_t first = mdp_solve_first_row(n, comm->size, comm->rank);
    int64_t n_row = mdp_solve_first_row(n, comm->size, comm->rank + 1) - first;
    double *a = NULL, *b = NULL;
    expect(MDP_ALLOC(&a, n_row * n, "A").code == MDP_OK, "no memory", n, n_rhs, comm->size);
    expect(MDP_ALLOC(&b, n_row * n_rhs, "B").code == MDP_OK, "no memory", n, n_rhs, comm->size);
    for (int64_t i = 0; i < n_row; i++) {
        for (int64_t k = 0; k < n; k++) {
            a[i * n + k] = matrix_entry(first + i, k);
            for (int64_t j = 0; j < n_rhs; j++) b[i * n_rhs + j] += a[i * n + k] * solution_entry(k, j);
        }
    }
    mdp_status status = mdp_solve_spd_all(comm, n, n_rhs, a, b);
    expect(status.code == MDP_OK, status.text, n, n_rhs, comm->size);
    double worst = 0.0;
    for (int64_t i = 0; i < n_row; i++) {
        for (int64_t j = 0; j < n_rhs; j++) {
            worst = fmax(worst, fabs(b[i * n_rhs + j] - solution_entry(first + i, j)));
        }
    }
    expect(worst < 1e-10, "the solution is not the known one", n, n_rhs, comm->size);
    mdp_free(a);
    mdp_free(b);
}

/* The identity, but for one negative entry: the leading minor of that order is the first that is not positive. */
static void indefinite_matrix_is_refused_on_every_rank(const mdp_comm *comm, int64_t n, int64_t at) {
    int64_t first = mdp_solve_first_row(n, comm->size, comm->rank);
    int64_t n_row = mdp_solve_first_row(n, comm->size, comm->rank + 1) - first;
    double *a = NULL, *b = NULL;
    expect(MDP_ALLOC(&a, n_row * n, "A").code == MDP_OK, "no memory", n, 1, comm->size);
    expect(MDP_ALLOC(&b, n_row, "B").code == MDP_OK, "no memory", n, 1, comm->size);
    for (int64_t i = 0; i < n_row; i++) a[i * n + first + i] = first + i == at ? -1.0 : 1.0;
    mdp_status status = mdp_solve_spd_all(comm, n, 1, a, b);
    char order[64];
    (void)snprintf(order, sizeof order, "leading minor of order %lld is not positive", (long long)at + 1);
    expect(status.code == MDP_BAD_INPUT, "no error for an indefinite matrix", n, 1, comm->size);
    expect(strstr(status.text, order) != NULL, "the error does not name the order of the minor", n, 1, comm->size);
    mdp_free(a);
    mdp_free(b);
}

/* 200,000 x 200,000 over at most 8 ranks: refused on every rank before anything is touched. */
static void too_large_a_piece_is_refused_on_every_rank(const mdp_comm *comm) {
    mdp_status status = mdp_solve_spd_all(comm, 200000, 1, NULL, NULL);
    expect(status.code == MDP_INTERNAL, "no error for a piece beyond 32-bit indices", 200000, 1, comm->size);
    expect(strstr(status.text, "use more ranks") != NULL, "the error does not say what to do", 200000, 1, comm->size);
}

static void check_on(MPI_Comm base) {
    mdp_comm *comm = NULL;
    mdp_status status = mdp_comm_new_all(base, &comm);
    if (status.code != MDP_OK) {
        expect(false, status.text, 0, 0, 0);
        return;
    }
    known_system_is_solved(comm, 1, 1);
    known_system_is_solved(comm, 5, 3);
    known_system_is_solved(comm, 64, 64);
    known_system_is_solved(comm, 200, 7);
    known_system_is_solved(comm, 333, 130);
    indefinite_matrix_is_refused_on_every_rank(comm, 150, 0);
    indefinite_matrix_is_refused_on_every_rank(comm, 150, 70);
    indefinite_matrix_is_refused_on_every_rank(comm, 150, 149);
    too_large_a_piece_is_refused_on_every_rank(comm);
    mdp_comm_destroy_all(comm);
}

int main(int argc, char **argv) {
    MPI_Init(&argc, &argv);
    int rank, size;
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    check_on(MPI_COMM_WORLD);
    if (size == 8) { /* 5 and 7 ranks: grids of 2 x 2 and 2 x 3 leave one over */
        for (int part = 5; part <= 7; part += 2) {
            MPI_Comm sub;
            MPI_Comm_split(MPI_COMM_WORLD, rank < part ? 0 : 1, rank, &sub);
            check_on(sub);
            MPI_Comm_free(&sub);
        }
    }
    MPI_Allreduce(MPI_IN_PLACE, &n_wrong, 1, MPI_INT, MPI_SUM, MPI_COMM_WORLD);
    if (rank == 0) printf("solve_spd on %d ranks: %d wrong\n", size, n_wrong);
    MPI_Finalize();
    return n_wrong == 0 ? 0 : 1;
}
