/* compare.c - inner products of logits and weights of the experts of a layer; see compare.h.
 *
 * Logits of a batch are kept until its layer is done and multiplied pack by pack, since a pack lies on one rank
 * whichever it is. Weights are read once, after the last batch, in panels of the same rows of all experts, which are
 * dealt to ranks; so a rank holds one panel of each expert. */
#include "observe/compare.h"
#include "observe/aligned.h"
#include "observe/neurons.h"
#include "observe/surrogate.h"

#include <string.h>

/* ---- life ---------------------------------------------------------------------------------------------------- */

static bool is_same_shape(const mdp_matrix *a, const mdp_matrix *b) {
    return a->n_row == b->n_row && a->n_col == b->n_col;
}

static mdp_status check_widths(const mdp_model *model) {
    for (int64_t l = 0; l < model->n_layer; l++) {
        const mdp_moe *moe = &model->layers[l].moe;
        for (int32_t e = 1; model->layers[l].is_moe && e < moe->n_expert; e++) {
            if (is_same_shape(&moe->experts[0].gate, &moe->experts[e].gate)) continue;
            return MDP_ERROR(MDP_BAD_INPUT,
                             "layer %lld: expert %d has %lld neurons, expert 0 %lld; weights of experts of different "
                             "widths cannot be compared; leave weight-euclidean, weight-cosine and weight-aligned-... "
                             "out.",
                             (long long)l, (int)e, (long long)moe->experts[e].gate.n_row,
                             (long long)moe->experts[0].gate.n_row);
        }
    }
    return mdp_ok();
}

static int64_t most_experts(const mdp_model *model) {
    int64_t most = 0;
    for (int64_t l = 0; l < model->n_layer; l++)
        if (model->layers[l].is_moe && model->layers[l].moe.n_expert > most) most = model->layers[l].moe.n_expert;
    return most;
}

mdp_status mdp_compare_begin(const mdp_collecting *with, const mdp_stats *stats, mdp_compare *out) {
    *out = (mdp_compare){.model = with->model,
                         .reader = with->reader,
                         .stats = stats,
                         .n_thread = with->n_thread,
                         .vectors = mdp_similarity_vectors(&stats->similarity),
                         .probe = {.model = with->model,
                                   .reader = with->reader,
                                   .gemm = with->gemm,
                                   .n_thread = with->n_thread,
                                   .allow_nonfinite = with->allow_nonfinite},
                         .most_expert = most_experts(with->model)};
    if (mdp_compare_wants(out, MDP_WEIGHT_PRODUCT)) MDP_TRY(check_widths(with->model));
    return stats->n_probe > 0.0 ? mdp_probe_draw(&out->probe, stats) : mdp_ok();
}

void mdp_compare_clear(mdp_compare *compare) {
    mdp_probe_clear(&compare->probe);
    mdp_free(compare->logits);
}

mdp_status mdp_compare_begin_batch(mdp_compare *compare, const mdp_engine *engine) {
    compare->batch = *mdp_engine_batch(engine);
    compare->profile = mdp_engine_profile(engine);
    mdp_free(compare->logits);
    compare->logits = NULL;
    if (compare->probe.n > 0) MDP_TRY(mdp_probe_begin_batch(&compare->probe, &compare->batch));
    if (!mdp_compare_wants(compare, MDP_LOGIT_PRODUCT)) return mdp_ok();
    return MDP_ALLOC(&compare->logits, compare->batch.n_token * compare->most_expert, "router logits of a batch");
}

bool mdp_compare_is_last(const mdp_compare *compare) {
    return compare->batch.number == compare->partition->n_batch - 1;
}

/* ---- tokens -------------------------------------------------------------------------------------------------- */

static void add_pairs(const mdp_routed_token *token, mdp_short_sum *count) {
    for (int32_t a = 0; a < token->top_k; a++) {
        for (int32_t b = 0; b < token->top_k; b++) {
            mdp_expert_t i = token->index[a], j = token->index[b];
            if (j <= i)
                __atomic_fetch_add(&count[(int64_t)i * token->n_expert + j].limb[MDP_SHORT_LIMBS - 1], 1,
                                   __ATOMIC_RELAXED);
        }
    }
}

