/* One owner of a folder at a time: taking, looking, losing, giving back; what other processes and hosts may have left.
 */
#include "base/owner.h"
#include "mdp/lock.h"

#include <setjmp.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

typedef struct scratch {
    char base[64], folder[80], lock[100];
} scratch;

static int make_scratch(void **state) {
    scratch *s = calloc(1, sizeof *s);
    snprintf(s->base, sizeof s->base, "/tmp/mdp-lock-XXXXXX");
    if (!mkdtemp(s->base)) return -1;
    snprintf(s->folder, sizeof s->folder, "%s/out.state", s->base);
    snprintf(s->lock, sizeof s->lock, "%s/lock", s->folder);
    *state = s;
    return 0;
}

static int remove_scratch(void **state) {
    scratch *s = *state;
    int code = mdp_folder_remove(s->folder).code;
    if (code == MDP_OK) code = mdp_folder_remove(s->base).code;
    free(s);
    return code == MDP_OK ? 0 : -1;
}

static void assert_ok(mdp_status status) {
    if (status.code != MDP_OK) print_error("sentence: %s\n", status.text);
    assert_int_equal(status.code, MDP_OK);
}

static void assert_refused(mdp_status status, const char *part) {
    if (status.code == MDP_OK || !strstr(status.text, part)) print_error("sentence: %s\n", status.text);
    assert_int_equal(status.code, MDP_CANNOT_CREATE);
    assert_non_null(strstr(status.text, part));
}

static void one_owner_at_a_time(void **state) {
    scratch *s = *state;
    mdp_lock *first = NULL, *second = NULL;
    char part[100];
    assert_ok(mdp_lock_look(s->folder, "out", false));
    assert_ok(mdp_lock_take(s->folder, "out", (mdp_claim){0}, &first));
    assert_true(mdp_lock_is_ours(s->lock));
    snprintf(part, sizeof part, "out is being written by another run: process %ld on host", (long)getpid());
    double start = mdp_seconds();
    assert_refused(mdp_lock_take(s->folder, "out", (mdp_claim){0}, &second), part);
    assert_refused(mdp_lock_take(s->folder, "out", (mdp_claim){.take_over = true}, &second), part); /* it lives */
    assert_true(mdp_seconds() - start < 0.9); /* at once, so that two jobs never take turns unnoticed */
    assert_refused(mdp_lock_take(s->folder, "out", (mdp_claim){.goes_on = true}, &second), part);
    assert_true(mdp_seconds() - start > 0.9);
    assert_refused(mdp_lock_look(s->folder, "out", false), part);
    assert_null(second);
    assert_ok(mdp_lock_check(first));
    char token[9];
    snprintf(token, sizeof token, "%s", mdp_lock_token(first));
    mdp_lock_release(first);
    assert_false(mdp_path_exists(s->lock));
    assert_ok(mdp_lock_take(s->folder, "out", (mdp_claim){0}, &second));
    assert_string_not_equal(token, mdp_lock_token(second));
    mdp_lock_release(second);
}

/* The name leads to another file, whoever made that. */
static void a_lost_lock_is_noticed_and_not_removed(void **state) {
    scratch *s = *state;
    mdp_lock *lock = NULL;
    mdp_owner other = {.host = "n17", .pid = 12, .since = "2026-01-02 03:04:05 UTC"};
    char *text = NULL;
    assert_ok(mdp_lock_take(s->folder, "out", (mdp_claim){0}, &lock));
    assert_int_equal(unlink(s->lock), 0);
    assert_refused(mdp_lock_check(lock), "out is no longer this run's to write");
    assert_ok(mdp_owner_print(&other, &text));
    assert_ok(mdp_file_write_all(s->lock, text, (int64_t)strlen(text)));
    assert_refused(mdp_lock_check(lock), "was taken over by process 12 on host n17, since 2026-01-02 03:04:05 UTC");
    mdp_lock_release(lock);
    assert_true(mdp_path_exists(s->lock));
    mdp_free(text);
}

static void owners_are_read_as_they_were_written(void **state) {
    (void)state;
    mdp_owner self, found;
    char *text = NULL;
    mdp_owner_self(&self);
    snprintf(self.job, sizeof self.job, "17[3]");
    self.locked = true;
    assert_ok(mdp_owner_print(&self, &text));
    assert_true(mdp_owner_parse(text, (int64_t)strlen(text), &found));
    assert_int_equal(found.pid, self.pid);
    assert_int_equal(found.begun, self.begun);
    assert_string_equal(found.host, self.host);
    assert_string_equal(found.job, self.job);
    assert_true(found.locked);
    assert_int_equal(mdp_owner_lives(&found, &self), MDP_ALIVE);
    found.begun++; /* another process of that number */
    assert_int_equal(mdp_owner_lives(&found, &self), MDP_GONE);
    found.boot[0] = 'x'; /* another machine of that name, or before a boot */
    assert_int_equal(mdp_owner_lives(&found, &self), MDP_UNKNOWN);
    self.restarts = 1;
    assert_int_equal(mdp_owner_lives(&found, &self), MDP_GONE);
    mdp_free(text);
    static const char *const others[] = {"", "pid 12", "{}", "{\"format\": 3}", "{\"format\": \"moe-dist-prune lock\""};
    for (size_t i = 0; i < sizeof others / sizeof *others; i++)
        assert_false(mdp_owner_parse(others[i], (int64_t)strlen(others[i]), &found));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(one_owner_at_a_time, make_scratch, remove_scratch),
        cmocka_unit_test_setup_teardown(a_lost_lock_is_noticed_and_not_removed, make_scratch, remove_scratch),
        cmocka_unit_test(owners_are_read_as_they_were_written),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
