/* similarity_cost.c - what similarities take of memory, operations and bytes, from headers alone. */
#include "observe/across.h"
#include "observe/aligned.h"
#include "observe/neurons.h"
#include "observe/probe_expert.h"
#include "observe/surrogate.h"

#define ARENA_BYTE ((int64_t)2 << 20) /* what a thread that allocates for itself leaves of its arena */

static bool wants(const mdp_similarity_request *request, mdp_vector_id id) {
    return mdp_similarity_vectors(request) >> id & 1;
}

static bool wants_kernels(const mdp_similarity_request *request) {
    return wants(request, MDP_CKA_LINEAR_PRODUCT) || wants(request, MDP_CKA_RBF_PRODUCT);
}

static int64_t probe_of(const mdp_similarity_request *request, int64_t n_token) {
    return request->probe_tokens < n_token ? request->probe_tokens : n_token;
}

/* ---- memory -------------------------------------------------------------------------------------------------- */

void mdp_similarity_enlarge(const mdp_model *model, const mdp_similarity_request *request, int64_t n_token, int n_rank,
                            mdp_pass *pass) {
    int64_t most = 0, n_layer = 0;
    for (int64_t l = 0; l < model->n_layer; l++) {
        if (!model->layers[l].is_moe) continue;
        most = mdp_larger(most, model->layers[l].moe.n_expert);
        n_layer++;
    }
    int64_t kept = (n_layer + n_rank - 1) / n_rank; /* layers whose inputs a rank has */
    pass->projected = request->neurons;
    pass->token_byte = wants(request, MDP_LOGIT_PRODUCT) ? most * (int64_t)sizeof(float) : 0;
    pass->batches_byte = kept * probe_of(request, n_token) * model->d_model * (int64_t)sizeof(float);
}

/* While the experts of a layer are run: inputs, outputs of a rank's experts, and what is made of them. */
static int64_t probe_bytes(const mdp_moe *moe, const mdp_similarity_request *request, int64_t n, int64_t d, int n_rank,
                           int n_thread) {
    int64_t n_own = (moe->n_expert + n_rank - 1) / n_rank, row = d * (int64_t)sizeof(float);
    int64_t bench = mdp_probe_bench_memory(n, d, moe->d_ff, n_thread), kernels = 0, scratch = 0;
    if (n == 0) return 0;
    if (wants_kernels(request)) {
        kernels = n_own * mdp_kernel_values(n) * (int64_t)sizeof(float);
        scratch = (n_own < n_thread ? n_own : n_thread) * mdp_kernel_scratch(n) * (int64_t)sizeof(double);
    }
    int64_t products = mdp_across_memory(moe->n_expert, n_own, n_thread);
    if (!wants_kernels(request) && !wants(request, MDP_PROBE_COSINE_SUM)) return 4 * n * row + bench;
    return 3 * n * row + n_own * n * row + kernels + mdp_larger(bench, scratch) + products + n_thread * ARENA_BYTE;
}

static int64_t weight_bytes(const mdp_moe *moe, const mdp_similarity_request *request, int n_thread) {
    int64_t gram = mdp_gram_memory(moe->n_expert, n_thread), panels = 0;
    if (request->wanted == 0) return 0;
    if (wants(request, MDP_WEIGHT_PRODUCT))
        panels = moe->n_expert * mdp_larger(MDP_COMPARE_PANEL, mdp_larger(moe->d_ff, moe->experts[0].gate.n_col)) *
                     (int64_t)sizeof(float) +
                 n_thread * (int64_t)MDP_COMPARE_PANEL * (int64_t)sizeof(float);
    return gram + panels;
}

int64_t mdp_similarity_memory(const mdp_model *model, const mdp_similarity_request *request, int64_t n_token,
                              int n_rank, int n_thread) {
    int64_t most = 0, n = probe_of(request, n_token);
    for (int64_t l = 0; l < model->n_layer; l++) {
        const mdp_moe *moe = &model->layers[l].moe;
        if (!model->layers[l].is_moe) continue;
        most = mdp_larger(most, weight_bytes(moe, request, n_thread));
        if (request->neurons) most = mdp_larger(most, mdp_neurons_memory(moe, n_thread));
        most = mdp_larger(most, probe_bytes(moe, request, n, model->d_model, n_rank, n_thread));
        if (wants(request, MDP_SURROGATE_PRODUCT))
            most = mdp_larger(most, mdp_surrogate_memory(moe, model->d_model, n_rank, n_thread));
        if (wants(request, MDP_ALIGNED_PRODUCT))
            most = mdp_larger(most, mdp_aligned_memory(moe, model->d_model, n_thread));
    }
    return most;
}

