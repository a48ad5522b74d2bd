/* moe.c - the MoE block over all ranks: tokens travel to the experts' owners and the outputs travel back.
 *
 * In: residual streams and routes of all branches. Out: x += sum over slots of weight * y, added in top-k slot order at
 * the token's owner; returned rows are never added up on the way. The batch's blocks go through in waves, so that the
 * outputs kept until the combine are bounded; a wave in rounds (dispatch.c), so that the rows a rank takes in are. */
#include "engine/moe.h"
#include "engine/dispatch.h"
#include "engine/mlp.h"

#include <omp.h>
#include <string.h>

/* Add the rows of tokens [first, end) of every branch to rows [n_branch, n_block, n_expert]. */
static void count_rows(const mdp_engine *engine, int64_t first_block, int64_t n_block, int32_t n_expert,
                       int64_t *rows) {
    for (int s = 0; s < engine->n_branch; s++) {
        const mdp_branch *branch = &engine->branches[s];
        for (int64_t p = 0; !branch->idle && p < engine->batch.n_pack; p++) {
            const mdp_pack *pack = &engine->partition->packs[engine->batch.first_pack + p];
            int64_t first = pack->first_token - engine->batch.first_token;
            int64_t *row = rows + (s * n_block + pack->block - first_block) * n_expert;
            for (int64_t i = first * branch->top_k; i < (first + pack->n_token) * branch->top_k; i++) {
                if (branch->index[i] >= 0) row[mdp_roster_of(&engine->roster, s, branch->index[i])]++;
            }
        }
    }
}

int64_t mdp_wave_blocks(const mdp_comm *comm, const mdp_partition *partition, int64_t batch, int64_t first,
                        int64_t end) {
    int64_t n_block = 0;
    for (int64_t b = first; b < end; b++) {
        int64_t worst = 0;
        for (int rank = 0; rank < comm->size; rank++) {
            int64_t low, high;
            mdp_partition_share(partition, batch, rank, comm->size, &low, &high);
            if (low < partition->block_pack[first]) low = partition->block_pack[first];
            if (high > partition->block_pack[b + 1]) high = partition->block_pack[b + 1];
            if (low >= high) continue;
            const mdp_pack *last = &partition->packs[high - 1];
            int64_t n = last->first_token + last->n_token - partition->packs[low].first_token;
            if (n > worst) worst = n;
        }
        if (n_block > 0 && worst > MDP_WAVE_TOKENS) break;
        n_block++;
    }
    return n_block;
}

/* Rows of this rank in the wave's blocks. */
static void wave_locals(const mdp_engine *engine, mdp_wave *w) {
    w->first_local = w->n_local = 0;
    for (int64_t p = 0; p < engine->batch.n_pack; p++) {
        const mdp_pack *pack = &engine->partition->packs[engine->batch.first_pack + p];
        if (pack->block < w->first_block || pack->block >= w->first_block + w->n_block) continue;
        if (w->n_local == 0) w->first_local = pack->first_token - engine->batch.first_token;
        w->n_local += pack->n_token;
    }
}

typedef void entry_fn(mdp_wave *w, int64_t bucket, const mdp_route_entry *entry);

static void count_entry(mdp_wave *w, int64_t bucket, const mdp_route_entry *entry) {
    (void)entry;
    w->bucket[bucket + 1]++;
}

static void store_entry(mdp_wave *w, int64_t bucket, const mdp_route_entry *entry) {
    w->entries[w->bucket[bucket]++] = *entry;
}

/* Walk this rank's routes of the wave in (branch, token, slot) order. next [n_branch, n_block, n_expert] numbers the
 * rows of each (branch, block, expert) over all ranks, beginning with this rank's first. */
