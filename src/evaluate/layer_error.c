/* layer_error.c - how far each layer's residual stream has moved away from the original's.
 *
 * In: the residual streams of a batch after a layer. Out: exact sums, over tokens, of the squares of the original's row
 * and of each stream's difference from it. One token's square is one f64 partial, so batches, ranks and threads cannot
 * show. */
#include "evaluate/evaluate.h"

#include <math.h>

/* Sum over d of (a - b)^2; b NULL: of a^2. */
static double square(const float *a, const float *b, int64_t d) {
    double sum = 0.0;
    for (int64_t i = 0; i < d; i++) {
        double difference = (double)a[i] - (b ? (double)b[i] : 0.0);
        sum += difference * difference;
    }
    return sum;
}

/* Add the squares of all rows to *out. */
static mdp_status add_squares(const float *a, const float *b, int64_t n_row, int64_t d, int64_t layer, mdp_exact *out) {
    bool good = true;
    for (int64_t t = 0; t < n_row; t++) good = mdp_exact_add(out, square(a + t * d, b ? b + t * d : NULL, d)) && good;
    if (good) return mdp_ok();
    return MDP_ERROR(MDP_BAD_INPUT, "layer %lld: the residual stream is not finite, or far too large.",
                     (long long)layer);
}

mdp_status mdp_evaluation_add_layer(mdp_evaluation *evaluation, const mdp_engine *engine, int64_t d_model,
                                    int64_t layer) {
    int64_t n_row = mdp_engine_batch(engine)->n_token;
    int original = mdp_engine_branch_of(engine, 0);
    const float *x = mdp_engine_residual(engine, original);
    MDP_TRY(add_squares(x, NULL, n_row, d_model, layer, &evaluation->streams[0].layer_square[layer]));
    for (int s = 1; s < evaluation->n_stream; s++) {
        int branch = mdp_engine_branch_of(engine, s);
        if (branch != original)
            MDP_TRY(add_squares(mdp_engine_residual(engine, branch), x, n_row, d_model, layer,
                                &evaluation->streams[s].layer_square[layer]));
    }
    return mdp_ok();
}

double mdp_evaluation_layer_error(const mdp_evaluation *evaluation, int stream, int64_t layer) {
    double whole = mdp_exact_value(&evaluation->streams[0].layer_square[layer]);
    if (stream == 0) return 0.0;
    return whole > 0.0 ? sqrt(mdp_exact_value(&evaluation->streams[stream].layer_square[layer]) / whole) : (double)NAN;
}
