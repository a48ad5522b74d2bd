/* session.c - opening and closing what a command needs: see session.h. */
#include "command/session.h"
#include "command/categories.h"
#include "command/continue.h"
#include "command/layout.h"
#include "command/threads.h"
#include "command/widen.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define MAX_TEXT (1ll << 30) /* a plan of a thousand layers with a thousand experts is a tenth of it */

/* ---- start and end ------------------------------------------------------------------------------------------- */

#ifdef MDP_DEBUG_HOOKS
/* Is `rank` in a list like "0,2"? -1 is every rank. */
static mdp_status find_rank(const char *list, int rank, bool *found) {
    const char *at = list;
    *found = false;
    for (;;) {
        char *end;
        long value = strtol(at, &end, 10);
        if (end == at || value < -1 || (*end != '\0' && *end != ','))
            return MDP_ERROR(MDP_USAGE, "--fault-rank %s: expected ranks like 0,2, or -1 for all.", list);
        if (value == -1 || value == rank) *found = true;
        if (*end == '\0') return mdp_ok();
        at = end + 1;
    }
}
#endif

/* Faults begin here, and end where the session closes. */
static mdp_status configure_faults(const mdp_session *session) {
#ifdef MDP_DEBUG_HOOKS
    bool here;
    unsigned kinds;
    MDP_TRY(mdp_fault_parse(mdp_session_option(session, OPTION_FAULT_KINDS)->text, &kinds));
    MDP_TRY(find_rank(mdp_session_option(session, OPTION_FAULT_RANK)->text, session->comm->rank, &here));
    mdp_fault_choose(kinds);
    mdp_fault_configure(here ? mdp_session_option(session, OPTION_FAULT_EVERY)->integer : 0,
                        (uint64_t)mdp_session_option(session, OPTION_FAULT_SEED)->integer);
#else
    (void)session;
#endif
    return mdp_ok();
}

static mdp_status start(mdp_session *session) {
    mdp_level level = (mdp_level)mdp_session_option(session, OPTION_LOG_LEVEL)->integer;
    if (mdp_session_option(session, OPTION_QUIET)->flag) level = MDP_LEVEL_ERROR;
    MDP_TRY(mdp_log_new(&session->log, session->comm->rank == 0, level));
    MDP_TRY(mdp_blas_start());
    if (session->recipe) mdp_log_message(session->log, MDP_LEVEL_INFO, "%s", session->recipe);
    session->foretold = json_array();
    if (!session->foretold) return MDP_ERROR(MDP_EXHAUSTED, "out of memory for the estimate.");
    if (!mdp_session_option(session, OPTION_PROFILE)->flag) return mdp_ok();
    session->profiles = json_array();
    return session->profiles ? mdp_ok() : MDP_ERROR(MDP_EXHAUSTED, "out of memory for the profile.");
}

mdp_status mdp_session_start_all(mdp_session *session) {
    MDP_AGREE(session->comm, configure_faults(session));
    MDP_AGREE(session->comm, start(session));
    const mdp_option_value *threads = mdp_session_option(session, OPTION_THREADS);
    session->n_thread = (int)threads->integer;
    if (!threads->present) MDP_TRY(mdp_threads_default_all(session->comm, &session->n_thread));
    bool computes = (mdp_option_table[OPTION_THREADS].commands & session->options->bit) != 0;
    return computes ? mdp_threads_start_all(session->comm, session->n_thread) : mdp_ok();
}

