/* proficiency.c - progressive dropping by windows, one layer at a time (score.h; after TSEP, arXiv 2206.00277).
 *
 * In: router logits of the original model, in token order. Out: which experts stay, and their mean share. The logits of
 * experts that are gone are left out, and the family's own rule chooses among the rest. A token's weights are added
 * exactly and every rank takes the same decisions, compared as 30 bits like all decisions. */
#include "mdp/score.h"

#include <string.h>

mdp_status mdp_proficiency_new(mdp_reader *reader, const mdp_moe *moe, int32_t keep, mdp_proficiency **out) {
    mdp_proficiency *p = NULL;
    mdp_status status;
    *out = NULL;
    MDP_TRY(MDP_ALLOC(&p, 1, "proficiencies"));
    p->rule = moe->rule;
    p->n_expert = p->n_alive = moe->n_expert;
    p->top_k = moe->top_k;
    p->keep = keep;
    MDP_TRY_GOTO(status, fail, MDP_ALLOC(&p->alive, p->n_expert, "proficiencies"));
    MDP_TRY_GOTO(status, fail, MDP_ALLOC(&p->share_sum, p->n_expert, "proficiencies"));
    MDP_TRY_GOTO(status, fail, MDP_ALLOC(&p->score, p->n_expert, "proficiencies"));
    MDP_TRY_GOTO(status, fail, MDP_ALLOC(&p->gate_sum, p->n_expert, "proficiencies"));
    if (moe->choice_bias.tensor) MDP_TRY_GOTO(status, fail, mdp_matrix_load(reader, &moe->choice_bias, &p->bias));
    for (mdp_expert_t e = 0; e < p->n_expert; e++) p->alive[e] = e;
    *out = p;
    return mdp_ok();
fail:
    mdp_proficiency_destroy(p);
    return status;
}

void mdp_proficiency_destroy(mdp_proficiency *proficiency) {
    if (!proficiency) return;
    mdp_free(proficiency->bias);
    mdp_free(proficiency->alive);
    mdp_free(proficiency->share_sum);
    mdp_free(proficiency->score);
    mdp_free(proficiency->gate_sum);
    mdp_free(proficiency);
}

/* Room for one token. */
typedef struct scratch {
    double *logits; /* [n_alive] */
    double *choice; /* [2 n_alive] */
    mdp_expert_t *index;
    float *weight; /* both [top_k] */
} scratch;

static mdp_status add_token(mdp_proficiency *p, const double *logits, const scratch *room) {
    for (int32_t i = 0; i < p->n_alive; i++) room->logits[i] = logits[p->alive[i]];
    mdp_route_set set = {.n = p->n_alive, .source = p->alive, .bias = p->bias};
    mdp_route_logits(&p->rule, &set, room->logits, p->top_k, room->choice, room->index, room->weight);
    for (int32_t j = 0; j < p->top_k; j++) {
        mdp_expert_t expert = p->alive[room->index[j]];
        if (!mdp_exact_add(&p->gate_sum[expert], (double)room->weight[j]))
            return MDP_ERROR(MDP_BAD_INPUT,
                             "the routing weight of expert %d is %g; weights or activations are not finite.",
                             (int)expert, (double)room->weight[j]);
    }
    return mdp_ok();
}

mdp_status mdp_proficiency_add(mdp_proficiency *proficiency, const double *logits, int64_t n_token) {
    scratch room = {NULL, NULL, NULL, NULL};
    mdp_status status = MDP_ALLOC(&room.logits, proficiency->n_alive, "logits of a token");
    if (status.code == MDP_OK) status = MDP_ALLOC(&room.choice, 2 * proficiency->n_alive, "logits of a token");
    if (status.code == MDP_OK) status = MDP_ALLOC(&room.index, proficiency->top_k, "routes of a token");
    if (status.code == MDP_OK) status = MDP_ALLOC(&room.weight, proficiency->top_k, "routes of a token");
    for (int64_t t = 0; t < n_token && status.code == MDP_OK; t++)
        status = add_token(proficiency, logits + t * proficiency->n_expert, &room);
    mdp_free(room.logits);
    mdp_free(room.choice);
    mdp_free(room.index);
    mdp_free(room.weight);
    return status;
}

/* Has the group of an expert more than its part of what is kept? */
static bool may_go(const mdp_proficiency *p, mdp_expert_t expert) {
    int32_t size = p->rule.n_group > 1 ? p->rule.group_size : p->n_expert, n = 0;
    for (int32_t i = 0; i < p->n_alive; i++) n += p->alive[i] / size == expert / size;
    return n > p->keep / (p->rule.n_group > 1 ? p->rule.n_group : 1);
}

/* Position in `alive` of the smallest score among those that may go; of equal ones the lowest expert. */
static int32_t weakest(const mdp_proficiency *p) {
    int32_t at = -1;
    for (int32_t i = 0; i < p->n_alive; i++) {
        if (!may_go(p, p->alive[i])) continue;
        if (at < 0 || mdp_round30(p->score[p->alive[i]]) < mdp_round30(p->score[p->alive[at]])) at = i;
    }
    return at;
}

static void drop(mdp_proficiency *p, int32_t at) {
    p->n_alive--;
    memmove(p->alive + at, p->alive + at + 1, (size_t)(p->n_alive - at) * sizeof *p->alive);
}

mdp_status mdp_proficiency_close_window_all(const mdp_comm *comm, mdp_proficiency *p) {
    mdp_exact total = {{0}};
    for (mdp_expert_t e = 0; e < p->n_expert; e++) mdp_exact_normalise(&p->gate_sum[e]);
    MDP_TRY(mdp_sum_i64_all(comm, &p->gate_sum[0].limb[0], (int64_t)p->n_expert * MDP_LIMBS));
    for (mdp_expert_t e = 0; e < p->n_expert; e++) {
        for (int i = 0; i < MDP_LIMBS; i++) total.limb[i] += p->gate_sum[e].limb[i];
    }
    double all = mdp_exact_value(&total);
    p->n_window++;
    for (int32_t i = 0; i < p->n_alive; i++) {
        mdp_expert_t e = p->alive[i];
        if (all > 0.0) p->share_sum[e] += mdp_exact_value(&p->gate_sum[e]) / all;
        p->score[e] = p->share_sum[e] / (double)p->n_window;
    }
    memset(p->gate_sum, 0, (size_t)p->n_expert * sizeof *p->gate_sum);
    while (p->n_alive > p->keep) {
        int32_t at = weakest(p);
        if (mdp_round30(p->score[p->alive[at]]) >= mdp_round30(MDP_PROFICIENCY_BETA / p->n_alive)) break;
        drop(p, at);
    }
    return mdp_ok();
}

void mdp_proficiency_trim(mdp_proficiency *proficiency) {
    while (proficiency->n_alive > proficiency->keep) drop(proficiency, weakest(proficiency));
}
