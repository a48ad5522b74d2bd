/* probe_expert.c - a gated MLP on a few rows: panels of weights are read by all threads, then multiplied by all. One
 * single-threaded product for each (tile, panel), so threads cannot show. */
#include "observe/probe_expert.h"

#include <omp.h>

/* ---- scratch ------------------------------------------------------------------------------------------------- */

static int64_t panel_values(int64_t d_model, int64_t d_ff) {
    return MDP_PANEL_ROWS * mdp_larger(d_model, d_ff);
}

static int64_t scratch_of(const mdp_expert *expert) {
    const mdp_matrix *matrices[] = {&expert->gate, &expert->up, &expert->down};
    int64_t most = 0;
    for (int i = 0; i < 3; i++)
        most = mdp_larger(most, mdp_matrix_scratch(matrices[i], mdp_smaller(MDP_PANEL_ROWS, matrices[i]->n_row)));
    return most;
}

mdp_status mdp_probe_bench_take(mdp_probe_bench *bench, const mdp_moe *moe) {
    int64_t n_byte = 0;
    bench->n_stored = 2 * (int64_t)bench->n_thread;
    for (int32_t e = 0; e < moe->n_expert; e++) n_byte = mdp_larger(n_byte, scratch_of(&moe->experts[e]));
    MDP_TRY(MDP_ALLOC(&bench->h, bench->n * bench->d_ff, "activations of the probe"));
    MDP_TRY(
        MDP_ALLOC(&bench->panels, bench->n_stored * panel_values(bench->d_model, bench->d_ff), "panels of weights"));
    MDP_TRY(
        MDP_ALLOC(&bench->up, bench->n_thread * (int64_t)MDP_TILE_ROWS * MDP_PANEL_ROWS, "activations of the probe"));
    MDP_TRY(MDP_ALLOC(&bench->stored, bench->n_stored, "panels of weights"));
    for (int64_t i = 0; i < bench->n_stored; i++) MDP_TRY(mdp_alloc(&bench->stored[i], n_byte, 1, "panels of weights"));
    return mdp_ok();
}

void mdp_probe_bench_clear(mdp_probe_bench *bench) {
    for (int64_t i = 0; bench->stored && i < bench->n_stored; i++) mdp_free(bench->stored[i]);
    mdp_free(bench->stored);
    mdp_free(bench->h);
    mdp_free(bench->panels);
    mdp_free(bench->up);
}

int64_t mdp_probe_bench_memory(int64_t n, int64_t d_model, int64_t d_ff, int n_thread) {
    int64_t panels = 3 * (int64_t)n_thread * panel_values(d_model, d_ff); /* with what is stored of them, about */
    return (n * d_ff + panels + n_thread * (int64_t)MDP_TILE_ROWS * MDP_PANEL_ROWS) * (int64_t)sizeof(float);
}

/* ---- panels -------------------------------------------------------------------------------------------------- */

/* Biases of an expert; NULL: none. */
typedef struct biases {
    float *gate, *up, *down;
} biases;

/* Some panels of gate and up, or of down, at the same time in memory. */
typedef struct group {
    const mdp_probe_bench *bench;
    const mdp_matrix *matrices[2]; /* gate and up; down and NULL */
    biases with;
    int64_t first, n; /* panels */
    float *y;         /* of down */
} group;

static const float *panel_of(const group *g, int64_t panel, int which) {
    return g->bench->panels + (2 * panel + which) * panel_values(g->bench->d_model, g->bench->d_ff);
}

static mdp_status read_group(const group *g) {
    mdp_status failed = mdp_ok();
    int n_matrix = g->matrices[1] ? 2 : 1;
#pragma omp parallel for schedule(dynamic, 1) num_threads(g->bench->n_thread)
    for (int64_t i = 0; i < g->n * n_matrix; i++) {
        int64_t at = 2 * (i / n_matrix) + i % n_matrix, row0 = (g->first + i / n_matrix) * MDP_PANEL_ROWS;
        const mdp_matrix *matrix = g->matrices[i % n_matrix];
        mdp_status status = mdp_matrix_read(g->bench->reader, matrix, row0,
                                            mdp_smaller(MDP_PANEL_ROWS, matrix->n_row - row0), g->bench->stored[at],
                                            g->bench->panels + at * panel_values(g->bench->d_model, g->bench->d_ff));
        if (status.code != MDP_OK) {
#pragma omp critical(mdp_probe)
            failed = status;
        }
    }
    return failed;
}

static void add_bias(const float *bias, int64_t n, float *row) {
    for (int64_t j = 0; bias && j < n; j++) row[j] += bias[j];
}

