/* auction.c - an assignment to within a proven gap, from rows of gains that are made when they are wanted.
 *
 * Bertsekas' auction (Annals of Operations Research 14, 1988): a row without a column bids for the one of most profit,
 * gain - price, and raises its price until it would as soon have the second, and by epsilon more. Whatever the prices,
 * no permutation is worth more than the sum of prices and of every row's largest profit; at the end of a phase the one
 * found is worth at most n epsilon less. Phases with ever smaller epsilon keep the prices of the one before. Rows bid
 * in the order in which they lost their column, a chunk of them fetched at once. */
#include "mdp/group.h"

#include <inttypes.h>
#include <math.h>

#define EPSILON_FACTOR 0.2
#define LEAST_EPSILON 0x1p-36 /* of the largest gain: less would be lost in the rounding of prices */

typedef struct bidding {
    const mdp_auction *auction;
    double *price;   /* [n] of columns */
    int64_t *column; /* [n] of each row; -1: none */
    int64_t *row;    /* [n] of each column; -1: none */
    int64_t *queue;  /* [n] ring of the rows without a column */
    int64_t first, n_waiting;
    double *gain; /* [MDP_AUCTION_ROWS, n] */
    int64_t rows[MDP_AUCTION_ROWS];
    int64_t n_row; /* asked for so far */
} bidding;

static mdp_status fetch(bidding *b, int64_t n_row) {
    const mdp_auction *auction = b->auction;
    MDP_TRY(auction->rows(auction->context, n_row, b->rows, b->gain));
    b->n_row += n_row;
    for (int64_t at = 0; at < n_row * auction->n; at++) {
        if (!isfinite(b->gain[at]))
            return MDP_ERROR(MDP_BAD_INPUT, "the gain of row %" PRId64 " and column %" PRId64 " is %g.",
                             b->rows[at / auction->n], at % auction->n, b->gain[at]);
    }
    return mdp_ok();
}

/* ---- rows in order ----------------------------------------------------------------------------------------------- */

/* What is done with a row of gains. */
typedef void use_row(bidding *b, int64_t row, const double *gain, double *sums);

static mdp_status visit_rows(bidding *b, use_row *use, double *sums) {
    int64_t n = b->auction->n;
    for (int64_t first = 0; first < n; first += MDP_AUCTION_ROWS) {
        int64_t n_row = n - first < MDP_AUCTION_ROWS ? n - first : MDP_AUCTION_ROWS;
        for (int64_t at = 0; at < n_row; at++) b->rows[at] = first + at;
        MDP_TRY(fetch(b, n_row));
        for (int64_t at = 0; at < n_row; at++) use(b, first + at, b->gain + at * n, sums);
    }
    return mdp_ok();
}

/* sums: least and largest gain. */
static void take_range(bidding *b, int64_t row, const double *gain, double *sums) {
    (void)row;
    for (int64_t j = 0; j < b->auction->n; j++) {
        sums[0] = fmin(sums[0], gain[j]);
        sums[1] = fmax(sums[1], gain[j]);
    }
}

/* sums: value, and the largest profits. */
static void take_value(bidding *b, int64_t row, const double *gain, double *sums) {
    double most = -INFINITY;
    for (int64_t j = 0; j < b->auction->n; j++) most = fmax(most, gain[j] - b->price[j]);
    sums[0] += gain[b->column[row]];
    sums[1] += most;
}

static mdp_status measure(bidding *b, mdp_auction_result *result) {
    double sums[2] = {0.0, 0.0};
    MDP_TRY(visit_rows(b, take_value, sums));
    for (int64_t j = 0; j < b->auction->n; j++) sums[1] += b->price[j];
    result->value = sums[0];
    result->bound = fmax(sums[0], sums[1]); /* rounding may put the sum of prices below */
    result->n_row = b->n_row;
    return mdp_ok();
}

/* ---- bids -------------------------------------------------------------------------------------------------------- */

static void wait_in_queue(bidding *b, int64_t row) {
    int64_t n = b->auction->n;
    b->queue[(b->first + b->n_waiting++) % n] = row;
}

static void bid(bidding *b, int64_t row, const double *gain, double epsilon) {
    double most = -INFINITY, next = -INFINITY;
    int64_t best = 0;
    for (int64_t j = 0; j < b->auction->n; j++) {
        double profit = gain[j] - b->price[j];
        if (profit <= next) continue;
        if (profit > most) {
            next = most;
            most = profit;
            best = j;
        } else {
            next = profit;
        }
    }
    b->price[best] += (isfinite(next) ? most - next : 0.0) + epsilon;
    int64_t before = b->row[best];
    b->row[best] = row;
    b->column[row] = best;
    if (before < 0) return;
    b->column[before] = -1;
    wait_in_queue(b, before);
}

static mdp_status run_phase(bidding *b, double epsilon) {
    int64_t n = b->auction->n;
    b->first = b->n_waiting = 0;
    for (int64_t i = 0; i < n; i++) {
        b->row[i] = b->column[i] = -1;
        wait_in_queue(b, i);
    }
    while (b->n_waiting > 0) {
        int64_t n_row = b->n_waiting < MDP_AUCTION_ROWS ? b->n_waiting : MDP_AUCTION_ROWS;
        for (int64_t at = 0; at < n_row; at++) b->rows[at] = b->queue[(b->first + at) % n];
        b->first = (b->first + n_row) % n;
        b->n_waiting -= n_row;
        MDP_TRY(fetch(b, n_row));
        for (int64_t at = 0; at < n_row; at++) bid(b, b->rows[at], b->gain + at * n, epsilon);
    }
    return mdp_ok();
}

static mdp_status run_phases(bidding *b, mdp_auction_result *result) {
    double range[2] = {INFINITY, -INFINITY};
    MDP_TRY(visit_rows(b, take_range, range));
    double largest = fmax(fabs(range[0]), fabs(range[1])), least = LEAST_EPSILON * (largest > 0.0 ? largest : 1.0);
    double epsilon = fmax((range[1] - range[0]) / 4.0, least);
    for (;;) {
        MDP_TRY(run_phase(b, epsilon));
        MDP_TRY(measure(b, result));
        if (result->bound - result->value <= b->auction->tolerance * fabs(result->bound) || epsilon == least)
            return mdp_ok();
        epsilon = fmax(epsilon * EPSILON_FACTOR, least);
    }
}

mdp_status mdp_assign_auction(const mdp_auction *auction, int64_t *permutation, mdp_auction_result *result) {
    bidding b = {.auction = auction, .column = permutation};
    int64_t n = auction->n;
    mdp_status status = MDP_ALLOC(&b.price, n, "prices");
    if (status.code == MDP_OK) status = MDP_ALLOC(&b.row, n, "an assignment");
    if (status.code == MDP_OK) status = MDP_ALLOC(&b.queue, n, "an assignment");
    if (status.code == MDP_OK) status = MDP_ALLOC(&b.gain, MDP_AUCTION_ROWS * n, "rows of gains");
    *result = (mdp_auction_result){0};
    if (status.code == MDP_OK && n > 0) status = run_phases(&b, result);
    mdp_free(b.price);
    mdp_free(b.row);
    mdp_free(b.queue);
    mdp_free(b.gain);
    return status;
}
