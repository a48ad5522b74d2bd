/* head.c - final norm and lm_head, streamed over panels of the vocabulary.
 *
 * In: residual streams after the last layer. Out: to the consumer, logits of row tiles panel by panel, in ascending
 * order; nobody ever holds a row of the whole vocabulary. Tiles are cut from each pack's first row. */
#include "engine/engine.h"

/* One tile of the head. */
typedef struct head_tile {
    int state;
    int64_t first_local;
    int32_t n_row;
} head_tile;

typedef struct head_buffers {
    int64_t n_tile;   /* of a group */
    head_tile *tiles; /* [n_tile] */
    float *hidden;    /* [n_tile, MDP_TILE_ROWS, d_model] */
    float *logits;    /* [n_tile, MDP_TILE_ROWS, MDP_PANEL_ROWS] */
    float *norm;      /* [d_model] */
    mdp_panel_list panels;
} head_buffers;

static void normalise_tile(const mdp_engine *engine, const head_buffers *buffers, int64_t number) {
    const head_tile *tile = &buffers->tiles[number];
    int64_t d = engine->model->d_model;
    float *hidden = buffers->hidden + number * MDP_TILE_ROWS * d;
    for (int32_t i = 0; i < tile->n_row; i++) {
        mdp_rms_norm(engine->states[tile->state].x + (tile->first_local + i) * d, buffers->norm,
                     engine->model->norm_eps, d, hidden + i * d);
    }
}

static void take_panel(const mdp_engine *engine, const head_buffers *buffers, int64_t number, const mdp_panel *panel,
                       const mdp_head_consumer *consumer) {
    const head_tile *tile = &buffers->tiles[number];
    int d = (int)engine->model->d_model;
    float *logits = buffers->logits + number * MDP_TILE_ROWS * MDP_PANEL_ROWS;
    mdp_gemm_nt(tile->n_row, (int)panel->n_row, d, buffers->hidden + number * MDP_TILE_ROWS * d, d, panel->data, d,
                logits, MDP_PANEL_ROWS);
    mdp_logit_panel out = {.state = tile->state,
                           .first_local = tile->first_local,
                           .n_row = tile->n_row,
                           .first_token = panel->row0,
                           .n_value = panel->n_row,
                           .logits = logits};
    consumer->panel(consumer->context, &out);
}

static mdp_status head_group(mdp_engine *engine, head_buffers *buffers, int64_t n_tile,
                             const mdp_head_consumer *consumer) {
    int64_t d = engine->model->d_model;
    MDP_TRY(mdp_panel_stream_start(engine->stream, buffers->panels.items, buffers->panels.n));
#pragma omp parallel for schedule(dynamic, 1) num_threads(engine->n_thread)
    for (int64_t t = 0; t < n_tile; t++) {
        normalise_tile(engine, buffers, t);
        if (consumer->hidden) {
            consumer->hidden(consumer->context, buffers->tiles[t].state, buffers->tiles[t].first_local,
                             buffers->tiles[t].n_row, buffers->hidden + t * MDP_TILE_ROWS * d);
        }
    }
    for (int64_t p = 0; p < buffers->panels.n; p++) {
        mdp_panel panel;
        MDP_TRY(mdp_panel_stream_next(engine->stream, 1, &panel));
#pragma omp parallel for schedule(dynamic, 1) num_threads(engine->n_thread)
        for (int64_t t = 0; t < n_tile; t++) take_panel(engine, buffers, t, &panel, consumer);
    }
    return mdp_ok();
}

static mdp_status new_buffers(mdp_engine *engine, head_buffers *buffers) {
    int64_t d = engine->model->d_model, n = mdp_group_tiles(engine->n_thread);
    buffers->n_tile = n;
    MDP_TRY(MDP_ALLOC(&buffers->tiles, n, "tiles of the head"));
    MDP_TRY(MDP_ALLOC(&buffers->hidden, n * MDP_TILE_ROWS * d, "final hidden states"));
    MDP_TRY(MDP_ALLOC(&buffers->logits, n * MDP_TILE_ROWS * MDP_PANEL_ROWS, "logits"));
    MDP_TRY(mdp_matrix_load(engine->reader, &engine->model->final_norm, &buffers->norm));
    return mdp_panel_list_add(&buffers->panels, &engine->model->head);
}

int64_t mdp_head_memory(const mdp_model *model, int n_thread) {
    return mdp_group_tiles(n_thread) * MDP_TILE_ROWS * (model->d_model + MDP_PANEL_ROWS) * (int64_t)sizeof(float);
}

static mdp_status head_all_groups(mdp_engine *engine, head_buffers *buffers, const mdp_head_consumer *consumer) {
    int64_t n_tile = 0;
    for (int s = 0; s < engine->n_state; s++) {
        for (int64_t p = 0; p < engine->batch.n_pack; p++) {
            const mdp_pack *pack = &engine->partition->packs[engine->batch.first_pack + p];
            for (int64_t row = 0; row < pack->n_token; row += MDP_TILE_ROWS) {
                int64_t left = pack->n_token - row;
                buffers->tiles[n_tile++] =
                    (head_tile){.state = s,
                                .first_local = pack->first_token - engine->batch.first_token + row,
                                .n_row = (int32_t)(left < MDP_TILE_ROWS ? left : MDP_TILE_ROWS)};
                if (n_tile < buffers->n_tile) continue;
                MDP_TRY(head_group(engine, buffers, n_tile, consumer));
                n_tile = 0;
            }
        }
    }
    return n_tile > 0 ? head_group(engine, buffers, n_tile, consumer) : mdp_ok();
}

mdp_status mdp_engine_head_all(mdp_engine *engine, const mdp_head_consumer *consumer) {
    head_buffers buffers = {0};
    mdp_status status = mdp_ok();
    if (engine->batch.n_token > 0) {
        status = new_buffers(engine, &buffers);
        if (status.code == MDP_OK) status = head_all_groups(engine, &buffers, consumer);
        mdp_panel_stream_stop(engine->stream);
    }
    mdp_free(buffers.tiles);
    mdp_free(buffers.hidden);
    mdp_free(buffers.logits);
    mdp_free(buffers.norm);
    mdp_free(buffers.panels.items);
    return mdp_agree_all(engine->comm, status);
}
