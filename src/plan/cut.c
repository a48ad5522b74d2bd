/* cut.c - which neurons of experts stay: the best of each expert by a score, equally many of all.
 *
 * A plan has them as hex digits, four neurons each. Scores are sums over the tokens that chose the expert; since
 * neurons of one expert are compared among themselves, sums rank as means do. Scores are rounded to 30 bits; of equal
 * ones the lower neuron stays. */
#include "mdp/plan.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

const char *const mdp_neuron_score_names[] = {[MDP_NEURON_ENP] = "enp", [MDP_NEURON_ACT] = "act", NULL};

unsigned mdp_neuron_score_vectors(mdp_neuron_score score) {
    if (score == MDP_NEURON_ENP) return 1u << MDP_NEURON_SHARE_SUM;
    return 1u << MDP_NEURON_SQUARE_SUM | 1u << MDP_NEURON_COLUMN;
}

mdp_status mdp_cut_width(const mdp_cut_request *request, int64_t n, int64_t *width) {
    int64_t wanted = request->keep > 0 ? request->keep : (int64_t)floor(request->ratio * (double)n + 0.5);
    *width = wanted / request->multiple_of * request->multiple_of;
    if (wanted > n)
        return MDP_ERROR(MDP_USAGE, "--keep-neurons %lld is more than the %lld neurons of an expert.",
                         (long long)wanted, (long long)n);
    if (*width > 0) return mdp_ok();
    return MDP_ERROR(MDP_USAGE,
                     "--keep-neurons leaves %lld of %lld neurons, rounded down to a multiple of %lld "
                     "(--width-multiple-of) none; keep more, or take a smaller multiple.",
                     (long long)wanted, (long long)n, (long long)request->multiple_of);
}

/* ---- scores ----------------------------------------------------------------------------------------------------- */

void mdp_neuron_scores(const mdp_layer_stats *layer, mdp_neuron_score score, mdp_expert_t expert, double *out) {
    int64_t first = expert * layer->d_ff;
    for (int64_t j = 0; j < layer->d_ff; j++) {
        if (score == MDP_NEURON_ENP)
            out[j] = mdp_short_value(&layer->vectors[MDP_NEURON_SHARE_SUM][first + j]);
        else
            out[j] = mdp_short_value(&layer->vectors[MDP_NEURON_SQUARE_SUM][first + j]) *
                     mdp_short_value(&layer->vectors[MDP_NEURON_COLUMN][first + j]);
    }
}

typedef struct ranked {
    double score;
    int64_t neuron;
} ranked;

/* The best first; of equal ones the lower neuron. */
static int compare(const void *left, const void *right) {
    const ranked *a = left, *b = right;
    if (a->score != b->score) return a->score > b->score ? -1 : 1;
    return a->neuron < b->neuron ? -1 : 1;
}

/* all, scores [n] and marks [n] are scratch. */
static mdp_status cut_expert(const mdp_layer_stats *layer, mdp_neuron_score score, int64_t width, ranked *all,
                             double *scores, unsigned char *marks, mdp_plan_expert *expert) {
    int64_t n = layer->d_ff;
    mdp_neuron_scores(layer, score, expert->from[0], scores);
    for (int64_t j = 0; j < n; j++) all[j] = (ranked){.score = mdp_round30(scores[j]), .neuron = j};
    qsort(all, (size_t)n, sizeof *all, compare);
    memset(marks, 0, (size_t)n);
    for (int64_t i = 0; i < width; i++) marks[all[i].neuron] = 1;
    return mdp_plan_cut_expert(marks, n, expert);
}

static mdp_status cut_layer(const mdp_layer_stats *layer, mdp_neuron_score score, int64_t width,
                            mdp_plan_layer *planned) {
    ranked *all = NULL;
    double *scores = NULL;
    unsigned char *marks = NULL;
    mdp_status status = MDP_ALLOC(&all, layer->d_ff, "neurons of an expert");
    if (status.code == MDP_OK) status = MDP_ALLOC(&scores, layer->d_ff, "neurons of an expert");
    if (status.code == MDP_OK) status = MDP_ALLOC(&marks, layer->d_ff, "neurons of an expert");
    for (int32_t i = 0; i < planned->n_kept && status.code == MDP_OK; i++)
        status = cut_expert(layer, score, width, all, scores, marks, &planned->kept[i]);
    mdp_free(all);
    mdp_free(scores);
    mdp_free(marks);
    return status;
}

static mdp_status check_stats(const mdp_stats *stats, mdp_neuron_score score) {
    unsigned wanted = mdp_neuron_score_vectors(score);
    for (int64_t l = 0; l < stats->n_layer; l++) {
        const mdp_layer_stats *layer = &stats->layers[l];
        bool there = layer->d_ff > 0;
        for (int id = 0; id < MDP_N_VECTOR; id++) there = there && (!(wanted >> id & 1) || layer->vectors[id]);
        if (!there)
            return MDP_ERROR(MDP_BAD_INPUT,
                             "layer %lld: the statistics hold no sums for neurons, or not all that were joined do; "
                             "observe with --neuron-scores.",
                             (long long)layer->layer);
        if (layer->d_ff != stats->layers[0].d_ff)
            return MDP_ERROR(MDP_USAGE,
                             "experts of layer %lld have %lld neurons, those of layer %lld %lld; config.json has one "
                             "number for all layers, so such a model is not cut.",
                             (long long)stats->layers[0].layer, (long long)stats->layers[0].d_ff,
                             (long long)layer->layer, (long long)layer->d_ff);
    }
    return mdp_ok();
}

