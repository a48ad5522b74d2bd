/* Faults in the checkpoint writers, on one rank or on all: every N-th fallible operation fails. The writers must come
 * back on all ranks with one and the same error and leave nothing, or come back without and leave a whole checkpoint.
 * Without MDP_DEBUG_HOOKS there are no faults, and the test says that it was skipped. */
#include "sample_output.h"

#include "checkpoint/h5_parallel.h"

#include <unistd.h>

static int n_wrong = 0;

static void expect(const mdp_comm *comm, bool truth, const char *what, int64_t every, const char *detail) {
    if (truth) return;
    n_wrong++;
    fprintf(stderr, "write_faults: rank %d of %d, every %lld: %s: %s\n", comm->rank, comm->size, (long long)every, what,
            detail);
}

typedef mdp_status write_fn(const mdp_comm *comm, mdp_reader *reader, const mdp_output *output, const char *path,
                            const mdp_write_options *options);

/* One text on all ranks: compare with rank 0's. */
static bool same_everywhere(const mdp_comm *comm, const mdp_status *status) {
    mdp_status first = *status;
    MPI_Bcast(&first.code, 1, MPI_INT, 0, comm->world);
    MPI_Bcast(first.text, sizeof first.text, MPI_CHAR, 0, comm->world);
    return first.code == status->code && strcmp(first.text, status->text) == 0;
}

static void remove_output(const char *path) {
    if (mdp_path_is_folder(path))
        sample_must(mdp_folder_remove(path));
    else
        unlink(path);
}

/* Is anything there under the output's name, or a part of it? Cleaning up may be hit by a fault itself. */
static void check_what_is_left(const mdp_comm *comm, const char *path, int64_t every, const mdp_status *status) {
    char *partial = NULL;
    sample_must(mdp_format(&partial, "%s.partial", path));
    /* A complete output stays although its folder could not be synced after the rename. */
    bool there = mdp_path_exists(path), may_be_there = strstr(status->text, "(fsync of a folder)") != NULL;
    expect(comm, there || status->code != MDP_OK, "nothing was written", every, status->text);
    expect(comm, !there || status->code == MDP_OK || may_be_there, "a failed output is there", every, status->text);
    expect(comm, status->code == MDP_OK || !mdp_path_exists(partial), "a part is left", every, status->text);
    remove_output(path);
    remove_output(partial);
    mdp_free(partial);
}

/* Write once with faults on rank `victim` (-1: all). Returns the code. */
static int write_with_faults(const mdp_comm *comm, write_fn *write, const sample *s, const char *path, int victim,
                             int64_t every) {
    mdp_write_options options = {.shard_byte = 200000, .buffer_byte = 20000};
    mdp_reader *reader = NULL;
    sample_must(mdp_reader_new(&s->catalogue, &reader));
    if (victim < 0 || comm->rank == victim) mdp_fault_configure(every, (uint64_t)every);
    mdp_status status = write(comm, reader, &s->output, path, &options);
    mdp_fault_configure(0, 0);
    mdp_reader_destroy(reader);
    expect(comm, same_everywhere(comm, &status), "the ranks do not agree", every, status.text);
    if (comm->rank == 0) check_what_is_left(comm, path, every, &status);
    MPI_Barrier(comm->world);
    return status.code;
}

static void any_fault_ends_in_an_agreed_error(const mdp_comm *comm, write_fn *write, const sample *s, const char *path,
                                              int victim) {
    /* Every place near the beginning, then ever larger steps: a rank passes some hundreds of them. */
    int n_failed = 0, n_done = 0;
    for (int64_t every = 1; every < 4000; every += every < 12 ? 1 : every / 3) {
        int code = write_with_faults(comm, write, s, path, victim, every);
        n_failed += code != MDP_OK;
        n_done += code == MDP_OK;
    }
    expect(comm, n_failed >= 10, "hardly anything failed", n_failed, path);
    expect(comm, n_done >= 1, "nothing was ever written", n_done, path);
}

/* Collective. Open and close what all ranks share, each of its operations failing on one rank alone: HDF5's part is
 * collective from the property list on, and a rank that stays away would be waited for. */
static void a_shared_file_is_opened_by_all_or_none(const mdp_comm *comm, const char *path) {
    hid_t file = -1;
    if (comm->rank == 0) {
        sample_must(mdp_h5_create_file(path, &file));
        sample_must(mdp_hdf5_close_written(file, path, mdp_ok()));
    }
    MPI_Barrier(comm->world);
    int n_failed = 0;
    for (int64_t operation = 1; operation <= 8; operation++) {
        if (comm->rank == comm->size - 1) mdp_fault_configure(100, (uint64_t)(100 - operation));
        mdp_status status = mdp_h5_open_all(comm, path, &file);
        expect(comm, (file >= 0) == (status.code == MDP_OK), "open here, failed elsewhere", operation, status.text);
        if (file >= 0) status = mdp_h5_close_all(comm, path, file, status);
        mdp_fault_configure(0, 0);
        expect(comm, same_everywhere(comm, &status), "the ranks do not agree", operation, status.text);
        n_failed += status.code != MDP_OK;
    }
    expect(comm, n_failed >= 4 && n_failed < 8, "another number of operations than thought", n_failed, path);
    if (comm->rank == 0) remove_output(path);
}

/* Are there faults in this build? */
static bool has_faults(void) {
    mdp_fault_configure(1, 0);
    bool failed = mdp_fault(MDP_IO, "try").code != MDP_OK;
    mdp_fault_configure(0, 0);
    return failed;
}

static void run_tests(const mdp_comm *comm) {
    char folder[] = "/tmp/mdp-faults-XXXXXX", *source = NULL, *path = NULL;
    if (comm->rank == 0 && !mkdtemp(folder)) abort();
    sample_must(mdp_bcast_all(comm, folder, sizeof folder, 0));
    sample_must(mdp_path_join(&source, folder, "source.bin"));
    sample_must(mdp_path_join(&path, folder, "out"));
    sample s;
    sample_make(&s, source);
    if (comm->rank == 0) sample_write_source(&s);
    MPI_Barrier(comm->world);
    any_fault_ends_in_an_agreed_error(comm, mdp_write_native_all, &s, path, comm->size - 1);
    any_fault_ends_in_an_agreed_error(comm, mdp_write_native_all, &s, path, -1);
    any_fault_ends_in_an_agreed_error(comm, mdp_write_hf_all, &s, path, comm->size - 1);
    any_fault_ends_in_an_agreed_error(comm, mdp_write_hf_all, &s, path, 0);
    a_shared_file_is_opened_by_all_or_none(comm, path);
    if (comm->rank == 0) sample_must(mdp_folder_remove(folder));
    sample_end(&s);
    mdp_free(source);
    mdp_free(path);
}

int main(int argc, char **argv) {
    MPI_Init(&argc, &argv);
    mdp_comm *comm = NULL;
    sample_must(mdp_comm_new_all(MPI_COMM_WORLD, &comm));
    bool possible = has_faults();
    if (possible) run_tests(comm);
    MPI_Allreduce(MPI_IN_PLACE, &n_wrong, 1, MPI_INT, MPI_SUM, MPI_COMM_WORLD);
    if (comm->rank == 0 && possible) printf("write_faults on %d ranks: %d wrong\n", comm->size, n_wrong);
    if (comm->rank == 0 && !possible) printf("write_faults: skipped, this build has no faults (MDP_DEBUG_HOOKS)\n");
    mdp_comm_destroy_all(comm);
    MPI_Finalize();
    return n_wrong > 0;
}
