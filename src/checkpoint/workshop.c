/* workshop.c - the state folder of an output: whose it is, what is made in it, and how that gets its final name.
 *
 * Owns the names in the folder, and the only renames by which an output appears. Whoever has lost the lock finds its
 * unfinished outputs moved: their folder bears the token of its owner, and the next owner gives it its own. */
#include "mdp/outputs.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define IDENTITY "identity.json"
#define MAKING "making."
#define PARTIAL ".partial"
#define RETIRED ".retired"
#define MAX_IDENTITY (1 << 26)

static bool begins_with(const char *text, const char *begin) {
    return strncmp(text, begin, strlen(begin)) == 0;
}

static bool ends_with(const char *text, const char *end) {
    size_t n = strlen(text), m = strlen(end);
    return n >= m && strcmp(text + n - m, end) == 0;
}

/* ---- what is ours ------------------------------------------------------------------------------------------------ */

/* Lock, identity, resume points, journals and marks, unfinished outputs, and the partial files of all these. */
static bool is_name_of_ours(const char *name) {
    static const char *const begins[] = {MDP_LOCK_NAME, IDENTITY, "pass-", "write-", MAKING, ".nfs"};
    for (size_t i = 0; i < sizeof begins / sizeof *begins; i++) {
        if (begins_with(name, begins[i])) return true;
    }
    return false;
}

/* Does the file say that it is an identity of ours? */
static bool is_identity(const char *path) {
    char *text = NULL;
    int64_t n_byte;
    json_t *root = NULL;
    if (mdp_path_look(path) != MDP_PATH_FILE) return false;
    if (mdp_file_read_all(path, MAX_IDENTITY, &text, &n_byte).code != MDP_OK) return true; /* told where it is read */
    mdp_status status = mdp_json_parse(text, n_byte, path, &root);
    const char *format = json_string_value(json_object_get(root, "format"));
    bool ours = status.code != MDP_OK || (format && strcmp(format, "moe-dist-prune resume points") == 0);
    json_decref(root);
    mdp_free(text);
    return ours;
}

static mdp_status check_names(const char *folder, const mdp_names *names) {
    char *lock = NULL, *identity = NULL;
    if (names->n == 0) return mdp_ok();
    for (int64_t i = 0; i < names->n; i++) {
        if (!is_name_of_ours(names->name[i]))
            return MDP_ERROR(MDP_CANNOT_CREATE,
                             "%s holds %s, which this program did not write, so it is not its folder of unfinished "
                             "results; move that away or give another output.",
                             folder, names->name[i]);
    }
    mdp_status status = mdp_path_join(&lock, folder, MDP_LOCK_NAME);
    if (status.code == MDP_OK) status = mdp_path_join(&identity, folder, IDENTITY);
    if (status.code == MDP_OK && !mdp_lock_is_ours(lock) && !is_identity(identity))
        status = MDP_ERROR(MDP_CANNOT_CREATE,
                           "%s is not a folder of unfinished results of this program (it has neither a lock nor an "
                           "identity); move it away or give another output.",
                           folder);
    mdp_free(lock);
    mdp_free(identity);
    return status;
}

mdp_status mdp_workshop_check(const char *folder) {
    mdp_names names;
    mdp_path_kind kind = mdp_path_look(folder);
    if (kind == MDP_PATH_NOTHING) return mdp_ok();
    if (kind == MDP_PATH_LINK)
        return MDP_ERROR(MDP_CANNOT_CREATE, "%s is a symbolic link, and nothing is written through one; remove it.",
                         folder);
    if (kind != MDP_PATH_FOLDER)
        return MDP_ERROR(MDP_CANNOT_CREATE,
                         "%s is no folder, and is where unfinished results are to lie; move it away or give another "
                         "output.",
                         folder);
    mdp_status status = mdp_folder_list(folder, &names);
    if (status.code == MDP_OK) status = check_names(folder, &names);
    mdp_names_clear(&names);
    return status;
}

/* ---- opening ----------------------------------------------------------------------------------------------------- */

