/* Files and folders in a scratch folder: content, the sentence of each failure, and what is left behind after one. */
#include "mdp/base.h"

#include <setjmp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

typedef struct scratch {
    char folder[200];
    char path[300]; /* folder/file, not made yet */
} scratch;

static int make_scratch(void **state) {
    scratch *s = calloc(1, sizeof *s);
    const char *base = getenv("TMPDIR");
    snprintf(s->folder, sizeof s->folder, "%s/mdp-file-XXXXXX", base && strlen(base) < 100 ? base : "/tmp");
    if (!mkdtemp(s->folder)) return -1;
    snprintf(s->path, sizeof s->path, "%s/file", s->folder);
    *state = s;
    return 0;
}

static int remove_scratch(void **state) {
    scratch *s = *state;
    int code = mdp_folder_remove(s->folder).code;
    free(s);
    return code == MDP_OK ? 0 : -1;
}

static void assert_error(mdp_status status, mdp_code code, const char *part) {
    if (status.code == MDP_OK || !strstr(status.text, part)) print_error("sentence: %s\n", status.text);
    assert_int_equal(status.code, code);
    assert_non_null(strstr(status.text, part));
}

static void assert_ok(mdp_status status) {
    if (status.code != MDP_OK) print_error("sentence: %s\n", status.text);
    assert_int_equal(status.code, MDP_OK);
}

static void what_is_written_is_read(void **state) {
    scratch *s = *state;
    int fd;
    assert_ok(mdp_file_create(s->path, &fd));
    assert_ok(mdp_file_pwrite(s->path, fd, "world", 5, 6));
    assert_ok(mdp_file_pwrite(s->path, fd, "hello ", 6, 0));
    assert_ok(mdp_file_sync(s->path, fd));
    assert_ok(mdp_file_close(s->path, fd));
    assert_ok(mdp_file_open_write(s->path, &fd));
    assert_ok(mdp_file_pwrite(s->path, fd, "!", 1, 11));
    assert_ok(mdp_file_close(s->path, fd));
    assert_ok(mdp_file_open_read(s->path, &fd));
    int64_t size;
    char text[16] = "";
    assert_ok(mdp_file_size(s->path, fd, &size));
    assert_int_equal(size, 12);
    assert_ok(mdp_file_pread(s->path, fd, text, 6, 6));
    assert_string_equal(text, "world!");
    assert_error(mdp_file_pread(s->path, fd, text, 6, 7), MDP_BAD_INPUT,
                 "ends at byte 12, but bytes 7 to 13 were expected. The file is truncated.");
    assert_ok(mdp_file_close(s->path, fd));
}

static void an_existing_file_is_not_created_again(void **state) {
    scratch *s = *state;
    int fd;
    assert_ok(mdp_file_create(s->path, &fd));
    assert_ok(mdp_file_close(s->path, fd));
    assert_error(mdp_file_create(s->path, &fd), MDP_CANNOT_CREATE, "exists already");
    assert_int_equal(fd, -1);
}

static void a_missing_file_and_a_folder_are_no_input(void **state) {
    scratch *s = *state;
    int fd;
    assert_error(mdp_file_open_read(s->path, &fd), MDP_BAD_INPUT, "No such file or directory");
    assert_error(mdp_file_open_read(s->folder, &fd), MDP_BAD_INPUT, "expected a file, found a folder");
    assert_error(mdp_file_open_write(s->path, &fd), MDP_IO, "cannot open for writing");
}

static void a_full_disk_is_called_so(void **state) {
    (void)state;
    int fd;
    assert_ok(mdp_file_open_write("/dev/full", &fd));
    assert_error(mdp_file_pwrite("/dev/full", fd, "x", 1, 0), MDP_IO,
                 "/dev/full: cannot write bytes 0 to 1: no space left");
    assert_ok(mdp_file_close("/dev/full", fd));
}

static void a_small_file_is_written_whole_and_replaced(void **state) {
    scratch *s = *state;
    char partial[400], *text;
    int64_t n_byte;
    snprintf(partial, sizeof partial, "%s.partial", s->path);
    assert_ok(mdp_file_write_all(s->path, "first", 5));
    FILE *rest = fopen(partial, "w"); /* what an interrupted run leaves */
    assert_non_null(rest);
    fclose(rest);
    assert_ok(mdp_file_write_all(s->path, "second", 6));
    assert_false(mdp_path_exists(partial));
    assert_ok(mdp_file_read_all(s->path, 6, &text, &n_byte));
    assert_int_equal(n_byte, 6);
    assert_string_equal(text, "second");
    mdp_free(text);
    assert_error(mdp_file_read_all(s->path, 5, &text, &n_byte), MDP_BAD_INPUT, "has 6 bytes; at most 5");
    assert_null(text);
}

