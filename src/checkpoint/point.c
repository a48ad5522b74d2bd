/* point.c - one resume point in a file: see resume.h.
 *
 * Layout: the text at /point; a section is a 1-D dataset of numbers and, under /checksums, one XXH3-128 for each item.
 * Rank 0 makes all datasets, every rank fills its items by itself, rank 0 adds `complete`. Nothing is gathered: a rank
 * writes from, and reads into, the memory that the engine and the collectors use. */
#include "checkpoint/h5_parallel.h"
#include "checkpoint/hdf5_read.h"
#include "mdp/resume.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#define FORMAT "moe-dist-prune resume point"
#define VERSION "1.0"
#define PIECE_BYTE (INT64_C(64) << 20) /* of one transfer */
#define DIGEST_CHAR 32
#define MAX_NAME 100

/* ---- content --------------------------------------------------------------------------------------------------- */

mdp_status mdp_point_add_section(mdp_point *point, const char *name, mdp_dtype type, int64_t n_item,
                                 const int64_t *n_number, int64_t each, int *out) {
    MDP_TRY(MDP_GROW(&point->sections, point->n_section, point->n_section + 1, "sections of a resume point"));
    *out = point->n_section++;
    mdp_section *section = &point->sections[*out];
    section->type = type;
    section->n_item = n_item;
    MDP_TRY(mdp_copy_text(&section->name, name));
    MDP_TRY(MDP_ALLOC(&section->offset, n_item + 1, "items of a resume point"));
    for (int64_t i = 0; i < n_item; i++) section->offset[i + 1] = section->offset[i] + (n_number ? n_number[i] : each);
    return mdp_ok();
}

mdp_status mdp_point_add_part(mdp_point *point, int section, int64_t first, int64_t n, void *data) {
    if (n == 0) return mdp_ok();
    MDP_TRY(MDP_GROW(&point->parts, point->n_part, point->n_part + 1, "parts of a resume point"));
    point->parts[point->n_part++] = (mdp_part){.section = section, .first = first, .n = n, .data = data};
    return mdp_ok();
}

mdp_status mdp_point_add_array(mdp_point *point, const char *name, mdp_dtype type, int64_t n, void *data, bool held) {
    int section;
    MDP_TRY(mdp_point_add_section(point, name, type, 1, NULL, n, &section));
    return held ? mdp_point_add_part(point, section, 0, 1, data) : mdp_ok();
}

void mdp_point_clear(mdp_point *point) {
    for (int i = 0; point->sections && i < point->n_section; i++) {
        mdp_free(point->sections[i].name);
        mdp_free(point->sections[i].offset);
    }
    mdp_free(point->sections);
    mdp_free(point->parts);
    memset(point, 0, sizeof *point);
}

static int64_t count_numbers(const mdp_section *section) {
    return section->offset[section->n_item];
}

static int64_t number_bytes(const mdp_section *section) {
    return mdp_dtype_bits(section->type) / 8;
}

/* ---- transfers ------------------------------------------------------------------------------------------------- */

/* Elements first .. first+n-1 of a 1-D dataset, piece by piece. */
static bool write_run(hid_t dataset, hid_t type, int64_t first, int64_t n, const char *data) {
    int64_t unit = (int64_t)H5Tget_size(type), most = PIECE_BYTE / unit;
    hid_t space = H5Dget_space(dataset);
    bool good = space >= 0;
    errno = 0; /* mdp_h5_error looks at it */
    for (int64_t done = 0; good && done < n;) {
        int64_t at = first + done, size = n - done < most ? n - done : most;
        hsize_t start = (hsize_t)at, count = (hsize_t)size;
        hid_t memory = H5Screate_simple(1, &count, NULL);
        good = memory >= 0 && H5Sselect_hyperslab(space, H5S_SELECT_SET, &start, NULL, &count, NULL) >= 0 &&
               H5Dwrite(dataset, type, memory, space, H5P_DEFAULT, data + done * unit) >= 0;
        if (memory >= 0) H5Sclose(memory);
        done += size;
    }
    if (space >= 0) H5Sclose(space);
    return good;
}

