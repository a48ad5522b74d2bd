/* watch.c - when a command saves what it has done, and when it stops.
 *
 * Signals reach ranks one by one and clocks differ, so at every safe point one reduction makes the decision common:
 * what any rank was asked for by signal, and what rank 0's clock says. */
#include "mdp/comm.h"

#include <math.h>
#include <signal.h>
#include <stdio.h>

#define SAVE_SPEED 2e8    /* bytes a second that a slow file system takes, until it is known better */
#define SLACK 1.0         /* seconds to end in */
#define WORTH_SECONDS 10. /* a finished phase that took longer is saved */

void mdp_watch_begin_phase(mdp_watch *watch, int64_t n_byte) {
    watch->last_look = mdp_seconds();
    watch->longest_step = 0.0;
    watch->save_unknown = n_byte == 0;
    watch->longest_save = fmax(watch->longest_save, (double)n_byte / SAVE_SPEED);
}

void mdp_watch_saved(mdp_watch *watch, double start) {
    watch->last_save = watch->last_look = mdp_seconds();
    watch->longest_save = fmax(watch->longest_save, watch->last_save - start);
    watch->save_unknown = false;
}

/* Both are as long as the longest so far, and a bit. */
static bool is_short(const mdp_watch *watch, double now) {
    double need = 1.1 * watch->longest_step + 1.5 * watch->longest_save + SLACK;
    return watch->max_seconds > 0.0 && now - watch->start + need > watch->max_seconds;
}

mdp_status mdp_watch_look_all(const mdp_comm *comm, mdp_watch *watch, mdp_verdict *out) {
    double now = mdp_seconds(), saved = watch->last_save > 0.0 ? watch->last_save : watch->start;
    watch->longest_step = fmax(watch->longest_step, now - watch->last_look);
    watch->last_look = now;
    watch->n_look++;
    int64_t seen[3] = {mdp_stop_signal(), 0, 0}; /* signal, time is short, saving is due */
    if (comm->rank == 0) {
        seen[1] = is_short(watch, now);
        bool try = watch->max_seconds > 0.0 && watch->save_unknown;
        seen[2] = now - saved >= watch->every || try;
    }
    MDP_TRY(mdp_max_i64_all(comm, seen, 3));
    *out = MDP_STOP;
    if (seen[0] > 0)
        snprintf(watch->reason, sizeof watch->reason, "%s", seen[0] == SIGUSR1 ? "SIGUSR1" : "SIGTERM");
    else if (seen[1] > 0)
        snprintf(watch->reason, sizeof watch->reason, "--max-seconds %.6g", watch->max_seconds);
    else if (watch->n_look == watch->stop_at)
        snprintf(watch->reason, sizeof watch->reason, "--stop-at %lld", (long long)watch->stop_at);
    else
        *out = seen[2] > 0 ? MDP_SAVE : MDP_GO_ON;
    return mdp_ok();
}

mdp_status mdp_watch_worth_all(const mdp_comm *comm, const mdp_watch *watch, double phase_start, bool *out) {
    double least = fmin(WORTH_SECONDS, watch->every);
    int64_t worth = comm->rank == 0 && (watch->last_save >= phase_start || mdp_seconds() - phase_start >= least);
    MDP_TRY(mdp_max_i64_all(comm, &worth, 1));
    *out = worth > 0;
    return mdp_ok();
}
