/* tokens.c - calibration and evaluation text as token ids, from tokens.h5.
 *
 * One group per category with input_ids and offsets. Rank 0 reads every id once, checks it, and hashes; all ranks keep
 * the offsets and open the file themselves to read their own ids later. Sequences without tokens are left out. Refused:
 * an id outside the vocabulary, offsets that do not rise from 0 to the number of ids, a category or a file without
 * tokens, a category that is asked for and not there.
 *
 * A second form holds its ids in memory, on every rank; multiple choice is made of such (tasks.c).
 *
 * Fingerprint: for each category used, in byte order of name: name and a 0 byte, number of offsets and the offsets as
 * stored (int64), the ids (uint32). */
#include "checkpoint/hdf5_read.h"

#include "mdp/checkpoint.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define CHUNK_IDS ((int64_t)1 << 18)

/* ---- categories (rank 0) ------------------------------------------------------------------------------------- */

/* What rank 0 finds out and broadcasts. */
typedef struct found {
    char **names; /* [n] byte order; owned */
    int n;
    int64_t *lengths; /* [n_length] tokens of each sequence with any, over all categories used; owned */
    int64_t n_length, length_capacity;
    int64_t *n_sequence; /* [n] of each category; owned */
    mdp_digest fingerprint;
} found;

static void clear_found(found *f) {
    for (int i = 0; i < f->n; i++) mdp_free(f->names[i]);
    mdp_free(f->names);
    mdp_free(f->lengths);
    mdp_free(f->n_sequence);
}

static mdp_status list_categories(const char *path, hid_t file, found *f) {
    MDP_TRY(mdp_hdf5_groups(path, file, &f->names, &f->n));
    if (f->n > 0) return mdp_ok();
    return MDP_ERROR(
        MDP_BAD_INPUT,
        "%s: there is no category: expected groups with input_ids and offsets, as tools/tokenize writes them.", path);
}

/* One name of the user's selection: mark the category. */
static mdp_status mark_category(const char *path, const found *f, const char *name, bool *wanted) {
    for (int i = 0; i < f->n; i++) {
        if (strcmp(f->names[i], name) == 0) {
            wanted[i] = true;
            return mdp_ok();
        }
    }
    const char *near = mdp_nearest(name, (const char *const *)f->names, f->n);
    if (near != NULL) {
        return MDP_ERROR(MDP_BAD_INPUT, "%s: there is no category '%s'. Did you mean '%s'?", path, name, near);
    }
    return MDP_ERROR(MDP_BAD_INPUT, "%s: there is no category '%s'; the first of %d is '%s'.", path, name, f->n,
                     f->names[0]);
}

/* name: room for all of the selection. */
static mdp_status mark_categories(const char *path, const found *f, const char *selection, char *name, bool *wanted) {
    const char *rest, *end;
    while (selection != NULL) {
        mdp_next_name(&selection, name, &rest, &end);
        MDP_TRY(mark_category(path, f, name, wanted));
    }
    return mdp_ok();
}

/* Keep the categories that the comma-separated selection names. */
static mdp_status select_categories(const char *path, found *f, const char *selection) {
    if (selection == NULL) return mdp_ok();
    char *name = NULL;
    bool *wanted = NULL;
    MDP_TRY(MDP_ALLOC(&name, (int64_t)strlen(selection) + 1, "categories"));
    mdp_status status = MDP_ALLOC(&wanted, f->n, "categories");
    if (status.code == MDP_OK) status = mark_categories(path, f, selection, name, wanted);
    if (status.code == MDP_OK) {
        int n = 0;
        for (int i = 0; i < f->n; i++) {
            if (wanted[i]) {
                f->names[n++] = f->names[i];
            } else {
                mdp_free(f->names[i]);
            }
        }
        f->n = n;
    }
    mdp_free(wanted);
    mdp_free(name);
    return status;
}

/* ---- one category (rank 0) ----------------------------------------------------------------------------------- */

