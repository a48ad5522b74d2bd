/* partition.c - the partition with the largest similarity inside its groups, each pair's counted 1 / size times.
 *
 * In: similarities. Few experts: all partitions are tried, in lexicographic order of their labels, so that of equal
 * ones the first wins. More: partition_search.c. */
#include "group/partition.h"

#include "group/tables.h"

#define EXACT_UP_TO 8

/* The next list of labels in which each label is at most one more than all before it; false after the last.
 * used [n + 1]: number of labels before each place. */
static bool next_labels(int32_t n, int32_t n_group, int32_t *label, int32_t *used) {
    int32_t at = n - 1;
    while (at > 0 && (label[at] == used[at] || label[at] == n_group - 1)) at--;
    if (at <= 0) return false;
    label[at]++;
    for (; at < n; at++) {
        used[at + 1] = label[at] == used[at] ? used[at] + 1 : used[at];
        if (at + 1 < n) label[at + 1] = 0;
    }
    return true;
}

static mdp_status try_all(const group_problem *problem, group_best *best) {
    int32_t n = problem->n, *used = NULL;
    group_tables tables;
    mdp_status status = group_tables_new(n, problem->n_group, problem->matrix, &tables);
    if (status.code == MDP_OK) status = MDP_ALLOC(&used, n + 1, "groups");
    if (status.code == MDP_OK) {
        for (int32_t i = 0; i < n; i++) used[i + 1] = 1;
        do {
            if (used[n] == problem->n_group) group_best_hold(best, tables.group, group_tables_fill(&tables));
        } while (next_labels(n, problem->n_group, tables.group, used));
    }
    mdp_free(used);
    group_tables_clear(&tables);
    return status;
}

mdp_status group_partition(const group_problem *problem, group_answer *answer) {
    int32_t exact_up_to = problem->input->exact_up_to == 0 ? EXACT_UP_TO : problem->input->exact_up_to;
    group_best best = group_best_of(problem->n, answer->group);
    MDP_TRY(problem->n <= exact_up_to ? try_all(problem, &best) : partition_search(problem, &best));
    answer->objective = best.value;
    answer->gap = best.value - best.second;
    return mdp_ok();
}
