/* file.c - files and folders through POSIX.
 *
 * Owns: retry on EINTR, loops over short transfers, and the sentence of every failure: path, bytes, reason. A file
 * that ends early is bad input; a system call that fails is I/O; an output that cannot come to be is "cannot create".
 * Small files are written whole or not at all (partial name, fsync, rename, fsync of the folder). */
#include "mdp/base.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define TRANSFER_BYTE (INT64_C(1) << 30) /* one pread or pwrite; the kernel itself stops below 2 GiB */

/* "path: cannot <verb>: reason." with what to do where a reason has an obvious remedy. */
static mdp_status system_error(mdp_code code, const char *path, const char *verb, int error) {
    if (error == ENOSPC || error == EDQUOT)
        return MDP_ERROR(code,
                         "%s: cannot %s: no space left on the file system (%s). Free some space or choose another "
                         "--out.",
                         path, verb, strerror(error));
    if (error == EFBIG)
        return MDP_ERROR(code, "%s: cannot %s: %s. Raise the limit (ulimit -f), or choose another --out.", path, verb,
                         strerror(error));
    if (error == EMFILE || error == ENFILE)
        return MDP_ERROR(code, "%s: cannot %s: %s. Raise the limit (ulimit -n).", path, verb, strerror(error));
    return MDP_ERROR(code, "%s: cannot %s: %s.", path, verb, strerror(error));
}

/* System calls, which tests can make fail: -1 and errno, or fewer bytes than asked for. */
static int refused(int fault) {
    errno = fault;
    return -1;
}

static int open_once(const char *path, int flags) {
    int fault = mdp_fault_call((flags & O_CREAT) != 0, false);
    return fault ? refused(fault) : open(path, flags | O_CLOEXEC, 0666);
}

static ssize_t pread_once(int fd, void *buffer, int64_t n_byte, int64_t offset) {
    int fault = mdp_fault_call(false, true);
    if (fault > 0) return refused(fault);
    return pread(fd, buffer, (size_t)(fault ? (n_byte + 1) / 2 : n_byte), offset);
}

static ssize_t pwrite_once(int fd, const void *buffer, int64_t n_byte, int64_t offset) {
    int fault = mdp_fault_call(true, true);
    if (fault > 0) return refused(fault);
    return pwrite(fd, buffer, (size_t)(fault ? (n_byte + 1) / 2 : n_byte), offset);
}

static int fsync_once(int fd) {
    int fault = mdp_fault_call(true, false);
    return fault ? refused(fault) : fsync(fd);
}

static int open_retry(const char *path, int flags) {
    int fd;
    do fd = open_once(path, flags);
    while (fd < 0 && errno == EINTR);
    return fd;
}

static int fsync_retry(int fd) {
    int code;
    do code = fsync_once(fd);
    while (code != 0 && errno == EINTR);
    return code;
}

/* What is there is a file. Nothing at all is for open to say. */
static mdp_status check_is_file(const char *path, const struct stat *info) {
    if (S_ISREG(info->st_mode)) return mdp_ok();
    return MDP_ERROR(MDP_BAD_INPUT, "%s: expected a file, found %s.", path,
                     S_ISDIR(info->st_mode) ? "a folder" : mdp_path_special(path));
}

mdp_status mdp_file_open_read(const char *path, int *fd) {
    struct stat info;
    *fd = -1;
    MDP_TRY(mdp_fault(MDP_IO, "open for reading"));
    if (stat(path, &info) == 0) MDP_TRY(check_is_file(path, &info)); /* opening a device may do something */
    int opened = open_retry(path, O_RDONLY | O_NONBLOCK);
    if (opened < 0) {
        bool absent = errno == ENOENT || errno == ENOTDIR;
        return system_error(absent ? MDP_BAD_INPUT : MDP_IO, path, "open for reading", errno);
    }
    mdp_status status = fstat(opened, &info) == 0 ? check_is_file(path, &info) : mdp_ok();
    if (status.code == MDP_OK)
        *fd = opened;
    else
        close(opened);
    return status;
}

