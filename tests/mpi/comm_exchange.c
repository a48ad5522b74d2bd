/* The exchange of rows, as a property: whatever the counts (random, none, all to one), the length of a row, the memory
 * and the largest count, every rank gets every other's sequence, complete, in order, byte for byte. Every byte's value
 * follows from (sender, receiver, row, place), so each rank can check alone. */
#include "mpi_check.h"

#include <string.h>

typedef struct trial {
    int rank, size;
    uint64_t seed;
    int64_t row_byte, most; /* rows of one sequence: 0 .. most */
    int pattern;            /* 0 random, 1 often none, 2 all to rank 0, 3 from the last rank only, 4 nothing */
    int64_t *n_send, *n_recv;
    int64_t *packed, *unpacked; /* [size] rows seen so far: the sequences must be walked in order */
    int64_t largest_piece;      /* rows */
    const struct trial *before; /* the exchange that was begun before this one; NULL: none */
} trial;

static int64_t rows_between(const trial *t, int from, int to) {
    uint64_t bits = mdp_random_bits(t->seed, (uint64_t)from, (uint64_t)to);
    int64_t n = (int64_t)(bits % (uint64_t)(t->most + 1));
    switch (t->pattern) {
    case 0:
        return n;
    case 1:
        return bits >> 40 & 3 ? 0 : n;
    case 2:
        return to == 0 ? n : 0;
    case 3:
        return from == t->size - 1 ? n : 0;
    default:
        return 0;
    }
}

static unsigned char byte_of(const trial *t, int from, int to, int64_t row, int64_t place) {
    return (unsigned char)mdp_random_bits(t->seed + 1, (uint64_t)(from * 64 + to),
                                          (uint64_t)(row * t->row_byte + place));
}

static bool is_over(const trial *t) {
    for (int r = 0; r < t->size; r++)
        if (t->packed[r] < t->n_send[r] || t->unpacked[r] < t->n_recv[r]) return false;
    return true;
}

static void pack(void *context, int peer, int64_t first, int64_t n, void *buffer) {
    trial *t = context;
    unsigned char *bytes = buffer;
    CHECK(first == t->packed[peer] && n > 0 && first + n <= t->n_send[peer]);
    CHECK((uintptr_t)buffer % 64 == 0);
    CHECK(!t->before || is_over(t->before));
    t->packed[peer] += n;
    if (n > t->largest_piece) t->largest_piece = n;
    for (int64_t i = 0; i < n; i++)
        for (int64_t k = 0; k < t->row_byte; k++) bytes[i * t->row_byte + k] = byte_of(t, t->rank, peer, first + i, k);
}

static void unpack(void *context, int peer, int64_t first, int64_t n, const void *buffer) {
    trial *t = context;
    const unsigned char *bytes = buffer;
    CHECK(first == t->unpacked[peer] && n > 0 && first + n <= t->n_recv[peer]);
    CHECK(!t->before || is_over(t->before));
    t->unpacked[peer] += n;
    bool same = true;
    for (int64_t i = 0; i < n; i++)
        for (int64_t k = 0; k < t->row_byte; k++)
            same = same && bytes[i * t->row_byte + k] == byte_of(t, peer, t->rank, first + i, k);
    CHECK(same);
}

static void new_trial(trial *t, const mdp_comm *comm) {
    t->rank = comm->rank;
    t->size = comm->size;
    t->largest_piece = 0;
    CHECK_OK(MDP_ALLOC(&t->n_send, 4 * comm->size, "counts"));
    t->n_recv = t->n_send + comm->size;
    t->packed = t->n_recv + comm->size;
    t->unpacked = t->packed + comm->size;
    for (int r = 0; r < comm->size; r++) {
        t->n_send[r] = rows_between(t, comm->rank, r);
        t->n_recv[r] = rows_between(t, r, comm->rank);
    }
}

static mdp_exchange exchange_of(trial *t, mdp_exchange_room *room) {
    mdp_exchange exchange = {.room = room,
                             .row_byte = t->row_byte,
                             .n_send = t->n_send,
                             .n_recv = t->n_recv,
                             .pack = pack,
                             .unpack = unpack,
                             .context = t};
    return exchange;
}

