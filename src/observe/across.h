/* across.h - inner products of long vectors, one for each expert of a layer, that lie with the experts' ranks. Private
 * to src/observe.
 *
 * Expert e is rank (e modulo ranks)'s. Pieces of columns of all experts are dealt to ranks, which multiply them
 * (gram.h): so a rank has a few columns of every expert, and all columns of its own. */
#ifndef MDP_OBSERVE_ACROSS_H
#define MDP_OBSERVE_ACROSS_H

#include "observe/gram.h"

typedef struct mdp_across {
    const mdp_comm *comm;
    int32_t n_expert;
    int n_thread;
    int64_t layer;        /* for errors */
    mdp_profile *profile; /* may be NULL */
    int64_t flop;         /* added to */
    /* set by mdp_across_begin_all */
    int64_t n_column; /* of a piece */
    mdp_exchange_room *room;
    float *piece;      /* [n_expert, n_column] columns of all experts */
    const float **row; /* [n_expert] of it */
    int64_t *counts;   /* [2, ranks] of an exchange */
} mdp_across;

/* Experts of a rank, and the i-th of them. */
static inline int64_t mdp_across_count(int32_t n_expert, int rank, int n_rank) {
    return rank < n_expert ? (n_expert - rank - 1) / n_rank + 1 : 0;
}
static inline mdp_expert_t mdp_across_expert(int rank, int n_rank, int64_t i) {
    return (mdp_expert_t)(rank + i * n_rank);
}

/* Room; the first members are set. Clear it on error too. Collective on `comm` (agrees). */
mdp_status mdp_across_begin_all(mdp_across *across);
void mdp_across_clear(mdp_across *across);
/* Add to sum [n_expert, n_expert] this rank's part of the products of vectors of `length` values: rows [own experts,
 * length] of this rank's. what: for errors. Collective on `comm`: a rank that fails takes part until the end, where it
 * says so. */
mdp_status mdp_across_multiply_all(mdp_across *across, const float *rows, int64_t length, const char *what,
                                   mdp_short_sum *sum);
/* Columns of the vectors of n_expert experts that a rank multiplies at a time: whole chunks of mdp_gram_add, some 8 MiB
 * in all, so that ranks meet seldom. */
int64_t mdp_across_piece(int32_t n_expert);
/* Bytes that it takes of a rank with n_own experts. */
int64_t mdp_across_memory(int32_t n_expert, int64_t n_own, int n_thread);
/* What rank `rank` of a layout sends of vectors of `length` values: of its own all but what it multiplies itself. */
void mdp_across_send(const mdp_comm *layout, int32_t n_expert, int rank, int64_t length, mdp_rank_cost *out);

#endif