mdp_status mdp_file_create(const char *path, int *fd) {
    *fd = -1;
    MDP_TRY(mdp_fault(MDP_CANNOT_CREATE, "create a file"));
    int opened = open_retry(path, O_RDWR | O_CREAT | O_EXCL);
    if (opened < 0 && errno == EEXIST)
        return MDP_ERROR(MDP_CANNOT_CREATE, "%s: exists already. Choose another name, or remove it.", path);
    if (opened < 0) return system_error(MDP_CANNOT_CREATE, path, "create", errno);
    *fd = opened;
    return mdp_ok();
}

mdp_status mdp_file_open_write(const char *path, int *fd) {
    *fd = -1;
    MDP_TRY(mdp_fault(MDP_IO, "open for writing"));
    int opened = open_retry(path, O_RDWR | O_NOFOLLOW);
    if (opened < 0) return system_error(MDP_IO, path, "open for writing", errno);
    *fd = opened;
    return mdp_ok();
}

mdp_status mdp_file_spare(int n) {
    int fd = -1, n_open = 0, opened[MDP_FILE_SPARE];
    for (; n_open < n && n_open < MDP_FILE_SPARE; n_open++) {
        fd = open("/", O_PATH | O_CLOEXEC);
        if (fd < 0) break;
        opened[n_open] = fd;
    }
    int error = fd < 0 ? errno : 0;
    while (n_open > 0) close(opened[--n_open]);
    if (error == 0) return mdp_ok();
    return MDP_ERROR(MDP_EXHAUSTED, "no %d more files can be opened: %s. Raise the limit (ulimit -n).", n,
                     strerror(error));
}

mdp_status mdp_file_close(const char *path, int fd) {
    /* The descriptor is released even when the error is made up or real; after EINTR it is closed on Linux. */
    int error = close(fd) == 0 ? 0 : errno;
    MDP_TRY(mdp_fault(MDP_IO, "close"));
    return error == 0 || error == EINTR ? mdp_ok() : system_error(MDP_IO, path, "close", error);
}

mdp_status mdp_file_size(const char *path, int fd, int64_t *n_byte) {
    MDP_TRY(mdp_fault(MDP_IO, "stat"));
    struct stat info;
    if (fstat(fd, &info) != 0) return system_error(MDP_IO, path, "find the size", errno);
    *n_byte = info.st_size;
    return mdp_ok();
}

mdp_status mdp_file_changed(const char *path, int fd, int64_t *time) {
    struct stat info;
    MDP_TRY(mdp_fault(MDP_IO, "stat"));
    if ((fd < 0 ? stat(path, &info) : fstat(fd, &info)) != 0)
        return system_error(MDP_IO, path, "find the time of the last change", errno);
    *time = (int64_t)info.st_mtim.tv_sec * 1000000000 + info.st_mtim.tv_nsec;
    return mdp_ok();
}

mdp_status mdp_file_pread(const char *path, int fd, void *buffer, int64_t n_byte, int64_t offset) {
    MDP_TRY(mdp_fault(MDP_IO, "read"));
    char from[32], to[32], end[32];
    int64_t done = 0;
    while (done < n_byte) {
        int64_t wanted = n_byte - done < TRANSFER_BYTE ? n_byte - done : TRANSFER_BYTE;
        ssize_t got = pread_once(fd, (char *)buffer + done, wanted, offset + done);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0)
            return MDP_ERROR(MDP_IO, "%s: cannot read bytes %s to %s: %s.", path, mdp_print_count(from, offset),
                             mdp_print_count(to, offset + n_byte), strerror(errno));
        if (got == 0)
            return MDP_ERROR(MDP_BAD_INPUT,
                             "%s: ends at byte %s, but bytes %s to %s were expected. The file is truncated.", path,
                             mdp_print_count(end, offset + done), mdp_print_count(from, offset),
                             mdp_print_count(to, offset + n_byte));
        done += got;
    }
    return mdp_ok();
}

