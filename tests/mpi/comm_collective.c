/* Collectives with 64-bit counts against sums and copies computed on each rank alone, with pieces of every size. */
#include "mpi_check.h"

#include <string.h>

enum { SEED = 11 };

/* What rank r holds at place i in test `salt`: any rank can compute any rank's data. */
static int64_t value_of(int rank, int64_t i, int salt) {
    return (int64_t)(mdp_random_bits(SEED + (uint64_t)salt, (uint64_t)rank, (uint64_t)i) >> 10) - (INT64_C(1) << 53);
}

static int64_t *filled(const mdp_comm *comm, int64_t n, int salt) {
    int64_t *data;
    CHECK_OK(MDP_ALLOC(&data, n, "data"));
    for (int64_t i = 0; i < n; i++) data[i] = value_of(comm->rank, i, salt);
    return data;
}

static void reductions_equal_local_ones(const mdp_comm *comm, int64_t n) {
    int root = (int)(n % comm->size);
    int64_t *sum = filled(comm, n, 1), *max = filled(comm, n, 1), *at_root = filled(comm, n, 1);
    int64_t *below = filled(comm, n, 1);
    CHECK_OK(mdp_sum_i64_all(comm, sum, n));
    CHECK_OK(mdp_max_i64_all(comm, max, n));
    CHECK_OK(mdp_sum_i64_to_root_all(comm, at_root, n, root));
    CHECK_OK(mdp_exscan_i64_all(comm, below, n));
    for (int64_t i = 0; i < n; i++) {
        int64_t total = 0, largest = INT64_MIN, lower = 0;
        for (int r = 0; r < comm->size; r++) {
            int64_t value = value_of(r, i, 1);
            total += value;
            if (value > largest) largest = value;
            if (r < comm->rank) lower += value;
        }
        CHECK(sum[i] == total);
        CHECK(max[i] == largest);
        CHECK(at_root[i] == (comm->rank == root ? total : value_of(comm->rank, i, 1)));
        CHECK(below[i] == lower);
    }
    mdp_free(sum);
    mdp_free(max);
    mdp_free(at_root);
    mdp_free(below);
}

static void alltoall_puts_each_part_in_its_place(const mdp_comm *comm, int64_t n) {
    int64_t *send = filled(comm, comm->size * n, 2), *recv = filled(comm, comm->size * n, 3);
    CHECK_OK(mdp_alltoall_i64_all(comm, send, recv, n));
    for (int r = 0; r < comm->size; r++)
        for (int64_t i = 0; i < n; i++) CHECK(recv[r * n + i] == value_of(r, comm->rank * n + i, 2));
    mdp_free(send);
    mdp_free(recv);
}

static void broadcast_gives_the_roots_bytes(const mdp_comm *comm, int64_t n) {
    for (int root = 0; root < comm->size; root++) {
        int64_t *data = filled(comm, n, 4);
        CHECK_OK(mdp_bcast_all(comm, data, n * (int64_t)sizeof *data, root));
        for (int64_t i = 0; i < n; i++) CHECK(data[i] == value_of(root, i, 4));
        mdp_free(data);
    }
}

/* Rank r gives r * 5 mod 13 times n bytes: some ranks give nothing. */
static int64_t part_of(int rank, int64_t n) {
    return rank * 5 % 13 * n;
}

static unsigned char byte_of(int rank, int64_t i) {
    return (unsigned char)value_of(rank, i, 5);
}

static void gathering_concatenates_in_rank_order(const mdp_comm *comm, int64_t n) {
    int root = (int)((n + 1) % comm->size);
    unsigned char *part, *all;
    int64_t mine = part_of(comm->rank, n), n_all = -1;
    CHECK_OK(MDP_ALLOC(&part, mine, "part"));
    for (int64_t i = 0; i < mine; i++) part[i] = byte_of(comm->rank, i);
    CHECK_OK(mdp_gather_bytes_all(comm, mine ? part : NULL, mine, root, (void **)&all, &n_all));
    if (comm->rank == root) {
        int64_t at = 0;
        for (int r = 0; r < comm->size; r++)
            for (int64_t i = 0; i < part_of(r, n); i++, at++) CHECK(at < n_all && all[at] == byte_of(r, i));
        CHECK(at == n_all);
        CHECK(all[n_all] == 0);
    } else {
        CHECK(all == NULL && n_all == 0);
    }
    mdp_free(all);
    mdp_free(part);
}

