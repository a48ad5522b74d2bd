/* The order of collectives, in debug builds. Without arguments: a straight order passes, and errors do not disturb it.
 * With the name of a mistake, the last rank makes it; test_order.py sees that the program ends and what it says. */
#include "mpi_check.h"

#include <string.h>

static void straight_order_passes(const mdp_comm *comm) {
    int64_t sum = 1, most = comm->rank;
    CHECK_OK(mdp_sum_i64_all(comm, &sum, 1));
    CHECK(sum == comm->size);
    for (int i = 0; i < 100; i++) CHECK_OK(mdp_agree_all(comm, mdp_ok()));
    mdp_status local = comm->rank == 0 ? MDP_ERROR(MDP_IO, "lost") : mdp_ok();
    CHECK(mdp_agree_all(comm, local).code == MDP_IO);
    CHECK_OK(mdp_max_i64_all(comm, &most, 1));
    CHECK(most == comm->size - 1);
}

static mdp_status step_all(const mdp_comm *comm, int64_t *value) {
    MDP_AGREE(comm, mdp_ok());
    return mdp_bcast_all(comm, value, sizeof *value, 0);
}

/* Leaves before the agreement that the others wait in, and goes on to the next collective. */
static void leave_early(const mdp_comm *comm, int64_t *value) {
    if (comm->rank != comm->size - 1) CHECK_OK(step_all(comm, value));
    CHECK_OK(mdp_sum_i64_all(comm, value, 1));
}

/* Agrees once more than the others, which are done. */
static void agree_twice(const mdp_comm *comm, int64_t *value) {
    CHECK_OK(step_all(comm, value));
    if (comm->rank == comm->size - 1) CHECK_OK(mdp_agree_all(comm, mdp_ok()));
    CHECK_OK(mdp_agree_all(comm, mdp_ok()));
}

/* The same calls, one of them from another place: harmless now, but not meant. */
static void agree_elsewhere(const mdp_comm *comm, int64_t *value) {
    if (comm->rank == comm->size - 1)
        CHECK_OK(mdp_agree_all(comm, mdp_ok()));
    else
        CHECK_OK(mdp_agree_all(comm, mdp_ok()));
    CHECK_OK(step_all(comm, value));
}

int main(int argc, char **argv) {
    MPI_Init(&argc, &argv);
    mdp_comm *comm;
    const char *mistake = argc > 1 ? argv[1] : "";
    int64_t value = 1;
    CHECK_OK(mdp_comm_new_all(MPI_COMM_WORLD, &comm));
    straight_order_passes(comm);
    if (strcmp(mistake, "leave-early") == 0) leave_early(comm, &value);
    if (strcmp(mistake, "agree-twice") == 0) agree_twice(comm, &value);
    if (strcmp(mistake, "agree-elsewhere") == 0) agree_elsewhere(comm, &value);
    mdp_comm_destroy_all(comm);
    return check_end_all("comm_order");
}
