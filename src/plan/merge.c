/* merge.c - scores, counts and similarities -> groups: experts that a budget does not keep join others instead of
 * going.
 *
 * The budget and the scores have chosen how many experts each layer keeps, and which would stay if the others were
 * dropped; those are the dominants and centres of the methods that want some. Each group becomes one expert with the
 * weights, or its best member alone (representative). Formulas: methods.md, sections 5 and 6. */
#include "mdp/plan.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

const char *const mdp_merge_weights_names[] = {[MDP_MERGE_MEAN] = "mean",
                                               [MDP_MERGE_FREQUENCY] = "frequency",
                                               [MDP_MERGE_SALIENCY] = "saliency",
                                               [MDP_MERGE_SOFTMAX] = "similarity-softmax",
                                               [MDP_MERGE_REPRESENTATIVE] = "representative",
                                               [MDP_MERGE_LEAST_SQUARES] = "least-squares",
                                               [MDP_MERGE_DERN] = "dern",
                                               NULL};

/* A layer whose groups are made. */
typedef struct grouper {
    const mdp_plan_request *request;
    int64_t index; /* of the layer in the plan */
    mdp_plan_layer *layer;
    double *matrix;        /* [n, n] similarity, or distance where the method wants one */
    double *means;         /* [n, d] where the method wants vectors; else NULL */
    double *tokens;        /* [n] tokens that chose each; all 0 without statistics */
    unsigned char *chosen; /* [n] nonzero: would stay if the others were dropped */
    double *ranks;         /* [n] the highest first */
    mdp_grouping groups;
} grouper;

/* ---- what groups are made by ------------------------------------------------------------------------------------ */

static void find_chosen(const mdp_plan_layer *layer, unsigned char *chosen) {
    for (int32_t i = 0; i < layer->n_kept; i++) chosen[layer->kept[i].from[0]] = 1;
}

static double sum_of(const double *values, int32_t n) {
    double sum = 0.0;
    for (int32_t i = 0; i < n; i++) sum += values[i];
    return sum;
}

/* A similarity from a distance, and back. */
static void flip(const grouper *g) {
    int32_t n = g->layer->n_expert;
    if (!mdp_similarities[g->request->merge->similarity].is_negative) {
        mdp_group_flip(n, g->matrix);
        return;
    }
    for (int64_t at = 0; at < (int64_t)n * n; at++) g->matrix[at] = 0.0 - g->matrix[at];
}

/* The matrix as the method wants it, and tokens. */
static mdp_status gather(grouper *g) {
    const mdp_plan_request *request = g->request;
    const mdp_merge_request *merge = request->merge;
    int32_t n = g->layer->n_expert;
    const double *stored = mdp_stats_similarity(request->stats, g->index, merge->similarity);
    bool is_distance = mdp_similarities[merge->similarity].is_distance;
    if (!stored)
        return MDP_ERROR(MDP_BAD_INPUT, "the statistics have no similarity '%s' for layer %lld; observe with it.",
                         mdp_similarities[merge->similarity].name, (long long)g->layer->layer);
    MDP_TRY(MDP_ALLOC(&g->matrix, (int64_t)n * n, "the similarities of a layer"));
    MDP_TRY(MDP_ALLOC(&g->tokens, n, "the experts of a layer"));
    MDP_TRY(MDP_ALLOC(&g->chosen, n, "the experts of a layer"));
    memcpy(g->matrix, stored, (size_t)((int64_t)n * n) * sizeof *stored);
    if (is_distance != (mdp_group_wants(merge->group) == MDP_BY_DISTANCE)) flip(g);
    for (mdp_expert_t e = 0; e < n; e++) g->tokens[e] = mdp_stats_count(request->stats, g->index, e, request->weight);
    find_chosen(g->layer, g->chosen);
    return mdp_ok();
}

