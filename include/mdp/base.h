/* base.h - what every other part of libmdp stands on: status, memory, log, exact sums, random numbers, text and
 * JSON helpers, options. Nothing here communicates; nothing here knows what a model is. */
#ifndef MDP_BASE_H
#define MDP_BASE_H

#include <jansson.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#define MDP_VERSION "0.1.0"

typedef int32_t mdp_expert_t; /* index of an expert in its layer */
typedef int64_t mdp_count_t;  /* a number of elements, rows or tokens */

/* ---- status -------------------------------------------------------------------------------------------------- */

/* Exit codes of the program; a status carries one of them. */
typedef enum mdp_code {
    MDP_OK = 0,
    MDP_USAGE = 2,          /* the command line is wrong */
    MDP_BAD_INPUT = 65,     /* a file's content is wrong, or files do not belong together */
    MDP_INTERNAL = 70,      /* our bug */
    MDP_EXHAUSTED = 71,     /* the machine has no more memory or threads to give */
    MDP_CANNOT_CREATE = 73, /* an output cannot be created or exists already */
    MDP_IO = 74,            /* reading or writing failed */
    MDP_STOPPED = 75        /* stopped on request; the run can be resumed */
} mdp_code;

/* The outcome of local work. Returned by value; text is set only when code is not MDP_OK. */
typedef struct mdp_status {
    int code;        /* mdp_code */
    int rank;        /* rank on which it arose; -1 until ranks have agreed */
    int line;        /* source line where it arose */
    char file[40];   /* source file where it arose, without folders; empty for MDP_OK */
    char text[1000]; /* one sentence: what, where, expected, found, what to do */
} mdp_status;

/* Success. */
static inline mdp_status mdp_ok(void) {
    mdp_status status;
    status.code = MDP_OK;
    status.rank = -1;
    status.line = 0;
    status.file[0] = '\0';
    status.text[0] = '\0';
    return status;
}

/* An error born here: printf-formatted sentence. Use through MDP_ERROR. */
mdp_status mdp_error_at(mdp_code code, const char *file, int line, const char *format, ...)
    __attribute__((format(printf, 4, 5)));

/* Compilers and analyzers see one file at a time: tell them that an error is not MDP_OK. */
static inline mdp_status mdp_error_known(mdp_code code, mdp_status status) {
    status.code = code;
    return status;
}
#define MDP_ERROR(code, ...) mdp_error_known((code), mdp_error_at((code), __FILE__, __LINE__, __VA_ARGS__))

/* Evaluate an expression of type mdp_status; return it from the calling function when it is an error. */
#define MDP_TRY(expression)                                                                                            \
    do {                                                                                                               \
        mdp_status mdp_try_ = (expression);                                                                            \
        if (mdp_try_.code != MDP_OK) return mdp_try_;                                                                  \
    } while (0)

/* Evaluate into `status` and jump to `label` when it is an error: for functions that own something. */
#define MDP_TRY_GOTO(status, label, expression)                                                                        \
    do {                                                                                                               \
        (status) = (expression);                                                                                       \
        if ((status).code != MDP_OK) goto label;                                                                       \
    } while (0)

/* ---- faults on request (debug builds; always succeeds in release builds) ------------------------------------- */

