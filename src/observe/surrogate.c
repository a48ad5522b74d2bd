/* surrogate.c - see surrogate.h.
 *
 * Experts are dealt to ranks. A rank makes some rows of the surrogates of all its experts, which are multiplied with
 * those of the others (across.h), then the next rows. Rows are made in tiles whose shape the model alone decides, and a
 * band of rows is a whole number of tiles and of chunks of columns: so it does not show how many rows fit a rank.
 * For each band an expert's W_g o W_u is read and multiplied again. */
#include "observe/surrogate.h"
#include "observe/across.h"

#define LEAST_ROWS 128                 /* of a tile */
#define TILE_COLUMNS 512               /* of one product */
#define BAND_BYTE ((int64_t)512 << 20) /* of rows of surrogates on a rank, about */
#define NEURONS 64                     /* that are read at a time */

/* How the surrogates of a layer are cut. */
typedef struct cut {
    int64_t d, tile, band; /* rows: in all, of a tile, of a band */
    int64_t n_own;         /* experts of the rank with most */
} cut;

/* Rows of a tile: as many that they are whole chunks of mdp_gram_add, LEAST_ROWS or more. */
static int64_t tile_rows(int64_t d) {
    int64_t rows = MDP_GRAM_COLUMNS;
    for (int64_t width = d; width % 2 == 0 && rows > LEAST_ROWS; width /= 2) rows /= 2;
    return mdp_smaller(rows, d);
}

static cut cut_for(const mdp_moe *moe, int64_t d, int n_rank) {
    cut out = {.d = d, .tile = tile_rows(d), .n_own = mdp_across_count(moe->n_expert, 0, n_rank)};
    int64_t fit = BAND_BYTE / (out.n_own * out.tile * d * (int64_t)sizeof(float));
    out.band = mdp_smaller(mdp_larger(fit, 1) * out.tile, d);
    return out;
}

/* ---- one expert ------------------------------------------------------------------------------------------------- */

typedef struct surrogate {
    mdp_reader *reader;
    mdp_gemm *gemm;
    int n_thread;
    const mdp_expert *expert;
    cut cut;
    float *product; /* [d, f] of gate and up, transposed */
    mdp_status failed;
} surrogate;

static void note(surrogate *s, mdp_status status) {
    if (status.code == MDP_OK) return;
#pragma omp critical(mdp_surrogate)
    s->failed = status;
}

/* Columns first .. first+n-1 of the product; rows [2, NEURONS, d] is room. */
static mdp_status make_neurons(const surrogate *s, int64_t first, float *rows, void *scratch) {
    int64_t d = s->cut.d, f = s->expert->gate.n_row, n = mdp_smaller(f - first, NEURONS);
    float *gate = rows, *up = rows + NEURONS * d;
    MDP_TRY(mdp_matrix_read(s->reader, &s->expert->gate, first, n, scratch, gate));
    MDP_TRY(mdp_matrix_read(s->reader, &s->expert->up, first, n, scratch, up));
    for (int64_t c = 0; c < d; c++)
        for (int64_t j = 0; j < n; j++) s->product[c * f + first + j] = gate[j * d + c] * up[j * d + c];
    return mdp_ok();
}

static int64_t neuron_scratch(const mdp_expert *expert) {
    return mdp_larger(mdp_matrix_scratch(&expert->gate, NEURONS), mdp_matrix_scratch(&expert->up, NEURONS)) + 1;
}

static void make_product(surrogate *s) {
    int64_t f = s->expert->gate.n_row;
#pragma omp parallel num_threads(s->n_thread)
    {
        float *rows = NULL;
        void *scratch = NULL;
        mdp_status status = MDP_ALLOC(&rows, 2 * NEURONS * s->cut.d, "neurons");
        if (status.code == MDP_OK) status = mdp_alloc(&scratch, neuron_scratch(s->expert), 1, "neurons");
#pragma omp for schedule(dynamic, 1)
        for (int64_t first = 0; first < f; first += NEURONS)
            if (status.code == MDP_OK) status = make_neurons(s, first, rows, scratch);
        mdp_free(rows);
        mdp_free(scratch);
        note(s, status);
    }
}

/* A tile of rows from `row` on to out [rows, d]; down [tile, f] is room. */
static mdp_status make_tile(const surrogate *s, int64_t row, float *down, void *scratch, float *out) {
    int64_t d = s->cut.d, f = s->expert->down.n_col, n = mdp_smaller(d - row, s->cut.tile);
    MDP_TRY(mdp_matrix_read(s->reader, &s->expert->down, row, n, scratch, down));
    for (int64_t c = 0; c < d; c += TILE_COLUMNS)
        mdp_gemm_nt(s->gemm, (int)n, (int)mdp_smaller(d - c, TILE_COLUMNS), (int)f, down, (int)f, s->product + c * f,
                    (int)f, out + c, (int)d);
    return mdp_ok();
}

/* Rows first .. first+n-1 to out [n, d]. */
static void make_rows(surrogate *s, int64_t first, int64_t n, float *out) {
    int64_t f = s->expert->down.n_col;
#pragma omp parallel num_threads(s->n_thread)
    {
        float *down = NULL;
        void *scratch = NULL;
        mdp_status status = MDP_ALLOC(&down, s->cut.tile * f, "a down projection");
        if (status.code == MDP_OK)
            status = mdp_alloc(&scratch, mdp_matrix_scratch(&s->expert->down, s->cut.tile) + 1, 1, "a down projection");
#pragma omp for schedule(dynamic, 1)
        for (int64_t row = 0; row < n; row += s->cut.tile)
            if (status.code == MDP_OK) status = make_tile(s, first + row, down, scratch, out + row * s->cut.d);
        mdp_free(down);
        mdp_free(scratch);
        note(s, status);
    }
}

