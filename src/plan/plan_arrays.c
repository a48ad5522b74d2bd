/* plan_arrays.c - plan.h5: the arrays that a plan's actions name, checked against their checksums.
 *
 * plan.h5 lies beside plan.json under the same name. Nothing is read into the plan: whoever carries an action out reads
 * its array, and by then it is known to be there and to be the one that was meant. */
#include "checkpoint/hdf5_read.h"
#include "mdp/plan.h"

#include <string.h>

static mdp_status arrays_path(const mdp_plan *plan, char **out) {
    size_t n = plan->path ? strlen(plan->path) : 0;
    if (n > 5 && strcmp(plan->path + n - 5, ".json") == 0) n -= 5;
    return mdp_format(out, "%.*s.h5", (int)n, plan->path ? plan->path : "");
}

/* The numbers of a dataset as they are stored. */
static mdp_status digest_of(hid_t dataset, const char *path, const char *place, mdp_digest *out) {
    int n_dim = 0;
    int64_t shape[MDP_MAX_DIM] = {0}, n = 1, n_byte = 0;
    char *bytes = NULL;
    MDP_TRY(mdp_hdf5_shape(path, place, dataset, &n_dim, shape));
    MDP_TRY(mdp_hdf5_check_shape(path, place, dataset, n_dim, shape));
    for (int i = 0; i < n_dim; i++) n *= shape[i];
    hid_t type = H5Dget_type(dataset);
    H5T_class_t class = H5Tget_class(type);
    mdp_status status = mdp_ok();
    if ((class != H5T_INTEGER && class != H5T_FLOAT) || !mdp_multiply(n, (int64_t)H5Tget_size(type), &n_byte))
        status = MDP_ERROR(MDP_BAD_INPUT, "%s: %s holds no numbers.", path, place);
    if (status.code == MDP_OK) status = MDP_ALLOC(&bytes, n_byte, "an array of a plan");
    if (status.code == MDP_OK) status = mdp_hdf5_read(path, place, dataset, type, n, bytes);
    if (status.code == MDP_OK) *out = mdp_hash_bytes(bytes, n_byte);
    mdp_free(bytes);
    H5Tclose(type);
    return status;
}

static mdp_status check_array(hid_t file, const char *path, const mdp_plan_layer *layer, const mdp_plan_expert *expert,
                              const mdp_plan_array *array) {
    mdp_digest digest;
    hid_t dataset;
    if (!mdp_hdf5_has(file, array->path))
        return MDP_ERROR(MDP_BAD_INPUT, "%s: has no array '%s', which layer %lld, expert %d, needs as '%s'.", path,
                         array->path, (long long)layer->layer, (int)expert->from[0], array->name);
    MDP_TRY(mdp_hdf5_open_dataset(path, file, array->path, &dataset));
    mdp_status status = digest_of(dataset, path, array->path, &digest);
    H5Dclose(dataset);
    MDP_TRY(status);
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
    MDP_TRY(arrays_path(plan, &path));
    hid_t file = H5I_INVALID_HID;
    mdp_status status = mdp_hdf5_open(path, "the arrays that the plan beside it names", &file);
    if (status.code == MDP_OK) status = check_all(file, path, plan);
    if (file >= 0) H5Fclose(file);
    mdp_free(path);
    return status;
}
