/* spd.c - Cholesky by LAPACK on one rank or by ScaLAPACK on a grid, and what is solved with its factor.
 *
 * Where one rank holds the factor, it shows panels of its columns to all ranks, forward and then backward, and every
 * rank solves for its own right-hand sides, MDP_SPD_COLUMNS at a time: those are products of fixed shapes, so neither
 * the number of ranks nor that of threads is in the bits. On a grid the right-hand sides travel there and back. */
#include "linalg/grid.h"

#include "linalg/mdp_lapack.h"
#include "linalg/mdp_scalapack.h"

#include <cblas.h>

#define PANEL 256 /* columns of the factor that are shown at a time */

/* ---- life ------------------------------------------------------------------------------------------------------ */

mdp_status mdp_spd_new_all(const mdp_grid *grid, int root, mdp_profile *profile, mdp_spd **out) {
    mdp_spd *spd = NULL;
    *out = NULL;
    mdp_status status = MDP_ALLOC(&spd, 1, "a matrix to be solved");
    if (status.code == MDP_OK) {
        *spd = (mdp_spd){.grid = grid, .profile = profile, .root = root % grid->comm->size};
        status = mdp_piece_new(grid, spd->root, grid->n, grid->n, &spd->a);
    }
    status = mdp_agree_all(grid->comm, status);
    if (status.code == MDP_OK)
        status = mdp_exchange_room_new_all(grid->comm, MDP_SUM_MESSAGE_BYTE, mdp_spread_row_bytes(), &spd->room);
    if (status.code != MDP_OK) {
        mdp_spd_destroy(spd);
        return status;
    }
    *out = spd;
    return status;
}

void mdp_spd_destroy(mdp_spd *spd) {
    if (!spd) return;
    mdp_exchange_room_destroy(spd->room);
    mdp_free(spd->a.data);
    mdp_free(spd);
}

/* ---- entries --------------------------------------------------------------------------------------------------- */

/* Runs, cut where blocks of columns begin. */
typedef struct run_strips {
    mdp_spd *spd;
    int64_t n_run;
    int64_t *first; /* [n_run + 1] number of each run's first strip */
    mdp_spd_run_fn *run;
    void *context;
} run_strips;

static int64_t count_strips(int64_t first, int64_t n) {
    return n > 0 ? (first + n - 1) / MDP_GRID_BLOCK - first / MDP_GRID_BLOCK + 1 : 0;
}

static mdp_strip give_run(void *context, int64_t i) {
    const run_strips *strips = context;
    int64_t low = 0, high = strips->n_run - 1;
    while (low < high) {
        int64_t middle = low + (high - low + 1) / 2;
        if (strips->first[middle] <= i)
            low = middle;
        else
            high = middle - 1;
    }
    mdp_spd_run run = strips->run(strips->context, low);
    int64_t begin = (run.col / MDP_GRID_BLOCK + i - strips->first[low]) * MDP_GRID_BLOCK, end = begin + MDP_GRID_BLOCK;
    if (begin < run.col) begin = run.col;
    if (end > run.col + run.n) end = run.col + run.n;
    return (mdp_strip){.row = run.row,
                       .col = begin,
                       .n = (int32_t)(end - begin),
                       .to = mdp_grid_owner(strips->spd->grid, strips->spd->root, run.row, begin),
                       .values = run.values + (begin - run.col),
                       .stride = 1};
}

static void put_strip(const mdp_grid *grid, mdp_piece *piece, const mdp_strip *strip) {
    int64_t row = mdp_grid_local(grid, strip->row, grid->n_row), col = mdp_grid_local(grid, strip->col, grid->n_col);
    int64_t step = strip->down ? 1 : piece->leading;
    double *to = piece->data + col * piece->leading + row;
    for (int32_t j = 0; j < strip->n; j++) to[j * step] = strip->values[j * strip->stride];
}

static void take_entry(void *context, const mdp_strip *strip) {
    const run_strips *strips = context;
    put_strip(strips->spd->grid, &strips->spd->a, strip);
}

mdp_status mdp_spd_put_all(mdp_spd *spd, int64_t n_run, mdp_spd_run_fn *run, void *context) {
    run_strips strips = {.spd = spd, .n_run = n_run, .run = run, .context = context};
    MDP_AGREE(spd->grid->comm, MDP_ALLOC(&strips.first, n_run + 1, "entries of a matrix"));
    for (int64_t i = 0; i < n_run; i++) {
        mdp_spd_run one = run(context, i);
        strips.first[i + 1] = strips.first[i] + count_strips(one.col, one.n);
    }
    const mdp_spread spread = {.comm = spd->grid->comm,
                               .room = spd->room,
                               .profile = spd->profile,
                               .n = strips.first[n_run],
                               .give = give_run,
                               .take = take_entry,
                               .context = &strips};
    mdp_status status = mdp_spread_all(&spread);
    mdp_free(strips.first);
    return status;
}

