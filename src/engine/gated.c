/* gated.c - tiles of rows go through gated MLPs: routed experts, shared experts, dense layers.
 *
 * In: groups of tiles, each with an MLP whose panels its tiles share. Out: y = down(act(gate(x)) * up(x)) of each tile.
 * The steps of all groups are one sequence of items, which the threads take in order: a group's tiles are loaded, meet
 * the pairs of gate and up panels, then the panels of down, and where y is to be multiplied with the columns of down,
 * those once more: in order, since each adds to the sums of those before it. Where there are several threads and room,
 * groups are loaded and gated before the ones before them go down. A tile lies in a place, which the next but n_place
 * takes over; an item waits for what its own tile still lacks and for nothing else, so threads do not wait for each
 * other at the end of every product, and panels of the next group are read while this one is computed. Which thread
 * takes which item cannot change a bit of the result.
 *
 * Nobody waits for ever: the earliest item that is not done waits for earlier ones only, and those are done. */
#include "engine/gated.h"

#include <omp.h>
#include <pthread.h>
#include <string.h>

typedef enum walk_stage { STAGE_LOAD, STAGE_GATED, STAGE_DOWN, STAGE_PROJECT } walk_stage;

/* All tiles of a group in one stage. */
typedef struct walk_step {
    const mdp_gated_group *group;
    int64_t first_tile; /* of the group */
    walk_stage stage;
} walk_step;

/* One tile, with one panel of its step's matrix, or one pair of panels. */
typedef struct walk_item {
    int64_t step, unit, tile;
    int64_t panel; /* in the feed, the first */
} walk_item;

/* Where a tile lies; places are taken in turn. */
typedef struct walk_place {
    int64_t n_gone;   /* tiles that were here before */
    walk_stage stage; /* of the one that is here */
    int64_t n_done;   /* items of that stage */
} walk_place;

typedef struct progress {
    const mdp_gated_walk *walk;
    walk_step *steps; /* [n_step] */
    int64_t n_step;
    pthread_mutex_t lock;
    pthread_cond_t moved; /* a tile came to its next stage, or the walk failed */
    walk_item next;       /* that nobody has taken */
    walk_place *places;   /* [n_place] */
    mdp_status status;    /* the first error */
} progress;

static int panels_of(walk_stage stage) {
    static const int n_panel[] = {[STAGE_LOAD] = 0, [STAGE_GATED] = 2, [STAGE_DOWN] = 1, [STAGE_PROJECT] = 1};
    return n_panel[stage];
}

static walk_stage last_stage(const mdp_gated_walk *walk) {
    return walk->room->projected ? STAGE_PROJECT : STAGE_DOWN;
}

static int64_t units_of(const walk_step *step) {
    const mdp_expert *expert = step->group->expert;
    return step->stage == STAGE_LOAD ? 1 : mdp_panel_count(step->stage == STAGE_GATED ? &expert->gate : &expert->down);
}

/* ---- steps ------------------------------------------------------------------------------------------------------ */

/* Groups that go together. */
typedef struct bunch {
    int64_t first, end; /* groups */
    int64_t first_tile, n_tile;
} bunch;

/* The groups after those of `before`: as many as have half of the places, or one. */
static bunch next_bunch(const mdp_gated_walk *walk, const bunch *before) {
    bunch out = {.first = before->end, .end = before->end, .first_tile = before->first_tile + before->n_tile};
    for (; out.end < walk->n_group; out.end++) {
        int64_t n_tile = out.n_tile + walk->groups[out.end].n_tile;
        if (out.end > out.first && 2 * n_tile > walk->room->n_place) break;
        out.n_tile = n_tile;
    }
    return out;
}

static void add_steps(progress *p, const bunch *groups, walk_stage first, walk_stage last) {
    int64_t tile = groups->first_tile;
    for (int64_t g = groups->first; g < groups->end; tile += p->walk->groups[g++].n_tile) {
        for (walk_stage stage = first; stage <= last; stage++)
            p->steps[p->n_step++] = (walk_step){.group = &p->walk->groups[g], .first_tile = tile, .stage = stage};
    }
}

