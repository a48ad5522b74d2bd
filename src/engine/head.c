/* head.c - final norm and lm_head, streamed over panels of the vocabulary.
 *
 * In: residual streams after the last layer; they become the final hidden states. Out: to the consumer, logits of row
 * tiles panel by panel, in ascending order, the first branch's beside those of every other; nobody ever holds a row of
 * the whole vocabulary. Tiles are cut from each pack's first row. */
#include "engine/head.h"
#include "engine/linear.h"
#include "engine/norm.h"

#include <omp.h>

#define TILES_PER_THREAD 4 /* tiles whose logits of the first branch are held together, for each thread */
#define LOGITS (MDP_TILE_ROWS * MDP_PANEL_ROWS)

/* Rows of one tile, in every branch. */
typedef struct head_tile {
    int64_t first_local;
    int32_t n_row;
} head_tile;

typedef struct head_buffers {
    int64_t n_tile;
    head_tile *tiles; /* [n_tile] */
    int64_t n_held;   /* tiles of a group */
    float *first;     /* [n_held, MDP_TILE_ROWS, MDP_PANEL_ROWS] the first branch's logits of a group */
    float *other;     /* [n_thread, MDP_TILE_ROWS, MDP_PANEL_ROWS] another branch's, while they are taken */
    float *norm;      /* as loaded */
    float *bias;      /* [vocab_size] or NULL */
    mdp_panel_list panels;
} head_buffers;

static void normalise_tile(const mdp_engine *engine, const head_buffers *buffers, int64_t item,
                           const mdp_head_consumer *consumer) {
    const head_tile *tile = &buffers->tiles[item % buffers->n_tile];
    int branch = (int)(item / buffers->n_tile);
    int64_t d = engine->model->d_model;
    float *x = engine->branches[branch].x + tile->first_local * d;
    for (int32_t i = 0; i < tile->n_row; i++) {
        mdp_norm_row(engine->model, buffers->norm, x + i * d, x + i * d);
    }
    if (consumer->hidden) consumer->hidden(consumer->context, branch, tile->first_local, tile->n_row, x);
}

/* Logits as the model has them, out of products with rows of lm_head. */
static void finish_logits(const mdp_engine *engine, const head_buffers *buffers, const head_tile *tile,
                          const mdp_panel *panel, float *logits) {
    float divisor = (float)engine->model->logit_divisor;
    for (int32_t i = 0; i < tile->n_row; i++, logits += MDP_PANEL_ROWS) {
        if (buffers->bias) mdp_axpy(1.0F, buffers->bias + panel->row0, panel->n_row, logits);
        for (int64_t j = 0; j < panel->n_row && divisor != 1.0F; j++) logits[j] /= divisor;
    }
}

static void take_panel(const mdp_engine *engine, const head_buffers *buffers, const head_tile *tile, int branch,
                       const mdp_panel *panel, const float *first, float *logits, const mdp_head_consumer *consumer) {
    int d = (int)engine->model->d_model;
    mdp_gemm_weights(engine->gemm, tile->n_row, (int)panel->n_row, d,
                     engine->branches[branch].x + tile->first_local * d, d, panel->data, d, logits, MDP_PANEL_ROWS);
    finish_logits(engine, buffers, tile, panel, logits);
    mdp_logit_panel out = {.branch = branch,
                           .first_local = tile->first_local,
                           .n_row = tile->n_row,
                           .first_token = panel->row0,
                           .n_value = panel->n_row,
                           .logits = logits,
                           .first = first};
    consumer->panel(consumer->context, &out);
}

/* One panel for tiles begin .. begin + n - 1: the first branch's, which stay, then every other branch's beside them. */
static void take_group(const mdp_engine *engine, const head_buffers *buffers, int64_t begin, int64_t n,
                       const mdp_panel *panel, const mdp_head_consumer *consumer) {
    const head_tile *tiles = buffers->tiles + begin;
    for (int64_t t = 0; t < n; t++)
        mdp_profile_flop(engine->profile,
                         2 * engine->n_branch * tiles[t].n_row * panel->n_row * engine->model->d_model);
#pragma omp parallel num_threads(engine->n_thread)
    {
#pragma omp for schedule(dynamic, 1)
        for (int64_t t = 0; t < n; t++) {
            take_panel(engine, buffers, &tiles[t], 0, panel, NULL, buffers->first + t * LOGITS, consumer);
        }
#pragma omp for schedule(dynamic, 1)
        for (int64_t item = n; item < n * engine->n_branch; item++) {
            int64_t t = item % n;
            take_panel(engine, buffers, &tiles[t], (int)(item / n), panel, buffers->first + t * LOGITS,
                       buffers->other + (int64_t)omp_get_thread_num() * LOGITS, consumer);
        }
    }
}