mdp_status mdp_workshop_name(const char *output, bool in_folder, char **out) {
    char *trimmed = NULL;
    if (in_folder) return mdp_path_join(out, output, ".state");
    MDP_TRY(mdp_path_trim(&trimmed, output));
    mdp_status status = mdp_format(out, "%s.state", trimmed);
    mdp_free(trimmed);
    return status;
}

/* Is the output being made by somebody in another way: a file in a folder of results that is being made? */
static mdp_status look_outside(const char *output, bool take_over) {
    char *folder = NULL, *state = NULL;
    mdp_status status = mdp_path_folder(&folder, output);
    if (status.code == MDP_OK) status = mdp_path_join(&state, folder, ".state");
    if (status.code == MDP_OK) status = mdp_lock_look(state, folder, take_over);
    mdp_free(folder);
    mdp_free(state);
    return status;
}

/* Or a file in this folder of results by itself? */
static mdp_status look_inside(const char *output, bool take_over) {
    mdp_names names;
    mdp_status status = mdp_folder_list(output, &names);
    for (int64_t i = 0; i < names.n && status.code == MDP_OK; i++) {
        char *state = NULL;
        if (strcmp(names.name[i], ".state") == 0 || !ends_with(names.name[i], ".state")) continue;
        status = mdp_path_join(&state, output, names.name[i]);
        if (status.code == MDP_OK) status = mdp_lock_look(state, output, take_over);
        mdp_free(state);
    }
    mdp_names_clear(&names);
    return status;
}

/* Rank 0. The lock is taken first: of two that do this at once, at least one sees the other. */
static mdp_status own(mdp_workshop *workshop, bool in_folder, mdp_claim claim) {
    MDP_TRY(mdp_workshop_check(workshop->folder));
    MDP_TRY(mdp_lock_take(workshop->folder, workshop->output, claim, &workshop->lock));
    return in_folder ? look_inside(workshop->output, claim.take_over) : look_outside(workshop->output, claim.take_over);
}

static mdp_status look(const mdp_workshop *workshop, bool in_folder, bool take_over) {
    MDP_TRY(mdp_workshop_check(workshop->folder));
    MDP_TRY(mdp_lock_look(workshop->folder, workshop->output, take_over));
    if (!in_folder) return look_outside(workshop->output, take_over);
    return mdp_path_is_folder(workshop->output) ? look_inside(workshop->output, take_over) : mdp_ok();
}

static mdp_status new_workshop(const char *output, bool in_folder, mdp_workshop **out) {
    MDP_TRY(MDP_ALLOC(out, 1, "a state folder"));
    MDP_TRY(mdp_path_trim(&(*out)->output, output));
    return mdp_workshop_name(output, in_folder, &(*out)->folder);
}

static mdp_status name_making(mdp_workshop *workshop, const char *token) {
    return mdp_format(&workshop->making, "%s/" MAKING "%s", workshop->folder, token);
}

mdp_status mdp_workshop_open_all(const mdp_comm *comm, const char *output, bool in_folder, mdp_claim claim, bool dry,
                                 mdp_workshop **out) {
    char token[9] = "";
    MDP_AGREE(comm, new_workshop(output, in_folder, out));
    mdp_workshop *workshop = *out;
    mdp_status status = mdp_ok();
    if (comm->rank == 0) status = dry ? look(workshop, in_folder, claim.take_over) : own(workshop, in_folder, claim);
    MDP_AGREE(comm, status);
    if (dry) return status;
    if (workshop->lock) snprintf(token, sizeof token, "%s", mdp_lock_token(workshop->lock));
    MDP_TRY(mdp_bcast_all(comm, token, (int64_t)sizeof token, 0));
    return mdp_agree_all(comm, name_making(workshop, token));
}

mdp_status mdp_workshop_check_owner(const mdp_workshop *workshop) {
    return mdp_lock_check(workshop->lock);
}

mdp_status mdp_workshop_path(const mdp_workshop *workshop, const char *name, char **out) {
    return mdp_format(out, "%s/%s" PARTIAL, workshop->making, name);
}

/* ---- removing ---------------------------------------------------------------------------------------------------- */

static mdp_status remove_entry(const char *path) {
    if (mdp_path_look(path) == MDP_PATH_FOLDER) return mdp_folder_remove(path);
    if (unlink(path) == 0 || errno == ENOENT) return mdp_ok();
    return MDP_ERROR(MDP_IO, "%s: cannot be removed: %s.", path, strerror(errno));
}

