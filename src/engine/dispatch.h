/* dispatch.h - what a wave of the MoE block and the rounds of its dispatch share. */
#ifndef MDP_SRC_ENGINE_DISPATCH_H
#define MDP_SRC_ENGINE_DISPATCH_H

#include "engine/experts.h"

/* One (branch, token, slot) of this rank, with where its tile is computed. */
typedef struct mdp_route_entry {
    int64_t local;
    int32_t branch, slot;
    int32_t position; /* in the owner's round */
} mdp_route_entry;

/* Everything of one wave on this rank. */
typedef struct mdp_wave {
    int64_t first_block, n_block;
    int64_t first_local, n_local; /* rows of this rank in these blocks */
    mdp_placement *placement;
    mdp_route_entry *entries; /* [n_entry] by (round, owner), then branch, token, slot */
    int64_t *bucket;          /* [n_round * size + 1] first entry of each (round, owner) */
    int64_t *branch_first;    /* [n_branch] first row of y of each branch */
    float *y;                 /* [sum over branches of n_local * top_k, d_model] returned rows */
    float *h;                 /* [n_local * h_slots, h_stride] returned activations of the kept branch; NULL: none */
    int32_t h_slots;          /* all of its slots; aside: the first */
    int64_t h_stride;
    int kept;              /* the branch */
    int64_t *told, *heard; /* [size, n_round, 3] to and from each rank: notes, its token rows, those of its node */
    int64_t *node_row;     /* [n_round, n_node] rows that go to another node; see landing.c */
    int64_t *node_start;   /* [n_round, n_node] of them, on lower ranks */
    int64_t *node_total;   /* [n_round, n_node] and on all */
} mdp_wave;

/* What is told to, or heard from, a rank about a round. */
static inline int64_t *mdp_wave_told(const mdp_wave *w, int64_t *counts, int peer, int32_t round) {
    return counts + ((int64_t)peer * w->placement->n_round + round) * 3;
}

/* Do the two belong to the same token row? */
static inline bool mdp_same_token(const mdp_route_entry *a, const mdp_route_entry *b) {
    return a->local == b->local && a->branch == b->branch;
}

#define MDP_ROUNDS_AT_ONCE 3 /* one computes, the outputs of the one before leave, the tokens of the next come */

/* How many rows go where in a round; arrays into one piece of memory. */
typedef struct mdp_round_counts {
    int64_t *memory;
    int64_t *notes_out, *notes_in; /* [size] */
    int64_t *rows_out, *rows_in;   /* [size] token rows that go straight to or come straight from a rank */
    int64_t *note_first;           /* [size] first note of each source in buffers->notes */
    int64_t *row_first;            /* [size] first row of each source in round.x */
    int64_t *land_out, *land_in;   /* [size] rows of the landing, see landing.c */
    int64_t *land_first;           /* [size] first of them, among this rank's for the node of a peer */
    int64_t *landed_first;         /* [size] first landed row of each source */
    int64_t *hand_out, *hand_in;   /* [size] landed rows that are handed on */
    int64_t *hand_first;           /* [size] first row in round.x of those that a rank hands on */
    int64_t *send, *recv;          /* [size] of the exchange of token rows */
    int64_t *kept_out, *kept_in;   /* [size] activations that go back, and that come back */
    int64_t *walk;                 /* [2 * largest node] */
} mdp_round_counts;
mdp_status mdp_round_counts_new(const mdp_comm *comm, mdp_round_counts *counts);

/* The rows that a node needs of this rank, in order. */
typedef struct mdp_node_walk {
    const struct mdp_round_context *round;
    int node, n_rank;
    int64_t at;          /* rows passed */
    int64_t *next, *end; /* [n_rank] entries */
} mdp_node_walk;

/* Rows that other nodes sent to this rank for its node. */
typedef struct mdp_landing {
    int n_word;         /* of a set of ranks of a node; 0: there is no landing, rows go straight to their owners */
    int64_t n_row;      /* landed in this round */
    float *x;           /* [capacity of a round, d_model]; borrowed: the round's y, before there are outputs */
    uint64_t *needs;    /* [capacity + 1, n_word] bit i: the i-th rank of the node needs the row; the last: one to send;
                         * borrowed: of one round at a time, from the first row's landing until all are handed on */
    mdp_node_walk walk; /* where packing stands */
} mdp_landing;

