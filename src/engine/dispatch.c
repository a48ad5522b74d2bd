/* dispatch.c - the rounds of the MoE block: rows travel to the owners of their tiles, and outputs travel back.
 *
 * In: this rank's routes of the wave, in buckets of (round, owner). Out: y of every routed row at the token's owner. In
 * a round a token's row goes once to each node (landing.c) and there once to each rank, however many of its experts are
 * there; a note for each routed row says which row it is of and where it belongs. While a round is computed, the
 * outputs of the one before and the tokens of the next are on their way: linear.c looks after them between products. */
#include "engine/dispatch.h"
#include "engine/norm.h"

#include <string.h>

/* A round, and where packing of token rows stands for the peer being served. */
typedef struct packing {
    const mdp_round_context *round;
    int64_t landed;     /* landed rows looked at */
    int64_t entry;      /* entries looked at */
    int64_t unique;     /* token rows among them, less one */
    int64_t note, back; /* notes and entries looked at for activations that go back, and that come back */
} packing;

const mdp_route_entry *mdp_round_entries(const mdp_round_context *round, int owner, int64_t *n) {
    int64_t bucket = (int64_t)round->number * round->engine->comm->size + owner;
    int64_t first = round->w->bucket[bucket];
    *n = round->w->bucket[bucket + 1] - first;
    return round->w->entries + first;
}

int64_t mdp_dispatch_longest_row(const mdp_comm *comm, const mdp_model *model, int64_t n_activation) {
    int64_t row = mdp_dispatch_row_bytes(model, mdp_landing_words(comm)), note = sizeof(mdp_row_note);
    int64_t longest = row > note ? row : note, activations = n_activation * (int64_t)sizeof(float);
    return longest > activations ? longest : activations;
}

static int64_t count_unique(const mdp_route_entry *entries, int64_t n) {
    int64_t n_unique = 0;
    for (int64_t i = 0; i < n; i++) n_unique += i == 0 || !mdp_same_token(&entries[i], &entries[i - 1]);
    return n_unique;
}

/* Pieces of one peer come in order, after those of another. */
static void begin_peer(packing *p, int64_t first) {
    if (first > 0) return;
    p->landed = p->entry = 0;
    p->unique = -1;
}

static void pack_notes(void *opaque, int peer, int64_t first, int64_t n, void *buffer) {
    packing *p = opaque;
    const mdp_engine *engine = p->round->engine;
    mdp_row_note *notes = buffer;
    int64_t n_entry;
    const mdp_route_entry *entries = mdp_round_entries(p->round, peer, &n_entry);
    begin_peer(p, first);
    for (int64_t i = first; i < first + n; i++) {
        const mdp_route_entry *entry = &entries[i];
        const mdp_branch *branch = &engine->branches[entry->branch];
        if (i == 0 || !mdp_same_token(entry, entry - 1)) p->unique++;
        notes[i - first] = (mdp_row_note){.position = entry->position,
                                          .unique = (int32_t)p->unique,
                                          .gate = branch->weight[entry->local * branch->top_k + entry->slot],
                                          .category = engine->category[entry->local],
                                          .token = engine->batch.first_token + entry->local};
    }
}

static void unpack_notes(void *opaque, int peer, int64_t first, int64_t n, const void *buffer) {
    const mdp_round_buffers *buffers = ((packing *)opaque)->round->buffers;
    memcpy(buffers->notes + buffers->counts.note_first[peer] + first, buffer, (size_t)n * sizeof(mdp_row_note));
}

/* The next landed row that the i-th rank of this node needs. */
static const float *next_landed(packing *p, int i) {
    const mdp_landing *landing = &p->round->buffers->landing;
    while (!(landing->needs[p->landed * landing->n_word + i / 64] >> (i % 64) & 1)) p->landed++;
    return landing->x + p->landed++ * p->round->engine->model->d_model;
}

/* The next token row of this rank for a peer. */
static const mdp_route_entry *next_token(packing *p, const mdp_route_entry *entries) {
    while (p->entry > 0 && mdp_same_token(&entries[p->entry], &entries[p->entry - 1])) p->entry++;
    return &entries[p->entry++];
}

