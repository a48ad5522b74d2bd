/* grape.c - how many groups each layer is merged to, by how similar its experts are (after GRAPE, arXiv 2604.06542).
 *
 * In: similarities of the experts of every layer. Out: groups of every layer. Inside a layer the pair that is merged
 * next does not depend on other layers, so each layer's joins, and what they leave, are found once and layers then take
 * turns. The paper's own words leave open what an entropy is measured against after a thaw: here, against what it was
 * when all layers last began. */
#include "group/hierarchical.h"
#include "group/problem.h"

#include <inttypes.h>

/* One layer as a list of steps. A step joins one pair in every block. */
typedef struct steps {
    int32_t n_block, n_step, at; /* steps that there may be, and that were taken */
    mdp_join *joins;             /* [n_block, n / n_block] of each block, its experts numbered from 0 */
    double *left;                /* [n / n_block] sum of similarities between the groups after so many steps, rounded */
    double *entropy;             /* [n / n_block] of the groups' shares of the experts */
    double start;                /* entropy when the layer last began */
    bool frozen;
} steps;

/* Sum over the pairs of groups of their mean distance, negated. */
static double similarity_left(const agglomeration *groups) {
    double sum = 0.0;
    for (int32_t i = 0; i < groups->n; i++) {
        for (int32_t j = i + 1; groups->size[i] > 0 && j < groups->n; j++)
            if (groups->size[j] > 0) sum -= agglomeration_height(groups, i, j);
    }
    return sum;
}

static double entropy_of(const agglomeration *groups, int32_t n_expert) {
    double sum = 0.0;
    for (int32_t i = 0; i < groups->n; i++) {
        double share = (double)groups->size[i] / n_expert;
        if (share > 0.0) sum -= share * log(share);
    }
    return sum;
}

static void note(const agglomeration *groups, const mdp_grape_layer *layer, int32_t step, steps *out) {
    out->left[step] += similarity_left(groups);
    out->entropy[step] += entropy_of(groups, layer->n);
}

/* distance [size, size]: negated similarities of the block's experts. */
static mdp_status list_block(const mdp_grape_layer *layer, int32_t block, double *distance, steps *out) {
    int32_t size = layer->n / out->n_block, first = block * size;
    agglomeration groups;
    for (int32_t i = 0; i < size; i++) {
        for (int32_t j = i + 1; j < size; j++)
            distance[(int64_t)i * size + j] = -layer->similarity[(int64_t)(first + i) * layer->n + first + j];
    } /* what is not finite is refused below */
    mdp_status status = agglomeration_begin(size, distance, MDP_LINKAGE_AVERAGE, &groups);
    for (int32_t step = 0; status.code == MDP_OK && step < size; step++) {
        if (step > 0) out->joins[(int64_t)block * size + step - 1] = agglomeration_join(&groups);
        note(&groups, layer, step, out);
    }
    agglomeration_free(&groups);
    return status;
}

static mdp_status list_steps(const mdp_grape_layer *layer, int32_t n_block, steps *out) {
    double *distance = NULL;
    int32_t size = layer->n / n_block;
    out->n_block = n_block;
    out->n_step = size - (layer->min_keep + n_block - 1) / n_block;
    MDP_TRY(MDP_ALLOC(&out->joins, layer->n, "the joins of groups"));
    MDP_TRY(MDP_ALLOC(&out->left, size, "similarities of groups"));
    MDP_TRY(MDP_ALLOC(&out->entropy, size, "entropies of groups"));
    MDP_TRY(MDP_ALLOC(&distance, (int64_t)size * size, "distances of experts"));
    mdp_status status = mdp_ok();
    for (int32_t block = 0; block < n_block && status.code == MDP_OK; block++)
        status = list_block(layer, block, distance, out);
    mdp_free(distance);
    for (int32_t step = 0; step < size; step++) out->left[step] = mdp_round30(out->left[step]);
    out->start = out->entropy[0];
    return status;
}

/* ---- turns ------------------------------------------------------------------------------------------------------- */

