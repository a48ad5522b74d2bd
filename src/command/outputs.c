/* outputs.c - what a command reads and writes: see outputs.h.
 *
 * Here paths of the command line become inputs and targets, once for all commands; the rules that they must keep are
 * those of mdp_places_check and mdp_workshop_publish. Rank 0 touches the disk. */
#include "command/outputs.h"
#include "command/continue.h"
#include "command/generation.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#define MAX_DOCUMENT (INT64_C(1) << 30)
#define CONFIG_NAME "effective-config.json"
#define BESIDE_BYTE 32 /* a name beside the output is longer by fewer: .profile.json.partial */
#define BELOW_BYTE 128 /* and a path, but for the name again: .state/making.X/NAME.partial/model-00001-of-00002.... */

static const char *out_of(const mdp_session *session) {
    return mdp_session_option(session, OPTION_OUT)->text;
}

static bool is_dry(const mdp_session *session) {
    return mdp_session_option(session, OPTION_DRY_RUN)->flag;
}

/* ---- names ------------------------------------------------------------------------------------------------------- */

/* Can there be a file or folder of this name, and beside and below it what has longer names? */
static mdp_status check_length(const char *path) {
    char *folder = NULL;
    MDP_TRY(mdp_path_folder(&folder, path));
    long most_name = pathconf(folder, _PC_NAME_MAX), most_path = pathconf(folder, _PC_PATH_MAX);
    mdp_free(folder);
    long n_path = (long)strlen(path), n_name = (long)strlen(mdp_path_name(path));
    most_name -= BESIDE_BYTE;
    most_path -= BELOW_BYTE + n_name;
    if ((most_name <= 0 || n_name <= most_name) && (most_path <= 0 || n_path <= most_path)) return mdp_ok();
    return MDP_ERROR(MDP_CANNOT_CREATE,
                     "the output %.100s... has a name of %ld bytes in a path of %ld; with what is written beside and "
                     "below it, at most %ld and %ld are possible there. Give another --out.",
                     path, n_name, n_path, most_name, most_path);
}

/* `path` as it was given: slashes at its end say that a folder is meant. */
static mdp_status check_name(const mdp_session *session, const char *path, bool is_folder) {
    char *trimmed = NULL;
    MDP_TRY(mdp_path_trim(&trimmed, path));
    mdp_status status = check_length(trimmed);
    bool folder_meant = strcmp(trimmed, path) != 0 || mdp_path_is_folder(path);
    mdp_free(trimmed);
    if (status.code != MDP_OK || is_folder || !folder_meant) return status;
    return MDP_ERROR(MDP_CANNOT_CREATE, "%.600s names a folder, the output of %s is a file; name that.", path,
                     session->options->command);
}

static mdp_status check_names(const mdp_session *session, bool is_folder) {
    const mdp_option_value *dump = mdp_session_option(session, OPTION_DUMP);
    MDP_TRY(check_name(session, out_of(session), is_folder));
    return dump->present ? check_name(session, dump->text, false) : mdp_ok();
}

/* ---- lists ------------------------------------------------------------------------------------------------------- */

/* FILE:WEIGHT names the file, unless there is one that is called so. */
static mdp_status add_input(mdp_session *session, mdp_option_id id, const char *text) {
    const char *colon = id == OPTION_STATS && !mdp_path_exists(text) ? strrchr(text, ':') : NULL;
    char *path = NULL;
    MDP_TRY(mdp_format(&path, "%.*s", colon ? (int)(colon - text) : (int)strlen(text), text));
    mdp_status status = mdp_places_add_input(&session->places, path);
    mdp_free(path);
    if (id != OPTION_PLAN || status.code != MDP_OK) return status;
    MDP_TRY(mdp_plan_arrays_name(text, &path));
    if (mdp_path_exists(path)) status = mdp_places_add_input(&session->places, path);
    mdp_free(path);
    return status;
}

