/* stats_file.c - stats.h5: written and read by rank 0 (vectors come from the ranks that keep them), byte for byte the
 * same for equal content.
 *
 * Layout in doc/formats.md. A reader takes the limbs; the f64 beside them is for people and h5py. */
#include "mdp/observe.h"

#include <hdf5.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MDP_STATS_FORMAT "moe-dist-prune statistics"
#define MDP_STATS_VERSION "1.0"

static mdp_status broken(const char *path, const char *what) {
    return MDP_ERROR(MDP_IO, "%s: HDF5 cannot write %s; is the disk full?", path, what);
}

static mdp_status unreadable(const char *path, const char *what) {
    return MDP_ERROR(MDP_BAD_INPUT,
                     "%s: %s is missing or has another shape than expected; the file is damaged or was not "
                     "written by moe-dist-prune observe",
                     path, what);
}

/* ---- writing ---- */

static bool write_text_attribute(hid_t object, const char *name, const char *text) {
    hid_t type = H5Tcopy(H5T_C_S1), space = H5Screate(H5S_SCALAR);
    H5Tset_size(type, strlen(text) + 1);
    hid_t attribute = H5Acreate2(object, name, type, space, H5P_DEFAULT, H5P_DEFAULT);
    bool good = attribute >= 0 && H5Awrite(attribute, type, text) >= 0;
    if (attribute >= 0) H5Aclose(attribute);
    H5Sclose(space);
    H5Tclose(type);
    return good;
}

static bool write_number_attribute(hid_t object, const char *name, int64_t value) {
    hid_t space = H5Screate(H5S_SCALAR);
    hid_t attribute = H5Acreate2(object, name, H5T_STD_I64LE, space, H5P_DEFAULT, H5P_DEFAULT);
    bool good = attribute >= 0 && H5Awrite(attribute, H5T_NATIVE_INT64, &value) >= 0;
    if (attribute >= 0) H5Aclose(attribute);
    H5Sclose(space);
    return good;
}

/* Create and write a contiguous dataset; the caller closes it. */
static hid_t write_array(hid_t parent, const char *name, hid_t file_type, hid_t memory_type, int n_dim,
                         const hsize_t *shape, const void *data) {
    hid_t space = H5Screate_simple(n_dim, shape, NULL), create = H5Pcreate(H5P_DATASET_CREATE);
    H5Pset_obj_track_times(create, false);
    H5Pset_fill_time(create, H5D_FILL_TIME_NEVER);
    hid_t dataset = H5Dcreate2(parent, name, file_type, space, H5P_DEFAULT, create, H5P_DEFAULT);
    if (dataset >= 0 && H5Dwrite(dataset, memory_type, H5S_ALL, H5S_ALL, H5P_DEFAULT, data) < 0) {
        H5Dclose(dataset);
        dataset = -1;
    }
    H5Pclose(create);
    H5Sclose(space);
    return dataset;
}

static hid_t create_group(hid_t parent, const char *name) {
    hid_t create = H5Pcreate(H5P_GROUP_CREATE);
    H5Pset_obj_track_times(create, false);
    hid_t group = H5Gcreate2(parent, name, H5P_DEFAULT, create, H5P_DEFAULT);
    H5Pclose(create);
    return group;
}

static bool describe(hid_t dataset, const mdp_statistic *row, int64_t n_sample) {
    return write_text_attribute(dataset, "meaning", row->meaning) && write_text_attribute(dataset, "unit", row->unit) &&
           write_text_attribute(dataset, "source", row->source) &&
           write_text_attribute(dataset, "merges", row->merge == MDP_MERGE_MAX ? "max" : "sum") &&
           write_number_attribute(dataset, "n_samples", n_sample);
}

