/* plan_arrays.c - plan.h5: the arrays that a plan's actions name, checked against their checksums.
 *
 * plan.h5 lies beside plan.json under the same name. Nothing is read into the plan: whoever carries an action out reads
 * its array, and by then it is known to be there and to be the one that was meant. Ranks share the arrays out in runs,
 * in the order of the plan, so the error of the lowest rank is about the first array that is wrong; an array goes
 * through a buffer of one size, however large it is. */
#include "mdp/plan.h"

#include <hdf5.h>
#include <string.h>

#define PIECE_BYTE ((size_t)4 << 20)

static mdp_status arrays_path(const mdp_plan *plan, char **out) {
    size_t n = plan->path ? strlen(plan->path) : 0;
    if (n > 5 && strcmp(plan->path + n - 5, ".json") == 0) n -= 5;
    return mdp_format(out, "%.*s.h5", (int)n, plan->path ? plan->path : "");
}

/* A dataset that is read piece by piece: runs of entries along one dimension, single ones along those before it. */
typedef struct pieces {
    hid_t dataset, type, space;
    int n_dim, along;
    hsize_t shape[H5S_MAX_RANK];
    hsize_t first[H5S_MAX_RANK], count[H5S_MAX_RANK]; /* of the piece at hand */
    hsize_t most;                                     /* entries along that dimension of a piece */
    hsize_t entry_byte;
} pieces;

/* The dimension whose entries fit into a piece; of shapes that hold at least one value. */
static void cut(pieces *p) {
    p->n_dim = H5Sget_simple_extent_dims(p->space, p->shape, NULL);
    p->entry_byte = H5Tget_size(p->type);
    p->along = p->n_dim - 1;
    while (p->along > 0 && p->entry_byte * p->shape[p->along] <= PIECE_BYTE) p->entry_byte *= p->shape[p->along--];
    p->most = p->entry_byte < PIECE_BYTE ? PIECE_BYTE / p->entry_byte : 1;
    for (int i = 0; i < p->n_dim; i++) p->count[i] = i > p->along ? p->shape[i] : 1;
}

/* The next piece; false: that was the last. */
static bool advance(pieces *p) {
    for (int i = p->along; i >= 0; i--) {
        p->first[i] += p->count[i];
        if (p->first[i] < p->shape[i]) return true;
        p->first[i] = 0;
    }
    return false;
}

/* All pieces in the order in which they are stored. False: one cannot be read. */
static bool hash_pieces(pieces *p, mdp_hash *hash, char *buffer) {
    bool good = true;
    do {
        hsize_t n_byte = p->entry_byte;
        if (p->n_dim > 0) {
            hsize_t left = p->shape[p->along] - p->first[p->along];
            p->count[p->along] = left < p->most ? left : p->most;
            n_byte *= p->count[p->along];
            good = H5Sselect_hyperslab(p->space, H5S_SELECT_SET, p->first, NULL, p->count, NULL) >= 0;
        }
        hsize_t n_value = n_byte / H5Tget_size(p->type);
        hid_t memory = H5Screate_simple(1, &n_value, NULL);
        good = good && memory >= 0 && H5Dread(p->dataset, p->type, memory, p->space, H5P_DEFAULT, buffer) >= 0;
        if (memory >= 0) H5Sclose(memory);
        if (good) mdp_hash_update(hash, buffer, (int64_t)n_byte);
    } while (good && p->n_dim > 0 && advance(p));
    return good;
}

/* Of a dataset of numbers, all of which are in the file. */
static bool hash_dataset(pieces *p, mdp_digest *out) {
    mdp_hash *hash = NULL;
    char *buffer = NULL;
    bool empty = H5Sget_simple_extent_npoints(p->space) == 0;
    mdp_status status = mdp_hash_new(&hash);
    if (status.code == MDP_OK) status = MDP_ALLOC(&buffer, PIECE_BYTE, "an array of a plan");
    if (!empty) cut(p);
    bool good = status.code == MDP_OK && (empty || hash_pieces(p, hash, buffer));
    if (good) *out = mdp_hash_digest(hash);
    mdp_free(buffer);
    mdp_hash_destroy(hash);
    return good;
}

/* The bytes of a dataset of numbers as they are stored. False: it is none, or cannot be read. */
static bool digest_of(hid_t file, const char *path, mdp_digest *out) {
    pieces p = {.dataset = H5Dopen2(file, path, H5P_DEFAULT)};
    if (p.dataset < 0) return false;
    p.space = H5Dget_space(p.dataset);
    p.type = H5Dget_type(p.dataset);
    H5T_class_t class = H5Tget_class(p.type);
    bool good = (class == H5T_INTEGER || class == H5T_FLOAT) && H5Tget_size(p.type) <= PIECE_BYTE &&
                mdp_hdf5_is_written(p.dataset) && hash_dataset(&p, out);
    H5Tclose(p.type);
    H5Sclose(p.space);
    H5Dclose(p.dataset);
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

/* Arrays first .. end-1 in the order of the plan. */
static mdp_status check_run(hid_t file, const char *path, const mdp_plan *plan, int64_t first, int64_t end) {
    int64_t at = 0;
    for (int64_t i = 0; i < plan->n_layer; i++) {
        for (int32_t j = 0; j < plan->layers[i].n_kept; j++) {
            const mdp_plan_expert *expert = &plan->layers[i].kept[j];
            for (int a = 0; a < expert->n_array; a++, at++)
                if (at >= first && at < end)
                    MDP_TRY(check_array(file, path, &plan->layers[i], expert, &expert->arrays[a]));
        }
    }
    return mdp_ok();
}

mdp_status mdp_plan_check_arrays(const mdp_plan *plan, int rank, int size) {
    char *path = NULL;
    int64_t n = count_arrays(plan), first = n * rank / size, end = n * (rank + 1) / size;
    if (first == end) return mdp_ok();
    MDP_TRY(arrays_path(plan, &path));
    hid_t file = H5Fopen(path, H5F_ACC_RDONLY, H5P_DEFAULT);
    mdp_status status =
        file < 0
            ? MDP_ERROR(MDP_BAD_INPUT, "%s: cannot be opened as HDF5; the plan beside it names arrays in it.", path)
            : check_run(file, path, plan, first, end);
    if (file >= 0) H5Fclose(file);
    mdp_free(path);
    return status;
}
