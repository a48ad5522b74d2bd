/* norm.h - norms of the residual stream. */
#ifndef MDP_SRC_ENGINE_NORM_H
#define MDP_SRC_ENGINE_NORM_H

#include "engine/engine.h"

/* A norm of the residual stream in one new array: weights [d_model], then biases [d_model], zeros where it has none.
 * Freed by the caller with mdp_free. Local. */
mdp_status mdp_norm_load(mdp_engine *engine, const mdp_norm *norm, float **out);
/* Stored weights [n] of a norm become those that it multiplies by. */
void mdp_norm_weights(const mdp_model *model, int64_t n, float *weights);
/* y [d_model] = the norm of x; y may be x. `norm` as loaded. */
void mdp_norm_row(const mdp_model *model, const float *norm, const float *x, float *y);

#endif
