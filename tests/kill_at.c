/* kill_at.c - a library to preload: the process ends by SIGKILL at its KILL_AT-th system call that changes a file below
 * KILL_BELOW, before the call, or after it where KILL_AFTER is set. Only the rank KILL_RANK, where that is set. With
 * KILL_COUNT, a file, the number of such calls is written there at the end instead.
 *
 * At system calls, not at times: between any two of them a power cut, a node's failure or the end of a job may come. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

static atomic_long n_call;

static int is_our_rank(void) {
    const char *wanted = getenv("KILL_RANK"), *rank = getenv("OMPI_COMM_WORLD_RANK");
    return !wanted || !rank || strcmp(wanted, rank) == 0;
}

static int is_below(const char *path) {
    const char *below = getenv("KILL_BELOW");
    char real[PATH_MAX + 1], folder[PATH_MAX + 1];
    if (!below || !path) return 0;
    if (path[0] == '/') return strncmp(path, below, strlen(below)) == 0;
    if (!getcwd(folder, sizeof folder)) return 0;
    int n = snprintf(real, sizeof real, "%s/%s", folder, path);
    return n > 0 && strncmp(real, below, strlen(below)) == 0;
}

static int is_file_below(int fd) {
    char link[64], path[PATH_MAX + 1];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, PATH_MAX);
    if (n < 0) return 0;
    path[n] = '\0';
    return is_below(path);
}

/* Is this call the one? */
static int is_the_call(int concerned) {
    const char *at = getenv("KILL_AT");
    if (!concerned || !is_our_rank()) return 0;
    long n = atomic_fetch_add(&n_call, 1) + 1;
    return at && n == atol(at);
}

static void end_here(void) {
    kill(getpid(), SIGKILL);
    pause();
}

__attribute__((destructor)) static void tell(void) {
    const char *path = getenv("KILL_COUNT");
    FILE *file = path && is_our_rank() && n_call > 0 ? fopen(path, "w") : NULL;
    if (!file) return;
    fprintf(file, "%ld\n", (long)n_call);
    fclose(file);
}

#define CALL(type, name, concerned, pass_on)                                                                           \
    int the_call = is_the_call(concerned);                                                                             \
    if (the_call && !getenv("KILL_AFTER")) end_here();                                                                 \
    type result = pass_on;                                                                                             \
    if (the_call) end_here();                                                                                          \
    return result
#define NEXT(name, type) ((type)dlsym(RTLD_NEXT, name))

int rename(const char *from, const char *to) {
    CALL(int, "rename", is_below(to), NEXT("rename", int (*)(const char *, const char *))(from, to));
}
int renameat2(int a, const char *from, int b, const char *to, unsigned flags) {
    CALL(int, "renameat2", is_below(to),
         NEXT("renameat2", int (*)(int, const char *, int, const char *, unsigned))(a, from, b, to, flags));
}
int link(const char *from, const char *to) {
    CALL(int, "link", is_below(to), NEXT("link", int (*)(const char *, const char *))(from, to));
}
int unlink(const char *path) {
    CALL(int, "unlink", is_below(path), NEXT("unlink", int (*)(const char *))(path));
}
int unlinkat(int folder, const char *path, int flags) {
    CALL(int, "unlinkat", is_file_below(folder),
         NEXT("unlinkat", int (*)(int, const char *, int))(folder, path, flags));
}
int rmdir(const char *path) {
    CALL(int, "rmdir", is_below(path), NEXT("rmdir", int (*)(const char *))(path));
}
int mkdir(const char *path, mode_t mode) {
    CALL(int, "mkdir", is_below(path), NEXT("mkdir", int (*)(const char *, mode_t))(path, mode));
}
int fsync(int fd) {
    CALL(int, "fsync", is_file_below(fd), NEXT("fsync", int (*)(int))(fd));
}
int ftruncate(int fd, off_t n) {
    CALL(int, "ftruncate", is_file_below(fd), NEXT("ftruncate", int (*)(int, off_t))(fd, n));
}
int ftruncate64(int fd, off_t n) {
    CALL(int, "ftruncate64", is_file_below(fd), NEXT("ftruncate64", int (*)(int, off_t))(fd, n));
}
ssize_t write(int fd, const void *data, size_t n) {
    CALL(ssize_t, "write", is_file_below(fd), NEXT("write", ssize_t(*)(int, const void *, size_t))(fd, data, n));
}
ssize_t pwrite(int fd, const void *data, size_t n, off_t at) {
    CALL(ssize_t, "pwrite", is_file_below(fd),
         NEXT("pwrite", ssize_t(*)(int, const void *, size_t, off_t))(fd, data, n, at));
}
ssize_t pwrite64(int fd, const void *data, size_t n, off_t at) {
    CALL(ssize_t, "pwrite64", is_file_below(fd),
         NEXT("pwrite64", ssize_t(*)(int, const void *, size_t, off_t))(fd, data, n, at));
}
ssize_t pwritev(int fd, const struct iovec *parts, int n, off_t at) {
    CALL(ssize_t, "pwritev", is_file_below(fd),
         NEXT("pwritev", ssize_t(*)(int, const struct iovec *, int, off_t))(fd, parts, n, at));
}

#define OPEN(name, type)                                                                                               \
    int name(const char *path, int flags, ...) {                                                                       \
        va_list more;                                                                                                  \
        va_start(more, flags);                                                                                         \
        mode_t mode = flags & O_CREAT ? va_arg(more, mode_t) : 0;                                                      \
        va_end(more);                                                                                                  \
        CALL(int, #name, (flags & O_CREAT) && is_below(path),                                                          \
             NEXT(#name, int (*)(const char *, int, ...))(path, flags, mode));                                         \
    }
OPEN(open, )
OPEN(open64, )
