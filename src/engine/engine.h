/* engine.h - the engine's own state, shared by the topics of this folder; nobody else includes it. */
#ifndef MDP_SRC_ENGINE_ENGINE_H
#define MDP_SRC_ENGINE_ENGINE_H

#include "mdp/engine.h"

#define MDP_GROUP_TILES 4              /* tiles that one widened panel serves at least, where there are so many */
#define MDP_ROUND_ROWS 4096            /* rows that a rank takes in one round of dispatch, at least */
#define MDP_WAVE_TOKENS 16384          /* tokens whose expert outputs a rank keeps until they are combined, about */
#define MDP_ATTENTION_ROWS 4096        /* rows of a rank's packs that go through attention together, about */
#define MDP_ATTENTION_VALUES (1 << 26) /* and that hold at most so many values, where more than one pack does */
#define MDP_QUERY_ROWS 128             /* queries of one attention tile */
#define MDP_KEY_ROWS 512               /* keys of one attention tile */
#define MDP_MESSAGE_BYTES (8 << 20)

/* The residual stream of one or more streams that have not parted yet. */
typedef struct mdp_state {
    float *x;                   /* [batch.n_token, d_model] */
    int leader;                 /* a stream of it; its view is the state's */
    int origin;                 /* the state that it parted from */
    int32_t n_expert, top_k;    /* of the layer at hand */
    const mdp_expert_t *source; /* [n_expert] or NULL: all experts, in order */
    const unsigned char *zero;  /* [n_expert] or NULL: those that return 0 */
    mdp_expert_t *index;        /* [n_token, top_k] chosen, numbered in the view; best first */
    float *weight;              /* [n_token, top_k] */
} mdp_state;

/* Number in the model of an expert that is numbered in the state's view. */
static inline mdp_expert_t mdp_model_expert(const mdp_state *state, mdp_expert_t index) {
    return state->source ? state->source[index] : index;
}

/* The ranks that attend to the packs of a batch together: one to its own, or all of a node (team.c). */
typedef struct mdp_team {
    const mdp_comm *comm; /* or a layout */
    const mdp_model *model;
    const mdp_partition *partition;
    int64_t batch;
    const int *ranks; /* [n_rank] ascending; borrowed */
    int n_rank;
    int member; /* of this rank, where it is about an engine's */
} mdp_team;

struct mdp_engine {
    const mdp_comm *comm;
    const mdp_model *model;
    mdp_reader *reader;
    const mdp_tokens *tokens;
    const mdp_partition *partition;
    int n_thread, n_stream;
    mdp_gemm *gemm;
    const mdp_view *const *views; /* [n_stream] */
    mdp_observers observers;
    mdp_profile *profile;    /* borrowed; may be NULL */
    mdp_exchange_room *room; /* what travels between ranks in a round passes through it */
    mdp_stack *stack;        /* buffers of the step at hand */
    mdp_panel_stream *stream;
    float *cosine, *sine; /* [partition->longest, n_pair] positions of sequences up to max_position */
    mdp_shared *shared;   /* where the ranks of a node attend together; NULL: no node does in any batch */
    mdp_status unshared;  /* why some node has none of it, though it should */
    mdp_team team;        /* that this rank is of, in the batch at hand */

    mdp_local_batch batch;
    int64_t batch_number;
    uint32_t *ids;     /* [batch.n_token] */
    int32_t *category; /* [batch.n_token] */
    float *input;      /* [batch.n_token, d_model] residual stream entering the MoE block; NULL: not kept */
    bool recompute;    /* keep it */
    int n_state;
    mdp_state *states; /* [n_stream], the first n_state in use */
    int *stream_state; /* [n_stream] */

    int64_t away_row_wanted; /* (token row, rank of another node that needs it) in all rounds so far */
    int64_t away_row;        /* token rows that were sent to other nodes for that */

    bool allow_nonfinite;
    int64_t nonfinite_key;   /* lowest (expert, token) of this layer on this rank; INT64_MAX: none */
    int64_t n_nonfinite;     /* values set to 0 on this rank */
    int64_t first_nonfinite; /* first layer in which; -1: none */
};

/* ---- views ---------------------------------------------------------------------------------------------------- */

/* A layer in a view (NULL: the model), with the model's own values where the view has none. */
mdp_layer_view mdp_view_layer(const mdp_model *model, const mdp_view *view, int64_t layer);
bool mdp_view_is_same(const mdp_layer_view *a, const mdp_layer_view *b);

