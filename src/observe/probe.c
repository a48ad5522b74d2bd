/* probe.c - see probe.h.
 *
 * An expert's outputs [n, d] lie at rank (expert) modulo (ranks). Cosines and kernels are inner products of long
 * vectors, one for each expert (across.h). */
#include "observe/probe.h"
#include "observe/across.h"
#include "observe/probe_expert.h"

#include <math.h>
#include <omp.h>
#include <string.h>

#define PROBE_STREAM 0x70726f6265 /* of random numbers */

/* ---- the sample ---------------------------------------------------------------------------------------------- */

/* Each token is taken with the chance that leaves every sample equally likely (Knuth, volume 2, algorithm S). */
mdp_status mdp_probe_draw(mdp_probe *probe, const mdp_stats *stats) {
    int64_t n = (int64_t)stats->n_probe, left = stats->n_token, at = 0;
    MDP_TRY(MDP_ALLOC(&probe->token, n, "the tokens of the probe"));
    MDP_TRY(MDP_ALLOC(&probe->inputs, stats->n_layer, "the probe"));
    probe->n = n;
    probe->n_layer = stats->n_layer;
    for (int64_t t = 0; at < n; t++, left--) {
        double u = mdp_random_uniform(stats->similarity.seed, PROBE_STREAM, (uint64_t)t);
        if ((double)left * u < (double)(n - at)) probe->token[at++] = t;
    }
    return mdp_ok();
}

void mdp_probe_clear(mdp_probe *probe) {
    for (int64_t l = 0; probe->inputs && l < probe->n_layer; l++) mdp_free(probe->inputs[l]);
    mdp_free(probe->inputs);
    mdp_free(probe->token);
    mdp_free(probe->rows);
}

