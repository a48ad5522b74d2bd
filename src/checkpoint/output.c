/* output.c - a checkpoint to be written: its memory, its consistency, and whether its place on disk will take it.
 *
 * Owns the rules about outputs: what exists is not replaced unless asked, an input never is, a folder is replaced only
 * when it is empty or one that this program wrote, and a finished output appears under its name in one rename. Refuses
 * early (mdp_output_check_all) what a writer would refuse late. Rank 0 touches the disk; all ranks agree. */
#include "checkpoint/output.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#define MANIFEST "moe-dist-prune.json"

void mdp_write_cost_free(mdp_write_cost *cost) {
    mdp_free(cost->shares);
    cost->shares = NULL;
}

void mdp_output_destroy(mdp_output *output) {
    if (!output) return;
    for (int64_t i = 0; output->tensors && i < output->n_tensor; i++) {
        mdp_free(output->tensors[i].name);
        mdp_free(output->tensors[i].segments);
        mdp_free(output->tensors[i].stack);
    }
    mdp_free(output->tensors);
    mdp_free(output->config_text);
    mdp_free(output->plan_text);
    mdp_free(output->provenance_text);
    mdp_free(output);
}

/* ---- consistency --------------------------------------------------------------------------------------------- */

static mdp_status check_tensor(const mdp_output_tensor *tensor) {
    int64_t n_byte = 0, n_copied = 0;
    if (!mdp_dtype_bytes(tensor->type, tensor->n_dim, tensor->shape, &n_byte) || n_byte != tensor->n_byte)
        return MDP_ERROR(MDP_INTERNAL, "tensor %s of the result has %lld bytes, its shape and type make %lld.",
                         tensor->name, (long long)tensor->n_byte, (long long)n_byte);
    for (int64_t i = 0; i < tensor->n_segment; i++) {
        const mdp_segment *segment = &tensor->segments[i];
        int64_t end;
        n_copied += segment->n_byte;
        if (!segment->source) continue; /* filled */
        if (segment->offset < 0 || !mdp_add(segment->offset, segment->n_byte, &end) || end > segment->source->n_byte)
            return MDP_ERROR(MDP_INTERNAL, "tensor %s of the result takes %lld bytes at %lld of %s, which has %lld.",
                             tensor->name, (long long)segment->n_byte, (long long)segment->offset,
                             segment->source->name, (long long)segment->source->n_byte);
    }
    if (n_copied != n_byte)
        return MDP_ERROR(MDP_INTERNAL, "tensor %s of the result has %lld bytes, its segments have %lld.", tensor->name,
                         (long long)n_byte, (long long)n_copied);
    return mdp_ok();
}

mdp_status mdp_output_check_tensors(const mdp_output *output) {
    for (int64_t i = 0; i < output->n_tensor; i++) {
        const mdp_output_tensor *tensor = &output->tensors[i];
        if (i > 0 && strcmp(output->tensors[i - 1].name, tensor->name) >= 0)
            return MDP_ERROR(MDP_INTERNAL, "tensor %s of the result follows %s; names must be unique and ascend.",
                             tensor->name, output->tensors[i - 1].name);
        MDP_TRY(check_tensor(tensor));
    }
    return mdp_ok();
}

mdp_status mdp_output_side_segments(const mdp_catalogue *source, mdp_tensor **tensors, mdp_segment **segments) {
    MDP_TRY(MDP_ALLOC(tensors, source->n_side_file, "side files"));
    MDP_TRY(MDP_ALLOC(segments, source->n_side_file, "side files"));
    for (int64_t i = 0; i < source->n_side_file; i++) {
        const mdp_side_file *side = &source->side_files[i];
        mdp_tensor *tensor = &(*tensors)[i];
        *tensor = (mdp_tensor){.name = side->name, .type = MDP_U8, .n_dim = 1};
        tensor->shape[0] = side->n_byte;
        tensor->file = side->file;
        tensor->offset = side->offset;
        tensor->n_byte = side->n_byte;
        tensor->digest = side->digest;
        (*segments)[i] = (mdp_segment){.source = tensor, .offset = 0, .n_byte = side->n_byte};
    }
    return mdp_ok();
}

mdp_status mdp_output_gather_all(const mdp_comm *comm, const mdp_digest *digests, int64_t n, int64_t n_item,
                                 mdp_digest **out) {
    void *all = NULL;
    int64_t n_byte = 0;
    *out = NULL;
    mdp_status status = mdp_gather_bytes_all(comm, digests, n * (int64_t)sizeof(mdp_digest), 0, &all, &n_byte);
    if (status.code == MDP_OK && comm->rank == 0 && n_byte != n_item * (int64_t)sizeof(mdp_digest))
        status = MDP_ERROR(MDP_INTERNAL, "%lld bytes of checksums were gathered for %lld tensors.", (long long)n_byte,
                           (long long)n_item);
    status = mdp_agree_all(comm, status);
    if (status.code != MDP_OK) {
        mdp_free(all);
        return status;
    }
    *out = all;
    return mdp_ok();
}

