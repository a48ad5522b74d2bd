/* kmeans.c - k-means: starts by k-means++ (Arthur, Vassilvitskii 2007), then the moves of one vector and exchanges of
 * two that gain most (tables.c), whose fixed points are among Lloyd's; the best of some starts.
 *
 * In: vectors. Out: groups, the sum of squared distances to their means, which is the sum over groups of (sum of
 * squared distances over pairs) / size. So vectors are read once, for the distances of all pairs, and a start takes as
 * long however long they are. Components are added in the lanes of linalg/lanes.h: the same bits whatever
 * instructions there are. */
#include "group/kmeans.h"

#include "group/tables.h"
#include "linalg/lanes.h"

#include <string.h>

#define N_START 10

typedef struct kmeans {
    const group_problem *problem;
    double *minus;       /* [n, n] minus the squared distances */
    group_tables tables; /* of `minus` */
    double *nearest;     /* [n] squared distance to the nearest centre */
} kmeans;

MDP_CLONES static double square_distance(const double *a, const double *b, int64_t n) {
    double lane[MDP_LANES] = {0.0};
    int64_t whole = n - n % MDP_LANES;
    for (int64_t i = 0; i < whole; i += MDP_LANES) {
        for (int j = 0; j < MDP_LANES; j++) {
            double difference = a[i + j] - b[i + j];
            lane[j] += difference * difference;
        }
    }
    for (int64_t i = whole; i < n; i++) lane[i - whole] += (a[i] - b[i]) * (a[i] - b[i]);
    return lanes_sum(lane);
}

/* The vector that becomes the next centre: drawn with probability proportional to `nearest`. */
static int32_t draw_centre(const kmeans *k, double u) {
    double sum = 0.0, target;
    int32_t last = 0; /* where all vectors equal a centre already: `fill_empty` has groups for what is over */
    for (int32_t i = 0; i < k->problem->n; i++) sum += k->nearest[i];
    target = u * sum;
    sum = 0.0;
    for (int32_t i = 0; i < k->problem->n; i++) {
        if (k->nearest[i] > 0.0) last = i;
        sum += k->nearest[i];
        if (sum > target) return i;
    }
    return last; /* rounding let the sum end below the target */
}

/* Draw a centre for each group; every vector joins the nearest one, of equally near ones the first. */
static void begin(kmeans *k, int32_t start) {
    const group_problem *problem = k->problem;
    group_tables *t = &k->tables;
    for (int32_t g = 0; g < t->n_group; g++) {
        double u =
            mdp_random_uniform(problem->input->seed, problem->input->stream, group_draw(problem, start, (uint64_t)g));
        int32_t centre = g == 0 ? (int32_t)(u * t->n) : draw_centre(k, u);
        for (int32_t i = 0; i < t->n; i++) {
            double distance = -k->minus[(int64_t)centre * t->n + i];
            if (g > 0 && distance >= k->nearest[i]) continue;
            k->nearest[i] = distance;
            t->group[i] = g;
        }
    }
}

/* Where fewer vectors differ than there are groups: an empty group takes the first that is not alone. */
static void fill_empty(kmeans *k) {
    group_tables *t = &k->tables;
    memset(t->size, 0, (size_t)t->n_group * sizeof *t->size);
    for (int32_t i = 0; i < t->n; i++) t->size[t->group[i]]++;
    for (int32_t g = 0; g < t->n_group; g++) {
        int32_t first = 0;
        if (t->size[g] > 0) continue;
        while (t->size[t->group[first]] < 2) first++;
        t->size[t->group[first]]--;
        t->group[first] = g;
        t->size[g] = 1;
    }
}

static mdp_status run_starts(kmeans *k, const double *const *row, int64_t n_value, group_answer *answer) {
    const group_problem *problem = k->problem;
    int32_t n = problem->n, n_start = problem->input->n_start > 0 ? problem->input->n_start : N_START;
    group_best best = group_best_of(n, answer->group);
    MDP_TRY(MDP_ALLOC(&k->minus, (int64_t)n * n, "squared distances"));
    MDP_TRY(MDP_ALLOC(&k->nearest, n, "distances to centres"));
    for (int32_t i = 0; i < n; i++) {
        for (int32_t j = 0; j < i; j++)
            k->minus[(int64_t)i * n + j] = k->minus[(int64_t)j * n + i] = -square_distance(row[i], row[j], n_value);
    }
    MDP_TRY(group_tables_new(n, problem->n_group, k->minus, &k->tables));
    for (int32_t start = 0; start < n_start; start++) {
        begin(k, start);
        fill_empty(k);
        group_tables_descend(&k->tables, &best);
    }
    answer->objective = -best.value;
    answer->gap = best.value - best.second;
    return mdp_ok();
}

mdp_status kmeans_run(const group_problem *problem, const double *const *row, int64_t n_value, group_answer *answer) {
    kmeans k = {.problem = problem};
    mdp_status status = run_starts(&k, row, n_value, answer);
    mdp_free(k.minus);
    group_tables_clear(&k.tables);
    mdp_free(k.nearest);
    return status;
}

mdp_status group_kmeans(const group_problem *problem, group_answer *answer) {
    return kmeans_run(problem, (const double *const *)problem->feature, problem->input->n_feature, answer);
}
