/* output.c - plan -> the checkpoint that a writer writes: every tensor of the result as segments of stored ones.
 *
 * Tensors of kept experts are renamed by their pattern with the expert's new number; router rows and fused tensors are
 * sliced; everything else is copied. No value changes, so the result is bit for bit what was read, but for experts
 * that the plan zeroes: those keep their place and their router row, and their down projection is all zeros, so that
 * they return 0 in every loader of plain checkpoints. Where layers are to have equal numbers of experts although they
 * keep different ones, experts that are never chosen make up the difference (pad.c). Refuses a plan that does not fit
 * the model (mdp_plan_check is the caller's gate; here only what would read out of bounds). */
#include "transform/pad.h"

#include <stdlib.h>
#include <string.h>

/* An expert of the result. */
typedef struct place {
    mdp_expert_t from; /* the expert of the model; -1: one that is never chosen (pad.c) */
    bool zero;         /* it returns 0 */
    int32_t kept;      /* its number in the plan */
} place;

/* What becomes of the experts of a layer. */
typedef struct places {
    int32_t n;            /* experts of the result */
    place *place;         /* [n] owned; NULL: the layer stays as it is */
    mdp_expert_t *number; /* [experts of the model] new number of each, -1: dropped; owned */
} places;

/* What a stored tensor is to the plan: found once for all tensors, so that the walk over the catalogue is linear. */
typedef struct role {
    const mdp_expert_tensor *tensor; /* NULL: copied as it is */
    const mdp_expert_tensor *shape;  /* that tensor in the shape of the result's experts */
    const mdp_moe *moe;              /* that it belongs to */
    const places *places;            /* NULL: the layer stays as it is */
    int64_t layer;
    bool leaves;                  /* of a layer that predicts tokens further ahead and does not stay */
    bool is_down;                 /* the down projection (or its bias) of an expert, or of all */
    const mdp_replaced *replaced; /* NULL: nothing of it stands in plan.h5 */
} role;

/* The description while it is made. */
typedef struct maker {
    const mdp_model *model;
    const mdp_plan *plan;         /* NULL: the model as it is */
    const mdp_replaced *replaced; /* NULL: nothing stands in plan.h5 */
    const mdp_extra *extra;       /* layers that predict tokens further ahead; NULL: */
    bool without_extra;           /* they leave */
    role *roles;                  /* [tensors of the model] owned */
    places *layers;               /* [model->n_layer] owned */
    places *extra_layers;         /* [extra->model->n_layer] owned */
    mdp_output *output;
} maker;

/* ---- segments ------------------------------------------------------------------------------------------------ */

static void whole_segment(const mdp_tensor *tensor, mdp_output_tensor *out) {
    out->segments[out->n_segment++] = (mdp_segment){.source = tensor, .offset = 0, .n_byte = tensor->n_byte};
}

/* tensor NULL: `fill` again and again */
static void append_segment(const mdp_tensor *tensor, int64_t offset, int64_t n_byte, uint32_t fill,
                           mdp_output_tensor *out) {
    if (!out->segments) return; /* none were asked for */
    mdp_segment *last = out->n_segment > 0 ? &out->segments[out->n_segment - 1] : NULL;
    if (last && !last->recast && last->source == tensor &&
        (tensor ? last->offset + last->n_byte == offset : last->fill == fill))
        last->n_byte += n_byte;
    else
        out->segments[out->n_segment++] =
            (mdp_segment){.source = tensor, .offset = offset, .n_byte = n_byte, .fill = fill};
}

static mdp_status describe(const mdp_tensor *tensor, int64_t max_segment, mdp_output_tensor *out) {
    MDP_TRY(MDP_ALLOC(&out->segments, max_segment, "the segments of an output tensor"));
    out->type = tensor->type;
    out->n_dim = tensor->n_dim;
    memcpy(out->shape, tensor->shape, sizeof out->shape);
    out->n_byte = tensor->n_byte;
    out->of = tensor;
    out->expert = -1;
    out->original_expert = -1;
    return mdp_ok();
}

