/* main.c - start MPI, run the command, turn its status into the exit code of every rank. */
#include "command/command.h"
#include "command/threads.h"

#include <hdf5.h>
#include <inttypes.h>

/* In debug builds every run of every test is a test of what the command leaves behind. */
#ifdef MDP_DEBUG_HOOKS
static void watch_memory(void) {
    json_set_alloc_funcs(mdp_memory_for_json, mdp_free);
}

static mdp_status check_memory(mdp_status status) {
    char what[MDP_MEMORY_WHAT];
    int64_t n = mdp_memory_left(what);
    ssize_t n_open = H5Fget_obj_count((hid_t)H5F_OBJ_ALL, H5F_OBJ_ALL);
    if (n > 0) fprintf(stderr, "moe-dist-prune: %" PRId64 " blocks of memory were not freed, one for '%s'.\n", n, what);
    if (n_open > 0) fprintf(stderr, "moe-dist-prune: %zd objects of HDF5 were not closed.\n", n_open);
    if (status.code == MDP_OK && (n > 0 || n_open > 0)) status.code = MDP_INTERNAL;
    return status;
}
#else
static void watch_memory(void) {}

static mdp_status check_memory(mdp_status status) {
    return status;
}
#endif

/* Libraries take a tenth of a second to start, before main: a batch system's signal is not to end the job in it. */
#ifndef __SANITIZE_ADDRESS__
__attribute__((section(".preinit_array"), used)) static void (*const before_libraries)(void) = mdp_stop_defer;
#endif

int main(int n_word, char **words) {
    int provided = 0;
    mdp_stop_defer();
    mdp_threads_prepare(words);
    mdp_status status = mdp_stop_begin();
    watch_memory();
    mdp_comm_prepare();
    if (MPI_Init_thread(&n_word, &words, MPI_THREAD_FUNNELED, &provided) != MPI_SUCCESS) return MDP_INTERNAL;
    mdp_comm *comm = NULL;
    if (status.code == MDP_OK) status = mdp_comm_new_all(MPI_COMM_WORLD, &comm);
    if (status.code == MDP_OK && provided < MPI_THREAD_FUNNELED)
        status = MDP_ERROR(MDP_INTERNAL, "the MPI library does not support threads (MPI_THREAD_FUNNELED).");
    if (status.code != MDP_OK)
        fprintf(stderr, "moe-dist-prune: %s\n", status.text);
    else
        status = mdp_command_main_all(comm, n_word, words);
    mdp_comm_destroy_all(comm);
    status = check_memory(status);
    MPI_Finalize();
    return status.code;
}
