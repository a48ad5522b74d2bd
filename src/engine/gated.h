/* gated.h - tiles of rows through gated MLPs. */
#ifndef MDP_SRC_ENGINE_GATED_H
#define MDP_SRC_ENGINE_GATED_H

#include "engine/linear.h"

/* What becomes of the products with a gate and an up matrix. */
typedef struct mdp_gating {
    mdp_activation activation;
    const float *gate_bias, *up_bias; /* [rows of the matrices] or NULL */
} mdp_gating;
typedef struct mdp_gated_tile {
    float *y; /* [n_row, d_model] */
    int32_t n_row;
} mdp_gated_tile;

/* The next n_tile tiles of a walk, which share the panels of an expert. */
typedef struct mdp_gated_group {
    const mdp_expert *expert;
    int64_t n_tile;
} mdp_gated_group;

/* Where tiles lie while they go through. Products in bf16 have them rounded as well: once for all panels. */
typedef struct mdp_gated_room {
    int64_t n_place;     /* tiles at a time */
    int64_t d_ff;        /* of the largest expert */
    float *x;            /* [n_place, MDP_TILE_ROWS, d_model] */
    float *h;            /* [n_place, MDP_TILE_ROWS, d_ff]; rows of a tile are as long as its expert's */
    uint16_t *x_rounded; /* the same shapes; NULL: products are in f32 */
    uint16_t *h_rounded;
    float *projected; /* of h's shape: products of y with the columns of down; NULL: not wanted */
} mdp_gated_room;
/* From the engine's stack. Local. */
mdp_status mdp_gated_take_room(mdp_engine *engine, int64_t n_place, int64_t d_ff, mdp_gated_room *out);
/* Room for products of outputs with columns beside that. Local. */
mdp_status mdp_gated_take_projections(mdp_engine *engine, mdp_gated_room *room);
/* Its bytes, where n_row of its rows are used. */
int64_t mdp_gated_room_memory(const mdp_model *model, mdp_gemm_type type, int64_t n_place, int64_t d_ff, int64_t n_row);

/* Groups of tiles that go through their experts; all borrowed. */
typedef struct mdp_gated_walk {
    mdp_engine *engine;
    mdp_gating gating;
    const float *down_bias; /* [d_model] or NULL; biases are of one expert, the only one */
    const mdp_gated_group *groups;
    int64_t n_group;
    const mdp_gated_tile *tiles; /* of all groups, one after the other */
    const mdp_gated_room *room;  /* no group has more tiles than places */
    float *up;                   /* [n_thread, MDP_TILE_ROWS, MDP_PANEL_ROWS] */
    mdp_panel_list *panels;      /* scratch, kept for the next walk */
    /* Both from any thread, several tiles at once. Fill x of a tile. Look at x, h, y and, where there is room for them,
     * projected products before their places are taken over; may be NULL. */
    void (*load)(void *context, int64_t tile, float *x);
    mdp_status (*finish)(void *context, int64_t tile, const float *x, const float *h, const float *projected);
    void *context;
} mdp_gated_walk;
/* y = down(act(gate(x)) * up(x)) for all tiles. After an error the caller stops the engine's stream. Local. */
mdp_status mdp_gated_run(const mdp_gated_walk *walk);

#endif
