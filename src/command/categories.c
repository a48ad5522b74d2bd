/* categories.c - names and weights of --categories: see categories.h. */
#include "command/categories.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* One entry of the list. */
typedef struct entry {
    const char *name;
    int n_char;
    double weight;
} entry;

/* A positive number that fills the text up to `end`. */
static bool parse_weight(const char *text, const char *end, double *out) {
    char *stop = NULL;
    *out = strtod(text, &stop);
    return stop == end && stop != text && isfinite(*out) && *out > 0.0;
}

/* The entry that begins at *text, which is moved to the next one (NULL after the last). */
static mdp_status next_entry(const char **text, entry *out) {
    const char *begin = *text, *end = strchr(begin, ',');
    if (!end) end = begin + strlen(begin);
    const char *colon = memchr(begin, ':', (size_t)(end - begin));
    *out = (entry){.name = begin, .n_char = (int)((colon ? colon : end) - begin), .weight = 1.0};
    if (out->n_char == 0) return MDP_ERROR(MDP_USAGE, "--categories: a name is missing at '%s'.", begin);
    if (colon && !parse_weight(colon + 1, end, &out->weight))
        return MDP_ERROR(MDP_USAGE, "--categories: the weight in '%.*s' is not a positive number; write NAME:WEIGHT.",
                         (int)(end - begin), begin);
    *text = *end == ',' ? end + 1 : NULL;
    return mdp_ok();
}

static bool is_named(const entry *one, const char *name) {
    return strncmp(name, one->name, (size_t)one->n_char) == 0 && name[one->n_char] == '\0';
}

/* Is the entry's name in the comma-separated list? */
static bool is_listed(const entry *one, const char *list) {
    while (*list) {
        size_t n = strcspn(list, ",");
        if (n == (size_t)one->n_char && strncmp(list, one->name, n) == 0) return true;
        list += n + (list[n] == ',');
    }
    return false;
}

mdp_status mdp_category_names(const char *text, char **names) {
    MDP_TRY(mdp_copy_text(names, ""));
    for (const char *at = text; at;) {
        entry one;
        char *longer = NULL;
        mdp_status status = next_entry(&at, &one);
        if (status.code == MDP_OK && is_listed(&one, *names))
            status = MDP_ERROR(MDP_USAGE, "--categories names '%.*s' twice.", one.n_char, one.name);
        if (status.code == MDP_OK)
            status = mdp_format(&longer, "%s%s%.*s", *names, **names ? "," : "", one.n_char, one.name);
        mdp_free(*names);
        *names = longer;
        MDP_TRY(status);
    }
    return mdp_ok();
}

bool mdp_category_has_weights(const char *text) {
    for (const char *at = text; at;) {
        entry one;
        if (next_entry(&at, &one).code != MDP_OK) return false; /* said by those who parse it */
        if (one.weight != 1.0) return true;
    }
    return false;
}

static mdp_status set_weight(const entry *one, const mdp_stats *stats, double *weight) {
    bool found = false;
    for (int c = 0; c < stats->n_category; c++) {
        if (!is_named(one, stats->category[c])) continue;
        weight[c] = one->weight * (stats->category_weight ? stats->category_weight[c] : 1.0);
        found = true;
    }
    if (found) return mdp_ok();
    char *have = NULL;
    MDP_TRY(mdp_copy_text(&have, ""));
    for (int c = 0; c < stats->n_category; c++) {
        char *longer = NULL;
        mdp_status status = mdp_format(&longer, "%s%s%s", have, c > 0 ? ", " : "", stats->category[c]);
        mdp_free(have);
        have = longer;
        MDP_TRY(status);
    }
    mdp_status status = MDP_ERROR(MDP_USAGE, "--categories: the statistics have no category '%.*s'; they have %s.",
                                  one->n_char, one->name, have);
    mdp_free(have);
    return status;
}

static mdp_status fill_weights(const char *text, const mdp_stats *stats, double *weight) {
    for (const char *at = text; at;) {
        entry one;
        MDP_TRY(next_entry(&at, &one));
        MDP_TRY(set_weight(&one, stats, weight));
    }
    return mdp_ok();
}

mdp_status mdp_category_weights(const char *text, const mdp_stats *stats, double **weight) {
    char *names = NULL;
    *weight = NULL;
    if (!text) return mdp_ok();
    MDP_TRY(mdp_category_names(text, &names)); /* for its checks */
    mdp_free(names);
    MDP_TRY(MDP_ALLOC(weight, stats->n_category, "weights of categories"));
    mdp_status status = fill_weights(text, stats, *weight);
    if (status.code == MDP_OK) return status;
    mdp_free(*weight);
    *weight = NULL;
    return status;
}
