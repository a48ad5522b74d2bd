/* collect.c - from tiles and tokens to sums.
 *
 * In: tiles, while they are in cache, and tokens, after their router and after the combine. A tile's contribution to a
 * (statistic, category, expert) is one f64 partial, added over its rows in row order, then rounded once to the grid of
 * the exact sums; a token's contribution is a partial of its own. Limbs are integers and maxima have no order, so
 * neither the order of tiles nor the thread or rank that had them can show in the result.
 *
 * A vector sum has d_model elements for each expert: a rank collects those of one layer and hands them to the layer's
 * keeper, rank (index of the layer) modulo (number of ranks), so that no rank holds them all. */
#include "observe/compare.h"
#include "observe/neurons.h"

#include <math.h>
#include <string.h>

#define RUN 16 /* rows of a tile at a time */

/* How a family turns logits into p, without knowing the family. */
typedef struct layer_rule {
    mdp_layer_stats *stats; /* NULL: a layer without experts */
    int64_t index;          /* in stats->layers */
    bool sigmoid;
    bool finished;
} layer_rule;

struct mdp_collector {
    mdp_stats *stats;
    int64_t n_layer;                      /* of the model */
    layer_rule *layers;                   /* [n_layer] */
    mdp_short_sum *vectors[MDP_N_VECTOR]; /* [most experts of a layer, width] of the layer in the making; NULL: not
                                           * wanted */
    mdp_compare compare;
    const int32_t *category; /* of this rank's tokens; borrowed from the engine */
    const mdp_view *view;    /* NULL: the model as it is; borrowed */
    mdp_status failed;       /* first failure of an observer that cannot return one */
};

/* ---- life ---------------------------------------------------------------------------------------------------- */

/* Sums of a vector of a layer. */
static int64_t count_sums(const mdp_stats *stats, const mdp_layer_stats *layer, mdp_vector_id id) {
    return layer->n_expert * mdp_vector_width(id, layer->n_expert, stats->d_model, layer->d_ff);
}

static mdp_status fill_new(const mdp_collecting *with, mdp_stats *stats, mdp_collector *collector) {
    const mdp_model *model = with->model;
    int64_t n = 0;
    collector->stats = stats;
    collector->n_layer = model->n_layer;
    collector->failed = mdp_ok();
    MDP_TRY(mdp_compare_begin(with, stats, &collector->compare));
    MDP_TRY(MDP_ALLOC(&collector->layers, model->n_layer, "statistics"));
    for (int64_t l = 0; l < model->n_layer; l++) {
        if (!model->layers[l].is_moe) continue;
        const mdp_moe *moe = &model->layers[l].moe;
        collector->layers[l] =
            (layer_rule){.stats = &stats->layers[n], .index = n, .sigmoid = moe->rule.score == MDP_SIGMOID};
        n++;
    }
    for (int i = 0; i < MDP_N_VECTOR; i++) {
        mdp_vector_id id = (mdp_vector_id)i;
        int64_t most = 0;
        for (int64_t l = 0; l < n; l++) most = mdp_larger(most, count_sums(stats, &stats->layers[l], id));
        if (mdp_compare_wants(&collector->compare, id))
            MDP_TRY(MDP_ALLOC(&collector->vectors[id], most, "vectors of experts"));
    }
    return mdp_ok();
}

mdp_status mdp_collector_new(const mdp_collecting *with, mdp_stats *stats, mdp_collector **out) {
    mdp_collector *collector = NULL;
    *out = NULL;
    MDP_TRY(MDP_ALLOC(&collector, 1, "the collector of statistics"));
    mdp_status status = fill_new(with, stats, collector);
    if (status.code != MDP_OK) {
        mdp_collector_destroy(collector);
        return status;
    }
    *out = collector;
    return status;
}

