/* stats.c - fuzz target: the bytes change a stats.h5 that is right; what is read must do for a plan or be refused. */
#include "fuzz.h"

#include "mdp/plan.h"

#include <math.h>
#include <string.h>

enum { N_CATEGORY = 2, N_EXPERT = 3, D_MODEL = 2 };

static void add_layer(fuzz_file *file, int layer) {
    static const int64_t n_expert = N_EXPERT, top_k = 2, n_limb = MDP_LIMBS;
    static const int64_t counts[N_CATEGORY * N_EXPERT] = {5, 0, 3, 2, 2, 8};
    int64_t limbs[N_CATEGORY * N_EXPERT * MDP_LIMBS] = {0};
    static const double maxima[N_CATEGORY * N_EXPERT] = {1.5, 0, 3, 2, 0.25, 8};
    const int64_t shape[] = {N_CATEGORY, N_EXPERT, n_limb}, vectors[] = {N_EXPERT, D_MODEL, MDP_SHORT_LIMBS};
    char path[64], name[160];
    for (int i = 0; i < N_CATEGORY * N_EXPERT; i++) limbs[i * MDP_LIMBS + 5] = 7 * i + 1;
    (void)snprintf(path, sizeof path, "/layers/%d", layer);
    fuzz_file_add(file, path, NULL, FUZZ_GROUP, 0, NULL, NULL, 0);
    fuzz_file_add(file, path, "n_expert", FUZZ_I64, 0, NULL, &n_expert, 8);
    fuzz_file_add(file, path, "top_k", FUZZ_I64, 0, NULL, &top_k, 8);
    (void)snprintf(name, sizeof name, "%s/counts", path);
    fuzz_file_add(file, name, NULL, FUZZ_I64, 2, shape, counts, sizeof counts);
    for (int id = 0; id < MDP_N_SUM; id++) {
        (void)snprintf(name, sizeof name, "%s/%s_limbs", path, mdp_statistics[id].name);
        fuzz_file_add(file, name, NULL, FUZZ_I64, 3, shape, limbs, sizeof limbs);
    }
    for (int id = MDP_N_SUM; id < MDP_N_STATISTIC; id++) {
        (void)snprintf(name, sizeof name, "%s/%s", path, mdp_statistics[id].name);
        fuzz_file_add(file, name, NULL, FUZZ_F64, 2, shape, maxima, sizeof maxima);
    }
    (void)snprintf(name, sizeof name, "%s/output_sum_limbs", path);
    fuzz_file_add(file, name, NULL, FUZZ_I64, 3, vectors, limbs, N_EXPERT * D_MODEL * MDP_SHORT_LIMBS * 8);
}

/* What similarities are made from. */
static void add_vectors(fuzz_file *file, int layer) {
    static const mdp_vector_id ids[] = {MDP_PAIR_COUNT, MDP_ROUTER_PRODUCT, MDP_PROBE_OUTPUT_SUM};
    static const int64_t limbs[N_EXPERT * (N_EXPERT + D_MODEL) * MDP_SHORT_LIMBS];
    for (int i = 0; i < 3; i++) {
        int64_t shape[] = {N_EXPERT, mdp_vector_width(ids[i], N_EXPERT, D_MODEL, 0), MDP_SHORT_LIMBS};
        char name[64];
        (void)snprintf(name, sizeof name, "/layers/%d/%s_limbs", layer, mdp_vectors[ids[i]].name);
        fuzz_file_add(file, name, NULL, FUZZ_I64, 3, shape, limbs, shape[0] * shape[1] * shape[2] * 8);
    }
}

/* Matrices of all that can be made are finite. */
static void compare(mdp_stats *stats) {
    for (int id = 0; id < MDP_N_SIMILARITY; id++) {
        if (mdp_stats_make_similarity(stats, (mdp_similarity_id)id).code != MDP_OK) continue;
        for (int64_t l = 0; l < stats->n_layer; l++) {
            const double *values = mdp_stats_similarity(stats, l, (mdp_similarity_id)id);
            int64_t n = stats->layers[l].n_expert;
            for (int64_t i = 0; i < n * n; i++) fuzz_require(isfinite(values[i]), "a similarity");
        }
    }
}

