/* merge_cost.c - what a merge takes, from headers alone: the dealing of merge.c with bytes and operations in place of
 * the work. */
#include "pipeline/merge_run.h"

#include "mdp/narrow.h"

typedef struct costs {
    int n_rank;
    int64_t *bytes_read, *flop; /* [n_rank] */
} costs;

static int64_t share_bytes(const mdp_expert *expert, mdp_merge_share share) {
    if (share == MDP_SHARE_GATE) return mdp_matrix_bytes(&expert->gate);
    if (share == MDP_SHARE_UP) return mdp_matrix_bytes(&expert->up);
    if (share == MDP_SHARE_DOWN) return mdp_matrix_bytes(&expert->down);
    return mdp_matrix_bytes(&expert->gate_bias) + mdp_matrix_bytes(&expert->up_bias) +
           mdp_matrix_bytes(&expert->down_bias);
}

/* One scale for all rows: they are made twice. */
static int64_t times_made(const mdp_expert *expert) {
    return mdp_matrix_common_scales(&expert->down) > 0 ? 2 : 1;
}

static void add_matrices(const costs *sum, const mdp_moe *moe, const mdp_plan_expert *planned, int64_t n) {
    for (int share = 0; share < MDP_N_SHARE; share++) {
        int64_t turn =
            mdp_merge_turn(n, (mdp_merge_share)share, mdp_merge_heavy_shares(&moe->experts[planned->from[0]]));
        for (int32_t j = 0; j < planned->n_from; j++) {
            const mdp_expert *member = &moe->experts[planned->from[j]];
            sum->bytes_read[turn % sum->n_rank] += times_made(member) * share_bytes(member, (mdp_merge_share)share);
            if (share == MDP_SHARE_REST)
                sum->bytes_read[turn % sum->n_rank] += mdp_matrix_bytes(&moe->router) / moe->n_expert;
            else
                sum->flop[turn % sum->n_rank] += 2 * times_made(member) * member->gate.n_row * member->gate.n_col;
        }
    }
}

static void add_pairs(const costs *sum, const mdp_moe *moe, const mdp_plan_expert *planned, int64_t *pair) {
    for (int32_t j = 0; mdp_merge_is_aligned(planned) && j < planned->n_from; j++) {
        if (j == planned->dominant) continue;
        int rank = (int)((*pair)++ % sum->n_rank);
        for (int share = 0; share < MDP_SHARE_REST; share++)
            sum->bytes_read[rank] +=
                share_bytes(&moe->experts[planned->from[j]], (mdp_merge_share)share) +
                share_bytes(&moe->experts[planned->from[planned->dominant]], (mdp_merge_share)share);
        sum->flop[rank] += mdp_merge_align_flop(moe);
    }
}

/* Experts that take in neurons: pairs, and then each by itself, as many ranks have turns. */
static void add_taking(const costs *sum, const mdp_moe *moe, const mdp_plan_layer *planned, int n_thread,
                       mdp_merge_cost *out) {
    int64_t pair = 0, n = 0;
    for (int32_t i = 0; i < planned->n_dropped; i++) {
        for (int32_t j = 0; j < planned->n_kept; j++) {
            int rank = (int)(pair++ % sum->n_rank);
            const mdp_expert *kept = &moe->experts[planned->kept[j].from[0]];
            sum->flop[rank] += 4 * moe->d_ff * moe->d_ff * moe->router.n_col;
            sum->bytes_read[rank] += mdp_matrix_bytes(&kept->up) + mdp_matrix_bytes(&kept->down);
        }
    }
    for (int32_t j = 0; j < planned->n_kept; j++) {
        if (!planned->kept[j].takes_in) continue;
        int rank = (int)(n++ % sum->n_rank);
        sum->flop[rank] += mdp_merge_take_flop(moe, planned);
        for (int32_t i = 0; i <= planned->n_dropped; i++)
            for (int share = 0; share < MDP_SHARE_REST; share++)
                sum->bytes_read[rank] += share_bytes(&moe->experts[planned->kept[j].from[0]], (mdp_merge_share)share);
    }
    out->memory = mdp_larger(out->memory, mdp_merge_take_memory(moe, planned, n_thread));
}

static void add_layer(const costs *sum, const mdp_moe *moe, const mdp_plan_layer *planned, int n_thread,
                      mdp_merge_cost *out) {
    int64_t n = 0, pair = 0;
    if (mdp_merge_takes_in(planned)) add_taking(sum, moe, planned, n_thread, out);
    for (int32_t i = 0; i < planned->n_kept; i++) {
        const mdp_plan_expert *expert = &planned->kept[i];
        if (!mdp_merge_makes(expert) || expert->takes_in) continue;
        add_matrices(sum, moe, expert, n++);
        add_pairs(sum, moe, expert, &pair);
        int64_t orders = pair > 0 ? planned->n_expert * moe->d_ff * (int64_t)sizeof(int64_t) : 0;
        out->memory =
            mdp_larger(out->memory, orders + mdp_larger(mdp_merge_make_memory(moe),
                                                        pair > 0 ? mdp_merge_align_memory(moe, n_thread) : 0));
    }
}

mdp_status mdp_merge_cost_of(const mdp_model *model, const mdp_plan *plan, int n_rank, int n_thread,
                             mdp_merge_cost *out) {
    costs sum = {.n_rank = n_rank};
    *out = (mdp_merge_cost){0};
    mdp_status status = MDP_ALLOC(&sum.bytes_read, n_rank, "what ranks read");
    if (status.code == MDP_OK) status = MDP_ALLOC(&sum.flop, n_rank, "what ranks compute");
    for (int64_t i = 0; status.code == MDP_OK && i < plan->n_layer; i++)
        add_layer(&sum, &model->layers[plan->layers[i].layer].moe, &plan->layers[i], n_thread, out);
    for (int r = 0; status.code == MDP_OK && r < n_rank; r++) {
        out->bytes_read += sum.bytes_read[r];
        out->bytes_read_most = mdp_larger(out->bytes_read_most, sum.bytes_read[r]);
        out->flop += sum.flop[r];
        out->flop_most = mdp_larger(out->flop_most, sum.flop[r]);
    }
    mdp_free(sum.bytes_read);
    mdp_free(sum.flop);
    return status;
}