void mdp_collector_destroy(mdp_collector *collector) {
    if (!collector) return;
    mdp_free(collector->layers);
    for (int id = 0; id < MDP_N_VECTOR; id++) mdp_free(collector->vectors[id]);
    mdp_compare_clear(&collector->compare);
    mdp_free(collector);
}

void mdp_collector_use_view(mdp_collector *collector, const mdp_view *view) {
    collector->view = view;
}

/* Number in the model of an expert that is numbered in the view. */
static mdp_expert_t number_in_model(const mdp_collector *collector, int64_t layer, mdp_expert_t expert) {
    const mdp_layer_view *seen = collector->view ? &collector->view->layers[layer] : NULL;
    return seen && seen->n_expert > 0 ? seen->source[expert] : expert;
}

void mdp_collector_cut(mdp_collector *collector, const mdp_partition *partition) {
    collector->compare.partition = partition;
}

mdp_status mdp_collector_begin_batch(mdp_collector *collector, const mdp_engine *engine) {
    collector->category = mdp_engine_batch(engine)->category;
    return mdp_compare_begin_batch(&collector->compare, engine);
}

/* ---- adding -------------------------------------------------------------------------------------------------- */

/* Raise the maximum at `at` of a layer to value. */
static void raise_max(const mdp_layer_stats *layer, int64_t at, double value) {
    double *shared = &layer->maxima[at], seen;
    __atomic_load(shared, &seen, __ATOMIC_RELAXED);
    while (value > seen &&
           !__atomic_compare_exchange(shared, &seen, &value, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
    }
}

static mdp_status not_finite(const mdp_stats *stats, int64_t layer, mdp_expert_t expert, const char *what, int category,
                             double value) {
    return MDP_ERROR(MDP_BAD_INPUT,
                     "layer %lld, expert %d: %s over tokens of '%s' is %g; weights or activations are not finite, or "
                     "far too large.",
                     (long long)layer, (int)expert, what, stats->category[category], value);
}

static mdp_status add_sum(const mdp_stats *stats, const mdp_layer_stats *layer, mdp_statistic_id id, int32_t category,
                          mdp_expert_t expert, double partial) {
    int64_t at = ((int64_t)id * stats->n_category + category) * layer->n_expert + expert;
    if (mdp_exact_add(&layer->sums[at], partial)) return mdp_ok();
    return not_finite(stats, layer->layer, expert, mdp_statistics[id].name, category, partial);
}

/* ---- tiles --------------------------------------------------------------------------------------------------- */

/* cos(a, b) from the sums of squares and products; 0 when one of the two is 0. */
static double cosine(double product, double square_a, double square_b) {
    double length = sqrt(square_a) * sqrt(square_b);
    return length > 0.0 ? product / length : 0.0;
}

/* Sums of a tile that are taken over its rows. */
static const mdp_statistic_id tile_sums[] = {MDP_GATE_SUM, MDP_NORM_SUM, MDP_GATE_NORM_SUM, MDP_NORM2_SUM,
                                             MDP_TURN_SUM};

static void add_row(const mdp_tile *tile, int32_t row, double partial[MDP_N_STATISTIC]) {
    const float *x = tile->x + row * tile->d_model, *y = tile->y + row * tile->d_model;
    double gate = (double)tile->gate[row], weight = tile->weighed ? 1.0 : gate; /* of y */
    mdp_moments sums = mdp_row_moments(x, y, tile->d_model);
    double norm = sqrt(sums.yy), turn = 1.0 - cosine(sums.xy, sums.xx, sums.yy);
    partial[MDP_GATE_SUM] += gate;
    partial[MDP_NORM_SUM] += norm;
    partial[MDP_GATE_NORM_SUM] += weight * norm;
    partial[MDP_NORM2_SUM] += sums.yy;
    partial[MDP_TURN_SUM] += weight * norm * turn;
    if ((double)sums.max_abs_y > partial[MDP_MAX_ABS]) partial[MDP_MAX_ABS] = (double)sums.max_abs_y;
}

/* Add the partials of one category of the tile. */
static mdp_status add_category(const mdp_stats *stats, const mdp_layer_stats *layer, const mdp_tile *tile,
                               int32_t category, int64_t count, const double partial[MDP_N_STATISTIC]) {
    int64_t at = (int64_t)category * layer->n_expert + tile->expert;
    __atomic_fetch_add(&layer->counts[at], count, __ATOMIC_RELAXED);
    raise_max(layer, at, partial[MDP_MAX_ABS]);
    for (size_t i = 0; i < sizeof tile_sums / sizeof tile_sums[0]; i++)
        MDP_TRY(add_sum(stats, layer, tile_sums[i], category, tile->expert, partial[tile_sums[i]]));
    return mdp_ok();
}

/* Add column sums of the tile to a vector of its expert; a partial is one column [n] of the tile. Rows of the vector
 * have `width` elements, experts may be narrower. */
static mdp_status add_columns(const mdp_collector *collector, const mdp_tile *tile, mdp_vector_id id, int64_t n,
                              const double *column) {
    const mdp_layer_stats *layer = collector->layers[tile->layer].stats;
    int64_t width = mdp_vector_width(id, layer->n_expert, tile->d_model, layer->d_ff);
    mdp_short_sum *out = collector->vectors[id] + tile->expert * width;
    for (int64_t j = 0; j < n; j++) {
        if (!mdp_short_add(&out[j], column[j]))
            return not_finite(collector->stats, tile->layer, tile->expert, mdp_vectors[id].name, tile->category[0],
                              column[j]);
    }
    return mdp_ok();
}

/* Squares of what the expert's matrices read, each row times its weight where the vector wants it; weighed inputs have
 * it already. column: scratch for the wider of x and h. */
static mdp_status add_squares(const mdp_collector *collector, const mdp_tile *tile, double *column) {
    static const struct {
        mdp_vector_id id;
        bool gated, hidden;
    } rows[] = {{MDP_GATED_INPUT_SQUARE, true, false},
                {MDP_GATED_HIDDEN_SQUARE, true, true},
                {MDP_INPUT_SQUARE, false, false},
                {MDP_HIDDEN_SQUARE, false, true}};
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        int64_t n = rows[i].hidden ? tile->d_ff : tile->d_model;
        if (!collector->vectors[rows[i].id]) continue;
        memset(column, 0, (size_t)n * sizeof *column);
        mdp_add_squares(rows[i].hidden ? tile->h : tile->x, n, rows[i].gated && !tile->weighed ? tile->gate : NULL,
                        tile->n_row, column);
        MDP_TRY(add_columns(collector, tile, rows[i].id, n, column));
    }
    return mdp_ok();
}

