/* stats_read.c - stats.h5: read and checked by one rank.
 *
 * A reader takes the limbs; the f64 beside them is for people. Nothing in the file is believed: names, shapes and
 * ranges are checked before anything is allocated by them. */
#include "observe/stats_file.h"

#include <hdf5.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define MAX_TOKEN (INT64_C(1) << 53) /* counts are also used as doubles */

static mdp_status unreadable(const char *path, const char *what) {
    return MDP_ERROR(MDP_BAD_INPUT,
                     "%s: %s is missing or has another shape than expected; the file is damaged or was not "
                     "written by moe-dist-prune observe",
                     path, what);
}

static mdp_status unlikely(const char *path, const mdp_layer_stats *layer, const char *what) {
    return MDP_ERROR(
        MDP_BAD_INPUT,
        "%s: layer %lld: '%s' holds a number that no observation gives; the file is damaged, observe again.", path,
        (long long)layer->layer, what);
}

/* A text attribute into out; false when absent, longer than n_byte - 1, or not plain. */
static bool read_text_attribute(hid_t object, const char *name, char *out, size_t n_byte) {
    if (H5Aexists(object, name) <= 0) return false;
    hid_t attribute = H5Aopen(object, name, H5P_DEFAULT);
    hid_t type = attribute >= 0 ? H5Aget_type(attribute) : -1;
    bool good =
        type >= 0 && H5Tget_class(type) == H5T_STRING && !H5Tis_variable_str(type) && H5Tget_size(type) <= n_byte;
    memset(out, 0, n_byte);
    good = good && H5Aread(attribute, type, out) >= 0 && out[n_byte - 1] == '\0' && mdp_text_is_plain(out);
    if (type >= 0) H5Tclose(type);
    if (attribute >= 0) H5Aclose(attribute);
    return good;
}

static bool read_number_attribute(hid_t object, const char *name, int64_t *out) {
    if (H5Aexists(object, name) <= 0) return false;
    hid_t attribute = H5Aopen(object, name, H5P_DEFAULT);
    hid_t space = attribute >= 0 ? H5Aget_space(attribute) : -1;
    bool good =
        space >= 0 && H5Sget_simple_extent_npoints(space) == 1 && H5Aread(attribute, H5T_NATIVE_INT64, out) >= 0;
    if (space >= 0) H5Sclose(space);
    if (attribute >= 0) H5Aclose(attribute);
    return good;
}

/* Open a dataset and check its shape; -1 when it is not so. */
static hid_t open_shaped(hid_t parent, const char *name, int n_dim, const hsize_t *shape) {
    if (H5Lexists(parent, name, H5P_DEFAULT) <= 0) return -1;
    hid_t dataset = H5Dopen2(parent, name, H5P_DEFAULT);
    if (dataset < 0) return -1;
    hsize_t found[8] = {0};
    hid_t space = H5Dget_space(dataset);
    bool good = space >= 0 && H5Sget_simple_extent_ndims(space) == n_dim;
    if (good) H5Sget_simple_extent_dims(space, found, NULL);
    for (int i = 0; good && i < n_dim; i++) good = found[i] == shape[i];
    good = good && mdp_hdf5_is_written(dataset);
    if (space >= 0) H5Sclose(space);
    if (good) return dataset;
    H5Dclose(dataset);
    return -1;
}

static bool read_array(hid_t parent, const char *name, hid_t type, int n_dim, const hsize_t *shape, void *out) {
    hid_t dataset = open_shaped(parent, name, n_dim, shape);
    if (dataset < 0) return false;
    bool good = H5Dread(dataset, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, out) >= 0;
    H5Dclose(dataset);
    return good;
}

static bool read_numbers(hid_t parent, const char *name, int n_dim, const hsize_t *shape, int64_t *out) {
    return read_array(parent, name, H5T_NATIVE_INT64, n_dim, shape, out);
}

