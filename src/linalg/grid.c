/* grid.c - ranks as a grid of processes for ScaLAPACK, or one rank that holds a matrix whole. */
#include "linalg/grid.h"
#include "comm/noted.h"

#include "linalg/mdp_scalapack.h"

#include <limits.h>

#define MOST_OF_A_SIDE 8192 /* rows of a matrix that one row of the grid has, at most */

/* Sides of the grid that an order asks for: a power of two; 1: one rank alone. */
static int wanted_side(int64_t n, int64_t alone) {
    int side = 2;
    if (n <= alone) return 1;
    while ((int64_t)side * MOST_OF_A_SIDE < n) side *= 2;
    return side;
}

bool mdp_grid_is_fixed(int64_t n, int64_t alone, int size) {
    int side = wanted_side(n, alone);
    return (int64_t)side * side <= size;
}

/* The shape on so many ranks: the one wanted, or as near to a square as there are ranks for. */
static void choose_shape(int64_t n, int64_t alone, int size, int *n_row, int *n_col) {
    int side = wanted_side(n, alone);
    if (mdp_grid_is_fixed(n, alone, size)) {
        *n_row = *n_col = side;
        return;
    }
    *n_row = 1;
    while ((*n_row + 1) * (*n_row + 1) <= size) (*n_row)++;
    *n_col = size / *n_row;
}

static int64_t most_local(int64_t n, int n_process) {
    int64_t n_block = (n + MDP_GRID_BLOCK - 1) / MDP_GRID_BLOCK;
    return (n_block + n_process - 1) / n_process * MDP_GRID_BLOCK;
}

int64_t mdp_grid_memory(int64_t n, int64_t alone, int64_t n_rhs, int size) {
    int n_row, n_col;
    choose_shape(n, alone, size, &n_row, &n_col);
    if (n <= alone) return n * n * (int64_t)sizeof(double);
    return most_local(n, n_row) * (most_local(n, n_col) + most_local(n_rhs, n_col)) * (int64_t)sizeof(double);
}

static mdp_status check_size(const mdp_grid *grid) {
    int64_t rows = most_local(grid->n, grid->n_row), cols = most_local(grid->n, grid->n_col), n;
    if (mdp_multiply(rows, cols, &n) && n <= INT_MAX && grid->n <= INT_MAX) return mdp_ok();
    return MDP_ERROR(
        MDP_INTERNAL,
        "a matrix of order %lld over %d x %d ranks leaves more than %d values to one rank, which ScaLAPACK "
        "cannot index; use more ranks.",
        (long long)grid->n, grid->n_row, grid->n_col, INT_MAX);
}

mdp_status mdp_grid_new_all(const mdp_comm *comm, int64_t n, int64_t alone, mdp_grid **out) {
    mdp_grid *grid = NULL;
    *out = NULL;
    mdp_status status = MDP_ALLOC(&grid, 1, "the grid of ranks");
    if (status.code == MDP_OK) {
        *grid = (mdp_grid){.comm = comm, .n = n, .alone = n <= alone, .row = -1, .col = -1};
        choose_shape(n, alone, comm->size, &grid->n_row, &grid->n_col);
        status = check_size(grid);
    }
    status = mdp_agree_all(comm, status);
    if (status.code != MDP_OK) {
        mdp_grid_destroy_all(grid);
        return status;
    }
    if (!grid->alone) {
        int rows, cols;
        MDP_ORDER(comm);
        grid->handle = grid->context = Csys2blacs_handle(comm->world);
        Cblacs_gridinit(&grid->context, "Row", grid->n_row, grid->n_col);
        if (grid->context >= 0) Cblacs_gridinfo(grid->context, &rows, &cols, &grid->row, &grid->col);
        grid->is_open = true;
    }
    *out = grid;
    return mdp_ok();
}

void mdp_grid_destroy_all(mdp_grid *grid) {
    if (!grid) return;
    if (grid->is_open) {
        if (grid->row >= 0) Cblacs_gridexit(grid->context);
        Cfree_blacs_system_handle(grid->handle);
    }
    mdp_free(grid);
}

/* ---- places ---------------------------------------------------------------------------------------------------- */

int mdp_grid_owner(const mdp_grid *grid, int root, int64_t row, int64_t col) {
    if (grid->alone) return root;
    return (int)(row / MDP_GRID_BLOCK % grid->n_row) * grid->n_col + (int)(col / MDP_GRID_BLOCK % grid->n_col);
}

int64_t mdp_grid_local(const mdp_grid *grid, int64_t index, int n_process) {
    if (grid->alone) return index;
    return index / MDP_GRID_BLOCK / n_process * MDP_GRID_BLOCK + index % MDP_GRID_BLOCK;
}

/* Rows or columns of n that process `place` of n_process has. */
static int64_t count_local(int64_t n, int place, int n_process) {
    const int zero = 0, block = MDP_GRID_BLOCK, all = (int)n;
    return numroc_(&all, &block, &place, &zero, &n_process);
}

mdp_status mdp_piece_new(const mdp_grid *grid, int root, int64_t m, int64_t n, mdp_piece *out) {
    int64_t rows = 0, n_value;
    *out = (mdp_piece){.leading = 1};
    out->descriptor[1] = -1;
    if (grid->alone && grid->comm->rank == root) {
        rows = m;
        out->n_col = n;
    } else if (grid->row >= 0) {
        const int zero = 0, block = MDP_GRID_BLOCK, all_rows = (int)m, all_cols = (int)n;
        rows = count_local(m, grid->row, grid->n_row);
        out->n_col = count_local(n, grid->col, grid->n_col);
        int info = 0, leading = rows > 1 ? (int)rows : 1;
        descinit_(out->descriptor, &all_rows, &all_cols, &block, &block, &zero, &zero, &grid->context, &leading, &info);
        if (info != 0)
            return MDP_ERROR(MDP_INTERNAL, "ScaLAPACK refused argument %d of the descriptor of a %lld x %lld matrix.",
                             -info, (long long)m, (long long)n);
    }
    if (rows > 1) out->leading = rows;
    if (!mdp_multiply(out->leading, out->n_col, &n_value) || n_value > INT_MAX || n > INT_MAX)
        return MDP_ERROR(MDP_INTERNAL,
                         "%lld right-hand sides of %lld values are more than ScaLAPACK can index here; use "
                         "more ranks.",
                         (long long)n, (long long)m);
    return MDP_ALLOC(&out->data, n_value, "a matrix to be solved");
}