static mdp_status penalise(const grouper *g) {
    int32_t n = g->layer->n_expert;
    double all = sum_of(g->tokens, n), *share = NULL;
    if (!g->request->merge->frequency_penalty || all <= 0.0) return mdp_ok();
    MDP_TRY(MDP_ALLOC(&share, n, "shares of the tokens"));
    bool similar = mdp_group_wants(g->request->merge->group) == MDP_BY_SIMILARITY; /* it is for distances */
    for (int32_t e = 0; e < n; e++) share[e] = g->tokens[e] / all;
    if (similar) flip(g);
    mdp_group_penalise(n, share, g->matrix);
    if (similar) flip(g);
    mdp_free(share);
    return mdp_ok();
}

/* Ranks that say who comes first: who would stay before who would not, then the score, then the lower number. */
static mdp_status rank(grouper *g) {
    int32_t n = g->layer->n_expert;
    MDP_TRY(MDP_ALLOC(&g->ranks, n, "the experts of a layer"));
    for (int32_t e = 0; e < n; e++) {
        double own = mdp_round30(g->layer->scores[e]);
        for (int32_t f = 0; f < n; f++) {
            double other = mdp_round30(g->layer->scores[f]);
            bool behind = g->chosen[f] != g->chosen[e] ? g->chosen[f] < g->chosen[e]
                          : other != own               ? other < own
                                                       : f > e;
            g->ranks[e] += behind;
        }
    }
    return mdp_ok();
}

static mdp_status group_layer(grouper *g) {
    const mdp_merge_request *merge = g->request->merge;
    mdp_group_input input = {.method = merge->group,
                             .n = g->layer->n_expert,
                             .n_group = g->layer->n_kept,
                             .n_block = g->request->budget.n_group,
                             .linkage = merge->linkage,
                             .max_group = merge->max_group,
                             .keep_whole = merge->keep_whole,
                             .seed = g->request->seed,
                             .stream = (uint64_t)g->layer->layer};
    MDP_TRY(gather(g));
    MDP_TRY(penalise(g));
    MDP_TRY(rank(g));
    input.score = g->ranks;
    input.matrix = g->matrix;
    if (mdp_group_wants(merge->group) == MDP_BY_FEATURES) {
        MDP_TRY(MDP_ALLOC(&g->means, g->layer->n_expert * g->request->stats->d_model, "mean outputs"));
        MDP_TRY(mdp_stats_mean_outputs(g->request->stats, g->index, merge->similarity, g->means));
        input.feature = g->means;
        input.n_feature = g->request->stats->d_model;
    }
    input.dominant = merge->group == MDP_GROUP_DOMINANT ? g->chosen : NULL;
    return mdp_group(&input, &g->groups);
}

/* ---- weights ---------------------------------------------------------------------------------------------------- */

/* Softmax over the members of the mean similarity to the others. */
static void softmax(const grouper *g, const mdp_plan_expert *expert, double *raw) {
    int32_t n = g->layer->n_expert;
    const double *similarity = mdp_stats_similarity(g->request->stats, g->index, g->request->merge->similarity);
    double sign = mdp_similarities[g->request->merge->similarity].is_distance ? -1.0 : 1.0, most = -HUGE_VAL;
    for (int32_t i = 0; i < expert->n_from; i++) {
        raw[i] = 0.0;
        for (int32_t j = 0; j < expert->n_from; j++)
            if (j != i)
                raw[i] += sign * similarity[(int64_t)expert->from[i] * n + expert->from[j]] / (expert->n_from - 1);
        most = raw[i] > most ? raw[i] : most;
    }
    for (int32_t i = 0; i < expert->n_from; i++) raw[i] = exp(raw[i] - most);
}

