/* Status, memory, checked arithmetic and the fault hook. */
#include "mdp/base.h"

#include <limits.h>
#include <setjmp.h>
#include <string.h>

#include <cmocka.h>

static mdp_status fail_with(const char *what) {
    return MDP_ERROR(MDP_BAD_INPUT, "layer %d: %s", 3, what);
}

static mdp_status pass_up(void) {
    MDP_TRY(mdp_ok());
    MDP_TRY(fail_with("wrong"));
    return mdp_ok();
}

static void an_error_carries_its_sentence_and_place(void **unused) {
    (void)unused;
    mdp_status status = pass_up();
    assert_int_equal(status.code, MDP_BAD_INPUT);
    assert_int_equal(status.rank, -1);
    assert_string_equal(status.text, "layer 3: wrong");
    assert_string_equal(status.file, "base_memory.c");
    assert_true(status.line > 0);
}

static void a_long_sentence_is_cut_not_overrun(void **unused) {
    (void)unused;
    char long_text[3000];
    memset(long_text, 'x', sizeof long_text - 1);
    long_text[sizeof long_text - 1] = '\0';
    mdp_status status = fail_with(long_text);
    assert_int_equal(strlen(status.text), sizeof status.text - 1);
}

static void memory_is_zeroed_and_aligned(void **unused) {
    (void)unused;
    const int64_t size[] = {0, 1, 7, 8, 1000, 100000};
    for (size_t i = 0; i < sizeof size / sizeof *size; i++) {
        double *data;
        assert_int_equal(MDP_ALLOC(&data, size[i], "test").code, MDP_OK);
        assert_non_null(data);
        assert_int_equal((uintptr_t)data % 64, 0);
        for (int64_t k = 0; k < size[i]; k++) assert_true(data[k] == 0);
        memset(data, 255, (size_t)size[i] * sizeof *data); /* so that reused memory is dirty */
        mdp_free(data);
    }
    mdp_free(NULL);
}

/* Debug builds know what is not freed yet; a large block is mapped, JSON has memory of its own. */
static void what_is_left_is_known(void **unused) {
    (void)unused;
    char what[MDP_MEMORY_WHAT] = "", *small, *large;
    int64_t before = mdp_memory_left(what);
    assert_int_equal(MDP_ALLOC(&small, 1, "small").code, MDP_OK);
    assert_int_equal(MDP_ALLOC(&large, 10000000, "a name that is longer than what is kept of it").code, MDP_OK);
    void *json = mdp_memory_for_json(10);
    assert_non_null(json);
#ifdef MDP_DEBUG_HOOKS
    assert_int_equal(mdp_memory_left(what), before + 3);
    mdp_free(json);
    assert_int_equal(mdp_memory_left(what), before + 2);
    assert_string_equal(what, "a name that is longer than what");
    mdp_free(large);
    assert_int_equal(MDP_GROW(&small, 1, 10000, "larger").code, MDP_OK);
    assert_int_equal(mdp_memory_left(what), before + 1);
    assert_string_equal(what, "larger");
#else
    assert_int_equal(before, 0);
    mdp_free(json);
    mdp_free(large);
#endif
    mdp_free(small);
    assert_int_equal(mdp_memory_left(what), before);
}

/* Steps like those of a layer: two long arrays, and a third within one of the two steps. */
static void take_steps(mdp_stack *stack, double *place[3]) {
    mdp_mark step = mdp_stack_mark(stack);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(MDP_TAKE(stack, &place[i], 100000 * (i + 1), "test").code, MDP_OK);
        assert_int_equal((uintptr_t)place[i] % 64, 0);
        memset(place[i], i + 1, (size_t)(100000 * (i + 1)) * sizeof(double)); /* sanitizers see what is too short */
    }
    mdp_mark inner = mdp_stack_mark(stack);
    for (int again = 0; again < 2; again++) {
        assert_int_equal(MDP_TAKE(stack, &place[2], 50001, "test").code, MDP_OK);
        memset(place[2], 3, 50001 * sizeof(double));
        mdp_stack_return(stack, inner);
    }
    const unsigned char *first = (const unsigned char *)place[0], *second = (const unsigned char *)place[1];
    assert_int_equal(first[100000 * sizeof(double) - 1], 1); /* nobody wrote into another's */
    assert_int_equal(second[0], 2);
    assert_int_equal(second[200000 * sizeof(double) - 1], 2);
    mdp_stack_return(stack, step);
}

