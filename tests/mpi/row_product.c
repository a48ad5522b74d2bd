/* Row products: sums that a plain loop over tokens gives, however tokens lie on ranks, and the same bytes on every
 * number of ranks and threads; blocks dealt evenly. */
#include "mdp/row_product.h"
#include "mpi_check.h"

#include <math.h>
#include <string.h>

#define N_EXPERT 5
#define N_SIDE (N_EXPERT + 1)
#define RESIDUAL N_EXPERT
#define N_PAIR (N_EXPERT * (N_EXPERT + 1) / 2 + N_EXPERT)
#define TOP_K 2
#define WIDEST 1100

static const mdp_product_side sides[N_SIDE] = {{700, false}, {512, true},   {33, true},
                                               {1, false},   {1100, false}, {300, false}};

/* ---- tokens ---- */

static double draw(uint64_t stream, uint64_t index) {
    return mdp_random_uniform(7, stream, index) - 0.5;
}

/* Two experts of a token: 3 is used by no token, 2 rarely. */
static void choose(int64_t token, int32_t expert[TOP_K]) {
    static const int32_t often[] = {0, 1, 4, 0, 4, 1, 0, 2};
    uint64_t bits = mdp_random_bits(3, 0, (uint64_t)token);
    expert[0] = often[bits % 8];
    expert[1] = often[bits / 8 % 7];
    if (expert[1] == expert[0]) expert[1] = expert[0] == 4 ? 1 : 4;
}

static float value_of(int64_t token, int32_t side, int64_t j) {
    return (float)draw((uint64_t)side + 1, (uint64_t)(token * WIDEST + j));
}

static float scale_of(int64_t token, int32_t side) {
    return side == RESIDUAL ? 1.0F : (float)(draw(100 + (uint64_t)side, (uint64_t)token) + 0.6);
}

static bool has(int64_t token, int32_t side) {
    int32_t expert[TOP_K];
    choose(token, expert);
    return side == RESIDUAL || expert[0] == side || expert[1] == side;
}

/* Value as it is multiplied. */
static double entry(int64_t token, int32_t side, int64_t j) {
    float scale = scale_of(token, side);
    return j < sides[side].n_value ? (double)(value_of(token, side, j) * scale) : (double)scale;
}

/* ---- one rank's rows ---- */

typedef struct rows {
    mdp_product_rows sides[N_SIDE];
    int64_t *token[N_SIDE];
    float **values[N_SIDE], *scale[N_SIDE];
} rows;

static void make_side(rows *r, int32_t side, int64_t first, int64_t end) {
    int64_t n = 0;
    for (int64_t t = first; t < end; t++) n += has(t, side);
    CHECK_OK(MDP_ALLOC(&r->token[side], n, "tokens"));
    CHECK_OK(MDP_ALLOC(&r->values[side], n, "rows"));
    CHECK_OK(MDP_ALLOC(&r->scale[side], n, "scales"));
    n = 0;
    for (int64_t t = first; t < end; t++) {
        if (!has(t, side)) continue;
        CHECK_OK(MDP_ALLOC(&r->values[side][n], sides[side].n_value, "a row"));
        for (int64_t j = 0; j < sides[side].n_value; j++) r->values[side][n][j] = value_of(t, side, j);
        r->scale[side][n] = scale_of(t, side);
        r->token[side][n++] = t;
    }
    r->sides[side] = (mdp_product_rows){.n = n,
                                        .token = r->token[side],
                                        .values = (const float *const *)r->values[side],
                                        .scale = side == RESIDUAL ? NULL : r->scale[side]};
}

static void free_rows(rows *r) {
    for (int32_t s = 0; s < N_SIDE; s++) {
        for (int64_t i = 0; i < r->sides[s].n; i++) mdp_free(r->values[s][i]);
        mdp_free(r->token[s]);
        mdp_free(r->values[s]);
        mdp_free(r->scale[s]);
    }
}

/* Tokens first .. end-1, unevenly over ranks: the middle one has most, the last none. */
static void add(const mdp_comm *comm, mdp_products *products, int set, int64_t first, int64_t end) {
    rows r = {0};
    int64_t n = end - first, low = first, high = end;
    if (comm->size > 1) {
        double from = (double)comm->rank / (comm->size - 1), to = (double)(comm->rank + 1) / (comm->size - 1);
        low = first + (int64_t)((double)n * from * from);
        high = comm->rank + 1 < comm->size ? first + (int64_t)((double)n * to * to) : low;
        low = low < end ? low : end;
        high = high < end ? high : end;
        if (comm->rank + 2 == comm->size) high = end;
    }
    for (int32_t s = 0; s < N_SIDE; s++) make_side(&r, s, low, high);
    CHECK_OK(mdp_products_add_all(products, set, r.sides));
    free_rows(&r);
}

/* ---- checks ---- */

static void list_pairs(mdp_product_pair *pairs, int64_t n_token) {
    int n = 0;
    for (int32_t e = 0; e < N_EXPERT; e++)
        for (int32_t other = 0; other <= e; other++) pairs[n++] = (mdp_product_pair){.left = e, .right = other};
    for (int32_t e = 0; e < N_EXPERT; e++) pairs[n++] = (mdp_product_pair){.left = e, .right = RESIDUAL};
    for (int p = 0; p < N_PAIR; p++)
        for (int64_t t = 0; t < n_token; t++) pairs[p].n_row += has(t, pairs[p].left) && has(t, pairs[p].right);
}