void mdp_compare_routed(const mdp_compare *compare, const mdp_routed_token *token, mdp_short_sum *const *vectors) {
    if (mdp_compare_wants(compare, MDP_PAIR_COUNT)) add_pairs(token, vectors[MDP_PAIR_COUNT]);
    if (compare->probe.n > 0) mdp_probe_see(&compare->probe, compare->batch.first_token + token->local, token->x);
    float *to = compare->logits ? compare->logits + token->local * token->n_expert : NULL;
    for (int32_t e = 0; to && e < token->n_expert; e++) to[e] = (float)token->logits[e];
}

/* ---- logits -------------------------------------------------------------------------------------------------- */

/* Rows of a pack that are multiplied at a time. */
typedef struct logit_chunk {
    int64_t first, n; /* rows of this rank */
} logit_chunk;

typedef struct logit_chunks {
    int64_t n, n_expert;
    logit_chunk *chunks;
    const float *logits; /* [rows, n_expert] */
    const float *bias;   /* [n_expert]; NULL: none */
} logit_chunks;

static mdp_status cut_packs(const mdp_compare *compare, logit_chunks *out) {
    const mdp_pack *packs = compare->partition->packs + compare->batch.first_pack;
    int64_t most = compare->batch.n_pack + compare->batch.n_token / MDP_GRAM_COLUMNS;
    MDP_TRY(MDP_ALLOC(&out->chunks, most, "packs of a batch"));
    for (int64_t p = 0; p < compare->batch.n_pack; p++) {
        int64_t start = packs[p].first_token - compare->batch.first_token;
        for (int64_t at = 0; at < packs[p].n_token; at += MDP_GRAM_COLUMNS) {
            int64_t n = packs[p].n_token - at < MDP_GRAM_COLUMNS ? packs[p].n_token - at : MDP_GRAM_COLUMNS;
            out->chunks[out->n++] = (logit_chunk){.first = start + at, .n = n};
        }
    }
    return mdp_ok();
}

static int64_t fill_logits(void *context, int64_t chunk, int64_t first, double *to) {
    const logit_chunks *from = context;
    const logit_chunk *rows = &from->chunks[chunk];
    int64_t n = rows->n - first < MDP_GRAM_BLOCK ? rows->n - first : MDP_GRAM_BLOCK;
    for (int64_t t = 0; t < n; t++) {
        const float *z = from->logits + (rows->first + first + t) * from->n_expert;
        for (int64_t e = 0; e < from->n_expert; e++)
            to[e * MDP_GRAM_BLOCK + t] = (double)z[e] - (from->bias ? (double)from->bias[e] : 0.0);
    }
    return n;
}

static mdp_status add_logits(const mdp_compare *compare, int64_t layer, mdp_short_sum *sum, int64_t *flop) {
    const mdp_moe *moe = &compare->model->layers[layer].moe;
    const mdp_gram gram = {
        .n = moe->n_expert, .n_thread = compare->n_thread, .layer = layer, .what = "router logits", .sum = sum};
    logit_chunks from = {.n_expert = moe->n_expert, .logits = compare->logits};
    float *bias = NULL;
    mdp_status status = cut_packs(compare, &from);
    if (status.code == MDP_OK && moe->router_bias.tensor)
        status = mdp_matrix_load(compare->reader, &moe->router_bias, &bias);
    from.bias = bias;
    if (status.code == MDP_OK) status = mdp_gram_add(&gram, from.n, fill_logits, &from, flop);
    mdp_free(bias);
    mdp_free(from.chunks);
    return status;
}

/* ---- weights ------------------------------------------------------------------------------------------------- */

static mdp_status add_router(const mdp_compare *compare, int64_t layer, mdp_short_sum *sum, int64_t *flop) {
    const mdp_matrix *router = &compare->model->layers[layer].moe.router;
    const mdp_gram gram = {
        .n = (int32_t)router->n_row, .n_thread = compare->n_thread, .layer = layer, .what = "router rows", .sum = sum};
    float *rows = NULL;
    const float **row = NULL;
    mdp_status status = mdp_matrix_load(compare->reader, router, &rows);
    if (status.code == MDP_OK) status = MDP_ALLOC(&row, router->n_row, "rows of a router");
    for (int64_t e = 0; status.code == MDP_OK && e < router->n_row; e++) row[e] = rows + e * router->n_col;
    if (status.code == MDP_OK) status = mdp_gram_add_rows(&gram, row, router->n_col, flop);
    mdp_free(row);
    mdp_free(rows);
    return status;
}

