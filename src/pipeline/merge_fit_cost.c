/* merge_fit_cost.c - what fitting the down projections of merged experts takes beside the pass, from headers alone:
 * tokens choose at random. */
#include "pipeline/merge_fit.h"

#include <math.h>

/* Tokens that choose any of n members. */
static int64_t count_rows(const mdp_tokens *tokens, const mdp_moe *moe, int32_t n) {
    double missed = pow(1.0 - (double)n / moe->n_expert, moe->top_k);
    return (int64_t)((double)tokens->n_token * (1.0 - missed)) + 1;
}

static int64_t matrix_bytes(const mdp_expert *expert) {
    return mdp_matrix_bytes(&expert->gate) + mdp_matrix_bytes(&expert->up) + mdp_matrix_bytes(&expert->down);
}

static mdp_status add_expert(const mdp_comm *layout, const mdp_model *model, const mdp_tokens *tokens,
                             const mdp_plan_layer *planned, const mdp_plan_expert *expert, int n_thread,
                             mdp_merge_cost *out) {
    const mdp_moe *moe = &model->layers[planned->layer].moe;
    const mdp_expert *first = &moe->experts[expert->from[0]];
    int64_t n_row = count_rows(tokens, moe, expert->n_from), d = model->d_model, sums = 0, most = 0;
    mdp_refit_system system;
    MDP_TRY(mdp_merge_fit_system(layout->size, n_thread, model, planned->layer, tokens, n_row, &system));
    for (int r = 0; r < layout->size; r++) {
        int64_t own = mdp_product_cost_of(system.layout, r).flop;
        sums += own;
        most = mdp_larger(most, own);
    }
    mdp_product_layout_destroy(system.layout);
    double n = (double)system.order, factor = n * n * n / 3.0;
    int64_t computed = 6 * d * first->gate.n_row * n_row * (expert->n_from + 1), bytes = matrix_bytes(first),
            solve = (int64_t)(4.0 * n * n * (double)d);
    for (int32_t j = 0; j < expert->n_from; j++) bytes += matrix_bytes(&moe->experts[expert->from[j]]);
    out->flop += computed + sums + (int64_t)factor + solve;
    out->flop_most += computed / layout->size + most + (int64_t)factor + solve / layout->size;
    out->bytes_read += bytes;
    out->bytes_read_most += mdp_divide_up(bytes, layout->size);
    out->memory = mdp_larger(out->memory, system.n_byte);
    return mdp_ok();
}

mdp_status mdp_merge_fit_cost_of(const mdp_comm *layout, const mdp_model *model, const mdp_tokens *tokens,
                                 const mdp_plan *plan, int n_thread, mdp_merge_cost *out) {
    *out = (mdp_merge_cost){0};
    for (int64_t i = 0; i < plan->n_layer; i++)
        for (int32_t j = 0; j < plan->layers[i].n_kept; j++)
            if (plan->layers[i].kept[j].fitted)
                MDP_TRY(add_expert(layout, model, tokens, &plan->layers[i], &plan->layers[i].kept[j], n_thread, out));
    return mdp_ok();
}

int64_t mdp_merge_fit_token_memory(const mdp_comm *layout, const mdp_model *model, const mdp_tokens *tokens) {
    int64_t n_local = tokens->n_token / layout->size + MDP_PACK_TOKENS;
    return n_local * (model->d_model * (int64_t)sizeof(float) +
                      MDP_MERGE_SLOTS * (int64_t)(sizeof(mdp_expert_t) + sizeof(float)));
}
