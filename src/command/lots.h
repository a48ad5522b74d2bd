/* lots.h - many plans measured as streams of a few forwards: how many go together. */
#ifndef MDP_COMMAND_LOTS_H
#define MDP_COMMAND_LOTS_H

#include "command/opening.h"

/* Plan number i goes with those of lot floor(i n / n_plan) or the next; a lot's streams are the original and its
 * plans. */
typedef struct mdp_lots {
    int n_plan, n;
} mdp_lots;

/* The first plan of a lot; of lot n: n_plan. */
int mdp_lots_begin(const mdp_lots *lots, int lot);
#define MDP_LOT_NAME 40
/* What a lot's forward is called, also in its resume point: "eval 1/3". Returns out. */
const char *mdp_lots_name(const mdp_lots *lots, int lot, char out[MDP_LOT_NAME]);

/* Lots for plans with these views [n_plan], on the open text to evaluate on: those that a run that is gone on with
 * began with; else as many as make the fewest batches in all, the fewest lots of equal ones, with what --memory allows
 * or, on the ranks that there are, most of what the nodes have free. Collective. */
mdp_status mdp_session_choose_lots_all(const mdp_session *session, int n_plan, const mdp_view *const *views,
                                       mdp_lots *out);
/* Add the forward of every lot to the estimate. Collective. */
mdp_status mdp_session_add_lots_all(const mdp_session *session, const mdp_lots *lots, const mdp_view *const *views,
                                    mdp_estimate *estimate);

#endif