static const mdp_matrix *matrix_of(const mdp_expert *expert, int which) {
    const mdp_matrix *matrices[] = {&expert->gate, &expert->up, &expert->down};
    return matrices[which];
}

/* Rows of a panel: they depend on the model alone. */
static int64_t panel_rows(const mdp_matrix *matrix) {
    int64_t n = MDP_COMPARE_PANEL / matrix->n_col;
    return n > matrix->n_row ? matrix->n_row : n > 0 ? n : 1;
}

/* Rows row0 .. row0+n_row-1 of a matrix of every expert: to [n_expert, n_row, n_col]. */
static mdp_status read_panels(const mdp_compare *compare, const mdp_moe *moe, int which, int64_t row0, int64_t n_row,
                              float *to) {
    mdp_status failed = mdp_ok();
#pragma omp parallel for schedule(dynamic, 1) num_threads(compare->n_thread)
    for (int32_t e = 0; e < moe->n_expert; e++) {
        const mdp_matrix *matrix = matrix_of(&moe->experts[e], which);
        void *scratch = NULL;
        mdp_status status = mdp_alloc(&scratch, mdp_matrix_scratch(matrix, n_row), 1, "a panel of weights");
        if (status.code == MDP_OK)
            status = mdp_matrix_read(compare->reader, matrix, row0, n_row, scratch, to + e * n_row * matrix->n_col);
        mdp_free(scratch);
        if (status.code != MDP_OK) {
#pragma omp critical(mdp_compare)
            failed = status;
        }
    }
    return failed;
}

/* This rank's panels of one matrix of all experts; *job numbers the panels of the layer. */
static mdp_status add_matrix(const mdp_comm *comm, const mdp_compare *compare, const mdp_gram *gram, int which,
                             int64_t *job, int64_t *flop) {
    const mdp_moe *moe = &compare->model->layers[gram->layer].moe;
    const mdp_matrix *first = matrix_of(&moe->experts[0], which);
    int64_t step = panel_rows(first);
    float *panels = NULL;
    const float **row = NULL;
    mdp_status status = MDP_ALLOC(&panels, gram->n * step * first->n_col, "panels of weights");
    if (status.code == MDP_OK) status = MDP_ALLOC(&row, gram->n, "panels of weights");
    for (int64_t row0 = 0; status.code == MDP_OK && row0 < first->n_row; row0 += step) {
        int64_t n = first->n_row - row0 < step ? first->n_row - row0 : step;
        if ((*job)++ % comm->size != comm->rank) continue;
        status = read_panels(compare, moe, which, row0, n, panels);
        for (int32_t e = 0; e < gram->n; e++) row[e] = panels + e * n * first->n_col;
        if (status.code == MDP_OK) status = mdp_gram_add_rows(gram, row, n * first->n_col, flop);
    }
    mdp_free(row);
    mdp_free(panels);
    return status;
}

static mdp_status add_weights(const mdp_comm *comm, const mdp_compare *compare, int64_t layer, mdp_short_sum *sum,
                              int64_t *flop) {
    const mdp_gram gram = {.n = compare->model->layers[layer].moe.n_expert,
                           .n_thread = compare->n_thread,
                           .layer = layer,
                           .what = "weights",
                           .sum = sum};
    int64_t job = 0;
    for (int which = 0; which < 3; which++) MDP_TRY(add_matrix(comm, compare, &gram, which, &job, flop));
    return mdp_ok();
}

/* ---- after a layer ------------------------------------------------------------------------------------------- */

static mdp_status add_own(const mdp_comm *comm, const mdp_compare *compare, int64_t layer, int keeper,
                          mdp_short_sum *const *vectors, int64_t *flop) {
    if (mdp_compare_wants(compare, MDP_LOGIT_PRODUCT))
        MDP_TRY(add_logits(compare, layer, vectors[MDP_LOGIT_PRODUCT], flop));
    if (!mdp_compare_is_last(compare)) return mdp_ok();
    if (mdp_compare_wants(compare, MDP_ROUTER_PRODUCT) && comm->rank == keeper)
        MDP_TRY(add_router(compare, layer, vectors[MDP_ROUTER_PRODUCT], flop));
    if (mdp_compare_wants(compare, MDP_NEURON_COLUMN))
        MDP_TRY(mdp_neurons_add_columns(comm, compare, layer, vectors[MDP_NEURON_COLUMN]));
    if (!mdp_compare_wants(compare, MDP_WEIGHT_PRODUCT)) return mdp_ok();
    return add_weights(comm, compare, layer, vectors[MDP_WEIGHT_PRODUCT], flop);
}

