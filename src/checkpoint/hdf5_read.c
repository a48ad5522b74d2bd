/* hdf5_read.c - reading attributes and datasets: the only place where HDF5 writes into our memory.
 *
 * What is stored is compared with what is wanted before a byte is read: the class of its numbers or texts, the size of
 * each and how many there are. Texts are of fixed length by our formats; others are refused. A dataset must hold all of
 * its values, since memory is taken by its shape. Every failure is one sentence with the file and the object. */
#include "checkpoint/hdf5_read.h"
#include "checkpoint/h5_make.h"

#include <inttypes.h>
#include <string.h>

/* ---- what is stored ------------------------------------------------------------------------------------------ */

/* Of an attribute or a dataset. */
typedef struct stored {
    hid_t type, space; /* to be closed */
    H5T_class_t class;
    size_t size;   /* bytes of a value */
    int64_t n;     /* values */
    bool variable; /* texts of variable length */
} stored;

static void forget(stored *s) {
    if (s->type >= 0) H5Tclose(s->type);
    if (s->space >= 0) H5Sclose(s->space);
}

/* Why the last call of HDF5 failed: the system's reason, or else what is in the file. */
static mdp_status damaged(const char *path, const char *place) {
    char reason[MDP_H5_REASON];
    if (mdp_h5_system_error(reason)) return MDP_ERROR(MDP_IO, "%s: %s cannot be read: %s.", path, place, reason);
    return MDP_ERROR(MDP_BAD_INPUT, "%s: %s cannot be read; the file is damaged.", path, place);
}

#define DEFLATE_RATIO 1032 /* values that compress best: 1032 bytes become one */

/* Does the file hold all values of a dataset? A shape costs a file nothing, but reading by it costs memory. Compressed
 * bytes are believed as far as deflate can compress. */
static bool is_written(hid_t dataset, const stored *s) {
    hid_t create = H5Dget_create_plist(dataset);
    int64_t n_byte = -1;
    bool good = create >= 0 && mdp_multiply(s->n, (int64_t)s->size, &n_byte);
    if (good && H5Pget_nfilters(create) > 0) n_byte /= DEFLATE_RATIO;
    if (create >= 0) H5Pclose(create);
    return good && H5Dget_storage_size(dataset) >= (hsize_t)n_byte;
}

static mdp_status check_stored(const char *path, const char *place, hid_t source, const stored *s) {
    if (s->type < 0 || s->space < 0 || s->size == 0) return damaged(path, place);
    H5S_class_t form = H5Sget_simple_extent_type(s->space);
    if ((form != H5S_SCALAR && form != H5S_SIMPLE) || s->n < 0)
        return MDP_ERROR(MDP_BAD_INPUT, "%s: %s has no data space that we know.", path, place);
    if (H5Iget_type(source) == H5I_DATASET && !is_written(source, s))
        return MDP_ERROR(MDP_BAD_INPUT, "%s: %s was never written in full; write the file again.", path, place);
    return mdp_ok();
}

/* Look at an attribute or a dataset; `out` is to be forgotten on error too. */
static mdp_status look_at(const char *path, const char *place, hid_t source, stored *out) {
    bool attribute = H5Iget_type(source) == H5I_ATTR;
    *out = (stored){.type = attribute ? H5Aget_type(source) : H5Dget_type(source),
                    .space = attribute ? H5Aget_space(source) : H5Dget_space(source),
                    .class = H5T_NO_CLASS};
    if (out->type >= 0) {
        out->class = H5Tget_class(out->type);
        out->size = H5Tget_size(out->type);
        out->variable = out->class == H5T_STRING && H5Tis_variable_str(out->type) != 0;
    }
    if (out->space >= 0) out->n = H5Sget_simple_extent_npoints(out->space);
    return check_stored(path, place, source, out);
}

static const char *name_class(const stored *s) {
    switch (s->class) {
    case H5T_INTEGER:
        return "integers";
    case H5T_FLOAT:
        return "floating-point numbers";
    case H5T_STRING:
        return s->variable ? "texts of variable length" : "texts";
    default:
        return "values of another kind";
    }
}

#define WIDEST_NUMBER 8 /* bytes */

/* Values of a class that converts into the memory's: numbers of usual sizes (what does not fit becomes the greatest
 * that does, which is for the caller to refuse), texts that are not cut. */
