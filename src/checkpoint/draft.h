/* draft.h - a catalogue while it is being collected on rank 0: growing lists of files, tensors and side files, and one
 * pool of text. Private to src/checkpoint. */
#ifndef MDP_CHECKPOINT_DRAFT_H
#define MDP_CHECKPOINT_DRAFT_H

#include "mdp/checkpoint.h"

/* A list's strings live in the pool and are named by their place in it, because the pool moves while it grows. */
typedef struct mdp_draft {
    mdp_container container;
    char *pool; /* [pool_byte] texts, each with a 0 byte; owned */
    int64_t pool_byte, pool_capacity;
    int64_t n_file, file_capacity;
    int64_t *file_at;    /* [n_file] place of the path in the pool; owned */
    int64_t *file_bytes; /* [n_file]; owned */
    mdp_stamp *stamps;   /* [n_file]; owned */
    int64_t n_tensor, tensor_capacity;
    mdp_tensor *tensors; /* [n_tensor] name is NULL; owned */
    int64_t *tensor_at;  /* [n_tensor] place of the name; owned */
    int64_t n_side_file, side_file_capacity;
    mdp_side_file *side_files; /* [n_side_file] name is NULL; owned */
    int64_t *side_file_at;     /* [n_side_file] place of the name; owned */
    int64_t config_at, config_byte;
    int64_t plan_at, plan_byte;             /* plan_at is -1 when there is none */
    int64_t provenance_at, provenance_byte; /* the same */
    int64_t left_out_at;                    /* the same */
} mdp_draft;

void mdp_draft_init(mdp_draft *draft, mdp_container container);
void mdp_draft_clear(mdp_draft *draft); /* frees what the draft owns */
/* Put n_byte bytes and a 0 byte in the pool; *at is their place. */
mdp_status mdp_draft_add_text(mdp_draft *draft, const char *text, int64_t n_byte, int64_t *at);
mdp_status mdp_draft_add_file(mdp_draft *draft, const char *path, int64_t n_byte, int32_t *index);
/* The name is copied; tensor->name is not looked at. MDP_BAD_INPUT: it is not plain (mdp_name_check). */
mdp_status mdp_draft_add_tensor(mdp_draft *draft, const char *name, const mdp_tensor *tensor);
mdp_status mdp_draft_add_side_file(mdp_draft *draft, const char *name, const mdp_side_file *side_file);
/* Path of a file of the draft; valid until text is added. */
const char *mdp_draft_file(const mdp_draft *draft, int32_t file);

#endif
