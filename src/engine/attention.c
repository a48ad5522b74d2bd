/* attention.c - grouped-query and latent attention over the packs of this rank.
 *
 * In: residual streams of all states. Out: x += o_proj(softmax(q k^T scale + mask) v). Latent attention makes keys and
 * values of all heads from one short row of each token, whose last values are rotated keys for all heads; those are
 * held once, and added to the scores by a product of their own. Packs of all states go through
 * in groups of about MDP_ATTENTION_ROWS rows, so that a panel read once serves them all; projections are tiled from
 * each pack's first row. Scores exist as one [MDP_QUERY_ROWS, MDP_KEY_ROWS] tile per thread: the running maximum and
 * sum of the softmax make a T x T matrix unnecessary, and tiles outside the causal triangle or the window are not
 * computed. */
#include "engine/engine.h"

#include <math.h>
#include <omp.h>
#include <string.h>

/* One pack of one state in the current group. */
typedef struct group_pack {
    const mdp_pack *pack;
    float *x;      /* its rows of the residual stream */
    int64_t first; /* its first row in the group's buffers */
} group_pack;

/* Query rows of one head of one sequence. */
typedef struct query_tile {
    int64_t first;  /* first row of the sequence in the group's buffers */
    int64_t length; /* tokens of the sequence */
    int64_t query;  /* first query, counted in the sequence */
    int32_t n_query;
    int32_t head;
    int64_t flop; /* of its products, when they are done */
} query_tile;

/* Where keys, values and outputs of the heads lie in the buffers of a group. */
typedef struct head_rows {
    const float *k, *v, *shared; /* shared: keys of all heads, after n_own values of their own */
    int64_t ldk, k_step, ldv, v_step, ld_shared, n_own, n_shared, n_value, ldo, o_step;
} head_rows;

typedef struct attention_buffers {
    int64_t n_row;   /* capacity */
    float *x;        /* [n_row, d_model] normalised input, later the output of o_proj */
    float *q;        /* [n_row, n_head * q_step] queries, each head's followed by its gate where there is one */
    float *k, *v;    /* [n_row, n_kv_head * head_dim]; latent: NULL */
    float *q_latent; /* latent: [n_row, q_rank] */
    float *latent;   /* [n_row, kv_rank + n_rope], the last of them rotated keys of all heads */
    float *kv;       /* [n_row, n_head, n_own + n_value] */
    float *out;      /* latent: [n_row, n_head * n_value]; else q, whose place the output takes */
    float *mix;      /* linear: [n_row, mdp_delta_row_values] */
    head_rows heads;
    mdp_delta_weights delta; /* linear */
    float *delta_scratch;    /* linear: [n_thread, mdp_delta_scratch] */
    float *latent_norm[2];   /* of q_latent and latent */
    float *latent_bias[2];   /* NULL: none */
    float *scores;           /* [n_thread, MDP_QUERY_ROWS, MDP_KEY_ROWS] */
    float *sum;              /* [n_thread, MDP_QUERY_ROWS, head_dim] */
    float *norm;             /* as loaded */
    float *bias[4];          /* of q, k, v, o; NULL: none */
    float *qk_norm[2];       /* of queries and keys; NULL: none */
    float *sinks;            /* [n_head] or NULL */
    mdp_rows *tiles;         /* scratch list */
    query_tile *queries;
    group_pack *packs;
    mdp_panel_list panels;
} attention_buffers;

