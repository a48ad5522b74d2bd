/* merging.c - merges for commands: see merging.h. */
#include "command/merging.h"
#include "command/made.h"

static bool is_to_make(const mdp_plan_expert *expert) {
    return expert->action == MDP_MERGE || expert->action == MDP_NEURONS;
}

bool mdp_plan_is_unmerged(const mdp_plan *plan) {
    for (int64_t i = 0; i < plan->n_layer; i++)
        for (int32_t j = 0; j < plan->layers[i].n_kept; j++)
            if (is_to_make(&plan->layers[i].kept[j]) && plan->layers[i].kept[j].n_array == 0) return true;
    return false;
}

static bool is_fitted(const mdp_plan *plan) {
    return mdp_merge_count_fits(plan) > 0;
}

/* Fits, and only fits, want text. */
static mdp_status check_tokens(const mdp_session *session, const mdp_plan *plan, const char *name) {
    static const mdp_option_id only[] = {OPTION_TOKENS, OPTION_CATEGORIES, OPTION_MERGE_RIDGE, OPTION_ALLOW_NONFINITE};
    if (!is_fitted(plan))
        return mdp_session_check_unused(session, only, sizeof only / sizeof only[0], "merge least-squares");
    if (session->tokens) return mdp_ok();
    return MDP_ERROR(MDP_USAGE, "%s: it has experts that are fitted to text (least-squares); give it by --tokens FILE.",
                     name);
}

mdp_status mdp_session_check_merge(const mdp_session *session, const mdp_plan *plan) {
    const char *name = plan->path ? plan->path : "the plan";
    for (int64_t i = 0; i < plan->n_layer; i++) {
        for (int32_t j = 0; j < plan->layers[i].n_kept; j++) {
            const mdp_plan_expert *expert = &plan->layers[i].kept[j];
            if (expert->n_array > 0)
                return MDP_ERROR(MDP_USAGE,
                                 "%s: expert %d of layer %lld has been made already; give the plan that this one was "
                                 "made of.",
                                 name, (int)expert->from[0], (long long)plan->layers[i].layer);
            if (expert->align == MDP_ALIGN_ACTIVATION)
                return MDP_ERROR(MDP_USAGE,
                                 "%s: expert %d of layer %lld: neurons are aligned by \"weight\" or not at all in this "
                                 "version, not by \"activation\".",
                                 name, (int)expert->from[0], (long long)plan->layers[i].layer);
        }
    }
    if (mdp_plan_is_unmerged(plan)) return check_tokens(session, plan, name);
    return MDP_ERROR(MDP_USAGE, "%s: it merges or cuts no experts; there is nothing to do.", name);
}

/* ---- fits -------------------------------------------------------------------------------------------------------- */

int64_t mdp_session_merge_memory(const mdp_session *session, const mdp_plan *plan) {
    if (!is_fitted(plan)) return 0;
    return mdp_merge_fit_token_memory(session->layout, session->model, session->tokens);
}

/* Fits take a pass, and what they hold beside it. Collective. */
static mdp_status add_fits_all(mdp_session *session, const mdp_plan *plan, int64_t merging, mdp_estimate *estimate) {
    mdp_merge_cost cost;
    int64_t others = estimate->memory, limit = mdp_session_option(session, OPTION_MEMORY)->integer;
    int size = session->layout->size;
    const mdp_pass pass = mdp_merge_fit_pass();
    MDP_AGREE(session->comm,
              mdp_merge_fit_cost_of(session->layout, session->model, session->tokens, plan, session->n_thread, &cost));
    estimate->memory = 0;
    MDP_TRY(mdp_session_add_pass_all(session, "merge, tokens", session->tokens, pass, estimate));
    mdp_rank_cost total = {.flop = cost.flop, .bytes_read = cost.bytes_read};
    mdp_rank_cost least = {.flop = cost.flop / size, .bytes_read = cost.bytes_read / size};
    mdp_rank_cost most = {.flop = cost.flop_most, .bytes_read = cost.bytes_read_most};
    int64_t memory = estimate->memory + mdp_larger(cost.memory, merging);
    estimate->memory = mdp_larger(memory, others);
    if (limit > 0 && memory > limit) mdp_estimate_note_shortage(estimate, (mdp_shortage){.need = memory, .pass = pass});
    mdp_status status = mdp_session_add_costs(session, "merge, fits", cost.bytes_read, &total, &least, &most, estimate);
    if (status.code == MDP_OK && limit == 0) status = mdp_session_check_node(session, memory);
    return mdp_agree_all(session->comm, status);
}

/* ---- before ----------------------------------------------------------------------------------------------------- */

