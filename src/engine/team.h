/* team.h - the ranks that attend to the packs of a batch together. */
#ifndef MDP_SRC_ENGINE_TEAM_H
#define MDP_SRC_ENGINE_TEAM_H

#include "engine/memory.h"

/* The ranks that attend to the packs of a batch together: one to its own, or all of a node (team.c). */
typedef struct mdp_team {
    const mdp_comm *comm; /* or a layout */
    const mdp_model *model;
    const mdp_partition *partition;
    int64_t batch;
    const int *ranks; /* [n_rank] ascending; borrowed */
    int n_rank;
    int member; /* of this rank, where it is about an engine's */
} mdp_team;

/* The ranks of a node, and one of them alone. Local. */
mdp_team mdp_team_of_node(const mdp_comm *comm, const mdp_model *model, const mdp_partition *partition, int64_t batch,
                          int node);
mdp_team mdp_team_alone(const mdp_team *node, int member);
/* Do the ranks of a node attend together? They do where the busiest would otherwise have much more than the mean. */
bool mdp_team_shares(const mdp_team *node);
/* Packs first .. end-1 that a member holds. */
void mdp_team_packs(const mdp_team *team, int member, int64_t *first, int64_t *end);
/* What all members have together. */
mdp_rank_share mdp_team_total(const mdp_team *team);
/* Bytes that a node's ranks share in any batch; 0: they never attend together. */
int64_t mdp_team_memory(const mdp_comm *comm, const mdp_model *model, const mdp_partition *partition, int node,
                        int n_stream);
/* Memory for the nodes whose ranks attend together in some batch. Collective on the engine's communicator. */
mdp_status mdp_team_prepare_all(mdp_engine *engine);
/* The team of this rank in a batch: alone, where its node has no memory to share. Local. */
mdp_team mdp_team_of_batch(const mdp_engine *engine, int64_t batch);
/* Agree on how a step of a team ended; what its members have written in common is then seen by all of them. Collective
 * on the team. */
mdp_status mdp_team_meet_all(mdp_engine *engine, mdp_status local);

#endif
