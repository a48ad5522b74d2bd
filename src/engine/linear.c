/* linear.c - the one primitive of linear algebra: stored matrices meet row tiles, panel by panel.
 *
 * In: panels from the engine's stream, in the order in which they were asked for. Out: one single-threaded GEMM per
 * (tile, panel). Threads share out those items; which thread takes which cannot change a bit of the result. After
 * its items the main thread looks after rows on their way between ranks, while the others go on. */
#include "engine/engine.h"

#include <omp.h>

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

mdp_status mdp_panel_list_add(mdp_panel_list *list, const mdp_matrix *matrix) {
    for (int64_t row = 0; row < matrix->n_row; row += MDP_PANEL_ROWS) MDP_TRY(append(list, matrix, row));
    return mdp_ok();
}

mdp_status mdp_panel_list_add_pair(mdp_panel_list *list, const mdp_matrix *first, const mdp_matrix *second) {
    for (int64_t row = 0; row < first->n_row; row += MDP_PANEL_ROWS) {
        MDP_TRY(append(list, first, row));
        MDP_TRY(append(list, second, row));
    }
    return mdp_ok();
}

/* Panels to take at once: one when there are tiles for all threads, more when there are not; the stream keeps at least
 * one buffer to read ahead. */
static int panels_at_once(const mdp_engine *engine, int64_t n_tile, int64_t n_left, int unit) {
    int64_t wanted = (engine->n_thread + n_tile - 1) / n_tile;
    int64_t most = (engine->stream_depth - 1) / unit;
    if (wanted > most) wanted = most;
    if (wanted > n_left) wanted = n_left;
    return (int)(wanted > 1 ? wanted : 1);
}

/* Tell of the products of all tiles with a panel. */
static void count_products(const mdp_engine *engine, const mdp_rows *tiles, int64_t n_tile, const mdp_panel *panel) {
    int64_t n_row = 0;
    for (int64_t t = 0; t < n_tile; t++) n_row += tiles[t].n_row;
    mdp_profile_flop(engine->profile, 2 * n_row * panel->n_row * panel->matrix->n_col);
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

mdp_status mdp_linear_take(mdp_engine *engine, const mdp_matrix *matrix, const float *bias, const mdp_rows *tiles,
                           int64_t n_tile) {
    int64_t n_panel = (matrix->n_row + MDP_PANEL_ROWS - 1) / MDP_PANEL_ROWS;
    mdp_panel panels[64];
    for (int64_t first = 0; first < n_panel;) {
        int n = panels_at_once(engine, n_tile, n_panel - first, 1);
        if (n > 64) n = 64;
        MDP_TRY(mdp_panel_stream_next(engine->stream, n, panels));
#pragma omp parallel for schedule(dynamic, 1) num_threads(engine->n_thread) collapse(2)
        for (int p = 0; p < n; p++) {
            for (int64_t t = 0; t < n_tile; t++) {
                linear_item(engine->gemm, &tiles[t], &panels[p], bias);
                look_after_rows(engine);
            }
        }
        for (int p = 0; p < n; p++) count_products(engine, tiles, n_tile, &panels[p]);
        first += n;
    }
    return mdp_gemm_check(engine->gemm);
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
    int64_t n_pair = (gate->n_row + MDP_PANEL_ROWS - 1) / MDP_PANEL_ROWS;
    mdp_panel panels[64];
    for (int64_t first = 0; first < n_pair;) {
        int n = panels_at_once(engine, n_tile, n_pair - first, 2);
        if (n > 32) n = 32;
        MDP_TRY(mdp_panel_stream_next(engine->stream, 2 * n, panels));
#pragma omp parallel for schedule(dynamic, 1) num_threads(engine->n_thread) collapse(2)
        for (int p = 0; p < n; p++) {
            for (int64_t t = 0; t < n_tile; t++) {
                float *own = scratch + (size_t)omp_get_thread_num() * MDP_TILE_ROWS * MDP_PANEL_ROWS;
                gated_item(engine->gemm, gating, &tiles[t], &panels[2 * p], &panels[2 * p + 1], own);
                look_after_rows(engine);
            }
        }
        for (int p = 0; p < 2 * n; p++) count_products(engine, tiles, n_tile, &panels[p]);
        first += n;
    }
    return mdp_gemm_check(engine->gemm);
}
