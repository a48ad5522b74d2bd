/* continue.c - what a resume point depends on, and what an earlier run has left: see continue.h.
 *
 * The identity is JSON for people too: inputs by fingerprint, so that they may move, and files of models by size, time
 * and inode, since a fingerprint does not see all weights; every option of the command but
 * those that cannot change a result; the program's version and what multiplies, which decide the last bits (so --gemm
 * and --compute are not compared by name). */
#include "command/continue.h"
#include "command/decide.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>

#define MAX_IDENTITY (1 << 26) /* a model may lie in thousands of files */

/* Options that may differ when a command goes on: they change no byte of a result, or name files that have
 * fingerprints. */
static const mdp_option_id neutral[] = {
    OPTION_MODEL,       OPTION_TOKENS,     OPTION_EVAL_TOKENS, OPTION_TASKS,
    OPTION_PLAN,        OPTION_OUT,        OPTION_KEEP_FILE,   OPTION_OVERWRITE,
    OPTION_JSON,        OPTION_DRY_RUN,    OPTION_RESUME,      OPTION_CHECKPOINT_EVERY,
    OPTION_MAX_SECONDS, OPTION_GFLOPS,     OPTION_MEMORY,      OPTION_BATCH_TOKENS,
    OPTION_THREADS,     OPTION_CONFIG,     OPTION_QUIET,       OPTION_LOG_LEVEL,
    OPTION_GEMM,        OPTION_COMPUTE,    OPTION_PROFILE,     OPTION_PRETRAINED,
    OPTION_BREAK_LOCK,  OPTION_DUMP,       OPTION_STATS,
#ifdef MDP_DEBUG_HOOKS
    OPTION_FAULT_EVERY, OPTION_FAULT_SEED, OPTION_FAULT_RANK,  OPTION_FAULT_KINDS,
    OPTION_STOP_AT,
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
        bool flag = mdp_option_table[i].type == MDP_OPTION_FLAG;
        json_t *texts = flag ? json_boolean(value->flag) : json_array();
        for (int t = 0; !flag && t < value->n_text; t++) mdp_json_add(&texts, json_string(value->texts[t]));
        mdp_json_put(&list, mdp_option_table[i].name, texts);
    }
    return list;
}

/* Folders above a model may have any name. */
static json_t *describe_file(const char *path, const mdp_stamp *stamp) {
    char *real = realpath(path, NULL), shown[4 * PATH_MAX];
    json_t *file =
        json_pack("{s:s, s:s, s:I, s:I, s:I, s:I}", "path", mdp_text_show(shown, sizeof shown, real ? real : ""),
                  "name", mdp_path_name(path), "bytes", (json_int_t)stamp->n_byte, "changed",
                  (json_int_t)stamp->changed, "device", (json_int_t)stamp->device, "inode", (json_int_t)stamp->inode);
    free(real);
    return file;
}

/* The files of a model: what was used of them is known by these. Side files count where they are copied. */
static json_t *list_files(const mdp_session *session, const mdp_catalogue *catalogue) {
    bool copies = session->options->bit & (COMMAND_RUN | COMMAND_APPLY | COMMAND_EXPORT);
    json_t *list = json_array();
    for (int32_t i = 0; catalogue && i < catalogue->n_file; i++) {
        if (mdp_catalogue_is_side_file(catalogue, i) && !(copies && catalogue == session->catalogue)) continue;
        mdp_json_add(&list, describe_file(catalogue->files[i], &catalogue->stamps[i]));
    }
    return list;
}

/* What the results depend on. NULL: no memory. */
static json_t *list_facts(const mdp_session *session, const char *tasks, const char *keep) {
    const mdp_catalogue *pretrained = session->pretrained;
    return json_pack("{s:s, s:s, s:s, s:s, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o}", "format",
                     "moe-dist-prune resume points", "version", "1.0", "program", "moe-dist-prune " MDP_VERSION,
                     "command", session->options->command, "compute", text_or_null(session->compute), "model",
                     text_or_null(session->catalogue->fingerprint), "pretrained",
                     text_or_null(pretrained ? pretrained->fingerprint : NULL), "tokens",
                     text_or_null(session->tokens ? session->tokens->fingerprint : NULL), "evaluation",
                     text_or_null(session->eval_tokens ? session->eval_tokens->fingerprint : NULL), "tasks",
                     text_or_null(tasks), "plans", text_or_null(session->plans_digest), "keep_file", text_or_null(keep),
                     "options", list_options(session));
}

