/* order.h - the order of collectives, compared between ranks while it can still be told: private to src/comm. */
#ifndef MDP_COMM_ORDER_H
#define MDP_COMM_ORDER_H

#include "mdp/comm.h"

/* A new record of no calls. */
mdp_status mdp_order_new(struct mdp_order **out);
void mdp_order_destroy(struct mdp_order *order); /* NULL is allowed */
/* The calls noted so far, as one number; 0 without any. */
int64_t mdp_order_value(const mdp_comm *comm);
/* Collective on `comm`: the ranks are known to have gone apart. One says where two of them are, and all end. */
void mdp_order_abort_all(const mdp_comm *comm);

#endif