/* What stands in plan.h5 for an expert's tensor, or its slice of one; NULL: nothing does. */
static const mdp_tensor *replacement(const role *what, const place *at, const mdp_tensor *stored) {
    return at->from < 0 ? NULL : mdp_replaced_tensor(what->replaced, what->layer, at->kept, stored);
}

/* Does the place's expert lose entries of a stored tensor, or of its slice of one? Then what is left of it is added. */
static bool append_masked(const role *what, const place *at, const mdp_tensor *stored, mdp_output *output,
                          mdp_output_tensor *out) {
    if (at->from < 0 || at->zero) return false;
    const mdp_masked masked = mdp_replaced_masked(what->replaced, what->layer, at->kept, stored);
    if (masked.n == 0) return false;
    mdp_recast *recast = &output->recasts[output->n_recast++];
    *recast = (mdp_recast){.masked = masked};
    out->segments[out->n_segment++] = (mdp_segment){.source = stored, .n_byte = masked.n_byte, .recast = recast};
    return true;
}

/* Keep the planned entries of the axis along which a tensor holds its experts. */
static mdp_status slice(const role *what, mdp_output *output, mdp_output_tensor *out) {
    const mdp_expert_tensor *tensor = what->tensor;
    const places *to = what->places;
    const mdp_tensor *source = tensor->tensor, *shape = what->shape->tensor;
    int64_t n_outer = 1, n_wide = what->shape->n_each > 0 ? what->shape->n_each : 1;
    for (int i = 0; i < tensor->axis; i++) n_outer *= source->shape[i];
    int64_t n_each = tensor->n_each > 0 ? tensor->n_each : 1, n_entry = source->shape[tensor->axis] / n_each;
    if (n_entry != what->moe->n_expert || source->shape[tensor->axis] % n_each != 0 || n_outer == 0 ||
        source->n_byte % (n_outer * n_entry) != 0)
        return MDP_ERROR(
            MDP_BAD_INPUT, "'%s' has %lld entries along axis %d, the plan speaks of %d experts in layer %lld.",
            source->name, (long long)n_entry, tensor->axis, (int)what->moe->n_expert, (long long)what->layer);
    int64_t entry_byte = shape->n_byte / (n_outer * n_entry);
    uint32_t never = mdp_pad_fill(what->moe, source);
    MDP_TRY(describe(shape, n_outer * to->n, out));
    for (int64_t o = 0; o < n_outer; o++) {
        for (int32_t i = 0; i < to->n; i++) {
            const place *at = &to->place[i];
            if (append_masked(what, at, source, output, out)) continue;
            bool filled = at->from < 0 || (what->is_down && at->zero);
            const mdp_tensor *made = replacement(what, at, source);
            append_segment(filled ? NULL
                           : made ? made
                                  : source,
                           filled || made ? 0 : (o * n_entry + at->from) * entry_byte, entry_byte,
                           at->from < 0 ? never : 0, out);
        }
    }
    out->shape[tensor->axis] = to->n * n_wide;
    out->n_byte = n_outer * to->n * entry_byte;
    return mdp_copy_text(&out->name, source->name);
}

/* ---- one tensor of the result -------------------------------------------------------------------------------- */

/* The pattern with {expert} replaced by a number. */
static mdp_status expert_name(const char *pattern, mdp_expert_t expert, char **out) {
    const char *mark = strstr(pattern, "{expert}");
    if (!mark) return MDP_ERROR(MDP_INTERNAL, "the tensor name pattern '%s' lacks {expert}.", pattern);
    return mdp_format(out, "%.*s%d%s", (int)(mark - pattern), pattern, (int)expert, mark + strlen("{expert}"));
}

/* Expert `number` of the result in a stack of tensors like this one; source NULL: all zeros. */
static mdp_status add_expert(const mdp_expert_tensor *tensor, mdp_expert_t number, const mdp_tensor *source,
                             mdp_expert_t original, mdp_output *output) {
    mdp_output_tensor *out = &output->tensors[output->n_tensor++];
    MDP_TRY(describe(tensor->tensor, 1, out)); /* in the result's shape */
    append_segment(source, 0, tensor->tensor->n_byte, 0, out);
    out->expert = number;
    out->original_expert = original;
    MDP_TRY(mdp_copy_text(&out->stack, tensor->stack));
    return expert_name(tensor->stack, number, &out->name);
}

