/* What a person sees on stderr, as a batch log and on a terminal (a pseudo-terminal), and what run.log keeps. */
#include "mdp/base.h"

#include <fcntl.h>
#include <poll.h>
#include <regex.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

typedef struct capture {
    char stderr_path[200], log_path[200];
    int saved; /* the real stderr */
} capture;

static int begin(void **state) {
    capture *c = calloc(1, sizeof *c);
    strcpy(c->stderr_path, "/tmp/mdp-stderr-XXXXXX");
    strcpy(c->log_path, "/tmp/mdp-log-XXXXXX");
    int fd = mkstemp(c->stderr_path), other = mkstemp(c->log_path);
    if (fd < 0 || other < 0) return -1;
    close(other);
    fflush(stderr);
    c->saved = dup(STDERR_FILENO);
    dup2(fd, STDERR_FILENO);
    close(fd);
    *state = c;
    return 0;
}

static int end(void **state) {
    capture *c = *state;
    fflush(stderr);
    dup2(c->saved, STDERR_FILENO);
    close(c->saved);
    unlink(c->stderr_path);
    unlink(c->log_path);
    free(c);
    return 0;
}

static void read_text(const char *path, char text[4000]) {
    fflush(stderr);
    FILE *file = fopen(path, "r");
    assert_non_null(file);
    text[fread(text, 1, 3999, file)] = '\0';
    fclose(file);
}

static void assert_matches(const char *text, const char *pattern) {
    regex_t compiled;
    assert_int_equal(regcomp(&compiled, pattern, REG_EXTENDED | REG_NOSUB), 0);
    int found = regexec(&compiled, text, 0, NULL, 0);
    regfree(&compiled);
    if (found != 0) print_message("text: <%s>\n", text);
    assert_int_equal(found, 0);
}

static void speak(mdp_log *log) {
    mdp_status status = MDP_ERROR(MDP_BAD_INPUT, "layer 3: wrong");
    status.rank = 5;
    mdp_log_message(log, MDP_LEVEL_INFO, "model %s", "mixtral");
    mdp_log_message(log, MDP_LEVEL_WARN, "slow disk");
    mdp_log_message(log, MDP_LEVEL_DEBUG, "detail");
    mdp_log_error(log, &status);
}

static void messages_go_to_stderr_by_level_and_to_the_file(void **state) {
    capture *c = *state;
    char text[4000];
    mdp_log *log;
    assert_int_equal(mdp_log_new(&log, true, MDP_LEVEL_INFO).code, MDP_OK);
    assert_int_equal(mdp_log_open_file(log, c->log_path).code, MDP_OK);
    speak(log);
    mdp_log_destroy(log);
    read_text(c->stderr_path, text);
    assert_string_equal(text, "model mixtral\nmoe-dist-prune: warning: slow disk\nmoe-dist-prune: layer 3: wrong\n");
    read_text(c->log_path, text);
#define STAMP "20[0-9]{2}-[01][0-9]-[0-3][0-9]T[0-2][0-9]:[0-5][0-9]:[0-6][0-9]Z "
    assert_matches(text, "^" STAMP "info  model mixtral\n" STAMP "warn  slow disk\n" STAMP
                         "error layer 3: wrong\n" STAMP "error \\(exit 65, rank 5, base_log.c line [0-9]+\\)\n$");
}

static void quiet_says_errors_only_but_the_file_has_all(void **state) {
    capture *c = *state;
    char text[4000];
    mdp_log *log;
    mdp_progress *progress;
    assert_int_equal(mdp_log_new(&log, true, MDP_LEVEL_ERROR).code, MDP_OK);
    assert_int_equal(mdp_log_open_file(log, c->log_path).code, MDP_OK);
    speak(log);
    assert_int_equal(mdp_progress_new(&progress, log, "observe", "layer", 2, "tokens").code, MDP_OK);
    mdp_progress_update(progress, 2, 100);
    mdp_progress_destroy(progress);
    mdp_log_destroy(log);
    read_text(c->stderr_path, text);
    assert_string_equal(text, "moe-dist-prune: layer 3: wrong\n");
    read_text(c->log_path, text);
    assert_matches(text, "info  model mixtral\n");
    assert_matches(text, "info  observe  layer 2/2");
}

static void only_the_speaking_rank_speaks(void **state) {
    capture *c = *state;
    char text[4000];
    mdp_log *log;
    mdp_progress *progress;
    assert_int_equal(mdp_log_new(&log, false, MDP_LEVEL_DEBUG).code, MDP_OK);
    assert_int_equal(mdp_log_open_file(log, "/dev/null/not-there").code, MDP_OK);
    speak(log);
    speak(NULL);
    assert_int_equal(mdp_progress_new(&progress, log, "observe", "layer", 2, "tokens").code, MDP_OK);
    mdp_progress_update(progress, 1, 100);
    mdp_progress_destroy(progress);
    mdp_log_destroy(log);
    mdp_log_destroy(NULL);
    mdp_progress_destroy(NULL);
    read_text(c->stderr_path, text);
    assert_string_equal(text, "");
}

