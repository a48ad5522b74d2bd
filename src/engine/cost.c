/* cost.c - what a pass takes, foretold from headers by the cuts that the engine itself makes.
 *
 * In: a model, how tokens are cut, a layout of ranks (which need not exist), streams. Out: operations, bytes read and
 * messages of every rank. Operations of all ranks together, and what ranks read of everything but routed experts, are
 * what a run counts. Which rank computes which rows of which expert depends on routing, which nobody knows yet: it is
 * taken as even, so every expert is touched in every block. A matrix is read once for each group of tiles. */
#include "engine/attention.h"
#include "engine/mlp.h"
#include "engine/moe.h"
#include "engine/traffic.h"

#include <string.h>

/* Rows and groups of tiles of routed experts on each rank, for layers of one shape. */
typedef struct expert_share {
    int64_t layer;       /* a layer of that shape; -1: nothing yet */
    int n_branch;        /* and what it was made for */
    int kept;            /* the branch whose activations come back; -1: none */
    int64_t *flop;       /* [size] of products */
    int64_t *bytes_read; /* [size] of experts */
    mdp_rank_cost *sent; /* [size] bytes and messages */
} expert_share;

typedef struct work {
    const mdp_comm *layout;
    const mdp_model *model;
    const mdp_tokens *tokens;
    const mdp_partition *partition;
    const mdp_pass *pass;
    int n_thread;
    mdp_rank_cost *ranks; /* [size] */
    int64_t batch;
    const mdp_attention *attended; /* the kind of attention that `attention` is of; NULL: none yet in this batch */
    int n_attended;                /* branches, and */
    mdp_rank_cost *attention;      /* [size] by place in layout->by_node: what ranks have of such a layer */
    bool *attends;                 /* [size] likewise: do they load its vectors? */
    expert_share share;
    int n_branch;
    int *leader; /* [n_stream] of each branch: a stream */
    int *origin; /* [n_stream] of each branch */
    int *branch; /* [n_stream] of each stream */
} work;

/* ---- costs of ranks ------------------------------------------------------------------------------------------ */

#define N_COST 6

static void list_costs(mdp_rank_cost *cost, int64_t *out[N_COST]) {
    int64_t *all[N_COST] = {&cost->flop,       &cost->bytes_read, &cost->bytes_written,
                            &cost->bytes_sent, &cost->bytes_away, &cost->n_message};
    memcpy(out, all, sizeof all);
}

void mdp_rank_cost_add(const mdp_rank_cost *from, mdp_rank_cost *to) {
    mdp_rank_cost own = *from;
    int64_t *values[N_COST], *sums[N_COST];
    list_costs(&own, values);
    list_costs(to, sums);
    for (int i = 0; i < N_COST; i++) *sums[i] += *values[i];
}

void mdp_rank_cost_bound(const mdp_rank_cost *ranks, int size, mdp_rank_cost *least, mdp_rank_cost *most) {
    int64_t *values[N_COST], *low[N_COST], *high[N_COST];
    list_costs(least, low);
    list_costs(most, high);
    for (int r = 0; r < size; r++) {
        mdp_rank_cost own = ranks[r];
        list_costs(&own, values);
        for (int i = 0; i < N_COST; i++) {
            if (r == 0 || *values[i] < *low[i]) *low[i] = *values[i];
            if (r == 0 || *values[i] > *high[i]) *high[i] = *values[i];
        }
    }
}

/* ---- matrices ------------------------------------------------------------------------------------------------ */

static int64_t streamed_bytes(const mdp_matrix *matrix) {
    int64_t n_byte = 0;
    if (!matrix->tensor) return 0;
    for (int64_t row = 0; row < matrix->n_row; row += MDP_PANEL_ROWS) {
        int64_t left = matrix->n_row - row;
        n_byte += mdp_matrix_read_bytes(matrix, row, left < MDP_PANEL_ROWS ? left : MDP_PANEL_ROWS);
    }
    return n_byte;
}

