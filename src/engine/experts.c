/* experts.c - the expert loop: this rank's tiles of one round, expert by expert, in groups that share widened panels.
 *
 * In: token rows of the round and where each tile takes them from. Out: y by position. Observers see a tile as soon as
 * its y is complete. */
#include "engine/experts.h"
#include "engine/finite.h"

#include <string.h>

/* What the tiles of a walk have in common. */
typedef struct expert_tiles {
    mdp_engine *engine;
    int64_t layer_number;
    const mdp_round *round;
    const mdp_tile_place *const *own; /* by the walk's numbers */
} expert_tiles;

/* Gather the rows of a tile, times their weights where the router weighs inputs. */
static void gather_tile(void *context, int64_t number, float *x) {
    const expert_tiles *tiles = context;
    const mdp_tile_place *tile = tiles->own[number];
    const mdp_round *round = tiles->round;
    const mdp_model *model = tiles->engine->model;
    bool weigh = model->layers[tiles->layer_number].moe.rule.weigh_input;
    int64_t d = model->d_model;
    for (int32_t at = tile->position; at < tile->position + tile->n_row; at++, x += d) {
        memcpy(x, round->x + round->source[at] * d, (size_t)d * sizeof(float));
        for (int64_t j = 0; weigh && j < d; j++) x[j] *= round->gate[at];
    }
}

/* Activations [n_row, width] of a tile that come back to the tokens' owners. */
static void keep_activations(const expert_tiles *tiles, const mdp_tile_place *place, const float *h) {
    const mdp_round *round = tiles->round;
    int64_t width = tiles->engine->roster.experts[place->expert]->gate.n_row;
    if (!round->h || !round->comes_back[place->position]) return;
    for (int64_t at = place->position; at < place->position + place->n_row; at++, h += width)
        memcpy(round->h + at * round->h_stride, h, (size_t)width * sizeof *h);
}

/* Observers see finite tiles only. */
static mdp_status observe_tile(void *context, int64_t number, const float *x, const float *h, const float *projected) {
    const expert_tiles *tiles = context;
    mdp_engine *engine = tiles->engine;
    const mdp_tile_place *place = tiles->own[number];
    const mdp_round *round = tiles->round;
    const mdp_moe *moe = &engine->model->layers[tiles->layer_number].moe;
    int32_t at = place->position;
    float *y = round->y + at * engine->model->d_model;
    mdp_status status = mdp_ok();
    keep_activations(tiles, place, h);
    mdp_phase before = mdp_engine_begin_observing(engine);
    bool finite = mdp_finite_outputs(engine, tiles->layer_number, place->expert, y, round->token + at, place->n_row);
    if (finite && engine->observers.tile) {
        mdp_tile tile = {.layer = tiles->layer_number,
                         .branch = place->branch,
                         .expert = engine->roster.number[place->expert],
                         .n_row = place->n_row,
                         .d_model = engine->model->d_model,
                         .d_ff = engine->roster.experts[place->expert]->gate.n_row,
                         .x = x,
                         .h = h,
                         .projected = projected,
                         .y = y,
                         .gate = round->gate + at,
                         .weighed = moe->rule.weigh_input,
                         .category = round->category + at,
                         .token = round->token + at};
        status = engine->observers.tile(engine->observers.context, &tile);
    }
    mdp_engine_end_observing(engine, before);
    return status;
}

/* Biases of the expert of the walk's first group. */
static mdp_status load_biases(mdp_engine *engine, const mdp_expert_scratch *scratch, mdp_gated_walk *walk) {
    const mdp_expert *expert = walk->groups->expert;
    const mdp_matrix *biases[] = {&expert->gate_bias, &expert->up_bias, &expert->down_bias};
    float *to = scratch->bias;
    mdp_status status = mdp_ok();
    mdp_reading reading = mdp_engine_begin_reading(engine);
    for (int i = 0; i < 3 && status.code == MDP_OK; to += biases[i++]->n_col)
        status = mdp_matrix_read(engine->reader, biases[i], 0, 1, scratch->stored, to);
    mdp_engine_end_reading(engine, &reading);
    walk->gating.gate_bias = scratch->bias;
    walk->gating.up_bias = walk->gating.gate_bias + expert->gate_bias.n_col;
    walk->down_bias = walk->gating.up_bias + expert->up_bias.n_col;
    return status;
}

