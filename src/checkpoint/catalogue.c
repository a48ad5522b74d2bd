/* catalogue.c - what tensors there are and where, the same on every rank.
 *
 * Rank 0 collects a draft from a HF folder or a model.h5, packs it into one run of bytes, and broadcasts that; every
 * rank then points into its copy. Tensors and side files are sorted by name, so that nothing later depends on the order
 * of shards or folders. Refuses a tensor name that occurs twice. */
#include "mdp/checkpoint.h"

#include "checkpoint/draft.h"
#include "checkpoint/hf_folder.h"
#include "checkpoint/native.h"

#include <stdlib.h>
#include <string.h>

/* Head of the packed form. Then come, each at a multiple of 8 bytes: tensors, side files, places of their names, sizes,
 * places and stamps of files, room for the pointers to them, and the pool of texts. A place counts from the pool's
 * start. */
typedef struct packed {
    int64_t n_byte; /* of all of it */
    int64_t container, n_file, n_tensor, n_side_file, tensor_byte;
    int64_t path_at, config_at, config_byte, plan_at, plan_byte, provenance_at, provenance_byte, left_out_at;
    int64_t pool_byte;
} packed;

/* The parts of a packed form; computed from its head alone. */
typedef struct parts {
    mdp_tensor *tensors;
    mdp_side_file *side_files;
    int64_t *tensor_at, *side_file_at;
    int64_t *file_bytes, *file_at;
    mdp_stamp *stamps;
    char **files;
    char *pool;
    int64_t n_byte;
} parts;

/* The next part, or NULL while only the size is wanted (base is NULL). */
static void *take(char *base, int64_t *at, int64_t n_byte) {
    void *part = base == NULL ? NULL : base + *at;
    *at += (n_byte + 7) / 8 * 8;
    return part;
}

static parts divide(char *base, const packed *head) {
    parts p;
    int64_t at = (int64_t)sizeof *head;
    p.tensors = take(base, &at, head->n_tensor * (int64_t)sizeof *p.tensors);
    p.side_files = take(base, &at, head->n_side_file * (int64_t)sizeof *p.side_files);
    p.tensor_at = take(base, &at, head->n_tensor * (int64_t)sizeof *p.tensor_at);
    p.side_file_at = take(base, &at, head->n_side_file * (int64_t)sizeof *p.side_file_at);
    p.file_bytes = take(base, &at, head->n_file * (int64_t)sizeof *p.file_bytes);
    p.file_at = take(base, &at, head->n_file * (int64_t)sizeof *p.file_at);
    p.stamps = take(base, &at, head->n_file * (int64_t)sizeof *p.stamps);
    p.files = take(base, &at, head->n_file * (int64_t)sizeof *p.files);
    p.pool = take(base, &at, head->pool_byte);
    p.n_byte = at;
    return p;
}

/* ---- rank 0: from files to packed ---------------------------------------------------------------------------- */

static int compare_tensors(const void *left, const void *right) {
    return strcmp(((const mdp_tensor *)left)->name, ((const mdp_tensor *)right)->name);
}

static int compare_side_files(const void *left, const void *right) {
    return strcmp(((const mdp_side_file *)left)->name, ((const mdp_side_file *)right)->name);
}

/* Sort by name with real pointers, and remember the names by place again. */
static void sort_draft(mdp_draft *draft) {
    for (int64_t i = 0; i < draft->n_tensor; i++) draft->tensors[i].name = draft->pool + draft->tensor_at[i];
    for (int64_t i = 0; i < draft->n_side_file; i++) draft->side_files[i].name = draft->pool + draft->side_file_at[i];
    if (draft->n_tensor > 0) qsort(draft->tensors, (size_t)draft->n_tensor, sizeof *draft->tensors, compare_tensors);
    if (draft->n_side_file > 0) {
        qsort(draft->side_files, (size_t)draft->n_side_file, sizeof *draft->side_files, compare_side_files);
    }
    for (int64_t i = 0; i < draft->n_tensor; i++) draft->tensor_at[i] = draft->tensors[i].name - draft->pool;
    for (int64_t i = 0; i < draft->n_side_file; i++) draft->side_file_at[i] = draft->side_files[i].name - draft->pool;
}