/* Append what becomes of a stored tensor, if anything, to the result. */
static mdp_status append_tensor(const mdp_tensor *tensor, const role *what, mdp_output *output) {
    if (what->leaves) return mdp_ok();
    if (what->tensor && what->tensor->expert >= 0) {
        mdp_expert_t expert = what->tensor->expert, number = what->places ? what->places->number[expert] : expert;
        if (number < 0) return mdp_ok();
        const place *at = what->places ? &what->places->place[number] : NULL;
        const mdp_tensor *made = at ? replacement(what, at, tensor) : NULL;
        bool zero = what->is_down && at && at->zero;
        MDP_TRY(add_expert(what->shape, number, zero ? NULL : made ? made : tensor, expert, output));
        mdp_output_tensor *added = &output->tensors[output->n_tensor - 1];
        if (at && mdp_replaced_masked(what->replaced, what->layer, at->kept, tensor).n > 0) added->n_segment = 0;
        if (at) append_masked(what, at, tensor, output, added);
        return mdp_ok();
    }
    mdp_output_tensor *out = &output->tensors[output->n_tensor++];
    if (what->tensor && what->places) return slice(what, output, out);
    MDP_TRY(describe(tensor, 1, out));
    whole_segment(tensor, out);
    return mdp_copy_text(&out->name, tensor->name);
}

/* Experts that are never chosen, like those of a layer whose tensors stand alone: all zeros, but for scales of inputs,
 * which loaders divide by. */
static mdp_status append_pads(const mdp_moe *moe, const places *to, mdp_output *output) {
    for (int64_t j = 0; j < moe->n_expert_tensor; j++) {
        if (moe->expert_tensors[j].expert != 0) continue; /* the first stands for all */
        for (int32_t i = 0; i < to->n; i++)
            if (to->place[i].from < 0)
                MDP_TRY(add_expert(&moe->expert_tensors[j], i,
                                   moe->expert_tensors[j].of_inputs ? moe->expert_tensors[j].tensor : NULL, -1,
                                   output));
    }
    return mdp_ok();
}

static int compare_names(const void *left, const void *right) {
    const mdp_output_tensor *a = left, *b = right;
    return strcmp(a->name, b->name);
}

/* ---- the whole ----------------------------------------------------------------------------------------------- */

static void assign_layers(const mdp_model *model, const places *layers, const mdp_replaced *replaced, role *roles) {
    for (int64_t l = 0; l < model->n_layer; l++) {
        if (!model->layers[l].is_moe) continue;
        const mdp_moe *moe = &model->layers[l].moe, *shapes = &mdp_replaced_shapes(replaced, model)->layers[l].moe;
        for (int64_t j = 0; j < moe->n_expert_tensor; j++) {
            const mdp_expert_tensor *tensor = &moe->expert_tensors[j];
            const mdp_expert *expert = &moe->experts[tensor->expert < 0 ? 0 : tensor->expert];
            roles[tensor->tensor - model->catalogue->tensors] =
                (role){.tensor = tensor,
                       .shape = &shapes->expert_tensors[j],
                       .moe = moe,
                       .places = layers[l].place ? &layers[l] : NULL,
                       .layer = l,
                       .replaced = replaced,
                       .is_down = expert->down.tensor == tensor->tensor || expert->down_bias.tensor == tensor->tensor};
        }
    }
}

static mdp_status assign_roles(maker *m) {
    bool leave = m->without_extra && m->model->n_extra > 0;
    MDP_TRY(MDP_ALLOC(&m->roles, m->model->catalogue->n_tensor, "the tensors of the model"));
    for (int64_t t = 0; leave && t < m->model->catalogue->n_tensor; t++) m->roles[t].leaves = m->model->extra[t];
    assign_layers(m->model, m->layers, m->replaced, m->roles);
    if (m->extra) assign_layers(m->extra->model, m->extra_layers, NULL, m->roles);
    return mdp_ok();
}

