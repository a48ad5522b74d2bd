/* fit.c - ridge least squares over experts, from row products whose blocks lie on many ranks.
 *
 * Right-hand sides travel from the owners of their blocks to the owners of columns. There they meet A: its entries go
 * to where they are factored (spd.h), or its blocks are shown to all ranks (fit_blocks.c). */
#include "linalg/fit_parts.h"

/* ---- pairs ----------------------------------------------------------------------------------------------------- */

int32_t mdp_fit_count_pairs(int32_t n_expert, mdp_fit_mode mode) {
    return n_expert + (mode == MDP_FIT_DIAGONAL ? n_expert : n_expert * (n_expert + 1) / 2);
}

void mdp_fit_list_pairs(int32_t n_expert, mdp_fit_mode mode, const int64_t *rows, mdp_product_pair *pairs) {
    for (int32_t e = 0; e < n_expert; e++)
        for (int32_t other = mode == MDP_FIT_DIAGONAL ? e : 0; other <= e; other++)
            *pairs++ = (mdp_product_pair){.left = e, .right = other, .n_row = rows[e * n_expert + other]};
    for (int32_t e = 0; e < n_expert; e++)
        *pairs++ = (mdp_product_pair){.left = e, .right = n_expert, .n_row = rows[e * n_expert + e]};
}

/* ---- life ------------------------------------------------------------------------------------------------------ */

void mdp_fit_share(int64_t d, int64_t unit, int size, int rank, int64_t *first, int64_t *n) {
    int64_t n_unit = (d + unit - 1) / unit, end = n_unit * (rank + 1) / size * unit;
    *first = n_unit * rank / size * unit;
    if (end > d) end = d;
    *n = end > *first ? end - *first : 0;
}

static mdp_status fill(mdp_fit *fit) {
    const mdp_product_layout *layout = fit->layout;
    fit->n_expert = layout->n_side - 1;
    fit->d = mdp_product_width(&layout->sides[fit->n_expert]);
    fit->n_own = mdp_products_own(fit->products, &fit->own);
    mdp_fit_share(fit->d, fit->unit, fit->comm->size, fit->comm->rank, &fit->first, &fit->n_col);
    MDP_TRY(MDP_ALLOC(&fit->offset, fit->n_expert + 1, "a fit"));
    MDP_TRY(MDP_ALLOC(&fit->first_block, layout->n_pair + 1, "a fit"));
    MDP_TRY(MDP_ALLOC(&fit->grids, fit->n_expert + 1, "a fit"));
    MDP_TRY(MDP_ALLOC(&fit->orders, fit->n_expert + 1, "a fit"));
    for (int32_t e = 0; e < fit->n_expert; e++)
        fit->offset[e + 1] = fit->offset[e] + mdp_product_width(&layout->sides[e]);
    for (int64_t b = 0; b < layout->n_block; b++) fit->first_block[layout->blocks[b].pair + 1] = b + 1;
    return MDP_ALLOC(&fit->shown, (int64_t)MDP_PRODUCT_SEGMENT * MDP_PRODUCT_SEGMENT, "a fit");
}

mdp_status mdp_fit_new_all(const mdp_comm *comm, mdp_products *products, const mdp_product_layout *layout,
                           mdp_fit_mode mode, int64_t alone, int64_t unit, int n_thread, mdp_profile *profile,
                           mdp_fit **out) {
    mdp_fit *fit = NULL;
    *out = NULL;
    mdp_status status = MDP_ALLOC(&fit, 1, "a fit");
    if (status.code == MDP_OK) {
        *fit = (mdp_fit){.comm = comm,
                         .products = products,
                         .layout = layout,
                         .mode = mode,
                         .alone = alone,
                         .unit = unit,
                         .n_thread = n_thread,
                         .profile = profile};
        status = fill(fit);
    }
    status = mdp_agree_all(comm, status);
    if (status.code == MDP_OK)
        status = mdp_exchange_room_new_all(comm, MDP_SUM_MESSAGE_BYTE, mdp_spread_row_bytes(), &fit->room);
    if (status.code != MDP_OK) {
        mdp_fit_destroy_all(fit);
        return status;
    }
    *out = fit;
    return status;
}