/* `type` is closed here. */
static mdp_status write_named(hid_t file, const char *path, const char *name, hid_t type, int64_t first, int64_t n,
                              const void *data) {
    mdp_status status = mdp_fault(MDP_IO, "write");
    hid_t dataset = status.code == MDP_OK ? H5Dopen2(file, name, H5P_DEFAULT) : -1;
    if (status.code == MDP_OK && (dataset < 0 || type < 0 || !write_run(dataset, type, first, n, data)))
        status = mdp_h5_error(MDP_IO, "write", name, path);
    if (dataset >= 0) H5Dclose(dataset);
    if (type >= 0) H5Tclose(type);
    return status;
}

/* Elements first .. first+n-1 of a 1-D dataset, piece by piece. */
static mdp_status read_run(const char *path, const char *name, hid_t dataset, hid_t type, int64_t first, int64_t n,
                           char *data) {
    int64_t unit = (int64_t)H5Tget_size(type), most = PIECE_BYTE / unit;
    for (int64_t done = 0; done < n; done += most) {
        int64_t size = n - done < most ? n - done : most;
        MDP_TRY(mdp_hdf5_read_run(path, name, dataset, type, first + done, size, data + done * unit));
    }
    return mdp_ok();
}

static mdp_status damaged(const char *path, const char *what) {
    return MDP_ERROR(MDP_BAD_INPUT, "%s: the resume point is damaged (%s); remove it, or start again with --overwrite.",
                     path, what);
}

/* The same by name; the dataset must have n_all elements, as many as this program would write. `type` is closed here.
 */
static mdp_status read_named(hid_t file, const char *path, const char *name, hid_t type, int64_t n_all, int64_t first,
                             int64_t n, void *data) {
    hid_t dataset = -1;
    int n_dim = 0;
    int64_t shape[MDP_MAX_DIM] = {0};
    mdp_status status = mdp_hdf5_open_dataset(path, file, name, &dataset);
    if (status.code == MDP_OK) status = mdp_hdf5_shape(path, name, dataset, &n_dim, shape);
    if (status.code == MDP_OK && (n_dim != 1 || shape[0] != n_all)) status = damaged(path, name);
    if (status.code == MDP_OK) status = read_run(path, name, dataset, type, first, n, data);
    if (dataset >= 0) H5Dclose(dataset);
    if (type >= 0) H5Tclose(type);
    return status;
}

static void checksum_name(const mdp_section *section, char out[MAX_NAME]) {
    snprintf(out, MAX_NAME, "/checksums/%s", section->name);
}

static mdp_digest digest_of(const mdp_section *section, const mdp_part *part, int64_t item) {
    int64_t unit = number_bytes(section), begin = section->offset[part->first];
    const char *data = (const char *)part->data + (section->offset[item] - begin) * unit;
    return mdp_hash_bytes(data, (section->offset[item + 1] - section->offset[item]) * unit);
}

/* ---- writing --------------------------------------------------------------------------------------------------- */

static mdp_status make_dataset(hid_t file, const char *path, const char *name, hid_t type, int64_t n) {
    hid_t dataset = -1;
    MDP_TRY(mdp_h5_make_groups(file, name, path));
    mdp_status status = mdp_h5_make_dataset(file, name, type, 1, &n, path, &dataset);
    if (dataset >= 0) H5Dclose(dataset);
    return status;
}

static mdp_status make_section(hid_t file, const char *path, const mdp_section *section) {
    char name[MAX_NAME];
    if (count_numbers(section) == 0) return mdp_ok();
    hid_t numbers = mdp_h5_number_type(section->type, false), text = mdp_h5_text_type(DIGEST_CHAR);
    snprintf(name, sizeof name, "/%s", section->name);
    mdp_status status = make_dataset(file, path, name, numbers, count_numbers(section));
    checksum_name(section, name);
    if (status.code == MDP_OK) status = make_dataset(file, path, name, text, section->n_item);
    if (numbers >= 0) H5Tclose(numbers);
    if (text >= 0) H5Tclose(text);
    return status;
}

