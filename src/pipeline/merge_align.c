/* merge_align.c - which neuron of a member answers to which of the dominant one: the assignment with the largest sum of
 * products of their rows of gate and up and their columns of down.
 *
 * A pair of experts is matched by one rank, which holds both experts' projections one after the other and the gains of
 * all pairs of neurons: f64 and solved exactly up to MOST_EXACT neurons, f32 and by auction above. Products have fixed
 * shapes, so nothing depends on ranks or threads. */
#include "pipeline/merge_run.h"

#include "mdp/group.h"

#include <omp.h>
#include <string.h>

#define MOST_EXACT 4096 /* neurons */
#define TOLERANCE 1e-4  /* of an auction's sum */
#define TILE 256
#define DEPTH 1024
#define ROWS 64

typedef struct match {
    mdp_merge_run *run;
    const mdp_expert *dominant, *member;
    int64_t f, d;
    float *left, *right; /* [f, d] a projection of each, neuron by neuron */
    double *gain;        /* [f, f] of the dominant's neurons and the member's; NULL: */
    float *rough;        /* [f, f] the same */
} match;

bool mdp_merge_is_aligned(const mdp_plan_expert *planned) {
    return planned->action == MDP_MERGE && planned->align == MDP_ALIGN_WEIGHT;
}

/* ---- gains ------------------------------------------------------------------------------------------------------ */

/* A matrix neuron by neuron; by_column: its columns are neurons. */
static mdp_status load(const match *m, const mdp_matrix *from, bool by_column, float *out) {
    void *scratch = NULL;
    float *rows = NULL;
    if (!by_column && from->n_row != m->f) return MDP_ERROR(MDP_INTERNAL, "experts of other widths cannot be aligned.");
    MDP_TRY(mdp_alloc(&scratch, mdp_matrix_scratch(from, ROWS) + 1, 1, "neurons"));
    mdp_status status = by_column ? MDP_ALLOC(&rows, ROWS * from->n_col, "neurons") : mdp_ok();
    for (int64_t row = 0; row < from->n_row && status.code == MDP_OK; row += ROWS) {
        int64_t n = from->n_row - row < ROWS ? from->n_row - row : ROWS;
        status = mdp_matrix_read(m->run->reader, from, row, n, scratch, by_column ? rows : out + row * m->d);
        for (int64_t j = 0; by_column && status.code == MDP_OK && j < m->f; j++)
            for (int64_t r = 0; r < n; r++) out[j * m->d + row + r] = rows[r * from->n_col + j];
    }
    mdp_free(scratch);
    mdp_free(rows);
    return status;
}

