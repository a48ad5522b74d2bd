/* build.c - HDF5 files of any content from bytes: a list of objects, edits of it, and the file in memory (core driver).
 *
 * An edit is one byte for what is done, one for the object, and what it needs. Every value that a reader may trip over
 * has a short spelling: types, shapes, extreme numbers, layouts, links. */
#include "fuzz.h"

#include <hdf5.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_OBJECT = 160, MAX_RANK = 10, MAX_DATA = 1 << 14, MAX_PATH = 96 };

typedef enum layout { CONTIGUOUS, CHUNKED, DEFLATED, COMPACT, EXTERNAL, GROWING, N_LAYOUT } layout;
typedef enum link_kind { HARD, SOFT_AWAY, SOFT_NOWHERE, EXTERNAL_LINK, TO_ROOT, N_LINK } link_kind;
typedef enum odd_type {
    PLAIN,
    REVERSED,
    VLEN_TEXT,
    VLEN,
    COMPOUND,
    ARRAY,
    ENUM,
    OPAQUE,
    REFERENCE,
    BITFIELD,
    COMMITTED,
    I8,
    I16,
    N_ODD
} odd_type;

typedef struct object {
    char path[MAX_PATH], attribute[32];
    bool gone;
    fuzz_type type;
    odd_type odd;
    int n_dim; /* -1: null space */
    int64_t shape[MAX_RANK];
    uint8_t *data;
    size_t n_byte;
    layout layout;
    link_kind link;
} object;

struct fuzz_file {
    int n;
    object objects[MAX_OBJECT];
};

fuzz_file *fuzz_file_new(void) {
    fuzz_file *file = calloc(1, sizeof *file);
    fuzz_require(file != NULL, "out of memory");
    return file;
}

void fuzz_file_destroy(fuzz_file *file) {
    for (int i = 0; i < file->n; i++) free(file->objects[i].data);
    free(file);
}

/* The data may be the object's own. */
static void set_data(object *o, const void *data, size_t n_byte) {
    uint8_t *copy = calloc(1, n_byte + 1);
    fuzz_require(copy != NULL, "out of memory");
    if (n_byte > 0) memcpy(copy, data, n_byte);
    free(o->data);
    o->data = copy;
    o->n_byte = n_byte;
}

void fuzz_file_add(fuzz_file *file, const char *path, const char *attribute, fuzz_type type, int n_dim,
                   const int64_t *shape, const void *data, size_t n_byte) {
    fuzz_require(file->n < MAX_OBJECT, "too many objects in a template");
    object *o = &file->objects[file->n++];
    (void)snprintf(o->path, sizeof o->path, "%s", path);
    if (attribute) (void)snprintf(o->attribute, sizeof o->attribute, "%s", attribute);
    o->type = type;
    o->n_dim = n_dim;
    for (int i = 0; i < n_dim; i++) o->shape[i] = shape[i];
    set_data(o, data, n_byte);
}

void fuzz_file_add_text(fuzz_file *file, const char *path, const char *attribute, const char *text) {
    fuzz_file_add(file, path, attribute, FUZZ_TEXT, 0, NULL, text, strlen(text));
}

/* ---- edits --------------------------------------------------------------------------------------------------- */

typedef struct bytes {
    const uint8_t *at, *end;
} bytes;

static unsigned take(bytes *b) {
    return b->at < b->end ? *b->at++ : 0;
}

/* Numbers that readers multiply, add and allocate by. */
static int64_t take_number(bytes *b) {
    static const int64_t known[] = {0,         1,         2,         3,         4,         7,         8,
                                    9,         100,       -1,        INT64_MAX, INT64_MIN, INT32_MAX, (int64_t)1 << 31,
                                    1LL << 20, 1LL << 21, 1LL << 33, 1LL << 40, 1LL << 48, 1LL << 60, 1LL << 61};
    unsigned which = take(b);
    if (which < sizeof known / sizeof known[0]) return known[which];
    if (which < 240) return which;
    uint64_t value = 0;
    for (int i = 0; i < 8; i++) value = value << 8 | take(b);
    return (int64_t)value;
}