/* What can be made to go wrong. A set of them is a sum. */
enum {
    MDP_FAULT_IO = 1,      /* an operation on files, folders or HDF5 fails as a whole */
    MDP_FAULT_ALLOC = 2,   /* memory, a thread, an MPI type, or JSON cannot be made */
    MDP_FAULT_SHORT = 4,   /* a system call is interrupted or transfers a part: to be survived */
    MDP_FAULT_ENOSPC = 8,  /* a system call that writes finds the disk full */
    MDP_FAULT_EIO = 16,    /* a system call fails in the device */
    MDP_FAULT_DEFAULT = 3, /* io and alloc */
};
/* Make every `every`-th fallible operation of this process fail from now on (0: never). `seed` shifts the first. */
void mdp_fault_configure(int64_t every, uint64_t seed);
/* Only these kinds of operations count and fail from now on (default: MDP_FAULT_DEFAULT). */
void mdp_fault_choose(unsigned kinds);
/* "io,short" -> the set. MDP_USAGE with the names that there are. */
mdp_status mdp_fault_parse(const char *text, unsigned *kinds);
/* Number of fallible operations counted so far (debug builds; 0 otherwise). */
int64_t mdp_fault_count(void);
/* One fallible operation named `what` ("read", "allocate", ...): an error of this code when its turn has
 * come. Every wrapper of a fallible system or library call begins with MDP_TRY(mdp_fault(...)). Thread-safe. */
mdp_status mdp_fault(mdp_code code, const char *what);
/* Before a system call: 0 (go on), the error with which it is to fail without being made, or MDP_FAULT_PART: it is to
 * transfer a part of what it was asked for. `writes`: it may fill the disk; `transfers`: it may stop half way. Two
 * calls in a row are never both interrupted by one thread, so a loop that tries again always ends. Thread-safe. */
int mdp_fault_call(bool writes, bool transfers);
#define MDP_FAULT_PART (-1)

/* ---- stopping on request ------------------------------------------------------------------------------------- */

/* Before anything else, and before exec: SIGUSR1 waits, and a write beyond `ulimit -f` fails instead of ending the
 * process. */
void mdp_stop_defer(void);
/* From now on SIGUSR1, one that waits too, only asks this process to stop. */
mdp_status mdp_stop_begin(void);
/* From now on SIGTERM asks likewise; a second one ends the process. The command looks at safe points
 * (mdp_watch_look_all). */
mdp_status mdp_stop_listen(void);
/* The signal that asked first; 0: none. */
int mdp_stop_signal(void);

/* ---- memory -------------------------------------------------------------------------------------------------- */

/* Allocate n elements of `size` bytes, zeroed, aligned to 64 bytes; *out is set (n = 0 gives a valid pointer).
 * `what` names it in the error sentence. Free with mdp_free. */
mdp_status mdp_alloc(void **out, mdp_count_t n, size_t size, const char *what);
#define MDP_ALLOC(pointer, n, what) mdp_alloc((void **)(pointer), (n), sizeof **(pointer), (what))
/* Grow *out from old_n to n elements, keeping content, new part zeroed. */
mdp_status mdp_grow(void **out, mdp_count_t old_n, mdp_count_t n, size_t size, const char *what);
#define MDP_GROW(pointer, old_n, n, what) mdp_grow((void **)(pointer), (old_n), (n), sizeof **(pointer), (what))
void mdp_free(void *pointer); /* NULL is allowed */
/* Debug builds: the number of blocks that are not freed yet, and what the newest is for; else 0. Thread-safe. */
#define MDP_MEMORY_WHAT 32
int64_t mdp_memory_left(char what[MDP_MEMORY_WHAT]);
/* For json_set_alloc_funcs, with mdp_free: jansson's memory is among that. Never made to fail. */
void *mdp_memory_for_json(size_t n_byte);
/* Could this process have n_byte more (of address space: ulimit -v), for `what`? To be asked before a library takes
 * them that has no error for it, or that all ranks call together. */
mdp_status mdp_memory_spare(int64_t n_byte, const char *what);
/* Bytes of memory that an allocation of n_byte takes when the first `used` of them are written: a small one is taken
 * whole, a large one as it is touched. */