static void every_row_arrives_in_order(mdp_comm *comm, trial t, int64_t buffer_byte) {
    int64_t away = 0;
    mdp_exchange_room *room = NULL;
    new_trial(&t, comm);
    CHECK_OK(mdp_exchange_room_new_all(comm, buffer_byte, t.row_byte + (int64_t)(t.seed % 3), &room));
    mdp_exchange exchange = exchange_of(&t, room);
    CHECK_OK(mdp_exchange_all(comm, &exchange));
    for (int r = 0; r < comm->size; r++) {
        CHECK(t.packed[r] == t.n_send[r] && t.unpacked[r] == t.n_recv[r]);
        if (r != comm->rank) away += t.n_send[r] * t.row_byte;
    }
    CHECK(room->node_byte + room->away_byte == away);
    mdp_exchange_room_destroy(room);
    int64_t most_byte = buffer_byte / 4 < comm->count_max ? buffer_byte / 4 : comm->count_max;
    CHECK(t.largest_piece <= 1 || t.largest_piece * t.row_byte <= most_byte);
    mdp_free(t.n_send);
}

static void random_trials(mdp_comm *comm) {
    const int64_t row_byte[] = {1, 3, 8, 100, 4096}, limit[] = {1, 17, 1000, INT64_C(1) << 28};
    for (uint64_t seed = 0; seed < 120; seed++) {
        uint64_t bits = mdp_random_bits(99, 0, seed);
        trial t = {.seed = seed * 3, .pattern = (int)(bits % 5), .most = (int64_t)(bits >> 8 & 63)};
        t.row_byte = row_byte[(bits >> 16) % 5];
        comm->count_max = limit[(bits >> 24) % 4];
        int64_t buffer_byte = (int64_t)((bits >> 32) % 3 == 0 ? 0 : (bits >> 34) % 20000);
        every_row_arrives_in_order(comm, t, buffer_byte);
    }
    comm->count_max = INT64_C(1) << 28;
}

/* Messages beyond what MPI sends at once without a handshake, with ranks that are busy at different times. */
static void long_sequences(mdp_comm *comm) {
    trial t = {.seed = 5, .pattern = 0, .most = 600, .row_byte = 1000};
    every_row_arrives_in_order(comm, t, 400000);
    t.pattern = 2;
    every_row_arrives_in_order(comm, t, 4000);
    t.pattern = 3;
    every_row_arrives_in_order(comm, t, 100000000);
}

/* Ranks with different memory use the smallest piece. */
static void memory_may_differ_between_ranks(mdp_comm *comm) {
    trial t = {.seed = 8, .pattern = 0, .most = 50, .row_byte = 16};
    every_row_arrives_in_order(comm, t, 640 * (1 + comm->rank));
}

/* A room is used again and again, for rows of any length up to its own. */
static void a_room_serves_many_exchanges(mdp_comm *comm) {
    mdp_exchange_room *room = NULL;
    CHECK_OK(mdp_exchange_room_new_all(comm, 5000, 300, &room));
    for (int i = 0; i < 20; i++) {
        trial t = {.seed = 40 + (uint64_t)i, .pattern = i % 5, .most = 30, .row_byte = 1 + 15 * i};
        new_trial(&t, comm);
        mdp_exchange exchange = exchange_of(&t, room);
        CHECK_OK(mdp_exchange_all(comm, &exchange));
        for (int r = 0; r < comm->size; r++) CHECK(t.packed[r] == t.n_send[r] && t.unpacked[r] == t.n_recv[r]);
        mdp_free(t.n_send);
    }
    mdp_exchange_room_destroy(room);
}

/* As many at a time as there may be, one after the other, while every rank looks as often as it likes, or not at all,
 * before it waits. */
static void exchanges_travel_while_ranks_look(mdp_comm *comm) {
    const int64_t row_byte[MDP_EXCHANGE_QUEUE] = {24, 300, 7, 160};
    mdp_exchange_room *room = NULL;
    CHECK_OK(mdp_exchange_room_new_all(comm, 5000, 300, &room));
    for (uint64_t seed = 0; seed < 30; seed++) {
        trial t[MDP_EXCHANGE_QUEUE];
        for (int i = 0; i < MDP_EXCHANGE_QUEUE; i++) {
            t[i] = (trial){.seed = 200 + MDP_EXCHANGE_QUEUE * seed + (uint64_t)i,
                           .pattern = (int)((seed + (uint64_t)i) % 5),
                           .most = 40,
                           .row_byte = row_byte[i],
                           .before = i > 0 ? &t[i - 1] : NULL};
            new_trial(&t[i], comm);
            mdp_exchange exchange = exchange_of(&t[i], room);
            CHECK_OK(mdp_exchange_begin_all(comm, &exchange));
        }
        for (uint64_t look = mdp_random_bits(7, seed, (uint64_t)comm->rank) % 20; look > 0; look--)
            mdp_exchange_look(comm, room);
        CHECK_OK(mdp_exchange_finish_all(comm, room));
        for (int i = 0; i < MDP_EXCHANGE_QUEUE; i++) {
            CHECK(is_over(&t[i]));
            mdp_free(t[i].n_send);
        }
    }
    mdp_exchange_room_destroy(room);
}