static void walk_routes(const mdp_engine *engine, mdp_wave *w, int64_t *next, entry_fn *visit) {
    const mdp_placement *placement = w->placement;
    for (int32_t s = 0; s < engine->n_branch; s++) {
        const mdp_branch *branch = &engine->branches[s];
        for (int64_t p = 0; !branch->idle && p < engine->batch.n_pack; p++) {
            const mdp_pack *pack = &engine->partition->packs[engine->batch.first_pack + p];
            if (pack->block < w->first_block || pack->block >= w->first_block + w->n_block) continue;
            int64_t at = (s * w->n_block + pack->block - w->first_block) * placement->n_expert;
            int64_t first = pack->first_token - engine->batch.first_token;
            for (int64_t local = first; local < first + pack->n_token; local++) {
                for (int32_t slot = 0; slot < branch->top_k; slot++) {
                    mdp_expert_t index = branch->index[local * branch->top_k + slot];
                    if (index < 0) continue; /* aside: it goes nowhere */
                    mdp_expert_t e = mdp_roster_of(&engine->roster, s, index);
                    int64_t row = next[at + e]++;
                    const mdp_tile_place *tile = &placement->tiles[placement->first_tile[at + e] + row / MDP_TILE_ROWS];
                    mdp_route_entry entry = {.local = local,
                                             .branch = s,
                                             .slot = slot,
                                             .position = tile->position + (int32_t)(row % MDP_TILE_ROWS)};
                    visit(w, (int64_t)tile->round * engine->comm->size + tile->owner, &entry);
                }
            }
        }
    }
}

/* Rows of a branch in a wave. */
static int64_t outputs_of(const mdp_engine *engine, const mdp_wave *w, int branch) {
    return engine->branches[branch].idle ? 0 : w->n_local * engine->branches[branch].top_k;
}

/* Sort this rank's routes into buckets of (round, owner): count, prefix, store. */
static mdp_status list_entries(const mdp_engine *engine, mdp_wave *w, const int64_t *start) {
    int64_t n_bucket = (int64_t)w->placement->n_round * engine->comm->size;
    int64_t n_cell = (int64_t)engine->n_branch * w->n_block * w->placement->n_expert, n_entry = 0;
    int64_t *next = NULL;
    for (int s = 0; s < engine->n_branch; s++) n_entry += outputs_of(engine, w, s);
    MDP_TRY(MDP_TAKE(engine->stack, &w->entries, n_entry, "the list of routes"));
    MDP_TRY(MDP_ALLOC(&w->bucket, n_bucket + 2, "the list of routes"));
    MDP_TRY(MDP_ALLOC(&next, n_cell, "row numbers"));
    memcpy(next, start, (size_t)n_cell * sizeof *next);
    w->bucket++; /* shifted by one while counting, so that storing leaves the prefix in place */
    walk_routes(engine, w, next, count_entry);
    for (int64_t i = 0; i < n_bucket; i++) w->bucket[i + 1] += w->bucket[i];
    memcpy(next, start, (size_t)n_cell * sizeof *next);
    walk_routes(engine, w, next, store_entry);
    w->bucket--;
    mdp_free(next);
    return mdp_ok();
}

/* ---- combine ---- */

/* x += residual_scale times the sum over the slots that are used of weight * y, plus the shared expert's row, for the
 * wave's rows of one branch. */
static void combine(mdp_engine *engine, const mdp_wave *w, int64_t layer_number, int branch_number, const float *shared,
                    float *scratch) {
    mdp_branch *branch = &engine->branches[branch_number];
    int64_t d = engine->model->d_model, k = branch->top_k;
    bool weighed = engine->model->layers[layer_number].moe.rule.weigh_input;
#pragma omp parallel for schedule(static) num_threads(engine->n_thread)
    for (int64_t i = 0; i < w->n_local; i++) {
        int64_t local = w->first_local + i;
        const float *weight = branch->weight + local * k, *y = w->y + (w->branch_first[branch_number] + i * k) * d;
        float *routed = scratch + (size_t)omp_get_thread_num() * (size_t)d, *x = branch->x + local * d;
        memset(routed, 0, (size_t)d * sizeof *routed);
        for (int64_t slot = 0; !engine->aside && slot < branch->n_used; slot++)
            mdp_axpy(weighed ? 1.0F : weight[slot], y + slot * d, d, routed);
        if (engine->observers.combined) {
            mdp_combined_token token = {.layer = layer_number,
                                        .branch = branch_number,
                                        .local = local,
                                        .top_k = branch->top_k,
                                        .index = branch->index + local * k,
                                        .weight = weight,
                                        .y = y,
                                        .residual = x,
                                        .scale = (float)engine->model->residual_scale,
                                        .weighed = weighed,
                                        .routed = routed,
                                        .shared = shared ? shared + i * d : NULL};
            mdp_phase before = mdp_engine_begin_observing(engine);
            engine->observers.combined(engine->observers.context, &token);
            mdp_engine_end_observing(engine, before);
        }
        if (engine->aside) continue;
        if (shared) mdp_axpy(1.0F, shared + i * d, d, routed);
        mdp_axpy((float)engine->model->residual_scale, routed, d, x);
    }
}

