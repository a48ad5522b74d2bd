/* router_rows.c - the rows of a layer's router: the model's, then those of experts that views make with one of their
 * own.
 *
 * Not finite values are refused, since they would silently send every token to one expert. */
#include "engine/router.h"

#include <math.h>
#include <string.h>

static mdp_status check(const mdp_engine *engine, int64_t layer, const mdp_matrix *values, mdp_expert_t first,
                        int64_t n_each, const float *found) {
    for (int64_t i = 0; i < values->n_row * values->n_col; i++) {
        if (isfinite(found[i])) continue;
        return MDP_ERROR(MDP_BAD_INPUT,
                         "%s: layer %lld: the router's row of expert %lld holds %s ('%s'); the checkpoint is damaged",
                         engine->model->catalogue->path, (long long)layer, (long long)(first + i / n_each),
                         isnan(found[i]) ? "a NaN" : "an infinity", values->tensor->name);
    }
    return mdp_ok();
}

static const mdp_expert *made_by(const mdp_layer_view *view, mdp_expert_t e) {
    const mdp_expert *made = view->made ? view->made[e] : NULL;
    return made && made->router.tensor ? made : NULL;
}

/* One kind of rows, n_each values for each expert; `of_made`: where that of a made expert stands in mdp_expert. */
static mdp_status load(mdp_engine *engine, int64_t layer, const mdp_matrix *values, int64_t n_each, size_t of_made,
                       int64_t n_row, float **out) {
    int64_t at = engine->model->layers[layer].moe.n_expert;
    *out = NULL;
    if (!values->tensor) return mdp_ok();
    MDP_TRY(mdp_engine_load(engine, values, out));
    MDP_TRY(check(engine, layer, values, 0, n_each, *out));
    if (n_row == at) return mdp_ok();
    MDP_TRY(MDP_GROW(out, at * n_each, n_row * n_each, "rows of a router"));
    for (int s = 0; s < engine->n_branch; s++) {
        mdp_layer_view view = mdp_engine_view(engine, engine->branches[s].leader, layer);
        for (mdp_expert_t e = 0; e < view.n_expert; e++) {
            const mdp_expert *made = made_by(&view, e);
            if (!made) continue;
            float *own = NULL;
            const mdp_matrix *row = (const mdp_matrix *)(const void *)((const char *)made + of_made);
            mdp_status status = mdp_engine_load(engine, row, &own);
            if (status.code == MDP_OK) status = check(engine, layer, row, e, n_each, own);
            if (status.code == MDP_OK) memcpy(*out + at++ * n_each, own, (size_t)n_each * sizeof *own);
            mdp_free(own);
            MDP_TRY(status);
        }
    }
    return mdp_ok();
}

/* Where the rows of each branch's experts are; *n_row: of all. */
static mdp_status number(mdp_engine *engine, int64_t layer, int64_t *n_row) {
    *n_row = engine->model->layers[layer].moe.n_expert;
    for (int s = 0; s < engine->n_branch; s++) {
        mdp_branch *branch = &engine->branches[s];
        mdp_layer_view view = mdp_engine_view(engine, branch->leader, layer);
        mdp_free(branch->row);
        branch->row = NULL;
        if (!view.made) continue;
        MDP_TRY(MDP_ALLOC(&branch->row, view.n_expert, "rows of a router"));
        for (mdp_expert_t e = 0; e < view.n_expert; e++)
            branch->row[e] = made_by(&view, e) ? (int32_t)(*n_row)++ : view.source ? view.source[e] : e;
    }
    return mdp_ok();
}

mdp_status mdp_router_rows_load(mdp_engine *engine, int64_t layer, const float *norm, mdp_router_rows *out) {
    const mdp_moe *moe = &engine->model->layers[layer].moe;
    int64_t n_row;
    *out = (mdp_router_rows){.norm = norm};
    MDP_TRY(number(engine, layer, &n_row));
    MDP_TRY(
        load(engine, layer, &moe->router, engine->model->d_model, offsetof(mdp_expert, router), n_row, &out->router));
    MDP_TRY(load(engine, layer, &moe->router_bias, 1, offsetof(mdp_expert, router_bias), n_row, &out->logit_bias));
    return load(engine, layer, &moe->choice_bias, 1, offsetof(mdp_expert, choice_bias), n_row, &out->bias);
}

void mdp_router_rows_free(mdp_router_rows *rows) {
    mdp_free(rows->router);
    mdp_free(rows->logit_bias);
    mdp_free(rows->bias);
    *rows = (mdp_router_rows){0};
}
