/* budget.c - how many experts each layer keeps.
 *
 * In: the layers (experts, experts of a token) and what was asked for. Out: a refusal that names the layer, or a number
 * for each layer. What cannot be met is refused before anything is run, so nothing here needs a score, but for the
 * global budget, whose numbers follow from its ranking (choose.c). Formulas: methods.md, section 2. */
#include "mdp/plan.h"

#include <math.h>
#include <stdlib.h>

const char *const mdp_budget_names[] = {
    [MDP_BUDGET_UNIFORM] = "uniform", [MDP_BUDGET_GLOBAL] = "global", [MDP_BUDGET_TRAPEZOID] = "trapezoid",
    [MDP_BUDGET_GRAPE] = "grape",     [MDP_BUDGET_LIST] = "list",     NULL};

#define MAX_COUNT 1000000 /* experts of a layer; bounds what a hand-written number can say */

/* ---- the file of a list budget --------------------------------------------------------------------------------- */

static mdp_status parse_entry(const char *key, const json_t *value, const char *path, mdp_keep_entry *out) {
    char *end = NULL;
    long long layer = strtoll(key, &end, 10);
    if (key[0] < '0' || key[0] > '9' || *end != '\0' || layer > MAX_COUNT)
        return MDP_ERROR(MDP_BAD_INPUT, "%s: '%s' is not the number of a layer.", path, key);
    if (!json_is_integer(value) || json_integer_value(value) < 1 || json_integer_value(value) > MAX_COUNT)
        return MDP_ERROR(MDP_BAD_INPUT, "%s: layer %lld: the number of experts to keep must be an integer from 1 on.",
                         path, layer);
    *out = (mdp_keep_entry){.layer = layer, .keep = (int32_t)json_integer_value(value)};
    return mdp_ok();
}

static int compare_entries(const void *left, const void *right) {
    const mdp_keep_entry *a = left, *b = right;
    return a->layer < b->layer ? -1 : a->layer > b->layer;
}

static mdp_status parse_entries(const json_t *root, const char *path, mdp_keep_entry *list, int64_t *n) {
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)root, key, value) {
        MDP_TRY(parse_entry(key, value, path, &list[*n]));
        (*n)++;
    }
    qsort(list, (size_t)*n, sizeof *list, compare_entries);
    for (int64_t i = 1; i < *n; i++) {
        if (list[i].layer == list[i - 1].layer)
            return MDP_ERROR(MDP_BAD_INPUT, "%s: layer %lld is listed twice.", path, (long long)list[i].layer);
    }
    return mdp_ok();
}

mdp_status mdp_keep_list_parse(const char *text, int64_t n_byte, const char *path, mdp_keep_entry **list, int64_t *n) {
    json_t *root = NULL;
    *list = NULL;
    *n = 0;
    MDP_TRY(mdp_json_parse(text, n_byte, path, &root));
    mdp_status status = mdp_ok();
    if (!json_is_object(root) || json_object_size(root) == 0)
        status = MDP_ERROR(MDP_BAD_INPUT,
                           "%s: must be a JSON object of layers and the number of experts that each keeps, like "
                           "{\"0\": 6, \"1\": 4}.",
                           path);
    if (status.code == MDP_OK) status = MDP_ALLOC(list, (mdp_count_t)json_object_size(root), "the list of a budget");
    if (status.code == MDP_OK) status = parse_entries(root, path, *list, n);
    json_decref(root);
    if (status.code == MDP_OK) return status;
    mdp_free(*list);
    *list = NULL;
    return status;
}

/* ---- what a layer may keep ------------------------------------------------------------------------------------- */

int32_t mdp_budget_unit(const mdp_budget_options *options) {
    int32_t a = options->multiple_of > 0 ? options->multiple_of : 1, b = options->n_group > 0 ? options->n_group : 1;
    int32_t x = a, y = b;
    while (y != 0) {
        int32_t rest = x % y;
        x = y;
        y = rest;
    }
    int64_t unit = (int64_t)a / x * b;
    return unit > MAX_COUNT ? MAX_COUNT : (int32_t)unit; /* more than any layer has: refused there */
}

static int32_t used_by_token(const mdp_budget_layer *layer, const mdp_budget_options *options) {
    return options->top_k > 0 ? options->top_k : layer->top_k;
}

