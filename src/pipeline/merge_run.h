/* merge_run.h - one merge under way: what its layers, matrices and alignments share. */
#ifndef MDP_SRC_PIPELINE_MERGE_RUN_H
#define MDP_SRC_PIPELINE_MERGE_RUN_H

#include "mdp/merge.h"

typedef struct mdp_merge_run {
    const mdp_comm *comm;
    const mdp_model *model;
    mdp_reader *reader;
    const mdp_plan *plan;
    mdp_replaced *replaced;
    const mdp_merge_options *options;
    mdp_profile *profile;

    /* the layer at hand */
    const mdp_plan_layer *planned;
    const mdp_moe *moe;
    int64_t gap;    /* of the worst auction on this rank to the best there can be, in 1e-9 of that */
    int64_t *keys;  /* [dropped, d_ff] where their neurons go (merge_dern.c); NULL: nowhere */
    int64_t *order; /* [merged members of the layer, d_ff] the neuron of each that comes to a place; NULL: none moves */
} mdp_merge_run;

/* Is it an expert that is made? */
static inline bool mdp_merge_makes(const mdp_plan_expert *planned) {
    return planned->action == MDP_MERGE || planned->action == MDP_NEURONS;
}

/* A merged expert of the layer, or one that is cut: a merge of one member, some of whose neurons have a place. */
typedef struct mdp_merge_item {
    const mdp_merge_run *run;
    const mdp_plan_expert *planned;
    const mdp_replaced_expert *to;
    const int64_t *order;  /* [n_from, d_ff] of its members, or [neurons that stay]; NULL */
    const float *neurons;  /* [d_ff, 3 d_model] what [gate; up; down] of its neurons are, */
    const double *sizes;   /* [d_ff] times this; NULL: the sum of its members' */
    const double *of_rows; /* [n_from] what router rows are multiplied by; NULL: by the plan's rule */
} mdp_merge_item;

/* What of an expert is made in one go, by one rank. */
typedef enum mdp_merge_share {
    MDP_SHARE_GATE,
    MDP_SHARE_UP,
    MDP_SHARE_DOWN,
    MDP_SHARE_REST,
    MDP_N_SHARE
} mdp_merge_share;

/* ---- merge.c: a layer ---------------------------------------------------------------------------------------------
 */

/* Make the layer's merged experts, if it has any, and settle them. Collective (agrees). */
mdp_status mdp_merge_layer_all(mdp_merge_run *run, const mdp_plan_layer *planned);

/* ---- merge_expert.c: weighted sums of members ---------------------------------------------------------------------
 */

/* Shares of an expert beside MDP_SHARE_REST: gate and up are one where they are one tensor. */
static inline int mdp_merge_heavy_shares(const mdp_expert *expert) {
    return expert->gate.tensor == expert->up.tensor ? 2 : 3;
}
/* Whose turn a share of the layer's n-th merged expert is; n_heavy: of each of them. */
static inline int64_t mdp_merge_turn(int64_t n, mdp_merge_share share, int n_heavy) {
    if (share == MDP_SHARE_REST) return n;
    return n_heavy * n + (n_heavy == 2 ? share == MDP_SHARE_DOWN : (int64_t)share); /* up goes with gate */
}
/* Make a share and put it into the plan's arrays. MDP_SHARE_GATE has the up projection too where both are stored as one
 * tensor; MDP_SHARE_REST has biases and router rows. Local. */
mdp_status mdp_merge_make(const mdp_merge_item *item, mdp_merge_share share);
/* Bytes that this takes at most, over the experts of a layer. */
int64_t mdp_merge_make_memory(const mdp_moe *moe);

/* ---- merge_dern.c, merge_take.c: experts that take in neurons of dropped ones -------------------------------------
 */

bool mdp_merge_takes_in(const mdp_plan_layer *planned); /* does the layer have any? */
/* Fill run->keys where the layer has such experts. Collective (agrees). */
mdp_status mdp_merge_match_all(mdp_merge_run *run);
/* Make the layer's kept expert number `kept`, which takes in what the keys say, all of it. Local. */
mdp_status mdp_merge_take_in(const mdp_merge_run *run, int32_t kept);
/* Bytes of a rank, and operations and bytes read of one pair of a kept and a dropped expert, and of one expert that
 * takes in as many neurons as go to each on average. */
int64_t mdp_merge_take_memory(const mdp_moe *moe, const mdp_plan_layer *planned, int n_thread);
int64_t mdp_merge_take_flop(const mdp_moe *moe, const mdp_plan_layer *planned);

/* ---- merge_align.c: neurons of members in the order of the dominant one's ------------------------------------------
 */

/* Fill run->order for the layer's merged experts: each pair of a dominant and another member is matched by one rank.
 * Collective (agrees). */
mdp_status mdp_merge_align_all(mdp_merge_run *run);
/* Is it a merge in which neurons of members are matched? */
bool mdp_merge_is_aligned(const mdp_plan_expert *planned);
int64_t mdp_merge_align_memory(const mdp_moe *moe, int n_thread);
int64_t mdp_merge_align_flop(const mdp_moe *moe); /* of one pair */

#endif