/* The digest is of the facts alone: files may move. */
static mdp_status print_identity(const mdp_session *session, json_t **facts, mdp_resume *resume) {
    char *text = NULL;
    MDP_TRY(mdp_json_print(*facts, &text));
    mdp_digest digest = mdp_hash_bytes(text, (int64_t)strlen(text));
    memcpy(resume->digest, digest.hex, sizeof resume->digest);
    mdp_free(text);
    mdp_json_put(facts, "model_files", list_files(session, session->catalogue));
    mdp_json_put(facts, "pretrained_files", list_files(session, session->pretrained));
    return mdp_json_print(*facts, &resume->identity);
}

static mdp_status make_identity(const mdp_session *session, mdp_resume *resume) {
    mdp_digest tasks = {""}, keep = {""};
    if (session->tasks) MDP_TRY(digest_tasks(session->tasks, &tasks));
    if (session->keep_list)
        keep = mdp_hash_bytes(session->keep_list, session->n_keep * (int64_t)sizeof *session->keep_list);
    json_t *facts = list_facts(session, tasks.hex, keep.hex);
    mdp_status status = print_identity(session, &facts, resume);
    json_decref(facts);
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

static int64_t number_of(const json_t *file, const char *key) {
    return json_integer_value(json_object_get(file, key));
}

static const char *text_of(const json_t *file, const char *key) {
    const char *text = json_string_value(json_object_get(file, key));
    return text ? text : "";
}

/* The file of that name in a list, or NULL. */
static const json_t *find_file(const json_t *list, const char *name) {
    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_t *file = json_array_get(list, i);
        if (strcmp(text_of(file, "name"), name) == 0) return file;
    }
    return NULL;
}

/* What has become of a file, in words; NULL: nothing. The inode counts where the file lies as it lay. */
static const char *find_change(const json_t *old, const json_t *new) {
    if (!old) return "has come";
    if (number_of(old, "bytes") != number_of(new, "bytes")) return "has got another size";
    if (number_of(old, "changed") != number_of(new, "changed")) return "was changed, or copied without its time,";
    bool stays =
        strcmp(text_of(old, "path"), text_of(new, "path")) == 0 && number_of(old, "device") == number_of(new, "device");
    return stays && number_of(old, "inode") != number_of(new, "inode") ? "was replaced by another file" : NULL;
}

static mdp_status refuse_file(const char *folder, const json_t *file, const char *change) {
    return MDP_ERROR(MDP_BAD_INPUT,
                     "--resume: %s %s since %s was saved, so what was read may not be what is there; bring the file "
                     "back as it was, with its time (cp -p), or start again with --overwrite.",
                     text_of(file, "path"), change, folder);
}

