/* similarity.c - the table of similarities, what a request of them is, and their matrices from exact sums.
 *
 * In: vectors of a layer (vectors.c), of one file or of several that were joined. Out: a matrix in f64 for each name,
 * the same wherever the sums are the same. Nothing is summed here over tokens or weights. */
#include "observe/stats_file.h"

#include <math.h>
#include <string.h>

/* How a matrix comes from its vector. */
typedef enum form {
    DISTANCE_OF_MEANS,    /* euclidean, of what the vector is per token */
    COSINE_OF_MEANS,      /* and its cosine */
    DISTANCE_OF_PRODUCTS, /* from inner products of what is compared */
    COSINE_OF_PRODUCTS,
    HALF_COSINE_OF_PRODUCTS, /* (1 + c) / 2 */
    MINUS_MEAN_SQUARE,       /* minus the squared distance, per entry of a matrix [d_model, d_model] */
    MEAN_OVER_PROBE,         /* the sum per token */
    SHARE_OF_UNION,          /* both / (one + other - both) */
    OUTPUTS_AND_LOGITS       /* of two vectors: see compare_both */
} form;

static const form forms[MDP_N_SIMILARITY] = {
    [MDP_OUTPUT_MEAN_EUCLIDEAN] = DISTANCE_OF_MEANS,
    [MDP_OUTPUT_MEAN_COSINE] = COSINE_OF_MEANS,
    [MDP_OUTPUT_ROUTED_MEAN_EUCLIDEAN] = DISTANCE_OF_MEANS,
    [MDP_OUTPUT_ROUTED_MEAN_COSINE] = COSINE_OF_MEANS,
    [MDP_OUTPUT_COSINE] = MEAN_OVER_PROBE,
    [MDP_CKA_LINEAR] = COSINE_OF_PRODUCTS,
    [MDP_CKA_RBF] = COSINE_OF_PRODUCTS,
    [MDP_WEIGHT_EUCLIDEAN] = DISTANCE_OF_PRODUCTS,
    [MDP_WEIGHT_COSINE] = COSINE_OF_PRODUCTS,
    [MDP_WEIGHT_ALIGNED_EUCLIDEAN] = DISTANCE_OF_PRODUCTS,
    [MDP_WEIGHT_ALIGNED_COSINE] = COSINE_OF_PRODUCTS,
    [MDP_WEIGHT_SURROGATE] = MINUS_MEAN_SQUARE,
    [MDP_ROUTER_LOGIT] = HALF_COSINE_OF_PRODUCTS,
    [MDP_ROUTER_ROW] = COSINE_OF_PRODUCTS,
    [MDP_CO_ACTIVATION] = SHARE_OF_UNION,
    [MDP_GATED_OUTPUT_LOGIT] = OUTPUTS_AND_LOGITS,
};

