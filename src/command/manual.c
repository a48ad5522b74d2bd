/* manual.c - man pages and bash completion: see manual.h.
 *
 * Everything about commands and options comes from their tables; only examples and what a command reads and writes are
 * told here, one row for each command. Options of debug builds are left out. */
#include "command/manual.h"

#include <string.h>

#define PROGRAM "moe-dist-prune"
#ifdef MDP_DEBUG_HOOKS
#define N_SHOWN OPTION_FAULT_EVERY /* what follows is for tests */
#else
#define N_SHOWN N_OPTION
#endif

/* What the tables do not say. */
typedef struct note {
    const char *command, *text, *example;
} note;

static const note notes[] = {
    {"run",
     "Runs the model on the tokens of --tokens and sums what the method needs, decides which experts stay, compares "
     "original and result on --eval-tokens when they are given, and writes the pruned checkpoint with plan.json, "
     "stats.h5, report.json, report.html, effective-config.json, run.log and the record moe-dist-prune.json into the "
     "folder --out. With --overwrite all results of an earlier run there go, when the first new one is complete; files "
     "that are not on the record stay. Unfinished results lie in DIR/.state, which one run owns at a time.",
     "mpirun -n 64 moe-dist-prune --model mixtral-8x22b --tokens calib.h5 --eval-tokens eval.h5 --method reap "
     "--keep-ratio 0.5 --out pruned"},
    {"observe",
     "One forward pass collects the statistics of every calibrated method, per category of text; any number of plans "
     "can be made of them afterwards.",
     "mpirun -n 64 moe-dist-prune observe --model mixtral-8x22b --tokens calib.h5 --out stats.h5"},
    {"plan",
     "Needs no forward pass for methods that score experts by statistics or weights. The plan is a small JSON document "
     "and may be edited by hand.",
     "moe-dist-prune plan --stats stats.h5 --method reap --keep-ratio 0.5 --out plan.json"},
    {"merge",
     "A plan may merge experts: {\"from\": [1, 5], \"action\": \"merge\", \"weights\": [0.7, 0.3], \"align\": "
     "\"weight\", "
     "\"router\": \"mean\"}. Neurons of the members are brought into the order of the dominant one, matrices are added "
     "by "
     "weight and rounded once to the type that the checkpoint holds, router rows as \"router\" says. Or it cuts "
     "neurons (doc/neurons.md): rows and columns of those that stay are gathered. The new plan "
     "names "
     "its arrays in the .h5 file beside it; eval, refit and apply take it like any other.",
     "mpirun -n 16 moe-dist-prune merge --model mixtral-8x22b --plan groups.json --out merged.json"},
    {"refit",
     "Layer after layer, the down projections of the experts that a plan keeps are fitted to what the whole layer "
     "gave: "
     "ridge least squares over all tokens, in one forward pass. The new plan names its arrays in the .h5 file beside "
     "it; "
     "eval and apply take it like any other. Calibrate on what will be served: text that is not in --tokens gains "
     "less, "
     "or loses; --ridge auto holds back until no category that is left out is worse off, if any ridge does.",
     "mpirun -n 64 moe-dist-prune refit --model mixtral-8x22b --plan plan.json --tokens calib.h5 --out fitted.json"},
    {"recover",
     "Layer after layer, the experts and routers of what a plan leaves are trained by AdamW to give what the whole "
     "layer "
     "gave, as mean square error of its output; there is no way back through attention. A plan that was merged or "
     "refitted is gone on from what stands in the .h5 file beside it. eval, apply and verify take the new plan like "
     "any "
     "other.",
     "mpirun -n 64 moe-dist-prune recover --model mixtral-8x22b --plan fitted.json --tokens calib.h5 --out "
     "trained.json"},
    {"apply",
     "Copies what stays bit for bit in its stored type. The plan is checked against the model before anything is "
     "written; an existing result is never replaced without --overwrite.",
     "mpirun -n 16 moe-dist-prune apply --model mixtral-8x22b --plan plan.json --format both --out pruned"},
    {"eval", "The original and the results of all plans go through one forward pass; nothing but eval.json is written.",
     "mpirun -n 64 moe-dist-prune eval --model mixtral-8x22b --plan plan.json --tokens eval.h5 --out eval.json"},
    {"frontier",
     "Makes a plan for every method and ratio and measures all of them, and the original, as streams of one forward, "
     "or "
     "of a few where memory is too little. frontier.json says size, perplexity by category and KL of each, and which "
     "no "
     "other beats; a page with the curve stands beside it. --within names the smallest that is good enough.",
     "mpirun -n 64 moe-dist-prune frontier --stats stats.h5 --model mixtral-8x22b --eval-tokens eval.h5 --methods "
     "reap,weighted-ean,seer --within 5% --out frontier.json"},
    {"export",
     "The folder loads in transformers, vLLM and llama.cpp. With --type all real numbers are written in another type, "
     "each rounded once: codes of few bits are decoded, or linear layers are quantised to FP8 as DeepSeek-V3 has them; "
     "biases that choose experts stay f32. A value that the type cannot hold is refused. An --out that ends in .h5 is "
     "written as a model.h5.",
     "mpirun -n 16 moe-dist-prune export --model pruned/model.h5 --out pruned-hf"},
    {"inspect", "Reads headers only.", "moe-dist-prune inspect pruned/model.h5"},
    {"verify",
     "PATH is a model.h5 or a folder with moe-dist-prune.json, or a stats.h5. Names the first tensor or file that "
     "differs and ends with exit code 65; ranks share the reading. With --model the checkpoint is also made anew from "
     "that model and the plan in PATH, in memory, and every tensor compared: a result of other weights, or of two "
     "models, does not pass. Statistics are compared with --model and --tokens by fingerprint.",
     "mpirun -n 16 moe-dist-prune verify pruned/model.h5"},
    {"info", "Prints the whole resolved configuration; with --peak also a measured speed.",
     "mpirun -n 4 moe-dist-prune info --peak"},
};

