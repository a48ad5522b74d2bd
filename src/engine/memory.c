/* memory.c - what a pass takes of a rank's memory, foretold from headers.
 *
 * In: a model, how tokens are cut, a layout of ranks (which need not exist), streams. Out: bytes that no routing can
 * make the engine exceed. Large buffers are taken as they are touched, so they count by the rows that can come, not by
 * their room. */
#include "engine/attention.h"
#include "engine/dispatch.h"
#include "engine/head.h"
#include "engine/mlp.h"
#include "engine/moe.h"

/* Steps share the piece of a stack: what one of them leaves alone, a large page of another may touch. */
#define SHARED_BYTE ((int64_t)2 << 20)

/* Of an array of `room` rows of row_byte, n_row of them written. */
static int64_t taken(int64_t room, int64_t n_row, int64_t row_byte) {
    return mdp_memory_taken(room * row_byte, n_row * row_byte);
}

/* ---- weights ------------------------------------------------------------------------------------------------- */

int mdp_feed_depth(int n_thread) {
    return 2 * n_thread + 1 < 65 ? 2 * n_thread + 1 : 65;
}

static void meet(const mdp_matrix *matrix, mdp_panel_size *out) {
    int64_t n_row = mdp_smaller(matrix->n_row, MDP_PANEL_ROWS);
    if (!matrix->tensor) return;
    out->n_byte = mdp_larger(out->n_byte, mdp_matrix_room(matrix, out->type, n_row));
    out->n_scratch = mdp_larger(out->n_scratch, mdp_matrix_scratch(matrix, n_row));
}

static void meet_mlp(const mdp_expert *mlp, mdp_panel_size *out) {
    meet(&mlp->gate, out);
    meet(&mlp->up, out);
    meet(&mlp->down, out);
}

/* Of the experts that a view makes. */
static void meet_view(const mdp_view *view, mdp_panel_size *out) {
    for (int64_t l = 0; l < view->n_layer; l++) {
        const mdp_layer_view *layer = &view->layers[l];
        for (int32_t e = 0; layer->made && e < layer->n_expert; e++)
            if (layer->made[e]) meet_mlp(layer->made[e], out);
    }
}

mdp_panel_size mdp_largest_panel(const mdp_model *model, const mdp_view *const *views, int n_view, mdp_gemm_type type) {
    mdp_panel_size out = {.type = type == MDP_GEMM_BF16 ? MDP_BF16 : MDP_F32};
    meet(&model->head, &out);
    for (int64_t l = 0; l < model->n_layer; l++) {
        const mdp_layer *layer = &model->layers[l];
        const mdp_attention *a = &layer->attention;
        const mdp_matrix *matrices[] = {&a->q,    &a->k,        &a->v,       &a->o,       &a->q_a,    &a->kv_a,
                                        &a->kv_b, &a->delta.in, &a->delta.z, &a->delta.b, &a->delta.a};
        for (size_t i = 0; i < sizeof matrices / sizeof matrices[0]; i++) meet(matrices[i], &out);
        if (!layer->is_moe) meet_mlp(&layer->dense, &out);
        if (layer->is_moe) meet_mlp(&layer->moe.shared, &out);
        for (int32_t e = 0; layer->is_moe && e < layer->moe.n_expert; e++) meet_mlp(&layer->moe.experts[e], &out);
    }
    for (int v = 0; views && v < n_view; v++)
        if (views[v]) meet_view(views[v], &out);
    return out;
}

int64_t mdp_widest_expert(const mdp_model *model, const mdp_view *const *views, int n_view) {
    int64_t most = 0;
    for (int64_t l = 0; l < model->n_layer; l++)
        if (model->layers[l].is_moe) most = mdp_larger(most, model->layers[l].moe.d_ff);
    for (int v = 0; views && v < n_view; v++) {
        for (int64_t l = 0; views[v] && l < views[v]->n_layer; l++) {
            const mdp_layer_view *layer = &views[v]->layers[l];
            for (int32_t e = 0; layer->made && e < layer->n_expert; e++)
                if (layer->made[e]) most = mdp_larger(most, layer->made[e]->gate.n_row);
        }
    }
    return most;
}

