/* safetensors.c - the strict reader of a safetensors header.
 *
 * A file is: u64 N, N bytes of JSON, data. Every rule of the format is checked before a tensor is believed: length of
 * the header, text and types of the JSON, no name twice, shapes that fit 64 bits and the stated bytes, and data that
 * the tensors cover from the first to the last byte of the file without hole or overlap. Only the header is read.
 * Bytes in error sentences count from the start of the file. Extra fields of a tensor's entry are ignored, as the
 * format's own reader does. */
#include "checkpoint/safetensors.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* What a file's own checks need while it is read. */
typedef struct header {
    const char *path;
    int64_t file_byte;  /* size of the file */
    int64_t data_start; /* 8 + N */
    json_t *root;
} header;

/* A tensor's range, to be sorted by place. */
typedef struct range {
    int64_t begin, end;
    const char *name; /* borrowed from the JSON */
} range;

/* ---- the JSON text ------------------------------------------------------------------------------------------- */

static mdp_status read_header_length(header *h, int fd, int64_t *n_byte) {
    char have[32], need[32];
    if (h->file_byte < 8) {
        return MDP_ERROR(MDP_BAD_INPUT,
                         "%s: the file has %" PRId64 " bytes, but a safetensors file begins with 8 bytes of header "
                         "length. The file is empty or truncated; download it again.",
                         h->path, h->file_byte);
    }
    unsigned char raw[8];
    MDP_TRY(mdp_file_pread(h->path, fd, raw, 8, 0));
    uint64_t length = 0;
    for (int i = 7; i >= 0; i--) length = length << 8 | raw[i];
    if (length > MDP_SAFETENSORS_MAX_HEADER) {
        return MDP_ERROR(MDP_BAD_INPUT,
                         "%s: the header length at byte 0 is %" PRIu64 ", more than the 100,000,000 that safetensors "
                         "allows. This is no safetensors file, or it is damaged; download it again.",
                         h->path, length);
    }
    h->data_start = 8 + (int64_t)length;
    if (h->data_start > h->file_byte) {
        return MDP_ERROR(MDP_BAD_INPUT,
                         "%s: the header ends at byte %s, past the file's end (%s). The file is truncated; download "
                         "it again.",
                         h->path, mdp_print_count(need, h->data_start), mdp_print_count(have, h->file_byte));
    }
    *n_byte = (int64_t)length;
    return mdp_ok();
}

static mdp_status parse_header(header *h, const char *text, int64_t n_byte) {
    int64_t first = 0;
    while (first < n_byte && strchr(" \t\r\n", text[first]) != NULL && text[first] != '\0') first++;
    if (first == n_byte || text[first] != '{') {
        return MDP_ERROR(MDP_BAD_INPUT,
                         "%s: the header does not begin with '{' at byte %" PRId64
                         ". This is no safetensors file, or it is damaged; download it again.",
                         h->path, 8 + first);
    }
    return mdp_json_parse(text, n_byte, h->path, &h->root);
}

static mdp_status read_header(header *h, int fd) {
    char *text = NULL;
    int64_t n_byte = 0;
    MDP_TRY(read_header_length(h, fd, &n_byte));
    MDP_TRY(MDP_ALLOC(&text, n_byte + 1, "safetensors header"));
    mdp_status status = mdp_file_pread(h->path, fd, text, n_byte, 8);
    if (status.code == MDP_OK) status = parse_header(h, text, n_byte);
    mdp_free(text);
    return status;
}

/* ---- the entries --------------------------------------------------------------------------------------------- */

static mdp_status check_metadata(const header *h, json_t *metadata) {
    if (!json_is_object(metadata)) {
        return MDP_ERROR(MDP_BAD_INPUT, "%s: '__metadata__' is not an object of texts.", h->path);
    }
    const char *key;
    json_t *value;
    json_object_foreach(metadata, key, value) {
        if (!json_is_string(value)) {
            return MDP_ERROR(MDP_BAD_INPUT,
                             "%s: '__metadata__' holds '%s', which is not a text; only texts may be there.", h->path,
                             key);
        }
    }
    return mdp_ok();
}

