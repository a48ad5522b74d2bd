/* attention.c - the attention block over the packs of a team: grouped-query, latent and linear.
 *
 * In: residual streams of all branches. Out: x += o_proj(softmax(q k^T scale + mask) v). Latent attention makes keys
 * and values of all heads from one short row of each token, whose last values are rotated keys for all heads; those are
 * held once, and added to the scores by a product of their own. Packs of all branches go through in groups of about
 * MDP_ATTENTION_ROWS rows for each rank, so that a panel read once serves them all; projections are tiled from each
 * pack's first row. A team of one rank attends to its own packs. In a team of several, rows lie in the memory of the
 * node: who holds a pack puts its normalised rows there and fetches what o_proj makes of them, everything between is
 * dealt (deal.c). After each step the members meet; one that failed meets the others too, and all leave together. */
#include "engine/attention.h"
#include "engine/norm.h"

#include <omp.h>
#include <string.h>

/* ---- memory -------------------------------------------------------------------------------------------------- */

int64_t mdp_attention_memory(const mdp_model *model, const mdp_rank_share *share, int n_stream, int n_thread) {
    int64_t tile = (int64_t)MDP_QUERY_ROWS * (MDP_KEY_ROWS + mdp_head_values(model)) + 2 * model->rope.n_pair;
    if (model->delta.n_value > 0 && mdp_delta_scratch(&model->delta) > tile) tile = mdp_delta_scratch(&model->delta);
    int64_t rows = mdp_pack_group_rows(model, share, n_stream);
    int64_t n_query = rows / MDP_QUERY_ROWS + rows, n_used = rows / MDP_QUERY_ROWS + n_stream * share->n_sequence;
    int64_t query_byte = model->n_head * (int64_t)sizeof(mdp_query_tile);
    return n_thread * tile * (int64_t)sizeof(float) +
           mdp_memory_taken(n_query * query_byte, (n_used < n_query ? n_used : n_query) * query_byte);
}

mdp_status mdp_engine_check_length(const mdp_model *model, int64_t n_token) {
    int64_t most = model->most_tokens;
    if (most <= 0 || n_token <= most) return mdp_ok();
    return MDP_ERROR(MDP_BAD_INPUT,
                     "a sequence has %lld tokens; beyond %lld (index_topk) this model attends to tokens chosen by its "
                     "indexer, which is not computed here; cut the text into sequences of at most %lld.",
                     (long long)n_token, (long long)most, (long long)most);
}

mdp_status mdp_attention_prepare(mdp_engine *engine) {
    const mdp_rope *rope = &engine->model->rope;
    int64_t n = engine->partition->longest;
    MDP_TRY(mdp_engine_check_length(engine->model, n));
    MDP_TRY(MDP_ALLOC(&engine->cosine, n * rope->n_pair, "rotation angles"));
    MDP_TRY(MDP_ALLOC(&engine->sine, n * rope->n_pair, "rotation angles"));
    for (int64_t i = 0; i < n; i++) {
        mdp_rope_angles(rope, 1, i, engine->cosine + i * rope->n_pair, engine->sine + i * rope->n_pair);
    }
    return mdp_ok();
}

/* ---- what is whose ------------------------------------------------------------------------------------------- */

/* This rank's of n rows that are dealt evenly. */
static void own_rows(const mdp_engine *engine, const mdp_attention_buffers *buffers, int64_t *first, int64_t *end) {
    int64_t n = buffers->group.n_row, n_rank = engine->team.n_rank, member = engine->team.member;
    *first = n * member / n_rank;
    *end = n * (member + 1) / n_rank;
}

/* The first row of a pack in its residual stream, where this rank holds it. */
static float *own_pack(const mdp_engine *engine, const mdp_pack_group_item *item) {
    if (item->member != engine->team.member) return NULL;
    return engine->branches[item->branch].x +
           (item->pack->first_token - engine->batch.first_token) * engine->model->d_model;
}

