/* mlp.c - what every token meets: the MLP of a dense layer, and the shared expert of a MoE block. Data-parallel: each
 * rank runs its own tokens, tiled from each pack's first row, in groups of tiles that share widened panels. */
#include "engine/mlp.h"
#include "engine/attention.h"
#include "engine/gated.h"
#include "engine/moe.h"
#include "engine/norm.h"

#include <math.h>

/* A tile of local rows. */
typedef struct local_tile {
    int64_t first; /* row of the branch */
    int32_t n_row;
} local_tile;

typedef struct mlp_buffers {
    int64_t n_tile;          /* of a group */
    local_tile *tiles;       /* [n_tile] */
    mdp_gated_tile *outputs; /* [n_tile] */
    mdp_gated_room room;     /* of n_tile places */
    float *up;               /* [n_thread, MDP_TILE_ROWS, MDP_PANEL_ROWS] */
    mdp_panel_list panels;
} mlp_buffers;

static mdp_status new_buffers(mdp_engine *engine, const mdp_mlp *mlp, mlp_buffers *buffers) {
    int64_t n = mdp_group_tiles(engine->n_thread);
    buffers->n_tile = n;
    MDP_TRY(MDP_TAKE(engine->stack, &buffers->tiles, n, "tiles of an MLP"));
    MDP_TRY(MDP_TAKE(engine->stack, &buffers->outputs, n, "tiles of an MLP"));
    MDP_TRY(mdp_gated_take_room(engine, n, mlp->d_ff, &buffers->room));
    return MDP_TAKE(engine->stack, &buffers->up, (int64_t)engine->n_thread * MDP_TILE_ROWS * MDP_PANEL_ROWS,
                    "MLP scratch");
}

/* What the tiles of a group have in common. */
typedef struct mlp_tiles {
    const mdp_model *model;
    const mdp_mlp *mlp;
    const mdp_branch *branch;
    const mlp_buffers *buffers;
} mlp_tiles;

/* Normalise the inputs of a tile. */
static void load_tile(void *context, int64_t number, float *x) {
    const mlp_tiles *tiles = context;
    const local_tile *tile = &tiles->buffers->tiles[number];
    int64_t d = tiles->model->d_model;
    for (int64_t row = tile->first; row < tile->first + tile->n_row; row++, x += d)
        mdp_norm_row(tiles->model, tiles->mlp->norm, tiles->branch->x + row * d, x);
}

/* Scale every output row by the sigmoid of its gate. */
static mdp_status gate_tile(void *context, int64_t number, const float *x, const float *h, const float *projected) {
    (void)h;
    (void)projected;
    const mlp_tiles *tiles = context;
    const mdp_gated_tile *tile = &tiles->buffers->outputs[number];
    int64_t d = tiles->model->d_model;
    float *y = tile->y;
    for (int32_t i = 0; i < tile->n_row; i++, x += d, y += d) {
        double z = mdp_dot(x, tiles->mlp->output_gate, d);
        float scale = (float)(1.0 / (1.0 + exp(-z)));
        for (int64_t j = 0; j < d; j++) y[j] *= scale;
    }
    return mdp_ok();
}

/* out: row of the branch's first output row. */
static mdp_status compute_group(mdp_engine *engine, const mdp_mlp *mlp, const mdp_branch *branch, mlp_buffers *buffers,
                                int64_t n_tile, int64_t first_local, float *out) {
    int64_t d = engine->model->d_model;
    const mdp_gated_group group = {.expert = mlp->expert, .n_tile = n_tile};
    mlp_tiles context = {.model = engine->model, .mlp = mlp, .branch = branch, .buffers = buffers};
    for (int64_t t = 0; t < n_tile; t++) {
        const local_tile *tile = &buffers->tiles[t];
        buffers->outputs[t] = (mdp_gated_tile){.y = out + (tile->first - first_local) * d, .n_row = tile->n_row};
        if (mlp->output_gate) mdp_profile_flop(engine->profile, 2 * d * tile->n_row);
    }
    const mdp_gated_walk walk = {.engine = engine,
                                 .gating = {.activation = mlp->activation},
                                 .groups = &group,
                                 .n_group = 1,
                                 .tiles = buffers->outputs,
                                 .room = &buffers->room,
                                 .up = buffers->up,
                                 .panels = &buffers->panels,
                                 .load = load_tile,
                                 .finish = mlp->output_gate ? gate_tile : NULL,
                                 .context = &context};
    return mdp_gated_run(&walk);
}

static mdp_status compute_groups(mdp_engine *engine, const mdp_mlp *mlp, const mdp_branch *branch, mlp_buffers *buffers,
                                 int64_t first_local, int64_t n_local, float *out) {
    int64_t n_tile = 0;
    for (int64_t p = 0; p < engine->batch.n_pack; p++) {
        const mdp_pack *pack = &engine->partition->packs[engine->batch.first_pack + p];
        int64_t first = pack->first_token - engine->batch.first_token;
        if (first < first_local || first >= first_local + n_local) continue;
        for (int64_t row = 0; row < pack->n_token; row += MDP_TILE_ROWS) {
            int64_t left = pack->n_token - row;
            buffers->tiles[n_tile++] =
                (local_tile){.first = first + row, .n_row = (int32_t)(left < MDP_TILE_ROWS ? left : MDP_TILE_ROWS)};
            if (n_tile < buffers->n_tile) continue;
            MDP_TRY(compute_group(engine, mlp, branch, buffers, n_tile, first_local, out));
            n_tile = 0;
        }
    }
    return n_tile > 0 ? compute_group(engine, mlp, branch, buffers, n_tile, first_local, out) : mdp_ok();
}

