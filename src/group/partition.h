/* partition.h - the search where there are too many partitions to try. */
#ifndef MDP_GROUP_PARTITION_H
#define MDP_GROUP_PARTITION_H

#include "group/problem.h"

/* Hold local optima against `best`. */
mdp_status partition_search(const group_problem *problem, group_best *best);

#endif