/* The layer that merges next: of those that may, the one with the most similarity left, of equal ones the first. NULL:
 * none may. */
static steps *next_layer(int64_t n_layer, steps *all) {
    steps *next = NULL;
    for (int64_t l = 0; l < n_layer; l++) {
        steps *layer = &all[l];
        if (layer->frozen || layer->at >= layer->n_step) continue;
        if (!next || layer->left[layer->at] > next->left[next->at]) next = layer;
    }
    return next;
}

static void thaw(int64_t n_layer, steps *all) {
    for (int64_t l = 0; l < n_layer; l++) {
        all[l].frozen = false;
        all[l].start = all[l].entropy[all[l].at];
    }
}

/* n_step: turns that there are, no more than all layers together have. */
static void take_turns(int64_t n_layer, steps *all, int64_t n_step, double gamma) {
    while (n_step > 0) {
        steps *layer = next_layer(n_layer, all);
        if (!layer) {
            thaw(n_layer, all);
            continue;
        }
        layer->at++;
        n_step--;
        layer->frozen = mdp_round30(layer->entropy[layer->at]) < mdp_round30((1.0 - gamma) * layer->start);
    }
}

static void take_groups(mdp_grape_layer *layer, const steps *taken) {
    int32_t size = layer->n / taken->n_block;
    layer->keep = layer->n - taken->at * taken->n_block;
    for (int32_t block = 0; block < taken->n_block; block++) {
        int32_t *group = layer->group + block * size;
        mdp_joins_cut(size, taken->joins + (int64_t)block * size, taken->at, group);
        for (int32_t e = 0; e < size; e++) group[e] += block * (size - taken->at);
    }
}

/* ---- the whole --------------------------------------------------------------------------------------------------- */

/* *n_step: turns to be taken. */
static mdp_status check(int64_t n_layer, const mdp_grape_layer *layers, int64_t total, int32_t n_block, double gamma,
                        int64_t *n_step) {
    int64_t most = 0, least = 0;
    for (int64_t l = 0; l < n_layer; l++) {
        if (layers[l].n % n_block != 0 || layers[l].min_keep < n_block || layers[l].min_keep > layers[l].n)
            return MDP_ERROR(MDP_USAGE,
                             "%" PRId32 " experts in %" PRId32 " blocks cannot be merged to at least %" PRId32 ".",
                             layers[l].n, n_block, layers[l].min_keep);
        most += layers[l].n;
        least += (int64_t)(layers[l].min_keep + n_block - 1) / n_block * n_block;
    }
    if (total > most || total < least || (most - total) % n_block != 0)
        return MDP_ERROR(MDP_USAGE,
                         "%" PRId64 " experts in all layers cannot be merged to %" PRId64 "; possible are %" PRId64
                         " to %" PRId64 ", in steps of %" PRId32 ".",
                         most, total, least, most, n_block);
    if (!(gamma >= 0.0 && gamma <= 1.0)) return MDP_ERROR(MDP_USAGE, "gamma is %g, which is not in 0 to 1.", gamma);
    *n_step = (most - total) / n_block;
    return mdp_ok();
}

mdp_status mdp_grape(int64_t n_layer, mdp_grape_layer *layers, int64_t total, int32_t n_block, double gamma) {
    steps *all = NULL;
    int64_t n_step = 0;
    int32_t blocks = n_block > 1 ? n_block : 1;
    MDP_TRY(check(n_layer, layers, total, blocks, gamma, &n_step));
    mdp_status status = MDP_ALLOC(&all, n_layer, "layers that merge");
    for (int64_t l = 0; l < n_layer && status.code == MDP_OK; l++) status = list_steps(&layers[l], blocks, &all[l]);
    if (status.code == MDP_OK) {
        take_turns(n_layer, all, n_step, gamma);
        for (int64_t l = 0; l < n_layer; l++) take_groups(&layers[l], &all[l]);
    }
    for (int64_t l = 0; all && l < n_layer; l++) {
        mdp_free(all[l].joins);
        mdp_free(all[l].left);
        mdp_free(all[l].entropy);
    }
    mdp_free(all);
    return status;
}
