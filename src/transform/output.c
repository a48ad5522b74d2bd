/* output.c - plan -> the checkpoint that a writer writes: every tensor of the result as segments of stored ones.
 *
 * Tensors of kept experts are renamed by their pattern with the expert's new number; router rows and fused tensors are
 * sliced; everything else is copied. No value changes, so the result is bit for bit what was read, but for experts
 * that the plan zeroes: those keep their place and their router row, and their down projection is all zeros, so that
 * they return 0 in every loader of plain checkpoints. Refuses a plan that
 * does not fit the model (mdp_plan_check is the caller's gate; here only what would read out of bounds). */
#include "mdp/transform.h"

#include <stdlib.h>
#include <string.h>

/* What a stored tensor is to the plan: found once for all tensors, so that the walk over the catalogue is linear. */
typedef struct role {
    const mdp_expert_tensor *tensor; /* NULL: copied as it is */
    const mdp_plan_layer *planned;   /* NULL: the layer stays as it is */
    bool is_down;                    /* the down projection (or its bias) of an expert, or of all */
} role;

/* ---- segments ------------------------------------------------------------------------------------------------ */

static void whole_segment(const mdp_tensor *tensor, mdp_output_tensor *out) {
    out->segments[out->n_segment++] = (mdp_segment){.source = tensor, .offset = 0, .n_byte = tensor->n_byte};
}

/* tensor NULL: zeros */
static void append_segment(const mdp_tensor *tensor, int64_t offset, int64_t n_byte, mdp_output_tensor *out) {
    int64_t n = out->n_segment;
    if (n > 0 && out->segments[n - 1].source == tensor &&
        (!tensor || out->segments[n - 1].offset + out->segments[n - 1].n_byte == offset))
        out->segments[n - 1].n_byte += n_byte;
    else
        out->segments[out->n_segment++] = (mdp_segment){.source = tensor, .offset = offset, .n_byte = n_byte};
}

static mdp_status describe(const mdp_tensor *tensor, int64_t max_segment, mdp_output_tensor *out) {
    MDP_TRY(MDP_ALLOC(&out->segments, max_segment, "the segments of an output tensor"));
    out->type = tensor->type;
    out->n_dim = tensor->n_dim;
    memcpy(out->shape, tensor->shape, sizeof out->shape);
    out->n_byte = tensor->n_byte;
    out->expert = -1;
    out->original_expert = -1;
    return mdp_ok();
}

/* Keep the planned entries of the axis along which a tensor holds its experts. */
static mdp_status slice(const role *what, mdp_output_tensor *out) {
    const mdp_expert_tensor *tensor = what->tensor;
    const mdp_plan_layer *planned = what->planned;
    const mdp_tensor *source = tensor->tensor;
    int64_t n_outer = 1;
    for (int i = 0; i < tensor->axis; i++) n_outer *= source->shape[i];
    int64_t n_entry = source->shape[tensor->axis];
    if (n_entry != planned->n_expert || n_outer == 0 || source->n_byte % (n_outer * n_entry) != 0)
        return MDP_ERROR(
            MDP_BAD_INPUT, "'%s' has %lld entries along axis %d, the plan speaks of %d experts in layer %lld.",
            source->name, (long long)n_entry, tensor->axis, (int)planned->n_expert, (long long)planned->layer);
    int64_t entry_byte = source->n_byte / (n_outer * n_entry);
    MDP_TRY(describe(source, n_outer * planned->n_kept, out));
    for (int64_t o = 0; o < n_outer; o++) {
        for (int32_t i = 0; i < planned->n_kept; i++) {
            bool zero = what->is_down && planned->kept[i].action == MDP_ZERO;
            int64_t offset = zero ? 0 : (o * n_entry + planned->kept[i].from[0]) * entry_byte;
            append_segment(zero ? NULL : source, offset, entry_byte, out);
        }
    }
    out->shape[tensor->axis] = planned->n_kept;
    out->n_byte = n_outer * planned->n_kept * entry_byte;
    return mdp_copy_text(&out->name, source->name);
}

/* ---- one tensor of the result -------------------------------------------------------------------------------- */

