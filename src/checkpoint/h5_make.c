/* h5_make.c - the few HDF5 constructions that our files are made of, in the one way that keeps bytes reproducible.
 *
 * Objects carry no times, groups no creation order, datasets are contiguous, allocated at creation and never filled.
 * File format bounds are 1.8 to 1.10. bf16 and f16 are 2-byte floats used as memory and file type alike, so that HDF5
 * never converts (its conversion does not round to nearest even). */
#include "checkpoint/h5_make.h"
#include "checkpoint/hdf5_read.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

mdp_h5_silence mdp_h5_silence_begin(void) {
    mdp_h5_silence silence = {NULL, NULL};
    H5Eget_auto2(H5E_DEFAULT, &silence.print, &silence.data);
    H5Eset_auto2(H5E_DEFAULT, NULL, NULL);
    return silence;
}

void mdp_h5_silence_end(mdp_h5_silence silence) {
    H5Eset_auto2(H5E_DEFAULT, silence.print, silence.data);
}

#define METADATA_BYTE (256u << 10) /* that may follow the values of a dataset */

typedef struct first_cause {
    char text[MDP_H5_REASON];
    bool system; /* a system call */
} first_cause;

/* Keep the description of the innermost entry; of a failed system call, the system's words alone. */
static herr_t keep_first(unsigned n, const H5E_error2_t *entry, void *context) {
    static const char mark[] = "error message = '";
    first_cause *cause = context;
    if (n > 0 || !entry->desc) return 0;
    const char *words = strstr(entry->desc, mark);
    cause->system = words != NULL;
    if (words)
        snprintf(cause->text, sizeof cause->text, "%.*s", (int)strcspn(words + strlen(mark), "'"),
                 words + strlen(mark));
    else
        snprintf(cause->text, sizeof cause->text, "%s", entry->desc);
    return 0;
}

static first_cause find_cause(void) {
    int error = errno;
    first_cause cause = {.text = "no reason given by HDF5"};
    H5Ewalk2(H5E_DEFAULT, H5E_WALK_UPWARD, keep_first, &cause);
    /* "MPI_File_write_at failed: MPI error string is 'MPI_ERR_OTHER: known error not in list'" */
    if (strncmp(cause.text, "MPI_", 4) == 0 && (error == ENOSPC || error == EDQUOT)) {
        snprintf(cause.text, sizeof cause.text, "%s", strerror(error));
        cause.system = true;
    }
    for (char *c = cause.text; *c; c++)
        if (*c == '\n') *c = ' ';
    return cause;
}

mdp_status mdp_h5_error(mdp_code code, const char *what, const char *name, const char *path) {
    const first_cause cause = find_cause();
    return MDP_ERROR(code, "cannot %s %s in %s: %s.", what, name, path, cause.text);
}

bool mdp_h5_system_error(char reason[MDP_H5_REASON]) {
    const first_cause cause = find_cause();
    memcpy(reason, cause.text, sizeof cause.text);
    return cause.system;
}

/* ---- types --------------------------------------------------------------------------------------------------- */

/* A 2-byte little-endian float: sign at bit 15, then exponent, then mantissa. */
static hid_t make_half(size_t n_exponent, size_t bias) {
    size_t n_mantissa = 15 - n_exponent;
    hid_t type = H5Tcopy(H5T_IEEE_F32LE);
    if (type < 0) return type;
    /* Fields first: they must lie within the type at each step. */
    if (H5Tset_fields(type, 15, n_mantissa, n_exponent, 0, n_mantissa) < 0 || H5Tset_offset(type, 0) < 0 ||
        H5Tset_precision(type, 16) < 0 || H5Tset_size(type, 2) < 0 || H5Tset_ebias(type, bias) < 0) {
        H5Tclose(type);
        return -1;
    }
    return type;
}

