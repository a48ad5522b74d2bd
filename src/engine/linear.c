/* linear.c - the one primitive of linear algebra: stored matrices meet row tiles, panel by panel.
 *
 * In: panels from the engine's stream, in the order in which they were asked for. Out: one single-threaded GEMM per
 * (tile, panel). Threads share out those items; which thread takes which cannot change a bit of the result. They do not
 * wait for each other from panel to panel: one that is held up, as by the reading thread on its core, holds up nobody.
 * After its items the main thread looks after rows on their way between ranks, while the others go on. */
#include "engine/engine.h"

#include <omp.h>
#include <string.h>

static mdp_status append(mdp_panel_list *list, const mdp_matrix *matrix, int64_t row0) {
    if (list->n == list->capacity) {
        int64_t capacity = list->capacity ? 2 * list->capacity : 64;
        MDP_TRY(MDP_GROW(&list->items, list->capacity, capacity, "the list of panels"));
        list->capacity = capacity;
    }
    int64_t left = matrix->n_row - row0;
    list->items[list->n++] =
        (mdp_panel){.matrix = matrix, .row0 = row0, .n_row = left < MDP_PANEL_ROWS ? left : MDP_PANEL_ROWS};
    return mdp_ok();
}

static int64_t count_panels(const mdp_matrix *matrix) {
    return (matrix->n_row + MDP_PANEL_ROWS - 1) / MDP_PANEL_ROWS;
}

mdp_status mdp_panel_list_add_run(mdp_panel_list *list, const mdp_matrix *matrix, int64_t first, int64_t end) {
    for (int64_t panel = first; panel < end; panel++) MDP_TRY(append(list, matrix, panel * MDP_PANEL_ROWS));
    return mdp_ok();
}

mdp_status mdp_panel_list_add(mdp_panel_list *list, const mdp_matrix *matrix) {
    return mdp_panel_list_add_run(list, matrix, 0, count_panels(matrix));
}

mdp_status mdp_panel_list_add_pair(mdp_panel_list *list, const mdp_matrix *first, const mdp_matrix *second) {
    for (int64_t row = 0; row < first->n_row; row += MDP_PANEL_ROWS) {
        MDP_TRY(append(list, first, row));
        MDP_TRY(append(list, second, row));
    }
    return mdp_ok();
}

/* Tiles meet a matrix. Items are numbered unit after unit, where a unit is one panel, or a gate's and its up's; within
 * one, tile after tile. A walk goes through items first .. end-1, whose units it counts from 0 on. */
typedef struct walk {
    mdp_engine *engine;
    int64_t n_tile, n_unit;
    int unit;           /* panels of a unit */
    int64_t first, end; /* items from the first unit's first on */
    int64_t next;       /* item that nobody has taken */
    int64_t front;      /* the first unit that somebody still needs */
    int64_t *n_done;    /* [stream_depth] items done of unit u, at u % stream_depth: no more units are in memory */
    mdp_status status;  /* the first error */
} walk;

/* Items first .. end-1 of a whole matrix. */
static walk begin_walk(mdp_engine *engine, int64_t n_tile, int64_t first, int64_t end, int unit) {
    int64_t skipped = first / n_tile;
    memset(engine->panel_done, 0, (size_t)engine->stream_depth * sizeof *engine->panel_done);
    return (walk){.engine = engine,
                  .n_tile = n_tile,
                  .n_unit = (end + n_tile - 1) / n_tile - skipped,
                  .unit = unit,
                  .first = first - skipped * n_tile,
                  .end = end - skipped * n_tile,
                  .next = first - skipped * n_tile,
                  .n_done = engine->panel_done,
                  .status = mdp_ok()};
}

/* How many of its items the walk has: all but for the first unit and the last. */
static int64_t items_of(const walk *w, int64_t unit) {
    int64_t low = unit * w->n_tile, high = low + w->n_tile;
    return (high < w->end ? high : w->end) - (low > w->first ? low : w->first);
}

/* An item for this thread, with its panels; false: there is none. */
static bool take_item(walk *w, int64_t *tile, int64_t *unit, mdp_panel *panels) {
    int64_t item = __atomic_fetch_add(&w->next, 1, __ATOMIC_RELAXED);
    if (item >= w->end) return false;
    *unit = item / w->n_tile;
    *tile = item % w->n_tile;
    mdp_status status = mdp_panel_stream_wait(w->engine->stream, *unit * w->unit, w->unit, panels);
    if (status.code == MDP_OK) return true;
    __atomic_store_n(&w->next, w->end, __ATOMIC_RELAXED);
#pragma omp critical(mdp_walk)
    if (w->status.code == MDP_OK) w->status = status;
    return false;
}

/* A tile has met a unit: units whose items are all done are released, in order. */
static void end_item(walk *w, int64_t unit) {
    int depth = w->engine->stream_depth;
#pragma omp critical(mdp_walk)
    {
        w->n_done[unit % depth]++;
        if (w->n_done[w->front % depth] == items_of(w, w->front)) {
            for (; w->front < w->n_unit && w->n_done[w->front % depth] == items_of(w, w->front); w->front++)
                w->n_done[w->front % depth] = 0;
            mdp_panel_stream_release(w->engine->stream, w->front * w->unit);
        }
    }
}