/* A round on its way. */
typedef struct mdp_round_buffers {
    int64_t capacity; /* rows of a round */
    mdp_round round;
    mdp_row_note *notes; /* [capacity] of the round, by source rank */
    mdp_round_counts counts;
    mdp_landing landing;
} mdp_round_buffers;

/* Buffers of the block, kept over waves and rounds. */
typedef struct mdp_moe_buffers {
    bool ahead; /* messages of the rounds before and after travel while a round is computed */
    mdp_round_buffers rounds[MDP_ROUNDS_AT_ONCE]; /* round r in place r % MDP_ROUNDS_AT_ONCE */
    float *rows[3]; /* [capacity, d_model] what the rounds have as x and y, the third only with `ahead` */
    mdp_expert_scratch scratch;
    float *h[2]; /* [capacity, h_stride] activations of rounds that come back, the second only with `ahead` */
    int64_t h_stride;
    unsigned char *comes_back[2]; /* [capacity] */
    float *shared_gate;           /* [d_model]; NULL: none */
} mdp_moe_buffers;

/* One round, as the functions that pack and unpack see it. */
typedef struct mdp_round_context {
    mdp_engine *engine;
    const mdp_wave *w;
    const float *norm;
    int32_t number;
    mdp_round_buffers *buffers;
} mdp_round_context;

/* Bytes of a token row on its way, with a set of ranks of n_word words. */
static inline int64_t mdp_dispatch_row_bytes(const mdp_model *model, int n_word) {
    return model->d_model * (int64_t)sizeof(float) + n_word * (int64_t)sizeof(uint64_t);
}
/* The longest row that an exchange of the engine has, when n_activation values of a row come back. */
int64_t mdp_dispatch_longest_row(const mdp_comm *comm, const mdp_model *model, int64_t n_activation);
/* This rank's routes of the round to one owner. */
const mdp_route_entry *mdp_round_entries(const mdp_round_context *round, int owner, int64_t *n);

/* ---- landing.c ------------------------------------------------------------------------------------------------ */

/* Words of a set of ranks of a node; 0 where nodes make no difference: there is one, or each is one rank. */
int mdp_landing_words(const mdp_comm *comm);
/* Does rank `peer` get its token rows straight from this rank? */
static inline bool mdp_landing_skips(const mdp_comm *comm, const mdp_landing *landing, int peer) {
    return landing->n_word == 0 || comm->rank_node[peer] == comm->node;
}
/* Count the rows that each other node needs of this rank, each once: node_row, and what is told to its ranks. Local. */
void mdp_landing_count(const mdp_round_context *round);
/* Of all rounds, from node_row: node_start and node_total. Collective on the engine's communicator. */
mdp_status mdp_landing_number_all(const mdp_engine *engine, const mdp_wave *w);
/* Begin to send every row that another node needs once, to one rank of it, and to take those that land here; the round
 * context must stay until the exchange is finished. Collective on the engine's communicator. */
mdp_status mdp_landing_begin_all(const mdp_round_context *round);
/* All have landed: count those that are handed on: hand_out, hand_in, hand_first. Collective on the engine's
 * communicator; waits for the ranks of the node only. */
mdp_status mdp_landing_count_handed_all(const mdp_round_context *round);

/* ---- dispatch.c ----------------------------------------------------------------------------------------------- */

/* Begin an exchange, and tell the profile what it sends. Collective on the engine's communicator. */
mdp_status mdp_dispatch_begin_all(mdp_engine *engine, const mdp_exchange *exchange);
/* Finish all exchanges that were begun, and tell the profile how long others were waited for. Collective on the
 * engine's communicator. */
mdp_status mdp_dispatch_finish_all(mdp_engine *engine);
/* All rounds of a wave: notes and token rows to the owners of the tiles, the experts, and the outputs back into
 * wave->y. computed: what came of this rank's products, which others do not know yet; from the round that failed on,
 * outputs mean nothing. Collective on the engine's communicator. */
mdp_status mdp_dispatch_wave_all(mdp_engine *engine, const mdp_wave *w, const mdp_layer *layer, int64_t layer_number,
                                 const float *norm, mdp_moe_buffers *buffers, mdp_status *computed);

#endif
