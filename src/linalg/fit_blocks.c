/* fit_blocks.c - what is done with blocks of A that are shown to all ranks, one after the other, in the order of the
 * layout: sweeps over experts, and quadratic forms. Each rank has its columns of D and takes MDP_SPD_COLUMNS of them at
 * a time, from the first of all on, so that products have shapes that do not depend on the number of ranks. */
#include "linalg/fit_parts.h"

#include <cblas.h>
#include <string.h>

/* Number of the pair of two experts, `other` at most `e`. */
static int32_t pair_of(const mdp_fit *fit, int32_t e, int32_t other) {
    return fit->mode == MDP_FIT_DIAGONAL ? e : e * (e + 1) / 2 + other;
}

/* ---- blocks that all ranks see --------------------------------------------------------------------------------- */

static int64_t find_own(const mdp_fit *fit, int64_t block) {
    int64_t low = 0, high = fit->n_own - 1;
    while (low < high) {
        int64_t middle = low + (high - low + 1) / 2;
        if (fit->own[middle] <= block)
            low = middle;
        else
            high = middle - 1;
    }
    return low;
}

/* Show a block [n_row, n_col], whole: one on the diagonal is mirrored. */
static mdp_status show_block_all(const mdp_fit *fit, const mdp_fit_sets *sets, int64_t number) {
    const mdp_product_block *block = &fit->layout->blocks[number];
    int64_t n = block->n_row * block->n_col;
    if (block->owner == fit->comm->rank) {
        int64_t own = find_own(fit, number);
        for (int64_t i = 0; i < n; i++) fit->shown[i] = mdp_fit_value(fit, sets, own, i);
        for (int64_t i = 0; block->left == block->right && i < block->n_row; i++)
            for (int64_t j = i + 1; j < block->n_col; j++)
                fit->shown[i * block->n_col + j] = fit->shown[j * block->n_col + i];
    }
    return mdp_bcast_all(fit->comm, fit->shown, n * (int64_t)sizeof *fit->shown, block->owner);
}

static int columns_at(const mdp_fit *fit, int64_t c) {
    return (int)(fit->n_col - c < MDP_SPD_COLUMNS ? fit->n_col - c : MDP_SPD_COLUMNS);
}

/* ---- sweeps ---------------------------------------------------------------------------------------------------- */

/* rest [n_col, width of e] -= the block that is shown times D's rows of the other expert. */
static void subtract(const mdp_fit *fit, const mdp_product_block *block, int32_t e, const double *d, double *rest) {
    const mdp_product_pair *pair = &fit->layout->pairs[block->pair];
    int n = (int)mdp_fit_order(fit), width = (int)(fit->offset[e + 1] - fit->offset[e]), rows = (int)block->n_row,
        cols = (int)block->n_col;
    bool as_left = pair->left == e;
    const double *from = d + fit->offset[as_left ? pair->right : pair->left] + (as_left ? block->col0 : block->row0);
    double *to = rest + (as_left ? block->row0 : block->col0);
#pragma omp parallel for schedule(static) num_threads(fit->n_thread)
    for (int64_t c = 0; c < fit->n_col; c += MDP_SPD_COLUMNS)
        cblas_dgemm(CblasColMajor, as_left ? CblasTrans : CblasNoTrans, CblasNoTrans, as_left ? rows : cols,
                    columns_at(fit, c), as_left ? cols : rows, -1.0, fit->shown, cols, from + c * n, n, 1.0,
                    to + c * width, width);
}