static mdp_status list_inputs(mdp_session *session) {
    for (int i = 0; i < N_OPTION; i++) {
        const mdp_option_value *value = mdp_session_option(session, (mdp_option_id)i);
        if (!mdp_option_table[i].reads || !(mdp_option_table[i].commands & session->options->bit)) continue;
        for (int t = 0; t < value->n_text; t++) MDP_TRY(add_input(session, (mdp_option_id)i, value->texts[t]));
    }
    return mdp_ok();
}

static void clear_lists(mdp_session *session) {
    mdp_places_clear(&session->places);
    mdp_names_clear(&session->members);
    mdp_names_clear(&session->stale);
}

/* A state folder is looked at like an output, so that nothing else is read or written there. */
static mdp_status add_state(mdp_session *session, const char *output, bool in_folder, const char *option) {
    char *path = NULL;
    MDP_TRY(mdp_workshop_name(output, in_folder, &path));
    mdp_status status = mdp_places_add_target(&session->places, path, option, MDP_TARGET_STATE, false);
    mdp_free(path);
    return status;
}

static mdp_status add_member(mdp_session *session, const char *name, mdp_target_kind kind, bool replace) {
    char *path = NULL;
    MDP_TRY(mdp_session_path(session, name, &path));
    mdp_status status = mdp_places_add_target(&session->places, path, "--out", kind, replace);
    mdp_free(path);
    return status;
}

static mdp_target_kind kind_of(const char *name) {
    return strcmp(name, "hf") == 0 ? MDP_TARGET_FOLDER : MDP_TARGET_FILE;
}

/* The options of an earlier command stay beside its results, unless they may be replaced. Last of the members. */
static mdp_status add_config(mdp_session *session, bool replace) {
    char *path = NULL;
    MDP_TRY(mdp_session_path(session, CONFIG_NAME, &path));
    bool there = mdp_path_exists(path);
    mdp_free(path);
    return there && !replace ? mdp_ok() : mdp_names_add(&session->members, CONFIG_NAME);
}

/* Results in a folder: what exists is replaced by --overwrite, or when it is this command's own. */
static mdp_status list_members(mdp_session *session, const char *const *members, mdp_generation *own) {
    bool overwrite = mdp_session_option(session, OPTION_OVERWRITE)->flag;
    for (int i = 0; members[i]; i++) MDP_TRY(mdp_names_add(&session->members, members[i]));
    if (session->profiles) MDP_TRY(mdp_names_add(&session->members, "profile.json"));
    *own = mdp_generation_find(session);
    bool replace = overwrite || (own->begun && mdp_session_option(session, OPTION_RESUME)->flag);
    MDP_TRY(add_config(session, replace));
    MDP_TRY(mdp_generation_list_stale(session, &session->stale));
    for (int64_t i = 0; i < session->members.n; i++) {
        const char *name = session->members.name[i];
        MDP_TRY(add_member(session, name, kind_of(name), replace));
    }
    for (int64_t i = 0; i < session->stale.n; i++)
        MDP_TRY(add_member(session, session->stale.name[i], kind_of(session->stale.name[i]), true));
    return add_member(session, "run.log", MDP_TARGET_LOG, true);
}

mdp_status mdp_session_arrays_name(const mdp_session *session, char **out) {
    return mdp_plan_arrays_name(out_of(session), out);
}

/* NAME.json -> NAME.html. */
static mdp_status name_page(const mdp_session *session, char **out) {
    const char *name = out_of(session);
    size_t n = strlen(name);
    if (n > 5 && strcmp(name + n - 5, ".json") == 0) n -= 5;
    return mdp_format(out, "%.*s.html", (int)n, name);
}

/* A file beside --out: arrays of a plan, the page that shows a text. Replaced with it; what a killed run has published
 * before that is its own. */
