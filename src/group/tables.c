/* tables.c - gains of moving an expert or exchanging two, in O(1) from sums that are kept, and the descent by them. */
#include "group/tables.h"

#include <string.h>

static double entry(const group_tables *t, int32_t i, int32_t j) {
    return t->matrix[(int64_t)i * t->n + j];
}

mdp_status group_tables_new(int32_t n, int32_t n_group, const double *matrix, group_tables *out) {
    double largest = 0.0;
    for (int64_t at = 0; at < (int64_t)n * n; at++) largest = fmax(largest, fabs(matrix[at]));
    *out = (group_tables){.n = n, .n_group = n_group, .matrix = matrix, .least = TABLES_LEAST_GAIN * largest};
    MDP_TRY(MDP_ALLOC(&out->group, n, "groups"));
    MDP_TRY(MDP_ALLOC(&out->size, n_group, "the sizes of groups"));
    MDP_TRY(MDP_ALLOC(&out->within, n_group, "the sums of groups"));
    MDP_TRY(MDP_ALLOC(&out->link, (int64_t)n * n_group, "similarities to groups"));
    MDP_TRY(MDP_ALLOC(&out->name, n_group, "the numbers of groups"));
    return MDP_ALLOC(&out->tidied, n, "groups");
}

void group_tables_clear(group_tables *tables) {
    mdp_free(tables->group);
    mdp_free(tables->size);
    mdp_free(tables->within);
    mdp_free(tables->link);
    mdp_free(tables->name);
    mdp_free(tables->tidied);
    *tables = (group_tables){0};
}

double group_tables_fill(group_tables *t) {
    double sum = 0.0;
    memset(t->link, 0, (size_t)t->n * (size_t)t->n_group * sizeof *t->link);
    memset(t->within, 0, (size_t)t->n_group * sizeof *t->within);
    memset(t->size, 0, (size_t)t->n_group * sizeof *t->size);
    for (int32_t i = 0; i < t->n; i++) {
        double *link = group_tables_link(t, i);
        t->size[t->group[i]]++;
        for (int32_t j = 0; j < i; j++) link[t->group[j]] += entry(t, i, j);
        t->within[t->group[i]] += link[t->group[i]];
        for (int32_t j = i + 1; j < t->n; j++) link[t->group[j]] += entry(t, i, j);
    }
    for (int32_t g = 0; g < t->n_group; g++) sum += t->size[g] > 0 ? t->within[g] / t->size[g] : 0.0;
    return sum;
}

/* Gain of moving expert i, of a group with others, to group `to`. */
static double gain_of_move(const group_tables *t, int32_t i, int32_t to) {
    int32_t from = t->group[i];
    const double *link = group_tables_link(t, i);
    return (t->within[from] - link[from]) / (t->size[from] - 1) - t->within[from] / t->size[from] +
           (t->within[to] + link[to]) / (t->size[to] + 1) - t->within[to] / t->size[to];
}

/* Gain of exchanging experts i and j of different groups. */
static double gain_of_exchange(const group_tables *t, int32_t i, int32_t j) {
    int32_t a = t->group[i], b = t->group[j];
    const double *left = group_tables_link(t, i), *right = group_tables_link(t, j);
    double between = entry(t, i, j);
    return (right[a] - left[a] - between) / t->size[a] + (left[b] - right[b] - between) / t->size[b];
}

static void move(group_tables *t, int32_t i, int32_t to) {
    int32_t from = t->group[i];
    t->within[from] -= group_tables_link(t, i)[from];
    t->within[to] += group_tables_link(t, i)[to];
    t->size[from]--;
    t->size[to]++;
    t->group[i] = to;
    for (int32_t j = 0; j < t->n; j++) { /* the entry of an expert with itself is 0 */
        group_tables_link(t, j)[from] -= entry(t, j, i);
        group_tables_link(t, j)[to] += entry(t, j, i);
    }
}

static bool move_best(group_tables *t) {
    double best = t->least;
    int32_t expert = -1, to = -1;
    for (int32_t i = 0; i < t->n; i++) {
        for (int32_t g = 0; t->size[t->group[i]] > 1 && g < t->n_group; g++) {
            double gain = g == t->group[i] ? 0.0 : gain_of_move(t, i, g);
            if (gain <= best) continue;
            best = gain;
            expert = i;
            to = g;
        }
    }
    if (expert >= 0) move(t, expert, to);
    return expert >= 0;
}

static bool exchange_best(group_tables *t) {
    double best = t->least;
    int32_t left = -1, right = -1;
    for (int32_t i = 0; i < t->n; i++) {
        for (int32_t j = i + 1; j < t->n; j++) {
            double gain = t->group[i] == t->group[j] ? 0.0 : gain_of_exchange(t, i, j);
            if (gain <= best) continue;
            best = gain;
            left = i;
            right = j;
        }
    }
    if (left < 0) return false;
    int32_t a = t->group[left], b = t->group[right];
    move(t, left, b);
    move(t, right, a);
    return true;
}

void group_tables_descend(group_tables *t, group_best *best) {
    (void)group_tables_fill(t);
    while (move_best(t) || exchange_best(t)) continue;
    memcpy(t->tidied, t->group, (size_t)t->n * sizeof *t->group);
    (void)group_canonical(t->n, t->tidied, t->n_group, t->name);
    group_best_hold(best, t->tidied, group_tables_fill(t));
}
