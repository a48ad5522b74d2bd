/* match.h - which neuron of one expert answers to which of another: the assignment with the largest sum of gains.
 *
 * Gains of all pairs of neurons are sums of products of what the two have for each neuron, tile by tile in f32: added
 * in f64 and solved exactly up to MDP_MATCH_EXACT neurons, in f32 and by auction above. Products have fixed shapes, so
 * nothing depends on ranks or threads. */
#ifndef MDP_MATCH_H
#define MDP_MATCH_H

#include "mdp/model.h"

#define MDP_MATCH_EXACT 4096     /* neurons */
#define MDP_MATCH_TOLERANCE 1e-4 /* of an auction's sum */

/* Two experts under way; the first members are set by the caller, what they point to is borrowed. */
typedef struct mdp_match {
    mdp_reader *reader;
    mdp_gemm *gemm; /* for n_thread threads */
    int n_thread;
    int64_t f;     /* neurons of each */
    double *gain;  /* [f, f] of neurons of the one and of the other; NULL: */
    float *rough;  /* [f, f] the same */
    float *tiles;  /* a tile for each thread */
    double value;  /* the sum of the gains that were chosen */
    double excess; /* how much larger a sum there may be, as a part of it; 0: none */
} mdp_match;

/* Room, with all gains 0. Clear it on error too. Local. */
mdp_status mdp_match_begin(mdp_match *match);
void mdp_match_clear(mdp_match *match);
/* Add the products of left [f, n] and right [f, n]. Local. */
mdp_status mdp_match_add(mdp_match *match, int64_t n, const float *left, const float *right);
/* Add those of rows of gate and up and of columns of down. Local. MDP_INTERNAL: experts of other widths. */
mdp_status mdp_match_add_weights(mdp_match *match, const mdp_expert *one, const mdp_expert *other);
/* order [f]: the neuron of the other that answers to each of the one; value and excess are set. Local. MDP_BAD_INPUT: a
 * gain is not finite. */
mdp_status mdp_match_solve(mdp_match *match, int64_t *order);

/* Bytes that a pair of experts of f neurons of d weights takes, and operations. */
int64_t mdp_match_memory(int64_t f, int64_t d, int n_thread);
int64_t mdp_match_flop(int64_t f, int64_t d);

#endif
