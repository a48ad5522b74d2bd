/* refitting.c - refits for commands: see refitting.h. */
#include "command/refitting.h"
#include "command/made.h"
#include "command/outputs.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MOST_SWEEPS 1000
#define DIAGONAL_RIDGE 1e-3 /* auto measures whole layers, which diagonal never forms */
#define MOST_RIDGE 1e6

/* ---- options --------------------------------------------------------------------------------------------------- */

static mdp_status parse_way(const char *text, bool *wanted, mdp_refit_options *out) {
    char *end = NULL;
    *wanted = strcmp(text, "none") != 0;
    out->n_sweep = MDP_REFIT_SWEEP;
    out->mode = MDP_REFIT_AUTO;
    if (!*wanted || strcmp(text, "auto") == 0) return mdp_ok();
    if (strcmp(text, "joint") == 0 || strcmp(text, "diagonal") == 0) {
        out->mode = text[0] == 'j' ? MDP_REFIT_JOINT : MDP_REFIT_DIAGONAL;
        return mdp_ok();
    }
    out->mode = MDP_REFIT_SWEEPS;
    if (strcmp(text, "sweeps") == 0) return mdp_ok();
    if (strncmp(text, "sweeps:", 7) == 0) {
        long n = strtol(text + 7, &end, 10);
        out->n_sweep = (int)n;
        if (text[7] != '\0' && *end == '\0' && n >= 1 && n <= MOST_SWEEPS) return mdp_ok();
    }
    return MDP_ERROR(MDP_USAGE,
                     "--refit %s: expected auto, joint, sweeps, sweeps:S (S from 1 to %d), diagonal or none.", text,
                     MOST_SWEEPS);
}

static mdp_status parse_ridge(const char *text, double *out) {
    *out = 0.0;
    if (strcmp(text, "auto") == 0) return mdp_ok();
    if (mdp_parse_positive(text, text + strlen(text), out) && *out <= MOST_RIDGE) return mdp_ok();
    return MDP_ERROR(MDP_USAGE, "--ridge %s: expected auto or a positive number (1e-12 to %g).", text, MOST_RIDGE);
}

static mdp_status parse_holdout(const char *text, double *out) {
    *out = 0.0;
    if (strcmp(text, "0") == 0) return mdp_ok();
    if (mdp_parse_positive(text, text + strlen(text), out) && *out < 1.0) return mdp_ok();
    return MDP_ERROR(MDP_USAGE, "--refit-holdout %s: expected 0, or a ratio below 1.", text);
}

mdp_status mdp_session_refit_target(const mdp_session *session, mdp_refit_options *out) {
    *out = (mdp_refit_options){.target = (mdp_refit_target)mdp_session_option(session, OPTION_REFIT_TARGET)->integer,
                               .original_inputs =
                                   mdp_session_option(session, OPTION_REFIT_INPUTS)->integer == PROPAGATE_ORIGINAL,
                               .n_token = mdp_session_option(session, OPTION_REFIT_TOKENS)->integer,
                               .seed = (uint64_t)mdp_session_option(session, OPTION_SEED)->integer};
    return parse_holdout(mdp_session_option(session, OPTION_REFIT_HOLDOUT)->text, &out->holdout);
}

mdp_status mdp_session_refit_options(const mdp_session *session, bool *wanted, mdp_refit_options *out) {
    const mdp_option_value *way = mdp_session_option(session, OPTION_REFIT);
    bool always = session->options->bit == COMMAND_REFIT;
    MDP_TRY(mdp_session_refit_target(session, out));
    MDP_TRY(parse_way(way->present ? way->text : always ? "auto" : "none", wanted, out));
    MDP_TRY(parse_ridge(mdp_session_option(session, OPTION_RIDGE)->text, &out->ridge));
    if (!*wanted && always) return MDP_ERROR(MDP_USAGE, "--refit none: then there is nothing to do.");
    static const mdp_option_id only[] = {OPTION_RIDGE, OPTION_REFIT_TOKENS, OPTION_REFIT_TARGET, OPTION_REFIT_INPUTS,
                                         OPTION_REFIT_HOLDOUT};
    if (!*wanted) return mdp_session_check_unused(session, only, sizeof only / sizeof only[0], "refit");
    if (mdp_session_option(session, OPTION_BATCH_TOKENS)->given)
        return MDP_ERROR(MDP_USAGE,
                         "a refit fits a layer to all tokens at once, so they are one batch; leave --batch-tokens out. "
                         "More ranks or fewer --tokens lower what a rank holds of them, --memory what sums and "
                         "factors take beside.");
    if (out->mode == MDP_REFIT_DIAGONAL && out->ridge == 0.0) out->ridge = DIAGONAL_RIDGE;
    return mdp_ok();
}