static void a_batch_log_has_the_first_and_last_step_and_no_escapes(void **state) {
    capture *c = *state;
    char text[4000];
    mdp_log *log;
    mdp_progress *progress;
    assert_int_equal(mdp_log_new(&log, true, MDP_LEVEL_INFO).code, MDP_OK);
    assert_int_equal(mdp_progress_new(&progress, log, "observe", "layer", 56, "tokens").code, MDP_OK);
    for (int layer = 1; layer <= 56; layer++) mdp_progress_update(progress, layer, 1000.0 * layer);
    mdp_progress_destroy(progress);
    mdp_log_destroy(log);
    read_text(c->stderr_path, text);
    assert_matches(text, "^observe  layer 1/56  [0-9.]+ ?[kMGT]? tokens/s  .* left\n"
                         "observe  layer 56/56  [0-9.]+ ?[kMGT]? tokens/s  in 0.[0-9] s\n$");
    assert_null(strchr(text, '\033'));
}

static void a_log_that_cannot_be_opened_is_an_error(void **state) {
    (void)state;
    mdp_log *log;
    assert_int_equal(mdp_log_new(&log, true, MDP_LEVEL_INFO).code, MDP_OK);
    mdp_status status = mdp_log_open_file(log, "/dev/null/run.log");
    mdp_log_destroy(log);
    assert_int_equal(status.code, MDP_CANNOT_CREATE);
    assert_string_equal(status.text, "/dev/null/run.log: cannot open the log: Not a directory.");
}

/* A pseudo-terminal as stderr; its other end, not blocking. */
static int open_terminal(void) {
    int master = posix_openpt(O_RDWR | O_NOCTTY);
    bool there = master >= 0 && grantpt(master) == 0 && unlockpt(master) == 0;
    int slave = there ? open(ptsname(master), O_RDWR | O_NOCTTY) : -1;
    if (slave < 0) {
        print_message("no pseudo-terminals here (is /dev/pts mounted?): skipped\n");
        skip();
    }
    dup2(slave, STDERR_FILENO);
    close(slave);
    fcntl(master, F_SETFL, O_NONBLOCK);
    setenv("TERM", "xterm", 1);
    return master;
}

/* What the terminal got, up to the line that ends the progress; the kernel hands it over in parts. */
static void read_terminal(int master, char text[4000]) {
    size_t used = 0;
    text[0] = '\0';
    struct pollfd ready = {.fd = master, .events = POLLIN};
    while (!(strstr(text, " in ") && text[used - 1] == '\n') && used < 3999 && poll(&ready, 1, 5000) > 0) {
        ssize_t n = read(master, text + used, 3999 - used);
        if (n <= 0) break;
        used += (size_t)n;
        text[used] = '\0';
    }
}

static void a_terminal_has_one_line_that_is_redrawn(void **state) {
    (void)state;
    char text[4000];
    int master = open_terminal();
    mdp_log *log;
    mdp_progress *progress;
    assert_int_equal(mdp_log_new(&log, true, MDP_LEVEL_INFO).code, MDP_OK);
    assert_int_equal(mdp_progress_new(&progress, log, "observe", "layer", 4, "tokens").code, MDP_OK);
    mdp_progress_update(progress, 2, 1000);
    mdp_log_message(log, MDP_LEVEL_INFO, "a message between");
    mdp_progress_update(progress, 4, 2000);
    mdp_progress_destroy(progress);
    mdp_log_destroy(log);
    fflush(stderr);
    read_terminal(master, text);
    close(master);
    assert_matches(text, "^\r\033\\[Kobserve  layer 2/4  (█)+(░)+  .*left\r\033\\[Ka message between\r\n"
                         "\r\033\\[Kobserve  layer 4/4  (█)+  .* in .*s\r\n$");
}

int main(void) {
#define CAPTURED(test) cmocka_unit_test_setup_teardown(test, begin, end)
    const struct CMUnitTest tests[] = {
        CAPTURED(messages_go_to_stderr_by_level_and_to_the_file),
        CAPTURED(quiet_says_errors_only_but_the_file_has_all),
        CAPTURED(only_the_speaking_rank_speaks),
        CAPTURED(a_batch_log_has_the_first_and_last_step_and_no_escapes),
        CAPTURED(a_log_that_cannot_be_opened_is_an_error),
        CAPTURED(a_terminal_has_one_line_that_is_redrawn),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
