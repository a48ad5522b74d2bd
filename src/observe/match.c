/* match.c - see match.h. A pair of experts is matched by one rank, which holds both experts' projections one after the
 * other, and the gains. */
#include "mdp/match.h"

#include "mdp/group.h"

#include <omp.h>

#define TILE 256
#define DEPTH 1024
#define ROWS 64

/* ---- life ------------------------------------------------------------------------------------------------------- */

mdp_status mdp_match_begin(mdp_match *m) {
    bool exact = m->f <= MDP_MATCH_EXACT;
    m->gain = NULL;
    m->rough = m->tiles = NULL;
    if (exact) MDP_TRY(MDP_ALLOC(&m->gain, m->f * m->f, "gains of neurons"));
    if (!exact) MDP_TRY(MDP_ALLOC(&m->rough, m->f * m->f, "gains of neurons"));
    return MDP_ALLOC(&m->tiles, (int64_t)m->n_thread * TILE * TILE, "gains of neurons");
}

void mdp_match_clear(mdp_match *m) {
    mdp_free(m->gain);
    mdp_free(m->rough);
    mdp_free(m->tiles);
}

/* ---- gains ------------------------------------------------------------------------------------------------------ */

/* Rows of length n on both sides. */
typedef struct sides {
    int64_t n;
    const float *left, *right;
} sides;

static void add_tile(const mdp_match *m, const sides *of, int64_t a, int64_t b, float *tile) {
    int n = (int)mdp_smaller(m->f - a, TILE), k = (int)mdp_smaller(m->f - b, TILE);
    for (int64_t c = 0; c < of->n; c += DEPTH) {
        int depth = (int)mdp_smaller(of->n - c, DEPTH);
        mdp_gemm_nt(m->gemm, n, k, depth, of->left + a * of->n + c, (int)of->n, of->right + b * of->n + c, (int)of->n,
                    tile, TILE);
        for (int64_t i = 0; i < n; i++) {
            for (int64_t j = 0; j < k; j++) {
                int64_t at = (a + i) * m->f + b + j;
                if (m->gain)
                    m->gain[at] += (double)tile[i * TILE + j];
                else
                    m->rough[at] += tile[i * TILE + j];
            }
        }
    }
}

mdp_status mdp_match_add(mdp_match *m, int64_t n, const float *left, const float *right) {
    const sides of = {n, left, right};
    int64_t n_tile = (m->f + TILE - 1) / TILE;
#pragma omp parallel for schedule(dynamic) num_threads(m->n_thread)
    for (int64_t t = 0; t < n_tile * n_tile; t++)
        add_tile(m, &of, t / n_tile * TILE, t % n_tile * TILE, m->tiles + (int64_t)omp_get_thread_num() * TILE * TILE);
    return mdp_gemm_check(m->gemm);
}

mdp_status mdp_match_add_weights(mdp_match *m, const mdp_expert *one, const mdp_expert *other) {
    const mdp_matrix *left[] = {&one->gate, &one->up, &one->down};
    const mdp_matrix *right[] = {&other->gate, &other->up, &other->down};
    int64_t d = one->gate.n_col;
    float *rows[2] = {NULL, NULL};
    if (one->gate.n_row != m->f || other->gate.n_row != m->f)
        return MDP_ERROR(MDP_INTERNAL, "experts of other widths cannot be matched.");
    mdp_status status = MDP_ALLOC(&rows[0], m->f * d, "neurons");
    if (status.code == MDP_OK) status = MDP_ALLOC(&rows[1], m->f * d, "neurons");
    for (int i = 0; i < 3 && status.code == MDP_OK; i++) {
        status = mdp_matrix_read_lines(m->reader, left[i], i == 2, d, rows[0]);
        if (status.code == MDP_OK) status = mdp_matrix_read_lines(m->reader, right[i], i == 2, d, rows[1]);
        if (status.code == MDP_OK) status = mdp_match_add(m, d, rows[0], rows[1]);
    }
    mdp_free(rows[0]);
    mdp_free(rows[1]);
    return status;
}

/* ---- assignment ------------------------------------------------------------------------------------------------- */

static mdp_status give_rows(void *context, int64_t n_row, const int64_t *rows, double *gain) {
    const mdp_match *m = context;
    for (int64_t r = 0; r < n_row; r++)
        for (int64_t j = 0; j < m->f; j++) gain[r * m->f + j] = (double)m->rough[rows[r] * m->f + j];
    return mdp_ok();
}

mdp_status mdp_match_solve(mdp_match *m, int64_t *order) {
    double *price = NULL;
    m->excess = 0.0;
    if (m->rough) {
        mdp_auction auction = {.n = m->f, .rows = give_rows, .context = m, .tolerance = MDP_MATCH_TOLERANCE};
        mdp_auction_result result;
        MDP_TRY(mdp_assign_auction(&auction, order, &result));
        m->value = result.value;
        if (result.bound > 0.0) m->excess = (result.bound - result.value) / result.bound;
        return mdp_ok();
    }
    MDP_TRY(MDP_ALLOC(&price, 2 * m->f, "prices of neurons"));
    mdp_status status = mdp_assign(m->f, m->gain, order, price, price + m->f, &m->value);
    mdp_free(price);
    return status;
}

int64_t mdp_match_memory(int64_t f, int64_t d, int n_thread) {
    int64_t size = f <= MDP_MATCH_EXACT ? sizeof(double) : sizeof(float);
    return 2 * f * d * (int64_t)sizeof(float) + f * f * size + (int64_t)n_thread * TILE * TILE * (int64_t)sizeof(float);
}

int64_t mdp_match_flop(int64_t f, int64_t d) {
    return 6 * f * f * d;
}