/* Fewest experts with which every token finds those that it uses. */
static int32_t fewest(const mdp_budget_layer *layer, const mdp_budget_options *options) {
    int32_t k = used_by_token(layer, options);
    if (options->n_group <= 1 || options->n_open < 1) return k;
    int32_t each = (k + options->n_open - 1) / options->n_open;
    return options->n_group * (each > 2 ? each : 2);
}

/* Fewest and most experts that a layer may keep, in units. */
static void bounds_of(const mdp_budget_layer *layer, const mdp_budget_options *options, int32_t *low, int32_t *high) {
    int32_t unit = mdp_budget_unit(options), least = fewest(layer, options);
    if (options->min_keep > least) least = options->min_keep;
    *low = (least + unit - 1) / unit * unit;
    *high = layer->n_alive / unit * unit;
}

int32_t mdp_budget_least(const mdp_budget_layer *layer, const mdp_budget_options *options) {
    int32_t low = 0, high = 0;
    bounds_of(layer, options, &low, &high);
    return low;
}

static mdp_status check_layer(const mdp_budget_layer *layer, const mdp_budget_options *options) {
    long long l = (long long)layer->layer;
    int32_t unit = mdp_budget_unit(options), k = used_by_token(layer, options), low = 0, high = 0;
    if (options->top_k > layer->top_k)
        return MDP_ERROR(MDP_USAGE, "layer %lld: --top-k %d is more than the %d experts that each token uses now.", l,
                         (int)options->top_k, (int)layer->top_k);
    if (options->n_group > 1 && layer->n_expert % options->n_group != 0)
        return MDP_ERROR(MDP_USAGE, "layer %lld: %d experts cannot lie in %d groups of equal size (n_group).", l,
                         (int)layer->n_expert, (int)options->n_group);
    bounds_of(layer, options, &low, &high);
    if (low <= high) return mdp_ok();
    if (unit > 1)
        return MDP_ERROR(MDP_USAGE,
                         "layer %lld: no multiple of %d lies between the %d experts that must stay and the %d of the "
                         "layer; use another --keep-multiple-of.",
                         l, (int)unit, (int)(options->min_keep > k ? options->min_keep : k), (int)layer->n_expert);
    return MDP_ERROR(MDP_USAGE, "layer %lld: %d experts must stay, but it has only %d.", l, (int)low,
                     (int)layer->n_expert);
}

/* `keep` of a layer, or on average. */
static mdp_status check_keep(const mdp_budget_layer *layer, int32_t keep, const mdp_budget_options *options) {
    long long l = (long long)layer->layer;
    int32_t unit = mdp_budget_unit(options), k = used_by_token(layer, options), low = 0, high = 0;
    bool spread = mdp_budget_spreads(options->budget);
    if (keep < k)
        return MDP_ERROR(MDP_USAGE,
                         "layer %lld: keeping %d experts is less than the %d that each token uses; keep %d or more.", l,
                         (int)keep, (int)k, (int)k);
    if (keep > layer->n_expert)
        return MDP_ERROR(MDP_USAGE, "layer %lld: %d experts cannot be kept of %d; keep fewer.", l, (int)keep,
                         (int)layer->n_expert);
    if (!spread && keep % unit != 0)
        return MDP_ERROR(MDP_USAGE,
                         "layer %lld: %d experts to keep are not a multiple of %d (--keep-multiple-of, groups).", l,
                         (int)keep, (int)unit);
    if (keep < fewest(layer, options))
        return MDP_ERROR(MDP_USAGE,
                         "layer %lld: keeping %d experts leaves %d to each of the %d groups, of which a token sees %d "
                         "and uses %d experts; each group needs 2 or more, so keep %d or more.",
                         l, (int)keep, (int)(keep / options->n_group), (int)options->n_group, (int)options->n_open,
                         (int)k, (int)fewest(layer, options));
    if (!spread) return mdp_ok();
    if (options->min_keep != 0 && (options->min_keep < k || options->min_keep > keep))
        return MDP_ERROR(MDP_USAGE,
                         "layer %lld: --min-keep %d is not between the %d experts that each token uses and the "
                         "%d that are kept on average.",
                         l, (int)options->min_keep, (int)k, (int)keep);
    bounds_of(layer, options, &low, &high);
    high = layer->n_expert / unit * unit;
    if (keep < low || keep > high)
        return MDP_ERROR(MDP_USAGE,
                         "layer %lld: with multiples of %d it can keep %d to %d experts, not %d on average; use "
                         "another number or another --keep-multiple-of.",
                         l, (int)unit, (int)low, (int)high, (int)keep);
    return mdp_ok();
}

