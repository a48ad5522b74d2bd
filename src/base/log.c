/* log.c - messages and progress for the person who waits.
 *
 * Owns: what goes to stderr (rank 0 only, by level) and to run.log (everything, each line with its UTC time). On a
 * terminal a progress line is redrawn in place; in a batch log it is a plain line now and then, no escape codes.
 * A log that cannot be written is no reason to lose a result: only opening run.log can fail. Main thread only. */
#include "mdp/base.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#define PLAIN_INTERVAL 10.0 /* seconds between progress lines in a batch log */
#define DRAW_INTERVAL 0.1   /* seconds between two drawings on a terminal */
#define MAX_BAR 21          /* characters of the bar */
#define LINE_BYTE 400

struct mdp_log {
    bool speaks;   /* rank 0 */
    bool terminal; /* stderr is one that understands escape codes */
    bool drawn;    /* a progress line stands on the terminal without its newline */
    mdp_level level;
    FILE *file; /* run.log, or NULL */
};

mdp_status mdp_log_new(mdp_log **out, bool speaks, mdp_level level) {
    MDP_TRY(MDP_ALLOC(out, 1, "the log"));
    const char *kind = getenv("TERM");
    (*out)->speaks = speaks;
    (*out)->level = level;
    (*out)->terminal = isatty(STDERR_FILENO) && kind && strcmp(kind, "dumb") != 0;
    return mdp_ok();
}

void mdp_log_destroy(mdp_log *log) {
    if (!log) return;
    if (log->file) fclose(log->file);
    mdp_free(log);
}

mdp_status mdp_log_open_file(mdp_log *log, const char *path) {
    if (!log->speaks) return mdp_ok();
    MDP_TRY(mdp_fault(MDP_CANNOT_CREATE, "open the log"));
    /* What is special is refused before; not to wait for a reader that a FIFO has not is one more guard. */
    int fd = open(path, O_WRONLY | O_APPEND | O_CREAT | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC, 0666);
    FILE *file = fd < 0 ? NULL : fdopen(fd, "a");
    if (!file) {
        int error = errno;
        if (fd >= 0) close(fd);
        if (error == ELOOP)
            return MDP_ERROR(MDP_CANNOT_CREATE,
                             "%s: is a symbolic link, and the log is not written through one; remove it.", path);
        return MDP_ERROR(MDP_CANNOT_CREATE, "%s: cannot open the log: %s.", path, strerror(error));
    }
    setvbuf(file, NULL, _IOLBF, 0); /* whole lines, also when the run is killed */
    if (log->file) fclose(log->file);
    log->file = file;
    return mdp_ok();
}

/* Make room for a line of text on a terminal where a progress line stands; it will be drawn again. */
static void clear_line(mdp_log *log) {
    if (log->drawn) fputs("\r\033[K", stderr);
    log->drawn = false;
}

static void write_file(mdp_log *log, mdp_level level, const char *text) {
    static const char *const name[] = {"error", "warn", "info", "debug"};
    if (!log->file) return;
    char stamp[32] = "";
    time_t now = time(NULL);
    struct tm utc;
    if (gmtime_r(&now, &utc)) strftime(stamp, sizeof stamp, "%Y-%m-%dT%H:%M:%SZ", &utc);
    fprintf(log->file, "%s %-5s %s\n", stamp, name[level], text);
}

/* One finished text to where it belongs. run.log takes information even when the terminal is to be quiet. */
static void say(mdp_log *log, mdp_level level, const char *text) {
    static const char *const prefix[] = {"moe-dist-prune: ", "moe-dist-prune: warning: ", "", "debug: "};
    if (level <= log->level) {
        clear_line(log);
        fprintf(stderr, "%s%s\n", prefix[level], text);
    }
    if (level <= MDP_LEVEL_INFO || level <= log->level) write_file(log, level, text);
}

/* A text of any length: command lines are meant to be pasted whole. */
void mdp_log_message(mdp_log *log, mdp_level level, const char *format, ...) {
    if (!log || !log->speaks) return;
    char text[2000], shown[6 * sizeof text], *more = NULL;
    va_list arguments;
    va_start(arguments, format);
    int n = vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    if (n < (int)sizeof text || MDP_ALLOC(&more, 7 * (int64_t)n + 1, "a message").code != MDP_OK) {
        say(log, level, mdp_text_show(shown, sizeof shown, text));
        return;
    }
    va_start(arguments, format);
    (void)vsnprintf(more, (size_t)n + 1, format, arguments);
    va_end(arguments);
    say(log, level, mdp_text_show(more + n + 1, 6 * (size_t)n, more));
    mdp_free(more);
}

void mdp_log_error(mdp_log *log, const mdp_status *status) {
    if (!log || !log->speaks) return;
    say(log, MDP_LEVEL_ERROR, status->text);
    if (!log->file) return;
    char place[100];
    snprintf(place, sizeof place, "(exit %d, rank %d, %s line %d)", status->code, status->rank, status->file,
             status->line);
    write_file(log, MDP_LEVEL_ERROR, place);
}

/* ---- progress ------------------------------------------------------------------------------------------------- */

struct mdp_progress {
    mdp_log *log;             /* borrowed */
    char phase[40], step[40]; /* "observe", "layer" */
    char unit[40];            /* "tokens"; empty: no rate is shown */
    int64_t n_step;
    double start;     /* mdp_seconds at the beginning */
    int64_t old_step; /* steps and amount that an earlier run has done */
    double old_amount;
    double last_plain; /* when a plain line was last written to a batch log; negative: never */
    double last_file;  /* the same for run.log */
    double last_draw;  /* the same for the terminal */
};