void mdp_session_close(mdp_session *session, bool failed) {
    if (mdp_fault_count() > 0)
        mdp_log_message(session->log, MDP_LEVEL_DEBUG, "%" PRId64 " fallible operations", mdp_fault_count());
    mdp_fault_configure(0, 0); /* cleaning up is not tested, but what is cleaned */
    mdp_log_destroy(session->log);
    mdp_session_close_outputs(session, failed);
    mdp_tokens_destroy(session->tokens);
    mdp_tokens_destroy(session->eval_tokens);
    mdp_tokens_destroy(session->naee_tokens);
    mdp_tasks_destroy(session->tasks);
    mdp_replaced_destroy(session->replaced);
    mdp_reader_destroy(session->reader);
    mdp_plan_destroy(session->mtp_plan);
    mdp_model_destroy(session->mtp_model);
    mdp_weights_destroy(session->routers);
    mdp_model_destroy(session->model);
    mdp_catalogue_destroy(session->catalogue);
    mdp_catalogue_destroy(session->pretrained);
    mdp_resume_destroy(session->resume);
    json_decref(session->foretold);
    json_decref(session->profiles);
    mdp_gemm_destroy(session->gemm);
    mdp_session_free_layout(session);
    mdp_free(session->recipe);
    mdp_free(session->keep_list);
    mdp_options_destroy(session->options);
}

/* ---- inputs -------------------------------------------------------------------------------------------------- */

static mdp_status bind(mdp_session *session) {
    MDP_TRY(mdp_model_bind(session->catalogue, &session->model));
    return mdp_reader_new(session->catalogue, &session->reader);
}

/* A result must not vouch for damage: what is copied is compared, and what is no tensor now, before anything long. */
static mdp_status note_checksums_all(const mdp_session *session) {
    bool unsealed;
    MDP_TRY(mdp_catalogue_checksums_all(session->comm, session->catalogue, &unsealed));
    if (unsealed)
        mdp_log_message(session->log, MDP_LEVEL_WARN,
                        "%s: its structure was changed after it was written, as h5repack does; tensors, texts and side "
                        "files are compared with their checksums one by one.",
                        session->catalogue->path);
    return mdp_ok();
}

/* Loaders differ in which of two ways to the weights they take. Rank 0; failing to look is not worth an error. */
static void warn_of_two_ways(const mdp_session *session) {
    static const char *const names[] = {"model.safetensors", "model.safetensors.index.json"};
    bool both = session->comm->rank == 0 && session->catalogue->container == MDP_HF_FOLDER;
    for (int i = 0; i < 2 && both; i++) {
        char *path = NULL;
        both = mdp_path_join(&path, session->catalogue->path, names[i]).code == MDP_OK && mdp_path_exists(path);
        mdp_free(path);
    }
    if (both)
        mdp_log_message(session->log, MDP_LEVEL_WARN,
                        "%s holds both %s and %s; the former alone is read, as transformers does, and the shards are "
                        "not; remove the one that does not belong there",
                        session->catalogue->path, names[0], names[1]);
}

mdp_status mdp_session_open_model_all(mdp_session *session) {
    const char *path = mdp_session_option(session, OPTION_MODEL)->text;
    bool copies = (session->options->bit & (COMMAND_RUN | COMMAND_APPLY | COMMAND_EXPORT)) != 0;
    MDP_TRY(mdp_catalogue_open_all(session->comm, path, &session->catalogue));
    warn_of_two_ways(session);
    if (copies) MDP_TRY(note_checksums_all(session));
    if (copies && session->catalogue->left_out)
        mdp_log_message(session->log, MDP_LEVEL_INFO, "%s: not for the result: %s", path, session->catalogue->left_out);
    MDP_AGREE(session->comm, bind(session));
    return mdp_catalogue_fingerprint_all(session->comm, session->catalogue);
}

mdp_status mdp_session_open_pretrained_all(mdp_session *session) {
    const mdp_option_value *path = mdp_session_option(session, OPTION_PRETRAINED);
    if (!path->present) return mdp_ok();
    MDP_TRY(mdp_catalogue_open_all(session->comm, path->text, &session->pretrained));
    return mdp_catalogue_fingerprint_all(session->comm, session->pretrained);
}

/* Names without weights; only where experts are chosen do weights mean anything. */
static mdp_status category_names(const mdp_session *session, const char *categories, char **names) {
    if (!mdp_session_option(session, OPTION_METHOD)->present && mdp_category_has_weights(categories))
        return MDP_ERROR(MDP_USAGE,
                         "--categories: weights belong to the choice of experts (run, plan); name the categories "
                         "alone.");
    return mdp_category_names(categories, names);
}

