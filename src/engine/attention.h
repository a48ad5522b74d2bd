/* attention.h - what the files of attention share: groups of packs, how their work is dealt to the members of a team,
 * and the buffers that it goes through. */
#ifndef MDP_SRC_ENGINE_ATTENTION_H
#define MDP_SRC_ENGINE_ATTENTION_H

#include "engine/delta.h"
#include "engine/linear.h"

#define MDP_ATTENTION_ROWS 4096        /* rows of a rank's packs that go through attention together, about */
#define MDP_ATTENTION_VALUES (1 << 26) /* and that hold at most so many values, where more than one pack does */
#define MDP_QUERY_ROWS 128             /* queries of one attention tile */
#define MDP_KEY_ROWS 512               /* keys of one attention tile */
#define MDP_ROW_ALIGNMENT 64           /* of the buffers of a group, bytes */

/* ---- attention.c: the block ---------------------------------------------------------------------------------------
 */

/* x += Attention(Norm1(x)) for every branch. Collective on the ranks of a team; where it is of several, they end alike.
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
                              int n_branch, mdp_rank_cost *members);

/* ---- deal.c: groups of packs, and whose work is whose ----------------------------------------------------------- */

/* One pack of one branch in a group. */
typedef struct mdp_pack_group_item {
    const mdp_pack *pack;
    int branch;
    int member;    /* of the team, who holds it */
    int64_t first; /* its first row in the group's buffers */
} mdp_pack_group_item;

/* Packs that go through attention together. */
typedef struct mdp_pack_group {
    mdp_pack_group_item *packs; /* [n_pack], room for all packs of a team in all branches; NULL: only counted */
    int64_t n_pack;
    int64_t n_row, n_tile; /* of all of them; each pack is tiled from its first row */
} mdp_pack_group;

/* Goes through the packs of a team, group after group. */
typedef struct mdp_pack_group_walk {
    const mdp_team *team;
    int n_branch;
    int64_t room; /* rows of a group, at most */
    int branch, member;
    int64_t at; /* of the member's packs, the next */
} mdp_pack_group_walk;
mdp_pack_group_walk mdp_pack_group_begin(const mdp_team *team, int n_branch);
bool mdp_pack_group_next(mdp_pack_group_walk *walk, mdp_pack_group *group); /* false: there is none left */
/* Rows of a group of packs of these sizes. */
int64_t mdp_pack_group_rows(const mdp_model *model, const mdp_rank_share *share, int n_branch);
/* Values of one row in all buffers of a group. */
int64_t mdp_pack_group_row_values(const mdp_model *model);

/* Where projections stand in mdp_attention_projections. */
enum { OF_Q_A, OF_KV_A, OF_Q, OF_K, OF_V, OF_KV_B, OF_IN, OF_Z, OF_B, OF_A, OF_O };
_Static_assert(OF_O + 1 == MDP_N_PROJECTION, "a name for each projection");
/* They are computed in three steps, each dealt for itself: what only rows of the input are needed for and others wait
 * for, the other inputs of the heads, the output. */
#define MDP_N_PROJECTION_STEP 3
extern const int mdp_projection_step[MDP_N_PROJECTION];

/* Of the items of all projections of a group (panel p and tile t: item p * n_tile + t) the `item`-th of projection
 * `projection` is `member`'s. */
typedef void mdp_item_fn(void *context, int member, int projection, int64_t item, int64_t flop);
/* Deal them to n_member: every member gets a run of each step's items, runs as even in operations as items allow. */
void mdp_deal_items(const mdp_attention *attention, const mdp_pack_group *group, int n_member, mdp_item_fn *give,
                    void *context);

/* Query rows of one head of one sequence; all of them where attention is linear. */
typedef struct mdp_query_tile {
    int64_t first;  /* first row of the sequence in the group's buffers */
    int64_t length; /* tokens of the sequence */
    int64_t query;  /* first query, counted in the sequence */
    int32_t n_query;
    int32_t head;
    int64_t flop; /* of its products: as foretold when it is dealt, as done when it is done */
} mdp_query_tile;
typedef void mdp_query_fn(void *context, int member, const mdp_query_tile *tile);
/* Heads of a layer, and operations of one over all sequences of packs [n_pack]. */
int64_t mdp_deal_heads(const mdp_model *model, const mdp_attention *attention);
int64_t mdp_deal_head_flop(const mdp_model *model, const mdp_tokens *tokens, const mdp_attention *attention,
                           const mdp_pack *packs, int64_t n_pack);