hid_t mdp_h5_number_type(mdp_dtype type, bool as_bytes) {
    if (as_bytes) return H5Tcopy(H5T_STD_U8LE);
    switch (type) {
    case MDP_BF16:
        return make_half(8, 127);
    case MDP_F16:
        return make_half(5, 15);
    case MDP_I8:
        return H5Tcopy(H5T_STD_I8LE);
    case MDP_I16:
        return H5Tcopy(H5T_STD_I16LE);
    case MDP_U16:
        return H5Tcopy(H5T_STD_U16LE);
    case MDP_I32:
        return H5Tcopy(H5T_STD_I32LE);
    case MDP_U32:
        return H5Tcopy(H5T_STD_U32LE);
    case MDP_F32:
        return H5Tcopy(H5T_IEEE_F32LE);
    case MDP_F64:
        return H5Tcopy(H5T_IEEE_F64LE);
    case MDP_I64:
        return H5Tcopy(H5T_STD_I64LE);
    case MDP_U64:
        return H5Tcopy(H5T_STD_U64LE);
    default:
        return H5Tcopy(H5T_STD_U8LE);
    }
}

hid_t mdp_h5_text_type(int64_t n_byte) {
    hid_t type = H5Tcopy(H5T_C_S1);
    if (type < 0) return type;
    if (H5Tset_size(type, (size_t)(n_byte > 0 ? n_byte : 1)) < 0 || H5Tset_strpad(type, H5T_STR_NULLPAD) < 0 ||
        H5Tset_cset(type, H5T_CSET_UTF8) < 0) {
        H5Tclose(type);
        return -1;
    }
    return type;
}

/* ---- files and groups ---------------------------------------------------------------------------------------- */

/* How files that are being made are opened; `bounds`: in the format of HDF5 1.8 to 1.10. To be closed. */
static hid_t make_access(bool bounds) {
    hid_t access = H5Pcreate(H5P_FILE_ACCESS);
    if (access < 0) return access;
    mdp_hdf5_leave_unlocked(access);
    if (!bounds || H5Pset_libver_bounds(access, H5F_LIBVER_V18, H5F_LIBVER_V110) >= 0) return access;
    H5Pclose(access);
    return -1;
}

static mdp_status create_file(const char *path, unsigned flags, bool bounds, hid_t *file) {
    MDP_TRY(mdp_fault(MDP_CANNOT_CREATE, "create an HDF5 file"));
    hid_t creation = H5Pcreate(H5P_FILE_CREATE), access = make_access(bounds);
    *file = -1;
    if (creation >= 0 && access >= 0 && H5Pset_obj_track_times(creation, 0) >= 0)
        *file = H5Fcreate(path, flags, creation, access);
    mdp_status status = *file >= 0 ? mdp_ok() : mdp_h5_error(MDP_CANNOT_CREATE, "create", "the file itself", path);
    if (creation >= 0) H5Pclose(creation);
    if (access >= 0) H5Pclose(access);
    return status;
}

mdp_status mdp_h5_create_file(const char *path, hid_t *file) {
    return create_file(path, H5F_ACC_EXCL, true, file);
}

mdp_status mdp_h5_create_old_file(const char *path, hid_t *file) {
    return create_file(path, H5F_ACC_EXCL, false, file);
}

mdp_status mdp_h5_reopen_file(const char *path, hid_t *file) {
    *file = -1;
    MDP_TRY(mdp_fault(MDP_IO, "open an HDF5 file"));
    hid_t access = make_access(true);
    if (access >= 0) *file = H5Fopen(path, H5F_ACC_RDWR, access);
    mdp_status status = *file >= 0 ? mdp_ok() : mdp_h5_error(MDP_IO, "open", "the file again", path);
    if (access >= 0) H5Pclose(access);
    return status;
}

mdp_status mdp_h5_create_scratch(char path[MDP_H5_SCRATCH_PATH], hid_t *file) {
    static const char *const folders[] = {"/dev/shm", "/tmp"};
    int descriptor = -1;
    *file = -1;
    for (size_t i = 0; i < sizeof folders / sizeof folders[0] && descriptor < 0; i++) {
        snprintf(path, MDP_H5_SCRATCH_PATH, "%s/moe-dist-prune-XXXXXX", folders[i]);
        descriptor = mkstemp(path);
    }
    if (descriptor < 0) {
        path[0] = '\0';
        return MDP_ERROR(MDP_CANNOT_CREATE, "no file can be made in /dev/shm or /tmp.");
    }
    close(descriptor);
    return create_file(path, H5F_ACC_TRUNC, true, file);
}