/* A 1-D dataset of integers of a category, open, with its length. */
static mdp_status open_row(const char *path, hid_t file, const char *category, const char *name, hid_t *out,
                           int64_t *length) {
    char *place = NULL;
    MDP_TRY(mdp_format(&place, "/%s/%s", category, name));
    mdp_status status = mdp_hdf5_has(file, place)
                            ? mdp_hdf5_open_row(path, file, place, out, length)
                            : MDP_ERROR(MDP_BAD_INPUT, "%s: category '%s' has no dataset '%s'.", path, category, name);
    mdp_free(place);
    return status;
}

/* Values first .. first+n-1 of an open 1-D dataset. */
static mdp_status read_row(const char *path, const char *category, hid_t dataset, int64_t first, int64_t n, hid_t type,
                           void *out) {
    char *place = NULL;
    MDP_TRY(mdp_format(&place, "category '%s'", category));
    mdp_status status = mdp_hdf5_read_run(path, place, dataset, type, first, n, out);
    mdp_free(place);
    return status;
}

static mdp_status check_offsets(const char *path, const char *category, const int64_t *offsets, int64_t n,
                                int64_t n_id) {
    if (offsets[0] != 0) {
        return MDP_ERROR(MDP_BAD_INPUT, "%s: the offsets of category '%s' begin at %" PRId64 "; expected 0.", path,
                         category, offsets[0]);
    }
    for (int64_t i = 1; i < n; i++) {
        if (offsets[i] < offsets[i - 1]) {
            return MDP_ERROR(MDP_BAD_INPUT,
                             "%s: the offsets of category '%s' decrease: sequence %" PRId64 " begins at %" PRId64
                             " and ends at %" PRId64 ".",
                             path, category, i - 1, offsets[i - 1], offsets[i]);
        }
    }
    if (offsets[n - 1] != n_id) {
        return MDP_ERROR(MDP_BAD_INPUT,
                         "%s: the offsets of category '%s' end at %" PRId64 ", but it has %" PRId64 " tokens.", path,
                         category, offsets[n - 1], n_id);
    }
    return mdp_ok();
}

static mdp_status bad_id(const char *path, const char *category, const int64_t *offsets, int64_t at, int64_t id,
                         int64_t vocab_size) {
    int64_t sequence = 0;
    while (offsets[sequence + 1] <= at) sequence++;
    return MDP_ERROR(MDP_BAD_INPUT,
                     "%s: category '%s', sequence %" PRId64 ", position %" PRId64 ": token id %" PRId64
                     " is outside the vocabulary of %" PRId64
                     " (vocab_size); the file was made with another tokenizer.",
                     path, category, sequence, at - offsets[sequence], id, vocab_size);
}

/* Check and hash the ids, a chunk at a time. Read as int64, so that HDF5's conversion cannot clip a wrong one. */
static mdp_status check_ids(const char *path, const char *category, hid_t dataset, const int64_t *offsets, int64_t n,
                            int64_t vocab_size, mdp_hash *hash) {
    int64_t *ids = NULL, n_chunk = n < CHUNK_IDS ? n : CHUNK_IDS;
    uint32_t *narrow = NULL;
    mdp_status status;
    MDP_TRY_GOTO(status, done, MDP_ALLOC(&ids, n_chunk, "tokens"));
    MDP_TRY_GOTO(status, done, MDP_ALLOC(&narrow, n_chunk, "tokens"));
    for (int64_t first = 0; first < n; first += n_chunk) {
        int64_t now = n - first < n_chunk ? n - first : n_chunk;
        MDP_TRY_GOTO(status, done, read_row(path, category, dataset, first, now, H5T_NATIVE_INT64, ids));
        for (int64_t i = 0; i < now; i++) {
            if (ids[i] < 0 || ids[i] >= vocab_size) {
                status = bad_id(path, category, offsets, first + i, ids[i], vocab_size);
                goto done;
            }
            narrow[i] = (uint32_t)ids[i];
        }
        mdp_hash_update(hash, narrow, now * (int64_t)sizeof *narrow);
    }
done:
    mdp_free(narrow);
    mdp_free(ids);
    return status;
}

