/* centres.c - groups round given experts: dominant (M-SMoE) and centroid (REAM).
 *
 * In: similarities, and which experts are centres or by which score they are chosen. Out: every other expert's centre.
 */
#include "group/problem.h"

#include <inttypes.h>
#include <stdlib.h>

/* centre [n_group], ascending: the experts of highest score. */
static mdp_status choose_centres(const group_problem *problem, mdp_expert_t *centre) {
    int32_t *order = NULL;
    int32_t n = 0;
    MDP_TRY(MDP_ALLOC(&order, problem->n, "ranked experts"));
    mdp_status status = group_rank(problem->n, problem->score, order);
    for (int32_t at = 0; status.code == MDP_OK && at < problem->n_group; at++) {
        int32_t place = n++;
        for (; place > 0 && centre[place - 1] > order[at]; place--) centre[place] = centre[place - 1];
        centre[place] = order[at];
    }
    mdp_free(order);
    return status;
}

static mdp_status list_dominants(const group_problem *problem, mdp_expert_t *centre) {
    int32_t n = 0;
    for (int32_t e = 0; e < problem->n; e++) {
        if (!problem->dominant[e]) continue;
        if (n < problem->n_group) centre[n] = e;
        n++;
    }
    if (n == problem->n_group) return mdp_ok();
    return MDP_ERROR(MDP_USAGE,
                     "%" PRId32 " dominant experts are given for %" PRId32
                     " groups; each block of experts needs one for each of its groups that does not stay whole.",
                     n, problem->n_group);
}

/* Centres are in their groups, all others in none (-1). */
static void found_groups(const group_problem *problem, group_answer *answer) {
    for (int32_t e = 0; e < problem->n; e++) answer->group[e] = -1;
    for (int32_t g = 0; g < problem->n_group; g++) answer->group[answer->centre[g]] = g;
}

/* What an expert loses at least by any other centre than its own. */
static double lead_of(const group_problem *problem, const group_answer *answer, int32_t e) {
    const double *similar = problem->matrix + (int64_t)e * problem->n;
    double lead = (double)NAN, own = similar[answer->centre[answer->group[e]]];
    for (int32_t g = 0; g < problem->n_group; g++)
        if (g != answer->group[e]) lead = fmin(lead, own - similar[answer->centre[g]]);
    return lead;
}

static void tell_sum(const group_problem *problem, group_answer *answer) {
    for (int32_t e = 0; e < problem->n; e++) {
        int32_t centre = answer->centre[answer->group[e]];
        if (centre == e) continue;
        answer->objective += problem->matrix[(int64_t)e * problem->n + centre];
        answer->gap = fmin(answer->gap, lead_of(problem, answer, e));
    }
}

mdp_status group_dominant(const group_problem *problem, group_answer *answer) {
    MDP_TRY(problem->dominant ? list_dominants(problem, answer->centre) : choose_centres(problem, answer->centre));
    found_groups(problem, answer);
    for (int32_t e = 0; e < problem->n; e++) {
        const double *similar = problem->matrix + (int64_t)e * problem->n;
        if (answer->group[e] >= 0) continue;
        int32_t best = 0;
        for (int32_t g = 1; g < problem->n_group; g++)
            if (mdp_round30(similar[answer->centre[g]]) > mdp_round30(similar[answer->centre[best]])) best = g;
        answer->group[e] = best;
    }
    tell_sum(problem, answer);
    return mdp_ok();
}

/* ---- centroid ---------------------------------------------------------------------------------------------------- */

typedef struct centre_pair {
    double similarity; /* rounded */
    int32_t group, expert;
} centre_pair;

/* The most similar first; equal ones by centre, then expert. */
static int compare_pairs(const void *left, const void *right) {
    const centre_pair *a = left, *b = right;
    if (a->similarity != b->similarity) return a->similarity > b->similarity ? -1 : 1;
    if (a->group != b->group) return a->group < b->group ? -1 : 1;
    return a->expert < b->expert ? -1 : a->expert > b->expert;
}

static int64_t list_pairs(const group_problem *problem, const group_answer *answer, centre_pair *pairs) {
    int64_t n = 0;
    for (int32_t g = 0; g < problem->n_group; g++) {
        for (int32_t e = 0; e < problem->n; e++) {
            double similarity = problem->matrix[(int64_t)answer->centre[g] * problem->n + e];
            if (answer->group[e] < 0)
                pairs[n++] = (centre_pair){.similarity = mdp_round30(similarity), .group = g, .expert = e};
        }
    }
    qsort(pairs, (size_t)n, sizeof *pairs, compare_pairs);
    return n;
}

mdp_status group_centroid(const group_problem *problem, group_answer *answer) {
    int32_t most = problem->input->max_group > 0 ? problem->input->max_group : problem->n;
    centre_pair *pairs = NULL;
    int32_t *size = NULL;
    if ((int64_t)most * problem->n_group < problem->n)
        return MDP_ERROR(MDP_USAGE,
                         "%" PRId32 " groups of at most %" PRId32 " members have no room for %" PRId32
                         " experts; give --max-group at least %" PRId32 ".",
                         problem->n_group, most, problem->n, (problem->n + problem->n_group - 1) / problem->n_group);
    MDP_TRY(choose_centres(problem, answer->centre));
    found_groups(problem, answer);
    mdp_status status = MDP_ALLOC(&pairs, (int64_t)problem->n_group * (problem->n - problem->n_group), "pairs");
    if (status.code == MDP_OK) status = MDP_ALLOC(&size, problem->n_group, "the sizes of groups");
    int64_t n_pair = status.code == MDP_OK ? list_pairs(problem, answer, pairs) : 0;
    for (int64_t at = 0; at < n_pair; at++) {
        const centre_pair *pair = &pairs[at];
        if (answer->group[pair->expert] >= 0 || size[pair->group] + 1 >= most) continue; /* + 1: the centre */
        answer->group[pair->expert] = pair->group;
        size[pair->group]++;
    }
    if (status.code == MDP_OK) tell_sum(problem, answer);
    mdp_free(pairs);
    mdp_free(size);
    return status;
}
