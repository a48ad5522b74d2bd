/* stats_read.c - stats.h5: read and checked by one rank.
 *
 * A reader takes the limbs; the f64 beside them is for people. Nothing in the file is believed: names, shapes and
 * ranges are checked before anything is allocated by them. */
#include "observe/stats_file.h"

#include <hdf5.h>
#include <stdlib.h>
#include <string.h>

static mdp_status unreadable(const char *path, const char *what) {
    return MDP_ERROR(MDP_BAD_INPUT,
                     "%s: %s is missing or has another shape than expected; the file is damaged or was not "
                     "written by moe-dist-prune observe",
                     path, what);
}

/* A text attribute into out; false when absent or longer than n_byte - 1. */
static bool read_text_attribute(hid_t object, const char *name, char *out, size_t n_byte) {
    if (H5Aexists(object, name) <= 0) return false;
    hid_t attribute = H5Aopen(object, name, H5P_DEFAULT);
    hid_t type = attribute >= 0 ? H5Aget_type(attribute) : -1;
    bool good =
        type >= 0 && H5Tget_class(type) == H5T_STRING && !H5Tis_variable_str(type) && H5Tget_size(type) <= n_byte;
    memset(out, 0, n_byte);
    good = good && H5Aread(attribute, type, out) >= 0 && out[n_byte - 1] == '\0';
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

static mdp_status read_layer(hid_t group, mdp_stats *stats, mdp_layer_stats *layer, const char *path) {
    int64_t n_expert, top_k;
    if (!read_number_attribute(group, "n_expert", &n_expert) || !read_number_attribute(group, "top_k", &top_k) ||
        n_expert < 1 || n_expert > 1 << 20 || top_k < 1 || top_k > n_expert) {
        return unreadable(path, "the number of experts of a layer");
    }
    layer->n_expert = (int32_t)n_expert;
    layer->top_k = (int32_t)top_k;
    int64_t n = stats->n_category * n_expert;
    hsize_t shape[3] = {(hsize_t)stats->n_category, (hsize_t)n_expert, MDP_LIMBS};
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
    return mdp_ok();
}

/* Names of the layers' groups are their numbers; keep them in numerical order. */
static herr_t note_layer(hid_t group, const char *name, const H5L_info_t *info, void *opaque) {
    mdp_stats *stats = opaque;
    char *end;
    (void)group;
    (void)info;
    long number = strtol(name, &end, 10);
    if (*end != '\0' || end == name || number < 0) return -1;
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
    if (n < 1 || n > 1 << 20 || H5Tget_class(type) != H5T_STRING || H5Tis_variable_str(type)) {
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
        !read_number_attribute(file, "n_tokens", &stats->n_token) ||
        !read_text_attribute(file, "options", text, sizeof text)) {
        return unreadable(path, "its description");
    }
    stats->pruned_inputs = strcmp(text, MDP_STATS_PRUNED) == 0;
    if (!stats->pruned_inputs && strcmp(text, MDP_STATS_ORIGINAL) != 0)
        return MDP_ERROR(MDP_BAD_INPUT, "%s was collected with options that this version does not know: %s", path,
                         text);
    MDP_TRY(read_categories(file, stats, path));
    return read_layers(file, stats, path);
}

/* Open a file that HDF5 can read; the caller closes it. */
static mdp_status open_file(const char *path, hid_t *file) {
    MDP_TRY(mdp_fault(MDP_IO, path));
    int fd;
    MDP_TRY(mdp_file_open_read(path, &fd)); /* for the reason in the sentence; HDF5 only says that it failed */
    MDP_TRY(mdp_file_close(path, fd));
    if (H5Fis_hdf5(path) <= 0) return MDP_ERROR(MDP_BAD_INPUT, "%s is not an HDF5 file.", path);
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
    MDP_TRY(MDP_ALLOC(&layer->output_sum, layer->n_expert * stats->d_model, "sums of expert outputs"));
    snprintf(name, sizeof name, "layers/%lld/%s_limbs", (long long)layer->layer, mdp_output_sum.name);
    if (!read_numbers(file, name, 3, shape, &layer->output_sum[0].limb[0])) return unreadable(path, name);
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
