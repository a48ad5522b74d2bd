/* retype.c - a described result in another type: every tensor of real numbers is made of a stored one (recast.h)
 * instead of copied, codes lose their scales or get some, and config.json follows.
 *
 * In: a result whose tensors are whole stored ones, or, to have codes alone decoded, any result of a plan. Refuses what
 * would be rounded twice (FP8 of codes), FP8 of weights with outputs in columns, and results with padding. */
#include "mdp/recast.h"
#include "mdp/transform.h"

#include <stdlib.h>
#include <string.h>

#define BLOCKS_ENDING "_blocks"
#define SCALE_ENDING "_scale_inv" /* it multiplies, despite its name */

const char *const mdp_retype_names[MDP_N_RETYPE + 1] = {
    [MDP_RETYPE_BF16] = "bf16", [MDP_RETYPE_F16] = "f16", [MDP_RETYPE_F32] = "f32", [MDP_RETYPE_FP8] = "fp8"};

typedef struct retyper {
    const mdp_model *model;
    const mdp_stored *stored; /* [tensors of the model] */
    mdp_retype to;
    bool codes_only; /* what has no scales stays as it is */
    mdp_dtype type;  /* of what is not in FP8 */
    mdp_output *output;
    mdp_output_tensor *tensors; /* of the result as it will be; owned until they are the output's */
    int64_t n_tensor;
    int64_t n_recast; /* of output->recasts */
} retyper;

/* The tensor of the model that a tensor of the result is; NULL: it is made of several, or of a part. */
static const mdp_tensor *source_of(const retyper *r, const mdp_output_tensor *tensor) {
    const mdp_catalogue *catalogue = r->model->catalogue;
    const mdp_segment *only = tensor->segments;
    bool whole = tensor->n_segment == 1 && only->source && only->offset == 0 && only->n_byte == only->source->n_byte;
    bool listed =
        whole && only->source >= catalogue->tensors && only->source < catalogue->tensors + catalogue->n_tensor;
    return listed ? only->source : NULL;
}

static const mdp_stored *stored_of(const retyper *r, const mdp_tensor *source) {
    return &r->stored[source - r->model->catalogue->tensors];
}

/* ---- what can be done -------------------------------------------------------------------------------------------- */

/* As FP8 is written here? */
static bool is_usual_fp8(const mdp_scaling *scaling) {
    return scaling->code == MDP_F8_E4M3 && scaling->tensor->type == MDP_F32 && scaling->block_row == MDP_FP8_BLOCK &&
           scaling->block_col == MDP_FP8_BLOCK;
}

/* Has the model codes with scales? For FP8, have all of them the form that is wanted? */
static mdp_status look_at_codes(const retyper *r, bool *coded) {
    *coded = false;
    for (int64_t t = 0; t < r->model->catalogue->n_tensor; t++) {
        const mdp_scaling *scaling = &r->stored[t].scaling;
        if (!scaling->tensor) continue;
        *coded = true;
        if (r->to != MDP_RETYPE_FP8 || is_usual_fp8(scaling)) continue;
        return MDP_ERROR(MDP_BAD_INPUT,
                         "%s: '%s' is quantised already (%s with scales %s for %lld x %lld values), and FP8 in blocks "
                         "of 128 x 128 would round it a second time; export it with --type bf16, and that with --type "
                         "fp8.",
                         r->model->catalogue->path, r->model->catalogue->tensors[t].name,
                         scaling->code == MDP_F4 ? "MXFP4" : mdp_dtype_name(scaling->code),
                         mdp_dtype_name(scaling->tensor->type), (long long)scaling->block_row,
                         (long long)scaling->block_col);
    }
    return mdp_ok();
}

static bool has_settings(const mdp_side_file *file) {
    size_t n = strlen(file->name);
    return strstr(file->name, "quant") && n > 5 && strcmp(file->name + n - 5, ".json") == 0;
}

/* Nothing beside the weights may still speak of codes that are decoded. */
static mdp_status check_settings(const mdp_model *model, mdp_retype to) {
    const mdp_catalogue *catalogue = model->catalogue;
    for (int64_t i = 0; i < catalogue->n_side_file; i++) {
        if (!has_settings(&catalogue->side_files[i])) continue;
        return MDP_ERROR(MDP_BAD_INPUT,
                         "%s: the side file %s has settings of quantisation, which would be copied and speak of other "
                         "weights than those in %s; take it out where config.json says the same.",
                         catalogue->path, catalogue->side_files[i].name, mdp_retype_names[to]);
    }
    return mdp_ok();
}