/* A described f64 array; false when it cannot be written. */
static bool write_described(hid_t group, const mdp_statistic *row, int n_dim, const hsize_t *shape,
                            const double *values, int64_t n_sample) {
    hid_t dataset = write_array(group, row->name, H5T_IEEE_F64LE, H5T_NATIVE_DOUBLE, n_dim, shape, values);
    if (dataset < 0) return false;
    bool good = describe(dataset, row, n_sample);
    return H5Dclose(dataset) >= 0 && good;
}

/* The integers beside a described sum. */
static bool write_limbs(hid_t group, const char *name, const hsize_t *shape, const void *sums, const char *meaning) {
    char limbs[64];
    snprintf(limbs, sizeof limbs, "%s_limbs", name);
    hid_t dataset = write_array(group, limbs, H5T_STD_I64LE, H5T_NATIVE_INT64, 3, shape, sums);
    if (dataset < 0) return false;
    bool good = write_text_attribute(dataset, "meaning", meaning);
    return H5Dclose(dataset) >= 0 && good;
}

static int64_t samples_of(const mdp_stats *stats, const mdp_layer_stats *layer, const mdp_statistic *row) {
    return row->all_tokens ? stats->n_token : stats->n_token * layer->top_k;
}

/* A sum as f64 and its limbs. values is scratch for [n_category, n_expert]. */
static bool write_sum(hid_t group, const mdp_stats *stats, const mdp_layer_stats *layer, int id, double *values) {
    const mdp_statistic *row = &mdp_statistics[id];
    hsize_t shape[3] = {(hsize_t)stats->n_category, (hsize_t)layer->n_expert, MDP_LIMBS};
    int64_t n = (int64_t)stats->n_category * layer->n_expert;
    const mdp_exact *sums = layer->sums + id * n;
    for (int64_t i = 0; i < n; i++) values[i] = mdp_exact_value(&sums[i]);
    return write_described(group, row, 2, shape, values, samples_of(stats, layer, row)) &&
           write_limbs(group, row->name, shape, sums,
                       "the same sums as fixed-point limbs: limb i has weight 2^(32 i - 160)");
}

static bool write_max(hid_t group, const mdp_stats *stats, const mdp_layer_stats *layer, int id) {
    const mdp_statistic *row = &mdp_statistics[id];
    hsize_t shape[2] = {(hsize_t)stats->n_category, (hsize_t)layer->n_expert};
    const double *values = layer->maxima + (int64_t)(id - MDP_N_SUM) * stats->n_category * layer->n_expert;
    return write_described(group, row, 2, shape, values, samples_of(stats, layer, row));
}

static bool write_layer(hid_t layers, const mdp_stats *stats, const mdp_layer_stats *layer, double *values) {
    char name[32];
    snprintf(name, sizeof name, "%lld", (long long)layer->layer);
    hid_t group = create_group(layers, name);
    if (group < 0) return false;
    hsize_t shape[2] = {(hsize_t)stats->n_category, (hsize_t)layer->n_expert};
    hid_t counts = write_array(group, "counts", H5T_STD_I64LE, H5T_NATIVE_INT64, 2, shape, layer->counts);
    bool good = counts >= 0 && write_text_attribute(counts, "meaning", "rows routed to the expert, by category") &&
                write_text_attribute(counts, "merges", "sum") &&
                write_number_attribute(counts, "n_samples", stats->n_token * layer->top_k);
    if (counts >= 0) good = H5Dclose(counts) >= 0 && good;
    good = good && write_number_attribute(group, "n_expert", layer->n_expert) &&
           write_number_attribute(group, "top_k", layer->top_k);
    for (int id = 0; good && id < MDP_N_SUM; id++) good = write_sum(group, stats, layer, id, values);
    for (int id = MDP_N_SUM; good && id < MDP_N_STATISTIC; id++) good = write_max(group, stats, layer, id);
    return H5Gclose(group) >= 0 && good;
}

