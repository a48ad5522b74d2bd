/* draft.c - growing lists behind a catalogue. Names of tensors and side files go from here into records, tables and
 * sentences, whatever the container: those that are not plain are refused, and files that cannot be looked at. All
 * other checks are the callers'. */
#include "checkpoint/draft.h"

#include <string.h>

void mdp_draft_init(mdp_draft *draft, mdp_container container) {
    memset(draft, 0, sizeof *draft);
    draft->container = container;
    draft->plan_at = -1;
    draft->provenance_at = -1;
    draft->left_out_at = -1;
}

void mdp_draft_clear(mdp_draft *draft) {
    mdp_free(draft->pool);
    mdp_free(draft->file_at);
    mdp_free(draft->file_bytes);
    mdp_free(draft->stamps);
    mdp_free(draft->tensors);
    mdp_free(draft->tensor_at);
    mdp_free(draft->side_files);
    mdp_free(draft->side_file_at);
    mdp_draft_init(draft, draft->container);
}

static int64_t larger_capacity(int64_t capacity, int64_t needed) {
    int64_t larger = capacity < 64 ? 64 : 2 * capacity;
    return larger < needed ? needed : larger;
}

mdp_status mdp_draft_add_text(mdp_draft *draft, const char *text, int64_t n_byte, int64_t *at) {
    int64_t needed = draft->pool_byte + n_byte + 1;
    if (needed > draft->pool_capacity) {
        int64_t capacity = larger_capacity(draft->pool_capacity, needed);
        MDP_TRY(MDP_GROW(&draft->pool, draft->pool_byte, capacity, "names of tensors"));
        draft->pool_capacity = capacity;
    }
    memcpy(draft->pool + draft->pool_byte, text, (size_t)n_byte);
    draft->pool[needed - 1] = '\0';
    *at = draft->pool_byte;
    draft->pool_byte = needed;
    return mdp_ok();
}

mdp_status mdp_draft_add_file(mdp_draft *draft, const char *path, int64_t n_byte, int32_t *index) {
    if (draft->n_file == draft->file_capacity) {
        int64_t capacity = larger_capacity(draft->file_capacity, 0);
        MDP_TRY(MDP_GROW(&draft->file_at, draft->n_file, capacity, "list of files"));
        MDP_TRY(MDP_GROW(&draft->file_bytes, draft->n_file, capacity, "list of files"));
        MDP_TRY(MDP_GROW(&draft->stamps, draft->n_file, capacity, "list of files"));
        draft->file_capacity = capacity;
    }
    MDP_TRY(mdp_draft_add_text(draft, path, (int64_t)strlen(path), &draft->file_at[draft->n_file]));
    draft->file_bytes[draft->n_file] = n_byte;
    MDP_TRY(mdp_stamp_take(path, &draft->stamps[draft->n_file]));
    *index = (int32_t)draft->n_file++;
    return mdp_ok();
}

mdp_status mdp_draft_add_tensor(mdp_draft *draft, const char *name, const mdp_tensor *tensor) {
    MDP_TRY(mdp_name_check(mdp_draft_file(draft, tensor->file), "a tensor", name));
    if (draft->n_tensor == draft->tensor_capacity) {
        int64_t capacity = larger_capacity(draft->tensor_capacity, 0);
        MDP_TRY(MDP_GROW(&draft->tensors, draft->n_tensor, capacity, "list of tensors"));
        MDP_TRY(MDP_GROW(&draft->tensor_at, draft->n_tensor, capacity, "list of tensors"));
        draft->tensor_capacity = capacity;
    }
    MDP_TRY(mdp_draft_add_text(draft, name, (int64_t)strlen(name), &draft->tensor_at[draft->n_tensor]));
    draft->tensors[draft->n_tensor] = *tensor;
    draft->tensors[draft->n_tensor].name = NULL;
    draft->n_tensor++;
    return mdp_ok();
}

mdp_status mdp_draft_add_side_file(mdp_draft *draft, const char *name, const mdp_side_file *side_file) {
    MDP_TRY(mdp_name_check(mdp_draft_file(draft, side_file->file), "a side file", name));
    if (draft->n_side_file == draft->side_file_capacity) {
        int64_t capacity = larger_capacity(draft->side_file_capacity, 0);
        MDP_TRY(MDP_GROW(&draft->side_files, draft->n_side_file, capacity, "list of side files"));
        MDP_TRY(MDP_GROW(&draft->side_file_at, draft->n_side_file, capacity, "list of side files"));
        draft->side_file_capacity = capacity;
    }
    MDP_TRY(mdp_draft_add_text(draft, name, (int64_t)strlen(name), &draft->side_file_at[draft->n_side_file]));
    draft->side_files[draft->n_side_file] = *side_file;
    draft->side_files[draft->n_side_file].name = NULL;
    draft->n_side_file++;
    return mdp_ok();
}

const char *mdp_draft_file(const mdp_draft *draft, int32_t file) {
    return draft->pool + draft->file_at[file];
}
