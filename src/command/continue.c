/* continue.c - what a resume point depends on, and the folder of them: see continue.h.
 *
 * The identity is JSON for people too: inputs by fingerprint, so that they may move; every option of the command but
 * those that cannot change a result; the program's version and what multiplies, which decide the last bits (so --gemm
 * and --compute are not compared by name). */
#include "command/continue.h"
#include "command/decide.h"

#include <string.h>

#define MAX_IDENTITY (1 << 20)
#define MAX_COMMAND 1800 /* bytes of a command line that is told */

/* Options that may differ when a command goes on: they change no byte of a result, or name files that have
 * fingerprints. */
static const mdp_option_id neutral[] = {
    OPTION_MODEL,        OPTION_TOKENS,           OPTION_EVAL_TOKENS, OPTION_TASKS,       OPTION_PLAN,
    OPTION_OUT,          OPTION_KEEP_FILE,        OPTION_OVERWRITE,   OPTION_JSON,        OPTION_DRY_RUN,
    OPTION_RESUME,       OPTION_CHECKPOINT_EVERY, OPTION_MAX_SECONDS, OPTION_GFLOPS,      OPTION_MEMORY,
    OPTION_BATCH_TOKENS, OPTION_THREADS,          OPTION_CONFIG,      OPTION_QUIET,       OPTION_LOG_LEVEL,
    OPTION_GEMM,         OPTION_COMPUTE,          OPTION_PROFILE,
#ifdef MDP_DEBUG_HOOKS
    OPTION_FAULT_EVERY,  OPTION_FAULT_SEED,       OPTION_FAULT_RANK,  OPTION_FAULT_KINDS, OPTION_STOP_AT,
#endif
};

static bool is_neutral(int option) {
    for (size_t i = 0; i < sizeof neutral / sizeof neutral[0]; i++) {
        if ((int)neutral[i] == option) return true;
    }
    return false;
}

static bool can_continue(const mdp_session *session) {
    return (mdp_option_table[OPTION_RESUME].commands & session->options->bit) != 0;
}

mdp_status mdp_session_listen(const mdp_session *session) {
    return can_continue(session) ? mdp_stop_listen() : mdp_ok();
}

void mdp_session_note_plan(mdp_session *session, const char *text, int64_t n_byte) {
    char both[66];
    mdp_digest digest = mdp_hash_bytes(text, n_byte);
    snprintf(both, sizeof both, "%s%s", session->plans_digest, digest.hex);
    digest = mdp_hash_bytes(both, (int64_t)strlen(both));
    memcpy(session->plans_digest, digest.hex, sizeof session->plans_digest);
}

bool mdp_session_may_replace(const mdp_session *session) {
    return mdp_session_option(session, OPTION_OVERWRITE)->flag || (session->resume && session->resume->continues);
}

/* ---- identity -------------------------------------------------------------------------------------------------- */

static json_t *text_or_null(const char *text) {
    return text && *text ? json_string(text) : json_null();
}

static mdp_status digest_tasks(const mdp_tasks *tasks, mdp_digest *out) {
    mdp_hash *hash = NULL;
    MDP_TRY(mdp_hash_new(&hash));
    const mdp_tokens *tokens = tasks->tokens;
    int64_t n = tokens->n_sequence, unit = (int64_t)sizeof(int64_t);
    for (int c = 0; c < tokens->n_category; c++)
        mdp_hash_update(hash, tokens->category[c], (int64_t)strlen(tokens->category[c]) + 1);
    mdp_hash_update(hash, tokens->offset, (n + 1) * unit);
    mdp_hash_update(hash, tokens->ids, tokens->n_token * (int64_t)sizeof *tokens->ids);
    mdp_hash_update(hash, tasks->given, n * unit);
    mdp_hash_update(hash, tasks->n_byte, n * unit);
    mdp_hash_update(hash, tasks->item_choice, (tasks->n_item + 1) * unit);
    mdp_hash_update(hash, tasks->answer, tasks->n_item * unit);
    mdp_hash_update(hash, tasks->task_item, (tokens->n_category + 1) * unit);
    *out = mdp_hash_digest(hash);
    mdp_hash_destroy(hash);
    return mdp_ok();
}

static json_t *list_options(const mdp_session *session) {
    json_t *list = json_object();
    for (int i = 0; i < N_OPTION; i++) {
        const mdp_option_value *value = mdp_session_option(session, (mdp_option_id)i);
        if (!(mdp_option_table[i].commands & session->options->bit) || is_neutral(i)) continue;
        json_t *texts = mdp_option_table[i].type == MDP_OPTION_FLAG ? json_boolean(value->flag) : json_array();
        for (int t = 0; t < value->n_text; t++) json_array_append_new(texts, json_string(value->texts[t]));
        json_object_set_new(list, mdp_option_table[i].name, texts);
    }
    return list;
}

