/* hierarchical.h - joining step by step, for those who look at the groups between the joins. */
#ifndef MDP_GROUP_HIERARCHICAL_H
#define MDP_GROUP_HIERARCHICAL_H

#include "mdp/group.h"

/* Groups that are joined; each lives in the row of its smallest member. */
typedef struct agglomeration {
    int32_t n, n_group;
    mdp_linkage linkage;
    double *value; /* [n, n] of two groups: average: sum over the pairs of members; complete, single: the distance;
                    * ward: its square */
    double *key;   /* [n, n] rounded heights, above the diagonal */
    int32_t *size; /* [n] members; 0: joined to another */
    int32_t *near; /* [n] the nearest group of a higher number; n: none */
} agglomeration;

/* distance [n, n], of which what is above the diagonal is read. To be freed with agglomeration_free, on error too. */
mdp_status agglomeration_begin(int32_t n, const double *distance, mdp_linkage linkage, agglomeration *out);
void agglomeration_free(agglomeration *groups);
/* Height at which groups i < j would be joined. */
double agglomeration_height(const agglomeration *groups, int32_t i, int32_t j);
/* The pair that comes next: false when one group is left. */
bool agglomeration_next(const agglomeration *groups, int32_t *i, int32_t *j);
/* Join that pair. */
mdp_join agglomeration_join(agglomeration *groups);

#endif