/* Fingerprints do not see all weights: what was read of a model is known by its files. */
static mdp_status compare_files(const char *folder, const json_t *then, const json_t *now) {
    for (size_t i = 0; i < json_array_size(now); i++) {
        const json_t *new = json_array_get(now, i);
        const char *change = find_change(find_file(then, text_of(new, "name")), new);
        if (change) return refuse_file(folder, new, change);
    }
    for (size_t i = 0; i < json_array_size(then); i++) {
        const json_t *old = json_array_get(then, i);
        if (!find_file(now, text_of(old, "name"))) return refuse_file(folder, old, "has gone");
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
                 {"pretrained", "of another model before fine-tuning (--pretrained)", MDP_BAD_INPUT},
                 {"tokens", "of another text (--tokens, --categories)", MDP_BAD_INPUT},
                 {"evaluation", "of another text to evaluate on (--eval-tokens)", MDP_BAD_INPUT},
                 {"tasks", "of other tasks (--tasks)", MDP_BAD_INPUT},
                 {"plans", "of another plan, or of other statistics (--plan, --stats)", MDP_BAD_INPUT},
                 {"keep_file", "of other numbers to keep (--keep-file)", MDP_BAD_INPUT},
                 {"compute", "by other arithmetic (--gemm, --compute, or another processor)", MDP_BAD_INPUT}};
    for (size_t i = 0; i < sizeof facts / sizeof facts[0]; i++) {
        const json_t *old = json_object_get(then, facts[i].key), *new = json_object_get(now, facts[i].key);
        if (json_equal(old, new)) continue;
        return MDP_ERROR(facts[i].code, "--resume: %s is %s: %s, now it is %s; start again with --overwrite.", folder,
                         facts[i].what, shown(old), shown(new));
    }
    MDP_TRY(compare_options(folder, json_object_get(then, "options"), json_object_get(now, "options")));
    MDP_TRY(compare_files(folder, json_object_get(then, "model_files"), json_object_get(now, "model_files")));
    return compare_files(folder, json_object_get(then, "pretrained_files"), json_object_get(now, "pretrained_files"));
}

static mdp_status compare_texts(const mdp_resume *resume, const char *path, const char *text, int64_t n_byte) {
    json_t *then = NULL, *now = NULL;
    mdp_status status = mdp_json_parse(text, n_byte, path, &then);
    if (status.code == MDP_OK) status = mdp_json_parse(resume->identity, (int64_t)strlen(resume->identity), path, &now);
    if (status.code == MDP_OK) status = compare(resume->workshop->folder, then, now);
    json_decref(then);
    json_decref(now);
    return status;
}

/* ---- what is found ----------------------------------------------------------------------------------------------- */

