/* join.c - statistics of several texts as those of one: `plan --stats a.h5 --stats b.h5`.
 *
 * Sums and maxima of equally named categories are merged, exactly. With weights that are not all 1 the categories of
 * each file stay apart, each with its file's weight, since a limb cannot be multiplied by a fraction; only vectors,
 * which know no categories, are weighed here, element by element, rounded to their grid once more.
 * Refuses files of different models. */
#include "mdp/observe.h"

#include <stdlib.h>
#include <string.h>

/* A category of one file. */
typedef struct source {
    const char *name;
    int file, category;
    int place; /* in the result */
} source;

static int compare_sources(const void *left, const void *right) {
    const source *a = left, *b = right;
    int order = strcmp(a->name, b->name);
    return order ? order : a->file - b->file;
}

/* ---- checks -------------------------------------------------------------------------------------------------- */

static mdp_status check_same(const mdp_stats *first, const mdp_stats *other, const char *first_path, const char *path) {
    if (strcmp(first->model_fingerprint, other->model_fingerprint) != 0 ||
        strcmp(first->model_type, other->model_type) != 0)
        return MDP_ERROR(MDP_BAD_INPUT,
                         "%s: these statistics are of a %s with fingerprint %s, those of %s of a %s with fingerprint "
                         "%s; only statistics of one model can be added.",
                         path, other->model_type, other->model_fingerprint, first_path, first->model_type,
                         first->model_fingerprint);
    bool same = first->n_layer == other->n_layer && first->d_model == other->d_model;
    for (int64_t l = 0; same && l < first->n_layer; l++)
        same = first->layers[l].layer == other->layers[l].layer &&
               first->layers[l].n_expert == other->layers[l].n_expert &&
               first->layers[l].top_k == other->layers[l].top_k &&
               first->layers[l].n_group == other->layers[l].n_group &&
               first->layers[l].n_open == other->layers[l].n_open &&
               (first->layers[l].d_ff == other->layers[l].d_ff || first->layers[l].d_ff == 0 ||
                other->layers[l].d_ff == 0);
    if (same && first->pruned_inputs != other->pruned_inputs)
        return MDP_ERROR(MDP_BAD_INPUT,
                         "%s: these statistics are of %s inputs, those of %s are not; they cannot be added.", path,
                         other->pruned_inputs ? "pruned" : "original", first_path);
    if (same) return mdp_ok();
    return MDP_ERROR(MDP_BAD_INPUT, "%s: its layers are not those of %s, although the model is; the file is damaged.",
                     path, first_path);
}

/* ---- categories ---------------------------------------------------------------------------------------------- */

/* List the categories of all files by name and give each its place in the result. */
static mdp_status list_sources(mdp_stats *const *all, int n, bool apart, source **out, int *n_source, int *n_place) {
    *n_source = 0;
    for (int f = 0; f < n; f++) *n_source += all[f]->n_category;
    MDP_TRY(MDP_ALLOC(out, *n_source, "categories"));
    source *at = *out;
    for (int f = 0; f < n; f++) {
        for (int c = 0; c < all[f]->n_category; c++)
            *at++ = (source){.name = all[f]->category[c], .file = f, .category = c};
    }
    qsort(*out, (size_t)*n_source, sizeof **out, compare_sources);
    *n_place = 0;
    for (int i = 0; i < *n_source; i++) {
        bool joins = i > 0 && !apart && strcmp((*out)[i].name, (*out)[i - 1].name) == 0;
        (*out)[i].place = joins ? *n_place - 1 : (*n_place)++;
    }
    return mdp_ok();
}

static mdp_status name_categories(mdp_stats *const *all, const double *weight, bool apart, const source *sources,
                                  int n_source, int n_place, mdp_stats *out) {
    MDP_TRY(MDP_ALLOC(&out->category, n_place, "categories"));
    MDP_TRY(MDP_ALLOC(&out->category_token, n_place, "categories"));
    if (apart) MDP_TRY(MDP_ALLOC(&out->category_weight, n_place, "categories"));
    out->n_category = n_place;
    for (int i = 0; i < n_source; i++) {
        const source *from = &sources[i];
        if (!out->category[from->place]) MDP_TRY(mdp_copy_text(&out->category[from->place], from->name));
        out->category_token[from->place] += all[from->file]->category_token[from->category];
        if (apart) out->category_weight[from->place] = weight[from->file];
    }
    return mdp_ok();
}

/* ---- numbers ------------------------------------------------------------------------------------------------- */

/* Add category `from` of a layer to category `to` of the result's. */
static void add_category(const mdp_layer_stats *one, int n_one, int from, int n_all, int to, mdp_layer_stats *all) {
    int32_t n = one->n_expert;
    for (int32_t e = 0; e < n; e++) {
        all->counts[to * n + e] += one->counts[from * n + e];
        for (int64_t id = 0; id < MDP_N_SUM; id++) {
            mdp_exact *sum = &all->sums[(id * n_all + to) * n + e];
            const mdp_exact *part = &one->sums[(id * n_one + from) * n + e];
            for (int i = 0; i < MDP_LIMBS; i++) sum->limb[i] += part->limb[i];
            mdp_exact_normalise(sum);
        }
        for (int64_t id = 0; id < MDP_N_MAX; id++) {
            double *most = &all->maxima[(id * n_all + to) * n + e];
            double value = one->maxima[(id * n_one + from) * n + e];
            if (value > *most) *most = value;
        }
    }
}

