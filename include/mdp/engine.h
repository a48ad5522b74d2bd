/* engine.h - the distributed forward pass: which rank holds which tokens, and one layer after another with weights
 * streamed in panels. The unit of arithmetic (pack, block, tile, panel) is fixed by the input alone, so results do not
 * depend on ranks, threads, batches, memory or placement. */
#ifndef MDP_ENGINE_H
#define MDP_ENGINE_H

#include "mdp/model.h"

#define MDP_PACK_TOKENS 512    /* a pack: whole sequences, at least this many tokens (the last may be short) */
#define MDP_BLOCK_TOKENS 16384 /* a block: whole packs, at least this many tokens (the last may be short) */
#define MDP_TILE_ROWS 512      /* rows of one GEMM */
#define MDP_DELTA_CHUNK 64     /* tokens that linear attention takes at once, from a sequence's first */
#define MDP_PANEL_ROWS 512     /* output rows of a weight matrix in one GEMM */

/* ---- what a plan means for the engine ------------------------------------------------------------------------ */

/* A MoE layer as a stream sees it. */
typedef struct mdp_layer_view {
    int32_t n_expert; /* experts of this stream's layer; 0: the layer as the model has it */
    int32_t top_k;
    int32_t n_used; /* of top_k, those that the router chooses; the others a token visits only to be observed, and what
                     * they return adds nothing; 0: all */
    const mdp_expert_t *source;    /* [n_expert] their numbers in the model, ascending; router rows follow them, but
                                    * for those that are made with a row of their own */
    const unsigned char *zero;     /* [n_expert] nonzero: the expert is chosen as ever, but returns 0; NULL: none */
    const mdp_expert *const *made; /* [n_expert] who computes in the place of the model's expert source[i]; NULL entry,
                                    * or NULL: it does itself */
} mdp_layer_view;

/* A model as a stream sees it: a virtual plan. Made by transform; owns the arrays that layers point to. */
typedef struct mdp_view {
    int64_t n_layer;
    mdp_layer_view *layers;  /* [n_layer] */
    mdp_expert_t *memory;    /* backing store of the sources */
    unsigned char *zeros;    /* and of the zeros; or NULL */
    const mdp_expert **made; /* and of those that are made; or NULL */
    mdp_expert *experts;     /* which are these; or NULL */
} mdp_view;
void mdp_view_destroy(mdp_view *view); /* NULL is allowed */

/* ---- tokens over ranks --------------------------------------------------------------------------------------- */

typedef struct mdp_pack {
    int64_t first_sequence, n_sequence;
    int64_t first_token, n_token; /* counted over the whole tokens file */
    int64_t n_pair;               /* of a token and one that it sees, itself or before it in its sequence */
    int64_t block;                /* the block it belongs to */
} mdp_pack;

/* How a tokens file is cut; the same on every rank. */
typedef struct mdp_partition {
    int64_t n_pack;
    mdp_pack *packs; /* [n_pack] */
    int64_t n_block;
    int64_t *block_pack; /* [n_block + 1] first pack of each block */
    int64_t n_batch;
    int64_t *batch_block; /* [n_batch + 1] first block of each batch */
    int64_t batch_tokens; /* tokens of the largest batch */
    int64_t longest;      /* tokens of the longest sequence */
} mdp_partition;

/* Cut into packs and blocks, and into batches of whole blocks with at most batch_tokens tokens (at least one block; 0:
 * all in one batch). Local, the same on every rank. */
mdp_status mdp_partition_new(const mdp_tokens *tokens, int64_t batch_tokens, mdp_partition **out);
void mdp_partition_destroy(mdp_partition *partition); /* NULL is allowed */
/* Tokens of a block. */
int64_t mdp_partition_block_tokens(const mdp_partition *partition, int64_t block);
/* Packs first .. end-1 of a batch that a rank holds: contiguous, balanced by tokens. */
void mdp_partition_share(const mdp_partition *partition, int64_t batch, int rank, int size, int64_t *first,
                         int64_t *end);

/* ---- observers ----------------------------------------------------------------------------------------------- */

