/* threads.h - how many threads a rank gets, and how fast its matrix products are. */
#ifndef MDP_THREADS_H
#define MDP_THREADS_H

#include "mdp/linalg.h"

/* Before anything else: load the program again with settings that libraries read while they are loaded, unless the user
 * has chosen. Threads that wait are to sleep: by default they look for work for milliseconds first, and where ranks and
 * their threads are more than the cores (7 ranks of 2 threads on 2 cores), that is most of what is done. OpenBLAS is
 * not to start threads that it will not use. */
void mdp_threads_prepare(char **words);
/* OMP_NUM_THREADS, or the cores that this rank may use shared out among the ranks of its node that may use the same
 * ones; at least 1. Collective on `comm`. */
mdp_status mdp_threads_default_all(const mdp_comm *comm, int *n_thread);
/* Start this rank's threads and take what the libraries need for them, which would end this process or never return
 * where it cannot be had (ulimit -u, ulimit -v). MDP_EXHAUSTED. Collective on `comm`. */
mdp_status mdp_threads_start_all(const mdp_comm *comm, int n_thread);
/* Cores in this process' affinity mask. */
int mdp_threads_cores(void);
/* GEMM speed of all ranks together, all threads at once, measured for about a second; FLOP/s. Collective on `comm`. */
mdp_status mdp_threads_measure_all(const mdp_comm *comm, mdp_gemm *gemm, int n_thread, double *flop_per_second);

#endif
