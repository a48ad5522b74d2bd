/* Gated MLPs against numpy in float64: groups of tiles through experts whose panels they share, every activation, with
 * and without biases, in few places and in many; a dense layer and a shared expert; the same bytes for any number of
 * threads and places. */
#include "engine_harness.h"

#include <string.h>

enum { MOST_TILES = 8, MOST_EXPERTS = 4 };

/* The tiles of a case, and what is seen of them. */
typedef struct tiles {
    const harness *h;
    mdp_expert experts[MOST_EXPERTS];
    mdp_gated_group groups[MOST_EXPERTS];
    mdp_gated_tile tiles[MOST_TILES];
    int64_t n_group, n_tile, n_row, d_ff;
    int64_t most;               /* tiles of a group */
    int64_t first[MOST_TILES];  /* row of each tile */
    int64_t owner[MOST_TILES];  /* its expert */
    float *x, *y;               /* [n_row, d_model] */
    float *activations;         /* [n_row, d_ff], the first of a row where its expert is smaller */
    float *gate_bias, *up_bias; /* of the first expert */
    float *down_bias;
} tiles;

static float *new_values(int64_t n) {
    float *out = NULL;
    harness_ok(MDP_ALLOC(&out, n, "values"));
    return out;
}

static void add_tile(tiles *t, int64_t expert, int32_t n_row) {
    if (expert == t->n_group) {
        char prefix[16];
        (void)snprintf(prefix, sizeof prefix, "%d.", (int)expert);
        t->experts[expert] = harness_mlp(t->h, prefix);
        t->groups[t->n_group++] = (mdp_gated_group){.expert = &t->experts[expert]};
    }
    if (++t->groups[expert].n_tile > t->most) t->most = t->groups[expert].n_tile;
    t->first[t->n_tile] = t->n_row;
    t->owner[t->n_tile] = expert;
    t->tiles[t->n_tile++] = (mdp_gated_tile){.n_row = n_row};
    t->n_row += n_row;
}

static float *bias_of(const harness *h, const char *name) {
    return harness_matrix(h, name).tensor ? harness_values(h, name) : NULL;
}

static void begin_tiles(harness *h, tiles *t) {
    const json_t *list = json_object_get(h->settings, "tiles"), *tile;
    size_t i;
    memset(t, 0, sizeof *t);
    t->h = h;
    json_array_foreach(list, i, tile) {
        add_tile(t, json_integer_value(json_array_get(tile, 0)), (int32_t)json_integer_value(json_array_get(tile, 1)));
    }
    h->layer.dense = t->experts[0]; /* the engine makes room for panels of the model's matrices */
    t->d_ff = h->layer.dense_ff;
    t->x = harness_values(h, "embedding");
    t->y = new_values(t->n_row * h->model.d_model);
    t->activations = new_values(t->n_row * t->d_ff);
    t->gate_bias = bias_of(h, "0.gate_bias");
    t->up_bias = bias_of(h, "0.up_bias");
    t->down_bias = bias_of(h, "0.down_bias");
    for (int64_t n = 0; n < t->n_tile; n++) t->tiles[n].y = t->y + t->first[n] * h->model.d_model;
}

static void end_tiles(tiles *t) {
    float *values[] = {t->x, t->y, t->activations, t->gate_bias, t->up_bias, t->down_bias};
    for (size_t i = 0; i < sizeof values / sizeof values[0]; i++) mdp_free(values[i]);
}

static void load_tile(void *context, int64_t number, float *x) {
    const tiles *t = context;
    int64_t d = t->h->model.d_model;
    memcpy(x, t->x + t->first[number] * d, (size_t)(t->tiles[number].n_row * d) * sizeof *x);
}

/* Keep the activations; x is still what was loaded. */
static mdp_status finish_tile(void *context, int64_t number, const float *x, const float *h, const float *projected) {
    assert_null(projected);
    const tiles *t = context;
    int64_t d = t->h->model.d_model, n = t->tiles[number].n_row, f = t->experts[t->owner[number]].gate.n_row;
    for (int64_t i = 0; i < n; i++)
        memcpy(t->activations + (t->first[number] + i) * t->d_ff, h + i * f, (size_t)f * sizeof *h);
    if (memcmp(x, t->x + t->first[number] * d, (size_t)(n * d) * sizeof *x) == 0) return mdp_ok();
    return MDP_ERROR(MDP_INTERNAL, "the input of tile %d is another one", (int)number);
}

