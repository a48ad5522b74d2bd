/* feasible.c - checks before anything heavy: see feasible.h. */
#include "command/feasible.h"

#include <math.h>
#include <string.h>

/* ---- census -------------------------------------------------------------------------------------------------- */

static void count_layer(int32_t n_expert, int32_t top_k, mdp_census *census) {
    if (census->n_layer == 0 || n_expert < census->smallest) census->smallest = n_expert;
    if (n_expert > census->largest) census->largest = n_expert;
    if (top_k > census->top_k) census->top_k = top_k;
    census->n_layer++;
}

mdp_census mdp_census_of_model(const mdp_model *model) {
    mdp_census census = {0};
    for (int64_t l = 0; l < model->n_layer; l++) {
        if (model->layers[l].is_moe) count_layer(model->layers[l].moe.n_expert, model->layers[l].moe.top_k, &census);
    }
    return census;
}

mdp_census mdp_census_of_stats(const mdp_stats *stats) {
    mdp_census census = {0};
    for (int64_t i = 0; i < stats->n_layer; i++)
        count_layer(stats->layers[i].n_expert, stats->layers[i].top_k, &census);
    return census;
}

/* ---- budget -------------------------------------------------------------------------------------------------- */

/* The option that says how many experts stay, or -1. */
static int keep_option(const mdp_session *session) {
    static const mdp_option_id ways[] = {OPTION_KEEP, OPTION_KEEP_RATIO, OPTION_PRUNE_RATIO};
    for (int i = 0; i < 3; i++) {
        if (mdp_session_option(session, ways[i])->present) return (int)ways[i];
    }
    return -1;
}

mdp_status mdp_session_check_budget(const mdp_session *session) {
    if (keep_option(session) < 0)
        return MDP_ERROR(MDP_USAGE,
                         "%s needs --keep N, --keep-ratio R or --prune-ratio R. See moe-dist-prune %s --help.",
                         session->options->command, session->options->command);
    if (mdp_session_option(session, OPTION_BUDGET)->integer == MDP_BUDGET_GLOBAL) return mdp_ok();
    if (mdp_session_option(session, OPTION_MIN_KEEP)->present)
        return MDP_ERROR(MDP_USAGE, "--min-keep has a meaning only with --budget global; the budget is uniform.");
    if (mdp_session_option(session, OPTION_NORMALISE)->integer != MDP_RAW)
        return MDP_ERROR(MDP_USAGE, "--normalise has a meaning only with --budget global; the budget is uniform.");
    return mdp_ok();
}

static mdp_status resolve_keep(const mdp_session *session, const mdp_census *census, int32_t *keep) {
    int way = keep_option(session);
    const mdp_option_value *value = mdp_session_option(session, (mdp_option_id)way);
    if (way == OPTION_KEEP) return mdp_int_cast(value->integer, "--keep", keep);
    const char *name = mdp_option_table[way].name;
    if (census->smallest != census->largest)
        return MDP_ERROR(MDP_USAGE,
                         "--%s has no one meaning for layers with %d to %d experts; give the number with --keep.", name,
                         (int)census->smallest, (int)census->largest);
    int32_t part = (int32_t)floor(value->real * census->largest + 0.5);
    *keep = way == OPTION_KEEP_RATIO ? part : census->largest - part;
    return mdp_ok();
}

static mdp_status check_keep(const mdp_session *session, const mdp_census *census, int32_t keep) {
    int way = keep_option(session);
    const char *name = mdp_option_table[way].name, *text = mdp_session_option(session, (mdp_option_id)way)->text;
    if (keep < census->top_k && way == OPTION_KEEP)
        return MDP_ERROR(MDP_USAGE,
                         "--keep %d is less than the %d experts that each token uses (num_experts_per_tok). Use --keep "
                         "%d or more.",
                         (int)keep, (int)census->top_k, (int)census->top_k);
    if (keep < census->top_k)
        return MDP_ERROR(
            MDP_USAGE,
            "--%s %s keeps %d of %d experts, fewer than the %d that each token uses (num_experts_per_tok). "
            "Keep %d or more.",
            name, text, (int)keep, (int)census->largest, (int)census->top_k, (int)census->top_k);
    if (keep > census->smallest)
        return MDP_ERROR(MDP_USAGE, "--%s %s is more than the %d experts of a layer. Use --keep %d or less.", name,
                         text, (int)census->smallest, (int)census->smallest);
    return mdp_ok();
}