static int64_t row_values(const mdp_model *model) {
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

/* Rows of whole packs that go through together: fewer where the rows of a model are very wide. */
static int64_t group_rows(const mdp_model *model, int64_t max_pack) {
    int64_t rows = MDP_ATTENTION_VALUES / row_values(model);
    if (rows > MDP_ATTENTION_ROWS) rows = MDP_ATTENTION_ROWS;
    return max_pack > rows ? max_pack : rows;
}

/* Values of a head's output. */
static int64_t output_values(const mdp_model *model) {
    return model->latent.kv_rank > 0 ? model->latent.n_value : model->head_dim;
}

int64_t mdp_attention_memory(const mdp_model *model, const mdp_rank_share *share, int n_stream, int n_thread) {
    int64_t tile = (int64_t)MDP_QUERY_ROWS * (MDP_KEY_ROWS + output_values(model)), all = n_stream * share->n_token;
    if (model->delta.n_value > 0 && mdp_delta_scratch(&model->delta) > tile) tile = mdp_delta_scratch(&model->delta);
    int64_t rows = group_rows(model, share->longest_pack) < all ? group_rows(model, share->longest_pack) : all;
    int64_t n_query = rows / MDP_QUERY_ROWS + rows, n_used = rows / MDP_QUERY_ROWS + n_stream * share->n_sequence;
    int64_t query_byte = model->n_head * (int64_t)sizeof(query_tile);
    return (rows * row_values(model) + n_thread * tile) * (int64_t)sizeof(float) +
           mdp_memory_taken(n_query * query_byte, (n_used < n_query ? n_used : n_query) * query_byte);
}

mdp_status mdp_attention_prepare(mdp_engine *engine) {
    const mdp_rope *rope = &engine->model->rope;
    int64_t n = engine->partition->longest, most = engine->model->most_tokens;
    if (most > 0 && n > most) {
        return MDP_ERROR(
            MDP_BAD_INPUT,
            "a sequence has %lld tokens; beyond %lld (index_topk) this model attends to tokens chosen by its "
            "indexer, which is not computed here; cut the text into sequences of at most %lld.",
            (long long)n, (long long)most, (long long)most);
    }
    MDP_TRY(MDP_ALLOC(&engine->cosine, n * rope->n_pair, "rotation angles"));
    MDP_TRY(MDP_ALLOC(&engine->sine, n * rope->n_pair, "rotation angles"));
    for (int64_t i = 0; i < n; i++) {
        mdp_rope_angles(rope, 1, i, engine->cosine + i * rope->n_pair, engine->sine + i * rope->n_pair);
    }
    return mdp_ok();
}

/* Cosines and sines of a position; the table serves every sequence unless its length changes the frequencies. own has
 * room for both. */
typedef struct angles {
    const float *cosine, *sine;
    float own[2][512];
} angles;

static void find_angles(const mdp_engine *engine, int64_t length, int64_t position, angles *out) {
    const mdp_rope *rope = &engine->model->rope;
    out->cosine = engine->cosine + position * rope->n_pair;
    out->sine = engine->sine + position * rope->n_pair;
    if (!mdp_rope_is_stretched(rope, length) || rope->n_pair > 512) return;
    mdp_rope_angles(rope, length, position, out->own[0], out->own[1]);
    out->cosine = out->own[0];
    out->sine = out->own[1];
}

/* Rotate the first values of n_head heads that begin `step` apart. */
static void rotate_heads(const mdp_rope *rope, const angles *at, int64_t n_head, int64_t step, float *first) {
    for (int64_t h = 0; h < n_head; h++)
        mdp_rope_rotate(rope->layout, at->cosine, at->sine, rope->n_pair, first + h * step);
}

/* Heads begin `step` apart. */
static void normalise_heads(const mdp_engine *engine, mdp_qk_norm kind, const float *weight, int64_t n_head,
                            int64_t step, float *row) {
    bool each = kind == MDP_QK_NORM_HEAD;
    int64_t n = each ? engine->model->head_dim : n_head * engine->model->head_dim;
    for (int64_t i = 0; i < (each ? n_head : 1); i++)
        mdp_rms_norm(row + i * step, weight, engine->model->norm_eps, n, row + i * step);
}

static void clamp_row(float bound, int64_t n, float *row) {
    for (int64_t i = 0; i < n; i++) row[i] = row[i] > bound ? bound : row[i] < -bound ? -bound : row[i];
}

static void normalise_row(const mdp_engine *engine, const mdp_attention *attention, const attention_buffers *buffers,
                          float *q, float *k) {
    if (attention->qk_norm == MDP_QK_NORM_NONE) return;
    normalise_heads(engine, attention->qk_norm, buffers->qk_norm[0], engine->model->n_head, engine->model->q_step, q);
    normalise_heads(engine, attention->qk_norm, buffers->qk_norm[1], engine->model->n_kv_head, engine->model->head_dim,
                    k);
}

/* Queries at far positions grow, so that attention over many keys stays sharp. */
static void temper_row(const mdp_engine *engine, const mdp_attention *attention, int64_t position, float *q) {
    int64_t step = (position + 1) / attention->temper_floor;
    float scale = (float)log1p((double)step) * (float)attention->temper_scale + 1.0F;
    for (int64_t i = 0; i < engine->model->n_head * engine->model->head_dim; i++) q[i] *= scale;
}

/* What some families do to queries, keys and values of one row before rotation: norms, then a clamp. */
static void condition_row(const mdp_engine *engine, const mdp_attention *attention, const attention_buffers *buffers,
                          float *q, float *k, float *v) {
    const mdp_model *model = engine->model;
    if (!attention->qk_norm_last) normalise_row(engine, attention, buffers, q, k);
    if (attention->clip > 0.0) {
        clamp_row((float)attention->clip, model->n_head * model->head_dim, q);
        clamp_row((float)attention->clip, model->n_kv_head * model->head_dim, k);
        clamp_row((float)attention->clip, model->n_kv_head * model->head_dim, v);
    }
}

/* The first key that a query sees. Later queries never see an earlier one. */
static int64_t first_seen(const mdp_attention *attention, int64_t query) {
    int64_t by_window = attention->window > 0 ? query - attention->window + 1 : 0;
    int64_t by_chunk = attention->chunk > 0 ? query / attention->chunk * attention->chunk : 0;
    return by_window > by_chunk ? by_window : by_chunk;
}

/* Of the products of one head over a sequence: with the state, and within chunks. */
static int64_t count_mixing(const mdp_delta_sizes *n, int64_t length) {
    int64_t rest = length % MDP_DELTA_CHUNK, pairs = (length - rest) * MDP_DELTA_CHUNK + rest * rest;
    return 6 * length * n->d_key * n->d_value + pairs * (4 * n->d_key + 3 * n->d_value);
}

int64_t mdp_attention_flop(const mdp_model *model, const mdp_attention *attention, int64_t length) {
    int64_t n_pair = 0; /* of a query and a key that the tiles compute */
    if (attention->delta.kernel.tensor) return model->delta.n_value * count_mixing(&model->delta, length);
    for (int64_t query = 0; query < length; query += MDP_QUERY_ROWS) {
        int64_t n_query = length - query < MDP_QUERY_ROWS ? length - query : MDP_QUERY_ROWS;
        n_pair += n_query * (query + n_query - first_seen(attention, query));
    }
    return 2 * n_pair * model->n_head * (model->head_dim + output_values(model));
}

/* Scale, mask and exponentiate one tile of scores; update the running maximum and sum, and rescale the output so far.
 */
static void softmax_step(const mdp_layer *layer, const query_tile *tile, int64_t key, int32_t n_key, float *scores,
                         float *maximum, double *total, float *sum, int64_t n_value) {
    float scale = (float)layer->attention.scale;
    for (int32_t i = 0; i < tile->n_query; i++) {
        float *row = scores + (size_t)i * MDP_KEY_ROWS;
        int64_t query = tile->query + i;
        int64_t seen = first_seen(&layer->attention, query), low = seen > key ? seen - key : 0;
        int64_t high = query + 1 - key < n_key ? query + 1 - key : n_key; /* visible: low <= j < high */
        if (low >= high) {
            memset(row, 0, (size_t)n_key * sizeof *row);
            continue;
        }
        memset(row, 0, (size_t)low * sizeof *row);
        memset(row + high, 0, (size_t)(n_key - high) * sizeof *row);
        for (int64_t j = low; j < high; j++) row[j] *= scale;
        float top = mdp_max(row + low, high - low);
        if (top > maximum[i]) {
            float shrink = mdp_exp(maximum[i] - top);
            total[i] *= (double)shrink;
            for (int64_t j = 0; j < n_value; j++) sum[(size_t)i * (size_t)n_value + (size_t)j] *= shrink;
            maximum[i] = top;
        }
        total[i] += mdp_exp_shift(row + low, maximum[i], high - low);
    }
}

/* Attention of one head for MDP_QUERY_ROWS queries. */
static void attend(const mdp_engine *engine, const mdp_layer *layer, const attention_buffers *buffers,
                   query_tile *tile) {
    const mdp_model *model = engine->model;
    const head_rows *rows = &buffers->heads;
    int64_t ldq = model->n_head * model->q_step, n_value = rows->n_value;
    int64_t kv_head = tile->head / (model->n_head / model->n_kv_head);
    size_t thread = (size_t)omp_get_thread_num();
    float *scores = buffers->scores + thread * MDP_QUERY_ROWS * MDP_KEY_ROWS;
    float *sum = buffers->sum + thread * MDP_QUERY_ROWS * (size_t)n_value;
    float maximum[MDP_QUERY_ROWS];
    double total[MDP_QUERY_ROWS];
    const float *q = buffers->q + (tile->first + tile->query) * ldq + tile->head * model->q_step;
    const float *k = rows->k + tile->first * rows->ldk + kv_head * rows->k_step;
    const float *v = rows->v + tile->first * rows->ldv + kv_head * rows->v_step;
    const float *shared = rows->n_shared > 0 ? rows->shared + tile->first * rows->ld_shared : NULL;
    float *out = buffers->out + (tile->first + tile->query) * rows->ldo + tile->head * rows->o_step;
    for (int i = 0; i < MDP_QUERY_ROWS; i++) {
        maximum[i] = buffers->sinks ? buffers->sinks[tile->head] : -INFINITY; /* a key without a value */
        total[i] = buffers->sinks ? 1.0 : 0.0;
    }
    memset(sum, 0, MDP_QUERY_ROWS * (size_t)n_value * sizeof *sum);
    int64_t end = tile->query + tile->n_query;
    for (int64_t key = first_seen(&layer->attention, tile->query); key < end; key += MDP_KEY_ROWS) {
        int32_t n_key = (int32_t)(end - key < MDP_KEY_ROWS ? end - key : MDP_KEY_ROWS);
        mdp_gemm_nt(engine->gemm, tile->n_query, n_key, (int)rows->n_own, q, (int)ldq, k + key * rows->ldk,
                    (int)rows->ldk, scores, MDP_KEY_ROWS);
        if (shared)
            mdp_gemm_nt_add(engine->gemm, tile->n_query, n_key, (int)rows->n_shared, q + rows->n_own, (int)ldq,
                            shared + key * rows->ld_shared, (int)rows->ld_shared, scores, MDP_KEY_ROWS);
        tile->flop += 2 * tile->n_query * n_key * (rows->n_own + rows->n_shared + n_value);
        softmax_step(layer, tile, key, n_key, scores, maximum, total, sum, n_value);
        mdp_gemm_nn_add(engine->gemm, tile->n_query, (int)n_value, n_key, scores, MDP_KEY_ROWS, v + key * rows->ldv,
                        (int)rows->ldv, sum, (int)n_value);
    }
    for (int32_t i = 0; i < tile->n_query; i++) {
        double inverse = 1.0 / total[i];
        for (int64_t j = 0; j < n_value; j++) out[i * rows->ldo + j] = (float)(sum[i * n_value + j] * inverse);
    }
}

/* Tiles of a buffer for a projection: each pack from its first row. */
static int64_t list_tiles(const attention_buffers *buffers, int64_t n_pack, const float *x, int64_t ldx, float *y,
                          int64_t ldy) {
    int64_t n = 0;
    for (int64_t p = 0; p < n_pack; p++) {
        for (int64_t row = 0; row < buffers->packs[p].pack->n_token; row += MDP_TILE_ROWS) {
            int64_t left = buffers->packs[p].pack->n_token - row, at = buffers->packs[p].first + row;
            buffers->tiles[n++] = (mdp_rows){.x = x + at * ldx,
                                             .ldx = ldx,
                                             .y = y + at * ldy,
                                             .ldy = ldy,
                                             .n_row = (int32_t)(left < MDP_TILE_ROWS ? left : MDP_TILE_ROWS)};
        }
    }
    return n;
}

/* All (sequence, head, n_each queries) items of the group; the longest rows of keys first would balance better, but the
 * list is long against the number of threads. */
static int64_t list_queries(const mdp_engine *engine, const attention_buffers *buffers, int64_t n_pack, int64_t n_head,
                            int64_t n_each) {
    const mdp_tokens *tokens = engine->tokens;
    int64_t n = 0;
    for (int64_t p = 0; p < n_pack; p++) {
        const mdp_pack *pack = buffers->packs[p].pack;
        for (int64_t s = pack->first_sequence; s < pack->first_sequence + pack->n_sequence; s++) {
            int64_t length = tokens->offset[s + 1] - tokens->offset[s];
            int64_t first = buffers->packs[p].first + tokens->offset[s] - pack->first_token;
            for (int32_t head = 0; head < n_head; head++) {
                for (int64_t query = 0; query < length; query += n_each) {
                    int64_t left = length - query;
                    buffers->queries[n++] = (query_tile){.first = first,
                                                         .length = length,
                                                         .query = query,
                                                         .n_query = (int32_t)(left < n_each ? left : n_each),
                                                         .head = head};
                }
            }
        }
    }
    return n;
}

static void normalise_group(const mdp_engine *engine, const attention_buffers *buffers, int64_t n_pack) {
    int64_t d = engine->model->d_model;
    for (int64_t p = 0; p < n_pack; p++) {
        const group_pack *item = &buffers->packs[p];
#pragma omp parallel for schedule(static) num_threads(engine->n_thread)
        for (int64_t i = 0; i < item->pack->n_token; i++) {
            mdp_norm_row(engine->model, buffers->norm, item->x + i * d, buffers->x + (item->first + i) * d);
        }
    }
}

/* Norms, clamps and rotation of a row's queries, keys and values. */
static void rotate_row(const mdp_engine *engine, const mdp_layer *layer, const attention_buffers *buffers, int64_t row,
                       int64_t position, const angles *at) {
    const mdp_model *model = engine->model;
    const mdp_latent *n = &model->latent;
    float *q = buffers->q + row * model->n_head * model->q_step;
    if (n->kv_rank > 0) {
        rotate_heads(&model->rope, at, model->n_head, model->head_dim, q + n->n_own);
        rotate_heads(&model->rope, at, 1, 0, buffers->latent + row * (n->kv_rank + n->n_rope) + n->kv_rank);
        return;
    }
    int64_t ldk = model->n_kv_head * model->head_dim;
    float *k = buffers->k + row * ldk;
    condition_row(engine, &layer->attention, buffers, q, k, buffers->v + row * ldk);
    if (!layer->attention.plain) {
        rotate_heads(&model->rope, at, model->n_head, model->q_step, q);
        rotate_heads(&model->rope, at, model->n_kv_head, model->head_dim, k);
    }
    if (layer->attention.qk_norm_last) normalise_row(engine, &layer->attention, buffers, q, k);
    if (layer->attention.temper_floor > 0) temper_row(engine, &layer->attention, position, q);
}

static void rotate_group(const mdp_engine *engine, const mdp_layer *layer, const attention_buffers *buffers,
                         int64_t n_pack) {
    const mdp_tokens *tokens = engine->tokens;
    for (int64_t p = 0; p < n_pack; p++) {
        const mdp_pack *pack = buffers->packs[p].pack;
        for (int64_t s = pack->first_sequence; s < pack->first_sequence + pack->n_sequence; s++) {
            int64_t length = tokens->offset[s + 1] - tokens->offset[s];
            int64_t first = buffers->packs[p].first + tokens->offset[s] - pack->first_token;
#pragma omp parallel for schedule(static) num_threads(engine->n_thread)
            for (int64_t i = 0; i < length; i++) {
                angles at;
                find_angles(engine, length, i, &at);
                rotate_row(engine, layer, buffers, first + i, i, &at);
            }
        }
    }
}

static void add_group(const mdp_engine *engine, const attention_buffers *buffers, int64_t n_pack) {
    int64_t d = engine->model->d_model;
    for (int64_t p = 0; p < n_pack; p++) {
        const group_pack *item = &buffers->packs[p];
#pragma omp parallel for schedule(static) num_threads(engine->n_thread)
        for (int64_t i = 0; i < item->pack->n_token; i++) {
            mdp_axpy((float)engine->model->residual_scale, buffers->x + (item->first + i) * d, d, item->x + i * d);
        }
    }
}

/* A projection of all rows of the group, x [., ldx] to y [., ldy]. */
static mdp_status project(mdp_engine *engine, attention_buffers *buffers, int64_t n_pack, const mdp_matrix *matrix,
                          const float *bias, const float *x, int64_t ldx, float *y, int64_t ldy) {
    int64_t n_tile = list_tiles(buffers, n_pack, x, ldx, y, ldy);
    return mdp_linear_take(engine, matrix, bias, buffers->tiles, n_tile);
}

/* Norm of the first n values of every row [., ld] of the group. */
static void normalise_latent(const mdp_engine *engine, const attention_buffers *buffers, int64_t n_pack,
                             const float *norm, int64_t n, int64_t ld, float *rows) {
    int64_t n_row = buffers->packs[n_pack - 1].first + buffers->packs[n_pack - 1].pack->n_token;
#pragma omp parallel for schedule(static) num_threads(engine->n_thread)
    for (int64_t i = 0; i < n_row; i++) mdp_rms_norm(rows + i * ld, norm, MDP_LATENT_EPS, n, rows + i * ld);
}

static mdp_status project_latent(mdp_engine *engine, const mdp_attention *a, attention_buffers *buffers,
                                 int64_t n_pack) {
    const mdp_model *model = engine->model;
    const mdp_latent *n = &model->latent;
    int64_t d = model->d_model, ldq = model->n_head * model->head_dim, ldl = n->kv_rank + n->n_rope;
    const float *from = buffers->x;
    if (n->q_rank > 0) {
        MDP_TRY(project(engine, buffers, n_pack, &a->q_a, buffers->latent_bias[0], buffers->x, d, buffers->q_latent,
                        n->q_rank));
        normalise_latent(engine, buffers, n_pack, buffers->latent_norm[0], n->q_rank, n->q_rank, buffers->q_latent);
        from = buffers->q_latent;
    }
    MDP_TRY(project(engine, buffers, n_pack, &a->q, NULL, from, n->q_rank > 0 ? n->q_rank : d, buffers->q, ldq));
    MDP_TRY(project(engine, buffers, n_pack, &a->kv_a, buffers->latent_bias[1], buffers->x, d, buffers->latent, ldl));
    normalise_latent(engine, buffers, n_pack, buffers->latent_norm[1], n->kv_rank, ldl, buffers->latent);
    return project(engine, buffers, n_pack, &a->kv_b, NULL, buffers->latent, ldl, buffers->kv, buffers->heads.ldk);
}

static mdp_status project_heads(mdp_engine *engine, const mdp_attention *a, attention_buffers *buffers,
                                int64_t n_pack) {
    const mdp_model *model = engine->model;
    int64_t d = model->d_model, ldq = model->n_head * model->q_step, ldk = model->n_kv_head * model->head_dim;
    MDP_TRY(project(engine, buffers, n_pack, &a->q, buffers->bias[0], buffers->x, d, buffers->q, ldq));
    MDP_TRY(project(engine, buffers, n_pack, &a->k, buffers->bias[1], buffers->x, d, buffers->k, ldk));
    return project(engine, buffers, n_pack, &a->v, buffers->bias[2], buffers->x, d, buffers->v, ldk);
}

/* All projections of linear attention, beside each other in one row. */
static mdp_status project_delta(mdp_engine *engine, const mdp_attention *a, attention_buffers *buffers,
                                int64_t n_pack) {
    int64_t d = engine->model->d_model, ld = mdp_delta_row_values(&engine->model->delta), column = 0;
    const mdp_matrix *parts[] = {&a->delta.in, &a->delta.z, &a->delta.b, &a->delta.a};
    for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++) {
        if (!parts[i]->tensor) continue;
        MDP_TRY(project(engine, buffers, n_pack, parts[i], NULL, buffers->x, d, buffers->mix + column, ld));
        column += parts[i]->n_row;
    }
    return mdp_ok();
}

