/* profile.c - a clock with phases. */
#include "mdp/profile.h"

const char *const mdp_phase_names[MDP_N_PHASE] = {[MDP_PHASE_READ] = "read",
                                                  [MDP_PHASE_ATTENTION] = "attention",
                                                  [MDP_PHASE_ROUTER] = "router",
                                                  [MDP_PHASE_DISPATCH] = "dispatch",
                                                  [MDP_PHASE_EXPERTS] = "experts",
                                                  [MDP_PHASE_OBSERVERS] = "observers",
                                                  [MDP_PHASE_SIMILARITY] = "similarity",
                                                  [MDP_PHASE_COMBINE] = "combine",
                                                  [MDP_PHASE_MLP] = "shared-dense",
                                                  [MDP_PHASE_HEAD] = "head",
                                                  [MDP_PHASE_SUMS] = "sums",
                                                  [MDP_PHASE_SOLVE] = "solve",
                                                  [MDP_PHASE_SAVE] = "save",
                                                  [MDP_PHASE_WRITE] = "write",
                                                  [MDP_PHASE_SYNC] = "sync",
                                                  [MDP_PHASE_WAIT_READER] = "wait-reader",
                                                  [MDP_PHASE_WAIT_RANKS] = "wait-ranks",
                                                  [MDP_PHASE_OTHER] = "other"};

void mdp_profile_begin(mdp_profile *profile) {
    if (!profile) return;
    *profile = (mdp_profile){.phase = MDP_PHASE_OTHER, .since = mdp_seconds()};
}

mdp_phase mdp_profile_switch(mdp_profile *profile, mdp_phase phase) {
    if (!profile) return phase;
    double now = mdp_seconds();
    mdp_phase before = profile->phase;
    profile->seconds[before] += now - profile->since;
    profile->since = now;
    profile->phase = phase;
    return before;
}

void mdp_profile_shift(mdp_profile *profile, mdp_phase phase, double seconds) {
    if (!profile) return;
    profile->seconds[phase] += seconds;
    profile->since += seconds;
}

mdp_status mdp_profile_step(mdp_profile *profile, mdp_phase phase, mdp_profile_step_fn *step, void *context) {
    mdp_phase before = mdp_profile_switch(profile, phase);
    mdp_status status = step(context);
    mdp_profile_switch(profile, before);
    return status;
}

void mdp_profile_flop(mdp_profile *profile, int64_t flop) {
    if (profile) profile->flop[profile->phase] += flop;
}

void mdp_profile_read(mdp_profile *profile, int64_t n_byte) {
    if (profile) profile->n_read[profile->phase] += n_byte;
}

void mdp_profile_sent(mdp_profile *profile, int64_t n_byte, int64_t n_away) {
    if (!profile) return;
    profile->n_sent[profile->phase] += n_byte;
    profile->n_away[profile->phase] += n_away;
}

void mdp_profile_written(mdp_profile *profile, int64_t n_byte) {
    if (profile) profile->n_written[profile->phase] += n_byte;
}
