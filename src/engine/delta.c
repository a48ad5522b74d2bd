/* delta.c - linear attention by the gated delta rule (arXiv 2412.06464), for one head of one sequence.
 *
 * In: rows of the projections: queries and keys of the key heads; values, output gates, learning rates b and decays a
 * of the value heads. Out: [length, d_value] of the head. A causal convolution mixes a few tokens of every channel,
 * then a state S [d_key, d_value] goes through the sequence: S = e^g S, S += k (beta (v - S^T k))^T, o = S^T q. Tokens
 * are taken in chunks of MDP_DELTA_CHUNK from the sequence's first, whose steps within a chunk are products and one
 * triangular solve (the UT transform); so the arithmetic is fixed by the sequence alone. */
#include "engine/delta.h"

#include <math.h>
#include <string.h>

#define L2_EPS 1e-6 /* of the norm of queries and keys, whatever the model's own */

/* Columns of a value head's parts in a row of the projections, and its channels of the convolution. */
typedef struct head_columns {
    int64_t q, k, v, z, b, a;
    int64_t channel_q, channel_k, channel_v;
} head_columns;

/* Scratch of a thread. */
typedef struct delta_chunk {
    mdp_gemm *gemm;
    float *q, *k;                  /* [MDP_DELTA_CHUNK, d_key] */
    float *turned;                 /* [d_key, MDP_DELTA_CHUNK] keys as they add to the state */
    float *v, *o;                  /* [MDP_DELTA_CHUNK, d_value] */
    float *pair;                   /* [MDP_DELTA_CHUNK, MDP_DELTA_CHUNK] */
    float *state;                  /* [d_key, d_value] */
    float *ones;                   /* [the larger of both] */
    double decay[MDP_DELTA_CHUNK]; /* logarithm, from the chunk's first token on */
    float beta[MDP_DELTA_CHUNK];
} delta_chunk;

int64_t mdp_delta_row_values(const mdp_delta_sizes *n) {
    return 2 * (n->n_key * n->d_key + n->n_value * n->d_value + n->n_value);
}

int64_t mdp_delta_scratch(const mdp_delta_sizes *n) {
    return MDP_DELTA_CHUNK * (3 * n->d_key + 2 * n->d_value + MDP_DELTA_CHUNK) + n->d_key * n->d_value +
           mdp_larger(n->d_key, n->d_value);
}

static head_columns find_columns(const mdp_delta_sizes *n, bool grouped, int64_t head) {
    int64_t share = n->n_value / n->n_key, group = head / share, i = head % share;
    int64_t keys = n->n_key * n->d_key, values = n->n_value * n->d_value, rates = 2 * (keys + values);
    head_columns at = {
        .channel_q = group * n->d_key, .channel_k = keys + group * n->d_key, .channel_v = 2 * keys + head * n->d_value};
    if (!grouped) {
        at.q = at.channel_q;
        at.k = at.channel_k;
        at.v = at.channel_v;
        at.z = 2 * keys + values + head * n->d_value;
        at.b = rates + head;
        at.a = rates + n->n_value + head;
        return at;
    }
    at.q = group * 2 * (n->d_key + share * n->d_value);
    at.k = at.q + n->d_key;
    at.v = at.k + n->d_key + i * n->d_value;
    at.z = at.v + share * n->d_value;
    at.b = rates + group * 2 * share + i;
    at.a = at.b + share;
    return at;
}

static delta_chunk divide(const mdp_delta_sizes *n, mdp_gemm *gemm, float *scratch) {
    delta_chunk c = {.gemm = gemm, .q = scratch};
    c.k = c.q + MDP_DELTA_CHUNK * n->d_key;
    c.turned = c.k + MDP_DELTA_CHUNK * n->d_key;
    c.v = c.turned + MDP_DELTA_CHUNK * n->d_key;
    c.o = c.v + MDP_DELTA_CHUNK * n->d_value;
    c.pair = c.o + MDP_DELTA_CHUNK * n->d_value;
    c.state = c.pair + MDP_DELTA_CHUNK * MDP_DELTA_CHUNK;
    c.ones = c.state + n->d_key * n->d_value;
    memset(c.state, 0, (size_t)(n->d_key * n->d_value) * sizeof(float));
    for (int64_t i = 0; i < mdp_larger(n->d_key, n->d_value); i++) c.ones[i] = 1.0F;
    return c;
}