/* The pattern with {expert} replaced by a number. */
static mdp_status expert_name(const char *pattern, mdp_expert_t expert, char **out) {
    const char *mark = strstr(pattern, "{expert}");
    if (!mark) return MDP_ERROR(MDP_INTERNAL, "the tensor name pattern '%s' lacks {expert}.", pattern);
    return mdp_format(out, "%.*s%d%s", (int)(mark - pattern), pattern, (int)expert, mark + strlen("{expert}"));
}

/* The new number of an expert, or -1 when the plan drops it. Kept experts ascend. */
static mdp_expert_t new_number(const mdp_plan_layer *planned, mdp_expert_t expert) {
    int32_t low = 0, high = planned->n_kept;
    while (low < high) {
        int32_t middle = low + (high - low) / 2;
        if (planned->kept[middle].from[0] < expert)
            low = middle + 1;
        else
            high = middle;
    }
    return low < planned->n_kept && planned->kept[low].from[0] == expert ? low : -1;
}

static mdp_status copy_expert(const role *what, mdp_expert_t number, mdp_output_tensor *out) {
    const mdp_expert_tensor *tensor = what->tensor;
    bool zero = what->is_down && what->planned && what->planned->kept[number].action == MDP_ZERO;
    MDP_TRY(describe(tensor->tensor, 1, out));
    append_segment(zero ? NULL : tensor->tensor, 0, tensor->tensor->n_byte, out);
    out->expert = number;
    out->original_expert = tensor->expert;
    MDP_TRY(mdp_copy_text(&out->stack, tensor->stack));
    return expert_name(tensor->stack, number, &out->name);
}

/* Append what becomes of a stored tensor, if anything, to the result. */
static mdp_status append_tensor(const mdp_tensor *tensor, const role *what, mdp_output *output) {
    mdp_output_tensor *out = &output->tensors[output->n_tensor];
    if (what->tensor && what->tensor->expert >= 0) {
        mdp_expert_t number = what->planned ? new_number(what->planned, what->tensor->expert) : what->tensor->expert;
        if (number < 0) return mdp_ok();
        output->n_tensor++;
        return copy_expert(what, number, out);
    }
    output->n_tensor++;
    if (what->tensor && what->planned) return slice(what, out);
    MDP_TRY(describe(tensor, 1, out));
    whole_segment(tensor, out);
    return mdp_copy_text(&out->name, tensor->name);
}

static int compare_names(const void *left, const void *right) {
    const mdp_output_tensor *a = left, *b = right;
    return strcmp(a->name, b->name);
}

/* ---- the whole ----------------------------------------------------------------------------------------------- */

static void assign_roles(const mdp_model *model, const mdp_plan *plan, role *roles) {
    int64_t i = 0; /* plan layers ascend like the model's */
    for (int64_t l = 0; l < model->n_layer; l++) {
        if (!model->layers[l].is_moe) continue;
        const mdp_moe *moe = &model->layers[l].moe;
        const mdp_plan_layer *planned = NULL;
        if (plan && i < plan->n_layer && plan->layers[i].layer == l) planned = &plan->layers[i++];
        for (int64_t j = 0; j < moe->n_expert_tensor; j++) {
            const mdp_expert_tensor *tensor = &moe->expert_tensors[j];
            const mdp_expert *expert = &moe->experts[tensor->expert < 0 ? 0 : tensor->expert];
            roles[tensor->tensor - model->catalogue->tensors] =
                (role){.tensor = tensor,
                       .planned = planned,
                       .is_down = expert->down.tensor == tensor->tensor || expert->down_bias.tensor == tensor->tensor};
        }
    }
}

/* The expert count that config.json is to say: the largest of all layers. */
static int64_t largest_count(const mdp_model *model, const mdp_plan *plan) {
    int64_t largest = 0;
    for (int64_t i = 0; plan && i < plan->n_layer; i++)
        largest = plan->layers[i].n_kept > largest ? plan->layers[i].n_kept : largest;
    for (int64_t l = 0; !plan && l < model->n_layer; l++) {
        if (model->layers[l].is_moe && model->layers[l].moe.n_expert > largest) largest = model->layers[l].moe.n_expert;
    }
    return largest;
}