/* Deal the query tiles of a group likewise, in the order of heads, so that a member reads few heads' keys. */
void mdp_deal_queries(const mdp_model *model, const mdp_tokens *tokens, const mdp_attention *attention,
                      const mdp_pack_group *group, int n_member, mdp_query_fn *give, void *context);

/* ---- attention.c ---------------------------------------------------------------------------------------------- */

/* A projection of all rows of a group: y [n_row, rows of the matrix] = x W^T + bias. */
typedef struct mdp_projection {
    const mdp_matrix *matrix;
    const float *bias; /* NULL: none */
    const float *x;    /* leading dimension ldx */
    float *y;          /* leading dimension ldy */
    int64_t ldx, ldy;
    int64_t first, end; /* items of this rank */
} mdp_projection;

/* Where keys, values and outputs of the heads lie in the buffers of a group. */
typedef struct mdp_head_rows {
    const float *k, *v, *shared; /* shared: keys of all heads, after n_own values of their own */
    int64_t ldk, k_step, ldv, v_step, ld_shared, n_own, n_shared, n_value, ldo, o_step;
} mdp_head_rows;

/* Buffers of a layer. Those of rows are common to the team. */
typedef struct mdp_attention_buffers {
    int64_t n_row;   /* capacity */
    int64_t n_taken; /* bytes of the node's memory */
    float *x;        /* [n_row, d_model] normalised input, later the output of o_proj */
    float *q;        /* [n_row, n_head * q_step] queries, each head's followed by its gate where there is one */
    float *k, *v;    /* [n_row, n_kv_head * head_dim]; latent: NULL */
    float *q_latent; /* latent: [n_row, q_rank] */
    float *latent;   /* [n_row, kv_rank + n_rope], the last of them rotated keys of all heads */
    float *kv;       /* [n_row, n_head, n_own + n_value] */
    float *out;      /* latent: [n_row, n_head * n_value]; else q, whose place the output takes */
    float *mix;      /* linear: [n_row, mdp_delta_row_values] */
    mdp_head_rows heads;
    mdp_projection projections[MDP_N_PROJECTION];
    mdp_delta_weights delta; /* linear */
    float *delta_scratch;    /* linear: [n_thread, mdp_delta_scratch] */
    float *latent_norm[2];   /* of q_latent and latent */
    float *latent_bias[2];   /* NULL: none */
    float *angles;           /* [n_thread, 2, n_pair] cosines and sines, where the table has not those of a sequence */
    float *scores;           /* [n_thread, MDP_QUERY_ROWS, MDP_KEY_ROWS] */
    float *sum;              /* [n_thread, MDP_QUERY_ROWS, values of a head's output] */
    float *norm;             /* as loaded */
    float *bias[4];          /* of q, k, v, o; NULL: none */
    float *qk_norm[2];       /* of queries and keys; NULL: none */
    float *sinks;            /* [n_head] or NULL */
    mdp_rows *tiles;         /* [tiles of a group] scratch list */
    mdp_query_tile *queries; /* [tiles of a group] the first n_query are this rank's */
    int64_t n_query;
    mdp_pack_group group; /* at hand */
    mdp_panel_list panels;
} mdp_attention_buffers;

/* ---- softmax.c ------------------------------------------------------------------------------------------------ */

/* Values of a head's output. */
int64_t mdp_head_values(const mdp_model *model);
/* The first key that a query sees. Later queries never see an earlier one. */
static inline int64_t mdp_first_seen(const mdp_attention *attention, int64_t query) {
    int64_t by_window = attention->window > 0 ? query - attention->window + 1 : 0;
    int64_t by_chunk = attention->chunk > 0 ? query / attention->chunk * attention->chunk : 0;
    return by_window > by_chunk ? by_window : by_chunk;
}
/* Norms, clamps and rotation of queries, keys and values of rows first .. end-1 of the group. */
void mdp_rotate_rows(const mdp_engine *engine, const mdp_layer *layer, const mdp_attention_buffers *buffers,
                     int64_t first, int64_t end);
/* Attention of one head for MDP_QUERY_ROWS queries, by this thread. */
void mdp_attend_queries(const mdp_engine *engine, const mdp_layer *layer, const mdp_attention_buffers *buffers,
                        mdp_query_tile *tile);
/* Outputs of rows first .. end-1 times the sigmoid of their gates, which follow them, moved together. */
void mdp_gate_rows(const mdp_engine *engine, const mdp_attention_buffers *buffers, int64_t first, int64_t end);

#endif