static mdp_status make_identity(const mdp_session *session, char **out) {
    mdp_digest tasks = {""}, keep = {""};
    if (session->tasks) MDP_TRY(digest_tasks(session->tasks, &tasks));
    if (session->keep_list)
        keep = mdp_hash_bytes(session->keep_list, session->n_keep * (int64_t)sizeof *session->keep_list);
    json_t *root = json_pack("{s:s, s:s, s:s, s:s, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o}", "format",
                             "moe-dist-prune resume points", "version", "1.0", "program", "moe-dist-prune " MDP_VERSION,
                             "command", session->options->command, "compute", text_or_null(session->compute), "model",
                             text_or_null(session->catalogue->fingerprint), "tokens",
                             text_or_null(session->tokens ? session->tokens->fingerprint : NULL), "evaluation",
                             text_or_null(session->eval_tokens ? session->eval_tokens->fingerprint : NULL), "tasks",
                             text_or_null(tasks.hex), "plans", text_or_null(session->plans_digest), "keep_file",
                             text_or_null(keep.hex), "options", list_options(session));
    *out = NULL;
    if (!root) return MDP_ERROR(MDP_INTERNAL, "out of memory for the identity of resume points.");
    mdp_status status = mdp_json_print(root, out);
    json_decref(root);
    return status;
}

/* ---- comparing ------------------------------------------------------------------------------------------------- */

static const char *shown(const json_t *value) {
    const json_t *text = json_is_array(value) ? json_array_get(value, 0) : value;
    return json_is_string(text) ? json_string_value(text) : "none";
}

static mdp_status compare_options(const char *folder, const json_t *then, const json_t *now) {
    const char *name;
    json_t *value;
    json_object_foreach((json_t *)now, name, value) {
        const json_t *old = json_object_get(then, name);
        if (json_equal(old, value)) continue;
        if (json_is_boolean(value))
            return MDP_ERROR(MDP_USAGE,
                             "--resume: %s is of a run %s --%s; go on with the same options, or start again with "
                             "--overwrite.",
                             folder, json_is_true(value) ? "without" : "with", name);
        return MDP_ERROR(MDP_USAGE,
                         "--resume: %s is of a run with --%s %s, now it is %s; go on with the same options, or start "
                         "again with --overwrite.",
                         folder, name, shown(old), shown(value));
    }
    return mdp_ok();
}

static mdp_status compare(const char *folder, const json_t *then, const json_t *now) {
    static const struct {
        const char *key, *what;
        mdp_code code;
    } facts[] = {{"program", "by another version of the program", MDP_BAD_INPUT},
                 {"command", "of another command", MDP_USAGE},
                 {"model", "of another model", MDP_BAD_INPUT},
                 {"tokens", "of another text (--tokens, --categories)", MDP_BAD_INPUT},
                 {"evaluation", "of another text to evaluate on (--eval-tokens)", MDP_BAD_INPUT},
                 {"tasks", "of other tasks (--tasks)", MDP_BAD_INPUT},
                 {"plans", "of another plan (--plan)", MDP_BAD_INPUT},
                 {"keep_file", "of other numbers to keep (--keep-file)", MDP_BAD_INPUT},
                 {"compute", "by other arithmetic (--gemm, --compute, or another processor)", MDP_BAD_INPUT}};
    for (size_t i = 0; i < sizeof facts / sizeof facts[0]; i++) {
        const json_t *old = json_object_get(then, facts[i].key), *new = json_object_get(now, facts[i].key);
        if (json_equal(old, new)) continue;
        return MDP_ERROR(facts[i].code, "--resume: %s is %s: %s, now it is %s; start again with --overwrite.", folder,
                         facts[i].what, shown(old), shown(new));
    }
    return compare_options(folder, json_object_get(then, "options"), json_object_get(now, "options"));
}

static mdp_status compare_texts(const mdp_resume *resume, const char *path, const char *text, int64_t n_byte) {
    json_t *then = NULL, *now = NULL;
    mdp_status status = mdp_json_parse(text, n_byte, path, &then);
    if (status.code == MDP_OK) status = mdp_json_parse(resume->identity, (int64_t)strlen(resume->identity), path, &now);
    if (status.code == MDP_OK) status = compare(resume->folder, then, now);
    json_decref(then);
    json_decref(now);
    return status;
}

/* ---- the folder ------------------------------------------------------------------------------------------------ */

/* Rank 0. *found: there is something to go on from. A folder without identity.json is one whose run was killed while
 * making it. */