/* Rows first .. end-1, of one category, in runs that stay in cache between the sums over a row and over columns. */
static void add_rows(const mdp_tile *tile, int32_t first, int32_t end, double partial[MDP_N_STATISTIC],
                     double *column) {
    for (int32_t row = first; row < end; row += RUN) {
        int32_t n = end - row < RUN ? end - row : RUN;
        for (int32_t i = row; i < row + n; i++) add_row(tile, i, partial);
        mdp_add_rows(tile->y + row * tile->d_model, tile->d_model, n, tile->d_model, column);
    }
}

/* The same of outputs times their weights, where they are wanted. */
static mdp_status add_gated_outputs(const mdp_collector *collector, const mdp_tile *tile, double *column) {
    int64_t d = tile->d_model;
    if (!collector->vectors[MDP_GATED_OUTPUT_SUM]) return mdp_ok();
    memset(column, 0, (size_t)d * sizeof *column);
    for (int32_t row = 0; row < tile->n_row; row++) {
        double weight = tile->weighed ? 1.0 : (double)tile->gate[row];
        for (int64_t j = 0; j < d; j++) column[j] += weight * (double)tile->y[row * d + j];
    }
    return add_columns(collector, tile, MDP_GATED_OUTPUT_SUM, d, column);
}

static mdp_status observe_tile(void *context, const mdp_tile *tile) {
    const mdp_collector *collector = context;
    const mdp_layer_stats *layer = collector->layers[tile->layer].stats;
    double *column = NULL; /* [d_model], and for channel norms [d_ff] */
    mdp_status status = MDP_ALLOC(&column, mdp_larger(tile->d_model, tile->d_ff), "sums of expert outputs");
    /* rows of one category are adjacent, because tokens are in category order */
    for (int32_t first = 0, end; first < tile->n_row && status.code == MDP_OK; first = end) {
        double partial[MDP_N_STATISTIC] = {0};
        for (end = first; end < tile->n_row && tile->category[end] == tile->category[first];) end++;
        add_rows(tile, first, end, partial, column);
        status = add_category(collector->stats, layer, tile, tile->category[first], end - first, partial);
    }
    if (status.code == MDP_OK) status = add_columns(collector, tile, MDP_OUTPUT_SUM, tile->d_model, column);
    if (status.code == MDP_OK) status = add_gated_outputs(collector, tile, column);
    if (status.code == MDP_OK) status = add_squares(collector, tile, column);
    mdp_free(column);
    if (status.code == MDP_OK && tile->projected) status = mdp_neurons_add(collector->stats, tile, collector->vectors);
    return status;
}

