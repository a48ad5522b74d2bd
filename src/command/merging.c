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

mdp_status mdp_session_check_merge(const mdp_plan *plan) {
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
    if (mdp_plan_is_unmerged(plan)) return mdp_ok();
    return MDP_ERROR(MDP_USAGE, "%s: it merges or cuts no experts; there is nothing to do.", name);
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

/* Local. */
static mdp_status add_costs(mdp_session *session, const mdp_plan *plan, bool carried, mdp_estimate *estimate) {
    mdp_replaced *replaced = NULL;
    mdp_merge_cost cost;
    int size = session->layout->size;
    MDP_TRY(mdp_merge_cost_of(session->model, plan, size, session->n_thread, &cost));
    MDP_TRY(mdp_replaced_list(session->model, plan, MDP_REPLACED_MERGED, &replaced));
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
    return mdp_agree_all(session->comm, add_costs(session, plan, carried, estimate));
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

/* The same on every rank. */
static mdp_status make_text(const mdp_session *session, const mdp_plan *plan, const mdp_replaced *replaced,
                            char **text) {
    mdp_plan *merged = NULL;
    MDP_TRY(mdp_plan_copy(plan, "the plan that is merged", &merged));
    mdp_status status = name_all(replaced, merged);
    if (status.code == MDP_OK) {
        json_t *made = json_pack("{s:s}", "compute", session->compute);
        if (session->resume) mdp_json_put(&made, "identity", json_string(session->resume->digest));
        mdp_json_put(&merged->recipe, "made", made);
        status = mdp_plan_print(merged, text);
    }
    mdp_plan_destroy(merged);
    return status;
}

mdp_status mdp_session_merge_all(mdp_session *session, const mdp_plan *plan, const char *published, mdp_replaced **made,
                                 char **text) {
    mdp_replaced *replaced = NULL;
    const mdp_merge_options options = {.n_thread = session->n_thread,
                                       .gemm = session->gemm,
                                       .log = session->log,
                                       .progress = true,
                                       .resume = session->resume,
                                       .profiles = session->profiles};
    *text = NULL;
    MDP_TRY(mdp_session_make_arrays_all(session, plan, MDP_REPLACED_MERGED, published, &replaced));
    mdp_status status = mdp_merge_all(session->comm, session->model, session->reader, plan, replaced, &options);
    if (status.code == MDP_OK) status = mdp_agree_all(session->comm, make_text(session, plan, replaced, text));
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