/* ---- what the profile is told --------------------------------------------------------------------------------- */

/* Agree on `status`; the time counts as waiting for other ranks. Collective on the communicator of the engine. */
#define MDP_ENGINE_AGREE(engine, status)                                                                               \
    do {                                                                                                               \
        mdp_phase before_waiting = mdp_profile_switch((engine)->profile, MDP_PHASE_WAIT_RANKS);                        \
        (status) = mdp_agree_all((engine)->comm, (status));                                                            \
        mdp_profile_switch((engine)->profile, before_waiting);                                                         \
    } while (0)

/* Reading by this thread, or by threads that it waits for, begins and ends. */
typedef struct mdp_reading {
    mdp_phase before;
    int64_t n_byte; /* of the reader so far */
} mdp_reading;
mdp_reading mdp_engine_begin_reading(mdp_engine *engine);
void mdp_engine_end_reading(mdp_engine *engine, const mdp_reading *reading);
/* mdp_matrix_load, told as reading. Local. */
mdp_status mdp_engine_load(mdp_engine *engine, const mdp_matrix *matrix, float **out);
/* An observer that threads call token by token begins and ends; the main thread's calls are what counts. */
mdp_phase mdp_engine_begin_observing(const mdp_engine *engine);
void mdp_engine_end_observing(const mdp_engine *engine, mdp_phase before);

/* ---- announce.c ----------------------------------------------------------------------------------------------- */

/* Tell the system what the node will read of a layer; nothing behind the last one. Local. */
void mdp_engine_announce(mdp_engine *engine, int64_t layer_number);

/* ---- linear.c: apply stored matrices to row tiles, panel by panel --------------------------------------------- */

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
 * engine's stream are the panels that these need. */
mdp_status mdp_linear_take_items(mdp_engine *engine, const mdp_matrix *matrix, const float *bias, const mdp_rows *tiles,
                                 int64_t n_tile, int64_t first, int64_t end);
/* Let the main thread look after the rows that travel between ranks meanwhile. */
void mdp_engine_look_after_rows(const mdp_engine *engine);

/* ---- gated.c: row tiles through gated MLPs ----------------------------------------------------------------------- */

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
} mdp_gated_room;
/* From the engine's stack. Local. */
mdp_status mdp_gated_take_room(mdp_engine *engine, int64_t n_place, int64_t d_ff, mdp_gated_room *out);
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
    /* Both from any thread, several tiles at once. Fill x of a tile. Look at x, h and y before their places are taken
     * over; may be NULL. */
    void (*load)(void *context, int64_t tile, float *x);
    mdp_status (*finish)(void *context, int64_t tile, const float *x, const float *h);
    void *context;
} mdp_gated_walk;
/* y = down(act(gate(x)) * up(x)) for all tiles. After an error the caller stops the engine's stream. Local. */
mdp_status mdp_gated_run(const mdp_gated_walk *walk);

/* ---- finite.c ------------------------------------------------------------------------------------------------- */

/* Look at the residual stream of every state; `what` it is, for the error: MDP_BAD_INPUT naming the lowest token and
 * the weights to blame. Local: agreed on, the error is the same for any number of ranks. */
mdp_status mdp_finite_residual(mdp_engine *engine, int64_t layer, const char *what);
/* Look at outputs y [n_row, d_model] of an expert. false: not finite, so observers are not to see them; the error comes
 * at the end of the layer. Local, from several threads. */
bool mdp_finite_outputs(mdp_engine *engine, int64_t layer, mdp_expert_t expert, float *y, const int64_t *token,
                        int32_t n_row);
/* The end of a layer: MDP_BAD_INPUT naming the lowest expert and token that was found. Collective. */
mdp_status mdp_finite_agree_all(mdp_engine *engine, int64_t layer);

/* ---- norm.c --------------------------------------------------------------------------------------------------- */

/* A norm of the residual stream in one new array: weights [d_model], then biases [d_model], zeros where it has none.
 * Freed by the caller with mdp_free. Local. */