mdp_status mdp_session_budget(const mdp_session *session, const mdp_census *census, mdp_budget_options *out) {
    MDP_TRY(mdp_session_check_budget(session));
    if (census->n_layer == 0)
        return MDP_ERROR(MDP_BAD_INPUT, "the model has no layer with experts; nothing can be pruned.");
    *out =
        (mdp_budget_options){.budget = (mdp_budget)mdp_session_option(session, OPTION_BUDGET)->integer,
                             .normalise = (mdp_score_normalise)mdp_session_option(session, OPTION_NORMALISE)->integer,
                             .min_keep = (int32_t)mdp_session_option(session, OPTION_MIN_KEEP)->integer};
    MDP_TRY(resolve_keep(session, census, &out->keep));
    MDP_TRY(check_keep(session, census, out->keep));
    if (out->min_keep != 0 && out->min_keep < census->top_k)
        return MDP_ERROR(MDP_USAGE,
                         "--min-keep %d is less than the %d experts that each token uses (num_experts_per_tok). Use "
                         "--min-keep %d or more.",
                         (int)out->min_keep, (int)census->top_k, (int)census->top_k);
    if (out->min_keep > out->keep)
        return MDP_ERROR(MDP_USAGE, "--min-keep %d is more than the %d experts that a layer keeps on average.",
                         (int)out->min_keep, (int)out->keep);
    return mdp_ok();
}

/* ---- outputs ------------------------------------------------------------------------------------------------- */

bool mdp_session_wants_native(const mdp_session *session) {
    return mdp_session_option(session, OPTION_FORMAT)->integer != FORMAT_SAFETENSORS;
}

bool mdp_session_wants_hf(const mdp_session *session) {
    return mdp_session_option(session, OPTION_FORMAT)->integer != FORMAT_HDF5;
}

mdp_status mdp_session_check_output_all(const mdp_session *session, const char *path, int64_t n_byte) {
    return mdp_output_check_all(session->comm, path, session->catalogue,
                                mdp_session_option(session, OPTION_OVERWRITE)->flag, n_byte);
}

/* What is at --out: nothing (0), a folder (1); anything else cannot be written into. Local, rank 0. */
static mdp_status look_at_folder(const char *path, int64_t *exists) {
    *exists = mdp_path_exists(path);
    if (*exists && !mdp_path_is_folder(path))
        return MDP_ERROR(MDP_CANNOT_CREATE, "%s: is not a folder; --out names the folder for the results.", path);
    return mdp_ok();
}

mdp_status mdp_session_check_folder_all(const mdp_session *session, const char *const *names, int64_t n_byte) {
    const char *folder = mdp_session_option(session, OPTION_OUT)->text;
    int64_t exists = 0;
    mdp_status status = mdp_ok();
    if (session->comm->rank == 0) status = look_at_folder(folder, &exists);
    MDP_AGREE(session->comm, status);
    MDP_TRY(mdp_bcast_all(session->comm, &exists, (int64_t)sizeof exists, 0));
    if (!exists) return mdp_session_check_output_all(session, folder, n_byte);
    for (int i = 0; names[i]; i++) {
        char *path = NULL;
        status = mdp_agree_all(session->comm, mdp_session_path(session, names[i], &path));
        if (status.code == MDP_OK) status = mdp_session_check_output_all(session, path, n_byte);
        mdp_free(path);
        MDP_TRY(status);
    }
    return mdp_ok();
}

/* The record of an earlier command stays beside its results, unless it may be replaced. Rank 0. */
static mdp_status write_record(const mdp_session *session) {
    char *path = NULL, *text = NULL;
    MDP_TRY(mdp_session_path(session, "effective-config.json", &path));
    mdp_status status = mdp_ok();
    if (mdp_session_option(session, OPTION_OVERWRITE)->flag || !mdp_path_exists(path)) {
        status = mdp_options_print(session->options, &text);
        if (status.code == MDP_OK) status = mdp_file_write_all(path, text, (int64_t)strlen(text));
    }
    mdp_free(text);
    mdp_free(path);
    return status;
}

/* Rank 0: the folder, its log, and the record of the options. */
static mdp_status make_folder(mdp_session *session) {
    const char *folder = mdp_session_option(session, OPTION_OUT)->text;
    char *path = NULL;
    bool existed = mdp_path_exists(folder);
    MDP_TRY(mdp_folder_create(folder));
    session->folder_created = !existed;
    MDP_TRY(mdp_session_path(session, "run.log", &path));
    mdp_status status = mdp_log_open_file(session->log, path);
    mdp_free(path);
    MDP_TRY(status);
    return write_record(session);
}

mdp_status mdp_session_make_folder_all(mdp_session *session) {
    mdp_status status = mdp_ok();
    if (session->comm->rank == 0) status = make_folder(session);
    return mdp_agree_all(session->comm, status);
}

mdp_status mdp_session_check_uniform(const mdp_session *session, const mdp_plan *plan) {
    if (plan->uniform || !mdp_session_wants_hf(session)) return mdp_ok();
    const mdp_plan_layer *first = &plan->layers[0], *other = first;
    while (other->n_kept == first->n_kept) other++;
    return MDP_ERROR(
        MDP_USAGE,
        "layers differ: the plan keeps %d experts in layer %lld and %d in layer %lld, which no loader of Hugging Face "
        "folders accepts; use --format hdf5, or --budget uniform for the plan.",
        (int)first->n_kept, (long long)first->layer, (int)other->n_kept, (long long)other->layer);
}