static bool write_categories(hid_t file, const mdp_stats *stats) {
    size_t width = 1;
    for (int c = 0; c < stats->n_category; c++) {
        if (strlen(stats->category[c]) + 1 > width) width = strlen(stats->category[c]) + 1;
    }
    char *names = NULL;
    if (mdp_alloc((void **)&names, stats->n_category, width, "category names").code != MDP_OK) return false;
    for (int c = 0; c < stats->n_category; c++) {
        memcpy(names + (size_t)c * width, stats->category[c], strlen(stats->category[c]));
    }
    hsize_t shape = (hsize_t)stats->n_category;
    hid_t type = H5Tcopy(H5T_C_S1);
    H5Tset_size(type, width);
    hid_t dataset = write_array(file, "categories", type, type, 1, &shape, names);
    bool good = dataset >= 0 && H5Dclose(dataset) >= 0;
    dataset = write_array(file, "category_tokens", H5T_STD_I64LE, H5T_NATIVE_INT64, 1, &shape, stats->category_token);
    good = dataset >= 0 && H5Dclose(dataset) >= 0 && good;
    H5Tclose(type);
    mdp_free(names);
    return good;
}

static mdp_status write_content(hid_t file, const mdp_stats *stats, const char *path) {
    if (!write_text_attribute(file, "format", MDP_STATS_FORMAT) ||
        !write_text_attribute(file, "version", MDP_STATS_VERSION) ||
        !write_text_attribute(file, "model", stats->model_fingerprint) ||
        !write_text_attribute(file, "tokens", stats->tokens_fingerprint) ||
        !write_text_attribute(file, "model_type", stats->model_type) ||
        !write_text_attribute(file, "options", "{\"propagate\": \"original\"}") ||
        !write_number_attribute(file, "d_model", stats->d_model) ||
        !write_number_attribute(file, "n_tokens", stats->n_token) || !write_categories(file, stats)) {
        return broken(path, "the description");
    }
    int64_t most = 1;
    for (int64_t l = 0; l < stats->n_layer; l++) {
        if (stats->layers[l].n_expert > most) most = stats->layers[l].n_expert;
    }
    double *values = NULL;
    MDP_TRY(MDP_ALLOC(&values, most * stats->n_category, "statistics"));
    hid_t layers = create_group(file, "layers");
    bool good = layers >= 0;
    for (int64_t l = 0; good && l < stats->n_layer; l++) good = write_layer(layers, stats, &stats->layers[l], values);
    if (layers >= 0) good = H5Gclose(layers) >= 0 && good;
    mdp_free(values);
    return good ? mdp_ok() : broken(path, "the statistics");
}

/* Create the file with all but its vectors. Rank 0. */
static mdp_status write_scalars(const mdp_stats *stats, const char *partial, hid_t *file) {
    MDP_TRY(mdp_fault(MDP_CANNOT_CREATE, partial));
    hid_t create = H5Pcreate(H5P_FILE_CREATE);
    H5Pset_obj_track_times(create, false);
    *file = H5Fcreate(partial, H5F_ACC_TRUNC, create, H5P_DEFAULT);
    H5Pclose(create);
    if (*file < 0) {
        return MDP_ERROR(MDP_CANNOT_CREATE, "%s: cannot be created; is its folder there and writable?", partial);
    }
    return write_content(*file, stats, partial);
}

static const mdp_statistic output_sum = {.name = "output_sum",
                                         .meaning = "sum over the routed tokens of y, all categories",
                                         .unit = "value of the hidden state",
                                         .source = "REAP, arXiv 2510.13999"};

