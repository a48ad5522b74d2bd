/* weights.c - what criteria without calibration read: sums over the matrices of experts, norms of router rows.
 *
 * Expert number i of the model (counted over layers) belongs to rank i modulo the number of ranks; a rank's experts are
 * shared out over its threads. A matrix is read in panels and added row by row: a row's sum in f64 has one order, rows
 * are added exactly. Routers are small and read by one rank. Refuses weights that are not finite. */
#include "mdp/score.h"

#include <math.h>
#include <string.h>

/* ---- life ---------------------------------------------------------------------------------------------------- */

static int64_t count_layers(const mdp_model *model) {
    int64_t n = 0;
    for (int64_t l = 0; l < model->n_layer; l++) n += model->layers[l].is_moe;
    return n;
}

static int64_t count_values(const mdp_expert *expert) {
    return expert->gate.n_row * expert->gate.n_col + expert->up.n_row * expert->up.n_col +
           expert->down.n_row * expert->down.n_col;
}

static mdp_status new_weights(const mdp_model *model, mdp_weights **out) {
    mdp_weights *weights = NULL;
    *out = NULL;
    MDP_TRY(MDP_ALLOC(&weights, 1, "scores from weights"));
    mdp_status status = MDP_ALLOC(&weights->layers, count_layers(model), "scores from weights");
    if (status.code != MDP_OK) {
        mdp_weights_destroy(weights);
        return status;
    }
    for (int64_t l = 0; l < model->n_layer; l++) {
        if (!model->layers[l].is_moe) continue;
        const mdp_moe *moe = &model->layers[l].moe;
        weights->layers[weights->n_layer++] =
            (mdp_layer_weights){.n_expert = moe->n_expert, .n_value = count_values(&moe->experts[0])};
    }
    *out = weights;
    return status;
}

void mdp_weights_destroy(mdp_weights *weights) {
    if (!weights) return;
    for (int64_t i = 0; weights->layers && i < weights->n_layer; i++) {
        mdp_free(weights->layers[i].square_sum);
        mdp_free(weights->layers[i].abs_sum);
        mdp_free(weights->layers[i].router_norm);
        mdp_free(weights->layers[i].pretrained_norm);
    }
    mdp_free(weights->layers);
    mdp_free(weights);
}

/* ---- experts ------------------------------------------------------------------------------------------------- */

/* An expert and where its sums go. */
typedef struct job {
    const mdp_expert *expert;
    int64_t layer;
    mdp_expert_t number;
    mdp_exact *square_sum, *abs_sum;
} job;

static mdp_status add_matrix(mdp_reader *reader, const mdp_matrix *matrix, const job *what) {
    int64_t n_row = matrix->n_row < MDP_PANEL_ROWS ? matrix->n_row : MDP_PANEL_ROWS;
    float *panel = NULL;
    void *scratch = NULL;
    mdp_status status = MDP_ALLOC(&panel, n_row * matrix->n_col, "a panel of weights");
    if (status.code == MDP_OK) status = mdp_alloc(&scratch, mdp_matrix_scratch(matrix, n_row), 1, "a panel of weights");
    for (int64_t row0 = 0; row0 < matrix->n_row && status.code == MDP_OK; row0 += n_row) {
        int64_t n = matrix->n_row - row0 < n_row ? matrix->n_row - row0 : n_row;
        status = mdp_matrix_read(reader, matrix, row0, n, scratch, panel);
        for (int64_t i = 0; i < n && status.code == MDP_OK; i++) {
            const float *row = panel + i * matrix->n_col;
            if (mdp_exact_add(what->square_sum, mdp_sum_squares(row, matrix->n_col)) &&
                mdp_exact_add(what->abs_sum, mdp_sum_abs(row, matrix->n_col)))
                continue;
            status = MDP_ERROR(MDP_BAD_INPUT,
                               "layer %lld, expert %d: row %lld of '%s' holds a NaN or an infinity; the checkpoint is "
                               "damaged.",
                               (long long)what->layer, (int)what->number, (long long)(row0 + i), matrix->tensor->name);
        }
    }
    mdp_free(panel);
    mdp_free(scratch);
    return status;
}

static mdp_status add_expert(mdp_reader *reader, const job *what) {
    MDP_TRY(add_matrix(reader, &what->expert->gate, what));
    MDP_TRY(add_matrix(reader, &what->expert->up, what));
    return add_matrix(reader, &what->expert->down, what);
}