static mdp_status make_room(mdp_expert_scratch *scratch, int64_t n) {
    if (n <= scratch->capacity) return mdp_ok();
    MDP_TRY(MDP_GROW(&scratch->own, scratch->capacity, n, "tiles of a round"));
    MDP_TRY(MDP_GROW(&scratch->tiles, scratch->capacity, n, "tiles of a round"));
    MDP_TRY(MDP_GROW(&scratch->groups, scratch->capacity, n, "tiles of a round"));
    scratch->capacity = n;
    return mdp_ok();
}

/* This rank's tiles of a round. Those that lie side by side and have one expert are a group, of n_tile at most. */
static mdp_status list_tiles(const mdp_engine *engine, const mdp_placement *placement, int32_t number,
                             const mdp_round *round, mdp_expert_scratch *scratch) {
    const mdp_tile_place *before = NULL; /* the last one of the group at hand */
    int64_t n = 0;
    for (int64_t t = 0; t < placement->n_tile; t++)
        n += placement->tiles[t].owner == engine->comm->rank && placement->tiles[t].round == number;
    MDP_TRY(make_room(scratch, n));
    scratch->n_own = scratch->n_group = 0;
    for (const mdp_tile_place *tile = placement->tiles; tile < placement->tiles + placement->n_tile; tile++) {
        if (tile->owner != engine->comm->rank || tile->round != number) continue;
        bool joins = before && before + 1 == tile && before->expert == tile->expert &&
                     scratch->groups[scratch->n_group - 1].n_tile < scratch->room.n_place;
        if (!joins)
            scratch->groups[scratch->n_group++] = (mdp_gated_group){.expert = engine->roster.experts[tile->expert]};
        scratch->groups[scratch->n_group - 1].n_tile++;
        scratch->own[scratch->n_own] = before = tile;
        scratch->tiles[scratch->n_own++] =
            (mdp_gated_tile){.y = round->y + tile->position * engine->model->d_model, .n_row = tile->n_row};
    }
    return mdp_ok();
}

/* Experts with biases go one by one, since only one's are kept. */
static mdp_status run_groups(mdp_engine *engine, const mdp_moe *moe, mdp_expert_scratch *scratch,
                             expert_tiles *context) {
    int64_t n_group = scratch->n_group, step = scratch->bias ? 1 : n_group;
    mdp_gated_walk walk = {
        .engine = engine,
        .gating = {.activation = moe->activation},
        .groups = scratch->groups,
        .n_group = step,
        .tiles = scratch->tiles,
        .room = &scratch->room,
        .up = scratch->up,
        .panels = &scratch->panels,
        .load = gather_tile,
        .finish = observe_tile,
        .context = context,
    };
    for (; walk.groups < scratch->groups + n_group; walk.groups += step) {
        if (scratch->bias) MDP_TRY(load_biases(engine, scratch, &walk));
        MDP_TRY(mdp_gated_run(&walk));
        walk.tiles += walk.groups->n_tile;
        context->own += walk.groups->n_tile;
    }
    return mdp_ok();
}

mdp_status mdp_experts_compute(mdp_engine *engine, const mdp_layer *layer, int64_t layer_number,
                               const mdp_placement *placement, int32_t number, mdp_round *round,
                               mdp_expert_scratch *scratch) {
    mdp_phase before = mdp_profile_switch(engine->profile, MDP_PHASE_EXPERTS);
    mdp_status status = list_tiles(engine, placement, number, round, scratch);
    expert_tiles context = {.engine = engine, .layer_number = layer_number, .round = round, .own = scratch->own};
    if (status.code == MDP_OK) status = run_groups(engine, &layer->moe, scratch, &context);
    mdp_panel_feed_stop(engine->feed);
    mdp_profile_switch(engine->profile, before);
    return status;
}