static mdp_status check_class(const char *path, const char *place, const stored *s, hid_t memory) {
    const stored wanted = {.class = H5Tget_class(memory)};
    if (s->class != wanted.class || s->variable)
        return MDP_ERROR(MDP_BAD_INPUT, "%s: %s holds %s; expected %s.", path, place, name_class(s),
                         name_class(&wanted));
    size_t most = s->class == H5T_STRING ? H5Tget_size(memory) : WIDEST_NUMBER;
    if (s->size <= most) return mdp_ok();
    return MDP_ERROR(MDP_BAD_INPUT, "%s: %s holds %s of %zu bytes each; expected at most %zu.", path, place,
                     name_class(s), s->size, most);
}

/* ---- reading ------------------------------------------------------------------------------------------------- */

/* The values of `file_space` (datasets alone), which have been looked at, to memory that has room for them. */
static mdp_status take(const char *path, const char *place, hid_t source, hid_t memory, hid_t memory_space,
                       hid_t file_space, void *out) {
    MDP_TRY(mdp_fault(MDP_IO, "read from HDF5"));
    herr_t code = H5Iget_type(source) == H5I_ATTR ? H5Aread(source, memory, out)
                                                  : H5Dread(source, memory, memory_space, file_space, H5P_DEFAULT, out);
    return code >= 0 ? mdp_ok() : damaged(path, place);
}

mdp_status mdp_hdf5_read(const char *path, const char *place, hid_t source, hid_t memory, int64_t n, void *out) {
    stored s;
    mdp_status status;
    MDP_TRY_GOTO(status, end, look_at(path, place, source, &s));
    MDP_TRY_GOTO(status, end, check_class(path, place, &s, memory));
    if (s.n != n)
        status =
            MDP_ERROR(MDP_BAD_INPUT, "%s: %s holds %" PRId64 " values; expected %" PRId64 ".", path, place, s.n, n);
    else if (n > 0)
        status = take(path, place, source, memory, H5S_ALL, H5S_ALL, out);
end:
    forget(&s);
    return status;
}

/* Does it lie in a dataset of so many dimensions? */
static bool is_inside(hid_t space, int n_dim, const int64_t *first, const int64_t *count) {
    hsize_t shape[H5S_MAX_RANK] = {0};
    if (H5Sget_simple_extent_dims(space, NULL, NULL) != n_dim) return false;
    H5Sget_simple_extent_dims(space, shape, NULL);
    for (int i = 0; i < n_dim; i++)
        if (first[i] < 0 || count[i] < 0 || (hsize_t)count[i] > shape[i] ||
            (hsize_t)first[i] > shape[i] - (hsize_t)count[i])
            return false;
    return true;
}

mdp_status mdp_hdf5_read_box(const char *path, const char *place, hid_t dataset, hid_t memory, int n_dim,
                             const int64_t *first, const int64_t *count, void *out) {
    stored s;
    mdp_status status;
    hid_t memory_space = -1;
    hsize_t start[MDP_MAX_DIM] = {0}, counts[MDP_MAX_DIM] = {0}, n = 1;
    MDP_TRY_GOTO(status, end, look_at(path, place, dataset, &s));
    MDP_TRY_GOTO(status, end, check_class(path, place, &s, memory));
    if (!is_inside(s.space, n_dim, first, count)) {
        status = MDP_ERROR(MDP_BAD_INPUT, "%s: %s has fewer values, or dimensions, than expected.", path, place);
        goto end;
    }
    for (int i = 0; i < n_dim; i++) {
        start[i] = (hsize_t)first[i];
        counts[i] = (hsize_t)count[i];
        n *= counts[i];
    }
    if (n == 0) goto end;
    memory_space = H5Screate_simple(1, &n, NULL);
    if (memory_space < 0 || H5Sselect_hyperslab(s.space, H5S_SELECT_SET, start, NULL, counts, NULL) < 0)
        status = damaged(path, place);
    else
        status = take(path, place, dataset, memory, memory_space, s.space, out);
end:
    if (memory_space >= 0) H5Sclose(memory_space);
    forget(&s);
    return status;
}

mdp_status mdp_hdf5_read_run(const char *path, const char *place, hid_t dataset, hid_t memory, int64_t first, int64_t n,
                             void *out) {
    return mdp_hdf5_read_box(path, place, dataset, memory, 1, &first, &n, out);
}

mdp_status mdp_hdf5_read_texts(const char *path, const char *place, hid_t source, int64_t *n, int64_t *width,
                               char **out) {
    stored s;
    mdp_status status;
    int64_t n_byte = 0;
    *out = NULL;
    MDP_TRY_GOTO(status, end, look_at(path, place, source, &s));
    *n = s.n;
    *width = (int64_t)s.size;
    if (s.class != H5T_STRING || s.variable) {
        status =
            MDP_ERROR(MDP_BAD_INPUT, "%s: %s holds %s; expected texts of fixed length.", path, place, name_class(&s));
        goto end;
    }
    if (!mdp_multiply(s.n, *width, &n_byte)) n_byte = INT64_MAX - 1; /* more than there can be */
    MDP_TRY_GOTO(status, end, mdp_alloc((void **)out, n_byte + 1, 1, place));
    if (n_byte > 0) status = take(path, place, source, s.type, H5S_ALL, H5S_ALL, *out);
    if (status.code == MDP_OK) goto end;
    mdp_free(*out);
    *out = NULL;
end:
    forget(&s);
    return status;
}