/* List this rank's experts. */
static mdp_status list_jobs(const mdp_comm *comm, const mdp_model *model, const mdp_weights *weights, job **out,
                            int64_t *n) {
    int64_t total = 0, number = 0, index = 0;
    *n = 0;
    for (int64_t i = 0; i < weights->n_layer; i++) total += weights->layers[i].n_expert;
    MDP_TRY(MDP_ALLOC(out, total / comm->size + 1, "the experts of a rank"));
    for (int64_t l = 0; l < model->n_layer; l++) {
        if (!model->layers[l].is_moe) continue;
        const mdp_layer_weights *layer = &weights->layers[index++];
        for (mdp_expert_t e = 0; e < layer->n_expert; e++) {
            if (number++ % comm->size != comm->rank) continue;
            (*out)[(*n)++] = (job){.expert = &model->layers[l].moe.experts[e],
                                   .layer = l,
                                   .number = e,
                                   .square_sum = &layer->square_sum[e],
                                   .abs_sum = &layer->abs_sum[e]};
        }
    }
    return mdp_ok();
}

static mdp_status add_experts(const mdp_comm *comm, const mdp_model *model, mdp_reader *reader, int n_thread,
                              const mdp_weights *weights) {
    job *jobs = NULL;
    int64_t n = 0;
    for (int64_t i = 0; i < weights->n_layer; i++) {
        mdp_layer_weights *layer = &weights->layers[i];
        MDP_TRY(MDP_ALLOC(&layer->square_sum, layer->n_expert, "scores from weights"));
        MDP_TRY(MDP_ALLOC(&layer->abs_sum, layer->n_expert, "scores from weights"));
    }
    mdp_status failed = list_jobs(comm, model, weights, &jobs, &n);
    if (failed.code != MDP_OK) n = 0;
#pragma omp parallel for schedule(dynamic, 1) num_threads(n_thread)
    for (int64_t i = 0; i < n; i++) {
        mdp_status status = add_expert(reader, &jobs[i]);
        if (status.code != MDP_OK) {
#pragma omp critical(mdp_weights)
            failed = status;
        }
    }
    mdp_free(jobs);
    return failed;
}

static mdp_status reduce_all(const mdp_comm *comm, const mdp_weights *weights) {
    for (int64_t i = 0; i < weights->n_layer; i++) {
        mdp_layer_weights *layer = &weights->layers[i];
        int64_t n = (int64_t)layer->n_expert * MDP_LIMBS;
        MDP_TRY(mdp_sum_i64_to_root_all(comm, &layer->square_sum[0].limb[0], n, 0));
        MDP_TRY(mdp_sum_i64_to_root_all(comm, &layer->abs_sum[0].limb[0], n, 0));
    }
    return mdp_ok();
}

mdp_status mdp_weights_of_experts_all(const mdp_comm *comm, const mdp_model *model, mdp_reader *reader, int n_thread,
                                      mdp_weights **out) {
    mdp_weights *weights = NULL;
    *out = NULL;
    mdp_status status = new_weights(model, &weights);
    if (status.code == MDP_OK) status = add_experts(comm, model, reader, n_thread, weights);
    status = mdp_agree_all(comm, status);
    if (status.code == MDP_OK) status = reduce_all(comm, weights);
    if (status.code != MDP_OK) {
        mdp_weights_destroy(weights);
        return status;
    }
    *out = weights;
    return status;
}

/* ---- routers ------------------------------------------------------------------------------------------------- */

/* Do the two models have routers that can be compared row by row? */
static mdp_status check_pair(const mdp_model *model, const mdp_model *pretrained) {
    const char *a = model->catalogue->path, *b = pretrained->catalogue->path;
    if (strcmp(model->model_type, pretrained->model_type) != 0 || model->n_layer != pretrained->n_layer)
        return MDP_ERROR(MDP_BAD_INPUT,
                         "%s is a %s of %lld layers, %s a %s of %lld; --pretrained names the model that was fine-tuned "
                         "into the other.",
                         a, model->model_type, (long long)model->n_layer, b, pretrained->model_type,
                         (long long)pretrained->n_layer);
    for (int64_t l = 0; l < model->n_layer; l++) {
        const mdp_layer *one = &model->layers[l], *two = &pretrained->layers[l];
        if (one->is_moe != two->is_moe)
            return MDP_ERROR(MDP_BAD_INPUT,
                             "layer %lld has experts in %s and none in %s; --pretrained names the model that was "
                             "fine-tuned into the other.",
                             (long long)l, one->is_moe ? a : b, one->is_moe ? b : a);
        if (!one->is_moe) continue;
        const mdp_matrix *router = &one->moe.router, *other = &two->moe.router;
        if (strcmp(router->tensor->name, other->tensor->name) != 0 || router->n_row != other->n_row ||
            router->n_col != other->n_col)
            return MDP_ERROR(MDP_BAD_INPUT,
                             "layer %lld: the router of %s is '%s' [%lld, %lld], that of %s is '%s' [%lld, %lld]; "
                             "--pretrained names the model that was fine-tuned into the other.",
                             (long long)l, a, router->tensor->name, (long long)router->n_row, (long long)router->n_col,
                             b, other->tensor->name, (long long)other->n_row, (long long)other->n_col);
    }
    return mdp_ok();
}