mdp_status mdp_file_pwrite(const char *path, int fd, const void *buffer, int64_t n_byte, int64_t offset) {
    MDP_TRY(mdp_fault(MDP_IO, "write"));
    int64_t done = 0;
    while (done < n_byte) {
        int64_t wanted = n_byte - done < TRANSFER_BYTE ? n_byte - done : TRANSFER_BYTE;
        ssize_t put = pwrite_once(fd, (const char *)buffer + done, wanted, offset + done);
        if (put < 0 && errno == EINTR) continue;
        if (put <= 0) {
            char verb[100], from[32], to[32];
            int error = put == 0 ? ENOSPC : errno;
            snprintf(verb, sizeof verb, "write bytes %s to %s", mdp_print_count(from, offset + done),
                     mdp_print_count(to, offset + n_byte));
            return system_error(MDP_IO, path, verb, error);
        }
        done += put;
    }
    return mdp_ok();
}

void mdp_file_begin_sync(int fd, int64_t offset, int64_t n_byte) {
#ifdef SYNC_FILE_RANGE_WRITE
    (void)sync_file_range(fd, offset, n_byte, SYNC_FILE_RANGE_WRITE); /* errors come back from fsync */
#else
    (void)fd, (void)offset, (void)n_byte;
#endif
}

void mdp_file_announce(int fd, int64_t offset, int64_t n_byte) {
    (void)posix_fadvise(fd, offset, n_byte, POSIX_FADV_WILLNEED);
}

mdp_status mdp_file_sync(const char *path, int fd) {
    MDP_TRY(mdp_fault(MDP_IO, "fsync"));
    return fsync_retry(fd) == 0 ? mdp_ok() : system_error(MDP_IO, path, "flush to disk", errno);
}

mdp_status mdp_folder_sync(const char *path) {
    MDP_TRY(mdp_fault(MDP_IO, "fsync of a folder"));
    int fd = open_retry(path, O_RDONLY | O_DIRECTORY);
    if (fd < 0) return system_error(MDP_IO, path, "open the folder", errno);
    int error = fsync_retry(fd) == 0 ? 0 : errno;
    close(fd);
    /* Some network file systems do not know fsync of a folder; there is nothing more to be done there. */
    return error == 0 || error == EINVAL ? mdp_ok() : system_error(MDP_IO, path, "flush the folder to disk", error);
}

mdp_status mdp_file_rename(const char *from, const char *to) {
    MDP_TRY(mdp_fault(MDP_IO, "rename"));
    if (rename(from, to) == 0) return mdp_ok();
    int error = errno;
    return MDP_ERROR(MDP_IO, "%s: cannot rename to %s: %s.", from, to, strerror(error));
}

/* Size, buffer and bytes of an open file. */
static mdp_status read_open_file(const char *path, int fd, int64_t max_byte, char **text, int64_t *n_byte) {
    int64_t size;
    MDP_TRY(mdp_file_size(path, fd, &size));
    if (size > max_byte) {
        char found[32], most[32];
        return MDP_ERROR(MDP_BAD_INPUT, "%s: has %s bytes; at most %s are accepted for a file of this kind.", path,
                         mdp_print_count(found, size), mdp_print_count(most, max_byte));
    }
    MDP_TRY(MDP_ALLOC(text, size + 1, path));
    mdp_status status = mdp_file_pread(path, fd, *text, size, 0);
    if (status.code != MDP_OK) {
        mdp_free(*text);
        *text = NULL;
        return status;
    }
    *n_byte = size;
    return mdp_ok();
}

mdp_status mdp_file_read_all(const char *path, int64_t max_byte, char **text, int64_t *n_byte) {
    *text = NULL;
    *n_byte = 0;
    int fd;
    MDP_TRY(mdp_file_open_read(path, &fd));
    mdp_status status = read_open_file(path, fd, max_byte, text, n_byte);
    close(fd); /* only read: nothing can be lost */
    return status;
}

/* Create `path` with the data in it, safe on disk. */
static mdp_status write_and_sync(const char *path, const void *data, int64_t n_byte) {
    int fd;
    MDP_TRY(mdp_file_create(path, &fd));
    mdp_status status = mdp_file_pwrite(path, fd, data, n_byte, 0);
    if (status.code == MDP_OK) status = mdp_file_sync(path, fd);
    mdp_status closed = mdp_file_close(path, fd);
    return status.code != MDP_OK ? status : closed;
}