mdp_status mdp_session_new_resume(mdp_session *session) {
    const mdp_option_value *most = mdp_session_option(session, OPTION_MAX_SECONDS);
    if (!can_continue(session)) return mdp_ok();
    MDP_TRY(MDP_ALLOC(&session->resume, 1, "resume points"));
    mdp_resume *resume = session->resume;
    MDP_TRY(make_identity(session, resume));
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

static mdp_status name_identity(const mdp_workshop *workshop, char **out) {
    return mdp_path_join(out, workshop->folder, "identity.json");
}

/* What an earlier run has saved there is not to be lost by a command that does not go on with it. */
static mdp_status check_unsaved(const mdp_session *session, const mdp_workshop *workshop) {
    char *path = NULL;
    if (!workshop || mdp_session_option(session, OPTION_OVERWRITE)->flag) return mdp_ok();
    MDP_TRY(name_identity(workshop, &path));
    bool any = mdp_path_exists(path);
    mdp_free(path);
    if (!any) return mdp_ok();
    return MDP_ERROR(MDP_CANNOT_CREATE,
                     "%s holds the resume points of a run that was stopped; go on with it by --resume, or start "
                     "again with --overwrite.",
                     workshop->folder);
}

/* A folder without identity.json is one whose run was killed before it saved anything. */
static mdp_status look_for_points(const mdp_session *session, bool *goes_on) {
    char *path = NULL, *text = NULL;
    int64_t n_byte = 0;
    MDP_TRY(name_identity(session->workshop, &path));
    *goes_on = mdp_path_exists(path);
    mdp_status status = *goes_on ? mdp_file_read_all(path, MAX_IDENTITY, &text, &n_byte) : mdp_ok();
    if (status.code == MDP_OK && *goes_on) status = compare_texts(session->resume, path, text, n_byte);
    mdp_free(path);
    mdp_free(text);
    return status;
}

mdp_status mdp_session_look_back(const mdp_session *session, bool *goes_on) {
    bool resumes = session->resume && mdp_session_option(session, OPTION_RESUME)->flag;
    *goes_on = false;
    MDP_TRY(check_unsaved(session, session->dump));
    return resumes ? look_for_points(session, goes_on) : check_unsaved(session, session->workshop);
}

void mdp_session_go_on(mdp_session *session, bool goes_on) {
    mdp_resume *resume = session->resume;
    if (!resume) return;
    resume->exists = resume->saved = resume->continues = goes_on;
    if (mdp_session_option(session, OPTION_RESUME)->flag && !goes_on)
        mdp_log_message(session->log, MDP_LEVEL_INFO, "%s: nothing to go on from; starting from the beginning",
                        resume->workshop->folder);
}

/* ---- finished already? ------------------------------------------------------------------------------------------- */

/* Fingerprints do not see all weights: no file of the models may have been changed since the result was written. */
static mdp_status check_older(const mdp_catalogue *catalogue, const char *result, const mdp_stamp *written) {
    for (int32_t i = 0; catalogue && i < catalogue->n_file; i++) {
        if (catalogue->stamps[i].changed <= written->changed) continue;
        return MDP_ERROR(MDP_BAD_INPUT,
                         "--resume: %s was finished before %s was changed, or copied without its time, so it may be of "
                         "other weights; start again with --overwrite.",
                         result, catalogue->files[i]);
    }
    return mdp_ok();
}

static mdp_status check_inputs_older(const mdp_session *session, const char *result) {
    mdp_stamp written;
    MDP_TRY(mdp_stamp_take(result, &written));
    MDP_TRY(check_older(session->catalogue, result, &written));
    return check_older(session->pretrained, result, &written);
}

static mdp_status all_are_there(const mdp_session *session, bool *all) {
    *all = true;
    for (int64_t i = 0; i < session->members.n && *all; i++) {
        char *path = NULL;
        MDP_TRY(mdp_session_path(session, session->members.name[i], &path));
        *all = mdp_path_exists(path);
        mdp_free(path);
    }
    return mdp_ok();
}

/* What was written last is as old as the whole. */
static mdp_status name_last(const mdp_session *session, const mdp_results *results, char **out) {
    const char *path = mdp_session_option(session, OPTION_OUT)->text;
    bool record = results->members || results->is_folder;
    return record ? mdp_path_join(out, path, MDP_RECORD_NAME) : mdp_path_trim(out, path);
}

/* Is the result there, and this command's? */
static mdp_status is_complete(const mdp_session *session, const mdp_results *results, bool *finished) {
    const char *out = mdp_session_option(session, OPTION_OUT)->text;
    if (results->members) return *finished ? all_are_there(session, finished) : mdp_ok();
    *finished = false;
    if (!results->is_done || !mdp_path_exists(out)) return mdp_ok();
    return results->is_done(session, results->context, out, finished);
}

mdp_status mdp_session_look_finished(const mdp_session *session, const mdp_results *results, bool goes_on,
                                     bool *finished) {
    char *last = NULL;
    if (!session->resume || !mdp_session_option(session, OPTION_RESUME)->flag) {
        *finished = false;
        return mdp_ok();
    }
    MDP_TRY(is_complete(session, results, finished));
    if (!*finished) return mdp_ok();
    MDP_TRY(name_last(session, results, &last));
    mdp_status status = check_inputs_older(session, last);
    mdp_free(last);
    if (status.code == MDP_OK) return status;
    *finished = false;
    return goes_on ? mdp_ok() : status;
}

/* ---- what was computed with -------------------------------------------------------------------------------------- */

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
    mdp_status status = mdp_workshop_name(mdp_session_option(session, OPTION_OUT)->text, in_folder, &folder);
    if (status.code == MDP_OK) status = mdp_path_join(&path, folder, "identity.json");
    if (status.code == MDP_OK) status = read_compute(path, out, n_byte);
    mdp_free(folder);
    mdp_free(path);
    return status;
}

/* ---- words ----------------------------------------------------------------------------------------------------- */

/* A command line in the making. */
typedef struct command_line {
    const char *words[2 * N_OPTION + 8]; /* [n] borrowed */
    char options[N_OPTION][40];          /* "--model"; [n_option] */
    int n, n_option;
} command_line;

static void add_word(command_line *line, const char *word) {
    line->words[line->n++] = word;
}

/* value NULL: a flag. */
static void add_option(command_line *line, mdp_option_id id, const char *value) {
    char *word = line->options[line->n_option++];
    (void)snprintf(word, sizeof line->options[0], "--%s", mdp_option_table[id].name);
    add_word(line, word);
    if (value) add_word(line, value);
}