mdp_status mdp_plan_cut(const mdp_cut_request *request, const mdp_stats *stats, mdp_plan *plan) {
    int64_t width;
    MDP_TRY(check_stats(stats, request->score));
    MDP_TRY(mdp_cut_width(request, stats->layers[0].d_ff, &width));
    if (width == stats->layers[0].d_ff) return mdp_ok(); /* they stay as they are */
    for (int64_t l = 0; l < plan->n_layer; l++)
        MDP_TRY(cut_layer(&stats->layers[l], request->score, width, &plan->layers[l]));
    return mdp_ok();
}

json_t *mdp_plan_describe_cut(const mdp_cut_request *cut, const mdp_stats *stats, const mdp_plan *plan) {
    int64_t width = mdp_plan_width(plan);
    if (width == 0) width = stats->layers[0].d_ff; /* all stay */
    return json_pack("{s:s, s:I, s:I}", "score", mdp_neuron_score_names[cut->score], "keep", (json_int_t)width,
                     "multiple_of", (json_int_t)cut->multiple_of);
}

/* ---- digits ----------------------------------------------------------------------------------------------------- */

mdp_status mdp_plan_cut_expert(const unsigned char *marks, int64_t n, mdp_plan_expert *expert) {
    char *text = NULL;
    MDP_TRY(MDP_ALLOC(&text, (n + 3) / 4 + 1, "the neurons of an expert"));
    for (int64_t i = 0; i < (n + 3) / 4; i++) {
        int digit = 0;
        for (int64_t j = 4 * i; j < n && j < 4 * i + 4; j++) digit |= (marks[j] != 0) << (j - 4 * i);
        text[i] = "0123456789abcdef"[digit];
    }
    mdp_free(expert->neurons);
    expert->neurons = text;
    expert->action = MDP_NEURONS;
    return mdp_ok();
}

int64_t mdp_plan_neurons(const mdp_plan_expert *expert, int64_t *order) {
    int64_t n = 0;
    for (int64_t i = 0; expert->neurons && expert->neurons[i] != '\0'; i++) {
        char c = expert->neurons[i];
        int digit = c >= 'a' ? c - 'a' + 10 : c - '0';
        for (int j = 0; j < 4; j++) {
            if (!(digit >> j & 1)) continue;
            if (order) order[n] = 4 * i + j;
            n++;
        }
    }
    return n;
}

int64_t mdp_plan_width(const mdp_plan *plan) {
    for (int64_t i = 0; i < plan->n_layer; i++)
        for (int32_t j = 0; j < plan->layers[i].n_kept; j++)
            if (plan->layers[i].kept[j].action == MDP_NEURONS) return mdp_plan_neurons(&plan->layers[i].kept[j], NULL);
    return 0;
}

/* ---- against a model -------------------------------------------------------------------------------------------- */

/* Numbers the last neuron that stays. */
static int64_t last_neuron(const mdp_plan_expert *expert) {
    int64_t last = -1;
    for (int64_t i = 0; expert->neurons[i] != '\0'; i++) {
        char c = expert->neurons[i];
        int digit = c >= 'a' ? c - 'a' + 10 : c - '0';
        for (int j = 0; j < 4; j++)
            if (digit >> j & 1) last = 4 * i + j;
    }
    return last;
}

static mdp_status check_expert(const mdp_plan *plan, const mdp_plan_layer *layer, const mdp_plan_expert *expert,
                               const mdp_moe *moe, int64_t width) {
    const char *name = plan->path ? plan->path : "the plan";
    if (expert->action != MDP_NEURONS)
        return MDP_ERROR(MDP_BAD_INPUT,
                         "%s: layer %lld: expert %d is not cut, and others are; config.json has one width for all "
                         "experts, so all are cut to the same number of neurons, or none.",
                         name, (long long)layer->layer, (int)expert->from[0]);
    int64_t n = mdp_plan_neurons(expert, NULL), f = moe->experts[expert->from[0]].gate.n_row;
    if ((int64_t)strlen(expert->neurons) != (f + 3) / 4 || last_neuron(expert) >= f)
        return MDP_ERROR(MDP_BAD_INPUT,
                         "%s: layer %lld: \"neurons\" of expert %d has %zu digits; the model's experts have %lld "
                         "neurons, which are %lld digits.",
                         name, (long long)layer->layer, (int)expert->from[0], strlen(expert->neurons), (long long)f,
                         (long long)((f + 3) / 4));
    if (n == width) return mdp_ok();
    return MDP_ERROR(MDP_BAD_INPUT,
                     "%s: layer %lld: expert %d keeps %lld neurons, others %lld; config.json has one width for all "
                     "experts, so all are cut to the same number of neurons.",
                     name, (long long)layer->layer, (int)expert->from[0], (long long)n, (long long)width);
}

mdp_status mdp_plan_check_cut(const mdp_plan *plan, const mdp_model *model) {
    int64_t width = mdp_plan_width(plan);
    for (int64_t i = 0; width > 0 && i < plan->n_layer; i++)
        for (int32_t j = 0; j < plan->layers[i].n_kept; j++)
            MDP_TRY(check_expert(plan, &plan->layers[i], &plan->layers[i].kept[j],
                                 &model->layers[plan->layers[i].layer].moe, width));
    return mdp_ok();
}
