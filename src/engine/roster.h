/* roster.h - who computes in a layer: the model's experts, then those that views make. */
#ifndef MDP_SRC_ENGINE_ROSTER_H
#define MDP_SRC_ENGINE_ROSTER_H

#include "mdp/engine.h"

typedef struct mdp_roster {
    int32_t n;
    const mdp_expert **experts; /* [n] borrowed */
    mdp_expert_t *number;       /* [n] in the model; of a made one, that of its router row */
    int64_t *first;             /* [n_view + 1] into index */
    mdp_expert_t *index;        /* of each view's experts, one view after the other: who computes them */
    int64_t largest_ff;
} mdp_roster;

/* Of a layer in n_view views. An expert that several views make is one as long as it is the same object. Local. */
mdp_status mdp_roster_new(const mdp_moe *moe, const mdp_layer_view *views, int n_view, mdp_roster *out);
void mdp_roster_clear(mdp_roster *roster);
/* Who computes expert `index` of view number `view`. */
static inline mdp_expert_t mdp_roster_of(const mdp_roster *roster, int view, mdp_expert_t index) {
    return roster->index[roster->first[view] + index];
}
/* The most that a layer's roster can have in any pass with these views (NULL: none). */
int32_t mdp_roster_most(const mdp_model *model, int64_t layer, const mdp_view *const *views, int n_view);

#endif