/* ---- waves ---- */

static void destroy_wave(mdp_wave *w) {
    mdp_placement_destroy(w->placement);
    mdp_free(w->bucket);
    mdp_free(w->branch_first);
}

/* Local preparation of a wave: placement, entries, room for the outputs. rows and start [n_branch, n_block, n_expert].
 */
static mdp_status prepare_wave(const mdp_engine *engine, mdp_wave *w, const int64_t *rows, const int64_t *start,
                               int32_t n_expert) {
    int64_t n_output = 0;
    wave_locals(engine, w);
    MDP_TRY(mdp_placement_new(engine->comm, rows, engine->n_branch, w->first_block, w->n_block, n_expert,
                              engine->n_thread, &w->placement));
    MDP_TRY(list_entries(engine, w, start));
    MDP_TRY(MDP_ALLOC(&w->branch_first, engine->n_branch, "expert outputs"));
    for (int s = 0; s < engine->n_branch; s++) {
        w->branch_first[s] = n_output;
        n_output += outputs_of(engine, w, s);
    }
    MDP_TRY(MDP_TAKE(engine->stack, &w->y, n_output * engine->model->d_model, "expert outputs"));
    w->kept = mdp_engine_kept_branch(engine);
    w->h_stride = engine->roster.largest_ff;
    w->h_slots = w->kept < 0 ? 0 : engine->aside ? 1 : engine->branches[w->kept].top_k;
    if (w->kept >= 0)
        MDP_TRY(MDP_TAKE(engine->stack, &w->h, w->n_local * w->h_slots * w->h_stride, "activations of experts"));
    int64_t n_told = 3 * (int64_t)w->placement->n_round * engine->comm->size;
    int64_t n_node = (int64_t)w->placement->n_round * engine->comm->n_node;
    MDP_TRY(MDP_TAKE(engine->stack, &w->told, n_told, "row counts"));
    MDP_TRY(MDP_TAKE(engine->stack, &w->heard, n_told, "row counts"));
    MDP_TRY(MDP_TAKE(engine->stack, &w->node_row, n_node, "row counts"));
    MDP_TRY(MDP_TAKE(engine->stack, &w->node_start, n_node, "row counts"));
    return MDP_TAKE(engine->stack, &w->node_total, n_node, "row counts");
}

/* Rows of every (branch, block of the wave, expert): over all ranks, and on lower ranks. Collective. */
static mdp_status number_rows_all(const mdp_engine *engine, const int64_t *local, int64_t n_cell, int64_t *rows,
                                  int64_t *start) {
    memcpy(rows, local, (size_t)n_cell * sizeof *rows);
    memcpy(start, local, (size_t)n_cell * sizeof *start);
    MDP_TRY(mdp_sum_i64_all(engine->comm, rows, n_cell));
    return mdp_exscan_i64_all(engine->comm, start, n_cell);
}

/* Cells of one wave out of the batch's [n_branch, n_block, n_expert] into [n_branch, w->n_block, n_expert]. */
static void wave_cells(const mdp_engine *engine, const mdp_wave *w, const int64_t *all, int64_t batch_first,
                       int64_t batch_blocks, int64_t n_expert, int64_t *out) {
    for (int64_t s = 0; s < engine->n_branch; s++) {
        memcpy(out + s * w->n_block * n_expert, all + (s * batch_blocks + w->first_block - batch_first) * n_expert,
               (size_t)(w->n_block * n_expert) * sizeof *out);
    }
}

/* The wave's outputs of one branch, with the shared expert where there is one. Local. */
static mdp_status finish_branch(mdp_engine *engine, const mdp_wave *w, int64_t layer_number, int branch,
                                const float *norm, mdp_moe_buffers *buffers) {
    const mdp_moe *moe = &engine->model->layers[layer_number].moe;
    float *shared = NULL;
    mdp_status status = mdp_ok();
    mdp_mark mark = mdp_stack_mark(engine->stack);
    mdp_phase before = mdp_profile_switch(engine->profile, MDP_PHASE_MLP);
    if (moe->shared.gate.tensor && !engine->aside) {
        mdp_mlp mlp = {.expert = &moe->shared,
                       .d_ff = moe->shared_ff,
                       .activation = moe->activation,
                       .output_gate = buffers->shared_gate,
                       .norm = norm};
        status = MDP_TAKE(engine->stack, &shared, w->n_local * engine->model->d_model, "outputs of the shared expert");
        if (status.code == MDP_OK) {
            status = mdp_mlp_compute(engine, &mlp, &engine->branches[branch], w->first_local, w->n_local, shared);
        }
    }
    mdp_profile_switch(engine->profile, MDP_PHASE_COMBINE);
    if (status.code == MDP_OK) combine(engine, w, layer_number, branch, shared, buffers->scratch.up);
    mdp_stack_return(engine->stack, mark);
    mdp_profile_switch(engine->profile, before);
    return status;
}

