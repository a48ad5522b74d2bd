/* hierarchical.c - agglomerative grouping by average, complete, single or Ward's linkage.
 *
 * In: distances. Out: the joins in order, the groups after any number of them, the order of the leaves. For the
 * average, sums over pairs are kept instead of means, so that a mean is rounded once (UPGMA without drift); for ward,
 * squares, updated by the recurrence of Lance and Williams (1967). Every row remembers its nearest group, which makes a
 * join O(n) where few rows had one of the two as theirs. */
#include "group/hierarchical.h"
#include "group/problem.h"

#include <inttypes.h>
#include <math.h>

const char *const mdp_linkage_names[] = {[MDP_LINKAGE_AVERAGE] = "average",
                                         [MDP_LINKAGE_COMPLETE] = "complete",
                                         [MDP_LINKAGE_SINGLE] = "single",
                                         [MDP_LINKAGE_WARD] = "ward",
                                         NULL};

/* ---- the groups -------------------------------------------------------------------------------------------------- */

static double *entry(const agglomeration *groups, double *matrix, int32_t i, int32_t j) {
    return i < j ? &matrix[(int64_t)i * groups->n + j] : &matrix[(int64_t)j * groups->n + i];
}

double agglomeration_height(const agglomeration *groups, int32_t i, int32_t j) {
    double value = *entry(groups, groups->value, i, j);
    if (groups->linkage == MDP_LINKAGE_AVERAGE) return value / ((double)groups->size[i] * groups->size[j]);
    return groups->linkage == MDP_LINKAGE_WARD ? sqrt(fmax(value, 0.0)) : value;
}

/* Find the nearest of row i anew. */
static void look_around(agglomeration *groups, int32_t i) {
    const double *key = groups->key + (int64_t)i * groups->n;
    int32_t near = groups->n;
    for (int32_t j = i + 1; j < groups->n; j++) {
        if (groups->size[j] > 0 && (near == groups->n || key[j] < key[near])) near = j;
    }
    groups->near[i] = near;
}

static void set_key(agglomeration *groups, int32_t i, int32_t j) {
    *entry(groups, groups->key, i, j) = mdp_round30(agglomeration_height(groups, i, j));
}

void agglomeration_free(agglomeration *groups) {
    mdp_free(groups->value);
    mdp_free(groups->key);
    mdp_free(groups->size);
    mdp_free(groups->near);
    *groups = (agglomeration){0};
}

mdp_status agglomeration_begin(int32_t n, const double *distance, mdp_linkage linkage, agglomeration *out) {
    *out = (agglomeration){.n = n, .n_group = n, .linkage = linkage};
    MDP_TRY(MDP_ALLOC(&out->value, (int64_t)n * n, "distances of groups"));
    MDP_TRY(MDP_ALLOC(&out->key, (int64_t)n * n, "distances of groups"));
    MDP_TRY(MDP_ALLOC(&out->size, n, "sizes of groups"));
    MDP_TRY(MDP_ALLOC(&out->near, n, "neighbours of groups"));
    for (int32_t i = 0; i < n; i++) out->size[i] = 1;
    for (int32_t i = 0; i < n; i++) {
        for (int32_t j = i + 1; j < n; j++) {
            double d = distance[(int64_t)i * n + j];
            if (!isfinite(d))
                return MDP_ERROR(MDP_BAD_INPUT, "the distance of experts %" PRId32 " and %" PRId32 " is %g.", i, j, d);
            out->value[(int64_t)i * n + j] = linkage == MDP_LINKAGE_WARD ? d * d : d;
            set_key(out, i, j);
        }
    }
    for (int32_t i = 0; i < n; i++) look_around(out, i);
    return mdp_ok();
}

bool agglomeration_next(const agglomeration *groups, int32_t *i, int32_t *j) {
    double nearest = INFINITY;
    bool found = false;
    for (int32_t row = 0; row < groups->n; row++) {
        if (groups->size[row] == 0 || groups->near[row] == groups->n) continue;
        double key = groups->key[(int64_t)row * groups->n + groups->near[row]];
        if (found && key >= nearest) continue;
        found = true;
        nearest = key;
        *i = row;
        *j = groups->near[row];
    }
    return found;
}

/* What the union of groups i and j has for group k. */
static double joined_value(const agglomeration *groups, int32_t i, int32_t j, int32_t k) {
    double a = *entry(groups, groups->value, i, k), b = *entry(groups, groups->value, j, k);
    double n_i = groups->size[i], n_j = groups->size[j], n_k = groups->size[k];
    switch (groups->linkage) {
    case MDP_LINKAGE_COMPLETE:
        return fmax(a, b);
    case MDP_LINKAGE_SINGLE:
        return fmin(a, b);
    case MDP_LINKAGE_WARD:
        return ((n_i + n_k) * a + (n_j + n_k) * b - n_k * *entry(groups, groups->value, i, j)) / (n_i + n_j + n_k);
    default:
        return a + b;
    }
}

