/* comm.c - the communicator and its node structure.
 *
 * Owns: our duplicate of the caller's communicator (errors returned, not fatal), which rank lives on which node, and
 * the largest count that one library call is given. Refuses: settings in the environment that are not positive
 * integers. The settings are read on rank 0 and broadcast: launchers do not pass the environment everywhere. */
#define MDP_COMM_PLAIN /* these are the collectives themselves */
#include "comm/order.h"
#include "comm/wait.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define DEFAULT_COUNT_MAX (INT64_C(1) << 28)

mdp_status mdp_mpi_status(int mpi_code, const char *what) {
    if (mpi_code == MPI_SUCCESS) return mdp_ok();
    char reason[MPI_MAX_ERROR_STRING] = "unknown error";
    int length = 0;
    MPI_Error_string(mpi_code, reason, &length);
    return MDP_ERROR(MDP_INTERNAL, "MPI failed in %s: %s.", what, reason);
}

/* A positive integer below `most` from the environment; `fallback` when the variable is absent or empty. */
static mdp_status read_setting(const char *name, int64_t fallback, int64_t most, int64_t *out) {
    *out = fallback;
    const char *text = getenv(name);
    if (!text || !*text) return mdp_ok();
    int64_t value;
    if (!mdp_parse_size(text, &value) || value < 1 || value > most)
        return MDP_ERROR(MDP_USAGE, "%s=%s in the environment: expected a whole number from 1 to %" PRId64 ".", name,
                         text, most);
    *out = value;
    return mdp_ok();
}

enum { RANKS_PER_NODE, COUNT_MAX, SHARED_MAX, N_SETTING };

/* Local: the settings, for rank 0. */
static mdp_status read_settings(int64_t setting[N_SETTING]) {
#ifdef MDP_DEBUG_HOOKS
    MDP_TRY(read_setting("MDP_COUNT_MAX", DEFAULT_COUNT_MAX, DEFAULT_COUNT_MAX, &setting[COUNT_MAX]));
    MDP_TRY(read_setting("MDP_SHARED_MAX", INT64_MAX, INT64_MAX, &setting[SHARED_MAX]));
#endif
    return read_setting("MDP_RANKS_PER_NODE", 0, INT32_MAX, &setting[RANKS_PER_NODE]);
}

/* Collective on comm->world. What the machine of each rank has: cores for all its ranks or not, and, unless
 * `per_node` consecutive ranks are to count as a node, which ranks share memory: rank_node[r] becomes the lowest of
 * those of rank r. */
static mdp_status look_at_machines_all(mdp_comm *comm, int64_t per_node) {
    MPI_Comm shared;
    MDP_TRY(mdp_mpi_status(MPI_Comm_split_type(comm->world, MPI_COMM_TYPE_SHARED, comm->rank, MPI_INFO_NULL, &shared),
                           "the search for ranks that share memory"));
    int leader = comm->rank;
    mdp_status status = mdp_find_crowds_all(comm, shared, 1);
    if (status.code == MDP_OK)
        status = mdp_mpi_status(MPI_Bcast(&leader, 1, MPI_INT, 0, shared), "the search for ranks that share memory");
    MPI_Comm_free(&shared);
    MDP_TRY(status);
    for (int r = 0; r < comm->size && per_node > 0; r++) comm->rank_node[r] = r - (int)(r % per_node);
    if (per_node > 0) return status;
    return mdp_mpi_status(MPI_Allgather(&leader, 1, MPI_INT, comm->rank_node, 1, MPI_INT, comm->world),
                          "the exchange of node leaders");
}

/* Leaders to node numbers, in the order of the leaders' ranks; a leader is its node's lowest rank. */
static void number_nodes(mdp_comm *comm) {
    comm->n_node = 0;
    for (int r = 0; r < comm->size; r++) {
        int leader = comm->rank_node[r];
        comm->rank_node[r] = leader == r ? comm->n_node++ : comm->rank_node[leader];
    }
    comm->node = comm->rank_node[comm->rank];
    for (int r = 0; r < comm->size; r++) comm->node_first[comm->rank_node[r] + 1]++;
    for (int node = 0; node < comm->n_node; node++) comm->node_first[node + 1] += comm->node_first[node];
    comm->node_size = comm->node_first[comm->node + 1] - comm->node_first[comm->node];
}

