/* Packs, blocks, batches and shares against their definitions, on random sequence lengths. */
#include "mdp/engine.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

/* A tokens description with the given lengths. */
static mdp_tokens *tokens_of(const int64_t *length, int64_t n) {
    mdp_tokens *tokens = NULL;
    assert_int_equal(MDP_ALLOC(&tokens, 1, "tokens").code, MDP_OK);
    assert_int_equal(MDP_ALLOC(&tokens->offset, n + 1, "offsets").code, MDP_OK);
    tokens->n_sequence = n;
    for (int64_t i = 0; i < n; i++) tokens->offset[i + 1] = tokens->offset[i] + length[i];
    tokens->n_token = tokens->offset[n];
    return tokens;
}

static void free_tokens(mdp_tokens *tokens) {
    mdp_free(tokens->offset);
    mdp_free(tokens);
}

static void random_lengths(uint64_t seed, int64_t n, int64_t most, int64_t *out) {
    for (int64_t i = 0; i < n; i++) {
        out[i] = (int64_t)(mdp_random_uniform(seed, 1, (uint64_t)i) * (double)most);
    }
    out[0] += 1;
}

static void packs_are_whole_sequences_of_at_least_512_tokens(void **state) {
    (void)state;
    int64_t length[400];
    for (uint64_t seed = 0; seed < 20; seed++) {
        mdp_partition *partition = NULL;
        random_lengths(seed, 400, seed % 2 ? 300 : 3000, length);
        mdp_tokens *tokens = tokens_of(length, 400);
        assert_int_equal(mdp_partition_new(tokens, 0, &partition).code, MDP_OK);
        int64_t sequence = 0, token = 0;
        for (int64_t p = 0; p < partition->n_pack; p++) {
            const mdp_pack *pack = &partition->packs[p];
            assert_int_equal(pack->first_sequence, sequence);
            assert_int_equal(pack->first_token, token);
            sequence += pack->n_sequence;
            token += pack->n_token;
            assert_int_equal(token, tokens->offset[sequence]);
            if (p + 1 < partition->n_pack) assert_true(pack->n_token >= MDP_PACK_TOKENS);
            /* no sequence more than needed */
            assert_true(pack->n_sequence == 1 || tokens->offset[sequence - 1] - pack->first_token < MDP_PACK_TOKENS);
        }
        assert_int_equal(sequence, 400);
        mdp_partition_destroy(partition);
        free_tokens(tokens);
    }
}

static void batches_are_whole_blocks_and_leave_blocks_as_they_are(void **state) {
    (void)state;
    int64_t length[400];
    random_lengths(7, 400, 1000, length);
    mdp_tokens *tokens = tokens_of(length, 400);
    mdp_partition *whole = NULL;
    assert_int_equal(mdp_partition_new(tokens, 0, &whole).code, MDP_OK);
    assert_int_equal(whole->n_batch, 1);
    assert_true(whole->n_block > 5);
    for (int64_t limit = 1; limit < 100000; limit = 3 * limit + 1000) {
        mdp_partition *cut = NULL;
        assert_int_equal(mdp_partition_new(tokens, limit, &cut).code, MDP_OK);
        assert_int_equal(cut->n_block, whole->n_block);
        for (int64_t b = 0; b <= cut->n_block; b++) assert_int_equal(cut->block_pack[b], whole->block_pack[b]);
        assert_int_equal(cut->batch_block[cut->n_batch], cut->n_block);
        for (int64_t i = 0; i < cut->n_batch; i++) {
            int64_t n_block = cut->batch_block[i + 1] - cut->batch_block[i];
            int64_t n_token = 0;
            for (int64_t p = cut->block_pack[cut->batch_block[i]]; p < cut->block_pack[cut->batch_block[i + 1]]; p++) {
                n_token += cut->packs[p].n_token;
            }
            assert_true(n_block >= 1);
            assert_true(n_block == 1 || n_token <= limit);
        }
        mdp_partition_destroy(cut);
    }
    mdp_partition_destroy(whole);
    free_tokens(tokens);
}

static void shares_cover_a_batch_without_gaps_and_evenly(void **state) {
    (void)state;
    int64_t length[640];
    for (int64_t i = 0; i < 640; i++) length[i] = 256;
    mdp_tokens *tokens = tokens_of(length, 640);
    mdp_partition *partition = NULL;
    assert_int_equal(mdp_partition_new(tokens, 0, &partition).code, MDP_OK);
    for (int size = 1; size <= 400; size = 2 * size + 1) {
        int64_t next = 0;
        for (int rank = 0; rank < size; rank++) {
            int64_t first, end;
            mdp_partition_share(partition, 0, rank, size, &first, &end);
            assert_int_equal(first, next);
            assert_true(end - first <= partition->n_pack / size + 1);
            next = end;
        }
        assert_int_equal(next, partition->n_pack);
    }
    mdp_partition_destroy(partition);
    free_tokens(tokens);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(packs_are_whole_sequences_of_at_least_512_tokens),
        cmocka_unit_test(batches_are_whole_blocks_and_leave_blocks_as_they_are),
        cmocka_unit_test(shares_cover_a_batch_without_gaps_and_evenly),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
