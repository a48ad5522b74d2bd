/* traffic.h - what dispatch sends between ranks, foretold. */
#ifndef MDP_SRC_ENGINE_TRAFFIC_H
#define MDP_SRC_ENGINE_TRAFFIC_H

#include "engine/placement.h"
#include "engine/roster.h"

/* A wave whose rows are to be sent; all borrowed. */
typedef struct mdp_traffic {
    const mdp_comm *layout;
    const mdp_model *model;
    const mdp_partition *partition;
    int64_t batch;
    const mdp_placement *placement;
    const int64_t *rows;                 /* [n_branch, n_block, n_expert] what the placement was made of */
    const mdp_layer_view *views;         /* [n_branch] */
    const mdp_roster *roster;            /* of these views */
    int kept;                            /* the branch whose activations come back; -1: none */
    int32_t n_group, n_open, group_size; /* of the router's rule */
} mdp_traffic;

/* Add what each rank of the layout sends of token rows, notes and outputs: bytes_sent and bytes_away of sent [size].
 * Experts of each token are drawn by lot. Local. */
mdp_status mdp_traffic_add(const mdp_traffic *traffic, mdp_rank_cost *sent);

#endif