static void a_stack_keeps_what_it_held_at_most_and_gives_it_again(void **unused) {
    (void)unused;
    mdp_stack *stack;
    double *place[4][3] = {{NULL}};
    assert_int_equal(mdp_stack_new(&stack).code, MDP_OK);
    for (int i = 0; i < 4; i++) take_steps(stack, place[i]);
    /* from the second time on everything lies in one piece, where it lay before */
    for (int i = 2; i < 4 && !mdp_memory_is_watched(); i++) assert_memory_equal(place[i], place[1], sizeof place[1]);
    assert_int_equal(mdp_stack_mark(stack).n_byte, 0);
    double *data;
    assert_int_equal(MDP_TAKE(stack, &data, INT64_MAX / 4, "a test").code, MDP_EXHAUSTED);
    assert_null(data);
    assert_int_equal(MDP_TAKE(stack, &data, 1000000, "a test").code, MDP_OK); /* more than it keeps */
    data[999999] = 1.0;
    mdp_stack_destroy(stack); /* with what is still taken */
}

static void growing_keeps_the_content_and_zeroes_the_rest(void **unused) {
    (void)unused;
    int *data = NULL;
    assert_int_equal(MDP_GROW(&data, 0, 3, "test").code, MDP_OK);
    for (int i = 0; i < 3; i++) data[i] = i + 1;
    assert_int_equal(MDP_GROW(&data, 3, 1000, "test").code, MDP_OK);
    for (int i = 0; i < 1000; i++) assert_int_equal(data[i], i < 3 ? i + 1 : 0);
    assert_int_equal(MDP_GROW(&data, 1000, 10, "test").code, MDP_INTERNAL);
    assert_int_equal(data[2], 3);
    mdp_free(data);
}

static void a_size_that_overflows_is_refused(void **unused) {
    (void)unused;
    int64_t *data = (int64_t *)&data;
    mdp_status status = MDP_ALLOC(&data, INT64_MAX / 4, "the residual stream");
    assert_int_equal(status.code, MDP_EXHAUSTED);
    assert_non_null(strstr(status.text, "cannot allocate"));
    assert_non_null(strstr(status.text, "the residual stream"));
    assert_null(data);
    assert_int_equal(MDP_ALLOC(&data, -1, "test").code, MDP_EXHAUSTED);
    assert_int_equal(MDP_ALLOC(&data, INT64_MAX / 8, "test").code, MDP_EXHAUSTED);
}

static void memory_that_is_not_there_is_an_error_with_its_size(void **unused) {
    (void)unused;
#ifdef __SANITIZE_ADDRESS__
    skip(); /* the sanitizer ends the program instead of returning NULL */
#else
    char *data;
    mdp_status status = MDP_ALLOC(&data, INT64_C(1) << 60, "a test");
    assert_int_equal(status.code, MDP_EXHAUSTED);
    assert_non_null(strstr(status.text, "cannot allocate 1.2 EB for a test"));
    assert_null(data);
#endif
}

