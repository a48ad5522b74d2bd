/* subset_loss.c - what sets of experts lose, from the products of a token's expert outputs.
 *
 * With c = the weights that all experts give less those that the set gives, a token's squared error is c^T G c, where c
 * has at most 2 k entries. A sequence's errors are added in token order by one thread; one rank, another for each list
 * of sets, adds those of all sequences in their order. So neither threads nor ranks nor batches show. */
#include "observe/subset_loss.h"

#include <math.h>
#include <omp.h>
#include <string.h>

#define SETS_OF_A_UNIT 32 /* that a thread does of a sequence */

/* A list of sets, as threads see it. */
typedef struct list {
    const mdp_subset_layer *layer;
    const mdp_expert_t *sets; /* [n, size] */
    int32_t size;
    int64_t n;
    double *errors; /* [n_sequence, n] of this rank */
} list;

/* Room of a thread. */
typedef struct room {
    double *logits; /* [size] of a set */
    double *choice; /* [2 size] */
    mdp_expert_t *index;
    float *weight;        /* both [top_k] */
    mdp_expert_t *member; /* and c: [2 top_k] */
    double *change;
} room;

static mdp_status take_room(room *r, int64_t size, int64_t k) {
    MDP_TRY(MDP_ALLOC(&r->logits, size, "logits of a set"));
    MDP_TRY(MDP_ALLOC(&r->choice, 2 * size, "logits of a set"));
    MDP_TRY(MDP_ALLOC(&r->index, k, "routes of a set"));
    MDP_TRY(MDP_ALLOC(&r->weight, k, "routes of a set"));
    MDP_TRY(MDP_ALLOC(&r->member, 2 * k, "routes of a set"));
    return MDP_ALLOC(&r->change, 2 * k, "routes of a set");
}

static void free_room(room *r) {
    mdp_free(r->logits);
    mdp_free(r->choice);
    mdp_free(r->index);
    mdp_free(r->weight);
    mdp_free(r->member);
    mdp_free(r->change);
}

/* c of a token: the experts that it holds, and how many. Where weights multiply what experts read, outputs have them
 * already. */
static int32_t find_change(const list *l, int64_t token, const mdp_expert_t *set, const room *r) {
    const mdp_subset_tokens *t = l->layer->tokens;
    const mdp_router_rule *rule = l->layer->rule;
    const double *logits = t->logits + token * t->n_expert;
    const mdp_route_set among = {.n = l->size, .source = set, .bias = l->layer->bias};
    int32_t n = t->top_k;
    for (int32_t i = 0; i < l->size; i++) r->logits[i] = logits[set[i]];
    mdp_route_logits(rule, &among, r->logits, t->top_k, r->choice, r->index, r->weight);
    for (int32_t j = 0; j < n; j++) {
        r->member[j] = t->index[token * n + j];
        r->change[j] = rule->weigh_input ? 1.0 : (double)t->weight[token * n + j];
    }
    for (int32_t j = 0; j < t->top_k; j++) {
        mdp_expert_t e = set[r->index[j]];
        double weight = rule->weigh_input ? 1.0 : (double)r->weight[j];
        int32_t at = 0;
        while (at < t->top_k && r->member[at] != e) at++;
        if (at < t->top_k) {
            r->change[at] -= weight;
            continue;
        }
        r->member[n] = e;
        r->change[n++] = -weight;
    }
    return n;
}

/* c^T G c; rounding may take it below 0. */
static double square_error(const list *l, int64_t token, const mdp_expert_t *set, const room *r) {
    const mdp_subset_tokens *t = l->layer->tokens;
    const double *gram = t->gram + token * ((int64_t)t->n_expert * (t->n_expert + 1) / 2);
    int32_t n = find_change(l, token, set, r);
    double sum = 0.0;
    for (int32_t i = 0; i < n; i++) {
        double others = 0.0;
        int64_t a = r->member[i];
        if (r->change[i] == 0.0) continue;
        for (int32_t j = 0; j < i; j++) {
            int64_t b = r->member[j], high = mdp_larger(a, b), low = mdp_smaller(a, b);
            others += r->change[j] * gram[high * (high + 1) / 2 + low];
        }
        sum += r->change[i] * (r->change[i] * gram[a * (a + 1) / 2 + a] + 2.0 * others);
    }
    return sum > 0.0 ? sum : sum <= 0.0 ? 0.0 : sum; /* NaN stays */
}