typedef struct share {
    const mdp_engine *engine;
    mdp_attention_buffers *buffers;
} share;

static void take_item(void *context, int member, int number, int64_t item, int64_t flop) {
    const share *own = context;
    mdp_projection *projection = &own->buffers->projections[number];
    (void)flop;
    if (member != own->engine->team.member) return;
    if (projection->first == projection->end) projection->first = item;
    projection->end = item + 1;
}

static void take_query(void *context, int member, const mdp_query_tile *tile) {
    const share *own = context;
    if (member == own->engine->team.member) own->buffers->queries[own->buffers->n_query++] = *tile;
}

/* List what this rank computes of the group, and the panels that it needs for that. */
static mdp_status take_share(mdp_engine *engine, const mdp_attention *attention, mdp_attention_buffers *buffers) {
    share own = {engine, buffers};
    int64_t n_tile = buffers->group.n_tile;
    for (int i = 0; i < MDP_N_PROJECTION; i++) buffers->projections[i].first = buffers->projections[i].end = 0;
    buffers->n_query = buffers->panels.n = 0;
    mdp_deal_items(attention, &buffers->group, engine->team.n_rank, take_item, &own);
    mdp_deal_queries(engine->model, engine->tokens, attention, &buffers->group, engine->team.n_rank, take_query, &own);
    for (int i = 0; i < MDP_N_PROJECTION; i++) {
        const mdp_projection *projection = &buffers->projections[i];
        if (projection->first == projection->end) continue;
        MDP_TRY(mdp_panel_list_add_run(&buffers->panels, projection->matrix, projection->first / n_tile,
                                       (projection->end + n_tile - 1) / n_tile));
    }
    return mdp_panel_feed_start(engine->feed, buffers->panels.items, buffers->panels.n);
}

/* ---- steps of a group ---------------------------------------------------------------------------------------- */

static void normalise_packs(const mdp_engine *engine, const mdp_attention_buffers *buffers) {
    int64_t d = engine->model->d_model;
    for (int64_t p = 0; p < buffers->group.n_pack; p++) {
        const mdp_pack_group_item *item = &buffers->group.packs[p];
        const float *x = own_pack(engine, item);
        if (!x) continue;
#pragma omp parallel for schedule(static) num_threads(engine->n_thread)
        for (int64_t i = 0; i < item->pack->n_token; i++) {
            mdp_norm_row(engine->model, buffers->norm, x + i * d, buffers->x + (item->first + i) * d);
        }
    }
}

static void add_packs(const mdp_engine *engine, const mdp_attention_buffers *buffers) {
    int64_t d = engine->model->d_model;
    for (int64_t p = 0; p < buffers->group.n_pack; p++) {
        const mdp_pack_group_item *item = &buffers->group.packs[p];
        float *x = own_pack(engine, item);
        if (!x) continue;
#pragma omp parallel for schedule(static) num_threads(engine->n_thread)
        for (int64_t i = 0; i < item->pack->n_token; i++) {
            mdp_axpy((float)engine->model->residual_scale, buffers->x + (item->first + i) * d, d, x + i * d);
        }
    }
}

/* Tiles of a projection: each pack from its first row. */
static void list_tiles(const mdp_attention_buffers *buffers, const mdp_projection *projection) {
    int64_t n = 0;
    for (int64_t p = 0; p < buffers->group.n_pack; p++) {
        const mdp_pack_group_item *item = &buffers->group.packs[p];
        for (int64_t row = 0; row < item->pack->n_token; row += MDP_TILE_ROWS) {
            int64_t left = item->pack->n_token - row, at = item->first + row;
            buffers->tiles[n++] = (mdp_rows){.x = projection->x + at * projection->ldx,
                                             .ldx = projection->ldx,
                                             .y = projection->y + at * projection->ldy,
                                             .ldy = projection->ldy,
                                             .n_row = (int32_t)(left < MDP_TILE_ROWS ? left : MDP_TILE_ROWS)};
        }
    }
}