static void take_text(bytes *b, char *out, size_t n_byte) {
    size_t n = take(b) % n_byte;
    if (n > (size_t)(b->end - b->at)) n = (size_t)(b->end - b->at);
    memcpy(out, b->at, n);
    b->at += n;
    out[n] = '\0';
}

static void edit_data(object *o, bytes *b) {
    size_t at = take(b), n = take(b) % 65;
    at += 256 * (at > 0 && n > 32);
    if (at + n > o->n_byte || n == 0) n = at < o->n_byte ? o->n_byte - at : 0;
    for (size_t i = 0; i < n && b->at < b->end; i++) o->data[at + i] = (uint8_t)take(b);
}

/* A number of 8 bytes in the data. */
static void edit_number(object *o, bytes *b) {
    size_t at = 8 * (size_t)take(b);
    int64_t value = take_number(b);
    if (at + 8 <= o->n_byte) memcpy(o->data + at, &value, 8);
    if (at + 4 == o->n_byte) memcpy(o->data + at, &value, 4);
}

static void copy_object(fuzz_file *file, const object *o, bytes *b) {
    if (file->n == MAX_OBJECT) return;
    object *copy = &file->objects[file->n++];
    *copy = *o;
    copy->data = NULL;
    set_data(copy, o->data, o->n_byte);
    char name[24];
    take_text(b, name, sizeof name);
    char *slash = strrchr(copy->path, '/');
    if (copy->attribute[0])
        (void)snprintf(copy->attribute, sizeof copy->attribute, "%s", name);
    else if (slash)
        (void)snprintf(slash + 1, (size_t)(copy->path + MAX_PATH - slash - 1), "%s", name);
}

void fuzz_file_edit(fuzz_file *file, const uint8_t *data, size_t n_byte) {
    bytes b = {data, data + n_byte};
    while (b.at < b.end) {
        unsigned what = take(&b);
        object *o = &file->objects[take(&b) % (unsigned)file->n];
        char text[64];
        switch (what % 12) {
        case 0:
            o->gone = !o->gone;
            break;
        case 1:
            o->type = (fuzz_type)(take(&b) % (FUZZ_TEXT_LIST + 1));
            break;
        case 2:
            o->odd = (odd_type)(take(&b) % N_ODD);
            break;
        case 3:
            o->n_dim = (int)(take(&b) % (MAX_RANK + 1)) - 1;
            break;
        case 4: {
            unsigned d = take(&b) % MAX_RANK;
            o->shape[d] = take_number(&b);
            break;
        }
        case 5:
            edit_data(o, &b);
            break;
        case 6:
            edit_number(o, &b);
            break;
        case 7:
            o->layout = (layout)(take(&b) % N_LAYOUT);
            break;
        case 8:
            o->link = (link_kind)(take(&b) % N_LINK);
            break;
        case 9:
            copy_object(file, o, &b);
            break;
        case 10:
            take_text(&b, text, sizeof text);
            set_data(o, text, strlen(text));
            break;
        default: {
            const object *other = &file->objects[take(&b) % (unsigned)file->n];
            set_data(o, other->data, other->n_byte);
            break;
        }
        }
    }
}

/* ---- the file ------------------------------------------------------------------------------------------------ */

static hid_t float_type(size_t exponent, size_t mantissa, size_t bias) {
    hid_t type = H5Tcopy(H5T_IEEE_F32LE);
    H5Tset_fields(type, 15, mantissa, exponent, 0, mantissa);
    H5Tset_offset(type, 0);
    H5Tset_precision(type, 16);
    H5Tset_size(type, 2);
    H5Tset_ebias(type, bias);
    return type;
}

static hid_t text_type(size_t n_byte) {
    hid_t type = H5Tcopy(H5T_C_S1);
    H5Tset_size(type, n_byte > 0 ? n_byte : 1);
    return type;
}

static int64_t n_element(const object *o) {
    int64_t n = 1;
    for (int i = 0; i < o->n_dim; i++) {
        if (o->shape[i] < 0 || __builtin_mul_overflow(n, o->shape[i], &n)) return -1;
    }
    return o->n_dim < 0 ? 0 : n;
}