static void arithmetic_on_sizes_refuses_overflow_and_negative_numbers(void **unused) {
    (void)unused;
    int64_t out = 0;
    assert_true(mdp_multiply(INT64_C(1) << 31, INT64_C(1) << 31, &out));
    assert_int_equal(out, INT64_C(1) << 62);
    assert_false(mdp_multiply(INT64_C(1) << 32, INT64_C(1) << 31, &out));
    assert_false(mdp_multiply(-1, 1, &out));
    assert_false(mdp_multiply(1, -1, &out));
    assert_true(mdp_multiply(INT64_MAX, 0, &out));
    assert_true(mdp_add(INT64_MAX - 1, 1, &out));
    assert_int_equal(out, INT64_MAX);
    assert_false(mdp_add(INT64_MAX, 1, &out));
    assert_false(mdp_add(2, -1, &out));
    int narrow = 0;
    assert_int_equal(mdp_int_cast(INT_MAX, "rows", &narrow).code, MDP_OK);
    assert_int_equal(narrow, INT_MAX);
    mdp_status status = mdp_int_cast((int64_t)INT_MAX + 1, "the number of rows", &narrow);
    assert_int_equal(status.code, MDP_INTERNAL);
    assert_non_null(strstr(status.text, "the number of rows is 2147483648"));
}

static void texts_are_copied_and_printed(void **unused) {
    (void)unused;
    char *copy, *text;
    assert_int_equal(mdp_copy_text(&copy, "abc").code, MDP_OK);
    assert_string_equal(copy, "abc");
    assert_int_equal(mdp_format(&text, "%s-%05d", copy, 42).code, MDP_OK);
    assert_string_equal(text, "abc-00042");
    mdp_free(copy);
    mdp_free(text);
}

static void memory_use_is_measured(void **unused) {
    (void)unused;
    enum { BYTE = 64 << 20 };
    char *data;
    assert_int_equal(MDP_ALLOC(&data, BYTE, "test").code, MDP_OK);
    memset(data, 1, BYTE);
    assert_true(mdp_memory_share(1) >= BYTE && mdp_memory_share(1) < 2 * (int64_t)BYTE);
    assert_true(mdp_memory_share(4) >= BYTE && mdp_memory_share(4) < mdp_memory_share(1));
    mdp_free(data);
    assert_true(mdp_memory_peak() >= BYTE);
    assert_true(mdp_memory_peak() < INT64_C(16) << 30);
}

static void faults_come_at_every_nth_operation_from_the_seed_on(void **unused) {
    (void)unused;
#ifdef MDP_DEBUG_HOOKS
    for (uint64_t seed = 0; seed < 12; seed++) {
        mdp_fault_configure(5, seed);
        for (int n = 1; n <= 30; n++) {
            mdp_status status = mdp_fault(MDP_IO, "read");
            assert_int_equal(status.code, (n + (int)seed) % 5 == 0 ? MDP_IO : MDP_OK);
            if (status.code != MDP_OK) assert_non_null(strstr(status.text, "(read)"));
        }
        assert_int_equal(mdp_fault_count(), 30);
    }
    mdp_fault_configure(1, 0);
    char *data;
    assert_int_equal(MDP_ALLOC(&data, 1, "test").code, MDP_EXHAUSTED);
    assert_null(data);
    mdp_fault_configure(0, 0);
    assert_int_equal(MDP_ALLOC(&data, 1, "test").code, MDP_OK);
    mdp_free(data);
#else
    mdp_fault_configure(1, 0);
    assert_int_equal(mdp_fault(MDP_IO, "read").code, MDP_OK);
    assert_int_equal(mdp_fault_count(), 0);
#endif
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_error_carries_its_sentence_and_place),
        cmocka_unit_test(a_long_sentence_is_cut_not_overrun),
        cmocka_unit_test(memory_is_zeroed_and_aligned),
        cmocka_unit_test(what_is_left_is_known),
        cmocka_unit_test(a_stack_keeps_what_it_held_at_most_and_gives_it_again),
        cmocka_unit_test(growing_keeps_the_content_and_zeroes_the_rest),
        cmocka_unit_test(a_size_that_overflows_is_refused),
        cmocka_unit_test(memory_that_is_not_there_is_an_error_with_its_size),
        cmocka_unit_test(arithmetic_on_sizes_refuses_overflow_and_negative_numbers),
        cmocka_unit_test(texts_are_copied_and_printed),
        cmocka_unit_test(memory_use_is_measured),
        cmocka_unit_test(faults_come_at_every_nth_operation_from_the_seed_on),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