/* ---- a rank's tokens ----------------------------------------------------------------------------------------- */

static void enlarge(const mdp_rank_share *share, mdp_rank_share *out) {
    if (share->n_rank > out->n_rank) out->n_rank = share->n_rank;
    out->n_tile = mdp_larger(out->n_tile, share->n_tile);
    out->longest_pack = mdp_larger(out->longest_pack, share->longest_pack);
    out->n_token = mdp_larger(out->n_token, share->n_token);
    out->n_sequence = mdp_larger(out->n_sequence, share->n_sequence);
}

/* The most that a rank has, that one has who attends alone, and that a team of several has together. */
typedef struct shares {
    mdp_rank_share all, alone, together;
} shares;

static void add_node(const mdp_team *node, shares *out) {
    bool together = mdp_team_shares(node);
    for (int i = 0; i < node->n_rank; i++) {
        const mdp_team one = mdp_team_alone(node, i);
        const mdp_rank_share own = mdp_team_total(&one);
        enlarge(&own, &out->all);
        if (!together) enlarge(&own, &out->alone);
    }
    if (!together) return;
    const mdp_rank_share total = mdp_team_total(node);
    enlarge(&total, &out->together);
}

static shares largest_shares(const mdp_comm *comm, const mdp_model *model, const mdp_partition *partition) {
    shares out = {.all = {0}};
    for (int64_t b = 0; b < partition->n_batch; b++) {
        for (int node = 0; node < comm->n_node; node++) {
            const mdp_team team = mdp_team_of_node(comm, model, partition, b, node);
            add_node(&team, &out);
        }
    }
    return out;
}

/* A rank's part of what the ranks of its node share, where it is largest, and of what goes with it. */
static int64_t shared_bytes(const mdp_comm *comm, const mdp_model *model, const mdp_partition *partition,
                            int n_stream) {
    int64_t most = 0;
    for (int node = 0; node < comm->n_node; node++) {
        int n_rank = comm->node_first[node + 1] - comm->node_first[node];
        int64_t n_byte = mdp_team_memory(comm, model, partition, node, n_stream);
        most = mdp_larger(most, (n_byte + n_rank - 1) / n_rank);
    }
    return most > 0 ? most + MDP_COMM_SCRATCH * (int64_t)sizeof(int64_t) : 0;
}

/* ---- MoE blocks ---------------------------------------------------------------------------------------------- */

typedef struct work {
    const mdp_comm *comm;
    const mdp_model *model;
    const mdp_partition *partition;
    int n_thread, n_stream;
    mdp_gemm_type type;
    mdp_rank_share share; /* of MoE blocks */
    int64_t attention;    /* bytes that attention takes */
    int64_t kept;         /* tokens of a rank in a wave, at most */
    int64_t n_block;      /* of the largest batch */
    int32_t top_k;        /* of any layer, as any stream sees it */
    int32_t n_roster;     /* experts and those that views make, of any layer */
    int64_t widest;       /* neurons of any of them */
    bool activations;     /* come back */
    int32_t aside_slots;  /* of blocks that are computed aside */
    bool projected;       /* tiles come with y W_d */
} work;

/* Tokens of a rank whose outputs are kept until they are combined: a wave is one block, or keeps to its bound. */
static void find_wave(work *w) {
    int64_t largest = 0;
    for (int64_t b = 0; b < w->partition->n_block; b++)
        largest = mdp_larger(largest, mdp_partition_block_tokens(w->partition, b));
    for (int64_t b = 0; b < w->partition->n_batch; b++)
        w->n_block = mdp_larger(w->n_block, w->partition->batch_block[b + 1] - w->partition->batch_block[b]);
    w->kept = mdp_smaller(w->share.n_token, mdp_larger(largest, MDP_WAVE_TOKENS));
}

/* The most slots that a token has in a block. */
static int32_t slots_of(const work *w) {
    return w->aside_slots > w->top_k ? w->aside_slots : w->top_k;
}