/* ---- one tensor -------------------------------------------------------------------------------------------------- */

/* `tensor` (its name and stack are taken over) becomes what `recast` makes of `source`. */
static mdp_status set_recast(retyper *r, const mdp_tensor *source, const mdp_recast *recast,
                             mdp_output_tensor *tensor) {
    mdp_recast *own = &r->output->recasts[r->n_recast++];
    *own = *recast;
    mdp_free(tensor->segments);
    tensor->segments = NULL;
    MDP_TRY(MDP_ALLOC(&tensor->segments, 2, "the segments of an output tensor"));
    tensor->type = recast->scales ? MDP_F32 : recast->type;
    tensor->n_byte = mdp_recast_bytes(own);
    tensor->segments[0] = (mdp_segment){.source = source, .n_byte = tensor->n_byte, .recast = own};
    tensor->n_segment = 1;
    if (recast->from.scaling.tensor)
        tensor->segments[tensor->n_segment++] = (mdp_segment){.source = recast->from.scaling.tensor};
    return mdp_ok();
}

/* All values one after the other, without rows. */
static mdp_recast plain_recast(const mdp_tensor *source, mdp_dtype type) {
    int64_t n = source->n_byte / (mdp_dtype_bits(source->type) / 8);
    return (mdp_recast){
        .from = {.tensor = source, .n_row = n, .n_col = 1, .row_stride = 1, .col_stride = 1}, .n_run = 1, .type = type};
}

static mdp_recast decoding(const mdp_tensor *source, const mdp_stored *stored, mdp_dtype type) {
    mdp_recast recast = {
        .from = mdp_matrix_scaled(source, &stored->scaling), .transposed = stored->is_packed, .type = type};
    recast.n_run = stored->scaling.n_row > 0 ? recast.from.n_row / stored->scaling.n_row : 0;
    return recast;
}

/* A packed tensor [matrix, row, column / 32, 16] becomes [matrix, column, row], and loses the ending of its name. */
static mdp_status unpack(const mdp_stored *stored, mdp_output_tensor *tensor) {
    size_t n = strlen(tensor->name), n_ending = strlen(BLOCKS_ENDING);
    if (n <= n_ending || strcmp(tensor->name + n - n_ending, BLOCKS_ENDING) != 0 || tensor->stack)
        return MDP_ERROR(MDP_INTERNAL, "'%s' is MXFP4 by another name than ..." BLOCKS_ENDING ".", tensor->name);
    tensor->name[n - n_ending] = '\0';
    tensor->n_dim = 3;
    tensor->shape[1] = stored->scaling.n_col;
    tensor->shape[2] = stored->scaling.n_row;
    return mdp_ok();
}

static mdp_status append_ending(const char *text, char **out) {
    return text ? mdp_format(out, "%s%s", text, SCALE_ENDING) : mdp_ok();
}

/* The scales beside a tensor that becomes FP8. */
static mdp_status add_scales(retyper *r, const mdp_tensor *source, const mdp_output_tensor *weight,
                             const mdp_recast *recast) {
    mdp_output_tensor *scales = &r->tensors[r->n_tensor++];
    mdp_recast own = *recast;
    *scales = (mdp_output_tensor){
        .n_dim = weight->n_dim, .expert = weight->expert, .original_expert = weight->original_expert};
    memcpy(scales->shape, weight->shape, sizeof scales->shape);
    for (int i = weight->n_dim - 2; i < weight->n_dim; i++)
        scales->shape[i] = (weight->shape[i] + MDP_FP8_BLOCK - 1) / MDP_FP8_BLOCK;
    MDP_TRY(append_ending(weight->name, &scales->name));
    MDP_TRY(append_ending(weight->stack, &scales->stack));
    own.scales = true;
    return set_recast(r, source, &own, scales);
}

