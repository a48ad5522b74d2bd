/* subset_search.c - which sets of experts are tried, and which of them is best.
 *
 * Lists of sets go through subset_loss.c, each with another rank that adds up. Losses are compared as 30 bits, like all
 * decisions; of equal ones the first in lexicographic order is taken. */
#include "observe/subset_loss.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Sets that are tried at once: as many as keep the errors of all sequences within some 16 MiB. */
static int64_t list_length(const mdp_subset_layer *layer) {
    int64_t n_sequence = mdp_larger(1, layer->end_sequence - layer->first_sequence);
    return mdp_larger(1, mdp_smaller(MDP_SUBSETS_AT_ONCE, ((int64_t)1 << 21) / n_sequence));
}

/* Numbers [n], each of which one rank has and the others have as 0, to all. In place. Collective. */
static mdp_status share_all(const mdp_comm *comm, double *numbers, int64_t n) {
    _Static_assert(sizeof(double) == sizeof(int64_t), "a double is moved as the integer of its bits");
    int64_t *bits = NULL;
    mdp_status status = mdp_agree_all(comm, MDP_ALLOC(&bits, n, "losses of sets of experts"));
    if (status.code == MDP_OK) {
        memcpy(bits, numbers, (size_t)n * sizeof *bits);
        status = mdp_sum_i64_all(comm, bits, n);
        memcpy(numbers, bits, (size_t)n * sizeof *bits);
    }
    mdp_free(bits);
    return status;
}

/* ---- every set ------------------------------------------------------------------------------------------------- */

/* The next sets of `at`, [n, keep], n at most; returns how many. `more`: there is a set in `at`. */
static int64_t take_sets(const mdp_subset_kind *kind, int64_t n, mdp_expert_t *at, bool *more, mdp_expert_t *sets) {
    int64_t taken = 0;
    for (; *more && taken < n; taken++) {
        memcpy(sets + taken * kind->keep, at, (size_t)kind->keep * sizeof *sets);
        *more = mdp_subset_next(kind, at);
    }
    return taken;
}

/* Room for lists of sets. */
typedef struct walk {
    mdp_expert_t *at;   /* [keep] */
    mdp_expert_t *sets; /* [length, keep] */
    double *made;       /* [2, n] what this rank has added up; 0 elsewhere */
} walk;

static mdp_status take_walk(walk *w, const mdp_subset_kind *kind, int64_t length, int64_t n) {
    MDP_TRY(MDP_ALLOC(&w->at, kind->keep, "a set of experts"));
    MDP_TRY(MDP_ALLOC(&w->sets, length * kind->keep, "sets of experts"));
    return MDP_ALLOC(&w->made, 2 * n, "losses of sets of experts");
}

static void free_walk(walk *w) {
    mdp_free(w->at);
    mdp_free(w->sets);
    mdp_free(w->made);
}

static mdp_status walk_sets_all(const mdp_subset_layer *layer, const mdp_subset_kind *kind, int64_t length, int64_t n,
                                walk *w, const mdp_subset_sums *sums) {
    const mdp_comm *comm = layer->comm;
    bool more = true;
    mdp_subset_first(kind, w->at);
    for (int64_t first = 0, turn = 0; more; turn++) {
        int64_t now = take_sets(kind, length, w->at, &more, w->sets);
        int root = (int)(turn % comm->size);
        if (comm->rank == root) {
            memcpy(w->made + first, sums + first, (size_t)now * sizeof *sums);
            memcpy(w->made + n + first, sums + n + first, (size_t)now * sizeof *sums);
        }
        MDP_TRY(mdp_subset_losses_all(layer, root, w->sets, kind->keep, now, w->made + first, w->made + n + first));
        first += now;
    }
    return mdp_ok();
}

mdp_status mdp_subsets_add_all(const mdp_subset_layer *layer, const mdp_subset_kind *kind, mdp_subset_sums *sums) {
    int64_t n = mdp_subset_count(kind), length = list_length(layer);
    walk w = {NULL, NULL, NULL};
    mdp_status status = mdp_agree_all(layer->comm, take_walk(&w, kind, length, n));
    if (status.code == MDP_OK) status = walk_sets_all(layer, kind, length, n, &w, sums);
    if (status.code == MDP_OK) status = share_all(layer->comm, w.made, 2 * n);
    if (status.code == MDP_OK) memcpy(sums, w.made, (size_t)(2 * n) * sizeof *sums);
    free_walk(&w);
    return status;
}

