/* roster.c - the experts of a layer in one numbering, for all views: tiles of one number share panels, whichever views
 * their rows are of. */
#include "engine/roster.h"

static const mdp_expert *made_by(const mdp_layer_view *view, mdp_expert_t e) {
    return view->made ? view->made[e] : NULL;
}

static int32_t count_made(const mdp_layer_view *view) {
    int32_t n = 0;
    for (int32_t e = 0; e < view->n_expert; e++) n += made_by(view, e) != NULL;
    return n;
}

int32_t mdp_roster_most(const mdp_model *model, int64_t layer, const mdp_view *const *views, int n_view) {
    int32_t n = model->layers[layer].moe.n_expert;
    for (int v = 0; views && v < n_view; v++)
        if (views[v]) n += count_made(&views[v]->layers[layer]);
    return n;
}

/* The number of an expert that a view makes: that of the same object, or a new one. */
static mdp_expert_t find(mdp_roster *roster, int32_t n_model, const mdp_expert *expert, mdp_expert_t source) {
    for (int32_t i = n_model; i < roster->n; i++)
        if (roster->experts[i] == expert) return i;
    roster->experts[roster->n] = expert;
    roster->number[roster->n] = source;
    return roster->n++;
}

static mdp_status fill(const mdp_moe *moe, const mdp_layer_view *views, int n_view, mdp_roster *out) {
    int64_t n_index = 0, n_most = moe->n_expert;
    for (int v = 0; v < n_view; v++) {
        n_index += views[v].n_expert;
        n_most += count_made(&views[v]);
    }
    MDP_TRY(MDP_ALLOC(&out->experts, n_most, "the experts of a layer"));
    MDP_TRY(MDP_ALLOC(&out->number, n_most, "the experts of a layer"));
    MDP_TRY(MDP_ALLOC(&out->first, n_view + 1, "the experts of a layer"));
    MDP_TRY(MDP_ALLOC(&out->index, n_index, "the experts of a layer"));
    for (mdp_expert_t e = 0; e < moe->n_expert; e++) {
        out->experts[e] = &moe->experts[e];
        out->number[e] = e;
    }
    out->n = moe->n_expert;
    for (int v = 0; v < n_view; v++) {
        out->first[v + 1] = out->first[v] + views[v].n_expert;
        for (mdp_expert_t e = 0; e < views[v].n_expert; e++) {
            mdp_expert_t source = views[v].source ? views[v].source[e] : e;
            const mdp_expert *made = made_by(&views[v], e);
            out->index[out->first[v] + e] = made ? find(out, moe->n_expert, made, source) : source;
        }
    }
    for (int32_t i = 0; i < out->n; i++)
        if (out->experts[i]->gate.n_row > out->largest_ff) out->largest_ff = out->experts[i]->gate.n_row;
    return mdp_ok();
}

mdp_status mdp_roster_new(const mdp_moe *moe, const mdp_layer_view *views, int n_view, mdp_roster *out) {
    *out = (mdp_roster){0};
    mdp_status status = fill(moe, views, n_view, out);
    if (status.code != MDP_OK) mdp_roster_clear(out);
    return status;
}

void mdp_roster_clear(mdp_roster *roster) {
    mdp_free(roster->experts);
    mdp_free(roster->number);
    mdp_free(roster->first);
    mdp_free(roster->index);
    *roster = (mdp_roster){0};
}
