/* work.h - the items that a checkpoint writer has still to copy, dealt to the ranks, and the journal of those that are
 * safe on disk. */
#ifndef MDP_CHECKPOINT_WORK_H
#define MDP_CHECKPOINT_WORK_H

#include "checkpoint/copy.h"
#include "mdp/resume.h"

typedef struct mdp_work {
    const mdp_comm *comm;
    mdp_resume *resume; /* NULL: it cannot be continued */
    mdp_profile *profile;
    const char *target; /* what is written, for words; borrowed */
    char *journal;      /* its path; NULL: none */
    char identity[33];
    bool continues; /* the partial output of an earlier run is to be completed, not made again */
    bool recorded;  /* there is a journal: the partial output is worth keeping */
    int64_t n_all;  /* items of the layout */
    int64_t n;      /* of those, to do */
    mdp_copy_item *items;
    int64_t *number;         /* both [n]; number: in the layout */
    int64_t first, last;     /* of them, this rank's */
    mdp_digest *digests;     /* [last - first]; empty: not yet copied */
    mdp_digest *all_digests; /* [n_all] rank 0: of what earlier runs, and in the end all ranks, have copied */
    int64_t n_byte, n_byte_own;
} mdp_work;

/* Deal the n_all items of a layout. With options->resume, those that the journal of options->name (or `target`) has are
 * left out, when `partial_is_whole` says on rank 0 that the partial output is there still. `output` decides what the
 * journal is for. Collective on `comm`. */
mdp_status mdp_work_open_all(const mdp_comm *comm, const mdp_write_options *options, const mdp_output *output,
                             const char *target, bool partial_is_whole, const mdp_copy_item *items, int64_t n_all,
                             mdp_work *out);
void mdp_work_close(mdp_work *work);
/* What the work on the n_all items of a layout takes on `size` ranks: all of *out, which is new, but for what is
 * written and kept beside items. Local. */
mdp_status mdp_work_cost(const mdp_copy_item *items, int64_t n_all, const mdp_write_options *options, int size,
                         mdp_write_cost *out);
/* Copy this rank's items in rounds; `copy` has all but items and digests, and what it puts is numbered in the layout.
 * Between rounds, when it is time, settle (local: what this rank has put is safe on disk afterwards), write the journal
 * and perhaps stop. In the end rank 0 has all digests. Collective. MDP_STOPPED. */
typedef mdp_status mdp_settle_fn(void *context);
mdp_status mdp_work_run_all(mdp_work *work, const mdp_copy *copy, mdp_settle_fn *settle);
/* The journal is not needed any more, because the partial output will be changed or is gone. Rank 0. */
mdp_status mdp_work_forget(mdp_work *work);

#endif
