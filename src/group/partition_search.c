/* partition_search.c - a good partition where there are too many to try: iterated local search.
 *
 * Starts: the joins by average, complete and single linkage of the negated similarities. Descent: the best move of one
 * expert to another group while one gains, else the best exchange of two, until neither gains. Then the best so far is
 * disturbed, by seeded random numbers, and descends again; the better one stays. Gains are O(1) from three tables. */
#include "group/partition.h"

#include <string.h>

#define N_ROUND 400         /* disturbances */
#define LEAST_GAIN 0x1p-36  /* of the largest similarity: smaller gains are rounding */
#define DRAWS_OF_ROUND 4096 /* random numbers that a round may use: more than experts of a layer are not needed */

typedef struct search {
    const group_problem *problem;
    int32_t *group;  /* [n] */
    int32_t *size;   /* [n_group] */
    double *within;  /* [n_group] sum over the pairs inside */
    double *link;    /* [n, n_group] sum of an expert's similarities to the group's members, without itself */
    double least;    /* gain that counts */
    int32_t *name;   /* [n_group] */
    int32_t *tidied; /* [n] */
    uint64_t draw;   /* the next random number */
} search;

static double *link_of(const search *s, int32_t expert) {
    return s->link + (int64_t)expert * s->problem->n_group;
}

static double similarity_of(const search *s, int32_t i, int32_t j) {
    return s->problem->matrix[(int64_t)i * s->problem->n + j];
}

/* The tables of the present groups; returns the objective. */
static double measure(search *s) {
    const group_problem *problem = s->problem;
    memset(s->link, 0, (size_t)problem->n * (size_t)problem->n_group * sizeof *s->link);
    for (int32_t i = 0; i < problem->n; i++) {
        for (int32_t j = 0; j < problem->n; j++) link_of(s, i)[s->group[j]] += similarity_of(s, i, j);
    }
    return partition_value(problem->n, problem->matrix, problem->n_group, s->group, s->within, s->size);
}

/* ---- descent ------------------------------------------------------------------------------------------------------
 */

/* Gain of moving expert i, of a group with others, to group `to`. */
static double gain_of_move(const search *s, int32_t i, int32_t to) {
    int32_t from = s->group[i];
    const double *link = link_of(s, i);
    return (s->within[from] - link[from]) / (s->size[from] - 1) - s->within[from] / s->size[from] +
           (s->within[to] + link[to]) / (s->size[to] + 1) - s->within[to] / s->size[to];
}

/* Gain of exchanging experts i and j of different groups. */
static double gain_of_exchange(const search *s, int32_t i, int32_t j) {
    int32_t a = s->group[i], b = s->group[j];
    double between = similarity_of(s, i, j);
    return (link_of(s, j)[a] - link_of(s, i)[a] - between) / s->size[a] +
           (link_of(s, i)[b] - link_of(s, j)[b] - between) / s->size[b];
}

static void move(search *s, int32_t i, int32_t to) {
    int32_t from = s->group[i];
    s->within[from] -= link_of(s, i)[from];
    s->within[to] += link_of(s, i)[to];
    s->size[from]--;
    s->size[to]++;
    s->group[i] = to;
    for (int32_t j = 0; j < s->problem->n; j++) { /* the similarity to itself is 0 */
        link_of(s, j)[from] -= similarity_of(s, j, i);
        link_of(s, j)[to] += similarity_of(s, j, i);
    }
}

static bool move_best(search *s) {
    double best = s->least;
    int32_t expert = -1, to = -1;
    for (int32_t i = 0; i < s->problem->n; i++) {
        for (int32_t g = 0; s->size[s->group[i]] > 1 && g < s->problem->n_group; g++) {
            double gain = g == s->group[i] ? 0.0 : gain_of_move(s, i, g);
            if (gain <= best) continue;
            best = gain;
            expert = i;
            to = g;
        }
    }
    if (expert >= 0) move(s, expert, to);
    return expert >= 0;
}

static bool exchange_best(search *s) {
    double best = s->least;
    int32_t left = -1, right = -1;
    for (int32_t i = 0; i < s->problem->n; i++) {
        for (int32_t j = i + 1; j < s->problem->n; j++) {
            double gain = s->group[i] == s->group[j] ? 0.0 : gain_of_exchange(s, i, j);
            if (gain <= best) continue;
            best = gain;
            left = i;
            right = j;
        }
    }
    if (left < 0) return false;
    int32_t a = s->group[left], b = s->group[right];
    move(s, left, b);
    move(s, right, a);
    return true;
}

/* Descend from the present groups and hold the local optimum against the best; true when it is the best. */
static bool descend(search *s, group_best *best) {
    (void)measure(s);
    while (move_best(s) || exchange_best(s)) continue;
    memcpy(s->tidied, s->group, (size_t)s->problem->n * sizeof *s->group);
    (void)group_canonical(s->problem->n, s->tidied, s->problem->n_group, s->name);
    return group_best_hold(best, s->tidied, measure(s));
}

