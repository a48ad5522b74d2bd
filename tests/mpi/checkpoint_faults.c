/* Readers with every one of their fallible operations made to fail in turn, on one rank alone: all ranks return the
 * same code and sentence, which does not speak of damage, none hangs, and the next attempt without faults succeeds.
 * Needs the debug hooks. */
#include "mdp/checkpoint.h"

#include <string.h>

#define N_OPERATION 400 /* a rank passes fewer in one job */

static int n_wrong = 0;

/* Take all panels of a matrix; local. */
static mdp_status stream_matrix(mdp_reader *reader, const mdp_matrix *matrix) {
    mdp_panel_feed *feed = NULL;
    mdp_panel items[8], panel;
    int n = 0;
    for (int64_t row = 0; row < matrix->n_row && n < 8; row += 2, n++) {
        items[n] = (mdp_panel){.matrix = matrix, .row0 = row, .n_row = row + 2 <= matrix->n_row ? 2 : 1};
    }
    MDP_TRY(mdp_panel_feed_new(reader, 3, MDP_F32, 8 * matrix->n_col, NULL, &feed));
    mdp_status status = mdp_panel_feed_start(feed, items, n);
    for (int i = 0; i < n && status.code == MDP_OK; i++) {
        status = mdp_panel_feed_wait(feed, i, 1, &panel);
        mdp_panel_feed_release(feed, i, 1, 1);
    }
    mdp_panel_feed_destroy(feed);
    return status;
}

static mdp_status read_weights(const mdp_catalogue *catalogue) {
    mdp_reader *reader = NULL;
    float *values = NULL;
    MDP_TRY(mdp_reader_new(catalogue, &reader));
    mdp_matrix head = mdp_matrix_whole(mdp_catalogue_find(catalogue, "lm_head.weight"));
    mdp_matrix embedding = mdp_matrix_whole(mdp_catalogue_find(catalogue, "model.embed_tokens.weight"));
    mdp_status status = stream_matrix(reader, &head);
    if (status.code == MDP_OK) status = mdp_matrix_load(reader, &embedding, &values);
    mdp_free(values);
    mdp_reader_destroy(reader);
    return status;
}

static mdp_status read_checkpoint_all(const mdp_comm *comm, const char *path) {
    mdp_catalogue *catalogue = NULL;
    MDP_TRY(mdp_catalogue_open_all(comm, path, &catalogue));
    mdp_status status = mdp_catalogue_fingerprint_all(comm, catalogue);
    if (status.code == MDP_OK) status = mdp_agree_all(comm, read_weights(catalogue));
    mdp_catalogue_destroy(catalogue);
    return status;
}

static mdp_status read_tokens_all(const mdp_comm *comm, const char *path) {
    mdp_tokens *tokens = NULL;
    uint32_t ids[9];
    MDP_TRY(mdp_tokens_open_all(comm, path, NULL, 10, &tokens));
    mdp_status status = mdp_agree_all(comm, mdp_tokens_read(tokens, 0, 9, ids));
    mdp_tokens_destroy(tokens);
    return status;
}

typedef mdp_status job_fn(const mdp_comm *comm, const char *path);

static void expect_same_everywhere(const mdp_comm *comm, const mdp_status *status, const char *path,
                                   int64_t operation) {
    mdp_status first = *status;
    MPI_Bcast(&first, (int)sizeof first, MPI_BYTE, 0, comm->world);
    if (first.code == status->code && strcmp(first.text, status->text) == 0) return;
    n_wrong++;
    fprintf(stderr, "checkpoint_faults: rank %d, %s, operation %lld: \"%s\"; rank 0: \"%s\"\n", comm->rank, path,
            (long long)operation, status->text, first.text);
}

/* Operation after operation fails on rank `victim`, and only that one; then nothing fails. */
static void every_fault_ends_in_an_agreed_error(const mdp_comm *comm, job_fn *job, const char *path, int victim) {
    int n_failed = 0;
    for (int64_t operation = 1; operation <= N_OPERATION; operation += operation < 60 ? 1 : 17) {
        /* the period is longer than the job, and shifted so that its end falls on the operation */
        if (comm->rank == victim) mdp_fault_configure(10 * N_OPERATION, (uint64_t)(10 * N_OPERATION - operation));
        mdp_status status = job(comm, path);
        mdp_fault_configure(0, 0);
        expect_same_everywhere(comm, &status, path, operation);
        n_failed += status.code != MDP_OK;
        if (status.code == MDP_BAD_INPUT) { /* the files are whole */
            n_wrong++;
            fprintf(stderr, "checkpoint_faults: %s, operation %lld: \"%s\"\n", path, (long long)operation, status.text);
        }
    }
    mdp_status status = job(comm, path);
    if (status.code != MDP_OK || n_failed < 10) {
        n_wrong++;
        fprintf(stderr, "checkpoint_faults: %s: %d failed, then \"%s\"\n", path, n_failed, status.text);
    }
}

static bool has_faults(void) {
    mdp_fault_configure(1, 0);
    bool failed = mdp_fault(MDP_IO, "try").code != MDP_OK;
    mdp_fault_configure(0, 0);
    return failed;
}

int main(int argc, char **argv) {
    MPI_Init(&argc, &argv);
    mdp_comm *comm = NULL;
    if (mdp_comm_new_all(MPI_COMM_WORLD, &comm).code != MDP_OK) MPI_Abort(MPI_COMM_WORLD, 1);
    bool possible = has_faults();
    /* the last rank everywhere; rank 0, which reads the headers, on one and two ranks */
    for (int victim = comm->size - 1; possible && victim >= 0; victim--) {
        every_fault_ends_in_an_agreed_error(comm, read_checkpoint_all, MDP_TEST_FIXTURES "/checkpoint/sharded", victim);
        every_fault_ends_in_an_agreed_error(comm, read_checkpoint_all, MDP_TEST_FIXTURES "/checkpoint/native.h5",
                                            victim);
        every_fault_ends_in_an_agreed_error(comm, read_tokens_all, MDP_TEST_FIXTURES "/checkpoint/tokens.h5", victim);
        if (comm->size > 2) break;
    }
    MPI_Allreduce(MPI_IN_PLACE, &n_wrong, 1, MPI_INT, MPI_SUM, comm->world);
    if (comm->rank == 0 && possible) printf("checkpoint_faults on %d ranks: %d wrong\n", comm->size, n_wrong);
    if (comm->rank == 0 && !possible)
        printf("checkpoint_faults: skipped, this build has no faults (MDP_DEBUG_HOOKS)\n");
    mdp_comm_destroy_all(comm);
    MPI_Finalize();
    return n_wrong > 0;
}