static mdp_status add_beside(mdp_session *session, mdp_status (*name)(const mdp_session *, char **), bool replace) {
    char *path = NULL;
    MDP_TRY(name(session, &path));
    replace = replace || mdp_session_option(session, OPTION_RESUME)->flag;
    mdp_status status = mdp_places_add_target(&session->places, path, "--out", MDP_TARGET_FILE, replace);
    mdp_free(path);
    return status;
}

/* --out is the result itself. */
static mdp_status list_single(mdp_session *session, const mdp_results *results) {
    bool overwrite = mdp_session_option(session, OPTION_OVERWRITE)->flag;
    char *profile = NULL, *trimmed = NULL;
    MDP_TRY(mdp_places_add_target(&session->places, out_of(session), "--out",
                                  results->is_folder ? MDP_TARGET_FOLDER : MDP_TARGET_FILE, overwrite));
    if (results->with_arrays) MDP_TRY(add_beside(session, mdp_session_arrays_name, overwrite));
    if (results->with_page) MDP_TRY(add_beside(session, name_page, overwrite));
    if (!session->profiles) return mdp_ok();
    mdp_status status = mdp_path_trim(&trimmed, out_of(session));
    if (status.code == MDP_OK) status = mdp_format(&profile, "%s.profile.json", trimmed);
    if (status.code == MDP_OK)
        status = mdp_places_add_target(&session->places, profile, "--out", MDP_TARGET_FILE, overwrite);
    mdp_free(profile);
    mdp_free(trimmed);
    return status;
}

static mdp_status list_all(mdp_session *session, const mdp_results *results, mdp_generation *own) {
    const mdp_option_value *dump = mdp_session_option(session, OPTION_DUMP);
    MDP_TRY(list_inputs(session));
    if (results->members)
        MDP_TRY(list_members(session, results->members, own));
    else
        MDP_TRY(list_single(session, results));
    MDP_TRY(add_state(session, out_of(session), results->members != NULL, "--out"));
    if (!dump->present) return mdp_ok();
    MDP_TRY(mdp_places_add_target(&session->places, dump->text, "--dump", MDP_TARGET_FILE,
                                  mdp_session_option(session, OPTION_OVERWRITE)->flag));
    return add_state(session, dump->text, false, "--dump");
}

/* ---- the folders that results go to ------------------------------------------------------------------------------ */

/* The folder of --out where it is one of results and there, else the one that it will be made in. New text. */
static mdp_status name_place(const mdp_session *session, char **out) {
    bool inside = session->members.n > 0 && !session->folder_created && mdp_path_is_folder(out_of(session));
    return inside ? mdp_path_trim(out, out_of(session)) : mdp_path_folder(out, out_of(session));
}

static mdp_status check_room(const mdp_session *session, int64_t n_byte) {
    char *folder = NULL;
    MDP_TRY(name_place(session, &folder));
    mdp_status status = mdp_folder_check_room(folder, n_byte);
    mdp_free(folder);
    const mdp_option_value *dump = mdp_session_option(session, OPTION_DUMP);
    if (!dump->present || status.code != MDP_OK) return status;
    MDP_TRY(mdp_path_folder(&folder, dump->text));
    status = mdp_folder_check_room(folder, 0);
    mdp_free(folder);
    return status;
}

mdp_status mdp_session_check_room_all(const mdp_session *session, int64_t n_byte) {
    return mdp_agree_all(session->comm, session->comm->rank == 0 ? check_room(session, n_byte) : mdp_ok());
}

static mdp_status make_folder(mdp_session *session) {
    bool existed = mdp_path_exists(out_of(session));
    MDP_TRY(mdp_folder_create(out_of(session)));
    session->folder_created = !existed;
    return mdp_ok();
}

/* ---- opening ----------------------------------------------------------------------------------------------------- */