/* ---- starts and disturbances --------------------------------------------------------------------------------------
 */

static int32_t random_below(search *s, int32_t n) {
    const mdp_group_input *input = s->problem->input;
    return (int32_t)(mdp_random_uniform(input->seed, input->stream, group_draw(s->problem, 0, s->draw++)) * n);
}

/* A few experts move anywhere, but none leaves a group empty. */
static void scatter(search *s) {
    int32_t n = 2 + random_below(s, s->problem->n / 8 + 1);
    for (int32_t at = 0; at < n; at++) {
        int32_t i = random_below(s, s->problem->n), to = random_below(s, s->problem->n_group);
        if (s->size[s->group[i]] < 2) continue;
        s->size[s->group[i]]--;
        s->size[to]++;
        s->group[i] = to;
    }
}

/* Two groups become one, and a group is divided in two at random: sizes that single moves do not reach. */
static void melt_and_divide(search *s) {
    int32_t n_group = s->problem->n_group, melted = random_below(s, n_group);
    int32_t into = (melted + 1 + random_below(s, n_group - 1)) % n_group, divided = into;
    s->size[into] += s->size[melted];
    s->size[melted] = 0;
    for (int32_t i = 0; i < s->problem->n; i++)
        if (s->group[i] == melted) s->group[i] = into;
    for (int32_t at = 0, start = random_below(s, n_group); at < n_group; at++) {
        divided = (start + at) % n_group;
        if (s->size[divided] > 1) break;
    }
    for (int32_t i = 0; i < s->problem->n; i++) {
        if (s->group[i] != divided || s->size[divided] < 2) continue;
        if (s->size[melted] > 0 && random_below(s, 2) == 0) continue; /* the first one goes in any case */
        s->group[i] = melted;
        s->size[divided]--;
        s->size[melted]++;
    }
}

static mdp_status start_from_joins(search *s, group_best *best) {
    static const mdp_linkage linkages[] = {MDP_LINKAGE_AVERAGE, MDP_LINKAGE_COMPLETE, MDP_LINKAGE_SINGLE};
    int32_t n = s->problem->n, n_group = s->problem->n_group;
    double *distance = NULL;
    mdp_join *joins = NULL;
    mdp_status status = MDP_ALLOC(&distance, (int64_t)n * n, "distances");
    if (status.code == MDP_OK) status = MDP_ALLOC(&joins, n, "the joins of groups");
    for (int64_t at = 0; status.code == MDP_OK && at < (int64_t)n * n; at++) distance[at] = -s->problem->matrix[at];
    for (int at = 0; at < 3 && status.code == MDP_OK; at++) {
        status = mdp_joins_make(n, distance, linkages[at], n_group, joins);
        if (status.code != MDP_OK) break;
        mdp_joins_cut(n, joins, n - n_group, s->group);
        (void)descend(s, best);
    }
    mdp_free(distance);
    mdp_free(joins);
    return status;
}

static mdp_status allocate_search(search *s) {
    int32_t n = s->problem->n, n_group = s->problem->n_group;
    MDP_TRY(MDP_ALLOC(&s->group, n, "groups"));
    MDP_TRY(MDP_ALLOC(&s->size, n_group, "the sizes of groups"));
    MDP_TRY(MDP_ALLOC(&s->within, n_group, "the sums of groups"));
    MDP_TRY(MDP_ALLOC(&s->link, (int64_t)n * n_group, "similarities to groups"));
    MDP_TRY(MDP_ALLOC(&s->name, n_group, "the numbers of groups"));
    return MDP_ALLOC(&s->tidied, n, "groups");
}

static mdp_status run(search *s, group_best *best) {
    int32_t n = s->problem->n;
    double largest = 0.0;
    MDP_TRY(allocate_search(s));
    for (int64_t at = 0; at < (int64_t)n * n; at++) largest = fmax(largest, fabs(s->problem->matrix[at]));
    s->least = LEAST_GAIN * largest;
    MDP_TRY(start_from_joins(s, best));
    if (s->problem->n_group == 1 || s->problem->n_group == n) return mdp_ok(); /* there is one partition */
    for (int32_t round = 0; round < N_ROUND; round++) {
        memcpy(s->group, best->group, (size_t)n * sizeof *s->group);
        (void)measure(s);
        s->draw = (uint64_t)round * DRAWS_OF_ROUND;
        if (random_below(s, 2) == 0)
            scatter(s);
        else
            melt_and_divide(s);
        (void)descend(s, best);
    }
    return mdp_ok();
}

mdp_status partition_search(const group_problem *problem, group_best *best) {
    search s = {.problem = problem};
    mdp_status status = run(&s, best);
    mdp_free(s.group);
    mdp_free(s.size);
    mdp_free(s.within);
    mdp_free(s.link);
    mdp_free(s.name);
    mdp_free(s.tidied);
    return status;
}
