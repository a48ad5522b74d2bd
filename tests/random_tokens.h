/* random_tokens.h - text for tests on several ranks: a hundred different tokens at random, so that experts are chosen
 * unevenly. A test program includes it after mpi_check.h. */
#ifndef MDP_TESTS_RANDOM_TOKENS_H
#define MDP_TESTS_RANDOM_TOKENS_H

#include "mdp/checkpoint.h"
#include "mpi_check.h"

/* n_sequence sequences of `length` tokens, of one category. */
static inline mdp_tokens *random_tokens(int64_t n_sequence, int64_t length) {
    const char *const name = "random";
    int64_t *lengths = NULL;
    mdp_tokens *tokens = NULL;
    CHECK_OK(MDP_ALLOC(&lengths, n_sequence, "lengths"));
    for (int64_t i = 0; i < n_sequence; i++) lengths[i] = length;
    CHECK_OK(mdp_tokens_new_in_memory("random", 1, &name, &n_sequence, lengths, &tokens));
    for (int64_t i = 0; i < tokens->n_token; i++)
        tokens->ids[i] = (uint32_t)(mdp_random_bits(3, 1, (uint64_t)i) % 100 * 20);
    mdp_free(lengths);
    return tokens;
}

#endif
