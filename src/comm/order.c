/* order.c - the order of collectives.
 *
 * Ranks that call different collectives wait for each other for ever. In debug builds (MDP_DEBUG_HOOKS) noted.h notes
 * the source line of every collective, and a hash of all of them so far is compared first, by the same small reduction
 * whatever the collective is: ranks that went apart meet there, and say so. Agreements, which are most of the calls,
 * carry the hash in their own reduction. In other builds nothing is noted and the hash stays 0. */
#define MDP_COMM_PLAIN /* these are the collectives themselves */
#include "comm/order.h"
#include "comm/wait.h"

#include <inttypes.h>
#include <limits.h>
#include <string.h>

struct mdp_order {
    uint64_t hash;  /* of every call so far */
    int64_t n_call; /* how many */
    char call[80];  /* the last one: "file:line" */
};

mdp_status mdp_order_new(struct mdp_order **out) {
    return MDP_ALLOC(out, 1, "the order of collectives");
}

void mdp_order_destroy(struct mdp_order *order) {
    mdp_free(order);
}

int64_t mdp_order_value(const mdp_comm *comm) {
    int64_t value = 0;
    if (comm->order) memcpy(&value, &comm->order->hash, sizeof value);
    return value;
}

const mdp_comm *mdp_order_note(const mdp_comm *comm, const char *file, int line) {
    struct mdp_order *order = comm->order;
    if (!order) return comm;
    snprintf(order->call, sizeof order->call, "%s:%d", mdp_path_name(file), line);
    /* FNV-1a over the text of the call, on top of all calls before. */
    order->hash ^= UINT64_C(0xcbf29ce484222325);
    for (const char *c = order->call; *c; c++) order->hash = (order->hash ^ (uint8_t)*c) * UINT64_C(0x100000001b3);
    order->n_call++;
    return comm;
}

const mdp_comm *mdp_order_all(const mdp_comm *comm, const char *file, int line) {
    mdp_order_note(comm, file, line);
    int64_t value = mdp_order_value(comm);
    int64_t least[3] = {INT_MAX, value, ~value}; /* as an agreement on success: it may be what another rank is at */
    /* A failing MPI library is left to the collective itself to report. */
    (void)mdp_meet_all(comm);
    int code = MPI_Allreduce(MPI_IN_PLACE, least, 3, MPI_INT64_T, MPI_MIN, comm->world);
    if (code == MPI_SUCCESS && least[1] != ~least[2]) mdp_order_abort_all(comm);
    return comm;
}

void mdp_order_abort_all(const mdp_comm *comm) {
    struct mdp_order here = {.call = ""}, first;
    if (comm->order) here = *comm->order;
    first = here;
    MPI_Bcast(&first, (int)sizeof first, MPI_BYTE, 0, comm->world);
    int apart = first.hash != here.hash ? comm->rank : INT_MAX, lowest;
    MPI_Allreduce(&apart, &lowest, 1, MPI_INT, MPI_MIN, comm->world);
    MPI_Bcast(&here, (int)sizeof here, MPI_BYTE, lowest, comm->world);
    if (comm->rank == 0)
        fprintf(stderr,
                "moe-dist-prune: the ranks went apart: rank 0 is at %s in its collective call %" PRId64
                ", rank %d at %s in its call %" PRId64 ". This is a bug of moe-dist-prune; please report it.\n",
                first.call, first.n_call, lowest, here.call, here.n_call);
    MPI_Barrier(comm->world); /* the sentence first */
    MPI_Abort(comm->world, MDP_INTERNAL);
}