static mdp_status read_type(const header *h, const char *name, const json_t *entry, mdp_dtype *type) {
    const char *text = json_string_value(json_object_get(entry, "dtype"));
    if (text == NULL) {
        return MDP_ERROR(MDP_BAD_INPUT, "%s: '%s' has no text \"dtype\".", h->path, name);
    }
    if (!mdp_dtype_find(text, type)) {
        return MDP_ERROR(MDP_BAD_INPUT, "%s: '%s' has the unknown dtype \"%s\".", h->path, name, text);
    }
    return mdp_ok();
}

/* Integers that JSON holds beyond int64 are refused by the parser; negative ones here. */
static bool read_index(const json_t *value, int64_t *out) {
    if (!json_is_integer(value) || json_integer_value(value) < 0) return false;
    *out = json_integer_value(value);
    return true;
}

static mdp_status read_shape(const header *h, const char *name, const json_t *entry, mdp_tensor *tensor) {
    const json_t *shape = json_object_get(entry, "shape");
    if (!json_is_array(shape)) return MDP_ERROR(MDP_BAD_INPUT, "%s: '%s' has no array \"shape\".", h->path, name);
    if (json_array_size(shape) > MDP_MAX_DIM) {
        return MDP_ERROR(MDP_BAD_INPUT, "%s: '%s' has %zu dimensions; at most %d are supported.", h->path, name,
                         json_array_size(shape), MDP_MAX_DIM);
    }
    tensor->n_dim = (int)json_array_size(shape);
    for (int i = 0; i < tensor->n_dim; i++) {
        if (!read_index(json_array_get(shape, (size_t)i), &tensor->shape[i])) {
            return MDP_ERROR(MDP_BAD_INPUT, "%s: dimension %d of the shape of '%s' is not a non-negative integer.",
                             h->path, i, name);
        }
    }
    return mdp_ok();
}

static mdp_status read_range(const header *h, const char *name, const json_t *entry, range *out) {
    const json_t *offsets = json_object_get(entry, "data_offsets");
    if (!json_is_array(offsets) || json_array_size(offsets) != 2 ||
        !read_index(json_array_get(offsets, 0), &out->begin) || !read_index(json_array_get(offsets, 1), &out->end)) {
        return MDP_ERROR(MDP_BAD_INPUT, "%s: \"data_offsets\" of '%s' is not a pair of non-negative integers.", h->path,
                         name);
    }
    int64_t file_end;
    if (!mdp_add(out->end, h->data_start, &file_end)) {
        return MDP_ERROR(MDP_BAD_INPUT, "%s: '%s' ends at data byte %" PRId64 ", which no file can have.", h->path,
                         name, out->end);
    }
    if (out->end < out->begin) {
        return MDP_ERROR(MDP_BAD_INPUT, "%s: '%s' ends at byte %" PRId64 ", before it begins (%" PRId64 ").", h->path,
                         name, file_end, h->data_start + out->begin);
    }
    out->name = name;
    return mdp_ok();
}

static mdp_status read_entry(const header *h, const char *name, const json_t *entry, mdp_tensor *tensor, range *place) {
    if (!json_is_object(entry)) {
        return MDP_ERROR(MDP_BAD_INPUT, "%s: the entry of '%s' is not an object.", h->path, name);
    }
    MDP_TRY(read_type(h, name, entry, &tensor->type));
    MDP_TRY(read_shape(h, name, entry, tensor));
    MDP_TRY(read_range(h, name, entry, place));
    if (!mdp_dtype_bytes(tensor->type, tensor->n_dim, tensor->shape, &tensor->n_byte)) {
        return MDP_ERROR(MDP_BAD_INPUT, "%s: the shape of '%s' overflows, or is no whole number of bytes of %s.",
                         h->path, name, mdp_dtype_name(tensor->type));
    }
    if (place->end - place->begin != tensor->n_byte) {
        return MDP_ERROR(MDP_BAD_INPUT,
                         "%s: '%s' takes %" PRId64 " bytes from byte %" PRId64
                         ", but its shape and dtype %s need %" PRId64 ".",
                         h->path, name, place->end - place->begin, h->data_start + place->begin,
                         mdp_dtype_name(tensor->type), tensor->n_byte);
    }
    tensor->offset = h->data_start + place->begin;
    return mdp_ok();
}

