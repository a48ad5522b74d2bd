/* choose.c - which experts each layer keeps: scores and counts -> kept and dropped.
 *
 * Decisions compare scores rounded to 30 significant bits, so that the last bits of a sum cannot change a plan; of
 * equal scores the lower layer, then the lower expert goes first. Experts that went in an earlier round go again before
 * all others; protected ones never go. Kept lists stay in ascending original order. Formulas: methods.md, section 2. */
#include "mdp/plan.h"

#include <math.h>
#include <stdlib.h>

const char *const mdp_score_normalise_names[] = {
    [MDP_RAW] = "none", [MDP_LAYER_SUM] = "layer-sum", [MDP_LAYER_MAX] = "layer-max", [MDP_LAYER_Z] = "layer-z", NULL};

/* An expert in the queue of candidates for removal. */
typedef struct candidate {
    double score; /* normalised and rounded */
    int64_t layer_index;
    mdp_expert_t expert;
} candidate;

static int compare_candidates(const void *left, const void *right) {
    const candidate *a = left, *b = right;
    if (a->score != b->score) return a->score < b->score ? -1 : 1;
    if (a->layer_index != b->layer_index) return a->layer_index < b->layer_index ? -1 : 1;
    return a->expert < b->expert ? -1 : a->expert > b->expert;
}

static bool is_gone(const mdp_plan_layer *layer, mdp_expert_t expert) {
    return layer->gone && layer->gone[expert];
}

static bool is_protected(const mdp_plan_layer *layer, mdp_expert_t expert) {
    return layer->must_keep && layer->must_keep[expert];
}

static int32_t count_alive(const mdp_plan_layer *layer) {
    int32_t n = 0;
    for (mdp_expert_t e = 0; e < layer->n_expert; e++) n += !is_gone(layer, e);
    return n;
}

/* ---- normalisation, over the experts that are still there ------------------------------------------------------- */

static mdp_status refuse_negative(const mdp_plan_layer *layer, mdp_score_normalise normalise) {
    for (mdp_expert_t e = 0; e < layer->n_expert; e++) {
        if (layer->scores[e] < 0.0 && !is_gone(layer, e))
            return MDP_ERROR(MDP_USAGE,
                             "layer %lld: expert %d has the negative score %.9g, which --normalise %s cannot scale; "
                             "use layer-z or none.",
                             (long long)layer->layer, (int)e, layer->scores[e], mdp_score_normalise_names[normalise]);
    }
    return mdp_ok();
}

/* Sum and largest of a layer's scores, in expert order. */
static double sum_of(const mdp_plan_layer *layer) {
    double sum = 0.0;
    for (mdp_expert_t e = 0; e < layer->n_expert; e++) sum += is_gone(layer, e) ? 0.0 : layer->scores[e];
    return sum;
}

static double largest_of(const mdp_plan_layer *layer) {
    double largest = 0.0;
    for (mdp_expert_t e = 0; e < layer->n_expert; e++) {
        if (!is_gone(layer, e)) largest = fmax(largest, layer->scores[e]);
    }
    return largest;
}

static double deviation_of(const mdp_plan_layer *layer, double mean) {
    double sum = 0.0;
    for (mdp_expert_t e = 0; e < layer->n_expert; e++) {
        double difference = is_gone(layer, e) ? 0.0 : layer->scores[e] - mean;
        sum += difference * difference;
    }
    return sqrt(sum / count_alive(layer));
}

/* out[n_expert]: the layer's scores made comparable with other layers' and rounded; all 0 where the divisor is 0. */
static mdp_status normalise_layer(const mdp_plan_layer *layer, mdp_score_normalise normalise, double *out) {
    double shift = 0.0, divisor = 1.0;
    if (normalise == MDP_LAYER_SUM || normalise == MDP_LAYER_MAX) {
        MDP_TRY(refuse_negative(layer, normalise));
        divisor = normalise == MDP_LAYER_SUM ? sum_of(layer) : largest_of(layer);
    } else if (normalise == MDP_LAYER_Z) {
        shift = sum_of(layer) / count_alive(layer);
        divisor = deviation_of(layer, shift);
    }
    for (mdp_expert_t e = 0; e < layer->n_expert; e++)
        out[e] = divisor > 0.0 ? mdp_round30((layer->scores[e] - shift) / divisor) : 0.0;
    return mdp_ok();
}