/* No rank gets more rows than it has room for. */
static mdp_status check_room(const mdp_placement *placement, int64_t n_row) {
    for (int64_t t = 0; t < placement->n_tile; t++) {
        const mdp_tile_place *tile = &placement->tiles[t];
        if (tile->position + tile->n_row > n_row)
            return MDP_ERROR(MDP_INTERNAL, "rank %d has more than %lld rows in a round.", tile->owner,
                             (long long)n_row);
    }
    return mdp_ok();
}

/* The wave's activations to who asked for them. Collective. */
static mdp_status show_wave_all(mdp_engine *engine, const mdp_wave *w, int64_t layer_number) {
    const mdp_branch *branch = &engine->branches[w->kept];
    int64_t *first = NULL;
    MDP_AGREE(engine->comm, MDP_ALLOC(&first, w->n_block + 1, "blocks of a wave"));
    for (int64_t p = 0; p < engine->batch.n_pack; p++) {
        const mdp_pack *pack = &engine->partition->packs[engine->batch.first_pack + p];
        if (pack->block >= w->first_block && pack->block < w->first_block + w->n_block)
            first[pack->block - w->first_block + 1] += pack->n_token;
    }
    for (int64_t b = 0; b < w->n_block; b++) first[b + 1] += first[b];
    const mdp_wave_rows rows = {.layer = layer_number,
                                .branch = w->kept,
                                .first_block = w->first_block,
                                .n_block = w->n_block,
                                .first_local = w->first_local,
                                .n_local = w->n_local,
                                .block_first = first,
                                .n_expert = branch->n_expert,
                                .top_k = branch->top_k,
                                .index = branch->index + w->first_local * branch->top_k,
                                .weight = branch->weight + w->first_local * branch->top_k,
                                .h = w->h,
                                .stride = w->h_stride};
    mdp_phase before = mdp_profile_switch(engine->profile, MDP_PHASE_OBSERVERS);
    mdp_status status = engine->observers.wave_all(engine->observers.context, &rows);
    mdp_profile_switch(engine->profile, before);
    mdp_free(first);
    return status;
}

static mdp_status run_wave(mdp_engine *engine, mdp_wave *w, const int64_t *rows, const int64_t *start,
                           int64_t layer_number, const float *norm, mdp_moe_buffers *buffers) {
    const mdp_layer *layer = &engine->model->layers[layer_number];
    mdp_status status = prepare_wave(engine, w, rows, start, engine->roster.n);
    if (status.code == MDP_OK) status = check_room(w->placement, buffers->rounds[0].capacity);
    status = mdp_engine_agree_all(engine, status);
    if (status.code != MDP_OK) return status;
    MDP_TRY(mdp_dispatch_wave_all(engine, w, layer, layer_number, norm, buffers, &status));
    for (int s = 0; s < engine->n_branch && status.code == MDP_OK; s++) {
        if (!engine->branches[s].idle) status = finish_branch(engine, w, layer_number, s, norm, buffers);
    }
    status = mdp_engine_agree_all(engine, status);
    return status.code == MDP_OK && w->kept >= 0 ? show_wave_all(engine, w, layer_number) : status;
}

/* ---- the block ---- */

static void destroy_buffers(mdp_moe_buffers *buffers) {
    for (int i = 0; i < MDP_ROUNDS_AT_ONCE; i++) mdp_free(buffers->rounds[i].counts.memory);
    mdp_free(buffers->scratch.bias);
    mdp_free(buffers->scratch.stored);
    mdp_free(buffers->scratch.panels.items);
    mdp_free(buffers->scratch.own);
    mdp_free(buffers->scratch.tiles);
    mdp_free(buffers->scratch.groups);
    mdp_free(buffers->shared_gate);
}

