/* native.c - the catalogue of a model.h5.
 *
 * The file is walked once; every dataset that is no text of ours and no side file becomes a tensor, or one tensor per
 * expert when its name has {expert} in it, with the byte offset that HDF5 tells, so that weights are read by pread like
 * any other. Refused: a file of another kind, a newer major version, a file without its completion mark, and every
 * dataset that is not one contiguous run of bytes of the type that its attributes state. */
#include "checkpoint/native.h"

#include "checkpoint/hdf5_read.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define SIDE_FILES "/files/"
#define MAX_EXPERT (1 << 20) /* of a stack: without bytes it could claim any number */

/* Context of a walk. */
typedef struct walk {
    mdp_draft *draft;
    const char *path;
    int32_t file;
    int64_t file_byte;
} walk;

/* ---- root attributes ----------------------------------------------------------------------------------------- */

static mdp_status check_format(const char *path, hid_t file) {
    if (!mdp_hdf5_has_attribute(file, "format")) {
        return MDP_ERROR(MDP_BAD_INPUT,
                         "%s: this HDF5 file is no checkpoint of moe-dist-prune (no attribute 'format').", path);
    }
    char *format = NULL;
    MDP_TRY(mdp_hdf5_text_attribute(path, "/", file, "format", &format));
    mdp_status status = mdp_ok();
    if (strcmp(format, MDP_NATIVE_FORMAT) != 0) {
        status =
            MDP_ERROR(MDP_BAD_INPUT, "%s: this file is a \"%s\"; expected a \"" MDP_NATIVE_FORMAT "\".", path, format);
    }
    mdp_free(format);
    return status;
}

static mdp_status check_version(const char *path, hid_t file) {
    char *version = NULL, *end = NULL;
    MDP_TRY(mdp_hdf5_text_attribute(path, "/", file, "version", &version));
    long major = strtol(version, &end, 10);
    mdp_status status = mdp_ok();
    if (end == version || *end != '.' || major < 1) {
        status = MDP_ERROR(MDP_BAD_INPUT, "%s: the format version \"%s\" is not understood.", path, version);
    } else if (major > MDP_NATIVE_MAJOR) {
        status = MDP_ERROR(MDP_BAD_INPUT,
                           "%s: the file has format version %s; this program reads versions up to %d.x. Use a newer "
                           "moe-dist-prune.",
                           path, version, MDP_NATIVE_MAJOR);
    }
    mdp_free(version);
    return status;
}

static mdp_status check_complete(const char *path, hid_t file) {
    int64_t complete = 0;
    if (mdp_hdf5_has_attribute(file, "complete")) {
        MDP_TRY(mdp_hdf5_integer_attribute(path, "/", file, "complete", &complete));
    }
    if (complete == 1) return mdp_ok();
    return MDP_ERROR(MDP_BAD_INPUT, "%s: the file was not finished (no mark 'complete'); write it again.", path);
}

/* ---- one dataset --------------------------------------------------------------------------------------------- */

static bool is_float(hid_t type, size_t size, size_t exponent, size_t mantissa, size_t bias) {
    size_t sign_at, exponent_at, n_exponent, mantissa_at, n_mantissa;
    if (H5Tget_class(type) != H5T_FLOAT || H5Tget_size(type) != size || H5Tget_order(type) != H5T_ORDER_LE)
        return false;
    if (H5Tget_fields(type, &sign_at, &exponent_at, &n_exponent, &mantissa_at, &n_mantissa) < 0) return false;
    return sign_at == 8 * size - 1 && exponent_at == mantissa && n_exponent == exponent && mantissa_at == 0 &&
           n_mantissa == mantissa && H5Tget_ebias(type) == bias;
}

/* The HDF5 class of a number format that HDF5 has too; H5T_OPAQUE for the others, which are stored as bytes. */
static H5T_class_t number_class(mdp_dtype stored) {
    switch (stored) {
    case MDP_I16:
    case MDP_U16:
    case MDP_I32:
    case MDP_U32:
    case MDP_I64:
    case MDP_U64:
        return H5T_INTEGER;
    case MDP_F16:
    case MDP_BF16:
    case MDP_F32:
    case MDP_F64:
        return H5T_FLOAT;
    default:
        return H5T_OPAQUE;
    }
}

/* Does the HDF5 type hold this number format as our writer does? By fields: newer libraries have types of the same
 * form under other names. */
static bool holds(hid_t type, mdp_dtype stored) {
    H5T_class_t class = number_class(stored);
    size_t size = class == H5T_OPAQUE ? 1 : (size_t)mdp_dtype_bits(stored) / 8;
    if (class == H5T_FLOAT) {
        if (stored == MDP_F16) return is_float(type, size, 5, 10, 15);
        if (stored == MDP_F64) return is_float(type, size, 11, 52, 1023);
        return is_float(type, size, 8, 8 * size - 9, 127); /* F32 and its upper half */
    }
    if (H5Tget_class(type) != H5T_INTEGER || H5Tget_size(type) != size) return false;
    return size == 1 || H5Tget_order(type) == H5T_ORDER_LE;
}

