/* refit_system.c - how the system of a layer is solved, and what that takes: known from the number of its experts and
 * of their tokens. */
#include "pipeline/refit_run.h"

#define UNEVEN 1.5 /* tokens of a busy expert / of one among equals */

static mdp_fit_mode forced(mdp_refit_mode mode) {
    if (mode == MDP_REFIT_SWEEPS) return MDP_FIT_SWEEPS;
    return mode == MDP_REFIT_DIAGONAL ? MDP_FIT_DIAGONAL : MDP_FIT_JOINT;
}

mdp_refit_mode mdp_refit_mode_of(mdp_fit_mode mode) {
    static const mdp_refit_mode modes[] = {[MDP_FIT_JOINT] = MDP_REFIT_JOINT,
                                           [MDP_FIT_SWEEPS] = MDP_REFIT_SWEEPS,
                                           [MDP_FIT_DIAGONAL] = MDP_REFIT_DIAGONAL};
    return modes[mode];
}

mdp_refit_size mdp_refit_size_of(int n_rank, int n_thread, const mdp_moe *moe, const mdp_plan *plan,
                                 const mdp_tokens *tokens, const mdp_refit_options *options, int32_t n_side) {
    int64_t cut = mdp_plan_width(plan);
    return (mdp_refit_size){.n_rank = n_rank,
                            .n_thread = n_thread,
                            .n_set = mdp_refit_count_sets(tokens, options),
                            .n_side = n_side,
                            .width = cut > 0 ? cut : moe->experts[0].gate.n_row,
                            .n_token = tokens->n_token,
                            .unit = mdp_refit_unit(moe),
                            .chooses = options->ridge == 0.0};
}

/* ---- one layer ------------------------------------------------------------------------------------------------- */

/* Bytes of a rank while rows are added, and while what they came to is solved. */
static mdp_status weigh(const mdp_refit_size *size, const mdp_model *model, const int64_t *rows, int64_t widest,
                        mdp_refit_system *out) {
    int32_t n_side = size->n_side;
    int64_t *in_call = NULL, most = 0, all = 0;
    int64_t block = size->n_token < MDP_BLOCK_TOKENS ? size->n_token : MDP_BLOCK_TOKENS;
    MDP_TRY(MDP_ALLOC(&in_call, n_side + 1, "rows of experts"));
    for (int32_t s = 0; s < n_side; s++)
        in_call[s] = (int64_t)((double)rows[(int64_t)s * n_side + s] / (double)size->n_token * (double)block) + 1;
    in_call[n_side] = block;
    for (int32_t s = 0; s < n_side; s++) all += in_call[s];
    all = (all * widest + block * model->d_model) * (int64_t)sizeof(float);
    int64_t factored = out->mode == MDP_FIT_JOINT ? out->order : widest,
            n_factor = out->mode == MDP_FIT_SWEEPS ? n_side : 1, columns = 0, first, n;
    out->fixed = mdp_grid_is_fixed(factored, MDP_SPD_ALONE, size->n_rank);
    mdp_fit_share(model->d_model, size->unit, size->n_rank, 0, &first, &columns);
    for (int r = 1; r < size->n_rank; r++) {
        mdp_fit_share(model->d_model, size->unit, size->n_rank, r, &first, &n);
        columns = n > columns ? n : columns;
    }
    int64_t solved = n_factor * mdp_grid_memory(factored, MDP_SPD_ALONE, model->d_model, size->n_rank) +
                     columns * out->order * (size->chooses ? 3 : 2) * (int64_t)sizeof(double);
    for (int r = 0; r < size->n_rank; r++) {
        int64_t added = (int64_t)(UNEVEN * (double)mdp_products_row_memory(out->layout, r, in_call));
        if (added > all) added = all;
        int64_t own = mdp_product_cost_of(out->layout, r).value_byte * size->n_set + (added > solved ? added : solved);
        most = own > most ? own : most;
    }
    mdp_free(in_call);
    out->n_byte =
        most + mdp_products_room_memory(size->n_rank, size->n_thread) + (size->n_rank > 1 ? MDP_SUM_MESSAGE_BYTE : 0);
    return mdp_ok();
}

/* For the mode of *out. */
static mdp_status lay_out(const mdp_refit_size *size, const mdp_model *model, int64_t layer, const int64_t *rows,
                          mdp_refit_system *out) {
    int32_t n_side = size->n_side;
    const mdp_moe *moe = &model->layers[layer].moe;
    bool biased = moe->experts[0].down_bias.tensor != NULL;
    mdp_product_side *sides = NULL;
    mdp_product_pair *pairs = NULL;
    int32_t n_pair = mdp_fit_count_pairs(n_side, out->mode);
    int64_t widest = 0;
    out->order = 0;
    mdp_status status = MDP_ALLOC(&sides, n_side + 1, "sides of a fit");
    if (status.code == MDP_OK) status = MDP_ALLOC(&pairs, n_pair, "pairs of a fit");
    for (int32_t s = 0; status.code == MDP_OK && s < n_side; s++) {
        sides[s] = (mdp_product_side){.n_value = size->width, .with_one = biased};
        out->order += mdp_product_width(&sides[s]);
        widest = mdp_product_width(&sides[s]) > widest ? mdp_product_width(&sides[s]) : widest;
    }
    if (status.code == MDP_OK) {
        sides[n_side] = (mdp_product_side){.n_value = model->d_model};
        mdp_fit_list_pairs(n_side, out->mode, rows, pairs);
        status = mdp_product_layout_new(size->n_rank, n_side + 1, sides, n_pair, pairs, &out->layout);
    }
    if (status.code == MDP_OK) status = weigh(size, model, rows, widest, out);
    mdp_free(sides);
    mdp_free(pairs);
    if (status.code != MDP_OK) {
        mdp_product_layout_destroy(out->layout);
        out->layout = NULL;
    }
    return status;
}

