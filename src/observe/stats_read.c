/* stats_read.c - stats.h5: read and checked by one rank.
 *
 * A reader takes the limbs; the f64 beside them is for people. Nothing in the file is believed: names, shapes and
 * ranges are checked before anything is allocated by them. */
#include "checkpoint/hdf5_read.h"
#include "observe/stats_file.h"

#include <limits.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define THE_FILE "the file"
#define MAX_TOKEN (INT64_C(1) << 53) /* counts are also used as doubles */

static mdp_status unreadable(const char *path, const char *what) {
    return MDP_ERROR(MDP_BAD_INPUT,
                     "%s: %s is not as moe-dist-prune observe writes it; the file is damaged, or was written by "
                     "something else.",
                     path, what);
}

static mdp_status unlikely(const char *path, const mdp_layer_stats *layer, const char *what) {
    return MDP_ERROR(
        MDP_BAD_INPUT,
        "%s: layer %lld: '%s' holds a number that no observation gives; the file is damaged, observe again.", path,
        (long long)layer->layer, what);
}

/* Are limbs as the writer leaves them: carried, and the sum within its range? */
static bool is_normal(const int64_t *limb, int n_limb, int64_t top) {
    for (int i = 0; i < n_limb - 1; i++) {
        if (limb[i] < 0 || limb[i] > UINT32_MAX) return false;
    }
    return limb[n_limb - 1] >= -top && limb[n_limb - 1] < top;
}

/* A token is routed to an expert once or not at all; maxima are of absolute values. */
static mdp_status check_layer(const mdp_stats *stats, const mdp_layer_stats *layer, const char *path) {
    int64_t n = (int64_t)stats->n_category * layer->n_expert;
    for (int64_t i = 0; i < n; i++) {
        if (layer->counts[i] < 0 || layer->counts[i] > stats->category_token[i / layer->n_expert])
            return unlikely(path, layer, "counts");
    }
    for (int64_t i = 0; i < n * MDP_N_SUM; i++) {
        if (!is_normal(layer->sums[i].limb, MDP_LIMBS, INT64_C(1) << 31))
            return unlikely(path, layer, mdp_statistics[i / n].name);
    }
    for (int64_t i = 0; i < n * MDP_N_MAX; i++) {
        if (!(layer->maxima[i] >= 0.0 && isfinite(layer->maxima[i])))
            return unlikely(path, layer, mdp_statistics[MDP_N_SUM + i / n].name);
    }
    return mdp_ok();
}

/* Groups of experts; without the attributes there is one. */
static mdp_status read_groups(hid_t group, const char *name, mdp_layer_stats *layer, const char *path) {
    int64_t n_group = 1, n_open = 1;
    if (mdp_hdf5_has_attribute(group, "n_group")) {
        MDP_TRY(mdp_hdf5_integer_attribute(path, name, group, "n_group", &n_group));
        MDP_TRY(mdp_hdf5_integer_attribute(path, name, group, "n_open", &n_open));
    }
    if (n_group < 1 || n_group > layer->n_expert || n_open < 1 || n_open > n_group)
        return unreadable(path, "the groups of experts of a layer");
    layer->n_group = (int32_t)n_group;
    layer->n_open = (int32_t)n_open;
    return mdp_ok();
}

/* needs_width: 1 where there are channel norms, else 0. */
static mdp_status read_sizes(hid_t group, const char *name, int needs_width, mdp_layer_stats *layer, const char *path) {
    int64_t n_expert, top_k;
    MDP_TRY(mdp_hdf5_integer_attribute(path, name, group, "n_expert", &n_expert));
    MDP_TRY(mdp_hdf5_integer_attribute(path, name, group, "top_k", &top_k));
    if (n_expert < 1 || n_expert > 1 << 20 || top_k < 1 || top_k > n_expert)
        return unreadable(path, "the number of experts of a layer");
    layer->n_expert = (int32_t)n_expert;
    layer->top_k = (int32_t)top_k;
    if (mdp_hdf5_has_attribute(group, "d_ff"))
        MDP_TRY(mdp_hdf5_integer_attribute(path, name, group, "d_ff", &layer->d_ff));
    if (layer->d_ff < needs_width || layer->d_ff > 1 << 24)
        return unreadable(path, "the width of the experts of a layer");
    return read_groups(group, name, layer, path);
}

