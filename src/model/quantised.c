/* quantised.c - weights packed into few bits are refused by the name of what packed them, before a missing tensor is
 * complained of: by quantization_config, or by tensors that only such a packing has (older files carry their settings
 * elsewhere). */
#include "model/config.h"

#include <string.h>

/* How the names of tensors end that a packing adds beside or in the place of a weight; the surest sign first. */
static const struct {
    const char *ending, *packing;
} SIGNS[] = {
    {".g_idx", "GPTQ"},
    {".qzeros", "GPTQ or AWQ"},
    {".qweight", "GPTQ or AWQ"},
    {".SCB", "bitsandbytes, 8 bits"},
    {".weight.absmax", "bitsandbytes, 4 bits"},
    {".weight_packed", "compressed-tensors"},
};

static bool ends_in(const char *text, const char *ending) {
    size_t n = strlen(text), n_ending = strlen(ending);
    return n >= n_ending && strcmp(text + n - n_ending, ending) == 0;
}

static mdp_status refuse_signs(const mdp_catalogue *catalogue) {
    for (size_t i = 0; i < sizeof SIGNS / sizeof SIGNS[0]; i++) {
        for (int64_t t = 0; t < catalogue->n_tensor; t++) {
            if (!ends_in(catalogue->tensors[t].name, SIGNS[i].ending)) continue;
            return MDP_ERROR(MDP_BAD_INPUT,
                             "%s: the weights are quantised (%s: '%s'); supported are f32, f16 and bf16 weights, so "
                             "start from the checkpoint before quantisation.",
                             catalogue->path, SIGNS[i].packing, catalogue->tensors[t].name);
        }
    }
    return mdp_ok();
}

mdp_status mdp_refuse_quantised(const json_t *json, const mdp_catalogue *catalogue, const char *path) {
    const json_t *quantisation = json_object_get(json, "quantization_config");
    if (quantisation == NULL || json_is_null(quantisation)) return refuse_signs(catalogue);
    const char *method = json_string_value(json_object_get(quantisation, "quant_method"));
    return MDP_ERROR(MDP_BAD_INPUT,
                     "%s: the weights are quantised (quantization_config, quant_method %s); supported are "
                     "f32, f16 and bf16 weights, so start from the checkpoint before quantisation.",
                     path, method == NULL ? "not named" : method);
}