static void add_tile(const match *m, int64_t a, int64_t b, float *tile) {
    int n = (int)(m->f - a < TILE ? m->f - a : TILE), k = (int)(m->f - b < TILE ? m->f - b : TILE);
    for (int64_t c = 0; c < m->d; c += DEPTH) {
        int depth = (int)(m->d - c < DEPTH ? m->d - c : DEPTH);
        mdp_gemm_nt(m->run->options->gemm, n, k, depth, m->left + a * m->d + c, (int)m->d, m->right + b * m->d + c,
                    (int)m->d, tile, TILE);
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

static void add_products(const match *m, float *tiles) {
    int64_t n = (m->f + TILE - 1) / TILE;
#pragma omp parallel for schedule(dynamic) num_threads(m->run->options->n_thread)
    for (int64_t t = 0; t < n * n; t++)
        add_tile(m, t / n * TILE, t % n * TILE, tiles + (int64_t)omp_get_thread_num() * TILE * TILE);
}

static mdp_status find_gains(match *m) {
    const mdp_matrix *left[] = {&m->dominant->gate, &m->dominant->up, &m->dominant->down};
    const mdp_matrix *right[] = {&m->member->gate, &m->member->up, &m->member->down};
    float *tiles = NULL;
    MDP_TRY(MDP_ALLOC(&tiles, (int64_t)m->run->options->n_thread * TILE * TILE, "gains of neurons"));
    mdp_status status = mdp_ok();
    for (int i = 0; i < 3 && status.code == MDP_OK; i++) {
        status = load(m, left[i], i == 2, m->left);
        if (status.code == MDP_OK) status = load(m, right[i], i == 2, m->right);
        if (status.code == MDP_OK) add_products(m, tiles);
    }
    mdp_profile_flop(m->run->profile, mdp_merge_align_flop(m->run->moe));
    mdp_free(tiles);
    return status.code == MDP_OK ? mdp_gemm_check(m->run->options->gemm) : status;
}

/* ---- assignment ------------------------------------------------------------------------------------------------- */

static mdp_status give_rows(void *context, int64_t n_row, const int64_t *rows, double *gain) {
    const match *m = context;
    for (int64_t r = 0; r < n_row; r++)
        for (int64_t j = 0; j < m->f; j++) gain[r * m->f + j] = (double)m->rough[rows[r] * m->f + j];
    return mdp_ok();
}

static mdp_status assign(match *m, int64_t *order) {
    if (m->rough) {
        mdp_auction auction = {.n = m->f, .rows = give_rows, .context = m, .tolerance = TOLERANCE};
        mdp_auction_result result;
        MDP_TRY(mdp_assign_auction(&auction, order, &result));
        int64_t gap = result.bound > 0.0 ? (int64_t)((result.bound - result.value) / result.bound * 1e9) : 0;
        if (gap > m->run->gap) m->run->gap = gap;
        return mdp_ok();
    }
    double *price = NULL, value;
    MDP_TRY(MDP_ALLOC(&price, 2 * m->f, "prices of neurons"));
    mdp_status status = mdp_assign(m->f, m->gain, order, price, price + m->f, &value);
    mdp_free(price);
    return status;
}

static mdp_status align(mdp_merge_run *run, mdp_expert_t dominant, mdp_expert_t member, int64_t *order) {
    const mdp_moe *moe = run->moe;
    match m = {.run = run,
               .dominant = &moe->experts[dominant],
               .member = &moe->experts[member],
               .f = moe->experts[dominant].gate.n_row,
               .d = run->model->d_model};
    mdp_status status = MDP_ALLOC(&m.left, m.f * m.d, "neurons");
    if (status.code == MDP_OK) status = MDP_ALLOC(&m.right, m.f * m.d, "neurons");
    if (status.code == MDP_OK && m.f <= MOST_EXACT) status = MDP_ALLOC(&m.gain, m.f * m.f, "gains of neurons");
    if (status.code == MDP_OK && m.f > MOST_EXACT) status = MDP_ALLOC(&m.rough, m.f * m.f, "gains of neurons");
    if (status.code == MDP_OK) status = find_gains(&m);
    mdp_free(m.left);
    mdp_free(m.right);
    if (status.code == MDP_OK) status = assign(&m, order);
    mdp_free(m.gain);
    mdp_free(m.rough);
    return status;
}

/* ---- a layer ---------------------------------------------------------------------------------------------------- */

/* Members of the layer's merged experts; 0: none is aligned. */
static int64_t count_members(const mdp_plan_layer *planned) {
    int64_t n = 0;
    bool any = false;
    for (int32_t i = 0; i < planned->n_kept; i++) {
        if (planned->kept[i].action != MDP_MERGE) continue;
        n += planned->kept[i].n_from;
        any = any || mdp_merge_is_aligned(&planned->kept[i]);
    }
    return any ? n : 0;
}

/* This rank's pairs; what others do is 0. Rank 0 has the dominant ones, whose neurons stay. Local. */
static mdp_status align_own(mdp_merge_run *run) {
    int64_t *order = run->order, pair = 0, f = run->moe->d_ff;
    for (int32_t i = 0; i < run->planned->n_kept; i++) {
        const mdp_plan_expert *planned = &run->planned->kept[i];
        if (planned->action != MDP_MERGE) continue;
        for (int32_t j = 0; j < planned->n_from; j++, order += f) {
            if (!mdp_merge_is_aligned(planned)) continue;
            if (j == planned->dominant) {
                for (int64_t c = 0; run->comm->rank == 0 && c < f; c++) order[c] = c;
            } else if (pair++ % run->comm->size == run->comm->rank) {
                MDP_TRY(align(run, planned->from[planned->dominant], planned->from[j], order));
            }
        }
    }
    return mdp_ok();
}

mdp_status mdp_merge_align_all(mdp_merge_run *run) {
    int64_t n = count_members(run->planned) * run->moe->d_ff;
    if (n == 0) return mdp_ok();
    MDP_AGREE(run->comm, MDP_ALLOC(&run->order, n, "the order of neurons"));
    run->gap = 0;
    MDP_AGREE(run->comm, align_own(run));
    MDP_TRY(mdp_max_i64_all(run->comm, &run->gap, 1));
    if (run->moe->d_ff > MOST_EXACT)
        mdp_log_message(run->options->log, MDP_LEVEL_DEBUG,
                        "merge    layer %lld: neurons match to within %.2g of the best", (long long)run->planned->layer,
                        (double)run->gap * 1e-9);
    return mdp_sum_i64_all(run->comm, run->order, n);
}

int64_t mdp_merge_align_memory(const mdp_moe *moe, int n_thread) {
    int64_t f = moe->d_ff, d = moe->router.n_col, size = f <= MOST_EXACT ? sizeof(double) : sizeof(float);
    return 2 * f * d * (int64_t)sizeof(float) + f * f * size + (int64_t)n_thread * TILE * TILE * (int64_t)sizeof(float);
}

int64_t mdp_merge_align_flop(const mdp_moe *moe) {
    return 6 * moe->d_ff * moe->d_ff * moe->router.n_col;
}
