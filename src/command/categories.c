/* categories.c - names and weights of --categories: see categories.h. */
#include "command/categories.h"

#include <string.h>

/* One entry of the list. */
typedef struct entry {
    char *name;      /* owned */
    const char *raw; /* the name as it was written; borrowed */
    int n_raw;
    double weight;
} entry;

typedef struct entries {
    int n;
    entry *list; /* [n] */
} entries;

static void free_entries(entries *all) {
    for (int i = 0; i < all->n; i++) mdp_free(all->list[i].name);
    mdp_free(all->list);
}

/* The entry that begins at *at, which is moved to the next one (NULL after the last). */
static mdp_status read_entry(const char **at, entry *out) {
    const char *begin = *at, *weight, *end;
    MDP_TRY(MDP_ALLOC(&out->name, (int64_t)strlen(begin) + 1, "a category"));
    mdp_next_name(at, out->name, &weight, &end);
    out->raw = begin;
    out->n_raw = (int)((weight ? weight - 1 : end) - begin);
    out->weight = 1.0;
    if (*out->name == '\0') return MDP_ERROR(MDP_USAGE, "--categories: a name is missing at '%s'.", begin);
    if (!weight || mdp_parse_positive(weight, end, &out->weight)) return mdp_ok();
    return MDP_ERROR(
        MDP_USAGE,
        "--categories: the weight in '%.*s' is not a positive number (1e-12 to 1e12); write NAME:WEIGHT, and "
        "\\: and \\, where a name has a colon or a comma.",
        (int)(end - begin), begin);
}

static mdp_status check_once(const entries *all) {
    const entry *last = &all->list[all->n - 1];
    for (int i = 0; i < all->n - 1; i++) {
        if (strcmp(all->list[i].name, last->name) == 0)
            return MDP_ERROR(MDP_USAGE, "--categories names '%s' twice.", last->name);
    }
    return mdp_ok();
}

/* `all` is to be freed on error too. */
static mdp_status read_entries(const char *text, entries *all) {
    int64_t most = 1;
    for (const char *c = text; *c; c++) most += *c == ',';
    MDP_TRY(MDP_ALLOC(&all->list, most, "categories"));
    while (text) {
        all->n++;
        MDP_TRY(read_entry(&text, &all->list[all->n - 1]));
        MDP_TRY(check_once(all));
    }
    return mdp_ok();
}

static mdp_status join_names(const entries *all, char **names) {
    MDP_TRY(mdp_copy_text(names, ""));
    for (int i = 0; i < all->n; i++) {
        char *longer = NULL;
        mdp_status status =
            mdp_format(&longer, "%s%s%.*s", *names, i > 0 ? "," : "", all->list[i].n_raw, all->list[i].raw);
        mdp_free(*names);
        *names = longer;
        MDP_TRY(status);
    }
    return mdp_ok();
}

mdp_status mdp_category_names(const char *text, char **names) {
    entries all = {0, NULL};
    *names = NULL;
    mdp_status status = read_entries(text, &all);
    if (status.code == MDP_OK) status = join_names(&all, names);
    free_entries(&all);
    return status;
}

bool mdp_category_has_weights(const char *text) {
    entries all = {0, NULL};
    bool found = false;
    if (read_entries(text, &all).code == MDP_OK) { /* else it is said by those who use it */
        for (int i = 0; i < all.n; i++) found = found || all.list[i].weight != 1.0;
    }
    free_entries(&all);
    return found;
}

static mdp_status no_category(const entry *one, const mdp_stats *stats) {
    char *have = NULL;
    MDP_TRY(mdp_copy_text(&have, ""));
    for (int c = 0; c < stats->n_category; c++) {
        char *longer = NULL;
        mdp_status status = mdp_format(&longer, "%s%s%s", have, c > 0 ? ", " : "", stats->category[c]);
        mdp_free(have);
        have = longer;
        MDP_TRY(status);
    }
    mdp_status status =
        MDP_ERROR(MDP_USAGE, "--categories: the statistics have no category '%s'; they have %s.", one->name, have);
    mdp_free(have);
    return status;
}

static mdp_status set_weights(const entries *all, const mdp_stats *stats, double *weight) {
    for (int i = 0; i < all->n; i++) {
        bool found = false;
        for (int c = 0; c < stats->n_category; c++) {
            if (strcmp(all->list[i].name, stats->category[c]) != 0) continue;
            weight[c] = all->list[i].weight * (stats->category_weight ? stats->category_weight[c] : 1.0);
            found = true;
        }
        if (!found) return no_category(&all->list[i], stats);
    }
    return mdp_ok();
}

mdp_status mdp_category_weights(const char *text, const mdp_stats *stats, double **weight) {
    entries all = {0, NULL};
    *weight = NULL;
    if (!text) return mdp_ok();
    mdp_status status = read_entries(text, &all);
    if (status.code == MDP_OK) status = MDP_ALLOC(weight, stats->n_category, "weights of categories");
    if (status.code == MDP_OK) status = set_weights(&all, stats, *weight);
    free_entries(&all);
    if (status.code == MDP_OK) return status;
    mdp_free(*weight);
    *weight = NULL;
    return status;
}
