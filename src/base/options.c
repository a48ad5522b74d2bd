/* options.c - options from a table: see options.h for the contract.
 *
 * Values are kept as the text that gave them, next to what was parsed from it; the record (effective-config.json)
 * prints typed JSON and is read back through the same checks as the command line. */
#include "mdp/options.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define CONFIG_FORMAT "moe-dist-prune config"
#define PROGRAM "moe-dist-prune"
#define MAX_NAMES 256 /* names that one "did you mean" compares */

static bool is_for(const mdp_options *options, int i) {
    return (options->table[i].commands & options->bit) != 0;
}

/* ---- one value ----------------------------------------------------------------------------------------------- */

static mdp_status refuse_unknown_choice(const mdp_options *options, const mdp_option *option, const char *text) {
    const char *names[MAX_NAMES];
    int n = 0;
    while (n < MAX_NAMES && option->choice(n)) {
        names[n] = option->choice(n);
        n++;
    }
    const char *nearest = mdp_nearest(text, names, n);
    if (nearest)
        return MDP_ERROR(MDP_USAGE, "unknown %s '%s'. Did you mean '%s'? See %s %s --help.", option->name, text,
                         nearest, PROGRAM, options->command);
    return MDP_ERROR(MDP_USAGE, "unknown %s '%s'. See %s %s --help.", option->name, text, PROGRAM, options->command);
}

static mdp_status parse_choice(const mdp_options *options, const mdp_option *option, const char *text, int64_t *out) {
    for (int i = 0; option->choice(i); i++) {
        if (strcmp(option->choice(i), text) == 0) {
            *out = i;
            return mdp_ok();
        }
    }
    return refuse_unknown_choice(options, option, text);
}

static mdp_status check_range(const mdp_option *option, const char *text, int64_t value) {
    if (value < option->minimum)
        return MDP_ERROR(MDP_USAGE, "--%s %s is less than %lld, the least that makes sense.", option->name, text,
                         (long long)option->minimum);
    if (option->maximum != 0 && value > option->maximum)
        return MDP_ERROR(MDP_USAGE, "--%s %s is more than %lld, the most that is possible.", option->name, text,
                         (long long)option->maximum);
    return mdp_ok();
}

static mdp_status parse_integer(const mdp_option *option, const char *text, int64_t *out) {
    char *end = NULL;
    errno = 0;
    long long value = strtoll(text, &end, 10);
    if (end == text || *end != '\0' || errno == ERANGE)
        return MDP_ERROR(MDP_USAGE, "--%s '%s' is not a whole number.", option->name, text);
    *out = value;
    return check_range(option, text, value);
}

static mdp_status parse_size(const mdp_option *option, const char *text, int64_t *out) {
    if (!mdp_parse_size(text, out))
        return MDP_ERROR(MDP_USAGE,
                         "--%s '%s' is not a size; write a number with an optional unit such as 512k, 5GB or 8GiB.",
                         option->name, text);
    return check_range(option, text, *out);
}

static mdp_status parse_real(const mdp_option *option, const char *text, double *out) {
    char *end = NULL;
    *out = strtod(text, &end);
    bool number = end != text && *end == '\0' && isfinite(*out);
    if (option->type == MDP_OPTION_RATIO && !(number && *out > 0.0 && *out < 1.0))
        return MDP_ERROR(MDP_USAGE, "--%s '%s' is not a ratio between 0 and 1 (both excluded).", option->name, text);
    if (option->type == MDP_OPTION_REAL && !mdp_parse_positive(text, text + strlen(text), out))
        return MDP_ERROR(MDP_USAGE, "--%s '%s' is not a number above 0 (1e-12 to 1e12).", option->name, text);
    return mdp_ok();
}

static mdp_status parse_flag(const mdp_option *option, const char *text, bool *out) {
    *out = strcmp(text, "true") == 0;
    if (!*out && strcmp(text, "false") != 0)
        return MDP_ERROR(MDP_USAGE, "--%s takes no value, or true or false; found '%s'.", option->name, text);
    return mdp_ok();
}

/* Values end up in JSON records (configuration, reports), which are UTF-8, and on terminals; better refused now than
 * after hours. */
static mdp_status check_plain(const char *text) {
    if (mdp_text_is_plain(text)) return mdp_ok();
    return MDP_ERROR(MDP_USAGE,
                     "'%s' on the command line is not valid UTF-8, or has control characters; use another name.", text);
}

static mdp_status append_text(mdp_option_value *value, const char *text) {
    MDP_TRY(check_plain(text));
    MDP_TRY(MDP_GROW(&value->texts, value->n_text, value->n_text + 1, "the value of an option"));
    MDP_TRY(mdp_copy_text(&value->texts[value->n_text], text));
    value->n_text++;
    value->text = value->texts[0];
    return mdp_ok();
}

