/* branches.c - views of layers, and residual streams that part where they first differ.
 *
 * Streams share one branch until the first layer in which their views differ: there, after the common attention, the
 * branch forks. */
#include "engine/engine.h"

#include <string.h>

void mdp_view_destroy(mdp_view *view) {
    if (!view) return;
    mdp_free(view->layers);
    mdp_free(view->memory);
    mdp_free(view->zeros);
    mdp_free(view->made);
    mdp_free(view->experts);
    mdp_free(view);
}

mdp_layer_view mdp_view_layer(const mdp_model *model, const mdp_view *view, int64_t layer) {
    const mdp_moe *moe = &model->layers[layer].moe;
    if (view && view->layers[layer].n_expert > 0) return view->layers[layer];
    return (mdp_layer_view){.n_expert = moe->n_expert, .top_k = moe->top_k, .source = NULL};
}

mdp_layer_view mdp_engine_view(const mdp_engine *engine, int stream, int64_t layer) {
    return mdp_view_layer(engine->model, engine->views ? engine->views[stream] : NULL, layer);
}

bool mdp_view_is_same(const mdp_layer_view *a, const mdp_layer_view *b) {
    if (a->n_expert != b->n_expert || a->top_k != b->top_k) return false;
    if (mdp_view_used(a) != mdp_view_used(b)) return false;
    for (int32_t e = 0; e < a->n_expert; e++) {
        if ((a->source ? a->source[e] : e) != (b->source ? b->source[e] : e)) return false;
        if ((a->zero && a->zero[e]) != (b->zero && b->zero[e])) return false;
        if ((a->made ? a->made[e] : NULL) != (b->made ? b->made[e] : NULL)) return false;
    }
    return true;
}

/* The branch that `stream`, so far in branch `old`, joins at this layer: `old` itself while it agrees with its leader,
 * a branch that parted from `old` here with the same view, or a new copy. */
static mdp_status join_branch(mdp_engine *engine, int stream, int old, int first_new, int64_t layer, int *out) {
    mdp_layer_view own = mdp_engine_view(engine, stream, layer);
    mdp_layer_view other = mdp_engine_view(engine, engine->branches[old].leader, layer);
    *out = old;
    if (mdp_view_is_same(&own, &other)) return mdp_ok();
    for (int s = first_new; s < engine->n_branch; s++) {
        other = mdp_engine_view(engine, engine->branches[s].leader, layer);
        *out = s;
        if (engine->branches[s].origin == old && mdp_view_is_same(&own, &other)) return mdp_ok();
    }
    int64_t n = engine->batch.n_token * engine->model->d_model;
    mdp_branch *fork = &engine->branches[engine->n_branch];
    MDP_TRY(MDP_ALLOC(&fork->x, n, "the residual stream"));
    memcpy(fork->x, engine->branches[old].x, (size_t)n * sizeof(float));
    fork->leader = stream;
    fork->origin = old;
    *out = engine->n_branch++;
    return mdp_ok();
}

mdp_status mdp_branches_fork(mdp_engine *engine, int64_t layer) {
    int first_new = engine->n_branch;
    for (int stream = 0; stream < engine->n_stream; stream++) {
        int *branch = &engine->stream_branch[stream];
        MDP_TRY(join_branch(engine, stream, *branch, first_new, layer, branch));
    }
    return mdp_ok();
}
