/* experts.c - the expert loop: this rank's tiles of one round, expert by expert, in groups that share widened panels.
 *
 * In: token rows of the round and where each tile takes them from. Out: y by position. Observers see a tile as soon as
 * its y is complete. */
#include "engine/engine.h"

#include <omp.h>
#include <string.h>

/* Gather the rows of a group's tiles into consecutive buffers; `weigh`: times their weights. */
static void gather_group(const mdp_engine *engine, bool weigh, const mdp_tile_place *tiles, int64_t n_tile,
                         const mdp_round *round, const mdp_expert_scratch *scratch) {
    int64_t d = engine->model->d_model;
#pragma omp parallel for schedule(static) num_threads(engine->n_thread) collapse(2)
    for (int64_t t = 0; t < n_tile; t++) {
        for (int32_t i = 0; i < MDP_TILE_ROWS; i++) {
            if (i >= tiles[t].n_row) continue;
            int32_t at = tiles[t].position + i;
            float *x = scratch->x + (t * MDP_TILE_ROWS + i) * d;
            memcpy(x, round->x + round->source[at] * d, (size_t)d * sizeof(float));
            for (int64_t j = 0; weigh && j < d; j++) x[j] *= round->gate[at];
        }
    }
}

/* Observers see finite tiles only. */
static mdp_status observe_group(mdp_engine *engine, int64_t layer_number, const mdp_tile_place *tiles, int64_t n_tile,
                                const mdp_round *round, const mdp_expert_scratch *scratch) {
    int64_t d = engine->model->d_model, f = engine->model->layers[layer_number].moe.d_ff;
    mdp_status failed = mdp_ok();
#pragma omp parallel for schedule(dynamic, 1) num_threads(engine->n_thread)
    for (int64_t t = 0; t < n_tile; t++) {
        int32_t at = tiles[t].position;
        bool finite = mdp_finite_outputs(engine, layer_number, tiles[t].expert, round->y + at * d, round->token + at,
                                         tiles[t].n_row);
        if (!finite || !engine->observers.tile) continue;
        mdp_tile tile = {.layer = layer_number,
                         .state = tiles[t].state,
                         .expert = tiles[t].expert,
                         .n_row = tiles[t].n_row,
                         .d_model = d,
                         .d_ff = f,
                         .x = scratch->x + t * MDP_TILE_ROWS * d,
                         .h = scratch->h + t * MDP_TILE_ROWS * f,
                         .y = round->y + at * d,
                         .gate = round->gate + at,
                         .weighed = engine->model->layers[layer_number].moe.rule.weigh_input,
                         .category = round->category + at,
                         .token = round->token + at};
        mdp_status status = engine->observers.tile(engine->observers.context, &tile);
        if (status.code != MDP_OK) {
#pragma omp critical(mdp_observe)
            failed = status;
        }
    }
    return failed;
}

/* Biases of an expert, where it has some, into scratch->bias. */
static mdp_status load_biases(mdp_engine *engine, const mdp_expert *expert, const mdp_expert_scratch *scratch) {
    const mdp_matrix *biases[] = {&expert->gate_bias, &expert->up_bias, &expert->down_bias};
    float *to = scratch->bias;
    mdp_status status = mdp_ok();
    mdp_reading reading = mdp_engine_begin_reading(engine);
    for (int i = 0; scratch->bias && i < 3 && status.code == MDP_OK; to += biases[i++]->n_col)
        status = mdp_matrix_read(engine->reader, biases[i], 0, 1, scratch->stored, to);
    mdp_engine_end_reading(engine, &reading);
    return status;
}

/* Tiles of one expert, at most scratch->n_tile of them. */
static mdp_status compute_group(mdp_engine *engine, const mdp_layer *layer, int64_t layer_number,
                                const mdp_tile_place *tiles, int64_t n_tile, mdp_round *round,
                                mdp_expert_scratch *scratch) {
    const mdp_expert *expert = &layer->moe.experts[tiles[0].expert];
    int64_t d = engine->model->d_model, f = layer->moe.d_ff;
    mdp_rows rows[256];
    if (n_tile > 256) return MDP_ERROR(MDP_INTERNAL, "a group of %lld tiles is too large", (long long)n_tile);
    scratch->panels.n = 0;
    MDP_TRY(mdp_panel_list_add_pair(&scratch->panels, &expert->gate, &expert->up));
    MDP_TRY(mdp_panel_list_add(&scratch->panels, &expert->down));
    MDP_TRY(mdp_panel_stream_start(engine->stream, scratch->panels.items, scratch->panels.n));
    MDP_TRY(load_biases(engine, expert, scratch));
    const mdp_gating gating = {.activation = layer->moe.activation,
                               .alpha = layer->moe.alpha,
                               .limit = layer->moe.limit,
                               .gate_bias = scratch->bias,
                               .up_bias = scratch->bias ? scratch->bias + f : NULL};
    gather_group(engine, layer->moe.rule.weigh_input, tiles, n_tile, round, scratch);
    for (int64_t t = 0; t < n_tile; t++) {
        rows[t] = (mdp_rows){.x = scratch->x + t * MDP_TILE_ROWS * d,
                             .ldx = d,
                             .y = scratch->h + t * MDP_TILE_ROWS * f,
                             .ldy = f,
                             .n_row = tiles[t].n_row};
    }
    MDP_TRY(mdp_gated_take(engine, &gating, &expert->gate, rows, n_tile, scratch->up));
    for (int64_t t = 0; t < n_tile; t++) {
        rows[t] = (mdp_rows){.x = scratch->h + t * MDP_TILE_ROWS * f,
                             .ldx = f,
                             .y = round->y + tiles[t].position * d,
                             .ldy = d,
                             .n_row = tiles[t].n_row};
    }
    const float *down_bias = scratch->bias ? scratch->bias + 2 * f : NULL;
    MDP_TRY(mdp_linear_take(engine, &expert->down, down_bias, rows, n_tile));
    mdp_profile_switch(engine->profile, MDP_PHASE_OBSERVERS);
    mdp_status status = observe_group(engine, layer_number, tiles, n_tile, round, scratch);
    mdp_profile_switch(engine->profile, MDP_PHASE_EXPERTS);
    return status;
}

mdp_status mdp_experts_compute(mdp_engine *engine, const mdp_layer *layer, int64_t layer_number,
                               const mdp_placement *placement, int32_t number, mdp_round *round,
                               mdp_expert_scratch *scratch) {
    int rank = engine->comm->rank;
    mdp_status status = mdp_ok();
    mdp_phase before = mdp_profile_switch(engine->profile, MDP_PHASE_EXPERTS);
    for (int64_t first = 0; first < placement->n_tile && status.code == MDP_OK;) {
        const mdp_tile_place *tile = &placement->tiles[first];
        int64_t end = first + 1;
        if (tile->owner == rank && tile->round == number) {
            while (end < placement->n_tile && end - first < scratch->n_tile && tile[end - first].owner == rank &&
                   tile[end - first].round == number && tile[end - first].expert == tile->expert) {
                end++;
            }
            status = compute_group(engine, layer, layer_number, tile, end - first, round, scratch);
        }
        first = end;
    }
    mdp_panel_stream_stop(engine->stream);
    mdp_profile_switch(engine->profile, before);
    return status;
}