static fuzz_file *sample(void) {
    static const int64_t one = 1, n_token = 10, d_model = D_MODEL, n_category[] = {N_CATEGORY}, tokens[] = {4, 6};
    fuzz_file *file = fuzz_file_new();
    fuzz_file_add_text(file, "/", "format", "moe-dist-prune statistics");
    fuzz_file_add_text(file, "/", "version", "1.0");
    fuzz_file_add(file, "/", "complete", FUZZ_I64, 0, NULL, &one, 8);
    fuzz_file_add_text(file, "/", "model", "0123456789abcdef0123456789abcdef");
    fuzz_file_add_text(file, "/", "tokens", "0123456789abcdef0123456789abcdef");
    fuzz_file_add_text(file, "/", "model_type", "mixtral");
    fuzz_file_add_text(file, "/", "options", "{\"propagate\": \"original\"}");
    fuzz_file_add(file, "/", "d_model", FUZZ_I64, 0, NULL, &d_model, 8);
    fuzz_file_add(file, "/", "n_tokens", FUZZ_I64, 0, NULL, &n_token, 8);
    fuzz_file_add(file, "/categories", NULL, FUZZ_TEXT_LIST, 1, n_category, "c\0\0\0\0prose", 10);
    fuzz_file_add(file, "/category_tokens", NULL, FUZZ_I64, 1, n_category, tokens, sizeof tokens);
    fuzz_file_add(file, "/layers", NULL, FUZZ_GROUP, 0, NULL, NULL, 0);
    add_layer(file, 0);
    add_layer(file, 2);
    fuzz_file_add_text(file, "/", "similarities", "output-mean-cosine,router-row,co-activation");
    fuzz_file_add(file, "/", "probe_tokens", FUZZ_I64, 0, NULL, &one, 8);
    fuzz_file_add(file, "/", "probe_seed", FUZZ_I64, 0, NULL, &one, 8);
    for (int layer = 0; layer <= 2; layer += 2) add_vectors(file, layer);
    return file;
}

static void use(mdp_stats *stats) {
    for (int c = 0; c < stats->n_category; c++)
        fuzz_require(stats->category[c] && stats->category_token[c] >= 0, "a category");
    for (int64_t l = 0; l < stats->n_layer; l++) {
        const mdp_layer_stats *layer = &stats->layers[l];
        fuzz_require(layer->n_expert > 0 && layer->top_k > 0 && layer->top_k <= layer->n_expert, "a layer");
        fuzz_require(layer->layer >= 0 && (l == 0 || layer->layer > stats->layers[l - 1].layer),
                     "layers do not ascend");
        for (int32_t e = 0; e < layer->n_expert; e++) {
            fuzz_require(mdp_stats_count(stats, l, e, NULL) >= 0.0, "a negative count");
            for (int id = 0; id < MDP_N_SUM; id++)
                fuzz_require(isfinite(mdp_stats_sum(stats, l, (mdp_statistic_id)id, e, NULL)), "a sum");
            double largest = mdp_stats_max(stats, l, MDP_MAX_ABS, e, NULL);
            fuzz_require(largest >= 0.0 && isfinite(largest), "a maximum");
        }
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_byte) {
    static const char *path = NULL;
    if (!path) path = fuzz_path("stats.h5");
    fuzz_file *file = sample();
    fuzz_file_edit(file, data, n_byte);
    fuzz_file_write(file, path);
    fuzz_file_destroy(file);
    mdp_stats *stats = NULL, *joined = NULL;
    fuzz_begin();
    mdp_status status = mdp_stats_read(path, &stats);
    fuzz_end(&status);
    if (status.code != MDP_OK) return 0;
    use(stats);
    fuzz_begin();
    status = mdp_stats_read_vectors(path, stats, mdp_similarity_vectors(&stats->similarity));
    fuzz_end(&status);
    if (status.code == MDP_OK) compare(stats);
    mdp_stats *both[] = {stats, stats};
    const char *paths[] = {path, path};
    const double weight[] = {1.0, 1.0};
    if (status.code == MDP_OK) {
        status = mdp_stats_join(both, weight, paths, 2, &joined);
        if (status.code == MDP_OK) use(joined);
        fuzz_require(status.code == MDP_OK || status.code == MDP_BAD_INPUT, status.text);
        mdp_stats_destroy(joined);
    }
    mdp_stats_destroy(stats);
    return 0;
}
