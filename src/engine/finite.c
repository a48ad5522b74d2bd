/* finite.c - numbers that are not finite: found where rows are in cache anyway, named, or replaced by 0.
 *
 * Looked at: the residual stream after attention and at the end of a layer, and every expert's output before observers
 * see it. A row of d values costs d comparisons beside at least d^2 operations that made it. What is found first does
 * not depend on ranks: a rank holds a run of tokens, so the lowest rank's error is the lowest token's; experts move, so
 * their finds are kept to the end of the layer and the lowest expert, then token, is told. With allow_nonfinite such
 * values become 0, are counted, and the pass goes on. */
#include "engine/finite.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

#define INFINITY_BITS 0x7f800000u
#define TOKEN_BITS 42 /* of a key: expert, then token */

static uint32_t magnitude_bits(const float *x) {
    uint32_t bits;
    memcpy(&bits, x, sizeof bits);
    return bits & 0x7fffffffu;
}

/* Set what is not finite to 0 and count it. */
static void clear(mdp_engine *engine, int64_t layer, float *x, int64_t n) {
    int64_t n_cleared = 0;
    for (int64_t j = 0; j < n; j++) {
        if (magnitude_bits(x + j) < INFINITY_BITS) continue;
        x[j] = 0.0F;
        n_cleared++;
    }
#pragma omp critical(mdp_finite)
    {
        engine->n_nonfinite += n_cleared;
        if (engine->first_nonfinite < 0) engine->first_nonfinite = layer;
    }
}

/* ---- what is to blame ---------------------------------------------------------------------------------------- */

/* Where a value of a matrix is stored: row and column of the tensor's last two dimensions. */
static void find_stored(const mdp_matrix *matrix, int64_t *row, int64_t *column) {
    const mdp_tensor *tensor = matrix->tensor;
    const mdp_scaling *scaling = &matrix->scaling;
    int n_dim = tensor->n_dim;
    int64_t n_row = scaling->tensor ? scaling->n_row : n_dim > 1 ? tensor->shape[n_dim - 2] : 1;
    int64_t n_col = scaling->tensor ? scaling->n_col : n_dim > 0 ? tensor->shape[n_dim - 1] : 1;
    int64_t value = matrix->first + *row * matrix->row_stride + *column * matrix->col_stride;
    *row = value / n_col % n_row;
    *column = value % n_col;
}

/* "'name' holds a NaN (row 1, column 17)" */
static void describe_value(const mdp_matrix *matrix, int64_t row, int64_t column, float value, char *out,
                           size_t n_byte) {
    const mdp_tensor *scales = matrix->scaling.tensor;
    find_stored(matrix, &row, &column);
    snprintf(out, n_byte, "'%.200s'%s%.200s%s holds %s (row %" PRId64 ", column %" PRId64 ")", matrix->tensor->name,
             scales ? " with its scales '" : "", scales ? scales->name : "", scales ? "'" : "",
             isnan(value) ? "a NaN" : "an infinity", row, column);
}

/* Describe the first value of a matrix that is not finite; nothing when all are, or it is unreadable. */
static void blame_matrix(mdp_engine *engine, const mdp_matrix *matrix, char *out, size_t n_byte) {
    void *scratch = NULL;
    float *rows = NULL;
    if (out[0]) return;
    mdp_status status = mdp_alloc(&scratch, mdp_matrix_scratch(matrix, 1), 1, "a row");
    if (status.code == MDP_OK) status = MDP_ALLOC(&rows, matrix->n_col, "a row");
    for (int64_t r = 0; status.code == MDP_OK && !out[0] && r < matrix->n_row; r++) {
        status = mdp_matrix_read(engine->reader, matrix, r, 1, scratch, rows);
        if (status.code != MDP_OK || mdp_all_finite(rows, matrix->n_col)) continue;
        int64_t c = 0;
        while (isfinite(rows[c])) c++;
        describe_value(matrix, r, c, rows[c], out, n_byte);
    }
    mdp_free(rows);
    mdp_free(scratch);
}

/* Who looks for what is to blame. */
typedef struct search {
    mdp_engine *engine;
    mdp_expert_t expert; /* whose matrices are looked at; -1: those of no routed expert */
    char *out;
    size_t n_byte;
} search;

static void blame_visited(void *context, const mdp_matrix *matrix, mdp_expert_t expert) {
    const search *s = context;
    if (expert == s->expert) blame_matrix(s->engine, matrix, s->out, s->n_byte);
}

/* The matrices of a layer that belong to an expert, or to none (-1). */
static void blame_layer(mdp_engine *engine, int64_t layer, mdp_expert_t expert, char *out, size_t n_byte) {
    search s = {.engine = engine, .expert = expert, .out = out, .n_byte = n_byte};
    mdp_layer_visit(&engine->model->layers[layer], blame_visited, &s);
}

