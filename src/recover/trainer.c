/* trainer.c - a layer in training: its units and their owners, weights in, weights out. */
#include "recover/trainer.h"

#include <string.h>

/* ---- units ------------------------------------------------------------------------------------------------------ */

void mdp_train_units_of(const mdp_trainer *t, int rank, int64_t *first, int64_t *end) {
    *first = mdp_divide_up(rank * t->n_unit, t->comm->size);
    *end = mdp_divide_up((rank + 1) * t->n_unit, t->comm->size);
}

int64_t mdp_train_slices_at(const mdp_trainer *t, int rank, int32_t expert, int64_t *first) {
    int64_t begin, end, own = (int64_t)expert * t->n_slice;
    mdp_train_units_of(t, rank, &begin, &end);
    begin = mdp_larger(begin, own);
    end = mdp_smaller(end, own + t->n_slice);
    *first = begin - own;
    return end > begin ? end - begin : 0;
}

/* Neurons of a unit of a layer whose widest expert has so many; how many units that makes. */
static int64_t width_of(int64_t d_ff) {
    return mdp_larger(mdp_smaller(d_ff, MDP_TRAIN_NEURONS), mdp_divide_up(d_ff, MDP_TRAIN_SLICES));
}

static void describe_unit(const mdp_trainer *t, int64_t number, mdp_train_unit *unit) {
    int64_t width = width_of(t->layer.moe->d_ff), d = t->layer.d_model, slice = number % t->n_slice;
    unit->expert = (int32_t)(number / t->n_slice);
    const mdp_expert *expert = t->layer.expert[unit->expert];
    bool zero = t->layer.zero && t->layer.zero[unit->expert], biased = expert->down_bias.tensor != NULL;
    int64_t n_neuron = zero ? 0 : expert->gate.n_row;
    unit->first = mdp_smaller(slice * width, n_neuron);
    unit->n = mdp_smaller(width, n_neuron - unit->first);
    const int64_t size[MDP_TRAIN_N_PART] = {unit->n * d,          unit->n * d,
                                            d * unit->n,          biased ? unit->n : 0,
                                            biased ? unit->n : 0, biased && slice == 0 && !zero ? d : 0};
    for (int part = 0; part < MDP_TRAIN_N_PART; part++) unit->at[part + 1] = unit->at[part] + size[part];
}

/* ---- reading ---------------------------------------------------------------------------------------------------- */

/* Columns first .. first + n - 1 of a matrix, [n_row, n]. */
static mdp_status read_columns(mdp_reader *reader, const mdp_matrix *matrix, int64_t first, int64_t n, float *out) {
    int64_t step = MDP_PANEL_ROWS;
    void *scratch = NULL;
    float *rows = NULL;
    mdp_status status = mdp_alloc(&scratch, mdp_matrix_scratch(matrix, step) + 1, 1, "a down projection");
    if (status.code == MDP_OK) status = MDP_ALLOC(&rows, step * matrix->n_col, "a down projection");
    for (int64_t row = 0; row < matrix->n_row && status.code == MDP_OK; row += step) {
        int64_t n_row = mdp_smaller(step, matrix->n_row - row);
        status = mdp_matrix_read(reader, matrix, row, n_row, scratch, rows);
        for (int64_t r = 0; status.code == MDP_OK && r < n_row; r++)
            memcpy(out + (row + r) * n, rows + r * matrix->n_col + first, (size_t)n * sizeof *out);
    }
    mdp_free(scratch);
    mdp_free(rows);
    return status;
}

/* Rows first .. first + n - 1. */
static mdp_status read_rows(mdp_reader *reader, const mdp_matrix *matrix, int64_t first, int64_t n, float *out) {
    void *scratch = NULL;
    MDP_TRY(mdp_alloc(&scratch, mdp_matrix_scratch(matrix, n) + 1, 1, "a projection"));
    mdp_status status = n > 0 ? mdp_matrix_read(reader, matrix, first, n, scratch, out) : mdp_ok();
    mdp_free(scratch);
    return status;
}

/* Values first .. first + n - 1 of a vector. */
static mdp_status read_values(mdp_reader *reader, const mdp_matrix *vector, int64_t first, int64_t n, float *out) {
    float *all = NULL;
    if (n == 0) return mdp_ok();
    MDP_TRY(mdp_matrix_load(reader, vector, &all));
    memcpy(out, all + first, (size_t)n * sizeof *out);
    mdp_free(all);
    return mdp_ok();
}

