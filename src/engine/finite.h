/* finite.h - looking for values that are not finite, and saying whose fault they are. */
#ifndef MDP_SRC_ENGINE_FINITE_H
#define MDP_SRC_ENGINE_FINITE_H

#include "engine/engine.h"

/* Look at the residual stream of every branch; `what` it is, for the error: MDP_BAD_INPUT naming the lowest token and
 * the weights to blame. Local: agreed on, the error is the same for any number of ranks. */
mdp_status mdp_finite_residual(mdp_engine *engine, int64_t layer, const char *what);
/* Look at outputs y [n_row, d_model] of an expert. false: not finite, so observers are not to see them; the error comes
 * at the end of the layer. Local, from several threads. */
bool mdp_finite_outputs(mdp_engine *engine, int64_t layer, mdp_expert_t expert, float *y, const int64_t *token,
                        int32_t n_row);
/* The end of a layer: MDP_BAD_INPUT naming the lowest expert and token that was found. Collective. */
mdp_status mdp_finite_agree_all(mdp_engine *engine, int64_t layer);

#endif
