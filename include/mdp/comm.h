/* comm.h - ranks: communicator with node structure, agreement on errors, collectives with 64-bit counts, and the
 * bounded exchange of rows. Only the main thread calls anything here. */
#ifndef MDP_COMM_H
#define MDP_COMM_H

#include "mdp/base.h"
#include "mdp/profile.h"

#include <mpi.h>

typedef struct mdp_comm {
    MPI_Comm world;          /* our own duplicate, errors returned */
    int rank, size;          /* in world */
    int node;                /* index of this rank's node, nodes numbered by their lowest rank */
    int n_node;              /* number of nodes */
    int *rank_node;          /* [size] node of each rank */
    int node_rank;           /* position of this rank among its node's ranks, ascending by rank */
    int node_size;           /* ranks on this rank's node */
    int *by_node;            /* [size] the ranks, node after node, ascending within a node */
    int *node_first;         /* [n_node + 1] first place of each node in by_node */
    bool crowded;            /* on some machine threads are more than cores: ranks that wait sleep */
    struct mdp_order *order; /* the collectives called so far (debug builds); NULL: not noted */
    int64_t count_max;       /* largest count handed to one MPI or HDF5 call; MDP_COUNT_MAX lowers it in debug builds */
    int64_t shared_max;      /* most bytes that ranks of a node may share; MDP_SHARED_MAX lowers it in debug builds */
    int64_t *scratch;        /* [MDP_COMM_SCRATCH] what a root adds to a sum, while the sum takes its place; owned */
} mdp_comm;
#define MDP_COMM_SCRATCH 32768 /* numbers */

/* To be called before MPI_Init. Open MPI makes helpers for the shared file pointer, which nothing here uses, of every
 * file that is opened in parallel: a semaphore in /dev/shm, which a killed job leaves taken, so that later jobs wait
 * for ever, or files beside it, and where one rank cannot make its own the others wait for it when they close the file.
 * Shared file pointers are turned off here, unless the user has chosen. */
void mdp_comm_prepare(void);
/* Collective on `base`. Nodes are shared-memory domains, or every MDP_RANKS_PER_NODE=n consecutive ranks. */
mdp_status mdp_comm_new_all(MPI_Comm base, mdp_comm **out);
/* Say how many threads this rank computes with (one, until this is called): where all threads of a machine are more
 * than its cores, ranks that wait sleep. To be called before others are made of `comm`. Collective on `comm`. */
mdp_status mdp_comm_count_threads_all(mdp_comm *comm, int n_thread);
/* Collective on `comm`. NULL is allowed. */
void mdp_comm_destroy_all(mdp_comm *comm);
/* An MPI return code as a status that names `what`. */
mdp_status mdp_mpi_status(int mpi_code, const char *what);

/* Collective on `comm`. Make a local status common: every rank returns the error of the lowest rank whose status is
 * one, text included; MDP_OK when no rank failed. Costs one small Allreduce in the good case. */
mdp_status mdp_agree_all(const mdp_comm *comm, mdp_status local);
/* After a local phase: all ranks leave together when any failed. Analyzers are told that this rank then does. */
#define MDP_AGREE(comm, local)                                                                                         \
    do {                                                                                                               \
        mdp_status mdp_own_ = (local), mdp_agreed_ = mdp_agree_all((comm), mdp_own_);                                  \
        if (mdp_agreed_.code != MDP_OK || mdp_own_.code != MDP_OK) return mdp_agreed_;                                 \
    } while (0)

/* Collectives, int64 counts, split into calls of at most comm->count_max elements. Collective on `comm`. */
mdp_status mdp_bcast_all(const mdp_comm *comm, void *data, int64_t n_byte, int root);
mdp_status mdp_sum_i64_all(const mdp_comm *comm, int64_t *data, int64_t n);                   /* in place, everywhere */
mdp_status mdp_max_i64_all(const mdp_comm *comm, int64_t *data, int64_t n);                   /* in place, everywhere */
mdp_status mdp_sum_i64_to_root_all(const mdp_comm *comm, int64_t *data, int64_t n, int root); /* in place at root */
/* data[i] becomes the sum over lower ranks (0 on rank 0). */
mdp_status mdp_exscan_i64_all(const mdp_comm *comm, int64_t *data, int64_t n);
/* send[q * n + i] goes to rank q's recv[rank * n + i]; both [size * n]. */
mdp_status mdp_alltoall_i64_all(const mdp_comm *comm, const int64_t *send, int64_t *recv, int64_t n);
/* Concatenate every rank's bytes, in rank order, at root. *out (new, at root only; NULL elsewhere) and *n_out. */
mdp_status mdp_gather_bytes_all(const mdp_comm *comm, const void *data, int64_t n_byte, int root, void **out,
                                int64_t *n_out);
