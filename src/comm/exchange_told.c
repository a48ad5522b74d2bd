/* exchange_told.c - exchanges of rows as a profile sees them: bytes sent, and the time in which nothing moved. */
#include "mdp/comm.h"

mdp_status mdp_exchange_begin_told_all(const mdp_comm *comm, const mdp_exchange *exchange, mdp_profile *profile) {
    int64_t node = exchange->room->node_byte, away = exchange->room->away_byte;
    MDP_TRY(mdp_exchange_begin_all(comm, exchange));
    node = exchange->room->node_byte - node;
    away = exchange->room->away_byte - away;
    mdp_profile_sent(profile, node + away, away);
    return mdp_ok();
}

mdp_status mdp_exchange_finish_told_all(const mdp_comm *comm, mdp_exchange_room *room, mdp_profile *profile) {
    double waited = room->waited;
    mdp_status status = mdp_exchange_finish_all(comm, room);
    mdp_profile_shift(profile, MDP_PHASE_WAIT_RANKS, room->waited - waited);
    return status;
}

mdp_status mdp_exchange_told_all(const mdp_comm *comm, const mdp_exchange *exchange, mdp_profile *profile) {
    MDP_TRY(mdp_exchange_begin_told_all(comm, exchange, profile));
    return mdp_exchange_finish_told_all(comm, exchange->room, profile);
}