/* Rank 0, before anything is made. */
static mdp_status list_and_check(mdp_session *session, const mdp_results *results) {
    const char *out = out_of(session);
    mdp_generation own = {false, false};
    if (results->members && mdp_path_exists(out) && !mdp_path_is_folder(out))
        return MDP_ERROR(MDP_CANNOT_CREATE, "%s: is not a folder; --out names the folder for the results.", out);
    MDP_TRY(check_names(session, results->members || results->is_folder));
    MDP_TRY(list_all(session, results, &own));
    MDP_TRY(mdp_places_check_apart(&session->places));
    return check_room(session, 0);
}

static mdp_status open_workshops_all(mdp_session *session, bool in_folder) {
    const mdp_claim claim = {.goes_on = mdp_session_option(session, OPTION_RESUME)->flag,
                             .take_over = mdp_session_option(session, OPTION_BREAK_LOCK)->flag};
    bool dry = is_dry(session);
    const mdp_option_value *dump = mdp_session_option(session, OPTION_DUMP);
    if (in_folder && !dry) MDP_AGREE(session->comm, session->comm->rank == 0 ? make_folder(session) : mdp_ok());
    MDP_TRY(mdp_workshop_open_all(session->comm, out_of(session), in_folder, claim, dry, &session->workshop));
    if (!dump->present) return mdp_ok();
    return mdp_workshop_open_all(session->comm, dump->text, false, claim, dry, &session->dump);
}

/* Rank 0. What an earlier run has left is gone on with or done away with. */
static mdp_status adopt(mdp_session *session, bool go_on) {
    if (is_dry(session)) return mdp_ok();
    MDP_TRY(mdp_workshop_adopt(session->workshop, go_on));
    session->adopted = true;
    return session->dump ? mdp_workshop_adopt(session->dump, false) : mdp_ok();
}

/* What is found, the same on every rank. */
typedef struct findings {
    int64_t finished, goes_on;
} findings;

/* Rank 0, as the owner: what was listed before may have been changed by the one before. */
static mdp_status find(mdp_session *session, const mdp_results *results, findings *found) {
    mdp_generation own = {false, false};
    bool goes_on = false;
    clear_lists(session);
    MDP_TRY(list_all(session, results, &own));
    MDP_TRY(mdp_places_check_apart(&session->places));
    bool finished = own.finished;
    MDP_TRY(mdp_session_look_back(session, &goes_on));
    MDP_TRY(mdp_session_look_finished(session, results, goes_on, &finished));
    found->finished = finished;
    found->goes_on = goes_on;
    session->begun = goes_on && own.begun && !own.finished;
    if (finished) return mdp_ok();
    MDP_TRY(mdp_places_check_free(&session->places));
    MDP_TRY(adopt(session, goes_on));
    return goes_on ? mdp_ok() : mdp_places_check_free(&session->places); /* of what was put back */
}

/* The document that the finished command printed with --json. New text; NULL: none. */
static mdp_status read_document(const mdp_session *session, char **text) {
    char *path = NULL;
    int64_t n_byte;
    *text = NULL;
    if (!mdp_session_option(session, OPTION_JSON)->flag) return mdp_ok();
    if (session->options->bit == COMMAND_RUN) MDP_TRY(mdp_session_path(session, "report.json", &path));
    if (session->options->bit & (COMMAND_EVAL | COMMAND_FRONTIER)) MDP_TRY(mdp_path_trim(&path, out_of(session)));
    mdp_status status = path ? mdp_file_read_all(path, MAX_DOCUMENT, text, &n_byte) : mdp_ok();
    mdp_free(path);
    return status;
}

/* Rank 0. */
static mdp_status tell_finished(const mdp_session *session) {
    char *text = NULL;
    MDP_TRY(read_document(session, &text));
    if (text) mdp_print_text(text);
    mdp_free(text);
    mdp_log_message(session->log, MDP_LEVEL_INFO,
                    "%s is finished: this very command has written it, and nothing is left to do", out_of(session));
    return mdp_ok();
}