mdp_status mdp_progress_new(mdp_progress **out, mdp_log *log, const char *phase, const char *step, int64_t n_step,
                            const char *unit) {
    MDP_TRY(MDP_ALLOC(out, 1, "the progress line"));
    mdp_progress *progress = *out;
    progress->log = log;
    snprintf(progress->phase, sizeof progress->phase, "%s", phase);
    snprintf(progress->step, sizeof progress->step, "%s", step);
    snprintf(progress->unit, sizeof progress->unit, "%s", unit ? unit : "");
    progress->n_step = n_step;
    progress->start = mdp_seconds();
    progress->last_plain = progress->last_file = progress->last_draw = -1;
    return mdp_ok();
}

/* 112345 -> "112 k": three significant digits. */
static void print_rate(char out[32], double rate) {
    static const char *const unit[] = {"", " k", " M", " G", " T"};
    int u = 0;
    while (u < 4 && rate >= 999.5) {
        rate /= 1000;
        u++;
    }
    snprintf(out, 32, "%.*f%s", rate < 9.995 ? 2 : rate < 99.95 ? 1 : 0, rate, unit[u]);
}

/* "  112 k tokens/s  52 min 3 s left" */
static void print_tail(const mdp_progress *progress, int64_t n_done, double amount, char *out, size_t n_byte) {
    double elapsed = mdp_seconds() - progress->start;
    char rate[32], time_text[32];
    out[0] = '\0';
    int64_t n_new = n_done - progress->old_step;
    amount -= progress->old_amount;
    if (n_new <= 0) return;
    if (progress->unit[0] && amount > 0 && elapsed > 0) {
        print_rate(rate, amount / elapsed);
        snprintf(out, n_byte, "  %s %s/s", rate, progress->unit);
    }
    bool finished = n_done >= progress->n_step;
    double seconds = finished ? elapsed : elapsed * (double)(progress->n_step - n_done) / (double)n_new;
    size_t used = strlen(out);
    snprintf(out + used, n_byte - used, finished ? "  in %s" : "  %s left", mdp_print_seconds(time_text, seconds));
}

static int terminal_columns(void) {
    struct winsize size;
    return ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : 80;
}

/* Redraw the line; the bar takes what room there is, and a line never wraps (a wrapped line cannot be redrawn). */
static void draw(mdp_progress *progress, int64_t n_done, const char *head, const char *tail) {
    int columns = terminal_columns(), used = (int)(strlen(head) + strlen(tail));
    int bar = columns - 1 - used - 2 < MAX_BAR ? columns - 1 - used - 2 : MAX_BAR;
    char line[LINE_BYTE] = "";
    size_t n = 0;
    if (bar >= 5) {
        int full = progress->n_step > 0 ? (int)((double)bar * (double)n_done / (double)progress->n_step) : bar;
        n = (size_t)snprintf(line, sizeof line, "  ");
        for (int i = 0; i < bar; i++) n += (size_t)snprintf(line + n, sizeof line - n, i < full ? "█" : "░");
    }
    if (used < columns)
        fprintf(stderr, "\r\033[K%s%s%s", head, line, tail);
    else
        fprintf(stderr, "\r\033[K%.*s", columns - 1, head);
    fflush(stderr);
    progress->log->drawn = true;
}

void mdp_progress_go_on(mdp_progress *progress, int64_t n_done, double amount_done) {
    if (!progress) return;
    progress->old_step = n_done;
    progress->old_amount = amount_done;
}

/* Is a line due: the first, the last, or `interval` seconds after the one before? */
static bool is_due(double *last, double now, double interval, bool finished) {
    if (*last >= 0 && !finished && now - *last < interval) return false;
    *last = now;
    return true;
}

void mdp_progress_update(mdp_progress *progress, int64_t n_done, double amount_done) {
    if (!progress || !progress->log || !progress->log->speaks) return;
    mdp_log *log = progress->log;
    char head[200], tail[100];
    bool finished = n_done >= progress->n_step;
    double now = mdp_seconds();
    snprintf(head, sizeof head, "%-8s %s %lld/%lld", progress->phase, progress->step, (long long)n_done,
             (long long)progress->n_step);
    print_tail(progress, n_done, amount_done, tail, sizeof tail);
    if (log->level >= MDP_LEVEL_INFO && log->terminal) {
        if (is_due(&progress->last_draw, now, DRAW_INTERVAL, finished)) draw(progress, n_done, head, tail);
    } else if (log->level >= MDP_LEVEL_INFO) {
        if (is_due(&progress->last_plain, now, PLAIN_INTERVAL, finished)) fprintf(stderr, "%s%s\n", head, tail);
    }
    if (is_due(&progress->last_file, now, PLAIN_INTERVAL, finished)) {
        char line[LINE_BYTE];
        snprintf(line, sizeof line, "%s%s", head, tail);
        write_file(log, MDP_LEVEL_INFO, line);
    }
}

void mdp_progress_destroy(mdp_progress *progress) {
    if (!progress) return;
    if (progress->log && progress->log->drawn) {
        fputc('\n', stderr);
        progress->log->drawn = false;
    }
    mdp_free(progress);
}