/* ---- tokens -------------------------------------------------------------------------------------------------- */

/* Observers of tokens return nothing; what fails is kept until the layer is done. */
static void note_failure(mdp_collector *collector, const mdp_status *status) {
#pragma omp critical(mdp_collect)
    if (collector->failed.code == MDP_OK) collector->failed = *status;
}

/* p over all experts, without the choice among them. */
static void find_probabilities(const layer_rule *rule, const mdp_routed_token *token, double *p) {
    double top = token->logits[0], all = 0.0;
    for (int32_t e = 1; e < token->n_expert; e++) top = token->logits[e] > top ? token->logits[e] : top;
    for (int32_t e = 0; e < token->n_expert; e++) {
        p[e] = rule->sigmoid ? 1.0 / (1.0 + exp(-token->logits[e])) : exp(token->logits[e] - top);
        all += p[e];
    }
    for (int32_t e = 0; !rule->sigmoid && e < token->n_expert; e++) p[e] /= all;
}

static mdp_status add_probabilities(const mdp_collector *collector, const mdp_routed_token *token) {
    const layer_rule *rule = &collector->layers[token->layer];
    int32_t category = collector->category[token->local];
    double *p = token->scratch;
    find_probabilities(rule, token, p);
    for (mdp_expert_t e = 0; e < token->n_expert; e++)
        MDP_TRY(add_sum(collector->stats, rule->stats, MDP_ALL_P_SUM, category,
                        number_in_model(collector, token->layer, e), p[e]));
    for (int32_t j = 0; j < token->top_k; j++)
        MDP_TRY(add_sum(collector->stats, rule->stats, MDP_ROUTED_P_SUM, category,
                        number_in_model(collector, token->layer, token->index[j]), p[token->index[j]]));
    return mdp_ok();
}

static void observe_routed(void *context, const mdp_routed_token *token) {
    const mdp_collector *collector = context;
    mdp_compare_routed(&collector->compare, token, collector->vectors);
    mdp_status status = add_probabilities(context, token);
    if (status.code != MDP_OK) note_failure(context, &status);
}