/* What was given and `plan` or `apply` takes too, but for files and for how the command is run. */
static void add_common_options(const mdp_session *session, unsigned bit, command_line *line) {
    for (mdp_option_id i = OPTION_CATEGORIES; i <= OPTION_SHARD_SIZE; i++) {
        const mdp_option *option = &mdp_option_table[i];
        const mdp_option_value *value = mdp_session_option(session, i);
        if (i == OPTION_STATS || i == OPTION_PLAN || i == OPTION_OUT) continue;
        if (!(option->commands & bit) || !value->given) continue;
        if (option->type != MDP_OPTION_FLAG || value->flag)
            add_option(line, i, option->type == MDP_OPTION_FLAG ? NULL : value->text);
    }
}

/* The command that takes up what a run has made before it failed. Paths: of stats.h5, plan.json, and a folder. */
static void add_next(const mdp_session *session, bool refused, const char *const paths[3], command_line *line) {
    const char *model = mdp_session_option(session, OPTION_MODEL)->text;
    add_word(line, "moe-dist-prune");
    if (session->plan_made) {
        add_word(line, "apply");
        add_option(line, OPTION_MODEL, model);
        add_option(line, OPTION_PLAN, paths[1]);
        if (!refused) add_common_options(session, COMMAND_APPLY, line);
        add_option(line, OPTION_OUT, paths[2]);
    } else {
        add_word(line, "plan");
        add_option(line, OPTION_STATS, paths[0]);
        if (mdp_session_criterion(session)->tensors != MDP_NO_TENSORS) add_option(line, OPTION_MODEL, model);
        add_common_options(session, COMMAND_PLAN, line);
        add_option(line, OPTION_OUT, paths[1]);
    }
}

static mdp_status say_next(const mdp_session *session, bool refused) {
    char *paths[3] = {NULL, NULL, NULL}, *out = NULL, *text = NULL;
    command_line line = {.n = 0};
    mdp_status status = mdp_path_trim(&out, mdp_session_option(session, OPTION_OUT)->text);
    if (status.code == MDP_OK) status = mdp_path_join(&paths[0], out, "stats.h5");
    if (status.code == MDP_OK) status = mdp_path_join(&paths[1], out, "plan.json");
    if (status.code == MDP_OK) status = mdp_format(&paths[2], "%s-2", out);
    if (status.code == MDP_OK) {
        add_next(session, refused, (const char *const *)paths, &line);
        status = mdp_shell_line(line.n, line.words, &text);
    }
    if (status.code == MDP_OK)
        mdp_log_message(session->log, MDP_LEVEL_INFO, "kept: %s%s; without observing again: %s", paths[0],
                        session->plan_made ? " and plan.json" : "", text);
    for (int i = 0; i < 3; i++) mdp_free(paths[i]);
    mdp_free(out);
    mdp_free(text);
    return status;
}

static mdp_status say_resume(const mdp_session *session, const char *when) {
    char *line = NULL;
    bool given = false;
    for (int i = 0; i < session->n_word; i++) given = given || strcmp(session->words[i], "--resume") == 0;
    MDP_TRY(mdp_shell_line(session->n_word, (const char *const *)session->words, &line));
    mdp_log_message(session->log, MDP_LEVEL_INFO, "to go on%s, on any number of ranks: %s%s", when, line,
                    given ? "" : " --resume");
    mdp_free(line);
    return mdp_ok();
}

void mdp_session_say_how_to_go_on(const mdp_session *session) {
    mdp_status status = say_resume(session, "");
    (void)status; /* a word that cannot be said is not worth an error */
}

void mdp_session_say_what_stays(const mdp_session *session, const mdp_status *status) {
    bool refused = status->code == MDP_USAGE || status->code == MDP_BAD_INPUT; /* it would be again */
    mdp_status next = session->stats_made ? say_next(session, refused) : mdp_ok();
    if (!refused && session->resume && session->resume->saved) next = say_resume(session, " when the cause is gone");
    (void)next; /* as above */
}