/* Check and store one value of option i; `given` tells a user's value from a default. */
static mdp_status set_value(mdp_options *options, int i, const char *text, bool given) {
    const mdp_option *option = &options->table[i];
    mdp_option_value *value = &options->values[i];
    switch (option->type) {
    case MDP_OPTION_FLAG:
        MDP_TRY(parse_flag(option, text, &value->flag));
        break;
    case MDP_OPTION_INTEGER:
        MDP_TRY(parse_integer(option, text, &value->integer));
        break;
    case MDP_OPTION_SIZE:
        MDP_TRY(parse_size(option, text, &value->integer));
        break;
    case MDP_OPTION_RATIO:
    case MDP_OPTION_REAL:
        MDP_TRY(parse_real(option, text, &value->real));
        break;
    case MDP_OPTION_SECONDS:
        if (!mdp_parse_seconds(text, &value->real))
            return MDP_ERROR(MDP_USAGE, "--%s '%s' is not a time; write seconds, or a number with s, min or h.",
                             option->name, text);
        break;
    case MDP_OPTION_CHOICE:
        MDP_TRY(parse_choice(options, option, text, &value->integer));
        break;
    case MDP_OPTION_TEXT:
    case MDP_OPTION_TEXT_LIST:
        if (*text == '\0') return MDP_ERROR(MDP_USAGE, "--%s has an empty value.", option->name);
        break;
    }
    value->given = given;
    value->present = true;
    return append_text(value, text);
}

/* ---- command line -------------------------------------------------------------------------------------------- */

static mdp_status refuse_unknown_option(const mdp_options *options, const char *word) {
    const char *names[MAX_NAMES];
    int n = 0;
    for (int i = 0; i < options->n_option && n < MAX_NAMES; i++) {
        if (is_for(options, i)) names[n++] = options->table[i].name;
    }
    const char *nearest = mdp_nearest(word + 2, names, n);
    if (nearest)
        return MDP_ERROR(MDP_USAGE, "unknown option '%s' of %s. Did you mean '--%s'? See %s %s --help.", word,
                         options->command, nearest, PROGRAM, options->command);
    return MDP_ERROR(MDP_USAGE, "unknown option '%s' of %s. See %s %s --help.", word, options->command, PROGRAM,
                     options->command);
}

/* Index of the option named by the n_char characters of `name`, or -1 when this command does not take it. */
static int find_option(const mdp_options *options, const char *name, size_t n_char) {
    for (int i = 0; i < options->n_option; i++) {
        const char *candidate = options->table[i].name;
        if (is_for(options, i) && strlen(candidate) == n_char && memcmp(candidate, name, n_char) == 0) return i;
    }
    return -1;
}

/* Another option of the same group that has been given, or -1. */
static int group_rival(const mdp_options *options, int i) {
    for (int j = 0; j < options->n_option && options->table[i].group != 0; j++) {
        if (j != i && options->table[j].group == options->table[i].group && options->values[j].given) return j;
    }
    return -1;
}

static mdp_status check_free(const mdp_options *options, int i) {
    const mdp_option *option = &options->table[i];
    if (options->values[i].given && option->type != MDP_OPTION_TEXT_LIST)
        return MDP_ERROR(MDP_USAGE, "--%s is given twice.", option->name);
    int rival = group_rival(options, i);
    if (rival >= 0)
        return MDP_ERROR(MDP_USAGE, "--%s and --%s exclude each other; give one of them.", options->table[rival].name,
                         option->name);
    return mdp_ok();
}

/* The option at words[0]; *n_used is the number of words it takes. */
static mdp_status parse_option(mdp_options *options, int n_word, char *const *words, int *n_used) {
    const char *name = words[0] + 2, *equal = strchr(name, '=');
    int i = find_option(options, name, equal ? (size_t)(equal - name) : strlen(name));
    *n_used = 1;
    if (i < 0) return refuse_unknown_option(options, words[0]);
    MDP_TRY(check_free(options, i));
    if (equal) return set_value(options, i, equal + 1, true);
    if (options->table[i].type == MDP_OPTION_FLAG) return set_value(options, i, "true", true);
    if (n_word < 2 || strncmp(words[1], "--", 2) == 0)
        return MDP_ERROR(MDP_USAGE, "--%s needs a value (%s).", options->table[i].name,
                         options->table[i].value ? options->table[i].value : "see --help");
    *n_used = 2;
    return set_value(options, i, words[1], true);
}