/* What landed here for the peer comes first, then rows of this rank. */
static void pack_tokens(void *opaque, int peer, int64_t first, int64_t n, void *buffer) {
    packing *p = opaque;
    const mdp_engine *engine = p->round->engine;
    const mdp_comm *comm = engine->comm;
    int64_t n_entry, d = engine->model->d_model;
    const mdp_route_entry *entries = mdp_round_entries(p->round, peer, &n_entry);
    int place = 0;
    while (comm->rank_node[peer] == comm->node && comm->by_node[comm->node_first[comm->node] + place] != peer) place++;
    begin_peer(p, first);
    for (int64_t i = first; i < first + n; i++) {
        float *to = (float *)buffer + (i - first) * d;
        if (i < p->round->buffers->counts.hand_out[peer]) {
            memcpy(to, next_landed(p, place), (size_t)d * sizeof(float));
        } else {
            const mdp_route_entry *entry = next_token(p, entries);
            mdp_norm_row(engine->model, p->round->norm, engine->branches[entry->branch].x + entry->local * d, to);
        }
    }
}

/* Where the i-th row from a peer belongs. */
static float *token_place(const mdp_round_context *round, int peer, int64_t i) {
    const mdp_round_counts *counts = &round->buffers->counts;
    int64_t handed = counts->hand_in[peer];
    int64_t row = i < handed ? counts->hand_first[peer] + i : counts->row_first[peer] + i - handed;
    return round->buffers->round.x + row * round->engine->model->d_model;
}

static void unpack_tokens(void *opaque, int peer, int64_t first, int64_t n, const void *buffer) {
    const mdp_round_context *round = ((packing *)opaque)->round;
    int64_t d = round->engine->model->d_model;
    for (int64_t i = first; i < first + n; i++)
        memcpy(token_place(round, peer, i), (const float *)buffer + (i - first) * d, (size_t)d * sizeof(float));
}

/* Token rows that this rank needs itself, in no order: notes tell which row is whose. */
static void stay_tokens(void *opaque, int64_t n) {
    const mdp_round_context *round = ((packing *)opaque)->round;
    const mdp_engine *engine = round->engine;
    const mdp_round_buffers *buffers = round->buffers;
    int self = engine->comm->rank;
    int64_t n_entry, d = engine->model->d_model, handed = buffers->counts.hand_out[self];
    packing landed = {.round = round};
    for (int64_t i = 0; i < handed; i++)
        memcpy(token_place(round, self, i), next_landed(&landed, engine->comm->node_rank), (size_t)d * sizeof(float));
    if (n == handed) return;
    const mdp_route_entry *entries = mdp_round_entries(round, self, &n_entry);
    const mdp_row_note *notes = buffers->notes + buffers->counts.note_first[self];
#pragma omp parallel for schedule(static) num_threads(engine->n_thread)
    for (int64_t i = 0; i < n_entry; i++) {
        if (i > 0 && mdp_same_token(&entries[i], &entries[i - 1])) continue;
        mdp_norm_row(engine->model, round->norm, engine->branches[entries[i].branch].x + entries[i].local * d,
                     token_place(round, self, handed + notes[i].unique));
    }
}

static void pack_outputs(void *opaque, int peer, int64_t first, int64_t n, void *buffer) {
    const mdp_round_context *round = ((packing *)opaque)->round;
    const mdp_round_buffers *buffers = round->buffers;
    int64_t d = round->engine->model->d_model;
    const mdp_row_note *notes = buffers->notes + buffers->counts.note_first[peer] + first;
    for (int64_t i = 0; i < n; i++) {
        memcpy((float *)buffer + i * d, buffers->round.y + notes[i].position * d, (size_t)d * sizeof(float));
    }
}

/* Where the output of a route belongs. */
static float *output_place(const mdp_round_context *round, const mdp_route_entry *entry) {
    const mdp_wave *w = round->w;
    int64_t row = w->branch_first[entry->branch] +
                  (entry->local - w->first_local) * round->engine->branches[entry->branch].top_k + entry->slot;
    return w->y + row * round->engine->model->d_model;
}