/* out [n_value]: channels `channel` .. of token t, each mixed with the same channel of the tokens before it; column:
 * where the first stands in a row. */
static void convolve(const mdp_delta_job *job, int64_t t, int64_t column, int64_t channel, int64_t n_value,
                     const float *ones, float *out) {
    const mdp_delta_sizes *n = job->sizes;
    memset(out, 0, (size_t)n_value * sizeof *out);
    for (int64_t j = 0; j < n->n_kernel; j++) {
        int64_t from = t - (n->n_kernel - 1) + j;
        if (from < 0) continue;
        const float *x = job->rows + from * job->ld + column, *w = job->weights->kernel + j * n->n_channel + channel;
        for (int64_t i = 0; i < n_value; i++) out[i] += w[i] * x[i];
    }
    mdp_gate(&job->activation, ones, n_value, out);
}

static void scale_row(float by, int64_t n, float *x) {
    for (int64_t i = 0; i < n; i++) x[i] *= by;
}

/* Queries, keys, values and rates of n_row tokens from `first` on. */
static void read_chunk(const mdp_delta_job *job, const head_columns *at, int64_t first, int n_row, delta_chunk *c) {
    const mdp_delta_sizes *n = job->sizes;
    double decay = 0.0;
    float query_scale = (float)(1.0 / sqrt((double)n->d_key));
    for (int i = 0; i < n_row; i++) {
        const float *row = job->rows + (first + i) * job->ld;
        float *q = c->q + i * n->d_key, *k = c->k + i * n->d_key;
        convolve(job, first + i, at->q, at->channel_q, n->d_key, c->ones, q);
        convolve(job, first + i, at->k, at->channel_k, n->d_key, c->ones, k);
        convolve(job, first + i, at->v, at->channel_v, n->d_value, c->ones, c->v + i * n->d_value);
        scale_row((float)(1.0 / sqrt(mdp_sum_squares(q, n->d_key) + L2_EPS)) * query_scale, n->d_key, q);
        scale_row((float)(1.0 / sqrt(mdp_sum_squares(k, n->d_key) + L2_EPS)), n->d_key, k);
        c->beta[i] = (float)(1.0 / (1.0 + exp(-(double)row[at->b])));
        double x = (double)(row[at->a] + job->weights->shift[job->head]);
        decay += (double)job->weights->rate[job->head] * (x > 20.0 ? x : log1p(exp(x)));
        c->decay[i] = decay;
    }
}

/* pair [n_row, n_row] = x k^T times the decay from the column's token to the row's; 0 for later columns. */
static void relate(const mdp_delta_sizes *n, const float *x, int n_row, delta_chunk *c) {
    mdp_gemm_nt(c->gemm, n_row, n_row, (int)n->d_key, x, (int)n->d_key, c->k, (int)n->d_key, c->pair, MDP_DELTA_CHUNK);
    for (int i = 0; i < n_row; i++) {
        float *row = c->pair + i * MDP_DELTA_CHUNK;
        for (int j = 0; j <= i; j++) row[j] *= (float)exp(c->decay[i] - c->decay[j]);
        for (int j = i + 1; j < n_row; j++) row[j] = 0.0F;
    }
}

/* o [n_row, d_value] = what the state before the chunk gives for x [n_row, d_key]. */
static void recall(const mdp_delta_sizes *n, const float *x, int n_row, delta_chunk *c) {
    memset(c->o, 0, (size_t)n_row * (size_t)n->d_value * sizeof(float));
    mdp_gemm_nn_add(c->gemm, n_row, (int)n->d_value, (int)n->d_key, x, (int)n->d_key, c->state, (int)n->d_value, c->o,
                    (int)n->d_value);
    for (int i = 0; i < n_row; i++) scale_row((float)exp(c->decay[i]), n->d_value, c->o + i * n->d_value);
}

