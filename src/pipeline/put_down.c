/* put_down.c - rows of a down projection that was solved for, as the checkpoint stores them, into the plan's arrays.
 *
 * Rows are dealt to ranks in runs, as columns of the solution are. Where one scale is for all rows, ranks agree on the
 * largest value first. */
#include "pipeline/put_down.h"

#include "mdp/narrow.h"

#include <string.h>

#define PUT_ROWS 256 /* rows of W that are read and written at a time, about */

/* values = rows row .. row + n - 1 of W, and what is added to them. */
static mdp_status make_rows(const mdp_put_down *w, int64_t row, int64_t n) {
    int64_t f = w->from->down.n_col;
    if (w->part != 0.0) MDP_TRY(mdp_matrix_read(w->reader, &w->from->down, row, n, w->scratch, w->stored));
    for (int64_t r = 0; r < n; r++) {
        const double *d = w->d + (row + r - w->first) * w->order + w->offset;
        for (int64_t j = 0; j < f; j++) w->values[r * f + j] = w->part * (double)w->stored[r * f + j] + w->step * d[j];
    }
    return mdp_ok();
}

static mdp_status allocate(mdp_put_down *w, int64_t n_row) {
    int64_t f = w->from->down.n_col;
    MDP_TRY(mdp_alloc(&w->scratch, mdp_matrix_scratch(&w->from->down, n_row), 1, "rows of a down projection"));
    MDP_TRY(MDP_ALLOC(&w->stored, n_row * f, "rows of a down projection"));
    if (w->error) MDP_TRY(MDP_ALLOC(&w->fitted, n_row * f, "rows of a down projection"));
    return MDP_ALLOC(&w->values, n_row * f, "rows of a down projection");
}

/* largest: where one scale is for all rows. Local. */
static mdp_status raise_largest(mdp_put_down *w, float *largest) {
    int64_t step = mdp_matrix_put_step(&w->to->down, PUT_ROWS), end = w->first + w->n_col;
    for (int64_t row = w->first; row < end; row += step) {
        int64_t n = end - row < step ? end - row : step;
        MDP_TRY(make_rows(w, row, n));
        mdp_matrix_raise_largest(&w->to->down, w->values, n, largest);
    }
    return mdp_ok();
}

/* n rows were put, and are what will be read. */
static void add_error(const mdp_put_down *w, int64_t n) {
    int64_t f = w->from->down.n_col;
    for (int64_t r = 0; r < n; r++) {
        double fitted = 0.0, lost = 0.0;
        for (int64_t j = r * f; j < (r + 1) * f; j++) {
            fitted += w->fitted[j] * w->fitted[j];
            lost += (w->values[j] - w->fitted[j]) * (w->values[j] - w->fitted[j]);
        }
        (void)mdp_exact_add(&w->error->fitted, fitted); /* what is not finite was refused by the fit */
        (void)mdp_exact_add(&w->error->lost, lost);
    }
}

static mdp_status put_rows(mdp_put_down *w, const float *largest) {
    int64_t step = mdp_matrix_put_step(&w->to->down, PUT_ROWS), end = w->first + w->n_col;
    mdp_arrays *arrays = w->arrays;
    for (int64_t row = w->first; row < end; row += step) {
        int64_t n = end - row < step ? end - row : step;
        MDP_TRY(make_rows(w, row, n));
        if (w->error) memcpy(w->fitted, w->values, (size_t)(n * w->from->down.n_col) * sizeof *w->fitted);
        MDP_TRY(mdp_matrix_put(&w->to->down, row, n, w->values, largest, mdp_arrays_put_bytes, arrays));
        if (w->error) add_error(w, n);
    }
    return mdp_ok();
}

/* The bias of this rank's rows; its change is the last value of a column. */
static mdp_status put_bias(const mdp_put_down *w) {
    const mdp_matrix *from = &w->from->down_bias, *to = &w->to->down_bias;
    float *stored = NULL;
    double *values = NULL;
    unsigned char *bytes = NULL;
    int64_t size = to->tensor ? mdp_dtype_bits(to->tensor->type) / 8 : 0;
    if (!to->tensor || w->n_col == 0) return mdp_ok();
    mdp_status status = mdp_matrix_load(w->reader, from, &stored);
    if (status.code == MDP_OK) status = MDP_ALLOC(&values, w->n_col, "a bias");
    if (status.code == MDP_OK) status = MDP_ALLOC(&bytes, w->n_col * size, "a bias");
    for (int64_t c = 0; status.code == MDP_OK && c < w->n_col; c++)
        values[c] =
            w->part * (double)stored[w->first + c] + w->step * w->d[c * w->order + w->offset + w->from->down.n_col];
    if (status.code == MDP_OK) {
        mdp_narrow(to->tensor->type, values, w->n_col, bytes);
        for (int64_t c = 0; status.code == MDP_OK && c < w->n_col; c++)
            status = mdp_arrays_put_bytes(w->arrays, to->tensor, (to->first + (w->first + c) * to->col_stride) * size,
                                          size, bytes + c * size);
    }
    mdp_free(stored);
    mdp_free(values);
    mdp_free(bytes);
    return status;
}

/* The largest of all ranks: of numbers that are not negative, bits are in the same order. Collective. */
static mdp_status agree_on_largest_all(const mdp_comm *comm, int64_t n, float *largest, int64_t *bits) {
    for (int64_t i = 0; i < n; i++) {
        uint32_t own;
        memcpy(&own, &largest[i], sizeof own);
        bits[i] = own;
    }
    MDP_TRY(mdp_max_i64_all(comm, bits, n));
    for (int64_t i = 0; i < n; i++) {
        uint32_t own = (uint32_t)bits[i];
        memcpy(&largest[i], &own, sizeof own);
    }
    return mdp_ok();
}

mdp_status mdp_put_down_all(mdp_put_down *w) {
    const mdp_comm *comm = w->comm;
    int64_t n_common = mdp_matrix_common_scales(&w->to->down), *bits = NULL;
    float *largest = NULL;
    mdp_status status = allocate(w, mdp_matrix_put_step(&w->to->down, PUT_ROWS));
    if (status.code == MDP_OK && n_common > 0) status = MDP_ALLOC(&largest, n_common, "scales");
    if (status.code == MDP_OK && n_common > 0) status = MDP_ALLOC(&bits, n_common, "scales");
    if (status.code == MDP_OK && n_common > 0) status = raise_largest(w, largest);
    status = mdp_agree_all(comm, status);
    if (status.code == MDP_OK && n_common > 0) status = agree_on_largest_all(comm, n_common, largest, bits);
    if (status.code == MDP_OK) {
        status = put_rows(w, largest);
        if (status.code == MDP_OK) status = put_bias(w);
        status = mdp_agree_all(comm, status);
    }
    mdp_free(largest);
    mdp_free(bits);
    mdp_free(w->scratch);
    mdp_free(w->stored);
    mdp_free(w->values);
    mdp_free(w->fitted);
    return status;
}
