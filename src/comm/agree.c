/* agree.c - one outcome for all ranks.
 *
 * Between two collectives a rank must not leave alone, or the others wait for ever. So local work ends in a status,
 * and the ranks agree on it here: in the good case one Allreduce of an integer, otherwise the status of the lowest
 * failing rank is broadcast, so that every rank leaves with the same code and sentence. */
#define MDP_COMM_PLAIN /* these are the collectives themselves */
#include "comm/order.h"
#include "comm/wait.h"

#include <limits.h>

mdp_status mdp_agree_all(const mdp_comm *comm, mdp_status local) {
    int64_t order = mdp_order_value(comm);
    int64_t least[3] = {local.code == MDP_OK ? INT_MAX : comm->rank, order, ~order};
    MDP_TRY(mdp_meet_all(comm));
    MDP_TRY(mdp_mpi_status(MPI_Allreduce(MPI_IN_PLACE, least, 3, MPI_INT64_T, MPI_MIN, comm->world),
                           "the agreement on errors"));
    if (least[1] != ~least[2]) mdp_order_abort_all(comm);
    if (least[0] == INT_MAX) return mdp_ok();
    int lowest = (int)least[0];
    mdp_status common = local;
    /* An error that was agreed on before keeps the rank on which it arose. */
    if (common.rank < 0) common.rank = comm->rank;
    MDP_TRY(mdp_mpi_status(MPI_Bcast(&common, (int)sizeof common, MPI_BYTE, lowest, comm->world),
                           "the broadcast of an error"));
    return common;
}