static mdp_status quantise(retyper *r, const mdp_tensor *source, mdp_output_tensor *tensor) {
    mdp_recast recast = {.from = mdp_matrix_whole(source), .n_run = 1, .type = MDP_F8_E4M3};
    for (int i = 0; i < source->n_dim - 2; i++) recast.n_run *= source->shape[i];
    MDP_TRY(set_recast(r, source, &recast, tensor));
    return add_scales(r, source, tensor, &recast);
}

static mdp_status refuse_turned(const retyper *r, const mdp_tensor *source) {
    return MDP_ERROR(MDP_BAD_INPUT,
                     "%s: '%s' has the outputs of its layer in columns, and loaders of FP8 expect them in rows; "
                     "--type bf16, f16 and f32 can be had.",
                     r->model->catalogue->path, source->name);
}

/* The last of r->tensors, a stored tensor of real numbers, becomes what it is to be. */
static mdp_status retype(retyper *r, const mdp_tensor *source, mdp_output_tensor *tensor) {
    const mdp_stored *stored = stored_of(r, source);
    mdp_dtype type = stored->stays_f32 ? MDP_F32 : r->type;
    if (r->to == MDP_RETYPE_FP8 && stored->is_turned) return refuse_turned(r, source);
    if (r->to == MDP_RETYPE_FP8 && stored->is_linear) return quantise(r, source, tensor);
    if (stored->scaling.tensor) {
        const mdp_recast recast = decoding(source, stored, type);
        if (stored->is_packed) MDP_TRY(unpack(stored, tensor));
        return set_recast(r, source, &recast, tensor);
    }
    if (source->type == type) return mdp_ok();
    const mdp_recast recast = plain_recast(source, type);
    return set_recast(r, source, &recast, tensor);
}

/* A tensor of the result as described, taken over. */
static mdp_status take(retyper *r, mdp_output_tensor *described) {
    const mdp_tensor *source = source_of(r, described);
    if (!source)
        return MDP_ERROR(MDP_USAGE,
                         "'%s' is padded or cut, which --type cannot follow; export without --type first, and what "
                         "that gives with it.",
                         described->name);
    if (stored_of(r, source)->is_beside) return mdp_ok();
    mdp_output_tensor *tensor = &r->tensors[r->n_tensor++];
    *tensor = *described;
    *described = (mdp_output_tensor){0};
    return stored_of(r, source)->is_real ? retype(r, source, tensor) : mdp_ok();
}

/* ---- codes of what a plan leaves --------------------------------------------------------------------------------- */

/* A run of whole matrices of codes becomes one of what they decode to, and their scales are compared with their
 * checksum. */
static mdp_status decode_segment(retyper *r, const mdp_segment *old, mdp_output_tensor *tensor) {
    const mdp_stored *stored = stored_of(r, old->source);
    int64_t bits = mdp_dtype_bits(stored->scaling.code),
            each = stored->scaling.n_row * stored->scaling.n_col * bits / 8;
    if (stored->is_packed && (each == 0 || old->offset % each != 0 || old->n_byte % each != 0))
        return MDP_ERROR(MDP_INTERNAL, "'%s': bytes %lld to %lld are no whole matrices.", old->source->name,
                         (long long)old->offset, (long long)(old->offset + old->n_byte));
    mdp_recast *own = &r->output->recasts[r->n_recast++];
    *own = decoding(old->source, stored, MDP_BF16);
    tensor->segments[tensor->n_segment++] = (mdp_segment){.source = old->source,
                                                          .offset = old->offset * mdp_dtype_bits(MDP_BF16) / bits,
                                                          .n_byte = old->n_byte * mdp_dtype_bits(MDP_BF16) / bits,
                                                          .recast = own};
    tensor->segments[tensor->n_segment++] = (mdp_segment){.source = stored->scaling.tensor};
    return mdp_ok();
}

/* An array of plan.h5 is bf16 already; where codes were packed it is turned. */
static void take_array(retyper *r, const mdp_stored *stored, const mdp_tensor *array, mdp_output_tensor *tensor) {
    mdp_segment segment = {.source = array, .n_byte = array->n_byte};
    if (stored->is_packed) {
        mdp_recast *own = &r->output->recasts[r->n_recast++];
        *own = (mdp_recast){.from = mdp_matrix_whole(array), .n_run = 1, .transposed = true, .type = MDP_BF16};
        segment.recast = own;
    }
    tensor->segments[tensor->n_segment++] = segment;
}