/* A tile's activations of one panel's neurons. */
static void gate_tile(const group *g, int64_t panel, int64_t row, int64_t n_row, float *up) {
    const mdp_probe_bench *bench = g->bench;
    int64_t d_ff = g->matrices[0]->n_row, first = (g->first + panel) * MDP_PANEL_ROWS;
    int64_t m = mdp_smaller(MDP_PANEL_ROWS, d_ff - first), d = bench->d_model;
    float *h = bench->h + row * d_ff + first;
    const float *x = bench->x + row * d;
    mdp_gemm_nt(bench->gemm, (int)n_row, (int)m, (int)d, x, (int)d, panel_of(g, panel, 0), (int)d, h, (int)d_ff);
    mdp_gemm_nt(bench->gemm, (int)n_row, (int)m, (int)d, x, (int)d, panel_of(g, panel, 1), (int)d, up, (int)m);
    for (int64_t i = 0; i < n_row; i++) {
        add_bias(g->with.gate ? g->with.gate + first : NULL, m, h + i * d_ff);
        add_bias(g->with.up ? g->with.up + first : NULL, m, up + i * m);
        mdp_gate(&bench->activation, up + i * m, m, h + i * d_ff);
    }
}

/* A tile's outputs of one panel's rows. */
static void lower_tile(const group *g, int64_t panel, int64_t row, int64_t n_row) {
    const mdp_probe_bench *bench = g->bench;
    int64_t d_ff = g->matrices[0]->n_col, first = (g->first + panel) * MDP_PANEL_ROWS, d = bench->d_model;
    int64_t m = mdp_smaller(MDP_PANEL_ROWS, d - first);
    float *y = g->y + row * d + first;
    mdp_gemm_nt(bench->gemm, (int)n_row, (int)m, (int)d_ff, bench->h + row * d_ff, (int)d_ff, panel_of(g, panel, 0),
                (int)d_ff, y, (int)d);
    for (int64_t i = 0; i < n_row; i++) add_bias(g->with.down ? g->with.down + first : NULL, m, y + i * d);
}

static void multiply_group(const group *g) {
    const mdp_probe_bench *bench = g->bench;
    int64_t n_tile = (bench->n + MDP_TILE_ROWS - 1) / MDP_TILE_ROWS;
#pragma omp parallel for schedule(dynamic, 1) num_threads(bench->n_thread)
    for (int64_t i = 0; i < g->n * n_tile; i++) {
        int64_t row = i % n_tile * MDP_TILE_ROWS, n_row = mdp_smaller(MDP_TILE_ROWS, bench->n - row);
        float *up = bench->up + (int64_t)omp_get_thread_num() * MDP_TILE_ROWS * MDP_PANEL_ROWS;
        if (g->matrices[1])
            gate_tile(g, i / n_tile, row, n_row, up);
        else
            lower_tile(g, i / n_tile, row, n_row);
    }
}

static mdp_status run_groups(group *g) {
    int64_t n_panel = (g->matrices[0]->n_row + MDP_PANEL_ROWS - 1) / MDP_PANEL_ROWS;
    for (g->first = 0; g->first < n_panel; g->first += g->n) {
        g->n = mdp_smaller(g->bench->n_thread, n_panel - g->first);
        MDP_TRY(read_group(g));
        multiply_group(g);
    }
    return mdp_ok();
}

/* ---- the expert ---------------------------------------------------------------------------------------------- */

static mdp_status load_biases(mdp_reader *reader, const mdp_expert *expert, biases *out) {
    if (!expert->gate_bias.tensor) return mdp_ok();
    MDP_TRY(mdp_matrix_load(reader, &expert->gate_bias, &out->gate));
    MDP_TRY(mdp_matrix_load(reader, &expert->up_bias, &out->up));
    return mdp_matrix_load(reader, &expert->down_bias, &out->down);
}

static mdp_status run_expert(const mdp_probe_bench *bench, const mdp_expert *expert, const biases *with, float *y) {
    group gated = {.bench = bench, .matrices = {&expert->gate, &expert->up}, .with = *with};
    group down = {.bench = bench, .matrices = {&expert->down, NULL}, .with = *with, .y = y};
    MDP_TRY(run_groups(&gated));
    MDP_TRY(run_groups(&down));
    return mdp_gemm_check(bench->gemm);
}

mdp_status mdp_probe_expert(const mdp_probe_bench *bench, const mdp_expert *expert, float *y) {
    biases with = {NULL, NULL, NULL};
    mdp_status status = load_biases(bench->reader, expert, &with);
    if (status.code == MDP_OK) status = run_expert(bench, expert, &with, y);
    mdp_free(with.gate);
    mdp_free(with.up);
    mdp_free(with.down);
    return status;
}
