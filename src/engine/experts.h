/* experts.h - the expert loop of one rank: its tiles of one round. */
#ifndef MDP_SRC_ENGINE_EXPERTS_H
#define MDP_SRC_ENGINE_EXPERTS_H

#include "engine/gated.h"
#include "engine/placement.h"

/* One row of a tile as it travels with its token. */
typedef struct mdp_row_note {
    int32_t position; /* in the receiver's round */
    int32_t unique;   /* which of the sender's token rows of this round */
    float gate;
    int32_t category;
    int64_t token; /* number in the tokens file */
} mdp_row_note;

/* The rows that a rank computes in one round. */
typedef struct mdp_round {
    int64_t n_row, n_unique;
    float *x;          /* [capacity, d_model] token rows, each once for each sender */
    float *y;          /* [capacity, d_model] by position */
    int32_t *source;   /* [capacity] row of x, by position */
    float *gate;       /* [capacity] by position */
    int32_t *category; /* [capacity] by position */
    int64_t *token;    /* [capacity] by position */
    float *h;          /* [capacity, h_stride] activations by position, where they come back; NULL: none do */
    int64_t h_stride;
    unsigned char *comes_back; /* [capacity] by position: they do of this row; set where h is */
} mdp_round;

/* Scratch of the expert loop of one rank. */
typedef struct mdp_expert_scratch {
    mdp_gated_room room; /* as many tiles as a group has at most */
    float *up;           /* [n_thread, MDP_TILE_ROWS, MDP_PANEL_ROWS] */
    float *bias;         /* [2 d_ff + d_model] of gate, up and down; NULL: experts have none */
    void *stored;        /* room to read them */
    mdp_panel_list panels;
    int64_t n_own;              /* tiles of the round at hand that are this rank's */
    int64_t capacity;           /* for so many */
    const mdp_tile_place **own; /* [n_own] */
    mdp_gated_tile *tiles;      /* [n_own] */
    mdp_gated_group *groups;    /* [n_group] of them */
    int64_t n_group;
} mdp_expert_scratch;

/* Compute this rank's tiles of round `number`: y by position, tile observers. Local. */
mdp_status mdp_experts_compute(mdp_engine *engine, const mdp_layer *layer, int64_t layer_number,
                               const mdp_placement *placement, int32_t number, mdp_round *round,
                               mdp_expert_scratch *scratch);

#endif