static int64_t loaded_bytes(const mdp_matrix *matrix) {
    return matrix->tensor ? mdp_matrix_read_bytes(matrix, 0, matrix->n_row) : 0;
}

static int64_t norm_bytes(const mdp_norm *norm) {
    return loaded_bytes(&norm->weight) + loaded_bytes(&norm->bias);
}

static int64_t mlp_bytes(const mdp_expert *mlp) {
    return streamed_bytes(&mlp->gate) + streamed_bytes(&mlp->up) + streamed_bytes(&mlp->down);
}

static int64_t vector_bytes(const mdp_layer *layer) {
    const mdp_attention *a = &layer->attention;
    const mdp_matrix *vectors[] = {&a->q_bias,    &a->k_bias,     &a->v_bias,      &a->o_bias,     &a->q_norm,
                                   &a->k_norm,    &a->sinks,      &a->q_a_bias,    &a->q_a_norm,   &a->kv_a_bias,
                                   &a->kv_a_norm, &a->delta.norm, &a->delta.shift, &a->delta.rate, &a->delta.kernel};
    int64_t n_byte = norm_bytes(&layer->norm1);
    for (size_t i = 0; i < sizeof vectors / sizeof vectors[0]; i++) n_byte += loaded_bytes(vectors[i]);
    return n_byte;
}

/* ---- what a rank has ------------------------------------------------------------------------------------------- */

static const mdp_pack *packs_of(const work *w, int rank, int64_t *n_pack) {
    int64_t first, end;
    mdp_partition_share(w->partition, w->batch, rank, w->layout->size, &first, &end);
    *n_pack = end - first;
    return w->partition->packs + first;
}

static int64_t tokens_of(const mdp_pack *packs, int64_t n_pack) {
    return n_pack > 0 ? packs[n_pack - 1].first_token + packs[n_pack - 1].n_token - packs[0].first_token : 0;
}

/* Would ranks have the same of the attention of two layers? */
static bool attends_alike(const mdp_attention *a, const mdp_attention *b) {
    const mdp_matrix *ours[MDP_N_PROJECTION], *theirs[MDP_N_PROJECTION];
    if (a->window != b->window || a->chunk != b->chunk) return false;
    mdp_attention_projections(a, ours);
    mdp_attention_projections(b, theirs);
    for (int i = 0; i < MDP_N_PROJECTION; i++) {
        if (!ours[i]->tensor != !theirs[i]->tensor) return false;
        if (ours[i]->tensor && (ours[i]->n_row != theirs[i]->n_row || ours[i]->n_col != theirs[i]->n_col ||
                                streamed_bytes(ours[i]) != streamed_bytes(theirs[i])))
            return false;
    }
    return true;
}

/* What the ranks of a node have of the attention of a layer. */
static mdp_status attend_node(const work *w, int node, const mdp_attention *attention) {
    const mdp_team all = mdp_team_of_node(w->layout, w->model, w->partition, w->batch, node);
    mdp_rank_cost *members = w->attention + w->layout->node_first[node];
    bool *attends = w->attends + w->layout->node_first[node], shared = mdp_team_shares(&all);
    if (shared) MDP_TRY(mdp_attention_cost(w->tokens, &all, attention, w->n_branch, members));
    for (int i = 0; i < all.n_rank; i++) {
        const mdp_team one = mdp_team_alone(&all, i);
        if (!shared) MDP_TRY(mdp_attention_cost(w->tokens, &one, attention, w->n_branch, &members[i]));
        attends[i] = shared || members[i].flop > 0;
    }
    return mdp_ok();
}

static mdp_status add_attention(work *w, const mdp_layer *layer) {
    const mdp_comm *layout = w->layout;
    int64_t vectors = vector_bytes(layer);
    if (!w->attended || w->n_attended != w->n_branch || !attends_alike(w->attended, &layer->attention)) {
        memset(w->attention, 0, (size_t)layout->size * sizeof *w->attention);
        for (int node = 0; node < layout->n_node; node++) MDP_TRY(attend_node(w, node, &layer->attention));
        w->attended = &layer->attention;
        w->n_attended = w->n_branch;
    }
    for (int place = 0; place < layout->size; place++) {
        mdp_rank_cost *rank = &w->ranks[layout->by_node[place]];
        rank->flop += w->attention[place].flop;
        rank->bytes_read += w->attention[place].bytes_read + (w->attends[place] ? vectors : 0);
    }
    return mdp_ok();
}