/* A bunch goes down after the next one is gated, where both have places and there are threads that would wait. */
static void list_steps(progress *p) {
    const mdp_gated_walk *walk = p->walk;
    for (bunch before = {0}, at; before.first < walk->n_group; before = at) {
        at = next_bunch(walk, &before);
        bool ahead = walk->engine->n_thread > 1 && before.n_tile + at.n_tile <= walk->room->n_place;
        if (!ahead) add_steps(p, &before, STAGE_DOWN, last_stage(walk));
        add_steps(p, &at, STAGE_LOAD, STAGE_GATED);
        if (ahead) add_steps(p, &before, STAGE_DOWN, last_stage(walk));
    }
}

/* ---- what is next ---------------------------------------------------------------------------------------------- */

static void advance(progress *p) {
    walk_item *next = &p->next;
    const walk_step *step = &p->steps[next->step];
    if (++next->tile < step->first_tile + step->group->n_tile) return;
    next->tile = step->first_tile;
    next->panel += panels_of(step->stage);
    if (++next->unit < units_of(step)) return;
    next->unit = 0;
    if (++next->step < p->n_step) next->tile = p->steps[next->step].first_tile;
}

static bool is_ready(const progress *p, const walk_item *item) {
    const walk_place *at = &p->places[item->tile % p->walk->room->n_place];
    walk_stage stage = p->steps[item->step].stage;
    bool in_turn = stage != STAGE_PROJECT || at->n_done == item->unit;
    return at->n_gone == item->tile / p->walk->room->n_place && at->stage == stage && in_turn;
}

static void fail(progress *p, const mdp_status *status) {
    pthread_mutex_lock(&p->lock);
    if (p->status.code == MDP_OK) p->status = *status;
    pthread_cond_broadcast(&p->moved);
    pthread_mutex_unlock(&p->lock);
}

/* An item for this thread, with its panels, when its tile is ready; false: there is none, or the walk failed. */
static bool take_item(progress *p, walk_item *out, mdp_panel panels[2]) {
    pthread_mutex_lock(&p->lock);
    bool found = p->next.step < p->n_step;
    if (found) {
        *out = p->next;
        advance(p);
    }
    while (found && p->status.code == MDP_OK && !is_ready(p, out)) pthread_cond_wait(&p->moved, &p->lock);
    found = found && p->status.code == MDP_OK;
    pthread_mutex_unlock(&p->lock);
    int n_panel = found ? panels_of(p->steps[out->step].stage) : 0;
    if (n_panel == 0) return found;
    mdp_status status = mdp_panel_feed_wait(p->walk->engine->feed, out->panel, n_panel, panels);
    if (status.code != MDP_OK) fail(p, &status);
    return status.code == MDP_OK;
}

/* What was computed of a tile. */
typedef struct walk_rows {
    float *x, *h;
    float *projected; /* NULL: nothing */
} walk_rows;

/* The last item of a stage brings its tile to the next one; the last of all finishes it. */
static void end_item(progress *p, const walk_item *item, const walk_rows *rows) {
    const mdp_gated_walk *walk = p->walk;
    const walk_step *step = &p->steps[item->step];
    walk_place *at = &p->places[item->tile % walk->room->n_place];
    bool finishes = step->stage == last_stage(walk);
    if (panels_of(step->stage) > 0)
        mdp_panel_feed_release(walk->engine->feed, item->panel, panels_of(step->stage), step->group->n_tile);
    pthread_mutex_lock(&p->lock);
    bool is_last = ++at->n_done == units_of(step);
    if (step->stage == STAGE_PROJECT && !is_last) pthread_cond_broadcast(&p->moved);
    pthread_mutex_unlock(&p->lock);
    if (!is_last) return;
    if (finishes && walk->finish) {
        mdp_status status = walk->finish(walk->context, item->tile, rows->x, rows->h, rows->projected);
        if (status.code != MDP_OK) fail(p, &status);
    }
    pthread_mutex_lock(&p->lock);
    at->n_done = 0;
    at->stage = finishes ? STAGE_LOAD : step->stage + 1;
    if (finishes) at->n_gone++;
    pthread_cond_broadcast(&p->moved);
    pthread_mutex_unlock(&p->lock);
}

/* ---- items ------------------------------------------------------------------------------------------------------ */