static bool is_uniform(const mdp_model *model, const mdp_plan *plan) {
    if (plan) return plan->uniform;
    int64_t count = largest_count(model, NULL);
    for (int64_t l = 0; l < model->n_layer; l++) {
        if (model->layers[l].is_moe && model->layers[l].moe.n_expert != count) return false;
    }
    return true;
}

/* The experts of a token that config.json is to say; 0: as it is. */
static mdp_status find_top_k(const mdp_plan *plan, int32_t *top_k) {
    const mdp_plan_layer *first = &plan->layers[0];
    *top_k = first->top_k;
    for (int64_t i = 1; i < plan->n_layer; i++) {
        if (plan->layers[i].top_k != first->top_k)
            return MDP_ERROR(
                MDP_BAD_INPUT,
                "layer %lld: \"k\" is not that of layer %lld; config.json has one number for all layers, so "
                "such a plan can be tried with eval, but not written.",
                (long long)plan->layers[i].layer, (long long)first->layer);
    }
    return mdp_ok();
}

static mdp_status copy_config(const mdp_model *model, const mdp_plan *plan, mdp_output *output) {
    if (plan) {
        int32_t top_k = 0;
        MDP_TRY(find_top_k(plan, &top_k));
        return mdp_model_patch_config(model, largest_count(model, plan), top_k, &output->config_text,
                                      &output->config_byte);
    }
    MDP_TRY(MDP_ALLOC(&output->config_text, model->catalogue->config_byte + 1, "config.json"));
    memcpy(output->config_text, model->catalogue->config_text, (size_t)model->catalogue->config_byte);
    output->config_byte = model->catalogue->config_byte;
    return mdp_ok();
}

static mdp_status fill_tensors(const mdp_model *model, const mdp_plan *plan, mdp_output *output) {
    const mdp_catalogue *catalogue = model->catalogue;
    role *roles = NULL;
    MDP_TRY(MDP_ALLOC(&output->tensors, catalogue->n_tensor, "the tensors of the result"));
    MDP_TRY(MDP_ALLOC(&roles, catalogue->n_tensor, "the tensors of the model"));
    assign_roles(model, plan, roles);
    mdp_status status = mdp_ok();
    for (int64_t t = 0; t < catalogue->n_tensor && status.code == MDP_OK; t++)
        status = append_tensor(&catalogue->tensors[t], &roles[t], output);
    mdp_free(roles);
    MDP_TRY(status);
    qsort(output->tensors, (size_t)output->n_tensor, sizeof *output->tensors, compare_names);
    for (int64_t t = 0; t < output->n_tensor; t++) output->tensor_byte += output->tensors[t].n_byte;
    return mdp_ok();
}

static mdp_status fill(const mdp_model *model, const mdp_plan *plan, const char *plan_text, const char *provenance_text,
                       mdp_output *output) {
    output->source = model->catalogue;
    memcpy(output->model_type, model->model_type, sizeof output->model_type);
    output->n_layer = model->n_layer;
    output->uniform = is_uniform(model, plan);
    MDP_TRY(fill_tensors(model, plan, output));
    MDP_TRY(copy_config(model, plan, output));
    if (plan_text) MDP_TRY(mdp_copy_text(&output->plan_text, plan_text));
    if (provenance_text) MDP_TRY(mdp_copy_text(&output->provenance_text, provenance_text));
    return mdp_ok();
}

mdp_status mdp_transform_output(const mdp_model *model, const mdp_plan *plan, const char *plan_text,
                                const char *provenance_text, mdp_output **out) {
    mdp_output *output = NULL;
    *out = NULL;
    if (plan) MDP_TRY(mdp_transform_check(plan));
    MDP_TRY(MDP_ALLOC(&output, 1, "the description of the result"));
    mdp_status status = fill(model, plan, plan_text, provenance_text, output);
    if (status.code != MDP_OK) {
        mdp_output_destroy(output);
        return status;
    }
    *out = output;
    return status;
}
