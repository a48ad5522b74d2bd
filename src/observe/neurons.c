/* neurons.c - sums over the routed tokens for every neuron; see neurons.h.
 *
 * A tile's contribution to a neuron is one f64 partial over its rows in row order, rounded once to the grid of the
 * vectors' sums, so neither the order of tiles nor the rank that had them can show. Columns of down projections are
 * summed over all rows by one rank: expert e of a layer is read by rank e modulo their number. */
#include "observe/neurons.h"

#include <math.h>

#define ROWS 64 /* of a down projection at a time */

static mdp_status too_large(int64_t layer, mdp_expert_t expert, const char *what, double value) {
    return MDP_ERROR(MDP_BAD_INPUT,
                     "layer %lld, expert %d: a sum of %s is %g; weights or activations are not finite, or far too "
                     "large.",
                     (long long)layer, (int)expert, what, value);
}

static mdp_status add(const double *partial, int64_t n, int64_t layer, mdp_expert_t expert, const char *what,
                      mdp_short_sum *sum) {
    for (int64_t j = 0; j < n; j++)
        if (!mdp_short_add(&sum[j], partial[j])) return too_large(layer, expert, what, partial[j]);
    return mdp_ok();
}

/* ---- tiles ------------------------------------------------------------------------------------------------------ */

/* shares, squares [d_ff] */
static void add_row(const mdp_tile *tile, int32_t row, double *shares, double *squares) {
    const float *h = tile->h + row * tile->d_ff, *projected = tile->projected + row * tile->d_ff;
    double norm = sqrt(mdp_sum_squares(tile->y + row * tile->d_model, tile->d_model));
    double scale = norm > 0.0 ? 1.0 / norm : 0.0; /* an output of 0 has no shares */
    for (int64_t j = 0; j < tile->d_ff; j++) {
        double value = (double)h[j];
        shares[j] += value * (double)projected[j] * scale;
        squares[j] += value * value;
    }
}

mdp_status mdp_neurons_add(const mdp_stats *stats, const mdp_tile *tile, mdp_short_sum *const *vectors) {
    int64_t f = tile->d_ff, width = 0;
    double *partial = NULL; /* [2, d_ff] */
    for (int64_t l = 0; l < stats->n_layer; l++)
        if (stats->layers[l].layer == tile->layer) width = stats->layers[l].d_ff;
    MDP_TRY(MDP_ALLOC(&partial, 2 * f, "sums of neurons"));
    for (int32_t row = 0; row < tile->n_row; row++) add_row(tile, row, partial, partial + f);
    mdp_status status = add(partial, f, tile->layer, tile->expert, "shares of neurons",
                            vectors[MDP_NEURON_SHARE_SUM] + tile->expert * width);
    if (status.code == MDP_OK)
        status = add(partial + f, f, tile->layer, tile->expert, "squares of neurons",
                     vectors[MDP_NEURON_SQUARE_SUM] + tile->expert * width);
    mdp_free(partial);
    return status;
}

/* ---- weights ---------------------------------------------------------------------------------------------------- */

/* Squares of the columns of a matrix, over its rows in order: partial [n_col]. */
static mdp_status sum_columns(mdp_reader *reader, const mdp_matrix *down, float *rows, void *scratch, double *partial) {
    for (int64_t row = 0; row < down->n_row; row += ROWS) {
        int64_t n = mdp_smaller(ROWS, down->n_row - row);
        MDP_TRY(mdp_matrix_read(reader, down, row, n, scratch, rows));
        for (int64_t i = 0; i < n * down->n_col; i++) partial[i % down->n_col] += (double)rows[i] * (double)rows[i];
    }
    return mdp_ok();
}

static mdp_status add_expert(const mdp_compare *compare, int64_t layer, mdp_expert_t expert, mdp_short_sum *sum) {
    const mdp_matrix *down = &compare->model->layers[layer].moe.experts[expert].down;
    float *rows = NULL;
    double *partial = NULL;
    void *scratch = NULL;
    mdp_status status = MDP_ALLOC(&rows, ROWS * down->n_col, "columns of a down projection");
    if (status.code == MDP_OK) status = MDP_ALLOC(&partial, down->n_col, "columns of a down projection");
    if (status.code == MDP_OK)
        status = mdp_alloc(&scratch, mdp_matrix_scratch(down, ROWS), 1, "columns of a down projection");
    if (status.code == MDP_OK) status = sum_columns(compare->reader, down, rows, scratch, partial);
    if (status.code == MDP_OK) status = add(partial, down->n_col, layer, expert, "squared weights", sum);
    mdp_free(rows);
    mdp_free(partial);
    mdp_free(scratch);
    return status;
}

mdp_status mdp_neurons_add_columns(const mdp_comm *comm, const mdp_compare *compare, int64_t layer,
                                   mdp_short_sum *sum) {
    const mdp_moe *moe = &compare->model->layers[layer].moe;
    mdp_status failed = mdp_ok();
#pragma omp parallel for schedule(dynamic, 1) num_threads(compare->n_thread)
    for (mdp_expert_t e = comm->rank; e < moe->n_expert; e += comm->size) {
        mdp_status status = add_expert(compare, layer, e, sum + e * moe->d_ff);
        if (status.code == MDP_OK) continue;
#pragma omp critical(mdp_neurons)
        failed = status;
    }
    return failed;
}

int64_t mdp_neurons_memory(const mdp_moe *moe, int n_thread) {
    const mdp_matrix *down = &moe->experts[0].down;
    int64_t columns = ROWS * moe->d_ff * (int64_t)sizeof(float) + moe->d_ff * (int64_t)sizeof(double) +
                      mdp_matrix_scratch(down, ROWS);
    return n_thread * mdp_larger(2 * moe->d_ff * (int64_t)sizeof(double), columns);
}