static mdp_status look(const mdp_session *session, const mdp_resume *resume, int64_t *found) {
    char *path = NULL, *text = NULL;
    int64_t n_byte = 0;
    bool resumes = mdp_session_option(session, OPTION_RESUME)->flag;
    *found = 0;
    if (!mdp_path_exists(resume->folder)) return mdp_ok();
    if (mdp_path_is_link(resume->folder))
        return MDP_ERROR(MDP_CANNOT_CREATE, "%s is a symbolic link, and nothing is written through one; remove it.",
                         resume->folder);
    MDP_TRY(mdp_resume_path(resume, "identity.json", &path));
    mdp_status status = mdp_ok();
    bool any = mdp_path_exists(path), overwrite = mdp_session_option(session, OPTION_OVERWRITE)->flag;
    if (any && resumes) {
        status = mdp_file_read_all(path, MAX_IDENTITY, &text, &n_byte);
        if (status.code == MDP_OK) status = compare_texts(resume, path, text, n_byte);
        *found = 1;
    } else if (any && !overwrite) {
        status = MDP_ERROR(MDP_CANNOT_CREATE,
                           "%s holds the resume points of a run that was stopped; go on with it by --resume, or start "
                           "again with --overwrite.",
                           resume->folder);
    } else if (!mdp_session_option(session, OPTION_DRY_RUN)->flag) {
        status = mdp_resume_remove(resume);
    }
    mdp_free(path);
    mdp_free(text);
    return status;
}

static mdp_status name_folder(const mdp_session *session, bool in_folder, char **out) {
    const char *place = mdp_session_option(session, OPTION_OUT)->text;
    size_t n = strlen(place);
    if (in_folder) return mdp_path_join(out, place, ".state");
    while (n > 1 && place[n - 1] == '/') n--;
    return mdp_format(out, "%.*s.state", (int)n, place);
}

/* The text at `path` says what was computed with. */
static mdp_status read_compute(const char *path, char *out, size_t n_byte) {
    char *text = NULL;
    int64_t n = 0;
    json_t *root = NULL;
    if (!mdp_path_exists(path)) return mdp_ok();
    MDP_TRY(mdp_file_read_all(path, MAX_IDENTITY, &text, &n));
    mdp_status status = mdp_json_parse(text, n, path, &root);
    const char *compute = json_string_value(json_object_get(root, "compute"));
    if (compute) snprintf(out, n_byte, "%s", compute);
    json_decref(root);
    mdp_free(text);
    return status;
}

mdp_status mdp_session_recorded_compute(const mdp_session *session, bool in_folder, char *out, size_t n_byte) {
    char *folder = NULL, *path = NULL;
    *out = '\0';
    if (!can_continue(session) || !mdp_session_option(session, OPTION_RESUME)->flag) return mdp_ok();
    mdp_status status = name_folder(session, in_folder, &folder);
    if (status.code == MDP_OK) status = mdp_path_join(&path, folder, "identity.json");
    if (status.code == MDP_OK) status = read_compute(path, out, n_byte);
    mdp_free(folder);
    mdp_free(path);
    return status;
}

static mdp_status new_resume(const mdp_session *session, bool in_folder, mdp_resume **out) {
    const mdp_option_value *most = mdp_session_option(session, OPTION_MAX_SECONDS);
    MDP_TRY(MDP_ALLOC(out, 1, "resume points"));
    mdp_resume *resume = *out;
    MDP_TRY(name_folder(session, in_folder, &resume->folder));
    MDP_TRY(make_identity(session, &resume->identity));
    mdp_digest digest = mdp_hash_bytes(resume->identity, (int64_t)strlen(resume->identity));
    memcpy(resume->digest, digest.hex, sizeof resume->digest);
    resume->log = session->log;
    resume->watch.start = session->start;
    resume->watch.every = mdp_session_option(session, OPTION_CHECKPOINT_EVERY)->real;
    resume->watch.max_seconds = most->real;
#ifdef MDP_DEBUG_HOOKS
    resume->watch.stop_at = mdp_session_option(session, OPTION_STOP_AT)->integer;
#endif
    if (most->present && most->real <= 0.0) return MDP_ERROR(MDP_USAGE, "--max-seconds %s is no time.", most->text);
    return mdp_ok();
}

mdp_status mdp_session_open_resume_all(mdp_session *session, bool in_folder) {
    const mdp_comm *comm = session->comm;
    int64_t found = 0;
    MDP_AGREE(comm, new_resume(session, in_folder, &session->resume));
    mdp_resume *resume = session->resume;
    MDP_AGREE(comm, comm->rank == 0 ? look(session, resume, &found) : mdp_ok());
    MDP_TRY(mdp_bcast_all(comm, &found, (int64_t)sizeof found, 0));
    resume->exists = resume->saved = resume->continues = found != 0;
    if (mdp_session_option(session, OPTION_RESUME)->flag && !found)
        mdp_log_message(session->log, MDP_LEVEL_INFO, "%s: nothing to go on from; starting from the beginning",
                        resume->folder);
    return mdp_ok();
}