mdp_status mdp_refit_choose_system(const mdp_refit_size *size, const mdp_model *model, int64_t layer,
                                   const mdp_refit_options *options, const int64_t *rows, mdp_refit_system *out) {
    static const mdp_fit_mode tried[] = {MDP_FIT_JOINT, MDP_FIT_SWEEPS, MDP_FIT_DIAGONAL};
    bool automatic = options->mode == MDP_REFIT_AUTO;
    for (int i = 0; i < 3; i++) {
        *out = (mdp_refit_system){.mode = automatic ? tried[i] : forced(options->mode)};
        MDP_TRY(lay_out(size, model, layer, rows, out));
        if (!automatic || options->memory == 0 || out->n_byte <= options->memory || i == 2) break;
        mdp_product_layout_destroy(out->layout);
    }
    return mdp_ok();
}

/* ---- all layers ------------------------------------------------------------------------------------------------ */

/* Rows that every two experts have in common, if tokens chose among n at random. */
static void guess_rows(int64_t n_token, int32_t n, int32_t top_k, int64_t *rows) {
    int64_t own = n_token * top_k / n, both = n > 1 ? own * (top_k - 1) / (n - 1) : 0;
    for (int64_t i = 0; i < (int64_t)n * n; i++) rows[i] = both;
    for (int64_t i = 0; i < n; i++) rows[i * n + i] = own;
}

static int64_t flop_of_solve(const mdp_refit_system *system, int64_t n_side, int64_t d, const mdp_refit_options *o) {
    double n = (double)system->order, f = n / (double)n_side, factor = 0.0, solve = 0.0;
    if (system->mode == MDP_FIT_JOINT) {
        factor = n * n * n / 3.0;
        solve = 2.0 * n * n * (double)d;
    } else {
        int n_sweep = system->mode == MDP_FIT_SWEEPS ? o->n_sweep : 1;
        factor = (double)n_side * f * f * f / 3.0;
        solve = 2.0 * (system->mode == MDP_FIT_SWEEPS ? n * n : n * f) * (double)(d * n_sweep);
    }
    return (int64_t)(factor + solve);
}

/* A layer's share in *out; `rows` has room for n x n. */
static mdp_status add_layer(const mdp_comm *layout, const mdp_model *model, const mdp_plan *plan, int64_t number,
                            const mdp_tokens *tokens, const mdp_refit_options *options, int n_thread, int64_t *rows,
                            mdp_refit_cost *out) {
    const mdp_plan_layer *planned = &plan->layers[number];
    const mdp_moe *moe = &model->layers[planned->layer].moe;
    int32_t top_k = planned->top_k > 0 ? planned->top_k : moe->top_k, n = planned->n_kept;
    const mdp_refit_size size = mdp_refit_size_of(layout->size, n_thread, moe, plan, tokens, options, n);
    int64_t most = 0, n_try = size.chooses ? 1 + 4 * (int64_t)size.n_set : 1;
    mdp_refit_system system;
    guess_rows(tokens->n_token, n, top_k, rows);
    MDP_TRY(mdp_refit_choose_system(&size, model, planned->layer, options, rows, &system));
    for (int r = 0; r < layout->size; r++) {
        int64_t flop = mdp_product_cost_of(system.layout, r).flop;
        out->flop += flop;
        most = flop > most ? flop : most;
    }
    mdp_product_layout_destroy(system.layout);
    int64_t solve = n_try * flop_of_solve(&system, n, model->d_model, options);
    out->flop += solve;
    out->flop_most += most + solve / layout->size;
    out->memory = system.n_byte > out->memory ? system.n_byte : out->memory;
    return mdp_ok();
}

mdp_status mdp_refit_cost_of(const mdp_comm *layout, const mdp_model *model, const mdp_tokens *tokens,
                             const mdp_plan *plan, const mdp_refit_options *options, int n_thread,
                             mdp_refit_cost *out) {
    int64_t *rows = NULL, most = 0;
    mdp_status status = mdp_ok();
    *out = (mdp_refit_cost){0};
    if (options->train) {
        *out = mdp_refit_train_cost_of(layout, model, tokens, plan, options, n_thread);
        return mdp_ok();
    }
    for (int64_t i = 0; i < plan->n_layer; i++) most = plan->layers[i].n_kept > most ? plan->layers[i].n_kept : most;
    MDP_TRY(MDP_ALLOC(&rows, most * most, "rows of experts"));
    for (int64_t i = 0; i < plan->n_layer && status.code == MDP_OK; i++)
        status = add_layer(layout, model, plan, i, tokens, options, n_thread, rows, out);
    mdp_free(rows);
    return status;
}

int64_t mdp_refit_token_memory(const mdp_comm *layout, const mdp_model *model, const mdp_tokens *tokens,
                               const mdp_refit_options *options) {
    int64_t n_local = tokens->n_token / layout->size + MDP_PACK_TOKENS,
            n_row = (options->target == MDP_REFIT_RESIDUAL ? 3 : 2) + (options->train != NULL);
    return n_local * (1 + n_row * model->d_model * (int64_t)sizeof(float));
}