/* One tile of one expert, while it is in cache. Rows are in token order of their block; a tile never mixes branches. */
typedef struct mdp_tile {
    int64_t layer;       /* of the model */
    int branch;          /* streams that still share everything share a branch */
    mdp_expert_t expert; /* number in the model */
    int32_t n_row;
    int64_t d_model, d_ff;
    const float *x;          /* [n_row, d_model] input of the expert (after the norm) */
    const float *h;          /* [n_row, d_ff] */
    const float *y;          /* [n_row, d_model] unweighted output */
    const float *projected;  /* [n_row, d_ff] y W_d, where a pass asks for it; NULL */
    const float *gate;       /* [n_row] applied weight */
    bool weighed;            /* it multiplied x: y has it already */
    const int32_t *category; /* [n_row] */
    const int64_t *token;    /* [n_row] number of the token in the tokens file */
} mdp_tile;

/* One token after its router, at its owner. */
typedef struct mdp_routed_token {
    int64_t layer;
    int branch;
    int64_t local;             /* row on this rank, in the current batch */
    int32_t n_expert, top_k;   /* of the branch's view; of top_k those that the router chose */
    const float *x;            /* [d_model] input of the MoE block */
    const double *logits;      /* [n_expert] */
    const mdp_expert_t *index; /* [top_k] chosen, numbered in the view, best first */
    const float *weight;       /* [top_k] applied weights */
    double *scratch;           /* [n_expert] room for the observer */
} mdp_routed_token;

/* One token after the combine, at its owner. */
typedef struct mdp_combined_token {
    int64_t layer;
    int branch;
    int64_t local;
    int32_t top_k;
    const mdp_expert_t *index; /* [top_k] numbered in the view; visited ones after those that are used */
    const float *weight;       /* [top_k] 0 for visited ones, unless weights multiply x */
    const float *y;            /* [top_k, d_model] unweighted outputs in slot order */
    const float *residual;     /* [d_model] residual stream entering the block, before the norm */
    const float *routed;       /* [d_model] sum of weight * y */
    const float *shared;       /* [d_model] output of the shared expert; NULL: none */
    bool weighed;              /* y has the weights already */
    float scale;               /* routed + shared are multiplied by it when they join the residual stream */
} mdp_combined_token;

/* Tokens of a branch in whole blocks, with what their experts computed, at their owners. */
typedef struct mdp_wave_rows {
    int64_t layer;
    int branch;
    int64_t first_block, n_block;
    int64_t first_local, n_local; /* rows of this rank, in the current batch */
    const int64_t *block_first;   /* [n_block + 1] first row of each block, counted from first_local */
    int32_t n_expert, top_k;      /* of the branch's view */
    const mdp_expert_t *index;    /* [n_local, top_k] numbered in the view, best first */
    const float *weight;          /* [n_local, top_k] */
    const float *h;               /* [n_local, top_k, stride] activations before the down projection */
    int64_t stride;               /* values of the widest expert */
} mdp_wave_rows;

/* Any may be NULL. Called from worker threads, several at once; what they add must not depend on the order. */
typedef struct mdp_observers {
    mdp_status (*tile)(void *context, const mdp_tile *tile);
    void (*routed)(void *context, const mdp_routed_token *token);
    void (*combined)(void *context, const mdp_combined_token *token);
    /* After all tokens of some blocks are combined, where a pass brings activations back (mdp_pass): those of the last
     * stream. From the main thread of every rank. Collective. */
    mdp_status (*wave_all)(void *context, const mdp_wave_rows *rows);
    void *context;
} mdp_observers;

/* ---- the engine ---------------------------------------------------------------------------------------------- */

typedef struct mdp_engine mdp_engine;

/* What a forward pass is, as far as its cost goes. */
typedef struct mdp_pass {
    int n_stream;                 /* streams, >= 1 */
    bool with_head;               /* mdp_engine_head_all will be called */
    bool head_again;              /* and its consumer takes the panels twice */
    int64_t token_byte;           /* bytes that observers, or who consumes the logits, hold for a token of a stream */
    int64_t batches_byte;         /* bytes that observers hold of a rank from one batch to the next */
    bool redo_block;              /* mdp_engine_redo_block_all will be called, after each layer */
    bool one_batch;               /* observers must see all tokens of a layer before the next */
    bool activations;             /* those of the last stream come back to the tokens' owners */
    int32_t aside_slots;          /* mdp_engine_aside_all will be called, with so many slots at most; 0: it will not */
    bool projected;               /* tiles come with y W_d; not for products in bf16 */
    const mdp_view *const *views; /* [n_stream] what streams are, or will be about; NULL entry, or NULL: the model */
} mdp_pass;

