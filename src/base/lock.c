/* lock.c - the owner of a folder: see lock.h.
 *
 * The lock is a file whose text says who holds it. Where the file system has locks, the holder has one of the open file
 * description: it ends with the process, is seen from other hosts, and is not lost when some library opens and closes
 * the same file. Elsewhere (ENOLCK, ENOSYS, ENOTSUP and others that network file systems give) the file is made by
 * O_EXCL and its text is believed. A mount that keeps locks to its own host is no witness for owners on others.
 *
 * Taking, in a loop, since every step may meet another process: make or open the file; lock it; see that the name still
 * leads to it, as its last owner may have removed it; ask whether the owner that it names lives; write one's own name.
 * A file whose owner is gone, but which cannot be locked, is first moved out of the way under a name that nobody else
 * uses and looked at again, so of several who do that at once one wins. */
#include "mdp/lock.h"
#include "base/owner.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <time.h>
#include <unistd.h>

#define MAX_LOCK_BYTE 4096
#define MAX_TRY 500
#define SECONDS_TO_SIGN 3.0 /* in which an owner writes its name into a file that it has just made */
#define SECONDS_TO_END 1.0  /* in which one that was just killed is gone */
#define PAUSE_NS 20000000

struct mdp_lock {
    char *folder, *path; /* owned */
    char *output;        /* owned */
    char token[9];       /* of this owner alone */
    int fd;
};

/* ---- what a file system says ----------------------------------------------------------------------------------- */

typedef enum kernel_word { KERNEL_FREE, KERNEL_HELD, KERNEL_MUTE } kernel_word;

/* Try to lock an open file for this process. */
static kernel_word try_lock(int fd) {
#ifdef F_OFD_SETLK
    struct flock whole = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    int code;
    do code = fcntl(fd, F_OFD_SETLK, &whole);
    while (code != 0 && errno == EINTR);
    if (code == 0) return KERNEL_FREE;
    if (errno == EAGAIN || errno == EACCES) return KERNEL_HELD;
#else
    (void)fd;
#endif
    return KERNEL_MUTE;
}

/* Could an open file be locked? */
static kernel_word ask_lock(int fd) {
#ifdef F_OFD_GETLK
    struct flock whole = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    if (fcntl(fd, F_OFD_GETLK, &whole) == 0) return whole.l_type == F_UNLCK ? KERNEL_FREE : KERNEL_HELD;
#else
    (void)fd;
#endif
    return KERNEL_MUTE;
}

/* Are locks of the file system of an open file kept to this host, by options of its mount? */
static bool locks_stay_here(int fd) {
    static const char *const options[] = {"nolock", "localflock", "local_lock=all", "local_lock=posix"};
    char line[2048], device[32];
    struct stat info;
    bool found = false;
    FILE *file = fopen("/proc/self/mountinfo", "re");
    if (!file || fstat(fd, &info) != 0) {
        if (file) fclose(file);
        return false;
    }
    snprintf(device, sizeof device, " %u:%u ", major(info.st_dev), minor(info.st_dev));
    while (!found && fgets(line, sizeof line, file)) {
        if (!strstr(line, device)) continue;
        for (size_t i = 0; i < sizeof options / sizeof *options; i++) found = found || strstr(line, options[i]);
    }
    fclose(file);
    return found;
}

/* Does the name lead to the open file? */
static bool is_at(const char *path, int fd) {
    struct stat named, open;
    return lstat(path, &named) == 0 && fstat(fd, &open) == 0 && named.st_dev == open.st_dev &&
           named.st_ino == open.st_ino;
}

static void pause_a_moment(void) {
    const struct timespec time = {.tv_sec = 0, .tv_nsec = PAUSE_NS};
    nanosleep(&time, NULL);
}

/* ---- whose it is ----------------------------------------------------------------------------------------------- */

/* What is in the file, n_byte at most. */
static size_t read_some(int fd, char *text, size_t n_byte) {
    size_t n = 0;
    while (n < n_byte) {
        ssize_t got = pread(fd, text + n, n_byte - n, (off_t)n);
        if (got == 0 || (got < 0 && errno != EINTR)) break;
        if (got > 0) n += (size_t)got;
    }
    return n;
}

static bool read_owner(int fd, mdp_owner *out) {
    char text[MAX_LOCK_BYTE];
    size_t n = read_some(fd, text, sizeof text);
    return n > 0 && mdp_owner_parse(text, (int64_t)n, out);
}

