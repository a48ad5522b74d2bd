/* place.c - what may be an output: the one rule, for all commands and options (doc/outputs.md).
 *
 * What names lead to is compared by device and inode, of what exists and of the folders on the way, so that neither
 * links nor ".." nor second mounts hide that two are one. Nothing is made here, and nothing that is there is opened
 * or changed. */
#include "mdp/outputs.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

/* ---- lists ------------------------------------------------------------------------------------------------------- */

mdp_status mdp_places_add_target(mdp_places *places, const char *path, const char *option, mdp_target_kind kind,
                                 bool replace) {
    MDP_TRY(MDP_GROW(&places->targets, places->n_target, places->n_target + 1, "outputs"));
    mdp_target *target = &places->targets[places->n_target++];
    *target = (mdp_target){.option = option, .kind = kind, .replace = replace};
    return mdp_path_trim(&target->path, path);
}

mdp_status mdp_places_add_input(mdp_places *places, const char *path) {
    MDP_TRY(mdp_grow((void **)&places->inputs, places->n_input, places->n_input + 1, sizeof(char *), "inputs"));
    return mdp_copy_text(&places->inputs[places->n_input++], path);
}

const mdp_target *mdp_places_find(const mdp_places *places, const char *path) {
    for (int i = 0; i < places->n_target; i++) {
        if (strcmp(places->targets[i].path, path) == 0) return &places->targets[i];
    }
    return NULL;
}

void mdp_places_clear(mdp_places *places) {
    for (int i = 0; i < places->n_target; i++) mdp_free(places->targets[i].path);
    for (int i = 0; i < places->n_input; i++) mdp_free(places->inputs[i]);
    mdp_free(places->targets);
    mdp_free(places->inputs);
    *places = (mdp_places){0};
}

/* ---- one and the same? ------------------------------------------------------------------------------------------- */

/* Does the path lead to what `info` is of? */
static bool is_same(const char *path, const struct stat *info) {
    struct stat found;
    return stat(path, &found) == 0 && found.st_dev == info->st_dev && found.st_ino == info->st_ino;
}

/* Is one of the folders on the way to `real` (without links; changed here) what `info` is of? */
static bool passes(char *real, const struct stat *info) {
    for (;;) {
        char *slash = strrchr(real, '/');
        if (!slash) return false;
        *slash = '\0';
        if (is_same(slash == real ? "/" : real, info)) return true;
    }
}

/* Does `path`, or what it leads to, lie below the folder that `info` is of? */
static bool lies_below(const char *path, const struct stat *info) {
    char real[PATH_MAX + 2], *folder = NULL;
    if (realpath(path, real) && passes(real, info)) return true;
    bool found = mdp_path_folder(&folder, path).code == MDP_OK && realpath(folder, real);
    mdp_free(folder);
    if (!found) return false;
    size_t n = strlen(real);
    memcpy(real + n, "/", 2); /* the folder itself is on the way */
    return passes(real, info);
}

/* Do two names, of which perhaps neither is there, stand for one entry of one folder? */
static bool is_one_entry(const char *left, const char *right) {
    char *folder = NULL, *other = NULL;
    struct stat info;
    mdp_status status = mdp_path_folder(&folder, left);
    if (status.code == MDP_OK) status = mdp_path_folder(&other, right);
    bool one = status.code == MDP_OK && strcmp(mdp_path_name(left), mdp_path_name(right)) == 0 &&
               stat(folder, &info) == 0 && is_same(other, &info);
    mdp_free(folder);
    mdp_free(other);
    return one;
}

/* ---- one target -------------------------------------------------------------------------------------------------- */

static mdp_status exists_already(const mdp_target *target) {
    return MDP_ERROR(MDP_CANNOT_CREATE, "%s exists already; give another %s or --overwrite.", target->path,
                     target->option);
}

static mdp_status is_special(const mdp_target *target) {
    return MDP_ERROR(MDP_CANNOT_CREATE,
                     "%s is %s; an output is a regular file%s, and nothing else is written or replaced; give another "
                     "%s.",
                     target->path, mdp_path_special(target->path),
                     target->kind == MDP_TARGET_FOLDER ? " or a folder" : "", target->option);
}

static mdp_status is_another_kind(const mdp_target *target, bool is_folder) {
    return MDP_ERROR(MDP_CANNOT_CREATE, "%s is a %s, the output is to be a %s; give another %s.", target->path,
                     is_folder ? "folder" : "file", is_folder ? "file" : "folder", target->option);
}