/* Let what HDF5 still wants to write go nowhere: 1.10 can neither close a file whose metadata it cannot write out nor
 * end the program after trying. The descriptor is exchanged for a file in memory, which takes only what is written. */
static void divert(hid_t file) {
    void *handle = NULL;
    if (H5Fget_vfd_handle(file, H5P_DEFAULT, &handle) < 0 || !handle) return;
    int nowhere = memfd_create("mdp", MFD_CLOEXEC);
    if (nowhere < 0) return;
    dup2(nowhere, *(int *)handle);
    close(nowhere);
    /* The first flush after a failed one fails on the state that it left, and clears that. */
    bool flushed = false;
    for (int i = 0; i < 3 && !flushed; i++) flushed = H5Fflush(file, H5F_SCOPE_LOCAL) >= 0;
}

mdp_status mdp_hdf5_close_written(int64_t file, const char *path, mdp_status status) {
    mdp_h5_silence silence = mdp_h5_silence_begin();
    if (status.code == MDP_OK) status = mdp_fault(MDP_IO, "close an HDF5 file");
    if (status.code == MDP_OK && H5Fflush(file, H5F_SCOPE_LOCAL) < 0)
        status = mdp_h5_error(MDP_IO, "write out", "the metadata", path);
    if (status.code != MDP_OK) divert(file);
    if (H5Fclose(file) < 0 && status.code == MDP_OK) status = mdp_h5_error(MDP_IO, "close", "the file", path);
    mdp_h5_silence_end(silence);
    return status;
}

static mdp_status make_group(hid_t file, const char *name, const char *path) {
    htri_t exists = H5Lexists(file, name, H5P_DEFAULT);
    if (exists > 0) return mdp_ok();
    hid_t creation = H5Pcreate(H5P_GROUP_CREATE), group = -1;
    if (exists == 0 && creation >= 0 && H5Pset_obj_track_times(creation, 0) >= 0)
        group = H5Gcreate2(file, name, H5P_DEFAULT, creation, H5P_DEFAULT);
    mdp_status status = group >= 0 ? mdp_ok() : mdp_h5_error(MDP_IO, "create the group", name, path);
    if (group >= 0) H5Gclose(group);
    if (creation >= 0) H5Pclose(creation);
    return status;
}

mdp_status mdp_h5_make_groups(hid_t file, const char *name, const char *path) {
    char *part = NULL;
    MDP_TRY(mdp_copy_text(&part, name));
    mdp_status status = mdp_ok();
    for (char *slash = strchr(part + 1, '/'); slash && status.code == MDP_OK; slash = strchr(slash + 1, '/')) {
        *slash = '\0';
        status = make_group(file, part, path);
        *slash = '/';
    }
    mdp_free(part);
    return status;
}

/* ---- datasets and attributes --------------------------------------------------------------------------------- */

static hid_t make_space(int n_dim, const int64_t *shape) {
    hsize_t dims[MDP_MAX_DIM + 2];
    if (n_dim == 0) return H5Screate(H5S_SCALAR);
    for (int d = 0; d < n_dim; d++) dims[d] = (hsize_t)shape[d];
    return H5Screate_simple(n_dim, dims, NULL);
}

/* May the file grow by so much? To be known before, since a file that grew beyond `ulimit -f` cannot be closed: nothing
 * takes what HDF5 still wants to write then (see divert). */