void mdp_fit_destroy_all(mdp_fit *fit) {
    if (!fit) return;
    for (int i = 0; i < fit->n_grid; i++) mdp_grid_destroy_all(fit->grids[i]);
    mdp_free(fit->grids);
    mdp_free(fit->orders);
    mdp_exchange_room_destroy(fit->room);
    mdp_free(fit->offset);
    mdp_free(fit->first_block);
    mdp_free(fit->shown);
    mdp_free(fit);
}

int64_t mdp_fit_order(const mdp_fit *fit) {
    return fit->offset[fit->n_expert];
}

int64_t mdp_fit_offset(const mdp_fit *fit, int32_t expert) {
    return fit->offset[expert];
}

void mdp_fit_columns(const mdp_fit *fit, int64_t *first, int64_t *n) {
    *first = fit->first;
    *n = fit->n_col;
}

/* ---- values of the sets that count ----------------------------------------------------------------------------- */

double mdp_fit_value(const mdp_fit *fit, const mdp_fit_sets *sets, int64_t own, int64_t at) {
    double sum = 0.0;
    for (int s = 0; s < sets->n_set; s++)
        if (sets->part[s] != 0.0) sum += mdp_products_values(fit->products, s, own)[at];
    return sum;
}

/* n values from `at` on, `stride` apart, where they lie or in `scratch`, side by side. */
static const double *values_at(const mdp_fit *fit, const mdp_fit_sets *sets, int64_t own, int64_t at, int64_t n,
                               int64_t *stride, double *scratch) {
    int n_part = 0, only = 0;
    for (int s = 0; s < sets->n_set; s++) {
        if (sets->part[s] == 0.0) continue;
        n_part++;
        only = s;
    }
    if (n_part == 1) return mdp_products_values(fit->products, only, own) + at;
    for (int64_t i = 0; i < n; i++) scratch[i] = mdp_fit_value(fit, sets, own, at + i * *stride);
    *stride = 1;
    return scratch;
}

mdp_status mdp_fit_mean_diagonal_all(const mdp_fit *fit, const mdp_fit_sets *sets, double *out) {
    mdp_exact sum = {{0}};
    bool good = true;
    for (int64_t i = 0; i < fit->n_own; i++) {
        const mdp_product_block *block = &fit->layout->blocks[fit->own[i]];
        for (int64_t r = 0; block->left == block->right && r < block->n_row; r++)
            good = mdp_exact_add(&sum, mdp_fit_value(fit, sets, i, r * block->n_col + r)) && good;
    }
    MDP_AGREE(fit->comm, good ? mdp_ok()
                              : MDP_ERROR(MDP_BAD_INPUT, "activations of experts are not finite, or far too large, so "
                                                         "nothing can be fitted to them."));
    mdp_exact_normalise(&sum);
    MDP_TRY(mdp_sum_i64_all(fit->comm, sum.limb, MDP_LIMBS));
    *out = mdp_fit_order(fit) > 0 ? mdp_exact_value(&sum) / (double)mdp_fit_order(fit) : 0.0;
    return mdp_ok();
}

/* ---- right-hand sides ------------------------------------------------------------------------------------------ */

/* Columns of this rank's blocks with the last side, in strips of a grid block's side. */
typedef struct side_strips {
    const mdp_fit *fit;
    const mdp_fit_sets *sets;
    int64_t *first; /* [n_own + 1] first strip of each block */
    double *b;
    double scratch[MDP_GRID_BLOCK];
} side_strips;

static bool is_right_hand_side(const mdp_fit *fit, const mdp_product_block *block) {
    return fit->layout->pairs[block->pair].right == fit->n_expert;
}

static int64_t strips_of_column(const mdp_product_block *block) {
    return (block->n_row + MDP_GRID_BLOCK - 1) / MDP_GRID_BLOCK;
}