static void a_write_that_fails_leaves_nothing(void **state) {
    scratch *s = *state;
    char below[400];
    snprintf(below, sizeof below, "%s/below", s->path);
    assert_ok(mdp_file_write_all(s->path, "kept", 4));
    assert_error(mdp_file_write_all(below, "x", 1), MDP_CANNOT_CREATE, "Not a directory");
#ifdef MDP_DEBUG_HOOKS
    char partial[400], *text;
    int64_t n_byte;
    snprintf(partial, sizeof partial, "%s.partial", s->path);
    mdp_fault_configure(0, 0);
    assert_ok(mdp_file_write_all(s->path, "kept", 4));
    int64_t n_operation = mdp_fault_count();
    assert_true(n_operation >= 6);
    for (int64_t fail_at = 1; fail_at <= n_operation; fail_at++) {
        assert_ok(mdp_file_write_all(s->path, "kept", 4));
        mdp_fault_configure(1000, (uint64_t)(1000 - fail_at));
        assert_int_not_equal(mdp_file_write_all(s->path, "lost", 4).code, MDP_OK);
        mdp_fault_configure(0, 0);
        assert_false(mdp_path_exists(partial));
        assert_ok(mdp_file_read_all(s->path, 100, &text, &n_byte));
        assert_true(strcmp(text, "kept") == 0 || strcmp(text, "lost") == 0);
        mdp_free(text);
    }
#endif
}

static void a_large_transfer_reaches_every_byte(void **state) {
    scratch *s = *state;
    enum { N = 3 << 20 };
    unsigned char *out, *in;
    assert_ok(MDP_ALLOC(&out, N, "out"));
    assert_ok(MDP_ALLOC(&in, N, "in"));
    for (int i = 0; i < N; i++) out[i] = (unsigned char)mdp_random_bits(1, 2, (uint64_t)i);
    int fd;
    assert_ok(mdp_file_create(s->path, &fd));
    assert_ok(mdp_file_pwrite(s->path, fd, out, N, INT64_C(3) << 32)); /* sparse: beyond 32 bits */
    assert_ok(mdp_file_pread(s->path, fd, in, N, INT64_C(3) << 32));
    assert_ok(mdp_file_close(s->path, fd));
    assert_memory_equal(in, out, N);
    mdp_free(in);
    mdp_free(out);
}

#ifdef MDP_DEBUG_HOOKS
static void interrupted_and_partial_transfers_are_survived(void **state) {
    scratch *s = *state;
    enum { N = 100000 };
    unsigned char *out, *in;
    assert_ok(MDP_ALLOC(&out, N, "out"));
    assert_ok(MDP_ALLOC(&in, N, "in"));
    for (int i = 0; i < N; i++) out[i] = (unsigned char)mdp_random_bits(3, 4, (uint64_t)i);
    for (int64_t every = 1; every <= 3; every++) {
        int fd;
        mdp_fault_choose(MDP_FAULT_SHORT);
        mdp_fault_configure(every, 1);
        unlink(s->path);
        assert_ok(mdp_file_create(s->path, &fd));
        assert_ok(mdp_file_pwrite(s->path, fd, out, N, 5));
        assert_ok(mdp_file_sync(s->path, fd));
        memset(in, 0, N);
        assert_ok(mdp_file_pread(s->path, fd, in, N, 5));
        assert_true(mdp_fault_count() > 4); /* it takes four calls without */
        mdp_fault_configure(0, 0);
        assert_ok(mdp_file_close(s->path, fd));
        assert_memory_equal(in, out, N);
    }
    mdp_fault_choose(MDP_FAULT_DEFAULT);
    mdp_free(in);
    mdp_free(out);
}

