/* merge.h - the experts that a plan merges, made: weighted sums of aligned members, as the checkpoint would store them,
 * in the plan's arrays (doc/merge.md). */
#ifndef MDP_MERGE_H
#define MDP_MERGE_H

#include "mdp/replaced.h"
#include "mdp/resume.h"

typedef struct mdp_merge_options {
    int n_thread;
    mdp_gemm *gemm; /* for as many threads; multiplies where neurons are aligned; borrowed */
    mdp_log *log;
    bool progress;
    mdp_resume *resume; /* NULL: no resume points, no stopping */
    json_t *profiles;   /* array that gets where the time went; NULL: not wanted; borrowed */
} mdp_merge_options;

/* What it takes, foretold. */
typedef struct mdp_merge_cost {
    int64_t bytes_read, bytes_read_most; /* of all ranks, and of the one with the most */
    int64_t flop, flop_most;
    int64_t memory; /* bytes of a rank */
} mdp_merge_cost;
/* Local. */
mdp_status mdp_merge_cost_of(const mdp_model *model, const mdp_plan *plan, int n_rank, int n_thread,
                             mdp_merge_cost *out);

/* Make every array of `replaced`, which lists the plan's merged experts (MDP_REPLACED_MERGED) and is bound to
 * unfinished arrays, layer after layer; each expert's matrix is made by one rank. With a resume that continues, layers
 * that were done are compared with what was noted, and not made again. Collective on `comm` (agrees). MDP_STOPPED;
 * MDP_BAD_INPUT: weights that are not finite. */
mdp_status mdp_merge_all(const mdp_comm *comm, const mdp_model *model, mdp_reader *reader, const mdp_plan *plan,
                         mdp_replaced *replaced, const mdp_merge_options *options);

#endif
