/* others.c - plans and scores for other software: see mdp/others.h.
 *
 * Layers are members by their number in the model, experts by their number in it. */
#include "mdp/others.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

const char *const mdp_other_names[] = {[MDP_FOR_KEEP_LIST] = "keep-list",       [MDP_FOR_SCORES] = "scores",
                                       [MDP_FOR_VLLM_ASCEND] = "vllm-ascend",   [MDP_FOR_PRECISION] = "precision",
                                       [MDP_FOR_PER_CATEGORY] = "per-category", NULL};
const char *const mdp_other_help[] = {
    [MDP_FOR_KEEP_LIST] = "the experts that stay in each layer",
    [MDP_FOR_SCORES] = "every score that the statistics give; needs no number to keep",
    [MDP_FOR_VLLM_ASCEND] = "JSON lines, the experts of each layer in order, for its expert_list_file",
    [MDP_FOR_PRECISION] = "places of experts by their score, for mixed precision; needs no number to keep",
    [MDP_FOR_PER_CATEGORY] = "a list for each category of text, and what they have in common"};

bool mdp_other_needs_no_number(mdp_other other) {
    return other == MDP_FOR_SCORES || other == MDP_FOR_PRECISION;
}

/* ---- parts ------------------------------------------------------------------------------------------------------ */

static json_t *start(const mdp_plan *plan, const char *format) {
    return json_pack("{s:s, s:s, s:{s:s, s:s}, s:O}", "format", format, "version", "1.0", "model", "model_type",
                     plan->model_type, "fingerprint", plan->fingerprint, "recipe", plan->recipe);
}

static void put_layer(json_t **layers, int64_t layer, json_t *value) {
    char key[24];
    snprintf(key, sizeof key, "%lld", (long long)layer);
    mdp_json_put(layers, key, value);
}

static json_t *list_reals(int32_t n, const double *values) {
    json_t *list = json_array();
    for (int32_t i = 0; i < n; i++) mdp_json_add(&list, mdp_json_number_or_null(values[i]));
    return list;
}

static json_t *list_kept(const mdp_plan_layer *layer) {
    json_t *list = json_array();
    for (int32_t j = 0; j < layer->n_kept; j++) mdp_json_add(&list, json_integer(layer->kept[j].from[0]));
    return list;
}

static mdp_status finish(json_t *root, char **out) {
    *out = NULL;
    if (!root) return MDP_ERROR(MDP_EXHAUSTED, "out of memory for a plan for others.");
    mdp_status status = mdp_json_print(root, out);
    json_decref(root);
    return status;
}

static mdp_status check_plain(const mdp_plan *plan, mdp_other other) {
    for (int64_t i = 0; i < plan->n_layer; i++) {
        const mdp_plan_layer *layer = &plan->layers[i];
        for (int32_t j = 0; j < layer->n_kept; j++) {
            if (layer->kept[j].action == MDP_KEEP) continue;
            return MDP_ERROR(MDP_USAGE, "--for %s says which experts stay and which go; layer %lld has one to %s.",
                             mdp_other_names[other], (long long)layer->layer, mdp_action_name(layer->kept[j].action));
        }
    }
    return mdp_ok();
}

/* ---- keep-list, vllm-ascend ------------------------------------------------------------------------------------- */

mdp_status mdp_keep_list_print(const mdp_plan *plan, char **out) {
    MDP_TRY(check_plain(plan, MDP_FOR_KEEP_LIST));
    json_t *root = start(plan, "moe-dist-prune keep-list"), *layers = json_object();
    for (int64_t i = 0; i < plan->n_layer; i++) put_layer(&layers, plan->layers[i].layer, list_kept(&plan->layers[i]));
    mdp_json_put(&root, "layers", layers);
    return finish(root, out);
}

/* An expert where all are put in order. */
typedef struct ranked {
    int32_t expert;
    bool kept;
    double score;
} ranked;

static int compare_ranked(const void *left, const void *right) {
    const ranked *a = left, *b = right;
    if (a->kept != b->kept) return a->kept ? -1 : 1;
    if (a->score != b->score) return a->score > b->score ? -1 : 1;
    return a->expert > b->expert ? -1 : a->expert < b->expert; /* of equals, the lower one goes first */
}

static mdp_status print_order(const mdp_plan_layer *layer, ranked *all, FILE *file) {
    for (int32_t e = 0; e < layer->n_expert; e++)
        all[e] = (ranked){.expert = e, .score = layer->scores ? layer->scores[e] : 0.0};
    for (int32_t j = 0; j < layer->n_kept; j++) all[layer->kept[j].from[0]].kept = true;
    qsort(all, (size_t)layer->n_expert, sizeof *all, compare_ranked);
    fprintf(file, "{\"%lld\":[", (long long)layer->layer);
    for (int32_t e = 0; e < layer->n_expert; e++) fprintf(file, "%s%d", e == 0 ? "" : ",", (int)all[e].expert);
    fprintf(file, "]}\n");
    return mdp_ok();
}