mdp_status mdp_session_check_refit(const mdp_plan *plan) {
    const char *name = plan->path ? plan->path : "the plan";
    if (json_object_get(plan->recipe, "refit"))
        return MDP_ERROR(MDP_USAGE, "%s: it has been refitted already; give the plan that this one was made of.", name);
    for (int64_t i = 0; i < plan->n_layer; i++) {
        const mdp_plan_layer *layer = &plan->layers[i];
        for (int32_t j = 0; j < layer->n_kept; j++) {
            if (layer->kept[j].action == MDP_MASK)
                return MDP_ERROR(MDP_USAGE,
                                 "%s: expert %d of layer %lld is masked, and a fitted down projection would have no "
                                 "zeros left; refit the plan without the mask.",
                                 name, (int)layer->kept[j].from[0], (long long)layer->layer);
            if (layer->kept[j].n_array > 0 && layer->kept[j].action == MDP_KEEP)
                return MDP_ERROR(MDP_USAGE,
                                 "%s: expert %d of layer %lld has been refitted already; give the plan that this one "
                                 "was made of.",
                                 name, (int)layer->kept[j].from[0], (long long)layer->layer);
        }
    }
    return mdp_ok();
}

/* ---- before ---------------------------------------------------------------------------------------------------- */

int64_t mdp_session_refit_memory(const mdp_session *session, const mdp_refit_options *options) {
    return mdp_refit_token_memory(session->layout, session->model, session->tokens, options);
}

/* What is free for sums and factors beside the pass: of --memory, or else of the node's. Collective. */
static mdp_status settle_memory_all(const mdp_session *session, int64_t pass_byte, mdp_refit_options *options) {
    int64_t memory = mdp_session_option(session, OPTION_MEMORY)->integer;
    if (memory == 0) memory = mdp_session_node_share(session);
    int64_t left = -(memory - pass_byte > 1 ? memory - pass_byte : 1);
    MDP_TRY(mdp_max_i64_all(session->comm, &left, 1)); /* the least of any rank */
    options->memory = -left;
    return mdp_ok();
}

/* Local. */
static mdp_status add_sums(mdp_session *session, const mdp_plan *plan, const mdp_refit_options *options,
                           int64_t pass_byte, mdp_estimate *estimate) {
    mdp_refit_cost cost;
    mdp_replaced *replaced = NULL;
    MDP_TRY(
        mdp_refit_cost_of(session->layout, session->model, session->tokens, plan, options, session->n_thread, &cost));
    MDP_TRY(mdp_replaced_list(session->model, plan, mdp_refit_replaces(options), &replaced));
    int64_t n_byte = mdp_replaced_bytes(replaced), size = session->layout->size, memory = pass_byte + cost.memory;
    mdp_replaced_destroy(replaced);
    mdp_rank_cost total = {.flop = cost.flop, .bytes_written = n_byte};
    mdp_rank_cost least = {.flop = cost.flop / size, .bytes_written = n_byte / size};
    mdp_rank_cost most = {.flop = cost.flop_most, .bytes_written = n_byte / size};
    const char *name = options->train ? "recover, training" : "refit, sums and solves";
    MDP_TRY(mdp_session_add_costs(session, name, 0, &total, &least, &most, estimate));
    estimate->bytes_written += n_byte;
    if (memory > estimate->memory) estimate->memory = memory;
    int64_t limit = mdp_session_option(session, OPTION_MEMORY)->integer;
    if (limit > 0 && memory > limit)
        mdp_estimate_note_shortage(estimate, (mdp_shortage){.need = memory, .pass = mdp_refit_pass(options, NULL)});
    return limit > 0 ? mdp_ok() : mdp_session_check_node(session, memory);
}

mdp_status mdp_session_add_refit_all(mdp_session *session, const mdp_plan *plan, mdp_refit_options *options,
                                     mdp_estimate *estimate) {
    mdp_view *view = NULL;
    int64_t others = estimate->memory; /* of the passes before */
    mdp_status status =
        mdp_agree_all(session->comm, mdp_transform_view(session->model, plan, session->replaced, &view));
    const mdp_view *views[2] = {NULL, view};
    estimate->memory = 0;
    if (status.code == MDP_OK)
        status = mdp_session_add_pass_all(session, options->train ? "recover" : "refit", session->tokens,
                                          mdp_refit_pass(options, views), estimate);
    int64_t pass_byte = estimate->memory;
    if (others > estimate->memory) estimate->memory = others;
    mdp_view_destroy(view);
    MDP_TRY(status);
    MDP_TRY(settle_memory_all(session, pass_byte, options));
    return mdp_agree_all(session->comm, add_sums(session, plan, options, pass_byte, estimate));
}

