/* wait.c - waiting where ranks share cores.
 *
 * MPI libraries wait by polling, which is right for a rank that has a core. Where ranks, or their threads, are more
 * than the cores of their machine, those that poll take time from those that compute: with 64 ranks on two cores, most
 * of it. There, ranks meet before every collective, asleep most of the time; once all are awake the collective itself
 * takes no time. A sleep lasts a sixteenth of the time waited so far, so no rank is late by more. */
#define MDP_COMM_PLAIN /* these are the collectives themselves */
#include "comm/wait.h"

#include <sched.h>
#include <time.h>

#define BRIEF_SECONDS 20e-6    /* of looking without sleeping */
#define LONGEST_SECONDS 1e-3   /* of a sleep */
#define SHORTEST_SECONDS 20e-6 /* the kernel adds about as much */

void mdp_nap(double idle) {
    double waited = mdp_seconds() - idle, length = waited / 16.0;
    if (waited < BRIEF_SECONDS) return;
    if (length < SHORTEST_SECONDS) length = SHORTEST_SECONDS;
    if (length > LONGEST_SECONDS) length = LONGEST_SECONDS;
    struct timespec time = {.tv_nsec = (long)(length * 1e9)};
    nanosleep(&time, NULL); /* a signal may cut it short */
}

mdp_status mdp_meet_all(const mdp_comm *comm) {
    MPI_Request request;
    int done = 0;
    if (!comm->crowded) return mdp_ok();
    MDP_TRY(mdp_mpi_status(MPI_Ibarrier(comm->world, &request), "the meeting of ranks"));
    for (double start = mdp_seconds(); !done;) {
        MDP_TRY(mdp_mpi_status(MPI_Test(&request, &done, MPI_STATUS_IGNORE), "the meeting of ranks"));
        if (!done) mdp_nap(start);
    }
    return mdp_ok();
}

mdp_status mdp_find_crowds_all(mdp_comm *comm, MPI_Comm shared, int n_thread) {
    cpu_set_t cores;
    int crowded;
    CPU_ZERO(&cores);
    (void)sched_getaffinity(0, sizeof cores, &cores); /* where it fails, other ranks may know */
    MDP_TRY(mdp_mpi_status(MPI_Allreduce(MPI_IN_PLACE, &cores, (int)sizeof cores, MPI_BYTE, MPI_BOR, shared),
                           "the count of cores"));
    MDP_TRY(
        mdp_mpi_status(MPI_Allreduce(MPI_IN_PLACE, &n_thread, 1, MPI_INT, MPI_SUM, shared), "the count of threads"));
    crowded = CPU_COUNT(&cores) > 0 && n_thread > CPU_COUNT(&cores);
    MDP_TRY(
        mdp_mpi_status(MPI_Allreduce(MPI_IN_PLACE, &crowded, 1, MPI_INT, MPI_MAX, comm->world), "the count of cores"));
    comm->crowded = crowded;
    return mdp_ok();
}
