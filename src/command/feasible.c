/* feasible.c - checks before anything heavy: see feasible.h. */
#include "command/feasible.h"
#include "command/continue.h"
#include "mdp/others.h"

#include <math.h>
#include <string.h>

/* ---- census -------------------------------------------------------------------------------------------------- */

static void count_layer(int32_t n_expert, int32_t top_k, int32_t n_group, int32_t n_open, mdp_census *census) {
    census->n_group = n_group;
    census->n_open = n_open;
    if (census->n_layer == 0 || n_expert < census->smallest) census->smallest = n_expert;
    if (n_expert > census->largest) census->largest = n_expert;
    if (top_k > census->top_k) census->top_k = top_k;
    census->n_layer++;
}

mdp_census mdp_census_of_model(const mdp_model *model) {
    mdp_census census = {0};
    for (int64_t l = 0; l < model->n_layer; l++) {
        const mdp_moe *moe = &model->layers[l].moe;
        if (model->layers[l].is_moe)
            count_layer(moe->n_expert, moe->top_k, moe->rule.n_group, moe->rule.n_open, &census);
    }
    return census;
}

mdp_census mdp_census_of_stats(const mdp_stats *stats) {
    mdp_census census = {0};
    for (int64_t i = 0; i < stats->n_layer; i++) {
        const mdp_layer_stats *layer = &stats->layers[i];
        count_layer(layer->n_expert, layer->top_k, layer->n_group, layer->n_open, &census);
    }
    return census;
}

/* ---- budget -------------------------------------------------------------------------------------------------- */

/* The option that says how many experts stay, or -1. */
static int keep_option(const mdp_session *session) {
    static const mdp_option_id ways[] = {OPTION_KEEP, OPTION_KEEP_RATIO, OPTION_PRUNE_RATIO, OPTION_KEEP_FILE};
    for (size_t i = 0; i < sizeof ways / sizeof ways[0]; i++) {
        if (mdp_session_option(session, ways[i])->present) return (int)ways[i];
    }
    return -1;
}

static mdp_budget budget_of(const mdp_session *session) {
    if (keep_option(session) == OPTION_KEEP_FILE) return MDP_BUDGET_LIST;
    return (mdp_budget)mdp_session_option(session, OPTION_BUDGET)->integer;
}

static mdp_status check_grape(const mdp_session *session) {
    if (mdp_session_option(session, OPTION_MERGE)->integer == 0)
        return MDP_ERROR(MDP_USAGE, "--budget grape is for merges: it shares out experts by how alike they are; give "
                                    "--merge, or use another budget.");
    if (mdp_session_option(session, OPTION_KEEP_MULTIPLE_OF)->integer > 1)
        return MDP_ERROR(MDP_USAGE, "--budget grape merges two experts at a time; --keep-multiple-of does not go with "
                                    "it.");
    return mdp_ok();
}

mdp_status mdp_session_check_budget(const mdp_session *session) {
    mdp_budget budget = budget_of(session);
    const mdp_option_value *other = mdp_session_option(session, OPTION_FOR);
    bool numbered = keep_option(session) >= 0 || mdp_session_option(session, OPTION_TOP_K)->present ||
                    mdp_session_option(session, OPTION_MASK)->integer != 0 ||
                    mdp_session_option(session, OPTION_NEURONS)->integer != 0;
    if (!numbered && !(other->present && mdp_other_needs_no_number((mdp_other)other->integer)))
        return MDP_ERROR(MDP_USAGE,
                         "%s needs --keep N, --keep-ratio R, --prune-ratio R or --keep-file FILE, or --top-k K to keep "
                         "all experts but use fewer, or --neurons to cut them. See moe-dist-prune %s --help.",
                         session->options->command, session->options->command);
    if (budget == MDP_BUDGET_LIST && mdp_session_option(session, OPTION_BUDGET)->given)
        return MDP_ERROR(MDP_USAGE, "--budget has no meaning with --keep-file, which gives every layer its number.");
    if (budget != MDP_BUDGET_GLOBAL && mdp_session_option(session, OPTION_NORMALISE)->integer != MDP_RAW)
        return MDP_ERROR(MDP_USAGE, "--normalise has a meaning only with --budget global; the budget is %s.",
                         mdp_budget_names[budget]);
    if (budget == MDP_BUDGET_GRAPE) MDP_TRY(check_grape(session));
    if (mdp_budget_spreads(budget)) return mdp_ok();
    if (mdp_session_option(session, OPTION_MIN_KEEP)->present)
        return MDP_ERROR(MDP_USAGE,
                         "--min-keep has a meaning only with --budget global, trapezoid and grape; the budget is %s.",
                         mdp_budget_names[budget]);
    return mdp_ok();
}