/* What of weights ranks find out together. Collective. */
static mdp_status compare_weights_all(const mdp_comm *comm, const mdp_compare *compare, int64_t layer,
                                      mdp_short_sum *const *vectors, int64_t *flop) {
    if (mdp_compare_wants(compare, MDP_SURROGATE_PRODUCT))
        MDP_TRY(mdp_surrogate_add_all(comm, compare, layer, vectors[MDP_SURROGATE_PRODUCT], flop));
    if (!mdp_compare_wants(compare, MDP_ALIGNED_PRODUCT)) return mdp_ok();
    return mdp_aligned_add_all(comm, compare, layer, vectors[MDP_WEIGHT_PRODUCT], vectors[MDP_ALIGNED_PRODUCT], flop);
}

static mdp_status run_probe_all(const mdp_comm *comm, mdp_compare *compare, int64_t layer, int64_t layer_index,
                                int keeper, mdp_short_sum *const *vectors) {
    const mdp_partition *partition = compare->partition;
    int64_t pack = partition->block_pack[partition->batch_block[compare->batch.number]];
    MDP_TRY(mdp_probe_gather_all(comm, &compare->probe, layer_index, keeper, partition->packs[pack].first_token));
    if (!mdp_compare_is_last(compare)) return mdp_ok();
    return mdp_probe_run_all(comm, &compare->probe, layer, layer_index, keeper, compare->vectors, vectors,
                             compare->profile);
}

mdp_status mdp_compare_layer_all(const mdp_comm *comm, mdp_compare *compare, int64_t layer, int64_t layer_index,
                                 int keeper, mdp_short_sum *const *vectors) {
    int64_t n_read = mdp_reader_bytes(compare->reader), flop = 0;
    if (compare->stats->similarity.wanted == 0 && !compare->stats->similarity.neurons) return mdp_ok();
    mdp_phase before = mdp_profile_switch(compare->profile, MDP_PHASE_SIMILARITY);
    mdp_status status = mdp_agree_all(comm, add_own(comm, compare, layer, keeper, vectors, &flop));
    if (status.code == MDP_OK && mdp_compare_is_last(compare))
        status = compare_weights_all(comm, compare, layer, vectors, &flop);
    if (status.code == MDP_OK && compare->probe.n > 0)
        status = run_probe_all(comm, compare, layer, layer_index, keeper, vectors);
    mdp_profile_flop(compare->profile, flop);
    mdp_profile_read(compare->profile, mdp_reader_bytes(compare->reader) - n_read);
    mdp_profile_switch(compare->profile, before);
    return status;
}

/* ---- resume points ------------------------------------------------------------------------------------------- */

mdp_status mdp_compare_describe(const mdp_comm *comm, mdp_compare *compare, int64_t batch, int64_t layer,
                                mdp_point *point) {
    const mdp_stats *stats = compare->stats;
    mdp_probe *probe = &compare->probe;
    int64_t *n_number = NULL;
    int section;
    if (probe->n == 0) return mdp_ok();
    MDP_TRY(MDP_ALLOC(&n_number, stats->n_layer, "layers of a resume point"));
    for (int64_t l = 0; l < stats->n_layer; l++) {
        int64_t done = batch + (stats->layers[l].layer < layer); /* batches that the layer has been through */
        if (done > 0 && done < compare->partition->n_batch) n_number[l] = probe->n * compare->model->d_model;
    }
    mdp_status status = mdp_point_add_section(point, "probe-inputs", MDP_F32, stats->n_layer, n_number, 0, &section);
    for (int64_t l = comm->rank; l < stats->n_layer && status.code == MDP_OK; l += comm->size) {
        if (n_number[l] == 0) continue;
        status = mdp_probe_make_room(probe, l);
        if (status.code == MDP_OK) status = mdp_point_add_part(point, section, l, 1, probe->inputs[l]);
    }
    mdp_free(n_number);
    return status;
}