void mdp_output_progress(const mdp_comm *comm, const mdp_write_options *options, const mdp_output *output,
                         int64_t n_byte_done, int64_t n_byte_own) {
    if (comm->rank != 0 || !options->written || n_byte_own <= 0) return;
    double share = (double)n_byte_done / (double)n_byte_own;
    options->written(options->context, (int64_t)(share * (double)output->tensor_byte), output->tensor_byte);
}

/* ---- the place on disk --------------------------------------------------------------------------------------- */

/* Is the folder empty, or does it hold a file of that name (name == NULL: anything)? */
static bool folder_holds(const char *folder, const char *name) {
    DIR *stream = opendir(folder);
    if (!stream) return false;
    bool found = false;
    for (struct dirent *entry = readdir(stream); entry && !found; entry = readdir(stream)) {
        bool self = strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0;
        found = !self && (!name || strcmp(entry->d_name, name) == 0);
    }
    closedir(stream);
    return found;
}

/* Only plain files may lie in a folder that is to be replaced: nothing else is ever removed. */
static mdp_status check_removable(const char *folder) {
    DIR *stream = opendir(folder);
    if (!stream) return MDP_ERROR(MDP_CANNOT_CREATE, "cannot list the folder %s: %s.", folder, strerror(errno));
    mdp_status status = mdp_ok();
    for (struct dirent *entry = readdir(stream); entry && status.code == MDP_OK; entry = readdir(stream)) {
        struct stat info;
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0) continue;
        if (fstatat(dirfd(stream), entry->d_name, &info, AT_SYMLINK_NOFOLLOW) == 0 && S_ISDIR(info.st_mode))
            status = MDP_ERROR(MDP_CANNOT_CREATE,
                               "%s is not replaced although --overwrite is given: it holds the folder %s, which no "
                               "checkpoint does; remove it or give another --out.",
                               folder, entry->d_name);
    }
    closedir(stream);
    return status;
}

/* A file that is a link is replaced by rename, a folder would be written through it. */
static mdp_status check_existing(const char *path, bool is_folder, bool overwrite) {
    if (is_folder && mdp_path_is_link(path))
        return MDP_ERROR(MDP_CANNOT_CREATE,
                         "%s is a symbolic link, and nothing is written through one; remove it or give another --out.",
                         path);
    if (is_folder && !folder_holds(path, NULL)) return mdp_ok();
    if (!overwrite) return MDP_ERROR(MDP_CANNOT_CREATE, "%s exists already; give another --out or --overwrite.", path);
    return mdp_ok();
}

mdp_status mdp_output_check_target(const char *path, bool is_folder, bool overwrite) {
    struct stat info;
    if (lstat(path, &info) != 0) return mdp_ok();
    bool found_folder = stat(path, &info) == 0 && S_ISDIR(info.st_mode);
    if (found_folder != is_folder)
        return MDP_ERROR(MDP_CANNOT_CREATE, "%s is a %s, the output is to be a %s; give another --out.", path,
                         found_folder ? "folder" : "file", is_folder ? "folder" : "file");
    MDP_TRY(check_existing(path, is_folder, overwrite));
    if (is_folder && folder_holds(path, NULL) && !folder_holds(path, MANIFEST))
        return MDP_ERROR(MDP_CANNOT_CREATE,
                         "%s is not replaced although --overwrite is given: it has no %s, so this program did not "
                         "write it; remove it or give another --out.",
                         path, MANIFEST);
    return is_folder ? check_removable(path) : mdp_ok();
}

mdp_status mdp_output_trim(char **out, const char *path) {
    size_t n = strlen(path);
    while (n > 1 && path[n - 1] == '/') n--;
    return mdp_format(out, "%.*s", (int)n, path);
}

/* realpath; for a path that does not exist yet, that of its folder and its own last part. New text. */
static mdp_status resolve(char **out, const char *path) {
    char *real = realpath(path, NULL);
    if (real) {
        mdp_status status = mdp_copy_text(out, real);
        free(real);
        return status;
    }
    char *folder = NULL;
    MDP_TRY(mdp_path_folder(&folder, path));
    real = realpath(folder, NULL);
    mdp_status status =
        real ? mdp_path_join(out, real, mdp_path_name(path))
             : MDP_ERROR(MDP_CANNOT_CREATE, "the folder %s, in which the output is to be written, cannot be used: %s.",
                         folder, strerror(errno));
    free(real);
    mdp_free(folder);
    return status;
}

/* Is `inner` the same as `outer`, or below it? Both resolved. */
static bool is_within(const char *inner, const char *outer) {
    size_t n = strlen(outer);
    if (strncmp(inner, outer, n) != 0) return false;
    return inner[n] == '\0' || inner[n] == '/' || (n > 0 && outer[n - 1] == '/');
}

