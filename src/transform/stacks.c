/* stacks.c - can the experts of each layer be stacked, whichever of them a plan keeps?
 *
 * The writer of model.h5 looks at the experts that stay; this looks at all of them, before it is known which do. */
#include "mdp/transform.h"

#include <string.h>

static bool is_alike(const mdp_tensor *a, const mdp_tensor *b) {
    return a->type == b->type && a->n_dim == b->n_dim &&
           memcmp(a->shape, b->shape, (size_t)a->n_dim * sizeof a->shape[0]) == 0;
}

/* The tensor of expert 0 that stands at the same place of its expert; NULL: none does. */
static const mdp_expert_tensor *find_first(const mdp_moe *moe, const char *stack) {
    for (int64_t j = 0; j < moe->n_expert_tensor; j++) {
        const mdp_expert_tensor *tensor = &moe->expert_tensors[j];
        if (tensor->expert == 0 && strcmp(tensor->stack, stack) == 0) return tensor;
    }
    return NULL;
}

static mdp_status check_layer(const mdp_moe *moe, int64_t layer) {
    const mdp_expert_tensor *first = NULL; /* of the stack that the tensor before belonged to */
    for (int64_t j = 0; j < moe->n_expert_tensor; j++) {
        const mdp_expert_tensor *tensor = &moe->expert_tensors[j];
        if (tensor->expert <= 0) continue;
        if (!first || strcmp(first->stack, tensor->stack) != 0) first = find_first(moe, tensor->stack);
        if (first && is_alike(first->tensor, tensor->tensor)) continue;
        return MDP_ERROR(MDP_BAD_INPUT,
                         "layer %lld: '%s' is stored otherwise than that of expert 0 (%s, %s), and model.h5 stacks the "
                         "experts of a layer; use --format safetensors.",
                         (long long)layer, tensor->tensor->name, mdp_dtype_name(tensor->tensor->type),
                         first ? mdp_dtype_name(first->tensor->type) : "not there");
    }
    return mdp_ok();
}

mdp_status mdp_transform_check_stacks(const mdp_model *model) {
    for (int64_t l = 0; l < model->n_layer; l++) {
        if (model->layers[l].is_moe) MDP_TRY(check_layer(&model->layers[l].moe, l));
    }
    return mdp_ok();
}
