/* merge_expert.c - one matrix of a merged (or cut) expert: rows of its members, in the dominant one's order of neurons,
 * times their weights, added in ascending order in f64 and rounded once to the type that the checkpoint stores.
 *
 * Rows of gate and up are neurons, and so are the columns of down. A matrix is made by one rank, rows at a time, so
 * nothing of it depends on their number. Where gate and up are one stored tensor whose runs are single values, its
 * bytes are put together in memory first. */
#include "pipeline/merge_run.h"
#include "pipeline/put_matrix.h"

#include <math.h>
#include <string.h>

/* Which of a matrix' sides are neurons. */
typedef enum side { NO_SIDE, ROW_SIDE, COLUMN_SIDE } side;

/* A matrix of the expert and of each of its members. */
typedef struct blend {
    const mdp_merge_item *item;
    size_t of_expert; /* where the matrix stands in mdp_expert */
    side neurons;
    const double *weights; /* [n_from]; NULL: it is cut */
    mdp_matrix to;
    void *scratch;
    float *stored; /* [rows, n_col] of one member */
} blend;

static const mdp_matrix *matrix_of(const mdp_expert *expert, size_t of_expert) {
    return (const mdp_matrix *)(const void *)((const char *)expert + of_expert);
}

static mdp_matrix of_member(const blend *b, int32_t i) {
    return mdp_matrix_as_stored(matrix_of(&b->item->run->moe->experts[b->item->planned->from[i]], b->of_expert));
}

/* ---- rows ------------------------------------------------------------------------------------------------------- */

/* Rows of a member: of neurons that come to places row .. row + n - 1, or those rows themselves. */
static mdp_status read_rows(const blend *b, const mdp_matrix *from, const int64_t *order, int64_t row, int64_t n) {
    mdp_reader *reader = b->item->run->reader;
    if (!order || b->neurons != ROW_SIDE) return mdp_matrix_read(reader, from, row, n, b->scratch, b->stored);
    for (int64_t r = 0; r < n; r++)
        MDP_TRY(mdp_matrix_read(reader, from, order[row + r], 1, b->scratch, b->stored + r * from->n_col));
    return mdp_ok();
}

static void add_rows(const blend *b, const int64_t *order, double weight, int64_t n_stored, int64_t n, double *values) {
    int64_t n_col = b->to.n_col;
    const int64_t *column = b->neurons == COLUMN_SIDE ? order : NULL;
#pragma omp parallel for schedule(static) num_threads(b->item->run->options->n_thread)
    for (int64_t r = 0; r < n; r++) {
        const float *from = b->stored + r * n_stored;
        double *to = values + r * n_col;
        for (int64_t c = 0; c < n_col; c++) to[c] += weight * (double)from[column ? column[c] : c];
    }
}

/* Rows of what the expert's neurons are. */
static void copy_neurons(const blend *b, int64_t row, int64_t n, double *values) {
    const mdp_merge_item *item = b->item;
    int64_t d = item->run->model->d_model, part = b->of_expert == offsetof(mdp_expert, gate) ? 0
                                                  : b->of_expert == offsetof(mdp_expert, up) ? d
                                                                                             : 2 * d;
    for (int64_t r = 0; r < n; r++) {
        for (int64_t c = 0; c < b->to.n_col; c++) {
            int64_t neuron = b->neurons == ROW_SIDE ? row + r : c, at = b->neurons == ROW_SIDE ? c : row + r;
            values[r * b->to.n_col + c] = item->sizes[neuron] * (double)item->neurons[neuron * 3 * d + part + at];
        }
    }
}

static mdp_status make_rows(const blend *b, int64_t row, int64_t n, double *values) {
    const mdp_merge_item *item = b->item;
    if (item->neurons) {
        copy_neurons(b, row, n, values);
        return mdp_ok();
    }
    memset(values, 0, (size_t)(n * b->to.n_col) * sizeof *values);
    for (int32_t i = 0; i < item->planned->n_from; i++) {
        const mdp_matrix from = of_member(b, i);
        const int64_t *order = item->order ? item->order + i * item->run->moe->d_ff : NULL;
        double weight = b->weights ? b->weights[i] : 1.0; /* of one that is cut */
        if (weight == 0.0) continue;
        MDP_TRY(read_rows(b, &from, order, row, n));
        add_rows(b, order, weight, from.n_col, n, values);
    }
    return mdp_ok();
}

static mdp_status check_finite(const blend *b, int64_t n, const double *values) {
    for (int64_t i = 0; i < n * b->to.n_col; i++) {
        if (isfinite(values[i])) continue;
        return MDP_ERROR(MDP_BAD_INPUT, "'%s': a merge of experts %d and others has values that are not finite.",
                         of_member(b, 0).tensor->name, (int)b->item->planned->from[0]);
    }
    return mdp_ok();
}

