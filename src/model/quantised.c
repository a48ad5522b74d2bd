/* quantised.c - weights of few bits. FP8 with scales is read: in blocks of the size that config.json gives, or with one
 * for each row or tensor (quant_method fp8, fbgemm_fp8, compressed-tensors, and modelopt for FP8). So is MXFP4, where
 * the family has a layout for it; what other programs pack weights into is refused by the name of what packed them,
 * before a missing tensor is complained of: by quantization_config, or by tensors that only such a packing has (older
 * files carry their settings elsewhere). */
#include "model/config.h"

#include <string.h>

#define USUAL_BLOCK 128
#define READ_TYPES "f32, f16, bf16, fp8 (e4m3, with scales) and mxfp4 weights"

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
                             "%s: the weights are quantised (%s: '%s'); supported are " READ_TYPES
                             ", so start from the checkpoint before quantisation.",
                             catalogue->path, SIGNS[i].packing, catalogue->tensors[t].name);
        }
    }
    return mdp_ok();
}

/* [128, 128]: rows and columns of a block. */
static mdp_status read_block(const json_t *block, const char *key, const char *path, mdp_quantisation *out) {
    if (block == NULL || json_is_null(block)) return mdp_ok();
    json_int_t rows = json_integer_value(json_array_get(block, 0)),
               columns = json_integer_value(json_array_get(block, 1));
    bool fits = json_array_size(block) == 2 && rows > 0 && columns > 0 && rows <= INT32_MAX && columns <= INT32_MAX;
    if (!fits) {
        return MDP_ERROR(
            MDP_BAD_INPUT,
            "%s: quantization_config: '%s' must be two positive whole numbers, rows and columns of a block "
            "such as [128, 128].",
            path, key);
    }
    out->block_row = rows;
    out->block_col = columns;
    out->in_blocks = true;
    return mdp_ok();
}

/* quantization_config of compressed-tensors: {"config_groups": {"group_0": {"weights": {"num_bits": 8, "type": "float",
 * "strategy": "channel"}}}} */
static mdp_status read_groups(const json_t *quantisation, const char *path, mdp_quantisation *out) {
    json_t *groups = json_object_get(quantisation, "config_groups"), *group;
    const char *name;
    json_object_foreach(groups, name, group) {
        const json_t *weights = json_object_get(group, "weights"), *block = json_object_get(weights, "block_structure");
        const char *type = json_string_value(json_object_get(weights, "type"));
        json_int_t n_bit = json_integer_value(json_object_get(weights, "num_bits"));
        if (n_bit != 8 || type == NULL || strcmp(type, "float") != 0) {
            return MDP_ERROR(
                MDP_BAD_INPUT,
                "%s: the weights are quantised (compressed-tensors, '%s': %lld bits, %s); supported are " READ_TYPES
                ", so start from the checkpoint before quantisation.",
                path, name, (long long)n_bit, type == NULL ? "no type" : type);
        }
        MDP_TRY(read_block(block, "block_structure", path, out));
    }
    return mdp_ok();
}

/* quantization_config of FP8: {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]} */
static mdp_status read_fp8(const json_t *quantisation, const char *path, mdp_quantisation *out) {
    const json_t *form = json_object_get(quantisation, "fmt");
    const char *name = json_string_value(form);
    if (form != NULL && (name == NULL || strcmp(name, "e4m3") != 0)) {
        return MDP_ERROR(MDP_BAD_INPUT, "%s: quantization_config: 'fmt' is %s%s%s; supported is 'e4m3'.", path,
                         name == NULL ? mdp_json_kind(form) : "'", name == NULL ? "" : name, name == NULL ? "" : "'");
    }
    return read_block(json_object_get(quantisation, "weight_block_size"), "weight_block_size", path, out);
}

static bool is_called(const json_t *json, const char *key, const char *name) {
    const char *found = json_string_value(json_object_get(json, key));
    return found != NULL && strcmp(found, name) == 0;
}

mdp_status mdp_quantisation_read(const json_t *json, const mdp_catalogue *catalogue, const char *path,
                                 mdp_quantisation *out) {
    const json_t *quantisation = json_object_get(json, "quantization_config");
    *out = (mdp_quantisation){.block_row = USUAL_BLOCK, .block_col = USUAL_BLOCK};
    if (quantisation == NULL || json_is_null(quantisation)) return refuse_signs(catalogue);
    const char *key = "quant_method", *method = json_string_value(json_object_get(quantisation, key));
    if (is_called(quantisation, key, "fp8")) return read_fp8(quantisation, path, out);
    if (is_called(quantisation, key, "mxfp4")) return mdp_ok(); /* has one form only, and so have these: */
    if (is_called(quantisation, key, "fbgemm_fp8")) return mdp_ok();
    if (is_called(quantisation, key, "modelopt") && is_called(quantisation, "quant_algo", "FP8")) return mdp_ok();
    if (is_called(quantisation, key, "compressed-tensors") && json_object_get(quantisation, "config_groups") != NULL) {
        MDP_TRY(refuse_signs(catalogue));
        return read_groups(quantisation, path, out);
    }
    return MDP_ERROR(MDP_BAD_INPUT,
                     "%s: the weights are quantised (quantization_config, quant_method %s); supported are " READ_TYPES
                     ", so start from the checkpoint before quantisation.",
                     path, method == NULL ? "not named" : method);
}