/* norm [n_row] of the rows; they must be finite. */
static mdp_status fill_norms(const mdp_model *model, int64_t layer, const float *rows, double *norm) {
    const mdp_matrix *router = &model->layers[layer].moe.router;
    for (int64_t e = 0; e < router->n_row; e++) {
        norm[e] = sqrt(mdp_sum_squares(rows + e * router->n_col, router->n_col));
        if (isfinite(norm[e])) continue;
        return MDP_ERROR(MDP_BAD_INPUT,
                         "%s: layer %lld: the router's row of expert %lld ('%s') holds a NaN or an infinity; the "
                         "checkpoint is damaged.",
                         model->catalogue->path, (long long)layer, (long long)e, router->tensor->name);
    }
    return mdp_ok();
}

static int64_t count_different_rows(const float *a, const float *b, int64_t n_row, int64_t n_col) {
    int64_t n = 0;
    for (int64_t e = 0; e < n_row; e++) n += memcmp(a + e * n_col, b + e * n_col, (size_t)n_col * sizeof(float)) != 0;
    return n;
}

/* The two models, and what is found on the way. */
typedef struct pair {
    const mdp_model *model, *pretrained;
    mdp_reader *reader, *pretrained_reader;
    mdp_hash *hash;      /* of the pretrained rows */
    int64_t n_different; /* rows */
} pair;

static mdp_status compare_rows(pair *both, int64_t l, const float *rows, mdp_layer_weights *layer) {
    const mdp_matrix *router = &both->pretrained->layers[l].moe.router;
    float *other = NULL;
    MDP_TRY(MDP_ALLOC(&layer->pretrained_norm, layer->n_expert, "scores from weights"));
    MDP_TRY(mdp_matrix_load(both->pretrained_reader, router, &other));
    mdp_status status = fill_norms(both->pretrained, l, other, layer->pretrained_norm);
    both->n_different += count_different_rows(rows, other, router->n_row, router->n_col);
    mdp_hash_update(both->hash, other, router->n_row * router->n_col * (int64_t)sizeof *other);
    mdp_free(other);
    return status;
}

static mdp_status fill_routers(pair *both, const mdp_weights *weights) {
    int64_t index = 0;
    for (int64_t l = 0; l < both->model->n_layer; l++) {
        if (!both->model->layers[l].is_moe) continue;
        mdp_layer_weights *layer = &weights->layers[index++];
        float *rows = NULL;
        MDP_TRY(MDP_ALLOC(&layer->router_norm, layer->n_expert, "scores from weights"));
        MDP_TRY(mdp_matrix_load(both->reader, &both->model->layers[l].moe.router, &rows));
        mdp_status status = fill_norms(both->model, l, rows, layer->router_norm);
        if (status.code == MDP_OK && both->pretrained) status = compare_rows(both, l, rows, layer);
        mdp_free(rows);
        MDP_TRY(status);
    }
    return mdp_ok();
}

static mdp_status read_pair(pair *both, mdp_weights *weights) {
    if (!both->pretrained) return fill_routers(both, weights);
    MDP_TRY(check_pair(both->model, both->pretrained));
    MDP_TRY(mdp_hash_new(&both->hash));
    mdp_status status = fill_routers(both, weights);
    mdp_digest digest = mdp_hash_digest(both->hash);
    mdp_hash_destroy(both->hash);
    memcpy(weights->pretrained_routers, digest.hex, sizeof weights->pretrained_routers);
    if (status.code == MDP_OK && both->n_different == 0)
        return MDP_ERROR(MDP_BAD_INPUT,
                         "no router row of %s differs from %s: fine-tuning left the routers as they were (frozen, or "
                         "LoRA on other weights), so their change says nothing about experts; use another method.",
                         both->model->catalogue->path, both->pretrained->catalogue->path);
    return status;
}

mdp_status mdp_weights_of_routers(const mdp_model *model, mdp_reader *reader, const mdp_model *pretrained,
                                  mdp_reader *pretrained_reader, mdp_weights **out) {
    mdp_weights *weights = NULL;
    pair both = {.model = model, .pretrained = pretrained, .reader = reader, .pretrained_reader = pretrained_reader};
    *out = NULL;
    MDP_TRY(new_weights(model, &weights));
    mdp_status status = read_pair(&both, weights);
    if (status.code != MDP_OK) {
        mdp_weights_destroy(weights);
        return status;
    }
    *out = weights;
    return status;
}
