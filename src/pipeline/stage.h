/* stage.h - resume points of one forward pass. Private to src/pipeline. */
#ifndef MDP_SRC_PIPELINE_STAGE_H
#define MDP_SRC_PIPELINE_STAGE_H

#include "pipeline/forward.h"

typedef struct mdp_stage {
    const mdp_forward *forward;
    mdp_resume *resume; /* NULL: this pass takes no resume points */
    const mdp_partition *partition;
    int64_t batch_tokens;
    char *path;       /* of its resume point */
    json_t *found;    /* text of the point to go on from, or NULL */
    mdp_position at;  /* where the pass stands */
    double start;     /* mdp_seconds() */
    bool was_stopped; /* found is not NULL */
    int64_t
        nonfinite[2]; /* values that counted as 0 before the point that was found; the first layer in which, or -1 */
} mdp_stage;

/* The next pass of the command: look for its resume point. Fills batch_tokens (0: the caller chooses) and `at`.
 * Collective on forward->comm. */
mdp_status mdp_stage_open_all(const mdp_forward *forward, mdp_stage *stage);
/* Say how the tokens were cut, before the first of the functions below. MDP_BAD_INPUT: a point that does not fit. */
mdp_status mdp_stage_cut(mdp_stage *stage, const mdp_partition *partition, int64_t batch_tokens);
bool mdp_stage_is_finished(const mdp_stage *stage);
/* Go on from the point that was found (nothing when there is none): sums, and with an engine its residual streams.
 * Collective. */
mdp_status mdp_stage_restore_all(mdp_stage *stage, mdp_engine *engine);
/* After a step: save or stop when it is time. MDP_STOPPED, when all is saved. Collective. */
mdp_status mdp_stage_look_all(mdp_stage *stage, mdp_engine *engine, mdp_position at);
/* As mdp_engine_nonfinite_all, with what counted as 0 before the pass went on. engine may be NULL. Collective. */
mdp_status mdp_stage_nonfinite_all(const mdp_stage *stage, const mdp_engine *engine, int64_t *n, int64_t *layer);
void mdp_stage_close(mdp_stage *stage);

#endif
