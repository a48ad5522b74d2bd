/* hdf5_read.c - reading small things from HDF5 files: existence, attributes, texts, shapes.
 *
 * Every failure becomes one sentence with the file and the object; the library's own report is switched off. Texts are
 * fixed-length by our formats; others are refused. */
#include "checkpoint/hdf5_read.h"

#include <inttypes.h>
#include <string.h>

mdp_status mdp_hdf5_open(const char *path, const char *what, hid_t *file) {
    int fd;
    *file = H5I_INVALID_HID;
    MDP_TRY(mdp_file_open_read(path, &fd)); /* HDF5 would not say why a file cannot be opened */
    MDP_TRY(mdp_file_close(path, fd));
    H5Eset_auto2(H5E_DEFAULT, NULL, NULL);
    if (H5Fis_hdf5(path) <= 0) {
        return MDP_ERROR(MDP_BAD_INPUT, "%s: this is no HDF5 file; expected %s.", path, what);
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
        status = MDP_ERROR(MDP_IO, "%s: attribute '%s' of %s cannot be read.", path, name, place);
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

static mdp_status read_text(const char *path, const char *name, hid_t dataset, char **out, int64_t *n_byte) {
    hid_t type = H5Dget_type(dataset), space = H5Dget_space(dataset);
    mdp_status status = mdp_ok();
    if (!is_one_fixed_text(type, space)) {
        status = MDP_ERROR(MDP_BAD_INPUT, "%s: %s is not one text of fixed length.", path, name);
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