static void unpack_outputs(void *opaque, int peer, int64_t first, int64_t n, const void *buffer) {
    const mdp_round_context *round = ((packing *)opaque)->round;
    int64_t n_entry, d = round->engine->model->d_model;
    const mdp_route_entry *entries = mdp_round_entries(round, peer, &n_entry) + first;
    for (int64_t i = 0; i < n; i++)
        memcpy(output_place(round, &entries[i]), (const float *)buffer + i * d, (size_t)d * sizeof(float));
}

/* Outputs of this rank's tokens that it computed itself. */
static void stay_outputs(void *opaque, int64_t n) {
    const mdp_round_context *round = ((packing *)opaque)->round;
    const mdp_round_buffers *buffers = round->buffers;
    int self = round->engine->comm->rank;
    int64_t n_entry, d = round->engine->model->d_model;
    const mdp_route_entry *entries = mdp_round_entries(round, self, &n_entry);
    const mdp_row_note *notes = buffers->notes + buffers->counts.note_first[self];
#pragma omp parallel for schedule(static) num_threads(round->engine->n_thread)
    for (int64_t i = 0; i < n; i++)
        memcpy(output_place(round, &entries[i]), buffers->round.y + notes[i].position * d, (size_t)d * sizeof(float));
}

/* ---- activations that come back ---- */

/* The next row from a peer whose activations go back to it. */
static const float *next_kept(packing *p, int peer) {
    const mdp_round_buffers *buffers = p->round->buffers;
    const mdp_row_note *notes = buffers->notes + buffers->counts.note_first[peer];
    while (!buffers->round.comes_back[notes[p->note].position]) p->note++;
    return buffers->round.h + notes[p->note++].position * buffers->round.h_stride;
}

/* Do the activations of a route come back? And of a tile? */
static bool entry_comes_back(const mdp_round_context *round, const mdp_route_entry *entry) {
    return entry->branch == round->w->kept && entry->slot < round->w->h_slots;
}

static bool tile_comes_back(const mdp_round_context *round, const mdp_tile_place *tile) {
    const mdp_engine *engine = round->engine;
    if (tile->branch != round->w->kept) return false;
    return !engine->aside || tile->expert == mdp_roster_of(&engine->roster, 0, 0);
}

/* Where the next activations that come back from a peer belong. */
static float *next_back(packing *p, int peer) {
    const mdp_wave *w = p->round->w;
    int64_t n_entry;
    const mdp_route_entry *entries = mdp_round_entries(p->round, peer, &n_entry);
    while (!entry_comes_back(p->round, &entries[p->back])) p->back++;
    const mdp_route_entry *entry = &entries[p->back++];
    int64_t row = (entry->local - w->first_local) * w->h_slots + entry->slot;
    return w->h + row * w->h_stride;
}

static void pack_activations(void *opaque, int peer, int64_t first, int64_t n, void *buffer) {
    packing *p = opaque;
    int64_t stride = p->round->w->h_stride;
    if (first == 0) p->note = 0;
    for (int64_t i = 0; i < n; i++)
        memcpy((float *)buffer + i * stride, next_kept(p, peer), (size_t)stride * sizeof(float));
}

static void unpack_activations(void *opaque, int peer, int64_t first, int64_t n, const void *buffer) {
    packing *p = opaque;
    int64_t stride = p->round->w->h_stride;
    if (first == 0) p->back = 0;
    for (int64_t i = 0; i < n; i++)
        memcpy(next_back(p, peer), (const float *)buffer + i * stride, (size_t)stride * sizeof(float));
}

static void stay_activations(void *opaque, int64_t n) {
    packing own = *(packing *)opaque;
    int self = own.round->engine->comm->rank;
    own.note = own.back = 0;
    for (int64_t i = 0; i < n; i++) {
        const float *from = next_kept(&own, self);
        memcpy(next_back(&own, self), from, (size_t)own.round->w->h_stride * sizeof(float));
    }
}