static mdp_status end_walk(const walk *w) {
    MDP_TRY(w->status);
    mdp_panel_stream_pass(w->engine->stream, w->n_unit * w->unit);
    return mdp_gemm_check(w->engine->gemm);
}

/* Tell of the product of a tile with a panel. */
static void count_product(const mdp_engine *engine, const mdp_rows *tile, const mdp_matrix *matrix, int64_t panel) {
    int64_t left = matrix->n_row - panel * MDP_PANEL_ROWS, n_row = left < MDP_PANEL_ROWS ? left : MDP_PANEL_ROWS;
    mdp_profile_flop(engine->profile, 2 * tile->n_row * n_row * matrix->n_col);
}

/* Let the main thread look after the rows that travel meanwhile. */
static void look_after_rows(const mdp_engine *engine) {
    mdp_exchange_room *room = engine->room;
    if (omp_get_thread_num() > 0 || room->n_done == room->n_begun) return;
    mdp_phase before = mdp_profile_switch(engine->profile, MDP_PHASE_DISPATCH);
    mdp_exchange_look(engine->comm, room);
    mdp_profile_switch(engine->profile, before);
}

/* One item of the product: columns of one panel for one tile. */
static void linear_item(mdp_gemm *gemm, const mdp_rows *tile, const mdp_panel *panel, const float *bias) {
    int k = (int)panel->matrix->n_col, m = (int)panel->n_row;
    float *y = tile->y + panel->row0;
    mdp_gemm_weights(gemm, tile->n_row, m, k, tile->x, (int)tile->ldx, panel->data, k, y, (int)tile->ldy);
    if (!bias) return;
    for (int32_t i = 0; i < tile->n_row; i++) mdp_axpy(1.0F, bias + panel->row0, m, y + (size_t)i * (size_t)tile->ldy);
}

mdp_status mdp_linear_take_items(mdp_engine *engine, const mdp_matrix *matrix, const float *bias, const mdp_rows *tiles,
                                 int64_t n_tile, int64_t first, int64_t end) {
    walk w = begin_walk(engine, n_tile, first, end, 1);
#pragma omp parallel num_threads(engine->n_thread)
    {
        mdp_panel panel;
        for (int64_t t, unit; take_item(&w, &t, &unit, &panel); end_item(&w, unit)) {
            linear_item(engine->gemm, &tiles[t], &panel, bias);
            look_after_rows(engine);
        }
    }
    for (int64_t i = first; i < end; i++) count_product(engine, &tiles[i % n_tile], matrix, i / n_tile);
    return end_walk(&w);
}

mdp_status mdp_linear_take(mdp_engine *engine, const mdp_matrix *matrix, const float *bias, const mdp_rows *tiles,
                           int64_t n_tile) {
    return mdp_linear_take_items(engine, matrix, bias, tiles, n_tile, 0, count_panels(matrix) * n_tile);
}

/* One item of the gated product: columns of one panel pair for one tile. */
static void gated_item(mdp_gemm *gemm, const mdp_gating *gating, const mdp_rows *tile, const mdp_panel *gate,
                       const mdp_panel *up, float *scratch) {
    int k = (int)gate->matrix->n_col, m = (int)gate->n_row;
    float *h = tile->y + gate->row0;
    mdp_gemm_weights(gemm, tile->n_row, m, k, tile->x, (int)tile->ldx, gate->data, k, h, (int)tile->ldy);
    mdp_gemm_weights(gemm, tile->n_row, m, k, tile->x, (int)tile->ldx, up->data, k, scratch, MDP_PANEL_ROWS);
    for (int32_t i = 0; i < tile->n_row; i++, h += tile->ldy, scratch += MDP_PANEL_ROWS) {
        if (gating->gate_bias) mdp_axpy(1.0F, gating->gate_bias + gate->row0, m, h);
        if (gating->up_bias) mdp_axpy(1.0F, gating->up_bias + up->row0, m, scratch);
        if (gating->activation == MDP_SWIGLU_CLAMPED) {
            mdp_gate_clamped(gating->alpha, gating->limit, scratch, m, h);
        } else {
            mdp_gate(gating->activation, scratch, m, h);
        }
    }
}

mdp_status mdp_gated_take(mdp_engine *engine, const mdp_gating *gating, const mdp_matrix *gate, const mdp_rows *tiles,
                          int64_t n_tile, float *scratch) {
    int64_t n_item = count_panels(gate) * n_tile;
    walk w = begin_walk(engine, n_tile, 0, n_item, 2);
#pragma omp parallel num_threads(engine->n_thread)
    {
        float *own = scratch + (size_t)omp_get_thread_num() * MDP_TILE_ROWS * MDP_PANEL_ROWS;
        mdp_panel pair[2];
        for (int64_t t, unit; take_item(&w, &t, &unit, pair); end_item(&w, unit)) {
            gated_item(engine->gemm, gating, &tiles[t], &pair[0], &pair[1], own);
            look_after_rows(engine);
        }
    }
    for (int of_two = 0; of_two < 2; of_two++)
        for (int64_t i = 0; i < n_item; i++) count_product(engine, &tiles[i % n_tile], gate, i / n_tile);
    return end_walk(&w);
}