/* This rank's items of all projections of a step. */
static mdp_status project(mdp_engine *engine, const mdp_attention_buffers *buffers, int step) {
    for (int i = 0; i < MDP_N_PROJECTION; i++) {
        const mdp_projection *projection = &buffers->projections[i];
        if (mdp_projection_step[i] != step || projection->first == projection->end) continue;
        list_tiles(buffers, projection);
        MDP_TRY(mdp_linear_take_items(engine, projection->matrix, projection->bias, buffers->tiles,
                                      buffers->group.n_tile, projection->first, projection->end));
    }
    return mdp_ok();
}

/* Norms of latent queries, keys and values. */
static void normalise_latent(const mdp_engine *engine, const mdp_attention_buffers *buffers) {
    const mdp_latent *n = &engine->model->latent;
    int64_t first, end, ld = n->kv_rank + n->n_rope;
    own_rows(engine, buffers, &first, &end);
#pragma omp parallel for schedule(static) num_threads(engine->n_thread)
    for (int64_t i = first; i < end; i++) {
        float *q = buffers->q_latent + i * n->q_rank, *kv = buffers->latent + i * ld;
        if (n->q_rank > 0) mdp_rms_norm(q, buffers->latent_norm[0], MDP_LATENT_EPS, n->q_rank, q);
        mdp_rms_norm(kv, buffers->latent_norm[1], MDP_LATENT_EPS, n->kv_rank, kv);
    }
}

/* One head of one sequence of linear attention, by this thread. */
static void mix_head(const mdp_engine *engine, const mdp_attention *a, const mdp_attention_buffers *buffers,
                     const mdp_query_tile *tile) {
    const mdp_delta_sizes *n = &engine->model->delta;
    const mdp_delta_job job = {.gemm = engine->gemm,
                               .sizes = n,
                               .weights = &buffers->delta,
                               .activation = a->delta.activation,
                               .grouped = a->delta.grouped,
                               .norm_eps = engine->model->norm_eps,
                               .head = tile->head,
                               .length = tile->length,
                               .rows = buffers->mix + tile->first * mdp_delta_row_values(n),
                               .ld = mdp_delta_row_values(n),
                               .out = buffers->out + tile->first * buffers->heads.ldo,
                               .ldo = buffers->heads.ldo};
    mdp_delta_head(&job, buffers->delta_scratch + omp_get_thread_num() * mdp_delta_scratch(n));
}

/* This rank's tiles of queries, or heads of linear attention. */
static mdp_status attend_queries(mdp_engine *engine, const mdp_layer *layer, const mdp_attention_buffers *buffers) {
    bool linear = layer->attention.delta.kernel.tensor != NULL;
#pragma omp parallel for schedule(dynamic, 1) num_threads(engine->n_thread)
    for (int64_t i = 0; i < buffers->n_query; i++) {
        if (linear) {
            mix_head(engine, &layer->attention, buffers, &buffers->queries[i]);
        } else {
            mdp_attend_queries(engine, layer, buffers, &buffers->queries[i]);
        }
    }
    for (int64_t i = 0; i < buffers->n_query; i++) mdp_profile_flop(engine->profile, buffers->queries[i].flop);
    return mdp_gemm_check(engine->gemm);
}

/* The inputs of the heads, from normalised rows. Collective on the team. */
static mdp_status project_inputs_all(mdp_engine *engine, const mdp_layer *layer, const mdp_attention_buffers *buffers) {
    int64_t first, end;
    own_rows(engine, buffers, &first, &end);
    if (engine->model->latent.kv_rank > 0) {
        MDP_TRY(mdp_team_meet_all(engine, project(engine, buffers, 0)));
        normalise_latent(engine, buffers);
        MDP_TRY(mdp_team_meet_all(engine, mdp_ok()));
    }
    MDP_TRY(mdp_team_meet_all(engine, project(engine, buffers, 1)));
    if (layer->attention.delta.kernel.tensor) return mdp_ok();
    mdp_rotate_rows(engine, layer, buffers, first, end);
    return mdp_team_meet_all(engine, mdp_ok());
}