static const note *find_note(const char *command) {
    for (size_t i = 0; i < sizeof notes / sizeof *notes; i++) {
        if (strcmp(notes[i].command, command) == 0) return &notes[i];
    }
    return NULL;
}

/* ---- roff ---------------------------------------------------------------------------------------------------- */

/* Text as roff: dashes that can be typed, backslashes, and no line that begins with a control character. */
static void put_text(const char *text, FILE *file) {
    if (*text == '.' || *text == '\'') fputs("\\&", file);
    for (; *text; text++) {
        if (*text == '-')
            fputs("\\-", file);
        else if (*text == '\\')
            fputs("\\e", file);
        else
            fputc(*text, file);
    }
}

static void put_line(const char *text, FILE *file) {
    put_text(text, file);
    fputc('\n', file);
}

static void put_heading(const char *name, FILE *file) {
    fprintf(file, ".SH %s\n", name);
}

static void put_title(const char *command, FILE *file) {
    fputs(".TH MOE\\-DIST\\-PRUNE", file);
    if (command) {
        fputs("\\-", file);
        for (const char *c = command; *c; c++) fputc(*c >= 'a' && *c <= 'z' ? *c - 'a' + 'A' : *c, file);
    }
    fputs(" 1 \"\" \"moe\\-dist\\-prune " MDP_VERSION "\" \"User Commands\"\n.nh\n.ad l\n",
          file); /* names are never broken */
}

static const char *value_of(const mdp_option *option) {
    return option->type == MDP_OPTION_CHOICE && !option->value ? "NAME" : option->value;
}

static void put_choices(const mdp_option *option, FILE *file) {
    if (!option->choice_help) {
        fputs("One of ", file);
        for (int i = 0; option->choice(i); i++) {
            if (i > 0) fputs(", ", file);
            put_text(option->choice(i), file);
        }
        fputs(".\n", file);
        return;
    }
    fputs(".RS\n", file);
    for (int i = 0; option->choice(i); i++) {
        fputs(".TP\n.B ", file);
        put_line(option->choice(i), file);
        put_line(option->choice_help(i), file);
    }
    fputs(".RE\n", file);
}

