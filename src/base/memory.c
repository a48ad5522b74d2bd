/* memory.c - memory with checked sizes, and what this process uses of it.
 *
 * Owns: every allocation of libmdp (64-byte aligned, zeroed, so that no uninitialised byte can reach a file), in debug
 * builds a list of those that are not freed yet, texts built by copying or printing, and checked integer arithmetic for
 * sizes. Refuses: sizes that overflow. */
#include "mdp/base.h"

#include <inttypes.h>
#include <limits.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>

#define ALIGNMENT 64

/* From this size memory is mapped: the kernel hands out zero pages as they are touched, so a large buffer of which
 * little is used costs little, and freeing gives it back. Sanitizers watch the heap only, so with them all is heap. */
#if defined(__has_feature) /* clang's way of telling */
#if __has_feature(address_sanitizer)
#define __SANITIZE_ADDRESS__ 1 /* gcc's */
#endif
#endif
#ifdef __SANITIZE_ADDRESS__
#define WATCHED true
#define MAPPED_BYTE INT64_MAX
#else
#define WATCHED false
#define MAPPED_BYTE ((int64_t)1 << 20)
#endif

/* From this size pages of 2 MiB are asked for: fewer of them to fault in and to translate, and at most a quarter of the
 * buffer is touched in vain. */
#define HUGE_BYTE ((size_t)8 << 20)
#define HUGE_PAGE_BYTE ((int64_t)2 << 20)
#define PAGE_BYTE ((int64_t)4096)

/* Stands ALIGNMENT bytes before every allocation. */
typedef struct header {
    size_t mapped; /* bytes of the mapping; 0: from the heap */
#ifdef MDP_DEBUG_HOOKS
    struct header *before, *after; /* in the list of all */
    char what[MDP_MEMORY_WHAT];
#endif
} header;

bool mdp_memory_is_watched(void) {
    return WATCHED;
}

bool mdp_multiply(int64_t a, int64_t b, int64_t *out) {
    if (a < 0 || b < 0) return false;
    return !__builtin_mul_overflow(a, b, out);
}

bool mdp_add(int64_t a, int64_t b, int64_t *out) {
    if (a < 0 || b < 0) return false;
    return !__builtin_add_overflow(a, b, out);
}

mdp_status mdp_int_cast(int64_t value, const char *what, int *out) {
    if (value < INT_MIN || value > INT_MAX)
        return MDP_ERROR(MDP_INTERNAL,
                         "%s is %" PRId64 ", more than the %d that one library call takes; use more ranks.", what,
                         value, INT_MAX);
    *out = (int)value;
    return mdp_ok();
}

#ifdef MDP_DEBUG_HOOKS

static pthread_mutex_t list_lock = PTHREAD_MUTEX_INITIALIZER;
static header list = {.before = &list, .after = &list}; /* the newest comes first */

static void enlist(header *block, const char *what) {
    snprintf(block->what, sizeof block->what, "%s", what);
    pthread_mutex_lock(&list_lock);
    block->before = &list;
    block->after = list.after;
    list.after->before = block;
    list.after = block;
    pthread_mutex_unlock(&list_lock);
}

static void strike_off(header *block) {
    pthread_mutex_lock(&list_lock);
    block->before->after = block->after;
    block->after->before = block->before;
    pthread_mutex_unlock(&list_lock);
}

int64_t mdp_memory_left(char what[MDP_MEMORY_WHAT]) {
    int64_t n = 0;
    pthread_mutex_lock(&list_lock);
    for (const header *block = list.after; block != &list; block = block->after)
        if (n++ == 0) memcpy(what, block->what, MDP_MEMORY_WHAT);
    pthread_mutex_unlock(&list_lock);
    return n;
}

#else

static void enlist(header *block, const char *what) {
    (void)block;
    (void)what;
}

static void strike_off(header *block) {
    (void)block;
}

int64_t mdp_memory_left(char what[MDP_MEMORY_WHAT]) {
    what[0] = '\0';
    return 0;
}

#endif

static void *from_heap(size_t n_byte) {
    void *memory = aligned_alloc(ALIGNMENT, n_byte);
    if (memory) memset(memory, 0, n_byte);
    return memory;
}

static void *from_kernel(size_t n_byte) {
    void *memory = mmap(NULL, n_byte, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) return NULL;
    /* without effect where the system has none */
    if (n_byte >= HUGE_BYTE) (void)madvise(memory, n_byte, MADV_HUGEPAGE);
    ((header *)memory)->mapped = n_byte;
    return memory;
}

/* Zeroed memory of n_byte bytes behind a header, or NULL; the size is a multiple of the alignment, as aligned_alloc
 * wants it. */
static void *take(int64_t n_byte, const char *what) {
    int64_t padded;
    if (!mdp_add(n_byte, 2 * ALIGNMENT - 1, &padded)) return NULL;
    padded -= padded % ALIGNMENT;
    char *memory = padded >= MAPPED_BYTE ? from_kernel((size_t)padded) : from_heap((size_t)padded);
    if (!memory) return NULL;
    enlist((header *)memory, what);
    return memory + ALIGNMENT;
}

static mdp_status allocate(void **out, int64_t n_byte, const char *what) {
    char size[32];
    MDP_TRY(mdp_fault(MDP_EXHAUSTED, "allocate"));
    *out = take(n_byte, what);
    if (*out) return mdp_ok();
    return MDP_ERROR(MDP_EXHAUSTED,
                     "cannot allocate %s for %s; use more nodes, fewer ranks a node, or a smaller --batch-tokens.",
                     mdp_print_bytes(size, n_byte), what);
}