/* ---- the plan -------------------------------------------------------------------------------------------------- */

static const char *const mode_names[] = {[MDP_REFIT_AUTO] = "auto",
                                         [MDP_REFIT_JOINT] = "joint",
                                         [MDP_REFIT_SWEEPS] = "sweeps",
                                         [MDP_REFIT_DIAGONAL] = "diagonal"};

static json_t *print_error(double error) {
    return error >= 0.0 ? json_real(error) : json_null();
}

json_t *mdp_refit_print_errors(const mdp_refit_error *error) {
    return json_pack("{s:o, s:o}", "fitted", print_error(error->fitted), "held_out", print_error(error->held_out));
}

static json_t *print_layer(const mdp_refit_layer *layer) {
    json_t *rows = json_array(), *kept = json_array();
    for (int32_t e = 0; e < layer->n_expert; e++) {
        mdp_json_add(&rows, json_integer(layer->rows[e]));
        if (!layer->fitted[e]) mdp_json_add(&kept, json_integer(e));
    }
    json_t *item = json_pack("{s:I, s:o, s:o, s:I}", "layer", (json_int_t)layer->layer, "rows", rows, "not_fitted",
                             kept, "order", (json_int_t)layer->order);
    if (layer->order == 0) return item;
    mdp_json_put(&item, "solved", json_string(mode_names[layer->mode]));
    mdp_json_put(&item, "ridge", json_real(layer->ridge));
    mdp_json_put(&item, "mean_square", json_real(layer->mean_diagonal));
    mdp_json_put(&item, "reciprocal_condition", json_real(layer->rcond));
    mdp_json_put(&item, "rounding", json_real(layer->rounding));
    if (layer->mode == MDP_REFIT_DIAGONAL) mdp_json_put(&item, "step", json_real(layer->step));
    mdp_json_put(&item, "error_before", mdp_refit_print_errors(&layer->before));
    mdp_json_put(&item, "error_after", mdp_refit_print_errors(&layer->after));
    return item;
}

static json_t *print_recipe(const mdp_session *session, const void *context, const mdp_refit *refit,
                            const json_t *earlier) {
    const mdp_refit_options *options = context;
    (void)earlier; /* a plan is refitted once */
    json_t *layers = json_array();
    bool fixed = true;
    for (int64_t i = 0; i < refit->n_layer; i++) {
        mdp_json_add(&layers, print_layer(&refit->layers[i]));
        fixed = fixed && refit->layers[i].fixed;
    }
    json_t *root = json_pack("{s:s, s:s, s:s, s:f, s:s, s:I, s:I, s:s, s:s, s:o}", "how", mode_names[options->mode],
                             "target", options->target == MDP_REFIT_RESIDUAL ? "residual" : "output", "inputs",
                             options->original_inputs ? "original" : "pruned", "holdout", options->holdout, "tokens",
                             session->tokens->fingerprint, "n_tokens",
                             (json_int_t)(options->n_token > 0 ? options->n_token : session->tokens->n_token), "seed",
                             (json_int_t)options->seed, "compute", session->compute, "reproducible",
                             fixed ? "any-layout" : "per-layout", "layers", layers);
    if (options->mode == MDP_REFIT_SWEEPS || options->mode == MDP_REFIT_AUTO)
        mdp_json_put(&root, "sweeps", json_integer(options->n_sweep));
    mdp_json_put(&root, "ridge", options->ridge > 0.0 ? json_real(options->ridge) : json_string("auto"));
    if (session->resume) mdp_json_put(&root, "identity", json_string(session->resume->digest));
    return root;
}

/* Name the arrays of fitted experts and of those that were made before (`before`, NULL: none), and leave those of
 * others out. */
static mdp_status name_arrays(const mdp_refit *refit, const mdp_replaced *before, mdp_replaced *replaced,
                              mdp_plan *plan) {
    for (int64_t i = 0; i < plan->n_layer; i++) {
        for (int32_t j = 0; j < plan->layers[i].n_kept; j++) {
            int64_t at = mdp_replaced_find(replaced, plan->layers[i].layer, j);
            bool named = refit->layers[i].fitted[j] || plan->layers[i].kept[j].action != MDP_KEEP ||
                         mdp_replaced_find(before, plan->layers[i].layer, j) >= 0;
            if (at >= 0 && named) MDP_TRY(mdp_made_name_arrays(replaced, at, &plan->layers[i].kept[j]));
            for (int part = 0; at >= 0 && !named && part < MDP_N_EXPERT_PART; part++)
                if (replaced->experts[at].array[part] >= 0)
                    mdp_arrays_leave_out(replaced->arrays, replaced->experts[at].array[part]);
        }
    }
    return mdp_ok();
}

