/* kmeans.c - k-means: starts by k-means++ (Arthur, Vassilvitskii 2007), Lloyd's iterations, and where they stand still,
 * the single transfer that gains most (Hartigan 1975); the best of some starts.
 *
 * In: vectors. Out: groups, the sum of squared distances to their means. Sums run over experts in ascending order and
 * over components in the lanes of linalg/lanes.h, so that the result is the same whatever instructions there are. */
#include "group/kmeans.h"

#include "linalg/lanes.h"

#include <string.h>

#define N_START 10
#define N_ITERATION 1000
#define LEAST_GAIN 0x1p-36 /* of the inertia: smaller gains are rounding */

typedef struct kmeans {
    const group_problem *problem;
    const double *const *row; /* [n] of n_value */
    int64_t n_value;
    double *mean;    /* [n_group, n_value] */
    double *nearest; /* [n] squared distance to the nearest mean */
    int32_t *group;  /* [n] */
    int32_t *before; /* [n] groups of the iteration before */
    int32_t *size;   /* [n_group] */
    int32_t *name;   /* [n_group] */
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

static double *mean_of(const kmeans *k, int32_t group) {
    return k->mean + group * k->n_value;
}

/* The vector that becomes the next mean: drawn with probability proportional to `nearest`. */
static int32_t draw(const kmeans *k, double u) {
    double sum = 0.0, target;
    int32_t last = -1;
    for (int32_t i = 0; i < k->problem->n; i++) sum += k->nearest[i];
    target = u * sum;
    sum = 0.0;
    for (int32_t i = 0; i < k->problem->n; i++) {
        if (k->nearest[i] > 0.0) last = i;
        sum += k->nearest[i];
        if (sum > target) return i;
    }
    return last; /* rounding let the sum end below the target; -1: all vectors are means already */
}

static void begin(kmeans *k, int32_t start) {
    const group_problem *problem = k->problem;
    for (int32_t g = 0; g < problem->n_group; g++) {
        double u =
            mdp_random_uniform(problem->input->seed, problem->input->stream, group_draw(problem, start, (uint64_t)g));
        int32_t chosen = g == 0 ? (int32_t)(u * problem->n) : draw(k, u);
        /* Fewer different vectors than groups: the means that are over stay empty until `fill_empty`. */
        memcpy(mean_of(k, g), k->row[chosen < 0 ? 0 : chosen], (size_t)k->n_value * sizeof *k->mean);
        for (int32_t i = 0; i < problem->n; i++) {
            double distance = square_distance(k->row[i], mean_of(k, g), k->n_value);
            if (g == 0 || distance < k->nearest[i]) k->nearest[i] = distance;
        }
    }
}

/* An empty group takes the vector that is farthest from its mean, of those that are not alone. */
static void fill_empty(kmeans *k) {
    for (int32_t g = 0; g < k->problem->n_group; g++) {
        int32_t farthest = -1;
        if (k->size[g] > 0) continue;
        for (int32_t i = 0; i < k->problem->n; i++) {
            if (k->size[k->group[i]] > 1 && (farthest < 0 || k->nearest[i] > k->nearest[farthest])) farthest = i;
        }
        k->size[k->group[farthest]]--;
        k->group[farthest] = g;
        k->size[g] = 1;
        k->nearest[farthest] = 0.0;
    }
}

/* Every vector to its nearest mean, of equally near ones to the first; true when something moved. */
static bool assign(kmeans *k) {
    const group_problem *problem = k->problem;
    size_t n_byte = (size_t)problem->n * sizeof *k->group;
    memcpy(k->before, k->group, n_byte);
    memset(k->size, 0, (size_t)problem->n_group * sizeof *k->size);
    for (int32_t i = 0; i < problem->n; i++) {
        int32_t best = 0;
        for (int32_t g = 0; g < problem->n_group; g++) {
            double distance = square_distance(k->row[i], mean_of(k, g), k->n_value);
            if (g > 0 && distance >= k->nearest[i]) continue;
            k->nearest[i] = distance;
            best = g;
        }
        k->group[i] = best;
        k->size[best]++;
    }
    fill_empty(k);
    return memcmp(k->before, k->group, n_byte) != 0;
}

static void set_means(kmeans *k) {
    const group_problem *problem = k->problem;
    memset(k->mean, 0, (size_t)(problem->n_group * k->n_value) * sizeof *k->mean);
    for (int32_t i = 0; i < problem->n; i++) {
        double *mean = mean_of(k, k->group[i]);
        for (int64_t j = 0; j < k->n_value; j++) mean[j] += k->row[i][j];
    }
    for (int32_t g = 0; g < problem->n_group; g++) {
        for (int64_t j = 0; j < k->n_value; j++) mean_of(k, g)[j] /= k->size[g];
    }
}

static double inertia_of(kmeans *k) {
    double inertia = 0.0;
    for (int32_t i = 0; i < k->problem->n; i++) {
        k->nearest[i] = square_distance(k->row[i], mean_of(k, k->group[i]), k->n_value);
        inertia += k->nearest[i];
    }
    return inertia;
}

/* Move the one vector whose move lowers the inertia most, means moving with it; false when none does by more than
 * `least`. `nearest` is the distance to the own mean. */
static bool transfer_best(kmeans *k, double least) {
    const group_problem *problem = k->problem;
    int32_t expert = -1, to = -1;
    for (int32_t i = 0; i < problem->n; i++) {
        double own = k->size[k->group[i]];
        for (int32_t g = 0; own > 1.0 && k->nearest[i] > 0.0 && g < problem->n_group; g++) {
            double other = k->size[g];
            double gain = g == k->group[i]
                              ? 0.0
                              : own / (own - 1.0) * k->nearest[i] -
                                    other / (other + 1.0) * square_distance(k->row[i], mean_of(k, g), k->n_value);
            if (gain <= least) continue;
            least = gain;
            expert = i;
            to = g;
        }
    }
    if (expert < 0) return false;
    k->size[k->group[expert]]--;
    k->size[to]++;
    k->group[expert] = to;
    return true;
}

/* The sum of squared distances of the groups that a start ends in. */
static double descend(kmeans *k, int32_t start) {
    double inertia = 0.0;
    for (int32_t i = 0; i < k->problem->n; i++) k->group[i] = -1;
    begin(k, start);
    for (int iteration = 0; iteration < N_ITERATION; iteration++) {
        bool moved = assign(k);
        set_means(k);
        if (moved) continue;
        inertia = inertia_of(k);
        if (!transfer_best(k, LEAST_GAIN * inertia)) return inertia;
        set_means(k);
    }
    return inertia_of(k);
}

static mdp_status run_starts(kmeans *k, group_answer *answer) {
    const group_problem *problem = k->problem;
    int32_t n_start = problem->input->n_start > 0 ? problem->input->n_start : N_START;
    group_best best = group_best_of(problem->n, answer->group);
    MDP_TRY(MDP_ALLOC(&k->mean, problem->n_group * k->n_value, "the means of groups"));
    MDP_TRY(MDP_ALLOC(&k->nearest, problem->n, "distances to means"));
    MDP_TRY(MDP_ALLOC(&k->group, problem->n, "groups"));
    MDP_TRY(MDP_ALLOC(&k->before, problem->n, "groups"));
    MDP_TRY(MDP_ALLOC(&k->size, problem->n_group, "the sizes of groups"));
    MDP_TRY(MDP_ALLOC(&k->name, problem->n_group, "the numbers of groups"));
    for (int32_t start = 0; start < n_start; start++) {
        double inertia = descend(k, start);
        (void)group_canonical(problem->n, k->group, problem->n_group, k->name);
        (void)group_best_hold(&best, k->group, -inertia);
    }
    answer->objective = -best.value;
    answer->gap = best.value - best.second;
    return mdp_ok();
}

mdp_status kmeans_run(const group_problem *problem, const double *const *row, int64_t n_value, group_answer *answer) {
    kmeans k = {.problem = problem, .row = row, .n_value = n_value};
    mdp_status status = run_starts(&k, answer);
    mdp_free(k.mean);
    mdp_free(k.nearest);
    mdp_free(k.group);
    mdp_free(k.before);
    mdp_free(k.size);
    mdp_free(k.name);
    return status;
}

mdp_status group_kmeans(const group_problem *problem, group_answer *answer) {
    return kmeans_run(problem, (const double *const *)problem->feature, problem->input->n_feature, answer);
}