static mdp_status add_lengths(found *f, int category, const int64_t *offsets, int64_t n) {
    for (int64_t i = 1; i < n; i++) {
        if (offsets[i] == offsets[i - 1]) continue;
        if (f->n_length == f->length_capacity) {
            int64_t capacity = f->length_capacity == 0 ? 256 : 2 * f->length_capacity;
            MDP_TRY(MDP_GROW(&f->lengths, f->n_length, capacity, "sequences"));
            f->length_capacity = capacity;
        }
        f->lengths[f->n_length++] = offsets[i] - offsets[i - 1];
        f->n_sequence[category]++;
    }
    return mdp_ok();
}

static mdp_status scan_opened(const char *path, found *f, int category, hid_t ids, int64_t n_id, hid_t rows,
                              int64_t n_offset, int64_t vocab_size, mdp_hash *hash) {
    const char *name = f->names[category];
    if (n_id == 0 || n_offset < 2) {
        return MDP_ERROR(MDP_BAD_INPUT, "%s: category '%s' has no tokens.", path, name);
    }
    int64_t *offsets = NULL;
    MDP_TRY(MDP_ALLOC(&offsets, n_offset, "offsets of sequences"));
    mdp_status status;
    MDP_TRY_GOTO(status, done, read_row(path, name, rows, 0, n_offset, H5T_NATIVE_INT64, offsets));
    MDP_TRY_GOTO(status, done, check_offsets(path, name, offsets, n_offset, n_id));
    mdp_hash_update(hash, name, (int64_t)strlen(name) + 1);
    mdp_hash_update(hash, &n_offset, sizeof n_offset);
    mdp_hash_update(hash, offsets, n_offset * (int64_t)sizeof *offsets);
    MDP_TRY_GOTO(status, done, check_ids(path, name, ids, offsets, n_id, vocab_size, hash));
    status = add_lengths(f, category, offsets, n_offset);
done:
    mdp_free(offsets);
    return status;
}

static mdp_status scan_category(const char *path, hid_t file, found *f, int category, int64_t vocab_size,
                                mdp_hash *hash) {
    hid_t ids, rows;
    int64_t n_id, n_offset;
    MDP_TRY(open_row(path, file, f->names[category], "input_ids", &ids, &n_id));
    mdp_status status = open_row(path, file, f->names[category], "offsets", &rows, &n_offset);
    if (status.code == MDP_OK) {
        status = scan_opened(path, f, category, ids, n_id, rows, n_offset, vocab_size, hash);
        H5Dclose(rows);
    }
    H5Dclose(ids);
    return status;
}

static mdp_status scan(const char *path, hid_t file, const char *categories, int64_t vocab_size, found *f) {
    mdp_hash *hash = NULL;
    MDP_TRY(list_categories(path, file, f));
    MDP_TRY(select_categories(path, f, categories));
    MDP_TRY(MDP_ALLOC(&f->n_sequence, f->n, "categories"));
    MDP_TRY(mdp_hash_new(&hash));
    mdp_status status = mdp_ok();
    for (int i = 0; i < f->n && status.code == MDP_OK; i++) {
        status = scan_category(path, file, f, i, vocab_size, hash);
    }
    f->fingerprint = mdp_hash_digest(hash);
    mdp_hash_destroy(hash);
    return status;
}

/* ---- on every rank ------------------------------------------------------------------------------------------- */

static mdp_status allocate(mdp_tokens *tokens) {
    MDP_TRY(MDP_ALLOC(&tokens->category, tokens->n_category, "categories"));
    MDP_TRY(MDP_ALLOC(&tokens->offset, tokens->n_sequence + 1, "offsets of sequences"));
    MDP_TRY(MDP_ALLOC(&tokens->sequence_category, tokens->n_sequence, "sequences"));
    return MDP_ALLOC(&tokens->category_offset, tokens->n_category + 1, "categories");
}