/* ---- sets of experts ------------------------------------------------------------------------------------------ */

static mdp_status check_sets(const mdp_layer_stats *layer, const mdp_subsets *sets, const char *path) {
    for (int32_t i = 0; i < sets->keep; i++) {
        if (sets->kept[i] < (i > 0 ? sets->kept[i - 1] + 1 : 0) || sets->kept[i] >= layer->n_expert)
            return unlikely(path, layer, "kept");
    }
    for (int32_t e = 0; e < layer->n_expert; e++)
        if (!(sets->without[e] >= 0.0)) return unlikely(path, layer, "without");
    return sets->loss >= 0.0 && isfinite(sets->loss) && sets->next >= 0.0 ? mdp_ok() : unlikely(path, layer, "best");
}

/* group: of one size. What was found for each set stays in the file. */
static mdp_status read_sets(hid_t group, const char *name, const mdp_layer_stats *layer, mdp_subsets *sets,
                            const char *path) {
    char search[32];
    double best[2];
    const int64_t keep = sets->keep, n_expert = layer->n_expert, two = 2;
    MDP_TRY(MDP_ALLOC(&sets->kept, keep, "the best set of experts"));
    MDP_TRY(MDP_ALLOC(&sets->without, n_expert, "losses without an expert"));
    MDP_TRY(mdp_hdf5_short_attribute(path, name, group, "search", search, sizeof search));
    MDP_TRY(mdp_hdf5_integer_attribute(path, name, group, "n_tried", &sets->n_tried));
    MDP_TRY(mdp_hdf5_array(path, group, "kept", H5T_NATIVE_INT32, 1, &keep, sets->kept));
    MDP_TRY(mdp_hdf5_array(path, group, "best", H5T_NATIVE_DOUBLE, 1, &two, best));
    MDP_TRY(mdp_hdf5_array(path, group, "without", H5T_NATIVE_DOUBLE, 1, &n_expert, sets->without));
    sets->loss = best[0];
    sets->next = best[1];
    int how = 0;
    while (mdp_subset_search_names[how] && strcmp(mdp_subset_search_names[how], search) != 0) how++;
    if (!mdp_subset_search_names[how]) return unreadable(path, "how sets of experts were tried");
    sets->search = (mdp_subset_search)how;
    return check_sets(layer, sets, path);
}

/* Sizes that a layer has. */
static mdp_status find_sizes(hid_t parent, mdp_layer_stats *layer, const char *path) {
    H5G_info_t info;
    if (H5Gget_info(parent, &info) < 0 || info.nlinks > MDP_MOST_KEEPS) return unreadable(path, "sets of experts");
    MDP_TRY(MDP_ALLOC(&layer->subsets, (int64_t)info.nlinks, "sets of experts"));
    for (int32_t keep = 1; keep < layer->n_expert && layer->n_subsets < (int)info.nlinks; keep++) {
        char name[32];
        snprintf(name, sizeof name, "%d", (int)keep);
        if (mdp_hdf5_has(parent, name)) layer->subsets[layer->n_subsets++].keep = keep;
    }
    return layer->n_subsets == (int)info.nlinks ? mdp_ok() : unreadable(path, "sets of experts");
}

static mdp_status read_subsets(hid_t group, mdp_layer_stats *layer, const char *path) {
    hid_t parent;
    if (!mdp_hdf5_has(group, MDP_STATS_SUBSETS)) return mdp_ok();
    MDP_TRY(mdp_hdf5_open_group(path, group, MDP_STATS_SUBSETS, &parent));
    mdp_status status = find_sizes(parent, layer, path);
    for (int i = 0; i < layer->n_subsets && status.code == MDP_OK; i++) {
        char name[32];
        hid_t inner = H5I_INVALID_HID;
        snprintf(name, sizeof name, "%d", (int)layer->subsets[i].keep);
        status = mdp_hdf5_open_group(path, parent, name, &inner);
        if (status.code == MDP_OK) status = read_sets(inner, name, layer, &layer->subsets[i], path);
        if (inner >= 0) H5Gclose(inner);
    }
    H5Gclose(parent);
    return status;
}