int64_t mdp_probe_below(const mdp_probe *probe, int64_t token) {
    int64_t low = 0, high = probe->n;
    while (low < high) {
        int64_t middle = low + (high - low) / 2;
        if (probe->token[middle] < token)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

mdp_status mdp_probe_begin_batch(mdp_probe *probe, const mdp_local_batch *batch) {
    probe->first = mdp_probe_below(probe, batch->first_token);
    probe->n_own = mdp_probe_below(probe, batch->first_token + batch->n_token) - probe->first;
    mdp_free(probe->rows);
    probe->rows = NULL;
    return MDP_ALLOC(&probe->rows, probe->n_own * probe->model->d_model, "inputs of the probe");
}

void mdp_probe_see(const mdp_probe *probe, int64_t token, const float *x) {
    int64_t at = mdp_probe_below(probe, token), d = probe->model->d_model;
    if (at < probe->n && probe->token[at] == token)
        memcpy(probe->rows + (at - probe->first) * d, x, (size_t)d * sizeof *x);
}

mdp_status mdp_probe_make_room(mdp_probe *probe, int64_t layer_index) {
    if (probe->inputs[layer_index]) return mdp_ok();
    return MDP_ALLOC(&probe->inputs[layer_index], probe->n * probe->model->d_model, "inputs of the probe");
}

/* Ranks have packs in token order, so what they send one after another is. */
mdp_status mdp_probe_gather_all(const mdp_comm *comm, mdp_probe *probe, int64_t layer_index, int keeper,
                                int64_t token) {
    int64_t row = probe->model->d_model * (int64_t)sizeof(float), n_got = 0, first = mdp_probe_below(probe, token);
    void *got = NULL;
    MDP_TRY(mdp_gather_bytes_all(comm, probe->rows, probe->n_own * row, keeper, &got, &n_got));
    mdp_status status = mdp_ok();
    if (comm->rank == keeper) {
        status = mdp_probe_make_room(probe, layer_index);
        if (status.code == MDP_OK && first * row + n_got > probe->n * row)
            status = MDP_ERROR(MDP_INTERNAL, "the probe has more rows than tokens.");
        if (status.code == MDP_OK) memcpy(probe->inputs[layer_index] + first * (row / 4), got, (size_t)n_got);
    }
    mdp_free(got);
    return mdp_agree_all(comm, status);
}

/* ---- a layer ------------------------------------------------------------------------------------------------- */

/* Everything about one layer on this rank. */
typedef struct probe_layer {
    const mdp_comm *comm;
    const mdp_probe *probe;
    const mdp_moe *moe;
    int64_t layer, n, d, n_own; /* n_own: experts of this rank */
    float *x;                   /* [n, d] */
    bool keeps_y;               /* else an expert's outputs take the place of those of the one before */
    float *y;                   /* [n_own, n, d] outputs of expert (rank + i * ranks) */
    float *long_rows;           /* [n_own, longest] vectors to be multiplied, where they are not y */
    int64_t flop;
    mdp_profile *profile;
} probe_layer;

static mdp_status check_outputs(const probe_layer *p, mdp_expert_t e, float *y) {
    if (mdp_all_finite(y, p->n * p->d)) return mdp_ok();
    if (!p->probe->allow_nonfinite)
        return MDP_ERROR(MDP_BAD_INPUT,
                         "layer %lld, expert %d: its output for a token of the probe holds a NaN or an infinity; the "
                         "checkpoint is damaged, or values are too large for f32 (--allow-nonfinite counts them as 0).",
                         (long long)p->layer, (int)e);
    for (int64_t i = 0; i < p->n * p->d; i++)
        if (!isfinite(y[i])) y[i] = 0.0F;
    return mdp_ok();
}

/* Add the columns of y, tile by tile. */
static mdp_status add_means(const probe_layer *p, mdp_expert_t e, const float *y, mdp_short_sum *sum) {
    double *column = NULL;
    mdp_status status = MDP_ALLOC(&column, p->d, "sums of expert outputs");
    for (int64_t row = 0; row < p->n && status.code == MDP_OK; row += MDP_TILE_ROWS) {
        memset(column, 0, (size_t)p->d * sizeof *column);
        mdp_add_rows(y + row * p->d, p->d, p->n - row < MDP_TILE_ROWS ? p->n - row : MDP_TILE_ROWS, p->d, column);
        for (int64_t j = 0; j < p->d && status.code == MDP_OK; j++)
            if (!mdp_short_add(&sum[e * p->d + j], column[j]))
                status = MDP_ERROR(MDP_BAD_INPUT, "layer %lld, expert %d: the sum of its outputs over the probe is %g.",
                                   (long long)p->layer, (int)e, column[j]);
    }
    mdp_free(column);
    return status;
}

/* Outputs of this rank's experts. */
static mdp_status run_experts(probe_layer *p, mdp_probe_bench *bench, mdp_short_sum *sum) {
    for (int64_t i = 0; i < p->n_own; i++) {
        mdp_expert_t e = mdp_across_expert(p->comm->rank, p->comm->size, i);
        const mdp_expert *expert = &p->moe->experts[e];
        float *y = p->y + (p->keeps_y ? i : 0) * p->n * p->d;
        MDP_TRY(mdp_probe_expert(bench, expert, y));
        p->flop += 6 * p->n * p->d * expert->gate.n_row;
        MDP_TRY(check_outputs(p, e, y));
        if (sum) MDP_TRY(add_means(p, e, y, sum));
    }
    return mdp_ok();
}

static mdp_status compute_outputs(probe_layer *p, mdp_short_sum *sum) {
    mdp_probe_bench bench = {.reader = p->probe->reader,
                             .gemm = p->probe->gemm,
                             .n_thread = p->probe->n_thread,
                             .activation = p->moe->activation,
                             .n = p->n,
                             .d_model = p->d,
                             .d_ff = p->moe->d_ff,
                             .x = p->x};
    mdp_status status = mdp_probe_bench_take(&bench, p->moe);
    if (status.code == MDP_OK) status = run_experts(p, &bench, sum);
    mdp_probe_bench_clear(&bench);
    return status;
}

/* ---- vectors to be multiplied -------------------------------------------------------------------------------- */

/* Each makes the kernels of whole experts. */
static int threads_for(const probe_layer *p) {
    return p->n_own < p->probe->n_thread ? (int)p->n_own : p->probe->n_thread;
}

static mdp_status fill_kernels(probe_layer *p, mdp_kernel_kind kind) {
    mdp_status failed = mdp_ok();
    int64_t length = mdp_kernel_values(p->n);
    if (p->n_own == 0) return failed;
#pragma omp parallel num_threads(threads_for(p))
    {
        double *scratch = NULL;
        mdp_status status = MDP_ALLOC(&scratch, mdp_kernel_scratch(p->n), "a kernel of the probe");
#pragma omp for schedule(dynamic, 1)
        for (int64_t i = 0; i < p->n_own; i++)
            if (status.code == MDP_OK)
                mdp_kernel_fill(kind, p->y + i * p->n * p->d, p->n, p->d, scratch, p->long_rows + i * length);
        mdp_free(scratch);
        if (status.code != MDP_OK) {
#pragma omp critical(mdp_probe)
            failed = status;
        }
    }
    p->flop += p->n_own * p->n * (p->n + 1) * p->d;
    return failed;
}

/* Every output divided by its norm; 0 stays 0. */
static void normalise_outputs(const probe_layer *p) {
#pragma omp parallel for schedule(static) num_threads(p->probe->n_thread)
    for (int64_t row = 0; row < p->n_own * p->n; row++) {
        float *y = p->y + row * p->d;
        double norm = sqrt(mdp_sum_squares(y, p->d));
        for (int64_t j = 0; j < p->d; j++) y[j] = norm > 0.0 ? (float)((double)y[j] / norm) : 0.0F;
    }
}

/* Kernels first, since cosines change y. */
static mdp_status multiply_with_all(probe_layer *p, mdp_across *across, unsigned wanted,
                                    mdp_short_sum *const *vectors) {
    static const mdp_vector_id kernel[] = {
        [MDP_KERNEL_LINEAR] = MDP_CKA_LINEAR_PRODUCT, [MDP_KERNEL_RBF] = MDP_CKA_RBF_PRODUCT};
    MDP_TRY(mdp_across_begin_all(across));
    for (int kind = MDP_KERNEL_LINEAR; kind <= MDP_KERNEL_RBF; kind++) {
        mdp_vector_id id = kernel[kind];
        if (!(wanted >> id & 1)) continue;
        MDP_AGREE(p->comm, fill_kernels(p, (mdp_kernel_kind)kind));
        MDP_TRY(mdp_across_multiply_all(across, p->long_rows, mdp_kernel_values(p->n), "kernels", vectors[id]));
    }
    if (!(wanted >> MDP_PROBE_COSINE_SUM & 1)) return mdp_ok();
    normalise_outputs(p);
    return mdp_across_multiply_all(across, p->y, p->n * p->d, "outputs", vectors[MDP_PROBE_COSINE_SUM]);
}

static mdp_status multiply_all(probe_layer *p, unsigned wanted, mdp_short_sum *const *vectors) {
    mdp_across across = {.comm = p->comm,
                         .n_expert = p->moe->n_expert,
                         .n_thread = p->probe->n_thread,
                         .layer = p->layer,
                         .profile = p->profile};
    mdp_status status = multiply_with_all(p, &across, wanted, vectors);
    p->flop += across.flop;
    mdp_across_clear(&across);
    return status;
}

/* ---- the run ------------------------------------------------------------------------------------------------- */

static mdp_status take_room(probe_layer *p, unsigned wanted) {
    bool kernels = wanted >> MDP_CKA_LINEAR_PRODUCT & 1 || wanted >> MDP_CKA_RBF_PRODUCT & 1;
    int64_t length = kernels ? mdp_kernel_values(p->n) : 0;
    p->keeps_y = kernels || wanted >> MDP_PROBE_COSINE_SUM & 1;
    MDP_TRY(MDP_ALLOC(&p->y, (p->keeps_y ? p->n_own : 1) * p->n * p->d, "outputs of the probe"));
    return MDP_ALLOC(&p->long_rows, p->n_own * length, "kernels of the probe");
}

static mdp_status run_layer_all(probe_layer *p, int keeper, unsigned wanted, mdp_short_sum *const *vectors) {
    bool means = wanted >> MDP_PROBE_OUTPUT_SUM & 1;
    mdp_status status = mdp_agree_all(p->comm, take_room(p, wanted));
    if (status.code == MDP_OK) status = mdp_bcast_all(p->comm, p->x, p->n * p->d * (int64_t)sizeof(float), keeper);
    if (status.code == MDP_OK)
        status = mdp_agree_all(p->comm, compute_outputs(p, means ? vectors[MDP_PROBE_OUTPUT_SUM] : NULL));
    if (status.code == MDP_OK && p->keeps_y) status = multiply_all(p, wanted, vectors);
    mdp_free(p->long_rows);
    mdp_free(p->y);
    return status;
}

mdp_status mdp_probe_run_all(const mdp_comm *comm, mdp_probe *probe, int64_t layer, int64_t layer_index, int keeper,
                             unsigned wanted, mdp_short_sum *const *vectors, mdp_profile *profile) {
    probe_layer p = {.comm = comm,
                     .probe = probe,
                     .moe = &probe->model->layers[layer].moe,
                     .layer = layer,
                     .n = probe->n,
                     .d = probe->model->d_model,
                     .profile = profile};
    p.n_own = mdp_across_count(p.moe->n_expert, comm->rank, comm->size);
    MDP_AGREE(comm, mdp_probe_make_room(probe, layer_index));
    p.x = probe->inputs[layer_index];
    mdp_status status = run_layer_all(&p, keeper, wanted, vectors);
    mdp_profile_flop(profile, p.flop);
    mdp_free(probe->inputs[layer_index]);
    probe->inputs[layer_index] = NULL;
    return status;
}