/* Looking is enough: nobody waits, and all arrives. */
static void looks_alone_bring_an_exchange_to_its_end(mdp_comm *comm) {
    mdp_exchange_room *room = NULL;
    trial t = {.seed = 77, .most = 300, .row_byte = 100};
    CHECK_OK(mdp_exchange_room_new_all(comm, 4000, t.row_byte, &room));
    new_trial(&t, comm);
    mdp_exchange exchange = exchange_of(&t, room);
    CHECK_OK(mdp_exchange_begin_all(comm, &exchange));
    while (room->n_done < room->n_begun) mdp_exchange_look(comm, room);
    CHECK(is_over(&t));
    CHECK_OK(mdp_exchange_finish_all(comm, room));
    mdp_exchange_room_destroy(room);
    mdp_free(t.n_send);
}

/* An error on all ranks, with nothing left under way. */
static void no_more_than_fit_are_begun(mdp_comm *comm) {
    mdp_exchange_room *room = NULL;
    trial t[MDP_EXCHANGE_QUEUE + 1];
    CHECK_OK(mdp_exchange_room_new_all(comm, 5000, 16, &room));
    for (int i = 0; i <= MDP_EXCHANGE_QUEUE; i++) {
        t[i] = (trial){.seed = 90 + (uint64_t)i, .most = 30, .row_byte = 16};
        new_trial(&t[i], comm);
        mdp_exchange exchange = exchange_of(&t[i], room);
        mdp_status status = mdp_exchange_begin_all(comm, &exchange);
        CHECK(status.code == (i < MDP_EXCHANGE_QUEUE ? MDP_OK : MDP_INTERNAL));
    }
    CHECK(is_over(&t[MDP_EXCHANGE_QUEUE - 1]) && room->n_begun == 0);
    for (int i = 0; i <= MDP_EXCHANGE_QUEUE; i++) mdp_free(t[i].n_send);
    mdp_exchange_room_destroy(room);
}

#ifdef MDP_DEBUG_HOOKS
/* Room for all or for none. */
static void a_rank_without_memory_stops_all(mdp_comm *comm) {
    for (int failing = 0; failing < comm->size; failing++) {
        for (int operation = 1; operation <= 3; operation++) {
            mdp_exchange_room *room = NULL;
            mdp_fault_configure(comm->rank == failing ? 100 : 0, (uint64_t)(100 - operation));
            mdp_status status = mdp_exchange_room_new_all(comm, 1000, 16, &room);
            mdp_fault_configure(0, 0);
            CHECK((status.code == MDP_OK) == (operation == 3)); /* the room, its memory */
            CHECK(status.code == MDP_OK ? room != NULL : status.rank == failing && !room);
            mdp_exchange_room_destroy(room);
        }
    }
}

static void what_does_not_match_is_an_error_not_a_hang(mdp_comm *comm) {
    mdp_exchange_room *room = NULL;
    CHECK_OK(mdp_exchange_room_new_all(comm, 1000, 16, &room));
    trial t = {.seed = 12, .pattern = 0, .most = 20, .row_byte = 16};
    new_trial(&t, comm);
    if (comm->rank == comm->size - 1) t.n_recv[0]++;
    mdp_exchange exchange = exchange_of(&t, room);
    mdp_status status = mdp_exchange_all(comm, &exchange);
    CHECK(status.code == MDP_INTERNAL && status.rank == comm->size - 1);
    CHECK(strstr(status.text, "exchange of rows: rank 0 sends") != NULL);
    if (comm->rank == comm->size - 1) {
        t.n_recv[0]--;
        exchange.row_byte = 17;
    }
    status = mdp_exchange_all(comm, &exchange);
    CHECK(status.code == MDP_INTERNAL && strstr(status.text, " has rows of ") != NULL);
    CHECK(t.largest_piece == 0);
    mdp_free(t.n_send);
    mdp_exchange_room_destroy(room);
}
#endif

int main(int argc, char **argv) {
    MPI_Init(&argc, &argv);
    mdp_comm *comm;
    CHECK_OK(mdp_comm_new_all(MPI_COMM_WORLD, &comm));
    random_trials(comm);
    long_sequences(comm);
    memory_may_differ_between_ranks(comm);
    a_room_serves_many_exchanges(comm);
    exchanges_travel_while_ranks_look(comm);
    looks_alone_bring_an_exchange_to_its_end(comm);
    no_more_than_fit_are_begun(comm);
#ifdef MDP_DEBUG_HOOKS
    a_rank_without_memory_stops_all(comm);
    what_does_not_match_is_an_error_not_a_hang(comm);
#endif
    mdp_comm_destroy_all(comm);
    return check_end_all("comm_exchange");
}
