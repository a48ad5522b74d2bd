/* hdf5_read.c - reading small things from HDF5 files: existence, attributes, texts, shapes.
 *
 * Every failure becomes one sentence with the file and the object; the library's own report is switched off. Texts are
 * fixed-length by our formats; others are refused. */
#include "checkpoint/hdf5_read.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

mdp_status mdp_hdf5_open(const char *path, const char *what, hid_t *file) {
    int fd;
    *file = H5I_INVALID_HID;
    MDP_TRY(mdp_file_open_read(path, &fd)); /* HDF5 would not say why a file cannot be opened */
    MDP_TRY(mdp_file_close(path, fd));
    H5Eset_auto2(H5E_DEFAULT, NULL, NULL);
    if (H5Fis_hdf5(path) <= 0) {
        const char *found = mdp_recognise_file(path);
        return MDP_ERROR(MDP_BAD_INPUT, "%s: this is no HDF5 file; expected %s%s%s.", path, what,
                         found ? ", found " : "", found ? found : "");
    }
    *file = H5Fopen(path, H5F_ACC_RDONLY, H5P_DEFAULT);
    if (*file < 0) {
        return MDP_ERROR(MDP_BAD_INPUT,
                         "%s: the HDF5 file cannot be opened: it is truncated, damaged, or still being written.", path);
    }
    return mdp_ok();
}

bool mdp_hdf5_has_attribute(hid_t object, const char *name) {
    return H5Aexists(object, name) > 0;
}

bool mdp_hdf5_has(hid_t file, const char *name) {
    return H5Lexists(file, name, H5P_DEFAULT) > 0;
}

/* ---- attributes ---------------------------------------------------------------------------------------------- */

static mdp_status open_attribute(const char *path, const char *place, hid_t object, const char *name, hid_t *out) {
    *out = H5I_INVALID_HID;
    MDP_TRY(mdp_fault(MDP_IO, "read an attribute"));
    if (!mdp_hdf5_has_attribute(object, name)) {
        return MDP_ERROR(MDP_BAD_INPUT, "%s: %s has no attribute '%s'.", path, place, name);
    }
    *out = H5Aopen(object, name, H5P_DEFAULT);
    if (*out < 0) return MDP_ERROR(MDP_IO, "%s: attribute '%s' of %s cannot be opened.", path, name, place);
    return mdp_ok();
}

static bool is_one_fixed_text(hid_t type, hid_t space) {
    return H5Tget_class(type) == H5T_STRING && H5Tis_variable_str(type) == 0 &&
           H5Sget_simple_extent_npoints(space) == 1;
}

mdp_status mdp_hdf5_text_attribute(const char *path, const char *place, hid_t object, const char *name, char **out) {
    hid_t attribute;
    MDP_TRY(open_attribute(path, place, object, name, &attribute));
    hid_t type = H5Aget_type(attribute), space = H5Aget_space(attribute);
    mdp_status status = mdp_ok();
    if (!is_one_fixed_text(type, space)) {
        status =
            MDP_ERROR(MDP_BAD_INPUT, "%s: attribute '%s' of %s is not one text of fixed length.", path, name, place);
    }
    if (status.code == MDP_OK) status = MDP_ALLOC(out, (int64_t)H5Tget_size(type) + 1, "attribute");
    if (status.code == MDP_OK && H5Aread(attribute, type, *out) < 0) {
        mdp_free(*out);
        *out = NULL;
        status = MDP_ERROR(MDP_IO, "%s: attribute '%s' of %s cannot be read.", path, name, place);
    }
    if (status.code == MDP_OK && !mdp_text_is_plain(*out)) {
        status = MDP_ERROR(MDP_BAD_INPUT, "%s: attribute '%s' of %s, '%s', is not UTF-8, or has control characters.",
                           path, name, place, *out);
        mdp_free(*out);
        *out = NULL;
    }
    H5Sclose(space);
    H5Tclose(type);
    H5Aclose(attribute);
    return status;
}