/* ---- experts that are named by number ------------------------------------------------------------------------- */

/* Is the tensor's name `name`, or does it go on after it with a dot? */
static bool goes_on(const char *tensor, const char *name) {
    size_t n = strlen(name);
    return strncmp(tensor, name, n) == 0 && (tensor[n] == '\0' || tensor[n] == '.');
}

/* mdp_numbering: what becomes of the expert whose tensor a name is, or begins. */
static bool find_expert(const void *context, const char *name, mdp_expert_t number, mdp_expert_t *out) {
    const maker *m = context;
    const mdp_catalogue *catalogue = m->model->catalogue;
    int64_t low = 0, high = catalogue->n_tensor;
    while (low < high) {
        int64_t middle = low + (high - low) / 2;
        if (strcmp(catalogue->tensors[middle].name, name) < 0)
            low = middle + 1;
        else
            high = middle;
    }
    for (; low < catalogue->n_tensor && strncmp(catalogue->tensors[low].name, name, strlen(name)) == 0; low++) {
        const role *what = &m->roles[low];
        if (!goes_on(catalogue->tensors[low].name, name)) continue;
        if (!what->leaves && (!what->tensor || what->tensor->expert != number)) return false;
        *out = what->leaves ? -1 : what->places ? what->places->number[number] : number;
        return true;
    }
    return false;
}

static bool is_renumbered(const mdp_model *model, const places *layers) {
    for (int64_t l = 0; l < model->n_layer; l++) {
        for (mdp_expert_t e = 0; layers[l].number && e < model->layers[l].moe.n_expert; e++)
            if (layers[l].number[e] != e) return true;
    }
    return false;
}

int32_t mdp_transform_count(const mdp_plan *plan) {
    int32_t largest = 0;
    for (int64_t i = 0; i < plan->n_layer; i++)
        largest = plan->layers[i].n_kept > largest ? plan->layers[i].n_kept : largest;
    return largest;
}