/* A few entries of a block by a plain loop over tokens. */
static void compare_block(const mdp_product_pair *pair, const mdp_product_block *block, const double *values,
                          int64_t n_token) {
    for (int64_t probe = 0; probe < 6; probe++) {
        int64_t i = probe * 131 % block->n_row, j = probe * 197 % block->n_col;
        if (probe == 0) i = block->n_row - 1, j = block->n_col - 1;
        if (block->left == block->right && j > i) continue;
        double sum = 0.0, size = 0.0;
        for (int64_t t = 0; t < n_token; t++) {
            if (!has(t, pair->left) || !has(t, pair->right)) continue;
            double product = entry(t, pair->left, block->row0 + i) * entry(t, pair->right, block->col0 + j);
            sum += product;
            size += fabs(product);
        }
        CHECK(fabs(values[i * block->n_col + j] - sum) <= 1e-14 * size);
    }
}

/* The same number on every rank for the same sums. */
static uint64_t mix(const double *values, const mdp_product_block *block, int64_t number) {
    uint64_t sum = 0, bits;
    for (int64_t i = 0; i < block->n_row; i++) {
        for (int64_t j = 0; j < block->n_col; j++) {
            if (block->left == block->right && j > i) continue;
            memcpy(&bits, &values[i * block->n_col + j], sizeof bits);
            sum += mdp_random_bits(bits, (uint64_t)number, (uint64_t)(i * block->n_col + j));
        }
    }
    return sum;
}

static int64_t sums_over(const mdp_comm *comm, int n_thread, int64_t n_token, bool compare) {
    mdp_product_pair pairs[N_PAIR] = {0};
    mdp_product_layout *layout = NULL;
    mdp_products *products = NULL;
    const int64_t *own;
    list_pairs(pairs, n_token);
    CHECK_OK(mdp_product_layout_new(comm->size, N_SIDE, sides, N_PAIR, pairs, &layout));
    CHECK_OK(mdp_products_new_all(comm, layout, 2, n_thread, NULL, &products));
    add(comm, products, 0, 0, n_token / 3);
    add(comm, products, 1, 5, 200);
    add(comm, products, 0, n_token / 3, n_token);
    int64_t n = mdp_products_own(products, &own), sum = 0;
    for (int64_t i = 0; i < n; i++) {
        const mdp_product_block *block = &layout->blocks[own[i]];
        const double *values = mdp_products_values(products, 0, i);
        CHECK(block->owner == comm->rank);
        if (compare) compare_block(&pairs[block->pair], block, values, n_token);
        sum += (int64_t)(mix(values, block, own[i]) + mix(mdp_products_values(products, 1, i), block, ~own[i]));
    }
    CHECK_OK(mdp_sum_i64_all(comm, &sum, 1));
    mdp_products_destroy(products);
    mdp_product_layout_destroy(layout);
    return sum;
}

static void compare_sums(const mdp_comm *comm, void *context) {
    int64_t *alone = context;
    int size;
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    int64_t sum = sums_over(comm, comm->size == 2 ? 2 : 1, 1800, comm->size == size);
    if (comm->size == 1) *alone = sum;
    if (comm->rank == 0) CHECK(sum == *alone);
}

static void sums_are_right_and_the_same_on_any_ranks(void) {
    int64_t alone = 0;
    check_on_parts_all(compare_sums, &alone);
}

/* Mixtral-8x22B's four experts of 16,384 values; 32 experts of 768; two skewed experts among eight. */
static void blocks_are_dealt_evenly(void) {
    static const struct {
        int32_t n_expert;
        int64_t width, d;
        int skew;
    } shapes[] = {{4, 16384, 6144, 1}, {32, 768, 2048, 1}, {8, 4096, 4096, 6}};
    for (int shape = 0; shape < 3; shape++) {
        int32_t n = shapes[shape].n_expert, n_pair = 0;
        mdp_product_side own[33];
        mdp_product_pair pairs[33 * 32];
        for (int32_t e = 0; e <= n; e++)
            own[e] = (mdp_product_side){e < n ? shapes[shape].width : shapes[shape].d, false};
        for (int32_t e = 0; e < n; e++) {
            int64_t many = e < 2 ? 1000 * shapes[shape].skew : 1000;
            for (int32_t other = 0; other <= e; other++)
                pairs[n_pair++] = (mdp_product_pair){e, other, e == other ? many : many / n};
            pairs[n_pair++] = (mdp_product_pair){e, n, many};
        }
        for (int size = 2; size <= 64; size = size < 8 ? size + 1 : size * 2) {
            mdp_product_layout *layout = NULL;
            int64_t most = 0, all = 0;
            CHECK_OK(mdp_product_layout_new(size, n + 1, own, n_pair, pairs, &layout));
            for (int rank = 0; rank < size; rank++) {
                int64_t flop = mdp_product_cost_of(layout, rank).flop;
                all += flop;
                most = flop > most ? flop : most;
            }
            CHECK((double)most * size <= 1.1 * (double)all);
            mdp_product_layout_destroy(layout);
        }
    }
}

int main(int argc, char **argv) {
    MPI_Init(&argc, &argv);
    CHECK_OK(mdp_blas_start());
    sums_are_right_and_the_same_on_any_ranks();
    blocks_are_dealt_evenly();
    return check_end_all("row_product");
}