static mdp_status replace_through_partial(const char *path, const char *partial, const void *data, int64_t n_byte) {
    if (unlink(partial) != 0 && errno != ENOENT && errno != ENOTDIR)
        return system_error(MDP_CANNOT_CREATE, partial, "remove the rest of an earlier run", errno);
    mdp_status status = write_and_sync(partial, data, n_byte);
    if (status.code == MDP_OK) status = mdp_file_rename(partial, path);
    if (status.code != MDP_OK) {
        unlink(partial);
        return status;
    }
    char *folder;
    MDP_TRY(mdp_path_folder(&folder, path));
    status = mdp_folder_sync(folder);
    mdp_free(folder);
    return status;
}

mdp_status mdp_file_write_all(const char *path, const void *data, int64_t n_byte) {
    char *partial;
    MDP_TRY(mdp_format(&partial, "%s.partial", path));
    mdp_status status = replace_through_partial(path, partial, data, n_byte);
    mdp_free(partial);
    return status;
}

bool mdp_path_exists(const char *path) {
    struct stat info;
    return lstat(path, &info) == 0;
}

bool mdp_path_is_folder(const char *path) {
    struct stat info;
    return stat(path, &info) == 0 && S_ISDIR(info.st_mode);
}

bool mdp_path_is_link(const char *path) {
    struct stat info;
    return lstat(path, &info) == 0 && S_ISLNK(info.st_mode);
}

mdp_status mdp_path_join(char **out, const char *folder, const char *name) {
    size_t length = strlen(folder);
    return mdp_format(out, "%s%s%s", folder, length > 0 && folder[length - 1] == '/' ? "" : "/", name);
}

const char *mdp_path_name(const char *path) {
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

mdp_status mdp_path_folder(char **out, const char *path) {
    size_t length = strlen(path);
    while (length > 1 && path[length - 1] == '/') length--; /* "a/b/" is b in a */
    while (length > 0 && path[length - 1] != '/') length--;
    while (length > 1 && path[length - 1] == '/') length--;
    return length == 0 ? mdp_copy_text(out, ".") : mdp_format(out, "%.*s", (int)length, path);
}

mdp_status mdp_folder_create(const char *path) {
    MDP_TRY(mdp_fault(MDP_CANNOT_CREATE, "create a folder"));
    if (mkdir(path, 0777) == 0) return mdp_ok();
    int error = errno;
    if (error == EEXIST && mdp_path_is_folder(path)) return mdp_ok();
    if (error == EEXIST)
        return MDP_ERROR(MDP_CANNOT_CREATE, "%s: cannot create the folder: a file of that name exists.", path);
    return system_error(MDP_CANNOT_CREATE, path, "create the folder", error);
}

/* Unlink the regular files and links of an open folder; what else is there makes the caller's rmdir fail. */
static mdp_status remove_files(const char *path, DIR *folder) {
    for (;;) {
        errno = 0;
        struct dirent *entry = readdir(folder);
        if (!entry) return errno == 0 ? mdp_ok() : system_error(MDP_IO, path, "list the folder", errno);
        struct stat info;
        if (fstatat(dirfd(folder), entry->d_name, &info, AT_SYMLINK_NOFOLLOW) != 0 || S_ISDIR(info.st_mode)) continue;
        if (unlinkat(dirfd(folder), entry->d_name, 0) != 0 && errno != ENOENT) {
            int error = errno;
            return MDP_ERROR(MDP_IO, "%s: cannot remove '%s': %s.", path, entry->d_name, strerror(error));
        }
    }
}

mdp_status mdp_folder_remove(const char *path) {
    MDP_TRY(mdp_fault(MDP_IO, "remove a folder"));
    if (mdp_path_is_link(path)) /* what it leads to is not ours */
        return unlink(path) == 0 ? mdp_ok() : system_error(MDP_IO, path, "remove the link", errno);
    DIR *folder = opendir(path);
    if (!folder) return errno == ENOENT ? mdp_ok() : system_error(MDP_IO, path, "open the folder", errno);
    mdp_status status = remove_files(path, folder);
    closedir(folder);
    MDP_TRY(status);
    return rmdir(path) == 0 || errno == ENOENT ? mdp_ok() : system_error(MDP_IO, path, "remove the folder", errno);
}
