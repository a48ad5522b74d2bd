/* merge_dern.c - experts that take in neurons of dropped ones (after DERN, arXiv 2509.10377): who goes where, and what
 * the neurons of an expert become.
 *
 * A neuron of a dropped expert goes to the kept expert that holds the neuron of largest cosine on [up; down], if that
 * is above alpha; pairs of experts are dealt to ranks, and the best of all is found by the largest number. Then the
 * neurons of each expert that takes some in, its own and theirs as [gate; up; down], become as many as it had, by
 * k-means on the sphere (merge_pool.c). Products have fixed shapes, so nothing depends on ranks or threads. */
#include "pipeline/merge_dern.h"

#include <math.h>
#include <string.h>

#define GRID 536870912.0 /* cosines are numbers of 1 / GRID from -2 on: of equal ones the lower neuron counts */

bool mdp_merge_takes_in(const mdp_plan_layer *planned) {
    for (int32_t i = 0; i < planned->n_kept; i++)
        if (planned->kept[i].takes_in) return true;
    return false;
}

/* ---- neurons ---------------------------------------------------------------------------------------------------- */

/* [up; down] of an expert's neurons, [f, 2 d], each of length 1 (or 0). */
static mdp_status load_units(const mdp_merge_run *run, mdp_expert_t e, float *out) {
    const mdp_expert *expert = &run->moe->experts[e];
    int64_t d = run->model->d_model;
    MDP_TRY(mdp_matrix_read_lines(run->reader, &expert->up, false, 2 * d, out));
    MDP_TRY(mdp_matrix_read_lines(run->reader, &expert->down, true, 2 * d, out + d));
    for (int64_t j = 0; j < expert->gate.n_row; j++) mdp_merge_scale(out + j * 2 * d, 2 * d);
    return mdp_ok();
}

double mdp_merge_scale(float *values, int64_t n) {
    double length = sqrt(mdp_sum_squares(values, n));
    for (int64_t i = 0; i < n && length > 0.0; i++) values[i] = (float)((double)values[i] / length);
    return length;
}

/* ---- pairs ------------------------------------------------------------------------------------------------------ */

/* Larger where the cosine is, then where the neuron's number is lower. */
static int64_t key_of(double cosine, int64_t place) {
    int64_t level = (int64_t)floor((cosine + 2.0) * GRID);
    return level << 32 | (int64_t)(UINT32_MAX - (uint32_t)place);
}

/* Raise the keys of the neurons of a dropped expert by those of a kept one, whose first is number `place`. */
static void raise_keys(const mdp_merge_run *run, int64_t f, const float *dropped, const float *kept, int64_t place,
                       double *tiles, int64_t *keys) {
    int64_t depth = 2 * run->model->d_model, n_tile = mdp_divide_up(f, MDP_DERN_TILE);
#pragma omp parallel for schedule(dynamic) num_threads(run->options->n_thread)
    for (int64_t t = 0; t < n_tile; t++) {
        double *tile = mdp_merge_tile_of(tiles);
        int64_t a = t * MDP_DERN_TILE, n = f - a < MDP_DERN_TILE ? f - a : MDP_DERN_TILE;
        for (int64_t b = 0; b < f; b += MDP_DERN_TILE) {
            int64_t k = f - b < MDP_DERN_TILE ? f - b : MDP_DERN_TILE;
            mdp_merge_multiply(run->options->gemm, dropped + a * depth, n, kept + b * depth, k, depth, tile);
            for (int64_t i = 0; i < n; i++) {
                for (int64_t j = 0; j < k; j++) {
                    int64_t key = key_of(tile[i * MDP_DERN_TILE + j], place + b + j);
                    if (key > keys[a + i]) keys[a + i] = key;
                }
            }
        }
    }
}

/* Do the experts lie in one block of the router, where it has several? */
static bool in_one_block(const mdp_moe *moe, mdp_expert_t a, mdp_expert_t b) {
    const mdp_router_rule *rule = &moe->rule;
    return rule->n_group <= 1 || a / rule->group_size == b / rule->group_size;
}