/* Linear attention of the group: a job for each head of each sequence. */
static void mix_group(const mdp_engine *engine, const mdp_attention *a, const attention_buffers *buffers,
                      int64_t n_query) {
    const mdp_model *model = engine->model;
    const mdp_delta_sizes *n = &model->delta;
#pragma omp parallel for schedule(dynamic, 1) num_threads(engine->n_thread)
    for (int64_t i = 0; i < n_query; i++) {
        const query_tile *tile = &buffers->queries[i];
        const mdp_delta_job job = {.gemm = engine->gemm,
                                   .sizes = n,
                                   .weights = &buffers->delta,
                                   .activation = a->delta.activation,
                                   .grouped = a->delta.grouped,
                                   .norm_eps = model->norm_eps,
                                   .head = tile->head,
                                   .length = tile->length,
                                   .rows = buffers->mix + tile->first * mdp_delta_row_values(n),
                                   .ld = mdp_delta_row_values(n),
                                   .out = buffers->out + tile->first * buffers->heads.ldo,
                                   .ldo = buffers->heads.ldo};
        mdp_delta_head(&job, buffers->delta_scratch + omp_get_thread_num() * mdp_delta_scratch(n));
    }
    for (int64_t i = 0; i < n_query; i++)
        mdp_profile_flop(engine->profile, count_mixing(n, buffers->queries[i].length));
}