static mdp_status check_names(const mdp_draft *draft) {
    for (int64_t i = 1; i < draft->n_tensor; i++) {
        const mdp_tensor *a = &draft->tensors[i - 1], *b = &draft->tensors[i];
        if (strcmp(a->name, b->name) == 0) {
            return MDP_ERROR(MDP_BAD_INPUT, "'%s' is stored twice: in %s and in %s.", a->name,
                             mdp_draft_file(draft, a->file), mdp_draft_file(draft, b->file));
        }
    }
    return mdp_ok();
}

static void copy_array(void *to, const void *from, int64_t n, size_t size) {
    if (n > 0) memcpy(to, from, (size_t)n * size);
}

static void fill(const mdp_draft *draft, const packed *head, char *base) {
    parts p = divide(base, head);
    memcpy(base, head, sizeof *head);
    copy_array(p.tensors, draft->tensors, draft->n_tensor, sizeof *p.tensors);
    copy_array(p.side_files, draft->side_files, draft->n_side_file, sizeof *p.side_files);
    copy_array(p.tensor_at, draft->tensor_at, draft->n_tensor, sizeof *p.tensor_at);
    copy_array(p.side_file_at, draft->side_file_at, draft->n_side_file, sizeof *p.side_file_at);
    copy_array(p.file_bytes, draft->file_bytes, draft->n_file, sizeof *p.file_bytes);
    copy_array(p.file_at, draft->file_at, draft->n_file, sizeof *p.file_at);
    copy_array(p.stamps, draft->stamps, draft->n_file, sizeof *p.stamps);
    copy_array(p.pool, draft->pool, draft->pool_byte, 1);
}

static mdp_status pack(mdp_draft *draft, const char *path, char **out, int64_t *n_byte) {
    packed head = {.container = draft->container};
    MDP_TRY(mdp_draft_add_text(draft, path, (int64_t)strlen(path), &head.path_at));
    sort_draft(draft);
    MDP_TRY(check_names(draft));
    for (int64_t i = 0; i < draft->n_tensor; i++) {
        if (!mdp_add(head.tensor_byte, draft->tensors[i].n_byte, &head.tensor_byte)) {
            return MDP_ERROR(MDP_BAD_INPUT, "%s: the tensors together have more bytes than 64 bits can count.", path);
        }
    }
    head.n_file = draft->n_file;
    head.n_tensor = draft->n_tensor;
    head.n_side_file = draft->n_side_file;
    head.config_at = draft->config_at;
    head.config_byte = draft->config_byte;
    head.plan_at = draft->plan_at;
    head.plan_byte = draft->plan_byte;
    head.provenance_at = draft->provenance_at;
    head.provenance_byte = draft->provenance_byte;
    head.left_out_at = draft->left_out_at;
    head.pool_byte = draft->pool_byte;
    head.n_byte = divide(NULL, &head).n_byte;
    MDP_TRY(MDP_ALLOC(out, head.n_byte, "catalogue of tensors"));
    *n_byte = head.n_byte;
    fill(draft, &head, *out);
    return mdp_ok();
}

static mdp_status collect(const char *path, char **out, int64_t *n_byte) {
    if (!mdp_path_exists(path)) {
        return MDP_ERROR(MDP_BAD_INPUT,
                         "%s: there is no such file or folder; expected a Hugging Face folder or a model.h5.", path);
    }
    mdp_draft draft;
    bool folder = mdp_path_is_folder(path);
    mdp_draft_init(&draft, folder ? MDP_HF_FOLDER : MDP_NATIVE);
    mdp_status status = folder ? mdp_hf_folder_add(&draft, path) : mdp_native_add(&draft, path);
    if (status.code == MDP_OK) status = pack(&draft, path, out, n_byte);
    mdp_draft_clear(&draft);
    return status;
}