static mdp_status add_shift(const mdp_collector *collector, const mdp_combined_token *token) {
    const mdp_layer_stats *layer = collector->layers[token->layer].stats;
    int64_t d = collector->stats->d_model;
    int32_t category = collector->category[token->local];
    mdp_moments sums = mdp_row_moments(token->residual, token->routed, d);
    double scale = (double)token->scale, before = sums.xx;
    double routed = scale * scale * sums.yy, product = scale * sums.xy;
    double shift = 1.0 - cosine(before + product, before, fmax(before + 2.0 * product + routed, 0.0));
    if (shift < 0.0) shift = 0.0;
    for (int32_t j = 0; j < token->top_k; j++) {
        double norm = sqrt(mdp_sum_squares(token->y + j * d, d));
        MDP_TRY(add_sum(collector->stats, layer, MDP_SHIFT_SUM, category,
                        number_in_model(collector, token->layer, token->index[j]),
                        (token->weighed ? 1.0 : (double)token->weight[j]) * norm * shift));
    }
    return mdp_ok();
}

static void observe_combined(void *context, const mdp_combined_token *token) {
    mdp_status status = add_shift(context, token);
    if (status.code != MDP_OK) note_failure(context, &status);
}

mdp_observers mdp_collector_observers(mdp_collector *collector) {
    return (mdp_observers){
        .tile = observe_tile, .routed = observe_routed, .combined = observe_combined, .context = collector};
}

/* ---- over ranks ---------------------------------------------------------------------------------------------- */

static int keeper_of(const mdp_comm *comm, int64_t layer_index) {
    return (int)(layer_index % comm->size);
}

static mdp_status make_room(const mdp_stats *stats, mdp_layer_stats *layer, mdp_vector_id id) {
    if (layer->vectors[id]) return mdp_ok();
    return MDP_ALLOC(&layer->vectors[id], count_sums(stats, layer, id), "vectors of experts");
}

/* The layer's keeper adds what all ranks collected; of square vectors the lower triangle. */
static mdp_status keep_vector(const mdp_collector *collector, mdp_layer_stats *layer, mdp_vector_id id) {
    int64_t n = count_sums(collector->stats, layer, id), width = n / layer->n_expert;
    MDP_TRY(make_room(collector->stats, layer, id));
    mdp_short_sum *kept = layer->vectors[id];
    for (int64_t i = 0; i < n; i++) {
        for (int j = 0; j < MDP_SHORT_LIMBS; j++) kept[i].limb[j] += collector->vectors[id][i].limb[j];
        mdp_short_normalise(&kept[i]);
    }
    for (int64_t i = 0; mdp_vectors[id].span == MDP_SPAN_EXPERTS && i < width; i++)
        for (int64_t j = 0; j < i; j++) kept[j * width + i] = kept[i * width + j];
    return mdp_ok();
}

/* What all ranks collected of a vector of a layer goes to its keeper. Collective. */
static mdp_status collect_vector_all(const mdp_comm *comm, const mdp_collector *collector, const layer_rule *rule,
                                     mdp_vector_id id) {
    mdp_short_sum *own = collector->vectors[id];
    int64_t n = count_sums(collector->stats, rule->stats, id);
    int keeper = keeper_of(comm, rule->index);
    for (int64_t i = 0; i < n; i++) mdp_short_normalise(&own[i]);
    MDP_TRY(mdp_sum_i64_to_root_all(comm, &own[0].limb[0], n * MDP_SHORT_LIMBS, keeper));
    mdp_status status = mdp_ok();
    if (comm->rank == keeper) status = keep_vector(collector, rule->stats, id);
    memset(own, 0, (size_t)n * sizeof *own);
    return mdp_agree_all(comm, status);
}

mdp_status mdp_collector_layer_all(const mdp_comm *comm, mdp_collector *collector, int64_t layer) {
    const layer_rule *rule = &collector->layers[layer];
    if (!rule->stats) return mdp_ok();
    MDP_AGREE(comm, collector->failed);
    MDP_TRY(mdp_compare_layer_all(comm, &collector->compare, layer, rule->index, keeper_of(comm, rule->index),
                                  collector->vectors));
    for (int id = 0; id < MDP_N_VECTOR; id++) {
        bool due = collector->vectors[id] && (!mdp_vectors[id].late || mdp_compare_is_last(&collector->compare));
        if (due) MDP_TRY(collect_vector_all(comm, collector, rule, (mdp_vector_id)id));
    }
    return mdp_ok();
}