static mdp_status check_list(const mdp_budget_layer *layers, int64_t n_layer, const mdp_budget_options *options) {
    for (int64_t i = 0; i < n_layer || i < options->n_list; i++) {
        if (i >= options->n_list || (i < n_layer && layers[i].layer < options->list[i].layer))
            return MDP_ERROR(MDP_USAGE, "layer %lld has experts, but --keep-file does not say how many it keeps.",
                             (long long)layers[i].layer);
        if (i >= n_layer || layers[i].layer > options->list[i].layer)
            return MDP_ERROR(MDP_USAGE, "layer %lld is in --keep-file, but has no experts in the model.",
                             (long long)options->list[i].layer);
        MDP_TRY(check_keep(&layers[i], options->list[i].keep, options));
    }
    return mdp_ok();
}

mdp_status mdp_budget_check(const mdp_budget_layer *layers, int64_t n_layer, const mdp_budget_options *options) {
    for (int64_t i = 0; i < n_layer; i++) {
        if (options->budget != MDP_BUDGET_LIST) MDP_TRY(check_keep(&layers[i], options->keep, options));
        MDP_TRY(check_layer(&layers[i], options));
    }
    return options->budget == MDP_BUDGET_LIST ? check_list(layers, n_layer, options) : mdp_ok();
}

/* ---- rounds ----------------------------------------------------------------------------------------------------- */

/* What is left of n experts when round / n_round of those beyond `keep` are gone, as a multiple of unit. */
static int64_t left_after(int64_t n, int64_t keep, int64_t round, int64_t n_round, int32_t unit) {
    int64_t left = n - ((n - keep) * round * 2 + n_round) / (2 * n_round);
    left = (left + unit / 2) / unit * unit;
    int64_t most = n / unit * unit;
    if (left > most) left = most;
    return left < keep ? keep : left;
}

/* Of layers that change by shares of their own: the one with most to remove, one unit a round. Budgets that spread an
 * average over layers change it by one. */
int64_t mdp_budget_rounds(const mdp_budget_layer *layers, int64_t n_layer, const mdp_budget_options *options,
                          int64_t n_round) {
    bool spread = mdp_budget_spreads(options->budget);
    int32_t unit = spread ? 1 : mdp_budget_unit(options), smallest = INT32_MAX;
    int64_t most = 1;
    for (int64_t i = 0; i < n_layer; i++) {
        int32_t keep = options->budget == MDP_BUDGET_LIST ? options->list[i].keep : options->keep;
        int64_t n_step = ((int64_t)layers[i].n_expert - keep + unit - 1) / unit;
        if (layers[i].n_expert < smallest) smallest = layers[i].n_expert;
        if (!spread && n_step > most) most = n_step;
    }
    if (spread && smallest - options->keep > most) most = smallest - options->keep;
    return n_round < most ? n_round : most;
}

mdp_budget_options mdp_budget_of_round(const mdp_budget_layer *layers, int64_t n_layer,
                                       const mdp_budget_options *options, int64_t round, int64_t n_round,
                                       mdp_keep_entry *list) {
    mdp_budget_options out = *options;
    int32_t unit = mdp_budget_unit(options), smallest = INT32_MAX;
    if (round >= n_round) return out;
    for (int64_t i = 0; i < n_layer; i++) smallest = layers[i].n_expert < smallest ? layers[i].n_expert : smallest;
    if (mdp_budget_spreads(options->budget)) {
        out.keep = (int32_t)left_after(smallest, options->keep, round, n_round, 1);
        if (out.keep > smallest / unit * unit) out.keep = smallest / unit * unit;
        return out;
    }
    for (int64_t i = 0; i < n_layer; i++) {
        int32_t keep = options->budget == MDP_BUDGET_LIST ? options->list[i].keep : options->keep;
        list[i] =
            (mdp_keep_entry){layers[i].layer, (int32_t)left_after(layers[i].n_expert, keep, round, n_round, unit)};
    }
    out.budget = MDP_BUDGET_LIST;
    out.list = list;
    out.n_list = n_layer;
    return out;
}

