/* statistics.c - the table of what is summed, the life of statistics, and sums over categories. */
#include "observe/stats_file.h"

#include <string.h>

const mdp_statistic mdp_statistics[MDP_N_STATISTIC] = {
    [MDP_GATE_SUM] = {.name = "gate_sum",
                      .meaning = "sum over the routed tokens of the applied weight g",
                      .unit = "1",
                      .source = "SEER-MoE, arXiv 2404.05089"},
    [MDP_NORM_SUM] = {.name = "norm_sum",
                      .meaning = "sum over the routed tokens of norm2(y), y the expert's unweighted output",
                      .unit = "norm of the hidden state",
                      .source = "MC-Suite, arXiv 2504.05586"},
    [MDP_GATE_NORM_SUM] = {.name = "gate_norm_sum",
                           .meaning = "sum over the routed tokens of g * norm2(y)",
                           .unit = "norm of the hidden state",
                           .source = "REAP, arXiv 2510.13999"},
    [MDP_NORM2_SUM] = {.name = "norm2_sum",
                       .meaning = "sum over the routed tokens of norm2(y)^2",
                       .unit = "squared norm of the hidden state",
                       .source = "arXiv 2606.15716"},
    [MDP_TURN_SUM] = {.name = "turn_sum",
                      .meaning = "sum over the routed tokens of g * norm2(y) * (1 - cos(x, y)), x the block's input",
                      .unit = "norm of the hidden state",
                      .source = "TENP, arXiv 2606.09885"},
    [MDP_SHIFT_SUM] = {.name = "shift_sum",
                       .meaning = "sum over the routed tokens of g * norm2(y) * max(1 - cos(u, u + r), 0), u the "
                                  "residual stream before the block, r what the experts add to it",
                       .unit = "norm of the hidden state",
                       .source = "EASY-EP"},
    [MDP_ROUTED_P_SUM] = {.name = "routed_p_sum",
                          .meaning = "sum over the routed tokens of p, the router's probability over all experts",
                          .unit = "1",
                          .source = "SEER-MoE, arXiv 2404.05089"},
    [MDP_ALL_P_SUM] = {.name = "all_p_sum",
                       .meaning = "sum over all tokens of p, the router's probability over all experts",
                       .unit = "1",
                       .source = "SEER-MoE, arXiv 2404.05089",
                       .all_tokens = true},
    [MDP_MAX_ABS] = {.name = "max_abs",
                     .meaning = "largest abs(y) over the routed tokens and channels",
                     .unit = "value of the hidden state",
                     .source = "super experts, arXiv 2507.23279",
                     .merge = MDP_MERGE_MAX},
};

/* ---- life ---------------------------------------------------------------------------------------------------- */

mdp_status mdp_layer_stats_allocate(mdp_layer_stats *layer, int n_category) {
    int64_t n = (int64_t)n_category * layer->n_expert;
    MDP_TRY(MDP_ALLOC(&layer->counts, n, "statistics"));
    MDP_TRY(MDP_ALLOC(&layer->sums, n * MDP_N_SUM, "statistics"));
    return MDP_ALLOC(&layer->maxima, n * MDP_N_MAX, "statistics");
}