/* One text, new. */
static mdp_status read_text(const char *path, const char *place, hid_t source, char **out) {
    int64_t n, width;
    MDP_TRY(mdp_hdf5_read_texts(path, place, source, &n, &width, out));
    if (n == 1) return mdp_ok();
    mdp_free(*out);
    *out = NULL;
    return MDP_ERROR(MDP_BAD_INPUT, "%s: %s holds %" PRId64 " texts; expected one.", path, place, n);
}

/* ---- attributes ---------------------------------------------------------------------------------------------- */

bool mdp_hdf5_has_attribute(hid_t object, const char *name) {
    return H5Aexists(object, name) > 0;
}

/* Open it; *what names it in sentences. Both are new. */
static mdp_status open_attribute(const char *path, const char *place, hid_t object, const char *name, char **what,
                                 hid_t *out) {
    *out = H5I_INVALID_HID;
    *what = NULL;
    MDP_TRY(mdp_fault(MDP_IO, "open an attribute"));
    if (!mdp_hdf5_has_attribute(object, name))
        return MDP_ERROR(MDP_BAD_INPUT, "%s: %s has no attribute '%s'.", path, place, name);
    MDP_TRY(mdp_format(what, "attribute '%s' of %s", name, place));
    *out = H5Aopen(object, name, H5P_DEFAULT);
    return *out >= 0 ? mdp_ok() : damaged(path, *what);
}

static mdp_status close_attribute(hid_t attribute, char *what, mdp_status status) {
    if (attribute >= 0) H5Aclose(attribute);
    mdp_free(what);
    return status;
}

mdp_status mdp_hdf5_text_attribute(const char *path, const char *place, hid_t object, const char *name, char **out) {
    hid_t attribute;
    char *what;
    *out = NULL;
    mdp_status status = open_attribute(path, place, object, name, &what, &attribute);
    if (status.code == MDP_OK) status = read_text(path, what, attribute, out);
    if (status.code == MDP_OK && !mdp_text_is_plain(*out)) {
        status = MDP_ERROR(MDP_BAD_INPUT, "%s: %s, '%s', is not UTF-8, or has control characters.", path, what, *out);
        mdp_free(*out);
        *out = NULL;
    }
    return close_attribute(attribute, what, status);
}

mdp_status mdp_hdf5_short_attribute(const char *path, const char *place, hid_t object, const char *name, char *out,
                                    size_t n_byte) {
    char *text = NULL;
    MDP_TRY(mdp_hdf5_text_attribute(path, place, object, name, &text));
    mdp_status status = mdp_ok();
    if (strlen(text) < n_byte)
        memcpy(out, text, strlen(text) + 1);
    else
        status = MDP_ERROR(MDP_BAD_INPUT, "%s: attribute '%s' of %s has %zu characters; expected at most %zu.", path,
                           name, place, strlen(text), n_byte - 1);
    mdp_free(text);
    return status;
}

mdp_status mdp_hdf5_texts_attribute(const char *path, const char *place, hid_t object, const char *name, int64_t *n,
                                    int64_t *width, char **out) {
    hid_t attribute;
    char *what;
    *out = NULL;
    mdp_status status = open_attribute(path, place, object, name, &what, &attribute);
    if (status.code == MDP_OK) status = mdp_hdf5_read_texts(path, what, attribute, n, width, out);
    return close_attribute(attribute, what, status);
}

mdp_status mdp_hdf5_integer_attribute(const char *path, const char *place, hid_t object, const char *name,
                                      int64_t *out) {
    hid_t attribute;
    char *what;
    mdp_status status = open_attribute(path, place, object, name, &what, &attribute);
    if (status.code == MDP_OK) status = mdp_hdf5_read(path, what, attribute, H5T_NATIVE_INT64, 1, out);
    return close_attribute(attribute, what, status);
}

/* ---- datasets ------------------------------------------------------------------------------------------------ */

mdp_status mdp_hdf5_text_dataset(const char *path, hid_t file, const char *name, char **out, int64_t *n_byte) {
    hid_t dataset;
    MDP_TRY(mdp_hdf5_open_dataset(path, file, name, &dataset));
    mdp_status status = read_text(path, name, dataset, out);
    if (status.code == MDP_OK) *n_byte = (int64_t)strlen(*out);
    H5Dclose(dataset);
    return status;
}