const mdp_similarity mdp_similarities[MDP_N_SIMILARITY] = {
    [MDP_OUTPUT_MEAN_EUCLIDEAN] = {.name = "output-mean-euclidean",
                                   .help = "distance of the mean outputs over the probe",
                                   .source = "HC-SMoE, arXiv 2410.08589",
                                   .is_distance = true,
                                   .needs = MDP_NEEDS_PROBE,
                                   .vector = MDP_PROBE_OUTPUT_SUM},
    [MDP_OUTPUT_MEAN_COSINE] = {.name = "output-mean-cosine",
                                .help = "cosine of the mean outputs over the probe",
                                .source = "HC-SMoE, arXiv 2410.08589",
                                .needs = MDP_NEEDS_PROBE,
                                .vector = MDP_PROBE_OUTPUT_SUM},
    [MDP_OUTPUT_ROUTED_MEAN_EUCLIDEAN] = {.name = "output-routed-mean-euclidean",
                                          .help = "distance of the mean outputs over each expert's own tokens",
                                          .source = "REAP, arXiv 2510.13999",
                                          .is_distance = true,
                                          .needs = MDP_NEEDS_ROUTED_SUMS,
                                          .vector = MDP_OUTPUT_SUM},
    [MDP_OUTPUT_ROUTED_MEAN_COSINE] = {.name = "output-routed-mean-cosine",
                                       .help = "cosine of the mean outputs over each expert's own tokens",
                                       .source = "REAP, arXiv 2510.13999",
                                       .needs = MDP_NEEDS_ROUTED_SUMS,
                                       .vector = MDP_OUTPUT_SUM},
    [MDP_OUTPUT_COSINE] = {.name = "output-cosine",
                           .help = "mean over the probe of the cosine of the outputs for a token",
                           .source = "Sub-MoE",
                           .needs = MDP_NEEDS_PROBE,
                           .vector = MDP_PROBE_COSINE_SUM},
    [MDP_CKA_LINEAR] = {.name = "cka-linear",
                        .help = "centred kernel alignment of the outputs over the probe, linear kernel",
                        .source = "arXiv 2407.09590",
                        .needs = MDP_NEEDS_PROBE,
                        .vector = MDP_CKA_LINEAR_PRODUCT},
    [MDP_CKA_RBF] = {.name = "cka-rbf",
                     .help = "the same, gaussian kernel as wide as the median distance",
                     .source = "arXiv 2407.09590",
                     .needs = MDP_NEEDS_PROBE,
                     .vector = MDP_CKA_RBF_PRODUCT},
    [MDP_WEIGHT_EUCLIDEAN] = {.name = "weight-euclidean",
                              .help = "distance of all weights, neurons as they stand",
                              .source = "arXiv 2407.09590",
                              .is_distance = true,
                              .needs = MDP_NEEDS_WEIGHTS,
                              .vector = MDP_WEIGHT_PRODUCT},
    [MDP_WEIGHT_COSINE] = {.name = "weight-cosine",
                           .help = "cosine of all weights, neurons as they stand",
                           .source = "arXiv 2407.09590",
                           .needs = MDP_NEEDS_WEIGHTS,
                           .vector = MDP_WEIGHT_PRODUCT},
    [MDP_WEIGHT_ALIGNED_EUCLIDEAN] = {.name = "weight-aligned-euclidean",
                                      .help = "distance of all weights, neurons in the order that fits best",
                                      .source = "arXiv 2407.09590",
                                      .is_distance = true,
                                      .needs = MDP_NEEDS_WEIGHTS,
                                      .vector = MDP_ALIGNED_PRODUCT},
    [MDP_WEIGHT_ALIGNED_COSINE] = {.name = "weight-aligned-cosine",
                                   .help = "cosine of all weights, neurons in the order that fits best",
                                   .source = "arXiv 2407.09590",
                                   .needs = MDP_NEEDS_WEIGHTS,
                                   .vector = MDP_ALIGNED_PRODUCT},
    [MDP_WEIGHT_SURROGATE] = {.name = "weight-surrogate",
                              .help = "minus the mean squared difference of what experts do without activation",
                              .source = "arXiv 2407.09590",
                              .is_negative = true,
                              .needs = MDP_NEEDS_WEIGHTS,
                              .vector = MDP_SURROGATE_PRODUCT},
    [MDP_ROUTER_LOGIT] = {.name = "router-logit",
                          .help = "(1 + c) / 2, c the cosine of the router's logits over all tokens",
                          .source = "M-SMoE, arXiv 2310.01334",
                          .needs = MDP_NEEDS_LOGITS,
                          .vector = MDP_LOGIT_PRODUCT},
    [MDP_ROUTER_ROW] = {.name = "router-row",
                        .help = "cosine of the router's rows",
                        .source = "STUN, arXiv 2409.06211",
                        .needs = MDP_NEEDS_WEIGHTS,
                        .vector = MDP_ROUTER_PRODUCT},
    [MDP_CO_ACTIVATION] = {.name = "co-activation",
                           .help = "tokens that choose both, as a part of those that choose either",
                           .source = "co-activation",
                           .needs = MDP_NEEDS_LOGITS,
                           .vector = MDP_PAIR_COUNT},
    [MDP_GATED_OUTPUT_LOGIT] = {.name = "gated-output-logit",
                                .help = "mean of (1 + c) / 2, c the cosine of the mean weighted outputs over each "
                                        "expert's own tokens, and 1 - d / (the largest d), d the distance of the "
                                        "router's logits over all tokens, each expert's of length 1",
                                .source = "REAM",
                                .needs = MDP_NEEDS_LOGITS,
                                .vector = MDP_GATED_OUTPUT_SUM,
                                .other = MDP_LOGIT_PRODUCT},
};