/* ---- a layer ---------------------------------------------------------------------------------------------------- */

/* Rows first .. first+n-1 of this rank's surrogates to rows [own experts, n, d]. Local. */
static mdp_status make_band(const mdp_comm *comm, const mdp_moe *moe, surrogate *s, int64_t first, int64_t n,
                            float *rows, int64_t *flop) {
    int64_t n_own = mdp_across_count(moe->n_expert, comm->rank, comm->size);
    for (int64_t i = 0; i < n_own && s->failed.code == MDP_OK; i++) {
        s->expert = &moe->experts[mdp_across_expert(comm->rank, comm->size, i)];
        make_product(s);
        if (s->failed.code == MDP_OK) make_rows(s, first, n, rows + i * n * s->cut.d);
        *flop += 2 * n * s->cut.d * s->expert->gate.n_row;
    }
    return s->failed.code == MDP_OK ? mdp_gemm_check(s->gemm) : s->failed;
}

static mdp_status add_bands_all(const mdp_moe *moe, surrogate *s, mdp_across *across, float *rows, mdp_short_sum *sum) {
    MDP_TRY(mdp_across_begin_all(across));
    for (int64_t first = 0; first < s->cut.d; first += s->cut.band) {
        int64_t n = mdp_smaller(s->cut.d - first, s->cut.band);
        MDP_AGREE(across->comm, make_band(across->comm, moe, s, first, n, rows, &across->flop));
        MDP_TRY(mdp_across_multiply_all(across, rows, n * s->cut.d, "surrogates", sum));
    }
    return mdp_ok();
}

mdp_status mdp_surrogate_add_all(const mdp_comm *comm, const mdp_compare *compare, int64_t layer, mdp_short_sum *sum,
                                 int64_t *flop) {
    const mdp_moe *moe = &compare->model->layers[layer].moe;
    int64_t d = compare->model->d_model, n_own = mdp_across_count(moe->n_expert, comm->rank, comm->size);
    surrogate s = {.reader = compare->reader,
                   .gemm = compare->probe.gemm,
                   .n_thread = compare->n_thread,
                   .cut = cut_for(moe, d, comm->size),
                   .failed = mdp_ok()};
    mdp_across across = {.comm = comm,
                         .n_expert = moe->n_expert,
                         .n_thread = compare->n_thread,
                         .layer = layer,
                         .profile = compare->profile};
    float *rows = NULL;
    mdp_status status = MDP_ALLOC(&s.product, n_own > 0 ? d * moe->d_ff : 0, "products of gate and up");
    if (status.code == MDP_OK) status = MDP_ALLOC(&rows, n_own * s.cut.band * d, "rows of surrogates");
    status = mdp_agree_all(comm, status);
    if (status.code == MDP_OK) status = add_bands_all(moe, &s, &across, rows, sum);
    *flop += across.flop;
    mdp_across_clear(&across);
    mdp_free(s.product);
    mdp_free(rows);
    return status;
}

/* ---- what it takes ---------------------------------------------------------------------------------------------- */

int64_t mdp_surrogate_memory(const mdp_moe *moe, int64_t d_model, int n_rank, int n_thread) {
    cut at = cut_for(moe, d_model, n_rank);
    int64_t own = 0;
    for (int32_t e = 0; e < moe->n_expert; e++) {
        const mdp_expert *expert = &moe->experts[e];
        int64_t tile = at.tile * expert->gate.n_row * (int64_t)sizeof(float) +
                       mdp_matrix_scratch(&expert->down, mdp_smaller(at.tile, expert->down.n_row));
        int64_t neurons = 2 * NEURONS * d_model * (int64_t)sizeof(float) + neuron_scratch(expert);
        own = mdp_larger(own, n_thread * mdp_larger(tile, neurons));
    }
    return (d_model * moe->d_ff + at.n_own * at.band * d_model) * (int64_t)sizeof(float) +
           mdp_larger(own, mdp_across_memory(moe->n_expert, at.n_own, n_thread));
}

void mdp_surrogate_cost(const mdp_comm *layout, const mdp_moe *moe, int64_t d_model, int rank, mdp_rank_cost *out) {
    cut at = cut_for(moe, d_model, layout->size);
    int64_t n_own = mdp_across_count(moe->n_expert, rank, layout->size), n_band = (d_model + at.band - 1) / at.band;
    for (int64_t i = 0; i < n_own; i++) {
        const mdp_expert *expert = &moe->experts[mdp_across_expert(rank, layout->size, i)];
        out->flop += 2 * d_model * d_model * expert->gate.n_row;
        out->bytes_read += n_band * (mdp_matrix_bytes(&expert->gate) + mdp_matrix_bytes(&expert->up)) +
                           mdp_matrix_bytes(&expert->down);
    }
    out->flop += d_model * d_model / layout->size * moe->n_expert * (moe->n_expert + 1);
    for (int64_t first = 0; first < d_model; first += at.band)
        mdp_across_send(layout, moe->n_expert, rank, mdp_smaller(d_model - first, at.band) * d_model, out);
}
