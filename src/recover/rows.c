/* rows.c - rows of a step on their way: inputs and gradients from the tokens' owners to the units of the experts that
 * they visit, outputs of units back.
 *
 * What goes to a rank is ordered by expert, then token, once for each expert with units there. A rank's tokens are
 * above those of lower ranks, so that what comes, laid out by rank, is in the order of tokens. */
#include "recover/trainer.h"

#include <string.h>

/* ---- counts ----------------------------------------------------------------------------------------------------- */

/* Rows between this rank and `peer`: visits to experts with units at `host`, by counts [n_expert]; `parts`: one row for
 * each of the units. */
static int64_t count_rows(const mdp_trainer *t, int host, const int64_t *count, bool parts) {
    int64_t sum = 0, first;
    for (int32_t e = 0; e < t->layer.n_expert; e++) {
        int64_t n = mdp_train_slices_at(t, host, e, &first);
        sum += count[e] * (parts ? n : n > 0);
    }
    return sum;
}

/* Row `at` of those: expert, number of the visit among the expert's of its sender, and unit of the expert. */
typedef struct place {
    int32_t expert;
    int64_t visit, slice;
} place;

static place find(const mdp_trainer *t, int host, const int64_t *count, bool parts, int64_t at) {
    for (int32_t e = 0; e < t->layer.n_expert; e++) {
        int64_t first, n = mdp_train_slices_at(t, host, e, &first), each = parts ? n : n > 0;
        if (at < count[e] * each) return (place){e, at / each, first + at % each};
        at -= count[e] * each;
    }
    return (place){0};
}

/* Where the visits of a rank to an expert begin among those of all ranks. */
static int64_t first_from(const mdp_train_step *step, int rank, int32_t expert) {
    int64_t sum = 0;
    for (int p = 0; p < rank; p++) sum += step->told[(int64_t)p * step->trainer->layer.n_expert + expert];
    return sum;
}

static mdp_status make_room(mdp_train_step *step) {
    const mdp_trainer *t = step->trainer;
    int64_t d = t->layer.d_model, first;
    for (int32_t e = 0; e < t->layer.n_expert; e++) {
        step->n_row[e] = first_from(step, t->comm->size, e);
        if (mdp_train_slices_at(t, t->comm->rank, e, &first) == 0) continue;
        MDP_TRY(MDP_ALLOC(&step->x[e], step->n_row[e] * d, "rows of an expert"));
        MDP_TRY(MDP_ALLOC(&step->dy[e], step->n_row[e] * d, "rows of an expert"));
    }
    return mdp_train_open_units(step);
}

mdp_status mdp_train_meet_all(mdp_train_step *step) {
    const mdp_trainer *t = step->trainer;
    int64_t n = t->layer.n_expert;
    for (int p = 0; p < t->comm->size; p++) memcpy(step->telling + p * n, step->count, (size_t)n * sizeof *step->count);
    MDP_TRY(mdp_alltoall_i64_all(t->comm, step->telling, step->told, n));
    return mdp_agree_all(t->comm, make_room(step));
}

/* ---- to the units ----------------------------------------------------------------------------------------------- */

typedef struct sending {
    mdp_train_step *step;
    bool back;
} sending;

static void pack_row(const sending *s, const mdp_train_visit *visit, float *to) {
    const mdp_train_step *step = s->step;
    int64_t d = step->trainer->layer.d_model;
    bool weighed = step->trainer->layer.moe->rule.weigh_input; /* the weight is in what the expert reads */
    const float *from = s->back ? step->back + visit->row * d : step->rows->x[visit->row];
    float weight = step->weight[(int64_t)visit->row * step->trainer->layer.top_k + visit->slot];
    if (s->back == weighed) {
        memcpy(to, from, (size_t)d * sizeof *to);
        return;
    }
    for (int64_t j = 0; j < d; j++) to[j] = weight * from[j];
}