/* Of a link, what it leads to: one that leads to something special was meant. */
static mdp_status check_kind(const mdp_target *target) {
    mdp_path_kind kind = mdp_path_look(target->path);
    bool link = kind == MDP_PATH_LINK, wants_folder = target->kind == MDP_TARGET_FOLDER;
    if (target->kind == MDP_TARGET_STATE) return mdp_workshop_check(target->path);
    if (link && wants_folder)
        return MDP_ERROR(MDP_CANNOT_CREATE,
                         "%s is a symbolic link, and nothing is written through one; remove it or give another %s.",
                         target->path, target->option);
    if (link && target->kind == MDP_TARGET_LOG)
        return MDP_ERROR(MDP_CANNOT_CREATE,
                         "%s: is a symbolic link, and the log is not written through one; remove it.", target->path);
    struct stat info;
    if ((link ? stat(target->path, &info) : lstat(target->path, &info)) != 0) return mdp_ok();
    if (!S_ISREG(info.st_mode) && !S_ISDIR(info.st_mode)) return is_special(target);
    return wants_folder == S_ISDIR(info.st_mode) ? mdp_ok() : is_another_kind(target, S_ISDIR(info.st_mode));
}

/* A folder with something in it: all of it is to be on its record. */
static mdp_status check_content(const mdp_target *target) {
    mdp_record record;
    char words[400];
    mdp_record_read(target->path, &record);
    mdp_record_kind kind = record.kind;
    mdp_status status = mdp_record_foreign(target->path, &record, words, sizeof words);
    mdp_record_clear(&record);
    MDP_TRY(status);
    if (words[0] == '\0' && kind != MDP_RECORD_CHECKPOINT) return mdp_ok(); /* empty */
    if (!target->replace) return exists_already(target);
    if (kind != MDP_RECORD_CHECKPOINT)
        return MDP_ERROR(MDP_CANNOT_CREATE,
                         "%s is not replaced although --overwrite is given: it has no %s%s, so this program did not "
                         "write it; remove it or give another %s.",
                         target->path, MDP_RECORD_NAME, kind == MDP_RECORD_NONE ? "" : " of a checkpoint",
                         target->option);
    if (words[0] == '\0') return mdp_ok();
    return MDP_ERROR(MDP_CANNOT_CREATE,
                     "%s is not replaced although --overwrite is given: it holds %s, which its %s does not list, so "
                     "this program did not write that; move it away or give another %s.",
                     target->path, words, MDP_RECORD_NAME, target->option);
}

static mdp_status check_free(const mdp_target *target) {
    bool open = target->kind == MDP_TARGET_LOG || target->kind == MDP_TARGET_STATE;
    if (open || !mdp_path_exists(target->path)) return mdp_ok();
    if (target->kind == MDP_TARGET_FOLDER) return check_content(target);
    return target->replace ? mdp_ok() : exists_already(target);
}

mdp_status mdp_target_check(const mdp_target *target) {
    MDP_TRY(check_kind(target));
    return check_free(target);
}

/* ---- targets and inputs --------------------------------------------------------------------------------------------
 */

static mdp_status refuse(const mdp_target *target, const char *how, const char *input) {
    return MDP_ERROR(MDP_CANNOT_CREATE, "the output %s %s %s; give another %s.", target->path, how, input,
                     target->option);
}

static bool is_whole_folder(const mdp_target *target) {
    return target->kind == MDP_TARGET_FOLDER || target->kind == MDP_TARGET_STATE;
}

/* A target, looked at once: a model may have hundreds of files on a slow file system. */
typedef struct sight {
    const mdp_target *target;
    bool there;
    struct stat info; /* when it is */
} sight;

/* One file or folder that is read, and what it is. */
static mdp_status check_apart(const sight *out, const char *input, const struct stat *in) {
    const mdp_target *target = out->target;
    if (out->there && out->info.st_dev == in->st_dev && out->info.st_ino == in->st_ino)
        return refuse(target, "is the input", input);
    if (S_ISDIR(in->st_mode) && lies_below(target->path, in)) return refuse(target, "lies inside the input", input);
    if (is_whole_folder(target) && out->there && lies_below(input, &out->info))
        return refuse(target, "contains the input", input);
    return mdp_ok();
}

static mdp_status check_one(const sight *sights, int n, const char *input) {
    struct stat in;
    if (stat(input, &in) != 0) return mdp_ok(); /* opening it says why */
    for (int t = 0; t < n; t++) MDP_TRY(check_apart(&sights[t], input, &in));
    return mdp_ok();
}

/* An input, and of a folder all that is in it: it may consist of links into a cache. */
static mdp_status check_input(const sight *sights, int n, const char *input) {
    mdp_names names = {0};
    MDP_TRY(check_one(sights, n, input));
    if (!mdp_path_is_folder(input)) return mdp_ok();
    mdp_status status = mdp_folder_list(input, &names);
    for (int64_t i = 0; i < names.n && status.code == MDP_OK; i++) {
        char *path = NULL;
        status = mdp_path_join(&path, input, names.name[i]);
        if (status.code == MDP_OK) status = check_one(sights, n, path);
        mdp_free(path);
    }
    mdp_names_clear(&names);
    return status;
}