static hid_t plain_type(const object *o) {
    int64_t n = n_element(o);
    switch (o->type) {
    case FUZZ_TEXT:
        return text_type(o->n_byte);
    case FUZZ_TEXT_LIST:
        return text_type(n > 0 ? o->n_byte / (size_t)n : o->n_byte);
    case FUZZ_I32:
        return H5Tcopy(H5T_STD_I32LE);
    case FUZZ_U32:
        return H5Tcopy(H5T_STD_U32LE);
    case FUZZ_I64:
        return H5Tcopy(H5T_STD_I64LE);
    case FUZZ_F16:
        return float_type(5, 10, 15);
    case FUZZ_BF16:
        return float_type(8, 7, 127);
    case FUZZ_F32:
        return H5Tcopy(H5T_IEEE_F32LE);
    case FUZZ_F64:
        return H5Tcopy(H5T_IEEE_F64LE);
    default:
        return H5Tcopy(H5T_STD_U8LE);
    }
}

/* The plain type in another dress, or one that holds more than numbers. */
static hid_t odd_of(const object *o, hid_t plain) {
    const hsize_t three = 3;
    hid_t type;
    switch (o->odd) {
    case REVERSED:
        H5Tset_order(plain, H5T_ORDER_BE);
        return H5Tcopy(plain);
    case VLEN_TEXT:
        type = H5Tcopy(H5T_C_S1);
        H5Tset_size(type, H5T_VARIABLE);
        return type;
    case VLEN:
        return H5Tvlen_create(plain);
    case COMPOUND:
        type = H5Tcreate(H5T_COMPOUND, H5Tget_size(plain));
        H5Tinsert(type, "a", 0, plain);
        return type;
    case ARRAY:
        return H5Tarray_create2(plain, 1, &three);
    case ENUM:
        return H5Tenum_create(H5T_STD_I32LE);
    case OPAQUE:
        return H5Tcreate(H5T_OPAQUE, 5);
    case REFERENCE:
        return H5Tcopy(H5T_STD_REF_OBJ);
    case BITFIELD:
        return H5Tcopy(H5T_STD_B16LE);
    case I8:
        return H5Tcopy(H5T_STD_I8LE);
    case I16:
        return H5Tcopy(H5T_STD_I16LE);
    default:
        return H5Tcopy(plain);
    }
}

static hid_t make_type(const object *o) {
    hid_t plain = plain_type(o), type = odd_of(o, plain);
    H5Tclose(plain);
    return type;
}

static hid_t make_space(const object *o) {
    hsize_t shape[MAX_RANK], most[MAX_RANK];
    if (o->n_dim < 0) return H5Screate(H5S_NULL);
    for (int i = 0; i < o->n_dim; i++) {
        shape[i] = (hsize_t)o->shape[i];
        most[i] = o->layout == GROWING ? H5S_UNLIMITED : shape[i];
    }
    return o->n_dim == 0 ? H5Screate(H5S_SCALAR) : H5Screate_simple(o->n_dim, shape, most);
}

static hid_t make_creation(const object *o) {
    hid_t create = H5Pcreate(H5P_DATASET_CREATE);
    hsize_t chunk[MAX_RANK];
    for (int i = 0; i < o->n_dim; i++) chunk[i] = o->shape[i] > 0 && o->shape[i] < 4 ? (hsize_t)o->shape[i] : 4;
    bool chunked = o->layout == CHUNKED || o->layout == DEFLATED || o->layout == GROWING;
    if (chunked && o->n_dim > 0) H5Pset_chunk(create, o->n_dim, chunk);
    if (o->layout == DEFLATED) H5Pset_fletcher32(create);
    if (o->layout == COMPACT) H5Pset_layout(create, H5D_COMPACT);
    if (o->layout == EXTERNAL) H5Pset_external(create, "elsewhere.bin", 0, H5F_UNLIMITED);
    return create;
}

/* The data, repeated to the whole shape; NULL when that is large, or made of pointers. */
static uint8_t *fill_of(const object *o, hid_t type) {
    int64_t n = n_element(o), n_byte = 0;
    size_t size = H5Tget_size(type);
    bool pointers = o->odd == VLEN || o->odd == VLEN_TEXT || o->odd == REFERENCE;
    if (n <= 0 || pointers || __builtin_mul_overflow(n, (int64_t)size, &n_byte) || n_byte > MAX_DATA) return NULL;
    uint8_t *fill = calloc(1, (size_t)n_byte);
    for (int64_t i = 0; fill && o->n_byte > 0 && i < n_byte; i++) fill[i] = o->data[(size_t)i % o->n_byte];
    return fill;
}

