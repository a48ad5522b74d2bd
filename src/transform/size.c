/* size.c - how large a result is: parameters, parameters that a token meets, bytes before the plan is known. */
#include "mdp/transform.h"

static int64_t count_values(const mdp_matrix *matrix) {
    return matrix->tensor ? matrix->n_row * matrix->n_col : 0;
}

/* Values of one expert; experts of a layer are alike. */
static int64_t count_expert(const mdp_moe *moe) {
    const mdp_expert *expert = &moe->experts[0];
    return count_values(&expert->gate) + count_values(&expert->up) + count_values(&expert->down) +
           count_values(&expert->gate_bias) + count_values(&expert->up_bias) + count_values(&expert->down_bias);
}

/* Values of an expert of that layer in the result of a plan, less: those of neurons that go. */
static int64_t count_cut(const mdp_moe *moe, const mdp_plan *plan) {
    const mdp_expert *expert = &moe->experts[0];
    int64_t width = plan ? mdp_plan_width(plan) : 0;
    int64_t each = 3 * expert->gate.n_col + (expert->gate_bias.tensor ? 2 : 0);
    return width > 0 ? (expert->gate.n_row - width) * each : 0;
}

/* Values of one expert's entries in everything that changes when experts are removed: its matrices, its router row. */
static int64_t count_entries(const mdp_model *model, const mdp_moe *moe) {
    int64_t n = 0;
    for (int64_t i = 0; i < moe->n_expert_tensor; i++)
        n += model->n_value[moe->expert_tensors[i].tensor - model->catalogue->tensors];
    return n / moe->n_expert;
}

mdp_result_size mdp_transform_size(const mdp_model *model, const mdp_plan *plan) {
    mdp_result_size size = {model->n_parameter, 0};
    for (int64_t i = 0; plan && i < plan->n_layer; i++) {
        const mdp_plan_layer *planned = &plan->layers[i];
        const mdp_moe *moe = &model->layers[planned->layer].moe;
        size.n_parameter -= (planned->n_expert - planned->n_kept) * count_entries(model, moe);
        size.n_parameter -= planned->n_kept * count_cut(moe, plan);
    }
    size.n_active = size.n_parameter;
    int64_t i = 0; /* plan layers ascend like the model's */
    for (int64_t l = 0; l < model->n_layer; l++) {
        if (!model->layers[l].is_moe) continue;
        const mdp_moe *moe = &model->layers[l].moe;
        int64_t n_expert = moe->n_expert, k = moe->top_k;
        if (plan && i < plan->n_layer && plan->layers[i].layer == l) {
            n_expert = plan->layers[i].n_kept;
            if (plan->layers[i].top_k > 0) k = plan->layers[i].top_k;
            i++;
        }
        size.n_active -= (n_expert - k) * (count_expert(moe) - count_cut(moe, plan));
    }
    return size;
}

static int64_t count_mlp(const mdp_expert *mlp) {
    return count_values(&mlp->gate) + count_values(&mlp->up) + count_values(&mlp->down);
}

/* Values of the matrices that a token is multiplied with in a layer. */
static int64_t count_met(const mdp_model *model, const mdp_layer *layer, const mdp_plan *plan,
                         const mdp_plan_layer *planned) {
    int64_t n = mdp_attention_values(&layer->attention);
    if (!layer->is_moe) return n + count_mlp(&layer->dense);
    const mdp_moe *moe = &layer->moe;
    int64_t n_expert = planned ? planned->n_kept : moe->n_expert;
    int64_t k = planned && planned->top_k > 0 ? planned->top_k : moe->top_k;
    return n + n_expert * model->d_model + k * (count_expert(moe) - count_cut(moe, plan)) + count_mlp(&moe->shared) +
           count_values(&moe->shared_gate);
}

double mdp_transform_flop(const mdp_model *model, const mdp_plan *plan) {
    int64_t n = count_values(&model->head), i = 0; /* plan layers ascend like the model's */
    for (int64_t l = 0; l < model->n_layer; l++) {
        const mdp_plan_layer *planned = NULL;
        if (plan && i < plan->n_layer && plan->layers[i].layer == l) planned = &plan->layers[i++];
        n += count_met(model, &model->layers[l], plan, planned);
    }
    return 2.0 * (double)n;
}