typedef struct mdp_engine_options {
    int n_thread;   /* threads of this rank, >= 1 */
    mdp_gemm *gemm; /* for as many threads; borrowed */
    mdp_pass pass;
    const mdp_view *const *views;   /* [n_stream]; NULL entry: the model as it is */
    const mdp_observers *observers; /* may be NULL */
    bool allow_nonfinite;           /* values that are not finite count as 0 instead of ending the pass */
    mdp_profile *profile;           /* begun by the caller; NULL: nothing is counted */
} mdp_engine_options;

/* Can a sequence of so many tokens be computed? MDP_BAD_INPUT. Local. */
mdp_status mdp_engine_check_length(const mdp_model *model, int64_t n_token);
/* Everything that one forward pass needs; buffers are allocated by the calls that use them and their sizes are those of
 * mdp_engine_memory. Collective on `comm` (agrees). The arguments are borrowed. */
mdp_status mdp_engine_new_all(const mdp_comm *comm, const mdp_model *model, mdp_reader *reader,
                              const mdp_tokens *tokens, const mdp_partition *partition,
                              const mdp_engine_options *options, mdp_engine **out);
/* Collective on `comm`. NULL is allowed. */
void mdp_engine_destroy_all(mdp_engine *engine);
/* Where one of a node's ranks has much more to attend to than the mean, all attend together, in memory that they share.
 * MDP_OK, or why some node has none, so that ranks with packs attend alone; the same on every rank. Local. */
mdp_status mdp_engine_unshared(const mdp_engine *engine);
/* Bytes that the engine of a rank will hold for a partition, at most, without those of its gemm, whose type counts;
 * from headers alone. */
int64_t mdp_engine_memory(const mdp_comm *comm, const mdp_model *model, const mdp_partition *partition, int n_thread,
                          mdp_gemm_type type, const mdp_pass *pass);

/* What a rank does in a pass, or when a checkpoint is written. */
typedef struct mdp_rank_cost {
    int64_t flop;       /* of products of matrices, as the profile counts them */
    int64_t bytes_read; /* from the model */
    int64_t bytes_written;
    int64_t bytes_sent; /* to other ranks: by lot where routing decides */
    int64_t bytes_away; /* of them, to other nodes */
    int64_t n_message;  /* about */
} mdp_rank_cost;
void mdp_rank_cost_add(const mdp_rank_cost *from, mdp_rank_cost *to);
/* The least and the most of each number over ranks [size]. */
void mdp_rank_cost_bound(const mdp_rank_cost *ranks, int size, mdp_rank_cost *least, mdp_rank_cost *most);

/* What every rank of a layout will do, from headers alone: ranks [layout->size], added to. Only its size and
 * nodes count. Routed rows are spread evenly over experts; with that, sums over ranks of operations are exact, and
 * bytes read are where every expert is touched as evenly. Bytes sent are exact where every token uses every expert.
 * Local. */
mdp_status mdp_engine_cost(const mdp_comm *layout, const mdp_model *model, const mdp_tokens *tokens,
                           const mdp_partition *partition, int n_thread, const mdp_pass *pass, mdp_rank_cost *ranks);

/* Load the embeddings of this rank's tokens of a batch: all streams share one branch. Collective. */
mdp_status mdp_engine_begin_batch_all(mdp_engine *engine, int64_t batch);
/* Take up a batch between two layers: its tokens, and n_branch branches whose rows the caller fills. leader [n_branch]
 * and stream_branch [n_stream] as they were. Collective. */
mdp_status mdp_engine_restore_batch_all(mdp_engine *engine, int64_t batch, int n_branch, const int *leader,
                                        const int *stream_branch);
/* Attention and MoE block of a layer, for all branches; branches fork where views first differ. Collective. Errors:
 * MDP_BAD_INPUT for activations that are not finite, naming layer, expert, token and weight. */
mdp_status mdp_engine_layer_all(mdp_engine *engine, int64_t layer);
/* The MoE block of the layer just computed once more for the last stream, from the same input, as its view of the layer
 * is by now; this result goes on, seen by `observers` only (NULL: by none). For passes that redo blocks. Collective. */
mdp_status mdp_engine_redo_block_all(mdp_engine *engine, int64_t layer, const mdp_observers *observers);

/* Experts that are computed beside the model's, for tokens that the caller routes: nothing of it joins a stream. */
typedef struct mdp_aside {
    mdp_layer_view view; /* n_expert, top_k, source, made; sources in any order */
    mdp_expert_t *index; /* [n_token of the local batch, top_k] numbered in the view, expert 0 in slot 0 and nowhere
                          * else; all of a token's -1: it goes nowhere */
    float *weight;       /* [n_token of the local batch, top_k] */
    const mdp_observers *observers; /* `combined` sees every token, without a sum; wave_all gets the activations of
                                     * slot 0 alone: h [n_local, stride] */
} mdp_aside;
/* Compute `aside` from the input of the MoE block of the layer just computed. For passes of one stream with
 * aside_slots. Collective. Errors: as for a layer. */