mdp_status mdp_session_read_keep_file_all(mdp_session *session) {
    const mdp_option_value *path = mdp_session_option(session, OPTION_KEEP_FILE);
    char *text = NULL;
    int64_t n_byte = 0;
    if (!path->present) return mdp_ok();
    MDP_TRY(mdp_session_read_text_all(session->comm, path->text, &text, &n_byte));
    mdp_status status = mdp_keep_list_parse(text, n_byte, path->text, &session->keep_list, &session->n_keep);
    mdp_free(text);
    return mdp_agree_all(session->comm, status);
}

/* The nearest multiple of `unit`, half up, that does not leave [least, most]. */
static int32_t round_to(int32_t n, int32_t unit, int32_t least, int32_t most) {
    int32_t low = (least + unit - 1) / unit * unit, high = most / unit * unit;
    int32_t rounded = (n + unit / 2) / unit * unit;
    if (rounded < low) rounded = low;
    return rounded > high ? high : rounded;
}

int32_t mdp_census_keep(const mdp_census *census, double ratio, bool removes, const mdp_budget_options *budget) {
    int32_t part = (int32_t)floor(ratio * census->largest + 0.5), unit = mdp_budget_unit(budget);
    int32_t keep = removes ? census->largest - part : part;
    if (keep < census->top_k || unit <= 1 || budget->budget != MDP_BUDGET_UNIFORM) return keep;
    return round_to(keep, unit, census->top_k, census->largest);
}

static mdp_status resolve_keep(const mdp_session *session, const mdp_census *census, mdp_budget_options *out) {
    int way = keep_option(session);
    if (way < 0) {
        out->keep = census->largest;
        return mdp_ok();
    }
    const mdp_option_value *value = mdp_session_option(session, (mdp_option_id)way);
    if (way == OPTION_KEEP) return mdp_int_cast(value->integer, "--keep", &out->keep);
    const char *name = mdp_option_table[way].name;
    if (census->smallest != census->largest)
        return MDP_ERROR(MDP_USAGE,
                         "--%s has no one meaning for layers with %d to %d experts; give the number with --keep.", name,
                         (int)census->smallest, (int)census->largest);
    out->keep = mdp_census_keep(census, value->real, way == OPTION_PRUNE_RATIO, out);
    return mdp_ok();
}

