/* unit_pass.c - the products of units: rows in, parts of outputs out; rows of gradients in, gradients of weights out.
 *
 * Rows are taken in tiles of MDP_TILE_ROWS in the order of tokens, gradients of weights in panels of MDP_TRAIN_PANEL
 * rows to which tiles are added one after the other, so that no sum depends on threads or ranks. */
#include "recover/trainer.h"

#include <omp.h>
#include <string.h>

mdp_status mdp_train_open_units(mdp_train_step *step) {
    mdp_trainer *t = step->trainer;
    for (int64_t u = t->first_unit; u < t->end_unit; u++) {
        mdp_train_unit *unit = &t->units[u];
        int64_t n = step->n_row[unit->expert] * unit->n, n_back = t->options.experts ? n : 0;
        MDP_TRY(MDP_ALLOC(&unit->gate, n, "activations of an expert"));
        MDP_TRY(MDP_ALLOC(&unit->up, n, "activations of an expert"));
        MDP_TRY(MDP_ALLOC(&unit->h, n, "activations of an expert"));
        MDP_TRY(MDP_ALLOC(&unit->dgate, n_back, "activations of an expert"));
        MDP_TRY(MDP_ALLOC(&unit->dup, n_back, "activations of an expert"));
        MDP_TRY(MDP_ALLOC(&unit->y, step->n_row[unit->expert] * t->layer.d_model, "outputs of an expert"));
    }
    return mdp_ok();
}

void mdp_train_close_units(mdp_train_step *step) {
    mdp_trainer *t = step->trainer;
    for (int64_t u = t->first_unit; u < t->end_unit; u++) {
        mdp_train_unit *unit = &t->units[u];
        float **all[] = {&unit->gate, &unit->up, &unit->h, &unit->dgate, &unit->dup, &unit->y};
        for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) {
            mdp_free(*all[i]);
            *all[i] = NULL;
        }
    }
}

/* Tiles of all units of this rank: unit and first row of tile number `at`; false: there is none. */
static bool find_tile(const mdp_train_step *step, int64_t at, mdp_train_unit **unit, int64_t *row, int *n) {
    const mdp_trainer *t = step->trainer;
    for (int64_t u = t->first_unit; u < t->end_unit; u++) {
        int64_t n_row = step->n_row[t->units[u].expert], n_tile = mdp_divide_up(n_row, MDP_TILE_ROWS);
        if (at >= n_tile) {
            at -= n_tile;
            continue;
        }
        *unit = &t->units[u];
        *row = at * MDP_TILE_ROWS;
        *n = (int)mdp_smaller(MDP_TILE_ROWS, n_row - *row);
        return true;
    }
    return false;
}

static int64_t count_tiles(const mdp_train_step *step) {
    const mdp_trainer *t = step->trainer;
    int64_t sum = 0;
    for (int64_t u = t->first_unit; u < t->end_unit; u++)
        sum += mdp_divide_up(step->n_row[t->units[u].expert], MDP_TILE_ROWS);
    return sum;
}

static int64_t flop_of(const mdp_train_step *step, int64_t n_product) {
    const mdp_trainer *t = step->trainer;
    int64_t sum = 0;
    for (int64_t u = t->first_unit; u < t->end_unit; u++)
        sum += 2 * n_product * step->n_row[t->units[u].expert] * t->units[u].n * t->layer.d_model;
    return sum;
}

static const float *bias_of(const mdp_train_unit *unit, mdp_train_part part) {
    return unit->at[part + 1] > unit->at[part] ? unit->value + unit->at[part] : NULL;
}

static void add_bias(const float *bias, int64_t n_row, int64_t n, float *rows) {
    for (int64_t r = 0; bias && r < n_row; r++)
        for (int64_t j = 0; j < n; j++) rows[r * n + j] += bias[j];
}

/* ---- forward ---------------------------------------------------------------------------------------------------- */

static void forward_tile(const mdp_train_step *step, mdp_train_unit *unit, int64_t row, int n_row) {
    const mdp_trainer *t = step->trainer;
    int d = (int)t->layer.d_model, n = (int)unit->n;
    const float *x = step->x[unit->expert] + row * d, *value = unit->value;
    float *gate = unit->gate + row * n, *up = unit->up + row * n, *h = unit->h + row * n, *y = unit->y + row * d;
    memset(y, 0, (size_t)n_row * (size_t)d * sizeof *y);
    if (n == 0) return;
    mdp_gemm_nt(t->gemm, n_row, n, d, x, d, value + unit->at[MDP_TRAIN_GATE], d, gate, n);
    mdp_gemm_nt(t->gemm, n_row, n, d, x, d, value + unit->at[MDP_TRAIN_UP], d, up, n);
    add_bias(bias_of(unit, MDP_TRAIN_GATE_BIAS), n_row, n, gate);
    add_bias(bias_of(unit, MDP_TRAIN_UP_BIAS), n_row, n, up);
    memcpy(h, gate, (size_t)n_row * (size_t)n * sizeof *h);
    mdp_gate(&t->layer.moe->activation, up, (int64_t)n_row * n, h);
    mdp_gemm_nt(t->gemm, n_row, d, n, h, n, value + unit->at[MDP_TRAIN_DOWN], n, y, d);
    add_bias(bias_of(unit, MDP_TRAIN_DOWN_BIAS), n_row, d, y);
}