mdp_status mdp_hdf5_shape(const char *path, const char *place, hid_t dataset, int *n_dim, int64_t shape[MDP_MAX_DIM]) {
    hsize_t dims[MDP_MAX_DIM] = {0};
    hid_t space = H5Dget_space(dataset);
    if (space < 0) return damaged(path, place);
    int found = H5Sget_simple_extent_ndims(space);
    H5S_class_t class = H5Sget_simple_extent_type(space);
    if (found >= 0 && found <= MDP_MAX_DIM) H5Sget_simple_extent_dims(space, dims, NULL);
    H5Sclose(space);
    if (class != H5S_SCALAR && class != H5S_SIMPLE)
        return MDP_ERROR(MDP_BAD_INPUT, "%s: %s has no data space that we know.", path, place);
    if (found < 0 || found > MDP_MAX_DIM)
        return MDP_ERROR(MDP_BAD_INPUT, "%s: %s has %d dimensions; at most %d are supported.", path, place, found,
                         MDP_MAX_DIM);
    *n_dim = found;
    for (int i = 0; i < found; i++) {
        if (dims[i] > INT64_MAX)
            return MDP_ERROR(MDP_BAD_INPUT, "%s: dimension %d of %s is too large.", path, i, place);
        shape[i] = (int64_t)dims[i];
    }
    return mdp_ok();
}

mdp_status mdp_hdf5_check_shape(const char *path, const char *place, hid_t dataset, int n_dim, const int64_t *shape) {
    int found = 0;
    int64_t dims[MDP_MAX_DIM] = {0};
    MDP_TRY(mdp_hdf5_shape(path, place, dataset, &found, dims));
    bool good = found == n_dim;
    for (int i = 0; good && i < n_dim; i++) good = dims[i] == shape[i];
    if (!good) return MDP_ERROR(MDP_BAD_INPUT, "%s: %s has another shape than expected.", path, place);
    stored s;
    mdp_status status = look_at(path, place, dataset, &s);
    forget(&s);
    return status;
}

mdp_status mdp_hdf5_check_array(const char *path, hid_t parent, const char *name, int n_dim, const int64_t *shape) {
    hid_t dataset;
    MDP_TRY(mdp_hdf5_open_dataset(path, parent, name, &dataset));
    mdp_status status = mdp_hdf5_check_shape(path, name, dataset, n_dim, shape);
    H5Dclose(dataset);
    return status;
}

mdp_status mdp_hdf5_array(const char *path, hid_t parent, const char *name, hid_t memory, int n_dim,
                          const int64_t *shape, void *out) {
    hid_t dataset;
    int64_t n = 1;
    MDP_TRY(mdp_hdf5_open_dataset(path, parent, name, &dataset));
    mdp_status status = mdp_hdf5_check_shape(path, name, dataset, n_dim, shape);
    for (int i = 0; i < n_dim; i++) n *= shape[i]; /* which the file holds */
    if (status.code == MDP_OK) status = mdp_hdf5_read(path, name, dataset, memory, n, out);
    H5Dclose(dataset);
    return status;
}

mdp_status mdp_hdf5_open_row(const char *path, hid_t file, const char *place, hid_t *out, int64_t *n) {
    int n_dim = 0;
    int64_t shape[MDP_MAX_DIM] = {0};
    stored s;
    MDP_TRY(mdp_hdf5_open_dataset(path, file, place, out));
    mdp_status status = mdp_hdf5_shape(path, place, *out, &n_dim, shape);
    if (status.code == MDP_OK) {
        status = look_at(path, place, *out, &s);
        if (s.class != H5T_INTEGER || n_dim != 1)
            status = MDP_ERROR(MDP_BAD_INPUT, "%s: %s is not a row of integers.", path, place);
        forget(&s);
    }
    *n = shape[0];
    if (status.code == MDP_OK) return status;
    H5Dclose(*out);
    *out = H5I_INVALID_HID;
    return status;
}

mdp_status mdp_hdf5_integers(const char *path, hid_t file, const char *place, int64_t **out, int64_t *n) {
    hid_t dataset;
    *out = NULL;
    MDP_TRY(mdp_hdf5_open_row(path, file, place, &dataset, n));
    mdp_status status = MDP_ALLOC(out, *n, place);
    if (status.code == MDP_OK) status = mdp_hdf5_read(path, place, dataset, H5T_NATIVE_INT64, *n, *out);
    H5Dclose(dataset);
    if (status.code == MDP_OK) return status;
    mdp_free(*out);
    *out = NULL;
    return status;
}