static mdp_status weigh(const grouper *g, mdp_plan_expert *expert) {
    mdp_merge_weights how = g->request->merge->weights;
    MDP_TRY(MDP_ALLOC(&expert->weights, expert->n_from, "the weights of a plan"));
    for (int32_t i = 0; i < expert->n_from; i++) {
        mdp_expert_t e = expert->from[i];
        bool by_tokens = how == MDP_MERGE_FREQUENCY || how == MDP_MERGE_LEAST_SQUARES;
        expert->weights[i] = by_tokens ? g->tokens[e] : how == MDP_MERGE_SALIENCY ? g->layer->scores[e] : 1.0;
        if (expert->weights[i] < 0.0)
            return MDP_ERROR(MDP_USAGE,
                             "--merge saliency: the scores of method '%s' are negative (layer %lld, expert %d), and "
                             "weights cannot be; use another method or other weights.",
                             g->request->criterion->name, (long long)g->layer->layer, (int)e);
    }
    if (how == MDP_MERGE_SOFTMAX) softmax(g, expert, expert->weights);
    double sum = sum_of(expert->weights, expert->n_from);
    for (int32_t i = 0; i < expert->n_from; i++)
        expert->weights[i] = sum > 0.0 ? expert->weights[i] / sum : 1.0 / expert->n_from;
    return mdp_ok();
}

/* The member that is chosen by most tokens; ties: the lower number. */
static int32_t find_dominant(const grouper *g, const mdp_plan_expert *expert) {
    int32_t best = 0;
    for (int32_t i = 1; i < expert->n_from; i++)
        if (g->tokens[expert->from[i]] > g->tokens[expert->from[best]]) best = i;
    return best;
}

/* ---- the plan --------------------------------------------------------------------------------------------------- */

static void free_kept(mdp_plan_expert *kept, int32_t n) {
    for (int32_t i = 0; kept && i < n; i++) {
        mdp_free(kept[i].from);
        mdp_free(kept[i].weights);
    }
    mdp_free(kept);
}

static mdp_status fill_expert(const grouper *g, int32_t group, mdp_plan_expert *out) {
    const mdp_merge_request *merge = g->request->merge;
    int32_t n = g->layer->n_expert, n_from = 0;
    for (int32_t e = 0; e < n; e++) n_from += g->groups.group[e] == group;
    MDP_TRY(MDP_ALLOC(&out->from, n_from, "an expert of a plan"));
    for (int32_t e = 0; e < n; e++)
        if (g->groups.group[e] == group) out->from[out->n_from++] = e;
    out->action = MDP_KEEP;
    if (n_from == 1) return mdp_ok();
    if (merge->weights == MDP_MERGE_REPRESENTATIVE) {
        for (int32_t i = 1; i < n_from; i++)
            if (mdp_round30(g->layer->scores[out->from[i]]) > mdp_round30(g->layer->scores[out->from[0]]))
                out->from[0] = out->from[i];
        out->n_from = 1;
        return mdp_ok();
    }
    out->action = MDP_MERGE;
    out->align = merge->align;
    out->router = merge->router;
    out->fitted = merge->weights == MDP_MERGE_LEAST_SQUARES;
    out->dominant = find_dominant(g, out);
    return weigh(g, out);
}

static int compare_first(const void *left, const void *right) {
    const mdp_plan_expert *a = left, *b = right;
    return a->from[0] < b->from[0] ? -1 : a->from[0] > b->from[0];
}

/* Who is in no expert of the result goes. */
static mdp_status fill_dropped(mdp_plan_layer *layer, const mdp_plan_expert *kept, int32_t n_kept) {
    unsigned char *stays = NULL;
    MDP_TRY(MDP_ALLOC(&stays, layer->n_expert, "the experts of a layer"));
    layer->n_dropped = 0;
    for (int32_t i = 0; i < n_kept; i++)
        for (int32_t j = 0; j < kept[i].n_from; j++) stays[kept[i].from[j]] = 1;
    for (mdp_expert_t e = 0; e < layer->n_expert; e++)
        if (!stays[e]) layer->dropped[layer->n_dropped++] = e;
    mdp_free(stays);
    return mdp_ok();
}