void mdp_train_forward(mdp_train_step *step) {
    int64_t n_tile = count_tiles(step);
#pragma omp parallel for schedule(dynamic) num_threads(step->trainer->n_thread)
    for (int64_t i = 0; i < n_tile; i++) {
        mdp_train_unit *unit;
        int64_t row;
        int n_row;
        if (find_tile(step, i, &unit, &row, &n_row)) forward_tile(step, unit, row, n_row);
    }
    mdp_profile_flop(step->trainer->profile, flop_of(step, 3));
}

/* ---- backward --------------------------------------------------------------------------------------------------- */

static void backward_tile(const mdp_train_step *step, mdp_train_unit *unit, int64_t row, int n_row) {
    const mdp_trainer *t = step->trainer;
    int d = (int)t->layer.d_model, n = (int)unit->n;
    float *dgate = unit->dgate + row * n, *dup = unit->dup + row * n; /* dgate holds dh first */
    if (n == 0) return;
    memset(dgate, 0, (size_t)n_row * (size_t)n * sizeof *dgate);
    mdp_gemm_nn_add(t->gemm, n_row, n, d, step->dy[unit->expert] + row * d, d, unit->value + unit->at[MDP_TRAIN_DOWN],
                    n, dgate, n);
    mdp_gate_back(&t->layer.moe->activation, unit->gate + row * n, unit->up + row * n, dgate, (int64_t)n_row * n, dgate,
                  dup);
}

/* A gradient: left^T right, left [rows, n_left], right [rows, n_right]; its sum over rows of left for the bias. */
typedef struct product {
    const float *left, *right;
    int64_t n_left, n_right;
    float *out, *bias; /* bias NULL: none */
} product;

static product product_of(const mdp_train_step *step, const mdp_train_unit *unit, mdp_train_part part) {
    static const mdp_train_part bias[] = {MDP_TRAIN_GATE_BIAS, MDP_TRAIN_UP_BIAS, MDP_TRAIN_DOWN_BIAS};
    int64_t d = step->trainer->layer.d_model, n = unit->n;
    product p = {.left = part == MDP_TRAIN_GATE ? unit->dgate : unit->dup,
                 .right = step->x[unit->expert],
                 .n_left = n,
                 .n_right = d,
                 .out = unit->gradient + unit->at[part]};
    if (part == MDP_TRAIN_DOWN)
        p = (product){.left = step->dy[unit->expert], .right = unit->h, .n_left = d, .n_right = n, .out = p.out};
    if (bias_of(unit, bias[part])) p.bias = unit->gradient + unit->at[bias[part]];
    return p;
}

/* Rows first .. first + n - 1 of it. panel: [MDP_TRAIN_PANEL, MDP_TILE_ROWS] room. */
static void multiply_panel(const mdp_trainer *t, const product *p, int64_t n_row, int64_t first, int n, float *panel) {
    float *out = p->out + first * p->n_right;
    memset(out, 0, (size_t)n * (size_t)p->n_right * sizeof *out);
    for (int i = 0; p->bias && i < n; i++) {
        double sum = 0.0;
        for (int64_t r = 0; r < n_row; r++) sum += (double)p->left[r * p->n_left + first + i];
        p->bias[first + i] = (float)sum;
    }
    for (int64_t row = 0; row < n_row; row += MDP_TILE_ROWS) {
        int rows = (int)mdp_smaller(MDP_TILE_ROWS, n_row - row);
        for (int r = 0; r < rows; r++)
            for (int i = 0; i < n; i++) panel[i * rows + r] = p->left[(row + r) * p->n_left + first + i];
        mdp_gemm_nn_add(t->gemm, n, (int)p->n_right, rows, panel, rows, p->right + row * p->n_right, (int)p->n_right,
                        out, (int)p->n_right);
    }
}

/* Panels of all gradients of this rank, by number. */
static void multiply(const mdp_train_step *step, int64_t at) {
    mdp_trainer *t = step->trainer;
    float *panel = t->panels + (int64_t)omp_get_thread_num() * MDP_TRAIN_PANEL * MDP_TILE_ROWS;
    for (int64_t u = t->first_unit; u < t->end_unit; u++) {
        for (int part = MDP_TRAIN_GATE; part <= MDP_TRAIN_DOWN; part++) {
            const product p = product_of(step, &t->units[u], (mdp_train_part)part);
            int64_t n_panel = mdp_divide_up(p.n_left, MDP_TRAIN_PANEL), first = at * MDP_TRAIN_PANEL;
            if (at < n_panel) {
                if (p.n_right > 0)
                    multiply_panel(t, &p, step->n_row[t->units[u].expert], first,
                                   (int)mdp_smaller(MDP_TRAIN_PANEL, p.n_left - first), panel);
                return;
            }
            at -= n_panel;
        }
    }
}

void mdp_train_backward(mdp_train_step *step) {
    const mdp_trainer *t = step->trainer;
    int64_t n_tile = count_tiles(step), n_panel = 0;
#pragma omp parallel for schedule(dynamic) num_threads(t->n_thread)
    for (int64_t i = 0; i < n_tile; i++) {
        mdp_train_unit *unit;
        int64_t row;
        int n_row;
        if (find_tile(step, i, &unit, &row, &n_row)) backward_tile(step, unit, row, n_row);
    }
    for (int64_t u = t->first_unit; u < t->end_unit; u++)
        n_panel += 2 * mdp_divide_up(t->units[u].n, MDP_TRAIN_PANEL) + mdp_divide_up(t->layer.d_model, MDP_TRAIN_PANEL);
#pragma omp parallel for schedule(dynamic) num_threads(t->n_thread)
    for (int64_t i = 0; i < n_panel; i++) multiply(step, i);
    mdp_profile_flop(t->profile, flop_of(step, 4));
}
