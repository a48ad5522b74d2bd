/* foresee.c - what a run will be, from headers alone: see foresee.h.
 *
 * Which experts stay decides little of what can be known: a plan by chance has as many experts in every layer as the
 * one to come, so the model seen through it does as much work, and the checkpoint that it makes has the same names and
 * shapes. It goes through the same steps as the real one: transform, layout of the files, costs. */
#include "command/foresee.h"
#include "command/cutting.h"
#include "command/decide.h"
#include "command/feasible.h"
#include "command/masking.h"
#include "command/merging.h"
#include "command/mtp.h"
#include "command/similar.h"
#include "command/subsets.h"
#include "command/widen.h"
#include "command/write.h"

#include <string.h>

/* What stands in for the plan, and what it makes. */
typedef struct stand_in {
    mdp_plan *plan;
    char *text;
    mdp_view *view;
    mdp_output *output;
} stand_in;

static void free_stand_in(stand_in *made) {
    mdp_plan_destroy(made->plan);
    mdp_free(made->text);
    mdp_view_destroy(made->view);
    mdp_output_destroy(made->output);
}

bool mdp_session_propagates(const mdp_session *session) {
    return mdp_session_option(session, OPTION_PROPAGATE)->integer == PROPAGATE_PRUNED;
}

bool mdp_session_evaluates(const mdp_session *session) {
    return mdp_session_option(session, OPTION_EVAL_TOKENS)->present ||
           mdp_session_option(session, OPTION_TASKS)->present;
}

/* Local; every rank makes the same. */
static mdp_status make_plan(const mdp_session *session, const mdp_budget_options *budget, mdp_plan **out) {
    mdp_plan_request request = {.criterion = mdp_criterion_find("random"),
                                .model = session->model,
                                .pruned_route =
                                    (mdp_pruned_route)mdp_session_option(session, OPTION_PRUNED_ROUTE)->integer,
                                .budget = *budget};
    mdp_mask_request mask;
    bool masks;
    MDP_TRY(mdp_session_mask_request(session, &masks, &mask));
    if (masks) request.mask = &mask;
    MDP_TRY(mdp_plan_make(&request, out));
    (*out)->widened = mdp_session_widens(session);
    return mdp_ok();
}

/* ---- passes ---------------------------------------------------------------------------------------------------- */

/* The model as it will be when so many rounds have decided. Local. */
static mdp_status view_round(const mdp_session *session, const mdp_budget_options *whole, int64_t round,
                             int64_t n_round, mdp_view **out) {
    int64_t n = mdp_census_of_model(session->model).n_layer;
    mdp_budget_layer *layers = NULL;
    mdp_keep_entry *list = NULL;
    mdp_plan *plan = NULL;
    mdp_status status = mdp_session_list_layers(session->model, NULL, n, &layers);
    if (status.code == MDP_OK) status = MDP_ALLOC(&list, n, "the list of a budget");
    if (status.code == MDP_OK) {
        mdp_budget_options budget = mdp_budget_of_round(layers, n, whole, round, n_round, list);
        status = make_plan(session, &budget, &plan);
    }
    if (status.code == MDP_OK) status = mdp_transform_view(session->model, plan, NULL, out);
    mdp_plan_destroy(plan);
    mdp_free(layers);
    mdp_free(list);
    return status;
}

/* What a round after the first observes: what the ones before it leave. Collective. */
static mdp_status add_round_all(mdp_session *session, const mdp_budget_options *budget, int64_t round, int64_t n_round,
                                mdp_estimate *estimate) {
    char name[64];
    mdp_view *view = NULL;
    mdp_status status = mdp_agree_all(session->comm, view_round(session, budget, round, n_round, &view));
    const mdp_view *views[1] = {view};
    snprintf(name, sizeof name, "observe, round %lld of %lld", (long long)round + 1, (long long)n_round);
    if (status.code == MDP_OK)
        status = mdp_session_add_pass_all(session, name, session->tokens, (mdp_pass){.n_stream = 1, .views = views},
                                          estimate);
    mdp_view_destroy(view);
    return status;
}

/* All forward passes, by what the model will be in them. Collective. */
static mdp_status add_passes_all(mdp_session *session, const mdp_budget_options *budget, int64_t n_round,
                                 const mdp_view *view, mdp_estimate *estimate) {
    const mdp_view *views[2] = {NULL, view}, *pruned[1] = {view};
    bool propagates = mdp_session_propagates(session);
    const mdp_criterion *criterion = mdp_session_criterion(session);
    mdp_similarity_request similarity;
    mdp_subset_request subsets;
    MDP_AGREE(session->comm, mdp_session_similarity(session, &similarity));
    MDP_AGREE(session->comm, mdp_session_subset_request(session, budget, &subsets));
    mdp_pass observe = {.n_stream = 1, .redo_block = propagates, .views = propagates ? pruned : NULL};
    mdp_similarity_enlarge(session->model, &similarity, session->tokens->n_token, session->layout->size, &observe);
    mdp_pass both = mdp_loss_pass(2, views); /* original and pruned */
    MDP_TRY(mdp_session_add_pass_all(session, "observe", session->tokens, observe, estimate));
    MDP_TRY(mdp_session_add_subsets_all(session, &subsets, estimate));
    for (int64_t r = 1; r < n_round; r++) MDP_TRY(add_round_all(session, budget, r, n_round, estimate));
    if (criterion->own_pass)
        MDP_TRY(
            mdp_session_add_pass_all(session, criterion->name, session->tokens, (mdp_pass){.n_stream = 1}, estimate));
    if (session->eval_tokens) MDP_TRY(mdp_session_add_pass_all(session, "eval", session->eval_tokens, both, estimate));
    return session->tasks ? mdp_session_add_pass_all(session, "tasks", session->tasks->tokens, both, estimate)
                          : mdp_ok();
}