static mdp_status fill_new(const mdp_model *model, const mdp_tokens *tokens, const mdp_similarity_request *request,
                           mdp_stats *stats) {
    stats->similarity = *request;
    stats->n_probe = (double)(request->probe_tokens < tokens->n_token ? request->probe_tokens : tokens->n_token);
    memcpy(stats->model_fingerprint, model->catalogue->fingerprint, sizeof stats->model_fingerprint);
    memcpy(stats->tokens_fingerprint, tokens->fingerprint, sizeof stats->tokens_fingerprint);
    memcpy(stats->model_type, model->model_type, sizeof stats->model_type);
    stats->d_model = model->d_model;
    stats->n_token = tokens->n_token;
    stats->n_category = tokens->n_category;
    MDP_TRY(MDP_ALLOC(&stats->category, tokens->n_category, "categories"));
    MDP_TRY(MDP_ALLOC(&stats->category_token, tokens->n_category, "categories"));
    for (int c = 0; c < tokens->n_category; c++) {
        MDP_TRY(mdp_copy_text(&stats->category[c], tokens->category[c]));
        stats->category_token[c] = tokens->category_offset[c + 1] - tokens->category_offset[c];
    }
    MDP_TRY(MDP_ALLOC(&stats->layers, model->n_layer, "statistics"));
    for (int64_t l = 0; l < model->n_layer; l++) {
        if (!model->layers[l].is_moe) continue;
        mdp_layer_stats *layer = &stats->layers[stats->n_layer++];
        layer->layer = l;
        layer->n_expert = model->layers[l].moe.n_expert;
        layer->top_k = model->layers[l].moe.top_k;
        layer->n_group = model->layers[l].moe.rule.n_group;
        layer->n_open = model->layers[l].moe.rule.n_open;
        if (request->norms != MDP_NORMS_NONE || request->neurons) layer->d_ff = model->layers[l].moe.d_ff;
        MDP_TRY(mdp_layer_stats_allocate(layer, stats->n_category));
    }
    return mdp_ok();
}

mdp_status mdp_stats_new(const mdp_model *model, const mdp_tokens *tokens, const mdp_similarity_request *request,
                         mdp_stats **out) {
    mdp_stats *stats = NULL;
    *out = NULL;
    MDP_TRY(MDP_ALLOC(&stats, 1, "statistics"));
    mdp_status status = fill_new(model, tokens, request, stats);
    if (status.code != MDP_OK) {
        mdp_stats_destroy(stats);
        return status;
    }
    *out = stats;
    return mdp_ok();
}

void mdp_stats_destroy(mdp_stats *stats) {
    if (!stats) return;
    for (int64_t l = 0; stats->layers && l < stats->n_layer; l++) {
        mdp_free(stats->layers[l].counts);
        mdp_free(stats->layers[l].sums);
        mdp_free(stats->layers[l].maxima);
        for (int id = 0; id < MDP_N_VECTOR; id++) mdp_free(stats->layers[l].vectors[id]);
        for (int id = 0; id < MDP_N_SIMILARITY; id++) mdp_free(stats->layers[l].similarity[id]);
        for (int i = 0; i < stats->layers[l].n_subsets; i++) mdp_subsets_clear(&stats->layers[l].subsets[i]);
        mdp_free(stats->layers[l].subsets);
    }
    for (int c = 0; stats->category && c < stats->n_category; c++) mdp_free(stats->category[c]);
    mdp_free(stats->subsets);
    mdp_free(stats->layers);
    mdp_free(stats->category);
    mdp_free(stats->category_token);
    mdp_free(stats->category_weight);
    mdp_free(stats->parts);
    mdp_free(stats);
}

/* ---- sizes --------------------------------------------------------------------------------------------------- */

/* Experts of all layers, of the largest layer, and layers that have any. */
static void count_experts(const mdp_model *model, int64_t *n_expert, int64_t *largest, int64_t *n_layer) {
    *n_expert = *largest = *n_layer = 0;
    for (int64_t l = 0; l < model->n_layer; l++) {
        if (!model->layers[l].is_moe) continue;
        int64_t n = model->layers[l].moe.n_expert;
        *n_expert += n;
        *largest = n > *largest ? n : *largest;
        (*n_layer)++;
    }
}

#define SCALAR_BYTES (8 + MDP_N_SUM * (int64_t)sizeof(mdp_exact) + 8 * MDP_N_MAX) /* of an expert and category */