static mdp_status fill(void *context, int64_t row, int64_t n, double *values) {
    MDP_TRY(make_rows(context, row, n, values));
    return check_finite(context, n, values);
}

/* ---- matrices --------------------------------------------------------------------------------------------------- */

static mdp_status begin(const mdp_merge_item *item, size_t of_expert, side neurons, blend *b) {
    const mdp_matrix *to = matrix_of(&item->to->expert, of_expert);
    static const side turned[] = {[NO_SIDE] = NO_SIDE, [ROW_SIDE] = COLUMN_SIDE, [COLUMN_SIDE] = ROW_SIDE};
    *b = (blend){.item = item,
                 .of_expert = of_expert,
                 .neurons = mdp_matrix_is_turned(to) ? turned[neurons] : neurons,
                 .weights = item->planned->weights,
                 .to = mdp_matrix_as_stored(to)};
    const mdp_matrix from = of_member(b, 0);
    int64_t n = mdp_matrix_put_step(&b->to, MDP_PUT_ROWS);
    MDP_TRY(mdp_alloc(&b->scratch, mdp_matrix_scratch(&from, n) + 1, 1, "rows of merged experts"));
    return MDP_ALLOC(&b->stored, n * from.n_col, "rows of merged experts");
}

static void end(blend *b) {
    mdp_free(b->scratch);
    mdp_free(b->stored);
}

/* Put a matrix, or two of one tensor, together and into the arrays. */
static mdp_status make(const mdp_merge_item *item, const size_t *of_expert, side neurons, int n) {
    blend all[2] = {{0}, {0}};
    mdp_made_matrix made[2];
    mdp_status status = mdp_ok();
    for (int i = 0; i < n && status.code == MDP_OK; i++) {
        status = begin(item, of_expert[i], neurons, &all[i]);
        made[i] = (mdp_made_matrix){.to = all[i].to, .fill = fill, .context = &all[i]};
    }
    if (status.code == MDP_OK) status = mdp_put_matrices(made, n, item->run->replaced->arrays);
    for (int i = 0; i < n; i++) end(&all[i]);
    return status;
}

/* ---- router rows ------------------------------------------------------------------------------------------------ */

/* The member whose row has the largest norm; ties: the lower number. */
static mdp_status find_longest(const mdp_merge_item *item, float *row, void *scratch, int32_t *out) {
    double most = -1.0;
    for (int32_t i = 0; i < item->planned->n_from; i++) {
        const mdp_matrix *router = &item->run->moe->router;
        MDP_TRY(mdp_matrix_read(item->run->reader, router, item->planned->from[i], 1, scratch, row));
        double square = mdp_sum_squares(row, router->n_col);
        if (square > most) {
            most = square;
            *out = i;
        }
    }
    return mdp_ok();
}

/* The rows' weights, and those of biases, which are never sums. */
static mdp_status choose_weights(const mdp_merge_item *item, float *row, void *scratch, double *of_rows,
                                 double *of_biases) {
    const mdp_plan_expert *planned = item->planned;
    int32_t only = planned->dominant;
    if (planned->router == MDP_ROUTER_MAX) MDP_TRY(find_longest(item, row, scratch, &only));
    for (int32_t i = 0; i < planned->n_from; i++) {
        bool mixed = planned->router == MDP_ROUTER_MEAN || planned->router == MDP_ROUTER_SUM;
        of_biases[i] = mixed ? planned->weights[i] : i == only;
        of_rows[i] = item->of_rows ? item->of_rows[i] : planned->router == MDP_ROUTER_SUM ? 1.0 : of_biases[i];
    }
    return mdp_ok();
}

/* from: of all experts, row by row, or one row of their numbers. */
static mdp_status make_row(const mdp_merge_item *item, const mdp_matrix *from, const mdp_matrix *to,
                           const double *weights, float *row, void *scratch) {
    double *values = NULL;
    bool is_list = to->n_col == 1; /* a number for each expert */
    if (!to->tensor) return mdp_ok();
    MDP_TRY(MDP_ALLOC(&values, to->n_col, "a router row"));
    mdp_status status = mdp_ok();
    for (int32_t i = 0; i < item->planned->n_from && status.code == MDP_OK; i++) {
        mdp_expert_t e = item->planned->from[i];
        mdp_matrix one = *from;
        one.n_row = 1;
        one.n_col = to->n_col;
        one.first += e * (is_list ? from->col_stride : from->row_stride);
        if (weights[i] == 0.0) continue;
        status = mdp_matrix_read(item->run->reader, &one, 0, 1, scratch, row);
        for (int64_t c = 0; c < to->n_col && status.code == MDP_OK; c++) values[c] += weights[i] * (double)row[c];
    }
    if (status.code == MDP_OK)
        status = mdp_matrix_put(to, 0, 1, values, NULL, mdp_arrays_put_bytes, item->run->replaced->arrays);
    for (int64_t c = 0; status.code == MDP_OK && c < to->n_col; c++) /* as they will be read */
        if (!isfinite(values[c]))
            status = MDP_ERROR(MDP_BAD_INPUT, "'%s': the row of a merge of experts %d and others is not finite.",
                               from->tensor->name, (int)item->planned->from[0]);
    mdp_free(values);
    return status;
}