int64_t mdp_moe_thread_scratch(int64_t d_model) {
    int64_t panel = (int64_t)MDP_TILE_ROWS * MDP_PANEL_ROWS;
    return panel > d_model ? panel : d_model;
}

mdp_moe_room mdp_moe_room_of(const mdp_comm *comm, const mdp_partition *partition, int32_t top_k, int32_t n_expert,
                             int32_t n_roster, int n_thread, int n_stream) {
    mdp_moe_room out = {.n_row = n_stream * partition->batch_tokens * top_k};
    int64_t most_block = 0;
    for (int64_t batch = 0; batch < partition->n_batch; batch++) {
        int64_t n_tile = 0, n_block = partition->batch_block[batch + 1] - partition->batch_block[batch];
        if (n_block > most_block) most_block = n_block;
        for (int64_t b = partition->batch_block[batch]; b < partition->batch_block[batch + 1]; b++) {
            int64_t n = mdp_partition_block_tokens(partition, b), even = n * top_k / n_expert + 1;
            if (even + even / 4 < n) n = even + even / 4;
            n_tile += n_stream * ((n + MDP_TILE_ROWS - 1) / MDP_TILE_ROWS);
        }
        if (n_tile > out.n_tile) out.n_tile = n_tile;
    }
    out.ahead = comm->size > 1 && out.n_row > mdp_round_rows(n_thread);
    int64_t placed = mdp_placement_most_rows(comm, out.n_row, (int64_t)n_stream * most_block * n_roster);
    if (out.n_row > placed) out.n_row = placed; /* capacity that nobody fills would be room for another step's pages */
    if (out.n_row > mdp_round_rows(n_thread)) out.n_row = mdp_round_rows(n_thread);
    int64_t wanted = n_thread > 1 ? 2 * n_thread : 1; /* so that threads find a tile while others go down */
    if (out.n_tile < wanted) out.n_tile = wanted < out.n_row ? wanted : out.n_row;
    if (out.n_tile > mdp_group_tiles(n_thread)) out.n_tile = mdp_group_tiles(n_thread);
    return out;
}

/* What is of one round at a time, all have in common. */
static mdp_status new_rounds(const mdp_engine *engine, const mdp_moe_room *room, mdp_moe_buffers *buffers) {
    mdp_round_buffers *first = &buffers->rounds[0];
    int64_t n = room->n_row;
    int n_place = room->ahead ? MDP_ROUNDS_AT_ONCE : 1;
    buffers->ahead = room->ahead;
    first->capacity = n;
    first->landing.n_word = mdp_landing_words(engine->comm);
    MDP_TRY(MDP_TAKE(engine->stack, &first->round.source, n, "rows of a round"));
    MDP_TRY(MDP_TAKE(engine->stack, &first->round.gate, n, "rows of a round"));
    MDP_TRY(MDP_TAKE(engine->stack, &first->round.category, n, "rows of a round"));
    MDP_TRY(MDP_TAKE(engine->stack, &first->round.token, n, "rows of a round"));
    MDP_TRY(MDP_TAKE(engine->stack, &first->landing.needs, (n + 1) * first->landing.n_word, "rows of a round"));
    for (int i = 1; i < n_place; i++) buffers->rounds[i] = *first;
    for (int i = 0; i < n_place; i++) {
        MDP_TRY(MDP_TAKE(engine->stack, &buffers->rounds[i].notes, n, "notes of a round"));
        MDP_TRY(mdp_round_counts_new(engine->comm, &buffers->rounds[i].counts));
    }
    buffers->h_stride = engine->roster.largest_ff;
    for (int i = 0; mdp_engine_kept_branch(engine) >= 0 && i < (room->ahead ? 2 : 1); i++) {
        MDP_TRY(MDP_TAKE(engine->stack, &buffers->h[i], n * buffers->h_stride, "activations of a round"));
        MDP_TRY(MDP_TAKE(engine->stack, &buffers->comes_back[i], n, "activations of a round"));
    }
    for (int i = 0; i < (room->ahead ? 3 : 2); i++)
        MDP_TRY(MDP_TAKE(engine->stack, &buffers->rows[i], n * engine->model->d_model, "rows of a round"));
    return mdp_ok();
}