/* ---- every rank: from packed to a catalogue ------------------------------------------------------------------ */

static void point(mdp_catalogue *catalogue, char *base) {
    const packed *head = (const packed *)(const void *)base;
    parts p = divide(base, head);
    for (int64_t i = 0; i < head->n_tensor; i++) p.tensors[i].name = p.pool + p.tensor_at[i];
    for (int64_t i = 0; i < head->n_side_file; i++) p.side_files[i].name = p.pool + p.side_file_at[i];
    for (int64_t i = 0; i < head->n_file; i++) p.files[i] = p.pool + p.file_at[i];
    catalogue->path = p.pool + head->path_at;
    catalogue->container = (mdp_container)head->container;
    catalogue->n_file = (int32_t)head->n_file;
    catalogue->files = p.files;
    catalogue->file_bytes = p.file_bytes;
    catalogue->stamps = p.stamps;
    catalogue->n_tensor = head->n_tensor;
    catalogue->tensors = p.tensors;
    catalogue->n_side_file = head->n_side_file;
    catalogue->side_files = p.side_files;
    catalogue->config_text = p.pool + head->config_at;
    catalogue->config_byte = head->config_byte;
    catalogue->plan_text = head->plan_at < 0 ? NULL : p.pool + head->plan_at;
    catalogue->provenance_text = head->provenance_at < 0 ? NULL : p.pool + head->provenance_at;
    catalogue->left_out = head->left_out_at < 0 ? NULL : p.pool + head->left_out_at;
    catalogue->tensor_byte = head->tensor_byte;
}

/* Everything but the broadcast that may fail on one rank alone. */
static mdp_status allocate(mdp_catalogue **catalogue, char **bytes, int64_t n_byte) {
    MDP_TRY(MDP_ALLOC(catalogue, 1, "catalogue"));
    return *bytes != NULL ? mdp_ok() : MDP_ALLOC(bytes, n_byte, "catalogue of tensors");
}

mdp_status mdp_catalogue_open_all(const mdp_comm *comm, const char *path, mdp_catalogue **out) {
    char *bytes = NULL;
    int64_t n_byte = 0;
    mdp_catalogue *catalogue = NULL;
    *out = NULL;
    mdp_status status = comm->rank == 0 ? collect(path, &bytes, &n_byte) : mdp_ok();
    MDP_TRY_GOTO(status, failed, mdp_agree_all(comm, status));
    MDP_TRY_GOTO(status, failed, mdp_bcast_all(comm, &n_byte, sizeof n_byte, 0));
    status = allocate(&catalogue, &bytes, n_byte);
    MDP_TRY_GOTO(status, failed, mdp_agree_all(comm, status));
    MDP_TRY_GOTO(status, failed, mdp_bcast_all(comm, bytes, n_byte, 0));
    catalogue->memory = bytes;
    if (bytes != NULL) point(catalogue, bytes); /* always: the ranks have agreed that each has its copy */
    *out = catalogue;
    return status;
failed:
    mdp_free(bytes);
    mdp_free(catalogue);
    return status;
}

void mdp_catalogue_destroy(mdp_catalogue *catalogue) {
    if (catalogue == NULL) return;
    mdp_free(catalogue->digests);
    mdp_free(catalogue->memory);
    mdp_free(catalogue);
}

bool mdp_catalogue_is_side_file(const mdp_catalogue *catalogue, int32_t file) {
    for (int64_t i = 0; catalogue->container == MDP_HF_FOLDER && i < catalogue->n_side_file; i++) {
        if (catalogue->side_files[i].file == file) return true;
    }
    return false;
}

const mdp_tensor *mdp_catalogue_find(const mdp_catalogue *catalogue, const char *name) {
    int64_t low = 0, high = catalogue->n_tensor;
    while (low < high) {
        int64_t middle = low + (high - low) / 2;
        int order = strcmp(name, catalogue->tensors[middle].name);
        if (order == 0) return &catalogue->tensors[middle];
        if (order < 0) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    return NULL;
}