/* Bytes of merged experts but for their down projections, which a refit counts itself. */
static int64_t carried_bytes(const mdp_replaced *replaced) {
    int64_t sum = mdp_replaced_bytes(replaced), n_byte;
    for (int64_t i = 0; i < replaced->n; i++) {
        const mdp_array *down = &replaced->list[replaced->experts[i].array[MDP_PART_DOWN]];
        if (mdp_dtype_bytes(down->type, down->n_dim, down->shape, &n_byte)) sum -= n_byte;
    }
    return sum;
}

/* Neurons have biases of their own, of which nobody says what becomes of them. */
static mdp_status check_neurons(const mdp_session *session, const mdp_plan *plan) {
    for (int64_t i = 0; i < plan->n_layer; i++) {
        const mdp_expert *first = &session->model->layers[plan->layers[i].layer].moe.experts[0];
        for (int32_t j = 0; j < plan->layers[i].n_kept; j++) {
            if (!plan->layers[i].kept[j].takes_in || !first->gate_bias.tensor) continue;
            return MDP_ERROR(MDP_USAGE,
                             "--merge dern: experts of model_type %s have biases, with which neurons cannot go from "
                             "one to another; merge whole experts.",
                             session->model->model_type);
        }
    }
    return mdp_ok();
}

/* Local. */
static mdp_status add_costs(mdp_session *session, const mdp_plan *plan, bool carried, mdp_estimate *estimate,
                            int64_t *merging) {
    mdp_replaced *replaced = NULL;
    mdp_merge_cost cost;
    int size = session->layout->size;
    MDP_TRY(check_neurons(session, plan));
    MDP_TRY(mdp_merge_cost_of(session->model, plan, size, session->n_thread, &cost));
    MDP_TRY(mdp_replaced_list(session->model, plan, MDP_REPLACED_MERGED, &replaced));
    *merging = cost.memory;
    int64_t again = carried ? carried_bytes(replaced) : 0, n_byte = mdp_replaced_bytes(replaced),
            memory = session->at_start + session->beside + mdp_gemm_memory(session->gemm) + cost.memory;
    mdp_replaced_destroy(replaced);
    mdp_rank_cost total = {.flop = cost.flop, .bytes_read = cost.bytes_read, .bytes_written = n_byte};
    mdp_rank_cost least = {
        .flop = cost.flop / size, .bytes_read = cost.bytes_read / size, .bytes_written = n_byte / size};
    mdp_rank_cost most = {.flop = cost.flop_most, .bytes_read = cost.bytes_read_most, .bytes_written = n_byte / size};
    MDP_TRY(mdp_session_add_costs(session, "merge", cost.bytes_read, &total, &least, &most, estimate));
    estimate->bytes_written += n_byte + again;
    if (memory > estimate->memory) estimate->memory = memory;
    return mdp_session_check_node(session, memory);
}

mdp_status mdp_session_add_merge_all(mdp_session *session, const mdp_plan *plan, bool carried, mdp_estimate *estimate) {
    int64_t merging = 0;
    MDP_AGREE(session->comm, add_costs(session, plan, carried, estimate, &merging));
    return is_fitted(plan) ? add_fits_all(session, plan, merging, estimate) : mdp_ok();
}

/* ---- the merge -------------------------------------------------------------------------------------------------- */

static mdp_status name_all(const mdp_replaced *replaced, mdp_plan *plan) {
    for (int64_t i = 0; i < plan->n_layer; i++) {
        for (int32_t j = 0; j < plan->layers[i].n_kept; j++) {
            int64_t at = mdp_replaced_find(replaced, plan->layers[i].layer, j);
            if (at >= 0) MDP_TRY(mdp_made_name_arrays(replaced, at, &plan->layers[i].kept[j]));
        }
    }
    return mdp_ok();
}

static json_t *print_fit(const mdp_merge_fit *fit) {
    json_t *item = json_pack("{s:I, s:i, s:I, s:b}", "layer", (json_int_t)fit->layer, "expert", (int)fit->kept, "rows",
                             (json_int_t)fit->n_token, "fitted", fit->solved);
    if (!fit->solved) return item;
    mdp_json_put(&item, "lambda", json_real(fit->lambda));
    mdp_json_put(&item, "reciprocal_condition", json_real(fit->rcond));
    mdp_json_put(&item, "error_before", json_real(fit->before));
    mdp_json_put(&item, "error_after", json_real(fit->after));
    return item;
}

