/* budget.c - how many experts each layer keeps, and which: scores -> kept and dropped.
 *
 * Decisions compare scores rounded to 30 significant bits, so that the last bits of a sum cannot change a plan; of
 * equal scores the lower layer, then the lower expert goes first. Kept lists stay in ascending original order.
 * Formulas: methods.md, section 2. */
#include "mdp/plan.h"

#include <math.h>
#include <stdlib.h>

const char *const mdp_budget_names[] = {[MDP_BUDGET_UNIFORM] = "uniform", [MDP_BUDGET_GLOBAL] = "global", NULL};
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

/* ---- normalisation ------------------------------------------------------------------------------------------- */

static mdp_status refuse_negative(const mdp_plan_layer *layer, mdp_score_normalise normalise) {
    for (mdp_expert_t e = 0; e < layer->n_expert; e++) {
        if (layer->scores[e] < 0.0)
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
    for (mdp_expert_t e = 0; e < layer->n_expert; e++) sum += layer->scores[e];
    return sum;
}

static double largest_of(const mdp_plan_layer *layer) {
    double largest = 0.0;
    for (mdp_expert_t e = 0; e < layer->n_expert; e++) largest = fmax(largest, layer->scores[e]);
    return largest;
}

static double deviation_of(const mdp_plan_layer *layer, double mean) {
    double sum = 0.0;
    for (mdp_expert_t e = 0; e < layer->n_expert; e++) {
        double difference = layer->scores[e] - mean;
        sum += difference * difference;
    }
    return sqrt(sum / layer->n_expert);
}

/* out[n_expert]: the layer's scores made comparable with other layers' and rounded; all 0 where the divisor is 0. */
static mdp_status normalise_layer(const mdp_plan_layer *layer, mdp_score_normalise normalise, double *out) {
    double shift = 0.0, divisor = 1.0;
    if (normalise == MDP_LAYER_SUM || normalise == MDP_LAYER_MAX) {
        MDP_TRY(refuse_negative(layer, normalise));
        divisor = normalise == MDP_LAYER_SUM ? sum_of(layer) : largest_of(layer);
    } else if (normalise == MDP_LAYER_Z) {
        shift = sum_of(layer) / layer->n_expert;
        divisor = deviation_of(layer, shift);
    }
    for (mdp_expert_t e = 0; e < layer->n_expert; e++)
        out[e] = divisor > 0.0 ? mdp_round30((layer->scores[e] - shift) / divisor) : 0.0;
    return mdp_ok();
}

/* ---- from a set of dropped experts to the layer's lists ------------------------------------------------------- */

/* gone [n_expert]: nonzero for a dropped expert. */
static mdp_status fill_layer(mdp_plan_layer *layer, const unsigned char *gone) {
    int32_t n_dropped = 0;
    for (mdp_expert_t e = 0; e < layer->n_expert; e++) n_dropped += gone[e] != 0;
    MDP_TRY(MDP_ALLOC(&layer->kept, layer->n_expert - n_dropped, "the kept experts of a plan"));
    MDP_TRY(MDP_ALLOC(&layer->dropped, n_dropped, "the dropped experts of a plan"));
    for (mdp_expert_t e = 0; e < layer->n_expert; e++) {
        if (gone[e]) {
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

/* ---- checks -------------------------------------------------------------------------------------------------- */

static int32_t count_protected(const mdp_plan_layer *layer) {
    int32_t n = 0;
    for (mdp_expert_t e = 0; e < layer->n_expert && layer->must_keep; e++) n += layer->must_keep[e] != 0;
    return n;
}

static mdp_status check_options(const mdp_plan *plan, const int32_t *top_k, const mdp_budget_options *options) {
    for (int64_t i = 0; i < plan->n_layer; i++) {
        const mdp_plan_layer *layer = &plan->layers[i];
        long long l = (long long)layer->layer;
        if (options->keep < top_k[i])
            return MDP_ERROR(
                MDP_USAGE, "layer %lld: keeping %d experts is less than the %d that each token uses; keep %d or more.",
                l, (int)options->keep, (int)top_k[i], (int)top_k[i]);
        if (options->keep > layer->n_expert)
            return MDP_ERROR(MDP_USAGE, "layer %lld: %d experts cannot be kept of %d; keep fewer.", l,
                             (int)options->keep, (int)layer->n_expert);
        if (options->budget == MDP_BUDGET_UNIFORM && count_protected(layer) > options->keep)
            return MDP_ERROR(MDP_USAGE,
                             "layer %lld: %d super experts are protected, so %d cannot be kept; keep more, or leave "
                             "--protect-super-experts away.",
                             l, (int)count_protected(layer), (int)options->keep);
        if (options->budget == MDP_BUDGET_UNIFORM || options->min_keep == 0) continue;
        if (options->min_keep < top_k[i] || options->min_keep > options->keep)
            return MDP_ERROR(MDP_USAGE,
                             "layer %lld: --min-keep %d is not between the %d experts that each token uses and the "
                             "%d that are kept on average.",
                             l, (int)options->min_keep, (int)top_k[i], (int)options->keep);
    }
    return mdp_ok();
}

/* ---- choice -------------------------------------------------------------------------------------------------- */

/* Walk the queue of n candidates (worst first) and mark what goes: at most n_drop in all, at most may_drop[i] in layer
 * i. gone [n_layer * stride]. Returns how many of n_drop could not be found. */
static int64_t drop_worst(candidate *queue, int64_t n, int64_t n_drop, int32_t *may_drop, int64_t stride,
                          unsigned char *gone) {
    qsort(queue, (size_t)n, sizeof *queue, compare_candidates);
    for (int64_t i = 0; i < n && n_drop > 0; i++) {
        if (may_drop[queue[i].layer_index] == 0) continue;
        may_drop[queue[i].layer_index]--;
        n_drop--;
        gone[queue[i].layer_index * stride + queue[i].expert] = 1;
    }
    return n_drop;
}

/* Buffers of one choice. */
typedef struct workspace {
    candidate *queue;    /* [n_layer * stride] */
    double *value;       /* [stride] */
    int32_t *may_drop;   /* [n_layer] */
    unsigned char *gone; /* [n_layer * stride] */
    int64_t stride;      /* experts of the largest layer */
} workspace;

static void free_workspace(workspace *space) {
    mdp_free(space->queue);
    mdp_free(space->value);
    mdp_free(space->may_drop);
    mdp_free(space->gone);
}

static mdp_status allocate_workspace(const mdp_plan *plan, workspace *space) {
    space->stride = 1;
    for (int64_t i = 0; i < plan->n_layer; i++) {
        if (plan->layers[i].n_expert > space->stride) space->stride = plan->layers[i].n_expert;
    }
    MDP_TRY(MDP_ALLOC(&space->queue, plan->n_layer * space->stride, "the candidates of a plan"));
    MDP_TRY(MDP_ALLOC(&space->value, space->stride, "the scores of a layer"));
    MDP_TRY(MDP_ALLOC(&space->may_drop, plan->n_layer, "the budgets of layers"));
    return MDP_ALLOC(&space->gone, plan->n_layer * space->stride, "the choices of a plan");
}

/* Append a layer's experts, but for protected ones, to the queue; returns its new length through *n. */
static mdp_status enqueue(const mdp_plan *plan, int64_t i, mdp_score_normalise normalise, workspace *space,
                          int64_t *n) {
    MDP_TRY(normalise_layer(&plan->layers[i], normalise, space->value));
    for (mdp_expert_t e = 0; e < plan->layers[i].n_expert; e++) {
        if (plan->layers[i].must_keep && plan->layers[i].must_keep[e]) continue;
        space->queue[(*n)++] = (candidate){.score = space->value[e], .layer_index = i, .expert = e};
    }
    return mdp_ok();
}

static mdp_status choose_uniform(const mdp_plan *plan, const mdp_budget_options *options, workspace *space) {
    for (int64_t i = 0; i < plan->n_layer; i++) {
        int64_t n = 0;
        MDP_TRY(enqueue(plan, i, MDP_RAW, space, &n));
        space->may_drop[i] = plan->layers[i].n_expert - options->keep;
        drop_worst(space->queue, n, n, space->may_drop, space->stride, space->gone);
    }
    return mdp_ok();
}

static mdp_status choose_global(const mdp_plan *plan, const int32_t *top_k, const mdp_budget_options *options,
                                workspace *space) {
    int64_t n = 0, n_expert = 0;
    for (int64_t i = 0; i < plan->n_layer; i++) {
        n_expert += plan->layers[i].n_expert;
        MDP_TRY(enqueue(plan, i, options->normalise, space, &n));
        space->may_drop[i] = plan->layers[i].n_expert - (options->min_keep ? options->min_keep : top_k[i]);
    }
    int64_t n_left = drop_worst(space->queue, n, n_expert - plan->n_layer * options->keep, space->may_drop,
                                space->stride, space->gone);
    if (n_left == 0) return mdp_ok();
    return MDP_ERROR(
        MDP_USAGE,
        "%lld more experts would have to go than protected super experts and --min-keep leave; keep more, or "
        "leave --protect-super-experts away.",
        (long long)n_left);
}

static mdp_status choose(mdp_plan *plan, const int32_t *top_k, const mdp_budget_options *options, workspace *space) {
    MDP_TRY(allocate_workspace(plan, space));
    if (options->budget == MDP_BUDGET_UNIFORM)
        MDP_TRY(choose_uniform(plan, options, space));
    else
        MDP_TRY(choose_global(plan, top_k, options, space));
    plan->uniform = true;
    for (int64_t i = 0; i < plan->n_layer; i++) {
        MDP_TRY(fill_layer(&plan->layers[i], space->gone + i * space->stride));
        plan->uniform = plan->uniform && plan->layers[i].n_kept == plan->layers[0].n_kept;
    }
    return mdp_ok();
}

mdp_status mdp_plan_choose(mdp_plan *plan, const int32_t *top_k, const mdp_budget_options *options) {
    workspace space = {0};
    MDP_TRY(check_options(plan, top_k, options));
    mdp_status status = choose(plan, top_k, options, &space);
    free_workspace(&space);
    return status;
}
