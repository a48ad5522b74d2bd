/* scalapack.c - dense solves of matrices that outgrow one rank.
 *
 * Comes in: row blocks, row-major, over all ranks. Seen column-major, a row block of a matrix is a column block of its
 * transpose, which is one regular ScaLAPACK distribution (one block to a rank, 1 x size grid), so pdgemr2d moves it to
 * and from the block-cyclic layout in one call. A is its own transpose; B is transposed on the grid by pdtran.
 * Ranks that the near-square grid leaves over take part in the redistribution and in nothing else. */
#include "mdp/linalg.h"

#include "linalg/mdp_scalapack.h"

#include <limits.h>

#define BLOCK 64       /* rows and columns of a block of the cyclic layout */
#define N_DESCRIPTOR 9 /* integers of a descriptor; [1] is its context, -1 on ranks outside of the grid */

int64_t mdp_solve_first_row(int64_t n, int size, int rank) {
    int64_t block = (n + size - 1) / size;
    int64_t first = (int64_t)rank * block;
    return first < n ? first : n;
}

/* A process grid over the first n_row * n_col ranks of a communicator. */
typedef struct grid {
    int context;      /* -1 on ranks outside */
    int n_row, n_col; /* shape */
    int row, col;     /* this rank's place; -1 outside */
} grid;

static grid grid_open_all(int handle, int n_row, int n_col) {
    grid g = {.context = handle, .n_row = n_row, .n_col = n_col, .row = -1, .col = -1};
    Cblacs_gridinit(&g.context, "Row", n_row, n_col);
    if (g.context >= 0) {
        int rows, cols;
        Cblacs_gridinfo(g.context, &rows, &cols, &g.row, &g.col);
    }
    if (g.row < 0) g.context = -1;
    return g;
}

static void grid_close_all(const grid *g) {
    if (g->context >= 0) Cblacs_gridexit(g->context);
}

/* A piece of a distributed column-major matrix. */
typedef struct piece {
    double *data; /* [leading, local columns] */
    int descriptor[N_DESCRIPTOR];
    bool owned; /* data was allocated here */
} piece;

static void piece_free(piece *p) {
    if (p->owned) mdp_free(p->data);
}

/* Describe this rank's piece of an m x n matrix on a grid; its local size must fit ScaLAPACK's 32-bit indices. */
static mdp_status piece_describe(const grid *g, int64_t m, int64_t n, int64_t row_block, int64_t col_block, piece *out,
                                 int64_t *n_value) {
    const int zero = 0;
    int rows, cols, row_width, col_width, info = 0;
    *n_value = 0;
    out->descriptor[1] = -1;
    MDP_TRY(mdp_int_cast(m, "the rows of a matrix for ScaLAPACK", &rows));
    MDP_TRY(mdp_int_cast(n, "the columns of a matrix for ScaLAPACK", &cols));
    MDP_TRY(mdp_int_cast(row_block, "the block of a matrix for ScaLAPACK", &row_width));
    MDP_TRY(mdp_int_cast(col_block, "the block of a matrix for ScaLAPACK", &col_width));
    if (g->context < 0) return mdp_ok();
    int local_rows = numroc_(&rows, &row_width, &g->row, &zero, &g->n_row);
    int local_cols = numroc_(&cols, &col_width, &g->col, &zero, &g->n_col);
    int leading = local_rows > 1 ? local_rows : 1;
    if (!mdp_multiply(leading, local_cols, n_value) || *n_value > INT_MAX) {
        return MDP_ERROR(MDP_INTERNAL,
                         "a matrix of %lld x %lld over %d x %d ranks leaves more than %d values to one rank, which "
                         "ScaLAPACK cannot index; use more ranks.",
                         (long long)m, (long long)n, g->n_row, g->n_col, INT_MAX);
    }
    descinit_(out->descriptor, &rows, &cols, &row_width, &col_width, &zero, &zero, &g->context, &leading, &info);
    if (info != 0) {
        return MDP_ERROR(MDP_INTERNAL, "ScaLAPACK refused argument %d of the descriptor of a %lld x %lld matrix.",
                         -info, (long long)m, (long long)n);
    }
    return mdp_ok();
}

/* A new block-cyclic piece. */
static mdp_status piece_new(const grid *g, int64_t m, int64_t n, piece *out) {
    int64_t n_value;
    MDP_TRY(piece_describe(g, m, n, BLOCK, BLOCK, out, &n_value));
    MDP_TRY(MDP_ALLOC(&out->data, n_value, "a block-cyclic matrix"));
    out->owned = true;
    return mdp_ok();
}