static mdp_status check_inputs(const mdp_places *places) {
    sight *sights = NULL;
    MDP_TRY(MDP_ALLOC(&sights, places->n_target, "outputs"));
    for (int t = 0; t < places->n_target; t++) {
        sights[t].target = &places->targets[t];
        sights[t].there = stat(places->targets[t].path, &sights[t].info) == 0;
    }
    mdp_status status = mdp_ok();
    for (int i = 0; i < places->n_input && status.code == MDP_OK; i++)
        status = check_input(sights, places->n_target, places->inputs[i]);
    mdp_free(sights);
    return status;
}

/* ---- targets among themselves --------------------------------------------------------------------------------------
 */

static mdp_status check_pair(const mdp_target *first, const mdp_target *second) {
    struct stat info;
    bool there = stat(first->path, &info) == 0;
    bool same = is_one_entry(first->path, second->path) || (there && is_same(second->path, &info));
    bool below = there && is_whole_folder(first) && lies_below(second->path, &info);
    if (!same && !below) return mdp_ok();
    return MDP_ERROR(MDP_CANNOT_CREATE, "the output %s %s another output, %s; give another %s.", second->path,
                     same ? "is" : "lies inside", first->path, second->option);
}

static mdp_status check_all_pairs(const mdp_places *places) {
    for (int i = 0; i < places->n_target; i++) {
        for (int j = 0; j < places->n_target; j++) {
            if (i != j) MDP_TRY(check_pair(&places->targets[i], &places->targets[j]));
        }
    }
    return mdp_ok();
}

mdp_status mdp_places_check_apart(const mdp_places *places) {
    for (int i = 0; i < places->n_target; i++) MDP_TRY(check_kind(&places->targets[i]));
    MDP_TRY(check_inputs(places));
    return check_all_pairs(places);
}

mdp_status mdp_places_check_free(const mdp_places *places) {
    for (int i = 0; i < places->n_target; i++) MDP_TRY(mdp_target_check(&places->targets[i]));
    return mdp_ok();
}

/* ---- room ----------------------------------------------------------------------------------------------------------
 */

/* Make a file without a name, so that nothing stays whatever happens: the test that means most. File systems that know
 * no such files are asked for permission only; making the state folder there follows at once. 0, or what went wrong. */
static int try_to_write(const char *folder) {
#ifdef O_TMPFILE
    int fd = open(folder, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    if (fd >= 0) close(fd);
    if (fd >= 0) return 0;
    if (errno != EOPNOTSUPP && errno != EISDIR && errno != EINVAL && errno != ENOENT && errno != ENOSYS) return errno;
#endif
    return access(folder, W_OK | X_OK) == 0 ? 0 : errno;
}

static mdp_status check_writable(const char *folder) {
    MDP_TRY(mdp_fault(MDP_CANNOT_CREATE, "create a file"));
    int error = try_to_write(folder);
    if (error == 0) return mdp_ok();
    return MDP_ERROR(MDP_CANNOT_CREATE, "cannot write in the folder %s, give another --out: %s.", folder,
                     strerror(error));
}

static mdp_status check_space(const char *folder, int64_t n_byte) {
    struct statvfs info;
    MDP_TRY(mdp_fault(MDP_IO, "statvfs"));
    if (statvfs(folder, &info) != 0) return mdp_ok(); /* the file system does not tell; writing will */
    double n_free = (double)info.f_bavail * (double)info.f_frsize;
    if (n_free >= (double)n_byte) return mdp_ok();
    char need[32], have[32];
    return MDP_ERROR(MDP_CANNOT_CREATE, "the output needs %s, the file system of %s has %s free; give another --out.",
                     mdp_print_bytes(need, n_byte), folder, mdp_print_bytes(have, (int64_t)n_free));
}

mdp_status mdp_folder_check_room(const char *folder, int64_t n_byte) {
    struct stat info;
    if (stat(folder, &info) != 0 && errno != ENOTDIR)
        return MDP_ERROR(MDP_CANNOT_CREATE,
                         "the folder %s, in which the output is to be written, cannot be used: %s; create it or give "
                         "another --out.",
                         folder, strerror(errno));
    if (!mdp_path_is_folder(folder))
        return MDP_ERROR(MDP_CANNOT_CREATE,
                         "%s, in which the output is to be written, is not a folder; give another --out.", folder);
    MDP_TRY(check_writable(folder));
    return check_space(folder, n_byte);
}
