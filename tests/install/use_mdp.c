/* A program of somebody else: opens a checkpoint through the installed libmdp and tells what is in it. */
#include <mdp/checkpoint.h>

int main(int n_word, char **words) {
    mdp_comm *comm = NULL;
    mdp_catalogue *catalogue = NULL;
    int rank;
    mdp_comm_prepare();
    MPI_Init(&n_word, &words);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank); /* there may be no communicator of the library to ask */
    mdp_status status = mdp_comm_new_all(MPI_COMM_WORLD, &comm);
    if (status.code == MDP_OK) status = mdp_catalogue_open_all(comm, n_word > 1 ? words[1] : "", &catalogue);
    if (status.code == MDP_OK) status = mdp_catalogue_fingerprint_all(comm, catalogue);
    if (rank == 0 && status.code == MDP_OK)
        printf("%lld tensors, fingerprint %s\n", (long long)catalogue->n_tensor, catalogue->fingerprint);
    if (rank == 0 && status.code != MDP_OK) fprintf(stderr, "use_mdp: %s\n", status.text);
    mdp_catalogue_destroy(catalogue);
    mdp_comm_destroy_all(comm);
    MPI_Finalize();
    return status.code;
}
