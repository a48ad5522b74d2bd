/* collect.c - from tiles to sums.
 *
 * In: tiles, while they are in cache. A tile's contribution to a (statistic, category, expert) is one f64 partial,
 * added over its rows in row order, then rounded once to the grid of the exact sums; limbs are integers, so neither the
 * order of tiles nor the thread or rank that had them can show in the result. */
#include "mdp/observe.h"

#include <math.h>
#include <string.h>

mdp_status mdp_stats_new(const mdp_model *model, const mdp_tokens *tokens, mdp_stats **out) {
    mdp_stats *stats = NULL;
    mdp_status status;
    *out = NULL;
    MDP_TRY(MDP_ALLOC(&stats, 1, "statistics"));
    memcpy(stats->model_fingerprint, model->catalogue->fingerprint, sizeof stats->model_fingerprint);
    memcpy(stats->tokens_fingerprint, tokens->fingerprint, sizeof stats->tokens_fingerprint);
    memcpy(stats->model_type, model->model_type, sizeof stats->model_type);
    stats->n_token = tokens->n_token;
    stats->n_category = tokens->n_category;
    MDP_TRY_GOTO(status, fail, MDP_ALLOC(&stats->category, tokens->n_category, "categories"));
    MDP_TRY_GOTO(status, fail, MDP_ALLOC(&stats->category_token, tokens->n_category, "categories"));
    for (int c = 0; c < tokens->n_category; c++) {
        MDP_TRY_GOTO(status, fail, mdp_copy_text(&stats->category[c], tokens->category[c]));
        stats->category_token[c] = tokens->category_offset[c + 1] - tokens->category_offset[c];
    }
    MDP_TRY_GOTO(status, fail, MDP_ALLOC(&stats->layers, model->n_layer, "statistics"));
    for (int64_t l = 0; l < model->n_layer; l++) {
        if (!model->layers[l].is_moe) continue;
        mdp_layer_stats *layer = &stats->layers[stats->n_layer++];
        layer->layer = l;
        layer->n_expert = model->layers[l].moe.n_expert;
        layer->top_k = model->layers[l].moe.top_k;
        int64_t n = (int64_t)stats->n_category * layer->n_expert;
        MDP_TRY_GOTO(status, fail, MDP_ALLOC(&layer->counts, n, "statistics"));
        MDP_TRY_GOTO(status, fail, MDP_ALLOC(&layer->sums, n * MDP_N_STATISTIC, "statistics"));
    }
    *out = stats;
    return mdp_ok();
fail:
    mdp_stats_destroy(stats);
    return status;
}

static mdp_layer_stats *layer_of(const mdp_stats *stats, int64_t layer) {
    for (int64_t l = 0; l < stats->n_layer; l++) {
        if (stats->layers[l].layer == layer) return &stats->layers[l];
    }
    return NULL;
}

/* Add one partial to a shared sum, limb by limb. */
static bool add_shared(mdp_exact *shared, double partial) {
    mdp_exact own = {{0}};
    if (!mdp_exact_add(&own, partial)) return false;
    for (int i = 0; i < MDP_LIMBS; i++) {
        if (own.limb[i] != 0) __atomic_fetch_add(&shared->limb[i], own.limb[i], __ATOMIC_RELAXED);
    }
    return true;
}

/* Add the partials of one category of the tile. */
static mdp_status add_category(const mdp_stats *stats, mdp_layer_stats *layer, const mdp_tile *tile, int32_t category,
                               int64_t count, const double partial[MDP_N_STATISTIC]) {
    int64_t at = (int64_t)category * layer->n_expert + tile->expert;
    int64_t step = (int64_t)stats->n_category * layer->n_expert;
    __atomic_fetch_add(&layer->counts[at], count, __ATOMIC_RELAXED);
    for (int id = 0; id < MDP_N_STATISTIC; id++) {
        if (add_shared(&layer->sums[id * step + at], partial[id])) continue;
        return MDP_ERROR(
            MDP_BAD_INPUT,
            "layer %lld, expert %d: %s over tokens of '%s' is %g; weights or activations are not finite, or "
            "far too large",
            (long long)tile->layer, tile->expert, mdp_statistics[id].name, stats->category[category], partial[id]);
    }
    return mdp_ok();
}

mdp_status mdp_stats_observe(void *context, const mdp_tile *tile) {
    const mdp_stats *stats = context;
    mdp_layer_stats *layer = layer_of(stats, tile->layer);
    /* rows of one category are adjacent, because tokens are in category order */
    for (int32_t first = 0; first < tile->n_row;) {
        double partial[MDP_N_STATISTIC] = {0};
        int32_t end = first;
        for (; end < tile->n_row && tile->category[end] == tile->category[first]; end++) {
            double gate = (double)tile->gate[end];
            double norm = sqrt(mdp_sum_squares(tile->y + end * tile->d_model, tile->d_model));
            partial[MDP_GATE_SUM] += gate;
            partial[MDP_NORM_SUM] += norm;
            partial[MDP_GATE_NORM_SUM] += gate * norm;
        }
        MDP_TRY(add_category(stats, layer, tile, tile->category[first], end - first, partial));
        first = end;
    }
    return mdp_ok();
}

/* Bring a layer's complete sums to normal form; a sum beyond the grid is named. */
static mdp_status normalise_layer(const mdp_stats *stats, mdp_layer_stats *layer) {
    int64_t n = (int64_t)stats->n_category * layer->n_expert;
    for (int64_t i = 0; i < n * MDP_N_STATISTIC; i++) {
        if (!mdp_exact_fits(&layer->sums[i])) {
            return MDP_ERROR(MDP_BAD_INPUT,
                             "layer %lld, expert %lld: %s over tokens of '%s' exceeds 2^159; activations are "
                             "far too large",
                             (long long)layer->layer, (long long)(i % layer->n_expert), mdp_statistics[i / n].name,
                             stats->category[i % n / layer->n_expert]);
        }
        mdp_exact_normalise(&layer->sums[i]);
    }
    return mdp_ok();
}

mdp_status mdp_stats_reduce_all(const mdp_comm *comm, mdp_stats *stats) {
    mdp_status status = mdp_ok();
    for (int64_t l = 0; l < stats->n_layer; l++) {
        mdp_layer_stats *layer = &stats->layers[l];
        int64_t n = (int64_t)stats->n_category * layer->n_expert;
        for (int64_t i = 0; i < n * MDP_N_STATISTIC; i++) mdp_exact_normalise(&layer->sums[i]);
        MDP_TRY(mdp_sum_i64_to_root_all(comm, layer->counts, n, 0));
        MDP_TRY(mdp_sum_i64_to_root_all(comm, &layer->sums[0].limb[0], n * MDP_N_STATISTIC * MDP_LIMBS, 0));
        if (comm->rank == 0 && status.code == MDP_OK) status = normalise_layer(stats, layer);
    }
    return mdp_agree_all(comm, status);
}
