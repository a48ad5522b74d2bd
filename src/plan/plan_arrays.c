/* plan_arrays.c - plan.h5: the arrays that a plan's actions name, checked against their checksums.
 *
 * plan.h5 lies beside plan.json under the same name. Nothing is read into the plan: whoever carries an action out reads
 * its array, and by then it is known to be there and to be the one that was meant. Ranks share the arrays out in runs,
 * in the order of the plan, so the error of the lowest rank is about the first array that is wrong; an array goes
 * through a buffer of one size, however large it is. */
#include "checkpoint/hdf5_read.h"
#include "mdp/plan.h"

#include <string.h>

#define PIECE_BYTE ((int64_t)4 << 20)

mdp_status mdp_plan_arrays_name(const char *plan_path, char **out) {
    size_t n = strlen(plan_path);
    if (n > 5 && strcmp(plan_path + n - 5, ".json") == 0) n -= 5;
    return mdp_format(out, "%.*s.h5", (int)n, plan_path);
}

mdp_status mdp_plan_arrays_path(const mdp_plan *plan, char **out) {
    return mdp_plan_arrays_name(plan->path ? plan->path : "", out);
}

/* A dataset that is read piece by piece: runs of entries along one dimension, single ones along those before it. */
typedef struct pieces {
    int n_dim, along;
    int64_t shape[MDP_MAX_DIM], first[MDP_MAX_DIM], count[MDP_MAX_DIM]; /* the last two of the piece at hand */
    int64_t most;                                                       /* entries along that dimension of a piece */
    int64_t entry_byte;
} pieces;

/* The dimension whose entries fit into a piece; of shapes that hold at least one value. */
static void cut(pieces *p, int64_t value_byte) {
    p->entry_byte = value_byte;
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

/* All pieces in the order in which they are stored; of datasets of at least one dimension and value. */
static mdp_status hash_pieces(hid_t dataset, const char *path, const char *place, hid_t type, pieces *p, char *buffer,
                              mdp_hash *hash) {
    do {
        int64_t left = p->shape[p->along] - p->first[p->along];
        p->count[p->along] = left < p->most ? left : p->most;
        MDP_TRY(mdp_hdf5_read_box(path, place, dataset, type, p->n_dim, p->first, p->count, buffer));
        mdp_hash_update(hash, buffer, p->count[p->along] * p->entry_byte);
    } while (advance(p));
    return mdp_ok();
}

static mdp_status hash_values(hid_t dataset, const char *path, const char *place, hid_t type, mdp_hash *hash,
                              char *buffer) {
    pieces p = {0};
    int64_t n = 1, value_byte = (int64_t)H5Tget_size(type);
    H5T_class_t class = H5Tget_class(type);
    if ((class != H5T_INTEGER && class != H5T_FLOAT) || value_byte > PIECE_BYTE)
        return MDP_ERROR(MDP_BAD_INPUT, "%s: %s holds no numbers.", path, place);
    MDP_TRY(mdp_hdf5_shape(path, place, dataset, &p.n_dim, p.shape));
    MDP_TRY(mdp_hdf5_check_shape(path, place, dataset, p.n_dim, p.shape));
    for (int i = 0; i < p.n_dim; i++) n *= p.shape[i]; /* which the file holds */
    if (n == 0) return mdp_ok();
    if (p.n_dim == 0) {
        MDP_TRY(mdp_hdf5_read(path, place, dataset, type, 1, buffer));
        mdp_hash_update(hash, buffer, value_byte);
        return mdp_ok();
    }
    cut(&p, value_byte);
    return hash_pieces(dataset, path, place, type, &p, buffer, hash);
}

/* The numbers of a dataset as they are stored. */
static mdp_status digest_of(hid_t dataset, const char *path, const char *place, mdp_digest *out) {
    mdp_hash *hash = NULL;
    char *buffer = NULL;
    hid_t type = H5Dget_type(dataset);
    mdp_status status = mdp_hash_new(&hash);
    if (status.code == MDP_OK) status = MDP_ALLOC(&buffer, PIECE_BYTE, "an array of a plan");
    if (status.code == MDP_OK) status = hash_values(dataset, path, place, type, hash, buffer);
    if (status.code == MDP_OK) *out = mdp_hash_digest(hash);
    mdp_free(buffer);
    mdp_hash_destroy(hash);
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
    MDP_TRY(mdp_plan_arrays_path(plan, &path));
    hid_t file = H5I_INVALID_HID;
    mdp_status status = mdp_hdf5_open(path, "the arrays that the plan beside it names", &file);
    if (status.code == MDP_OK) status = check_run(file, path, plan, first, end);
    if (file >= 0) H5Fclose(file);
    mdp_free(path);
    return status;
}

bool mdp_plan_has_arrays(const mdp_plan *plan) {
    for (int64_t i = 0; i < plan->n_layer; i++)
        for (int32_t j = 0; j < plan->layers[i].n_kept; j++)
            if (plan->layers[i].kept[j].n_array > 0) return true;
    return false;
}
