/* Agreement on errors, and communicators: the lowest failing rank speaks for all, on every rank; nodes by
 * MDP_RANKS_PER_NODE; a rank that cannot allocate fails everywhere. */
#include "mpi_check.h"

#include <string.h>
#include <sys/resource.h>
#include <time.h>

static mdp_status wrong_here(int rank) {
    return MDP_ERROR(rank % 2 ? MDP_IO : MDP_BAD_INPUT, "rank %d found a hole", rank);
}

/* Every set of failing ranks (as bits), on up to 8 ranks. */
static void lowest_failing_rank_speaks(const mdp_comm *comm) {
    for (int failing = 0; failing < 1 << comm->size; failing++) {
        mdp_status local = failing >> comm->rank & 1 ? wrong_here(comm->rank) : mdp_ok();
        mdp_status common = mdp_agree_all(comm, local);
        if (failing == 0) {
            CHECK(common.code == MDP_OK);
            continue;
        }
        int lowest = 0;
        while (!(failing >> lowest & 1)) lowest++;
        char text[100];
        snprintf(text, sizeof text, "rank %d found a hole", lowest);
        CHECK(common.code == (lowest % 2 ? MDP_IO : MDP_BAD_INPUT));
        CHECK(common.rank == lowest);
        CHECK(strcmp(common.text, text) == 0);
        CHECK(strcmp(common.file, "comm_agree.c") == 0);
        CHECK(common.line > 0);
        /* Agreeing again on what all know changes nothing. */
        mdp_status again = mdp_agree_all(comm, common);
        CHECK(again.rank == lowest && again.code == common.code && strcmp(again.text, text) == 0);
    }
}

static mdp_status leaves_when_any_fails(const mdp_comm *comm, int failing, bool *passed) {
    *passed = false;
    mdp_status status = comm->rank == failing ? wrong_here(failing) : mdp_ok();
    MDP_AGREE(comm, status);
    *passed = true;
    return mdp_ok();
}

static void all_ranks_leave_together(const mdp_comm *comm) {
    bool passed;
    for (int failing = 0; failing <= comm->size; failing++) {
        mdp_status status = leaves_when_any_fails(comm, failing, &passed);
        CHECK(passed == (failing == comm->size));
        CHECK((status.code == MDP_OK) == passed);
    }
}

static double cpu_seconds(void) {
    struct rusage used;
    getrusage(RUSAGE_SELF, &used);
    return (double)(used.ru_utime.tv_sec + used.ru_stime.tv_sec) +
           1e-6 * (double)(used.ru_utime.tv_usec + used.ru_stime.tv_usec);
}

/* A rank that waits for the last one takes no core from those that work, where there are fewer cores than ranks. */
static void waiting_ranks_sleep(const mdp_comm *comm) {
    mdp_comm crowded = *comm;
    crowded.crowded = true;
    const struct timespec half_a_second = {.tv_nsec = 500000000};
    CHECK_OK(mdp_agree_all(comm, mdp_ok()));
    double before = cpu_seconds();
    if (comm->rank == comm->size - 1) nanosleep(&half_a_second, NULL);
    CHECK_OK(mdp_agree_all(&crowded, mdp_ok()));
    CHECK(cpu_seconds() - before < 0.05);
}

static void one_machine_is_one_node(void) {
    unsetenv("MDP_RANKS_PER_NODE");
    mdp_comm *comm;
    CHECK_OK(mdp_comm_new_all(MPI_COMM_WORLD, &comm));
    CHECK(comm->n_node == 1 && comm->node == 0);
    CHECK(comm->node_rank == comm->rank && comm->node_size == comm->size);
    mdp_comm_destroy_all(comm);
}

