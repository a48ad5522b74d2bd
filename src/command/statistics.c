/* statistics.c - the files of --stats: see statistics.h. */
#include "command/statistics.h"

#include <stdlib.h>
#include <string.h>

/* The files of --stats, and what was read of them. */
typedef struct files {
    int n;
    char **paths; /* [n] */
    double *weight;
    mdp_stats **all;
} files;

static void free_files(files *from) {
    for (int i = 0; i < from->n; i++) {
        if (from->paths) mdp_free(from->paths[i]);
        if (from->all) mdp_stats_destroy(from->all[i]);
    }
    mdp_free(from->paths);
    mdp_free(from->weight);
    mdp_free(from->all);
}

/* FILE or FILE:WEIGHT; a file whose name looks like the latter is taken as it is. */
static mdp_status split_weight(const char *text, char **path, double *weight) {
    const char *colon = strrchr(text, ':');
    char *end = NULL;
    *weight = 1.0;
    if (!colon || mdp_path_exists(text)) return mdp_copy_text(path, text);
    (void)strtod(colon + 1, &end);
    if (end == colon + 1 || *end != '\0') return mdp_copy_text(path, text);
    if (!mdp_parse_positive(colon + 1, end, weight))
        return MDP_ERROR(MDP_USAGE, "--stats %s: the weight must be a positive number (1e-12 to 1e12).", text);
    return mdp_format(path, "%.*s", (int)(colon - text), text);
}

static mdp_status read_files(const mdp_option_value *given, unsigned vectors, files *from) {
    MDP_TRY(MDP_ALLOC(&from->paths, given->n_text, "the files of statistics"));
    MDP_TRY(MDP_ALLOC(&from->weight, given->n_text, "the files of statistics"));
    MDP_TRY(MDP_ALLOC(&from->all, given->n_text, "the files of statistics"));
    for (; from->n < given->n_text; from->n++) {
        int i = from->n;
        MDP_TRY(split_weight(given->texts[i], &from->paths[i], &from->weight[i]));
        mdp_status status = mdp_stats_read(from->paths[i], &from->all[i]);
        if (status.code == MDP_OK) status = mdp_verify_seal_if_any(from->paths[i]); /* experts are chosen by it */
        if (status.code == MDP_OK && vectors != 0)
            status = mdp_stats_read_vectors(from->paths[i], from->all[i], vectors);
        if (status.code == MDP_OK) continue;
        from->n++; /* this one too is to be freed */
        return status;
    }
    return mdp_ok();
}

static mdp_status check_same_model(const mdp_session *session, const mdp_stats *stats) {
    if (!session->catalogue) return mdp_ok();
    if (strcmp(stats->model_fingerprint, session->catalogue->fingerprint) == 0) return mdp_ok();
    return MDP_ERROR(MDP_BAD_INPUT,
                     "%s: these statistics are of another model (fingerprint %s), %s has fingerprint %s; observe this "
                     "model.",
                     mdp_session_option(session, OPTION_STATS)->text, stats->model_fingerprint,
                     session->catalogue->path, session->catalogue->fingerprint);
}

/* Of all files together. */
static mdp_status join(files *from, mdp_stats **out) {
    if (from->n > 1 || from->weight[0] != 1.0)
        return mdp_stats_join(from->all, from->weight, (const char *const *)from->paths, from->n, out);
    *out = from->all[0];
    from->all[0] = NULL;
    return mdp_ok();
}

mdp_status mdp_session_read_stats(const mdp_session *session, unsigned vectors, mdp_stats **out) {
    files from = {0, NULL, NULL, NULL};
    *out = NULL;
    mdp_status status = read_files(mdp_session_option(session, OPTION_STATS), vectors, &from);
    if (status.code == MDP_OK) status = join(&from, out);
    free_files(&from);
    if (status.code == MDP_OK) status = check_same_model(session, *out);
    if (status.code == MDP_OK) return status;
    mdp_stats_destroy(*out);
    *out = NULL;
    return status;
}