/* ---- numbers --------------------------------------------------------------------------------------------------- */

/* A layer's share while it is turned into a count. */
typedef struct portion {
    double share;
    int32_t low, high, count; /* multiples of the unit */
} portion;

/* Of the layers that can take one more unit (or, when `fewer`, give one): the one that misses most of its share (has
 * most beyond it). Of equal ones the lower layer takes, and the higher gives. -1: none. */
static int64_t next_to_change(const portion *all, int64_t n, int32_t unit, bool fewer) {
    int64_t best = -1;
    double most = 0.0;
    for (int64_t i = 0; i < n; i++) {
        if (fewer ? all[i].count - unit < all[i].low : all[i].count + unit > all[i].high) continue;
        double missing = mdp_round30(fewer ? all[i].count - all[i].share : all[i].share - all[i].count);
        if (best >= 0 && (fewer ? missing < most : missing <= most)) continue;
        best = i;
        most = missing;
    }
    return best;
}

/* Largest remainder: whole units below the shares, then single units until the sum is `total`, a multiple of unit
 * between the sums of low and high. */
static void round_shares(portion *all, int64_t n, int32_t unit, int64_t total) {
    for (int64_t i = 0; i < n; i++) {
        double units = floor(mdp_round30(all[i].share / unit));
        all[i].count = (int32_t)fmin(fmax(units * unit, all[i].low), all[i].high);
        total -= all[i].count;
    }
    while (total != 0) {
        int64_t i = next_to_change(all, n, unit, total < 0);
        if (i < 0) return;
        all[i].count += total < 0 ? -unit : unit;
        total += total < 0 ? unit : -unit;
    }
}

static double trapezoid_share(const portion *layer, int64_t l, int64_t n, double c) {
    double share = c * (1.0 + (double)l / (double)(n > 1 ? n - 1 : 1));
    return fmin(fmax(share, layer->low), layer->high);
}

/* clamp(c (1 + l / (L - 1)), low, high), with the c that makes the sum `total`: the sum grows with c, so it is found by
 * halving an interval until no number lies between its ends (TENP, arXiv 2606.09885). */
static void trapezoid_shares(portion *all, int64_t n, int64_t total) {
    double low = 0.0, high = 0.0;
    for (int64_t i = 0; i < n; i++) high = fmax(high, all[i].high);
    for (int step = 0; step < 200; step++) {
        double middle = low + 0.5 * (high - low), sum = 0.0;
        for (int64_t i = 0; i < n; i++) sum += trapezoid_share(&all[i], i, n, middle);
        if (sum < (double)total)
            low = middle;
        else
            high = middle;
    }
    for (int64_t i = 0; i < n; i++) all[i].share = trapezoid_share(&all[i], i, n, high);
}

static void spread(const mdp_budget_options *options, portion *all, int64_t n, const int32_t *ranked) {
    int32_t unit = mdp_budget_unit(options);
    int64_t total = (n * options->keep + unit / 2) / unit * unit;
    for (int64_t i = 0; i < n; i++) all[i].share = options->budget == MDP_BUDGET_GRAPE ? options->keep : ranked[i];
    if (options->budget == MDP_BUDGET_TRAPEZOID) trapezoid_shares(all, n, total);
    round_shares(all, n, unit, total);
}

mdp_status mdp_budget_counts(const mdp_budget_layer *layers, int64_t n_layer, const mdp_budget_options *options,
                             int32_t *count) {
    if (options->budget == MDP_BUDGET_UNIFORM || options->budget == MDP_BUDGET_LIST) {
        for (int64_t i = 0; i < n_layer; i++)
            count[i] = options->budget == MDP_BUDGET_LIST ? options->list[i].keep : options->keep;
        return mdp_ok();
    }
    portion *all = NULL;
    MDP_TRY(MDP_ALLOC(&all, n_layer, "the budgets of layers"));
    for (int64_t i = 0; i < n_layer; i++) bounds_of(&layers[i], options, &all[i].low, &all[i].high);
    spread(options, all, n_layer, count);
    for (int64_t i = 0; i < n_layer; i++) count[i] = all[i].count;
    mdp_free(all);
    return mdp_ok();
}
