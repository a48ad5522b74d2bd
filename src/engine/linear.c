/* linear.c - the one primitive of linear algebra: stored matrices meet row tiles, panel by panel.
 *
 * In: panels from the engine's feed, in the order in which they were asked for. Out: one single-threaded GEMM per
 * (tile, panel). Threads share out those items; which thread takes which cannot change a bit of the result. They do not
 * wait for each other from panel to panel: one that is held up, as by the reading thread on its core, holds up nobody.
 * After its items the main thread looks after rows on their way between ranks, while the others go on. */
#include "engine/linear.h"

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

int64_t mdp_panel_count(const mdp_matrix *matrix) {
    return (matrix->n_row + MDP_PANEL_ROWS - 1) / MDP_PANEL_ROWS;
}

mdp_status mdp_panel_list_add_run(mdp_panel_list *list, const mdp_matrix *matrix, int64_t first, int64_t end) {
    for (int64_t panel = first; panel < end; panel++) MDP_TRY(append(list, matrix, panel * MDP_PANEL_ROWS));
    return mdp_ok();
}

mdp_status mdp_panel_list_add(mdp_panel_list *list, const mdp_matrix *matrix) {
    return mdp_panel_list_add_run(list, matrix, 0, mdp_panel_count(matrix));
}

mdp_status mdp_panel_list_add_pair(mdp_panel_list *list, const mdp_matrix *first, const mdp_matrix *second) {
    for (int64_t row = 0; row < first->n_row; row += MDP_PANEL_ROWS) {
        MDP_TRY(append(list, first, row));
        MDP_TRY(append(list, second, row));
    }
    return mdp_ok();
}

/* Tiles meet a matrix. Items are numbered panel after panel; within one, tile after tile. A walk goes through items
 * first .. end-1, whose panels it counts from 0 on. */
typedef struct walk {
    mdp_engine *engine;
    int64_t n_tile, n_panel;
    int64_t first, end; /* items from the first panel's first on */
    int64_t next;       /* item that nobody has taken */
    mdp_status status;  /* the first error */
} walk;

/* Items first .. end-1 of a whole matrix. */
static walk begin_walk(mdp_engine *engine, int64_t n_tile, int64_t first, int64_t end) {
    int64_t skipped = first / n_tile;
    return (walk){.engine = engine,
                  .n_tile = n_tile,
                  .n_panel = (end + n_tile - 1) / n_tile - skipped,
                  .first = first - skipped * n_tile,
                  .end = end - skipped * n_tile,
                  .next = first - skipped * n_tile,
                  .status = mdp_ok()};
}

/* How many of its items the walk has: all but for the first panel and the last. */
static int64_t items_of(const walk *w, int64_t panel) {
    int64_t low = panel * w->n_tile, high = low + w->n_tile;
    return (high < w->end ? high : w->end) - (low > w->first ? low : w->first);
}

/* An item for this thread, with its panel, the number-th of the walk; false: there is none. */
static bool take_item(walk *w, int64_t *tile, int64_t *number, mdp_panel *panel) {
    int64_t item = __atomic_fetch_add(&w->next, 1, __ATOMIC_RELAXED);
    if (item >= w->end) return false;
    *number = item / w->n_tile;
    *tile = item % w->n_tile;
    mdp_status status = mdp_panel_feed_wait(w->engine->feed, *number, 1, panel);
    if (status.code == MDP_OK) return true;
    __atomic_store_n(&w->next, w->end, __ATOMIC_RELAXED);
#pragma omp critical(mdp_walk)
    if (w->status.code == MDP_OK) w->status = status;
    return false;
}

void mdp_engine_look_after_rows(const mdp_engine *engine) {
    mdp_exchange_room *room = engine->room;
    if (omp_get_thread_num() > 0 || room->n_done == room->n_begun) return;
    mdp_phase before = mdp_profile_switch(engine->profile, MDP_PHASE_DISPATCH);
    mdp_exchange_look(engine->comm, room);
    mdp_profile_switch(engine->profile, before);
}

void mdp_linear_multiply(mdp_gemm *gemm, const mdp_rows *tile, const mdp_panel *panel, float *y, int64_t ldy) {
    int k = (int)panel->matrix->n_col, m = (int)panel->n_row, n = tile->n_row, ldx = (int)tile->ldx;
    if (tile->rounded)
        mdp_gemm_rounded(gemm, n, m, k, tile->rounded, ldx, panel->data, k, y, (int)ldy);
    else
        mdp_gemm_weights(gemm, n, m, k, tile->x, ldx, panel->data, k, y, (int)ldy);
}

void mdp_linear_item(mdp_gemm *gemm, const mdp_rows *tile, const mdp_panel *panel, const float *bias) {
    int m = (int)panel->n_row;
    float *y = tile->y + panel->row0;
    mdp_linear_multiply(gemm, tile, panel, y, tile->ldy);
    if (!bias) return;
    for (int32_t i = 0; i < tile->n_row; i++) mdp_axpy(1.0F, bias + panel->row0, m, y + (size_t)i * (size_t)tile->ldy);
}

/* Tell of the product of a tile with panel `number` of a matrix. */
static void count_product(const mdp_engine *engine, const mdp_rows *tile, const mdp_matrix *matrix, int64_t number) {
    int64_t left = matrix->n_row - number * MDP_PANEL_ROWS, n_row = left < MDP_PANEL_ROWS ? left : MDP_PANEL_ROWS;
    mdp_profile_flop(engine->profile, 2 * tile->n_row * n_row * matrix->n_col);
}

mdp_status mdp_linear_take_items(mdp_engine *engine, const mdp_matrix *matrix, const float *bias, const mdp_rows *tiles,
                                 int64_t n_tile, int64_t first, int64_t end) {
    walk w = begin_walk(engine, n_tile, first, end);
#pragma omp parallel num_threads(engine->n_thread)
    {
        mdp_panel panel;
        for (int64_t t, number; take_item(&w, &t, &number, &panel);) {
            mdp_linear_item(engine->gemm, &tiles[t], &panel, bias);
            mdp_panel_feed_release(engine->feed, number, 1, items_of(&w, number));
            mdp_engine_look_after_rows(engine);
        }
    }
    for (int64_t i = first; i < end; i++) count_product(engine, &tiles[i % n_tile], matrix, i / n_tile);
    MDP_TRY(w.status);
    mdp_panel_feed_pass(engine->feed, w.n_panel);
    return mdp_gemm_check(engine->gemm);
}