/* ---- merges ----------------------------------------------------------------------------------------------------- */

/* The expert takes another in, with equal weights. */
static mdp_status join(mdp_expert_t other, const mdp_merge_request *merge, mdp_plan_expert *expert) {
    int32_t at = expert->n_from;
    MDP_TRY(MDP_GROW(&expert->from, expert->n_from, expert->n_from + 1, "a merged expert"));
    MDP_TRY(MDP_GROW(&expert->weights, expert->weights ? expert->n_from : 0, expert->n_from + 1, "a merged expert"));
    for (; at > 0 && expert->from[at - 1] > other; at--) expert->from[at] = expert->from[at - 1];
    expert->from[at] = other;
    expert->n_from++;
    for (int32_t i = 0; i < expert->n_from; i++) expert->weights[i] = 1.0 / expert->n_from;
    expert->action = MDP_MERGE;
    expert->align = merge->align;
    expert->fitted = merge->weights == MDP_MERGE_LEAST_SQUARES;
    return mdp_ok();
}

/* Those that go join those that stay, in turn. */
static mdp_status join_dropped(const mdp_merge_request *merge, mdp_plan *plan) {
    for (int64_t i = 0; i < plan->n_layer; i++) {
        mdp_plan_layer *layer = &plan->layers[i];
        if (merge->max_group > 0 && (int64_t)layer->n_kept * merge->max_group < layer->n_expert)
            return MDP_ERROR(MDP_USAGE, "--max-group %d: %d experts of layer %lld cannot take in all %d.",
                             (int)merge->max_group, (int)layer->n_kept, (long long)layer->layer, (int)layer->n_expert);
        if (!mdp_merge_has_groups(merge)) {
            MDP_TRY(mdp_plan_take_in(merge->alpha, layer));
            continue;
        }
        for (int32_t j = 0; j < layer->n_dropped; j++)
            MDP_TRY(join(layer->dropped[j], merge, &layer->kept[j % layer->n_kept]));
        layer->n_dropped = 0;
    }
    return mdp_ok();
}

/* Collective. */
static mdp_status add_merge_all(mdp_session *session, const mdp_plan *dropping, bool carried, mdp_estimate *estimate) {
    bool wanted;
    mdp_merge_request merge;
    mdp_plan *plan = NULL;
    if (mdp_plan_width(dropping) > 0) return mdp_session_add_merge_all(session, dropping, carried, estimate);
    mdp_status status = mdp_session_merge_request(session, &wanted, &merge);
    if (status.code == MDP_OK) status = mdp_session_will_merge(session, &wanted);
    if (status.code == MDP_OK && wanted) status = mdp_plan_copy(dropping, "the plan that is foretold", &plan);
    if (status.code == MDP_OK && wanted) status = join_dropped(&merge, plan);
    status = mdp_agree_all(session->comm, status);
    if (status.code == MDP_OK && wanted) status = mdp_session_add_merge_all(session, plan, carried, estimate);
    mdp_plan_destroy(plan);
    return status;
}

/* ---- the whole ------------------------------------------------------------------------------------------------- */

static mdp_status plan_all(mdp_session *session, const mdp_budget_options *budget, stand_in *made) {
    mdp_status status = make_plan(session, budget, &made->plan);
    if (status.code == MDP_OK) status = mdp_session_pretend_cut(session, made->plan);
    if (status.code == MDP_OK) status = mdp_plan_print(made->plan, &made->text);
    if (status.code == MDP_OK) status = mdp_replaced_stand_in(session->model, made->plan, &session->replaced);
    if (status.code == MDP_OK) status = mdp_transform_view(session->model, made->plan, session->replaced, &made->view);
    MDP_AGREE(session->comm, status);
    return mdp_session_plan_mtp_all(session, made->plan, true);
}

/* Local. */
static mdp_status describe(const mdp_session *session, const mdp_budget_options *budget, stand_in *made) {
    char *provenance = NULL;
    mdp_extra extra;
    MDP_TRY(mdp_session_check_budget_fits(session, budget, made->plan));
    MDP_TRY(mdp_session_provenance(session, made->plan, NULL, &provenance));
    mdp_status status =
        mdp_transform_output(session->model, made->plan, session->replaced, mdp_session_extra(session, &extra),
                             made->text, provenance, MDP_UNEQUAL_STACKED, &made->output);
    mdp_free(provenance);
    return status.code == MDP_OK ? mdp_session_check_result(session) : status;
}

mdp_status mdp_session_foresee_all(mdp_session *session, const mdp_budget_options *budget, int64_t n_round,
                                   mdp_refit_options *refit, mdp_estimate *estimate) {
    stand_in made = {0};
    int64_t n_norm = 0;
    mdp_status status = plan_all(session, budget, &made);
    if (status.code == MDP_OK) status = mdp_agree_all(session->comm, describe(session, budget, &made));
    if (status.code == MDP_OK) status = add_passes_all(session, budget, n_round, made.view, estimate);
    if (status.code == MDP_OK) status = add_merge_all(session, made.plan, refit != NULL, estimate);
    if (status.code == MDP_OK && refit) status = mdp_session_add_refit_all(session, made.plan, refit, estimate);
    if (status.code == MDP_OK) status = mdp_session_add_writes_all(session, made.plan, made.output, estimate);
    if (status.code == MDP_OK)
        status = mdp_agree_all(session->comm, mdp_session_mask_bytes(session, made.plan, &n_norm));
    estimate->bytes_written += n_norm;
    free_stand_in(&made);
    mdp_replaced_destroy(session->replaced); /* that stood in */
    session->replaced = NULL;
    MDP_TRY(status);
    return mdp_agree_all(session->comm, mdp_session_check_memory(session, estimate));
}