/* Lists of rows, tiles and routes: see mdp_moe_all and prepare_wave. */
static int64_t list_bytes(const work *w, int64_t n_row) {
    int64_t n_cell = (int64_t)w->n_stream * w->n_block * w->n_roster, size = w->comm->size;
    int64_t n_round = n_row / size / (mdp_round_rows(w->n_thread) - MDP_TILE_ROWS) + 2;
    return (7 * n_cell + 17 * MDP_ROUNDS_AT_ONCE * size + n_round * (7 * size + 3 * w->comm->n_node)) *
               (int64_t)sizeof(int64_t) +
           (n_cell + n_row / MDP_TILE_ROWS) * (int64_t)sizeof(mdp_tile_place) +
           w->n_stream * w->kept * slots_of(w) * (int64_t)sizeof(mdp_route_entry);
}

/* Rows that the placement can give a rank. */
static int64_t placed_rows(const work *w) {
    int64_t n_row = w->n_stream * w->partition->batch_tokens * slots_of(w);
    return mdp_placement_most_rows(w->comm, n_row, (int64_t)w->n_stream * w->n_block * w->n_roster);
}

/* What of them a round has room for, and the tiles of a group. */
static mdp_moe_room room_of(const work *w, const mdp_moe *moe) {
    return mdp_moe_room_of(w->comm, w->partition, slots_of(w), moe->n_expert, w->n_roster, w->n_thread, w->n_stream);
}

static int64_t projected_bytes(const work *w, int64_t n_row) {
    return w->projected ? n_row * w->widest * (int64_t)sizeof(float) : 0;
}

/* Buffers of rounds. Where there is one round, a token's row is there once; else three arrays change places. */
static int64_t round_bytes(const work *w, const mdp_moe *moe) {
    int64_t row = w->model->d_model * (int64_t)sizeof(float), n_token = w->n_stream * w->partition->batch_tokens;
    const mdp_moe_room room = room_of(w, moe);
    int64_t most = room.n_row;
    int64_t group = mdp_smaller(most, room.n_tile * MDP_TILE_ROWS);
    int64_t n_note = (room.ahead ? MDP_ROUNDS_AT_ONCE : 1) * (int64_t)sizeof(mdp_row_note);
    int64_t one = taken(most, most, row), inputs = taken(most, mdp_smaller(most, n_token), row);
    if (room.ahead && placed_rows(w) > most) inputs = 2 * one;
    return one + inputs + most * (20 + n_note + 8 * mdp_landing_words(w->comm)) +
           mdp_gated_room_memory(w->model, w->type, room.n_tile, w->widest, group) + projected_bytes(w, group) +
           w->n_thread * mdp_moe_thread_scratch(w->model->d_model) * (int64_t)sizeof(float);
}

/* Activations that come back: of rounds, and of the tokens of a wave. */
static int64_t activation_bytes(const work *w, const mdp_moe *moe) {
    int64_t row = w->widest * (int64_t)sizeof(float);
    const mdp_moe_room room = room_of(w, moe);
    if (!w->activations) return 0;
    return (room.ahead ? 2 : 1) * taken(room.n_row, room.n_row, row + 1) +
           w->kept * (w->aside_slots > 0 ? 1 : w->top_k) * row;
}

/* What a layer's block takes while tokens are with the experts, or with the shared expert. */
static int64_t block_bytes(const work *w, const mdp_moe *moe) {
    int64_t row = w->model->d_model * (int64_t)sizeof(float);
    int64_t n_row = w->n_stream * w->partition->batch_tokens * slots_of(w);
    int64_t shared = 0;
    if (moe->shared.gate.tensor)
        shared = w->kept * row + mdp_mlp_memory(w->model, w->type, moe->shared_ff, &w->share, w->n_thread);
    return w->n_stream * w->kept * slots_of(w) * row + list_bytes(w, n_row) + round_bytes(w, moe) +
           activation_bytes(w, moe) + shared;
}

/* ---- a pass -------------------------------------------------------------------------------------------------- */

/* Of the buffers of the exchange: two in each direction, filled in turn; rows that stay go through none. */
static int64_t message_bytes(const work *w) {
    int64_t slot = MDP_MESSAGE_BYTES / 4,
            row = mdp_dispatch_longest_row(w->comm, w->model, w->activations ? w->widest : 0), most = 0;
    for (int64_t l = 0; l < w->model->n_layer; l++)
        if (w->model->layers[l].is_moe) most = mdp_larger(most, room_of(w, &w->model->layers[l].moe).n_row * row);
    if (w->comm->size == 1) return 0;
    return mdp_memory_taken(MDP_MESSAGE_BYTES, most > slot ? MDP_MESSAGE_BYTES : 2 * slot);
}