/* Where the bytes of a dataset lie: one run in this very file. */
static mdp_status find_extent(const walk *w, const char *place, hid_t dataset, int64_t n_byte, int64_t *offset) {
    hid_t properties = H5Dget_create_plist(dataset);
    bool contiguous = H5Pget_layout(properties) == H5D_CONTIGUOUS;
    H5Pclose(properties);
    if (!contiguous) {
        return MDP_ERROR(MDP_BAD_INPUT,
                         "%s: %s is not stored as one contiguous run of bytes (it is chunked, compressed or compact). "
                         "Rewrite the file with: h5repack -f NONE -l CONTI IN.h5 OUT.h5",
                         w->path, place);
    }
    *offset = 0;
    if (n_byte == 0) return mdp_ok();
    haddr_t address = H5Dget_offset(dataset);
    int64_t end = 0;
    if (address == HADDR_UNDEF || address > INT64_MAX || !mdp_add((int64_t)address, n_byte, &end) ||
        H5Dget_storage_size(dataset) != (hsize_t)n_byte) {
        return MDP_ERROR(MDP_BAD_INPUT, "%s: %s was never written in full; write the file again.", w->path, place);
    }
    if (end > w->file_byte) {
        char wanted[32], have[32];
        return MDP_ERROR(MDP_BAD_INPUT,
                         "%s: %s ends at byte %s, past the file's end (%s). The file is truncated; copy it again.",
                         w->path, place, mdp_print_count(wanted, end), mdp_print_count(have, w->file_byte));
    }
    *offset = (int64_t)address;
    return mdp_ok();
}

static mdp_status read_type(const walk *w, const char *place, hid_t dataset, mdp_dtype *out) {
    char *stored = NULL;
    MDP_TRY(mdp_hdf5_text_attribute(w->path, place, dataset, "stored_type", &stored));
    mdp_status status = mdp_ok();
    if (!mdp_dtype_find(stored, out)) {
        status = MDP_ERROR(MDP_BAD_INPUT, "%s: %s has the unknown stored_type \"%s\".", w->path, place, stored);
    }
    mdp_free(stored);
    MDP_TRY(status);
    hid_t type = H5Dget_type(dataset);
    bool held = holds(type, *out);
    H5Tclose(type);
    if (held) return mdp_ok();
    return MDP_ERROR(MDP_BAD_INPUT, "%s: the HDF5 type of %s is not the one for stored_type %s.", w->path, place,
                     mdp_dtype_name(*out));
}

/* The shape as the HF file has it: where elements are stored as bytes, the last dimension counts bytes. */
static mdp_status read_shape(const walk *w, const char *place, hid_t dataset, mdp_tensor *tensor) {
    MDP_TRY(mdp_hdf5_shape(w->path, place, dataset, &tensor->n_dim, tensor->shape));
    int bits = mdp_dtype_bits(tensor->type);
    if (number_class(tensor->type) == H5T_OPAQUE && bits != 8 && tensor->n_dim > 0) {
        int64_t *last = &tensor->shape[tensor->n_dim - 1];
        if (!mdp_multiply(*last, 8, last) || *last % bits != 0) {
            return MDP_ERROR(MDP_BAD_INPUT, "%s: the last dimension of %s holds no whole number of %s values.", w->path,
                             place, mdp_dtype_name(tensor->type));
        }
        *last /= bits;
    }
    if (mdp_dtype_bytes(tensor->type, tensor->n_dim, tensor->shape, &tensor->n_byte)) return mdp_ok();
    return MDP_ERROR(MDP_BAD_INPUT, "%s: the shape of %s overflows.", w->path, place);
}

/* Experts of a stacked dataset: tensor `stack` without its first dimension, one after the other. */
static mdp_status add_stack(walk *w, const char *place, const char *pattern, const mdp_tensor *stack) {
    if (stack->n_dim < 1) {
        return MDP_ERROR(MDP_BAD_INPUT, "%s: %s has " MDP_EXPERT_MARK " in its hf_name, but no dimension of experts.",
                         w->path, place);
    }
    mdp_tensor tensor = *stack;
    int64_t n_expert = stack->shape[0];
    if (n_expert > MAX_EXPERT) {
        return MDP_ERROR(MDP_BAD_INPUT, "%s: %s has %" PRId64 " experts; at most %d are supported.", w->path, place,
                         n_expert, MAX_EXPERT);
    }
    tensor.n_dim = stack->n_dim - 1;
    memmove(tensor.shape, stack->shape + 1, (size_t)tensor.n_dim * sizeof *tensor.shape);
    tensor.shape[tensor.n_dim] = 0;
    tensor.n_byte = n_expert > 0 ? stack->n_byte / n_expert : 0;
    const char *mark = strstr(pattern, MDP_EXPERT_MARK);
    for (int64_t e = 0; e < n_expert; e++) {
        char *name = NULL;
        MDP_TRY(
            mdp_format(&name, "%.*s%" PRId64 "%s", (int)(mark - pattern), pattern, e, mark + strlen(MDP_EXPERT_MARK)));
        tensor.offset = stack->offset + e * tensor.n_byte;
        mdp_status status = mdp_draft_add_tensor(w->draft, name, &tensor);
        mdp_free(name);
        MDP_TRY(status);
    }
    return mdp_ok();
}