/* ---- the data ------------------------------------------------------------------------------------------------ */

static int compare_ranges(const void *left, const void *right) {
    const range *a = left, *b = right;
    if (a->begin != b->begin) return a->begin < b->begin ? -1 : 1;
    if (a->end != b->end) return a->end < b->end ? -1 : 1;
    return strcmp(a->name, b->name);
}

/* The tensors must cover the data from its first to its last byte, each byte once. */
static mdp_status check_cover(const header *h, range *ranges, int64_t n) {
    char first[32], second[32];
    qsort(ranges, (size_t)n, sizeof *ranges, compare_ranges);
    int64_t covered = 0;
    for (int64_t i = 0; i < n; i++) {
        const range *r = &ranges[i];
        if (r->begin != covered) {
            return MDP_ERROR(MDP_BAD_INPUT, "%s: '%s' begins at byte %s, but %s ends at byte %s: %s.", h->path, r->name,
                             mdp_print_count(first, h->data_start + r->begin),
                             i == 0 ? "the header" : "the data before it",
                             mdp_print_count(second, h->data_start + covered),
                             r->begin > covered ? "the bytes between belong to no tensor" : "two tensors overlap");
        }
        covered = r->end;
        if (h->data_start + covered > h->file_byte) {
            return MDP_ERROR(MDP_BAD_INPUT,
                             "%s: '%s' ends at byte %s, past the file's end (%s). The file is truncated; download it "
                             "again.",
                             h->path, r->name, mdp_print_count(first, h->data_start + covered),
                             mdp_print_count(second, h->file_byte));
        }
    }
    if (h->data_start + covered != h->file_byte) {
        return MDP_ERROR(MDP_BAD_INPUT,
                         "%s: the tensors end at byte %s, but the file has %s bytes; the bytes after belong "
                         "to no tensor.",
                         h->path, mdp_print_count(first, h->data_start + covered),
                         mdp_print_count(second, h->file_byte));
    }
    return mdp_ok();
}

static mdp_status add_tensors(mdp_draft *draft, const header *h, range *ranges, int64_t *n_range) {
    int32_t file;
    MDP_TRY(mdp_draft_add_file(draft, h->path, h->file_byte, &file));
    const char *name;
    json_t *entry;
    int64_t n = 0;
    json_object_foreach(h->root, name, entry) {
        if (strcmp(name, "__metadata__") == 0) {
            MDP_TRY(check_metadata(h, entry));
            continue;
        }
        mdp_tensor tensor = {.file = file};
        MDP_TRY(read_entry(h, name, entry, &tensor, &ranges[n++]));
        MDP_TRY(mdp_draft_add_tensor(draft, name, &tensor));
    }
    *n_range = n;
    return mdp_ok();
}

/* A file that is clearly something else is called by its name. */
static mdp_status name_other_file(const char *path, mdp_status status) {
    const char *found = status.code == MDP_BAD_INPUT ? mdp_recognise_file(path) : NULL;
    if (!found || strcmp(found, "a safetensors file") == 0 || strcmp(found, "an empty file") == 0) return status;
    return MDP_ERROR(MDP_BAD_INPUT, "%s: expected a safetensors file, found %s.", path, found);
}

mdp_status mdp_safetensors_add(mdp_draft *draft, const char *path) {
    header h = {.path = path};
    range *ranges = NULL;
    int64_t n_range = 0;
    int fd;
    MDP_TRY(mdp_file_open_read(path, &fd));
    mdp_status status;
    MDP_TRY_GOTO(status, done, mdp_file_size(path, fd, &h.file_byte));
    MDP_TRY_GOTO(status, done, read_header(&h, fd));
    MDP_TRY_GOTO(status, done, MDP_ALLOC(&ranges, (int64_t)json_object_size(h.root), "tensor ranges"));
    MDP_TRY_GOTO(status, done, add_tensors(draft, &h, ranges, &n_range));
    MDP_TRY_GOTO(status, done, check_cover(&h, ranges, n_range));
done:
    mdp_free(ranges);
    json_decref(h.root);
    if (status.code != MDP_OK) {
        mdp_status ignored = mdp_file_close(path, fd);
        (void)ignored;
        return name_other_file(path, status);
    }
    return mdp_file_close(path, fd);
}
