/* partition.h - the objective of a partition, and the search where there are too many to try. */
#ifndef MDP_GROUP_PARTITION_H
#define MDP_GROUP_PARTITION_H

#include "group/problem.h"

/* Sum over the groups of (sum of similarity over pairs i < j) / size. similarity [n, n], group [n] below n_group;
 * within, size [n_group] are workspace and receive each group's sum and size. */
double partition_value(int32_t n, const double *similarity, int32_t n_group, const int32_t *group, double *within,
                       int32_t *size);
/* Hold local optima against `best`. */
mdp_status partition_search(const group_problem *problem, group_best *best);

#endif
