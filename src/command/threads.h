/* threads.h - how many threads a rank gets, and how fast its matrix products are. */
#ifndef MDP_THREADS_H
#define MDP_THREADS_H

#include "mdp/linalg.h"

/* OMP_NUM_THREADS, or the cores that this rank may use shared out among the ranks of its node that may use the same
 * ones; at least 1. Collective on `comm`. */
mdp_status mdp_threads_default_all(const mdp_comm *comm, int *n_thread);
/* Cores in this process' affinity mask. */
int mdp_threads_cores(void);
/* GEMM speed of all ranks together, all threads at once, measured for about a second; FLOP/s. Collective on `comm`. */
mdp_status mdp_threads_measure_all(const mdp_comm *comm, mdp_gemm *gemm, int n_thread, double *flop_per_second);

#endif