/* Every panel for all tiles. The feed has begun with them. */
static mdp_status feed_panels(mdp_engine *engine, const head_buffers *buffers, const mdp_head_consumer *consumer) {
    for (int64_t p = 0; p < buffers->panels.n; p++) {
        mdp_panel panel;
        MDP_TRY(mdp_panel_feed_wait(engine->feed, 0, 1, &panel));
        for (int64_t begin = 0; begin < buffers->n_tile; begin += buffers->n_held) {
            int64_t left = buffers->n_tile - begin;
            take_group(engine, buffers, begin, left < buffers->n_held ? left : buffers->n_held, &panel, consumer);
        }
        mdp_panel_feed_pass(engine->feed, 1);
    }
    return mdp_ok();
}

static mdp_status take_all_panels(mdp_engine *engine, head_buffers *buffers, const mdp_head_consumer *consumer) {
    MDP_TRY(mdp_panel_feed_start(engine->feed, buffers->panels.items, buffers->panels.n));
#pragma omp parallel for schedule(dynamic, 1) num_threads(engine->n_thread)
    for (int64_t item = 0; item < buffers->n_tile * engine->n_branch; item++) {
        normalise_tile(engine, buffers, item, consumer);
    }
    MDP_TRY(feed_panels(engine, buffers, consumer));
    if (!consumer->again) return mdp_gemm_check(engine->gemm);
    const mdp_head_consumer second = {.panel = consumer->again, .context = consumer->context};
    mdp_panel_feed_stop(engine->feed);
    MDP_TRY(mdp_panel_feed_start(engine->feed, buffers->panels.items, buffers->panels.n));
    MDP_TRY(feed_panels(engine, buffers, &second));
    return mdp_gemm_check(engine->gemm);
}

/* Tiles of this rank's packs; with `tiles` NULL only their number. */
static int64_t cut_tiles(const mdp_engine *engine, head_tile *tiles) {
    int64_t n_tile = 0;
    for (int64_t p = 0; p < engine->batch.n_pack; p++) {
        const mdp_pack *pack = &engine->partition->packs[engine->batch.first_pack + p];
        for (int64_t row = 0; row < pack->n_token; row += MDP_TILE_ROWS, n_tile++) {
            int64_t left = pack->n_token - row;
            if (!tiles) continue;
            tiles[n_tile] = (head_tile){.first_local = pack->first_token - engine->batch.first_token + row,
                                        .n_row = (int32_t)(left < MDP_TILE_ROWS ? left : MDP_TILE_ROWS)};
        }
    }
    return n_tile;
}

static int64_t held_tiles(int n_thread) {
    return (int64_t)TILES_PER_THREAD * n_thread;
}

static mdp_status new_buffers(mdp_engine *engine, head_buffers *buffers) {
    buffers->n_tile = cut_tiles(engine, NULL);
    buffers->n_held = held_tiles(engine->n_thread);
    if (buffers->n_held > buffers->n_tile) buffers->n_held = buffers->n_tile;
    MDP_TRY(MDP_TAKE(engine->stack, &buffers->tiles, buffers->n_tile, "tiles of the head"));
    cut_tiles(engine, buffers->tiles);
    MDP_TRY(MDP_TAKE(engine->stack, &buffers->first, buffers->n_held * LOGITS, "logits"));
    if (engine->n_branch > 1)
        MDP_TRY(MDP_TAKE(engine->stack, &buffers->other, (int64_t)engine->n_thread * LOGITS, "logits"));
    MDP_TRY(mdp_norm_load(engine, &engine->model->final_norm, &buffers->norm));
    if (engine->model->head_bias.tensor) MDP_TRY(mdp_engine_load(engine, &engine->model->head_bias, &buffers->bias));
    return mdp_panel_list_add(&buffers->panels, &engine->model->head);
}

int64_t mdp_head_memory(const mdp_rank_share *share, int n_stream, int n_thread) {
    int64_t held = held_tiles(n_thread) < share->n_tile ? held_tiles(n_thread) : share->n_tile;
    return (held + (n_stream > 1 ? n_thread : 0)) * LOGITS * (int64_t)sizeof(float);
}

mdp_status mdp_engine_head_all(mdp_engine *engine, const mdp_head_consumer *consumer) {
    head_buffers buffers = {0};
    mdp_status status = mdp_ok();
    mdp_mark mark = mdp_stack_mark(engine->stack);
    mdp_phase before = mdp_profile_switch(engine->profile, MDP_PHASE_HEAD);
    if (engine->batch.n_token > 0) {
        status = new_buffers(engine, &buffers);
        if (status.code == MDP_OK) status = take_all_panels(engine, &buffers, consumer);
        mdp_panel_feed_stop(engine->feed);
    }
    mdp_free(buffers.norm);
    mdp_free(buffers.bias);
    mdp_free(buffers.panels.items);
    mdp_stack_return(engine->stack, mark);
    status = mdp_engine_agree_all(engine, status);
    mdp_profile_switch(engine->profile, before);
    return status;
}
