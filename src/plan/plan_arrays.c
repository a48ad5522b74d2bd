/* plan_arrays.c - plan.h5: the arrays that a plan's actions name, checked against their checksums.
 *
 * plan.h5 lies beside plan.json under the same name. Nothing is read into the plan: whoever carries an action out reads
 * its array, and by then it is known to be there and to be the one that was meant. */
#include "mdp/plan.h"

#include <hdf5.h>
#include <string.h>

mdp_status mdp_plan_arrays_path(const mdp_plan *plan, char **out) {
    size_t n = plan->path ? strlen(plan->path) : 0;
    if (n > 5 && strcmp(plan->path + n - 5, ".json") == 0) n -= 5;
    return mdp_format(out, "%.*s.h5", (int)n, plan->path ? plan->path : "");
}

/* The bytes of a dataset of numbers as they are stored. False: it is none, or cannot be read. */
static bool digest_of(hid_t file, const char *path, mdp_digest *out) {
    hid_t dataset = H5Dopen2(file, path, H5P_DEFAULT);
    if (dataset < 0) return false;
    hid_t space = H5Dget_space(dataset), type = H5Dget_type(dataset);
    H5T_class_t class = H5Tget_class(type);
    int64_t n_byte = 0;
    char *bytes = NULL;
    bool good = (class == H5T_INTEGER || class == H5T_FLOAT) && mdp_hdf5_is_written(dataset) &&
                mdp_multiply(H5Sget_simple_extent_npoints(space), (int64_t)H5Tget_size(type), &n_byte);
    mdp_status status = good ? MDP_ALLOC(&bytes, n_byte, "an array of a plan") : mdp_ok();
    good = good && status.code == MDP_OK && H5Dread(dataset, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, bytes) >= 0;
    if (good) *out = mdp_hash_bytes(bytes, n_byte);
    mdp_free(bytes);
    H5Tclose(type);
    H5Sclose(space);
    H5Dclose(dataset);
    return good;
}

static mdp_status check_array(hid_t file, const char *path, const mdp_plan_layer *layer, const mdp_plan_expert *expert,
                              const mdp_plan_array *array) {
    mdp_digest digest;
    if (!digest_of(file, array->path, &digest))
        return MDP_ERROR(MDP_BAD_INPUT, "%s: has no readable array '%s', which layer %lld, expert %d, needs as '%s'.",
                         path, array->path, (long long)layer->layer, (int)expert->from[0], array->name);
    if (strcmp(digest.hex, array->xxh3) == 0) return mdp_ok();
    return MDP_ERROR(MDP_BAD_INPUT,
                     "%s: array '%s' of layer %lld, expert %d, has the checksum %s, the plan says %s; the two files do "
                     "not belong together.",
                     path, array->path, (long long)layer->layer, (int)expert->from[0], digest.hex, array->xxh3);
}

static int64_t count_arrays(const mdp_plan *plan) {
    int64_t n = 0;
    for (int64_t i = 0; i < plan->n_layer; i++) {
        for (int32_t j = 0; j < plan->layers[i].n_kept; j++) n += plan->layers[i].kept[j].n_array;
    }
    return n;
}

static mdp_status check_all(hid_t file, const char *path, const mdp_plan *plan) {
    for (int64_t i = 0; i < plan->n_layer; i++) {
        for (int32_t j = 0; j < plan->layers[i].n_kept; j++) {
            const mdp_plan_expert *expert = &plan->layers[i].kept[j];
            for (int a = 0; a < expert->n_array; a++)
                MDP_TRY(check_array(file, path, &plan->layers[i], expert, &expert->arrays[a]));
        }
    }
    return mdp_ok();
}

mdp_status mdp_plan_check_arrays(const mdp_plan *plan) {
    char *path = NULL;
    if (count_arrays(plan) == 0) return mdp_ok();
    MDP_TRY(mdp_plan_arrays_path(plan, &path));
    hid_t file = H5Fopen(path, H5F_ACC_RDONLY, H5P_DEFAULT);
    mdp_status status =
        file < 0
            ? MDP_ERROR(MDP_BAD_INPUT, "%s: cannot be opened as HDF5; the plan beside it names arrays in it.", path)
            : check_all(file, path, plan);
    if (file >= 0) H5Fclose(file);
    mdp_free(path);
    return status;
}
