/* assign.c - the permutation with the largest sum, and the prices that prove it.
 *
 * In: gains [n, n]. Out: a permutation, prices of rows and columns. Jonker and Volgenant's method (Computing 38, 1987):
 * rows bid for columns until few have none, then each of these takes the shortest path to a free column. In costs
 * c = -gain and v = -price of a column, c[i, j] - v[j] >= the least of row i, which the chosen column has. */
#include "mdp/group.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

#define N_BID 8 /* bids for each row before paths are searched */

typedef struct assignment {
    int64_t n;
    const double *gain; /* [n, n] */
    double *v;          /* [n] minus the price of a column */
    int64_t *column;    /* [n] of each row; -1: none */
    int64_t *row;       /* [n] of each column; -1: none */
    int64_t *queue;     /* [n] rows without a column */
    double *distance;   /* [n] shortest path from the row at hand to each column */
    int64_t *from;      /* [n] the row before it on that path */
    int64_t *open;      /* [n] columns whose path is not final */
    int64_t *final;     /* [n] the others */
} assignment;

static double cost(const assignment *a, int64_t i, int64_t j) {
    return -a->gain[i * a->n + j] - a->v[j];
}

static mdp_status check_gains(int64_t n, const double *gain) {
    for (int64_t at = 0; at < n * n; at++) {
        if (!isfinite(gain[at]))
            return MDP_ERROR(MDP_BAD_INPUT, "the gain of row %" PRId64 " and column %" PRId64 " is %g.", at / n, at % n,
                             gain[at]);
    }
    return mdp_ok();
}

/* ---- bids -------------------------------------------------------------------------------------------------------- */

typedef struct choice {
    int64_t first, second; /* columns of least cost, the lower of equal ones first */
    double lead;           /* cost of the second - cost of the first */
} choice;

static choice choose(const assignment *a, int64_t i) {
    double least = INFINITY, next = INFINITY;
    choice chosen = {.first = -1, .second = -1};
    for (int64_t j = 0; j < a->n; j++) {
        double c = cost(a, i, j);
        if (c >= next) continue;
        if (c < least) {
            chosen.second = chosen.first;
            next = least;
            chosen.first = j;
            least = c;
        } else {
            chosen.second = j;
            next = c;
        }
    }
    chosen.lead = a->n > 1 ? next - least : 0.0;
    return chosen;
}

/* Rows take their best column and raise its price by their lead; who held it bids next, but where nothing was raised it
 * waits for the paths. The rows left without a column are queued; returns their number. */
static int64_t bid(assignment *a) {
    int64_t n_left = 0, n_bid = N_BID * a->n;
    for (int64_t start = 0; start < a->n; start++) {
        int64_t i = start;
        while (i >= 0) {
            if (n_bid-- <= 0) {
                a->queue[n_left++] = i;
                break;
            }
            choice chosen = choose(a, i);
            int64_t j = chosen.first;
            bool raised = chosen.lead > 0.0;
            if (!raised && a->row[j] >= 0) j = chosen.second; /* as cheap */
            int64_t before = a->row[j];
            if (raised) a->v[j] -= chosen.lead;
            if (before >= 0 && !raised) {
                a->queue[n_left++] = i;
                break;
            }
            a->row[j] = i;
            a->column[i] = j;
            if (before >= 0) a->column[before] = -1;
            i = before;
        }
    }
    return n_left;
}

/* ---- paths ------------------------------------------------------------------------------------------------------- */

/* Shorten paths by going on through the row that holds `through`; -> place in `open` of the nearest open column. */
static int64_t relax(assignment *a, int64_t n_open, int64_t row, double base) {
    int64_t nearest = 0;
    for (int64_t at = 0; at < n_open; at++) {
        int64_t j = a->open[at], best = a->open[nearest];
        double length = base + cost(a, row, j);
        if (length < a->distance[j]) {
            a->distance[j] = length;
            a->from[j] = row;
        }
        if (a->distance[j] < a->distance[best] ||
            (a->distance[j] == a->distance[best] && a->row[j] < 0 && a->row[best] >= 0)) /* a free column ends it */
            nearest = at;
    }
    return nearest;
}

/* Give `start` a column by the cheapest chain of exchanges. */
static void augment(assignment *a, int64_t start) {
    int64_t n_open = a->n, n_final = 0, row = start, column;
    double base = 0.0;
    for (int64_t j = 0; j < a->n; j++) {
        a->open[j] = j;
        a->distance[j] = INFINITY;
    }
    for (;;) {
        int64_t at = relax(a, n_open, row, base);
        column = a->open[at];
        if (a->row[column] < 0) break;
        a->open[at] = a->open[--n_open];
        a->final[n_final++] = column;
        row = a->row[column];
        base = a->distance[column] - cost(a, row, column);
    }
    for (int64_t at = 0; at < n_final; at++) {
        int64_t j = a->final[at];
        a->v[j] += a->distance[j] - a->distance[column];
    }
    do {
        row = a->from[column];
        int64_t next = a->column[row];
        a->row[column] = row;
        a->column[row] = column;
        column = next;
    } while (row != start);
}

/* ---- the whole --------------------------------------------------------------------------------------------------- */

static mdp_status allocate(assignment *a) {
    MDP_TRY(MDP_ALLOC(&a->row, a->n, "an assignment"));
    MDP_TRY(MDP_ALLOC(&a->queue, a->n, "an assignment"));
    MDP_TRY(MDP_ALLOC(&a->distance, a->n, "an assignment"));
    MDP_TRY(MDP_ALLOC(&a->from, a->n, "an assignment"));
    MDP_TRY(MDP_ALLOC(&a->open, a->n, "an assignment"));
    return MDP_ALLOC(&a->final, a->n, "an assignment");
}

/* Each row's price from the columns' prices, so that all pairs are covered. */
static void set_prices(const assignment *a, double *row_price, double *col_price, double *value) {
    *value = 0.0;
    for (int64_t j = 0; j < a->n; j++) col_price[j] = -a->v[j];
    for (int64_t i = 0; i < a->n; i++) {
        const double *gain = a->gain + i * a->n;
        row_price[i] = gain[a->column[i]] - col_price[a->column[i]];
        for (int64_t j = 0; j < a->n; j++) row_price[i] = fmax(row_price[i], gain[j] - col_price[j]);
        *value += gain[a->column[i]];
    }
}

mdp_status mdp_assign(int64_t n, const double *gain, int64_t *permutation, double *row_price, double *col_price,
                      double *value) {
    assignment a = {.n = n, .gain = gain, .v = col_price, .column = permutation};
    MDP_TRY(check_gains(n, gain));
    mdp_status status = allocate(&a);
    if (status.code == MDP_OK) {
        for (int64_t j = 0; j < n; j++) {
            a.row[j] = a.column[j] = -1;
            a.v[j] = 0.0;
        }
        int64_t n_left = bid(&a);
        for (int64_t at = 0; at < n_left; at++) augment(&a, a.queue[at]);
        set_prices(&a, row_price, col_price, value);
    }
    mdp_free(a.row);
    mdp_free(a.queue);
    mdp_free(a.distance);
    mdp_free(a.from);
    mdp_free(a.open);
    mdp_free(a.final);
    return status;
}
