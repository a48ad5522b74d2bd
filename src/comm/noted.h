/* noted.h - in debug builds every call of a collective notes its place, so that ranks that go apart can say where.
 *
 * There cmake/MdpCompiler.cmake includes this before every file of ours: no call can be forgotten, and the headers that
 * are installed are those of every build. The collectives themselves (MDP_COMM_PLAIN) call each other unnoted. */
#ifndef MDP_COMM_NOTED_H
#define MDP_COMM_NOTED_H

#include "mdp/comm.h"

/* Note that this rank is at file:line, and compare with the others. Ranks that went apart end with a sentence that
 * names both places, instead of waiting for each other. mdp_order_note leaves the comparing to the agreement that
 * follows. Collective on `comm`; both return `comm`. */
const mdp_comm *mdp_order_all(const mdp_comm *comm, const char *file, int line);
const mdp_comm *mdp_order_note(const mdp_comm *comm, const char *file, int line);

/* Before a collective of another library, such as HDF5's. Collective on `comm`. */
#ifdef MDP_DEBUG_HOOKS
#define MDP_ORDER(comm) ((void)mdp_order_all((comm), __FILE__, __LINE__))
#else
#define MDP_ORDER(comm) ((void)0)
#endif

#ifdef MDP_DEBUG_HOOKS
#define mdp_agree_all(comm, ...) (mdp_agree_all)(mdp_order_note((comm), __FILE__, __LINE__), __VA_ARGS__)
#define mdp_bcast_all(comm, ...) (mdp_bcast_all)(mdp_order_all((comm), __FILE__, __LINE__), __VA_ARGS__)
#define mdp_sum_i64_all(comm, ...) (mdp_sum_i64_all)(mdp_order_all((comm), __FILE__, __LINE__), __VA_ARGS__)
#define mdp_max_i64_all(comm, ...) (mdp_max_i64_all)(mdp_order_all((comm), __FILE__, __LINE__), __VA_ARGS__)
#define mdp_sum_i64_to_root_all(comm, ...)                                                                             \
    (mdp_sum_i64_to_root_all)(mdp_order_all((comm), __FILE__, __LINE__), __VA_ARGS__)
#define mdp_exscan_i64_all(comm, ...) (mdp_exscan_i64_all)(mdp_order_all((comm), __FILE__, __LINE__), __VA_ARGS__)
#define mdp_alltoall_i64_all(comm, ...) (mdp_alltoall_i64_all)(mdp_order_all((comm), __FILE__, __LINE__), __VA_ARGS__)
#define mdp_gather_bytes_all(comm, ...) (mdp_gather_bytes_all)(mdp_order_all((comm), __FILE__, __LINE__), __VA_ARGS__)
#define mdp_bcast_text_all(comm, ...) (mdp_bcast_text_all)(mdp_order_all((comm), __FILE__, __LINE__), __VA_ARGS__)
#define mdp_exchange_room_new_all(comm, ...)                                                                           \
    (mdp_exchange_room_new_all)(mdp_order_all((comm), __FILE__, __LINE__), __VA_ARGS__)
#define mdp_exchange_begin_all(comm, ...)                                                                              \
    (mdp_exchange_begin_all)(mdp_order_all((comm), __FILE__, __LINE__), __VA_ARGS__)
#define mdp_exchange_finish_all(comm, ...)                                                                             \
    (mdp_exchange_finish_all)(mdp_order_note((comm), __FILE__, __LINE__), __VA_ARGS__)
#define mdp_exchange_all(comm, ...) (mdp_exchange_all)(mdp_order_all((comm), __FILE__, __LINE__), __VA_ARGS__)
#endif

#endif

#ifdef MDP_COMM_PLAIN
#undef mdp_agree_all
#undef mdp_bcast_all
#undef mdp_sum_i64_all
#undef mdp_max_i64_all
#undef mdp_sum_i64_to_root_all
#undef mdp_exscan_i64_all
#undef mdp_alltoall_i64_all
#undef mdp_gather_bytes_all
#undef mdp_bcast_text_all
#undef mdp_exchange_room_new_all
#undef mdp_exchange_begin_all
#undef mdp_exchange_finish_all
#undef mdp_exchange_all
#endif