static int owner_of_column(const mdp_fit *fit, int64_t col) {
    int64_t n_unit = (fit->d + fit->unit - 1) / fit->unit, unit = col / fit->unit;
    int owner = (int)(((unit + 1) * fit->comm->size - 1) / n_unit); /* the last rank whose first unit is not above it */
    return owner < fit->comm->size ? owner : fit->comm->size - 1;
}

static mdp_strip give_column(void *context, int64_t i) {
    side_strips *strips = context;
    const mdp_fit *fit = strips->fit;
    int64_t low = 0, high = fit->n_own - 1;
    while (low < high) {
        int64_t middle = low + (high - low + 1) / 2;
        if (strips->first[middle] <= i)
            low = middle;
        else
            high = middle - 1;
    }
    const mdp_product_block *block = &fit->layout->blocks[fit->own[low]];
    int64_t number = i - strips->first[low], col = number / strips_of_column(block);
    int64_t row = number % strips_of_column(block) * MDP_GRID_BLOCK, stride = block->n_col;
    int64_t n = block->n_row - row < MDP_GRID_BLOCK ? block->n_row - row : MDP_GRID_BLOCK;
    const double *values = values_at(fit, strips->sets, low, row * block->n_col + col, n, &stride, strips->scratch);
    return (mdp_strip){.row = fit->offset[fit->layout->pairs[block->pair].left] + block->row0 + row,
                       .col = block->col0 + col,
                       .n = (int32_t)n,
                       .down = true,
                       .to = owner_of_column(fit, block->col0 + col),
                       .values = values,
                       .stride = stride};
}

static void take_column(void *context, const mdp_strip *strip) {
    const side_strips *strips = context;
    double *to = strips->b + (strip->col - strips->fit->first) * mdp_fit_order(strips->fit) + strip->row;
    for (int32_t j = 0; j < strip->n; j++) to[j] = strip->values[j * strip->stride];
}

mdp_status mdp_fit_right_hand_side_all(mdp_fit *fit, const mdp_fit_sets *sets, double *b) {
    side_strips strips = {.fit = fit, .sets = sets, .b = b};
    MDP_AGREE(fit->comm, MDP_ALLOC(&strips.first, fit->n_own + 1, "right-hand sides"));
    for (int64_t i = 0; i < fit->n_own; i++) {
        const mdp_product_block *block = &fit->layout->blocks[fit->own[i]];
        strips.first[i + 1] = strips.first[i];
        if (is_right_hand_side(fit, block)) strips.first[i + 1] += block->n_col * strips_of_column(block);
    }
    const mdp_spread spread = {.comm = fit->comm,
                               .room = fit->room,
                               .profile = fit->profile,
                               .n = strips.first[fit->n_own],
                               .give = give_column,
                               .take = take_column,
                               .context = &strips};
    mdp_status status = mdp_spread_all(&spread);
    mdp_free(strips.first);
    return status;
}

/* ---- factors --------------------------------------------------------------------------------------------------- */

/* Rows of this rank's blocks of A, or of the block on its diagonal that one expert has. */
typedef struct matrix_runs {
    const mdp_fit *fit;
    const mdp_fit_sets *sets;
    int32_t expert;     /* -1: all */
    int64_t n_block, n; /* blocks and rows that count */
    int64_t *block;     /* [n_block] numbers in own */
    int64_t *first;     /* [n_block + 1] first row of each */
    double scratch[MDP_PRODUCT_SEGMENT];
} matrix_runs;

static bool counts(const matrix_runs *runs, const mdp_product_block *block) {
    const mdp_product_pair *pair = &runs->fit->layout->pairs[block->pair];
    if (is_right_hand_side(runs->fit, block)) return false;
    return runs->expert < 0 || (pair->left == runs->expert && pair->right == runs->expert);
}

static mdp_status list_rows(matrix_runs *runs) {
    const mdp_fit *fit = runs->fit;
    MDP_TRY(MDP_ALLOC(&runs->block, fit->n_own, "rows of a matrix"));
    MDP_TRY(MDP_ALLOC(&runs->first, fit->n_own + 1, "rows of a matrix"));
    for (int64_t i = 0; i < fit->n_own; i++) {
        const mdp_product_block *block = &fit->layout->blocks[fit->own[i]];
        if (!counts(runs, block)) continue;
        runs->block[runs->n_block] = i;
        runs->first[runs->n_block + 1] = runs->first[runs->n_block] + block->n_row;
        runs->n_block++;
    }
    runs->n = runs->first[runs->n_block];
    return mdp_ok();
}