/* Which rows of a round are of the branch whose activations come back, before anything is computed that could fail. */
static void mark_kept(const mdp_round_context *round) {
    const mdp_engine *engine = round->engine;
    const mdp_placement *placement = round->w->placement;
    mdp_round_buffers *buffers = round->buffers;
    if (!round->w->h) return;
    for (int64_t t = 0; t < placement->n_tile; t++) {
        const mdp_tile_place *tile = &placement->tiles[t];
        if (tile->owner != engine->comm->rank || tile->round != round->number) continue;
        memset(buffers->round.comes_back + tile->position, tile_comes_back(round, tile), (size_t)tile->n_row);
    }
    for (int peer = 0; peer < engine->comm->size; peer++) {
        int64_t n_entry;
        const mdp_route_entry *entries = mdp_round_entries(round, peer, &n_entry);
        const mdp_row_note *notes = buffers->notes + buffers->counts.note_first[peer];
        buffers->counts.kept_out[peer] = buffers->counts.kept_in[peer] = 0;
        for (int64_t i = 0; i < buffers->counts.notes_in[peer]; i++)
            buffers->counts.kept_out[peer] += buffers->round.comes_back[notes[i].position];
        for (int64_t i = 0; i < n_entry; i++) buffers->counts.kept_in[peer] += entry_comes_back(round, &entries[i]);
    }
}

/* Spread the notes of all sources over the round's arrays by position. */
static void spread_notes(const mdp_engine *engine, const mdp_round_buffers *buffers) {
    const mdp_round *round = &buffers->round;
    const mdp_round_counts *counts = &buffers->counts;
    for (int peer = 0; peer < engine->comm->size; peer++) {
        for (int64_t i = 0; i < counts->notes_in[peer]; i++) {
            const mdp_row_note *note = &buffers->notes[counts->note_first[peer] + i];
            round->source[note->position] = (int32_t)(counts->row_first[peer] + note->unique);
            round->gate[note->position] = note->gate;
            round->category[note->position] = note->category;
            round->token[note->position] = note->token;
        }
    }
}

/* Tell every rank how many notes and token rows come in each round of the wave, so that no round has to wait for
 * numbers. Collective. */
static mdp_status count_rows_all(mdp_round_context *context) {
    mdp_engine *engine = context->engine;
    const mdp_comm *comm = engine->comm;
    const mdp_wave *w = context->w;
    bool lands = context->buffers->landing.n_word > 0;
    int32_t n_round = w->placement->n_round;
    for (context->number = 0; context->number < n_round; context->number++) {
        for (int peer = 0; peer < comm->size; peer++) {
            int64_t *told = mdp_wave_told(w, w->told, peer, context->number);
            const mdp_route_entry *entries = mdp_round_entries(context, peer, &told[0]);
            told[1] = count_unique(entries, told[0]);
            told[2] = 0;
        }
        if (lands) mdp_landing_count(context);
    }
    mdp_phase before = mdp_profile_switch(engine->profile, MDP_PHASE_WAIT_RANKS);
    MDP_TRY(mdp_alltoall_i64_all(comm, w->told, w->heard, 3 * (int64_t)n_round));
    if (lands) MDP_TRY(mdp_landing_number_all(engine, w));
    mdp_profile_switch(engine->profile, before);
    return mdp_ok();
}

/* Lay out what comes here in a round: rows that landed on the way first. */
static void lay_out_rows(const mdp_round_context *context) {
    mdp_engine *engine = context->engine;
    const mdp_comm *comm = engine->comm;
    mdp_round_buffers *buffers = context->buffers;
    mdp_round_counts *counts = &buffers->counts;
    buffers->round.n_row = buffers->round.n_unique = 0;
    for (int straight = 0; straight < 2; straight++) {
        for (int peer = 0; peer < comm->size; peer++) {
            const int64_t *told = mdp_wave_told(context->w, context->w->told, peer, context->number);
            const int64_t *heard = mdp_wave_told(context->w, context->w->heard, peer, context->number);
            if (mdp_landing_skips(comm, &buffers->landing, peer) != straight) continue;
            counts->row_first[peer] = buffers->round.n_unique;
            buffers->round.n_unique += heard[1];
            counts->rows_out[peer] = straight ? told[1] : 0;
            counts->rows_in[peer] = straight ? heard[1] : 0;
            counts->hand_out[peer] = counts->hand_in[peer] = 0;
        }
    }
    for (int peer = 0; peer < comm->size; peer++) {
        const int64_t *told = mdp_wave_told(context->w, context->w->told, peer, context->number);
        counts->notes_out[peer] = told[0];
        counts->notes_in[peer] = mdp_wave_told(context->w, context->w->heard, peer, context->number)[0];
        counts->note_first[peer] = buffers->round.n_row;
        buffers->round.n_row += counts->notes_in[peer];
        if (comm->rank_node[peer] != comm->node) engine->away_row_wanted += told[1];
    }
}