static bool is_retired(const char *name) {
    return ends_with(name, RETIRED);
}

/* What was taken from its place may hold what is not ours: of that, only what its record lists. */
static mdp_status remove_made(const char *path) {
    bool recorded = is_retired(path) && mdp_path_look(path) == MDP_PATH_FOLDER;
    return recorded ? mdp_record_remove(path) : remove_entry(path);
}

typedef mdp_status entry_fn(const char *path);

/* Do so with every entry of a folder, in the order of names, and go on after an error, which is returned. */
static mdp_status with_entries(const char *folder, bool (*chosen)(const char *name), entry_fn *run) {
    mdp_names names;
    mdp_status first = mdp_folder_list(folder, &names);
    for (int64_t i = 0; i < names.n; i++) {
        char *path = NULL;
        if (chosen && !chosen(names.name[i])) continue;
        mdp_status status = mdp_path_join(&path, folder, names.name[i]);
        if (status.code == MDP_OK) status = run(path);
        if (first.code == MDP_OK) first = status;
        mdp_free(path);
    }
    mdp_names_clear(&names);
    return first;
}

/* A folder of unfinished outputs, and all in it. */
static mdp_status remove_making(const char *path) {
    if (mdp_path_look(path) != MDP_PATH_FOLDER) return remove_entry(path);
    MDP_TRY(with_entries(path, NULL, remove_made));
    return mdp_folder_remove(path);
}

static bool is_making(const char *name) {
    return begins_with(name, MAKING);
}

static bool is_saved(const char *name) {
    return is_name_of_ours(name) && !is_making(name) && strcmp(name, MDP_LOCK_NAME) != 0;
}

mdp_status mdp_workshop_forget(const mdp_workshop *workshop) {
    return with_entries(workshop->folder, is_saved, remove_entry);
}

/* ---- what an earlier owner has left --------------------------------------------------------------------------------
 */

/* making.X/name.retired back to its place beside the state folder, if nothing is there. */
static mdp_status put_back(const char *path) {
    char *making = NULL, *state = NULL, *folder = NULL, *place = NULL;
    const char *name = mdp_path_name(path);
    if (!is_retired(name)) return mdp_ok();
    mdp_status status = mdp_path_folder(&making, path);
    if (status.code == MDP_OK) status = mdp_path_folder(&state, making);
    if (status.code == MDP_OK) status = mdp_path_folder(&folder, state);
    if (status.code == MDP_OK)
        status = mdp_format(&place, "%s/%.*s", folder, (int)(strlen(name) - strlen(RETIRED)), name);
    if (status.code == MDP_OK && !mdp_path_exists(place)) status = mdp_file_rename_new(path, place);
    mdp_free(making);
    mdp_free(state);
    mdp_free(folder);
    mdp_free(place);
    return status;
}

static mdp_status give_up(const char *making) {
    if (mdp_path_look(making) == MDP_PATH_FOLDER) MDP_TRY(with_entries(making, NULL, put_back));
    return remove_making(making);
}

/* The folder of unfinished outputs of the last owner becomes this one's; there is one at most. */
static mdp_status take_making(const mdp_workshop *workshop) {
    mdp_names names;
    bool taken = false;
    mdp_status status = mdp_folder_list(workshop->folder, &names);
    for (int64_t i = 0; i < names.n && status.code == MDP_OK && !taken; i++) {
        char *path = NULL;
        if (!is_making(names.name[i])) continue;
        status = mdp_path_join(&path, workshop->folder, names.name[i]);
        if (status.code == MDP_OK) status = mdp_file_rename(path, workshop->making);
        taken = status.code == MDP_OK;
        mdp_free(path);
    }
    mdp_names_clear(&names);
    return status;
}

mdp_status mdp_workshop_adopt(mdp_workshop *workshop, bool go_on) {
    MDP_TRY(mdp_workshop_check_owner(workshop));
    if (go_on) MDP_TRY(take_making(workshop));
    if (!go_on) MDP_TRY(with_entries(workshop->folder, is_making, give_up));
    if (!go_on) MDP_TRY(mdp_workshop_forget(workshop));
    return mdp_folder_create(workshop->making);
}

