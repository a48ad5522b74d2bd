/* engine.h - the distributed forward pass: which rank holds which tokens, and one layer after another with weights
 * streamed in panels. The unit of arithmetic (pack, block, tile, panel) is fixed by the input alone. */
#ifndef MDP_ENGINE_H
#define MDP_ENGINE_H

#include "mdp/model.h"

#define MDP_PACK_TOKENS 512    /* a pack: whole sequences, at least this many tokens (the last may be short) */
#define MDP_BLOCK_TOKENS 16384 /* a block: whole packs, at least this many tokens (the last may be short) */
#define MDP_TILE_ROWS 512      /* rows of one GEMM */
#define MDP_PANEL_ROWS 512     /* output rows of a weight matrix in one GEMM */

/* ---- what a plan means for the engine ------------------------------------------------------------------------ */

/* A MoE layer as a stream sees it. */
typedef struct mdp_layer_view {
    int32_t n_expert; /* experts of this stream's layer */
    int32_t top_k;
    const mdp_expert_t *source; /* [n_expert] their numbers in the model, ascending; router rows follow them */
} mdp_layer_view;

/* A model as a stream sees it: a virtual plan. Made by transform; owns the arrays that layers point to. */
typedef struct mdp_view {
    int64_t n_layer;
    mdp_layer_view *layers; /* [n_layer]; n_expert = 0: layer as the model has it */
    mdp_expert_t *memory;   /* backing store */
} mdp_view;
void mdp_view_destroy(mdp_view *view); /* NULL is allowed */

/* ---- observers ----------------------------------------------------------------------------------------------- */

/* One tile of one expert, while it is in cache. Rows are in token order of their block. */
typedef struct mdp_tile {
    int64_t layer;       /* of the model */
    int stream;          /* state index: streams that still share everything share a state */
    mdp_expert_t expert; /* number in the model */
    int32_t n_row;
    int64_t d_model, d_ff;
    const float *x;          /* [n_row, d_model] input of the expert (after the norm) */
    const float *h;          /* [n_row, d_ff] */
    const float *y;          /* [n_row, d_model] unweighted output */
    const float *gate;       /* [n_row] applied weight */
    const int32_t *category; /* [n_row] */
    const int64_t *token;    /* [n_row] number of the token in the tokens file */
} mdp_tile;

/* Called from worker threads, several at once: adds to its own thread's store. */
typedef mdp_status mdp_tile_observer_fn(void *context, int thread, const mdp_tile *tile);

#endif
