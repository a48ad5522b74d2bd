/* partition_search.c - a good partition where there are too many to try: iterated local search.
 *
 * Starts: the joins by average, complete and single linkage of the negated similarities. Each descends (tables.c). Then
 * the best so far is disturbed, by seeded random numbers, and descends again; the better one stays. */
#include "group/partition.h"

#include "group/tables.h"

#include <string.h>

#define N_ROUND 400         /* disturbances */
#define DRAWS_OF_ROUND 4096 /* numbers from one round to the next; a round of very many experts shares some */

typedef struct search {
    const group_problem *problem;
    group_tables tables;
    uint64_t draw; /* the next random number */
} search;

static int32_t random_below(search *s, int32_t n) {
    const mdp_group_input *input = s->problem->input;
    return (int32_t)(mdp_random_uniform(input->seed, input->stream, group_draw(s->problem, 0, s->draw++)) * n);
}

/* A few experts move anywhere, but none leaves a group empty. */
static void scatter(search *s) {
    group_tables *t = &s->tables;
    int32_t n = 2 + random_below(s, t->n / 8 + 1);
    for (int32_t at = 0; at < n; at++) {
        int32_t i = random_below(s, t->n), to = random_below(s, t->n_group);
        if (t->size[t->group[i]] < 2) continue;
        t->size[t->group[i]]--;
        t->size[to]++;
        t->group[i] = to;
    }
}

/* The first group with several members, from a random one on. */
static int32_t draw_divisible(search *s) {
    int32_t n_group = s->tables.n_group, group = random_below(s, n_group);
    while (s->tables.size[group] < 2) group = (group + 1) % n_group;
    return group;
}

/* Two groups become one, and a group is divided in two at random: sizes that single moves do not reach. */
static void melt_and_divide(search *s) {
    group_tables *t = &s->tables;
    int32_t melted = random_below(s, t->n_group), into = (melted + 1 + random_below(s, t->n_group - 1)) % t->n_group;
    t->size[into] += t->size[melted];
    t->size[melted] = 0;
    for (int32_t i = 0; i < t->n; i++)
        if (t->group[i] == melted) t->group[i] = into;
    int32_t divided = draw_divisible(s);
    for (int32_t i = 0; i < t->n; i++) {
        if (t->group[i] != divided || t->size[divided] < 2) continue;
        if (t->size[melted] > 0 && random_below(s, 2) == 0) continue; /* the first one goes in any case */
        t->group[i] = melted;
        t->size[divided]--;
        t->size[melted]++;
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
        mdp_joins_cut(n, joins, n - n_group, s->tables.group);
        group_tables_descend(&s->tables, best);
    }
    mdp_free(distance);
    mdp_free(joins);
    return status;
}

static mdp_status run(search *s, group_best *best) {
    const group_problem *problem = s->problem;
    group_tables *t = &s->tables;
    MDP_TRY(group_tables_new(problem->n, problem->n_group, problem->matrix, t));
    MDP_TRY(start_from_joins(s, best));
    if (t->n_group == 1 || t->n_group == t->n) return mdp_ok(); /* there is one partition */
    for (int32_t round = 0; round < N_ROUND; round++) {
        memcpy(t->group, best->group, (size_t)t->n * sizeof *t->group);
        (void)group_tables_fill(t);
        s->draw = (uint64_t)round * DRAWS_OF_ROUND;
        if (random_below(s, 2) == 0)
            scatter(s);
        else
            melt_and_divide(s);
        group_tables_descend(t, best);
    }
    return mdp_ok();
}

mdp_status partition_search(const group_problem *problem, group_best *best) {
    search s = {.problem = problem};
    mdp_status status = run(&s, best);
    group_tables_clear(&s.tables);
    return status;
}