/* Outputs times the sigmoid of their gates, which follow them, moved together. */
static void gate_group(const mdp_engine *engine, const attention_buffers *buffers, int64_t n_pack) {
    const mdp_model *model = engine->model;
    int64_t hd = model->head_dim, n_row = buffers->packs[n_pack - 1].first + buffers->packs[n_pack - 1].pack->n_token;
#pragma omp parallel for schedule(static) num_threads(engine->n_thread)
    for (int64_t i = 0; i < n_row; i++) {
        float *row = buffers->out + i * buffers->heads.ldo;
        for (int64_t h = 0; h < model->n_head; h++) {
            const float *from = row + h * model->q_step; /* never before what has been moved */
            for (int64_t j = 0; j < hd; j++) row[h * hd + j] = from[j] / (1.0F + mdp_exp(-from[hd + j]));
        }
    }
}

/* What the output projection reads, from queries, keys and values. */
static void attend_heads(mdp_engine *engine, const mdp_layer *layer, attention_buffers *buffers, int64_t n_pack) {
    rotate_group(engine, layer, buffers, n_pack);
    int64_t n_query = list_queries(engine, buffers, n_pack, engine->model->n_head, MDP_QUERY_ROWS);
#pragma omp parallel for schedule(dynamic, 1) num_threads(engine->n_thread)
    for (int64_t i = 0; i < n_query; i++) attend(engine, layer, buffers, &buffers->queries[i]);
    for (int64_t i = 0; i < n_query; i++) mdp_profile_flop(engine->profile, buffers->queries[i].flop);
    if (engine->model->q_step > engine->model->head_dim) gate_group(engine, buffers, n_pack);
}

