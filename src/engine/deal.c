/* deal.c - the packs of a team in groups, and which of a group's items are whose.
 *
 * In: who holds which packs. Out: for every (panel, tile) of a projection and for every tile of queries the member that
 * computes it. Items stand in one order and members take runs of it, cut where the operations so far pass a member's
 * share: each rank finds the same cuts by itself, reads only the panels and keys of its run, and the busiest has at
 * most one item more than its share. The engine deals with this, and
 * so does the forecast (attention_cost.c). */
#include "engine/attention.h"

#include <string.h>

#define N_ROW_BUFFER 6 /* at most */

/* ---- groups -------------------------------------------------------------------------------------------------- */

int64_t mdp_pack_group_row_values(const mdp_model *model) {
    const mdp_latent *n = &model->latent;
    const mdp_delta_sizes *linear = &model->delta;
    if (n->kv_rank == 0) {
        int64_t heads = model->n_head * model->q_step + 2 * model->n_kv_head * model->head_dim;
        int64_t mix = linear->n_value > 0 ? mdp_delta_row_values(linear) + linear->n_value * linear->d_value : 0;
        return model->d_model + (mix > heads ? mix : heads);
    }
    return model->d_model + n->q_rank + n->kv_rank + n->n_rope +
           model->n_head * (model->head_dim + n->n_own + 2 * n->n_value);
}

/* Whole packs, fewer where the rows of a model are very wide; for each rank of a team as many as it would take alone.
 */
int64_t mdp_pack_group_rows(const mdp_model *model, const mdp_rank_share *share, int n_branch) {
    int64_t rows = MDP_ATTENTION_VALUES / mdp_pack_group_row_values(model), all = n_branch * share->n_token;
    if (rows > MDP_ATTENTION_ROWS) rows = MDP_ATTENTION_ROWS;
    rows *= share->n_rank;
    if (rows < share->longest_pack) rows = share->longest_pack;
    return rows < all ? rows : all;
}

int64_t mdp_attention_row_bytes(const mdp_model *model, const mdp_rank_share *share, int n_stream) {
    return mdp_pack_group_rows(model, share, n_stream) * mdp_pack_group_row_values(model) * (int64_t)sizeof(float) +
           (int64_t)N_ROW_BUFFER * MDP_ROW_ALIGNMENT;
}

mdp_pack_group_walk mdp_pack_group_begin(const mdp_team *team, int n_branch) {
    const mdp_rank_share total = mdp_team_total(team);
    return (mdp_pack_group_walk){
        .team = team, .n_branch = n_branch, .room = mdp_pack_group_rows(team->model, &total, n_branch)};
}

/* Whether the pack still goes into the group. */
static bool add_pack(const mdp_pack_group_walk *walk, const mdp_pack *pack, mdp_pack_group *group) {
    if (group->n_pack > 0 && group->n_row + pack->n_token > walk->room) return false;
    if (group->packs)
        group->packs[group->n_pack] =
            (mdp_pack_group_item){.pack = pack, .branch = walk->branch, .member = walk->member, .first = group->n_row};
    group->n_pack++;
    group->n_row += pack->n_token;
    group->n_tile += (pack->n_token + MDP_TILE_ROWS - 1) / MDP_TILE_ROWS;
    return true;
}

bool mdp_pack_group_next(mdp_pack_group_walk *walk, mdp_pack_group *group) {
    const mdp_team *team = walk->team;
    group->n_pack = group->n_row = group->n_tile = 0;
    for (; walk->branch < walk->n_branch; walk->branch++, walk->member = 0) {
        for (; walk->member < team->n_rank; walk->member++, walk->at = 0) {
            int64_t first, end;
            mdp_team_packs(team, walk->member, &first, &end);
            for (; first + walk->at < end; walk->at++)
                if (!add_pack(walk, &team->partition->packs[first + walk->at], group)) return true;
        }
    }
    return group->n_pack > 0;
}

/* ---- shares -------------------------------------------------------------------------------------------------- */

typedef struct dealer {
    int n_member;
    double total, done; /* operations: whole numbers below 2^53 */
} dealer;

/* Whose is the next item: its middle decides. */
static int next_member(dealer *d, int64_t flop) {
    double middle = d->done + 0.5 * (double)flop;
    int member = (int)(middle / d->total * d->n_member);
    d->done += (double)flop;
    return member < d->n_member ? member : d->n_member - 1;
}

/* ---- projections --------------------------------------------------------------------------------------------- */

const int mdp_projection_step[MDP_N_PROJECTION] = {
    [OF_Q_A] = 0, [OF_KV_A] = 0, [OF_Q] = 1, [OF_K] = 1, [OF_V] = 1, [OF_KV_B] = 1,
    [OF_IN] = 1,  [OF_Z] = 1,    [OF_B] = 1, [OF_A] = 1, [OF_O] = 2};

void mdp_attention_projections(const mdp_attention *a, const mdp_matrix *out[MDP_N_PROJECTION]) {
    const mdp_matrix *order[MDP_N_PROJECTION] = {
        [OF_Q_A] = &a->q_a,   [OF_KV_A] = &a->kv_a, [OF_Q] = &a->q,         [OF_K] = &a->k,
        [OF_V] = &a->v,       [OF_KV_B] = &a->kv_b, [OF_IN] = &a->delta.in, [OF_Z] = &a->delta.z,
        [OF_B] = &a->delta.b, [OF_A] = &a->delta.a, [OF_O] = &a->o};
    memcpy(out, order, sizeof order);
}

typedef struct item_deal {
    const mdp_pack_group *group;
    dealer dealer;
    mdp_item_fn *give;
    void *context;
} item_deal;