/* One layer's vectors; sums [n_expert, d_model], NULL when no rank holds any. Rank 0. */
static mdp_status write_vectors(hid_t file, const mdp_stats *stats, const mdp_layer_stats *layer,
                                const mdp_short_sum *sums, const char *partial) {
    int64_t n = layer->n_expert * stats->d_model;
    double *values = NULL;
    char name[64];
    if (!sums) return mdp_ok();
    MDP_TRY(MDP_ALLOC(&values, n, "sums of expert outputs"));
    for (int64_t i = 0; i < n; i++) values[i] = mdp_short_value(&sums[i]);
    snprintf(name, sizeof name, "layers/%lld", (long long)layer->layer);
    hsize_t shape[3] = {(hsize_t)layer->n_expert, (hsize_t)stats->d_model, MDP_SHORT_LIMBS};
    hid_t group = H5Gopen2(file, name, H5P_DEFAULT);
    bool good = group >= 0 &&
                write_described(group, &output_sum, 2, shape, values, samples_of(stats, layer, &output_sum)) &&
                write_limbs(group, output_sum.name, shape, sums,
                            "the same sums as fixed-point limbs: limb i has weight 2^(32 i - 64)");
    if (group >= 0) good = H5Gclose(group) >= 0 && good;
    mdp_free(values);
    return good ? mdp_ok() : broken(partial, "the vectors of a layer");
}

/* Vectors of every layer, from the rank that has them through rank 0 to the file. */
static mdp_status write_vectors_all(const mdp_comm *comm, hid_t file, const mdp_stats *stats, const char *partial) {
    for (int64_t l = 0; l < stats->n_layer; l++) {
        const mdp_layer_stats *layer = &stats->layers[l];
        int64_t n_byte = layer->n_expert * stats->d_model * (int64_t)sizeof(mdp_short_sum), n_got = 0;
        void *got = NULL;
        MDP_TRY(mdp_gather_bytes_all(comm, layer->output_sum, layer->output_sum ? n_byte : 0, 0, &got, &n_got));
        mdp_status status = mdp_ok();
        if (comm->rank == 0) status = write_vectors(file, stats, layer, n_got == n_byte ? got : NULL, partial);
        mdp_free(got);
        MDP_AGREE(comm, status);
    }
    return mdp_ok();
}

static mdp_status write_partial_all(const mdp_comm *comm, const mdp_stats *stats, const char *partial) {
    hid_t file = -1;
    mdp_status status = mdp_ok();
    if (comm->rank == 0) status = write_scalars(stats, partial, &file);
    status = mdp_agree_all(comm, status);
    if (status.code == MDP_OK) status = write_vectors_all(comm, file, stats, partial);
    if (comm->rank == 0 && status.code == MDP_OK && !write_number_attribute(file, "complete", 1))
        status = broken(partial, "its last part");
    if (comm->rank == 0 && file >= 0) status = mdp_hdf5_close_written(file, partial, status);
    return mdp_agree_all(comm, status);
}

/* fsync and rename of a finished partial file. */
static mdp_status put_in_place(const char *partial, const char *path) {
    int fd;
    char *folder = NULL;
    MDP_TRY(mdp_file_open_write(partial, &fd));
    mdp_status status = mdp_file_sync(partial, fd);
    mdp_status closed = mdp_file_close(partial, fd);
    MDP_TRY(status);
    MDP_TRY(closed);
    MDP_TRY(mdp_file_rename(partial, path));
    MDP_TRY(mdp_path_folder(&folder, path));
    status = mdp_folder_sync(folder);
    mdp_free(folder);
    return status;
}

mdp_status mdp_stats_write_all(const mdp_comm *comm, const mdp_stats *stats, const char *path) {
    char *partial = NULL;
    MDP_AGREE(comm, mdp_format(&partial, "%s.partial", path));
    mdp_status status = write_partial_all(comm, stats, partial);
    if (comm->rank == 0) {
        if (status.code == MDP_OK) status = put_in_place(partial, path);
        if (status.code != MDP_OK) unlink(partial);
    }
    mdp_free(partial);
    return mdp_agree_all(comm, status);
}

/* ---- reading ---- */

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
        !read_number_attribute(file, "n_tokens", &stats->n_token)) {
        return unreadable(path, "its description");
    }
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
    snprintf(name, sizeof name, "layers/%lld/%s_limbs", (long long)layer->layer, output_sum.name);
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