static mdp_status print_orders(const mdp_plan *plan, FILE *file) {
    for (int64_t i = 0; i < plan->n_layer; i++) {
        ranked *all = NULL;
        MDP_TRY(MDP_ALLOC(&all, plan->layers[i].n_expert, "the order of experts"));
        mdp_status status = print_order(&plan->layers[i], all, file);
        mdp_free(all);
        MDP_TRY(status);
    }
    return mdp_ok();
}

mdp_status mdp_expert_order_print(const mdp_plan *plan, char **out) {
    char *text = NULL;
    size_t n_byte = 0;
    *out = NULL;
    MDP_TRY(check_plain(plan, MDP_FOR_VLLM_ASCEND));
    if (!plan->uniform)
        return MDP_ERROR(MDP_USAGE, "--for vllm-ascend takes one ratio for all layers, which keep different numbers; "
                                    "use --budget uniform.");
    MDP_TRY(mdp_fault(MDP_EXHAUSTED, "open a text in memory"));
    FILE *file = open_memstream(&text, &n_byte);
    if (!file) return MDP_ERROR(MDP_EXHAUSTED, "out of memory for the order of experts.");
    mdp_status status = print_orders(plan, file);
    bool failed = ferror(file) != 0;
    failed = fclose(file) != 0 || failed;
    if (status.code == MDP_OK)
        status =
            failed ? MDP_ERROR(MDP_EXHAUSTED, "out of memory for the order of experts.") : mdp_copy_text(out, text);
    free(text);
    return status;
}

/* ---- precision -------------------------------------------------------------------------------------------------- */

static int compare_reals(const void *left, const void *right) {
    double a = *(const double *)left, b = *(const double *)right;
    return a < b ? -1 : a > b;
}

/* Of n ascending values: the share of the others that are less, of equal ones half. */
static double place_among(double value, const double *sorted, int64_t n) {
    int64_t less = 0, most = n, equal;
    for (int64_t high = n; less < high;) { /* the first that is not less */
        int64_t middle = less + (high - less) / 2;
        if (sorted[middle] < value)
            less = middle + 1;
        else
            high = middle;
    }
    for (int64_t low = less; low < most;) { /* the first that is more */
        int64_t middle = low + (most - low) / 2;
        if (sorted[middle] <= value)
            low = middle + 1;
        else
            most = middle;
    }
    equal = most - less - 1;
    return n > 1 ? ((double)less + 0.5 * (double)equal) / (double)(n - 1) : 0.5;
}

static json_t *list_places(const mdp_plan_layer *layer, const double *sorted, int64_t n) {
    json_t *list = json_array();
    for (int32_t e = 0; e < layer->n_expert; e++)
        mdp_json_add(&list, json_real(place_among(layer->scores[e], sorted, n)));
    return list;
}

/* all [n] scores of all layers; own has room for those of one. */
static json_t *print_places(const mdp_plan *plan, double *all, int64_t n, double *own) {
    json_t *root = start(plan, "moe-dist-prune precision"), *layers = json_object();
    qsort(all, (size_t)n, sizeof *all, compare_reals);
    for (int64_t i = 0; i < plan->n_layer; i++) {
        const mdp_plan_layer *layer = &plan->layers[i];
        memcpy(own, layer->scores, (size_t)layer->n_expert * sizeof *own);
        qsort(own, (size_t)layer->n_expert, sizeof *own, compare_reals);
        put_layer(&layers, layer->layer,
                  json_pack("{s:o, s:o, s:o}", "scores", list_reals(layer->n_expert, layer->scores), "place_in_layer",
                            list_places(layer, own, layer->n_expert), "place_in_model", list_places(layer, all, n)));
    }
    mdp_json_put(&root, "layers", layers);
    return root;
}

mdp_status mdp_precision_print(const mdp_plan *plan, char **out) {
    double *all = NULL, *own = NULL;
    int64_t n = 0;
    *out = NULL;
    for (int64_t i = 0; i < plan->n_layer; i++) n += plan->layers[i].n_expert;
    mdp_status status = MDP_ALLOC(&all, n, "scores of all experts");
    if (status.code == MDP_OK) status = MDP_ALLOC(&own, n, "scores of a layer");
    if (status.code == MDP_OK) {
        double *at = all;
        for (int64_t i = 0; i < plan->n_layer; at += plan->layers[i].n_expert, i++)
            memcpy(at, plan->layers[i].scores, (size_t)plan->layers[i].n_expert * sizeof *at);
        status = finish(print_places(plan, all, n, own), out);
    }
    mdp_free(all);
    mdp_free(own);
    return status;
}

/* ---- scores ----------------------------------------------------------------------------------------------------- */

/* By one criterion, where the statistics give it. */
static mdp_status add_score(const mdp_criterion *criterion, const mdp_score_input *input, double *score,
                            json_t **scores) {
    bool vectors = input->stats->layers[input->layer_index].vectors[MDP_OUTPUT_SUM] != NULL;
    if (!criterion->needs_stats || !criterion->score || (criterion->needs_vectors && !vectors)) return mdp_ok();
    MDP_TRY(criterion->score(input, score));
    mdp_json_put(scores, criterion->name, list_reals(input->n_expert, score));
    return mdp_ok();
}