mdp_status mdp_norm_load(mdp_engine *engine, const mdp_norm *norm, float **out);
/* Stored weights [n] of a norm become those that it multiplies by. */
void mdp_norm_weights(const mdp_model *model, int64_t n, float *weights);
/* y [d_model] = the norm of x; y may be x. `norm` as loaded. */
void mdp_norm_row(const mdp_model *model, const float *norm, const float *x, float *y);

/* ---- memory.c ------------------------------------------------------------------------------------------------- */

/* The most that a rank, or a team, has of a batch. */
typedef struct mdp_rank_share {
    int n_rank; /* of the team */
    int64_t n_token, n_sequence;
    int64_t n_tile;       /* of its packs */
    int64_t longest_pack; /* tokens */
} mdp_rank_share;
/* Panels as a gemm takes them: the type of their values, the bytes of the largest of any matrix that the engine
 * streams, and those that reading one takes beside it. */
typedef struct mdp_panel_size {
    mdp_dtype type;
    int64_t n_byte, n_scratch;
} mdp_panel_size;
mdp_panel_size mdp_largest_panel(const mdp_model *model, mdp_gemm_type type);
/* Panels in the stream: a gate and an up panel for each thread, as where experts have one tile each, and one read
 * ahead. */
int mdp_stream_depth(int n_thread);

/* ---- team.c: who attends together ------------------------------------------------------------------------------ */

/* The ranks of a node, and one of them alone. Local. */
mdp_team mdp_team_of_node(const mdp_comm *comm, const mdp_model *model, const mdp_partition *partition, int64_t batch,
                          int node);
mdp_team mdp_team_alone(const mdp_team *node, int member);
/* Do the ranks of a node attend together? They do where the busiest would otherwise have much more than the mean. */
bool mdp_team_shares(const mdp_team *node);
/* Packs first .. end-1 that a member holds. */
void mdp_team_packs(const mdp_team *team, int member, int64_t *first, int64_t *end);
/* What all members have together. */
mdp_rank_share mdp_team_total(const mdp_team *team);
/* Bytes that a node's ranks share in any batch; 0: they never attend together. */
int64_t mdp_team_memory(const mdp_comm *comm, const mdp_model *model, const mdp_partition *partition, int node,
                        int n_stream);
/* Memory for the nodes whose ranks attend together in some batch. Collective on the engine's communicator. */
mdp_status mdp_team_prepare_all(mdp_engine *engine);
/* The team of this rank in a batch: alone, where its node has no memory to share. Local. */
mdp_team mdp_team_of_batch(const mdp_engine *engine, int64_t batch);
/* Agree on how a step of a team ended; what its members have written in common is then seen by all of them. Collective
 * on the team. */
mdp_status mdp_team_meet_all(mdp_engine *engine, mdp_status local);

/* ---- attention.c ---------------------------------------------------------------------------------------------- */

/* x += Attention(Norm1(x)) for every state. Collective on the ranks of a team; where it is of several, they end alike.
 */
mdp_status mdp_attend_all(mdp_engine *engine, const mdp_layer *layer);
/* Projections in the order in which they are used; absent ones have no tensor. */
#define MDP_N_PROJECTION 11
void mdp_attention_projections(const mdp_attention *attention, const mdp_matrix *out[MDP_N_PROJECTION]);
/* Fill the tables of cosines and sines. Local. */
mdp_status mdp_attention_prepare(mdp_engine *engine);
/* Bytes of the rows of a group of the packs of a team, and those that mdp_attend_all takes besides, of each member. */
int64_t mdp_attention_row_bytes(const mdp_model *model, const mdp_rank_share *share, int n_stream);
int64_t mdp_attention_memory(const mdp_model *model, const mdp_rank_share *share, int n_stream, int n_thread);
/* Add the operations of a team's members in one layer, and the bytes of projections that they read: members [n_rank].
 * Local. */
mdp_status mdp_attention_cost(const mdp_tokens *tokens, const mdp_team *team, const mdp_attention *attention,
                              int n_state, mdp_rank_cost *members);

/* ---- delta.c: linear attention ---------------------------------------------------------------------------------- */

/* What is loaded of a layer. */
typedef struct mdp_delta_weights {
    float *kernel; /* [n_kernel, n_channel] */
    float *rate;   /* [n_value] the decay in one token is e^(rate * softplus(a + shift)), rate < 0 */
    float *shift;  /* [n_value] */
    float *norm;   /* [d_value] */
} mdp_delta_weights;
mdp_status mdp_delta_load(mdp_engine *engine, const mdp_delta *delta, mdp_delta_weights *out);
void mdp_delta_clear(mdp_delta_weights *weights);
/* Values of a row: in, z, b, a one after the other. */
int64_t mdp_delta_row_values(const mdp_delta_sizes *sizes);