/* Texts too long to be computed are refused; beyond what positions were trained for the model computes, but badly. */
static mdp_status check_lengths(const mdp_session *session, const mdp_tokens *tokens) {
    int64_t longest = 0, most = session->model->max_position;
    char found[32], trained[32];
    for (int64_t s = 0; s < tokens->n_sequence; s++) {
        int64_t length = tokens->offset[s + 1] - tokens->offset[s];
        longest = length > longest ? length : longest;
    }
    mdp_status status = mdp_engine_check_length(session->model, longest);
    if (status.code != MDP_OK) return MDP_ERROR(status.code, "%s: %s", tokens->path, status.text);
    if (longest > most)
        mdp_log_message(session->log, MDP_LEVEL_WARN,
                        "%s: the longest sequence has %s tokens, the model is made for positions up to %s "
                        "(max_position_embeddings); cut the text shorter, or trust no number of it",
                        tokens->path, mdp_print_count(found, longest), mdp_print_count(trained, most));
    return mdp_ok();
}

mdp_status mdp_session_open_tokens_all(mdp_session *session, const char *path, const char *categories,
                                       mdp_tokens **out) {
    char *names = NULL;
    mdp_status status = categories ? category_names(session, categories, &names) : mdp_ok();
    status = mdp_agree_all(session->comm, status);
    if (status.code == MDP_OK)
        status = mdp_tokens_open_all(session->comm, path, names, session->model->vocab_size, out);
    mdp_free(names);
    MDP_TRY(status);
    return mdp_agree_all(session->comm, check_lengths(session, *out));
}

mdp_status mdp_session_open_tasks_all(mdp_session *session) {
    const mdp_option_value *path = mdp_session_option(session, OPTION_TASKS);
    if (!path->present) return mdp_ok();
    MDP_TRY(mdp_tasks_open_all(session->comm, path->text, session->model->vocab_size, &session->tasks));
    return mdp_agree_all(session->comm, check_lengths(session, session->tasks->tokens));
}

mdp_status mdp_session_read_text_all(const mdp_comm *comm, const char *path, char **text, int64_t *n_byte) {
    mdp_status status = mdp_ok();
    *text = NULL;
    *n_byte = 0;
    if (comm->rank == 0) status = mdp_file_read_all(path, MAX_TEXT, text, n_byte);
    MDP_AGREE(comm, status);
    status = mdp_bcast_text_all(comm, text, n_byte, 0);
    if (status.code != MDP_OK) mdp_free(*text);
    return status;
}

static mdp_status parse_plan(const mdp_session *session, const char *text, int64_t n_byte, const char *path,
                             mdp_plan **out) {
    MDP_TRY(mdp_plan_parse(text, n_byte, path, out));
    MDP_TRY(mdp_plan_check(*out, session->model));
    return mdp_plan_check_arrays(*out, session->comm->rank, session->comm->size);
}

mdp_status mdp_session_load_plan_all(mdp_session *session, const char *path, mdp_plan **out, mdp_replaced **replaced,
                                     char **text) {
    char *content = NULL;
    int64_t n_byte = 0;
    *out = NULL;
    *replaced = NULL;
    MDP_TRY(mdp_session_read_text_all(session->comm, path, &content, &n_byte));
    mdp_session_note_plan(session, content, n_byte);
    mdp_status status = mdp_agree_all(session->comm, parse_plan(session, content, n_byte, path, out));
    if (status.code == MDP_OK) status = mdp_agree_all(session->comm, mdp_session_follow_type(session, *out));
    if (status.code == MDP_OK)
        status = mdp_replaced_open_all(session->comm, session->model, *out, session->reader, replaced);
    if (status.code == MDP_OK && text) {
        *text = content;
        return status;
    }
    mdp_free(content);
    if (status.code == MDP_OK) return status;
    mdp_plan_destroy(*out);
    *out = NULL;
    return status;
}

/* ---- small things -------------------------------------------------------------------------------------------- */