static mdp_spd_run give_row(void *context, int64_t i) {
    matrix_runs *runs = context;
    const mdp_fit *fit = runs->fit;
    int64_t low = 0, high = runs->n_block - 1, stride = 1;
    while (low < high) {
        int64_t middle = low + (high - low + 1) / 2;
        if (runs->first[middle] <= i)
            low = middle;
        else
            high = middle - 1;
    }
    const mdp_product_block *block = &fit->layout->blocks[fit->own[runs->block[low]]];
    const mdp_product_pair *pair = &fit->layout->pairs[block->pair];
    int64_t row = i - runs->first[low], n = block->left == block->right ? row + 1 : block->n_col;
    int64_t before = runs->expert < 0 ? 0 : fit->offset[runs->expert];
    const double *values = values_at(fit, runs->sets, runs->block[low], row * block->n_col, n, &stride, runs->scratch);
    return (mdp_spd_run){.row = fit->offset[pair->left] - before + block->row0 + row,
                         .col = fit->offset[pair->right] - before + block->col0,
                         .n = n,
                         .values = values};
}

/* The grid for matrices of an order, kept: factors on it may be many. */
static mdp_status choose_grid_all(mdp_fit *fit, int64_t order, mdp_grid **out) {
    int at = 0;
    while (at < fit->n_grid && fit->orders[at] != order) at++;
    if (at == fit->n_grid) {
        MDP_TRY(mdp_grid_new_all(fit->comm, order, fit->alone, &fit->grids[at]));
        fit->orders[fit->n_grid++] = order;
    }
    *out = fit->grids[at];
    return mdp_ok();
}

/* A + lambda I of one expert (-1: of all), factored. */
mdp_status mdp_fit_factor_all(mdp_fit *fit, const mdp_fit_sets *sets, int32_t expert, double lambda, mdp_spd **out,
                              double *rcond) {
    matrix_runs runs = {.fit = fit, .sets = sets, .expert = expert};
    int64_t order = expert < 0 ? mdp_fit_order(fit) : fit->offset[expert + 1] - fit->offset[expert];
    double own_rcond = 0.0;
    mdp_grid *grid = NULL;
    *out = NULL;
    MDP_TRY(choose_grid_all(fit, order, &grid));
    mdp_status status = mdp_agree_all(fit->comm, list_rows(&runs));
    if (status.code == MDP_OK) status = mdp_spd_new_all(grid, expert < 0 ? 0 : expert, fit->profile, out);
    if (status.code == MDP_OK) status = mdp_spd_put_all(*out, runs.n, give_row, &runs);
    if (status.code == MDP_OK) {
        mdp_spd_add_diagonal(*out, lambda);
        status = mdp_spd_factor_all(*out, &own_rcond);
    }
    mdp_free(runs.block);
    mdp_free(runs.first);
    if (status.code != MDP_OK) {
        mdp_spd_destroy(*out);
        *out = NULL;
    }
    if (own_rcond < *rcond) *rcond = own_rcond;
    return status;
}

mdp_status mdp_fit_solve_all(mdp_fit *fit, const mdp_fit_sets *sets, double lambda, int n_sweep, double *b,
                             double *rcond) {
    *rcond = 1.0;
    if (fit->mode != MDP_FIT_JOINT) return mdp_fit_by_experts_all(fit, sets, lambda, n_sweep, b, rcond);
    mdp_spd *factor = NULL;
    MDP_TRY(mdp_fit_factor_all(fit, sets, -1, lambda, &factor, rcond));
    mdp_status status = mdp_spd_solve_all(factor, fit->d, fit->first, fit->n_col, fit->n_thread, b);
    mdp_spd_destroy(factor);
    return status;
}