mdp_status mdp_hdf5_integer_attribute(const char *path, const char *place, hid_t object, const char *name,
                                      int64_t *out) {
    hid_t attribute;
    MDP_TRY(open_attribute(path, place, object, name, &attribute));
    hid_t type = H5Aget_type(attribute), space = H5Aget_space(attribute);
    mdp_status status = mdp_ok();
    if (H5Tget_class(type) != H5T_INTEGER || H5Sget_simple_extent_npoints(space) != 1) {
        status = MDP_ERROR(MDP_BAD_INPUT, "%s: attribute '%s' of %s is not one integer.", path, name, place);
    } else if (H5Aread(attribute, H5T_NATIVE_INT64, out) < 0) {
        status = MDP_ERROR(MDP_IO, "%s: attribute '%s' of %s cannot be read.", path, name, place);
    }
    H5Sclose(space);
    H5Tclose(type);
    H5Aclose(attribute);
    return status;
}

/* ---- datasets ------------------------------------------------------------------------------------------------ */

#define DEFLATE_RATIO 1032 /* values that compress best: 1032 bytes become one */

bool mdp_hdf5_is_written(int64_t dataset) {
    hid_t type = H5Dget_type(dataset), space = H5Dget_space(dataset), create = H5Dget_create_plist(dataset);
    int64_t n_value = H5Sget_simple_extent_npoints(space), n_byte = -1;
    bool good = mdp_multiply(n_value, (int64_t)H5Tget_size(type), &n_byte);
    if (H5Pget_nfilters(create) > 0) n_byte /= DEFLATE_RATIO;
    good = good && H5Dget_storage_size(dataset) >= (hsize_t)n_byte;
    H5Pclose(create);
    H5Sclose(space);
    H5Tclose(type);
    return good;
}

static mdp_status read_text(const char *path, const char *name, hid_t dataset, char **out, int64_t *n_byte) {
    hid_t type = H5Dget_type(dataset), space = H5Dget_space(dataset);
    mdp_status status = mdp_ok();
    if (!is_one_fixed_text(type, space)) {
        status = MDP_ERROR(MDP_BAD_INPUT, "%s: %s is not one text of fixed length.", path, name);
    } else if (!mdp_hdf5_is_written(dataset)) {
        status = MDP_ERROR(MDP_BAD_INPUT, "%s: %s was never written in full; write the file again.", path, name);
    }
    if (status.code == MDP_OK) status = MDP_ALLOC(out, (int64_t)H5Tget_size(type) + 1, name);
    if (status.code == MDP_OK && H5Dread(dataset, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, *out) < 0) {
        mdp_free(*out);
        status = MDP_ERROR(MDP_IO, "%s: %s cannot be read.", path, name);
    }
    if (status.code == MDP_OK) *n_byte = (int64_t)strlen(*out);
    H5Sclose(space);
    H5Tclose(type);
    return status;
}

mdp_status mdp_hdf5_text_dataset(const char *path, hid_t file, const char *name, char **out, int64_t *n_byte) {
    MDP_TRY(mdp_fault(MDP_IO, "read a text"));
    hid_t dataset = H5Dopen2(file, name, H5P_DEFAULT);
    if (dataset < 0) return MDP_ERROR(MDP_BAD_INPUT, "%s: there is no dataset %s.", path, name);
    mdp_status status = read_text(path, name, dataset, out, n_byte);
    H5Dclose(dataset);
    return status;
}

mdp_status mdp_hdf5_shape(const char *path, const char *place, hid_t dataset, int *n_dim, int64_t shape[MDP_MAX_DIM]) {
    hsize_t dims[MDP_MAX_DIM] = {0};
    hid_t space = H5Dget_space(dataset);
    int found = H5Sget_simple_extent_ndims(space);
    H5S_class_t class = H5Sget_simple_extent_type(space);
    if (found >= 0 && found <= MDP_MAX_DIM) H5Sget_simple_extent_dims(space, dims, NULL);
    H5Sclose(space);
    if (class != H5S_SCALAR && class != H5S_SIMPLE) {
        return MDP_ERROR(MDP_BAD_INPUT, "%s: %s has no data space that we know.", path, place);
    }
    if (found < 0 || found > MDP_MAX_DIM) {
        return MDP_ERROR(MDP_BAD_INPUT, "%s: %s has %d dimensions; at most %d are supported.", path, place, found,
                         MDP_MAX_DIM);
    }
    *n_dim = found;
    for (int i = 0; i < found; i++) {
        if (dims[i] > INT64_MAX) {
            return MDP_ERROR(MDP_BAD_INPUT, "%s: dimension %d of %s is too large.", path, i, place);
        }
        shape[i] = (int64_t)dims[i];
    }
    return mdp_ok();
}

