/* dispatch.c - one round of the MoE block: rows travel to the owners of their tiles, and outputs travel back.
 *
 * In: this rank's routes of the wave, in buckets of (round, owner). Out: y of every routed row at the token's owner. In
 * a round a token's row goes once to each rank, however many of its experts are there; a note for each routed row says
 * which row it is of and where it belongs. */
#include "engine/dispatch.h"

#include <string.h>

typedef struct round_context {
    mdp_engine *engine;
    const mdp_wave *w;
    const mdp_moe_buffers *buffers;
    const float *norm;
    int32_t number;
    const int64_t *note_first;   /* [size] first note of each source in buffers->notes */
    const int64_t *unique_first; /* [size] first row of each source in round.x */
    /* where packing of unique rows stands for the peer being served */
    int packing_peer;
    int64_t packing_entry, packing_unique;
} round_context;

static const mdp_route_entry *entries_for(const round_context *context, int peer, int64_t *n) {
    int64_t bucket = (int64_t)context->number * context->engine->comm->size + peer;
    int64_t first = context->w->bucket[bucket];
    *n = context->w->bucket[bucket + 1] - first;
    return context->w->entries + first;
}

static bool same_token(const mdp_route_entry *a, const mdp_route_entry *b) {
    return a->local == b->local && a->state == b->state;
}

static int64_t count_unique(const mdp_route_entry *entries, int64_t n) {
    int64_t n_unique = 0;
    for (int64_t i = 0; i < n; i++) n_unique += i == 0 || !same_token(&entries[i], &entries[i - 1]);
    return n_unique;
}

/* Begin or continue the walk over a peer's entries; pieces of one peer come in order. */
static void walk_to(round_context *context, int peer, int64_t first) {
    if (context->packing_peer == peer && first > 0) return;
    context->packing_peer = peer;
    context->packing_entry = 0;
    context->packing_unique = -1;
}

static void pack_notes(void *opaque, int peer, int64_t first, int64_t n, void *buffer) {
    round_context *context = opaque;
    const mdp_engine *engine = context->engine;
    mdp_row_note *notes = buffer;
    int64_t n_entry;
    const mdp_route_entry *entries = entries_for(context, peer, &n_entry);
    walk_to(context, peer, first);
    for (int64_t i = first; i < first + n; i++) {
        const mdp_route_entry *entry = &entries[i];
        const mdp_state *state = &engine->states[entry->state];
        if (i == 0 || !same_token(entry, entry - 1)) context->packing_unique++;
        notes[i - first] = (mdp_row_note){.position = entry->position,
                                          .unique = (int32_t)context->packing_unique,
                                          .gate = state->weight[entry->local * state->top_k + entry->slot],
                                          .category = engine->category[entry->local],
                                          .token = engine->batch.first_token + entry->local};
    }
}

static void unpack_notes(void *opaque, int peer, int64_t first, int64_t n, const void *buffer) {
    round_context *context = opaque;
    memcpy(context->buffers->notes + context->note_first[peer] + first, buffer, (size_t)n * sizeof(mdp_row_note));
}

static void pack_tokens(void *opaque, int peer, int64_t first, int64_t n, void *buffer) {
    round_context *context = opaque;
    const mdp_engine *engine = context->engine;
    int64_t n_entry, d = engine->model->d_model;
    const mdp_route_entry *entries = entries_for(context, peer, &n_entry);
    walk_to(context, peer, first);
    for (int64_t done = 0; done < n; context->packing_entry++) {
        const mdp_route_entry *entry = &entries[context->packing_entry];
        if (context->packing_entry > 0 && same_token(entry, entry - 1)) continue;
        mdp_norm_row(engine->model, context->norm, engine->states[entry->state].x + entry->local * d,
                     (float *)buffer + done * d);
        done++;
    }
}

static void unpack_tokens(void *opaque, int peer, int64_t first, int64_t n, const void *buffer) {
    round_context *context = opaque;
    int64_t d = context->engine->model->d_model;
    memcpy(context->buffers->round.x + (context->unique_first[peer] + first) * d, buffer,
           (size_t)(n * d) * sizeof(float));
}

static void pack_outputs(void *opaque, int peer, int64_t first, int64_t n, void *buffer) {
    round_context *context = opaque;
    int64_t d = context->engine->model->d_model;
    const mdp_row_note *notes = context->buffers->notes + context->note_first[peer] + first;
    for (int64_t i = 0; i < n; i++) {
        memcpy((float *)buffer + i * d, context->buffers->round.y + notes[i].position * d, (size_t)d * sizeof(float));
    }
}