/* What the output projection reads. Collective on the team. */
static mdp_status attend_heads_all(mdp_engine *engine, const mdp_layer *layer, const mdp_attention_buffers *buffers) {
    int64_t first, end;
    own_rows(engine, buffers, &first, &end);
    MDP_TRY(mdp_team_meet_all(engine, attend_queries(engine, layer, buffers)));
    if (layer->attention.delta.kernel.tensor || engine->model->q_step == engine->model->head_dim) return mdp_ok();
    mdp_gate_rows(engine, buffers, first, end);
    return mdp_team_meet_all(engine, mdp_ok());
}

/* One group through the block. Collective on the team. */
static mdp_status attend_group_all(mdp_engine *engine, const mdp_layer *layer, mdp_attention_buffers *buffers) {
    mdp_status status = take_share(engine, &layer->attention, buffers);
    if (status.code == MDP_OK) normalise_packs(engine, buffers);
    MDP_TRY(mdp_team_meet_all(engine, status));
    MDP_TRY(project_inputs_all(engine, layer, buffers));
    MDP_TRY(attend_heads_all(engine, layer, buffers));
    MDP_TRY(mdp_team_meet_all(engine, project(engine, buffers, 2)));
    add_packs(engine, buffers);
    return mdp_ok();
}

/* ---- buffers of a layer -------------------------------------------------------------------------------------- */

static void destroy_buffers(mdp_attention_buffers *buffers) {
    mdp_delta_clear(&buffers->delta);
    for (int i = 0; i < 2; i++) mdp_free(buffers->latent_norm[i]);
    for (int i = 0; i < 2; i++) mdp_free(buffers->latent_bias[i]);
    mdp_free(buffers->norm);
    for (int i = 0; i < 4; i++) mdp_free(buffers->bias[i]);
    for (int i = 0; i < 2; i++) mdp_free(buffers->qk_norm[i]);
    mdp_free(buffers->sinks);
    mdp_free(buffers->panels.items);
}

static mdp_status load_optional(mdp_engine *engine, const mdp_matrix *matrix, float **out) {
    return matrix->tensor ? mdp_engine_load(engine, matrix, out) : mdp_ok();
}

/* Weights of a norm of queries or keys: stored ones, or 1. */
static mdp_status load_qk_norm(mdp_engine *engine, const mdp_attention *attention, const mdp_matrix *weights,
                               float **out) {
    if (attention->qk_norm == MDP_QK_NORM_NONE || weights->tensor) {
        MDP_TRY(load_optional(engine, weights, out));
        if (weights->tensor) mdp_norm_weights(engine->model, weights->n_col, *out);
        return mdp_ok();
    }
    int64_t n = attention->q.n_row > attention->k.n_row ? attention->q.n_row : attention->k.n_row;
    MDP_TRY(MDP_ALLOC(out, n, "weights of 1"));
    for (int64_t i = 0; i < n; i++) (*out)[i] = 1.0F;
    return mdp_ok();
}

