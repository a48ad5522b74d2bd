/* hdf5_open.c - opening what is in an HDF5 file, and nothing that it leads to.
 *
 * A link, a dataset's bytes or a virtual dataset may be in other files, which may be pipes, or the file itself; groups
 * may hold each other without end; a dataset may need a filter that is not here. libhdf5 follows all of them, some for
 * ever. Every object is opened here: links that leave the file, bytes that are elsewhere, filters that are missing and
 * groups within groups within groups are refused, each by its name. Files that nobody can lock are read all the same.
 */
#include "checkpoint/hdf5_read.h"

#include <errno.h>
#include <string.h>
#include <sys/file.h>

#define DEEPEST 32   /* groups within groups; ours have 5 */
#define LINK_BYTE 16 /* at least, of a file for each link in it */

/* ---- files --------------------------------------------------------------------------------------------------- */

void mdp_hdf5_leave_unlocked(hid_t access) {
#if H5_VERSION_GE(1, 12, 1) || (H5_VERSION_GE(1, 10, 7) && !H5_VERSION_GE(1, 12, 0))
    (void)H5Pset_file_locking(access, false, true);
#else
    (void)access;
#endif
}

/* Can the file be locked for reading, as HDF5 would? No error either where the file system has no locks: HDF5 is told
 * not to use them. */
static mdp_status look_for_locks(const char *path, int fd, bool *locks) {
    *locks = flock(fd, LOCK_SH | LOCK_NB) == 0;
    if (*locks) (void)flock(fd, LOCK_UN);
    if (!*locks && errno == EWOULDBLOCK)
        return MDP_ERROR(MDP_BAD_INPUT, "%s: it is locked: another process is writing it; wait until that is done.",
                         path);
    return mdp_ok();
}

/* That it can be read, and how; HDF5 would not say why not. */
static mdp_status look_at_file(const char *path, bool *locks) {
    int fd;
    MDP_TRY(mdp_file_open_read(path, &fd));
    mdp_status status = look_for_locks(path, fd, locks);
    mdp_status closed = mdp_file_close(path, fd);
    return status.code != MDP_OK ? status : closed;
}

mdp_status mdp_hdf5_open(const char *path, const char *what, hid_t *file) {
    bool locks;
    *file = H5I_INVALID_HID;
    MDP_TRY(look_at_file(path, &locks));
    H5Eset_auto2(H5E_DEFAULT, NULL, NULL);
    hid_t access = H5Pcreate(H5P_FILE_ACCESS);
    if (access < 0) return MDP_ERROR(MDP_EXHAUSTED, "%s: no memory to open it.", path);
    if (!locks) mdp_hdf5_leave_unlocked(access);
    *file = H5Fopen(path, H5F_ACC_RDONLY, access);
    H5Pclose(access);
    if (*file >= 0) return mdp_ok();
    if (H5Fis_hdf5(path) <= 0) {
        const char *found = mdp_recognise_file(path);
        return MDP_ERROR(MDP_BAD_INPUT, "%s: this is no HDF5 file; expected %s%s%s.", path, what,
                         found ? ", found " : "", found ? found : "");
    }
    return MDP_ERROR(MDP_BAD_INPUT,
                     "%s: the HDF5 file cannot be opened: it is truncated, damaged, or still being written.", path);
}

/* ---- links --------------------------------------------------------------------------------------------------- */

static mdp_status leads_out(const char *path, const char *place) {
    return MDP_ERROR(MDP_BAD_INPUT,
                     "%s: %s is a link into another file, which is not followed; copy what it leads to into this one.",
                     path, place);
}

static herr_t follow_nothing(const char *parent, const char *in, const char *file, const char *object,
                             unsigned *access_flags, hid_t access, void *context) {
    (void)parent, (void)in, (void)file, (void)object, (void)access_flags, (void)access;
    *(bool *)context = true;
    return -1;
}

/* A property list with which no link leads out of the file; *met: one would have. To be closed. */
static hid_t stay_inside(hid_t class, bool *met) {
    hid_t access = H5Pcreate(class);
    *met = false;
    if (access >= 0) (void)H5Pset_elink_cb(access, follow_nothing, met);
    return access;
}

/* Does the link exist, and every one on the way to it? H5Lexists alone fails where one on the way does not. */
static bool links_exist(hid_t parent, char *name, hid_t access) {
    bool exist = true;
    for (char *slash = strchr(name + 1, '/'); slash && exist; slash = strchr(slash + 1, '/')) {
        *slash = '\0';
        exist = H5Lexists(parent, name, access) > 0;
        *slash = '/';
    }
    return exist && H5Lexists(parent, name, access) > 0;
}