static void ranks_are_dealt_to_nodes_of_n(int n, bool reversed) {
    char text[16];
    snprintf(text, sizeof text, "%d", n);
    int world_rank;
    MPI_Comm_rank(MPI_COMM_WORLD, &world_rank);
    if (world_rank == 0 || reversed)
        setenv("MDP_RANKS_PER_NODE", text, 1);
    else
        unsetenv("MDP_RANKS_PER_NODE"); /* rank 0's counts */
    MPI_Comm base;
    MPI_Comm_split(MPI_COMM_WORLD, 0, reversed ? -world_rank : world_rank, &base);
    mdp_comm *comm;
    CHECK_OK(mdp_comm_new_all(base, &comm));
    CHECK(comm->n_node == (comm->size + n - 1) / n);
    CHECK(comm->node == comm->rank / n);
    CHECK(comm->node_rank == comm->rank % n);
    int first = comm->node * n;
    CHECK(comm->node_size == (comm->size - first < n ? comm->size - first : n));
    for (int r = 0; r < comm->size; r++) CHECK(comm->rank_node[r] == r / n && comm->by_node[r] == r);
    for (int node = 0; node < comm->n_node; node++) CHECK(comm->node_first[node] == node * n);
    CHECK(comm->node_first[comm->n_node] == comm->size);
    mdp_comm_destroy_all(comm);
    MPI_Comm_free(&base);
    unsetenv("MDP_RANKS_PER_NODE");
}

static void a_senseless_setting_is_the_same_error_everywhere(const char *text) {
    setenv("MDP_RANKS_PER_NODE", text, 1);
    mdp_comm *comm;
    mdp_status status = mdp_comm_new_all(MPI_COMM_WORLD, &comm);
    CHECK(status.code == MDP_USAGE);
    CHECK(strstr(status.text, "expected a whole number") != NULL);
    CHECK(status.rank == 0);
    CHECK(comm == NULL);
    unsetenv("MDP_RANKS_PER_NODE");
}

static void an_mpi_error_becomes_a_status(const mdp_comm *comm) {
    int value = 0;
    mdp_status status = mdp_mpi_status(MPI_Bcast(&value, 1, MPI_INT, comm->size + 7, comm->world), "a test");
    CHECK(status.code == MDP_INTERNAL);
    CHECK(strncmp(status.text, "MPI failed in a test: ", 22) == 0);
    CHECK(mdp_mpi_status(MPI_SUCCESS, "a test").code == MDP_OK);
}

#ifdef MDP_DEBUG_HOOKS
/* Each operation of the set-up fails once, on one rank: all get the error, nothing hangs. */
static void a_rank_that_fails_to_set_up_fails_all(int size) {
    int rank;
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    for (int failing = 0; failing < size; failing++) {
        for (int operation = 1; operation <= 7; operation++) {
            mdp_fault_configure(rank == failing ? 100 : 0, (uint64_t)(100 - operation));
            mdp_comm *comm;
            mdp_status status = mdp_comm_new_all(MPI_COMM_WORLD, &comm);
            mdp_fault_configure(0, 0);
            CHECK((status.code == MDP_OK) == (operation == 7)); /* it has six fallible operations */
            CHECK(status.code == MDP_OK || status.rank == failing);
            mdp_comm_destroy_all(comm);
        }
    }
}

static void the_count_limit_is_rank_zeros(void) {
    setenv("MDP_COUNT_MAX", "1000", 1);
    mdp_comm *comm;
    CHECK_OK(mdp_comm_new_all(MPI_COMM_WORLD, &comm));
    CHECK(comm->count_max == 1000);
    mdp_comm_destroy_all(comm);
    unsetenv("MDP_COUNT_MAX");
}
#endif

int main(int argc, char **argv) {
    MPI_Init(&argc, &argv);
    mdp_comm *comm;
    CHECK_OK(mdp_comm_new_all(MPI_COMM_WORLD, &comm));
    CHECK(comm->count_max == INT64_C(1) << 28);
    lowest_failing_rank_speaks(comm);
    all_ranks_leave_together(comm);
    waiting_ranks_sleep(comm);
    an_mpi_error_becomes_a_status(comm);
    one_machine_is_one_node();
    for (int n = 1; n <= 5; n++) {
        ranks_are_dealt_to_nodes_of_n(n, false);
        ranks_are_dealt_to_nodes_of_n(n, true);
    }
    a_senseless_setting_is_the_same_error_everywhere("0");
    a_senseless_setting_is_the_same_error_everywhere("two");
    a_senseless_setting_is_the_same_error_everywhere("-3");
#ifdef MDP_DEBUG_HOOKS
    a_rank_that_fails_to_set_up_fails_all(comm->size);
    the_count_limit_is_rank_zeros();
#endif
    mdp_comm_destroy_all(comm);
    mdp_comm_destroy_all(NULL);
    return check_end_all("comm_agree");
}
