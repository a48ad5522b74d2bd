/* problem.h - one block of experts as the methods of grouping see it, and what they share. Experts are numbered from 0
 * inside the block. */
#ifndef MDP_GROUP_PROBLEM_H
#define MDP_GROUP_PROBLEM_H

#include "mdp/group.h"

#include <math.h>

/* What a method is given: 1 <= n_group <= n, everything finite. */
typedef struct group_problem {
    const mdp_group_input *input;  /* options */
    int32_t n, n_group;            /* of this block */
    double *matrix;                /* [n, n] symmetric, diagonal 0; the method may change it */
    const double **feature;        /* [n] vectors of input->n_feature */
    const double *score;           /* [n] or NULL */
    const unsigned char *dominant; /* [n] or NULL */
    uint64_t first_draw;           /* index of the first random number of this block */
} group_problem;

/* What it gives. */
typedef struct group_answer {
    int32_t *group;       /* [n] 0 .. n_group - 1, in any order of numbers */
    mdp_expert_t *centre; /* [n_group], -1 on entry */
    mdp_join *joins;      /* [n - n_group], hierarchical only */
    double objective;
    double gap; /* NAN on entry */
} group_answer;

mdp_status group_hierarchical(const group_problem *problem, group_answer *answer);
mdp_status group_kmeans(const group_problem *problem, group_answer *answer);
mdp_status group_spectral(const group_problem *problem, group_answer *answer);
mdp_status group_partition(const group_problem *problem, group_answer *answer);
mdp_status group_dominant(const group_problem *problem, group_answer *answer);
mdp_status group_centroid(const group_problem *problem, group_answer *answer);

/* Renumber groups by their smallest members: group [n] of numbers below n_name; name [n_name] receives the new numbers.
 * Returns how many there are. */
int32_t group_canonical(int32_t n, int32_t *group, int32_t n_name, int32_t *name);
/* Experts by falling score (rounded), equal ones by number: order [n]. */
mdp_status group_rank(int32_t n, const double *score, int32_t *order);

/* Index of the draw'th random number of a start (below 2^12 starts of below 2^32 numbers). */
static inline uint64_t group_draw(const group_problem *problem, int32_t start, uint64_t draw) {
    return problem->first_draw + ((uint64_t)start << 32) + draw;
}

/* ---- the best of several results that are found one after another ------------------------------------------------ */

typedef struct group_best {
    int32_t n;
    int32_t *group;       /* [n] canonical; the caller's */
    bool found;           /* there is one */
    double value, second; /* of the best, and of the next that is another grouping; NAN: there is none */
} group_best;

static inline group_best group_best_of(int32_t n, int32_t *group) {
    return (group_best){.n = n, .group = group, .value = (double)NAN, .second = (double)NAN};
}
/* Hold group [n], canonical, against the best so far; larger values are better. An equal one does not replace it. */
void group_best_hold(group_best *best, const int32_t *group, double value);

#endif