static mdp_status read_unit(mdp_reader *reader, const mdp_trainer *t, mdp_train_unit *unit) {
    const mdp_expert *from = t->layer.expert[unit->expert];
    const int64_t *at = unit->at, n = at[MDP_TRAIN_N_PART];
    bool trained = t->options.experts;
    MDP_TRY(MDP_ALLOC(&unit->value, n, "weights of experts"));
    MDP_TRY(MDP_ALLOC(&unit->gradient, trained ? n : 0, "gradients of experts"));
    MDP_TRY(MDP_ALLOC(&unit->mean, trained ? n : 0, "moments of experts"));
    MDP_TRY(MDP_ALLOC(&unit->square, trained ? n : 0, "moments of experts"));
    if (unit->n == 0) return mdp_ok();
    MDP_TRY(read_rows(reader, &from->gate, unit->first, unit->n, unit->value + at[MDP_TRAIN_GATE]));
    MDP_TRY(read_rows(reader, &from->up, unit->first, unit->n, unit->value + at[MDP_TRAIN_UP]));
    MDP_TRY(read_columns(reader, &from->down, unit->first, unit->n, unit->value + at[MDP_TRAIN_DOWN]));
    const mdp_matrix *biases[] = {&from->gate_bias, &from->up_bias, &from->down_bias};
    for (int i = 0; i < 3; i++) {
        int part = MDP_TRAIN_GATE_BIAS + i;
        MDP_TRY(
            read_values(reader, biases[i], i < 2 ? unit->first : 0, at[part + 1] - at[part], unit->value + at[part]));
    }
    return mdp_ok();
}

/* ---- the router ------------------------------------------------------------------------------------------------- */

/* A number for each expert: of the layer's list, or of who has one of its own. */
static mdp_status read_numbers(mdp_reader *reader, const mdp_trainer *t, const mdp_matrix *of_all, size_t of_own,
                               float *out) {
    float *all = NULL;
    MDP_TRY(mdp_matrix_load(reader, of_all, &all));
    mdp_status status = mdp_ok();
    for (int32_t e = 0; e < t->layer.n_expert && status.code == MDP_OK; e++) {
        const mdp_expert *own = t->layer.row[e];
        out[e] = all[t->layer.source[e]];
        if (!own) continue;
        const mdp_matrix *one = (const mdp_matrix *)(const void *)((const char *)own + of_own);
        status = read_values(reader, one, 0, 1, &out[e]);
    }
    mdp_free(all);
    return status;
}

static mdp_status read_router(mdp_reader *reader, mdp_trainer *t) {
    const mdp_moe *moe = t->layer.moe;
    int64_t d = t->layer.d_model, n = t->layer.n_expert;
    t->has_bias = moe->router_bias.tensor != NULL;
    t->n_router = n * (d + t->has_bias);
    MDP_TRY(MDP_ALLOC(&t->router, t->n_router, "a router"));
    MDP_TRY(MDP_ALLOC(&t->own_row, n, "a router"));
    if (t->options.router) {
        MDP_TRY(MDP_ALLOC(&t->router_gradient, t->n_router, "the gradient of a router"));
        MDP_TRY(MDP_ALLOC(&t->router_mean, t->n_router, "moments of a router"));
        MDP_TRY(MDP_ALLOC(&t->router_square, t->n_router, "moments of a router"));
    }
    for (int32_t e = 0; e < n; e++) {
        const mdp_expert *own = t->layer.row[e];
        t->own_row[e] = e;
        MDP_TRY(
            read_rows(reader, own ? &own->router : &moe->router, own ? 0 : t->layer.source[e], 1, t->router + e * d));
    }
    if (t->has_bias)
        MDP_TRY(read_numbers(reader, t, &moe->router_bias, offsetof(mdp_expert, router_bias), t->router + n * d));
    if (!moe->choice_bias.tensor) return mdp_ok();
    MDP_TRY(MDP_ALLOC(&t->choice_bias, n, "a router"));
    return read_numbers(reader, t, &moe->choice_bias, offsetof(mdp_expert, choice_bias), t->choice_bias);
}

