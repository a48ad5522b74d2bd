/* wait.h - waiting where ranks share cores: private to src/comm. */
#ifndef MDP_COMM_WAIT_H
#define MDP_COMM_WAIT_H

#include "comm/noted.h"

/* Wait until all ranks are here. To be called before a collective of MPI: a rank that waits inside one polls. Does
 * nothing where every rank has a core. Collective on `comm`. */
mdp_status mdp_meet_all(const mdp_comm *comm);
/* What a rank does between two looks when nothing has come since `idle` (mdp_seconds()): in the first moment it looks
 * again, then it sleeps for a small part of the time waited so far. */
void mdp_nap(double idle);
/* Find out whether ranks of n_thread threads share cores anywhere. `shared`: the ranks of this machine. Collective on
 * `comm`. */
mdp_status mdp_find_crowds_all(mdp_comm *comm, MPI_Comm shared, int n_thread);

#endif