/* Rows above the joined groups i < j: their nearest may have gone, or the union may be nearer. */
static void look_again(agglomeration *groups, int32_t i, int32_t j) {
    for (int32_t row = 0; row < j; row++) {
        int32_t near = groups->near[row];
        if (groups->size[row] == 0 || row == i) continue;
        if (near == i || near == j) {
            look_around(groups, row);
        } else if (row < i && near < groups->n) {
            const double *key = groups->key + (int64_t)row * groups->n;
            if (key[i] < key[near] || (i < near && key[i] == key[near])) groups->near[row] = i;
        }
    }
    look_around(groups, i);
}

mdp_join agglomeration_join(agglomeration *groups) {
    int32_t i = 0, j = 0;
    (void)agglomeration_next(groups, &i, &j);
    mdp_join join = {
        .left = i, .right = j, .size = groups->size[i] + groups->size[j], .height = agglomeration_height(groups, i, j)};
    for (int32_t k = 0; k < groups->n; k++) {
        if (groups->size[k] > 0 && k != i && k != j)
            *entry(groups, groups->value, i, k) = joined_value(groups, i, j, k);
    }
    groups->size[i] = join.size;
    groups->size[j] = 0;
    groups->n_group--;
    for (int32_t k = 0; k < groups->n; k++) {
        if (groups->size[k] > 0 && k != i) set_key(groups, i, k);
    }
    look_again(groups, i, j);
    return join;
}

/* ---- joins ------------------------------------------------------------------------------------------------------- */

/* *next: height of the join that would follow; NAN: none would. */
static mdp_status make_joins(int32_t n, const double *distance, mdp_linkage linkage, int32_t n_group, mdp_join *joins,
                             double *next) {
    agglomeration groups;
    mdp_status status = agglomeration_begin(n, distance, linkage, &groups);
    if (status.code == MDP_OK) {
        int32_t i, j;
        while (groups.n_group > n_group) *joins++ = agglomeration_join(&groups);
        *next = agglomeration_next(&groups, &i, &j) ? agglomeration_height(&groups, i, j) : (double)NAN;
    }
    agglomeration_free(&groups);
    return status;
}

mdp_status mdp_joins_make(int32_t n, const double *distance, mdp_linkage linkage, int32_t n_group, mdp_join *joins) {
    double next;
    if (n_group < 1 || n_group > n)
        return MDP_ERROR(MDP_USAGE, "%" PRId32 " experts cannot be joined to %" PRId32 " groups.", n, n_group);
    return make_joins(n, distance, linkage, n_group, joins, &next);
}

void mdp_joins_cut(int32_t n, const mdp_join *joins, int32_t n_join, int32_t *group) {
    for (int32_t e = 0; e < n; e++) group[e] = e;
    /* A group's name is its smallest member, and each `right` is joined once: follow the names from the last join on.
     */
    for (int32_t at = n_join; at-- > 0;) group[joins[at].right] = group[joins[at].left];
    for (int32_t e = 0, n_group = 0; e < n; e++) group[e] = group[e] == e ? n_group++ : group[group[e]];
}

mdp_status mdp_joins_leaves(int32_t n, const mdp_join *joins, mdp_expert_t *order) {
    int32_t *after = NULL, *last = NULL;
    mdp_status status = MDP_ALLOC(&after, n, "the leaves of a dendrogram");
    if (status.code == MDP_OK) status = MDP_ALLOC(&last, n, "the leaves of a dendrogram");
    if (status.code == MDP_OK) {
        for (int32_t e = 0; e < n; e++) last[e] = e;
        for (int32_t at = 0; at < n - 1; at++) {
            after[last[joins[at].left]] = joins[at].right;
            last[joins[at].left] = last[joins[at].right];
        }
        for (int32_t at = 0, e = 0; at < n; at++, e = after[e]) order[at] = e;
    }
    mdp_free(after);
    mdp_free(last);
    return status;
}

mdp_status group_hierarchical(const group_problem *problem, group_answer *answer) {
    int32_t n_join = problem->n - problem->n_group;
    double next = (double)NAN;
    MDP_TRY(make_joins(problem->n, problem->matrix, problem->input->linkage, problem->n_group, answer->joins, &next));
    mdp_joins_cut(problem->n, answer->joins, n_join, answer->group);
    answer->objective = n_join > 0 ? answer->joins[n_join - 1].height : 0.0;
    answer->gap = next - answer->objective;
    return mdp_ok();
}
