/* options.h - command-line options from a table: parsing, configuration files, help, and the record of what was used.
 * Local: no communication; a configuration file is read by the caller and handed over as text. */
#ifndef MDP_OPTIONS_H
#define MDP_OPTIONS_H

#include "mdp/base.h"

typedef enum mdp_option_type {
    MDP_OPTION_FLAG,      /* --name, or --name=true|false */
    MDP_OPTION_TEXT,      /* --name VALUE */
    MDP_OPTION_TEXT_LIST, /* --name VALUE, may be repeated */
    MDP_OPTION_INTEGER,   /* within [minimum, maximum] */
    MDP_OPTION_SIZE,      /* a count or bytes with units (mdp_parse_size), within [minimum, maximum] */
    MDP_OPTION_RATIO,     /* 0 < value < 1 */
    MDP_OPTION_REAL,      /* 1e-12 <= value <= 1e12 */
    MDP_OPTION_SECONDS,   /* a time with units (mdp_parse_seconds), in value->real */
    MDP_OPTION_CHOICE     /* one of choice(0), choice(1), ... */
} mdp_option_type;

/* One row of the table of options; rows are found by their index, which the caller names in an enum. */
typedef struct mdp_option {
    const char *name;             /* without the dashes */
    const char *value;            /* how help names the value: "FILE"; NULL for flags and choices */
    const char *fallback;         /* default as on the command line; NULL: none */
    const char *help;             /* one line */
    int64_t minimum, maximum;     /* of integers and sizes; maximum 0: no bound */
    const char *(*choice)(int i); /* NULL past the end; static texts */
    const char *(*choice_help)(int i);
    mdp_option_type type;
    unsigned commands; /* bit per command that takes it */
    unsigned required; /* bit per command that cannot do without */
    int group;         /* nonzero: at most one option of the group may be given */
    bool reads;        /* its texts name files or folders that the command reads */
} mdp_option;

typedef struct mdp_option_value {
    bool given;       /* on the command line or by a configuration file */
    bool configured;  /* by a configuration file */
    bool present;     /* has a value: given or by default */
    bool flag;        /* FLAG */
    int64_t integer;  /* INTEGER, SIZE; CHOICE: its index */
    double real;      /* RATIO, REAL, SECONDS */
    const char *text; /* TEXT, CHOICE, or the text that a number came from; borrowed from texts */
    int n_text;
    char **texts; /* [n_text] owned */
} mdp_option_value;

typedef struct mdp_options {
    const char *command;     /* name of the command */
    unsigned bit;            /* its bit in commands and required */
    const mdp_option *table; /* [n_option] borrowed */
    int n_option;
    mdp_option_value *values; /* [n_option] by table index */
    int n_argument;
    char **arguments; /* [n_argument] words that are no options, in order; owned */
    bool help;        /* --help was given: nothing else is checked */
} mdp_options;

/* Values of `command` from its defaults and words[0..n-1] (without program and command name): --name value,
 * --name=value. Errors: MDP_USAGE: unknown option or choice (with the nearest name), a missing or repeated value, a
 * value outside its range, two options of a group. Required options are checked by mdp_options_complete. */
mdp_status mdp_options_parse(const mdp_option *table, int n_option, const char *command, unsigned bit, int n_word,
                             char *const *words, mdp_options **out);
void mdp_options_destroy(mdp_options *options); /* NULL is allowed */
/* Take values from a configuration (what mdp_options_print writes) for options that the command line left open. Options
 * of other commands are skipped when the file says that it comes from another command. Errors: MDP_USAGE, naming
 * `path` and the option. */
mdp_status mdp_options_configure(mdp_options *options, const char *text, int64_t n_byte, const char *path);
/* Every required option has a value. MDP_USAGE. */
mdp_status mdp_options_complete(const mdp_options *options);
/* effective-config.json: every option of the command with its value. New text. */
mdp_status mdp_options_print(const mdp_options *options, char **out);
/* The options of the command, with units, choices and defaults. */
void mdp_options_help(const mdp_options *options, FILE *file);

#endif