/* ---- from a set of dropped experts to the layer's lists ------------------------------------------------------- */

/* dropped [n_expert]: nonzero for a dropped expert. */
static mdp_status fill_layer(mdp_plan_layer *layer, const unsigned char *dropped) {
    int32_t n_dropped = 0;
    for (mdp_expert_t e = 0; e < layer->n_expert; e++) n_dropped += dropped[e] != 0;
    MDP_TRY(MDP_ALLOC(&layer->kept, layer->n_expert - n_dropped, "the kept experts of a plan"));
    MDP_TRY(MDP_ALLOC(&layer->dropped, n_dropped, "the dropped experts of a plan"));
    for (mdp_expert_t e = 0; e < layer->n_expert; e++) {
        if (dropped[e]) {
            layer->dropped[layer->n_dropped++] = e;
            continue;
        }
        mdp_plan_expert *kept = &layer->kept[layer->n_kept];
        MDP_TRY(MDP_ALLOC(&kept->from, 1, "an expert of a plan"));
        kept->action = MDP_KEEP;
        kept->n_from = 1;
        kept->from[0] = e;
        layer->n_kept++;
    }
    return mdp_ok();
}

/* ---- choice -------------------------------------------------------------------------------------------------- */

/* Buffers of one choice. */
typedef struct workspace {
    candidate *queue;         /* [n_layer * stride] */
    double *value;            /* [stride] */
    int32_t *may_drop;        /* [n_layer] */
    int32_t *count;           /* [n_layer] experts that each layer keeps */
    mdp_budget_layer *layers; /* [n_layer] */
    unsigned char *dropped;   /* [n_layer * stride] */
    int64_t stride;           /* experts of the largest layer */
} workspace;

static void free_workspace(workspace *space) {
    mdp_free(space->queue);
    mdp_free(space->value);
    mdp_free(space->may_drop);
    mdp_free(space->count);
    mdp_free(space->layers);
    mdp_free(space->dropped);
}

static mdp_status allocate_workspace(const mdp_plan *plan, const int32_t *top_k, workspace *space) {
    space->stride = 1;
    for (int64_t i = 0; i < plan->n_layer; i++) {
        if (plan->layers[i].n_expert > space->stride) space->stride = plan->layers[i].n_expert;
    }
    MDP_TRY(MDP_ALLOC(&space->queue, plan->n_layer * space->stride, "the candidates of a plan"));
    MDP_TRY(MDP_ALLOC(&space->value, space->stride, "the scores of a layer"));
    MDP_TRY(MDP_ALLOC(&space->may_drop, plan->n_layer, "the budgets of layers"));
    MDP_TRY(MDP_ALLOC(&space->count, plan->n_layer, "the budgets of layers"));
    MDP_TRY(MDP_ALLOC(&space->layers, plan->n_layer, "the layers of a plan"));
    for (int64_t i = 0; i < plan->n_layer; i++)
        space->layers[i] = (mdp_budget_layer){.layer = plan->layers[i].layer,
                                              .n_expert = plan->layers[i].n_expert,
                                              .n_alive = count_alive(&plan->layers[i]),
                                              .top_k = top_k[i]};
    return MDP_ALLOC(&space->dropped, plan->n_layer * space->stride, "the choices of a plan");
}

/* Walk the queue of n candidates (worst first) and mark what goes: at most n_drop in all, at most may_drop[i] in layer
 * i. Returns how many of n_drop could not be found. */
static int64_t drop_worst(workspace *space, int64_t n, int64_t n_drop) {
    qsort(space->queue, (size_t)n, sizeof *space->queue, compare_candidates);
    for (int64_t i = 0; i < n && n_drop > 0; i++) {
        const candidate *worst = &space->queue[i];
        if (space->may_drop[worst->layer_index] == 0) continue;
        space->may_drop[worst->layer_index]--;
        n_drop--;
        space->dropped[worst->layer_index * space->stride + worst->expert] = 1;
    }
    return n_drop;
}