static bool is_of_model(const retyper *r, const mdp_tensor *tensor) {
    const mdp_catalogue *catalogue = r->model->catalogue;
    return tensor >= catalogue->tensors && tensor < catalogue->tensors + catalogue->n_tensor;
}

static mdp_status widen_segments(retyper *r, const mdp_stored *stored, const mdp_segment *old, int64_t n_old,
                                 mdp_output_tensor *tensor) {
    int64_t bits = mdp_dtype_bits(stored->scaling.code);
    MDP_TRY(MDP_ALLOC(&tensor->segments, 2 * n_old, "the segments of an output tensor"));
    if (stored->is_packed) MDP_TRY(unpack(stored, tensor));
    tensor->type = MDP_BF16;
    tensor->n_byte = 0;
    for (int64_t i = 0; i < n_old; i++) {
        if (!old[i].source) /* filled */
            tensor->segments[tensor->n_segment++] =
                (mdp_segment){.n_byte = old[i].n_byte * mdp_dtype_bits(MDP_BF16) / bits};
        else if (is_of_model(r, old[i].source))
            MDP_TRY(decode_segment(r, &old[i], tensor));
        else
            take_array(r, stored, old[i].source, tensor);
    }
    for (int64_t i = 0; i < tensor->n_segment; i++) tensor->n_byte += tensor->segments[i].n_byte;
    return mdp_ok();
}

/* A tensor of a plan's result as described, taken over: codes are decoded, and their scales go. */
static mdp_status take_codes(retyper *r, mdp_output_tensor *described) {
    const mdp_stored *stored = stored_of(r, described->of);
    if (stored->is_beside) return mdp_ok();
    mdp_output_tensor *tensor = &r->tensors[r->n_tensor++];
    *tensor = *described;
    *described = (mdp_output_tensor){0};
    if (!stored->scaling.tensor) return mdp_ok();
    mdp_segment *old = tensor->segments;
    int64_t n_old = tensor->n_segment;
    tensor->segments = NULL;
    tensor->n_segment = 0;
    mdp_status status = widen_segments(r, stored, old, n_old, tensor);
    mdp_free(old);
    return status;
}

/* ---- the whole --------------------------------------------------------------------------------------------------- */

static int compare_names(const void *left, const void *right) {
    const mdp_output_tensor *a = left, *b = right;
    return strcmp(a->name, b->name);
}

static void free_tensors(mdp_output_tensor *tensors, int64_t n) {
    for (int64_t i = 0; tensors && i < n; i++) {
        mdp_free(tensors[i].name);
        mdp_free(tensors[i].segments);
        mdp_free(tensors[i].stack);
    }
    mdp_free(tensors);
}

static mdp_status retype_tensors(retyper *r) {
    mdp_output *output = r->output;
    int64_t n_recast = 2 * output->n_tensor;
    for (int64_t i = 0; i < output->n_tensor; i++) n_recast += output->tensors[i].n_segment;
    MDP_TRY(MDP_ALLOC(&output->recasts, n_recast, "the tensors of the result"));
    MDP_TRY(MDP_ALLOC(&r->tensors, 2 * output->n_tensor, "the tensors of the result"));
    for (int64_t i = 0; i < output->n_tensor; i++)
        MDP_TRY(r->codes_only ? take_codes(r, &output->tensors[i]) : take(r, &output->tensors[i]));
    qsort(r->tensors, (size_t)r->n_tensor, sizeof *r->tensors, compare_names);
    free_tensors(output->tensors, output->n_tensor);
    output->tensors = r->tensors;
    output->n_tensor = r->n_tensor;
    r->tensors = NULL;
    output->tensor_byte = 0;
    for (int64_t t = 0; t < output->n_tensor; t++) output->tensor_byte += output->tensors[t].n_byte;
    return mdp_ok();
}

/* The modules that loaders would take for FP8 and that are none: ["a", "b"]. *list is new; NULL: there are none. */
static mdp_status list_left(const retyper *r, json_t **list) {
    *list = NULL;
    for (int64_t t = 0; t < r->model->catalogue->n_tensor; t++) {
        const char *name = r->model->catalogue->tensors[t].name;
        if (!r->stored[t].is_left) continue;
        if (!*list) *list = json_array();
        mdp_json_add(list, json_stringn(name, strlen(name) - strlen(".weight")));
        if (!*list) return MDP_ERROR(MDP_EXHAUSTED, "out of memory for quantization_config.");
    }
    return mdp_ok();
}

