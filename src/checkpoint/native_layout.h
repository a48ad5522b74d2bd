/* native_layout.h - which datasets a model.h5 has, and what goes into them in which order. */
#ifndef MDP_CHECKPOINT_NATIVE_LAYOUT_H
#define MDP_CHECKPOINT_NATIVE_LAYOUT_H

#include "checkpoint/copy.h"

/* One dataset of the file: a tensor, the experts of one layer and projection stacked, or a side file. */
typedef struct mdp_native_set {
    char *path;          /* "/model/layers/0/mlp/experts/up_proj/weight"; owned */
    const char *hf_name; /* name or pattern with {expert}; borrowed; NULL for side files */
    mdp_dtype type;
    bool as_bytes;                  /* no HDF5 number type: uint8, last dimension in bytes */
    int unit;                       /* bytes of one HDF5 element */
    int n_dim;                      /* of the dataset; 0: scalar */
    int64_t shape[MDP_MAX_DIM + 1]; /* of the dataset */
    int64_t n_element;              /* HDF5 elements of one item */
    int64_t first_item, n_item;     /* its items in order; n_item > 1 or stacked: one per expert */
    bool stacked;
} mdp_native_set;

typedef struct mdp_native_layout {
    int64_t n_set;
    mdp_native_set *sets; /* in file order */
    int64_t n_item;
    mdp_copy_item *items;              /* [n_item] in file order */
    int64_t *item_set;                 /* [n_item] */
    const mdp_output_tensor **tensors; /* [n_item]; NULL for side files */
    mdp_tensor *side_tensors;
    mdp_segment *side_segments;
} mdp_native_layout;

/* Local; every rank gets the same. `out` is to be destroyed on error too. Errors: MDP_BAD_INPUT for a tensor name that
 * makes no path or one that is taken, and for experts of one stack that are not stored alike. */
mdp_status mdp_native_layout_make(const mdp_output *output, mdp_native_layout *out);
void mdp_native_layout_destroy(mdp_native_layout *layout);

#endif