/* The row of the embedding of a token of this rank. */
static void blame_embedding(mdp_engine *engine, int64_t token, char *out, size_t n_byte) {
    const mdp_matrix *all = &engine->model->embedding;
    int64_t local = token - engine->batch.first_token;
    if (local < 0 || local >= engine->batch.n_token) return;
    mdp_matrix row = *all;
    row.first += (int64_t)engine->ids[local] * all->row_stride;
    row.n_row = 1;
    blame_matrix(engine, &row, out, n_byte);
    if (out[0])
        snprintf(out, n_byte, "the embedding of token id %u is not finite ('%.200s')", engine->ids[local],
                 all->tensor->name);
}

static mdp_status refuse(const mdp_engine *engine, int64_t layer, const char *what, int64_t token, const char *blame) {
    const mdp_tokens *tokens = engine->tokens;
    int64_t sequence = 0, high = tokens->n_sequence;
    while (sequence + 1 < high) { /* the last sequence that begins at or before the token */
        int64_t middle = sequence + (high - sequence) / 2;
        if (tokens->offset[middle] <= token) sequence = middle;
        if (tokens->offset[middle] > token) high = middle;
    }
    int category = tokens->sequence_category[sequence];
    return MDP_ERROR(MDP_BAD_INPUT,
                     "%s: layer %" PRId64 ": %s is not finite for token %" PRId64 " of '%s' (position %" PRId64
                     " of its sequence): %s. --allow-nonfinite goes on with 0 in such places.",
                     engine->model->catalogue->path, layer, what, token - tokens->category_offset[category],
                     tokens->category[category], token - tokens->offset[sequence],
                     blame[0] ? blame
                              : "there is no NaN or infinity in the layer's weights, so activations outgrow float32");
}

/* ---- rows of the residual stream ----------------------------------------------------------------------------- */

mdp_status mdp_finite_residual(mdp_engine *engine, int64_t layer, const char *what) {
    int64_t d = engine->model->d_model, first = INT64_MAX;
    for (int s = 0; s < engine->n_branch; s++) {
#pragma omp parallel for schedule(static) num_threads(engine->n_thread)
        for (int64_t i = 0; i < engine->batch.n_token; i++) {
            float *x = engine->branches[s].x + i * d;
            if (mdp_all_finite(x, d)) continue;
            if (engine->allow_nonfinite) {
                clear(engine, layer, x, d);
            } else {
#pragma omp critical(mdp_finite)
                first = i < first ? i : first;
            }
        }
    }
    if (first == INT64_MAX) return mdp_ok();
    char blame[600] = "";
    int64_t token = engine->batch.first_token + first;
    if (layer == 0) blame_embedding(engine, token, blame, sizeof blame);
    blame_layer(engine, layer, -1, blame, sizeof blame);
    return refuse(engine, layer, what, token, blame);
}

/* ---- outputs of experts -------------------------------------------------------------------------------------- */

bool mdp_finite_outputs(mdp_engine *engine, int64_t layer, mdp_expert_t expert, float *y, const int64_t *token,
                        int32_t n_row) {
    int64_t d = engine->model->d_model, key = INT64_MAX;
    for (int32_t i = 0; i < n_row; i++) {
        if (mdp_all_finite(y + i * d, d)) continue;
        int64_t own = ((int64_t)expert << TOKEN_BITS) | token[i];
        if (engine->allow_nonfinite) {
            clear(engine, layer, y + i * d, d);
        } else if (own < key) {
            key = own;
        }
    }
    if (key == INT64_MAX) return true;
#pragma omp critical(mdp_finite)
    if (key < engine->nonfinite_key) engine->nonfinite_key = key;
    return false;
}

mdp_status mdp_finite_agree_all(mdp_engine *engine, int64_t layer) {
    int64_t key = -engine->nonfinite_key; /* the lowest of all ranks: the largest of what is negated */
    if (engine->allow_nonfinite) return mdp_ok();
    MDP_TRY(mdp_max_i64_all(engine->comm, &key, 1));
    key = -key;
    if (key == INT64_MAX) return mdp_ok();
    mdp_status status = mdp_ok();
    if (engine->comm->rank == 0) {
        char blame[600] = "", what[64];
        mdp_expert_t e = (mdp_expert_t)(key >> TOKEN_BITS);
        const mdp_expert *expert = engine->roster.experts[e];
        search s = {.engine = engine, .expert = engine->roster.number[e], .out = blame, .n_byte = sizeof blame};
        snprintf(what, sizeof what, "the output of expert %d", (int)s.expert);
        mdp_expert_visit(expert, s.expert, blame_visited, &s);
        blame_layer(engine, layer, -1, blame, sizeof blame); /* the norm of its input */
        status = refuse(engine, layer, what, key & ((INT64_C(1) << TOKEN_BITS) - 1), blame);
    }
    return mdp_agree_all(engine->comm, status);
}

mdp_status mdp_engine_nonfinite_all(const mdp_engine *engine, int64_t *n, int64_t *layer) {
    int64_t first = engine->first_nonfinite < 0 ? INT64_MIN : -engine->first_nonfinite;
    *n = engine->n_nonfinite;
    MDP_TRY(mdp_sum_i64_all(engine->comm, n, 1));
    MDP_TRY(mdp_max_i64_all(engine->comm, &first, 1));
    *layer = *n > 0 ? -first : -1;
    return mdp_ok();
}