/* Norms and biases of the layer's attention. */
static mdp_status load_vectors(mdp_engine *engine, const mdp_layer *layer, mdp_attention_buffers *buffers) {
    const mdp_attention *attention = &layer->attention;
    MDP_TRY(mdp_norm_load(engine, &layer->norm1, &buffers->norm));
    if (attention->delta.kernel.tensor) return mdp_delta_load(engine, &attention->delta, &buffers->delta);
    MDP_TRY(load_optional(engine, &attention->q_bias, &buffers->bias[0]));
    MDP_TRY(load_optional(engine, &attention->k_bias, &buffers->bias[1]));
    MDP_TRY(load_optional(engine, &attention->v_bias, &buffers->bias[2]));
    MDP_TRY(load_optional(engine, &attention->o_bias, &buffers->bias[3]));
    MDP_TRY(load_optional(engine, &attention->sinks, &buffers->sinks));
    MDP_TRY(load_optional(engine, &attention->q_a_norm, &buffers->latent_norm[0]));
    MDP_TRY(load_optional(engine, &attention->kv_a_norm, &buffers->latent_norm[1]));
    MDP_TRY(load_optional(engine, &attention->q_a_bias, &buffers->latent_bias[0]));
    MDP_TRY(load_optional(engine, &attention->kv_a_bias, &buffers->latent_bias[1]));
    MDP_TRY(load_qk_norm(engine, attention, &attention->q_norm, &buffers->qk_norm[0]));
    return load_qk_norm(engine, attention, &attention->k_norm, &buffers->qk_norm[1]);
}

/* n values for each row of a group, where all members of the team see them. */
static mdp_status take_rows(const mdp_engine *engine, mdp_attention_buffers *buffers, float **out, int64_t n,
                            const char *what) {
    if (engine->team.n_rank == 1) return MDP_TAKE(engine->stack, out, buffers->n_row * n, what);
    int64_t n_byte = buffers->n_row * n * (int64_t)sizeof(float);
    n_byte += (MDP_ROW_ALIGNMENT - n_byte % MDP_ROW_ALIGNMENT) % MDP_ROW_ALIGNMENT;
    if (n_byte > engine->shared->n_byte - buffers->n_taken)
        return MDP_ERROR(MDP_INTERNAL, "the memory of the node is too small for the rows of %s.", what);
    *out = (float *)(void *)(engine->shared->memory + buffers->n_taken);
    buffers->n_taken += n_byte;
    return mdp_ok();
}

/* Rows of keys, values and outputs where every head has its own projections. */
static mdp_status new_head_rows(const mdp_engine *engine, mdp_attention_buffers *buffers) {
    const mdp_model *model = engine->model;
    int64_t hd = model->head_dim, ldk = model->n_kv_head * hd;
    MDP_TRY(take_rows(engine, buffers, &buffers->q, model->n_head * model->q_step, "queries"));
    MDP_TRY(take_rows(engine, buffers, &buffers->k, ldk, "keys"));
    MDP_TRY(take_rows(engine, buffers, &buffers->v, ldk, "values"));
    buffers->out = buffers->q;
    buffers->heads = (mdp_head_rows){.k = buffers->k,
                                     .v = buffers->v,
                                     .ldk = ldk,
                                     .k_step = hd,
                                     .ldv = ldk,
                                     .v_step = hd,
                                     .n_own = hd,
                                     .n_value = hd,
                                     .ldo = model->n_head * model->q_step,
                                     .o_step = model->q_step};
    return mdp_ok();
}

static mdp_status new_latent_rows(const mdp_engine *engine, mdp_attention_buffers *buffers) {
    const mdp_model *model = engine->model;
    const mdp_latent *latent = &model->latent;
    int64_t step = latent->n_own + latent->n_value, ldl = latent->kv_rank + latent->n_rope;
    MDP_TRY(take_rows(engine, buffers, &buffers->q, model->n_head * model->q_step, "queries"));
    MDP_TRY(take_rows(engine, buffers, &buffers->q_latent, latent->q_rank, "latent queries"));
    MDP_TRY(take_rows(engine, buffers, &buffers->latent, ldl, "latent keys and values"));
    MDP_TRY(take_rows(engine, buffers, &buffers->kv, model->n_head * step, "keys and values"));
    MDP_TRY(take_rows(engine, buffers, &buffers->out, model->n_head * latent->n_value, "attention output"));
    buffers->heads = (mdp_head_rows){.k = buffers->kv,
                                     .v = buffers->kv + latent->n_own,
                                     .shared = buffers->latent + latent->kv_rank,
                                     .ldk = model->n_head * step,
                                     .k_step = step,
                                     .ldv = model->n_head * step,
                                     .v_step = step,
                                     .ld_shared = ldl,
                                     .n_own = latent->n_own,
                                     .n_shared = latent->n_rope,
                                     .n_value = latent->n_value,
                                     .ldo = model->n_head * latent->n_value,
                                     .o_step = latent->n_value};
    return mdp_ok();
}