static mdp_status merge_layer(grouper *g) {
    mdp_plan_expert *kept = NULL;
    int32_t n = 0;
    if (g->layer->n_kept == g->layer->n_expert) return mdp_ok();
    MDP_TRY(group_layer(g));
    mdp_status status = MDP_ALLOC(&kept, g->groups.n_group, "the experts of a plan");
    for (; status.code == MDP_OK && n < g->groups.n_group; n++) status = fill_expert(g, n, &kept[n]);
    if (status.code == MDP_OK) {
        qsort(kept, (size_t)n, sizeof *kept, compare_first);
        status = fill_dropped(g->layer, kept, n);
    }
    if (status.code != MDP_OK) {
        free_kept(kept, n);
        return status;
    }
    free_kept(g->layer->kept, g->layer->n_kept);
    g->layer->kept = kept;
    g->layer->n_kept = n;
    return status;
}

/* Who stays takes in neurons of those that go. */
mdp_status mdp_plan_take_in(double alpha, mdp_plan_layer *layer) {
    if (layer->n_dropped == 0) return mdp_ok();
    MDP_TRY(MDP_ALLOC(&layer->mass, layer->n_expert, "the experts of a layer"));
    for (int32_t i = 0; i < layer->n_kept; i++) {
        mdp_plan_expert *expert = &layer->kept[i];
        MDP_TRY(MDP_ALLOC(&expert->weights, 1, "the weights of a plan"));
        expert->weights[0] = 1.0;
        expert->action = MDP_MERGE;
        expert->router = MDP_ROUTER_DOMINANT;
        expert->takes_in = true;
        expert->alpha = alpha;
    }
    return mdp_ok();
}

static mdp_status take_in(const mdp_plan_request *request, mdp_plan *plan) {
    for (int64_t i = 0; i < plan->n_layer; i++) {
        mdp_plan_layer *layer = &plan->layers[i];
        MDP_TRY(mdp_plan_take_in(request->merge->alpha, layer));
        for (mdp_expert_t e = 0; layer->mass && e < layer->n_expert; e++)
            layer->mass[e] = mdp_stats_sum(request->stats, i, MDP_GATE_SUM, e, request->weight);
    }
    return mdp_ok();
}

mdp_status mdp_plan_group(const mdp_plan_request *request, mdp_plan *plan) {
    if (!mdp_merge_has_groups(request->merge)) return take_in(request, plan);
    for (int64_t i = 0; i < plan->n_layer; i++) {
        grouper g = {.request = request, .index = i, .layer = &plan->layers[i]};
        mdp_status status = merge_layer(&g);
        mdp_grouping_clear(&g.groups);
        mdp_free(g.matrix);
        mdp_free(g.means);
        mdp_free(g.tokens);
        mdp_free(g.chosen);
        mdp_free(g.ranks);
        MDP_TRY(status);
    }
    return mdp_ok();
}

json_t *mdp_plan_describe_merge(const mdp_merge_request *merge) {
    if (!mdp_merge_has_groups(merge))
        return json_pack("{s:s, s:f}", "weights", mdp_merge_weights_names[merge->weights], "alpha", merge->alpha);
    json_t *root = json_pack(
        "{s:s, s:s, s:s, s:s, s:s}", "weights", mdp_merge_weights_names[merge->weights], "group",
        mdp_group_method_names[merge->group], "similarity", mdp_similarities[merge->similarity].name, "align",
        merge->align == MDP_ALIGN_WEIGHT ? "weight" : "none", "router", mdp_merge_router_names[merge->router]);
    if (merge->group == MDP_GROUP_HIERARCHICAL)
        mdp_json_put(&root, "linkage", json_string(mdp_linkage_names[merge->linkage]));
    if (merge->max_group > 0) mdp_json_put(&root, "max_group", json_integer(merge->max_group));
    if (merge->keep_whole > 0.0) mdp_json_put(&root, "keep_whole", json_real(merge->keep_whole));
    if (merge->frequency_penalty) mdp_json_put(&root, "frequency_penalty", json_true());
    return root;
}
