/* merge_pool.c - many neurons become few: weighted k-means on the sphere.
 *
 * It starts from the neurons whose gate rows reach furthest, assigns by cosine (equal: the lower centre), and moves a
 * centre to the mean direction of its members, by their weights, with their mean length; a centre without members goes
 * back to its start. Centres are in order of the expert and neuron that they started from. */
#include "pipeline/merge_dern.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

void mdp_merge_pool_clear(mdp_merge_pool *pool) {
    mdp_free(pool->values);
    mdp_free(pool->length);
    mdp_free(pool->weight);
    mdp_free(pool->name);
    mdp_free(pool->centre);
    mdp_free(pool->size);
    mdp_free(pool->assigned);
    *pool = (mdp_merge_pool){0};
}

mdp_status mdp_merge_pool_new(int64_t f, int64_t n, int64_t width, mdp_merge_pool *out) {
    *out = (mdp_merge_pool){.f = f, .n = n, .width = width};
    mdp_status status = MDP_ALLOC(&out->values, n * width, "neurons of an expert");
    if (status.code == MDP_OK) status = MDP_ALLOC(&out->length, n, "neurons of an expert");
    if (status.code == MDP_OK) status = MDP_ALLOC(&out->weight, n, "neurons of an expert");
    if (status.code == MDP_OK) status = MDP_ALLOC(&out->name, n, "neurons of an expert");
    if (status.code == MDP_OK) status = MDP_ALLOC(&out->centre, f * width, "neurons of an expert");
    if (status.code == MDP_OK) status = MDP_ALLOC(&out->size, f, "neurons of an expert");
    if (status.code == MDP_OK) status = MDP_ALLOC(&out->assigned, n, "neurons of an expert");
    if (status.code != MDP_OK) mdp_merge_pool_clear(out);
    return status;
}

/* ---- the start -------------------------------------------------------------------------------------------------- */

typedef struct candidate {
    double reach;
    int64_t name, number; /* in the pool */
} candidate;

static int compare_reach(const void *left, const void *right) {
    const candidate *a = left, *b = right;
    if (a->reach != b->reach) return a->reach > b->reach ? -1 : 1;
    return a->name < b->name ? -1 : a->name > b->name;
}

static int compare_name(const void *left, const void *right) {
    const candidate *a = left, *b = right;
    return a->name < b->name ? -1 : a->name > b->name;
}

static double reach_of(const float *gate, int64_t d) {
    float most = gate[0], least = gate[0];
    for (int64_t i = 1; i < d; i++) {
        if (gate[i] > most) most = gate[i];
        if (gate[i] < least) least = gate[i];
    }
    return (double)most + fabs((double)least);
}

/* start [f]: numbers in the pool of what the centres start from. */
static mdp_status choose_start(const mdp_merge_pool *pool, int64_t d, int64_t *start) {
    candidate *all = NULL;
    MDP_TRY(MDP_ALLOC(&all, pool->n, "neurons of an expert"));
    for (int64_t i = 0; i < pool->n; i++)
        all[i] = (candidate){reach_of(pool->values + i * pool->width, d), pool->name[i], i};
    qsort(all, (size_t)pool->n, sizeof *all, compare_reach);
    qsort(all, (size_t)pool->f, sizeof *all, compare_name);
    for (int64_t j = 0; j < pool->f; j++) start[j] = all[j].number;
    mdp_free(all);
    return mdp_ok();
}

static void set_centre(mdp_merge_pool *pool, int64_t j, int64_t from) {
    float *to = pool->centre + j * pool->width;
    memcpy(to, pool->values + from * pool->width, (size_t)pool->width * sizeof *to);
    pool->size[j] = mdp_merge_scale(to, pool->width);
}

/* ---- rounds ----------------------------------------------------------------------------------------------------- */

/* The centre of largest cosine for neurons a .. a + n - 1; has any changed? */
static bool assign_tile(mdp_merge_pool *pool, mdp_gemm *gemm, int64_t a, int64_t n, double *tile) {
    double best[MDP_DERN_TILE];
    int64_t found[MDP_DERN_TILE];
    bool changed = false;
    for (int64_t i = 0; i < n; i++) {
        best[i] = -INFINITY;
        found[i] = 0;
    }
    for (int64_t b = 0; b < pool->f; b += MDP_DERN_TILE) {
        int64_t k = pool->f - b < MDP_DERN_TILE ? pool->f - b : MDP_DERN_TILE;
        mdp_merge_multiply(gemm, pool->values + a * pool->width, n, pool->centre + b * pool->width, k, pool->width,
                           tile);
        for (int64_t i = 0; i < n; i++) {
            for (int64_t j = 0; j < k; j++) {
                if (tile[i * MDP_DERN_TILE + j] <= best[i]) continue;
                best[i] = tile[i * MDP_DERN_TILE + j];
                found[i] = b + j;
            }
        }
    }
    for (int64_t i = 0; i < n; i++) {
        changed = changed || pool->assigned[a + i] != found[i];
        pool->assigned[a + i] = found[i];
    }
    return changed;
}

