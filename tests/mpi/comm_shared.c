/* Memory that the ranks of a node share: each sees what the others wrote before they met; one that fails is heard by
 * all of its node; a node without room says so and does without. */
#include "mpi_check.h"

#include <string.h>

#define N_BYTE 1000003 /* no whole number of pages */

static void open_nodes(int per_node, mdp_comm **comm) {
    char text[16];
    snprintf(text, sizeof text, "%d", per_node);
    setenv("MDP_RANKS_PER_NODE", text, 1);
    CHECK_OK(mdp_comm_new_all(MPI_COMM_WORLD, comm));
}

static char byte_of(int64_t i, int writer, int turn) {
    return (char)(i * 7 + writer * 13 + turn * 29);
}

/* Every rank writes its run, meets the others, and reads all. */
static void write_and_read(const mdp_comm *comm, mdp_shared *shared, int turn) {
    int n = shared->node->size, own = (shared->node->rank + turn) % n; /* not the same run each time */
    for (int64_t i = shared->n_byte * own / n; i < shared->n_byte * (own + 1) / n; i++)
        shared->memory[i] = byte_of(i, comm->node, turn);
    CHECK_OK(mdp_shared_meet_all(shared, mdp_ok()));
    int64_t n_wrong = 0;
    for (int64_t i = 0; i < shared->n_byte; i++) n_wrong += shared->memory[i] != byte_of(i, comm->node, turn);
    CHECK(n_wrong == 0);
    CHECK_OK(mdp_shared_meet_all(shared, mdp_ok()));
}

static void ranks_of_a_node_see_what_was_written(int per_node) {
    mdp_comm *comm = NULL;
    mdp_shared *shared = NULL;
    mdp_status missing;
    open_nodes(per_node, &comm);
    CHECK_OK(mdp_shared_new_all(comm, N_BYTE + comm->node, &shared, &missing));
    CHECK_OK(missing);
    CHECK(shared->node->size == comm->node_size && shared->node->rank == comm->node_rank);
    CHECK(shared->memory != NULL && shared->n_byte == N_BYTE + comm->node);
    for (int turn = 0; turn < 3; turn++) write_and_read(comm, shared, turn);
    /* the last rank of every node fails in a step of its own */
    bool fails = comm->node_rank == comm->node_size - 1;
    mdp_status status = mdp_shared_meet_all(shared, fails ? MDP_ERROR(MDP_IO, "node %d fails", comm->node) : mdp_ok());
    char expected[32];
    snprintf(expected, sizeof expected, "node %d fails", comm->node);
    CHECK(status.code == MDP_IO && strcmp(status.text, expected) == 0);
    CHECK(comm->rank_node[status.rank] == comm->node);
    mdp_shared_destroy_all(shared);
    mdp_comm_destroy_all(comm);
}

/* Node 0 needs more than there is; the others have theirs. */
static void a_node_without_room_does_without(void) {
    mdp_comm *comm = NULL;
    mdp_shared *shared = NULL;
    mdp_status missing;
    open_nodes(2, &comm);
    comm->shared_max = N_BYTE;
    CHECK_OK(mdp_shared_new_all(comm, comm->node == 0 ? N_BYTE + 1 : N_BYTE, &shared, &missing));
    CHECK(missing.code != MDP_OK && strstr(missing.text, "has room for"));
    CHECK((shared->memory == NULL) == (comm->node == 0));
    mdp_shared_destroy_all(shared);
    mdp_comm_destroy_all(comm);
}

static void nodes_that_need_none_get_none(void) {
    mdp_comm *comm = NULL;
    mdp_shared *shared = NULL;
    mdp_status missing;
    open_nodes(1, &comm);
    CHECK_OK(mdp_shared_new_all(comm, comm->node == comm->n_node - 1 ? 1 : 0, &shared, &missing));
    CHECK_OK(missing);
    CHECK((shared->memory != NULL) == (comm->node == comm->n_node - 1));
    mdp_shared_destroy_all(shared);
    mdp_shared_destroy_all(NULL);
    mdp_comm_destroy_all(comm);
}

int main(int argc, char **argv) {
    MPI_Init(&argc, &argv);
    for (int per_node = 1; per_node <= 8; per_node = per_node < 4 ? per_node + 1 : 2 * per_node)
        ranks_of_a_node_see_what_was_written(per_node);
    a_node_without_room_does_without();
    nodes_that_need_none_get_none();
    return check_end_all("comm_shared");
}