static mdp_status read_layer(hid_t group, const char *name, mdp_stats *stats, mdp_layer_stats *layer,
                             const char *path) {
    MDP_TRY(read_sizes(group, name, stats->similarity.norms != MDP_NORMS_NONE, layer, path));
    int64_t n = stats->n_category * (int64_t)layer->n_expert;
    const int64_t shape[3] = {stats->n_category, layer->n_expert, MDP_LIMBS};
    MDP_TRY(mdp_hdf5_check_array(path, group, "counts", 2, shape));
    MDP_TRY(mdp_layer_stats_allocate(layer, stats->n_category));
    MDP_TRY(mdp_hdf5_array(path, group, "counts", H5T_NATIVE_INT64, 2, shape, layer->counts));
    for (int id = 0; id < MDP_N_SUM; id++) {
        char limbs[64];
        snprintf(limbs, sizeof limbs, "%s_limbs", mdp_statistics[id].name);
        MDP_TRY(mdp_hdf5_array(path, group, limbs, H5T_NATIVE_INT64, 3, shape, &layer->sums[id * n].limb[0]));
    }
    for (int id = MDP_N_SUM; id < MDP_N_STATISTIC; id++) {
        double *maxima = layer->maxima + (id - MDP_N_SUM) * n;
        MDP_TRY(mdp_hdf5_array(path, group, mdp_statistics[id].name, H5T_NATIVE_DOUBLE, 2, shape, maxima));
    }
    MDP_TRY(read_subsets(group, layer, path));
    return check_layer(stats, layer, path);
}

/* Names of the layers' groups are their numbers, spelled one way; keep them in numerical order. */
static herr_t note_layer(hid_t group, const char *name, const H5L_info_t *info, void *opaque) {
    mdp_stats *stats = opaque;
    char same[32];
    (void)group;
    (void)info;
    long number = strtol(name, NULL, 10);
    (void)snprintf(same, sizeof same, "%ld", number);
    if (number < 0 || strcmp(name, same) != 0) return -1;
    int64_t at = stats->n_layer++;
    while (at > 0 && stats->layers[at - 1].layer > number) {
        stats->layers[at] = stats->layers[at - 1];
        at--;
    }
    stats->layers[at] = (mdp_layer_stats){.layer = number};
    return 0;
}

static mdp_status read_layers(hid_t file, mdp_stats *stats, const char *path) {
    H5G_info_t info;
    hid_t layers;
    MDP_TRY(mdp_hdf5_open_group(path, file, "layers", &layers));
    mdp_status status = H5Gget_info(layers, &info) < 0 ? unreadable(path, "/layers")
                                                       : MDP_ALLOC(&stats->layers, (int64_t)info.nlinks, "statistics");
    if (status.code == MDP_OK && H5Literate(layers, H5_INDEX_NAME, H5_ITER_INC, NULL, note_layer, stats) < 0) {
        status = unreadable(path, "/layers");
    }
    for (int64_t l = 0; status.code == MDP_OK && l < stats->n_layer; l++) {
        char name[32];
        hid_t group = H5I_INVALID_HID;
        snprintf(name, sizeof name, "%lld", (long long)stats->layers[l].layer);
        status = mdp_hdf5_open_group(path, layers, name, &group);
        if (status.code == MDP_OK) status = read_layer(group, name, stats, &stats->layers[l], path);
        if (group >= 0) H5Gclose(group);
    }
    H5Gclose(layers);
    return status;
}

/* names [n, width] */
static mdp_status keep_categories(const char *path, mdp_stats *stats, const char *names, int64_t n, int64_t width) {
    MDP_TRY(MDP_ALLOC(&stats->category, n, "categories"));
    MDP_TRY(MDP_ALLOC(&stats->category_token, n, "categories"));
    for (int64_t c = 0; c < n; c++) {
        MDP_TRY(mdp_format(&stats->category[c], "%.*s", (int)width, names + c * width));
        stats->n_category++;
        MDP_TRY(mdp_name_check(path, "a category", stats->category[c]));
    }
    return mdp_ok();
}

