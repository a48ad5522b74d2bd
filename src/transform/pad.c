/* pad.c - equal numbers of experts in all layers by experts that are never chosen.
 *
 * Loaders of plain checkpoints know one number of experts for all layers. An added expert has weights, router row and
 * scales of all zeros, and in the bias by which experts are chosen a large negative, finite value. That changes nothing
 * for the others where each expert's score is its own (sigmoid with a correction bias) or where the bias is part of the
 * logits: then the weights of the chosen are those without it, to the last bit. It would change them where a softmax
 * over all experts comes before the bias, so that is refused, as are routers without a bias. */
#include "transform/pad.h"

/* The bias that keeps an expert from being chosen; NULL: there is none that does so exactly. */
static const mdp_tensor *deciding_bias(const mdp_moe *moe) {
    if (moe->router_bias.tensor) return moe->router_bias.tensor;
    return moe->rule.score == MDP_SIGMOID ? moe->choice_bias.tensor : NULL;
}

uint32_t mdp_pad_fill(const mdp_moe *moe, const mdp_tensor *tensor) {
    const mdp_tensor *bias = deciding_bias(moe);
    if (!bias || tensor != bias) return 0;
    if (bias->type == MDP_F16) return 0xfbfffbffu;  /* -65504, twice */
    if (bias->type == MDP_BF16) return 0xf149f149u; /* -1e30 rounded, twice */
    return 0xf149f2cau;                             /* -1e30 */
}

mdp_status mdp_transform_check_pad(const mdp_model *model) {
    for (int64_t l = 0; l < model->n_layer; l++) {
        if (!model->layers[l].is_moe || deciding_bias(&model->layers[l].moe)) continue;
        return MDP_ERROR(MDP_USAGE,
                         "--non-uniform pad: model_type '%s' chooses experts by a softmax over all of them, or without "
                         "a bias, so no added expert would leave its results as they are; use model.h5 (--format "
                         "hdf5), or --budget uniform for the plan.",
                         model->model_type);
    }
    return mdp_ok();
}

mdp_status mdp_transform_check_list(const mdp_model *model) {
    if (!model->count_is_nested) return mdp_ok();
    return MDP_ERROR(MDP_USAGE,
                     "--non-uniform per-layer-config: config.json of model_type '%s' has the number of experts in an "
                     "object within it ('%s'), which per_layer_config cannot say; use model.h5 (--format hdf5), or "
                     "--budget uniform for the plan.",
                     model->model_type, model->count_key);
}