bool mdp_lock_is_ours(const char *path) {
    mdp_owner owner;
    int fd = open(path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    struct stat info;
    bool regular = fd >= 0 && fstat(fd, &info) == 0 && S_ISREG(info.st_mode);
    bool ours = regular && (info.st_size == 0 || read_owner(fd, &owner)); /* empty: its maker ended at once */
    if (fd >= 0) close(fd);
    return ours;
}

/* The owner that an open lock names, waiting a moment for one that is just being made. false: it names none. */
static bool wait_for_owner(int fd, mdp_owner *out) {
    double start = mdp_seconds();
    while (!read_owner(fd, out)) {
        if (mdp_seconds() - start > SECONDS_TO_SIGN) return false;
        pause_a_moment();
    }
    return true;
}

/* "last sign of life 12 s ago" */
static void print_age(int fd, char *out, size_t n_byte) {
    char age[32];
    struct stat info;
    double seconds = fstat(fd, &info) == 0 ? difftime(time(NULL), info.st_mtime) : 0.0;
    snprintf(out, n_byte, "last sign of life %s ago", mdp_print_seconds(age, seconds > 0.0 ? seconds : 0.0));
}

/* The sentence for a lock whose owner lives, or may. */
static mdp_status refuse(int fd, const char *output, const mdp_owner *owner, mdp_alive lives) {
    char name[700], age[80];
    mdp_owner_name(owner, name, sizeof name);
    print_age(fd, age, sizeof age);
    if (lives == MDP_ALIVE)
        return MDP_ERROR(MDP_CANNOT_CREATE,
                         "%s is being written by another run: %s (%s). Wait for it or end it, or give another output.",
                         output, name, age);
    return MDP_ERROR(MDP_CANNOT_CREATE,
                     "%s is being written by another run: %s (%s). Whether it still runs cannot be seen from here; if "
                     "it is gone for certain, take over with --break-lock.",
                     output, name, age);
}

/* May an existing, open lock be taken, when the kernel says this of it? */
static mdp_status judge(int fd, kernel_word word, const char *output, bool take_over) {
    mdp_owner self, owner;
    mdp_owner_self(&self);
    if (!wait_for_owner(fd, &owner)) {
        if (word != KERNEL_HELD || take_over) return mdp_ok(); /* its maker ended before it had signed */
        return MDP_ERROR(MDP_CANNOT_CREATE, "%s is being written by another run, which has not said who it is.",
                         output);
    }
    mdp_alive lives = mdp_owner_lives(&owner, &self);
    if (lives == MDP_UNKNOWN && word == KERNEL_FREE && owner.locked && !locks_stay_here(fd)) lives = MDP_GONE;
    if (lives == MDP_GONE || (lives == MDP_UNKNOWN && take_over)) return mdp_ok();
    return refuse(fd, output, &owner, lives);
}

/* ---- taking ------------------------------------------------------------------------------------------------------ */

/* *created: it was not there before. -1 and errno. */
static int open_lock(const char *path, bool *created) {
    int flags = O_RDWR | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC;
    int fd = open(path, flags | O_CREAT | O_EXCL, 0666);
    *created = fd >= 0;
    if (fd >= 0 || errno != EEXIST) return fd;
    return open(path, flags);
}

static mdp_status cannot(const mdp_lock *lock, const char *verb, int error) {
    return MDP_ERROR(MDP_CANNOT_CREATE, "%s: cannot %s the lock of %s: %s.", lock->path, verb, lock->output,
                     strerror(error));
}

/* locked: by the file system. */
static mdp_status sign(mdp_lock *lock, bool locked) {
    mdp_owner self;
    char *text = NULL, unique[64];
    struct timespec now = {0};
    mdp_owner_self(&self);
    self.locked = locked;
    MDP_TRY(mdp_owner_print(&self, &text));
    clock_gettime(CLOCK_REALTIME, &now);
    snprintf(unique, sizeof unique, "%s%09ld", mdp_hash_bytes(text, (int64_t)strlen(text)).hex, now.tv_nsec);
    snprintf(lock->token, sizeof lock->token, "%.8s", mdp_hash_bytes(unique, (int64_t)strlen(unique)).hex);
    mdp_status status = ftruncate(lock->fd, 0) == 0
                            ? mdp_file_pwrite(lock->path, lock->fd, text, (int64_t)strlen(text), 0)
                            : cannot(lock, "write", errno);
    mdp_free(text);
    return status.code == MDP_OK ? mdp_file_sync(lock->path, lock->fd) : status;
}

/* Take the file of an owner that is gone out of the way, if it is still the open one. */
static mdp_status move_away(const mdp_lock *lock) {
    char *aside = NULL;
    MDP_TRY(mdp_format(&aside, "%s.%ld", lock->path, (long)getpid()));
    if (rename(lock->path, aside) == 0) {
        bool same = is_at(aside, lock->fd);
        /* Somebody was faster and holds what was moved: back, unless there is a third already. */
        if (same || link(aside, lock->path) == 0 || errno == EEXIST) unlink(aside);
    }
    mdp_free(aside);
    return mdp_ok();
}

/* One try with the open file; *done: it is ours. *held: the error says whose it is. */
static mdp_status try_once(mdp_lock *lock, bool created, bool take_over, bool *done, bool *held) {
    struct stat info;
    if (fstat(lock->fd, &info) != 0 || !S_ISREG(info.st_mode))
        return MDP_ERROR(MDP_CANNOT_CREATE, "%s is no regular file, so it is not the lock of %s; remove it.",
                         lock->path, lock->output);
    kernel_word word = try_lock(lock->fd);
    if (!is_at(lock->path, lock->fd)) return mdp_ok();
    mdp_status status = created ? mdp_ok() : judge(lock->fd, word, lock->output, take_over);
    *held = status.code != MDP_OK;
    MDP_TRY(status);
    if (word == KERNEL_FREE || (word == KERNEL_MUTE && created)) {
        status = sign(lock, word == KERNEL_FREE);
        *done = status.code == MDP_OK && is_at(lock->path, lock->fd);
        if (status.code != MDP_OK && is_at(lock->path, lock->fd)) unlink(lock->path);
        return status;
    }
    return created ? mdp_ok() : move_away(lock);
}

/* *held: the error says who has it. */
static mdp_status try_to_take(mdp_lock *lock, bool take_over, bool *done, bool *held) {
    bool created;
    *done = *held = false;
    MDP_TRY(mdp_folder_create(lock->folder));
    lock->fd = open_lock(lock->path, &created);
    if (lock->fd < 0 && errno != ENOENT) return cannot(lock, "open", errno);
    if (lock->fd < 0) return mdp_ok(); /* the owner has just left, and removed the folder */
    mdp_status status = try_once(lock, created, take_over, done, held);
    if (!*done) close(lock->fd);
    if (!*done) lock->fd = -1;
    return status;
}

static mdp_status take(mdp_lock *lock, mdp_claim claim) {
    bool done = false, held = false;
    double start = mdp_seconds();
    for (int i = 0; i < MAX_TRY && !done; i++) {
        if (i > 0) pause_a_moment();
        mdp_status status = try_to_take(lock, claim.take_over, &done, &held);
        bool patient = claim.goes_on && held && mdp_seconds() - start < SECONDS_TO_END;
        if (!patient) MDP_TRY(status);
    }
    return done ? mdp_ok() : cannot(lock, "take", EBUSY);
}

static void destroy(mdp_lock *lock) {
    if (lock->fd >= 0) close(lock->fd);
    mdp_free(lock->folder);
    mdp_free(lock->path);
    mdp_free(lock->output);
    mdp_free(lock);
}

static mdp_status new_lock(const char *folder, const char *output, mdp_lock **out) {
    MDP_TRY(MDP_ALLOC(out, 1, "a lock"));
    (*out)->fd = -1;
    MDP_TRY(mdp_copy_text(&(*out)->folder, folder));
    MDP_TRY(mdp_path_join(&(*out)->path, folder, MDP_LOCK_NAME));
    return mdp_copy_text(&(*out)->output, output);
}

mdp_status mdp_lock_take(const char *folder, const char *output, mdp_claim claim, mdp_lock **out) {
    mdp_lock *lock = NULL;
    *out = NULL;
    mdp_status status = mdp_fault(MDP_CANNOT_CREATE, "take a lock");
    if (status.code == MDP_OK) status = new_lock(folder, output, &lock);
    if (status.code == MDP_OK) status = take(lock, claim);
    if (status.code == MDP_OK)
        *out = lock;
    else if (lock)
        destroy(lock);
    if (status.code != MDP_OK) rmdir(folder); /* unless something is in it */
    return status;
}

mdp_status mdp_lock_look(const char *folder, const char *output, bool take_over) {
    char *path = NULL;
    MDP_TRY(mdp_path_join(&path, folder, MDP_LOCK_NAME));
    int fd = open(path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    mdp_free(path);
    if (fd < 0) return mdp_ok();
    mdp_status status = judge(fd, ask_lock(fd), output, take_over);
    close(fd);
    return status;
}

mdp_status mdp_lock_check(const mdp_lock *lock) {
    mdp_owner owner;
    char name[700];
    if (is_at(lock->path, lock->fd)) {
        (void)futimens(lock->fd, NULL); /* a sign of life, no more */
        return mdp_ok();
    }
    int fd = open(lock->path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    bool known = fd >= 0 && read_owner(fd, &owner);
    if (fd >= 0) close(fd);
    return MDP_ERROR(MDP_CANNOT_CREATE, "%s is no longer this run's to write: its lock %s was %s%s.", lock->output,
                     lock->path, known ? "taken over by " : "removed",
                     known ? mdp_owner_name(&owner, name, sizeof name) : "");
}

const char *mdp_lock_token(const mdp_lock *lock) {
    return lock->token;
}

void mdp_lock_release(mdp_lock *lock) {
    if (!lock) return;
    if (is_at(lock->path, lock->fd)) unlink(lock->path);
    destroy(lock);
}
