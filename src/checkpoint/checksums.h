/* checksums.h - the checksums that a checkpoint has of itself, by item: its tensors in the order of the catalogue, then
 * its side files. */
#ifndef MDP_CHECKPOINT_CHECKSUMS_H
#define MDP_CHECKPOINT_CHECKSUMS_H

#include "mdp/checkpoint.h"

typedef struct mdp_item {
    const char *kind, *name; /* "tensor" */
    int32_t file;
    int64_t offset, n_byte;
} mdp_item;

mdp_item mdp_item_at(const mdp_catalogue *catalogue, int64_t i);

typedef struct mdp_checksums {
    const mdp_catalogue *catalogue;
    bool seal_may_be_broken; /* of a model.h5: then that is no error */
    int64_t n_item;
    mdp_digest *digests; /* [n_item]; "" where none is known; owned by the caller */
    int64_t n_byte;      /* compared beside the items */
    bool unsealed;       /* the seal is broken */
} mdp_checksums;

/* Fill digests and what follows; catalogue to digests are set. Local: rank 0; main thread.
 * Errors: MDP_BAD_INPUT naming what beside the items differs, is missing, or has no checksum. */
mdp_status mdp_checksums_read(mdp_checksums *checksums);
/* An item of which the checksum is not the one that its checkpoint has. */
mdp_status mdp_checksum_differs(const char *path, const mdp_item *item, const char *found, const char *expected);

#endif
