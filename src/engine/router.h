/* router.h - which experts a token goes to, and with what weight. */
#ifndef MDP_SRC_ENGINE_ROUTER_H
#define MDP_SRC_ENGINE_ROUTER_H

#include "engine/engine.h"

/* What the routers of a layer need, in the numbering of the model. */
typedef struct mdp_router_rows {
    const float *norm;       /* [d_model] */
    const float *router;     /* [n_expert, d_model] */
    const float *logit_bias; /* [n_expert] added to logits; NULL: none */
    const float *bias;       /* [n_expert] added for choosing; NULL: none */
} mdp_router_rows;
/* Choose experts for every local token of every branch: fills index and weight. Local. */
mdp_status mdp_route(mdp_engine *engine, int64_t layer_number, const mdp_router_rows *rows);

/* Choose the best two of logits [n], n >= 2 (the best alone where k is 1), and weigh each among the experts that come
 * close to it. Local. */
void mdp_sparsemixer(double jitter, const double *logits, int32_t n, int32_t k, mdp_expert_t *index, float *weight);

#endif