/* What --config of an effective-config.json gives: all options, most of them as if they were not. */
static bool is_as_without(const mdp_option_value *value, const mdp_option *option) {
    if (option->type == MDP_OPTION_FLAG) return !value->flag;
    return option->fallback && strcmp(value->text, option->fallback) == 0;
}

mdp_status mdp_session_check_unused(const mdp_session *session, const mdp_option_id *only, size_t n, const char *with) {
    for (size_t i = 0; i < n; i++) {
        const mdp_option_value *value = mdp_session_option(session, only[i]);
        const mdp_option *option = &mdp_option_table[only[i]];
        if (value->given && !is_as_without(value, option))
            return MDP_ERROR(MDP_USAGE, "--%s has no meaning without --%s.", option->name, with);
    }
    return mdp_ok();
}

mdp_forward_options mdp_session_forward_options(const mdp_session *session) {
    return (mdp_forward_options){.n_thread = session->n_thread,
                                 .gemm = session->gemm,
                                 .batch_tokens = mdp_session_option(session, OPTION_BATCH_TOKENS)->integer,
                                 .memory = mdp_session_option(session, OPTION_MEMORY)->integer,
                                 .reserve = session->at_start + session->beside,
                                 .log = session->log,
                                 .overlap = mdp_session_option(session, OPTION_OVERLAP)->flag,
                                 .progress = true,
                                 .resume = session->resume,
                                 .profiles = session->profiles,
                                 .allow_nonfinite = mdp_session_option(session, OPTION_ALLOW_NONFINITE)->flag};
}

mdp_status mdp_session_path(const mdp_session *session, const char *name, char **out) {
    return mdp_path_join(out, mdp_session_option(session, OPTION_OUT)->text, name);
}

static mdp_status print_profiles(const mdp_session *session, char **out) {
    json_t *root = json_pack("{s:s, s:s, s:i, s:s, s:O}", "format", "moe-dist-prune profile", "version", "1.0",
                             "threads", session->n_thread, "blas", session->compute, "passes", session->profiles);
    if (!root) return MDP_ERROR(MDP_EXHAUSTED, "out of memory for the profile.");
    mdp_status status = mdp_json_print(root, out);
    json_decref(root);
    return status;
}

/* profile.json in a folder of results, OUT.profile.json beside a file and beside a checkpoint. Rank 0. */
static mdp_status put_profiles(mdp_session *session, const char *text) {
    if (session->members.n > 0) return mdp_session_put_text(session, "profile.json", text);
    return mdp_session_put_beside(session, ".profile.json", text);
}

mdp_status mdp_session_write_profiles_all(mdp_session *session) {
    char *text = NULL;
    if (!session->profiles || !session->workshop || session->finished) return mdp_ok();
    if (mdp_session_option(session, OPTION_DRY_RUN)->flag) return mdp_ok();
    mdp_status status = mdp_agree_all(session->comm, print_profiles(session, &text));
    if (status.code == MDP_OK)
        status = mdp_agree_all(session->comm, session->comm->rank == 0 ? put_profiles(session, text) : mdp_ok());
    mdp_free(text);
    return status;
}

mdp_status mdp_session_memory_all(const mdp_session *session, int64_t *largest, int64_t *smallest) {
    int64_t peak = mdp_memory_peak();
    int64_t bound[2] = {peak, -peak};
    MDP_TRY(mdp_max_i64_all(session->comm, bound, 2));
    *largest = bound[0];
    *smallest = -bound[1];
    return mdp_ok();
}

mdp_status mdp_session_log_memory_all(const mdp_session *session) {
    int64_t largest = 0, smallest = 0;
    char most[32], least[32], time[32];
    MDP_TRY(mdp_session_memory_all(session, &largest, &smallest));
    mdp_log_message(session->log, MDP_LEVEL_INFO, "done in %s   peak memory %s a rank (least %s)",
                    mdp_print_seconds(time, mdp_seconds() - session->start), mdp_print_bytes(most, largest),
                    mdp_print_bytes(least, smallest));
    return mdp_ok();
}
