/* alike.c - how alike the experts of a layer are, small enough for a page: see layers.h.
 *
 * Rows and columns are the experts in the order of a dendrogram (average linkage), the members of a group side by side.
 * Of more than MOST_CELL experts, neighbours share a cell, which has the mean over their pairs. A cell is one letter.
 */
#include "report/layers.h"

#include <math.h>
#include <string.h>

#define MOST_CELL 64

static const char letters[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+-"; /* 0 to 63 */

/* A layer's map under way. */
typedef struct map {
    const mdp_similarity *how;
    const mdp_plan_layer *layer;
    const double *stored; /* [n, n] */
    int32_t n, n_cell;
    double *distance;    /* [n, n] */
    mdp_expert_t *order; /* [n] */
    int32_t *group;      /* [n] of each expert: its place in the plan; who goes is alone */
    int32_t *place;      /* [n] where the first of each expert's group stands in the dendrogram */
    double *cell;        /* [n_cell, n_cell] mean similarity, or minus the mean distance; NAN: no pair */
    char *levels;
} map;

/* The similarity that the plan's groups were made by; NULL: none. */
static const mdp_similarity *find_similarity(const mdp_plan *plan) {
    const char *name = json_string_value(json_object_get(json_object_get(plan->recipe, "merge"), "similarity"));
    for (int id = 0; name && id < MDP_N_SIMILARITY; id++)
        if (strcmp(mdp_similarities[id].name, name) == 0) return &mdp_similarities[id];
    return NULL;
}

/* ---- order ------------------------------------------------------------------------------------------------------ */

static void find_groups(const map *m) {
    for (int32_t e = 0; e < m->n; e++) m->group[e] = m->layer->n_kept + e;
    for (int32_t j = 0; j < m->layer->n_kept; j++)
        for (int32_t i = 0; i < m->layer->kept[j].n_from; i++) m->group[m->layer->kept[j].from[i]] = j;
}

/* Leaves of the dendrogram, then each group where its first member is. */
static mdp_status find_order(const map *m) {
    mdp_join *joins = NULL;
    double top = m->how->is_distance || m->how->is_negative ? 0.0 : 1.0, sign = m->how->is_distance ? 1.0 : -1.0;
    for (int64_t at = 0; at < (int64_t)m->n * m->n; at++) m->distance[at] = top + sign * m->stored[at];
    MDP_TRY(MDP_ALLOC(&joins, m->n, "the joins of experts"));
    mdp_status status = mdp_joins_make(m->n, m->distance, MDP_LINKAGE_AVERAGE, 1, joins);
    if (status.code == MDP_OK) status = mdp_joins_leaves(m->n, joins, m->order);
    mdp_free(joins);
    MDP_TRY(status);
    find_groups(m);
    for (int32_t e = 0; e < m->n; e++) {
        int32_t first = 0;
        while (m->group[m->order[first]] != m->group[e]) first++;
        m->place[e] = first;
    }
    for (int32_t i = 1; i < m->n; i++) { /* by place; of one group as they were */
        mdp_expert_t e = m->order[i];
        int32_t j = i;
        for (; j > 0 && m->place[m->order[j - 1]] > m->place[e]; j--) m->order[j] = m->order[j - 1];
        m->order[j] = e;
    }
    return mdp_ok();
}

/* ---- cells ------------------------------------------------------------------------------------------------------ */

/* Experts first .. end-1 of the order are in a cell. */
static int32_t first_of(const map *m, int32_t cell) {
    return (int32_t)((int64_t)cell * m->n / m->n_cell);
}

static double mean_of(const map *m, int32_t a, int32_t b) {
    double sum = 0.0;
    int32_t n = 0;
    for (int32_t i = first_of(m, a); i < first_of(m, a + 1); i++) {
        for (int32_t j = first_of(m, b); j < first_of(m, b + 1); j++) {
            if (i == j) continue;
            sum += m->stored[(int64_t)m->order[i] * m->n + m->order[j]];
            n++;
        }
    }
    return n == 0 ? NAN : m->how->is_distance ? -sum / n : sum / n;
}

/* Levels of the lower triangle, row after row, from the least of all cells to the most. */
static void fill_levels(const map *m, double *least, double *most) {
    int64_t n = 0;
    *least = INFINITY;
    *most = -INFINITY;
    for (int32_t a = 0; a < m->n_cell; a++) {
        for (int32_t b = 0; b <= a; b++) {
            double value = m->cell[(int64_t)a * m->n_cell + b] = mean_of(m, a, b);
            *least = fmin(*least, value); /* NAN is passed over */
            *most = fmax(*most, value);
        }
    }
    for (int32_t a = 0; a < m->n_cell; a++) {
        for (int32_t b = 0; b <= a; b++) {
            double value = m->cell[(int64_t)a * m->n_cell + b], part = (value - *least) / (*most - *least);
            m->levels[n++] = letters[part >= 0.0 && part < 1.0 ? (int)(64.0 * part) : 63];
        }
    }
}

static json_t *print_groups(const map *m) {
    json_t *sizes = json_array();
    for (int32_t i = 0, end; i < m->n; i = end) {
        for (end = i; end < m->n && m->group[m->order[end]] == m->group[m->order[i]];) end++;
        mdp_json_add(&sizes, json_integer(end - i));
    }
    return sizes;
}

static mdp_status take_room(map *m) {
    MDP_TRY(MDP_ALLOC(&m->distance, (int64_t)m->n * m->n, "distances of experts"));
    MDP_TRY(MDP_ALLOC(&m->order, m->n, "the order of experts"));
    MDP_TRY(MDP_ALLOC(&m->group, m->n, "groups of experts"));
    MDP_TRY(MDP_ALLOC(&m->place, m->n, "groups of experts"));
    MDP_TRY(MDP_ALLOC(&m->cell, (int64_t)m->n_cell * m->n_cell, "similarities of experts"));
    return MDP_ALLOC(&m->levels, (int64_t)m->n_cell * (m->n_cell + 1) / 2 + 1, "similarities of experts");
}

static mdp_status print(map *m, json_t **out) {
    double least, most;
    MDP_TRY(take_room(m));
    MDP_TRY(find_order(m));
    fill_levels(m, &least, &most);
    json_t *order = json_array();
    for (int32_t i = 0; i < m->n; i++) mdp_json_add(&order, json_integer(m->order[i]));
    double sign = m->how->is_distance ? -1.0 : 1.0;
    *out = json_pack("{s:o, s:o, s:i, s:o, s:o, s:s}", "order", order, "groups", print_groups(m), "cells",
                     (int)m->n_cell, "least_alike", mdp_json_number_or_null(sign * least), "most_alike",
                     mdp_json_number_or_null(sign * most), "levels", m->levels);
    return *out ? mdp_ok() : MDP_ERROR(MDP_EXHAUSTED, "out of memory for the similarities of the report.");
}

mdp_status mdp_report_alike(const mdp_report *report, int64_t i, json_t **out) {
    const mdp_similarity *how = find_similarity(report->plan);
    *out = NULL;
    if (!how || !report->stats || report->plan->layers[i].n_expert < 2) return mdp_ok();
    map m = {.how = how,
             .layer = &report->plan->layers[i],
             .stored = mdp_stats_similarity(report->stats, i, (mdp_similarity_id)(how - mdp_similarities)),
             .n = report->plan->layers[i].n_expert};
    m.n_cell = m.n < MOST_CELL ? m.n : MOST_CELL;
    if (!m.stored) return mdp_ok();
    mdp_status status = print(&m, out);
    mdp_free(m.distance);
    mdp_free(m.order);
    mdp_free(m.group);
    mdp_free(m.place);
    mdp_free(m.cell);
    mdp_free(m.levels);
    return status;
}