/* ---- requests ------------------------------------------------------------------------------------------------ */

mdp_status mdp_similarity_print(unsigned wanted, char **text) {
    MDP_TRY(mdp_copy_text(text, wanted == 0 ? "none" : ""));
    for (int id = 0; id < MDP_N_SIMILARITY; id++) {
        if (!(wanted >> id & 1)) continue;
        char *before = *text;
        mdp_status status = mdp_format(text, "%s%s%s", before, *before ? "," : "", mdp_similarities[id].name);
        mdp_free(before);
        MDP_TRY(status);
    }
    return mdp_ok();
}

static mdp_status unknown(const char *name, size_t n_byte) {
    char *all = NULL, shown[128];
    (void)snprintf(shown, sizeof shown, "%.*s", (int)n_byte, name);
    MDP_TRY(mdp_similarity_print((1u << MDP_N_SIMILARITY) - 1, &all));
    mdp_status status =
        MDP_ERROR(MDP_USAGE, "--similarity: '%s' is none of the similarities that there are: none,%s.", shown, all);
    mdp_free(all);
    return status;
}

mdp_status mdp_similarity_parse(const char *text, unsigned *wanted) {
    *wanted = 0;
    if (strcmp(text, "none") == 0) return mdp_ok();
    for (const char *at = text;; at++) {
        size_t n = strcspn(at, ",");
        int id = 0;
        while (id < MDP_N_SIMILARITY &&
               (strlen(mdp_similarities[id].name) != n || strncmp(mdp_similarities[id].name, at, n) != 0))
            id++;
        if (id == MDP_N_SIMILARITY) return unknown(at, n);
        *wanted |= 1u << id;
        at += n;
        if (*at == '\0') return mdp_ok();
    }
}

unsigned mdp_similarity_sources(mdp_similarity_id id) {
    const mdp_similarity *row = &mdp_similarities[id];
    return 1u << row->vector | (forms[id] == OUTPUTS_AND_LOGITS ? 1u << row->other : 0u);
}

unsigned mdp_similarity_vectors(const mdp_similarity_request *request) {
    unsigned vectors = 1u << MDP_OUTPUT_SUM | mdp_channel_norms_vectors(request->norms);
    for (int id = 0; id < MDP_N_SIMILARITY; id++)
        if (request->wanted >> id & 1) vectors |= mdp_similarity_sources((mdp_similarity_id)id);
    if (vectors >> MDP_ALIGNED_PRODUCT & 1) vectors |= 1u << MDP_WEIGHT_PRODUCT; /* says which pairs are matched */
    if (request->neurons) vectors |= 7u << MDP_NEURON_SHARE_SUM;
    return vectors;
}

mdp_similarity_request mdp_similarity_request_of(unsigned wanted, int64_t probe_tokens, uint64_t seed,
                                                 mdp_channel_norms norms) {
    mdp_similarity_request request = {.wanted = wanted, .norms = norms};
    for (int id = 0; id < MDP_N_SIMILARITY; id++) {
        if (!(wanted >> id & 1) || mdp_similarities[id].needs != MDP_NEEDS_PROBE) continue;
        request.probe_tokens = probe_tokens;
        request.seed = seed;
    }
    return request;
}

/* ---- matrices ------------------------------------------------------------------------------------------------ */

static bool is_of_means(mdp_similarity_id id) {
    return forms[id] == DISTANCE_OF_MEANS || forms[id] == COSINE_OF_MEANS;
}

/* That the vector is there. */
static mdp_status check_vector(const mdp_stats *stats, const mdp_layer_stats *layer, mdp_similarity_id id) {
    const mdp_similarity *row = &mdp_similarities[id];
    mdp_vector_id missing = layer->vectors[row->vector] && forms[id] == OUTPUTS_AND_LOGITS ? row->other : row->vector;
    const mdp_vector *vector = &mdp_vectors[missing];
    bool probed = row->needs != MDP_NEEDS_PROBE || stats->n_probe > 0.0;
    if (layer->vectors[missing] && probed) return mdp_ok();
    if (stats->n_part > 1 && vector->join == MDP_JOIN_NONE)
        return MDP_ERROR(MDP_BAD_INPUT,
                         "%s is of one sample of tokens, so that of several statistics cannot be joined; observe the "
                         "texts together, in one file of tokens.",
                         row->name);
    return MDP_ERROR(MDP_BAD_INPUT,
                     "layer %lld: the statistics do not hold %s, which %s is made from; observe with --similarity %s.",
                     (long long)layer->layer, vector->name, row->name, row->name);
}