/* Sums of the vectors of a layer of the model. */
static int64_t count_vectors(const mdp_similarity_request *request, const mdp_model *model, const mdp_moe *moe) {
    unsigned vectors = mdp_similarity_vectors(request);
    int64_t n = 0;
    for (int id = 0; id < MDP_N_VECTOR; id++)
        if (vectors >> id & 1)
            n += moe->n_expert * mdp_vector_width((mdp_vector_id)id, moe->n_expert, model->d_model, moe->d_ff);
    return n;
}

static int64_t most_vectors(const mdp_similarity_request *request, const mdp_model *model) {
    int64_t most = 0;
    for (int64_t l = 0; l < model->n_layer; l++)
        if (model->layers[l].is_moe) most = mdp_larger(most, count_vectors(request, model, &model->layers[l].moe));
    return most;
}

int64_t mdp_stats_memory(const mdp_model *model, int n_category, int n_rank, const mdp_similarity_request *request) {
    int64_t n_expert, largest, n_layer;
    count_experts(model, &n_expert, &largest, &n_layer);
    int64_t kept = 1 + (n_layer + n_rank - 1) / n_rank; /* layers whose vectors a rank has, one of them in the making */
    return n_expert * n_category * SCALAR_BYTES + kept * most_vectors(request, model) * (int64_t)sizeof(mdp_short_sum);
}

int64_t mdp_stats_file_bytes(const mdp_model *model, int n_category, const mdp_similarity_request *request) {
    int64_t n_expert, largest, n_layer, n_byte;
    count_experts(model, &n_expert, &largest, &n_layer);
    n_byte = n_expert * n_category * (SCALAR_BYTES + 8 * MDP_N_SUM) + n_layer * 20000;
    for (int64_t l = 0; l < model->n_layer; l++) {
        if (!model->layers[l].is_moe) continue;
        int64_t n = model->layers[l].moe.n_expert;
        n_byte += count_vectors(request, model, &model->layers[l].moe) * ((int64_t)sizeof(mdp_short_sum) + 8);
        n_byte += __builtin_popcount(request->wanted) * (8 * n * n + 1000);
    }
    return n_byte;
}

/* ---- over categories ----------------------------------------------------------------------------------------- */

double mdp_stats_sum(const mdp_stats *stats, int64_t layer_index, mdp_statistic_id id, mdp_expert_t expert,
                     const double *weight) {
    const mdp_layer_stats *layer = &stats->layers[layer_index];
    const double *factor = weight ? weight : stats->category_weight;
    mdp_exact all = {{0}};
    double weighted = 0.0;
    for (int c = 0; c < stats->n_category; c++) {
        const mdp_exact *sum = &layer->sums[((int64_t)id * stats->n_category + c) * layer->n_expert + expert];
        if (factor) {
            weighted += factor[c] * mdp_exact_value(sum);
            continue;
        }
        for (int i = 0; i < MDP_LIMBS; i++) all.limb[i] += sum->limb[i];
    }
    return factor ? weighted : mdp_exact_value(&all);
}

double mdp_stats_count(const mdp_stats *stats, int64_t layer_index, mdp_expert_t expert, const double *weight) {
    const mdp_layer_stats *layer = &stats->layers[layer_index];
    const double *factor = weight ? weight : stats->category_weight;
    double weighted = 0.0;
    int64_t all = 0;
    for (int c = 0; c < stats->n_category; c++) {
        int64_t n = layer->counts[(int64_t)c * layer->n_expert + expert];
        all += n;
        if (factor) weighted += factor[c] * (double)n;
    }
    return factor ? weighted : (double)all;
}

double mdp_stats_max(const mdp_stats *stats, int64_t layer_index, mdp_statistic_id id, mdp_expert_t expert,
                     const double *weight) {
    const mdp_layer_stats *layer = &stats->layers[layer_index];
    double largest = 0.0;
    for (int c = 0; c < stats->n_category; c++) {
        double value = layer->maxima[((int64_t)(id - MDP_N_SUM) * stats->n_category + c) * layer->n_expert + expert];
        if ((!weight || weight[c] > 0.0) && value > largest) largest = value;
    }
    return largest;
}
