/* reader.c - bytes of a catalogue's files, by pread, from any thread.
 *
 * Descriptors are opened at first use and at most MAX_OPEN are kept: a sharded model may have more files than a process
 * may have open. A descriptor in use is never closed; when all are in use the number is exceeded for a moment. A read
 * beyond the size that the catalogue saw, and a file that has another size since, are errors that say so; and so is a
 * file that was changed between its first and its last use. Files that are added are in the making: they are opened for
 * each use anew, so that what other ranks have written by then is seen on network file systems too. */
#include "checkpoint/stamp.h"

#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>

#define MAX_OPEN 64

typedef struct open_file {
    int fd;          /* -1: closed */
    int n_user;      /* reads under way */
    int64_t stamp;   /* time of the last use, in uses */
    bool known;      /* `changed` is: the file was opened before */
    int64_t changed; /* when it was first opened (mdp_file_changed) */
} open_file;

struct mdp_reader {
    const mdp_catalogue *catalogue; /* borrowed */
    pthread_mutex_t lock;           /* guards files, n_open, clock; never held while reading */
    open_file *files;               /* [catalogue->n_file + n_added]; owned */
    int32_t n_added;
    char **added;        /* [n_added] paths; owned */
    int64_t *added_byte; /* [n_added] */
    int n_open;
    int64_t clock;
    atomic_int_fast64_t n_byte, nanoseconds;
};

mdp_status mdp_reader_new(const mdp_catalogue *catalogue, mdp_reader **out) {
    mdp_reader *reader = NULL;
    *out = NULL;
    MDP_TRY(MDP_ALLOC(&reader, 1, "reader"));
    mdp_status status = MDP_ALLOC(&reader->files, catalogue->n_file, "reader");
    if (status.code == MDP_OK && pthread_mutex_init(&reader->lock, NULL) != 0) {
        status = MDP_ERROR(MDP_EXHAUSTED, "a lock cannot be made.");
    }
    if (status.code != MDP_OK) {
        mdp_free(reader->files);
        mdp_free(reader);
        return status;
    }
    reader->catalogue = catalogue;
    atomic_init(&reader->n_byte, 0);
    atomic_init(&reader->nanoseconds, 0);
    for (int32_t i = 0; i < catalogue->n_file; i++) reader->files[i].fd = -1;
    *out = reader;
    return mdp_ok();
}

static int32_t count_files(const mdp_reader *reader) {
    return reader->catalogue->n_file + reader->n_added;
}

mdp_status mdp_reader_add(mdp_reader *reader, const char *path, int64_t n_byte, int32_t *file) {
    int64_t n = count_files(reader);
    MDP_TRY(MDP_GROW(&reader->files, n, n + 1, "files of a reader"));
    reader->files[n].fd = -1;
    MDP_TRY(MDP_GROW(&reader->added, reader->n_added, reader->n_added + 1, "files of a reader"));
    MDP_TRY(MDP_GROW(&reader->added_byte, reader->n_added, reader->n_added + 1, "files of a reader"));
    *file = (int32_t)n;
    MDP_TRY(mdp_copy_text(&reader->added[reader->n_added], path));
    reader->added_byte[reader->n_added++] = n_byte;
    return mdp_ok();
}

mdp_status mdp_reader_twin(const mdp_reader *reader, mdp_reader **out) {
    int32_t file;
    MDP_TRY(mdp_reader_new(reader->catalogue, out));
    for (int32_t i = 0; i < reader->n_added; i++) {
        mdp_status status = mdp_reader_add(*out, reader->added[i], reader->added_byte[i], &file);
        if (status.code == MDP_OK) continue;
        mdp_reader_destroy(*out);
        *out = NULL;
        return status;
    }
    return mdp_ok();
}

static bool is_added(const mdp_reader *reader, int32_t file) {
    return file >= reader->catalogue->n_file;
}

static const char *path_of(const mdp_reader *reader, int32_t file) {
    const mdp_catalogue *catalogue = reader->catalogue;
    return is_added(reader, file) ? reader->added[file - catalogue->n_file] : catalogue->files[file];
}

const char *mdp_reader_path(const mdp_reader *reader, int32_t file) {
    return path_of(reader, file);
}

static int64_t bytes_of(const mdp_reader *reader, int32_t file) {
    const mdp_catalogue *catalogue = reader->catalogue;
    return is_added(reader, file) ? reader->added_byte[file - catalogue->n_file] : catalogue->file_bytes[file];
}

/* A failing close of a file that was only read loses nothing. */
static void close_file(mdp_reader *reader, int32_t file) {
    mdp_status ignored = mdp_file_close(path_of(reader, file), reader->files[file].fd);
    (void)ignored;
    reader->files[file].fd = -1;
    reader->n_open--;
}

void mdp_reader_destroy(mdp_reader *reader) {
    if (reader == NULL) return;
    for (int32_t i = 0; i < count_files(reader); i++) {
        if (reader->files[i].fd >= 0) close_file(reader, i);
    }
    for (int32_t i = 0; i < reader->n_added; i++) mdp_free(reader->added[i]);
    pthread_mutex_destroy(&reader->lock);
    mdp_free(reader->added);
    mdp_free(reader->added_byte);
    mdp_free(reader->files);
    mdp_free(reader);
}

