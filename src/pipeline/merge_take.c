/* merge_take.c - one expert that takes in neurons of dropped ones, made by one rank: its pool, what becomes of it, and
 * its router row, which grows by the rows of those that neurons came from, each times the part of its neurons that
 * came.
 *
 * An expert to which nothing comes is copied bit for bit. */
#include "pipeline/merge_dern.h"

#include "mdp/narrow.h"

#include <string.h>

/* The expert and those dropped ones that something comes from, ascending, with the parts of them that come. */
typedef struct sources {
    int32_t n, own; /* which is the expert itself */
    mdp_expert_t *expert;
    int32_t *dropped; /* numbers among the dropped ones; -1: itself */
    int64_t *moved;   /* neurons */
    double *part;     /* of the router's rows: 1 of its own */
} sources;

static void free_sources(sources *from) {
    mdp_free(from->expert);
    mdp_free(from->dropped);
    mdp_free(from->moved);
    mdp_free(from->part);
}

static int64_t count_moved(const mdp_merge_run *run, int32_t dropped, int32_t kept) {
    int64_t n = 0;
    for (int64_t j = 0; j < run->moe->d_ff; j++) n += mdp_merge_goes_to(run, dropped, j, kept);
    return n;
}

static void add_source(sources *from, mdp_expert_t e, int32_t dropped, int64_t moved, double part) {
    from->expert[from->n] = e;
    from->dropped[from->n] = dropped;
    from->moved[from->n] = moved;
    from->part[from->n++] = part;
}

static mdp_status find_sources(const mdp_merge_run *run, int32_t kept, sources *from) {
    const mdp_plan_layer *planned = run->planned;
    int32_t most = planned->n_dropped + 1;
    mdp_expert_t self = planned->kept[kept].from[0];
    bool there = false;
    MDP_TRY(MDP_ALLOC(&from->expert, most, "members"));
    MDP_TRY(MDP_ALLOC(&from->dropped, most, "members"));
    MDP_TRY(MDP_ALLOC(&from->moved, most, "members"));
    MDP_TRY(MDP_ALLOC(&from->part, most, "members"));
    for (int32_t i = 0; i <= planned->n_dropped; i++) {
        bool last = i == planned->n_dropped;
        if (!there && (last || planned->dropped[i] > self)) {
            from->own = from->n;
            add_source(from, self, -1, run->moe->d_ff, 1.0);
            there = true;
        }
        int64_t moved = last ? 0 : count_moved(run, i, kept);
        if (moved > 0) add_source(from, planned->dropped[i], i, moved, (double)moved / (double)run->moe->d_ff);
    }
    return mdp_ok();
}

/* ---- the pool --------------------------------------------------------------------------------------------------- */

/* One of the three parts of the neurons of a source, of which those that come are put one after the other. */
static mdp_status load_part(const mdp_merge_run *run, const mdp_merge_pool *pool, const mdp_matrix *from, int part,
                            int32_t dropped, int32_t kept, float *whole, float *to) {
    int64_t d = run->model->d_model, at = 0;
    MDP_TRY(mdp_matrix_read_lines(run->reader, from, part == 2, d, whole));
    for (int64_t j = 0; j < pool->f; j++) {
        if (dropped >= 0 && !mdp_merge_goes_to(run, dropped, j, kept)) continue;
        memcpy(to + at++ * pool->width + part * d, whole + j * d, (size_t)d * sizeof *to);
    }
    return mdp_ok();
}

static mdp_status load_source(const mdp_merge_run *run, const mdp_merge_pool *pool, mdp_expert_t e, int32_t dropped,
                              int32_t kept, float *to) {
    const mdp_expert *expert = &run->moe->experts[e];
    const mdp_matrix *parts[] = {&expert->gate, &expert->up, &expert->down};
    float *whole = NULL;
    MDP_TRY(MDP_ALLOC(&whole, pool->f * run->model->d_model, "neurons"));
    mdp_status status = mdp_ok();
    for (int part = 0; part < 3 && status.code == MDP_OK; part++)
        status = load_part(run, pool, parts[part], part, dropped, kept, whole, to);
    mdp_free(whole);
    return status;
}

