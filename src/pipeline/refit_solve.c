/* refit_solve.c - sums of a layer become new down projections: the ridge, D, and W + D^T in the plan's arrays.
 *
 * Right-hand sides are rows of W, dealt to ranks in runs; a rank puts its rows of each fitted expert (put_down.c). */
#include "pipeline/put_down.h"
#include "pipeline/refit_run.h"

#include "mdp/narrow.h"

#include <math.h>
#include <string.h>

static const double ridges[] = {1e-3, 1e-2, 1e-1, 1.0};
#define N_RIDGE 4
#define SLACK 1.05 /* errors up to this times the best count as good */

/* ---- the ridge ------------------------------------------------------------------------------------------------- */

/* What a ridge does to text that was fitted to, and to text that was left out: sums over the sets, and the worst. */
typedef struct ridge_errors {
    double fitted;     /* mean over the sets left out in turn of error / error without a fit */
    double worst_left; /* largest error / error without a fit of a set that was left out */
} ridge_errors;

/* error / error without a fit of some sets, by quadratic forms: |r - D^T phi|^2 = |r|^2 - 2 tr D^T B + tr D^T A D. */
static mdp_status error_of_all(mdp_fit *fit, const mdp_fit_sets *sets, double rest, const double *d, double *b,
                               double *out) {
    double quadratic, linear;
    MDP_TRY(mdp_fit_right_hand_side_all(fit, sets, b));
    MDP_TRY(mdp_fit_forms_all(fit, sets, b, d, &quadratic, &linear));
    *out = rest > 0.0 ? (rest - 2.0 * linear + quadratic) / rest : 1.0;
    return mdp_ok();
}

static double rest_of(const mdp_refit_sums *sums, const mdp_fit_sets *sets) {
    double sum = 0.0;
    for (int s = 0; s < sets->n_set; s++)
        if (sets->part[s] != 0.0) sum += mdp_exact_value(&sums[s].before);
    return sum;
}

static mdp_status try_ridge_all(mdp_refit_run *run, const mdp_refit_sums *sums, mdp_fit *fit, double ridge, double *b,
                                double *d, ridge_errors *out) {
    double in[MDP_REFIT_MOST_SETS], left[MDP_REFIT_MOST_SETS], mean, rcond, error;
    int64_t first, n_col, n_left = 0;
    mdp_fit_columns(fit, &first, &n_col);
    *out = (ridge_errors){0};
    for (int s = 0; s < run->n_set; s++) {
        const mdp_fit_sets others = {run->n_set, in}, one = {run->n_set, left};
        for (int i = 0; i < run->n_set; i++) {
            in[i] = i == s ? 0.0 : 1.0;
            left[i] = 1.0 - in[i];
        }
        if (rest_of(sums, &one) <= 0.0 || rest_of(sums, &others) <= 0.0) continue;
        n_left++;
        MDP_TRY(mdp_fit_mean_diagonal_all(fit, &others, &mean));
        MDP_TRY(mdp_fit_right_hand_side_all(fit, &others, d));
        MDP_TRY(mdp_fit_solve_all(fit, &others, ridge * mean, run->options->n_sweep, d, &rcond));
        MDP_TRY(error_of_all(fit, &others, rest_of(sums, &others), d, b, &error));
        out->fitted += error;
        MDP_TRY(error_of_all(fit, &one, rest_of(sums, &one), d, b, &error));
        if (error > out->worst_left) out->worst_left = error;
    }
    if (n_left > 0) out->fitted /= (double)n_left;
    return mdp_ok();
}

/* The largest ridge that fits about as well as the best and leaves no set that was left out worse off; where there is
 * none, the one that harms least. */
static double best_ridge(const ridge_errors *errors) {
    double best = INFINITY;
    int least = 0;
    for (int i = 0; i < N_RIDGE; i++) {
        best = errors[i].fitted < best ? errors[i].fitted : best;
        least = errors[i].worst_left < errors[least].worst_left ? i : least;
    }
    for (int i = N_RIDGE - 1; i >= 0; i--)
        if (errors[i].fitted <= SLACK * best && errors[i].worst_left <= 1.0) return ridges[i];
    for (int i = 0; i < N_RIDGE; i++) /* the best fit that harms nobody */
        if (errors[i].worst_left <= 1.0) return ridges[i];
    return ridges[least];
}

static mdp_status choose_ridge_all(mdp_refit_run *run, const mdp_refit_sums *sums, mdp_fit *fit, double *b, double *d,
                                   double *ridge) {
    ridge_errors errors[N_RIDGE];
    *ridge = run->options->ridge;
    if (*ridge > 0.0) return mdp_ok();
    for (int i = 0; i < N_RIDGE; i++) {
        MDP_TRY(try_ridge_all(run, sums, fit, ridges[i], b, d, &errors[i]));
        mdp_log_message(
            run->forward->log, MDP_LEVEL_DEBUG,
            "refit    layer %lld, ridge %g: %.4f of the error stays where it was fitted, at most %.4f where "
            "it was left out",
            (long long)run->layer, ridges[i], errors[i].fitted, errors[i].worst_left);
    }
    *ridge = best_ridge(errors);
    return mdp_ok();
}