/* The pairs of one dropped expert that are this rank's. */
static mdp_status match_dropped(mdp_merge_run *run, int32_t i, int64_t *pair, float *units, double *tiles) {
    const mdp_plan_layer *planned = run->planned;
    const mdp_expert_t e = planned->dropped[i];
    int64_t f = run->moe->experts[e].gate.n_row, size = f * 2 * run->model->d_model;
    bool loaded = false;
    for (int32_t j = 0; j < planned->n_kept; j++) {
        mdp_expert_t kept = planned->kept[j].from[0];
        if (!planned->kept[j].takes_in || !in_one_block(run->moe, e, kept)) continue;
        if ((*pair)++ % run->comm->size != run->comm->rank) continue;
        if (run->moe->experts[kept].gate.n_row != f)
            return MDP_ERROR(MDP_BAD_INPUT,
                             "layer %lld: expert %d has %lld neurons, expert %d %lld; neurons go between experts of "
                             "the same width only.",
                             (long long)planned->layer, (int)e, (long long)f, (int)kept,
                             (long long)run->moe->experts[kept].gate.n_row);
        if (!loaded) MDP_TRY(load_units(run, e, units));
        loaded = true;
        MDP_TRY(load_units(run, kept, units + size));
        raise_keys(run, f, units, units + size, (int64_t)j * run->moe->d_ff, tiles, run->keys + i * run->moe->d_ff);
        mdp_profile_flop(run->profile, 4 * f * f * run->model->d_model);
    }
    return mdp_gemm_check(run->options->gemm);
}

static mdp_status match_own(mdp_merge_run *run) {
    float *units = NULL;
    double *tiles = NULL;
    int64_t pair = 0;
    mdp_status status = MDP_ALLOC(&units, 4 * run->moe->d_ff * run->model->d_model, "neurons");
    if (status.code == MDP_OK)
        status = MDP_ALLOC(&tiles, run->options->n_thread * MDP_DERN_TILE_VALUES, "products of neurons");
    for (int32_t i = 0; i < run->planned->n_dropped && status.code == MDP_OK; i++)
        status = match_dropped(run, i, &pair, units, tiles);
    mdp_free(units);
    mdp_free(tiles);
    return status;
}

mdp_status mdp_merge_match_all(mdp_merge_run *run) {
    int64_t n = run->planned->n_dropped * run->moe->d_ff;
    if (!mdp_merge_takes_in(run->planned) || n == 0) return mdp_ok();
    MDP_AGREE(run->comm, MDP_ALLOC(&run->keys, n, "where neurons go"));
    MDP_AGREE(run->comm, match_own(run));
    return mdp_max_i64_all(run->comm, run->keys, n);
}

bool mdp_merge_goes_to(const mdp_merge_run *run, int32_t dropped, int64_t neuron, int32_t kept) {
    int64_t key = run->keys[dropped * run->moe->d_ff + neuron];
    int64_t place = (int64_t)(UINT32_MAX - (uint32_t)(key & UINT32_MAX));
    return key > 0 && place / run->moe->d_ff == kept &&
           (double)(key >> 32) / GRID - 2.0 > run->planned->kept[kept].alpha;
}

/* ---- products --------------------------------------------------------------------------------------------------- */

void mdp_merge_multiply(mdp_gemm *gemm, const float *left, int64_t n, const float *right, int64_t k, int64_t depth,
                        double *tile) {
    float *product = (float *)(void *)(tile + (int64_t)MDP_DERN_TILE * MDP_DERN_TILE);
    for (int64_t i = 0; i < n; i++) memset(tile + i * MDP_DERN_TILE, 0, (size_t)k * sizeof *tile);
    for (int64_t c = 0; c < depth; c += MDP_DERN_DEPTH) {
        int64_t own = depth - c < MDP_DERN_DEPTH ? depth - c : MDP_DERN_DEPTH;
        mdp_gemm_nt(gemm, (int)n, (int)k, (int)own, left + c, (int)depth, right + c, (int)depth, product,
                    MDP_DERN_TILE);
        for (int64_t i = 0; i < n; i++)
            for (int64_t j = 0; j < k; j++) tile[i * MDP_DERN_TILE + j] += (double)product[i * MDP_DERN_TILE + j];
    }
}