/* quantization_config as DeepSeek-V3 has it; new text. */
static mdp_status describe_fp8(const retyper *r, char **out) {
    json_t *left = NULL;
    MDP_TRY(list_left(r, &left));
    json_t *root = json_pack("{s:s, s:s, s:o*, s:s, s:[i, i]}", "activation_scheme", "dynamic", "fmt", "e4m3",
                             "modules_to_not_convert", left, "quant_method", "fp8", "weight_block_size", MDP_FP8_BLOCK,
                             MDP_FP8_BLOCK);
    char *text = root ? json_dumps(root, 0) : NULL;
    mdp_status status =
        text ? mdp_copy_text(out, text) : MDP_ERROR(MDP_EXHAUSTED, "out of memory for quantization_config.");
    mdp_json_free(text);
    json_decref(root);
    return status;
}

static mdp_status retype_config(const retyper *r) {
    static const char *const names[] = {[MDP_RETYPE_BF16] = "bfloat16",
                                        [MDP_RETYPE_F16] = "float16",
                                        [MDP_RETYPE_F32] = "float32",
                                        [MDP_RETYPE_FP8] = "bfloat16"};
    char *quantisation = NULL;
    if (r->to == MDP_RETYPE_FP8) MDP_TRY(describe_fp8(r, &quantisation));
    mdp_status status =
        mdp_config_set_type(names[r->to], quantisation, &r->output->config_text, &r->output->config_byte);
    mdp_free(quantisation);
    return status;
}

static mdp_status retype_all(retyper *r, bool *changed) {
    bool coded;
    MDP_TRY(look_at_codes(r, &coded));
    if (coded && r->to == MDP_RETYPE_FP8) return mdp_ok(); /* it is what is asked for */
    if (coded) MDP_TRY(check_settings(r->model, r->to));
    MDP_TRY(retype_tensors(r));
    *changed = r->n_recast > 0;
    return *changed ? retype_config(r) : mdp_ok();
}

mdp_status mdp_transform_retype(const mdp_model *model, mdp_retype to, mdp_output *output, bool *changed) {
    static const mdp_dtype types[] = {[MDP_RETYPE_BF16] = MDP_BF16,
                                      [MDP_RETYPE_F16] = MDP_F16,
                                      [MDP_RETYPE_F32] = MDP_F32,
                                      [MDP_RETYPE_FP8] = MDP_BF16};
    mdp_stored *stored = NULL;
    *changed = false;
    MDP_TRY(mdp_model_list_stored(model, &stored));
    retyper r = {.model = model, .stored = stored, .to = to, .type = types[to], .output = output};
    mdp_status status = retype_all(&r, changed);
    free_tensors(r.tensors, r.n_tensor);
    mdp_free(stored);
    return status;
}

mdp_status mdp_transform_widen(const mdp_model *model, mdp_output *output) {
    mdp_stored *stored = NULL;
    MDP_TRY(mdp_model_list_stored(model, &stored));
    retyper r = {.model = model,
                 .stored = stored,
                 .to = MDP_RETYPE_BF16,
                 .codes_only = true,
                 .type = MDP_BF16,
                 .output = output};
    mdp_status status = retype_tensors(&r);
    if (status.code == MDP_OK) status = retype_config(&r);
    free_tensors(r.tensors, r.n_tensor);
    mdp_free(stored);
    return status;
}

mdp_status mdp_transform_check_widen(const mdp_model *model) {
    mdp_stored *stored = NULL;
    bool coded;
    MDP_TRY(mdp_model_list_stored(model, &stored));
    retyper r = {.model = model, .stored = stored, .to = MDP_RETYPE_BF16};
    mdp_status status = look_at_codes(&r, &coded);
    mdp_free(stored);
    MDP_TRY(status);
    if (coded) return check_settings(model, MDP_RETYPE_BF16);
    return MDP_ERROR(
        MDP_USAGE,
        "%s: it has no weights in FP8 or MXFP4, so experts that are made have the type of the others as it "
        "is; leave --changed-type out.",
        model->catalogue->path);
}