static mdp_layer_view view_of(const work *w, int stream, int64_t layer) {
    return mdp_view_layer(w->model, w->pass->views ? w->pass->views[stream] : NULL, layer);
}

/* The branches after the streams have parted in a layer, as the engine parts them. */
static void part(work *w, int64_t layer) {
    int first_new = w->n_branch;
    for (int stream = 0; stream < w->pass->n_stream; stream++) {
        mdp_layer_view own = view_of(w, stream, layer), other = view_of(w, w->leader[w->branch[stream]], layer);
        int old = w->branch[stream], found = -1;
        if (mdp_view_is_same(&own, &other)) continue;
        for (int s = first_new; s < w->n_branch && found < 0; s++) {
            other = view_of(w, w->leader[s], layer);
            if (w->origin[s] == old && mdp_view_is_same(&own, &other)) found = s;
        }
        if (found < 0) {
            found = w->n_branch++;
            w->leader[found] = stream;
            w->origin[found] = old;
        }
        w->branch[stream] = found;
    }
}

/* ---- routed experts ------------------------------------------------------------------------------------------ */

/* Rows of every (branch, block of the wave, expert) when tokens choose all experts of their view equally often. */
static void spread_rows(const work *w, const mdp_layer_view *views, const mdp_roster *roster, int64_t first,
                        int64_t n_block, int64_t *rows) {
    for (int s = 0; s < w->share.n_branch; s++) {
        const mdp_layer_view *view = &views[s];
        for (int64_t b = 0; b < n_block; b++) {
            int64_t n = mdp_partition_block_tokens(w->partition, first + b) * view->top_k,
                    *row = rows + (s * n_block + b) * roster->n;
            for (int32_t e = 0; e < view->n_expert; e++)
                row[mdp_roster_of(roster, s, e)] += n / view->n_expert + (e < n % view->n_expert);
        }
    }
}

/* Bytes of an expert, read once. */
static int64_t expert_bytes(const mdp_expert *expert) {
    return mlp_bytes(expert) + loaded_bytes(&expert->gate_bias) + loaded_bytes(&expert->up_bias) +
           loaded_bytes(&expert->down_bias);
}

/* What ranks have of a placed wave, by the walk of the expert loop: groups of at most `most` tiles. */
static void count_wave(work *w, const mdp_roster *roster, const mdp_placement *placement, int64_t most) {
    for (int64_t first = 0; first < placement->n_tile;) {
        const mdp_tile_place *tile = &placement->tiles[first];
        int64_t n = 1, n_row = tile->n_row;
        while (first + n < placement->n_tile && n < most && tile[n].owner == tile->owner &&
               tile[n].round == tile->round && tile[n].expert == tile->expert)
            n_row += tile[n++].n_row;
        const mdp_expert *expert = roster->experts[tile->expert];
        int64_t n_matrix = w->pass->projected ? 4 : 3; /* down twice */
        w->share.flop[tile->owner] += 2 * n_matrix * expert->gate.n_row * expert->gate.n_col * n_row;
        w->share.bytes_read[tile->owner] += expert_bytes(expert) + (n_matrix - 3) * streamed_bytes(&expert->down);
        first += n;
    }
    for (int r = 0; r < w->layout->size; r++)
        w->share.sent[r].n_message += 3 * (int64_t)placement->n_round * (w->layout->size - 1);
}

static mdp_status send_wave(work *w, int64_t layer, const mdp_layer_view *views, const mdp_roster *roster,
                            const int64_t *rows, const mdp_placement *placement) {
    const mdp_router_rule *rule = &w->model->layers[layer].moe.rule;
    const mdp_traffic traffic = {.layout = w->layout,
                                 .model = w->model,
                                 .partition = w->partition,
                                 .batch = w->batch,
                                 .placement = placement,
                                 .rows = rows,
                                 .views = views,
                                 .roster = roster,
                                 .kept = w->share.kept,
                                 .n_group = rule->n_group,
                                 .n_open = rule->n_open,
                                 .group_size = rule->group_size};
    return mdp_traffic_add(&traffic, w->share.sent);
}

