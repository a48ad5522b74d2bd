/* stop.c - requests to stop, by signal.
 *
 * Owns the one variable that a signal handler may write. A batch system sends SIGUSR1 some minutes before it ends a
 * job, or SIGTERM when it does; the handler only notes that, and the command stops where it can be continued. */
#include "mdp/base.h"

#include <errno.h>
#include <signal.h>
#include <string.h>

static volatile sig_atomic_t asked_by;

static void note(int number) {
    if (asked_by == 0) asked_by = number;
}

static mdp_status listen_to(int number, int flags) {
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_handler = note;
    action.sa_flags = flags;
    if (sigaction(number, &action, NULL) == 0) return mdp_ok();
    return MDP_ERROR(MDP_INTERNAL, "cannot catch the signal %s: %s.", strsignal(number), strerror(errno));
}

mdp_status mdp_stop_listen(void) {
    MDP_TRY(listen_to(SIGUSR1, SA_RESTART));
    return listen_to(SIGTERM, SA_RESTART | (int)SA_RESETHAND);
}

int mdp_stop_signal(void) {
    return asked_by;
}
