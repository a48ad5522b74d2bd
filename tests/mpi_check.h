/* mpi_check.h - the frame of a test program that runs on several ranks: count what is wrong on each rank, add up at the
 * end, let rank 0 print the verdict. One test program includes it once. */
#ifndef MDP_TESTS_MPI_CHECK_H
#define MDP_TESTS_MPI_CHECK_H

#include "mdp/comm.h"

#include <stdlib.h>

static int check_failures = 0;

/* Count, and say where: at most a few lines a rank. */
static inline void check_at(bool truth, const char *text, const char *file, int line) {
    if (truth || check_failures++ > 4) return;
    int rank;
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    fprintf(stderr, "rank %d: %s:%d: not true: %s\n", rank, file, line, text);
}

#define CHECK(truth) check_at((truth), #truth, __FILE__, __LINE__)

/* A status that must be MDP_OK; without it the program cannot go on. */
#define CHECK_OK(expression)                                                                                           \
    do {                                                                                                               \
        mdp_status check_status_ = (expression);                                                                       \
        if (check_status_.code != MDP_OK) {                                                                            \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, check_status_.text);                                    \
            MPI_Abort(MPI_COMM_WORLD, 1);                                                                              \
        }                                                                                                              \
    } while (0)

/* Call `see` on communicators of the first 1, 2, 3, 4 ranks, then of four more each time, and of all. Collective on
 * MPI_COMM_WORLD. */
static inline void check_on_parts_all(void (*see)(const mdp_comm *comm, void *context), void *context) {
    int rank, size;
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    for (int n = 1, step = 1; n <= size; n += step) {
        MPI_Comm part;
        MPI_Comm_split(MPI_COMM_WORLD, rank < n ? 0 : MPI_UNDEFINED, rank, &part);
        if (part != MPI_COMM_NULL) {
            mdp_comm *comm = NULL;
            CHECK_OK(mdp_comm_new_all(part, &comm));
            see(comm, context);
            mdp_comm_destroy_all(comm);
            MPI_Comm_free(&part);
        }
        if (n >= 4) step = n < size && n + 4 > size ? size - n : 4;
    }
}

/* Collective on MPI_COMM_WORLD: the exit code of main; ends MPI. */
static inline int check_end_all(const char *name) {
    int rank, size;
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    MPI_Allreduce(MPI_IN_PLACE, &check_failures, 1, MPI_INT, MPI_SUM, MPI_COMM_WORLD);
    if (rank == 0) printf("%s on %d ranks: %d wrong\n", name, size, check_failures);
    MPI_Finalize();
    return check_failures == 0 ? 0 : 1;
}

#endif
