/* merge_align.c - which neuron of a member answers to which of the dominant one (match.h): each pair of experts is
 * matched by one rank. */
#include "pipeline/merge_run.h"

#include "mdp/match.h"

bool mdp_merge_is_aligned(const mdp_plan_expert *planned) {
    return planned->action == MDP_MERGE && planned->align == MDP_ALIGN_WEIGHT;
}

static mdp_status align(mdp_merge_run *run, mdp_expert_t dominant, mdp_expert_t member, int64_t *order) {
    const mdp_expert *one = &run->moe->experts[dominant];
    mdp_match match = {
        .reader = run->reader, .gemm = run->options->gemm, .n_thread = run->options->n_thread, .f = one->gate.n_row};
    mdp_status status = mdp_match_begin(&match);
    if (status.code == MDP_OK) status = mdp_match_add_weights(&match, one, &run->moe->experts[member]);
    if (status.code == MDP_OK) status = mdp_match_solve(&match, order);
    mdp_profile_flop(run->profile, mdp_merge_align_flop(run->moe));
    if (status.code == MDP_OK) run->gap = mdp_larger(run->gap, (int64_t)(match.excess * 1e9));
    mdp_match_clear(&match);
    return status;
}

/* ---- a layer ---------------------------------------------------------------------------------------------------- */

/* Members of the layer's merged experts; 0: none is aligned. */
static int64_t count_members(const mdp_plan_layer *planned) {
    int64_t n = 0;
    bool any = false;
    for (int32_t i = 0; i < planned->n_kept; i++) {
        if (planned->kept[i].action != MDP_MERGE) continue;
        n += planned->kept[i].n_from;
        any = any || mdp_merge_is_aligned(&planned->kept[i]);
    }
    return any ? n : 0;
}

/* This rank's pairs; what others do is 0. Rank 0 has the dominant ones, whose neurons stay. Local. */
static mdp_status align_own(mdp_merge_run *run) {
    int64_t *order = run->order, pair = 0, f = run->moe->d_ff;
    for (int32_t i = 0; i < run->planned->n_kept; i++) {
        const mdp_plan_expert *planned = &run->planned->kept[i];
        if (planned->action != MDP_MERGE) continue;
        for (int32_t j = 0; j < planned->n_from; j++, order += f) {
            if (!mdp_merge_is_aligned(planned)) continue;
            if (j == planned->dominant) {
                for (int64_t c = 0; run->comm->rank == 0 && c < f; c++) order[c] = c;
            } else if (pair++ % run->comm->size == run->comm->rank) {
                MDP_TRY(align(run, planned->from[planned->dominant], planned->from[j], order));
            }
        }
    }
    return mdp_ok();
}

mdp_status mdp_merge_align_all(mdp_merge_run *run) {
    int64_t n = count_members(run->planned) * run->moe->d_ff;
    if (n == 0) return mdp_ok();
    MDP_AGREE(run->comm, MDP_ALLOC(&run->order, n, "the order of neurons"));
    run->gap = 0;
    MDP_AGREE(run->comm, align_own(run));
    MDP_TRY(mdp_max_i64_all(run->comm, &run->gap, 1));
    if (run->moe->d_ff > MDP_MATCH_EXACT)
        mdp_log_message(run->options->log, MDP_LEVEL_DEBUG,
                        "merge    layer %lld: neurons match to within %.2g of the best", (long long)run->planned->layer,
                        (double)run->gap * 1e-9);
    return mdp_sum_i64_all(run->comm, run->order, n);
}

int64_t mdp_merge_align_memory(const mdp_moe *moe, int n_thread) {
    return mdp_match_memory(moe->d_ff, moe->router.n_col, n_thread);
}

int64_t mdp_merge_align_flop(const mdp_moe *moe) {
    return mdp_match_flop(moe->d_ff, moe->router.n_col);
}
