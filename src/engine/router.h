/* router.h - which experts a token goes to, and with what weight. */
#ifndef MDP_SRC_ENGINE_ROUTER_H
#define MDP_SRC_ENGINE_ROUTER_H

#include "engine/engine.h"

/* What the routers of a layer need: rows of the model's experts, then those of experts that views make (mdp_branch). */
typedef struct mdp_router_rows {
    const float *norm; /* [d_model] borrowed */
    float *router;     /* [n_row, d_model] */
    float *logit_bias; /* [n_row] added to logits; NULL: none */
    float *bias;       /* [n_row] added for choosing; NULL: none */
} mdp_router_rows;
/* Of a layer whose views are set; numbers them in the branches. Freed on error too. Local. MDP_BAD_INPUT: values that
 * are not finite. */
mdp_status mdp_router_rows_load(mdp_engine *engine, int64_t layer, const float *norm, mdp_router_rows *out);
void mdp_router_rows_free(mdp_router_rows *rows);
/* Choose experts for every local token of every branch: fills index and weight. Local. */
mdp_status mdp_route(mdp_engine *engine, int64_t layer_number, const mdp_router_rows *rows);

/* Choose the best two of logits [n], n >= 2 (the best alone where k is 1), and weigh each among the experts that come
 * close to it. Local. */
void mdp_sparsemixer(double jitter, const double *logits, int32_t n, int32_t k, mdp_expert_t *index, float *weight);

#endif