/* ---- the best -------------------------------------------------------------------------------------------------- */

static mdp_status new_result(const mdp_subset_kind *kind, mdp_subset_search search, mdp_subsets *out) {
    *out = (mdp_subsets){.keep = kind->keep, .search = search, .loss = INFINITY, .next = INFINITY};
    MDP_TRY(MDP_ALLOC(&out->kept, kind->keep, "the best set of experts"));
    MDP_TRY(MDP_ALLOC(&out->without, kind->n_expert, "losses without an expert"));
    for (int32_t e = 0; e < kind->n_expert; e++) out->without[e] = INFINITY;
    return mdp_ok();
}

static int compare_sets(const mdp_expert_t *a, const mdp_expert_t *b, int32_t n) {
    for (int32_t i = 0; i < n; i++)
        if (a[i] != b[i]) return a[i] < b[i] ? -1 : 1;
    return 0;
}

/* A set of this size has been tried. */
static void note_set(const mdp_subset_kind *kind, const mdp_expert_t *set, double loss, mdp_subsets *out) {
    double own = mdp_round30(loss), best = mdp_round30(out->loss);
    int32_t at = 0;
    out->n_tried++;
    for (int32_t e = 0; e < kind->n_expert; e++) {
        if (at < kind->keep && set[at] == e)
            at++;
        else
            out->without[e] = fmin(out->without[e], loss);
    }
    if (own < best || (own == best && compare_sets(set, out->kept, kind->keep) < 0)) {
        out->next = out->loss;
        out->loss = loss;
        memcpy(out->kept, set, (size_t)kind->keep * sizeof *set);
    } else {
        out->next = fmin(out->next, loss);
    }
}

mdp_status mdp_subsets_choose(const mdp_subset_kind *kind, const mdp_subset_sums *sums, mdp_subsets *out) {
    int64_t n = mdp_subset_count(kind);
    mdp_expert_t *set = NULL;
    mdp_status status = new_result(kind, MDP_SUBSETS_EVERY, out);
    if (status.code == MDP_OK) status = MDP_ALLOC(&out->losses, n, "losses of sets of experts");
    if (status.code == MDP_OK) status = MDP_ALLOC(&set, kind->keep, "a set of experts");
    if (status.code == MDP_OK) {
        memcpy(out->losses, sums, (size_t)n * sizeof *sums);
        mdp_subset_first(kind, set);
        for (int64_t i = 0; i < n; i++) {
            note_set(kind, set, sums[i], out);
            mdp_subset_next(kind, set);
        }
    }
    mdp_free(set);
    return status;
}

/* ---- one expert after the other -------------------------------------------------------------------------------- */

/* A set on its way. */
typedef struct candidate {
    double loss; /* rounded */
    double exact;
    const mdp_expert_t *set;
    int32_t size;
} candidate;

static int compare_candidates(const void *left, const void *right) {
    const candidate *a = left, *b = right;
    if (a->loss != b->loss) return a->loss < b->loss ? -1 : 1;
    return compare_sets(a->set, b->set, a->size);
}

static int compare_by_set(const void *left, const void *right) {
    const candidate *a = left, *b = right;
    return compare_sets(a->set, b->set, a->size);
}

typedef struct search {
    const mdp_subset_layer *layer;
    const mdp_subset_kind *kind;
    int32_t width, size;  /* sets that go on; experts in each now */
    int64_t n;            /* of them */
    mdp_expert_t *now;    /* [width, n_expert] */
    mdp_expert_t *next;   /* [width * n_expert, n_expert] */
    mdp_expert_t *packed; /* the same, one after the other without doubles */
    candidate *all;       /* [width * n_expert] */
    double *loss;         /* [2, width * n_expert] */
} search;

static mdp_status take_search(search *s) {
    int64_t n = s->kind->n_expert, most = s->width * n;
    MDP_TRY(MDP_ALLOC(&s->now, s->width * n, "sets of experts"));
    MDP_TRY(MDP_ALLOC(&s->next, most * n, "sets of experts"));
    MDP_TRY(MDP_ALLOC(&s->packed, most * n, "sets of experts"));
    MDP_TRY(MDP_ALLOC(&s->all, most, "sets of experts"));
    return MDP_ALLOC(&s->loss, 2 * most, "losses of sets of experts");
}