void mdp_spd_add_diagonal(mdp_spd *spd, double value) {
    const mdp_grid *grid = spd->grid;
    for (int64_t i = 0; i < grid->n; i++) {
        if (mdp_grid_owner(grid, spd->root, i, i) != grid->comm->rank) continue;
        int64_t row = mdp_grid_local(grid, i, grid->n_row), col = mdp_grid_local(grid, i, grid->n_col);
        spd->a.data[col * spd->a.leading + row] += value;
    }
}

/* ---- the factor ------------------------------------------------------------------------------------------------ */

static mdp_status factored(int info, int n, const char *routine) {
    if (info == 0) return mdp_ok();
    if (info < 0) return MDP_ERROR(MDP_INTERNAL, "%s refused its argument %d.", routine, -info);
    return MDP_ERROR(MDP_BAD_INPUT,
                     "a matrix of order %d to be solved by Cholesky is not positive definite: its leading minor of "
                     "order %d is not positive; a larger ridge makes it so.",
                     n, info);
}

static mdp_status factor_alone(mdp_spd *spd, double *rcond) {
    const int n = (int)spd->grid->n;
    double *work = NULL;
    int *iwork = NULL, info = 0;
    if (spd->grid->comm->rank != spd->root) return mdp_ok();
    MDP_TRY(MDP_ALLOC(&work, 3 * (int64_t)n, "a condition number"));
    mdp_status status = MDP_ALLOC(&iwork, n, "a condition number");
    if (status.code == MDP_OK) {
        double norm = dlansy_("1", "L", &n, spd->a.data, &n, work);
        dpotrf_("L", &n, spd->a.data, &n, &info);
        status = factored(info, n, "LAPACK's dpotrf");
        if (status.code == MDP_OK) dpocon_("L", &n, spd->a.data, &n, &norm, rcond, work, iwork, &info);
    }
    mdp_free(work);
    mdp_free(iwork);
    return status;
}

/* The same on a grid; ranks outside have nothing to do. */
static mdp_status factor_on_grid(mdp_spd *spd, double *rcond) {
    const int one = 1, n = (int)spd->grid->n, ask = -1;
    const mdp_piece *a = &spd->a;
    int info = 0, n_iwork = 0;
    double norm = 0.0, n_work = 0.0, *work = NULL;
    int *iwork = NULL;
    mdp_status status;
    if (spd->grid->row < 0) return mdp_ok();
    pdpocon_("L", &n, a->data, &one, &one, a->descriptor, &norm, rcond, &n_work, &ask, &n_iwork, &ask, &info);
    int64_t room = 2 * (a->leading + a->n_col) + (int64_t)n_work; /* of a norm, which asks for less, or a condition */
    int asked = (int)n_work;
    MDP_TRY_GOTO(status, end, MDP_ALLOC(&work, 4 * room + 4ll * n, "a condition number"));
    MDP_TRY_GOTO(status, end, MDP_ALLOC(&iwork, n_iwork, "a condition number"));
    norm = pdlansy_("1", "L", &n, a->data, &one, &one, a->descriptor, work);
    pdpotrf_("L", &n, a->data, &one, &one, a->descriptor, &info);
    MDP_TRY_GOTO(status, end, factored(info, n, "ScaLAPACK's pdpotrf"));
    pdpocon_("L", &n, a->data, &one, &one, a->descriptor, &norm, rcond, work, &asked, iwork, &n_iwork, &info);
end:
    mdp_free(work);
    mdp_free(iwork);
    return status;
}

mdp_status mdp_spd_factor_all(mdp_spd *spd, double *rcond) {
    const mdp_grid *grid = spd->grid;
    *rcond = 0.0;
    mdp_status status = grid->n == 0 ? mdp_ok() : grid->alone ? factor_alone(spd, rcond) : factor_on_grid(spd, rcond);
    MDP_AGREE(grid->comm, status);
    mdp_profile_flop(spd->profile, grid->n * grid->n / 3 * grid->n / (grid->n_row * grid->n_col));
    return mdp_bcast_all(grid->comm, rcond, (int64_t)sizeof *rcond, grid->alone ? spd->root : 0);
}

/* ---- solving with a factor that one rank holds ----------------------------------------------------------------- */

/* Columns k .. k + w - 1 of the factor from row k on, column-major, leading dimension n - k. */
typedef struct panel {
    int k, w, n;
    const double *data;
} panel;