static void pack_rows(void *context, int peer, int64_t first, int64_t n, void *buffer) {
    const sending *s = context;
    int64_t d = s->step->trainer->layer.d_model;
    for (int64_t i = 0; i < n; i++) {
        const place at = find(s->step->trainer, peer, s->step->count, false, first + i);
        pack_row(s, &s->step->visits[s->step->first[at.expert] + at.visit], (float *)buffer + i * d);
    }
}

static void unpack_rows(void *context, int peer, int64_t first, int64_t n, const void *buffer) {
    const sending *s = context;
    const mdp_trainer *t = s->step->trainer;
    int64_t d = t->layer.d_model;
    for (int64_t i = 0; i < n; i++) {
        const place at = find(t, t->comm->rank, s->step->told + (int64_t)peer * t->layer.n_expert, false, first + i);
        float *to = (s->back ? s->step->dy : s->step->x)[at.expert];
        memcpy(to + (first_from(s->step, peer, at.expert) + at.visit) * d, (const float *)buffer + i * d,
               (size_t)d * sizeof *to);
    }
}

mdp_status mdp_train_send_rows_all(mdp_train_step *step, bool back) {
    mdp_trainer *t = step->trainer;
    sending s = {.step = step, .back = back};
    for (int p = 0; p < t->comm->size; p++) {
        step->n_send[p] = count_rows(t, p, step->count, false);
        step->n_recv[p] = count_rows(t, t->comm->rank, step->told + (int64_t)p * t->layer.n_expert, false);
    }
    const mdp_exchange exchange = {.room = t->room,
                                   .row_byte = t->layer.d_model * (int64_t)sizeof(float),
                                   .n_send = step->n_send,
                                   .n_recv = step->n_recv,
                                   .pack = pack_rows,
                                   .unpack = unpack_rows,
                                   .context = &s};
    return mdp_exchange_told_all(t->comm, &exchange, t->profile);
}

/* ---- back to the tokens ----------------------------------------------------------------------------------------- */

static void pack_outputs(void *context, int peer, int64_t first, int64_t n, void *buffer) {
    const mdp_train_step *step = context;
    const mdp_trainer *t = step->trainer;
    int64_t d = t->layer.d_model;
    for (int64_t i = 0; i < n; i++) {
        const place at = find(t, t->comm->rank, step->told + (int64_t)peer * t->layer.n_expert, true, first + i);
        const mdp_train_unit *unit = &t->units[(int64_t)at.expert * t->n_slice + at.slice];
        memcpy((float *)buffer + i * d, unit->y + (first_from(step, peer, at.expert) + at.visit) * d,
               (size_t)d * sizeof(float));
    }
}

static void unpack_outputs(void *context, int peer, int64_t first, int64_t n, const void *buffer) {
    const mdp_train_step *step = context;
    const mdp_trainer *t = step->trainer;
    int64_t d = t->layer.d_model;
    for (int64_t i = 0; i < n; i++) {
        const place at = find(t, peer, step->count, true, first + i);
        const mdp_train_visit *visit = &step->visits[step->first[at.expert] + at.visit];
        int64_t slot = (int64_t)visit->row * t->layer.top_k + visit->slot;
        memcpy(step->parts + (slot * t->n_slice + at.slice) * d, (const float *)buffer + i * d,
               (size_t)d * sizeof(float));
    }
}

mdp_status mdp_train_return_all(mdp_train_step *step) {
    mdp_trainer *t = step->trainer;
    for (int p = 0; p < t->comm->size; p++) {
        step->n_send[p] = count_rows(t, t->comm->rank, step->told + (int64_t)p * t->layer.n_expert, true);
        step->n_recv[p] = count_rows(t, p, step->count, true);
    }
    const mdp_exchange exchange = {.room = t->room,
                                   .row_byte = t->layer.d_model * (int64_t)sizeof(float),
                                   .n_send = step->n_send,
                                   .n_recv = step->n_recv,
                                   .pack = pack_outputs,
                                   .unpack = unpack_outputs,
                                   .context = step};
    return mdp_exchange_told_all(t->comm, &exchange, t->profile);
}
