/* main.c - start MPI, run the command, turn its status into the exit code of every rank. */
#include "command/command.h"

int main(int n_word, char **words) {
    int provided = 0;
    mdp_comm_prepare();
    if (MPI_Init_thread(&n_word, &words, MPI_THREAD_FUNNELED, &provided) != MPI_SUCCESS) return MDP_INTERNAL;
    mdp_comm *comm = NULL;
    mdp_status status = mdp_comm_new_all(MPI_COMM_WORLD, &comm);
    if (status.code == MDP_OK && provided < MPI_THREAD_FUNNELED)
        status = MDP_ERROR(MDP_INTERNAL, "the MPI library does not support threads (MPI_THREAD_FUNNELED).");
    if (status.code != MDP_OK)
        fprintf(stderr, "moe-dist-prune: %s\n", status.text);
    else
        status = mdp_command_main_all(comm, n_word, words);
    mdp_comm_destroy_all(comm);
    MPI_Finalize();
    return status.code;
}
