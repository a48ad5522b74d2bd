/* commands.c - the table of commands, and the way from a command line to a finished command.
 *
 * In: words of the command line, the same on every rank. Out: the command's status, the same on every rank; rank 0 has
 * said the one sentence when it is an error. */
#include "command/continue.h"
#include "command/layout.h"
#include "command/recipes.h"

#include <hdf5.h>
#include <string.h>

const mdp_command mdp_commands[] = {
    {"run", "observe, plan, apply and report in one go (the default)", NULL, COMMAND_RUN, mdp_command_run_all},
    {"observe", "run the model on text and write the statistics of its experts", NULL, COMMAND_OBSERVE,
     mdp_command_observe_all},
    {"plan", "turn statistics into a plan: which experts stay", NULL, COMMAND_PLAN, mdp_command_plan_all},
    {"merge", "make the experts that a plan merges: weighted sums of aligned members", NULL, COMMAND_MERGE,
     mdp_command_merge_all},
    {"refit", "fit what a plan leaves to what was there: new down projections, by one pass over text", NULL,
     COMMAND_REFIT, mdp_command_refit_all},
    {"recover", "train what a plan leaves to give what was there: experts and routers, layer by layer", NULL,
     COMMAND_RECOVER, mdp_command_recover_all},
    {"apply", "write the checkpoint that a plan makes of a model", NULL, COMMAND_APPLY, mdp_command_apply_all},
    {"eval", "perplexity of a model and of plans, applied in memory", NULL, COMMAND_EVAL, mdp_command_eval_all},
    {"frontier", "perplexity against size for many methods and ratios, from one observation", NULL, COMMAND_FRONTIER,
     mdp_command_frontier_all},
    {"export", "write a model as a Hugging Face folder, or in another type of numbers", NULL, COMMAND_EXPORT,
     mdp_command_export_all},
    {"inspect", "show what a checkpoint, tokens, statistics or plan file holds", "PATH", COMMAND_INSPECT,
     mdp_command_inspect_all},
    {"verify", "read every byte of a checkpoint or stats.h5 of ours and compare its checksums", "PATH", COMMAND_VERIFY,
     mdp_command_verify_all},
    {"info", "versions, ranks, threads, BLAS kernel, methods and families", NULL, COMMAND_INFO, mdp_command_info_all},
};
#define N_COMMAND ((int)(sizeof mdp_commands / sizeof mdp_commands[0]))
const int mdp_n_command = N_COMMAND;

/* ---- finding the command ------------------------------------------------------------------------------------- */

static mdp_status refuse_command(const char *word) {
    const char *names[N_COMMAND];
    for (int i = 0; i < N_COMMAND; i++) names[i] = mdp_commands[i].name;
    const char *nearest = mdp_nearest(word, names, N_COMMAND);
    if (nearest)
        return MDP_ERROR(MDP_USAGE, "unknown command '%s'. Did you mean '%s'? See moe-dist-prune --help.", word,
                         nearest);
    return MDP_ERROR(MDP_USAGE, "unknown command '%s'. See moe-dist-prune --help.", word);
}

/* The command named by words[1], or run when that is an option or missing. *n_used words belong to its name. */
static mdp_status find_command(int n_word, char **words, const mdp_command **out, int *n_used) {
    *n_used = 1;
    *out = &mdp_commands[0];
    if (n_word < 2 || words[1][0] == '-') return mdp_ok();
    *n_used = 2;
    for (int i = 0; i < N_COMMAND; i++) {
        *out = &mdp_commands[i];
        if (strcmp(words[1], mdp_commands[i].name) == 0) return mdp_ok();
    }
    return refuse_command(words[1]);
}

/* ---- help ---------------------------------------------------------------------------------------------------- */

static void print_help(const mdp_command *command, const mdp_options *options, bool general) {
    mdp_print("moe-dist-prune %s: prunes Mixture-of-Experts checkpoints on CPU clusters.\n\n", MDP_VERSION);
    if (general) {
        mdp_print(
            "usage: mpirun -n P moe-dist-prune [COMMAND] [OPTION ...]\n\ncommands (COMMAND --help tells more):\n");
        for (int i = 0; i < N_COMMAND; i++) mdp_print("  %-10s %s\n", mdp_commands[i].name, mdp_commands[i].summary);
        mdp_print("\noptions of run:\n");
    } else {
        mdp_print("usage: mpirun -n P moe-dist-prune %s%s%s [OPTION ...]\n  %s\n\noptions:\n", command->name,
                  command->argument ? " " : "", command->argument ? command->argument : "", command->summary);
    }
    mdp_options_help(options, stdout);
    mdp_print("\nSizes take units (512k, 5GB, 8GiB). Exit codes: 0 ok, 2 usage, 65 bad input, 70 bug, 71 no memory or "
              "threads, 73 cannot create output, 74 I/O, 75 stopped.\n");
}