/* Tokens that a sum of outputs of an expert is over. */
static double tokens_of(const mdp_stats *stats, int64_t layer_index, mdp_similarity_id id, mdp_expert_t expert) {
    if (mdp_similarities[id].needs == MDP_NEEDS_PROBE) return stats->n_probe;
    return mdp_stats_count(stats, layer_index, expert, NULL);
}

mdp_status mdp_stats_mean_outputs(const mdp_stats *stats, int64_t layer_index, mdp_similarity_id id, double *out) {
    const mdp_layer_stats *layer = &stats->layers[layer_index];
    int64_t d = stats->d_model;
    if (!is_of_means(id))
        return MDP_ERROR(MDP_INTERNAL, "%s does not compare mean outputs.", mdp_similarities[id].name);
    MDP_TRY(check_vector(stats, layer, id));
    const mdp_short_sum *sums = layer->vectors[mdp_similarities[id].vector];
    for (mdp_expert_t e = 0; e < layer->n_expert; e++) {
        double n = tokens_of(stats, layer_index, id, e);
        for (int64_t j = 0; j < d; j++) out[e * d + j] = n > 0.0 ? mdp_short_value(&sums[e * d + j]) / n : 0.0;
    }
    return mdp_ok();
}

/* Inner products of rows a [n, width], in row order: one order of sums. */
static double product_of(const double *a, const double *b, int64_t width) {
    double sum = 0.0;
    for (int64_t j = 0; j < width; j++) sum += a[j] * b[j];
    return sum;
}

static double distance_of(const double *a, const double *b, int64_t width) {
    double sum = 0.0;
    for (int64_t j = 0; j < width; j++) sum += (a[j] - b[j]) * (a[j] - b[j]);
    return sqrt(sum);
}

/* From the products of i with i, j with j and i with j; 0 where one of them is 0. */
static double cosine_of(double ii, double jj, double ij) {
    double length = sqrt(ii) * sqrt(jj);
    return length > 0.0 ? fmin(fmax(ij / length, -1.0), 1.0) : 0.0;
}

static mdp_status compare_means(const mdp_stats *stats, int64_t layer_index, mdp_similarity_id id, double *out) {
    int64_t n = stats->layers[layer_index].n_expert, d = stats->d_model;
    double *mean = NULL;
    MDP_TRY(MDP_ALLOC(&mean, n * d, "mean outputs of experts"));
    mdp_status status = mdp_stats_mean_outputs(stats, layer_index, id, mean);
    for (int64_t i = 0; i < n && status.code == MDP_OK; i++) {
        double *a = mean + i * d, ii = product_of(a, a, d);
        for (int64_t j = 0; j <= i; j++) {
            double *b = mean + j * d;
            out[i * n + j] = forms[id] == DISTANCE_OF_MEANS ? distance_of(a, b, d)
                                                            : cosine_of(ii, product_of(b, b, d), product_of(a, b, d));
        }
    }
    mdp_free(mean);
    return status;
}

/* One entry from the sums of the pair and of each of the two with itself. */
static double entry_of(form how, double ii, double jj, double ij, const mdp_stats *stats) {
    double d = (double)stats->d_model;
    switch (how) {
    case DISTANCE_OF_PRODUCTS:
        return sqrt(fmax(ii + jj - 2.0 * ij, 0.0));
    case COSINE_OF_PRODUCTS:
        return cosine_of(ii, jj, ij);
    case HALF_COSINE_OF_PRODUCTS:
        return 0.5 * (1.0 + cosine_of(ii, jj, ij));
    case MINUS_MEAN_SQUARE:
        return 0.0 - fmax(ii + jj - 2.0 * ij, 0.0) / (d * d);
    case SHARE_OF_UNION:
        return ii + jj - ij > 0.0 ? ij / (ii + jj - ij) : 0.0;
    default:
        return ij / stats->n_probe;
    }
}