/* One value head of one sequence. */
typedef struct mdp_delta_job {
    mdp_gemm *gemm;
    const mdp_delta_sizes *sizes;
    const mdp_delta_weights *weights;
    mdp_activation activation;
    bool grouped;
    double norm_eps;
    int64_t head, length;
    const float *rows; /* [length, mdp_delta_row_values], leading dimension ld */
    int64_t ld;
    float *out; /* [length, n_value * d_value], leading dimension ldo; the head's columns are filled */
    int64_t ldo;
} mdp_delta_job;
/* scratch [mdp_delta_scratch]. Local. */
void mdp_delta_head(const mdp_delta_job *job, float *scratch);
int64_t mdp_delta_scratch(const mdp_delta_sizes *sizes);

/* ---- mlp.c: what every token meets: dense layers and shared experts ------------------------------------------- */

/* A gated MLP over rows of this rank: out = down(act(gate(x)) * up(x)) [* sigmoid(output_gate . x)], x the normalised
 * rows first_local .. first_local + n_local - 1 of a state (whole packs). */
typedef struct mdp_mlp {
    const mdp_expert *expert;
    int64_t d_ff;
    mdp_activation activation;
    const float *output_gate; /* [d_model] or NULL */
    const float *norm;        /* as loaded */
} mdp_mlp;
/* out [n_local, d_model]. Local. */
mdp_status mdp_mlp_compute(mdp_engine *engine, const mdp_mlp *mlp, const mdp_state *state, int64_t first_local,
                           int64_t n_local, float *out);
/* x += MLP(Norm2(x)) for every state: a layer without experts. Local. */
mdp_status mdp_dense(mdp_engine *engine, const mdp_layer *layer);
/* Groups of tiles of packs that mdp_mlp_compute takes together, and of those that mdp_dense does: times that the
 * matrices are read for one state. */
int64_t mdp_mlp_groups(const mdp_pack *packs, int64_t n_pack, int n_thread);
int64_t mdp_dense_groups(const mdp_partition *partition, const mdp_pack *packs, int64_t n_pack, int n_thread);
/* Bytes that each of the two takes. */
int64_t mdp_mlp_memory(const mdp_model *model, mdp_gemm_type type, int64_t d_ff, const mdp_rank_share *share,
                       int n_thread);
int64_t mdp_dense_memory(const mdp_model *model, mdp_gemm_type type, const mdp_partition *partition, int64_t d_ff,
                         const mdp_rank_share *share, int n_thread);

/* ---- router.c ------------------------------------------------------------------------------------------------- */

/* What the routers of a layer need, in the numbering of the model. */
typedef struct mdp_router_rows {
    const float *norm;       /* [d_model] */
    const float *router;     /* [n_expert, d_model] */
    const float *logit_bias; /* [n_expert] added to logits; NULL: none */
    const float *bias;       /* [n_expert] added for choosing; NULL: none */
} mdp_router_rows;
/* Choose experts for every local token of every state: fills index and weight. Local. */
mdp_status mdp_route(mdp_engine *engine, int64_t layer_number, const mdp_router_rows *rows);

/* ---- sparsemixer.c -------------------------------------------------------------------------------------------- */

/* Choose the best two of logits [n], n >= 2 (the best alone where k is 1), and weigh each among the experts that come
 * close to it. Local. */
void mdp_sparsemixer(double jitter, const double *logits, int32_t n, int32_t k, mdp_expert_t *index, float *weight);

/* ---- placement.c ---------------------------------------------------------------------------------------------- */

/* One tile of the wave: rows first .. first+n_row-1 (in token order) of an expert in a block of a state. */
typedef struct mdp_tile_place {
    mdp_expert_t expert; /* number in the model */
    int32_t state;
    int64_t block;
    int32_t n_row;
    int32_t owner;    /* rank that computes it */
    int32_t round;    /* of the owner */
    int32_t position; /* of its first row among the rows of that round */
} mdp_tile_place;