static mdp_status check_limit(hid_t file, int64_t n_byte, const char *name, const char *path) {
    struct rlimit limit;
    haddr_t end;
    char most[32];
    if (getrlimit(RLIMIT_FSIZE, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY || H5Fget_eoa(file, &end) < 0)
        return mdp_ok();
    if (end + (haddr_t)n_byte + METADATA_BYTE <= limit.rlim_cur) return mdp_ok();
    return MDP_ERROR(MDP_IO,
                     "%s: '%s' would make it larger than the %s that a file of this process may have. Raise the limit "
                     "(ulimit -f), or choose another --out.",
                     path, name, mdp_print_bytes(most, (int64_t)limit.rlim_cur));
}

static int64_t bytes_of(hid_t type, int n_dim, const int64_t *shape) {
    int64_t n = (int64_t)H5Tget_size(type);
    for (int i = 0; i < n_dim; i++)
        if (!mdp_multiply(n, shape[i], &n)) return INT64_MAX / 2;
    return n;
}

mdp_status mdp_h5_make_dataset(hid_t file, const char *name, hid_t type, int n_dim, const int64_t *shape,
                               const char *path, hid_t *out) {
    *out = -1;
    MDP_TRY(mdp_fault(MDP_IO, "create a dataset"));
    MDP_TRY(check_limit(file, bytes_of(type, n_dim, shape), name, path));
    hid_t space = make_space(n_dim, shape), creation = H5Pcreate(H5P_DATASET_CREATE);
    if (type >= 0 && space >= 0 && creation >= 0 && H5Pset_obj_track_times(creation, 0) >= 0 &&
        H5Pset_layout(creation, H5D_CONTIGUOUS) >= 0 && H5Pset_alloc_time(creation, H5D_ALLOC_TIME_EARLY) >= 0 &&
        H5Pset_fill_time(creation, H5D_FILL_TIME_NEVER) >= 0)
        *out = H5Dcreate2(file, name, type, space, H5P_DEFAULT, creation, H5P_DEFAULT);
    mdp_status status = *out >= 0 ? mdp_ok() : mdp_h5_error(MDP_IO, "create the dataset", name, path);
    if (space >= 0) H5Sclose(space);
    if (creation >= 0) H5Pclose(creation);
    return status;
}

mdp_status mdp_h5_make_attribute(hid_t object, const char *name, hid_t type, int64_t n, const void *data,
                                 const char *path) {
    MDP_TRY(mdp_fault(MDP_IO, "create an attribute"));
    hid_t space = make_space(n < 0 ? 0 : 1, &n), attribute = -1;
    if (type >= 0 && space >= 0) attribute = H5Acreate2(object, name, type, space, H5P_DEFAULT, H5P_DEFAULT);
    mdp_status status = mdp_ok();
    if (attribute < 0 || (data && H5Awrite(attribute, type, data) < 0))
        status = mdp_h5_error(MDP_IO, "write the attribute", name, path);
    if (attribute >= 0) H5Aclose(attribute);
    if (space >= 0) H5Sclose(space);
    return status;
}

mdp_status mdp_h5_write_attribute(hid_t dataset, const char *name, hid_t type, const void *data, const char *path) {
    MDP_TRY(mdp_fault(MDP_IO, "write an attribute"));
    hid_t attribute = H5Aopen(dataset, name, H5P_DEFAULT);
    mdp_status status = mdp_ok();
    if (type < 0 || attribute < 0 || H5Awrite(attribute, type, data) < 0)
        status = mdp_h5_error(MDP_IO, "write the attribute", name, path);
    if (attribute >= 0) H5Aclose(attribute);
    return status;
}

mdp_status mdp_h5_make_text_attribute(hid_t object, const char *name, const char *text, const char *path) {
    int64_t n_byte = (int64_t)strlen(text);
    hid_t type = mdp_h5_text_type(n_byte);
    mdp_status status = mdp_h5_make_attribute(object, name, type, -1, text, path);
    if (type >= 0) H5Tclose(type);
    return status;
}

mdp_status mdp_h5_make_text(hid_t file, const char *name, const char *text, int64_t n_byte, const char *path) {
    hid_t type = mdp_h5_text_type(n_byte), dataset = -1;
    mdp_status status = mdp_h5_make_dataset(file, name, type, 0, NULL, path, &dataset);
    if (status.code == MDP_OK && H5Dwrite(dataset, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, text) < 0)
        status = mdp_h5_error(MDP_IO, "write", name, path);
    if (status.code == MDP_OK)
        status = mdp_h5_make_text_attribute(dataset, "xxh3_128", mdp_hash_bytes(text, n_byte).hex, path);
    if (dataset >= 0) H5Dclose(dataset);
    if (type >= 0) H5Tclose(type);
    return status;
}
