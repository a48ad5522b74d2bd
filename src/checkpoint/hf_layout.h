/* hf_layout.h - which files a HF folder has, and where each tensor lies in them. */
#ifndef MDP_CHECKPOINT_HF_LAYOUT_H
#define MDP_CHECKPOINT_HF_LAYOUT_H

#include "checkpoint/copy.h"

/* One file that is copied into: a shard, or a side file. */
typedef struct mdp_hf_file {
    char *name;                 /* owned */
    int64_t n_byte;             /* with header */
    int64_t data_start;         /* 8 + header; 0 for side files */
    int64_t first_item, n_item; /* its items, in order of place */
} mdp_hf_file;

typedef struct mdp_hf_layout {
    int64_t n_shard, n_file; /* shards first */
    mdp_hf_file *files;
    int64_t n_item;
    mdp_copy_item *items;              /* [n_item] in order of file and place */
    int64_t *item_file;                /* [n_item] */
    int64_t *item_offset;              /* [n_item] from the start of the file's data */
    const mdp_output_tensor **tensors; /* [n_item]; NULL for side files */
    mdp_tensor *side_tensors;
    mdp_segment *side_segments;
} mdp_hf_layout;

/* Local; every rank gets the same. `out` is to be destroyed on error too. */
mdp_status mdp_hf_layout_make(const mdp_output *output, int64_t shard_byte, mdp_hf_layout *out);
void mdp_hf_layout_destroy(mdp_hf_layout *layout);
/* The first data_start bytes of a shard: length, JSON, padding. New. */
mdp_status mdp_hf_layout_header(const mdp_hf_layout *layout, int64_t shard, char **out, int64_t *n_byte);

#endif