/* One group of packs through the block. */
static mdp_status attend_group(mdp_engine *engine, const mdp_layer *layer, attention_buffers *buffers, int64_t n_pack) {
    const mdp_attention *a = &layer->attention;
    MDP_TRY(mdp_panel_stream_start(engine->stream, buffers->panels.items, buffers->panels.n));
    normalise_group(engine, buffers, n_pack);
    if (a->delta.kernel.tensor) {
        MDP_TRY(project_delta(engine, a, buffers, n_pack));
        mix_group(engine, a, buffers, list_queries(engine, buffers, n_pack, engine->model->delta.n_value, INT32_MAX));
    } else {
        MDP_TRY(engine->model->latent.kv_rank > 0 ? project_latent(engine, a, buffers, n_pack)
                                                  : project_heads(engine, a, buffers, n_pack));
        attend_heads(engine, layer, buffers, n_pack);
    }
    MDP_TRY(mdp_gemm_check(engine->gemm));
    MDP_TRY(project(engine, buffers, n_pack, &a->o, buffers->bias[3], buffers->out, buffers->heads.ldo, buffers->x,
                    engine->model->d_model));
    add_group(engine, buffers, n_pack);
    return mdp_ok();
}

static void destroy_buffers(attention_buffers *buffers) {
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
static mdp_status load_vectors(mdp_engine *engine, const mdp_layer *layer, attention_buffers *buffers) {
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

/* Rows of keys, values and outputs where every head has its own projections. */
static mdp_status new_head_rows(const mdp_engine *engine, int64_t n, attention_buffers *buffers) {
    const mdp_model *model = engine->model;
    int64_t hd = model->head_dim, ldk = model->n_kv_head * hd;
    MDP_TRY(MDP_TAKE(engine->stack, &buffers->q, n * model->n_head * model->q_step, "queries"));
    MDP_TRY(MDP_TAKE(engine->stack, &buffers->k, n * ldk, "keys"));
    MDP_TRY(MDP_TAKE(engine->stack, &buffers->v, n * ldk, "values"));
    buffers->out = buffers->q;
    buffers->heads = (head_rows){.k = buffers->k,
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

static mdp_status new_latent_rows(const mdp_engine *engine, int64_t n, attention_buffers *buffers) {
    const mdp_model *model = engine->model;
    const mdp_latent *latent = &model->latent;
    int64_t step = latent->n_own + latent->n_value, ldl = latent->kv_rank + latent->n_rope;
    MDP_TRY(MDP_TAKE(engine->stack, &buffers->q, n * model->n_head * model->q_step, "queries"));
    MDP_TRY(MDP_TAKE(engine->stack, &buffers->q_latent, n * latent->q_rank, "latent queries"));
    MDP_TRY(MDP_TAKE(engine->stack, &buffers->latent, n * ldl, "latent keys and values"));
    MDP_TRY(MDP_TAKE(engine->stack, &buffers->kv, n * model->n_head * step, "keys and values"));
    MDP_TRY(MDP_TAKE(engine->stack, &buffers->out, n * model->n_head * latent->n_value, "attention output"));
    buffers->heads = (head_rows){.k = buffers->kv,
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

static mdp_status new_delta_rows(const mdp_engine *engine, int64_t n, attention_buffers *buffers) {
    const mdp_delta_sizes *sizes = &engine->model->delta;
    MDP_TRY(MDP_TAKE(engine->stack, &buffers->mix, n * mdp_delta_row_values(sizes), "rows of linear attention"));
    MDP_TRY(MDP_TAKE(engine->stack, &buffers->out, n * sizes->n_value * sizes->d_value, "attention output"));
    MDP_TRY(MDP_TAKE(engine->stack, &buffers->delta_scratch, engine->n_thread * mdp_delta_scratch(sizes),
                     "chunks of tokens"));
    buffers->heads = (head_rows){.ldo = sizes->n_value * sizes->d_value};
    return mdp_ok();
}

/* Rows of softmax attention, and its tiles. */
static mdp_status new_softmax_rows(const mdp_engine *engine, int64_t n, attention_buffers *buffers) {
    const mdp_model *model = engine->model;
    MDP_TRY(model->latent.kv_rank > 0 ? new_latent_rows(engine, n, buffers) : new_head_rows(engine, n, buffers));
    MDP_TRY(MDP_TAKE(engine->stack, &buffers->scores, (int64_t)engine->n_thread * MDP_QUERY_ROWS * MDP_KEY_ROWS,
                     "attention scores"));
    return MDP_TAKE(engine->stack, &buffers->sum, (int64_t)engine->n_thread * MDP_QUERY_ROWS * output_values(model),
                    "attention output");
}

void mdp_attention_projections(const mdp_attention *a, const mdp_matrix *out[MDP_N_PROJECTION]) {
    const mdp_matrix *order[MDP_N_PROJECTION] = {
        &a->q_a, &a->q, &a->k, &a->v, &a->kv_a, &a->kv_b, &a->delta.in, &a->delta.z, &a->delta.b, &a->delta.a, &a->o};
    memcpy(out, order, sizeof order);
}

static mdp_status list_panels(const mdp_attention *attention, mdp_panel_list *panels) {
    const mdp_matrix *order[MDP_N_PROJECTION];
    mdp_attention_projections(attention, order);
    for (int i = 0; i < MDP_N_PROJECTION; i++) {
        if (order[i]->tensor) MDP_TRY(mdp_panel_list_add(panels, order[i]));
    }
    return mdp_ok();
}

/* Room for a group: n_row rows of at most that many packs. */
static mdp_status new_buffers(mdp_engine *engine, const mdp_layer *layer, attention_buffers *buffers) {
    const mdp_model *model = engine->model;
    int64_t longest = 0, n_sequence = 0;
    for (int64_t p = 0; p < engine->batch.n_pack; p++) {
        const mdp_pack *pack = &engine->partition->packs[engine->batch.first_pack + p];
        if (pack->n_token > longest) longest = pack->n_token;
        n_sequence += pack->n_sequence * engine->n_state;
    }
    int64_t all = engine->batch.n_token * engine->n_state;
    buffers->n_row = group_rows(model, longest) < all ? group_rows(model, longest) : all;
    int64_t n = buffers->n_row, n_pack = engine->batch.n_pack * engine->n_state;
    if (n_sequence > n) n_sequence = n; /* a sequence has at least one row, or adds nothing */
    MDP_TRY(MDP_TAKE(engine->stack, &buffers->x, n * model->d_model, "attention input"));
    bool linear = layer->attention.delta.kernel.tensor != NULL;
    MDP_TRY(linear ? new_delta_rows(engine, n, buffers) : new_softmax_rows(engine, n, buffers));
    MDP_TRY(MDP_TAKE(engine->stack, &buffers->tiles, n / MDP_TILE_ROWS + n_pack + 1, "row tiles"));
    MDP_TRY(MDP_TAKE(engine->stack, &buffers->queries,
                     linear ? n_sequence * model->delta.n_value : (n / MDP_QUERY_ROWS + n_sequence) * model->n_head,
                     "query tiles"));
    MDP_TRY(MDP_TAKE(engine->stack, &buffers->packs, n_pack, "packs of a group"));
    MDP_TRY(load_vectors(engine, layer, buffers));
    return list_panels(&layer->attention, &buffers->panels);
}

static mdp_status attend_all_groups(mdp_engine *engine, const mdp_layer *layer, attention_buffers *buffers) {
    int64_t n_pack = 0, n_row = 0;
    for (int state = 0; state < engine->n_state; state++) {
        for (int64_t p = 0; p < engine->batch.n_pack; p++) {
            const mdp_pack *pack = &engine->partition->packs[engine->batch.first_pack + p];
            if (n_row + pack->n_token > buffers->n_row) {
                MDP_TRY(attend_group(engine, layer, buffers, n_pack));
                n_pack = n_row = 0;
            }
            int64_t local = pack->first_token - engine->batch.first_token;
            buffers->packs[n_pack++] = (group_pack){
                .pack = pack, .x = engine->states[state].x + local * engine->model->d_model, .first = n_row};
            n_row += pack->n_token;
        }
    }
    return n_row > 0 ? attend_group(engine, layer, buffers, n_pack) : mdp_ok();
}

int64_t mdp_attention_groups(const mdp_model *model, const mdp_pack *packs, int64_t n_pack, int n_state) {
    int64_t longest = 0, all = 0, n_group = 0, n_row = 0;
    for (int64_t p = 0; p < n_pack; p++) {
        longest = packs[p].n_token > longest ? packs[p].n_token : longest;
        all += packs[p].n_token * n_state;
    }
    int64_t room = group_rows(model, longest) < all ? group_rows(model, longest) : all;
    for (int64_t i = 0; i < n_state * n_pack; i++) {
        const mdp_pack *pack = &packs[i % n_pack];
        if (i == 0 || n_row + pack->n_token > room) {
            n_group++;
            n_row = 0;
        }
        n_row += pack->n_token;
    }
    return n_group;
}

mdp_status mdp_attend(mdp_engine *engine, const mdp_layer *layer) {
    attention_buffers buffers = {0};
    mdp_status status = mdp_ok();
    mdp_mark mark = mdp_stack_mark(engine->stack);
    if (engine->batch.n_token > 0) {
        MDP_TRY_GOTO(status, done, new_buffers(engine, layer, &buffers));
        MDP_TRY_GOTO(status, done, attend_all_groups(engine, layer, &buffers));
    }
done:
    mdp_panel_stream_stop(engine->stream);
    destroy_buffers(&buffers);
    mdp_stack_return(engine->stack, mark);
    return status;
}