/* ---- what it came to ------------------------------------------------------------------------------------------- */

/* Where text that was held out fares worse than text that was fitted to, the fit has learnt the text. Rank 0. */
static void tell(const mdp_session *session, const mdp_refit *refit) {
    int64_t n_fitted = 0, n_over = 0;
    double before = 0.0, after = 0.0, worst = 0.0, rounding = 0.0;
    for (int64_t i = 0; i < refit->n_layer; i++) {
        const mdp_refit_layer *layer = &refit->layers[i];
        if (layer->order == 0) continue;
        n_fitted++;
        before += layer->before.fitted;
        after += layer->after.fitted;
        rounding = layer->rounding > rounding ? layer->rounding : rounding;
        if (layer->before.held_out <= 0.0 || layer->before.fitted <= 0.0) continue;
        double over = (layer->after.held_out / layer->before.held_out) / (layer->after.fitted / layer->before.fitted);
        if (over > MDP_OVERFITTED) n_over++;
        worst = over > worst ? over : worst;
    }
    if (n_fitted == 0) {
        mdp_log_message(session->log, MDP_LEVEL_WARN,
                        "refit: no expert was fitted: the plan changes nothing, or fewer than %d tokens reach each",
                        MDP_REFIT_LEAST_ROWS);
        return;
    }
    mdp_log_message(session->log, MDP_LEVEL_INFO,
                    "refit    %lld layers: a mean of %.3f of their output was lost, %.3f is now (weights as stored are "
                    "within %.2g%% of those that were fitted)",
                    (long long)n_fitted, before / (double)n_fitted, after / (double)n_fitted, 100.0 * rounding);
    if (n_over > 0)
        mdp_log_message(session->log, MDP_LEVEL_WARN,
                        "refit: in %lld of %lld layers text that was held out gains less than text that was fitted to "
                        "(error up to %.2f times as large); more text or a larger --ridge would help",
                        (long long)n_over, (long long)n_fitted, worst);
}

/* ---- fits of any kind ------------------------------------------------------------------------------------------- */

/* The same on every rank. */
static mdp_status make_text(const mdp_session *session, const mdp_plan *plan, const mdp_fit_words *words,
                            const void *context, const mdp_refit *refit, mdp_replaced *replaced, char **text) {
    mdp_plan *made = NULL;
    MDP_TRY(mdp_plan_copy(plan, words->what, &made));
    mdp_status status = name_arrays(refit, session->replaced, replaced, made);
    if (status.code == MDP_OK) {
        json_t *recipe = words->recipe(session, context, refit, json_object_get(made->recipe, words->key));
        mdp_json_put(&made->recipe, words->key, recipe);
        status = mdp_plan_print(made, text);
    }
    mdp_plan_destroy(made);
    return status;
}

static mdp_status perform_all(mdp_session *session, const mdp_plan *plan, const mdp_refit_options *options,
                              const mdp_fit_words *words, const void *context, mdp_replaced *replaced, char **text) {
    mdp_forward_options forward = mdp_session_forward_options(session);
    mdp_refit *refit = NULL;
    MDP_TRY(mdp_refit_all(session->comm, session->model, session->reader, session->tokens, plan, session->replaced,
                          replaced, options, &forward, &refit));
    mdp_status status = mdp_agree_all(session->comm, make_text(session, plan, words, context, refit, replaced, text));
    if (status.code == MDP_OK) status = mdp_arrays_finish_all(session->comm, replaced->arrays);
    if (status.code == MDP_OK) words->tell(session, refit);
    mdp_refit_destroy(refit);
    return status;
}

mdp_status mdp_session_fit_all(mdp_session *session, const mdp_plan *plan, const mdp_refit_options *options,
                               const mdp_fit_words *words, const void *context, const char *published, char **text) {
    mdp_replaced *replaced = NULL;
    *text = NULL;
    mdp_status status = mdp_session_make_arrays_all(session, plan, mdp_refit_replaces(options), published, &replaced);
    if (status.code == MDP_OK) status = perform_all(session, plan, options, words, context, replaced, text);
    mdp_replaced_destroy(replaced);
    if (status.code != MDP_OK) {
        mdp_free(*text);
        *text = NULL;
    }
    return status;
}

mdp_status mdp_session_refit_all(mdp_session *session, const mdp_plan *plan, const mdp_refit_options *options,
                                 const char *published, char **text) {
    static const mdp_fit_words words = {
        .key = "refit", .what = "the plan that is refitted", .recipe = print_recipe, .tell = tell};
    return mdp_session_fit_all(session, plan, options, &words, options, published, text);
}
