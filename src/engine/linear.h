/* linear.h - stored matrices applied to tiles of rows, panel by panel. */
#ifndef MDP_SRC_ENGINE_LINEAR_H
#define MDP_SRC_ENGINE_LINEAR_H

#include "engine/engine.h"

typedef struct mdp_rows {
    const float *x; /* [n_row, n_col of the matrix], leading dimension ldx */
    int64_t ldx;
    const uint16_t *rounded; /* x in bf16, in the same places, for products in bf16; NULL: they round it each time */
    float *y;                /* [n_row, n_row of the matrix], leading dimension ldy */
    int64_t ldy;
    int32_t n_row;
} mdp_rows;

typedef struct mdp_panel_list {
    mdp_panel *items;
    int64_t n, capacity;
} mdp_panel_list;

/* Append all panels of a matrix, or panels first .. end-1; of two matrices of the same number of rows alternately. */
mdp_status mdp_panel_list_add(mdp_panel_list *list, const mdp_matrix *matrix);
mdp_status mdp_panel_list_add_run(mdp_panel_list *list, const mdp_matrix *matrix, int64_t first, int64_t end);
mdp_status mdp_panel_list_add_pair(mdp_panel_list *list, const mdp_matrix *first, const mdp_matrix *second);
int64_t mdp_panel_count(const mdp_matrix *matrix);
/* y = x W^T of one tile and one panel, columns 0 .. panel->n_row - 1 of y. */
void mdp_linear_multiply(mdp_gemm *gemm, const mdp_rows *tile, const mdp_panel *panel, float *y, int64_t ldy);
/* Columns of y = x W^T + bias of one tile, those of one panel; bias [n_row of the matrix] or NULL. */
void mdp_linear_item(mdp_gemm *gemm, const mdp_rows *tile, const mdp_panel *panel, const float *bias);
/* Items first .. end-1 of y = x W^T + bias, where panel p of the matrix and tile t are item p * n_tile + t; next in the
 * engine's feed are the panels that these need. */
mdp_status mdp_linear_take_items(mdp_engine *engine, const mdp_matrix *matrix, const float *bias, const mdp_rows *tiles,
                                 int64_t n_tile, int64_t first, int64_t end);
/* Let the main thread look after the rows that travel between ranks meanwhile. */
void mdp_engine_look_after_rows(const mdp_engine *engine);

#endif