static void compare_products(const mdp_stats *stats, int64_t layer_index, mdp_similarity_id id, double *out) {
    const mdp_layer_stats *layer = &stats->layers[layer_index];
    const mdp_short_sum *sums = layer->vectors[mdp_similarities[id].vector];
    int64_t n = layer->n_expert;
    for (int64_t i = 0; i < n; i++) {
        double ii = mdp_short_value(&sums[i * n + i]);
        for (int64_t j = 0; j <= i; j++)
            out[i * n + j] =
                entry_of(forms[id], ii, mdp_short_value(&sums[j * n + j]), mdp_short_value(&sums[i * n + j]), stats);
    }
}

/* (1 + cosine of the sums of weighted outputs) / 2 and 1 - d / (the largest d) of unit columns of logits: their mean.
 */
static mdp_status compare_both(const mdp_stats *stats, int64_t layer_index, mdp_similarity_id id, double *out) {
    const mdp_layer_stats *layer = &stats->layers[layer_index];
    const mdp_short_sum *outputs = layer->vectors[mdp_similarities[id].vector],
                        *logits = layer->vectors[mdp_similarities[id].other];
    int64_t n = layer->n_expert, d = stats->d_model;
    double *sum = NULL, *far = NULL, most = 0.0;
    mdp_status status = MDP_ALLOC(&sum, n * d, "sums of outputs");
    if (status.code == MDP_OK) status = MDP_ALLOC(&far, n * n, "distances of logits");
    for (int64_t i = 0; i < n * d && status.code == MDP_OK; i++) sum[i] = mdp_short_value(&outputs[i]);
    for (int64_t i = 0; i < n && status.code == MDP_OK; i++) {
        for (int64_t j = 0; j < i; j++) {
            double c = cosine_of(mdp_short_value(&logits[i * n + i]), mdp_short_value(&logits[j * n + j]),
                                 mdp_short_value(&logits[i * n + j]));
            far[i * n + j] = sqrt(fmax(2.0 - 2.0 * c, 0.0));
            most = fmax(most, far[i * n + j]);
        }
    }
    for (int64_t i = 0; i < n && status.code == MDP_OK; i++) {
        const double *a = sum + i * d;
        for (int64_t j = 0; j <= i; j++) {
            const double *b = sum + j * d;
            double c = cosine_of(product_of(a, a, d), product_of(b, b, d), product_of(a, b, d));
            out[i * n + j] = 0.5 * (0.5 * (1.0 + c) + 1.0 - (most > 0.0 ? far[i * n + j] / most : 0.0));
        }
    }
    mdp_free(sum);
    mdp_free(far);
    return status;
}

mdp_status mdp_layer_make_similarity(mdp_stats *stats, int64_t layer_index, mdp_similarity_id id) {
    mdp_layer_stats *layer = &stats->layers[layer_index];
    int64_t n = layer->n_expert;
    if (layer->similarity[id]) return mdp_ok();
    MDP_TRY(check_vector(stats, layer, id));
    MDP_TRY(MDP_ALLOC(&layer->similarity[id], n * n, "similarities of experts"));
    double *out = layer->similarity[id];
    if (is_of_means(id))
        MDP_TRY(compare_means(stats, layer_index, id, out));
    else if (forms[id] == OUTPUTS_AND_LOGITS)
        MDP_TRY(compare_both(stats, layer_index, id, out));
    else
        compare_products(stats, layer_index, id, out);
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < i; j++) out[j * n + i] = out[i * n + j];
    return mdp_ok();
}

mdp_status mdp_stats_make_similarity(mdp_stats *stats, mdp_similarity_id id) {
    for (int64_t l = 0; l < stats->n_layer; l++) MDP_TRY(mdp_layer_make_similarity(stats, l, id));
    return mdp_ok();
}

const double *mdp_stats_similarity(const mdp_stats *stats, int64_t layer_index, mdp_similarity_id id) {
    return stats->layers[layer_index].similarity[id];
}
