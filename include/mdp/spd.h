/* spd.h - symmetric positive definite matrices over ranks: Cholesky factors, and systems solved by them.
 *
 * Up to some order one rank factors by LAPACK, and all ranks solve for their own right-hand sides; above that
 * ScaLAPACK factors and solves on a grid of ranks. ScaLAPACK's bits depend on its grid, so the grid follows from the
 * order alone: as long as there are that many ranks, the bits are the same for any number of them. */
#ifndef MDP_SPD_H
#define MDP_SPD_H

#include "mdp/linalg.h"
#include "mdp/profile.h"

#define MDP_SPD_ALONE 4096 /* the largest order that one rank should factor */
#define MDP_SPD_COLUMNS 64 /* right-hand sides that are solved together: columns are dealt in multiples of it */

/* Who holds what of matrices of one order: one rank, or a grid of them with blocks of 64 x 64 dealt in turn. Kept from
 * one matrix to the next. */
typedef struct mdp_grid mdp_grid;
/* For matrices of order n; one rank holds them where n is at most `alone`. Collective on `comm`, which is borrowed.
 * MDP_INTERNAL: a rank would hold more values than ScaLAPACK can index. */
mdp_status mdp_grid_new_all(const mdp_comm *comm, int64_t n, int64_t alone, mdp_grid **out);
void mdp_grid_destroy_all(mdp_grid *grid); /* collective; NULL is allowed */
/* Do matrices of order n have the same factors to the bit on `size` ranks as on any larger number? */
bool mdp_grid_is_fixed(int64_t n, int64_t alone, int size);
/* Bytes that a rank of `size` holds of a matrix of order n, and of n_rhs right-hand sides while they are solved. */
int64_t mdp_grid_memory(int64_t n, int64_t alone, int64_t n_rhs, int size);

typedef struct mdp_spd mdp_spd;
/* A matrix of zeros; `root` (modulo the number of ranks) holds it where one rank does. `grid` and `profile` (may be
 * NULL) are borrowed. Collective on the grid's communicator (agrees). */
mdp_status mdp_spd_new_all(const mdp_grid *grid, int root, mdp_profile *profile, mdp_spd **out);
void mdp_spd_destroy(mdp_spd *spd); /* NULL is allowed */

/* Entries (row, col) .. (row, col + n - 1) of the lower triangle: col + n - 1 <= row. */
typedef struct mdp_spd_run {
    int64_t row, col, n;
    const double *values;
} mdp_spd_run;
typedef mdp_spd_run mdp_spd_run_fn(void *context, int64_t i);
/* Put what this rank has: runs number 0 .. n_run - 1. What nobody puts stays 0. Collective (agrees). */
mdp_status mdp_spd_put_all(mdp_spd *spd, int64_t n_run, mdp_spd_run_fn *run, void *context);
/* Add a value to the diagonal. Local, on every rank. */
void mdp_spd_add_diagonal(mdp_spd *spd, double value);
/* L L^T = the matrix, which is gone. *rcond: about 1 / (norm1 of the matrix times that of its inverse). Collective
 * (agrees). MDP_BAD_INPUT when it is not positive definite, naming the order of the first minor that is not. */
mdp_status mdp_spd_factor_all(mdp_spd *spd, double *rcond);
/* Solve for this rank's columns of the right-hand side, first .. first + n_col - 1 of n_rhs: x [n_col, n], a column
 * after the other, becomes the solution. Columns ascend with the rank, and `first` is a multiple of MDP_SPD_COLUMNS.
 * After mdp_spd_factor_all, as often as wanted. Collective (agrees). */
mdp_status mdp_spd_solve_all(mdp_spd *spd, int64_t n_rhs, int64_t first, int64_t n_col, int n_thread, double *x);

#endif