/* D_e = (A_ee + lambda I)^-1 (B_e - sum over the other experts of A_ej D_j). rest: room for [n_col, width of e]. */
static mdp_status improve_all(mdp_fit *fit, const mdp_fit_sets *sets, int32_t e, mdp_spd *factor, const double *b,
                              double *d, double *rest) {
    int64_t n = mdp_fit_order(fit), width = fit->offset[e + 1] - fit->offset[e];
    for (int64_t c = 0; c < fit->n_col; c++)
        memcpy(rest + c * width, b + c * n + fit->offset[e], (size_t)width * sizeof *rest);
    for (int32_t other = 0; fit->mode == MDP_FIT_SWEEPS && other < fit->n_expert; other++) {
        int32_t pair = pair_of(fit, e > other ? e : other, e > other ? other : e);
        for (int64_t k = fit->first_block[pair]; other != e && k < fit->first_block[pair + 1]; k++) {
            MDP_TRY(show_block_all(fit, sets, k));
            subtract(fit, &fit->layout->blocks[k], e, d, rest);
            mdp_profile_flop(fit->profile,
                             2 * fit->layout->blocks[k].n_row * fit->layout->blocks[k].n_col * fit->n_col);
        }
    }
    MDP_TRY(mdp_spd_solve_all(factor, fit->d, fit->first, fit->n_col, fit->n_thread, rest));
    for (int64_t c = 0; c < fit->n_col; c++)
        memcpy(d + c * n + fit->offset[e], rest + c * width, (size_t)width * sizeof *rest);
    return mdp_ok();
}

static int64_t widest(const mdp_fit *fit) {
    int64_t most = 0;
    for (int32_t e = 0; e < fit->n_expert; e++)
        if (fit->offset[e + 1] - fit->offset[e] > most) most = fit->offset[e + 1] - fit->offset[e];
    return most;
}

static mdp_status sweep_all(mdp_fit *fit, const mdp_fit_sets *sets, double lambda, int n_sweep, const double *b,
                            double *d, double *rest, mdp_spd **factors, double *rcond) {
    for (int32_t e = 0; e < fit->n_expert; e++) MDP_TRY(mdp_fit_factor_all(fit, sets, e, lambda, &factors[e], rcond));
    for (int s = 0; s < n_sweep; s++)
        for (int32_t e = 0; e < fit->n_expert; e++) MDP_TRY(improve_all(fit, sets, e, factors[e], b, d, rest));
    return mdp_ok();
}

/* Each by itself, so that one factor exists at a time. */
static mdp_status solve_each_all(mdp_fit *fit, const mdp_fit_sets *sets, double lambda, const double *b, double *d,
                                 double *rest, double *rcond) {
    for (int32_t e = 0; e < fit->n_expert; e++) {
        mdp_spd *factor = NULL;
        MDP_TRY(mdp_fit_factor_all(fit, sets, e, lambda, &factor, rcond));
        mdp_status status = improve_all(fit, sets, e, factor, b, d, rest);
        mdp_spd_destroy(factor);
        MDP_TRY(status);
    }
    return mdp_ok();
}

mdp_status mdp_fit_by_experts_all(mdp_fit *fit, const mdp_fit_sets *sets, double lambda, int n_sweep, double *b,
                                  double *rcond) {
    int64_t n = mdp_fit_order(fit) * fit->n_col;
    double *d = NULL, *rest = NULL;
    mdp_spd **factors = NULL;
    mdp_status status = MDP_ALLOC(&d, n, "a solution");
    if (status.code == MDP_OK) status = MDP_ALLOC(&rest, widest(fit) * fit->n_col, "a right-hand side");
    if (status.code == MDP_OK) status = MDP_ALLOC(&factors, fit->n_expert, "factors");
    status = mdp_agree_all(fit->comm, status);
    if (status.code == MDP_OK)
        status = fit->mode == MDP_FIT_SWEEPS ? sweep_all(fit, sets, lambda, n_sweep, b, d, rest, factors, rcond)
                                             : solve_each_all(fit, sets, lambda, b, d, rest, rcond);
    if (status.code == MDP_OK && n > 0) memcpy(b, d, (size_t)n * sizeof *b);
    for (int32_t e = 0; factors && e < fit->n_expert; e++) mdp_spd_destroy(factors[e]);
    mdp_free(factors);
    mdp_free(rest);
    mdp_free(d);
    return status;
}

/* ---- forms ----------------------------------------------------------------------------------------------------- */