/* Rank 0: the file with everything in its place. */
static mdp_status make_file(const char *partial, const char *text, const mdp_point *point) {
    hid_t file;
    unlink(partial); /* what a killed run left */
    MDP_TRY(mdp_h5_create_file(partial, &file));
    mdp_status status = mdp_h5_make_text_attribute(file, "format", FORMAT, partial);
    if (status.code == MDP_OK) status = mdp_h5_make_text_attribute(file, "version", VERSION, partial);
    if (status.code == MDP_OK) status = mdp_h5_make_text(file, "/point", text, (int64_t)strlen(text), partial);
    for (int i = 0; i < point->n_section && status.code == MDP_OK; i++)
        status = make_section(file, partial, &point->sections[i]);
    return mdp_hdf5_close_written(file, partial, status);
}

static mdp_status write_part(hid_t file, const char *path, const mdp_point *point, const mdp_part *part) {
    const mdp_section *section = &point->sections[part->section];
    int64_t first = section->offset[part->first], n = section->offset[part->first + part->n] - first;
    char name[MAX_NAME], *digests = NULL;
    if (n == 0) return mdp_ok();
    snprintf(name, sizeof name, "/%s", section->name);
    MDP_TRY(write_named(file, path, name, mdp_h5_number_type(section->type, false), first, n, part->data));
    MDP_TRY(MDP_ALLOC(&digests, part->n * DIGEST_CHAR, "checksums"));
    for (int64_t i = 0; i < part->n; i++)
        memcpy(digests + i * DIGEST_CHAR, digest_of(section, part, part->first + i).hex, DIGEST_CHAR);
    checksum_name(section, name);
    mdp_status status = write_named(file, path, name, mdp_h5_text_type(DIGEST_CHAR), part->first, part->n, digests);
    mdp_free(digests);
    return status;
}

static mdp_status fill_file_all(const mdp_comm *comm, const char *partial, const mdp_point *point) {
    hid_t file;
    MDP_TRY(mdp_h5_open_all(comm, partial, &file));
    mdp_status status = mdp_ok();
    for (int i = 0; i < point->n_part && status.code == MDP_OK; i++)
        status = write_part(file, partial, point, &point->parts[i]);
    return mdp_h5_close_all(comm, partial, file, status);
}

/* Rank 0. */
static mdp_status complete_file(const char *partial) {
    const int32_t one = 1;
    hid_t file;
    MDP_TRY(mdp_h5_reopen_file(partial, &file));
    mdp_status status = mdp_h5_make_attribute(file, "complete", H5T_STD_I32LE, -1, &one, partial);
    return mdp_hdf5_close_written(file, partial, status);
}

static mdp_status publish(const char *partial, const char *path) {
    char *folder = NULL;
    MDP_TRY(mdp_file_rename(partial, path));
    MDP_TRY(mdp_path_folder(&folder, path));
    mdp_status status = mdp_folder_sync(folder);
    mdp_free(folder);
    return status;
}

static mdp_status write_partial_all(const mdp_comm *comm, const char *partial, const char *text,
                                    const mdp_point *point) {
    MDP_AGREE(comm, comm->rank == 0 ? make_file(partial, text, point) : mdp_ok());
    MDP_TRY(fill_file_all(comm, partial, point));
    MDP_AGREE(comm, comm->rank == 0 ? complete_file(partial) : mdp_ok());
    return mdp_h5_sync_all(comm, partial);
}

mdp_status mdp_point_write_all(const mdp_comm *comm, const char *path, const char *text, const mdp_point *point) {
    char *partial = NULL;
    mdp_status status = mdp_agree_all(comm, mdp_format(&partial, "%s.partial", path));
    mdp_h5_silence silence = mdp_h5_silence_begin();
    if (status.code == MDP_OK) status = write_partial_all(comm, partial, text, point);
    mdp_h5_silence_end(silence);
    if (comm->rank == 0 && partial) {
        if (status.code == MDP_OK) status = publish(partial, path);
        if (status.code != MDP_OK) unlink(partial);
    }
    mdp_free(partial);
    return mdp_agree_all(comm, status);
}

/* ---- reading --------------------------------------------------------------------------------------------------- */

static mdp_status check_file(const char *path, hid_t file) {
    char *format = NULL, *version = NULL;
    mdp_status status = mdp_hdf5_text_attribute(path, "the file", file, "format", &format);
    if (status.code == MDP_OK) status = mdp_hdf5_text_attribute(path, "the file", file, "version", &version);
    if (status.code == MDP_OK && (strcmp(format, FORMAT) != 0 || strcmp(version, VERSION) != 0))
        status = MDP_ERROR(MDP_BAD_INPUT, "%s: expected '%s' of version %s, found '%s' of version %s.", path, FORMAT,
                           VERSION, format, version);
    if (status.code == MDP_OK && !mdp_hdf5_has_attribute(file, "complete")) status = damaged(path, "it is incomplete");
    mdp_free(format);
    mdp_free(version);
    return status;
}