/* ---- D --------------------------------------------------------------------------------------------------------- */

static mdp_status solve_all(mdp_refit_run *run, const mdp_refit_sums *sums, mdp_fit *fit, double *b, double *d) {
    double every[MDP_REFIT_MOST_SETS], ridge;
    const mdp_fit_sets sets = {run->n_set, every};
    mdp_refit_layer *record = run->record;
    for (int s = 0; s < run->n_set; s++) every[s] = 1.0;
    MDP_TRY(choose_ridge_all(run, sums, fit, b, d, &ridge));
    record->ridge = ridge;
    MDP_TRY(mdp_fit_mean_diagonal_all(fit, &sets, &record->mean_diagonal));
    MDP_TRY(mdp_fit_right_hand_side_all(fit, &sets, d));
    return mdp_fit_solve_all(fit, &sets, ridge * record->mean_diagonal, run->options->n_sweep, d, &record->rcond);
}

mdp_status mdp_refit_solve_all(mdp_refit_run *run, const mdp_refit_sums *sums, mdp_fit *fit, double **d) {
    int64_t first, n_col;
    double *b = NULL;
    *d = NULL;
    mdp_fit_columns(fit, &first, &n_col);
    mdp_status status = MDP_ALLOC(d, n_col * mdp_fit_order(fit), "new down projections");
    if (status.code == MDP_OK && run->options->ridge == 0.0)
        status = MDP_ALLOC(&b, n_col * mdp_fit_order(fit), "new down projections");
    status = mdp_agree_all(run->comm, status);
    if (status.code == MDP_OK) status = solve_all(run, sums, fit, b, *d);
    mdp_free(b);
    return status;
}

/* ---- W --------------------------------------------------------------------------------------------------------- */

int64_t mdp_refit_unit(const mdp_moe *moe) {
    int64_t unit = MDP_SPD_COLUMNS, block = mdp_matrix_put_unit(&moe->experts[0].down);
    while (unit % block != 0) unit += MDP_SPD_COLUMNS;
    return unit;
}

/* All ranks together. Collective. */
static mdp_status note_error_all(const mdp_refit_run *run, mdp_put_error *error) {
    mdp_exact_normalise(&error->fitted);
    mdp_exact_normalise(&error->lost);
    MDP_TRY(mdp_sum_i64_all(run->comm, error->fitted.limb, (int64_t)(sizeof *error / sizeof error->fitted.limb[0])));
    mdp_exact_normalise(&error->fitted);
    mdp_exact_normalise(&error->lost);
    double lost = mdp_refit_ratio(&error->lost, &error->fitted);
    run->record->rounding = lost > 0.0 ? sqrt(lost) : 0.0;
    return mdp_ok();
}

static void show(const mdp_refit_run *run) {
    for (int32_t s = 0; s < run->n_side; s++) {
        int64_t at = mdp_replaced_find(run->replaced, run->layer, run->expert[s]);
        mdp_transform_view_make(run->model, run->layer, run->expert[s], &run->replaced->experts[at].expert, run->view);
    }
}

mdp_status mdp_refit_put_all(mdp_refit_run *run, const mdp_fit *fit, const double *d, double step) {
    const mdp_moe *moe = &run->model->layers[run->layer].moe;
    int64_t first, n;
    mdp_put_error error = {{{0}}, {{0}}};
    for (int32_t s = 0; s < run->n_side; s++) {
        const mdp_replaced_expert *to =
            &run->replaced->experts[mdp_replaced_find(run->replaced, run->layer, run->expert[s])];
        int64_t merged = mdp_replaced_find(run->before, run->layer, run->expert[s]);
        mdp_put_down w = {.comm = run->comm,
                          .reader = run->reader,
                          .arrays = run->replaced->arrays,
                          .from = merged >= 0 ? &run->before->experts[merged].expert : &moe->experts[to->from],
                          .to = &to->expert,
                          .d = d,
                          .order = mdp_fit_order(fit),
                          .offset = mdp_fit_offset(fit, s),
                          .part = 1.0,
                          .step = step,
                          .error = &error};
        mdp_fit_columns(fit, &w.first, &w.n_col);
        MDP_TRY(mdp_put_down_all(&w));
    }
    MDP_TRY(note_error_all(run, &error));
    mdp_replaced_arrays(run->replaced, run->layer, run->layer + 1, &first, &n);
    MDP_TRY(mdp_arrays_settle_all(run->comm, run->replaced->arrays, first, n));
    show(run);
    return mdp_ok();
}