mdp_status mdp_session_end_resume_all(mdp_session *session) {
    const mdp_comm *comm = session->comm;
    if (!session->resume || !session->resume->exists) return mdp_ok();
    if (mdp_session_option(session, OPTION_DRY_RUN)->flag) return mdp_ok();
    MDP_AGREE(comm, comm->rank == 0 ? mdp_resume_remove(session->resume) : mdp_ok());
    session->resume->exists = false;
    return mdp_ok();
}

/* ---- words ----------------------------------------------------------------------------------------------------- */

/* A word as a shell reads it. */
static void add_word(char *line, size_t most, const char *word) {
    static const char plain[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-./=:,+@%";
    size_t used = strlen(line);
    bool quote = *word == '\0' || word[strspn(word, plain)] != '\0';
    snprintf(line + used, most - used, quote ? " '%s'" : " %s", word);
}

static void say_resume(const mdp_session *session, const char *when) {
    char line[MAX_COMMAND] = "";
    bool given = false;
    for (int i = 0; i < session->n_word; i++) {
        given = given || strcmp(session->words[i], "--resume") == 0;
        add_word(line, sizeof line, session->words[i]);
    }
    if (!given) add_word(line, sizeof line, "--resume");
    mdp_log_message(session->log, MDP_LEVEL_INFO, "to go on%s, on any number of ranks:%s", when, line);
}

void mdp_session_say_how_to_go_on(const mdp_session *session) {
    say_resume(session, "");
}

static void add_option(char *line, size_t most, const char *name, const char *value) {
    char word[40];
    snprintf(word, sizeof word, "--%s", name);
    add_word(line, most, word);
    if (value) add_word(line, most, value);
}

/* What was given and `plan` or `apply` takes too, but for files and for how the command is run. */
static void add_common_options(const mdp_session *session, unsigned bit, char *line, size_t most) {
    for (int i = OPTION_CATEGORIES; i <= OPTION_SHARD_SIZE; i++) {
        const mdp_option *option = &mdp_option_table[i];
        const mdp_option_value *value = mdp_session_option(session, (mdp_option_id)i);
        if (i == OPTION_STATS || i == OPTION_PLAN || i == OPTION_OUT) continue;
        if (!(option->commands & bit) || !value->given) continue;
        if (option->type != MDP_OPTION_FLAG)
            add_option(line, most, option->name, value->text);
        else if (value->flag)
            add_option(line, most, option->name, NULL);
    }
}

/* The command that takes up what a run has made before it failed. */
static void say_next(const mdp_session *session, bool refused) {
    const char *out = mdp_session_option(session, OPTION_OUT)->text;
    size_t n = strlen(out);
    char line[MAX_COMMAND] = "", path[MAX_COMMAND];
    while (n > 1 && out[n - 1] == '/') n--;
    if (session->plan_made) {
        add_option(line, sizeof line, "model", mdp_session_option(session, OPTION_MODEL)->text);
        snprintf(path, sizeof path, "%.*s/plan.json", (int)n, out);
        add_option(line, sizeof line, "plan", path);
        if (!refused) add_common_options(session, COMMAND_APPLY, line, sizeof line);
        snprintf(path, sizeof path, "%.*s-2", (int)n, out);
    } else {
        snprintf(path, sizeof path, "%.*s/stats.h5", (int)n, out);
        add_option(line, sizeof line, "stats", path);
        if (mdp_session_criterion(session)->tensors != MDP_NO_TENSORS)
            add_option(line, sizeof line, "model", mdp_session_option(session, OPTION_MODEL)->text);
        add_common_options(session, COMMAND_PLAN, line, sizeof line);
        snprintf(path, sizeof path, "%.*s/plan.json", (int)n, out);
    }
    add_option(line, sizeof line, "out", path);
    mdp_log_message(session->log, MDP_LEVEL_INFO, "kept: %.*s/stats.h5%s; without observing again: moe-dist-prune %s%s",
                    (int)n, out, session->plan_made ? " and plan.json" : "", session->plan_made ? "apply" : "plan",
                    line);
}

void mdp_session_say_what_stays(const mdp_session *session, const mdp_status *status) {
    bool refused = status->code == MDP_USAGE || status->code == MDP_BAD_INPUT; /* it would be again */
    if (session->stats_made) say_next(session, refused);
    if (!refused && session->resume && session->resume->saved) say_resume(session, " when the cause is gone");
}