/* Room for the biases of any one expert, and to read them. */
static mdp_status new_bias_room(const mdp_roster *roster, mdp_expert_scratch *scratch) {
    int64_t n_value = 0, n_byte = 0;
    for (int32_t e = 0; e < roster->n; e++) {
        const mdp_expert *expert = roster->experts[e];
        const mdp_matrix *biases[] = {&expert->gate_bias, &expert->up_bias, &expert->down_bias};
        int64_t n_own = 0;
        for (int i = 0; i < 3; i++) {
            int64_t n_stored = mdp_matrix_scratch(biases[i], 1);
            n_own += biases[i]->n_col;
            if (n_stored > n_byte) n_byte = n_stored;
        }
        if (n_own > n_value) n_value = n_own;
    }
    MDP_TRY(MDP_ALLOC(&scratch->bias, n_value, "biases of an expert"));
    return mdp_alloc(&scratch->stored, n_byte, 1, "biases of an expert");
}

static mdp_status new_buffers(mdp_engine *engine, int64_t layer, mdp_moe_buffers *buffers) {
    const mdp_moe *moe = &engine->model->layers[layer].moe;
    int32_t top_k = 0, n_roster = mdp_roster_most(engine->model, layer, engine->views, engine->n_stream);
    if (engine->roster.n > n_roster) n_roster = engine->roster.n; /* aside */
    for (int s = 0; s < engine->n_branch; s++)
        if (engine->branches[s].top_k > top_k) top_k = engine->branches[s].top_k;
    const mdp_moe_room room = mdp_moe_room_of(engine->comm, engine->partition, top_k, moe->n_expert, n_roster,
                                              engine->n_thread, engine->n_stream);
    int64_t d_ff = engine->roster.largest_ff, d = engine->model->d_model;
    mdp_expert_scratch *scratch = &buffers->scratch;
    MDP_TRY(new_rounds(engine, &room, buffers));
    MDP_TRY(mdp_gated_take_room(engine, room.n_tile, d_ff, &scratch->room));
    if (engine->projected) MDP_TRY(mdp_gated_take_projections(engine, &scratch->room));
    MDP_TRY(MDP_TAKE(engine->stack, &scratch->up, engine->n_thread * mdp_moe_thread_scratch(d), "expert scratch"));
    if (moe->experts[0].gate_bias.tensor) MDP_TRY(new_bias_room(&engine->roster, scratch));
    if (moe->shared_gate.tensor) MDP_TRY(mdp_engine_load(engine, &moe->shared_gate, &buffers->shared_gate));
    return mdp_ok();
}

mdp_status mdp_moe_all(mdp_engine *engine, int64_t layer_number, const float *norm) {
    const mdp_partition *partition = engine->partition;
    int32_t n_expert = engine->roster.n;
    int64_t first = partition->batch_block[engine->batch.number],
            end = partition->batch_block[engine->batch.number + 1];
    int64_t n_block = end - first, n_cell = engine->n_branch * n_block * n_expert;
    int64_t *cells = NULL; /* [5, n_cell]: local rows, rows over all ranks, rows on lower ranks, and two for a wave */
    mdp_moe_buffers buffers = {0};
    mdp_mark mark = mdp_stack_mark(engine->stack);
    mdp_status status = MDP_ALLOC(&cells, 5 * n_cell, "row counts");
    if (status.code == MDP_OK) status = new_buffers(engine, layer_number, &buffers);
    MDP_TRY_GOTO(status, done, mdp_agree_all(engine->comm, status));
    count_rows(engine, first, n_block, n_expert, cells);
    MDP_TRY_GOTO(status, done, number_rows_all(engine, cells, n_cell, cells + n_cell, cells + 2 * n_cell));
    for (int64_t block = first; block < end && status.code == MDP_OK;) {
        mdp_wave w = {.first_block = block,
                      .n_block = mdp_wave_blocks(engine->comm, partition, engine->batch.number, block, end)};
        int64_t *rows = cells + 3 * n_cell, *start = cells + 4 * n_cell;
        wave_cells(engine, &w, cells + n_cell, first, n_block, n_expert, rows);
        wave_cells(engine, &w, cells + 2 * n_cell, first, n_block, n_expert, start);
        mdp_mark wave = mdp_stack_mark(engine->stack);
        status = run_wave(engine, &w, rows, start, layer_number, norm, &buffers);
        block += w.n_block;
        destroy_wave(&w);
        mdp_stack_return(engine->stack, wave);
    }
done:
    destroy_buffers(&buffers);
    mdp_stack_return(engine->stack, mark);
    mdp_free(cells);
    return status;
}
