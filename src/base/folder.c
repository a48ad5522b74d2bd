/* folder.c - what is in a folder, and of which kind. */
#include "mdp/base.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

/* ---- kinds ----------------------------------------------------------------------------------------------------- */

mdp_path_kind mdp_path_look(const char *path) {
    struct stat info;
    if (lstat(path, &info) != 0) return MDP_PATH_NOTHING;
    if (S_ISREG(info.st_mode)) return MDP_PATH_FILE;
    if (S_ISDIR(info.st_mode)) return MDP_PATH_FOLDER;
    return S_ISLNK(info.st_mode) ? MDP_PATH_LINK : MDP_PATH_SPECIAL;
}

const char *mdp_path_special(const char *path) {
    struct stat info;
    if (stat(path, &info) != 0) return "something that cannot be looked at";
    if (S_ISFIFO(info.st_mode)) return "a FIFO";
    if (S_ISSOCK(info.st_mode)) return "a socket";
    return "a device";
}

mdp_status mdp_path_trim(char **out, const char *path) {
    size_t n = strlen(path);
    while (n > 1 && path[n - 1] == '/') n--;
    return mdp_format(out, "%.*s", (int)n, path);
}

/* ---- names ----------------------------------------------------------------------------------------------------- */

static int compare_names(const void *left, const void *right) {
    return strcmp(*(char *const *)left, *(char *const *)right);
}

mdp_status mdp_names_add(mdp_names *names, const char *name) {
    if (names->n == names->capacity) {
        int64_t capacity = names->capacity == 0 ? 16 : 2 * names->capacity;
        MDP_TRY(MDP_GROW(&names->name, names->n, capacity, "names of files"));
        names->capacity = capacity;
    }
    MDP_TRY(mdp_copy_text(&names->name[names->n], name));
    names->n++;
    return mdp_ok();
}

void mdp_names_clear(mdp_names *names) {
    for (int64_t i = 0; i < names->n; i++) mdp_free(names->name[i]);
    mdp_free(names->name);
    *names = (mdp_names){0};
}

void mdp_names_sort(mdp_names *names) {
    if (names->n > 0) qsort(names->name, (size_t)names->n, sizeof *names->name, compare_names);
}

bool mdp_names_have(const mdp_names *names, const char *name) {
    return names->n > 0 && bsearch(&name, names->name, (size_t)names->n, sizeof *names->name, compare_names) != NULL;
}

static mdp_status add_entries(DIR *folder, mdp_names *out, int *error) {
    for (;;) {
        errno = 0;
        const struct dirent *entry = readdir(folder);
        *error = errno;
        if (!entry) return mdp_ok();
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0) continue;
        MDP_TRY(mdp_names_add(out, entry->d_name));
    }
}

mdp_status mdp_folder_list(const char *path, mdp_names *out) {
    int error = 0;
    *out = (mdp_names){0};
    MDP_TRY(mdp_fault(MDP_IO, "list a folder"));
    DIR *folder = opendir(path);
    if (!folder) return MDP_ERROR(MDP_IO, "%s: the folder cannot be listed: %s.", path, strerror(errno));
    mdp_status status = add_entries(folder, out, &error);
    closedir(folder);
    MDP_TRY(status);
    if (error != 0) return MDP_ERROR(MDP_IO, "%s: the folder cannot be listed: %s.", path, strerror(error));
    mdp_names_sort(out);
    return mdp_ok();
}

/* ---- renaming without replacing ---------------------------------------------------------------------------------- */

/* One step where the file system can do that; -1 and errno. */
static int rename_new(const char *from, const char *to) {
#ifdef RENAME_NOREPLACE
    if (renameat2(AT_FDCWD, from, AT_FDCWD, to, RENAME_NOREPLACE) == 0) return 0;
    if (errno != EINVAL && errno != ENOSYS && errno != ENOTSUP) return -1;
#endif
    if (mdp_path_exists(to)) {
        errno = EEXIST;
        return -1;
    }
    return rename(from, to);
}

mdp_status mdp_file_rename_new(const char *from, const char *to) {
    MDP_TRY(mdp_fault(MDP_IO, "rename"));
    if (rename_new(from, to) == 0) return mdp_ok();
    int error = errno;
    if (error == EEXIST)
        return MDP_ERROR(MDP_CANNOT_CREATE,
                         "%s: something of that name has appeared meanwhile, and is not replaced; move it away.", to);
    return MDP_ERROR(MDP_IO, "%s: cannot rename to %s: %s.", from, to, strerror(error));
}