mdp_status mdp_alloc(void **out, mdp_count_t n, size_t size, const char *what) {
    void *memory = NULL;
    memcpy(out, &memory, sizeof memory); /* *out is a pointer of any type: not to be written as a void * lvalue */
    int64_t n_byte;
    if (size > INT64_MAX || !mdp_multiply(n, (int64_t)size, &n_byte))
        return MDP_ERROR(MDP_EXHAUSTED, "cannot allocate %" PRId64 " elements of %zu bytes for %s.", n, size, what);
    MDP_TRY(allocate(&memory, n_byte, what));
    memcpy(out, &memory, sizeof memory);
    return mdp_ok();
}

void *mdp_memory_for_json(size_t n_byte) {
    return n_byte > INT64_MAX ? NULL : take((int64_t)n_byte, "JSON");
}

mdp_status mdp_grow(void **out, mdp_count_t old_n, mdp_count_t n, size_t size, const char *what) {
    if (old_n < 0 || n < old_n)
        return MDP_ERROR(MDP_INTERNAL, "cannot grow %s from %" PRId64 " to %" PRId64 " elements.", what, old_n, n);
    void *old, *memory;
    memcpy(&old, out, sizeof old);
    MDP_TRY(mdp_alloc(&memory, n, size, what));
    if (old && old_n > 0) memcpy(memory, old, (size_t)old_n * size);
    mdp_free(old);
    memcpy(out, &memory, sizeof memory);
    return mdp_ok();
}

void mdp_free(void *pointer) {
    if (!pointer) return;
    void *memory = (char *)pointer - ALIGNMENT;
    strike_off(memory);
    size_t mapped = ((header *)memory)->mapped;
    if (mapped > 0)
        munmap(memory, mapped);
    else
        free(memory);
}

mdp_status mdp_memory_spare(int64_t n_byte, const char *what) {
    char size[32];
    MDP_TRY(mdp_fault(MDP_EXHAUSTED, "allocate"));
    void *memory = mmap(NULL, (size_t)n_byte, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        return MDP_ERROR(MDP_EXHAUSTED,
                         "this process may not have %s more of memory, which %s; raise its limit (ulimit -v, or h_vmem "
                         "of the batch system), or use fewer threads.",
                         mdp_print_bytes(size, n_byte), what);
    munmap(memory, (size_t)n_byte);
    return mdp_ok();
}

mdp_status mdp_copy_text(char **out, const char *text) {
    size_t length = strlen(text);
    MDP_TRY(MDP_ALLOC(out, (int64_t)length + 1, "a text"));
    memcpy(*out, text, length);
    return mdp_ok();
}

mdp_status mdp_format(char **out, const char *format, ...) {
    *out = NULL;
    va_list arguments, again;
    va_start(arguments, format);
    va_copy(again, arguments);
    int length = vsnprintf(NULL, 0, format, arguments);
    va_end(arguments);
    mdp_status status;
    if (length < 0)
        status = MDP_ERROR(MDP_INTERNAL, "cannot print a text with the format '%s'.", format);
    else
        status = MDP_ALLOC(out, (int64_t)length + 1, "a text");
    if (status.code == MDP_OK) vsnprintf(*out, (size_t)length + 1, format, again);
    va_end(again);
    return status;
}

int64_t mdp_memory_taken(int64_t n_byte, int64_t used) {
    if (n_byte < MAPPED_BYTE || used >= n_byte) return n_byte;
    if (used == 0) return 0;
    int64_t page = (size_t)n_byte < HUGE_BYTE ? PAGE_BYTE : HUGE_PAGE_BYTE; /* where `used` ends, less than one more */
    return used + page < n_byte ? used + page : n_byte;
}

/* The number of kB behind `key` in a file of /proc, in bytes; 0 when there is none. */
static int64_t proc_value(const char *path, const char *key) {
    FILE *file = fopen(path, "r");
    if (!file) return 0;
    char line[256];
    long long kilobyte = 0;
    size_t length = strlen(key);
    while (fgets(line, sizeof line, file)) {
        if (strncmp(line, key, length) == 0) {
            kilobyte = strtoll(line + length, NULL, 10);
            break;
        }
    }
    fclose(file);
    return kilobyte * 1024;
}

int64_t mdp_memory_peak(void) {
    /* VmHWM first: ru_maxrss survives exec, so it may be the launcher's. */
    int64_t peak = proc_value("/proc/self/status", "VmHWM:");
    if (peak > 0) return peak;
    struct rusage usage;
    return getrusage(RUSAGE_SELF, &usage) == 0 ? (int64_t)usage.ru_maxrss * 1024 : 0;
}

/* Not the proportional set size: that depends on what else runs, now and later. */
int64_t mdp_memory_share(int n_process) {
    static const char *const common[] = {"Private_Clean:", "Shared_Clean:", "Shared_Dirty:"};
    const char *path = "/proc/self/smaps_rollup";
    int64_t n_byte = 0;
    for (size_t i = 0; i < sizeof common / sizeof common[0]; i++) n_byte += proc_value(path, common[i]);
    return proc_value(path, "Private_Dirty:") + n_byte / n_process;
}