/* ---- what ranks do ------------------------------------------------------------------------------------------- */

static int64_t bytes_of(const mdp_expert *expert) {
    const mdp_matrix *matrices[] = {&expert->gate,      &expert->up,      &expert->down,
                                    &expert->gate_bias, &expert->up_bias, &expert->down_bias};
    int64_t n = 0;
    for (int i = 0; i < 6; i++) n += mdp_matrix_bytes(matrices[i]);
    return n;
}

static int64_t weights_of(const mdp_expert *expert) {
    return 3 * expert->gate.n_row * expert->gate.n_col;
}

/* Operations of inner products of n vectors of `length` values, of a share of them. */
static int64_t gram_flop(int64_t n, double length) {
    return (int64_t)(length * (double)n * (double)(n + 1));
}

/* A rank's experts on the probe. */
static void add_probe(const mdp_comm *layout, const mdp_moe *moe, const mdp_similarity_request *request, int64_t n,
                      int64_t d, int rank, mdp_rank_cost *out) {
    const mdp_vector_id kernel[] = {MDP_CKA_LINEAR_PRODUCT, MDP_CKA_RBF_PRODUCT};
    int64_t n_own = 0;
    for (int32_t e = rank; e < moe->n_expert; e += layout->size, n_own++) {
        out->flop += 2 * n * weights_of(&moe->experts[e]);
        out->bytes_read += bytes_of(&moe->experts[e]);
    }
    for (int k = 0; k < 2; k++) {
        if (!wants(request, kernel[k])) continue;
        out->flop += n_own * n * (n + 1) * d;
        out->flop += gram_flop(moe->n_expert, (double)mdp_kernel_values(n) / layout->size);
        mdp_across_send(layout, moe->n_expert, rank, mdp_kernel_values(n), out);
    }
    if (!wants(request, MDP_PROBE_COSINE_SUM)) return;
    out->flop += gram_flop(moe->n_expert, (double)n * (double)d / layout->size);
    mdp_across_send(layout, moe->n_expert, rank, n * d, out);
}

static void add_layer(const mdp_comm *layout, const mdp_moe *moe, const mdp_similarity_request *request,
                      int64_t n_token, int64_t d, int rank, mdp_rank_cost *out) {
    int64_t n = probe_of(request, n_token), n_expert = moe->n_expert;
    if (wants(request, MDP_LOGIT_PRODUCT)) out->flop += gram_flop(n_expert, (double)n_token / layout->size);
    if (wants(request, MDP_WEIGHT_PRODUCT)) {
        out->flop += gram_flop(n_expert, (double)weights_of(&moe->experts[0]) / layout->size);
        out->bytes_read += n_expert * bytes_of(&moe->experts[0]) / layout->size;
    }
    if (wants(request, MDP_SURROGATE_PRODUCT)) mdp_surrogate_cost(layout, moe, d, rank, out);
    if (wants(request, MDP_ALIGNED_PRODUCT)) mdp_aligned_cost(layout, moe, d, rank, out);
    for (int32_t e = rank; request->neurons && e < n_expert; e += layout->size)
        out->bytes_read += mdp_matrix_bytes(&moe->experts[e].down);
    if (n > 0) add_probe(layout, moe, request, n, d, rank, out);
}

void mdp_similarity_cost(const mdp_comm *layout, const mdp_model *model, const mdp_similarity_request *request,
                         int64_t n_token, mdp_rank_cost *ranks) {
    int64_t index = 0;
    for (int64_t l = 0; l < model->n_layer; l++) {
        const mdp_moe *moe = &model->layers[l].moe;
        if (!model->layers[l].is_moe) continue;
        for (int r = 0; r < layout->size; r++) add_layer(layout, moe, request, n_token, model->d_model, r, &ranks[r]);
        mdp_rank_cost *keeper = &ranks[index++ % layout->size];
        if (wants(request, MDP_ROUTER_PRODUCT)) {
            keeper->flop += gram_flop(moe->n_expert, (double)model->d_model);
            keeper->bytes_read += mdp_matrix_bytes(&moe->router);
        }
    }
}