static mdp_status read_integers(const char *path, const char *place, hid_t dataset, int64_t **out, int64_t *n) {
    int n_dim = 0;
    int64_t shape[MDP_MAX_DIM] = {0};
    MDP_TRY(mdp_hdf5_shape(path, place, dataset, &n_dim, shape));
    hid_t type = H5Dget_type(dataset);
    bool integers = H5Tget_class(type) == H5T_INTEGER;
    H5Tclose(type);
    if (n_dim != 1 || !integers) return MDP_ERROR(MDP_BAD_INPUT, "%s: %s is not a row of integers.", path, place);
    if (!mdp_hdf5_is_written(dataset))
        return MDP_ERROR(MDP_BAD_INPUT, "%s: %s was never written in full; write the file again.", path, place);
    *n = shape[0];
    MDP_TRY(MDP_ALLOC(out, *n, place));
    if (*n == 0 || H5Dread(dataset, H5T_NATIVE_INT64, H5S_ALL, H5S_ALL, H5P_DEFAULT, *out) >= 0) return mdp_ok();
    mdp_free(*out);
    *out = NULL;
    return MDP_ERROR(MDP_IO, "%s: %s cannot be read; the file is damaged.", path, place);
}

mdp_status mdp_hdf5_integers(const char *path, hid_t file, const char *place, int64_t **out, int64_t *n) {
    MDP_TRY(mdp_fault(MDP_IO, "read integers"));
    hid_t dataset = mdp_hdf5_has(file, place) ? H5Dopen2(file, place, H5P_DEFAULT) : H5I_INVALID_HID;
    if (dataset < 0) return MDP_ERROR(MDP_BAD_INPUT, "%s: there is no dataset %s.", path, place);
    mdp_status status = read_integers(path, place, dataset, out, n);
    H5Dclose(dataset);
    return status;
}

/* ---- groups -------------------------------------------------------------------------------------------------- */

typedef struct group_list {
    const char *path;
    char **names;
    int n, capacity;
    mdp_status status;
} group_list;

static mdp_status add_group(group_list *list, const char *name) {
    MDP_TRY(mdp_name_check(list->path, "a group", name));
    if (list->n == list->capacity) {
        int capacity = list->capacity == 0 ? 16 : 2 * list->capacity;
        MDP_TRY(MDP_GROW(&list->names, list->n, capacity, "groups"));
        list->capacity = capacity;
    }
    MDP_TRY(mdp_copy_text(&list->names[list->n], name));
    list->n++;
    return mdp_ok();
}

static herr_t visit_link(hid_t root, const char *name, const H5L_info_t *info, void *context) {
    (void)info;
    group_list *list = context;
    hid_t object = H5Oopen(root, name, H5P_DEFAULT);
    bool is_group = object >= 0 && H5Iget_type(object) == H5I_GROUP;
    if (object >= 0) H5Oclose(object);
    if (is_group) list->status = add_group(list, name);
    return list->status.code == MDP_OK ? 0 : 1; /* not 0 stops */
}

static int compare_names(const void *left, const void *right) {
    return strcmp(*(char *const *)left, *(char *const *)right);
}

mdp_status mdp_hdf5_groups(const char *path, hid_t file, char ***names, int *n) {
    group_list list = {.path = path, .status = mdp_ok()};
    MDP_TRY(mdp_fault(MDP_IO, "list a file"));
    if (H5Literate(file, H5_INDEX_NAME, H5_ITER_INC, NULL, visit_link, &list) < 0) {
        list.status = MDP_ERROR(MDP_IO, "%s: the file cannot be listed; it is damaged.", path);
    }
    if (list.status.code != MDP_OK) {
        for (int i = 0; i < list.n; i++) mdp_free(list.names[i]);
        mdp_free(list.names);
        return list.status;
    }
    if (list.n > 1) qsort(list.names, (size_t)list.n, sizeof *list.names, compare_names);
    *names = list.names;
    *n = list.n;
    return mdp_ok();
}
