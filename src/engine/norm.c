/* norm.c - the norms of the residual stream, of whichever kind the model has. */
#include "engine/norm.h"

#include <string.h>

mdp_status mdp_norm_load(mdp_engine *engine, const mdp_norm *norm, float **out) {
    int64_t d = engine->model->d_model;
    float *weight = NULL, *bias = NULL;
    *out = NULL;
    mdp_status status = mdp_engine_load(engine, &norm->weight, &weight);
    if (status.code == MDP_OK && norm->bias.tensor) status = mdp_engine_load(engine, &norm->bias, &bias);
    if (status.code == MDP_OK) status = MDP_ALLOC(out, 2 * d, "a norm");
    if (status.code == MDP_OK) {
        memcpy(*out, weight, (size_t)d * sizeof(float));
        mdp_norm_weights(engine->model, d, *out);
        if (bias) memcpy(*out + d, bias, (size_t)d * sizeof(float));
    }
    mdp_free(weight);
    mdp_free(bias);
    return status;
}

void mdp_norm_weights(const mdp_model *model, int64_t n, float *weights) {
    for (int64_t i = 0; i < n && model->norm_kind == MDP_RMS_NORM_OF_ONE_PLUS; i++) weights[i] += 1.0F;
}

void mdp_norm_row(const mdp_model *model, const float *norm, const float *x, float *y) {
    int64_t d = model->d_model;
    if (model->norm_kind == MDP_LAYER_NORM) {
        mdp_layer_norm(x, norm, norm + d, model->norm_eps, d, y);
    } else {
        mdp_rms_norm(x, norm, model->norm_eps, d, y);
    }
}