static void free_search(search *s) {
    mdp_free(s->now);
    mdp_free(s->next);
    mdp_free(s->packed);
    mdp_free(s->all);
    mdp_free(s->loss);
}

/* May the set lose its member at `out`: has its group more than it is to keep? */
static bool may_lose(const mdp_subset_kind *kind, const mdp_expert_t *set, int32_t size, int32_t out) {
    int32_t of_group = kind->n_expert / kind->n_group, n = 0;
    for (int32_t i = 0; i < size; i++) n += set[i] / of_group == set[out] / of_group;
    return n > kind->keep / kind->n_group;
}

/* Sets with one expert fewer, each once, ascending; returns how many. */
static int64_t list_smaller(search *s) {
    int32_t size = s->size - 1;
    int64_t n = 0, n_own = 0;
    for (int64_t i = 0; i < s->n; i++) {
        const mdp_expert_t *set = s->now + i * s->kind->n_expert;
        for (int32_t out = 0; out < s->size; out++) {
            if (!may_lose(s->kind, set, s->size, out)) continue;
            mdp_expert_t *to = s->next + n * size;
            memcpy(to, set, (size_t)out * sizeof *to);
            memcpy(to + out, set + out + 1, (size_t)(size - out) * sizeof *to);
            s->all[n++] = (candidate){.set = to, .size = size};
        }
    }
    qsort(s->all, (size_t)n, sizeof *s->all, compare_by_set);
    for (int64_t i = 0; i < n; i++) {
        if (n_own > 0 && compare_sets(s->packed + (n_own - 1) * size, s->all[i].set, size) == 0) continue;
        memcpy(s->packed + n_own++ * size, s->all[i].set, (size_t)size * sizeof *s->packed);
    }
    for (int64_t i = 0; i < n_own; i++) s->all[i] = (candidate){.set = s->packed + i * size, .size = size};
    return n_own;
}

/* Their losses, on every rank: loss [n]. */
static mdp_status measure_all(search *s, int64_t n) {
    int64_t length = list_length(s->layer);
    const mdp_comm *comm = s->layer->comm;
    memset(s->loss, 0, (size_t)(2 * n) * sizeof *s->loss);
    for (int64_t first = 0, turn = 0; first < n; first += length, turn++)
        MDP_TRY(mdp_subset_losses_all(s->layer, (int)(turn % comm->size), s->packed + first * (s->size - 1),
                                      s->size - 1, mdp_smaller(length, n - first), s->loss + first,
                                      s->loss + n + first));
    return share_all(comm, s->loss, n);
}

/* The best few go on. */
static void take_best(search *s, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        s->all[i].exact = s->loss[i];
        s->all[i].loss = mdp_round30(s->loss[i]);
    }
    qsort(s->all, (size_t)n, sizeof *s->all, compare_candidates);
    s->n = mdp_smaller(n, s->width);
    s->size--;
    for (int64_t i = 0; i < s->n; i++)
        memcpy(s->now + i * s->kind->n_expert, s->all[i].set, (size_t)s->size * sizeof *s->now);
}

static mdp_status descend_all(search *s, mdp_subsets *out) {
    s->n = 1;
    s->size = s->kind->n_expert;
    for (int32_t e = 0; e < s->size; e++) s->now[e] = e;
    while (s->size > s->kind->keep) {
        int64_t n = list_smaller(s);
        MDP_TRY(measure_all(s, n));
        take_best(s, n);
        for (int64_t i = 0; s->size == s->kind->keep && i < n; i++)
            note_set(s->kind, s->all[i].set, s->all[i].exact, out);
    }
    return mdp_ok();
}

mdp_status mdp_subsets_search_all(const mdp_subset_layer *layer, const mdp_subset_kind *kind, mdp_subset_search search_,
                                  mdp_subsets *out) {
    search s = {.layer = layer, .kind = kind, .width = search_ == MDP_SUBSETS_BEAM ? MDP_BEAM_WIDTH : 1};
    mdp_status status = new_result(kind, search_, out);
    if (status.code == MDP_OK) status = take_search(&s);
    status = mdp_agree_all(layer->comm, status);
    if (status.code == MDP_OK) status = descend_all(&s, out);
    free_search(&s);
    return status;
}
