/* copy.h - bytes from stored tensors to wherever a writer puts them, through two buffers. */
#ifndef MDP_CHECKPOINT_COPY_H
#define MDP_CHECKPOINT_COPY_H

#include "mdp/checkpoint.h"

/* One thing to write: the concatenation of its segments. */
typedef struct mdp_copy_item {
    int64_t n_byte;
    int64_t n_segment;
    const mdp_segment *segments; /* borrowed */
    int64_t unit;                /* >= 1; pieces end on multiples of this many bytes */
} mdp_copy_item;

/* Put n_byte bytes that belong at `offset` of item `item`. Called in order of item and offset, on the main thread. */
typedef mdp_status mdp_copy_put_fn(void *context, int64_t item, int64_t offset, int64_t n_byte, const void *data);

typedef struct mdp_copy {
    mdp_reader *reader;
    const mdp_copy_item *items;
    int64_t first, last;   /* items first .. last-1 are this rank's */
    int64_t announce_last; /* it will go on to this one */
    int64_t buffer_byte;   /* memory for the two buffers together */
    int64_t count_max;     /* largest number of units in one piece */
    mdp_copy_put_fn *put;
    void *context;
    mdp_digest *digests;  /* [last - first] checksum of each item; filled */
    mdp_profile *profile; /* NULL: nothing is counted */
} mdp_copy;

/* The interval of items of rank `rank` of `size`: contiguous, in order, balanced by bytes. Every item has one owner. */
void mdp_copy_share(const mdp_copy_item *items, int64_t n_item, int size, int rank, int64_t *first, int64_t *last);
/* The same for all ranks: owner [n_item] of each item. */
void mdp_copy_owners(const mdp_copy_item *items, int64_t n_item, int size, int *owner);
/* Bytes that are read once more to compare their checksum: all of each source that an item has a part of, or changes.
 */
int64_t mdp_copy_check_bytes(const mdp_copy_item *item);
/* What of two buffers of at most buffer_byte together comes into use when these items are copied. */
int64_t mdp_copy_memory(const mdp_copy_item *items, int64_t n_item, int64_t buffer_byte);
/* Copy this rank's items, and compare what they are made of with the checksums that it has (mdp_tensor). Local: nothing
 * here communicates, so ranks may fail alone. MDP_BAD_INPUT: a source differs; its item has been put. */
mdp_status mdp_copy_run(const mdp_copy *copy);

#endif