static void forward(const panel *p, int n_col, double *x) {
    int below = p->n - p->k - p->w, leading = p->n - p->k;
    cblas_dtrsm(CblasColMajor, CblasLeft, CblasLower, CblasNoTrans, CblasNonUnit, p->w, n_col, 1.0, p->data, leading,
                x + p->k, p->n);
    if (below > 0)
        cblas_dgemm(CblasColMajor, CblasNoTrans, CblasNoTrans, below, n_col, p->w, -1.0, p->data + p->w, leading,
                    x + p->k, p->n, 1.0, x + p->k + p->w, p->n);
}

static void backward(const panel *p, int n_col, double *x) {
    int below = p->n - p->k - p->w, leading = p->n - p->k;
    if (below > 0)
        cblas_dgemm(CblasColMajor, CblasTrans, CblasNoTrans, p->w, n_col, below, -1.0, p->data + p->w, leading,
                    x + p->k + p->w, p->n, 1.0, x + p->k, p->n);
    cblas_dtrsm(CblasColMajor, CblasLeft, CblasLower, CblasTrans, CblasNonUnit, p->w, n_col, 1.0, p->data, leading,
                x + p->k, p->n);
}

static mdp_status show_panel_all(const mdp_spd *spd, int k, double *buffer, panel *out) {
    int n = (int)spd->grid->n, w = n - k < PANEL ? n - k : PANEL, leading = n - k;
    if (spd->grid->comm->rank == spd->root)
        for (int j = 0; j < w; j++)
            for (int i = 0; i < leading; i++)
                buffer[(int64_t)j * leading + i] = spd->a.data[(int64_t)(k + j) * spd->a.leading + k + i];
    *out = (panel){.k = k, .w = w, .n = n, .data = buffer};
    return mdp_bcast_all(spd->grid->comm, buffer, (int64_t)leading * w * (int64_t)sizeof(double), spd->root);
}

static mdp_status sweep_all(const mdp_spd *spd, bool back, int64_t n_col, int n_thread, double *buffer, double *x) {
    int n = (int)spd->grid->n, n_panel = (n + PANEL - 1) / PANEL;
    for (int turn = 0; turn < n_panel; turn++) {
        panel p;
        MDP_TRY(show_panel_all(spd, (back ? n_panel - 1 - turn : turn) * PANEL, buffer, &p));
#pragma omp parallel for schedule(static) num_threads(n_thread)
        for (int64_t c = 0; c < n_col; c += MDP_SPD_COLUMNS) {
            int own = (int)(n_col - c < MDP_SPD_COLUMNS ? n_col - c : MDP_SPD_COLUMNS);
            (back ? backward : forward)(&p, own, x + c * n);
        }
    }
    return mdp_ok();
}

static mdp_status solve_alone_all(const mdp_spd *spd, int64_t n_col, int n_thread, double *x) {
    double *buffer = NULL;
    MDP_AGREE(spd->grid->comm, MDP_ALLOC(&buffer, spd->grid->n * PANEL, "a panel of a factor"));
    mdp_status status = sweep_all(spd, false, n_col, n_thread, buffer, x);
    if (status.code == MDP_OK) status = sweep_all(spd, true, n_col, n_thread, buffer, x);
    mdp_free(buffer);
    return status;
}

/* ---- solving on a grid ----------------------------------------------------------------------------------------- */

/* Right-hand sides on their way to the grid, and solutions on their way back. */
typedef struct column_strips {
    const mdp_spd *spd;
    mdp_piece b;
    int64_t n_rhs, first, n_col; /* of this rank */
    int64_t *holds;              /* [size + 1] first columns of the ranks */
    double *x;
    int64_t n_block; /* strips of a column, here */
} column_strips;

static mdp_strip give_right_hand_side(void *context, int64_t i) {
    const column_strips *strips = context;
    const mdp_grid *grid = strips->spd->grid;
    int64_t col = i / strips->n_block, row = i % strips->n_block * MDP_GRID_BLOCK;
    int64_t n = grid->n - row < MDP_GRID_BLOCK ? grid->n - row : MDP_GRID_BLOCK;
    return (mdp_strip){.row = row,
                       .col = strips->first + col,
                       .n = (int32_t)n,
                       .down = true,
                       .to = mdp_grid_owner(grid, 0, row, strips->first + col),
                       .values = strips->x + col * grid->n + row,
                       .stride = 1};
}

static void take_right_hand_side(void *context, const mdp_strip *strip) {
    column_strips *strips = context;
    put_strip(strips->spd->grid, &strips->b, strip);
}

/* Number among all of what is at `local` here. */
static int64_t global_of(int64_t local, int place, int n_process) {
    return (local / MDP_GRID_BLOCK * n_process + place) * MDP_GRID_BLOCK + local % MDP_GRID_BLOCK;
}