/* ---- the way of a round --------------------------------------------------------------------------------------- */

mdp_status mdp_dispatch_begin_all(mdp_engine *engine, const mdp_exchange *exchange) {
    return mdp_exchange_begin_told_all(engine->comm, exchange, engine->profile);
}

mdp_status mdp_dispatch_finish_all(mdp_engine *engine) {
    return mdp_exchange_finish_told_all(engine->comm, engine->room, engine->profile);
}

/* Token rows that come straight from their rank or, once they have landed, from another of the node. Collective. */
static mdp_status begin_rows_all(packing *p) {
    mdp_engine *engine = p->round->engine;
    mdp_round_counts *counts = &p->round->buffers->counts;
    for (int peer = 0; peer < engine->comm->size; peer++) {
        counts->send[peer] = counts->hand_out[peer] + counts->rows_out[peer];
        counts->recv[peer] = counts->hand_in[peer] + counts->rows_in[peer];
    }
    const mdp_exchange exchange = {.room = engine->room,
                                   .row_byte = mdp_dispatch_row_bytes(engine->model, 0),
                                   .n_send = counts->send,
                                   .n_recv = counts->recv,
                                   .pack = pack_tokens,
                                   .unpack = unpack_tokens,
                                   .stay = stay_tokens,
                                   .context = p};
    return mdp_dispatch_begin_all(engine, &exchange);
}

/* Notes and token rows to the owners of the tiles; where rows land on their way, as far as that. Collective. */
static mdp_status begin_tokens_all(packing *p) {
    mdp_engine *engine = p->round->engine;
    const mdp_comm *comm = engine->comm;
    const mdp_round_counts *counts = &p->round->buffers->counts;
    bool lands = p->round->buffers->landing.n_word > 0;
    lay_out_rows(p->round);
    const mdp_exchange exchange = {.room = engine->room,
                                   .row_byte = sizeof(mdp_row_note),
                                   .n_send = counts->notes_out,
                                   .n_recv = counts->notes_in,
                                   .pack = pack_notes,
                                   .unpack = unpack_notes,
                                   .context = p};
    MDP_TRY(mdp_dispatch_begin_all(engine, &exchange));
    MDP_TRY(lands ? mdp_landing_begin_all(p->round) : begin_rows_all(p));
    for (int peer = 0; peer < comm->size; peer++) {
        if (comm->rank_node[peer] != comm->node)
            engine->away_row += lands ? counts->land_out[peer] : counts->rows_out[peer];
    }
    return mdp_ok();
}

/* What was begun is there: hand on what landed, and be ready to compute. Collective. */
static mdp_status take_tokens_all(packing *p) {
    mdp_engine *engine = p->round->engine;
    if (p->round->buffers->landing.n_word > 0) {
        MDP_TRY(mdp_landing_count_handed_all(p->round));
        MDP_TRY(begin_rows_all(p));
        MDP_TRY(mdp_dispatch_finish_all(engine));
    }
    spread_notes(engine, p->round->buffers);
    mark_kept(p->round);
    return mdp_ok();
}

/* Activations, where they come back. Collective. */
static mdp_status begin_activations_all(packing *p) {
    const mdp_round_counts *counts = &p->round->buffers->counts;
    if (!p->round->w->h) return mdp_ok();
    const mdp_exchange exchange = {.room = p->round->engine->room,
                                   .row_byte = p->round->w->h_stride * (int64_t)sizeof(float),
                                   .n_send = counts->kept_out,
                                   .n_recv = counts->kept_in,
                                   .pack = pack_activations,
                                   .unpack = unpack_activations,
                                   .stay = stay_activations,
                                   .context = p};
    return mdp_dispatch_begin_all(p->round->engine, &exchange);
}