static mdp_status read_categories(hid_t file, mdp_stats *stats, const char *path) {
    hid_t dataset;
    char *names = NULL;
    int64_t n, width;
    MDP_TRY(mdp_hdf5_open_dataset(path, file, "categories", &dataset));
    mdp_status status = mdp_hdf5_read_texts(path, "/categories", dataset, &n, &width, &names);
    H5Dclose(dataset);
    MDP_TRY(status);
    if (n < 1 || n > 1 << 20 || width > INT_MAX) status = unreadable(path, "/categories");
    if (status.code == MDP_OK) status = keep_categories(path, stats, names, n, width);
    mdp_free(names);
    MDP_TRY(status);
    return mdp_hdf5_array(path, file, "category_tokens", H5T_NATIVE_INT64, 1, &n, stats->category_token);
}

/* Names ascend, and every token of the text is in one category. */
static mdp_status check_categories(const mdp_stats *stats, const char *path) {
    int64_t n_token = 0;
    for (int c = 0; c < stats->n_category; c++) {
        if (c > 0 && strcmp(stats->category[c - 1], stats->category[c]) >= 0) return unreadable(path, "/categories");
        if (!mdp_add(n_token, stats->category_token[c], &n_token)) return unreadable(path, "/category_tokens");
    }
    return n_token == stats->n_token ? mdp_ok() : unreadable(path, "/category_tokens");
}

/* That this is a file of ours which has been finished. */
static mdp_status check_kind(hid_t file, const char *path) {
    char text[64];
    int64_t complete = 0;
    if (!mdp_hdf5_has_attribute(file, "format"))
        return MDP_ERROR(MDP_BAD_INPUT, "%s is not a statistics file of moe-dist-prune (attribute format)", path);
    MDP_TRY(mdp_hdf5_short_attribute(path, THE_FILE, file, "format", text, sizeof text));
    if (strcmp(text, MDP_STATS_FORMAT) != 0)
        return MDP_ERROR(MDP_BAD_INPUT, "%s is not a statistics file of moe-dist-prune (attribute format)", path);
    MDP_TRY(mdp_hdf5_short_attribute(path, THE_FILE, file, "version", text, sizeof text));
    if (strncmp(text, "1.", 2) != 0)
        return MDP_ERROR(MDP_BAD_INPUT, "%s has format version %s; this program reads version 1", path, text);
    if (mdp_hdf5_has_attribute(file, "complete"))
        MDP_TRY(mdp_hdf5_integer_attribute(path, THE_FILE, file, "complete", &complete));
    if (complete == 1) return mdp_ok();
    return MDP_ERROR(MDP_BAD_INPUT, "%s was not finished (no completion mark); run observe again", path);
}

static mdp_status read_norms(hid_t file, mdp_stats *stats, const char *path) {
    char name[32];
    if (!mdp_hdf5_has_attribute(file, "channel_norms")) return mdp_ok();
    MDP_TRY(mdp_hdf5_short_attribute(path, THE_FILE, file, "channel_norms", name, sizeof name));
    for (int i = 0; mdp_channel_norms_names[i]; i++)
        if (strcmp(name, mdp_channel_norms_names[i]) == 0) stats->similarity.norms = (mdp_channel_norms)i;
    return stats->similarity.norms != MDP_NORMS_NONE ? mdp_ok() : unreadable(path, "the attribute channel_norms");
}

