/* stats_write.c - stats.h5: written by rank 0 (vectors come from the ranks that keep them), byte for byte the
 * same for equal content.
 *
 * Layout in doc/formats.md. A reader takes the limbs; the f64 beside them is for people and h5py. */
#include "checkpoint/h5_make.h"
#include "checkpoint/h5_parallel.h"
#include "observe/stats_file.h"

#include <hdf5.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static mdp_status broken(const char *path, const char *what) {
    return MDP_ERROR(MDP_IO, "%s: HDF5 cannot write %s; is the disk full?", path, what);
}

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

/* What attributes say of an array. */
typedef struct description {
    const char *name, *meaning, *unit, *source, *merges;
    int64_t n_sample;
} description;

static bool describe(hid_t dataset, const description *row) {
    return write_text_attribute(dataset, "meaning", row->meaning) && write_text_attribute(dataset, "unit", row->unit) &&
           write_text_attribute(dataset, "source", row->source) &&
           write_text_attribute(dataset, "merges", row->merges) &&
           write_number_attribute(dataset, "n_samples", row->n_sample);
}

/* A described f64 array; false when it cannot be written. */
static bool write_described(hid_t group, const description *row, int n_dim, const hsize_t *shape,
                            const double *values) {
    hid_t dataset = write_array(group, row->name, H5T_IEEE_F64LE, H5T_NATIVE_DOUBLE, n_dim, shape, values);
    if (dataset < 0) return false;
    bool good = describe(dataset, row);
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

static description describe_statistic(const mdp_stats *stats, const mdp_layer_stats *layer, const mdp_statistic *row) {
    return (description){.name = row->name,
                         .meaning = row->meaning,
                         .unit = row->unit,
                         .source = row->source,
                         .merges = row->merge == MDP_MERGE_MAX ? "max" : "sum",
                         .n_sample = row->all_tokens ? stats->n_token : stats->n_token * layer->top_k};
}

/* A sum as f64 and its limbs. values is scratch for [n_category, n_expert]. */
static bool write_sum(hid_t group, const mdp_stats *stats, const mdp_layer_stats *layer, int id, double *values) {
    const description row = describe_statistic(stats, layer, &mdp_statistics[id]);
    hsize_t shape[3] = {(hsize_t)stats->n_category, (hsize_t)layer->n_expert, MDP_LIMBS};
    int64_t n = (int64_t)stats->n_category * layer->n_expert;
    const mdp_exact *sums = layer->sums + id * n;
    for (int64_t i = 0; i < n; i++) values[i] = mdp_exact_value(&sums[i]);
    return write_described(group, &row, 2, shape, values) &&
           write_limbs(group, row.name, shape, sums,
                       "the same sums as fixed-point limbs: limb i has weight 2^(32 i - 160)");
}

static bool write_max(hid_t group, const mdp_stats *stats, const mdp_layer_stats *layer, int id) {
    const description row = describe_statistic(stats, layer, &mdp_statistics[id]);
    hsize_t shape[2] = {(hsize_t)stats->n_category, (hsize_t)layer->n_expert};
    const double *values = layer->maxima + (int64_t)(id - MDP_N_SUM) * stats->n_category * layer->n_expert;
    return write_described(group, &row, 2, shape, values);
}

/* ---- sets of experts ------------------------------------------------------------------------------------------ */

static bool write_losses(hid_t group, const char *name, const char *meaning, int64_t n, const double *values) {
    hsize_t shape = (hsize_t)n;
    hid_t dataset = write_array(group, name, H5T_IEEE_F64LE, H5T_NATIVE_DOUBLE, 1, &shape, values);
    bool good = dataset >= 0 && write_text_attribute(dataset, "meaning", meaning);
    return (dataset < 0 || H5Dclose(dataset) >= 0) && good;
}

/* The sets of one size. */
static bool write_sets(hid_t parent, const mdp_layer_stats *layer, const mdp_subsets *sets) {
    char name[32];
    hsize_t shape = (hsize_t)sets->keep;
    snprintf(name, sizeof name, "%d", (int)sets->keep);
    hid_t group = create_group(parent, name);
    if (group < 0) return false;
    hid_t kept = write_array(group, "kept", H5T_STD_I32LE, H5T_NATIVE_INT32, 1, &shape, sets->kept);
    bool good = kept >= 0 && write_text_attribute(kept, "meaning", "the set of experts that loses least");
    if (kept >= 0) good = H5Dclose(kept) >= 0 && good;
    good = good && write_text_attribute(group, "search", mdp_subset_search_names[sets->search]) &&
           write_number_attribute(group, "n_tried", sets->n_tried) &&
           write_losses(group, "best", "what it loses, and the best of the others", 2,
                        (const double[2]){sets->loss, sets->next}) &&
           write_losses(group, "without", "least loss of the sets that leave the expert out", layer->n_expert,
                        sets->without);
    if (sets->losses)
        good = good && write_losses(group, "losses", "of every set of this size, in lexicographic order", sets->n_tried,
                                    sets->losses);
    return H5Gclose(group) >= 0 && good;
}

static bool write_subsets(hid_t parent, const mdp_layer_stats *layer) {
    if (layer->n_subsets == 0) return true;
    hid_t group = create_group(parent, MDP_STATS_SUBSETS);
    bool good = group >= 0;
    for (int i = 0; good && i < layer->n_subsets; i++) good = write_sets(group, layer, &layer->subsets[i]);
    return (group < 0 || H5Gclose(group) >= 0) && good;
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
    if (layer->d_ff > 0) good = good && write_number_attribute(group, "d_ff", layer->d_ff);
    if (layer->n_group > 1)
        good = good && write_number_attribute(group, "n_group", layer->n_group) &&
               write_number_attribute(group, "n_open", layer->n_open);
    for (int id = 0; good && id < MDP_N_SUM; id++) good = write_sum(group, stats, layer, id, values);
    for (int id = MDP_N_SUM; good && id < MDP_N_STATISTIC; id++) good = write_max(group, stats, layer, id);
    good = good && write_subsets(group, layer);
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

/* What was collected for similarities; nothing where nothing was. */
static bool write_request(hid_t file, const mdp_stats *stats) {
    const mdp_similarity_request *request = &stats->similarity;
    char *names = NULL;
    if (request->norms != MDP_NORMS_NONE &&
        !write_text_attribute(file, "channel_norms", mdp_channel_norms_names[request->norms]))
        return false;
    if (request->wanted == 0) return true;
    bool good = mdp_similarity_print(request->wanted, &names).code == MDP_OK &&
                write_text_attribute(file, "similarities", names);
    mdp_free(names);
    if (!good || request->probe_tokens == 0) return good;
    return write_number_attribute(file, "probe_tokens", request->probe_tokens) &&
           write_number_attribute(file, "probe_seed", (int64_t)request->seed);
}

static mdp_status write_content(hid_t file, const mdp_stats *stats, const char *path) {
    MDP_TRY(mdp_fault(MDP_IO, "write to HDF5"));
    if (!write_text_attribute(file, "format", MDP_STATS_FORMAT) ||
        !write_text_attribute(file, "version", MDP_STATS_VERSION) ||
        !write_text_attribute(file, "model", stats->model_fingerprint) ||
        !write_text_attribute(file, "tokens", stats->tokens_fingerprint) ||
        !write_text_attribute(file, "model_type", stats->model_type) ||
        !write_text_attribute(file, "options", stats->pruned_inputs ? MDP_STATS_PRUNED : MDP_STATS_ORIGINAL) ||
        (stats->subsets && !write_text_attribute(file, MDP_STATS_SUBSETS, stats->subsets)) ||
        (stats->compute[0] != '\0' && !write_text_attribute(file, "compute", stats->compute)) ||
        !write_number_attribute(file, "d_model", stats->d_model) ||
        !write_number_attribute(file, "n_tokens", stats->n_token) || !write_request(file, stats) ||
        !write_categories(file, stats)) {
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
static mdp_status write_scalars(const mdp_stats *stats, const char *path, hid_t *file) {
    unlink(path); /* what a killed run left */
    MDP_TRY(mdp_h5_create_old_file(path, file));
    return write_content(*file, stats, path);
}

/* ---- vectors ------------------------------------------------------------------------------------------------- */

static int64_t samples_of(const mdp_stats *stats, const mdp_layer_stats *layer, mdp_vector_id id) {
    if (id == MDP_OUTPUT_SUM || id == MDP_GATED_OUTPUT_SUM || (id >= MDP_GATED_INPUT_SQUARE && !mdp_vectors[id].late))
        return stats->n_token * layer->top_k;
    if (mdp_vectors[id].join == MDP_JOIN_SAME) return 0;
    return mdp_vectors[id].late ? (int64_t)stats->n_probe : stats->n_token;
}

/* One of a layer's vectors as f64 and its limbs. */
static mdp_status write_vector(hid_t group, const mdp_stats *stats, const mdp_layer_stats *layer, mdp_vector_id id,
                               const char *path) {
    static const char *const merges[] = {
        [MDP_JOIN_SUM] = "sum", [MDP_JOIN_SAME] = "same", [MDP_JOIN_NONE] = "not at all"};
    const mdp_vector *vector = &mdp_vectors[id];
    const mdp_short_sum *sums = layer->vectors[id];
    int64_t width = mdp_vector_width(id, layer->n_expert, stats->d_model, layer->d_ff), n = layer->n_expert * width;
    const description row = {.name = vector->name,
                             .meaning = vector->meaning,
                             .unit = vector->unit,
                             .source = vector->source,
                             .merges = merges[vector->join],
                             .n_sample = samples_of(stats, layer, id)};
    double *values = NULL;
    MDP_TRY(MDP_ALLOC(&values, n, "vectors of experts"));
    for (int64_t i = 0; i < n; i++) values[i] = mdp_short_value(&sums[i]);
    hsize_t shape[3] = {(hsize_t)layer->n_expert, (hsize_t)width, MDP_SHORT_LIMBS};
    bool good = write_described(group, &row, 2, shape, values) &&
                write_limbs(group, row.name, shape, sums,
                            "the same sums as fixed-point limbs: limb i has weight 2^(32 i - 64)");
    mdp_free(values);
    return good ? mdp_ok() : broken(path, "the vectors of a layer");
}

static bool write_matrix(hid_t group, const mdp_similarity *row, int32_t n_expert, const double *values) {
    hsize_t shape[2] = {(hsize_t)n_expert, (hsize_t)n_expert};
    hid_t dataset = write_array(group, row->name, H5T_IEEE_F64LE, H5T_NATIVE_DOUBLE, 2, shape, values);
    bool good = dataset >= 0 && write_text_attribute(dataset, "meaning", row->help) &&
                write_text_attribute(dataset, "kind", row->is_distance ? "distance" : "similarity") &&
                write_text_attribute(dataset, "source", row->source);
    return (dataset < 0 || H5Dclose(dataset) >= 0) && good;
}

/* The matrices that were asked for, of the one layer in stats: for people and h5py, a reader makes them anew. */
static mdp_status write_similarities(hid_t group, mdp_stats *stats, const char *path) {
    mdp_status status = mdp_ok();
    if (stats->similarity.wanted == 0) return status;
    hid_t inner = create_group(group, MDP_STATS_SIMILARITY);
    if (inner < 0) return broken(path, "the similarities of a layer");
    for (int i = 0; i < MDP_N_SIMILARITY && status.code == MDP_OK; i++) {
        mdp_similarity_id id = (mdp_similarity_id)i;
        if (!(stats->similarity.wanted >> i & 1)) continue;
        status = mdp_layer_make_similarity(stats, 0, id);
        if (status.code == MDP_OK &&
            !write_matrix(inner, &mdp_similarities[i], stats->layers->n_expert, mdp_stats_similarity(stats, 0, id)))
            status = broken(path, "the similarities of a layer");
    }
    if (H5Gclose(inner) < 0 && status.code == MDP_OK) status = broken(path, "the similarities of a layer");
    return status;
}

/* The vectors of the one layer in stats, and the matrices made from them. Rank 0. */
static mdp_status write_layer_vectors(hid_t file, mdp_stats *stats, const char *path) {
    const mdp_layer_stats *layer = stats->layers;
    char name[64];
    MDP_TRY(mdp_fault(MDP_IO, "write to HDF5"));
    snprintf(name, sizeof name, "layers/%lld", (long long)layer->layer);
    hid_t group = H5Gopen2(file, name, H5P_DEFAULT);
    mdp_status status = group >= 0 ? mdp_ok() : broken(path, "the vectors of a layer");
    for (int id = 0; id < MDP_N_VECTOR && status.code == MDP_OK; id++)
        if (layer->vectors[id]) status = write_vector(group, stats, layer, (mdp_vector_id)id, path);
    if (status.code == MDP_OK) status = write_similarities(group, stats, path);
    if (group >= 0 && H5Gclose(group) < 0 && status.code == MDP_OK) status = broken(path, "the vectors of a layer");
    return status;
}

/* The vectors of a layer come to rank 0, which has room for them in `one`. */
static mdp_status gather_vectors_all(const mdp_comm *comm, const mdp_stats *stats, const mdp_layer_stats *layer,
                                     mdp_layer_stats *one) {
    unsigned wanted = mdp_similarity_vectors(&stats->similarity);
    for (int id = 0; id < MDP_N_VECTOR; id++) {
        int64_t width = mdp_vector_width((mdp_vector_id)id, layer->n_expert, stats->d_model, layer->d_ff), n_got = 0;
        int64_t n_byte = layer->n_expert * width * (int64_t)sizeof(mdp_short_sum);
        void *got = NULL;
        one->vectors[id] = NULL;
        if (!(wanted >> id & 1)) continue;
        MDP_TRY(mdp_gather_bytes_all(comm, layer->vectors[id], layer->vectors[id] ? n_byte : 0, 0, &got, &n_got));
        if (n_got == n_byte)
            one->vectors[id] = got;
        else
            mdp_free(got);
    }
    return mdp_ok();
}

/* Vectors of every layer, from the rank that has them through rank 0, which holds one layer at a time, to the file. */
static mdp_status write_vectors_all(const mdp_comm *comm, hid_t file, const mdp_stats *stats, const char *path) {
    for (int64_t l = 0; l < stats->n_layer; l++) {
        mdp_stats shown = *stats;
        mdp_layer_stats one = stats->layers[l];
        memset(one.vectors, 0, sizeof one.vectors);
        memset(one.similarity, 0, sizeof one.similarity);
        shown.layers = &one;
        mdp_status status = gather_vectors_all(comm, stats, &stats->layers[l], &one);
        if (comm->rank == 0 && status.code == MDP_OK) status = write_layer_vectors(file, &shown, path);
        for (int id = 0; id < MDP_N_VECTOR; id++) mdp_free(one.vectors[id]);
        for (int id = 0; id < MDP_N_SIMILARITY; id++) mdp_free(one.similarity[id]);
        MDP_AGREE(comm, status);
    }
    return mdp_ok();
}

/* ---- the file ------------------------------------------------------------------------------------------------ */

static mdp_status write_file_all(const mdp_comm *comm, const mdp_stats *stats, const char *path) {
    hid_t file = -1;
    mdp_status status = mdp_ok();
    if (comm->rank == 0) status = write_scalars(stats, path, &file);
    status = mdp_agree_all(comm, status);
    if (status.code == MDP_OK) status = write_vectors_all(comm, file, stats, path);
    if (comm->rank == 0 && status.code == MDP_OK && !write_number_attribute(file, "complete", 1))
        status = broken(path, "its last part");
    if (comm->rank == 0 && file >= 0) {
        if (status.code == MDP_OK) status = mdp_seal_make(file, path);
        status = mdp_hdf5_close_written(file, path, status);
        if (status.code == MDP_OK) status = mdp_seal_write(path, NULL, 0);
    }
    return mdp_agree_all(comm, status);
}

mdp_status mdp_stats_write_all(const mdp_comm *comm, const mdp_stats *stats, const char *path) {
    mdp_status status = write_file_all(comm, stats, path);
    if (comm->rank == 0) {
        if (status.code == MDP_OK) status = mdp_h5_sync(path);
        if (status.code != MDP_OK) unlink(path);
    }
    return mdp_agree_all(comm, status);
}
