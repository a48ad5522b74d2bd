/* subset_tokens.c - what a token's owner keeps of a layer until the losses of sets are known: router logits, what was
 * chosen, and the products of all expert outputs with each other. */
#include "mdp/subsets.h"

#include <string.h>

static int64_t pairs_of(int64_t n_expert) {
    return n_expert * (n_expert + 1) / 2;
}

int64_t mdp_subset_token_bytes(int32_t n_expert, int32_t top_k) {
    return (pairs_of(n_expert) + n_expert) * (int64_t)sizeof(double) +
           top_k * (int64_t)(sizeof(mdp_expert_t) + sizeof(float));
}

mdp_status mdp_subset_tokens_take(mdp_subset_tokens *tokens) {
    int64_t n = tokens->n_token;
    mdp_subset_tokens_clear(tokens);
    MDP_TRY(MDP_ALLOC(&tokens->gram, n * pairs_of(tokens->n_expert), "products of expert outputs"));
    MDP_TRY(MDP_ALLOC(&tokens->logits, n * tokens->n_expert, "router logits of a batch"));
    MDP_TRY(MDP_ALLOC(&tokens->index, n * tokens->top_k, "routes of a batch"));
    return MDP_ALLOC(&tokens->weight, n * tokens->top_k, "routes of a batch");
}

void mdp_subset_tokens_clear(mdp_subset_tokens *tokens) {
    mdp_free(tokens->gram);
    mdp_free(tokens->logits);
    mdp_free(tokens->index);
    mdp_free(tokens->weight);
    tokens->gram = tokens->logits = NULL;
    tokens->index = NULL;
    tokens->weight = NULL;
}

void mdp_subset_tokens_route(const mdp_subset_tokens *tokens, const mdp_routed_token *token) {
    int64_t n = tokens->n_expert, k = tokens->top_k, at = token->local;
    memcpy(tokens->logits + at * n, token->logits, (size_t)n * sizeof *tokens->logits);
    memcpy(tokens->index + at * k, token->index, (size_t)k * sizeof *tokens->index);
    memcpy(tokens->weight + at * k, token->weight, (size_t)k * sizeof *tokens->weight);
}

void mdp_subset_tokens_multiply(const mdp_subset_tokens *tokens, const mdp_combined_token *token, int64_t d_model) {
    double *gram = tokens->gram + token->local * pairs_of(tokens->n_expert);
    for (int64_t i = 0; i < token->top_k; i++) {
        int64_t a = token->index[i];
        for (int64_t j = 0; j <= i; j++) {
            int64_t b = token->index[j], high = mdp_larger(a, b), low = mdp_smaller(a, b);
            gram[pairs_of(high) + low] = mdp_dot(token->y + i * d_model, token->y + j * d_model, d_model);
        }
    }
}