mdp_status mdp_engine_aside_all(mdp_engine *engine, int64_t layer, const mdp_aside *aside);

/* What the current batch is on this rank. */
typedef struct mdp_local_batch {
    int64_t number;               /* of the batch */
    int64_t first_pack, n_pack;   /* in partition->packs */
    int64_t first_token, n_token; /* numbers in the tokens file; rows 0 .. n_token-1 here */
    const uint32_t *ids;          /* [n_token] */
    const int32_t *category;      /* [n_token] */
} mdp_local_batch;
/* Values that counted as 0 because they were not finite, on all ranks, and the first layer with any (-1: none).
 * Collective. */
mdp_status mdp_engine_nonfinite_all(const mdp_engine *engine, int64_t *n, int64_t *layer);
const mdp_local_batch *mdp_engine_batch(const mdp_engine *engine);
int mdp_engine_n_branch(const mdp_engine *engine);
mdp_profile *mdp_engine_profile(const mdp_engine *engine); /* for what observers do; NULL: none is kept */
int mdp_engine_branch_of(const mdp_engine *engine, int stream);
int mdp_engine_leader_of(const mdp_engine *engine, int branch); /* the stream whose view is the branch's */
/* Who the tokens of a branch have chosen in the layer at hand: index, weight [n_token of the local batch, top_k]. */
void mdp_engine_routes(const mdp_engine *engine, int branch, const mdp_expert_t **index, const float **weight);
/* The residual stream of a branch between two layers, [n_token of the local batch, d_model]; the engine's. */
float *mdp_engine_residual(const mdp_engine *engine, int branch);

/* The experts that a router chooses among. */
typedef struct mdp_route_set {
    int32_t n;
    const mdp_expert_t *source; /* [n] their numbers in the model, ascending; NULL: 0 .. n-1 */
    const int32_t *row;         /* [n] their numbers in `bias`; NULL: those in the model */
    const float *bias;          /* [experts of the model, and others] added for choosing; NULL: none */
} mdp_route_set;
/* Choose and weigh by a router's rule: the k best of logits [set->n], best first, and the weights applied to them.
 * scratch [2 * set->n]. Local. */
void mdp_route_logits(const mdp_router_rule *rule, const mdp_route_set *set, const double *logits, int32_t k,
                      double *scratch, mdp_expert_t *index, float *weight);

/* The way back: gradients dz [n] of all logits from those of the applied weights, dg [k], for the experts that were
 * chosen. scratch [2 * n]. Local. */
void mdp_route_back(const mdp_router_rule *rule, const double *logits, int32_t n, const mdp_expert_t *index, int32_t k,
                    const double *dg, double *scratch, double *dz);
/* Is the weight of one expert divided by itself? Then its gradient is exactly 0. */
bool mdp_route_is_constant(const mdp_router_rule *rule, int32_t k);

/* Final norm and lm_head, tile by tile of each pack: called for every row of every branch with its logits. */
typedef struct mdp_logit_panel {
    int branch;          /* 0: that of stream 0 */
    int64_t first_local; /* first row on this rank */
    int32_t n_row;
    int64_t first_token, n_value; /* columns first_token .. first_token + n_value - 1 of the vocabulary */
    float *logits;                /* [n_row, n_value], leading dimension MDP_PANEL_ROWS; may be overwritten */
    const float *first;           /* same rows and columns of branch 0, as the consumer left them; NULL in branch 0 */
} mdp_logit_panel;
typedef struct mdp_head_consumer {
    /* panels of one tile come in ascending order of first_token, branch 0 before the others, which may come at once
     * from several threads */
    void (*panel)(void *context, const mdp_logit_panel *panel);
    /* the same panels once more, when all have been taken: what is known of whole rows by then can be used; may be NULL
     */
    void (*again)(void *context, const mdp_logit_panel *panel);
    /* rows of the final hidden state; may be NULL */
    void (*hidden)(void *context, int branch, int64_t first_local, int32_t n_row, const float *hidden);
    void *context;
} mdp_head_consumer;
/* Once for a batch: the residual streams become final hidden states. Collective (agrees). */
mdp_status mdp_engine_head_all(mdp_engine *engine, const mdp_head_consumer *consumer);

#endif