static mdp_status place_wave(work *w, int64_t layer, const mdp_layer_view *views, const mdp_roster *roster,
                             int64_t first, int64_t n_block) {
    int32_t n_expert = w->model->layers[layer].moe.n_expert, top_k = 0;
    int32_t most = mdp_roster_most(w->model, layer, w->pass->views, w->pass->n_stream);
    int64_t *rows = NULL;
    mdp_placement *placement = NULL;
    for (int s = 0; s < w->share.n_branch; s++)
        if (views[s].top_k > top_k) top_k = views[s].top_k;
    const mdp_moe_room room =
        mdp_moe_room_of(w->layout, w->partition, top_k, n_expert, most, w->n_thread, w->pass->n_stream);
    MDP_TRY(MDP_ALLOC(&rows, w->share.n_branch * n_block * roster->n, "row counts"));
    spread_rows(w, views, roster, first, n_block, rows);
    mdp_status status =
        mdp_placement_new(w->layout, rows, w->share.n_branch, first, n_block, roster->n, w->n_thread, &placement);
    if (status.code == MDP_OK) {
        count_wave(w, roster, placement, room.n_tile);
        status = send_wave(w, layer, views, roster, rows, placement);
    }
    mdp_placement_destroy(placement);
    mdp_free(rows);
    return status;
}

/* Which branches a block is computed for. */
typedef enum block_kind { BLOCK_ALL, BLOCK_ORIGINAL, BLOCK_REDONE } block_kind;

/* Their views: of every branch, as the model has the layer, or of the last stream. */
static int list_views(const work *w, int64_t layer, block_kind kind, mdp_layer_view *views) {
    int n = kind == BLOCK_REDONE ? 1 : w->n_branch;
    for (int s = 0; s < n; s++) {
        int leader = kind == BLOCK_REDONE ? w->pass->n_stream - 1 : w->leader[s];
        views[s] = kind == BLOCK_ORIGINAL ? mdp_view_layer(w->model, NULL, layer) : view_of(w, leader, layer);
    }
    return n;
}

/* Would the experts of two layers be shared out alike? Which experts a view keeps does not matter, how many does. */
static bool is_alike(const work *w, int64_t layer, int n_branch, block_kind kind) {
    int64_t other = w->share.layer;
    if (other < 0 || kind != BLOCK_ALL || n_branch != w->share.n_branch ||
        w->model->layers[layer].moe.n_expert != w->model->layers[other].moe.n_expert ||
        w->model->layers[layer].moe.rule.n_group != w->model->layers[other].moe.rule.n_group ||
        w->model->layers[layer].moe.rule.n_open != w->model->layers[other].moe.rule.n_open)
        return false;
    for (int s = 0; s < n_branch; s++) {
        mdp_layer_view a = view_of(w, w->leader[s], layer), b = view_of(w, w->leader[s], other);
        if (a.n_expert != b.n_expert || a.top_k != b.top_k || a.made || b.made) return false;
    }
    return true;
}