/* Compare the resolved output with one resolved input path. */
static mdp_status check_apart(const char *path, const char *real, const char *input, const char *real_input) {
    if (strcmp(real, real_input) == 0)
        return MDP_ERROR(MDP_CANNOT_CREATE, "the output %s is the input %s; give another --out.", path, input);
    if (is_within(real, real_input))
        return MDP_ERROR(MDP_CANNOT_CREATE, "the output %s lies inside the input %s; give another --out.", path, input);
    if (is_within(real_input, real))
        return MDP_ERROR(MDP_CANNOT_CREATE, "the output %s contains the input %s; give another --out.", path, input);
    return mdp_ok();
}

static mdp_status check_against_input(const char *path, const mdp_catalogue *input) {
    char *real = NULL;
    MDP_TRY(resolve(&real, path));
    mdp_status status = mdp_ok();
    /* The files too: an input folder may consist of links into a cache. */
    for (int32_t i = -1; i < input->n_file && status.code == MDP_OK; i++) {
        const char *name = i < 0 ? input->path : input->files[i];
        char *real_input = realpath(name, NULL);
        if (real_input) status = check_apart(path, real, name, real_input);
        free(real_input);
    }
    mdp_free(real);
    return status;
}

/* Create and remove a file in the folder: the only test that means something on every file system. */
static mdp_status check_writable(const char *folder) {
    char *probe = NULL;
    MDP_TRY(mdp_format(&probe, "%s/.moe-dist-prune-%ld", folder, (long)getpid()));
    int fd = -1;
    mdp_status status = mdp_file_create(probe, &fd);
    if (status.code == MDP_OK) status = mdp_file_close(probe, fd);
    if (fd >= 0) unlink(probe);
    mdp_free(probe);
    if (status.code == MDP_OK) return status;
    return MDP_ERROR(MDP_CANNOT_CREATE, "cannot write in the folder %s, give another --out: %.600s", folder,
                     status.text);
}

bool mdp_output_is_full(const char *path, int64_t n_byte) {
    struct statvfs info;
    return statvfs(path, &info) == 0 && (double)info.f_bavail * (double)info.f_frsize < (double)n_byte;
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

/* `folder` is where files will be made: path itself when it is a folder already, else its parent. */
static mdp_status check_folder(const char *folder, int64_t n_byte) {
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

static mdp_status check_place(const char *path, const mdp_catalogue *input, bool overwrite, int64_t n_byte) {
    bool is_folder = mdp_path_is_folder(path);
    char *folder = NULL;
    mdp_status status = is_folder ? mdp_copy_text(&folder, path) : mdp_path_folder(&folder, path);
    if (status.code == MDP_OK) status = check_folder(folder, n_byte);
    mdp_free(folder);
    MDP_TRY(status);
    /* First what can never be, then what --overwrite would allow. */
    if (input) MDP_TRY(check_against_input(path, input));
    struct stat info;
    if (lstat(path, &info) != 0) return mdp_ok();
    MDP_TRY(check_existing(path, is_folder, overwrite));
    /* A run's own folder holds other things than a checkpoint; only somebody else's checkpoint is refused here. */
    if (is_folder && folder_holds(path, "config.json")) return mdp_output_check_target(path, true, overwrite);
    return mdp_ok();
}

mdp_status mdp_output_check_all(const mdp_comm *comm, const char *path, const mdp_catalogue *input, bool overwrite,
                                int64_t n_byte) {
    mdp_status status = mdp_ok();
    if (comm->rank == 0) {
        char *trimmed = NULL;
        status = mdp_output_trim(&trimmed, path);
        if (status.code == MDP_OK) status = check_place(trimmed, input, overwrite, n_byte);
        mdp_free(trimmed);
    }
    MDP_AGREE(comm, status);
    return mdp_ok();
}

/* ---- publishing ---------------------------------------------------------------------------------------------- */

/* Put the finished folder in place of one with content: rename cannot do that in one step everywhere. */
static mdp_status swap_folder(const char *partial, const char *path) {
    char *old = NULL;
    MDP_TRY(mdp_format(&old, "%s.replaced", path));
    mdp_status status;
    MDP_TRY_GOTO(status, end, mdp_folder_remove(old));
    MDP_TRY_GOTO(status, end, mdp_file_rename(path, old));
    status = mdp_file_rename(partial, path);
    if (status.code != MDP_OK) {
        rename(old, path);
        goto end;
    }
    status = mdp_folder_remove(old);
end:
    mdp_free(old);
    return status;
}

mdp_status mdp_output_publish(const char *partial, const char *path) {
    char *folder = NULL;
    MDP_TRY(mdp_path_folder(&folder, path));
    bool swap = mdp_path_is_folder(partial) && folder_holds(path, NULL);
    mdp_status status = swap ? swap_folder(partial, path) : mdp_file_rename(partial, path);
    if (status.code == MDP_OK) status = mdp_folder_sync(folder);
    mdp_free(folder);
    return status;
}