/* v becomes what the chunk's tokens add along their keys: each value less what the state before it says of its key. */
static void correct(const mdp_delta_sizes *n, int n_row, delta_chunk *c) {
    recall(n, c->k, n_row, c);
    relate(n, c->k, n_row, c);
    for (int i = 0; i < n_row; i++) {
        float *v = c->v + i * n->d_value;
        mdp_axpy(-1.0F, c->o + i * n->d_value, n->d_value, v);
        for (int j = 0; j < i; j++) mdp_axpy(-c->pair[i * MDP_DELTA_CHUNK + j], c->v + j * n->d_value, n->d_value, v);
        scale_row(c->beta[i], n->d_value, v);
    }
}

/* o = what queries find in the state before the chunk and in the chunk itself. */
static void read_out(const mdp_delta_sizes *n, int n_row, delta_chunk *c) {
    recall(n, c->q, n_row, c);
    relate(n, c->q, n_row, c);
    mdp_gemm_nn_add(c->gemm, n_row, (int)n->d_value, n_row, c->pair, MDP_DELTA_CHUNK, c->v, (int)n->d_value, c->o,
                    (int)n->d_value);
}

static void advance(const mdp_delta_sizes *n, int n_row, delta_chunk *c) {
    double end = c->decay[n_row - 1];
    scale_row((float)exp(end), n->d_key * n->d_value, c->state);
    for (int j = 0; j < n_row; j++) {
        float left = (float)exp(end - c->decay[j]);
        for (int64_t i = 0; i < n->d_key; i++) c->turned[i * MDP_DELTA_CHUNK + j] = c->k[j * n->d_key + i] * left;
    }
    mdp_gemm_nn_add(c->gemm, (int)n->d_key, (int)n->d_value, n_row, c->turned, MDP_DELTA_CHUNK, c->v, (int)n->d_value,
                    c->state, (int)n->d_value);
}

/* Norm of every output row, times silu of its gate. */
static void write_chunk(const mdp_delta_job *job, const head_columns *at, int64_t first, int n_row,
                        const delta_chunk *c) {
    const mdp_activation silu = {.kind = MDP_SILU};
    int64_t d = job->sizes->d_value;
    for (int i = 0; i < n_row; i++) {
        float *o = c->o + i * d, *out = job->out + (first + i) * job->ldo + job->head * d;
        memcpy(out, job->rows + (first + i) * job->ld + at->z, (size_t)d * sizeof *out);
        mdp_rms_norm(o, job->weights->norm, job->norm_eps, d, o);
        mdp_gate(&silu, o, d, out);
    }
}

void mdp_delta_head(const mdp_delta_job *job, float *scratch) {
    const mdp_delta_sizes *n = job->sizes;
    head_columns at = find_columns(n, job->grouped, job->head);
    delta_chunk c = divide(n, job->gemm, scratch);
    for (int64_t first = 0; first < job->length; first += MDP_DELTA_CHUNK) {
        int n_row = (int)(job->length - first < MDP_DELTA_CHUNK ? job->length - first : MDP_DELTA_CHUNK);
        read_chunk(job, &at, first, n_row, &c);
        correct(n, n_row, &c);
        read_out(n, n_row, &c);
        advance(n, n_row, &c);
        write_chunk(job, &at, first, n_row, &c);
    }
}

mdp_status mdp_delta_load(mdp_engine *engine, const mdp_delta *delta, mdp_delta_weights *out) {
    const mdp_delta_sizes *n = &engine->model->delta;
    float *stored = NULL;
    MDP_TRY(mdp_engine_load(engine, &delta->norm, &out->norm));
    MDP_TRY(mdp_engine_load(engine, &delta->shift, &out->shift));
    MDP_TRY(mdp_engine_load(engine, &delta->rate, &out->rate));
    for (int64_t h = 0; h < n->n_value; h++) out->rate[h] = (float)-exp((double)out->rate[h]);
    MDP_TRY(mdp_engine_load(engine, &delta->kernel, &stored));
    mdp_status status = MDP_ALLOC(&out->kernel, n->n_kernel * n->n_channel, "the kernels of a convolution");
    for (int64_t i = 0; i < n->n_channel && status.code == MDP_OK; i++)
        for (int64_t j = 0; j < n->n_kernel; j++) out->kernel[j * n->n_channel + i] = stored[i * n->n_kernel + j];
    mdp_free(stored);
    return status;
}

void mdp_delta_clear(mdp_delta_weights *weights) {
    mdp_free(weights->kernel);
    mdp_free(weights->rate);
    mdp_free(weights->shift);
    mdp_free(weights->norm);
}