/* Fill the shares of the experts of a layer. */
static mdp_status share_experts(work *w, int64_t layer, block_kind kind) {
    const mdp_partition *partition = w->partition;
    size_t size = (size_t)w->layout->size;
    mdp_layer_view *views = NULL;
    mdp_roster roster = {0};
    if (is_alike(w, layer, w->n_branch, kind)) return mdp_ok();
    memset(w->share.flop, 0, size * sizeof *w->share.flop);
    memset(w->share.bytes_read, 0, size * sizeof *w->share.bytes_read);
    memset(w->share.sent, 0, size * sizeof *w->share.sent);
    MDP_TRY(MDP_ALLOC(&views, w->n_branch, "views"));
    w->share.layer = kind == BLOCK_ALL ? layer : -1;
    w->share.n_branch = list_views(w, layer, kind, views);
    w->share.kept = kind == BLOCK_ALL && w->pass->activations ? w->branch[w->pass->n_stream - 1] : -1;
    mdp_status status = mdp_roster_new(&w->model->layers[layer].moe, views, w->share.n_branch, &roster);
    int64_t end = partition->batch_block[w->batch + 1];
    for (int64_t block = partition->batch_block[w->batch]; block < end && status.code == MDP_OK;) {
        int64_t n = mdp_wave_blocks(w->layout, partition, w->batch, block, end);
        status = place_wave(w, layer, views, &roster, block, n);
        block += n;
    }
    mdp_roster_clear(&roster);
    mdp_free(views);
    return status;
}

/* ---- layers -------------------------------------------------------------------------------------------------- */

/* Groups of tiles of the shared expert: each wave of each branch begins anew. */
static int64_t shared_groups(const work *w, const mdp_pack *packs, int64_t n_pack) {
    const mdp_partition *partition = w->partition;
    int64_t n_group = 0, at = 0, end = partition->batch_block[w->batch + 1];
    for (int64_t block = partition->batch_block[w->batch]; block < end;) {
        int64_t next = block + mdp_wave_blocks(w->layout, partition, w->batch, block, end), first = at;
        while (at < n_pack && packs[at].block < next) at++;
        n_group += mdp_mlp_groups(packs + first, at - first, w->n_thread);
        block = next;
    }
    return n_group;
}

static void add_dense(work *w, const mdp_layer *layer) {
    for (int r = 0; r < w->layout->size; r++) {
        int64_t n_pack;
        const mdp_pack *packs = packs_of(w, r, &n_pack);
        w->ranks[r].flop += w->n_branch * tokens_of(packs, n_pack) * 6 * w->model->d_model * layer->dense_ff;
        w->ranks[r].bytes_read +=
            norm_bytes(&layer->norm2) +
            w->n_branch * mlp_bytes(&layer->dense) * mdp_dense_groups(w->partition, packs, n_pack, w->n_thread);
    }
}

/* Experts that the router rows of a block's branches stand for, all together. */
static int64_t count_routed(const work *w, int64_t number, block_kind kind) {
    int64_t n = 0;
    if (kind == BLOCK_REDONE) return view_of(w, w->pass->n_stream - 1, number).n_expert;
    for (int s = 0; s < w->n_branch; s++)
        n += kind == BLOCK_ORIGINAL ? w->model->layers[number].moe.n_expert : view_of(w, w->leader[s], number).n_expert;
    return n;
}

static mdp_status add_block(work *w, int64_t number, block_kind kind) {
    const mdp_layer *layer = &w->model->layers[number];
    const mdp_moe *moe = &layer->moe;
    int64_t d = w->model->d_model, routed = count_routed(w, number, kind);
    int64_t fixed = norm_bytes(&layer->norm2) + loaded_bytes(&moe->router) + loaded_bytes(&moe->router_bias) +
                    loaded_bytes(&moe->choice_bias) + loaded_bytes(&moe->shared_gate);
    int64_t shared_bytes = mlp_bytes(&moe->shared);
    int64_t per_token = moe->shared.gate.tensor ? 6 * d * moe->shared_ff + (moe->shared_gate.tensor ? 2 * d : 0) : 0;
    MDP_TRY(share_experts(w, number, kind));
    for (int r = 0; r < w->layout->size; r++) {
        int64_t n_pack;
        const mdp_pack *packs = packs_of(w, r, &n_pack);
        mdp_rank_cost *rank = &w->ranks[r];
        rank->flop += tokens_of(packs, n_pack) * (2 * d * routed + w->share.n_branch * per_token) + w->share.flop[r];
        rank->bytes_read += fixed + w->share.bytes_read[r];
        if (shared_bytes > 0) rank->bytes_read += w->share.n_branch * shared_bytes * shared_groups(w, packs, n_pack);
        rank->bytes_sent += w->share.sent[r].bytes_sent;
        rank->bytes_away += w->share.sent[r].bytes_away;
        rank->n_message += w->share.sent[r].n_message;
    }
    return mdp_ok();
}