static mdp_status new_delta_rows(const mdp_engine *engine, mdp_attention_buffers *buffers) {
    const mdp_delta_sizes *sizes = &engine->model->delta;
    MDP_TRY(take_rows(engine, buffers, &buffers->mix, mdp_delta_row_values(sizes), "rows of linear attention"));
    MDP_TRY(take_rows(engine, buffers, &buffers->out, sizes->n_value * sizes->d_value, "attention output"));
    MDP_TRY(MDP_TAKE(engine->stack, &buffers->delta_scratch, engine->n_thread * mdp_delta_scratch(sizes),
                     "chunks of tokens"));
    buffers->heads = (mdp_head_rows){.ldo = sizes->n_value * sizes->d_value};
    return mdp_ok();
}

/* Rows of softmax attention, and its tiles. */
static mdp_status new_softmax_rows(const mdp_engine *engine, mdp_attention_buffers *buffers) {
    const mdp_model *model = engine->model;
    MDP_TRY(model->latent.kv_rank > 0 ? new_latent_rows(engine, buffers) : new_head_rows(engine, buffers));
    MDP_TRY(MDP_TAKE(engine->stack, &buffers->angles, engine->n_thread * 2 * model->rope.n_pair, "rotation angles"));
    MDP_TRY(MDP_TAKE(engine->stack, &buffers->scores, (int64_t)engine->n_thread * MDP_QUERY_ROWS * MDP_KEY_ROWS,
                     "attention scores"));
    return MDP_TAKE(engine->stack, &buffers->sum, (int64_t)engine->n_thread * MDP_QUERY_ROWS * mdp_head_values(model),
                    "attention output");
}

/* Lists of as many packs as the team has, and of what a group can have of them. */
static mdp_status new_lists(const mdp_engine *engine, const mdp_layer *layer, const mdp_rank_share *total,
                            mdp_attention_buffers *buffers) {
    const mdp_model *model = engine->model;
    int64_t n = buffers->n_row, n_pack = 0, n_sequence = total->n_sequence * engine->n_branch;
    if (n_sequence > n) n_sequence = n; /* a sequence has at least one row, or adds nothing */
    for (int i = 0; i < engine->team.n_rank; i++) {
        int64_t first, end;
        mdp_team_packs(&engine->team, i, &first, &end);
        n_pack += (end - first) * engine->n_branch;
    }
    bool linear = layer->attention.delta.kernel.tensor != NULL;
    MDP_TRY(MDP_TAKE(engine->stack, &buffers->tiles, n / MDP_TILE_ROWS + n_pack + 1, "row tiles"));
    MDP_TRY(MDP_TAKE(engine->stack, &buffers->queries,
                     linear ? n_sequence * model->delta.n_value : (n / MDP_QUERY_ROWS + n_sequence) * model->n_head,
                     "query tiles"));
    return MDP_TAKE(engine->stack, &buffers->group.packs, n_pack, "packs of a group");
}