static void failing_devices_and_full_disks_are_named(void **state) {
    scratch *s = *state;
    int fd;
    char byte = 'x';
    assert_ok(mdp_file_create(s->path, &fd));
    mdp_fault_choose(MDP_FAULT_EIO);
    mdp_fault_configure(1, 0);
    assert_error(mdp_file_pread(s->path, fd, &byte, 1, 0), MDP_IO, "Input/output error");
    assert_error(mdp_file_pwrite(s->path, fd, &byte, 1, 0), MDP_IO, "Input/output error");
    mdp_fault_choose(MDP_FAULT_ENOSPC);
    mdp_fault_configure(1, 0);
    assert_error(mdp_file_pread(s->path, fd, &byte, 1, 0), MDP_BAD_INPUT, "truncated"); /* reading needs no space */
    assert_error(mdp_file_pwrite(s->path, fd, &byte, 1, 0), MDP_IO, "no space left on the file system");
    assert_error(mdp_file_sync(s->path, fd), MDP_IO, "no space left on the file system");
    mdp_fault_configure(0, 0);
    mdp_fault_choose(MDP_FAULT_DEFAULT);
    assert_ok(mdp_file_close(s->path, fd));
}

static void kinds_of_faults_are_parsed(void **state) {
    (void)state;
    unsigned kinds;
    assert_ok(mdp_fault_parse("short", &kinds));
    assert_int_equal(kinds, MDP_FAULT_SHORT);
    assert_ok(mdp_fault_parse("io,alloc", &kinds));
    assert_int_equal(kinds, MDP_FAULT_DEFAULT);
    assert_error(mdp_fault_parse("io,", &kinds), MDP_USAGE, "'' is no kind of fault");
    assert_error(mdp_fault_parse("eion", &kinds), MDP_USAGE, "'eion' is no kind of fault");
}
#endif

static void folders_are_created_and_removed(void **state) {
    scratch *s = *state;
    char inner[400], file[500], deeper[500];
    snprintf(inner, sizeof inner, "%s/inner", s->folder);
    snprintf(file, sizeof file, "%s/file", inner);
    snprintf(deeper, sizeof deeper, "%s/deeper", inner);
    assert_ok(mdp_folder_remove(inner)); /* missing is fine */
    assert_ok(mdp_folder_create(inner));
    assert_ok(mdp_folder_create(inner));
    assert_true(mdp_path_is_folder(inner));
    assert_ok(mdp_file_write_all(file, "x", 1));
    assert_error(mdp_folder_create(file), MDP_CANNOT_CREATE, "a file of that name exists");
    assert_error(mdp_file_rename(file, "/dev/null/x"), MDP_IO, "cannot rename to /dev/null/x");
    assert_ok(mdp_folder_create(deeper));
    assert_error(mdp_folder_remove(inner), MDP_IO, "cannot remove the folder");
    assert_ok(mdp_folder_remove(deeper));
    assert_ok(mdp_folder_remove(inner));
    assert_false(mdp_path_exists(inner));
    assert_error(mdp_folder_create("/dev/null/x"), MDP_CANNOT_CREATE, "Not a directory");
    assert_ok(mdp_folder_sync(s->folder));
}

static void assert_folder_of(const char *path, const char *expected) {
    char *folder;
    assert_ok(mdp_path_folder(&folder, path));
    assert_string_equal(folder, expected);
    mdp_free(folder);
}

static void paths_are_joined_and_parted(void **state) {
    (void)state;
    char *path;
    assert_ok(mdp_path_join(&path, "a/b", "c"));
    assert_string_equal(path, "a/b/c");
    mdp_free(path);
    assert_ok(mdp_path_join(&path, "/", "c"));
    assert_string_equal(path, "/c");
    mdp_free(path);
    assert_folder_of("a/b/c", "a/b");
    assert_folder_of("a/b/", "a");
    assert_folder_of("c", ".");
    assert_folder_of("/c", "/");
    assert_folder_of("/", "/");
    assert_folder_of("//a", "/");
}

int main(void) {
#define IN_SCRATCH(test) cmocka_unit_test_setup_teardown(test, make_scratch, remove_scratch)
    const struct CMUnitTest tests[] = {
        IN_SCRATCH(what_is_written_is_read),
        IN_SCRATCH(an_existing_file_is_not_created_again),
        IN_SCRATCH(a_missing_file_and_a_folder_are_no_input),
        IN_SCRATCH(a_full_disk_is_called_so),
        IN_SCRATCH(a_small_file_is_written_whole_and_replaced),
        IN_SCRATCH(a_write_that_fails_leaves_nothing),
        IN_SCRATCH(a_large_transfer_reaches_every_byte),
#ifdef MDP_DEBUG_HOOKS
        IN_SCRATCH(interrupted_and_partial_transfers_are_survived),
        IN_SCRATCH(failing_devices_and_full_disks_are_named),
        cmocka_unit_test(kinds_of_faults_are_parsed),
#endif
        IN_SCRATCH(folders_are_created_and_removed),
        cmocka_unit_test(paths_are_joined_and_parted),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
