/* The attention block on small models against numpy in float64: heads that share keys, rotation of whole and of partial
 * heads, windows, chunks, sinks, norms of queries and keys, clamps, gates, and latent attention; the same bytes for any
 * number of threads. */
#include "engine_harness.h"

static void heads_share_keys_in_packs_of_many_tiles(void **state) {
    harness_expect_step(*state, mdp_attend_all, "tiles");
}

static void pairs_side_by_side_are_rotated_in_part_of_a_head(void **state) {
    harness_expect_step(*state, mdp_attend_all, "partial_pairs");
}

static void a_window_hides_keys_and_sinks_take_weight(void **state) {
    harness_expect_step(*state, mdp_attend_all, "window");
}

static void chunks_hide_keys_and_norms_come_last(void **state) {
    harness_expect_step(*state, mdp_attend_all, "chunk");
}

static void queries_without_rotation_are_tempered(void **state) {
    harness_expect_step(*state, mdp_attend_all, "plain");
}

static void queries_and_keys_are_normalised(void **state) {
    harness_expect_step(*state, mdp_attend_all, "norm_of_heads");
    harness_expect_step(*state, mdp_attend_all, "norm_of_all_heads");
}

static void queries_keys_and_values_are_clamped(void **state) {
    harness_expect_step(*state, mdp_attend_all, "clip");
}

static void a_layer_norm_comes_before_and_a_scale_after(void **state) {
    harness_expect_step(*state, mdp_attend_all, "layer_norm");
}

static void gates_follow_queries(void **state) {
    harness_expect_step(*state, mdp_attend_all, "gated_queries");
}

static void long_sequences_have_frequencies_of_their_own(void **state) {
    harness_expect_step(*state, mdp_attend_all, "long");
    harness_expect_step(*state, mdp_attend_all, "long_and_wide");
}

static void latent_rows_make_keys_and_values(void **state) {
    harness_expect_step(*state, mdp_attend_all, "latent");
    harness_expect_step(*state, mdp_attend_all, "latent_whole");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(heads_share_keys_in_packs_of_many_tiles),
        cmocka_unit_test(pairs_side_by_side_are_rotated_in_part_of_a_head),
        cmocka_unit_test(a_window_hides_keys_and_sinks_take_weight),
        cmocka_unit_test(chunks_hide_keys_and_norms_come_last),
        cmocka_unit_test(queries_without_rotation_are_tempered),
        cmocka_unit_test(queries_and_keys_are_normalised),
        cmocka_unit_test(queries_keys_and_values_are_clamped),
        cmocka_unit_test(a_layer_norm_comes_before_and_a_scale_after),
        cmocka_unit_test(gates_follow_queries),
        cmocka_unit_test(long_sequences_have_frequencies_of_their_own),
        cmocka_unit_test(latent_rows_make_keys_and_values),
    };
    return harness_run("attention", tests, sizeof tests / sizeof tests[0]);
}
