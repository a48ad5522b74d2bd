/* tables.h - groups under the objective sum over groups of (sum of A over pairs) / size, and what a change would gain.
 *
 * With A = minus squared distances the objective is minus the sum of squared distances to the means, so k-means and
 * partition descend alike. */
#ifndef MDP_GROUP_TABLES_H
#define MDP_GROUP_TABLES_H

#include "group/problem.h"

#define TABLES_LEAST_GAIN 0x1p-36 /* of the largest entry: smaller gains are rounding */

typedef struct group_tables {
    int32_t n, n_group;
    const double *matrix; /* [n, n] A, symmetric, diagonal 0; borrowed */
    double least;         /* gain that counts */
    int32_t *group;       /* [n] */
    int32_t *size;        /* [n_group] */
    double *within;       /* [n_group] sum of A over the pairs inside */
    double *link;         /* [n, n_group] sum of A between an expert and the group's members */
    int32_t *name;        /* [n_group] */
    int32_t *tidied;      /* [n] */
} group_tables;

/* To be cleared, on error too. */
mdp_status group_tables_new(int32_t n, int32_t n_group, const double *matrix, group_tables *out);
void group_tables_clear(group_tables *tables);
/* Fill size, within and link from `group`; returns the objective. */
double group_tables_fill(group_tables *tables);
/* Change `group`, none of which may be empty, for the better as long as the best move of one expert, or else the best
 * exchange of two, gains; then hold the result against the best. */
void group_tables_descend(group_tables *tables, group_best *best);

static inline double *group_tables_link(const group_tables *tables, int32_t expert) {
    return tables->link + (int64_t)expert * tables->n_group;
}

#endif
