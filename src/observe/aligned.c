/* aligned.c - see aligned.h.
 *
 * All ranks know the products of the neurons as they stand, choose the same pairs, and are dealt them one by one: a
 * pair is matched by one rank (match.h). Rank 0 has what is not matched. */
#include "observe/aligned.h"

#include "mdp/match.h"

#include <math.h>
#include <string.h>

typedef struct pairs {
    int64_t n;             /* experts */
    mdp_short_sum *stand;  /* [n, n], lower triangle: products of the neurons as they stand */
    double *cosine;        /* [n, n] of them */
    unsigned char *chosen; /* [n, n], lower triangle: it is matched */
} pairs;

/* ---- which pairs ------------------------------------------------------------------------------------------------ */

static void find_cosines(const pairs *p) {
    for (int64_t i = 0; i < p->n; i++) {
        double ii = mdp_short_value(&p->stand[i * p->n + i]);
        for (int64_t j = 0; j < i; j++) {
            double jj = mdp_short_value(&p->stand[j * p->n + j]), length = sqrt(ii) * sqrt(jj);
            double value = length > 0.0 ? mdp_short_value(&p->stand[i * p->n + j]) / length : 0.0;
            p->cosine[i * p->n + j] = p->cosine[j * p->n + i] = mdp_round30(value);
        }
    }
}

/* How many others are nearer to i than j is; of equal ones the lower is nearer. */
static int64_t count_nearer(const pairs *p, int64_t i, int64_t j) {
    const double *row = p->cosine + i * p->n;
    int64_t n = 0;
    for (int64_t k = 0; k < p->n; k++) n += k != i && k != j && (row[k] > row[j] || (k < j && row[k] == row[j]));
    return n;
}

static void choose(const pairs *p) {
    bool all = p->n <= MDP_ALIGNED_MOST;
    for (int64_t i = 0; i < p->n; i++)
        for (int64_t j = 0; j < i; j++)
            p->chosen[i * p->n + j] =
                all || count_nearer(p, i, j) < MDP_ALIGNED_NEAR || count_nearer(p, j, i) < MDP_ALIGNED_NEAR;
}

static mdp_status take_room(pairs *p) {
    MDP_TRY(MDP_ALLOC(&p->stand, p->n * p->n, "products of experts"));
    MDP_TRY(MDP_ALLOC(&p->cosine, p->n * p->n, "cosines of experts"));
    return MDP_ALLOC(&p->chosen, p->n * p->n, "pairs of experts");
}

static void clear(pairs *p) {
    mdp_free(p->stand);
    mdp_free(p->cosine);
    mdp_free(p->chosen);
}

/* ---- matching --------------------------------------------------------------------------------------------------- */

static mdp_status match_pair(const mdp_compare *compare, int64_t layer, int64_t i, int64_t j, mdp_short_sum *sum) {
    const mdp_moe *moe = &compare->model->layers[layer].moe;
    mdp_match match = {.reader = compare->reader,
                       .gemm = compare->probe.gemm,
                       .n_thread = compare->n_thread,
                       .f = moe->experts[i].gate.n_row};
    int64_t *order = NULL;
    mdp_status status = MDP_ALLOC(&order, match.f, "the order of neurons");
    if (status.code == MDP_OK) status = mdp_match_begin(&match);
    if (status.code == MDP_OK) status = mdp_match_add_weights(&match, &moe->experts[j], &moe->experts[i]);
    if (status.code == MDP_OK) status = mdp_match_solve(&match, order);
    if (status.code == MDP_OK && !mdp_short_add(sum, match.value))
        status = MDP_ERROR(MDP_BAD_INPUT,
                           "layer %lld: the product of the matched neurons of experts %lld and %lld is %g; values are "
                           "far too large.",
                           (long long)layer, (long long)j, (long long)i, match.value);
    mdp_match_clear(&match);
    mdp_free(order);
    return status;
}

/* This rank's pairs. Local. */
static mdp_status add_own(const mdp_comm *comm, const mdp_compare *compare, int64_t layer, const pairs *p,
                          mdp_short_sum *sum, int64_t *flop) {
    int64_t turn = 0, n = p->n, f = compare->model->layers[layer].moe.d_ff;
    for (int64_t at = 0; at < n * n; at++) {
        if (at % n > at / n) continue;
        if (!p->chosen[at]) {
            for (int l = 0; comm->rank == 0 && l < MDP_SHORT_LIMBS; l++) sum[at].limb[l] += p->stand[at].limb[l];
        } else if (turn++ % comm->size == comm->rank) {
            MDP_TRY(match_pair(compare, layer, at / n, at % n, &sum[at]));
            *flop += mdp_match_flop(f, compare->model->d_model);
        }
    }
    return mdp_ok();
}

mdp_status mdp_aligned_add_all(const mdp_comm *comm, const mdp_compare *compare, int64_t layer,
                               const mdp_short_sum *product, mdp_short_sum *sum, int64_t *flop) {
    pairs p = {.n = compare->model->layers[layer].moe.n_expert};
    mdp_status status = mdp_agree_all(comm, take_room(&p));
    if (status.code == MDP_OK) {
        memcpy(p.stand, product, (size_t)(p.n * p.n) * sizeof *product);
        for (int64_t at = 0; at < p.n * p.n; at++) mdp_short_normalise(&p.stand[at]);
        status = mdp_sum_i64_all(comm, &p.stand[0].limb[0], p.n * p.n * MDP_SHORT_LIMBS);
    }
    if (status.code == MDP_OK) {
        find_cosines(&p);
        choose(&p);
        status = mdp_agree_all(comm, add_own(comm, compare, layer, &p, sum, flop));
    }
    clear(&p);
    return status;
}

/* ---- what it takes ---------------------------------------------------------------------------------------------- */

/* Pairs that are matched, at most. */
static int64_t most_pairs(int64_t n) {
    int64_t all = n * (n - 1) / 2;
    return n <= MDP_ALIGNED_MOST ? all : mdp_smaller(all, n * MDP_ALIGNED_NEAR);
}

int64_t mdp_aligned_memory(const mdp_moe *moe, int64_t d_model, int n_thread) {
    int64_t n = moe->n_expert;
    return n * n * (int64_t)(sizeof(mdp_short_sum) + sizeof(double) + 1) + 3 * moe->d_ff * (int64_t)sizeof(double) +
           mdp_match_memory(moe->d_ff, d_model, n_thread);
}

void mdp_aligned_cost(const mdp_comm *layout, const mdp_moe *moe, int64_t d_model, int rank, mdp_rank_cost *out) {
    const mdp_expert *one = &moe->experts[0];
    int64_t n = most_pairs(moe->n_expert), own = (n - rank + layout->size - 1) / layout->size;
    out->flop += own * mdp_match_flop(moe->d_ff, d_model);
    out->bytes_read +=
        2 * own * (mdp_matrix_bytes(&one->gate) + mdp_matrix_bytes(&one->up) + mdp_matrix_bytes(&one->down));
}