/* Its own neurons first, then those that come. */
static mdp_status fill_pool(const mdp_merge_run *run, int32_t kept, const sources *from, mdp_merge_pool *pool) {
    int64_t at = pool->f;
    for (int32_t s = 0; s < from->n; s++) {
        int64_t first = s == from->own ? 0 : at, n = 0;
        MDP_TRY(load_source(run, pool, from->expert[s], from->dropped[s], kept, pool->values + first * pool->width));
        for (int64_t j = 0; j < pool->f; j++) {
            if (s != from->own && !mdp_merge_goes_to(run, from->dropped[s], j, kept)) continue;
            pool->weight[first + n] = run->planned->mass[from->expert[s]];
            pool->name[first + n++] = from->expert[s] * pool->f + j;
        }
        if (s != from->own) at += n;
    }
    return mdp_ok();
}

/* ---- the expert ------------------------------------------------------------------------------------------------- */

static mdp_status put(const mdp_merge_run *run, int32_t kept, const sources *from, const mdp_merge_pool *pool) {
    mdp_plan_expert of = {.action = MDP_MERGE,
                          .n_from = from->n,
                          .from = from->expert,
                          .weights = from->part,
                          .dominant = from->own,
                          .router = MDP_ROUTER_DOMINANT};
    const mdp_merge_item item = {
        .run = run,
        .planned = &of,
        .to = &run->replaced->experts[mdp_replaced_find(run->replaced, run->planned->layer, kept)],
        .neurons = pool->centre,
        .sizes = pool->size,
        .of_rows = from->part};
    for (int share = 0; share < MDP_N_SHARE; share++) MDP_TRY(mdp_merge_make(&item, (mdp_merge_share)share));
    return mdp_ok();
}

static mdp_status make(const mdp_merge_run *run, int32_t kept, const sources *from) {
    mdp_merge_pool pool;
    int64_t n = 0, d = run->model->d_model;
    int n_round = 0;
    for (int32_t s = 0; s < from->n; s++) n += from->moved[s];
    MDP_TRY(mdp_merge_pool_new(run->moe->d_ff, n, 3 * d, &pool));
    mdp_status status = fill_pool(run, kept, from, &pool);
    if (status.code == MDP_OK)
        status = mdp_merge_pool_reduce(&pool, d, run->options->gemm, run->options->n_thread, &n_round);
    mdp_profile_flop(run->profile, (int64_t)(n_round + 1) * 2 * n * pool.f * pool.width);
    if (status.code == MDP_OK) status = put(run, kept, from, &pool);
    mdp_merge_pool_clear(&pool);
    return status;
}

mdp_status mdp_merge_take_in(const mdp_merge_run *run, int32_t kept) {
    const mdp_replaced *replaced = run->replaced;
    sources from = {0};
    mdp_status status = find_sources(run, kept, &from);
    if (status.code == MDP_OK && from.n == 1)
        status = mdp_replaced_copy(replaced, &replaced->experts[mdp_replaced_find(replaced, run->planned->layer, kept)],
                                   run->reader);
    else if (status.code == MDP_OK)
        status = make(run, kept, &from);
    free_sources(&from);
    return status;
}

/* ---- costs ------------------------------------------------------------------------------------------------------ */

/* Neurons of a pool, if every dropped one goes somewhere, and twice as many to one expert as to another. */
static int64_t most_neurons(const mdp_moe *moe, const mdp_plan_layer *planned) {
    return moe->d_ff * (1 + mdp_smaller(planned->n_dropped, mdp_divide_up(2 * planned->n_dropped, planned->n_kept)));
}

int64_t mdp_merge_take_memory(const mdp_moe *moe, const mdp_plan_layer *planned, int n_thread) {
    int64_t d = moe->router.n_col, f = moe->d_ff, n = most_neurons(moe, planned);
    int64_t pair = 4 * f * d * (int64_t)sizeof(float) + n_thread * MDP_DERN_TILE_VALUES * (int64_t)sizeof(double);
    int64_t pool = mdp_merge_pool_memory(f, n, 3 * d, n_thread) +
                   mdp_larger(f * d * (int64_t)sizeof(float), mdp_merge_make_memory(moe));
    return planned->n_dropped * f * (int64_t)sizeof(int64_t) + mdp_larger(pair, pool);
}

int64_t mdp_merge_take_flop(const mdp_moe *moe, const mdp_plan_layer *planned) {
    int64_t d = moe->router.n_col, f = moe->d_ff, n = f + f * planned->n_dropped / planned->n_kept;
    return 4 * 2 * n * f * 3 * d; /* rounds: few are needed where neurons are far apart */
}
