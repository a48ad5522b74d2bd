/* generation.c - whose results are in a folder: see generation.h.
 *
 * The record lists, for every command that has written there, its identity (the digest of what its results depend on),
 * its results, and whether it finished. A name is on the list of one command only, the last. Names that are none of
 * this program's are never acted upon, whatever a record says. */
#include "command/generation.h"

#include <string.h>

#define FORMAT "moe-dist-prune results"

/* All that commands put into a folder of results. */
static const char *const results[] = {"stats.h5", "plan.json", "eval.json",    "report.json",          "report.html",
                                      "model.h5", "hf",        "profile.json", "effective-config.json"};
#define N_RESULT ((int)(sizeof results / sizeof results[0]))

static bool is_result(const char *name) {
    for (int i = 0; i < N_RESULT; i++) {
        if (strcmp(results[i], name) == 0) return true;
    }
    return false;
}

static bool is_listed(const json_t *list, const char *name) {
    for (size_t i = 0; i < json_array_size(list); i++) {
        const char *text = json_string_value(json_array_get(list, i));
        if (text && strcmp(text, name) == 0) return true;
    }
    return false;
}

static bool is_member(const mdp_session *session, const char *name) {
    for (int64_t i = 0; i < session->members.n; i++) {
        if (strcmp(session->members.name[i], name) == 0) return true;
    }
    return false;
}

/* ---- reading ----------------------------------------------------------------------------------------------------- */

/* The list of generations; new, empty when there is no record. */
static json_t *read_list(const mdp_session *session) {
    mdp_record record;
    mdp_record_read(mdp_session_option(session, OPTION_OUT)->text, &record);
    json_t *list = record.kind == MDP_RECORD_RESULTS ? json_object_get(record.root, "generations") : NULL;
    list = json_is_array(list) ? json_incref(list) : json_array();
    mdp_record_clear(&record);
    return list;
}

static json_t *find_own(const mdp_session *session, const json_t *list) {
    for (size_t i = 0; i < json_array_size(list); i++) {
        json_t *one = json_array_get(list, i);
        const char *identity = json_string_value(json_object_get(one, "identity"));
        if (identity && strcmp(identity, session->resume->digest) == 0) return one;
    }
    return NULL;
}

/* Does a command other than this one have `name` on its list? */
static bool is_of_others(const mdp_session *session, const json_t *list, const char *name) {
    const json_t *own = find_own(session, list);
    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_t *one = json_array_get(list, i);
        if (one != own && is_listed(json_object_get(one, "members"), name)) return true;
    }
    return false;
}

static mdp_status exists_in(const mdp_session *session, const char *name, bool *out) {
    char *path = NULL;
    MDP_TRY(mdp_session_path(session, name, &path));
    *out = mdp_path_exists(path);
    mdp_free(path);
    return mdp_ok();
}

static mdp_status list_stale(const mdp_session *session, const json_t *list, mdp_names *stale) {
    for (int i = 0; i < N_RESULT; i++) {
        bool there;
        if (is_member(session, results[i]) || !is_of_others(session, list, results[i])) continue;
        MDP_TRY(exists_in(session, results[i], &there));
        if (there) MDP_TRY(mdp_names_add(stale, results[i]));
    }
    return mdp_ok();
}

mdp_status mdp_generation_list_stale(const mdp_session *session, mdp_names *stale) {
    if (session->options->bit != COMMAND_RUN || !mdp_session_option(session, OPTION_OVERWRITE)->flag) return mdp_ok();
    json_t *list = read_list(session);
    mdp_status status = list_stale(session, list, stale);
    json_decref(list);
    return status;
}

mdp_generation mdp_generation_find(const mdp_session *session) {
    json_t *list = read_list(session);
    const json_t *one = find_own(session, list);
    mdp_generation own = {.begun = one != NULL, .finished = json_is_true(json_object_get(one, "finished"))};
    json_decref(list);
    return own;
}

/* ---- writing ----------------------------------------------------------------------------------------------------- */