/* Root's new-allocated text (n_byte bytes and a 0 byte) becomes a new text on every rank; on root *text is kept. */
mdp_status mdp_bcast_text_all(const mdp_comm *comm, char **text, int64_t *n_byte, int root);

/* ---- memory of a node ---------------------------------------------------------------------------------------- */

/* The ranks of this rank's node, and memory that they all see. */
typedef struct mdp_shared {
    mdp_comm *node; /* a communicator of their own, ranks in the order of the whole; owned */
    int rank;       /* of this rank among all */
    char *memory;   /* [n_byte] of the node; NULL: none */
    int64_t n_byte;
    MPI_Win window; /* what holds it, MPI_WIN_NULL: nothing */
    bool locked;    /* for the time that it lives */
} mdp_shared;

/* The ranks of this rank's node as a communicator of their own. Collective on `comm`; agrees within the node. */
mdp_status mdp_comm_node_all(const mdp_comm *comm, mdp_comm **out);
/* n_byte of memory for the ranks of a node in common: the same number on all of them, 0 where a node needs none. Where
 * it cannot be had (a small /dev/shm), memory stays NULL on that node and *missing is what the lowest such rank says,
 * on every rank of `comm`; MDP_OK: all have it. Contents are not set. Collective on `comm` (agrees). */
mdp_status mdp_shared_new_all(const mdp_comm *comm, int64_t n_byte, mdp_shared **out, mdp_status *missing);
/* Collective on `comm`. NULL is allowed. */
void mdp_shared_destroy_all(mdp_shared *shared);
/* After local work on the memory: agree on its outcome; then each rank sees what the others have written. Collective on
 * the ranks of the node. */
mdp_status mdp_shared_meet_all(const mdp_shared *shared, mdp_status local);

/* Ranks that need not exist: `size` of them, every per_node consecutive ones a node. world is MPI_COMM_NULL, so it is
 * for asking what a layout would do. */
mdp_status mdp_layout_new(int size, int per_node, mdp_comm **out);
void mdp_layout_destroy(mdp_comm *layout); /* NULL is allowed */

/* ---- safe points --------------------------------------------------------------------------------------------- */

/* What a command does at a safe point, where all it has done can be saved. */
typedef enum mdp_verdict { MDP_GO_ON, MDP_SAVE, MDP_STOP } mdp_verdict;

/* When a command saves and when it stops. Rank 0's clock counts. */
typedef struct mdp_watch {
    double start;        /* mdp_seconds() when the command began */
    double max_seconds;  /* from then on; 0: no bound */
    double every;        /* seconds from one resume point to the next */
    int64_t stop_at;     /* stop at the safe point of this number, for tests; 0: at none */
    int64_t n_look;      /* safe points so far */
    double last_save;    /* when something was saved; 0: never */
    double last_look;    /* the last safe point */
    double longest_step; /* seconds between two safe points of the phase */
    double longest_save; /* seconds that saving takes */
    bool save_unknown;   /* how long saving takes in this phase: with a bound it is tried at the first safe point */
    char reason[64];     /* why it stops: "SIGUSR1", "--max-seconds" */
} mdp_watch;

/* Steps of another length begin, whose results take about n_byte (over all ranks; 0: not known) to save. Local, on
 * every rank. */
void mdp_watch_begin_phase(mdp_watch *watch, int64_t n_byte);
/* A safe point after a step: save when that is due; stop when any rank was sent a signal, or when the time left is too
 * short for another step and for saving. Collective on `comm`. */
mdp_status mdp_watch_look_all(const mdp_comm *comm, mdp_watch *watch, mdp_verdict *out);
/* Is it worth saving what a finished phase has made, so that it is not made again? Collective on `comm`. */
mdp_status mdp_watch_worth_all(const mdp_comm *comm, const mdp_watch *watch, double phase_start, bool *out);
/* Saving began at `start` and is done. Local, on every rank. */
void mdp_watch_saved(mdp_watch *watch, double start);

/* ---- row exchange -------------------------------------------------------------------------------------------- */