static void a_text_reaches_every_rank(const mdp_comm *comm, const char *original, int root) {
    char *text = NULL;
    int64_t n_byte = -1;
    if (comm->rank == root) {
        CHECK_OK(mdp_copy_text(&text, original));
        n_byte = (int64_t)strlen(original);
    }
    char *before = text;
    CHECK_OK(mdp_bcast_text_all(comm, &text, &n_byte, root));
    CHECK(strcmp(text, original) == 0);
    CHECK(n_byte == (int64_t)strlen(original));
    CHECK(comm->rank != root || text == before);
    mdp_free(text);
}

#ifdef MDP_DEBUG_HOOKS
/* One rank fails at each of its allocations: the error is common, and nothing is left to wait for. */
static void a_failed_allocation_is_common(const mdp_comm *comm, int failing) {
    for (int operation = 1; operation <= 2; operation++) {
        char *text = NULL;
        int64_t n_byte = 3, n_all;
        void *all;
        if (comm->rank == 0) CHECK_OK(mdp_copy_text(&text, "abc"));
        mdp_fault_configure(comm->rank == failing ? 100 : 0, (uint64_t)(100 - operation));
        mdp_status status = mdp_gather_bytes_all(comm, "x", 1, 0, &all, &n_all);
        mdp_fault_configure(0, 0);
        CHECK((status.code == MDP_OK) == (failing != 0)); /* only the root allocates, twice */
        mdp_free(all);
        mdp_fault_configure(comm->rank == failing ? 100 : 0, (uint64_t)(100 - operation));
        status = mdp_bcast_text_all(comm, &text, &n_byte, 0);
        mdp_fault_configure(0, 0);
        CHECK((status.code == MDP_OK) == (failing == 0 || operation == 2));
        CHECK(comm->rank != 0 || strcmp(text, "abc") == 0);
        CHECK(status.code == MDP_OK || comm->rank == 0 || text == NULL);
        mdp_free(text);
    }
}
#endif

int main(int argc, char **argv) {
    MPI_Init(&argc, &argv);
    mdp_comm *comm;
    CHECK_OK(mdp_comm_new_all(MPI_COMM_WORLD, &comm));
    const int64_t limit[] = {1, 2, 7, 64, INT64_C(1) << 28}, length[] = {0, 1, 2, 13, 64, 130};
    for (size_t l = 0; l < sizeof limit / sizeof *limit; l++) {
        comm->count_max = limit[l];
        for (size_t n = 0; n < sizeof length / sizeof *length; n++) {
            reductions_equal_local_ones(comm, length[n]);
            alltoall_puts_each_part_in_its_place(comm, length[n]);
            broadcast_gives_the_roots_bytes(comm, length[n] % 20);
            gathering_concatenates_in_rank_order(comm, length[n]);
        }
        for (int root = 0; root < comm->size; root++) {
            a_text_reaches_every_rank(comm, "a sentence of some length", root);
            a_text_reaches_every_rank(comm, "", root);
        }
    }
    for (int n = 0; n < comm->size; n++) reductions_equal_local_ones(comm, 3000 + n); /* every rank is root */
    reductions_equal_local_ones(comm, 2 * MDP_COMM_SCRATCH + 3);
#ifdef MDP_DEBUG_HOOKS
    for (int failing = 0; failing < comm->size; failing++) a_failed_allocation_is_common(comm, failing);
#endif
    mdp_comm_destroy_all(comm);
    return check_end_all("comm_collective");
}