/* Outputs back to the owners of the tokens. Collective. */
static mdp_status begin_outputs_all(packing *p) {
    const mdp_round_counts *counts = &p->round->buffers->counts;
    const mdp_exchange exchange = {.room = p->round->engine->room,
                                   .row_byte = mdp_dispatch_row_bytes(p->round->engine->model, 0),
                                   .n_send = counts->notes_in,
                                   .n_recv = counts->notes_out,
                                   .pack = pack_outputs,
                                   .unpack = unpack_outputs,
                                   .stay = stay_outputs,
                                   .context = p};
    MDP_TRY(mdp_dispatch_begin_all(p->round->engine, &exchange));
    return begin_activations_all(p);
}

/* Begin a round: which rows it has where. Ahead, three arrays go round: while a round computes from one into another,
 * the outputs of the round before leave the third, and only then the tokens of the next round come into it. What lands
 * on its way comes there instead, and is handed on into the array that the round has computed from. */
static void open_round(mdp_round_context *context, const mdp_moe_buffers *buffers, int32_t number) {
    mdp_round_buffers *own = context->buffers;
    bool lands = own->landing.n_word > 0;
    own->round.x = buffers->rows[buffers->ahead && !lands ? number % 3 : 0];
    own->round.y = buffers->rows[!buffers->ahead ? 1 : lands ? 1 + number % 2 : (number + 2) % 3];
    own->landing.x = own->round.y;
    own->round.h = buffers->h[buffers->ahead ? number % 2 : 0];
    own->round.comes_back = buffers->comes_back[buffers->ahead ? number % 2 : 0];
    own->round.h_stride = buffers->h_stride;
    context->number = number;
}

mdp_status mdp_dispatch_wave_all(mdp_engine *engine, const mdp_wave *w, const mdp_layer *layer, int64_t layer_number,
                                 const float *norm, mdp_moe_buffers *buffers, mdp_status *computed) {
    mdp_round_context contexts[MDP_ROUNDS_AT_ONCE]; /* of a round until its outputs are back */
    packing packings[MDP_ROUNDS_AT_ONCE];
    int n_place = buffers->ahead ? MDP_ROUNDS_AT_ONCE : 1;
    for (int i = 0; i < MDP_ROUNDS_AT_ONCE; i++) {
        contexts[i] = (mdp_round_context){.engine = engine, .w = w, .norm = norm, .buffers = &buffers->rounds[i]};
        packings[i] = (packing){.round = &contexts[i]};
    }
    *computed = mdp_ok();
    MDP_TRY(count_rows_all(&contexts[0]));
    for (int32_t number = 0; number < w->placement->n_round; number++) {
        packing *now = &packings[number % n_place], *next = &packings[(number + 1) % n_place];
        bool first = number == 0 || !buffers->ahead, last = number + 1 == w->placement->n_round || !buffers->ahead;
        if (first) {
            open_round(&contexts[number % n_place], buffers, number);
            MDP_TRY(begin_tokens_all(now));
            MDP_TRY(mdp_dispatch_finish_all(engine));
            MDP_TRY(take_tokens_all(now));
        } else {
            MDP_TRY(begin_outputs_all(&packings[(number - 1) % n_place]));
        }
        if (!last) {
            open_round(&contexts[(number + 1) % n_place], buffers, number + 1);
            MDP_TRY(begin_tokens_all(next));
        }
        if (computed->code == MDP_OK)
            *computed = mdp_experts_compute(engine, layer, layer_number, w->placement, number,
                                            &now->round->buffers->round, &buffers->scratch);
        MDP_TRY(mdp_dispatch_finish_all(engine)); /* whatever came of the products: others count on it */
        if (!last) MDP_TRY(take_tokens_all(next));
        if (last) {
            MDP_TRY(begin_outputs_all(now));
            MDP_TRY(mdp_dispatch_finish_all(engine));
        }
    }
    return mdp_ok();
}