/* Where every projection reads and writes. */
static void connect(const mdp_model *model, const mdp_attention *attention, mdp_attention_buffers *buffers) {
    const mdp_matrix *matrices[MDP_N_PROJECTION];
    int64_t d = model->d_model, ldq = model->n_head * model->q_step, ldk = buffers->heads.ldk, column = 0;
    int64_t q_rank = model->latent.q_rank, ldl = model->latent.kv_rank + model->latent.n_rope;
    bool through = model->latent.kv_rank > 0 && q_rank > 0; /* queries come from latent ones */
    const mdp_projection routes[MDP_N_PROJECTION] = {
        [OF_Q_A] = {.bias = buffers->latent_bias[0], .x = buffers->x, .ldx = d, .y = buffers->q_latent, .ldy = q_rank},
        [OF_KV_A] = {.bias = buffers->latent_bias[1], .x = buffers->x, .ldx = d, .y = buffers->latent, .ldy = ldl},
        [OF_Q] = {.bias = buffers->bias[0],
                  .x = through ? buffers->q_latent : buffers->x,
                  .ldx = through ? q_rank : d,
                  .y = buffers->q,
                  .ldy = ldq},
        [OF_K] = {.bias = buffers->bias[1], .x = buffers->x, .ldx = d, .y = buffers->k, .ldy = ldk},
        [OF_V] = {.bias = buffers->bias[2], .x = buffers->x, .ldx = d, .y = buffers->v, .ldy = ldk},
        [OF_KV_B] = {.x = buffers->latent, .ldx = ldl, .y = buffers->kv, .ldy = ldk},
        [OF_O] = {.bias = buffers->bias[3], .x = buffers->out, .ldx = buffers->heads.ldo, .y = buffers->x, .ldy = d}};
    mdp_attention_projections(attention, matrices);
    for (int i = 0; i < MDP_N_PROJECTION; i++) {
        mdp_projection *projection = &buffers->projections[i];
        *projection = routes[i];
        projection->matrix = matrices[i];
        if (i < OF_IN || i > OF_A || !matrices[i]->tensor) continue;
        *projection = (mdp_projection){.matrix = matrices[i],
                                       .x = buffers->x,
                                       .ldx = d,
                                       .y = buffers->mix + column, /* beside each other in one row */
                                       .ldy = mdp_delta_row_values(&model->delta)};
        column += matrices[i]->n_row;
    }
}

static mdp_status new_buffers(mdp_engine *engine, const mdp_layer *layer, mdp_attention_buffers *buffers) {
    const mdp_rank_share total = mdp_team_total(&engine->team);
    buffers->n_row = mdp_pack_group_rows(engine->model, &total, engine->n_branch);
    MDP_TRY(take_rows(engine, buffers, &buffers->x, engine->model->d_model, "attention input"));
    bool linear = layer->attention.delta.kernel.tensor != NULL;
    MDP_TRY(linear ? new_delta_rows(engine, buffers) : new_softmax_rows(engine, buffers));
    MDP_TRY(new_lists(engine, layer, &total, buffers));
    MDP_TRY(load_vectors(engine, layer, buffers));
    connect(engine->model, &layer->attention, buffers);
    return mdp_ok();
}

/* ---- the block ----------------------------------------------------------------------------------------------- */

static mdp_status attend_groups_all(mdp_engine *engine, const mdp_layer *layer, mdp_attention_buffers *buffers) {
    mdp_pack_group_walk walk = mdp_pack_group_begin(&engine->team, engine->n_branch);
    for (bool first = true; mdp_pack_group_next(&walk, &buffers->group); first = false) {
        if (!first) MDP_TRY(mdp_team_meet_all(engine, mdp_ok())); /* nobody needs the rows of the group before */
        MDP_TRY(attend_group_all(engine, layer, buffers));
    }
    return mdp_ok();
}

mdp_status mdp_attend_all(mdp_engine *engine, const mdp_layer *layer) {
    mdp_attention_buffers buffers = {0};
    mdp_status status = mdp_ok();
    mdp_mark mark = mdp_stack_mark(engine->stack);
    if (engine->team.n_rank > 1 || engine->batch.n_token > 0) {
        status = mdp_team_meet_all(engine, new_buffers(engine, layer, &buffers));
        if (status.code == MDP_OK) status = attend_groups_all(engine, layer, &buffers);
    }
    mdp_panel_feed_stop(engine->feed);
    destroy_buffers(&buffers);
    mdp_stack_return(engine->stack, mark);
    return status;
}