/* Names of usual length take no memory: that there is none would look like a link that is not there. */
bool mdp_hdf5_has(hid_t parent, const char *name) {
    bool met, has;
    char usual[1024], *longer = NULL;
    size_t n = strlen(name) + 1;
    if (n > sizeof usual && mdp_copy_text(&longer, name).code != MDP_OK) return false;
    char *copy = longer ? longer : memcpy(usual, name, n);
    hid_t access = stay_inside(H5P_LINK_ACCESS, &met);
    has = access >= 0 && (links_exist(parent, copy, access) || met);
    if (access >= 0) H5Pclose(access);
    mdp_free(longer);
    return has;
}

/* What is at `name`, by H5Oopen, or -1. */
static hid_t open_object(hid_t parent, const char *name, bool *met) {
    hid_t access = stay_inside(H5P_LINK_ACCESS, met), object = -1;
    if (access >= 0) object = H5Oopen(parent, name, access);
    if (access >= 0) H5Pclose(access);
    return object;
}

/* Open an object of one type. */
static mdp_status open_typed(const char *path, hid_t parent, const char *name, H5I_type_t type, hid_t *out) {
    const char *word = type == H5I_DATASET ? "dataset" : "group";
    bool met = false;
    MDP_TRY(mdp_fault(MDP_IO, "open an object of HDF5"));
    *out = mdp_hdf5_has(parent, name) ? open_object(parent, name, &met) : -1;
    if (*out >= 0 && H5Iget_type(*out) == type) return mdp_ok();
    if (*out < 0 && mdp_hdf5_has(parent, name))
        return met ? leads_out(path, name)
                   : MDP_ERROR(MDP_BAD_INPUT, "%s: %s cannot be opened: it leads nowhere, or the file is damaged.",
                               path, name);
    if (*out >= 0) H5Oclose(*out);
    *out = H5I_INVALID_HID;
    return MDP_ERROR(MDP_BAD_INPUT, "%s: there is no %s %s.", path, word, name);
}

mdp_status mdp_hdf5_open_group(const char *path, hid_t parent, const char *name, hid_t *out) {
    return open_typed(path, parent, name, H5I_GROUP, out);
}

/* ---- datasets ------------------------------------------------------------------------------------------------ */

/* The filters that the bytes went through can be undone here. */
static mdp_status check_filters(const char *path, const char *place, hid_t create) {
    int n = H5Pget_nfilters(create);
    for (unsigned i = 0; n > 0 && i < (unsigned)n; i++) {
        char name[64] = "";
        unsigned flags, config;
        size_t n_value = 0;
        H5Z_filter_t filter = H5Pget_filter2(create, i, &flags, &n_value, NULL, sizeof name, name, &config);
        if (filter >= 0 && H5Zfilter_avail(filter) > 0) continue;
        name[sizeof name - 1] = '\0';
        for (char *c = name; *c; c++)
            if (*c < ' ' || *c > '~') *c = '?';
        return MDP_ERROR(MDP_BAD_INPUT,
                         "%s: %s is compressed with the filter %d (%s), which this HDF5 library does not have; store "
                         "it plain or with gzip (h5py: compression=\"gzip\").",
                         path, place, (int)filter, name[0] ? name : "of no name");
    }
    return mdp_ok();
}

/* Its bytes are in this file, where they can be read. */
static mdp_status check_storage(const char *path, const char *place, hid_t dataset) {
    hid_t create = H5Dget_create_plist(dataset);
    mdp_status status = mdp_ok();
    if (create < 0)
        status = MDP_ERROR(MDP_BAD_INPUT, "%s: %s does not say how it is stored; the file is damaged.", path, place);
    else if (H5Pget_layout(create) == H5D_VIRTUAL || H5Pget_external_count(create) != 0)
        status =
            MDP_ERROR(MDP_BAD_INPUT,
                      "%s: the numbers of %s are in other files (%s), which are not followed; copy them into this "
                      "one.",
                      path, place, H5Pget_layout(create) == H5D_VIRTUAL ? "a virtual dataset" : "external storage");
    else
        status = check_filters(path, place, create);
    if (create >= 0) H5Pclose(create);
    return status;
}

mdp_status mdp_hdf5_open_dataset(const char *path, hid_t parent, const char *name, hid_t *out) {
    MDP_TRY(open_typed(path, parent, name, H5I_DATASET, out));
    mdp_status status = check_storage(path, name, *out);
    if (status.code == MDP_OK) return status;
    H5Dclose(*out);
    *out = H5I_INVALID_HID;
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
    bool met;
    group_list *list = context;
    hid_t object = open_object(root, name, &met);
    bool is_group = object >= 0 && H5Iget_type(object) == H5I_GROUP;
    if (object >= 0) H5Oclose(object);
    if (is_group) list->status = add_group(list, name);
    if (met) list->status = leads_out(list->path, name);
    return list->status.code == MDP_OK ? 0 : 1; /* not 0 stops */
}