/* All tiles, n_place at a time. */
static void run_tiles(harness *h, tiles *t, int n_thread, int64_t n_place) {
    mdp_panel_list panels = {0};
    const mdp_gated_room room = {.n_place = n_place,
                                 .d_ff = t->d_ff,
                                 .x = new_values(n_place * MDP_TILE_ROWS * h->model.d_model),
                                 .h = new_values(n_place * MDP_TILE_ROWS * t->d_ff)};
    float *up = new_values((int64_t)n_thread * MDP_TILE_ROWS * MDP_PANEL_ROWS);
    const mdp_gated_walk walk = {
        .engine = h->engine,
        .gating = {.activation = h->layer.activation, .gate_bias = t->gate_bias, .up_bias = t->up_bias},
        .down_bias = t->down_bias,
        .groups = t->groups,
        .n_group = t->n_group,
        .tiles = t->tiles,
        .room = &room,
        .up = up,
        .panels = &panels,
        .load = load_tile,
        .finish = finish_tile,
        .context = t};
    harness_ok(mdp_gated_run(&walk));
    mdp_free(panels.items);
    mdp_free(room.x);
    mdp_free(room.h);
    mdp_free(up);
}

static void expect_tiles(harness *h, const char *name) {
    float *kept = NULL;
    tiles t;
    harness_enter(h, name);
    begin_tiles(h, &t);
    for (int n_thread = 1; n_thread <= HARNESS_MOST_THREADS; n_thread++) {
        harness_begin(h, n_thread, 1);
        for (int64_t n_place = t.most; n_place <= 2 * t.n_tile; n_place++) {
            memset(t.y, 0, (size_t)(t.n_row * h->model.d_model) * sizeof *t.y);
            run_tiles(h, &t, n_thread, n_place);
            harness_expect(h, "want", t.y, t.n_row * h->model.d_model);
            harness_expect_same(&kept, t.y, t.n_row * h->model.d_model);
            if (harness_matrix(h, "want_h").tensor) harness_expect(h, "want_h", t.activations, t.n_row * t.d_ff);
        }
        harness_end(h);
    }
    mdp_free(kept);
    end_tiles(&t);
    harness_leave(h);
}

static void groups_of_tiles_share_the_panels_of_an_expert(void **state) {
    expect_tiles(*state, "groups");
}

static void experts_need_not_have_the_same_size(void **state) {
    expect_tiles(*state, "unequal");
}

static void every_activation_is_the_published_one(void **state) {
    expect_tiles(*state, "gelu");
    expect_tiles(*state, "gelu_tanh");
    expect_tiles(*state, "clamped");
}

static void biases_of_several_panels_are_added(void **state) {
    expect_tiles(*state, "biased");
}

static void a_dense_layer_joins_the_residual_stream(void **state) {
    harness_expect_step(*state, mdp_dense, "dense");
    harness_expect_step(*state, mdp_dense, "dense_clamped");
}

static void expect_shared(harness *h, const char *name) {
    float *kept = NULL;
    harness_enter(h, name);
    int64_t n_token = h->tokens->n_token, n = n_token * h->model.d_model;
    float *out = new_values(n), *gate = harness_values(h, "output_gate");
    for (int n_thread = 1; n_thread <= HARNESS_MOST_THREADS; n_thread++) {
        float *norm = NULL;
        harness_begin(h, n_thread, 1);
        harness_ok(mdp_norm_load(h->engine, &h->layer.norm2, &norm));
        const mdp_mlp mlp = {.expert = &h->layer.dense,
                             .d_ff = h->layer.dense_ff,
                             .activation = h->layer.activation,
                             .output_gate = gate,
                             .norm = norm};
        harness_ok(mdp_mlp_compute(h->engine, &mlp, &h->engine->branches[0], 0, n_token, out));
        harness_expect(h, "want", out, n);
        harness_expect_same(&kept, out, n);
        mdp_free(norm);
        harness_end(h);
    }
    mdp_free(out);
    mdp_free(gate);
    mdp_free(kept);
    harness_leave(h);
}

static void a_shared_expert_has_a_gate_of_its_own(void **state) {
    expect_shared(*state, "shared");
    expect_shared(*state, "shared_clamped");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(groups_of_tiles_share_the_panels_of_an_expert),
        cmocka_unit_test(experts_need_not_have_the_same_size),
        cmocka_unit_test(every_activation_is_the_published_one),
        cmocka_unit_test(biases_of_several_panels_are_added),
        cmocka_unit_test(a_dense_layer_joins_the_residual_stream),
        cmocka_unit_test(a_shared_expert_has_a_gate_of_its_own),
    };
    return harness_run("gated", tests, sizeof tests / sizeof tests[0]);
}