/* Ranks by node: a stable counting sort that leaves node_first as it is. */
static void list_nodes(mdp_comm *comm) {
    for (int r = 0; r < comm->size; r++) {
        int place = comm->node_first[comm->rank_node[r]]++;
        comm->by_node[place] = r;
    }
    for (int node = comm->n_node; node > 0; node--) comm->node_first[node] = comm->node_first[node - 1];
    comm->node_first[0] = 0;
    for (int i = 0; i < comm->node_size; i++) {
        if (comm->by_node[comm->node_first[comm->node] + i] == comm->rank) comm->node_rank = i;
    }
}

/* Collective on comm->world: settings, then nodes. */
static mdp_status set_up_all(mdp_comm *comm) {
    int64_t setting[N_SETTING] = {[COUNT_MAX] = DEFAULT_COUNT_MAX, [SHARED_MAX] = INT64_MAX};
    mdp_status status = mdp_ok();
    if (comm->rank == 0) status = read_settings(setting);
    if (status.code == MDP_OK) status = MDP_ALLOC(&comm->rank_node, comm->size, "the nodes of the ranks");
    if (status.code == MDP_OK) status = MDP_ALLOC(&comm->scratch, MDP_COMM_SCRATCH, "sums at one rank");
    if (status.code == MDP_OK) status = MDP_ALLOC(&comm->by_node, comm->size, "the nodes of the ranks");
    if (status.code == MDP_OK) status = MDP_ALLOC(&comm->node_first, comm->size + 1, "the nodes of the ranks");
#ifdef MDP_DEBUG_HOOKS
    if (status.code == MDP_OK) status = mdp_order_new(&comm->order);
#endif
    MDP_AGREE(comm, status);
    MDP_TRY(mdp_bcast_all(comm, setting, sizeof setting, 0));
    comm->count_max = setting[COUNT_MAX];
    comm->shared_max = setting[SHARED_MAX];
    MDP_TRY(look_at_machines_all(comm, setting[RANKS_PER_NODE]));
    number_nodes(comm);
    list_nodes(comm);
    return mdp_ok();
}

/* Open MPI 4 and 5 insist on one kind of helper to choose from. The third kind alone can be told, by a priority below
 * none, not to be chosen, and obeys for files with the hint of mdp_h5_open_all. */
void mdp_comm_prepare(void) {
    setenv("OMPI_MCA_sharedfp", "^sm,lockedfile", 0);
    setenv("OMPI_MCA_sharedfp_individual_priority", "-1", 0);
}

mdp_status mdp_comm_count_threads_all(mdp_comm *comm, int n_thread) {
    MPI_Comm shared;
    MDP_TRY(mdp_mpi_status(MPI_Comm_split_type(comm->world, MPI_COMM_TYPE_SHARED, comm->rank, MPI_INFO_NULL, &shared),
                           "the search for ranks that share memory"));
    mdp_status status = mdp_find_crowds_all(comm, shared, n_thread);
    MPI_Comm_free(&shared);
    return status;
}

static void free_arrays(mdp_comm *comm) {
    mdp_free(comm->rank_node);
    mdp_free(comm->by_node);
    mdp_free(comm->node_first);
    mdp_free(comm->scratch);
}

mdp_status mdp_comm_new_all(MPI_Comm base, mdp_comm **out) {
    *out = NULL;
    mdp_comm made = {.count_max = DEFAULT_COUNT_MAX};
    MDP_TRY(mdp_mpi_status(MPI_Comm_dup(base, &made.world), "the duplication of a communicator"));
    MPI_Comm_set_errhandler(made.world, MPI_ERRORS_RETURN);
    MPI_Comm_rank(made.world, &made.rank);
    MPI_Comm_size(made.world, &made.size);
    mdp_comm *comm = NULL;
    mdp_status status = mdp_agree_all(&made, MDP_ALLOC(&comm, 1, "a communicator"));
    if (status.code == MDP_OK) {
        *comm = made;
        status = set_up_all(comm);
        made = *comm;
    }
    if (status.code == MDP_OK) {
        *out = comm;
        return status;
    }
    free_arrays(&made);
    mdp_order_destroy(made.order);
    mdp_free(comm);
    MPI_Comm_free(&made.world);
    return status;
}

void mdp_comm_destroy_all(mdp_comm *comm) {
    if (!comm) return;
    MPI_Comm_free(&comm->world);
    free_arrays(comm);
    mdp_order_destroy(comm->order);
    mdp_free(comm);
}