/* Bring a layer's complete sums to normal form; a sum beyond the grid is named. */
static mdp_status normalise_layer(const mdp_stats *stats, mdp_layer_stats *layer) {
    int64_t n = (int64_t)stats->n_category * layer->n_expert;
    for (int64_t i = 0; i < n * MDP_N_SUM; i++) {
        if (!mdp_exact_fits(&layer->sums[i])) {
            return MDP_ERROR(MDP_BAD_INPUT,
                             "layer %lld, expert %lld: %s over tokens of '%s' exceeds 2^159; activations are "
                             "far too large.",
                             (long long)layer->layer, (long long)(i % layer->n_expert), mdp_statistics[i / n].name,
                             stats->category[i % n / layer->n_expert]);
        }
        mdp_exact_normalise(&layer->sums[i]);
    }
    return mdp_ok();
}

/* Largest over ranks: doubles that are not negative are ordered like their bits. */
static mdp_status raise_all(const mdp_comm *comm, double *value, int64_t n) {
    return mdp_max_i64_all(comm, (int64_t *)(void *)value, n);
}

bool mdp_collector_sees(const mdp_collector *collector, int64_t layer) {
    return collector->layers[layer].stats != NULL;
}

/* All ranks' sums of a layer to one rank, which adds them to its own; nothing is left elsewhere. */
static mdp_status gather_layer_all(const mdp_comm *comm, const mdp_stats *stats, mdp_layer_stats *layer, int root) {
    int64_t n = (int64_t)stats->n_category * layer->n_expert;
    for (int64_t i = 0; i < n * MDP_N_SUM; i++) mdp_exact_normalise(&layer->sums[i]);
    MDP_TRY(mdp_sum_i64_to_root_all(comm, layer->counts, n, root));
    MDP_TRY(mdp_sum_i64_to_root_all(comm, &layer->sums[0].limb[0], n * MDP_N_SUM * MDP_LIMBS, root));
    MDP_TRY(raise_all(comm, layer->maxima, n * MDP_N_MAX));
    if (comm->rank == root) return mdp_ok();
    memset(layer->counts, 0, (size_t)n * sizeof *layer->counts);
    memset(layer->sums, 0, (size_t)(n * MDP_N_SUM) * sizeof *layer->sums);
    return mdp_ok();
}

mdp_status mdp_collector_finish_layer_all(const mdp_comm *comm, mdp_collector *collector, int64_t layer) {
    layer_rule *rule = &collector->layers[layer];
    mdp_status status = mdp_ok();
    MDP_TRY(gather_layer_all(comm, collector->stats, rule->stats, 0));
    if (comm->rank == 0) status = normalise_layer(collector->stats, rule->stats);
    rule->finished = true;
    return mdp_agree_all(comm, status);
}

mdp_status mdp_collector_finish_all(const mdp_comm *comm, mdp_collector *collector) {
    for (int64_t l = 0; l < collector->n_layer; l++) {
        if (collector->layers[l].stats && !collector->layers[l].finished)
            MDP_TRY(mdp_collector_finish_layer_all(comm, collector, l));
    }
    return mdp_ok();
}

/* ---- resume points ------------------------------------------------------------------------------------------- */

/* Who has a layer's sums of scalars once they are gathered. */
static int owner_of(const mdp_comm *comm, const layer_rule *rule) {
    return rule->finished ? 0 : keeper_of(comm, rule->index);
}

mdp_status mdp_collector_gather_all(const mdp_comm *comm, mdp_collector *collector) {
    for (int64_t l = 0; l < collector->n_layer; l++) {
        const layer_rule *rule = &collector->layers[l];
        if (rule->stats) MDP_TRY(gather_layer_all(comm, collector->stats, rule->stats, owner_of(comm, rule)));
    }
    return mdp_ok();
}