/* The list with this command's generation last, and its names on no other. New; NULL: no memory. */
static json_t *make_list(const mdp_session *session, const json_t *old, bool finished) {
    json_t *list = json_array(), *members = json_array();
    for (size_t i = 0; i < json_array_size(old); i++) {
        json_t *one = json_deep_copy(json_array_get(old, i)), *kept = json_array();
        const json_t *had = json_object_get(one, "members");
        const char *identity = json_string_value(json_object_get(one, "identity"));
        for (size_t m = 0; m < json_array_size(had); m++) {
            const char *name = json_string_value(json_array_get(had, m));
            bool there = false;
            if (name && is_result(name) && !is_member(session, name) &&
                exists_in(session, name, &there).code == MDP_OK && there)
                mdp_json_add(&kept, json_string(name));
        }
        bool stays = json_array_size(kept) > 0 && identity && strcmp(identity, session->resume->digest) != 0;
        mdp_json_put(&one, "members", kept);
        if (stays)
            mdp_json_add(&list, one);
        else
            json_decref(one);
    }
    for (int64_t i = 0; i < session->members.n; i++) mdp_json_add(&members, json_string(session->members.name[i]));
    mdp_json_add(&list, json_pack("{s:s, s:s, s:b, s:o}", "command", session->options->command, "identity",
                                  session->resume->digest, "finished", (int)finished, "members", members));
    return list;
}

static mdp_status write_record(const mdp_session *session, const json_t *old, bool finished) {
    char *text = NULL, *path = NULL;
    json_t *root = json_pack("{s:s, s:s, s:o}", "format", FORMAT, "version", "1.0", "generations",
                             make_list(session, old, finished));
    if (!root) return MDP_ERROR(MDP_EXHAUSTED, "out of memory for the record of the results.");
    mdp_target target = {.option = "--out", .kind = MDP_TARGET_FILE, .replace = true};
    mdp_status status = mdp_json_print(root, &text);
    json_decref(root);
    if (status.code == MDP_OK) status = mdp_session_path(session, MDP_RECORD_NAME, &target.path);
    if (status.code == MDP_OK) status = mdp_workshop_path(session->workshop, MDP_RECORD_NAME, &path);
    if (status.code == MDP_OK) status = mdp_file_write_all(path, text, (int64_t)strlen(text));
    if (status.code == MDP_OK) status = mdp_workshop_publish(session->workshop, &target);
    mdp_free(target.path);
    mdp_free(path);
    mdp_free(text);
    return status;
}

/* Name what is there of another command beside this one's results. */
static void name_others(const mdp_session *session, const json_t *old) {
    static const char *const checkpoints[] = {"model.h5", "hf"};
    const char *folder = mdp_session_option(session, OPTION_OUT)->text;
    bool overwrite = mdp_session_option(session, OPTION_OVERWRITE)->flag;
    for (int i = 0; i < N_RESULT; i++) {
        bool there = false, checkpoint = false;
        for (int c = 0; c < 2; c++) checkpoint = checkpoint || strcmp(results[i], checkpoints[c]) == 0;
        if (is_member(session, results[i]) || exists_in(session, results[i], &there).code != MDP_OK || !there) continue;
        bool recorded = is_of_others(session, old, results[i]);
        if (!checkpoint && !(overwrite && session->options->bit == COMMAND_RUN)) continue;
        mdp_log_message(session->log, MDP_LEVEL_WARN, "%s/%s stays beside these results, and is of another command%s.",
                        folder, results[i], recorded ? " (" MDP_RECORD_NAME " there says which is which)" : "");
    }
}

/* It is hours since the places of results were looked at: what has come meanwhile and may not be replaced stays, and is
 * for the result itself to be refused by, so that those before it are not lost. */
static bool may_go(const mdp_session *session, const char *path) {
    const mdp_target *target = mdp_places_find(&session->places, path);
    return target && mdp_path_exists(path) && mdp_target_check(target).code == MDP_OK;
}

/* Take these results of the folder away. */
static mdp_status retire(const mdp_session *session, const mdp_names *names) {
    for (int64_t i = 0; i < names->n; i++) {
        char *path = NULL;
        MDP_TRY(mdp_session_path(session, names->name[i], &path));
        mdp_status status = may_go(session, path) ? mdp_workshop_retire(session->workshop, path) : mdp_ok();
        mdp_free(path);
        MDP_TRY(status);
    }
    return mdp_ok();
}

/* All that is to be replaced goes at once, so that no result stands beside one of another generation. */
static mdp_status begin(const mdp_session *session, const json_t *old) {
    MDP_TRY(retire(session, &session->stale));
    MDP_TRY(retire(session, &session->members));
    MDP_TRY(write_record(session, old, false));
    mdp_workshop_discard(session->workshop);
    name_others(session, old);
    return mdp_ok();
}

mdp_status mdp_generation_begin(const mdp_session *session) {
    json_t *old = read_list(session);
    mdp_status status = begin(session, old);
    json_decref(old);
    return status;
}

mdp_status mdp_generation_finish(const mdp_session *session) {
    json_t *old = read_list(session);
    mdp_status status = write_record(session, old, true);
    json_decref(old);
    return status;
}