/* What was collected for similarities; without the attributes nothing was. */
static mdp_status read_request(hid_t file, mdp_stats *stats, const char *path) {
    char names[1024];
    unsigned wanted;
    int64_t n = 0, seed = 0;
    MDP_TRY(read_norms(file, stats, path));
    if (!mdp_hdf5_has_attribute(file, "similarities")) return mdp_ok();
    MDP_TRY(mdp_hdf5_short_attribute(path, THE_FILE, file, "similarities", names, sizeof names));
    if (mdp_similarity_parse(names, &wanted).code != MDP_OK)
        return MDP_ERROR(MDP_BAD_INPUT, "%s holds similarities that this version does not know: %s", path, names);
    if (mdp_hdf5_has_attribute(file, "probe_tokens")) {
        MDP_TRY(mdp_hdf5_integer_attribute(path, THE_FILE, file, "probe_tokens", &n));
        MDP_TRY(mdp_hdf5_integer_attribute(path, THE_FILE, file, "probe_seed", &seed));
    }
    if (n < 0) return unreadable(path, "the number of tokens of the probe");
    stats->similarity = mdp_similarity_request_of(wanted, n, (uint64_t)seed, stats->similarity.norms);
    stats->n_probe = (double)(n < stats->n_token ? n : stats->n_token);
    return mdp_ok();
}

/* What it is of. */
static mdp_status read_description(hid_t file, mdp_stats *stats, const char *path) {
    char text[64];
    MDP_TRY(mdp_hdf5_short_attribute(path, THE_FILE, file, "model", stats->model_fingerprint,
                                     sizeof stats->model_fingerprint));
    MDP_TRY(mdp_hdf5_short_attribute(path, THE_FILE, file, "tokens", stats->tokens_fingerprint,
                                     sizeof stats->tokens_fingerprint));
    MDP_TRY(mdp_hdf5_short_attribute(path, THE_FILE, file, "model_type", stats->model_type, sizeof stats->model_type));
    MDP_TRY(mdp_hdf5_integer_attribute(path, THE_FILE, file, "d_model", &stats->d_model));
    MDP_TRY(mdp_hdf5_integer_attribute(path, THE_FILE, file, "n_tokens", &stats->n_token));
    if (stats->d_model < 1 || stats->d_model > 1 << 24 || stats->n_token > MAX_TOKEN)
        return unreadable(path, "its description");
    MDP_TRY(mdp_hdf5_short_attribute(path, THE_FILE, file, "options", text, sizeof text));
    stats->pruned_inputs = strcmp(text, MDP_STATS_PRUNED) == 0;
    if (!stats->pruned_inputs && strcmp(text, MDP_STATS_ORIGINAL) != 0)
        return MDP_ERROR(MDP_BAD_INPUT, "%s was collected with options that this version does not know: %s", path,
                         text);
    MDP_TRY(read_request(file, stats, path));
    if (mdp_hdf5_has_attribute(file, MDP_STATS_SUBSETS))
        MDP_TRY(mdp_hdf5_text_attribute(path, THE_FILE, file, MDP_STATS_SUBSETS, &stats->subsets));
    if (!mdp_hdf5_has_attribute(file, "compute")) return mdp_ok();
    return mdp_hdf5_short_attribute(path, THE_FILE, file, "compute", stats->compute, sizeof stats->compute);
}

static mdp_status read_content(hid_t file, mdp_stats *stats, const char *path) {
    MDP_TRY(check_kind(file, path));
    MDP_TRY(read_description(file, stats, path));
    MDP_TRY(read_categories(file, stats, path));
    MDP_TRY(check_categories(stats, path));
    MDP_TRY(read_layers(file, stats, path));
    if (stats->n_layer == 0) return mdp_ok();
    char name[96];
    snprintf(name, sizeof name, "layers/%lld/%s_limbs", (long long)stats->layers[0].layer,
             mdp_vectors[MDP_NEURON_SHARE_SUM].name);
    stats->similarity.neurons = mdp_hdf5_has(file, name);
    return mdp_ok();
}

mdp_status mdp_stats_read(const char *path, mdp_stats **out) {
    mdp_stats *stats = NULL;
    hid_t file;
    *out = NULL;
    MDP_TRY(mdp_hdf5_open(path, "statistics as moe-dist-prune observe writes them", &file));
    mdp_status status = MDP_ALLOC(&stats, 1, "statistics");
    if (status.code == MDP_OK) status = read_content(file, stats, path);
    H5Fclose(file);
    if (status.code != MDP_OK) {
        mdp_stats_destroy(stats);
        return status;
    }
    *out = stats;
    return mdp_ok();
}