static int holder_of(const column_strips *strips, int64_t col) {
    int low = 0, high = strips->spd->grid->comm->size - 1;
    while (low < high) { /* the last rank whose first column is not above col, of those that have any */
        int middle = low + (high - low + 1) / 2;
        if (strips->holds[middle] <= col)
            low = middle;
        else
            high = middle - 1;
    }
    return low;
}

static mdp_strip give_solution(void *context, int64_t i) {
    const column_strips *strips = context;
    const mdp_grid *grid = strips->spd->grid;
    int64_t local_col = i / strips->n_block, local_row = i % strips->n_block * MDP_GRID_BLOCK;
    int64_t col = global_of(local_col, grid->col, grid->n_col), row = global_of(local_row, grid->row, grid->n_row);
    int64_t n = grid->n - row < MDP_GRID_BLOCK ? grid->n - row : MDP_GRID_BLOCK;
    return (mdp_strip){.row = row,
                       .col = col,
                       .n = (int32_t)n,
                       .down = true,
                       .to = holder_of(strips, col),
                       .values = strips->b.data + local_col * strips->b.leading + local_row,
                       .stride = 1};
}

static void take_solution(void *context, const mdp_strip *strip) {
    column_strips *strips = context;
    double *to = strips->x + (strip->col - strips->first) * strips->spd->grid->n + strip->row;
    for (int32_t j = 0; j < strip->n; j++) to[j] = strip->values[j * strip->stride];
}

static mdp_status spread_columns_all(column_strips *strips, bool back) {
    const mdp_spd *spd = strips->spd;
    int64_t n_row = back ? (spd->grid->row >= 0 && strips->b.n_col > 0 ? strips->b.leading : 0) : spd->grid->n;
    strips->n_block = (n_row + MDP_GRID_BLOCK - 1) / MDP_GRID_BLOCK;
    const mdp_spread spread = {.comm = spd->grid->comm,
                               .room = spd->room,
                               .profile = spd->profile,
                               .n = strips->n_block * (back ? strips->b.n_col : strips->n_col),
                               .give = back ? give_solution : give_right_hand_side,
                               .take = back ? take_solution : take_right_hand_side,
                               .context = strips};
    return mdp_spread_all(&spread);
}

/* First columns of all ranks; those without any have the next one's. Collective. */
static mdp_status tell_columns_all(column_strips *strips, int64_t *told) {
    const mdp_comm *comm = strips->spd->grid->comm;
    for (int r = 0; r < comm->size; r++) told[r] = strips->n_col > 0 ? strips->first : -1;
    MDP_TRY(mdp_alltoall_i64_all(comm, told, strips->holds, 1));
    for (int r = comm->size - 1, next = comm->size; r >= 0; r--) {
        if (strips->holds[r] >= 0)
            next = r;
        else
            strips->holds[r] = next < comm->size ? strips->holds[next] : strips->n_rhs;
    }
    return mdp_ok();
}

static mdp_status solve_there(column_strips *strips) {
    const mdp_spd *spd = strips->spd;
    const int one = 1, n = (int)spd->grid->n, n_rhs = (int)strips->n_rhs;
    int info = 0;
    if (spd->grid->row < 0) return mdp_ok();
    pdpotrs_("L", &n, &n_rhs, spd->a.data, &one, &one, spd->a.descriptor, strips->b.data, &one, &one,
             strips->b.descriptor, &info);
    return factored(info < 0 ? info : 0, n, "ScaLAPACK's pdpotrs");
}

static mdp_status solve_on_grid_all(column_strips *strips) {
    const mdp_comm *comm = strips->spd->grid->comm;
    int64_t *told = NULL;
    mdp_status status = MDP_ALLOC(&strips->holds, 2 * (int64_t)comm->size, "right-hand sides");
    if (status.code == MDP_OK)
        status = mdp_piece_new(strips->spd->grid, 0, strips->spd->grid->n, strips->n_rhs, &strips->b);
    MDP_AGREE(comm, status);
    told = strips->holds + comm->size;
    MDP_TRY(tell_columns_all(strips, told));
    MDP_TRY(spread_columns_all(strips, false));
    MDP_AGREE(comm, solve_there(strips));
    return spread_columns_all(strips, true);
}

mdp_status mdp_spd_solve_all(mdp_spd *spd, int64_t n_rhs, int64_t first, int64_t n_col, int n_thread, double *x) {
    const mdp_grid *grid = spd->grid;
    if (grid->n == 0 || n_rhs == 0) return mdp_ok();
    mdp_profile_flop(spd->profile, 2 * grid->n * grid->n * n_col);
    if (grid->alone) return solve_alone_all(spd, n_col, n_thread, x);
    column_strips strips = {.spd = spd, .n_rhs = n_rhs, .first = first, .n_col = n_col, .x = x};
    mdp_status status = solve_on_grid_all(&strips);
    mdp_free(strips.holds);
    mdp_free(strips.b.data);
    return status;
}
