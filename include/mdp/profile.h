/* profile.h - where the time of a rank goes: seconds, bytes and operations of each phase of a pass.
 *
 * The main thread is in exactly one phase at each moment, so the seconds of the phases add up to the time of the pass.
 * What the reading thread does goes on beside that and is told apart. Owned by whoever runs a pass and handed down; a
 * profile of NULL counts nothing. Main thread only. */
#ifndef MDP_PROFILE_H
#define MDP_PROFILE_H

#include "mdp/base.h"

typedef enum mdp_phase {
    MDP_PHASE_READ,      /* small things read where they are used: embeddings, norms, routers, biases */
    MDP_PHASE_ATTENTION, /* with its norm and projections */
    MDP_PHASE_ROUTER,
    MDP_PHASE_DISPATCH, /* numbering and placing rows, sending them and their outputs */
    MDP_PHASE_EXPERTS,  /* the products of routed experts */
    MDP_PHASE_OBSERVERS,
    MDP_PHASE_SIMILARITY, /* what similarities of experts take beside observing */
    MDP_PHASE_COMBINE,
    MDP_PHASE_MLP,   /* shared experts and dense layers */
    MDP_PHASE_HEAD,  /* the final norm, lm_head and the loss */
    MDP_PHASE_SUMS,  /* row products: sums over tokens of outer products */
    MDP_PHASE_SOLVE, /* factors, and what is solved by them */
    MDP_PHASE_SAVE,  /* resume points */
    MDP_PHASE_WRITE, /* of a checkpoint: its files, their data and what describes them */
    MDP_PHASE_SYNC,  /* until that is on storage */
    MDP_PHASE_WAIT_READER,
    MDP_PHASE_WAIT_RANKS,
    MDP_PHASE_OTHER,
    MDP_N_PHASE
} mdp_phase;
extern const char *const mdp_phase_names[MDP_N_PHASE];

typedef struct mdp_profile {
    mdp_phase phase;                /* at this moment */
    double since;                   /* mdp_seconds() when it began */
    double seconds[MDP_N_PHASE];    /* of the main thread */
    int64_t flop[MDP_N_PHASE];      /* of products of matrices, a multiply-add counts as two */
    int64_t n_read[MDP_N_PHASE];    /* bytes read from the model for a phase, by whichever thread */
    int64_t n_sent[MDP_N_PHASE];    /* bytes sent to other ranks */
    int64_t n_away[MDP_N_PHASE];    /* of them, to other nodes */
    int64_t n_written[MDP_N_PHASE]; /* bytes of results */
    double read_ahead, widen_ahead; /* seconds of the reading thread */
    double hash_ahead;              /* the same, for checksums of what is written */
} mdp_profile;

/* Begin: all is 0 and the phase is MDP_PHASE_OTHER. */
void mdp_profile_begin(mdp_profile *profile);
/* From now on it is `phase`; returns what it was. */
mdp_phase mdp_profile_switch(mdp_profile *profile, mdp_phase phase);
/* So many seconds since the last switch were of another phase. */
void mdp_profile_shift(mdp_profile *profile, mdp_phase phase, double seconds);
/* Do one step in a phase of its own. */
typedef mdp_status mdp_profile_step_fn(void *context);
mdp_status mdp_profile_step(mdp_profile *profile, mdp_phase phase, mdp_profile_step_fn *step, void *context);
/* Add operations, bytes read, bytes sent (n_away of them to other nodes), bytes written to the phase of this moment. */
void mdp_profile_flop(mdp_profile *profile, int64_t flop);
void mdp_profile_read(mdp_profile *profile, int64_t n_byte);
void mdp_profile_sent(mdp_profile *profile, int64_t n_byte, int64_t n_away);
void mdp_profile_written(mdp_profile *profile, int64_t n_byte);

#endif