/* A symmetric one is written so. */
static bool is_symmetric(const mdp_short_sum *sums, int64_t n) {
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < i; j++)
            if (memcmp(&sums[i * n + j], &sums[j * n + i], sizeof *sums) != 0) return false;
    return true;
}

static mdp_status read_vector(hid_t file, const mdp_stats *stats, mdp_layer_stats *layer, mdp_vector_id id,
                              const char *path) {
    const mdp_vector *vector = &mdp_vectors[id];
    char name[96];
    const int64_t shape[3] = {layer->n_expert, mdp_vector_width(id, layer->n_expert, stats->d_model, layer->d_ff),
                              MDP_SHORT_LIMBS};
    bool square = vector->span == MDP_SPAN_EXPERTS;
    int64_t n = shape[0] * shape[1];
    snprintf(name, sizeof name, "layers/%lld/%s_limbs", (long long)layer->layer, vector->name);
    MDP_TRY(mdp_hdf5_check_array(path, file, name, 3, shape));
    MDP_TRY(MDP_ALLOC(&layer->vectors[id], n, "vectors of experts"));
    mdp_short_sum *sums = layer->vectors[id];
    MDP_TRY(mdp_hdf5_array(path, file, name, H5T_NATIVE_INT64, 3, shape, &sums[0].limb[0]));
    for (int64_t i = 0; i < n; i++) {
        if (!is_normal(sums[i].limb, MDP_SHORT_LIMBS, INT64_C(1) << 62)) return unlikely(path, layer, vector->name);
    }
    for (int64_t i = 0; square && i < shape[0]; i++) {
        if (sums[i * shape[1] + i].limb[MDP_SHORT_LIMBS - 1] < 0) return unlikely(path, layer, vector->name);
    }
    return square && !is_symmetric(sums, shape[0]) ? unlikely(path, layer, vector->name) : mdp_ok();
}

/* That the file has what is wanted. */
static mdp_status check_wanted(const mdp_stats *stats, unsigned wanted, const char *path) {
    unsigned has = mdp_similarity_vectors(&stats->similarity);
    if ((wanted & ~has) >> MDP_NEURON_SHARE_SUM)
        return MDP_ERROR(MDP_BAD_INPUT, "%s holds no sums for neurons; observe with --neuron-scores.", path);
    for (int id = 0; id < MDP_N_SIMILARITY; id++) {
        unsigned bit = 1u << mdp_similarities[id].vector;
        if ((wanted & bit) && !(has & bit))
            return MDP_ERROR(MDP_BAD_INPUT,
                             "%s does not hold what the similarity %s is made from; observe with --similarity %s.",
                             path, mdp_similarities[id].name, mdp_similarities[id].name);
    }
    for (int norms = MDP_NORMS_GATED; norms <= MDP_NORMS_PLAIN; norms++) {
        if (wanted & ~has & mdp_channel_norms_vectors((mdp_channel_norms)norms))
            return MDP_ERROR(MDP_BAD_INPUT, "%s does not hold %s channel norms; observe with --channel-norms %s.", path,
                             mdp_channel_norms_names[norms], mdp_channel_norms_names[norms]);
    }
    return mdp_ok();
}

mdp_status mdp_stats_read_vectors(const char *path, mdp_stats *stats, unsigned wanted) {
    hid_t file;
    mdp_status status = mdp_ok();
    MDP_TRY(check_wanted(stats, wanted, path));
    MDP_TRY(mdp_hdf5_open(path, "statistics as moe-dist-prune observe writes them", &file));
    for (int64_t l = 0; l < stats->n_layer; l++) {
        mdp_layer_stats *layer = &stats->layers[l];
        for (int id = 0; id < MDP_N_VECTOR && status.code == MDP_OK; id++)
            if ((wanted >> id & 1) && !layer->vectors[id])
                status = read_vector(file, stats, layer, (mdp_vector_id)id, path);
    }
    H5Fclose(file);
    return status;
}