static mdp_status add_layer(work *w, int64_t number) {
    const mdp_layer *layer = &w->model->layers[number];
    MDP_TRY(add_attention(w, layer));
    if (!layer->is_moe) {
        add_dense(w, layer);
        return mdp_ok();
    }
    if (!w->pass->redo_block) {
        part(w, number);
        return add_block(w, number, BLOCK_ALL);
    }
    if (w->pass->n_stream > 1) part(w, number);
    MDP_TRY(add_block(w, number, w->pass->n_stream > 1 ? BLOCK_ALL : BLOCK_ORIGINAL));
    return add_block(w, number, BLOCK_REDONE);
}

static void add_ends(work *w) {
    const mdp_model *model = w->model;
    int64_t row = mdp_matrix_read_bytes(&model->embedding, 0, 1);
    int64_t times = w->pass->head_again ? 2 : 1;
    int64_t head = streamed_bytes(&model->head) + loaded_bytes(&model->head_bias) + norm_bytes(&model->final_norm);
    for (int r = 0; r < w->layout->size; r++) {
        int64_t n_pack;
        const mdp_pack *packs = packs_of(w, r, &n_pack);
        int64_t n_token = tokens_of(packs, n_pack);
        w->ranks[r].bytes_read += n_token * row;
        if (!w->pass->with_head || n_token == 0) continue;
        w->ranks[r].bytes_read += head + (times - 1) * streamed_bytes(&model->head);
        w->ranks[r].flop += times * 2 * w->n_branch * n_token * model->d_model * model->vocab_size;
    }
}

static mdp_status add_batch(work *w, int64_t batch) {
    w->batch = batch;
    w->attended = NULL;
    w->share.layer = -1;
    w->n_branch = 1;
    memset(w->branch, 0, (size_t)w->pass->n_stream * sizeof *w->branch);
    w->leader[0] = w->origin[0] = 0;
    for (int64_t l = 0; l < w->model->n_layer; l++) MDP_TRY(add_layer(w, l));
    add_ends(w);
    return mdp_ok();
}

/* ---- a pass -------------------------------------------------------------------------------------------------- */

static mdp_status allocate(work *w) {
    int64_t size = w->layout->size;
    MDP_TRY(MDP_ALLOC(&w->attention, size, "costs of ranks"));
    MDP_TRY(MDP_ALLOC(&w->attends, size, "costs of ranks"));
    MDP_TRY(MDP_ALLOC(&w->share.flop, size, "costs of ranks"));
    MDP_TRY(MDP_ALLOC(&w->share.bytes_read, size, "costs of ranks"));
    MDP_TRY(MDP_ALLOC(&w->share.sent, size, "costs of ranks"));
    MDP_TRY(MDP_ALLOC(&w->leader, w->pass->n_stream, "branches"));
    MDP_TRY(MDP_ALLOC(&w->origin, w->pass->n_stream, "branches"));
    return MDP_ALLOC(&w->branch, w->pass->n_stream, "branches");
}

mdp_status mdp_engine_cost(const mdp_comm *layout, const mdp_model *model, const mdp_tokens *tokens,
                           const mdp_partition *partition, int n_thread, const mdp_pass *pass, mdp_rank_cost *ranks) {
    work w = {.layout = layout,
              .model = model,
              .tokens = tokens,
              .partition = partition,
              .pass = pass,
              .n_thread = n_thread,
              .ranks = ranks};
    mdp_status status = allocate(&w);
    for (int64_t b = 0; b < partition->n_batch && status.code == MDP_OK; b++) status = add_batch(&w, b);
    mdp_free(w.attention);
    mdp_free(w.attends);
    mdp_free(w.share.flop);
    mdp_free(w.share.bytes_read);
    mdp_free(w.share.sent);
    mdp_free(w.leader);
    mdp_free(w.origin);
    mdp_free(w.branch);
    return status;
}