static bool read_reals(hid_t parent, const char *name, int n_dim, const hsize_t *shape, double *out) {
    return read_array(parent, name, H5T_NATIVE_DOUBLE, n_dim, shape, out);
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
static bool read_groups(hid_t group, mdp_layer_stats *layer) {
    int64_t n_group = 1, n_open = 1;
    bool grouped = H5Aexists(group, "n_group") > 0;
    if (grouped &&
        !(read_number_attribute(group, "n_group", &n_group) && read_number_attribute(group, "n_open", &n_open)))
        return false;
    layer->n_group = (int32_t)n_group;
    layer->n_open = (int32_t)n_open;
    return n_group >= 1 && n_group <= layer->n_expert && n_open >= 1 && n_open <= n_group;
}

static mdp_status read_layer(hid_t group, mdp_stats *stats, mdp_layer_stats *layer, const char *path) {
    int64_t n_expert, top_k;
    if (!read_number_attribute(group, "n_expert", &n_expert) || !read_number_attribute(group, "top_k", &top_k) ||
        n_expert < 1 || n_expert > 1 << 20 || top_k < 1 || top_k > n_expert) {
        return unreadable(path, "the number of experts of a layer");
    }
    layer->n_expert = (int32_t)n_expert;
    layer->top_k = (int32_t)top_k;
    if (!read_groups(group, layer)) return unreadable(path, "the groups of experts of a layer");
    int64_t n = stats->n_category * n_expert;
    hsize_t shape[3] = {(hsize_t)stats->n_category, (hsize_t)n_expert, MDP_LIMBS};
    hid_t counts = open_shaped(group, "counts", 2, shape); /* before memory is taken for all that it claims */
    if (counts < 0) return unreadable(path, "the counts of a layer");
    H5Dclose(counts);
    MDP_TRY(mdp_layer_stats_allocate(layer, stats->n_category));
    if (!read_numbers(group, "counts", 2, shape, layer->counts)) return unreadable(path, "the counts of a layer");
    for (int id = 0; id < MDP_N_SUM; id++) {
        char limbs[64];
        snprintf(limbs, sizeof limbs, "%s_limbs", mdp_statistics[id].name);
        if (!read_numbers(group, limbs, 3, shape, &layer->sums[id * n].limb[0])) return unreadable(path, limbs);
    }
    for (int id = MDP_N_SUM; id < MDP_N_STATISTIC; id++) {
        if (!read_reals(group, mdp_statistics[id].name, 2, shape, layer->maxima + (id - MDP_N_SUM) * n))
            return unreadable(path, mdp_statistics[id].name);
    }
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
    hid_t layers = H5Lexists(file, "layers", H5P_DEFAULT) > 0 ? H5Gopen2(file, "layers", H5P_DEFAULT) : -1;
    if (layers < 0) return unreadable(path, "/layers");
    mdp_status status = H5Gget_info(layers, &info) < 0 ? unreadable(path, "/layers")
                                                       : MDP_ALLOC(&stats->layers, (int64_t)info.nlinks, "statistics");
    if (status.code == MDP_OK && H5Literate(layers, H5_INDEX_NAME, H5_ITER_INC, NULL, note_layer, stats) < 0) {
        status = unreadable(path, "/layers");
    }
    for (int64_t l = 0; status.code == MDP_OK && l < stats->n_layer; l++) {
        char name[32];
        snprintf(name, sizeof name, "%lld", (long long)stats->layers[l].layer);
        hid_t group = H5Gopen2(layers, name, H5P_DEFAULT);
        status = group < 0 ? unreadable(path, name) : read_layer(group, stats, &stats->layers[l], path);
        if (group >= 0) H5Gclose(group);
    }
    H5Gclose(layers);
    return status;
}

static mdp_status read_categories(hid_t file, mdp_stats *stats, const char *path) {
    hid_t dataset = H5Lexists(file, "categories", H5P_DEFAULT) > 0 ? H5Dopen2(file, "categories", H5P_DEFAULT) : -1;
    if (dataset < 0) return unreadable(path, "/categories");
    hid_t space = H5Dget_space(dataset), type = H5Dget_type(dataset);
    char *names = NULL;
    int64_t n = H5Sget_simple_extent_ndims(space) == 1 ? H5Sget_simple_extent_npoints(space) : 0;
    size_t width = H5Tget_size(type);
    mdp_status status = mdp_ok();
    if (n < 1 || n > 1 << 20 || H5Tget_class(type) != H5T_STRING || H5Tis_variable_str(type) ||
        !mdp_hdf5_is_written(dataset)) {
        status = unreadable(path, "/categories");
    }
    if (status.code == MDP_OK) status = mdp_alloc((void **)&names, n, width + 1, "category names");
    if (status.code == MDP_OK) status = MDP_ALLOC(&stats->category, n, "categories");
    if (status.code == MDP_OK) status = MDP_ALLOC(&stats->category_token, n, "categories");
    if (status.code == MDP_OK && H5Dread(dataset, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, names) < 0) {
        status = unreadable(path, "/categories");
    }
    for (int64_t c = 0; status.code == MDP_OK && c < n; c++) {
        status = mdp_format(&stats->category[c], "%.*s", (int)width, names + (size_t)c * width);
        if (status.code == MDP_OK) stats->n_category++;
        if (status.code == MDP_OK) status = mdp_name_check(path, "a category", stats->category[c]);
    }
    hsize_t shape = (hsize_t)n;
    if (status.code == MDP_OK && !read_numbers(file, "category_tokens", 1, &shape, stats->category_token)) {
        status = unreadable(path, "/category_tokens");
    }
    mdp_free(names);
    H5Tclose(type);
    H5Sclose(space);
    H5Dclose(dataset);
    return status;
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

static mdp_status read_content(hid_t file, mdp_stats *stats, const char *path) {
    char text[64];
    int64_t complete = 0;
    if (!read_text_attribute(file, "format", text, sizeof text) || strcmp(text, MDP_STATS_FORMAT) != 0) {
        return MDP_ERROR(MDP_BAD_INPUT, "%s is not a statistics file of moe-dist-prune (attribute format)", path);
    }
    if (!read_text_attribute(file, "version", text, sizeof text) || strncmp(text, "1.", 2) != 0) {
        return MDP_ERROR(MDP_BAD_INPUT, "%s has format version %s; this program reads version 1", path, text);
    }
    if (!read_number_attribute(file, "complete", &complete) || complete != 1) {
        return MDP_ERROR(MDP_BAD_INPUT, "%s was not finished (no completion mark); run observe again", path);
    }
    if (!read_text_attribute(file, "model", stats->model_fingerprint, sizeof stats->model_fingerprint) ||
        !read_text_attribute(file, "tokens", stats->tokens_fingerprint, sizeof stats->tokens_fingerprint) ||
        !read_text_attribute(file, "model_type", stats->model_type, sizeof stats->model_type) ||
        !read_number_attribute(file, "d_model", &stats->d_model) || stats->d_model < 1 || stats->d_model > 1 << 24 ||
        !read_number_attribute(file, "n_tokens", &stats->n_token) || stats->n_token > MAX_TOKEN ||
        !read_text_attribute(file, "options", text, sizeof text)) {
        return unreadable(path, "its description");
    }
    stats->pruned_inputs = strcmp(text, MDP_STATS_PRUNED) == 0;
    if (!stats->pruned_inputs && strcmp(text, MDP_STATS_ORIGINAL) != 0)
        return MDP_ERROR(MDP_BAD_INPUT, "%s was collected with options that this version does not know: %s", path,
                         text);
    if (H5Aexists(file, "compute") > 0 && !read_text_attribute(file, "compute", stats->compute, sizeof stats->compute))
        return unreadable(path, "its description");
    MDP_TRY(read_categories(file, stats, path));
    MDP_TRY(check_categories(stats, path));
    return read_layers(file, stats, path);
}

/* Open a file that HDF5 can read; the caller closes it. */
static mdp_status open_file(const char *path, hid_t *file) {
    MDP_TRY(mdp_fault(MDP_IO, path));
    int fd;
    MDP_TRY(mdp_file_open_read(path, &fd)); /* for the reason in the sentence; HDF5 only says that it failed */
    MDP_TRY(mdp_file_close(path, fd));
    if (H5Fis_hdf5(path) <= 0) {
        const char *found = mdp_recognise_file(path);
        return MDP_ERROR(MDP_BAD_INPUT, "%s is not an HDF5 file%s%s.", path, found ? ", but " : "", found ? found : "");
    }
    *file = H5Fopen(path, H5F_ACC_RDONLY, H5P_DEFAULT);
    if (*file < 0) return MDP_ERROR(MDP_BAD_INPUT, "%s: HDF5 cannot open it; the file is damaged.", path);
    return mdp_ok();
}

mdp_status mdp_stats_read(const char *path, mdp_stats **out) {
    mdp_stats *stats = NULL;
    hid_t file;
    *out = NULL;
    MDP_TRY(open_file(path, &file));
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

static mdp_status read_layer_vectors(hid_t file, const mdp_stats *stats, mdp_layer_stats *layer, const char *path) {
    char name[96];
    hsize_t shape[3] = {(hsize_t)layer->n_expert, (hsize_t)stats->d_model, MDP_SHORT_LIMBS};
    snprintf(name, sizeof name, "layers/%lld/%s_limbs", (long long)layer->layer, mdp_output_sum.name);
    hid_t dataset = open_shaped(file, name, 3, shape); /* before memory is taken for what it claims */
    if (dataset < 0) return unreadable(path, name);
    H5Dclose(dataset);
    MDP_TRY(MDP_ALLOC(&layer->output_sum, layer->n_expert * stats->d_model, "sums of expert outputs"));
    if (!read_numbers(file, name, 3, shape, &layer->output_sum[0].limb[0])) return unreadable(path, name);
    for (int64_t i = 0; i < layer->n_expert * stats->d_model; i++) {
        if (!is_normal(layer->output_sum[i].limb, MDP_SHORT_LIMBS, INT64_C(1) << 62))
            return unlikely(path, layer, mdp_output_sum.name);
    }
    return mdp_ok();
}

mdp_status mdp_stats_read_vectors(const char *path, mdp_stats *stats) {
    hid_t file;
    mdp_status status = mdp_ok();
    MDP_TRY(open_file(path, &file));
    for (int64_t l = 0; l < stats->n_layer && status.code == MDP_OK; l++) {
        if (!stats->layers[l].output_sum) status = read_layer_vectors(file, stats, &stats->layers[l], path);
    }
    H5Fclose(file);
    return status;
}