/* ---- from words to a session --------------------------------------------------------------------------------- */

static mdp_status check_arguments(const mdp_command *command, const mdp_options *options) {
    int n_expected = command->argument ? 1 : 0;
    if (options->n_argument > n_expected)
        return MDP_ERROR(MDP_USAGE, "%s does not understand '%s'. See moe-dist-prune %s --help.", command->name,
                         options->arguments[n_expected], command->name);
    if (options->n_argument < n_expected)
        return MDP_ERROR(MDP_USAGE, "%s needs a %s. See moe-dist-prune %s --help.", command->name, command->argument,
                         command->name);
    return mdp_options_complete(options);
}

static mdp_status configure_all(mdp_session *session) {
    const char *path = mdp_session_option(session, OPTION_CONFIG)->text;
    char *text = NULL;
    int64_t n_byte = 0;
    if (!path) return mdp_ok();
    MDP_TRY(mdp_session_read_text_all(session->comm, path, &text, &n_byte));
    mdp_status status = mdp_options_configure(session->options, text, n_byte, path);
    mdp_free(text);
    return mdp_agree_all(session->comm, status);
}

static mdp_status parse_all(const mdp_command *command, int n_word, char **words, mdp_session *session) {
    MDP_AGREE(session->comm, mdp_options_parse(mdp_option_table, N_OPTION, command->name, command->bit, n_word, words,
                                               &session->options));
    if (session->options->help) return mdp_ok();
    MDP_TRY(configure_all(session));
    MDP_AGREE(session->comm, mdp_recipe_expand(session->options, OPTION_METHOD, &session->recipe));
    return mdp_agree_all(session->comm, check_arguments(command, session->options));
}

static mdp_status perform_all(mdp_comm *comm, mdp_session *session) {
    int n_used = 0;
    const mdp_command *command = NULL;
    MDP_AGREE(session->comm, find_command(session->n_word, session->words, &command, &n_used));
    MDP_TRY(parse_all(command, session->n_word - n_used, session->words + n_used, session));
    if (session->options->help) {
        if (session->comm->rank == 0) print_help(command, session->options, n_used == 1);
        return mdp_ok();
    }
    MDP_TRY(mdp_session_start_all(session));
    MDP_TRY(mdp_comm_count_threads_all(comm, session->n_thread));
    MDP_AGREE(session->comm, mdp_session_lay_out(session));
    MDP_AGREE(session->comm, mdp_session_listen(session));
    MDP_TRY(command->run_all(session));
    MDP_TRY(mdp_session_write_profiles_all(session));
    return mdp_session_end_all(session);
}

/* One rank speaks, with its log when there is one already. */
static void report_error(const mdp_session *session, const mdp_status *status) {
    if (session->comm->rank != 0) return;
    if (session->log)
        mdp_log_error(session->log, status);
    else
        fprintf(stderr, "moe-dist-prune: %s\n", status->text);
}

mdp_status mdp_command_main_all(mdp_comm *comm, int n_word, char **words) {
    mdp_session session = {.comm = comm, .n_word = n_word, .words = words, .start = mdp_seconds()};
    H5Eset_auto2(H5E_DEFAULT, NULL, NULL); /* errors are one sentence of ours, not a stack of HDF5's */
    if (n_word == 2 && strcmp(words[1], "--version") == 0) {
        if (comm->rank == 0) mdp_print("moe-dist-prune %s\n", MDP_VERSION);
        return mdp_ok();
    }
    mdp_status status = perform_all(comm, &session);
    if (status.code != MDP_OK) report_error(&session, &status);
    if (status.code == MDP_STOPPED)
        mdp_session_say_how_to_go_on(&session);
    else if (status.code != MDP_OK && session.log)
        mdp_session_say_what_stays(&session, &status);
    mdp_session_close(&session, status.code != MDP_OK);
    return status;
}