/* ---- publishing -------------------------------------------------------------------------------------------------- */

static mdp_status name_retired(const mdp_workshop *workshop, const char *path, char **out) {
    return mdp_format(out, "%s/%s" RETIRED, workshop->making, mdp_path_name(path));
}

mdp_status mdp_workshop_retire(const mdp_workshop *workshop, const char *path) {
    char *retired = NULL;
    MDP_TRY(mdp_workshop_check_owner(workshop));
    MDP_TRY(name_retired(workshop, path, &retired));
    mdp_status status = mdp_path_exists(retired) ? remove_made(retired) : mdp_ok();
    if (status.code == MDP_OK) status = mdp_file_rename(path, retired);
    mdp_free(retired);
    return status;
}

void mdp_workshop_discard(const mdp_workshop *workshop) {
    mdp_status ignored = with_entries(workshop->making, is_retired, remove_made);
    (void)ignored;
}

/* From the place where it was made to where nothing is, or to a file that is replaced in the same step. */
static mdp_status put(const mdp_workshop *workshop, const char *made, const mdp_target *target, char *retired) {
    mdp_path_kind kind = mdp_path_look(target->path);
    bool aside = target->kind == MDP_TARGET_FOLDER && kind == MDP_PATH_FOLDER;
    if (aside) MDP_TRY(mdp_workshop_retire(workshop, target->path));
    mdp_status status = kind == MDP_PATH_NOTHING || aside ? mdp_file_rename_new(made, target->path)
                                                          : mdp_file_rename(made, target->path);
    if (status.code == MDP_OK || !aside) return status;
    mdp_status back = mdp_file_rename_new(retired, target->path);
    (void)back; /* the first error is the one to tell */
    return status;
}

static mdp_status publish(const mdp_workshop *workshop, const mdp_target *target, const char *made, char *retired) {
    char *folder = NULL;
    MDP_TRY(mdp_target_check(target));
    MDP_TRY(mdp_path_folder(&folder, target->path));
    mdp_status status = mdp_workshop_check_owner(workshop); /* last of all */
    if (status.code == MDP_OK) status = put(workshop, made, target, retired);
    if (status.code == MDP_OK) status = mdp_folder_sync(folder);
    mdp_free(folder);
    if (status.code == MDP_OK) mdp_workshop_discard(workshop);
    return status;
}

mdp_status mdp_workshop_publish(const mdp_workshop *workshop, const mdp_target *target) {
    char *made = NULL, *retired = NULL;
    mdp_status status = mdp_workshop_path(workshop, mdp_path_name(target->path), &made);
    if (status.code == MDP_OK) status = name_retired(workshop, target->path, &retired);
    if (status.code == MDP_OK) status = publish(workshop, target, made, retired);
    mdp_free(made);
    mdp_free(retired);
    return status;
}

/* ---- closing ----------------------------------------------------------------------------------------------------- */

/* All but the lock, which is last to go. */
static mdp_status clear(const mdp_workshop *workshop) {
    mdp_status status = with_entries(workshop->folder, is_making, remove_making);
    mdp_status forgotten = mdp_workshop_forget(workshop);
    return status.code != MDP_OK ? status : forgotten;
}

mdp_status mdp_workshop_close(mdp_workshop *workshop, bool keep) {
    mdp_status status = mdp_ok();
    if (!workshop) return status;
    bool ours = workshop->lock && mdp_workshop_check_owner(workshop).code == MDP_OK;
    if (ours && !keep) status = clear(workshop);
    if (ours && workshop->making) rmdir(workshop->making); /* unless something is in it */
    mdp_lock_release(workshop->lock);
    if (ours && rmdir(workshop->folder) != 0 && errno != ENOENT && !keep && status.code == MDP_OK)
        status = MDP_ERROR(MDP_IO, "%s: cannot be removed: %s.", workshop->folder, strerror(errno));
    mdp_free(workshop->folder);
    mdp_free(workshop->output);
    mdp_free(workshop->making);
    mdp_free(workshop);
    return status;
}
