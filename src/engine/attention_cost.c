/* attention_cost.c - what attention will take of each member of a team: operations, and bytes of the panels that it
 * reads. */
#include "engine/attention.h"

/* What members get in a group. */
typedef struct cost_deal {
    const mdp_matrix *matrices[MDP_N_PROJECTION];
    const mdp_pack_group *group;
    mdp_rank_cost *members;
    int member, projection; /* of the last item */
    int64_t panel;
} cost_deal;

static int64_t panel_bytes(const mdp_matrix *matrix, int64_t panel) {
    int64_t row = panel * MDP_PANEL_ROWS, left = matrix->n_row - row;
    return mdp_matrix_read_bytes(matrix, row, left < MDP_PANEL_ROWS ? left : MDP_PANEL_ROWS);
}

/* A panel is read by every member that has an item of it. */
static void cost_item(void *context, int member, int projection, int64_t item, int64_t flop) {
    cost_deal *deal = context;
    int64_t panel = item / deal->group->n_tile;
    deal->members[member].flop += flop;
    if (member != deal->member || projection != deal->projection || panel != deal->panel)
        deal->members[member].bytes_read += panel_bytes(deal->matrices[projection], panel);
    deal->member = member;
    deal->projection = projection;
    deal->panel = panel;
}

static void cost_query(void *context, int member, const mdp_query_tile *tile) {
    cost_deal *deal = context;
    deal->members[member].flop += tile->flop;
}

/* Of a team of several. */
static mdp_status cost_together(const mdp_tokens *tokens, const mdp_team *team, const mdp_attention *attention,
                                int n_branch, mdp_rank_cost *members) {
    int64_t n_pack = 0;
    mdp_pack_group group = {0};
    for (int i = 0; i < team->n_rank; i++) {
        int64_t first, end;
        mdp_team_packs(team, i, &first, &end);
        n_pack += end - first;
    }
    MDP_TRY(MDP_ALLOC(&group.packs, n_pack * n_branch, "packs of a group"));
    mdp_pack_group_walk walk = mdp_pack_group_begin(team, n_branch);
    while (mdp_pack_group_next(&walk, &group)) {
        cost_deal deal = {.group = &group, .members = members, .member = -1};
        mdp_attention_projections(attention, deal.matrices);
        mdp_deal_items(attention, &group, team->n_rank, cost_item, &deal);
        mdp_deal_queries(team->model, tokens, attention, &group, team->n_rank, cost_query, &deal);
    }
    mdp_free(group.packs);
    return mdp_ok();
}

/* Of one rank with packs of its own: nothing is dealt, and every group reads all panels. */
static void cost_alone(const mdp_tokens *tokens, const mdp_team *team, const mdp_attention *attention, int n_branch,
                       mdp_rank_cost *rank) {
    const mdp_matrix *matrices[MDP_N_PROJECTION];
    mdp_pack_group group = {0};
    int64_t first, end, n_group = 0, values = 0;
    mdp_team_packs(team, 0, &first, &end);
    mdp_pack_group_walk walk = mdp_pack_group_begin(team, n_branch);
    while (mdp_pack_group_next(&walk, &group)) n_group++;
    mdp_attention_projections(attention, matrices);
    for (int i = 0; i < MDP_N_PROJECTION; i++) {
        if (!matrices[i]->tensor) continue;
        values += matrices[i]->n_row * matrices[i]->n_col;
        for (int64_t panel = 0; panel * MDP_PANEL_ROWS < matrices[i]->n_row; panel++)
            rank->bytes_read += n_group * panel_bytes(matrices[i], panel);
    }
    rank->flop += n_branch *
                  (2 * mdp_team_total(team).n_token * values +
                   mdp_deal_heads(team->model, attention) *
                       mdp_deal_head_flop(team->model, tokens, attention, team->partition->packs + first, end - first));
}

mdp_status mdp_attention_cost(const mdp_tokens *tokens, const mdp_team *team, const mdp_attention *attention,
                              int n_branch, mdp_rank_cost *members) {
    if (team->n_rank > 1) return cost_together(tokens, team, attention, n_branch, members);
    cost_alone(tokens, team, attention, n_branch, members);
    return mdp_ok();
}
