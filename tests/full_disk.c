/* full_disk.c - a library to preload: files named *.partial meet a full disk once they would pass FULL_DISK_BYTES, and
 * every file system says that it has FREE_BYTES free. Either may be left out.
 *
 * What a small file system cannot show, since the program asks for free space before it writes: a disk that runs full
 * in the middle, because others write to it. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>
#include <sys/uio.h>
#include <unistd.h>

static int full(int fd, off_t end) {
    char link[64], path[4096];
    if (!getenv("FULL_DISK_BYTES")) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    int before = errno;
    ssize_t n = readlink(link, path, sizeof path - 1);
    errno = before; /* what succeeds leaves errno alone */
    if (n < 0) return 0;
    path[n] = '\0';
    return strstr(path, ".partial") && end > atol(getenv("FULL_DISK_BYTES"));
}

#define PASS_ON(name, type, ...) return ((type)dlsym(RTLD_NEXT, name))(__VA_ARGS__)
typedef ssize_t pwrite_fn(int, const void *, size_t, off_t);
typedef ssize_t pwritev_fn(int, const struct iovec *, int, off_t);
typedef ssize_t write_fn(int, const void *, size_t);

static ssize_t no_space(void) {
    errno = ENOSPC;
    return -1;
}

ssize_t pwrite(int fd, const void *data, size_t n, off_t at) {
    if (full(fd, at + (off_t)n)) return no_space();
    PASS_ON("pwrite", pwrite_fn *, fd, data, n, at);
}

ssize_t pwrite64(int fd, const void *data, size_t n, off_t at) {
    return pwrite(fd, data, n, at);
}

ssize_t pwritev(int fd, const struct iovec *parts, int n, off_t at) {
    off_t end = at;
    for (int i = 0; i < n; i++) end += (off_t)parts[i].iov_len;
    if (full(fd, end)) return no_space();
    PASS_ON("pwritev", pwritev_fn *, fd, parts, n, at);
}

ssize_t pwritev64(int fd, const struct iovec *parts, int n, off_t at) {
    return pwritev(fd, parts, n, at);
}

ssize_t write(int fd, const void *data, size_t n) {
    int before = errno;
    off_t at = lseek(fd, 0, SEEK_CUR); /* of a pipe it fails */
    errno = before;
    if (full(fd, at + (off_t)n)) return no_space();
    PASS_ON("write", write_fn *, fd, data, n);
}

typedef int statvfs_fn(const char *, struct statvfs *);

int statvfs(const char *path, struct statvfs *out) {
    int code = ((statvfs_fn *)dlsym(RTLD_NEXT, "statvfs"))(path, out);
    if (code != 0 || !getenv("FREE_BYTES")) return code;
    out->f_frsize = 1;
    out->f_bavail = (fsblkcnt_t)atol(getenv("FREE_BYTES"));
    return 0;
}