mdp_status mdp_mlp_compute(mdp_engine *engine, const mdp_mlp *mlp, const mdp_branch *branch, int64_t first_local,
                           int64_t n_local, float *out) {
    mlp_buffers buffers = {0};
    mdp_status status = mdp_ok();
    mdp_mark mark = mdp_stack_mark(engine->stack);
    if (n_local > 0) {
        status = new_buffers(engine, mlp, &buffers);
        if (status.code == MDP_OK) {
            status = compute_groups(engine, mlp, branch, &buffers, first_local, n_local, out);
        }
        mdp_panel_feed_stop(engine->feed);
    }
    mdp_free(buffers.panels.items);
    mdp_stack_return(engine->stack, mark);
    return status;
}

/* Rows of whole packs that a dense layer computes before it adds them. */
static int64_t pack_rows(const mdp_partition *partition) {
    int64_t most = 0;
    for (int64_t p = 0; p < partition->n_pack; p++) {
        if (partition->packs[p].n_token > most) most = partition->packs[p].n_token;
    }
    return most > MDP_ATTENTION_ROWS ? most : MDP_ATTENTION_ROWS;
}

int64_t mdp_mlp_memory(const mdp_model *model, mdp_gemm_type type, int64_t d_ff, const mdp_rank_share *share,
                       int n_thread) {
    int64_t room = mdp_group_tiles(n_thread), n_tile = share->n_tile < room ? share->n_tile : room;
    return mdp_gated_room_memory(model, type, room, d_ff, n_tile * MDP_TILE_ROWS) +
           n_thread * MDP_PANEL_ROWS * MDP_TILE_ROWS * (int64_t)sizeof(float);
}

int64_t mdp_dense_memory(const mdp_model *model, mdp_gemm_type type, const mdp_partition *partition, int64_t d_ff,
                         const mdp_rank_share *share, int n_thread) {
    int64_t most = pack_rows(partition), used = share->n_token < most ? share->n_token : most;
    int64_t row_byte = model->d_model * (int64_t)sizeof(float);
    return mdp_memory_taken(most * row_byte, used * row_byte) + mdp_mlp_memory(model, type, d_ff, share, n_thread);
}

int64_t mdp_mlp_groups(const mdp_pack *packs, int64_t n_pack, int n_thread) {
    int64_t n_tile = 0, room = mdp_group_tiles(n_thread);
    for (int64_t p = 0; p < n_pack; p++) n_tile += (packs[p].n_token + MDP_TILE_ROWS - 1) / MDP_TILE_ROWS;
    return (n_tile + room - 1) / room;
}

int64_t mdp_dense_groups(const mdp_partition *partition, const mdp_pack *packs, int64_t n_pack, int n_thread) {
    int64_t most = pack_rows(partition), n_group = 0, first = 0, n = 0;
    for (int64_t p = 0; p < n_pack; p++) {
        if (n + packs[p].n_token > most) {
            n_group += mdp_mlp_groups(packs + first, p - first, n_thread);
            first = p;
            n = 0;
        }
        n += packs[p].n_token;
    }
    return n_group + mdp_mlp_groups(packs + first, n_pack - first, n_thread);
}

/* One run of whole packs of a branch. */
static mdp_status dense_rows(mdp_engine *engine, const mdp_mlp *mlp, mdp_branch *branch, int64_t first, int64_t n,
                             float *out) {
    int64_t d = engine->model->d_model;
    MDP_TRY(mdp_mlp_compute(engine, mlp, branch, first, n, out));
#pragma omp parallel for schedule(static) num_threads(engine->n_thread)
    for (int64_t i = 0; i < n; i++) {
        mdp_axpy((float)engine->model->residual_scale, out + i * d, d, branch->x + (first + i) * d);
    }
    return mdp_ok();
}

static mdp_status dense_branch(mdp_engine *engine, const mdp_mlp *mlp, mdp_branch *branch, int64_t most, float *out) {
    int64_t first = 0, n = 0;
    for (int64_t p = 0; p < engine->batch.n_pack; p++) {
        const mdp_pack *pack = &engine->partition->packs[engine->batch.first_pack + p];
        if (n + pack->n_token > most) {
            MDP_TRY(dense_rows(engine, mlp, branch, first, n, out));
            first += n;
            n = 0;
        }
        n += pack->n_token;
    }
    return n > 0 ? dense_rows(engine, mlp, branch, first, n, out) : mdp_ok();
}

mdp_status mdp_dense(mdp_engine *engine, const mdp_layer *layer) {
    int64_t most = pack_rows(engine->partition);
    float *norm = NULL, *out = NULL;
    mdp_mark mark = mdp_stack_mark(engine->stack);
    mdp_status status = mdp_norm_load(engine, &layer->norm2, &norm);
    if (status.code == MDP_OK)
        status = MDP_TAKE(engine->stack, &out, most * engine->model->d_model, "outputs of an MLP");
    mdp_mlp mlp = {.expert = &layer->dense, .d_ff = layer->dense_ff, .activation = layer->activation, .norm = norm};
    for (int s = 0; status.code == MDP_OK && s < engine->n_branch; s++) {
        status = dense_branch(engine, &mlp, &engine->branches[s], most, out);
    }
    mdp_free(norm);
    mdp_stack_return(engine->stack, mark);
    return status;
}