/* Columns of one pair of panels for one tile, rounded too where that is wanted; scratch [MDP_TILE_ROWS,
 * MDP_PANEL_ROWS]. */
static void gated_item(const mdp_gated_walk *walk, const mdp_rows *tile, const mdp_panel pair[2], float *scratch,
                       uint16_t *rounded) {
    const mdp_gating *gating = &walk->gating;
    int64_t m = pair[0].n_row;
    float *h = tile->y + pair[0].row0;
    mdp_linear_multiply(walk->engine->gemm, tile, &pair[0], h, tile->ldy);
    mdp_linear_multiply(walk->engine->gemm, tile, &pair[1], scratch, MDP_PANEL_ROWS);
    for (int32_t i = 0; i < tile->n_row; i++, h += tile->ldy, scratch += MDP_PANEL_ROWS) {
        if (gating->gate_bias) mdp_axpy(1.0F, gating->gate_bias + pair[0].row0, m, h);
        if (gating->up_bias) mdp_axpy(1.0F, gating->up_bias + pair[0].row0, m, scratch);
        mdp_gate(&gating->activation, scratch, m, h);
        if (rounded) mdp_round_bf16(h, m, rounded + i * tile->ldy + pair[0].row0);
    }
}

/* Products of a tile's outputs with the columns of down, of one panel's rows: added to those of the panels before. */
static void project_item(const mdp_gated_walk *walk, const mdp_gated_tile *tile, const mdp_panel *panel, float *out) {
    int64_t d = panel->matrix->n_row, f = panel->matrix->n_col;
    if (panel->row0 == 0) memset(out, 0, (size_t)(tile->n_row * f) * sizeof *out);
    mdp_gemm_nn_add(walk->engine->gemm, tile->n_row, (int)f, (int)panel->n_row, tile->y + panel->row0, (int)d,
                    panel->data, (int)f, out, (int)f);
}

static void compute_item(progress *p, const walk_item *item, const mdp_panel panels[2]) {
    const mdp_gated_walk *walk = p->walk;
    const mdp_gated_tile *tile = &walk->tiles[item->tile];
    const walk_step *step = &p->steps[item->step];
    const mdp_expert *expert = step->group->expert;
    int64_t d = expert->down.n_row, f = expert->gate.n_row, first = item->tile % walk->room->n_place * MDP_TILE_ROWS;
    float *x = walk->room->x + first * d, *h = walk->room->h + first * walk->room->d_ff;
    float *projected = walk->room->projected ? walk->room->projected + first * walk->room->d_ff : NULL;
    uint16_t *x_rounded = walk->room->x_rounded ? walk->room->x_rounded + first * d : NULL;
    uint16_t *h_rounded = walk->room->h_rounded ? walk->room->h_rounded + first * walk->room->d_ff : NULL;
    if (step->stage == STAGE_LOAD) {
        walk->load(walk->context, item->tile, x);
        if (x_rounded) mdp_round_bf16(x, tile->n_row * d, x_rounded);
    } else if (step->stage == STAGE_GATED) {
        const mdp_rows rows = {.x = x, .ldx = d, .rounded = x_rounded, .y = h, .ldy = f, .n_row = tile->n_row};
        float *up = walk->up + (size_t)omp_get_thread_num() * MDP_TILE_ROWS * MDP_PANEL_ROWS;
        gated_item(walk, &rows, panels, up, h_rounded);
    } else if (step->stage == STAGE_PROJECT) {
        project_item(walk, tile, &panels[0], projected);
    } else {
        const mdp_rows rows = {.x = h, .ldx = f, .rounded = h_rounded, .y = tile->y, .ldy = d, .n_row = tile->n_row};
        mdp_linear_item(walk->engine->gemm, &rows, &panels[0], walk->down_bias);
    }
    end_item(p, item, &(walk_rows){.x = x, .h = h, .projected = projected});
}

/* ---- room ------------------------------------------------------------------------------------------------------- */