static mdp_status make_router(const mdp_merge_item *item) {
    const mdp_moe *moe = item->run->moe;
    const mdp_expert *to = &item->to->expert;
    double *of_rows = NULL, *of_biases = NULL;
    float *row = NULL;
    void *scratch = NULL;
    mdp_status status = MDP_ALLOC(&of_rows, item->planned->n_from, "router weights");
    if (status.code == MDP_OK) status = MDP_ALLOC(&of_biases, item->planned->n_from, "router weights");
    if (status.code == MDP_OK) status = MDP_ALLOC(&row, moe->router.n_col, "a router row");
    if (status.code == MDP_OK)
        status = mdp_alloc(&scratch, mdp_matrix_scratch(&moe->router, 1) + 64, 1, "a router row");
    if (status.code == MDP_OK) status = choose_weights(item, row, scratch, of_rows, of_biases);
    if (status.code == MDP_OK) status = make_row(item, &moe->router, &to->router, of_rows, row, scratch);
    if (status.code == MDP_OK) status = make_row(item, &moe->router_bias, &to->router_bias, of_biases, row, scratch);
    if (status.code == MDP_OK) status = make_row(item, &moe->choice_bias, &to->choice_bias, of_biases, row, scratch);
    mdp_free(of_rows);
    mdp_free(of_biases);
    mdp_free(row);
    mdp_free(scratch);
    return status;
}

/* ---- shares ----------------------------------------------------------------------------------------------------- */

static mdp_status make_rest(const mdp_merge_item *item) {
    const mdp_expert *to = &item->to->expert;
    static const size_t gate_up[] = {offsetof(mdp_expert, gate_bias), offsetof(mdp_expert, up_bias)};
    static const size_t down = offsetof(mdp_expert, down_bias);
    bool one_tensor = to->gate_bias.tensor == to->up_bias.tensor;
    if (to->gate_bias.tensor) MDP_TRY(make(item, gate_up, COLUMN_SIDE, one_tensor ? 2 : 1));
    if (to->up_bias.tensor && !one_tensor) MDP_TRY(make(item, gate_up + 1, COLUMN_SIDE, 1));
    if (to->down_bias.tensor) MDP_TRY(make(item, &down, NO_SIDE, 1));
    if (item->planned->action == MDP_NEURONS) return mdp_ok(); /* its router row stays where it is */
    return make_router(item);
}

mdp_status mdp_merge_make(const mdp_merge_item *item, mdp_merge_share share) {
    static const size_t gate_up[] = {offsetof(mdp_expert, gate), offsetof(mdp_expert, up)};
    static const size_t down = offsetof(mdp_expert, down);
    const mdp_expert *to = &item->to->expert;
    bool one_tensor = to->gate.tensor == to->up.tensor;
    if (share == MDP_SHARE_GATE) return make(item, gate_up, ROW_SIDE, one_tensor ? 2 : 1);
    if (share == MDP_SHARE_UP) return one_tensor ? mdp_ok() : make(item, gate_up + 1, ROW_SIDE, 1);
    if (share == MDP_SHARE_DOWN) return make(item, &down, COLUMN_SIDE, 1);
    return make_rest(item);
}

int64_t mdp_merge_make_memory(const mdp_moe *moe) {
    int64_t most = 0;
    for (mdp_expert_t e = 0; e < moe->n_expert; e++) {
        const mdp_expert *expert = &moe->experts[e];
        const mdp_matrix *all[] = {&expert->gate, &expert->up, &expert->down};
        for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) {
            const mdp_matrix stored = mdp_matrix_as_stored(all[i]);
            int64_t n = mdp_matrix_put_step(&stored, MDP_PUT_ROWS),
                    own = n * stored.n_col * (int64_t)(sizeof(float) + sizeof(double)) + mdp_matrix_scratch(&stored, n);
            if (stored.tensor == expert->up.tensor && mdp_matrix_is_scattered(&stored))
                own += 2 * mdp_matrix_bytes(&stored);
            most = mdp_larger(most, own);
        }
    }
    return most;
}