static void put_option(const mdp_option *option, bool required, FILE *file) {
    fputs(".TP\n.B \\-\\-", file);
    put_text(option->name, file);
    if (value_of(option)) {
        fputs(" \\fI", file);
        put_text(value_of(option), file);
        fputs("\\fR", file);
    }
    fputc('\n', file);
    put_text(option->help, file);
    if (option->type == MDP_OPTION_TEXT_LIST) fputs("; may be repeated", file);
    if (option->fallback && option->type != MDP_OPTION_FLAG) {
        fputs(" (default ", file);
        put_text(option->fallback, file);
        fputc(')', file);
    }
    fputs(required ? " (required).\n" : ".\n", file);
    if (option->choice) put_choices(option, file);
}

static void put_options(const mdp_command *command, FILE *file) {
    put_heading("OPTIONS", file);
    for (int i = 0; i < N_SHOWN; i++) {
        const mdp_option *option = &mdp_option_table[i];
        if (option->commands & command->bit) put_option(option, (option->required & command->bit) != 0, file);
    }
    fputs(".TP\n.B \\-\\-help\nshow a summary of the options.\n", file);
}

static void put_exit_status(FILE *file) {
    static const struct {
        int code;
        const char *meaning;
    } codes[] = {{MDP_OK, "success"},
                 {MDP_USAGE, "the command line is wrong"},
                 {MDP_BAD_INPUT, "a file's content is wrong, or files do not belong together"},
                 {MDP_INTERNAL, "a fault of the program"},
                 {MDP_EXHAUSTED, "the machine gives no more memory or threads"},
                 {MDP_CANNOT_CREATE, "an output cannot be created or exists already"},
                 {MDP_IO, "reading or writing failed"},
                 {MDP_STOPPED, "stopped on request"}};
    put_heading("EXIT STATUS", file);
    fputs("The same on every rank; an error is one sentence on standard error.\n", file);
    for (size_t i = 0; i < sizeof codes / sizeof *codes; i++) {
        fprintf(file, ".TP\n.B %d\n", codes[i].code);
        put_line(codes[i].meaning, file);
    }
}

static void put_example(const char *example, FILE *file) {
    put_heading("EXAMPLE", file);
    fputs(".nf\n.RS\n", file);
    put_line(example, file);
    fputs(".RE\n.fi\n", file);
}

static void put_environment(FILE *file) {
    put_heading("ENVIRONMENT", file);
    fputs(".TP\n.B OMP_NUM_THREADS\nthreads of each rank when \\-\\-threads is not given.\n", file);
    fputs(".TP\n.B OPENBLAS_CORETYPE\nthe kernel of OpenBLAS; must be one that all machines of a run have.\n", file);
    fputs(".TP\n.B NO_COLOR\nno colours on a terminal.\n", file);
}

static void put_see_also(const mdp_command *self, FILE *file) {
    put_heading("SEE ALSO", file);
    if (self) fputs(".BR moe\\-dist\\-prune (1)", file);
    for (int i = 0; i < mdp_n_command; i++) {
        if (&mdp_commands[i] == self) continue;
        fprintf(file, "%s.BR moe\\-dist\\-prune\\-%s (1)", self || i > 0 ? ",\n" : "", mdp_commands[i].name);
    }
    fputs(",\n.BR mpirun (1)\n", file);
}

/* ---- man pages ----------------------------------------------------------------------------------------------- */

static void put_command_page(const mdp_command *command, FILE *file) {
    const note *known = find_note(command->name);
    put_title(command->name, file);
    put_heading("NAME", file);
    fprintf(file, "moe\\-dist\\-prune\\-%s \\- ", command->name);
    put_line(command->summary, file);
    put_heading("SYNOPSIS", file);
    fprintf(file, ".B mpirun \\-n\n.I P\n.B moe\\-dist\\-prune %s\n", command->name);
    if (command->argument) fprintf(file, ".I %s\n", command->argument);
    fputs("[\\fIOPTION ...\\fR]\n", file);
    put_heading("DESCRIPTION", file);
    if (known) put_line(known->text, file);
    fputs("The result does not depend on the number of ranks. Sizes take units (512k, 5GB, 8GiB).\n", file);
    put_options(command, file);
    put_exit_status(file);
    if (known) put_example(known->example, file);
    put_environment(file);
    put_see_also(command, file);
}