/* Some sets on a sequence, token after token. */
static void add_unit(const list *l, int64_t sequence, int64_t first, const room *r) {
    int64_t end = mdp_smaller(first + SETS_OF_A_UNIT, l->n);
    double *errors = l->errors + sequence * l->n;
    for (int64_t t = l->layer->first_row[sequence]; t < l->layer->first_row[sequence + 1]; t++)
        for (int64_t s = first; s < end; s++) errors[s] += square_error(l, t, l->sets + s * l->size, r);
}

/* Squared errors of this rank's sequences. */
static mdp_status fill_errors(const list *l) {
    int64_t n_unit = mdp_divide_up(l->n, SETS_OF_A_UNIT), n = l->layer->n_sequence * n_unit;
    mdp_status failed = mdp_ok();
#pragma omp parallel num_threads(l->layer->n_thread)
    {
        room r = {0};
        mdp_status status = take_room(&r, l->size, l->layer->tokens->top_k);
#pragma omp for schedule(dynamic, 1)
        for (int64_t i = 0; i < n; i++)
            if (status.code == MDP_OK) add_unit(l, i / n_unit, i % n_unit * SETS_OF_A_UNIT, &r);
        free_room(&r);
        if (status.code != MDP_OK) {
#pragma omp critical(mdp_subsets)
            failed = status;
        }
    }
    return failed;
}

/* Rank `root`: sequences in order, errors [their number, n]. */
static mdp_status add_sequences(const mdp_subset_layer *layer, const double *errors, int64_t n, double *sums,
                                double *partial) {
    for (int64_t s = layer->first_sequence; s < layer->end_sequence; s++, errors += n) {
        bool last = (s + 1) % layer->batch == 0 || s + 1 == layer->all_sequences;
        for (int64_t i = 0; i < n; i++) {
            partial[i] += errors[i];
            if (!isfinite(partial[i]))
                return MDP_ERROR(MDP_BAD_INPUT,
                                 "layer %lld: what a set of experts loses is not finite; weights or activations are "
                                 "not, or are too large.",
                                 (long long)layer->layer);
            if (!last) continue;
            sums[i] += sqrt(partial[i]);
            partial[i] = 0.0;
        }
    }
    return mdp_ok();
}

mdp_status mdp_subset_losses_all(const mdp_subset_layer *layer, int root, const mdp_expert_t *sets, int32_t size,
                                 int64_t n, double *sums, double *partial) {
    const mdp_comm *comm = layer->comm;
    list l = {.layer = layer, .sets = sets, .size = size, .n = n};
    int64_t n_byte = layer->n_sequence * n * (int64_t)sizeof(double), n_got = 0;
    void *got = NULL;
    mdp_status status = MDP_ALLOC(&l.errors, layer->n_sequence * n, "errors of sets of experts");
    if (status.code == MDP_OK) status = fill_errors(&l);
    status = mdp_agree_all(comm, status);
    if (status.code == MDP_OK) status = mdp_gather_bytes_all(comm, l.errors, n_byte, root, &got, &n_got);
    if (status.code == MDP_OK && comm->rank == root) {
        if (n_got != (layer->end_sequence - layer->first_sequence) * n * (int64_t)sizeof(double))
            status = MDP_ERROR(MDP_INTERNAL, "layer %lld: errors of other sequences than there are.",
                               (long long)layer->layer);
        else
            status = add_sequences(layer, got, n, sums, partial);
    }
    mdp_free(got);
    mdp_free(l.errors);
    return mdp_agree_all(comm, status);
}
