/* kmeans.h - k-means on any vectors: those of experts, or rows of eigenvectors. */
#ifndef MDP_GROUP_KMEANS_H
#define MDP_GROUP_KMEANS_H

#include "group/problem.h"

/* Group problem->n vectors row[i] [n_value] into problem->n_group groups, none empty. Objective and gap are set. */
mdp_status kmeans_run(const group_problem *problem, const double *const *row, int64_t n_value, group_answer *answer);

#endif
