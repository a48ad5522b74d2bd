/* stop.c - requests to stop, by signal.
 *
 * Owns the one variable that a signal handler may write. A batch system sends SIGUSR1 some minutes before it ends a
 * job, or SIGTERM when it does; the handler only notes that, and the command stops where it can be continued. SIGUSR1
 * may come before MPI has started, and ends no command. */
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

static void hold(int how) {
    sigset_t early;
    sigemptyset(&early);
    sigaddset(&early, SIGUSR1);
    (void)sigprocmask(how, &early, NULL);
}

void mdp_stop_defer(void) {
    hold(SIG_BLOCK);
    (void)signal(SIGXFSZ, SIG_IGN);
}

mdp_status mdp_stop_begin(void) {
    mdp_status status = listen_to(SIGUSR1, SA_RESTART);
    hold(SIG_UNBLOCK);
    return status;
}

mdp_status mdp_stop_listen(void) {
    return listen_to(SIGTERM, SA_RESTART | (int)SA_RESETHAND);
}

int mdp_stop_signal(void) {
    return asked_by;
}