static mdp_status append_argument(mdp_options *options, const char *word) {
    MDP_TRY(check_plain(word));
    MDP_TRY(MDP_GROW(&options->arguments, options->n_argument, options->n_argument + 1, "the command line"));
    MDP_TRY(mdp_copy_text(&options->arguments[options->n_argument], word));
    options->n_argument++;
    return mdp_ok();
}

static mdp_status parse_words(mdp_options *options, int n_word, char *const *words) {
    for (int w = 0; w < n_word; w++) options->help = options->help || strcmp(words[w], "--help") == 0;
    for (int w = 0; w < n_word && !options->help;) {
        int n_used = 1;
        if (strncmp(words[w], "--", 2) == 0)
            MDP_TRY(parse_option(options, n_word - w, words + w, &n_used));
        else
            MDP_TRY(append_argument(options, words[w]));
        w += n_used;
    }
    return mdp_ok();
}

/* Options of this command that nobody has given take their default, unless a rival of their group was given. */
static mdp_status fill_defaults(mdp_options *options) {
    for (int i = 0; i < options->n_option; i++) {
        if (!is_for(options, i) || options->values[i].present) continue;
        if (options->table[i].fallback) MDP_TRY(set_value(options, i, options->table[i].fallback, false));
    }
    return mdp_ok();
}

mdp_status mdp_options_parse(const mdp_option *table, int n_option, const char *command, unsigned bit, int n_word,
                             char *const *words, mdp_options **out) {
    mdp_options *options = NULL;
    *out = NULL;
    MDP_TRY(MDP_ALLOC(&options, 1, "the options"));
    options->command = command;
    options->bit = bit;
    options->table = table;
    options->n_option = n_option;
    mdp_status status = MDP_ALLOC(&options->values, n_option, "the values of options");
    if (status.code == MDP_OK) status = parse_words(options, n_word, words);
    if (status.code == MDP_OK) status = fill_defaults(options);
    if (status.code != MDP_OK) {
        mdp_options_destroy(options);
        return status;
    }
    *out = options;
    return status;
}

static void clear_value(mdp_option_value *value) {
    for (int i = 0; i < value->n_text; i++) mdp_free(value->texts[i]);
    mdp_free(value->texts);
    *value = (mdp_option_value){0};
}

void mdp_options_destroy(mdp_options *options) {
    if (!options) return;
    for (int i = 0; i < options->n_option && options->values; i++) clear_value(&options->values[i]);
    for (int i = 0; i < options->n_argument; i++) mdp_free(options->arguments[i]);
    mdp_free(options->values);
    mdp_free(options->arguments);
    mdp_free(options);
}

/* ---- configuration ------------------------------------------------------------------------------------------- */

/* A JSON scalar as it would stand on the command line. */
static mdp_status value_text(const json_t *value, const char *path, const char *name, char **out) {
    if (json_is_string(value)) return mdp_copy_text(out, json_string_value(value));
    if (json_is_boolean(value)) return mdp_copy_text(out, json_is_true(value) ? "true" : "false");
    if (json_is_integer(value)) return mdp_format(out, "%lld", (long long)json_integer_value(value));
    if (json_is_real(value)) return mdp_format(out, "%.17g", json_real_value(value));
    return MDP_ERROR(MDP_USAGE, "%s: option '%s' must be a text, a number, true or false.", path, name);
}

static mdp_status configure_one(mdp_options *options, int i, const json_t *value, const char *path) {
    char *text = NULL;
    MDP_TRY(value_text(value, path, options->table[i].name, &text));
    mdp_status status = set_value(options, i, text, true);
    options->values[i].configured = true;
    mdp_free(text);
    return status;
}

static mdp_status configure_option(mdp_options *options, int i, const json_t *value, const char *path) {
    int rival = group_rival(options, i);
    if (options->values[i].given || json_is_null(value)) return mdp_ok();
    if (rival >= 0 && !options->values[rival].configured) return mdp_ok();
    if (rival >= 0)
        return MDP_ERROR(MDP_USAGE, "%s: options '%s' and '%s' exclude each other; give one of them.", path,
                         options->table[rival].name, options->table[i].name);
    clear_value(&options->values[i]);
    if (!json_is_array(value)) return configure_one(options, i, value, path);
    if (options->table[i].type != MDP_OPTION_TEXT_LIST)
        return MDP_ERROR(MDP_USAGE, "%s: option '%s' takes one value, not a list.", path, options->table[i].name);
    for (size_t j = 0; j < json_array_size(value); j++)
        MDP_TRY(configure_one(options, i, json_array_get(value, j), path));
    return mdp_ok();
}

