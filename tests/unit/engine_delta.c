/* Linear attention in chunks against the gated delta rule token by token, in float64: sequences of one token, of a
 * chunk, one less and one more, and of several, with projections beside each other and grouped; the same bytes for any
 * number of threads. */
#include "engine_harness.h"

static void chunks_are_the_recurrence(void **state) {
    harness_expect_step(*state, mdp_attend_all, "beside");
}

static void grouped_projections_are_the_recurrence(void **state) {
    harness_expect_step(*state, mdp_attend_all, "grouped");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(chunks_are_the_recurrence),
        cmocka_unit_test(grouped_projections_are_the_recurrence),
    };
    return harness_run("delta", tests, sizeof tests / sizeof tests[0]);
}
