/* softmax.c - softmax attention of the rows of a group: rotation, and tiles of queries.
 *
 * Scores exist as one [MDP_QUERY_ROWS, MDP_KEY_ROWS] tile per thread: the running maximum and sum of the softmax make a
 * T x T matrix unnecessary, and tiles outside the causal triangle or the window are not computed. A tile writes its own
 * queries' outputs and nothing else, so who computes which does not matter. */
#include "engine/attention.h"

#include <math.h>
#include <omp.h>
#include <string.h>

int64_t mdp_head_values(const mdp_model *model) {
    return model->latent.kv_rank > 0 ? model->latent.n_value : model->head_dim;
}

/* ---- rotation ------------------------------------------------------------------------------------------------ */

/* Cosines and sines of a position. */
typedef struct angles {
    const float *cosine, *sine; /* [n_pair] */
} angles;

/* The table serves every sequence unless its length changes the frequencies; then they are computed by this thread. */
static angles find_angles(const mdp_engine *engine, const mdp_attention_buffers *buffers, int64_t length,
                          int64_t position) {
    const mdp_rope *rope = &engine->model->rope;
    int64_t n = rope->n_pair;
    if (!mdp_rope_is_stretched(rope, length))
        return (angles){.cosine = engine->cosine + position * n, .sine = engine->sine + position * n};
    float *own = buffers->angles + omp_get_thread_num() * 2 * n;
    mdp_rope_angles(rope, length, position, own, own + n);
    return (angles){.cosine = own, .sine = own + n};
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

static void normalise_row(const mdp_engine *engine, const mdp_attention *attention,
                          const mdp_attention_buffers *buffers, float *q, float *k) {
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
static void condition_row(const mdp_engine *engine, const mdp_attention *attention,
                          const mdp_attention_buffers *buffers, float *q, float *k, float *v) {
    const mdp_model *model = engine->model;
    if (!attention->qk_norm_last) normalise_row(engine, attention, buffers, q, k);
    if (attention->clip > 0.0) {
        clamp_row((float)attention->clip, model->n_head * model->head_dim, q);
        clamp_row((float)attention->clip, model->n_kv_head * model->head_dim, k);
        clamp_row((float)attention->clip, model->n_kv_head * model->head_dim, v);
    }
}

/* Norms, clamps and rotation of a row's queries, keys and values. */
static void rotate_row(const mdp_engine *engine, const mdp_layer *layer, const mdp_attention_buffers *buffers,
                       int64_t row, int64_t position, const angles *at) {
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

void mdp_rotate_rows(const mdp_engine *engine, const mdp_layer *layer, const mdp_attention_buffers *buffers,
                     int64_t first, int64_t end) {
    const mdp_tokens *tokens = engine->tokens;
    for (int64_t p = 0; p < buffers->group.n_pack; p++) {
        const mdp_pack *pack = buffers->group.packs[p].pack;
        for (int64_t s = pack->first_sequence; s < pack->first_sequence + pack->n_sequence; s++) {
            int64_t length = tokens->offset[s + 1] - tokens->offset[s];
            int64_t start = buffers->group.packs[p].first + tokens->offset[s] - pack->first_token;
            int64_t low = first > start ? first - start : 0, high = end - start < length ? end - start : length;
#pragma omp parallel for schedule(static) num_threads(engine->n_thread)
            for (int64_t i = low; i < high; i++) {
                const angles at = find_angles(engine, buffers, length, i);
                rotate_row(engine, layer, buffers, start + i, i, &at);
            }
        }
    }
}

void mdp_gate_rows(const mdp_engine *engine, const mdp_attention_buffers *buffers, int64_t first, int64_t end) {
    const mdp_model *model = engine->model;
    int64_t hd = model->head_dim;
#pragma omp parallel for schedule(static) num_threads(engine->n_thread)
    for (int64_t i = first; i < end; i++) {
        float *row = buffers->out + i * buffers->heads.ldo;
        for (int64_t h = 0; h < model->n_head; h++) {
            const float *from = row + h * model->q_step; /* never before what has been moved */
            for (int64_t j = 0; j < hd; j++) row[h * hd + j] = from[j] / (1.0F + mdp_exp(-from[hd + j]));
        }
    }
}

/* ---- tiles --------------------------------------------------------------------------------------------------- */

/* Scale, mask and exponentiate one tile of scores; update the running maximum and sum, and rescale the output so far.
 */
static void softmax_step(const mdp_layer *layer, const mdp_query_tile *tile, int64_t key, int32_t n_key, float *scores,
                         float *maximum, double *total, float *sum, int64_t n_value) {
    float scale = (float)layer->attention.scale;
    for (int32_t i = 0; i < tile->n_query; i++) {
        float *row = scores + (size_t)i * MDP_KEY_ROWS;
        int64_t query = tile->query + i;
        int64_t seen = mdp_first_seen(&layer->attention, query), low = seen > key ? seen - key : 0;
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

void mdp_attend_queries(const mdp_engine *engine, const mdp_layer *layer, const mdp_attention_buffers *buffers,
                        mdp_query_tile *tile) {
    const mdp_model *model = engine->model;
    const mdp_head_rows *rows = &buffers->heads;
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
    tile->flop = 0;
    for (int64_t key = mdp_first_seen(&layer->attention, tile->query); key < end; key += MDP_KEY_ROWS) {
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