/* The expert count that config.json is to say: the largest of all layers. */
static int64_t largest_count(const mdp_model *model, const mdp_plan *plan) {
    int64_t largest = plan ? mdp_transform_count(plan) : 0;
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

/* config.json of the result; untouched where neither a plan nor what it says of layers asks for a change. */
static mdp_status change_config(const maker *m, mdp_unequal unequal, const int32_t *of_layer) {
    const mdp_model *model = m->model;
    mdp_output *output = m->output;
    mdp_config_change change = {.n_expert = largest_count(model, m->plan),
                                .without_extra = m->without_extra,
                                .of_layer = unequal == MDP_UNEQUAL_PADDED ? NULL : of_layer,
                                .list_layers = unequal == MDP_UNEQUAL_LISTED};
    const mdp_numbering numbering = {.find = find_expert, .context = m};
    bool renumbered = is_renumbered(model, m->layers) || (m->extra && is_renumbered(m->extra->model, m->extra_layers));
    if (renumbered) change.numbering = &numbering;
    int32_t top_k = 0;
    if (m->plan) MDP_TRY(find_top_k(m->plan, &top_k));
    change.top_k = top_k;
    change.d_ff = m->plan ? mdp_plan_width(m->plan) : 0;
    if (m->plan || unequal != MDP_UNEQUAL_STACKED)
        return mdp_model_patch_config(model, &change, &output->config_text, &output->config_byte);
    MDP_TRY(MDP_ALLOC(&output->config_text, model->catalogue->config_byte + 1, "config.json"));
    memcpy(output->config_text, model->catalogue->config_text, (size_t)model->catalogue->config_byte);
    output->config_byte = model->catalogue->config_byte;
    return mdp_ok();
}

static mdp_status make_config(const maker *m, mdp_unequal unequal) {
    int32_t *of_layer = NULL;
    MDP_TRY(MDP_ALLOC(&of_layer, m->model->n_layer, "the experts of the layers"));
    for (int64_t l = 0; l < m->model->n_layer; l++) {
        if (m->model->layers[l].is_moe)
            of_layer[l] = m->layers[l].place ? m->layers[l].n : m->model->layers[l].moe.n_expert;
    }
    mdp_status status = change_config(m, unequal, of_layer);
    mdp_free(of_layer);
    return status;
}

/* Places of the experts of a layer: those that stay, in order; where the layer is to have more, each group's are
 * followed by ones that are never chosen. */
static mdp_status make_places(const mdp_moe *moe, const mdp_plan_layer *planned, int32_t n, places *out) {
    int32_t n_kept = planned ? planned->n_kept : moe->n_expert;
    int32_t n_group = n > n_kept && moe->rule.n_group > 1 ? moe->rule.n_group : 1, each = n / n_group;
    MDP_TRY(MDP_ALLOC(&out->place, n, "the experts of the result"));
    MDP_TRY(MDP_ALLOC(&out->number, moe->n_expert, "the experts of the result"));
    out->n = n;
    for (int32_t i = 0; i < n; i++) out->place[i].from = -1;
    for (mdp_expert_t e = 0; e < moe->n_expert; e++) out->number[e] = -1;
    for (int32_t i = 0, group = 0, used = 0; i < n_kept; i++, used++) {
        mdp_expert_t from = planned ? planned->kept[i].from[0] : i;
        int32_t own = n_group > 1 ? from / moe->rule.group_size : 0;
        if (own != group) used = 0;
        group = own;
        if (used >= each || group >= n_group)
            return MDP_ERROR(MDP_INTERNAL, "group %d of experts keeps more than %d.", (int)group, (int)each);
        out->number[from] = group * each + used;
        out->place[group * each + used] =
            (place){.from = from, .zero = planned && planned->kept[i].action == MDP_ZERO, .kept = i};
    }
    return mdp_ok();
}

static mdp_status make_layers(const mdp_model *model, const mdp_plan *plan, mdp_unequal unequal, places **out) {
    int64_t i = 0, largest = largest_count(model, plan); /* plan layers ascend like the model's */
    MDP_TRY(MDP_ALLOC(out, model->n_layer, "the layers of the result"));
    for (int64_t l = 0; l < model->n_layer; l++) {
        if (!model->layers[l].is_moe) continue;
        const mdp_moe *moe = &model->layers[l].moe;
        const mdp_plan_layer *planned = NULL;
        if (plan && i < plan->n_layer && plan->layers[i].layer == l) planned = &plan->layers[i++];
        int32_t n = unequal == MDP_UNEQUAL_PADDED ? (int32_t)largest : planned ? planned->n_kept : moe->n_expert;
        if (planned || n != moe->n_expert) MDP_TRY(make_places(moe, planned, n, &(*out)[l]));
    }
    return mdp_ok();
}

/* Tensors of the result at most: those of the model, and those of experts that are added. */
static int64_t count_tensors(const maker *m) {
    int64_t n = m->model->catalogue->n_tensor;
    for (int64_t l = 0; l < m->model->n_layer; l++) {
        for (int32_t i = 0; m->layers[l].place && i < m->layers[l].n; i++)
            if (m->layers[l].place[i].from < 0)
                n += m->model->layers[l].moe.n_expert_tensor / m->model->layers[l].moe.n_expert;
    }
    return n;
}

static mdp_status append_all(const maker *m) {
    const mdp_catalogue *catalogue = m->model->catalogue;
    for (int64_t t = 0; t < catalogue->n_tensor; t++)
        MDP_TRY(append_tensor(&catalogue->tensors[t], &m->roles[t], m->output));
    for (int64_t l = 0; l < m->model->n_layer; l++)
        if (m->layers[l].place) MDP_TRY(append_pads(&m->model->layers[l].moe, &m->layers[l], m->output));
    return mdp_ok();
}

static mdp_status fill_tensors(const maker *m) {
    mdp_output *output = m->output;
    int64_t n_masked = 0;
    for (int64_t i = 0; m->replaced && i < m->replaced->n; i++) n_masked += 3 * m->replaced->experts[i].masked;
    MDP_TRY(MDP_ALLOC(&output->tensors, count_tensors(m), "the tensors of the result"));
    if (n_masked > 0) MDP_TRY(MDP_ALLOC(&output->recasts, n_masked, "the masked tensors of the result"));
    MDP_TRY(append_all(m));
    qsort(output->tensors, (size_t)output->n_tensor, sizeof *output->tensors, compare_names);
    for (int64_t t = 0; t < output->n_tensor; t++) output->tensor_byte += output->tensors[t].n_byte;
    return mdp_ok();
}

static mdp_status fill(maker *m, const char *plan_text, const char *provenance_text, mdp_unequal unequal) {
    mdp_output *output = m->output;
    output->source = m->model->catalogue;
    memcpy(output->model_type, m->model->model_type, sizeof output->model_type);
    output->n_layer = m->model->n_layer;
    output->uniform = unequal != MDP_UNEQUAL_STACKED || is_uniform(m->model, m->plan);
    MDP_TRY(make_layers(m->model, m->plan, unequal, &m->layers));
    if (m->extra) MDP_TRY(make_layers(m->extra->model, m->extra->plan, MDP_UNEQUAL_STACKED, &m->extra_layers));
    MDP_TRY(assign_roles(m));
    MDP_TRY(fill_tensors(m));
    MDP_TRY(make_config(m, unequal));
    if (plan_text) MDP_TRY(mdp_copy_text(&output->plan_text, plan_text));
    if (provenance_text) MDP_TRY(mdp_copy_text(&output->provenance_text, provenance_text));
    return mdp_ok();
}

static void free_layers(places *layers, int64_t n) {
    for (int64_t l = 0; layers && l < n; l++) {
        mdp_free(layers[l].place);
        mdp_free(layers[l].number);
    }
    mdp_free(layers);
}

/* As if every expert kept its number: what can be found now can be found then. */
static mdp_status check_names(maker *m) {
    const mdp_numbering numbering = {.find = find_expert, .context = m};
    mdp_config_change change = {.n_expert = largest_count(m->model, NULL), .numbering = &numbering};
    char *text = NULL;
    int64_t n_byte = 0;
    MDP_TRY(make_layers(m->model, NULL, MDP_UNEQUAL_STACKED, &m->layers));
    if (m->extra) MDP_TRY(make_layers(m->extra->model, NULL, MDP_UNEQUAL_STACKED, &m->extra_layers));
    MDP_TRY(assign_roles(m));
    mdp_status status = mdp_model_patch_config(m->model, &change, &text, &n_byte);
    mdp_free(text);
    return status;
}

mdp_status mdp_transform_check_names(const mdp_model *model, const mdp_extra *extra) {
    maker m = {.model = model, .extra = extra, .without_extra = !extra};
    mdp_status status = check_names(&m);
    mdp_free(m.roles);
    free_layers(m.layers, model->n_layer);
    free_layers(m.extra_layers, extra ? extra->model->n_layer : 0);
    return status;
}

mdp_status mdp_transform_output(const mdp_model *model, const mdp_plan *plan, const mdp_replaced *replaced,
                                const mdp_extra *extra, const char *plan_text, const char *provenance_text,
                                mdp_unequal unequal, mdp_output **out) {
    maker m = {.model = model, .plan = plan, .replaced = replaced, .extra = extra, .without_extra = plan && !extra};
    *out = NULL;
    if (plan) MDP_TRY(mdp_transform_check(plan));
    if (unequal == MDP_UNEQUAL_PADDED) MDP_TRY(mdp_transform_check_pad(model));
    if (unequal == MDP_UNEQUAL_LISTED) MDP_TRY(mdp_transform_check_list(model));
    MDP_TRY(MDP_ALLOC(&m.output, 1, "the description of the result"));
    mdp_status status = fill(&m, plan_text, provenance_text, unequal);
    if (status.code == MDP_OK && plan && plan->widened) status = mdp_transform_widen(model, m.output);
    mdp_free(m.roles);
    free_layers(m.layers, model->n_layer);
    free_layers(m.extra_layers, extra ? extra->model->n_layer : 0);
    if (status.code != MDP_OK) {
        mdp_output_destroy(m.output);
        return status;
    }
    *out = m.output;
    return status;
}