mdp_status mdp_session_open_outputs_all(mdp_session *session, const mdp_results *results) {
    const mdp_comm *comm = session->comm;
    findings found = {0, 0};
    MDP_AGREE(comm, mdp_session_new_resume(session));
    MDP_AGREE(comm, comm->rank == 0 ? list_and_check(session, results) : mdp_ok());
    MDP_TRY(open_workshops_all(session, results->members != NULL));
    if (session->resume) session->resume->workshop = session->workshop;
    MDP_AGREE(comm, comm->rank == 0 ? find(session, results, &found) : mdp_ok());
    MDP_TRY(mdp_bcast_all(comm, &found, (int64_t)sizeof found, 0));
    session->finished = found.finished != 0;
    if (session->finished) return mdp_agree_all(comm, comm->rank == 0 ? tell_finished(session) : mdp_ok());
    mdp_session_go_on(session, found.goes_on != 0);
    return mdp_ok();
}

/* Rank 0. */
static mdp_status open_log(mdp_session *session) {
    char *path = NULL;
    MDP_TRY(mdp_session_path(session, "run.log", &path));
    session->log_created = !mdp_path_exists(path);
    mdp_status status = mdp_log_open_file(session->log, path);
    mdp_free(path);
    return status;
}

mdp_status mdp_session_begin_all(mdp_session *session) {
    MDP_AGREE(session->comm, session->comm->rank == 0 ? open_log(session) : mdp_ok());
    /* Whose folder it is, before anything else is in it: a run that is killed early goes on over what it has left. */
    return mdp_resume_prepare_all(session->comm, session->resume);
}

/* ---- results appear ---------------------------------------------------------------------------------------------- */

mdp_status mdp_session_make_path(const mdp_session *session, const char *name, char **out) {
    return mdp_workshop_path(session->workshop, name ? name : mdp_path_name(session->workshop->output), out);
}

static mdp_status publish_path(const mdp_session *session, const mdp_workshop *workshop, const char *path) {
    char *trimmed = NULL;
    MDP_TRY(mdp_path_trim(&trimmed, path));
    const mdp_target *target = mdp_places_find(&session->places, trimmed);
    mdp_status status = target ? mdp_workshop_publish(workshop, target)
                               : MDP_ERROR(MDP_INTERNAL, "%s is not among the outputs of the command.", trimmed);
    mdp_free(trimmed);
    return status;
}

/* The first result of a folder: the others of this generation may come, and its record of options does. */
static mdp_status begin_generation(mdp_session *session) {
    char *text = NULL;
    if (session->published || session->members.n == 0) return mdp_ok();
    if (!session->begun) MDP_TRY(mdp_generation_begin(session));
    session->begun = session->published = true;
    if (strcmp(session->members.name[session->members.n - 1], CONFIG_NAME) != 0) return mdp_ok();
    MDP_TRY(mdp_options_print(session->options, &text));
    mdp_status status = mdp_session_put_text(session, CONFIG_NAME, text);
    mdp_free(text);
    return status;
}

mdp_status mdp_session_publish(mdp_session *session, const char *name) {
    char *path = NULL;
    MDP_TRY(begin_generation(session));
    if (!name) MDP_TRY(mdp_copy_text(&path, out_of(session)));
    if (name) MDP_TRY(mdp_session_path(session, name, &path));
    mdp_status status = publish_path(session, session->workshop, path);
    mdp_free(path);
    return status;
}

mdp_status mdp_session_publish_all(mdp_session *session, const char *name) {
    return mdp_agree_all(session->comm, session->comm->rank == 0 ? mdp_session_publish(session, name) : mdp_ok());
}

mdp_status mdp_session_put_text(mdp_session *session, const char *name, const char *text) {
    char *path = NULL;
    MDP_TRY(mdp_session_make_path(session, name, &path));
    mdp_status status = mdp_file_write_all(path, text, (int64_t)strlen(text));
    mdp_free(path);
    return status.code == MDP_OK ? mdp_session_publish(session, name) : status;
}

mdp_status mdp_session_put_text_all(mdp_session *session, const char *name, const char *text) {
    return mdp_agree_all(session->comm,
                         session->comm->rank == 0 ? mdp_session_put_text(session, name, text) : mdp_ok());
}