static void put_program_page(FILE *file) {
    put_title(NULL, file);
    put_heading("NAME", file);
    fputs("moe\\-dist\\-prune \\- prune Mixture\\-of\\-Experts checkpoints on CPU clusters\n", file);
    put_heading("SYNOPSIS", file);
    fputs(".B mpirun \\-n\n.I P\n.B moe\\-dist\\-prune\n[\\fICOMMAND\\fR] [\\fIOPTION ...\\fR]\n", file);
    put_heading("DESCRIPTION", file);
    fputs("Runs a Mixture\\-of\\-Experts model on text, scores its experts by published methods, and writes the "
          "checkpoint without those that matter least. Weights are streamed, so the model need not fit into memory.\n",
          file);
    put_heading("COMMANDS", file);
    for (int i = 0; i < mdp_n_command; i++) {
        fprintf(file, ".TP\n.BR moe\\-dist\\-prune\\-%s (1)\n", mdp_commands[i].name);
        put_line(mdp_commands[i].summary, file);
    }
    put_exit_status(file);
    put_example(find_note("run")->example, file);
    put_environment(file);
    put_see_also(NULL, file);
}

void mdp_manual_page(const mdp_command *command, FILE *file) {
    if (command)
        put_command_page(command, file);
    else
        put_program_page(file);
}

/* ---- bash completion ----------------------------------------------------------------------------------------- */

/* Words after an option with choices; paths after one with a text; nothing after a number. */
static void put_value_cases(FILE *file) {
    fputs("  case $previous in\n", file);
    for (int i = 0; i < N_SHOWN; i++) {
        const mdp_option *option = &mdp_option_table[i];
        if (option->type == MDP_OPTION_FLAG) continue;
        fprintf(file, "    --%s) ", option->name);
        if (option->choice) {
            fputs("mapfile -t COMPREPLY < <(compgen -W '", file);
            for (int c = 0; option->choice(c); c++) fprintf(file, "%s%s", c > 0 ? " " : "", option->choice(c));
            fputs("' -- \"$word\")", file);
        } else if (option->type == MDP_OPTION_TEXT || option->type == MDP_OPTION_TEXT_LIST) {
            fputs("mapfile -t COMPREPLY < <(compgen -f -- \"$word\")", file);
        } else {
            fputs("COMPREPLY=()", file);
        }
        fputs("; return ;;\n", file);
    }
    fputs("  esac\n", file);
}

static void put_option_cases(FILE *file) {
    fputs("  case $command in\n", file);
    for (int i = 0; i < mdp_n_command; i++) {
        fprintf(file, "    %s) options='--help", mdp_commands[i].name);
        for (int o = 0; o < N_SHOWN; o++) {
            if (mdp_option_table[o].commands & mdp_commands[i].bit) fprintf(file, " --%s", mdp_option_table[o].name);
        }
        fputs("' ;;\n", file);
    }
    fputs("  esac\n", file);
}

void mdp_manual_completion(FILE *file) {
    fputs("# bash completion of moe-dist-prune " MDP_VERSION "; made from its tables of commands and options.\n"
          "_moe_dist_prune() {\n"
          "  local word=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD - 1]} command=run options=''\n"
          "  local commands='",
          file);
    for (int i = 0; i < mdp_n_command; i++) fprintf(file, "%s%s", i > 0 ? " " : "", mdp_commands[i].name);
    fputs("'\n"
          "  COMPREPLY=()\n"
          "  [[ $COMP_CWORD -gt 1 && \" $commands \" == *\" ${COMP_WORDS[1]} \"* ]] && command=${COMP_WORDS[1]}\n",
          file);
    put_value_cases(file);
    put_option_cases(file);
    fputs("  if [[ $word == -* ]]; then\n"
          "    mapfile -t COMPREPLY < <(compgen -W \"$options\" -- \"$word\")\n"
          "  elif [[ $COMP_CWORD -eq 1 ]]; then\n"
          "    mapfile -t COMPREPLY < <(compgen -W \"$commands\" -- \"$word\")\n"
          "  else\n"
          "    mapfile -t COMPREPLY < <(compgen -f -- \"$word\")\n"
          "  fi\n"
          "}\n"
          "complete -o filenames -o bashdefault -F _moe_dist_prune moe-dist-prune\n",
          file);
}