static mdp_status add_scores(const mdp_stats *stats, const double *weight, int64_t i, json_t **scores) {
    const mdp_layer_stats *layer = &stats->layers[i];
    mdp_score_input input = {
        .stats = stats, .weight = weight, .layer_index = i, .layer = layer->layer, .n_expert = layer->n_expert};
    double *score = NULL;
    MDP_TRY(MDP_ALLOC(&score, layer->n_expert, "the scores of a layer"));
    mdp_status status = mdp_ok();
    for (int c = 0; c < mdp_n_criterion && status.code == MDP_OK; c++)
        status = add_score(&mdp_criteria[c], &input, score, scores);
    mdp_free(score);
    return status;
}

static json_t *list_counts(const mdp_stats *stats, const double *weight, int64_t i) {
    json_t *list = json_array();
    for (mdp_expert_t e = 0; e < stats->layers[i].n_expert; e++)
        mdp_json_add(&list, json_real(mdp_stats_count(stats, i, e, weight)));
    return list;
}

mdp_status mdp_scores_print(const mdp_plan *plan, const mdp_stats *stats, const double *weight, char **out) {
    json_t *root = start(plan, "moe-dist-prune scores"), *layers = json_object();
    const char *method = json_string_value(json_object_get(plan->recipe, "method"));
    mdp_status status = mdp_ok();
    *out = NULL;
    for (int64_t i = 0; i < plan->n_layer && status.code == MDP_OK; i++) {
        const mdp_plan_layer *layer = &plan->layers[i];
        json_t *scores = json_object(), *object = json_object();
        if (stats) status = add_scores(stats, weight, i, &scores);
        mdp_json_put(&scores, method, list_reals(layer->n_expert, layer->scores)); /* with its own options */
        if (stats) mdp_json_put(&object, "counts", list_counts(stats, weight, i));
        mdp_json_put(&object, "scores", scores);
        put_layer(&layers, layer->layer, object);
    }
    mdp_json_put(&root, "layers", layers);
    if (status.code == MDP_OK) return finish(root, out);
    json_decref(root);
    return status;
}

/* ---- per-category ----------------------------------------------------------------------------------------------- */

/* Experts of a layer that so many plans keep; own >= 0: and that one of them. */
static json_t *list_common(int n, mdp_plan *const *plans, int64_t i, int32_t *times, int want, int own) {
    json_t *list = json_array();
    memset(times, 0, (size_t)plans[0]->layers[i].n_expert * sizeof *times);
    for (int p = 0; p < n; p++)
        for (int32_t j = 0; j < plans[p]->layers[i].n_kept; j++) times[plans[p]->layers[i].kept[j].from[0]]++;
    const mdp_plan_layer *layer = &plans[own < 0 ? 0 : own]->layers[i]; /* who is in all is in the first */
    for (int32_t j = 0; j < layer->n_kept; j++)
        if (times[layer->kept[j].from[0]] == want) mdp_json_add(&list, json_integer(layer->kept[j].from[0]));
    return list;
}

static json_t *print_category(int n, mdp_plan *const *plans, int p, int32_t *times) {
    json_t *keep = json_object(), *alone = json_object();
    for (int64_t i = 0; i < plans[p]->n_layer; i++) {
        put_layer(&keep, plans[p]->layers[i].layer, list_kept(&plans[p]->layers[i]));
        put_layer(&alone, plans[p]->layers[i].layer, list_common(n, plans, i, times, 1, p));
    }
    return json_pack("{s:o, s:o}", "keep", keep, "keep_alone", alone);
}

mdp_status mdp_category_lists_print(int n, char *const *names, mdp_plan *const *plans, char **out) {
    int32_t *times = NULL, most = 0;
    *out = NULL;
    for (int p = 0; p < n; p++) MDP_TRY(check_plain(plans[p], MDP_FOR_PER_CATEGORY));
    for (int64_t i = 0; i < plans[0]->n_layer; i++)
        most = plans[0]->layers[i].n_expert > most ? plans[0]->layers[i].n_expert : most;
    MDP_TRY(MDP_ALLOC(&times, most, "experts of categories"));
    json_t *categories = json_object(), *all = json_object();
    for (int p = 0; p < n; p++) mdp_json_put(&categories, names[p], print_category(n, plans, p, times));
    for (int64_t i = 0; i < plans[0]->n_layer; i++)
        put_layer(&all, plans[0]->layers[i].layer, list_common(n, plans, i, times, n, -1));
    mdp_free(times);
    const json_t *recipe = plans[0]->recipe; /* all are made alike, but for the category */
    json_t *root =
        json_pack("{s:s, s:s, s:{s:s, s:s}, s:O?, s:O?, s:O?, s:o, s:o}", "format", "moe-dist-prune per-category",
                  "version", "1.0", "model", "model_type", plans[0]->model_type, "fingerprint", plans[0]->fingerprint,
                  "method", json_object_get(recipe, "method"), "budget", json_object_get(recipe, "budget"), "keep",
                  json_object_get(recipe, "keep"), "categories", categories, "keep_in_all", all);
    return finish(root, out);
}