static int compare_names(const void *left, const void *right) {
    return strcmp(*(char *const *)left, *(char *const *)right);
}

mdp_status mdp_hdf5_groups(const char *path, hid_t file, char ***names, int *n) {
    group_list list = {.path = path, .status = mdp_ok()};
    MDP_TRY(mdp_fault(MDP_IO, "list a file"));
    if (H5Literate(file, H5_INDEX_NAME, H5_ITER_INC, NULL, visit_link, &list) < 0) {
        list.status = MDP_ERROR(MDP_BAD_INPUT, "%s: the file cannot be listed; it is damaged.", path);
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

/* ---- walks --------------------------------------------------------------------------------------------------- */

typedef struct walk {
    const char *path;
    hid_t file;
    const char *group; /* with a slash at its end; "" is the root */
    int depth;
    int64_t n_link; /* that may be still to come: more than the file has room for are a circle */
    mdp_hdf5_visit_fn *visit;
    void *context;
    mdp_status status;
} walk;

static mdp_status walk_group(walk *w, hid_t group, const char *name);

static mdp_status visit_object(walk *w, const char *name, hid_t object) {
    H5I_type_t type = H5Iget_type(object);
    if (type == H5I_GROUP) return walk_group(w, object, name);
    if (type != H5I_DATASET) return mdp_ok();
    MDP_TRY(check_storage(w->path, name, object));
    return w->visit(w->context, w->file, name, object);
}

static mdp_status visit_name(walk *w, hid_t group, const char *link, const char *name, H5L_type_t type) {
    bool met;
    if (type != H5L_TYPE_HARD)
        return MDP_ERROR(MDP_BAD_INPUT, "%s: %s is a link to something else, which is not followed; put that here.",
                         w->path, name);
    if (w->n_link-- <= 0)
        return MDP_ERROR(MDP_BAD_INPUT, "%s: the groups of the file hold each other; it is damaged.", w->path);
    MDP_TRY(mdp_fault(MDP_IO, "open an object of HDF5"));
    hid_t object = open_object(group, link, &met);
    if (object < 0) return MDP_ERROR(MDP_BAD_INPUT, "%s: %s cannot be opened; the file is damaged.", w->path, name);
    mdp_status status = visit_object(w, name, object);
    H5Oclose(object);
    return status;
}

static herr_t visit_walked(hid_t group, const char *link, const H5L_info_t *info, void *context) {
    walk *w = context;
    char *name = NULL;
    w->status = mdp_format(&name, "%s%s", w->group, link);
    if (w->status.code == MDP_OK) w->status = visit_name(w, group, link, name, info->type);
    mdp_free(name);
    return w->status.code == MDP_OK ? 0 : 1; /* not 0 stops */
}

/* The links of one group; `name` is NULL for the root. */
static mdp_status walk_group(walk *w, hid_t group, const char *name) {
    char *prefix = NULL;
    const char *outer = w->group;
    if (w->depth == DEEPEST)
        return MDP_ERROR(MDP_BAD_INPUT, "%s: groups lie more than %d deep, beginning with %.60s.", w->path, DEEPEST,
                         name);
    if (name) MDP_TRY(mdp_format(&prefix, "%s/", name));
    w->group = prefix ? prefix : "";
    w->depth++;
    herr_t code = H5Literate(group, H5_INDEX_NAME, H5_ITER_INC, NULL, visit_walked, w);
    if (code < 0 && w->status.code == MDP_OK)
        w->status = MDP_ERROR(MDP_BAD_INPUT, "%s: %s cannot be listed; the file is damaged.", w->path,
                              name ? name : "the file");
    w->depth--;
    w->group = outer;
    mdp_free(prefix);
    return w->status;
}

mdp_status mdp_hdf5_walk(const char *path, hid_t file, mdp_hdf5_visit_fn *visit, void *context) {
    hsize_t n_byte = 0;
    walk w = {.path = path, .file = file, .group = "", .visit = visit, .context = context, .status = mdp_ok()};
    MDP_TRY(mdp_fault(MDP_IO, "list a file"));
    if (H5Fget_filesize(file, &n_byte) < 0)
        return MDP_ERROR(MDP_IO, "%s: HDF5 cannot tell the size of the file.", path);
    w.n_link = (int64_t)(n_byte / LINK_BYTE);
    return walk_group(&w, file, NULL);
}