/* A section of `each` numbers for every expert and category, whose memory in a layer is `of` it. */
static mdp_status describe_scalars(const mdp_comm *comm, const mdp_collector *collector, const char *name,
                                   mdp_dtype type, int64_t each, void *(*of)(const mdp_layer_stats *layer),
                                   mdp_point *point) {
    const mdp_stats *stats = collector->stats;
    int64_t *n_number = NULL;
    int section;
    MDP_TRY(MDP_ALLOC(&n_number, stats->n_layer, "layers of a resume point"));
    for (int64_t l = 0; l < stats->n_layer; l++) n_number[l] = stats->layers[l].n_expert * stats->n_category * each;
    mdp_status status = mdp_point_add_section(point, name, type, stats->n_layer, n_number, 0, &section);
    for (int64_t l = 0; l < collector->n_layer && status.code == MDP_OK; l++) {
        const layer_rule *rule = &collector->layers[l];
        if (rule->stats && comm->rank == owner_of(comm, rule))
            status = mdp_point_add_part(point, section, rule->index, 1, of(rule->stats));
    }
    mdp_free(n_number);
    return status;
}

static void *counts_of(const mdp_layer_stats *layer) {
    return layer->counts;
}

static void *sums_of(const mdp_layer_stats *layer) {
    return layer->sums;
}

static void *maxima_of(const mdp_layer_stats *layer) {
    return layer->maxima;
}

/* n_layer: layers of the model that have the vector. */
static mdp_status describe_vector(const mdp_comm *comm, const mdp_stats *stats, mdp_vector_id id, int64_t n_layer,
                                  mdp_point *point) {
    int64_t *n_number = NULL;
    int section;
    MDP_TRY(MDP_ALLOC(&n_number, stats->n_layer, "layers of a resume point"));
    for (int64_t l = 0; l < stats->n_layer && stats->layers[l].layer < n_layer; l++)
        n_number[l] = count_sums(stats, &stats->layers[l], id) * MDP_SHORT_LIMBS;
    mdp_status status =
        mdp_point_add_section(point, mdp_vectors[id].name, MDP_I64, stats->n_layer, n_number, 0, &section);
    for (int64_t l = comm->rank; l < stats->n_layer && status.code == MDP_OK; l += comm->size) {
        if (n_number[l] == 0) continue;
        status = make_room(stats, &stats->layers[l], id);
        if (status.code == MDP_OK) status = mdp_point_add_part(point, section, l, 1, stats->layers[l].vectors[id]);
    }
    mdp_free(n_number);
    return status;
}

mdp_status mdp_collector_describe(const mdp_comm *comm, mdp_collector *collector, int64_t batch, int64_t layer,
                                  mdp_point *point) {
    int64_t n_early = batch > 0 ? INT64_MAX : layer; /* layers that a batch has been through, and */
    int64_t last = collector->compare.partition->n_batch - 1, n_late = batch > last    ? INT64_MAX
                                                                       : batch == last ? layer
                                                                                       : 0;
    const mdp_stats *stats = collector->stats;
    MDP_TRY(describe_scalars(comm, collector, "counts", MDP_I64, 1, counts_of, point));
    MDP_TRY(describe_scalars(comm, collector, "sums", MDP_I64, MDP_N_SUM * MDP_LIMBS, sums_of, point));
    MDP_TRY(describe_scalars(comm, collector, "maxima", MDP_F64, MDP_N_MAX, maxima_of, point));
    for (int id = 0; id < MDP_N_VECTOR; id++)
        if (collector->vectors[id])
            MDP_TRY(describe_vector(comm, stats, (mdp_vector_id)id, mdp_vectors[id].late ? n_late : n_early, point));
    return mdp_compare_describe(comm, &collector->compare, batch, layer, point);
}