static json_t *print_fits(const mdp_session *session, const mdp_merge_fits *fits) {
    json_t *list = json_array();
    bool fixed = true;
    for (int64_t i = 0; i < fits->n; i++) {
        mdp_json_add(&list, print_fit(&fits->fits[i]));
        fixed = fixed && fits->fits[i].fixed;
    }
    return json_pack("{s:f, s:s, s:I, s:s, s:o}", "ridge", mdp_session_option(session, OPTION_MERGE_RIDGE)->real,
                     "tokens", session->tokens->fingerprint, "n_tokens", (json_int_t)session->tokens->n_token,
                     "reproducible", fixed ? "any-layout" : "per-layout", "experts", list);
}

/* fits may be NULL. The same on every rank. */
static mdp_status make_text(const mdp_session *session, const mdp_plan *plan, const mdp_replaced *replaced,
                            const mdp_merge_fits *fits, char **text) {
    mdp_plan *merged = NULL;
    MDP_TRY(mdp_plan_copy(plan, "the plan that is merged", &merged));
    mdp_status status = name_all(replaced, merged);
    if (status.code == MDP_OK) {
        json_t *made = json_pack("{s:s}", "compute", session->compute);
        if (session->resume) mdp_json_put(&made, "identity", json_string(session->resume->digest));
        if (fits) mdp_json_put(&made, "least_squares", print_fits(session, fits));
        mdp_json_put(&merged->recipe, "made", made);
        status = mdp_plan_print(merged, text);
    }
    mdp_plan_destroy(merged);
    return status;
}

/* Groups that few tokens reach. Rank 0 speaks. */
static void tell_fits(const mdp_session *session, const mdp_merge_fits *fits) {
    int64_t n_few = 0, n_thin = 0, n = 0;
    double before = 0.0, after = 0.0;
    for (int64_t i = 0; i < fits->n; i++) {
        const mdp_merge_fit *fit = &fits->fits[i];
        n_few += !fit->solved;
        n_thin += fit->solved && fit->n_token < fit->order;
        n += fit->solved;
        before += fit->before;
        after += fit->after;
    }
    if (n > 0)
        mdp_log_message(session->log, MDP_LEVEL_INFO,
                        "merge    %lld experts fitted: a mean of %.3f of what their members gave was lost, %.3f is now",
                        (long long)n, before / (double)n, after / (double)n);
    if (n_few > 0)
        mdp_log_message(session->log, MDP_LEVEL_WARN,
                        "merge: %lld of %lld experts keep the weighted sum of down projections, since fewer than %d "
                        "tokens reach their members; the plan lists them",
                        (long long)n_few, (long long)fits->n, MDP_MERGE_LEAST_ROWS);
    if (n_thin > 0)
        mdp_log_message(
            session->log, MDP_LEVEL_WARN,
            "merge: %lld of %lld experts are fitted to fewer tokens than they have neurons; more text would "
            "help",
            (long long)n_thin, (long long)fits->n);
}

/* Make what the plan merges, with or without a pass. Collective. */
static mdp_status perform_all(mdp_session *session, const mdp_plan *plan, mdp_replaced *replaced,
                              mdp_merge_fits **fits) {
    const mdp_merge_options options = {.n_thread = session->n_thread,
                                       .gemm = session->gemm,
                                       .log = session->log,
                                       .progress = true,
                                       .resume = session->resume,
                                       .profiles = session->profiles};
    const mdp_forward_options forward = mdp_session_forward_options(session);
    *fits = NULL;
    if (!is_fitted(plan))
        return mdp_merge_all(session->comm, session->model, session->reader, plan, replaced, &options);
    return mdp_merge_fit_all(session->comm, session->model, session->reader, session->tokens, plan, replaced,
                             mdp_session_option(session, OPTION_MERGE_RIDGE)->real, &options, &forward, fits);
}

mdp_status mdp_session_merge_all(mdp_session *session, const mdp_plan *plan, const char *published, mdp_replaced **made,
                                 char **text) {
    mdp_replaced *replaced = NULL;
    mdp_merge_fits *fits = NULL;
    *text = NULL;
    MDP_TRY(mdp_session_make_arrays_all(session, plan, MDP_REPLACED_MERGED, published, &replaced));
    mdp_status status = perform_all(session, plan, replaced, &fits);
    if (status.code == MDP_OK) status = mdp_agree_all(session->comm, make_text(session, plan, replaced, fits, text));
    if (status.code == MDP_OK && fits) tell_fits(session, fits);
    mdp_merge_fits_destroy(fits);
    if (status.code == MDP_OK) status = mdp_arrays_finish_all(session->comm, replaced->arrays);
    if (status.code == MDP_OK && made) status = mdp_session_reopen_arrays_all(session, published, replaced);
    if (status.code == MDP_OK && made)
        *made = replaced;
    else
        mdp_replaced_destroy(replaced);
    if (status.code != MDP_OK) {
        mdp_free(*text);
        *text = NULL;
    }
    return status;
}
