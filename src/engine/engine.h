/* engine.h - the engine's own state, shared by the topics of this folder; nobody else includes it. */
#ifndef MDP_SRC_ENGINE_ENGINE_H
#define MDP_SRC_ENGINE_ENGINE_H

#include "engine/roster.h"
#include "engine/team.h"

#define MDP_MESSAGE_BYTES (8 << 20) /* of memory for rows on their way */

/* The residual stream of one or more streams that have not parted yet. */
typedef struct mdp_branch {
    float *x;                   /* [batch.n_token, d_model] */
    int leader;                 /* a stream of it; its view is the branch's */
    int origin;                 /* the branch that it parted from */
    int32_t n_expert, top_k;    /* of the layer at hand */
    int32_t n_used;             /* of top_k: the rest is visited, and adds nothing */
    const mdp_expert_t *source; /* [n_expert] or NULL: all experts, in order */
    const unsigned char *zero;  /* [n_expert] or NULL: those that return 0 */
    int32_t *row;               /* [n_expert] or NULL: their router rows (router_rows.c), else those of the model's */
    mdp_expert_t *index;        /* [n_token, top_k] chosen, numbered in the view; best first */
    float *weight;              /* [n_token, top_k] */
    bool idle;                  /* nothing is computed for it, while another's block is redone */
} mdp_branch;

/* Number of the router row of an expert that is numbered in the branch's view. */
static inline int64_t mdp_router_row(const mdp_branch *branch, mdp_expert_t index) {
    if (branch->row) return branch->row[index];
    return branch->source ? branch->source[index] : index;
}

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
    mdp_panel_feed *feed;
    float *cosine, *sine; /* [partition->longest, n_pair] positions of sequences up to max_position */
    mdp_shared *shared;   /* where the ranks of a node attend together; NULL: no node does in any batch */
    mdp_status unshared;  /* why some node has none of it, though it should */
    mdp_team team;        /* that this rank is of, in the batch at hand */

    mdp_local_batch batch;
    uint32_t *ids;          /* [batch.n_token] */
    int32_t *category;      /* [batch.n_token] */
    float *input;           /* [batch.n_token, d_model] residual stream entering the MoE block; NULL: not kept */
    bool redo_block;        /* keep it */
    const mdp_aside *aside; /* what the block at hand is; NULL: the layer's own */
    bool activations;       /* those of the last stream come back */
    bool projected;         /* tiles come with y W_d */
    int n_branch;
    mdp_branch *branches; /* [n_stream], the first n_branch in use */
    int *stream_branch;   /* [n_stream] */
    mdp_roster roster;    /* of the layer at hand; its views are the branches */

    int64_t away_row_wanted; /* (token row, rank of another node that needs it) in all rounds so far */
    int64_t away_row;        /* token rows that were sent to other nodes for that */

    bool allow_nonfinite;
    int64_t nonfinite_key;   /* lowest (expert, token) of this layer on this rank; INT64_MAX: none */
    int64_t n_nonfinite;     /* values set to 0 on this rank */
    int64_t first_nonfinite; /* first layer in which; -1: none */
};

/* The branch whose activations come back in the block at hand; -1: none do. */
static inline int mdp_engine_kept_branch(const mdp_engine *engine) {
    return engine->activations && engine->observers.wave_all ? engine->stream_branch[engine->n_stream - 1] : -1;
}

/* ---- views ---------------------------------------------------------------------------------------------------- */

/* A layer in a view (NULL: the model), with the model's own values where the view has none. */
mdp_layer_view mdp_view_layer(const mdp_model *model, const mdp_view *view, int64_t layer);
/* The same for a stream. */
mdp_layer_view mdp_engine_view(const mdp_engine *engine, int stream, int64_t layer);
/* Experts of a token that count. */
static inline int32_t mdp_view_used(const mdp_layer_view *view) {
    return view->n_used > 0 ? view->n_used : view->top_k;
}
bool mdp_view_is_same(const mdp_layer_view *a, const mdp_layer_view *b);

/* ---- branches.c, batch.c ---------------------------------------------------------------------------------------- */

void mdp_branch_free(mdp_branch *branch); /* what it owns */
/* Part the streams whose views differ in this layer. Local. */
mdp_status mdp_branches_fork(mdp_engine *engine, int64_t layer);

/* ---- what the profile is told --------------------------------------------------------------------------------- */

/* Agree on `status`; the time counts as waiting for other ranks. Collective on the engine's communicator. */
mdp_status mdp_engine_agree_all(const mdp_engine *engine, mdp_status status);
#ifdef MDP_DEBUG_HOOKS /* the place that counts is the caller's */
#define mdp_engine_agree_all(engine, ...)                                                                              \
    ((void)mdp_order_note((engine)->comm, __FILE__, __LINE__), (mdp_engine_agree_all)((engine), __VA_ARGS__))
#endif

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

#endif