int64_t mdp_memory_taken(int64_t n_byte, int64_t used);
/* Duplicate text (to be freed with mdp_free). */
mdp_status mdp_copy_text(char **out, const char *text);
/* printf into a new text (to be freed with mdp_free). */
mdp_status mdp_format(char **out, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Memory that is given back in the reverse order of taking, and kept for the next time (stack.c). A mark says how much
 * was taken; returning to it gives back all that was taken since. Not for several threads at once. */
typedef struct mdp_stack mdp_stack;
typedef struct mdp_mark {
    int64_t n_byte;   /* taken */
    int64_t in_piece; /* of them, of the piece that the stack keeps */
    int64_t n_single; /* allocations of their own */
} mdp_mark;
mdp_status mdp_stack_new(mdp_stack **out); /* *out is freed with mdp_stack_destroy */
void mdp_stack_destroy(mdp_stack *stack);  /* NULL is allowed */
mdp_mark mdp_stack_mark(const mdp_stack *stack);
void mdp_stack_return(mdp_stack *stack, mdp_mark mark);
/* n elements of `size` bytes, aligned to 64 bytes, not cleared; the stack's own until they are returned. */
mdp_status mdp_stack_take(mdp_stack *stack, void **out, mdp_count_t n, size_t size, const char *what);
#define MDP_TAKE(stack, pointer, n, what) mdp_stack_take((stack), (void **)(pointer), (n), sizeof **(pointer), (what))

bool mdp_memory_is_watched(void); /* by a sanitizer, allocation by allocation */
int64_t mdp_memory_peak(void);    /* bytes, high-water mark of this process' resident set; 0 when unknown */
/* Bytes of this process' own memory now, and its share of what is read from files (programs and libraries, mostly) when
 * n_process have it in common; 0 when unknown. */
int64_t mdp_memory_share(int n_process);

/* Narrow a count to int; the error names `what` and the value. */
mdp_status mdp_int_cast(int64_t value, const char *what, int *out);
/* a * b and a + b with overflow and negative operands refused (false). */
bool mdp_multiply(int64_t a, int64_t b, int64_t *out);
bool mdp_add(int64_t a, int64_t b, int64_t *out);

/* ---- files --------------------------------------------------------------------------------------------------- */
/* Thin wrappers round POSIX: retry on EINTR, loop over short transfers, one sentence with path and reason. */

/* A file: neither a folder nor anything special, which could let a reader wait for ever. */
mdp_status mdp_file_open_read(const char *path, int *fd);
mdp_status mdp_file_create(const char *path, int *fd);     /* read-write, must not exist; MDP_CANNOT_CREATE */
mdp_status mdp_file_open_write(const char *path, int *fd); /* read-write, no symbolic link */
/* Could n more files be opened? To be asked before a library that all ranks call together opens some on one. */
#define MDP_FILE_SPARE 8 /* most that can be asked for */
mdp_status mdp_file_spare(int n);
mdp_status mdp_file_close(const char *path, int fd); /* a failing close of a written file is an error */
mdp_status mdp_file_size(const char *path, int fd, int64_t *n_byte);
/* Time of the last change of an open file, or of what is at `path` (fd -1), in nanoseconds. */
mdp_status mdp_file_changed(const char *path, int fd, int64_t *time);
mdp_status mdp_file_pread(const char *path, int fd, void *buffer, int64_t n_byte, int64_t offset);
mdp_status mdp_file_pwrite(const char *path, int fd, const void *buffer, int64_t n_byte, int64_t offset);
/* Ask the system to begin reading these bytes from disk; it may not. */
void mdp_file_announce(int fd, int64_t offset, int64_t n_byte);
/* Ask the system to begin writing these bytes to disk, so that a later mdp_file_sync has less to wait for. */
void mdp_file_begin_sync(int fd, int64_t offset, int64_t n_byte);
mdp_status mdp_file_sync(const char *path, int fd);
mdp_status mdp_folder_sync(const char *path); /* fsync of a directory, after a rename in it */
mdp_status mdp_file_rename(const char *from, const char *to);
/* The same, where nothing is at `to`; MDP_CANNOT_CREATE when something has appeared there. */
mdp_status mdp_file_rename_new(const char *from, const char *to);
/* Whole small file into a new buffer with a 0 byte added; refused when larger than max_byte. */
mdp_status mdp_file_read_all(const char *path, int64_t max_byte, char **text, int64_t *n_byte);
/* Write a whole small file through path.partial, fsync, rename, fsync of the folder. */
mdp_status mdp_file_write_all(const char *path, const void *data, int64_t n_byte);
/* What lies at a path, itself: links are not followed. */
typedef enum mdp_path_kind {
    MDP_PATH_NOTHING,
    MDP_PATH_FILE,
    MDP_PATH_FOLDER,
    MDP_PATH_LINK,
    MDP_PATH_SPECIAL
} mdp_path_kind;
mdp_path_kind mdp_path_look(const char *path);
/* What something special is, for sentences: "a device", "a FIFO", "a socket". Links are followed. */
const char *mdp_path_special(const char *path);
bool mdp_path_exists(const char *path);
bool mdp_path_is_folder(const char *path); /* or a link to one */
bool mdp_path_is_link(const char *path);
/* folder + "/" + name as a new text. */
mdp_status mdp_path_join(char **out, const char *folder, const char *name);
/* What follows the last slash of a path; borrowed. */
const char *mdp_path_name(const char *path);
/* Folder part of a path ("." when there is none) as a new text. */
mdp_status mdp_path_folder(char **out, const char *path);
/* The path without slashes at its end, as a new text. */
mdp_status mdp_path_trim(char **out, const char *path);
/* Names in a folder but for "." and "..", in byte order. */
typedef struct mdp_names {
    int64_t n, capacity;
    char **name; /* [n] owned */
} mdp_names;
mdp_status mdp_names_add(mdp_names *names, const char *name);  /* at the end */
void mdp_names_sort(mdp_names *names);                         /* by bytes */
bool mdp_names_have(const mdp_names *names, const char *name); /* of sorted names */
void mdp_names_clear(mdp_names *names);
/* *out is to be cleared on error too. MDP_IO. */
mdp_status mdp_folder_list(const char *path, mdp_names *out);
/* Create a folder (its parents must exist); existing folder is fine. */
mdp_status mdp_folder_create(const char *path);
/* Remove a folder and the regular files in it, not recursive; a missing folder is fine; of a symbolic link, itself
 * alone. For our own partial outputs. */
mdp_status mdp_folder_remove(const char *path);

/* What a file is that is not what was expected, by how it begins, as words for an error: "a Git LFS pointer, ...".
 * NULL: not known. In the second, `path` is opened; NULL also when it cannot be read. */
const char *mdp_recognise(const char *head, int64_t n_byte);
const char *mdp_recognise_file(const char *path);

/* ---- exact sums ---------------------------------------------------------------------------------------------- */

/* A sum of doubles without rounding: 320-bit two's complement fixed point, limb i has weight 2^(32 i - 160). Each
 * addend is rounded once to a multiple of 2^-160 (ties to even). Limbs are added as integers, so the order of
 * additions, and of MPI_SUM over ranks, cannot change the result. At most 2^30 additions between normalisations. */
#define MDP_LIMBS 10
typedef struct mdp_exact {
    int64_t limb[MDP_LIMBS];
} mdp_exact;

/* Add value; several threads may add to one sum. false (and no change) when it is not finite or |value| >= 2^159. */
bool mdp_exact_add(mdp_exact *sum, double value);
/* Carry, so that limbs 0..8 are in [0, 2^32) and limb 9 holds the sign: one form for one value. */
void mdp_exact_normalise(mdp_exact *sum);
/* The value, rounded once to double (to nearest, ties to even). Does not need normal form. */
double mdp_exact_value(const mdp_exact *sum);
/* Is the sum in [-2^159, 2^159), the range of the 320-bit number? A statistic beyond it is an error. */
bool mdp_exact_fits(const mdp_exact *sum);

static inline int64_t mdp_larger(int64_t a, int64_t b) {
    return a > b ? a : b;
}
static inline int64_t mdp_smaller(int64_t a, int64_t b) {
    return a < b ? a : b;
}
/* a / b rounded up; a >= 0, b > 0. */
static inline int64_t mdp_divide_up(int64_t a, int64_t b) {
    return (a + b - 1) / b;
}

/* Value rounded to 30 significant bits, to nearest: what decisions compare. */
double mdp_round30(double value);

/* ---- random numbers ------------------------------------------------------------------------------------------ */

/* 64 random bits that depend on (seed, stream, index) alone: no state, same on every rank. */
uint64_t mdp_random_bits(uint64_t seed, uint64_t stream, uint64_t index);
/* Uniform in [0, 1), 53 bits. */
double mdp_random_uniform(uint64_t seed, uint64_t stream, uint64_t index);

/* ---- text ---------------------------------------------------------------------------------------------------- */

/* "8GiB", "5GB", "512k", "1.5m" -> bytes or a plain count (k, m, g, t: powers of 1000; Ki, Mi, Gi, Ti of 1024; a
 * trailing B is allowed). false when it is not such a text or overflows. */
bool mdp_parse_size(const char *text, int64_t *out);
/* 281234567890 -> "281.2 GB"; 12345678 -> "12,345,678". Written to `out` (at least 32 bytes); returns out. */
char *mdp_print_bytes(char out[32], int64_t n_byte);
char *mdp_print_count(char out[32], int64_t n);
/* "90", "90s", "10min", "1.5h" -> seconds; false when it is not such a text. */
bool mdp_parse_seconds(const char *text, double *out);
char *mdp_print_seconds(char out[32], double seconds); /* "4.2 s", "3 min 10 s", "1 h 24 min" */
/* A weight or a speed as people give it: a number from 1e-12 to 1e12, beyond which what is made of it may be no number.
 * The text ends at `end`. */
bool mdp_parse_positive(const char *text, const char *end, double *out);
/* The next of comma-separated names, into `name` (as many bytes as **at has and a 0). A colon ends a name; *rest is
 * what follows it, up to *end, or NULL. A backslash before a comma, a colon or a backslash makes it part of the name.
 * *at moves to the entry after it, NULL after the last. */
void mdp_next_name(const char **at, char *name, const char **rest, const char **end);
/* The entry of names[n] nearest to `text` by edit distance, or NULL when none is within 3 edits. */
const char *mdp_nearest(const char *text, const char *const *names, int n);
double mdp_seconds(void); /* monotonic clock */

/* ---- texts of other people (show.c) -------------------------------------------------------------------------- */

/* UTF-8 that can move no cursor and hide no letter: no control characters, line separators, marks of direction? */
bool mdp_text_is_plain(const char *text);
/* A text with all that is not plain as \u001b or \xff, cut where `out` [n_byte] ends; returns out. Sentences of errors
 * and messages of the log have gone through it. */
char *mdp_text_show(char *out, size_t n_byte, const char *text);
/* Names that come into records must be plain: MDP_BAD_INPUT says that in `path` the name of `what` ("a side file") is
 * not. */
mdp_status mdp_name_check(const char *path, const char *what, const char *name);
/* To stdout, shown: printf, and a text as it is; newlines stay. The only ways there. */
void mdp_print(const char *format, ...) __attribute__((format(printf, 1, 2)));
void mdp_print_text(const char *text);
/* Words as a line that a shell reads as them, each in quotes where it must be. New text. */
mdp_status mdp_shell_line(int n_word, const char *const *words, char **out);

/* ---- log ----------------------------------------------------------------------------------------------------- */

/* Messages and progress go to stderr and, with time stamps, to run.log once it is opened. Only rank 0's log speaks. */
typedef enum mdp_level { MDP_LEVEL_ERROR, MDP_LEVEL_WARN, MDP_LEVEL_INFO, MDP_LEVEL_DEBUG } mdp_level;
typedef struct mdp_log mdp_log;

mdp_status mdp_log_new(mdp_log **out, bool speaks, mdp_level level);
void mdp_log_destroy(mdp_log *log);
mdp_status mdp_log_open_file(mdp_log *log, const char *path); /* append; speaks == false: nothing */
void mdp_log_message(mdp_log *log, mdp_level level, const char *format, ...) __attribute__((format(printf, 3, 4)));
/* One line for a failed command: "moe-dist-prune: <text>". In both, a log of NULL says nothing. */
void mdp_log_error(mdp_log *log, const mdp_status *status);

/* Progress of a phase of n_step steps (layers). On a terminal one line is redrawn; otherwise one line a step, at most
 * one every 10 s (the first and the last always). amount counts units ("tokens") per second. */
typedef struct mdp_progress mdp_progress;
mdp_status mdp_progress_new(mdp_progress **out, mdp_log *log, const char *phase, const char *step, int64_t n_step,
                            const char *unit);
void mdp_progress_update(mdp_progress *progress, int64_t n_done, double amount_done);
/* n_done steps were done by an earlier run: they do not count in speeds. */
void mdp_progress_go_on(mdp_progress *progress, int64_t n_done, double amount_done);
void mdp_progress_destroy(mdp_progress *progress); /* ends the line; NULL is allowed */

/* ---- JSON (jansson) ------------------------------------------------------------------------------------------ */

/* Parse text; `path` names it in errors. Duplicate keys are refused. The caller json_decref's *out. */
mdp_status mdp_json_parse(const char *text, int64_t n_byte, const char *path, json_t **out);
/* Required members of an object, with the type checked; errors name path and key. */
mdp_status mdp_json_int(const json_t *object, const char *key, const char *path, int64_t *out);
mdp_status mdp_json_real(const json_t *object, const char *key, const char *path, double *out);
mdp_status mdp_json_text(const json_t *object, const char *key, const char *path, const char **out); /* borrowed */
mdp_status mdp_json_array(const json_t *object, const char *key, const char *path, json_t **out);    /* borrowed */
/* What a value is, for error sentences: "null", "a text", ...; "missing" for NULL. */
const char *mdp_json_kind(const json_t *value);
/* Building: `value` (taken over in any case) as a member of an object, or at the end of a list. Nothing is lost unseen:
 * where a value is NULL (no memory, or a text that is no UTF-8) or cannot be put in, *container is released and becomes
 * NULL, and with it what it is put into, up to the root, which mdp_json_print refuses. */
void mdp_json_put(json_t **container, const char *key, json_t *value);
void mdp_json_add(json_t **container, json_t *value);
/* JSON has no infinity and no NaN: what does not exist, or is beyond numbers, is null. */
json_t *mdp_json_number_or_null(double value);
/* Print with 1-space indent, keys in insertion order, reals as %.9g, a newline at the end. New text. MDP_INTERNAL for
 * NULL. */
mdp_status mdp_json_print(const json_t *value, char **out);
void mdp_json_free(char *text); /* what json_dumps gave; NULL is allowed */

/* ---- checksum ------------------------------------------------------------------------------------------------ */

typedef struct mdp_hash mdp_hash; /* streaming XXH3-128 */
typedef struct mdp_digest {
    char hex[33]; /* 32 lower-case hex digits, high 64 bits first, and a 0 */
} mdp_digest;
mdp_status mdp_hash_new(mdp_hash **out);
void mdp_hash_reset(mdp_hash *hash);
void mdp_hash_update(mdp_hash *hash, const void *data, int64_t n_byte);
mdp_digest mdp_hash_digest(const mdp_hash *hash);
void mdp_hash_destroy(mdp_hash *hash);
mdp_digest mdp_hash_bytes(const void *data, int64_t n_byte);

/* Reorder value [n] so that value[at] is the one of that rank, with none larger before it and none smaller after. */
void mdp_select_rank(double *value, int64_t n, int64_t at);

#endif