/* Gradients of logits times inputs: one pair of sides. */
static mdp_status lay_out_router(mdp_trainer *t) {
    const mdp_product_side sides[2] = {{.n_value = t->layer.n_expert},
                                       {.n_value = t->layer.d_model, .with_one = t->has_bias}};
    const mdp_product_pair pair = {.left = 0, .right = 1, .n_row = t->options.batch_tokens};
    return mdp_product_layout_new(t->comm->size, 2, sides, 1, &pair, &t->layout);
}

/* ---- life ------------------------------------------------------------------------------------------------------- */

static mdp_status open(mdp_trainer *t, mdp_reader *reader) {
    const mdp_moe *moe = t->layer.moe;
    if (t->options.router && moe->rule.weigh_input)
        return MDP_ERROR(MDP_USAGE,
                         "the router of this model weighs what experts read; recover has no way back through that: "
                         "give --train experts.");
    t->n_slice = (int32_t)mdp_divide_up(moe->d_ff, width_of(moe->d_ff));
    t->n_unit = (int64_t)t->layer.n_expert * t->n_slice;
    MDP_TRY(MDP_ALLOC(&t->units, t->n_unit, "units of experts"));
    MDP_TRY(MDP_ALLOC(&t->panels, (int64_t)t->n_thread * MDP_TRAIN_PANEL * MDP_TILE_ROWS, "rows of gradients"));
    for (int64_t u = 0; u < t->n_unit; u++) describe_unit(t, u, &t->units[u]);
    mdp_train_units_of(t, t->comm->rank, &t->first_unit, &t->end_unit);
    for (int64_t u = t->first_unit; u < t->end_unit; u++) MDP_TRY(read_unit(reader, t, &t->units[u]));
    MDP_TRY(read_router(reader, t));
    return t->options.router ? lay_out_router(t) : mdp_ok();
}

mdp_status mdp_trainer_new_all(const mdp_comm *comm, mdp_reader *reader, mdp_gemm *gemm, int n_thread,
                               mdp_profile *profile, const mdp_train_layer *layer, const mdp_train_options *options,
                               mdp_trainer **out) {
    mdp_trainer *t = NULL;
    *out = NULL;
    mdp_status status = MDP_ALLOC(&t, 1, "a layer in training");
    if (status.code == MDP_OK) {
        *t = (mdp_trainer){
            .comm = comm, .gemm = gemm, .n_thread = n_thread, .profile = profile, .layer = *layer, .options = *options};
        int64_t n_read = mdp_reader_bytes(reader);
        status = open(t, reader);
        mdp_profile_read(profile, mdp_reader_bytes(reader) - n_read);
    }
    status = mdp_agree_all(comm, status);
    if (status.code == MDP_OK)
        status =
            mdp_exchange_room_new_all(comm, MDP_SUM_MESSAGE_BYTE, layer->d_model * (int64_t)sizeof(float), &t->room);
    if (status.code == MDP_OK && options->router)
        status = mdp_products_new_all(comm, t->layout, 1, n_thread, profile, &t->products);
    if (status.code == MDP_OK)
        *out = t;
    else
        mdp_trainer_destroy(t);
    return status;
}

void mdp_trainer_destroy(mdp_trainer *t) {
    if (!t) return;
    for (int64_t u = 0; t->units && u < t->n_unit; u++) {
        mdp_free(t->units[u].value);
        mdp_free(t->units[u].gradient);
        mdp_free(t->units[u].mean);
        mdp_free(t->units[u].square);
    }
    mdp_exchange_room_destroy(t->room);
    mdp_products_destroy(t->products);
    mdp_product_layout_destroy(t->layout);
    mdp_free(t->units);
    mdp_free(t->panels);
    mdp_free(t->router);
    mdp_free(t->router_gradient);
    mdp_free(t->router_mean);
    mdp_free(t->router_square);
    mdp_free(t->choice_bias);
    mdp_free(t->own_row);
    mdp_free(t);
}

/* ---- out -------------------------------------------------------------------------------------------------------- */

/* This rank's slices of a part, one after the other. */
static mdp_status collect_own(const mdp_trainer *t, int32_t expert, mdp_train_part part, bool gradient, float **out,
                              int64_t *n) {
    int64_t begin = mdp_larger(t->first_unit, (int64_t)expert * t->n_slice),
            end = mdp_smaller(t->end_unit, (int64_t)(expert + 1) * t->n_slice);
    *n = 0;
    for (int64_t u = begin; u < end; u++) *n += t->units[u].at[part + 1] - t->units[u].at[part];
    MDP_TRY(MDP_ALLOC(out, *n, "weights of an expert"));
    float *to = *out;
    for (int64_t u = begin; u < end; u++) {
        const mdp_train_unit *unit = &t->units[u];
        int64_t size = unit->at[part + 1] - unit->at[part];
        if (size > 0) memcpy(to, (gradient ? unit->gradient : unit->value) + unit->at[part], (size_t)size * sizeof *to);
        to += size;
    }
    return mdp_ok();
}