static mdp_status configure_all(mdp_options *options, const json_t *root, const char *path) {
    const json_t *list = json_object_get(root, "options");
    if (!json_is_object(list))
        return MDP_ERROR(MDP_USAGE, "%s: not a configuration: it has no object \"options\".", path);
    const char *origin = json_string_value(json_object_get(root, "command"));
    bool foreign = origin && strcmp(origin, options->command) != 0;
    const char *name;
    json_t *value;
    json_object_foreach((json_t *)list, name, value) {
        int i = find_option(options, name, strlen(name));
        if (i < 0 && foreign) continue;
        if (i < 0)
            return MDP_ERROR(MDP_USAGE, "%s: unknown option '%s' of %s. See %s %s --help.", path, name,
                             options->command, PROGRAM, options->command);
        MDP_TRY(configure_option(options, i, value, path));
    }
    return fill_defaults(options);
}

mdp_status mdp_options_configure(mdp_options *options, const char *text, int64_t n_byte, const char *path) {
    json_t *root = NULL;
    mdp_status status = mdp_json_parse(text, n_byte, path, &root);
    if (status.code == MDP_OK) status = configure_all(options, root, path);
    json_decref(root);
    return status;
}

/* ---- completeness, record, help ------------------------------------------------------------------------------ */

mdp_status mdp_options_complete(const mdp_options *options) {
    for (int i = 0; i < options->n_option; i++) {
        if ((options->table[i].required & options->bit) && !options->values[i].present)
            return MDP_ERROR(MDP_USAGE, "%s needs --%s %s. See %s %s --help.", options->command, options->table[i].name,
                             options->table[i].value ? options->table[i].value : "VALUE", PROGRAM, options->command);
    }
    return mdp_ok();
}

static json_t *print_list(const mdp_option_value *value) {
    json_t *list = json_array();
    for (int i = 0; i < value->n_text; i++) mdp_json_add(&list, json_string(value->texts[i]));
    return list;
}

static json_t *print_value(const mdp_option *option, const mdp_option_value *value) {
    switch (option->type) {
    case MDP_OPTION_FLAG:
        return json_boolean(value->flag);
    case MDP_OPTION_TEXT_LIST:
        return print_list(value);
    case MDP_OPTION_INTEGER:
        return value->present ? json_integer(value->integer) : json_null();
    default:
        return value->present ? json_string(value->text) : json_null();
    }
}

mdp_status mdp_options_print(const mdp_options *options, char **out) {
    json_t *list = json_object();
    for (int i = 0; i < options->n_option; i++) {
        if (is_for(options, i))
            mdp_json_put(&list, options->table[i].name, print_value(&options->table[i], &options->values[i]));
    }
    json_t *root = json_pack("{s:s, s:s, s:s, s:s, s:o}", "format", CONFIG_FORMAT, "version", "1.0", "writer",
                             PROGRAM " " MDP_VERSION, "command", options->command, "options", list);
    if (!root) return MDP_ERROR(MDP_EXHAUSTED, "out of memory for the record of the options.");
    mdp_status status = mdp_json_print(root, out);
    json_decref(root);
    return status;
}

/* The choices of a row: "a|b|c", or one line each when they have explanations. */
static void help_choices(const mdp_option *option, FILE *file) {
    int width = 14;
    for (int i = 0; option->choice(i); i++)
        if ((int)strlen(option->choice(i)) > width) width = (int)strlen(option->choice(i));
    for (int i = 0; option->choice(i); i++) {
        if (option->choice_help)
            fprintf(file, "      %-*s %s\n", width, option->choice(i), option->choice_help(i));
        else
            fprintf(file, "%s%s", i == 0 ? "      one of " : "|", option->choice(i));
    }
    if (!option->choice_help) fprintf(file, "\n");
}

static void help_option(const mdp_option *option, bool required, FILE *file) {
    const char *value = option->value;
    if (!value && option->type == MDP_OPTION_CHOICE) value = "NAME";
    char head[64];
    snprintf(head, sizeof head, "--%s%s%s", option->name, value ? " " : "", value ? value : "");
    fprintf(file, "  %-26s %s", head, option->help);
    if (option->type == MDP_OPTION_TEXT_LIST) fprintf(file, "; may be repeated");
    if (option->fallback && option->type != MDP_OPTION_FLAG) fprintf(file, " (default %s)", option->fallback);
    fprintf(file, "%s\n", required ? " (required)" : "");
    if (option->choice) help_choices(option, file);
}

void mdp_options_help(const mdp_options *options, FILE *file) {
    for (int i = 0; i < options->n_option; i++) {
        if (is_for(options, i)) help_option(&options->table[i], (options->table[i].required & options->bit) != 0, file);
    }
    fprintf(file, "  %-26s %s\n", "--help", "show this text");
}