/* Items of one panel from `item` on. */
static void deal_panel(item_deal *deal, int projection, int64_t item, int64_t flop_of_row) {
    const mdp_pack_group *group = deal->group;
    for (int64_t p = 0; p < group->n_pack; p++) {
        int64_t n_token = group->packs[p].pack->n_token;
        for (int64_t row = 0; row < n_token; row += MDP_TILE_ROWS, item++) {
            int64_t n_row = n_token - row < MDP_TILE_ROWS ? n_token - row : MDP_TILE_ROWS;
            int64_t flop = n_row * flop_of_row;
            deal->give(deal->context, next_member(&deal->dealer, flop), projection, item, flop);
        }
    }
}

void mdp_deal_items(const mdp_attention *attention, const mdp_pack_group *group, int n_member, mdp_item_fn *give,
                    void *context) {
    const mdp_matrix *matrices[MDP_N_PROJECTION];
    mdp_attention_projections(attention, matrices);
    for (int step = 0; step < MDP_N_PROJECTION_STEP; step++) {
        item_deal deal = {.group = group, .dealer = {.n_member = n_member}, .give = give, .context = context};
        for (int i = 0; i < MDP_N_PROJECTION; i++)
            if (matrices[i]->tensor && mdp_projection_step[i] == step)
                deal.dealer.total += 2.0 * (double)group->n_row * (double)(matrices[i]->n_row * matrices[i]->n_col);
        for (int i = 0; i < MDP_N_PROJECTION; i++) {
            const mdp_matrix *matrix = matrices[i];
            if (!matrix->tensor || mdp_projection_step[i] != step) continue;
            for (int64_t row = 0, item = 0; row < matrix->n_row; row += MDP_PANEL_ROWS, item += group->n_tile) {
                int64_t n_row = matrix->n_row - row < MDP_PANEL_ROWS ? matrix->n_row - row : MDP_PANEL_ROWS;
                deal_panel(&deal, i, item, 2 * n_row * matrix->n_col);
            }
        }
    }
}

/* ---- queries ------------------------------------------------------------------------------------------------- */

/* Of the products of one head over a sequence: with the branch, and within chunks. */
static int64_t count_mixing(const mdp_delta_sizes *n, int64_t length) {
    int64_t rest = length % MDP_DELTA_CHUNK, pairs = (length - rest) * MDP_DELTA_CHUNK + rest * rest;
    return 6 * length * n->d_key * n->d_value + pairs * (4 * n->d_key + 3 * n->d_value);
}

/* Of the products of a tile. */
static int64_t count_tile(const mdp_model *model, const mdp_attention *attention, const mdp_query_tile *tile) {
    if (attention->delta.kernel.tensor) return count_mixing(&model->delta, tile->length);
    int64_t n_key = tile->query + tile->n_query - mdp_first_seen(attention, tile->query);
    return 2 * tile->n_query * n_key * (model->head_dim + mdp_head_values(model));
}

/* The tile that begins at a query. */
static mdp_query_tile tile_at(const mdp_model *model, const mdp_attention *attention, int64_t first, int64_t length,
                              int64_t query) {
    int64_t most = attention->delta.kernel.tensor ? length : MDP_QUERY_ROWS, left = length - query;
    mdp_query_tile tile = {
        .first = first, .length = length, .query = query, .n_query = (int32_t)(left < most ? left : most)};
    tile.flop = count_tile(model, attention, &tile);
    return tile;
}

/* Operations of one head over a sequence. */
static int64_t count_head(const mdp_model *model, const mdp_attention *attention, int64_t length) {
    int64_t flop = 0;
    for (int64_t query = 0; query < length;) {
        const mdp_query_tile tile = tile_at(model, attention, 0, length, query);
        flop += tile.flop;
        query += tile.n_query;
    }
    return flop;
}

int64_t mdp_deal_heads(const mdp_model *model, const mdp_attention *attention) {
    return attention->delta.kernel.tensor ? model->delta.n_value : model->n_head;
}

int64_t mdp_deal_head_flop(const mdp_model *model, const mdp_tokens *tokens, const mdp_attention *attention,
                           const mdp_pack *packs, int64_t n_pack) {
    int64_t total = 0, flop = 0, last = -1;
    for (int64_t p = 0; p < n_pack; p++) {
        for (int64_t s = packs[p].first_sequence; s < packs[p].first_sequence + packs[p].n_sequence; s++) {
            int64_t length = tokens->offset[s + 1] - tokens->offset[s];
            if (length != last) flop = count_head(model, attention, length);
            last = length;
            total += flop;
        }
    }
    return total;
}

void mdp_deal_queries(const mdp_model *model, const mdp_tokens *tokens, const mdp_attention *attention,
                      const mdp_pack_group *group, int n_member, mdp_query_fn *give, void *context) {
    int64_t n_head = mdp_deal_heads(model, attention);
    dealer shares = {.n_member = n_member};
    for (int64_t p = 0; p < group->n_pack; p++)
        shares.total += (double)(n_head * mdp_deal_head_flop(model, tokens, attention, group->packs[p].pack, 1));
    for (int64_t p = 0; p < group->n_pack; p++) {
        const mdp_pack *pack = group->packs[p].pack;
        for (int64_t s = pack->first_sequence; s < pack->first_sequence + pack->n_sequence; s++) {
            int64_t length = tokens->offset[s + 1] - tokens->offset[s];
            int64_t first = group->packs[p].first + tokens->offset[s] - pack->first_token;
            for (int32_t head = 0; head < n_head; head++) {
                for (int64_t query = 0; query < length;) {
                    mdp_query_tile tile = tile_at(model, attention, first, length, query);
                    tile.head = head;
                    give(context, next_member(&shares, tile.flop), &tile);
                    query += tile.n_query;
                }
            }
        }
    }
}