/* Slices [d, n] side by side -> [d, d_ff]. */
static mdp_status join_columns(const mdp_trainer *t, int32_t expert, const float *slices, float **out) {
    int64_t d = t->layer.d_model, n_col = t->layer.expert[expert]->gate.n_row;
    MDP_TRY(MDP_ALLOC(out, d * n_col, "a down projection"));
    for (int64_t u = (int64_t)expert * t->n_slice; u < (int64_t)(expert + 1) * t->n_slice; u++) {
        const mdp_train_unit *unit = &t->units[u];
        for (int64_t r = 0; unit->n > 0 && r < d; r++, slices += unit->n)
            memcpy(*out + r * n_col + unit->first, slices, (size_t)unit->n * sizeof **out);
    }
    return mdp_ok();
}

mdp_status mdp_trainer_gather_all(const mdp_trainer *t, int32_t expert, mdp_train_part part, bool gradient, int root,
                                  float **out) {
    float *own = NULL, *all = NULL;
    int64_t n = 0, n_all;
    *out = NULL;
    mdp_status status = mdp_agree_all(t->comm, collect_own(t, expert, part, gradient, &own, &n));
    if (status.code == MDP_OK)
        status = mdp_gather_bytes_all(t->comm, own, n * (int64_t)sizeof *own, root, (void **)&all, &n_all);
    mdp_free(own);
    if (status.code == MDP_OK && part == MDP_TRAIN_DOWN) {
        status = t->comm->rank == root ? join_columns(t, expert, all, out) : mdp_ok();
        mdp_free(all);
        return mdp_agree_all(t->comm, status);
    }
    if (status.code == MDP_OK) *out = all;
    return status;
}

const float *mdp_trainer_router(const mdp_trainer *t, bool gradient, const float **bias) {
    const float *rows = gradient ? t->router_gradient : t->router;
    *bias = t->has_bias ? rows + (int64_t)t->layer.n_expert * t->layer.d_model : NULL;
    return rows;
}

int64_t mdp_trainer_values(const mdp_trainer *t) {
    int64_t sum = t->options.router ? t->n_router : 0;
    for (int64_t u = 0; t->options.experts && u < t->n_unit; u++) sum += t->units[u].at[MDP_TRAIN_N_PART];
    return sum;
}

/* ---- forecast --------------------------------------------------------------------------------------------------- */

#define UNEVEN 1.5 /* rows of a busy unit / of one among equals */

mdp_train_cost mdp_train_cost_of(const mdp_train_options *options, const mdp_moe *moe, int64_t d_model,
                                 int32_t n_expert, int32_t top_k, int64_t n_token, int size, int n_thread) {
    int64_t width = width_of(moe->d_ff), n_slice = mdp_divide_up(moe->d_ff, width), n_unit = n_expert * n_slice;
    int64_t own = mdp_divide_up(n_unit, size), in_step = mdp_smaller(options->batch_tokens, n_token);
    int64_t local = mdp_divide_up(in_step, size) + 1, values = 3 * d_model * width;
    double row = (double)(in_step * top_k) / n_expert * UNEVEN; /* of a unit in a step */
    int64_t flop = (options->experts ? 14 : 6) * n_token * top_k * d_model * moe->d_ff;
    int64_t byte = own * values * (options->experts ? 16 : 4);
    byte += (int64_t)(row * (double)own * (double)(5 * width + 3 * d_model)) * 4;
    byte += local * (top_k * n_slice + 2) * d_model * 4 + MDP_SUM_MESSAGE_BYTE * 2;
    byte += (int64_t)n_expert * d_model * (options->router ? 32 : 4);
    byte += (int64_t)n_thread * MDP_TRAIN_PANEL * MDP_TILE_ROWS * 4;
    if (options->router) byte += mdp_products_room_memory(size, n_thread);
    return (mdp_train_cost){
        .flop = flop, .flop_most = (int64_t)(UNEVEN * (double)flop / (double)n_unit * (double)own), .memory = byte};
}