/* Write rows first .. first+n-1 of the sequence meant for rank `peer` to buffer [n, row_byte]. */
typedef void mdp_pack_fn(void *context, int peer, int64_t first, int64_t n, void *buffer);
/* Take rows first .. first+n-1 of the sequence that came from rank `peer`. */
typedef void mdp_unpack_fn(void *context, int peer, int64_t first, int64_t n, const void *buffer);
/* All n rows of a rank for itself, from where they are to where they belong. */
typedef void mdp_stay_fn(void *context, int64_t n);

typedef struct mdp_exchange_room mdp_exchange_room;

typedef struct mdp_exchange {
    mdp_exchange_room *room;
    int64_t row_byte;      /* bytes of one row, the same on every rank */
    const int64_t *n_send; /* [size] rows for each rank */
    const int64_t *n_recv; /* [size] rows from each rank; n_send of the other side */
    mdp_pack_fn *pack;
    mdp_unpack_fn *unpack;
    mdp_stay_fn *stay; /* NULL: rows of a rank for itself are packed and unpacked */
    void *context;
} mdp_exchange;

#define MDP_EXCHANGE_SLOTS 2 /* pieces in flight in each direction */
#define MDP_EXCHANGE_QUEUE 4 /* exchanges begun between two calls that finish, at most */

/* How far the pieces of an exchange have come. */
typedef struct mdp_exchange_cursor {
    int distance;     /* of the rank at hand */
    int64_t first;    /* its first row that is not passed */
    int64_t n_passed; /* pieces */
} mdp_exchange_cursor;

/* Buffers for exchanges, kept from one to the next, what is under way through them, and a count of what went. */
struct mdp_exchange_room {
    char *memory;      /* four pieces: two that come, two that go */
    int64_t slot_byte; /* most bytes of a piece of more than one row, the same on every rank */
    int64_t row_byte;  /* longest row */
    int64_t node_byte; /* sent so far to other ranks of this node */
    int64_t away_byte; /* and to other nodes */
    double waited;     /* seconds so far with nothing to move */
    mdp_exchange queue[MDP_EXCHANGE_QUEUE];
    int n_begun, n_done;                         /* since the last finish; the one after the done ones is on its way */
    mdp_exchange_cursor sent, posted, taken;     /* of that one */
    MPI_Request request[2 * MDP_EXCHANGE_SLOTS]; /* of the buffers */
    mdp_status failed;                           /* of MPI, while nobody was there to be told */
};

/* n_byte of memory for rows of at most row_byte bytes each: pieces have at most n_byte / 4 and comm->count_max bytes
 * (the smallest of any rank; one row at least). Collective on `comm` (agrees). */
mdp_status mdp_exchange_room_new_all(const mdp_comm *comm, int64_t n_byte, int64_t row_byte, mdp_exchange_room **out);
void mdp_exchange_room_destroy(mdp_exchange_room *room); /* NULL is allowed */

/* Begin an exchange: it travels after those begun before, while ranks look after it. Pairwise, peer after peer at
 * growing distance (rank itself first, without MPI), each pair in pieces that fit in the room, two in flight in each
 * direction. Memory does not depend on the number of ranks. Sequence order is kept. `exchange` is copied; what it
 * points to must stay until it is over. Nothing local can fail, so there is nothing to agree on; in debug builds counts
 * or rows that do not match are an error on all ranks before any row moves. Collective on `comm`, without waiting for
 * other ranks. */
mdp_status mdp_exchange_begin_all(const mdp_comm *comm, const mdp_exchange *exchange);
/* Move what can be moved at once: packs, sends, receives and unpacks. Local. */
void mdp_exchange_look(const mdp_comm *comm, mdp_exchange_room *room);
/* Wait for the end of all that was begun. Other ranks need not have got as far, as long as they look. Collective on
 * `comm`. */
mdp_status mdp_exchange_finish_all(const mdp_comm *comm, mdp_exchange_room *room);
/* Begin and finish. Collective on `comm`. */
mdp_status mdp_exchange_all(const mdp_comm *comm, const mdp_exchange *exchange);
/* The same three, with bytes sent and the time of waiting told to a profile (may be NULL). Collective on `comm`. */
mdp_status mdp_exchange_begin_told_all(const mdp_comm *comm, const mdp_exchange *exchange, mdp_profile *profile);
mdp_status mdp_exchange_finish_told_all(const mdp_comm *comm, mdp_exchange_room *room, mdp_profile *profile);
mdp_status mdp_exchange_told_all(const mdp_comm *comm, const mdp_exchange *exchange, mdp_profile *profile);

#endif