static bool assign(mdp_merge_pool *pool, mdp_gemm *gemm, int n_thread, double *tiles) {
    int64_t n_tile = mdp_divide_up(pool->n, MDP_DERN_TILE);
    int changed = 0;
#pragma omp parallel for schedule(dynamic) num_threads(n_thread)
    for (int64_t t = 0; t < n_tile; t++) {
        int64_t a = t * MDP_DERN_TILE, n = pool->n - a < MDP_DERN_TILE ? pool->n - a : MDP_DERN_TILE;
        if (assign_tile(pool, gemm, a, n, mdp_merge_tile_of(tiles))) __atomic_store_n(&changed, 1, __ATOMIC_RELAXED);
    }
    return changed != 0;
}

/* Members by centre, each ascending: first [f + 1], member [n]. */
static void list_members(const mdp_merge_pool *pool, int64_t *first, int64_t *member) {
    memset(first, 0, (size_t)(pool->f + 1) * sizeof *first);
    for (int64_t i = 0; i < pool->n; i++) first[pool->assigned[i] + 1]++;
    for (int64_t j = 0; j < pool->f; j++) first[j + 1] += first[j];
    for (int64_t i = 0; i < pool->n; i++) member[first[pool->assigned[i]]++] = i;
    for (int64_t j = pool->f; j > 0; j--) first[j] = first[j - 1];
    first[0] = 0;
}

/* sum [width] is room. */
static void move_centre(mdp_merge_pool *pool, int64_t j, const int64_t *member, int64_t n, double *sum) {
    double weights = 0.0, lengths = 0.0, square = 0.0;
    float *to = pool->centre + j * pool->width;
    memset(sum, 0, (size_t)pool->width * sizeof *sum);
    for (int64_t i = 0; i < n; i++) weights += pool->weight[member[i]];
    for (int64_t i = 0; i < n; i++) {
        const float *values = pool->values + member[i] * pool->width;
        double length = pool->length[member[i]], part = weights > 0.0 ? pool->weight[member[i]] : 1.0;
        lengths += length;
        for (int64_t c = 0; c < pool->width && length > 0.0; c++) sum[c] += part * (double)values[c] / length;
    }
    for (int64_t c = 0; c < pool->width; c++) square += sum[c] * sum[c];
    double length = sqrt(square);
    for (int64_t c = 0; c < pool->width; c++) to[c] = length > 0.0 ? (float)(sum[c] / length) : 0.0F;
    pool->size[j] = lengths / (double)n;
}

/* Room of the rounds. */
typedef struct rounds {
    int64_t *start, *first, *member;
    double *tiles, *sums; /* of each thread */
} rounds;

static mdp_status take_room(const mdp_merge_pool *pool, int n_thread, rounds *room) {
    MDP_TRY(MDP_ALLOC(&room->start, pool->f, "neurons of an expert"));
    MDP_TRY(MDP_ALLOC(&room->first, pool->f + 1, "neurons of an expert"));
    MDP_TRY(MDP_ALLOC(&room->member, pool->n, "neurons of an expert"));
    MDP_TRY(MDP_ALLOC(&room->tiles, n_thread * MDP_DERN_TILE_VALUES, "products of neurons"));
    return MDP_ALLOC(&room->sums, n_thread * pool->width, "neurons of an expert");
}

static void move_all(mdp_merge_pool *pool, int n_thread, const rounds *room) {
    list_members(pool, room->first, room->member);
#pragma omp parallel for schedule(dynamic) num_threads(n_thread)
    for (int64_t j = 0; j < pool->f; j++) {
        int64_t n = room->first[j + 1] - room->first[j];
        if (n == 0)
            set_centre(pool, j, room->start[j]);
        else
            move_centre(pool, j, room->member + room->first[j], n, room->sums + omp_get_thread_num() * pool->width);
    }
}

static mdp_status reduce(mdp_merge_pool *pool, int64_t d, mdp_gemm *gemm, int n_thread, rounds *room, int *n_round) {
    MDP_TRY(take_room(pool, n_thread, room));
    for (int64_t i = 0; i < pool->n; i++) {
        pool->length[i] = sqrt(mdp_sum_squares(pool->values + i * pool->width, pool->width));
        pool->assigned[i] = -1;
    }
    MDP_TRY(choose_start(pool, d, room->start));
    for (int64_t j = 0; j < pool->f; j++) set_centre(pool, j, room->start[j]);
    for (*n_round = 0; *n_round < MDP_DERN_ROUNDS && assign(pool, gemm, n_thread, room->tiles); (*n_round)++)
        move_all(pool, n_thread, room);
    return mdp_gemm_check(gemm);
}

mdp_status mdp_merge_pool_reduce(mdp_merge_pool *pool, int64_t d, mdp_gemm *gemm, int n_thread, int *n_round) {
    rounds room = {NULL, NULL, NULL, NULL, NULL};
    mdp_status status = reduce(pool, d, gemm, n_thread, &room, n_round);
    mdp_free(room.start);
    mdp_free(room.first);
    mdp_free(room.member);
    mdp_free(room.tiles);
    mdp_free(room.sums);
    return status;
}

int64_t mdp_merge_pool_memory(int64_t f, int64_t n, int64_t width, int n_thread) {
    return (n + f) * width * (int64_t)sizeof(float) + n * (5 * (int64_t)sizeof(int64_t) + (int64_t)sizeof(candidate)) +
           f * 3 * (int64_t)sizeof(int64_t) + n_thread * (MDP_DERN_TILE_VALUES + width) * (int64_t)sizeof(double);
}