/* Write a text and publish it at `path`. */
static mdp_status put_at(const mdp_session *session, const char *path, const char *text) {
    char *made = NULL;
    MDP_TRY(mdp_session_make_path(session, mdp_path_name(path), &made));
    mdp_status status = mdp_file_write_all(made, text, (int64_t)strlen(text));
    if (status.code == MDP_OK) status = publish_path(session, session->workshop, path);
    mdp_free(made);
    return status;
}

mdp_status mdp_session_put_beside(mdp_session *session, const char *ending, const char *text) {
    char *path = NULL;
    MDP_TRY(mdp_format(&path, "%s%s", session->workshop->output, ending));
    mdp_status status = put_at(session, path, text);
    mdp_free(path);
    return status;
}

mdp_status mdp_session_put_page(mdp_session *session, const char *text) {
    char *path = NULL;
    MDP_TRY(name_page(session, &path));
    mdp_status status = put_at(session, path, text);
    mdp_free(path);
    return status;
}

mdp_status mdp_session_publish_arrays_all(mdp_session *session) {
    char *path = NULL;
    mdp_status status = mdp_session_arrays_name(session, &path);
    if (status.code == MDP_OK && session->comm->rank == 0) status = publish_path(session, session->workshop, path);
    mdp_free(path);
    return mdp_agree_all(session->comm, status);
}

mdp_status mdp_session_dump_path(const mdp_session *session, char **out) {
    *out = NULL;
    if (!session->dump) return mdp_ok();
    return mdp_workshop_path(session->dump, mdp_path_name(session->dump->output), out);
}

mdp_status mdp_session_publish_dump_all(mdp_session *session) {
    if (!session->dump) return mdp_ok();
    mdp_status status = mdp_ok();
    if (session->comm->rank == 0) status = publish_path(session, session->dump, session->dump->output);
    return mdp_agree_all(session->comm, status);
}

/* ---- the end ----------------------------------------------------------------------------------------------------- */

/* What cannot be removed does no harm to a result that is complete. */
static void close_workshop(const mdp_session *session, mdp_workshop **workshop, bool keep) {
    mdp_status status = mdp_workshop_close(*workshop, keep);
    *workshop = NULL;
    if (status.code != MDP_OK)
        mdp_log_message(session->log, MDP_LEVEL_WARN, "not everything unfinished could be removed: %s", status.text);
}

static mdp_status finish(const mdp_session *session) {
    return session->members.n > 0 && !session->finished ? mdp_generation_finish(session) : mdp_ok();
}

mdp_status mdp_session_end_all(mdp_session *session) {
    if (!session->workshop || is_dry(session)) return mdp_ok();
    MDP_AGREE(session->comm, session->comm->rank == 0 ? finish(session) : mdp_ok());
    close_workshop(session, &session->workshop, false);
    close_workshop(session, &session->dump, false);
    return mdp_ok();
}

/* A run that failed before it had any result leaves nothing behind. Failing to clean up is not worth a second error. */
static void remove_folder(const mdp_session *session) {
    char *path = NULL;
    if (session->log_created && mdp_session_path(session, "run.log", &path).code == MDP_OK) unlink(path);
    mdp_free(path);
    if (session->folder_created) rmdir(out_of(session)); /* unless somebody has put something there */
}

void mdp_session_close_outputs(mdp_session *session, bool failed) {
    bool saved = session->resume && session->resume->saved;
    bool keep = !session->adopted || saved || session->published;
    mdp_status closed = mdp_workshop_close(session->workshop, keep);
    mdp_status dumped = mdp_workshop_close(session->dump, !session->adopted);
    (void)closed, (void)dumped; /* an error was told already, or there was none */
    session->workshop = session->dump = NULL;
    if (failed && !saved && !session->published) remove_folder(session);
    clear_lists(session);
}