/* The most that any layer takes beside what stays. */
static int64_t largest_layer(const work *w) {
    int64_t most = w->attention;
    for (int64_t l = 0; l < w->model->n_layer; l++) {
        const mdp_layer *layer = &w->model->layers[l];
        int64_t router = w->n_roster * w->model->d_model * (int64_t)sizeof(float);
        int64_t own = layer->is_moe
                          ? mdp_larger(router, block_bytes(w, &layer->moe))
                          : mdp_dense_memory(w->model, w->type, w->partition, layer->dense_ff, &w->share, w->n_thread);
        most = mdp_larger(most, own);
    }
    return most;
}

/* What a rank takes while it attends, beside what it shares. */
static int64_t attention_bytes(const mdp_model *model, const shares *of, int n_stream, int n_thread) {
    int64_t alone = of->alone.n_token == 0 ? 0
                                           : mdp_attention_row_bytes(model, &of->alone, n_stream) +
                                                 mdp_attention_memory(model, &of->alone, n_stream, n_thread);
    return mdp_larger(alone, mdp_attention_memory(model, &of->together, n_stream, n_thread));
}

/* Experts that a token visits in any layer, as any stream sees it. */
static int32_t most_used(const mdp_model *model, const mdp_pass *pass) {
    int64_t most = 0;
    for (int64_t l = 0; l < model->n_layer; l++) {
        if (!model->layers[l].is_moe) continue;
        most = mdp_larger(most, model->layers[l].moe.top_k);
        for (int s = 0; pass->views && s < pass->n_stream; s++)
            most = mdp_larger(most, mdp_view_layer(model, pass->views[s], l).top_k);
    }
    return (int32_t)most;
}

int64_t mdp_engine_memory(const mdp_comm *comm, const mdp_model *model, const mdp_partition *partition, int n_thread,
                          mdp_gemm_type type, const mdp_pass *pass) {
    const shares most_of = largest_shares(comm, model, partition);
    work w = {.comm = comm,
              .model = model,
              .partition = partition,
              .n_thread = n_thread,
              .n_stream = pass->n_stream,
              .widest = mdp_widest_expert(model, pass->views, pass->n_stream),
              .activations = pass->activations,
              .aside_slots = pass->aside_slots,
              .projected = pass->projected,
              .type = type,
              .share = most_of.all,
              .attention = attention_bytes(model, &most_of, pass->n_stream, n_thread)};
    int64_t row = model->d_model * (int64_t)sizeof(float);
    find_wave(&w);
    w.top_k = most_used(model, pass);
    for (int64_t l = 0; l < model->n_layer; l++)
        w.n_roster = (int32_t)mdp_larger(w.n_roster, mdp_roster_most(model, l, pass->views, pass->n_stream));
    if (pass->aside_slots > 0) w.n_roster++; /* who is made */
    bool keeps_input = pass->redo_block || pass->aside_slots > 0;
    int64_t token = pass->n_stream * (row + 8 * w.top_k) + (keeps_input ? row : 0) + 8; /* and its id and category */
    token += pass->n_stream * pass->token_byte;
    int64_t angles = 2 * partition->longest * model->rope.n_pair * (int64_t)sizeof(float);
    int64_t most = largest_layer(&w);
    if (pass->with_head) most = mdp_larger(most, mdp_head_memory(&w.share, pass->n_stream, n_thread));
    const mdp_panel_size panel = mdp_largest_panel(model, pass->views, pass->n_stream, type);
    int64_t weights = mdp_feed_depth(n_thread) * panel.n_byte + panel.n_scratch;
    return w.share.n_token * token + (partition->n_batch > 1 ? pass->batches_byte : 0) + angles + weights + most +
           SHARED_BYTE + message_bytes(&w) + shared_bytes(comm, model, partition, pass->n_stream) +
           partition->n_pack * (int64_t)(sizeof(mdp_pack) + 2 * sizeof(int64_t));
}