static void unpack_outputs(void *opaque, int peer, int64_t first, int64_t n, const void *buffer) {
    round_context *context = opaque;
    const mdp_engine *engine = context->engine;
    const mdp_wave *w = context->w;
    int64_t n_entry, d = engine->model->d_model;
    const mdp_route_entry *entries = entries_for(context, peer, &n_entry) + first;
    for (int64_t i = 0; i < n; i++) {
        const mdp_state *state = &engine->states[entries[i].state];
        int64_t row =
            w->state_first[entries[i].state] + (entries[i].local - w->first_local) * state->top_k + entries[i].slot;
        memcpy(w->y + row * d, (const float *)buffer + i * d, (size_t)d * sizeof(float));
    }
}

/* Spread the notes of all sources over the round's arrays by position. */
static void spread_notes(const mdp_engine *engine, const mdp_moe_buffers *buffers, const int64_t *n_note,
                         const int64_t *note_first, const int64_t *unique_first) {
    const mdp_round *round = &buffers->round;
    for (int peer = 0; peer < engine->comm->size; peer++) {
        for (int64_t i = 0; i < n_note[peer]; i++) {
            const mdp_row_note *note = &buffers->notes[note_first[peer] + i];
            round->source[note->position] = (int32_t)(unique_first[peer] + note->unique);
            round->gate[note->position] = note->gate;
            round->category[note->position] = note->category;
            round->token[note->position] = note->token;
        }
    }
}

mdp_status mdp_dispatch_round_all(mdp_engine *engine, const mdp_wave *w, const mdp_layer *layer, int64_t layer_number,
                                  const float *norm, int32_t number, mdp_moe_buffers *buffers) {
    const mdp_comm *comm = engine->comm;
    int64_t size = comm->size, row_byte = engine->model->d_model * (int64_t)sizeof(float);
    int64_t *both_send = buffers->counts, *both_recv = both_send + 2 * size; /* [size, 2]: notes, unique rows */
    int64_t *first = both_recv + 2 * size, *n = first + 2 * size;            /* [2, size] and [4, size] */
    int64_t *note_first = first, *unique_first = first + size;
    int64_t *notes_out = n, *notes_in = n + size, *unique_out = n + 2 * size, *unique_in = n + 3 * size;
    round_context context = {.engine = engine,
                             .w = w,
                             .buffers = buffers,
                             .norm = norm,
                             .number = number,
                             .note_first = note_first,
                             .unique_first = unique_first,
                             .packing_peer = -1};
    for (int peer = 0; peer < size; peer++) {
        const mdp_route_entry *entries = entries_for(&context, peer, &notes_out[peer]);
        unique_out[peer] = count_unique(entries, notes_out[peer]);
        both_send[2 * peer] = notes_out[peer];
        both_send[2 * peer + 1] = unique_out[peer];
    }
    mdp_phase before = mdp_profile_switch(engine->profile, MDP_PHASE_WAIT_RANKS);
    MDP_TRY(mdp_alltoall_i64_all(comm, both_send, both_recv, 2));
    mdp_profile_switch(engine->profile, before);
    buffers->round.n_row = buffers->round.n_unique = 0;
    for (int peer = 0; peer < size; peer++) {
        notes_in[peer] = both_recv[2 * peer];
        unique_in[peer] = both_recv[2 * peer + 1];
        note_first[peer] = buffers->round.n_row;
        unique_first[peer] = buffers->round.n_unique;
        buffers->round.n_row += notes_in[peer];
        buffers->round.n_unique += unique_in[peer];
    }
    mdp_exchange exchange = {.row_byte = sizeof(mdp_row_note),
                             .buffer_byte = MDP_MESSAGE_BYTES / 8,
                             .n_send = notes_out,
                             .n_recv = notes_in,
                             .pack = pack_notes,
                             .unpack = unpack_notes,
                             .context = &context};
    MDP_TRY(mdp_exchange_all(comm, &exchange));
    context.packing_peer = -1;
    exchange = (mdp_exchange){.row_byte = row_byte,
                              .buffer_byte = MDP_MESSAGE_BYTES,
                              .n_send = unique_out,
                              .n_recv = unique_in,
                              .pack = pack_tokens,
                              .unpack = unpack_tokens,
                              .context = &context};
    MDP_TRY(mdp_exchange_all(comm, &exchange));
    spread_notes(engine, buffers, notes_in, note_first, unique_first);
    mdp_status status =
        mdp_experts_compute(engine, layer, layer_number, w->placement, number, &buffers->round, &buffers->scratch);
    MDP_ENGINE_AGREE(engine, status);
    if (status.code != MDP_OK) return status;
    for (int peer = 0; peer < size; peer++) {
        if (peer == comm->rank) continue;
        mdp_profile_sent(engine->profile, notes_out[peer] * (int64_t)sizeof(mdp_row_note));
        mdp_profile_sent(engine->profile, (unique_out[peer] + notes_in[peer]) * row_byte);
    }
    exchange.n_send = notes_in;
    exchange.n_recv = notes_out;
    exchange.pack = pack_outputs;
    exchange.unpack = unpack_outputs;
    return mdp_exchange_all(comm, &exchange);
}