typedef struct mdp_placement {
    int64_t n_tile;
    mdp_tile_place *tiles; /* ascending by expert, block, state; the same on every rank */
    int32_t n_round;       /* rounds of the busiest rank */
    int64_t *first_tile;   /* [n_state, n_block of the wave, n_expert] index of the first tile, -1: no rows */
    int64_t first_block, n_block;
    int32_t n_expert, n_state;
} mdp_placement;

/* Place the tiles of blocks first_block .. first_block + n_block - 1. rows [n_state, n_block, n_expert]: rows over all
 * ranks. n_thread, of every rank, decides how many rows make a round and how many tiles share panels. Local, the same
 * on every rank. */
mdp_status mdp_placement_new(const mdp_comm *comm, const int64_t *rows, int32_t n_state, int64_t first_block,
                             int64_t n_block, int32_t n_expert, int n_thread, mdp_placement **out);
void mdp_placement_destroy(mdp_placement *placement); /* NULL is allowed */
/* The most rows that a rank can have of a wave of n_row rows in n_cell (state, block, expert), however routed. */
int64_t mdp_placement_most_rows(const mdp_comm *comm, int64_t n_row, int64_t n_cell);

/* ---- traffic.c ------------------------------------------------------------------------------------------------ */

/* A wave whose rows are to be sent; all borrowed. */
typedef struct mdp_traffic {
    const mdp_comm *layout;
    const mdp_model *model;
    const mdp_partition *partition;
    int64_t batch;
    const mdp_placement *placement;
    const int64_t *rows;                 /* [n_state, n_block, n_expert] what the placement was made of */
    const mdp_layer_view *views;         /* [n_state] */
    int32_t n_group, n_open, group_size; /* of the router's rule */
} mdp_traffic;

/* Add what each rank of the layout sends of token rows, notes and outputs: bytes_sent and bytes_away of sent [size].
 * Experts of each token are drawn by lot. Local. */
mdp_status mdp_traffic_add(const mdp_traffic *traffic, mdp_rank_cost *sent);

/* ---- moe.c, dispatch.c, experts.c
 * ------------------------------------------------------------------------------------ */

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

/* Bytes of a token row on its way, with a set of ranks of n_word words. */
static inline int64_t mdp_dispatch_row_bytes(const mdp_model *model, int n_word) {
    return model->d_model * (int64_t)sizeof(float) + n_word * (int64_t)sizeof(uint64_t);
}
/* The longest row that an exchange of the engine has. */
int64_t mdp_dispatch_longest_row(const mdp_comm *comm, const mdp_model *model);

/* The MoE block of a layer for all states, after routing: placement, dispatch, experts, return, combine. Collective. */
mdp_status mdp_moe_all(mdp_engine *engine, int64_t layer_number, const float *norm);
/* Blocks of the wave of a batch that begins at block `first` of those below `end`: as many as keep every rank's tokens
 * within MDP_WAVE_TOKENS, at least one. */
int64_t mdp_wave_blocks(const mdp_comm *comm, const mdp_partition *partition, int64_t batch, int64_t first,
                        int64_t end);
/* Room for rows of a round and tiles of a group: no more than the largest batch has, and no more tiles than an expert
 * has when tokens choose evenly, and a quarter, or than keep the threads busy. */
typedef struct mdp_moe_room {
    int64_t n_row, n_tile;
    bool ahead; /* there can be more than one round, and other ranks */
} mdp_moe_room;
mdp_moe_room mdp_moe_room_of(const mdp_comm *comm, const mdp_partition *partition, int32_t top_k, int32_t n_expert,
                             int n_thread, int n_stream);
/* Values of scratch.up for one thread: a panel of products, or a row of the combine. */
int64_t mdp_moe_thread_scratch(int64_t d_model);

/* Bytes that mdp_engine_head_all takes. */
int64_t mdp_head_memory(const mdp_rank_share *share, int n_stream, int n_thread);

/* Rows of a round and tiles of a group, from the number of threads alone. */
static inline int64_t mdp_group_tiles(int n_thread) {
    return n_thread > MDP_GROUP_TILES ? n_thread : MDP_GROUP_TILES;
}
static inline int32_t mdp_round_rows(int n_thread) {
    int32_t rows = 2 * (int32_t)mdp_group_tiles(n_thread) * MDP_TILE_ROWS;
    return rows > MDP_ROUND_ROWS ? rows : MDP_ROUND_ROWS;
}

#endif