/* The text at /point, compared with its checksum. */
static mdp_status read_text(const char *path, hid_t file, char **text, int64_t *n_byte) {
    char *expected = NULL;
    MDP_TRY(check_file(path, file));
    MDP_TRY(mdp_hdf5_text_dataset(path, file, "/point", text, n_byte));
    hid_t dataset;
    MDP_TRY(mdp_hdf5_open_dataset(path, file, "/point", &dataset));
    mdp_status status = mdp_hdf5_text_attribute(path, "/point", dataset, "xxh3_128", &expected);
    if (status.code == MDP_OK && strcmp(expected, mdp_hash_bytes(*text, *n_byte).hex) != 0)
        status = damaged(path, "its text");
    H5Dclose(dataset);
    mdp_free(expected);
    return status;
}

/* Rank 0. */
static mdp_status open_and_read_text(const char *path, char **text, int64_t *n_byte) {
    hid_t file;
    if (!mdp_path_exists(path)) return mdp_ok();
    MDP_TRY(mdp_hdf5_open(path, "a resume point", &file));
    mdp_status status = read_text(path, file, text, n_byte);
    H5Fclose(file);
    if (status.code == MDP_OK) return status;
    mdp_free(*text);
    *text = NULL;
    return status;
}

mdp_status mdp_point_read_text_all(const mdp_comm *comm, const char *path, char **text) {
    int64_t n_byte = -1;
    *text = NULL;
    MDP_AGREE(comm, comm->rank == 0 ? open_and_read_text(path, text, &n_byte) : mdp_ok());
    int64_t found = *text ? n_byte : -1;
    MDP_TRY(mdp_bcast_all(comm, &found, (int64_t)sizeof found, 0));
    return found < 0 ? mdp_ok() : mdp_bcast_text_all(comm, text, &found, 0);
}

static mdp_status compare(const char *path, const mdp_section *section, const mdp_part *part, const char *digests) {
    char what[MAX_NAME + 40];
    for (int64_t i = 0; i < part->n; i++) {
        if (memcmp(digests + i * DIGEST_CHAR, digest_of(section, part, part->first + i).hex, DIGEST_CHAR) == 0)
            continue;
        int64_t item = part->first + i;
        snprintf(what, sizeof what, "item %lld of %s", (long long)item, section->name);
        return damaged(path, what);
    }
    return mdp_ok();
}

static mdp_status read_part(hid_t file, const char *path, const mdp_point *point, const mdp_part *part) {
    const mdp_section *section = &point->sections[part->section];
    int64_t first = section->offset[part->first], n = section->offset[part->first + part->n] - first;
    char name[MAX_NAME], *digests = NULL;
    if (n == 0) return mdp_ok();
    snprintf(name, sizeof name, "/%s", section->name);
    MDP_TRY(read_named(file, path, name, mdp_h5_number_type(section->type, false), count_numbers(section), first, n,
                       part->data));
    checksum_name(section, name);
    MDP_TRY(MDP_ALLOC(&digests, part->n * DIGEST_CHAR, "checksums"));
    mdp_status status =
        read_named(file, path, name, mdp_h5_text_type(DIGEST_CHAR), section->n_item, part->first, part->n, digests);
    if (status.code == MDP_OK) status = compare(path, section, part, digests);
    mdp_free(digests);
    return status;
}

static mdp_status read_parts(const char *path, const mdp_point *point) {
    hid_t file;
    if (point->n_part == 0) return mdp_ok();
    MDP_TRY(mdp_hdf5_open(path, "a resume point", &file));
    mdp_status status = check_file(path, file);
    for (int i = 0; i < point->n_part && status.code == MDP_OK; i++)
        status = read_part(file, path, point, &point->parts[i]);
    H5Fclose(file);
    return status;
}

mdp_status mdp_point_read_all(const mdp_comm *comm, const char *path, const mdp_point *point) {
    return mdp_agree_all(comm, read_parts(path, point));
}