static mdp_status add_vector(const mdp_layer_stats *one, mdp_vector_id id, int64_t n, double weight,
                             mdp_layer_stats *all) {
    const mdp_short_sum *own = one->vectors[id];
    for (int64_t i = 0; i < n; i++) {
        mdp_short_sum *sum = &all->vectors[id][i];
        if (weight == 1.0) {
            for (int j = 0; j < MDP_SHORT_LIMBS; j++) sum->limb[j] += own[i].limb[j];
        } else if (!mdp_short_add(sum, weight * mdp_short_value(&own[i]))) {
            return MDP_ERROR(MDP_BAD_INPUT, "layer %lld: the weight %g makes '%s' too large; take a smaller one.",
                             (long long)one->layer, weight, mdp_vectors[id].name);
        }
        mdp_short_normalise(sum);
    }
    return mdp_ok();
}

/* A vector of layer number l that all files have; what is of one text only stays with one file alone. */
static mdp_status join_vector(mdp_stats *const *all, const double *weight, int n, int64_t l, mdp_vector_id id,
                              mdp_stats *out) {
    mdp_layer_stats *layer = &out->layers[l];
    int64_t n_element = layer->n_expert * mdp_vector_width(out, layer, id);
    bool sums = mdp_vectors[id].join == MDP_JOIN_SUM, there = n == 1 || mdp_vectors[id].join != MDP_JOIN_NONE;
    for (int f = 0; f < n; f++) there = there && all[f]->layers[l].vectors[id];
    if (!there) return mdp_ok();
    MDP_TRY(MDP_ALLOC(&layer->vectors[id], n_element, "vectors of experts"));
    for (int f = 0; f < (sums ? n : 1); f++)
        MDP_TRY(add_vector(&all[f]->layers[l], id, n_element, sums ? weight[f] : 1.0, layer));
    return mdp_ok();
}

static mdp_status join_layer(mdp_stats *const *all, const double *weight, int n, const source *sources, int n_source,
                             int64_t l, mdp_stats *out) {
    mdp_layer_stats *layer = &out->layers[l];
    MDP_TRY(mdp_layer_stats_allocate(layer, out->n_category));
    for (int i = 0; i < n_source; i++) {
        const mdp_stats *one = all[sources[i].file];
        add_category(&one->layers[l], one->n_category, sources[i].category, out->n_category, sources[i].place, layer);
    }
    for (int id = 0; id < MDP_N_VECTOR; id++) MDP_TRY(join_vector(all, weight, n, l, (mdp_vector_id)id, out));
    return mdp_ok();
}

static mdp_status describe(mdp_stats *const *all, const double *weight, int n, mdp_stats *out) {
    const mdp_stats *first = all[0];
    memcpy(out->model_fingerprint, first->model_fingerprint, sizeof out->model_fingerprint);
    memcpy(out->tokens_fingerprint, first->tokens_fingerprint, sizeof out->tokens_fingerprint);
    memcpy(out->model_type, first->model_type, sizeof out->model_type);
    memcpy(out->compute, first->compute, sizeof out->compute);
    out->d_model = first->d_model;
    out->pruned_inputs = first->pruned_inputs;
    MDP_TRY(MDP_ALLOC(&out->parts, n, "the parts of statistics"));
    out->n_part = n;
    for (int f = 0; f < n; f++) {
        out->n_token += all[f]->n_token;
        out->n_probe += weight[f] * all[f]->n_probe;
        if (strcmp(all[f]->compute, first->compute) != 0) snprintf(out->compute, sizeof out->compute, "several kinds");
        out->parts[f] = (mdp_stats_part){.n_token = all[f]->n_token, .weight = weight[f]};
        memcpy(out->parts[f].tokens_fingerprint, all[f]->tokens_fingerprint, sizeof first->tokens_fingerprint);
    }
    MDP_TRY(MDP_ALLOC(&out->layers, first->n_layer, "statistics"));
    out->n_layer = first->n_layer;
    for (int64_t l = 0; l < out->n_layer; l++)
        out->layers[l] = (mdp_layer_stats){.layer = first->layers[l].layer,
                                           .n_expert = first->layers[l].n_expert,
                                           .top_k = first->layers[l].top_k,
                                           .n_group = first->layers[l].n_group,
                                           .n_open = first->layers[l].n_open,
                                           .d_ff = first->layers[l].d_ff};
    return mdp_ok();
}

static mdp_status fill(mdp_stats *const *all, const double *weight, const char *const *paths, int n, source **sources,
                       mdp_stats *out) {
    bool apart = false;
    int n_source = 0, n_place = 0;
    for (int f = 0; f < n; f++) {
        MDP_TRY(check_same(all[0], all[f], paths[0], paths[f]));
        apart = apart || weight[f] != 1.0;
    }
    MDP_TRY(describe(all, weight, n, out));
    MDP_TRY(list_sources(all, n, apart, sources, &n_source, &n_place));
    MDP_TRY(name_categories(all, weight, apart, *sources, n_source, n_place, out));
    for (int64_t l = 0; l < out->n_layer; l++) MDP_TRY(join_layer(all, weight, n, *sources, n_source, l, out));
    return mdp_ok();
}

mdp_status mdp_stats_join(mdp_stats *const *all, const double *weight, const char *const *paths, int n,
                          mdp_stats **out) {
    mdp_stats *stats = NULL;
    source *sources = NULL;
    *out = NULL;
    MDP_TRY(MDP_ALLOC(&stats, 1, "statistics"));
    mdp_status status = fill(all, weight, paths, n, &sources, stats);
    mdp_free(sources);
    if (status.code != MDP_OK) {
        mdp_stats_destroy(stats);
        return status;
    }
    *out = stats;
    return status;
}