static mdp_status check_keep(const mdp_session *session, const mdp_census *census, int32_t keep) {
    int way = keep_option(session);
    if (way < 0) return mdp_ok();
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

static mdp_status check_min_keep(const mdp_census *census, const mdp_budget_options *budget) {
    if (budget->min_keep != 0 && budget->min_keep < census->top_k)
        return MDP_ERROR(MDP_USAGE,
                         "--min-keep %d is less than the %d experts that each token uses (num_experts_per_tok). Use "
                         "--min-keep %d or more.",
                         (int)budget->min_keep, (int)census->top_k, (int)census->top_k);
    if (budget->min_keep > budget->keep)
        return MDP_ERROR(MDP_USAGE, "--min-keep %d is more than the %d experts that a layer keeps on average.",
                         (int)budget->min_keep, (int)budget->keep);
    return mdp_ok();
}

mdp_status mdp_session_list_layers(const mdp_model *model, const mdp_stats *stats, int64_t n, mdp_budget_layer **out) {
    MDP_TRY(MDP_ALLOC(out, n, "the layers of a budget"));
    for (int64_t i = 0; stats && i < n; i++)
        (*out)[i] = (mdp_budget_layer){stats->layers[i].layer, stats->layers[i].n_expert, stats->layers[i].n_expert,
                                       stats->layers[i].top_k};
    int64_t i = 0;
    for (int64_t l = 0; !stats && l < model->n_layer; l++) {
        const mdp_moe *moe = &model->layers[l].moe;
        if (model->layers[l].is_moe) (*out)[i++] = (mdp_budget_layer){l, moe->n_expert, moe->n_expert, moe->top_k};
    }
    return mdp_ok();
}

/* Where --top-k stands alone every layer keeps what it has, which is one number only when the layers are alike. */
static mdp_status keep_everything(mdp_session *session, const mdp_budget_layer *layers, int64_t n) {
    if (session->keep_list) return mdp_ok();
    MDP_TRY(MDP_ALLOC(&session->keep_list, n, "the list of a budget"));
    session->n_keep = n;
    for (int64_t i = 0; i < n; i++) session->keep_list[i] = (mdp_keep_entry){layers[i].layer, layers[i].n_expert};
    return mdp_ok();
}

static void use_list(const mdp_session *session, mdp_budget_options *out) {
    out->budget = MDP_BUDGET_LIST;
    out->list = session->keep_list;
    out->n_list = session->n_keep;
    out->keep = 0;
    for (int64_t i = 0; i < out->n_list; i++) out->keep = out->list[i].keep > out->keep ? out->list[i].keep : out->keep;
}

static mdp_status resolve(mdp_session *session, mdp_census census, const mdp_budget_layer *layers,
                          mdp_budget_options *out) {
    if (out->top_k > 0 && out->top_k <= census.top_k) census.top_k = out->top_k;
    if (keep_option(session) < 0 && census.smallest != census.largest)
        MDP_TRY(keep_everything(session, layers, census.n_layer));
    if (session->keep_list) {
        use_list(session, out);
    } else {
        MDP_TRY(resolve_keep(session, &census, out));
        MDP_TRY(check_keep(session, &census, out->keep));
        MDP_TRY(check_min_keep(&census, out));
    }
    return mdp_budget_check(layers, census.n_layer, out);
}

mdp_status mdp_session_budget(mdp_session *session, const mdp_stats *stats, mdp_budget_options *out) {
    mdp_census census = stats ? mdp_census_of_stats(stats) : mdp_census_of_model(session->model);
    mdp_budget_layer *layers = NULL;
    MDP_TRY(mdp_session_check_budget(session));
    if (census.n_layer == 0)
        return MDP_ERROR(MDP_BAD_INPUT, "the model has no layer with experts; nothing can be pruned.");
    *out =
        (mdp_budget_options){.budget = budget_of(session),
                             .normalise = (mdp_score_normalise)mdp_session_option(session, OPTION_NORMALISE)->integer,
                             .min_keep = (int32_t)mdp_session_option(session, OPTION_MIN_KEEP)->integer,
                             .multiple_of = (int32_t)mdp_session_option(session, OPTION_KEEP_MULTIPLE_OF)->integer,
                             .n_group = census.n_group,
                             .n_open = census.n_open,
                             .top_k = (int32_t)mdp_session_option(session, OPTION_TOP_K)->integer};
    mdp_status status = mdp_session_list_layers(session->model, stats, census.n_layer, &layers);
    if (status.code == MDP_OK) status = resolve(session, census, layers, out);
    mdp_free(layers);
    return status;
}

/* ---- outputs ------------------------------------------------------------------------------------------------- */

bool mdp_session_wants_native(const mdp_session *session) {
    return mdp_session_option(session, OPTION_FORMAT)->integer != FORMAT_SAFETENSORS;
}

bool mdp_session_wants_hf(const mdp_session *session) {
    return mdp_session_option(session, OPTION_FORMAT)->integer != FORMAT_HDF5;
}

mdp_unequal mdp_session_unequal(const mdp_session *session) {
    static const mdp_unequal of_choice[] = {[NON_UNIFORM_REFUSE] = MDP_UNEQUAL_STACKED,
                                            [NON_UNIFORM_PAD] = MDP_UNEQUAL_PADDED,
                                            [NON_UNIFORM_PER_LAYER_CONFIG] = MDP_UNEQUAL_LISTED};
    return of_choice[mdp_session_option(session, OPTION_NON_UNIFORM)->integer];
}

mdp_status mdp_session_check_uniform(const mdp_session *session, const mdp_plan *plan) {
    if (plan->uniform || !mdp_session_wants_hf(session)) return mdp_ok();
    mdp_unequal unequal = mdp_session_unequal(session);
    if (unequal == MDP_UNEQUAL_PADDED) return mdp_transform_check_pad(session->model);
    if (unequal == MDP_UNEQUAL_LISTED) return mdp_transform_check_list(session->model);
    const mdp_plan_layer *first = &plan->layers[0], *other = first;
    while (other->n_kept == first->n_kept) other++;
    return MDP_ERROR(
        MDP_USAGE,
        "layers differ: the plan keeps %d experts in layer %lld and %d in layer %lld, which no loader of Hugging Face "
        "folders accepts; use --format hdf5, --non-uniform pad or per-layer-config, or --budget uniform for the plan.",
        (int)first->n_kept, (long long)first->layer, (int)other->n_kept, (long long)other->layer);
}

mdp_status mdp_session_check_budget_fits(const mdp_session *session, const mdp_budget_options *budget,
                                         const mdp_plan *stand_in) {
    bool decided = budget->budget != MDP_BUDGET_GLOBAL && budget->budget != MDP_BUDGET_GRAPE;
    return decided || mdp_session_unequal(session) != MDP_UNEQUAL_STACKED ? mdp_session_check_uniform(session, stand_in)
                                                                          : mdp_ok();
}

/* ---- the result ---------------------------------------------------------------------------------------------- */

mdp_status mdp_session_check_side_files(const mdp_session *session) {
    const mdp_catalogue *catalogue = session->catalogue;
    if (session->comm->rank != 0 || catalogue->container == MDP_NATIVE) return mdp_ok();
    for (int64_t i = 0; i < catalogue->n_side_file; i++) {
        const char *path = catalogue->files[catalogue->side_files[i].file];
        int fd = -1;
        MDP_TRY(mdp_file_open_read(path, &fd));
        MDP_TRY(mdp_file_close(path, fd));
    }
    return mdp_ok();
}

mdp_status mdp_session_check_result(const mdp_session *session) {
    MDP_TRY(mdp_session_check_side_files(session));
    return mdp_session_wants_native(session) ? mdp_transform_check_stacks(session->model) : mdp_ok();
}