static double dot(const double *a, const double *b, int64_t n) {
    double sum = 0.0;
    for (int64_t i = 0; i < n; i++) sum += a[i] * b[i];
    return sum;
}

/* form [n_col] += what the block that is shown gives of d^T A d; product: room for a block of each chunk of columns. */
static void add_form(const mdp_fit *fit, const mdp_product_block *block, const double *d, double *product,
                     double *form) {
    const mdp_product_pair *pair = &fit->layout->pairs[block->pair];
    int n = (int)mdp_fit_order(fit), rows = (int)block->n_row, cols = (int)block->n_col;
    int64_t row = fit->offset[pair->left] + block->row0, col = fit->offset[pair->right] + block->col0;
    double times = block->left == block->right ? 1.0 : 2.0; /* and its mirror image */
#pragma omp parallel for schedule(static) num_threads(fit->n_thread)
    for (int64_t c = 0; c < fit->n_col; c += MDP_SPD_COLUMNS) {
        double *own = product + c * MDP_PRODUCT_SEGMENT;
        cblas_dgemm(CblasColMajor, CblasTrans, CblasNoTrans, rows, columns_at(fit, c), cols, 1.0, fit->shown, cols,
                    d + c * n + col, n, 0.0, own, rows);
        for (int i = 0; i < columns_at(fit, c); i++)
            form[c + i] += times * dot(d + (c + i) * n + row, own + (int64_t)i * rows, rows);
    }
}

mdp_status mdp_fit_sum_columns_all(const mdp_fit *fit, const double *columns, double *out) {
    mdp_exact sum = {{0}};
    bool good = true;
    for (int64_t c = 0; c < fit->n_col; c++) good = mdp_exact_add(&sum, columns[c]) && good;
    MDP_AGREE(fit->comm,
              good ? mdp_ok() : MDP_ERROR(MDP_BAD_INPUT, "a fit is not finite; a larger ridge keeps it so."));
    mdp_exact_normalise(&sum);
    MDP_TRY(mdp_sum_i64_all(fit->comm, sum.limb, MDP_LIMBS));
    *out = mdp_exact_value(&sum);
    return mdp_ok();
}

static mdp_status forms_all(mdp_fit *fit, const mdp_fit_sets *sets, const double *b, const double *d, double *product,
                            double *form, double *quadratic, double *linear) {
    int64_t n = mdp_fit_order(fit),
            end = fit->first_block[mdp_fit_count_pairs(fit->n_expert, fit->mode) - fit->n_expert];
    for (int64_t k = 0; k < end; k++) {
        MDP_TRY(show_block_all(fit, sets, k));
        add_form(fit, &fit->layout->blocks[k], d, product, form);
        mdp_profile_flop(fit->profile, 2 * fit->layout->blocks[k].n_row * fit->layout->blocks[k].n_col * fit->n_col);
    }
    MDP_TRY(mdp_fit_sum_columns_all(fit, form, quadratic));
    for (int64_t c = 0; c < fit->n_col; c++) form[c] = dot(d + c * n, b + c * n, n);
    return mdp_fit_sum_columns_all(fit, form, linear);
}

mdp_status mdp_fit_forms_all(mdp_fit *fit, const mdp_fit_sets *sets, const double *b, const double *d,
                             double *quadratic, double *linear) {
    double *product = NULL, *form = NULL;
    int64_t n_chunk = (fit->n_col + MDP_SPD_COLUMNS - 1) / MDP_SPD_COLUMNS * MDP_SPD_COLUMNS;
    mdp_status status = MDP_ALLOC(&product, n_chunk * MDP_PRODUCT_SEGMENT, "the error of a fit");
    if (status.code == MDP_OK) status = MDP_ALLOC(&form, fit->n_col, "the error of a fit");
    status = mdp_agree_all(fit->comm, status);
    if (status.code == MDP_OK) status = forms_all(fit, sets, b, d, product, form, quadratic, linear);
    mdp_free(product);
    mdp_free(form);
    return status;
}