/* Everything of one solve. */
typedef struct solve {
    int64_t n, n_rhs;
    grid row_grid, cyclic_grid;
    piece a_rows, b_rows;     /* the caller's: A [n, n] and B^T [n_rhs, n], one column block to a rank */
    piece a, b, b_transposed; /* block-cyclic: [n, n], [n, n_rhs], [n_rhs, n] */
} solve;

static mdp_status solve_prepare(solve *s, double *a_rows, double *b_rows) {
    int64_t n = s->n, n_value;
    int64_t width = (n + s->row_grid.n_col - 1) / s->row_grid.n_col;
    s->a_rows.data = a_rows;
    s->b_rows.data = b_rows;
    MDP_TRY(piece_describe(&s->row_grid, n, n, n, width, &s->a_rows, &n_value));
    MDP_TRY(piece_describe(&s->row_grid, s->n_rhs, n, s->n_rhs, width, &s->b_rows, &n_value));
    MDP_TRY(piece_new(&s->cyclic_grid, n, n, &s->a));
    MDP_TRY(piece_new(&s->cyclic_grid, n, s->n_rhs, &s->b));
    MDP_TRY(piece_new(&s->cyclic_grid, s->n_rhs, n, &s->b_transposed));
    return mdp_ok();
}

/* Factor and solve on the grid; ranks outside have nothing to do. */
static mdp_status solve_on_grid_all(solve *s) {
    if (s->cyclic_grid.context < 0) return mdp_ok();
    const int one = 1, n = (int)s->n, n_rhs = (int)s->n_rhs;
    const double scale = 1.0, none = 0.0;
    int info = 0;
    pdpotrf_("L", &n, s->a.data, &one, &one, s->a.descriptor, &info);
    if (info > 0) {
        return MDP_ERROR(MDP_BAD_INPUT,
                         "a matrix of order %d to be solved by Cholesky is not positive definite: its leading minor of "
                         "order %d is not positive; a larger ridge makes it so.",
                         n, info);
    }
    if (info < 0) return MDP_ERROR(MDP_INTERNAL, "ScaLAPACK's pdpotrf refused its argument %d.", -info);
    pdtran_(&n, &n_rhs, &scale, s->b_transposed.data, &one, &one, s->b_transposed.descriptor, &none, s->b.data, &one,
            &one, s->b.descriptor);
    pdpotrs_("L", &n, &n_rhs, s->a.data, &one, &one, s->a.descriptor, s->b.data, &one, &one, s->b.descriptor, &info);
    if (info != 0) return MDP_ERROR(MDP_INTERNAL, "ScaLAPACK's pdpotrs refused its argument %d.", -info);
    pdtran_(&n_rhs, &n, &scale, s->b.data, &one, &one, s->b.descriptor, &none, s->b_transposed.data, &one, &one,
            s->b_transposed.descriptor);
    return mdp_ok();
}

static mdp_status solve_run_all(const mdp_comm *comm, solve *s, double *a_rows, double *b_rows) {
    MDP_AGREE(comm, solve_prepare(s, a_rows, b_rows));
    int context = s->row_grid.context, n = (int)s->n, n_rhs = (int)s->n_rhs;
    Cpdgemr2d(n, n, s->a_rows.data, 1, 1, s->a_rows.descriptor, s->a.data, 1, 1, s->a.descriptor, context);
    Cpdgemr2d(n_rhs, n, s->b_rows.data, 1, 1, s->b_rows.descriptor, s->b_transposed.data, 1, 1,
              s->b_transposed.descriptor, context);
    MDP_AGREE(comm, solve_on_grid_all(s));
    Cpdgemr2d(n_rhs, n, s->b_transposed.data, 1, 1, s->b_transposed.descriptor, s->b_rows.data, 1, 1,
              s->b_rows.descriptor, context);
    return mdp_ok();
}

mdp_status mdp_solve_spd_all(const mdp_comm *comm, int64_t n, int64_t n_rhs, double *a_rows, double *b_rows) {
    if (n == 0 || n_rhs == 0) return mdp_ok();
    int side = 1;
    while ((side + 1) * (side + 1) <= comm->size) side++;
    solve s = {.n = n, .n_rhs = n_rhs};
    int handle = Csys2blacs_handle(comm->world);
    s.row_grid = grid_open_all(handle, 1, comm->size);
    s.cyclic_grid = grid_open_all(handle, side, comm->size / side);
    mdp_status status = solve_run_all(comm, &s, a_rows, b_rows);
    piece_free(&s.a);
    piece_free(&s.b);
    piece_free(&s.b_transposed);
    grid_close_all(&s.cyclic_grid);
    grid_close_all(&s.row_grid);
    Cfree_blacs_system_handle(handle);
    return status;
}