/* Rank 0: what was found, in the arrays of the result. Offsets hold lengths, category offsets numbers of sequences,
 * until they are summed. */
static void fill(mdp_tokens *tokens, const found *f) {
    for (int64_t i = 0; i < f->n_length; i++) tokens->offset[i + 1] = f->lengths[i];
    for (int c = 0; c < f->n; c++) tokens->category_offset[c + 1] = f->n_sequence[c];
    memcpy(tokens->fingerprint, f->fingerprint.hex, sizeof tokens->fingerprint);
}

/* From lengths to offsets, and which category each sequence belongs to. */
static void sum_lengths(mdp_tokens *tokens) {
    int64_t sequence = 0;
    for (int c = 0; c < tokens->n_category; c++) {
        int64_t n = tokens->category_offset[c + 1];
        for (int64_t i = 0; i < n; i++, sequence++) {
            tokens->sequence_category[sequence] = c;
            tokens->offset[sequence + 1] += tokens->offset[sequence];
        }
        tokens->category_offset[c + 1] = tokens->offset[sequence];
    }
    tokens->n_token = tokens->offset[tokens->n_sequence];
}

/* Collective on `comm`. `f` is rank 0's; NULL elsewhere. */
static mdp_status share_names_all(const mdp_comm *comm, mdp_tokens *tokens, const found *f) {
    for (int i = 0; i < tokens->n_category; i++) {
        int64_t n_byte = 0;
        mdp_status status = mdp_ok();
        if (f != NULL) {
            n_byte = (int64_t)strlen(f->names[i]);
            status = mdp_copy_text(&tokens->category[i], f->names[i]);
        }
        MDP_AGREE(comm, status);
        MDP_TRY(mdp_bcast_text_all(comm, &tokens->category[i], &n_byte, 0));
    }
    return mdp_ok();
}

/* Collective on `comm`. Everything but the file handle, from rank 0 to all. `f` is rank 0's; NULL elsewhere. */
static mdp_status share_all(const mdp_comm *comm, mdp_tokens *tokens, const found *f) {
    int64_t sizes[2] = {f ? f->n : 0, f ? f->n_length : 0};
    MDP_TRY(mdp_bcast_all(comm, sizes, sizeof sizes, 0));
    tokens->n_category = (int)sizes[0];
    tokens->n_sequence = sizes[1];
    MDP_AGREE(comm, allocate(tokens));
    if (f != NULL) fill(tokens, f);
    MDP_TRY(mdp_bcast_all(comm, tokens->offset, (tokens->n_sequence + 1) * (int64_t)sizeof *tokens->offset, 0));
    MDP_TRY(mdp_bcast_all(comm, tokens->category_offset,
                          (tokens->n_category + 1) * (int64_t)sizeof *tokens->category_offset, 0));
    MDP_TRY(mdp_bcast_all(comm, tokens->fingerprint, sizeof tokens->fingerprint, 0));
    MDP_TRY(share_names_all(comm, tokens, f));
    sum_lengths(tokens);
    return mdp_ok();
}

/* This rank's own part: the structure and the open file. */
static mdp_status open_local(const char *path, mdp_tokens **out) {
    MDP_TRY(MDP_ALLOC(out, 1, "tokens"));
    (*out)->file = H5I_INVALID_HID;
    MDP_TRY(mdp_copy_text(&(*out)->path, path));
    hid_t file;
    MDP_TRY(mdp_hdf5_open(path, "a tokens file as tools/tokenize writes it", &file));
    (*out)->file = file;
    return mdp_ok();
}

mdp_status mdp_tokens_open_all(const mdp_comm *comm, const char *path, const char *categories, int64_t vocab_size,
                               mdp_tokens **out) {
    mdp_tokens *tokens = NULL;
    found f = {0};
    *out = NULL;
    mdp_status status = open_local(path, &tokens);
    if (status.code == MDP_OK && comm->rank == 0) status = scan(path, tokens->file, categories, vocab_size, &f);
    status = mdp_agree_all(comm, status);
    if (status.code == MDP_OK) status = share_all(comm, tokens, comm->rank == 0 ? &f : NULL);
    clear_found(&f);
    if (status.code != MDP_OK) {
        mdp_tokens_destroy(tokens);
        return status;
    }
    *out = tokens;
    return status;
}

