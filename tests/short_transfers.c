/* short_transfers.c - a library to preload: reads and writes of regular files transfer a part, or are interrupted.
 *
 * What signals, quotas and some network file systems do, and local disks never. Of the calls of a thread every third is
 * interrupted (EINTR) and every other moves about half of what it was asked for; none fails twice in a row, so a loop
 * that tries again always ends. Left alone are other descriptors (pipes, sockets of the launcher) and, unless
 * DISTURB_MPI is set, calls of the MPI library's own input and output: Open MPI 4.1 takes EINTR for an error. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

static int is_mpi(const void *caller) {
    Dl_info info;
    return dladdr(caller, &info) && (strstr(info.dli_fname, "mca_") || strstr(info.dli_fname, "libmpi"));
}

/* How many of n bytes this call moves; -1: interrupted. */
static ssize_t part(int fd, size_t n, const void *caller) {
    static _Thread_local unsigned n_call;
    struct stat info;
    if (n < 2 || fstat(fd, &info) != 0 || !S_ISREG(info.st_mode)) return (ssize_t)n;
    if (is_mpi(caller) && !getenv("DISTURB_MPI")) return (ssize_t)n;
    n_call++;
    if (n_call % 3 == 0) {
        errno = EINTR;
        return -1;
    }
    return (ssize_t)(n_call % 2 ? n / 2 : n);
}

#define CALLER __builtin_return_address(0)
#define PASS_ON(name, type, ...) return ((type)dlsym(RTLD_NEXT, name))(__VA_ARGS__)
#define MAKE_AT(name, pointer)                                                                                         \
    ssize_t name(int fd, pointer data, size_t n, off_t at) {                                                           \
        ssize_t now = part(fd, n, CALLER);                                                                             \
        if (now < 0) return -1;                                                                                        \
        PASS_ON(#name, ssize_t (*)(int, pointer, size_t, off_t), fd, data, (size_t)now, at);                           \
    }
#define MAKE(name, pointer)                                                                                            \
    ssize_t name(int fd, pointer data, size_t n) {                                                                     \
        ssize_t now = part(fd, n, CALLER);                                                                             \
        if (now < 0) return -1;                                                                                        \
        PASS_ON(#name, ssize_t (*)(int, pointer, size_t), fd, data, (size_t)now);                                      \
    }

MAKE_AT(pread, void *)
MAKE_AT(pread64, void *)
MAKE_AT(pwrite, const void *)
MAKE_AT(pwrite64, const void *)
MAKE(read, void *)
MAKE(write, const void *)