/* Close the file unused for longest. Called with the lock held. */
static void make_room(mdp_reader *reader) {
    int32_t oldest = -1;
    for (int32_t i = 0; i < count_files(reader); i++) {
        const open_file *f = &reader->files[i];
        if (f->fd < 0 || f->n_user > 0) continue;
        if (oldest < 0 || f->stamp < reader->files[oldest].stamp) oldest = i;
    }
    if (oldest >= 0) close_file(reader, oldest);
}

/* A file that is opened for the first time is noted, any other must be as it was. Called with the lock held. */
static mdp_status compare_time(mdp_reader *reader, int32_t file, int fd) {
    open_file *f = &reader->files[file];
    const char *path = path_of(reader, file);
    int64_t changed;
    MDP_TRY(mdp_file_changed(path, fd, &changed));
    if (!f->known) f->changed = changed;
    f->known = true;
    return f->changed == changed ? mdp_ok() : mdp_stamp_differs(path);
}

mdp_status mdp_reader_check(mdp_reader *reader) {
    mdp_status status = mdp_ok();
    pthread_mutex_lock(&reader->lock);
    for (int32_t i = 0; i < reader->catalogue->n_file && status.code == MDP_OK; i++) {
        if (reader->files[i].known) status = compare_time(reader, i, -1);
    }
    pthread_mutex_unlock(&reader->lock);
    return status;
}

/* Called with the lock held. */
static mdp_status open_catalogued(mdp_reader *reader, int32_t file) {
    const char *path = path_of(reader, file);
    int fd;
    int64_t n_byte;
    if (reader->n_open >= MAX_OPEN) make_room(reader);
    MDP_TRY(mdp_file_open_read(path, &fd));
    reader->files[file].fd = fd;
    reader->n_open++;
    mdp_status status = mdp_file_size(path, fd, &n_byte);
    if (status.code == MDP_OK && n_byte != bytes_of(reader, file)) {
        status = MDP_ERROR(MDP_BAD_INPUT,
                           "%s: the file has %" PRId64 " bytes, but had %" PRId64
                           " when the run began; it was changed in between. Run again when it is complete.",
                           path, n_byte, bytes_of(reader, file));
    }
    if (status.code == MDP_OK && !is_added(reader, file)) status = compare_time(reader, file, fd);
    if (status.code != MDP_OK) close_file(reader, file);
    return status;
}

static mdp_status acquire(mdp_reader *reader, int32_t file, int *fd) {
    pthread_mutex_lock(&reader->lock);
    open_file *f = &reader->files[file];
    mdp_status status = f->fd >= 0 ? mdp_ok() : open_catalogued(reader, file);
    if (status.code == MDP_OK) {
        f->n_user++;
        f->stamp = ++reader->clock;
        *fd = f->fd;
    }
    pthread_mutex_unlock(&reader->lock);
    return status;
}

static void release(mdp_reader *reader, int32_t file) {
    pthread_mutex_lock(&reader->lock);
    if (--reader->files[file].n_user == 0 && is_added(reader, file)) close_file(reader, file);
    pthread_mutex_unlock(&reader->lock);
}

mdp_status mdp_reader_read(mdp_reader *reader, int32_t file, int64_t offset, int64_t n_byte, void *out) {
    const mdp_catalogue *catalogue = reader->catalogue;
    if (n_byte == 0) return mdp_ok();
    int64_t end;
    if (file < 0 || file >= count_files(reader) || offset < 0 || !mdp_add(offset, n_byte, &end) ||
        end > bytes_of(reader, file)) {
        return MDP_ERROR(
            MDP_INTERNAL, "%s: bytes %" PRId64 " to %" PRId64 " were asked for, which the file does not have.",
            file >= 0 && file < count_files(reader) ? path_of(reader, file) : catalogue->path, offset, offset + n_byte);
    }
    int fd;
    double start = mdp_seconds();
    MDP_TRY(acquire(reader, file, &fd));
    mdp_status status = mdp_file_pread(path_of(reader, file), fd, out, n_byte, offset);
    release(reader, file);
    if (status.code == MDP_OK) atomic_fetch_add_explicit(&reader->n_byte, n_byte, memory_order_relaxed);
    int64_t nanoseconds = (int64_t)((mdp_seconds() - start) * 1e9);
    atomic_fetch_add_explicit(&reader->nanoseconds, nanoseconds, memory_order_relaxed);
    return status;
}

void mdp_reader_announce(mdp_reader *reader, int32_t file, int64_t offset, int64_t n_byte) {
    int fd;
    if (n_byte <= 0 || acquire(reader, file, &fd).code != MDP_OK) return;
    mdp_file_announce(fd, offset, n_byte);
    release(reader, file);
}

const mdp_catalogue *mdp_reader_catalogue(const mdp_reader *reader) {
    return reader->catalogue;
}

int64_t mdp_reader_bytes(const mdp_reader *reader) {
    return (int64_t)atomic_load_explicit(&reader->n_byte, memory_order_relaxed);
}

double mdp_reader_seconds(const mdp_reader *reader) {
    return 1e-9 * (double)atomic_load_explicit(&reader->nanoseconds, memory_order_relaxed);
}
