/* team.c - the ranks that attend together, and the memory that they do it in.
 *
 * A rank attends to its own packs. Where that would let ranks of a node wait for one of them, because the packs of a
 * batch are few or one text is long, all of them attend to all packs of the node: rows lie in memory that they share,
 * and each computes its run of the items (deal.c) that one rank would compute alone, in the same way. Every rank knows
 * the packs of all, so nothing is said about it. The memory is made once for a pass, as large as any batch needs. */
#include "engine/attention.h"

/* Ranks attend together where the busiest alone would have more than this many hundredths of the mean. Meeting cost two
 * ranks about a hundredth of attention with their waits (doc/engine.md). */
#define TOGETHER_PERCENT 110

mdp_team mdp_team_of_node(const mdp_comm *comm, const mdp_model *model, const mdp_partition *partition, int64_t batch,
                          int node) {
    return (mdp_team){.comm = comm,
                      .model = model,
                      .partition = partition,
                      .batch = batch,
                      .ranks = comm->by_node + comm->node_first[node],
                      .n_rank = comm->node_first[node + 1] - comm->node_first[node]};
}

mdp_team mdp_team_alone(const mdp_team *node, int member) {
    mdp_team team = *node;
    team.ranks = node->ranks + member;
    team.n_rank = 1;
    team.member = 0;
    return team;
}

void mdp_team_packs(const mdp_team *team, int member, int64_t *first, int64_t *end) {
    mdp_partition_share(team->partition, team->batch, team->ranks[member], team->comm->size, first, end);
}

/* Operations of attention over all layers: of a token, and of two that see each other. About: where a window bounds
 * what a token sees, that is left out. */
static void find_costs(const mdp_model *model, double *token, double *pair) {
    *token = *pair = 0.0;
    for (int64_t l = 0; l < model->n_layer; l++) {
        const mdp_attention *attention = &model->layers[l].attention;
        const mdp_matrix *matrices[MDP_N_PROJECTION];
        mdp_attention_projections(attention, matrices);
        for (int i = 0; i < MDP_N_PROJECTION; i++)
            if (matrices[i]->tensor) *token += 2.0 * (double)(matrices[i]->n_row * matrices[i]->n_col);
        if (attention->window == 0 && attention->chunk == 0 && !attention->delta.kernel.tensor)
            *pair += 2.0 * (double)(model->n_head * (model->head_dim + mdp_head_values(model)));
    }
}

bool mdp_team_shares(const mdp_team *node) {
    double token, pair, total = 0.0, most = 0.0;
    find_costs(node->model, &token, &pair);
    for (int i = 0; i < node->n_rank; i++) {
        int64_t first, end;
        double own = 0.0;
        mdp_team_packs(node, i, &first, &end);
        for (const mdp_pack *pack = node->partition->packs + first; pack < node->partition->packs + end; pack++)
            own += token * (double)pack->n_token + pair * (double)pack->n_pair;
        total += own;
        if (own > most) most = own;
    }
    return most * node->n_rank > 0.01 * TOGETHER_PERCENT * total;
}

mdp_rank_share mdp_team_total(const mdp_team *team) {
    mdp_rank_share total = {.n_rank = team->n_rank};
    for (int i = 0; i < team->n_rank; i++) {
        int64_t first, end;
        mdp_team_packs(team, i, &first, &end);
        for (const mdp_pack *pack = team->partition->packs + first; pack < team->partition->packs + end; pack++) {
            total.n_token += pack->n_token;
            total.n_sequence += pack->n_sequence;
            total.n_tile += (pack->n_token + MDP_TILE_ROWS - 1) / MDP_TILE_ROWS;
            if (pack->n_token > total.longest_pack) total.longest_pack = pack->n_token;
        }
    }
    return total;
}

int64_t mdp_team_memory(const mdp_comm *comm, const mdp_model *model, const mdp_partition *partition, int node,
                        int n_stream) {
    int64_t most = 0;
    for (int64_t batch = 0; batch < partition->n_batch; batch++) {
        const mdp_team team = mdp_team_of_node(comm, model, partition, batch, node);
        if (!mdp_team_shares(&team)) continue;
        const mdp_rank_share total = mdp_team_total(&team);
        int64_t n_byte = mdp_attention_row_bytes(model, &total, n_stream);
        if (n_byte > most) most = n_byte;
    }
    return most;
}

mdp_status mdp_team_prepare_all(mdp_engine *engine) {
    const mdp_comm *comm = engine->comm;
    int64_t own = 0, most = 0;
    for (int node = 0; node < comm->n_node; node++) {
        int64_t n_byte = mdp_team_memory(comm, engine->model, engine->partition, node, engine->n_stream);
        if (node == comm->node) own = n_byte;
        if (n_byte > most) most = n_byte;
    }
    return most > 0 ? mdp_shared_new_all(comm, own, &engine->shared, &engine->unshared) : mdp_ok();
}

mdp_team mdp_team_of_batch(const mdp_engine *engine, int64_t batch) {
    mdp_team node = mdp_team_of_node(engine->comm, engine->model, engine->partition, batch, engine->comm->node);
    node.member = engine->comm->node_rank;
    if (engine->shared && engine->shared->memory && mdp_team_shares(&node)) return node;
    return mdp_team_alone(&node, node.member);
}

mdp_status mdp_team_meet_all(mdp_engine *engine, mdp_status local) {
    if (engine->team.n_rank == 1) return local;
    mdp_phase before = mdp_profile_switch(engine->profile, MDP_PHASE_WAIT_RANKS);
    mdp_status common = mdp_shared_meet_all(engine->shared, local);
    mdp_profile_switch(engine->profile, before);
    return common;
}