/* Names, offsets and ids from the arguments of mdp_tokens_new_in_memory. */
static mdp_status fill_in_memory(mdp_tokens *tokens, const char *path, const int64_t *n_sequence,
                                 const int64_t *lengths, const char *const *names) {
    MDP_TRY(mdp_copy_text(&tokens->path, path));
    for (int c = 0; c < tokens->n_category; c++) tokens->n_sequence += n_sequence[c];
    MDP_TRY(allocate(tokens));
    for (int c = 0; c < tokens->n_category; c++) {
        MDP_TRY(mdp_copy_text(&tokens->category[c], names[c]));
        tokens->category_offset[c + 1] = n_sequence[c];
    }
    for (int64_t s = 0; s < tokens->n_sequence; s++) tokens->offset[s + 1] = lengths[s];
    sum_lengths(tokens);
    return MDP_ALLOC(&tokens->ids, tokens->n_token, "tokens");
}

mdp_status mdp_tokens_new_in_memory(const char *path, int n_category, const char *const *names,
                                    const int64_t *n_sequence, const int64_t *lengths, mdp_tokens **out) {
    mdp_tokens *tokens = NULL;
    *out = NULL;
    MDP_TRY(MDP_ALLOC(&tokens, 1, "tokens"));
    tokens->file = H5I_INVALID_HID;
    tokens->n_category = n_category;
    mdp_status status = fill_in_memory(tokens, path, n_sequence, lengths, names);
    if (status.code != MDP_OK) {
        mdp_tokens_destroy(tokens);
        return status;
    }
    *out = tokens;
    return mdp_ok();
}

void mdp_tokens_destroy(mdp_tokens *tokens) {
    if (tokens == NULL) return;
    mdp_free(tokens->ids);
    if (tokens->file >= 0) H5Fclose(tokens->file);
    for (int i = 0; tokens->category != NULL && i < tokens->n_category; i++) mdp_free(tokens->category[i]);
    mdp_free(tokens->category);
    mdp_free(tokens->offset);
    mdp_free(tokens->sequence_category);
    mdp_free(tokens->category_offset);
    mdp_free(tokens->path);
    mdp_free(tokens);
}

static mdp_status read_category(const mdp_tokens *tokens, int category, int64_t first, int64_t n, uint32_t *out) {
    hid_t dataset;
    int64_t length;
    const char *name = tokens->category[category];
    MDP_TRY(open_row(tokens->path, tokens->file, name, "input_ids", &dataset, &length));
    mdp_status status = read_row(tokens->path, name, dataset, first, n, H5T_NATIVE_UINT32, out);
    H5Dclose(dataset);
    return status;
}

mdp_status mdp_tokens_read(const mdp_tokens *tokens, int64_t first, int64_t n, uint32_t *out) {
    if (first < 0 || n < 0 || first > tokens->n_token - n) {
        return MDP_ERROR(MDP_INTERNAL, "%s: tokens %" PRId64 " to %" PRId64 " were asked for; there are %" PRId64 ".",
                         tokens->path, first, first + n, tokens->n_token);
    }
    if (tokens->ids != NULL) {
        memcpy(out, tokens->ids + first, (size_t)n * sizeof *out);
        return mdp_ok();
    }
    for (int c = 0; c < tokens->n_category && n > 0; c++) {
        int64_t begin = tokens->category_offset[c], end = tokens->category_offset[c + 1];
        if (first >= end) continue;
        int64_t now = end - first < n ? end - first : n;
        MDP_TRY(read_category(tokens, c, first - begin, now, out));
        first += now;
        n -= now;
        out += now;
    }
    return mdp_ok();
}