static void make_attribute(hid_t file, const object *o, hid_t type, hid_t space) {
    hid_t owner = H5Oopen(file, o->path, H5P_DEFAULT);
    if (owner < 0) return;
    hid_t attribute = H5Acreate2(owner, o->attribute, type, space, H5P_DEFAULT, H5P_DEFAULT);
    uint8_t *fill = fill_of(o, type);
    if (attribute >= 0 && fill) H5Awrite(attribute, type, fill);
    if (attribute >= 0) H5Aclose(attribute);
    H5Oclose(owner);
    free(fill);
}

static void make_dataset(hid_t file, const object *o, hid_t type, hid_t space, hid_t with_parents) {
    hid_t create = make_creation(o);
    hid_t dataset = H5Dcreate2(file, o->path, type, space, with_parents, create, H5P_DEFAULT);
    uint8_t *fill = fill_of(o, type);
    if (dataset >= 0 && fill && o->layout != EXTERNAL) H5Dwrite(dataset, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, fill);
    if (dataset >= 0) H5Dclose(dataset);
    H5Pclose(create);
    free(fill);
}

static void make_link(hid_t file, const object *o, hid_t with_parents) {
    if (o->link == SOFT_AWAY) H5Lcreate_soft("/format", file, o->path, with_parents, H5P_DEFAULT);
    if (o->link == SOFT_NOWHERE) H5Lcreate_soft("/nowhere/at/all", file, o->path, with_parents, H5P_DEFAULT);
    if (o->link == EXTERNAL_LINK) H5Lcreate_external("other.h5", "/x", file, o->path, with_parents, H5P_DEFAULT);
    if (o->link == TO_ROOT) H5Lcreate_hard(file, "/", file, o->path, with_parents, H5P_DEFAULT);
}

static void make_object(hid_t file, const object *o, hid_t with_parents) {
    if (o->gone) return;
    if (o->link != HARD && !o->attribute[0]) {
        make_link(file, o, with_parents);
        return;
    }
    if (o->type == FUZZ_GROUP && !o->attribute[0]) {
        hid_t group = H5Gcreate2(file, o->path, with_parents, H5P_DEFAULT, H5P_DEFAULT);
        if (group >= 0) H5Gclose(group);
        return;
    }
    hid_t type = make_type(o), space = make_space(o);
    if (type >= 0 && space >= 0 && o->attribute[0]) make_attribute(file, o, type, space);
    if (type >= 0 && space >= 0 && !o->attribute[0]) {
        if (o->odd == COMMITTED)
            H5Tcommit2(file, o->path, type, with_parents, H5P_DEFAULT, H5P_DEFAULT);
        else
            make_dataset(file, o, type, space, with_parents);
    }
    if (space >= 0) H5Sclose(space);
    if (type >= 0) H5Tclose(type);
}

void fuzz_file_write(const fuzz_file *file, const char *path) {
    H5Eset_auto2(H5E_DEFAULT, NULL, NULL);
    hid_t access = H5Pcreate(H5P_FILE_ACCESS), with_parents = H5Pcreate(H5P_LINK_CREATE);
    H5Pset_fapl_core(access, 1 << 16, false);
    H5Pset_create_intermediate_group(with_parents, 1);
    hid_t built = H5Fcreate(path, H5F_ACC_TRUNC, H5P_DEFAULT, access);
    fuzz_require(built >= 0, "no HDF5 file in memory");
    for (int i = 0; i < file->n; i++) make_object(built, &file->objects[i], with_parents);
    H5Fflush(built, H5F_SCOPE_GLOBAL);
    ssize_t n_byte = H5Fget_file_image(built, NULL, 0);
    void *image = malloc(n_byte > 0 ? (size_t)n_byte : 1);
    fuzz_require(image && n_byte > 0 && H5Fget_file_image(built, image, (size_t)n_byte) == n_byte, "no file image");
    H5Fclose(built);
    H5Pclose(with_parents);
    H5Pclose(access);
    fuzz_write(path, image, (size_t)n_byte);
    free(image);
}