/* Append experts first .. end - 1 of a layer, but for protected ones, to the queue of *n candidates. */
static void enqueue(const mdp_plan *plan, int64_t i, mdp_expert_t first, mdp_expert_t end, workspace *space,
                    int64_t *n) {
    const mdp_plan_layer *layer = &plan->layers[i];
    for (mdp_expert_t e = first; e < end; e++) {
        if (is_gone(layer, e))
            space->queue[(*n)++] = (candidate){.score = -INFINITY, .layer_index = i, .expert = e};
        else if (!is_protected(layer, e))
            space->queue[(*n)++] = (candidate){.score = space->value[e], .layer_index = i, .expert = e};
    }
}

/* Keep the best space->count[i] experts of a layer, equally many of each of its groups. */
static mdp_status choose_in_layer(const mdp_plan *plan, int64_t i, int32_t n_group, workspace *space) {
    const mdp_plan_layer *layer = &plan->layers[i];
    int32_t group_size = layer->n_expert / n_group, keep = space->count[i] / n_group;
    MDP_TRY(normalise_layer(layer, MDP_RAW, space->value));
    for (int32_t g = 0; g < n_group; g++) {
        int64_t n = 0;
        enqueue(plan, i, g * group_size, (g + 1) * group_size, space, &n);
        space->may_drop[i] = group_size - keep;
        int64_t n_left = drop_worst(space, n, group_size - keep);
        if (n_left > 0)
            return MDP_ERROR(MDP_USAGE,
                             "layer %lld: %lld super experts are protected, so %d cannot be kept; keep more, or leave "
                             "--protect-super-experts away.",
                             (long long)layer->layer, (long long)(keep + n_left), (int)keep);
    }
    return mdp_ok();
}

/* How many experts each layer keeps when all are ranked together. */
static mdp_status rank_all(const mdp_plan *plan, const mdp_budget_options *options, workspace *space) {
    int64_t n = 0, n_expert = 0;
    for (int64_t i = 0; i < plan->n_layer; i++) {
        const mdp_budget_layer *layer = &space->layers[i];
        int32_t k = options->top_k > 0 ? options->top_k : layer->top_k;
        n_expert += plan->layers[i].n_expert;
        MDP_TRY(normalise_layer(&plan->layers[i], options->normalise, space->value));
        enqueue(plan, i, 0, plan->layers[i].n_expert, space, &n);
        space->may_drop[i] = plan->layers[i].n_expert - (options->min_keep ? options->min_keep : k);
    }
    int64_t n_left = drop_worst(space, n, n_expert - plan->n_layer * options->keep);
    for (int64_t i = 0; i < plan->n_layer; i++) {
        space->count[i] = 0;
        for (int32_t e = 0; e < plan->layers[i].n_expert; e++) {
            space->count[i] += !space->dropped[i * space->stride + e];
            space->dropped[i * space->stride + e] = 0;
        }
    }
    if (n_left == 0) return mdp_ok();
    return MDP_ERROR(
        MDP_USAGE,
        "%lld more experts would have to go than protected super experts and --min-keep leave; keep more, or "
        "leave --protect-super-experts away.",
        (long long)n_left);
}

static mdp_status choose(mdp_plan *plan, const int32_t *top_k, const mdp_budget_options *options, workspace *space) {
    MDP_TRY(allocate_workspace(plan, top_k, space));
    MDP_TRY(mdp_budget_check(space->layers, plan->n_layer, options));
    if (options->budget == MDP_BUDGET_GLOBAL) MDP_TRY(rank_all(plan, options, space));
    if (options->budget != MDP_BUDGET_GLOBAL || mdp_budget_unit(options) > 1)
        MDP_TRY(mdp_budget_counts(space->layers, plan->n_layer, options, space->count));
    plan->uniform = true;
    for (int64_t i = 0; i < plan->n_layer; i++) {
        mdp_plan_layer *layer = &plan->layers[i];
        MDP_TRY(choose_in_layer(plan, i, options->n_group > 1 ? options->n_group : 1, space));
        MDP_TRY(fill_layer(layer, space->dropped + i * space->stride));
        layer->top_k = options->top_k < top_k[i] ? options->top_k : 0;
        plan->uniform = plan->uniform && layer->n_kept == plan->layers[0].n_kept;
    }
    return mdp_ok();
}

mdp_status mdp_plan_choose(mdp_plan *plan, const int32_t *top_k, const mdp_budget_options *options) {
    workspace space = {0};
    mdp_status status = choose(plan, top_k, options, &space);
    free_workspace(&space);
    return status;
}
