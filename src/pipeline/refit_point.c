/* refit_point.c - resume points of a refit: what became of the layers that are done, and the checksums of their arrays.
 *
 * The arrays themselves lie in the unfinished plan.h5, where each layer's are on storage before the next is begun; of a
 * layer that was under way nothing is kept. */
#include "pipeline/refit_run.h"

#include <string.h>

#define N_NUMBER 3 /* order, mode, fixed */
#define N_VALUE 9  /* ridge, mean_diagonal, rcond, step, rounding, four errors */

static void pack_layer(const mdp_refit_layer *layer, int64_t *numbers, double *values) {
    const double all[N_VALUE] = {
        layer->ridge,         layer->mean_diagonal,   layer->rcond,        layer->step,          layer->rounding,
        layer->before.fitted, layer->before.held_out, layer->after.fitted, layer->after.held_out};
    numbers[0] = layer->order;
    numbers[1] = layer->mode;
    numbers[2] = layer->fixed;
    memcpy(values, all, sizeof all);
}

static void unpack_layer(const int64_t *numbers, const double *values, mdp_refit_layer *layer) {
    layer->order = numbers[0];
    layer->mode = (mdp_refit_mode)numbers[1];
    layer->fixed = numbers[2] != 0;
    layer->ridge = values[0];
    layer->mean_diagonal = values[1];
    layer->rcond = values[2];
    layer->step = values[3];
    layer->rounding = values[4];
    layer->before = (mdp_refit_error){values[5], values[6]};
    layer->after = (mdp_refit_error){values[7], values[8]};
}

/* Experts of all layers of the plan. */
static int64_t count_experts(const mdp_refit *result) {
    int64_t n = 0;
    for (int64_t i = 0; i < result->n_layer; i++) n += result->layers[i].n_expert;
    return n;
}

/* Digests of no array are zeros. */
static void pack(const mdp_refit_run *run, mdp_refit_saved *saved) {
    const mdp_arrays *arrays = run->replaced->arrays;
    int64_t at = 0;
    for (int64_t i = 0; i < run->result->n_layer; i++) {
        const mdp_refit_layer *layer = &run->result->layers[i];
        pack_layer(layer, saved->numbers + N_NUMBER * i, saved->values + N_VALUE * i);
        for (int32_t e = 0; e < layer->n_expert; e++, at++) {
            saved->rows[2 * at] = layer->rows[e];
            saved->rows[2 * at + 1] = layer->fitted[e];
        }
    }
    mdp_arrays_note(arrays, saved->digests);
}

mdp_status mdp_refit_saved_new(mdp_refit_run *run) {
    mdp_refit_saved *saved = &run->saved;
    MDP_TRY(MDP_ALLOC(&saved->numbers, N_NUMBER * run->result->n_layer, "what a refit did"));
    MDP_TRY(MDP_ALLOC(&saved->values, N_VALUE * run->result->n_layer, "what a refit did"));
    MDP_TRY(MDP_ALLOC(&saved->rows, 2 * count_experts(run->result), "what a refit did"));
    return MDP_ALLOC(&saved->digests, MDP_NOTED * run->replaced->arrays->n, "what a refit did");
}

void mdp_refit_saved_clear(mdp_refit_saved *saved) {
    mdp_free(saved->numbers);
    mdp_free(saved->values);
    mdp_free(saved->rows);
    mdp_free(saved->digests);
}

/* All is the same on every rank. */
mdp_status mdp_refit_gather_all(void *context) {
    mdp_refit_run *run = context;
    pack(run, &run->saved);
    return mdp_ok();
}

mdp_status mdp_refit_describe(void *context, const mdp_position *at, bool taken, mdp_point *point) {
    const mdp_refit_run *run = context;
    const mdp_refit_saved *saved = &run->saved;
    bool wanted = run->comm->rank == 0 || taken;
    int64_t n = run->result->n_layer;
    (void)at;
    MDP_TRY(mdp_point_add_array(point, "numbers", MDP_I64, N_NUMBER * n, saved->numbers, wanted));
    MDP_TRY(mdp_point_add_array(point, "values", MDP_F64, N_VALUE * n, saved->values, wanted));
    MDP_TRY(mdp_point_add_array(point, "rows", MDP_I64, 2 * count_experts(run->result), saved->rows, wanted));
    return mdp_point_add_array(point, "digests", MDP_I64, MDP_NOTED * run->replaced->arrays->n, saved->digests, wanted);
}

static void unpack(mdp_refit_run *run) {
    const mdp_refit_saved *saved = &run->saved;
    int64_t at = 0;
    for (int64_t i = 0; i < run->result->n_layer; i++) {
        mdp_refit_layer *layer = &run->result->layers[i];
        unpack_layer(saved->numbers + N_NUMBER * i, saved->values + N_VALUE * i, layer);
        for (int32_t e = 0; e < layer->n_expert; e++, at++) {
            layer->rows[e] = saved->rows[2 * at];
            layer->fitted[e] = saved->rows[2 * at + 1] != 0;
        }
    }
}

/* What was written then is still there: nobody else has been at the unfinished file. The arrays of experts that are
 * kept and not fitted have no content, and are gone from a finished one; merged ones have theirs. */
static mdp_status compare_digests(const mdp_refit_run *run) {
    for (int64_t at = 0, i = 0; i < run->result->n_layer; i++) {
        const mdp_refit_layer *layer = &run->result->layers[i];
        for (; at < run->replaced->n && run->replaced->experts[at].layer == layer->layer; at++) {
            const mdp_replaced_expert *expert = &run->replaced->experts[at];
            bool held = layer->fitted[expert->kept] || mdp_replaced_find(run->before, layer->layer, expert->kept) >= 0;
            for (int part = 0; held && part < MDP_N_EXPERT_PART; part++)
                if (expert->array[part] >= 0)
                    MDP_TRY(mdp_arrays_compare_noted(run->replaced->arrays, expert->array[part], run->saved.digests));
        }
    }
    return mdp_ok();
}

mdp_status mdp_refit_restored_all(void *context, const mdp_position *at) {
    mdp_refit_run *run = context;
    mdp_arrays *arrays = run->replaced->arrays;
    int64_t done = at->batch > 0 ? run->model->n_layer : at->layer, first, n;
    unpack(run);
    mdp_replaced_arrays(run->replaced, 0, done, &first, &n);
    MDP_TRY(mdp_arrays_settle_all(run->comm, arrays, first, n));
    MDP_AGREE(run->comm, compare_digests(run));
    run->layer = done;
    return mdp_ok();
}