static mdp_status add_dataset(walk *w, const char *place, hid_t dataset) {
    char *name = NULL;
    mdp_tensor tensor = {.file = w->file};
    MDP_TRY(read_type(w, place, dataset, &tensor.type));
    MDP_TRY(read_shape(w, place, dataset, &tensor));
    MDP_TRY(find_extent(w, place, dataset, tensor.n_byte, &tensor.offset));
    MDP_TRY(mdp_hdf5_text_attribute(w->path, place, dataset, "hf_name", &name));
    mdp_status status = strstr(name, MDP_EXPERT_MARK) != NULL ? add_stack(w, place, name, &tensor)
                                                              : mdp_draft_add_tensor(w->draft, name, &tensor);
    mdp_free(name);
    return status;
}

static mdp_status add_side_file(walk *w, const char *place, hid_t dataset) {
    const char *name = place + strlen(SIDE_FILES);
    hid_t type = H5Dget_type(dataset);
    bool bytes = H5Tget_class(type) == H5T_INTEGER && H5Tget_size(type) == 1;
    H5Tclose(type);
    int n_dim;
    int64_t shape[MDP_MAX_DIM];
    MDP_TRY(mdp_hdf5_shape(w->path, place, dataset, &n_dim, shape));
    bool plain = strchr(name, '/') == NULL && strcmp(name, ".") != 0 && strcmp(name, "..") != 0;
    if (!bytes || n_dim != 1 || !plain) {
        return MDP_ERROR(MDP_BAD_INPUT, "%s: %s is not a side file: one row of bytes directly below /files.", w->path,
                         place);
    }
    mdp_side_file side_file = {.file = w->file, .n_byte = shape[0]};
    MDP_TRY(find_extent(w, place, dataset, side_file.n_byte, &side_file.offset));
    return mdp_draft_add_side_file(w->draft, name, &side_file);
}

/* ---- the walk ------------------------------------------------------------------------------------------------ */

/* Everything that is not a text of ours or a side file is a tensor: names need not begin with "model.". */
static mdp_status add_object(void *context, hid_t file, const char *name, hid_t dataset) {
    static const char *const ours[] = {"config", "plan", "provenance", "seal"};
    walk *w = context;
    (void)file;
    for (size_t i = 0; i < sizeof ours / sizeof *ours; i++) {
        if (strcmp(name, ours[i]) == 0) return mdp_ok();
    }
    char *place = NULL;
    MDP_TRY(mdp_format(&place, "/%s", name));
    bool side = strncmp(place, SIDE_FILES, strlen(SIDE_FILES)) == 0;
    mdp_status status = side ? add_side_file(w, place, dataset) : add_dataset(w, place, dataset);
    mdp_free(place);
    return status;
}

static mdp_status add_text(walk *w, hid_t file, const char *name, int64_t *at, int64_t *n_byte) {
    char *text = NULL;
    MDP_TRY(mdp_hdf5_text_dataset(w->path, file, name, &text, n_byte));
    mdp_status status = mdp_draft_add_text(w->draft, text, *n_byte, at);
    mdp_free(text);
    return status;
}

static mdp_status add_contents(walk *w, hid_t file) {
    mdp_draft *draft = w->draft;
    MDP_TRY(check_format(w->path, file));
    MDP_TRY(check_version(w->path, file));
    MDP_TRY(check_complete(w->path, file));
    MDP_TRY(mdp_draft_add_file(draft, w->path, w->file_byte, &w->file));
    MDP_TRY(add_text(w, file, "/config", &draft->config_at, &draft->config_byte));
    if (mdp_hdf5_has(file, "/plan")) MDP_TRY(add_text(w, file, "/plan", &draft->plan_at, &draft->plan_byte));
    if (mdp_hdf5_has(file, "/provenance")) {
        MDP_TRY(add_text(w, file, "/provenance", &draft->provenance_at, &draft->provenance_byte));
    }
    return mdp_hdf5_walk(w->path, file, add_object, w);
}

static mdp_status find_size(const char *path, int64_t *n_byte) {
    int fd;
    MDP_TRY(mdp_file_open_read(path, &fd));
    mdp_status status = mdp_file_size(path, fd, n_byte);
    mdp_status closed = mdp_file_close(path, fd);
    return status.code != MDP_OK ? status : closed;
}

mdp_status mdp_native_add(mdp_draft *draft, const char *path) {
    walk w = {.draft = draft, .path = path};
    hid_t file;
    MDP_TRY(find_size(path, &w.file_byte));
    MDP_TRY(mdp_hdf5_open(path, "a Hugging Face folder or a model.h5 of moe-dist-prune", &file));
    mdp_status status = add_contents(&w, file);
    H5Fclose(file);
    return status;
}