mdp_status mdp_gated_take_room(mdp_engine *engine, int64_t n_place, int64_t d_ff, mdp_gated_room *out) {
    int64_t n_x = n_place * MDP_TILE_ROWS * engine->model->d_model, n_h = n_place * MDP_TILE_ROWS * d_ff;
    *out = (mdp_gated_room){.n_place = n_place, .d_ff = d_ff};
    MDP_TRY(MDP_TAKE(engine->stack, &out->x, n_x, "tiles of inputs"));
    MDP_TRY(MDP_TAKE(engine->stack, &out->h, n_h, "tiles of activations"));
    if (mdp_gemm_type_of(engine->gemm) != MDP_GEMM_BF16) return mdp_ok();
    MDP_TRY(MDP_TAKE(engine->stack, &out->x_rounded, n_x, "rounded inputs"));
    return MDP_TAKE(engine->stack, &out->h_rounded, n_h, "rounded activations");
}

mdp_status mdp_gated_take_projections(mdp_engine *engine, mdp_gated_room *room) {
    return MDP_TAKE(engine->stack, &room->projected, room->n_place * MDP_TILE_ROWS * room->d_ff, "projected outputs");
}

int64_t mdp_gated_room_memory(const mdp_model *model, mdp_gemm_type type, int64_t n_place, int64_t d_ff,
                              int64_t n_row) {
    const int64_t widths[] = {model->d_model, d_ff};
    int64_t n_byte = 0, room = n_place * MDP_TILE_ROWS;
    for (int i = 0; i < 2; i++) {
        int64_t row = widths[i] * (int64_t)sizeof(float), rounded = widths[i] * (int64_t)sizeof(uint16_t);
        n_byte += mdp_memory_taken(room * row, n_row * row);
        if (type == MDP_GEMM_BF16) n_byte += mdp_memory_taken(room * rounded, n_row * rounded);
    }
    return n_byte;
}

/* ---- the walk --------------------------------------------------------------------------------------------------- */

/* The steps, and their panels in the same order. */
static mdp_status prepare(progress *p) {
    const mdp_gated_walk *walk = p->walk;
    walk->panels->n = 0;
    MDP_TRY(MDP_ALLOC(&p->places, walk->room->n_place, "places of tiles"));
    MDP_TRY(MDP_ALLOC(&p->steps, 4 * walk->n_group, "steps of experts"));
    list_steps(p);
    for (int64_t i = 0; i < p->n_step; i++) {
        const mdp_expert *expert = p->steps[i].group->expert;
        if (p->steps[i].stage == STAGE_GATED)
            MDP_TRY(mdp_panel_list_add_pair(walk->panels, &expert->gate, &expert->up));
        if (p->steps[i].stage >= STAGE_DOWN) MDP_TRY(mdp_panel_list_add(walk->panels, &expert->down));
    }
    return mdp_panel_feed_start(walk->engine->feed, walk->panels->items, walk->panels->n);
}

static void count_products(const mdp_gated_walk *walk) {
    int n_matrix = walk->room->projected ? 4 : 3;
    const mdp_gated_tile *tile = walk->tiles;
    for (int64_t g = 0; g < walk->n_group; g++) {
        const mdp_matrix *gate = &walk->groups[g].expert->gate;
        for (int64_t t = 0; t < walk->groups[g].n_tile; t++, tile++)
            mdp_profile_flop(walk->engine->profile, n_matrix * 2 * tile->n_row * gate->n_row * gate->n_col);
    }
}

static void take_part(progress *p) {
    mdp_panel panels[2] = {0};
    for (walk_item item; take_item(p, &item, panels);) {
        compute_item(p, &item, panels);
        mdp_engine_look_after_rows(p->walk->engine);
    }
}

mdp_status mdp_gated_run(const mdp_gated_walk *walk) {
    mdp_engine *engine = walk->engine;
    progress p = {.walk = walk, .status = mdp_ok()};
    pthread_mutex_init(&p.lock, NULL); /* with default attributes neither can fail on Linux */
    pthread_cond_init(&p.moved, NULL);
    mdp_status status = prepare(&p);
    if (status.code == MDP_OK) {
#pragma omp parallel num_threads(engine->n_thread)
        take_part(&p);
        status = p.status;
    }
    pthread_cond_destroy(&p.moved);
    pthread_mutex_destroy(&p.lock);
    mdp_free(p.steps);
    mdp_free(p.places);
    MDP_TRY(status);
    count_products(walk);
    mdp_panel_feed_pass(engine->feed, walk->panels->n);
    return mdp_gemm_check(engine->gemm);
}
