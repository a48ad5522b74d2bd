/* plan.h - what is to become of every expert: budgets turn scores into a plan; the plan and its JSON. */
#ifndef MDP_PLAN_H
#define MDP_PLAN_H

#include "mdp/score.h"

/* zero: the expert keeps its place and its router row, but returns 0. Later: merge, constant, condense, neurons, mask
 */
typedef enum mdp_action { MDP_KEEP, MDP_DROP, MDP_ZERO } mdp_action;

/* One expert of the result. */
typedef struct mdp_plan_expert {
    mdp_action action;
    int32_t n_from;
    mdp_expert_t *from; /* [n_from] original experts, ascending */
} mdp_plan_expert;

typedef struct mdp_plan_layer {
    int64_t layer;            /* of the model */
    int32_t n_expert;         /* before */
    double *scores;           /* [n_expert] original order, or NULL */
    unsigned char *must_keep; /* [n_expert] nonzero: not to be chosen for removal; NULL: none. Not part of plan.json */
    int32_t n_kept;
    mdp_plan_expert *kept; /* [n_kept] in the new numbering */
    int32_t n_dropped;
    mdp_expert_t *dropped; /* [n_dropped] ascending */
} mdp_plan_layer;

typedef struct mdp_plan {
    char *path;                           /* the file it was parsed from, for errors; NULL: made here; owned */
    char fingerprint[33], model_type[64]; /* of the model it is for */
    json_t *recipe;                       /* {"method", "budget", "keep", "options", ...}; owned */
    bool uniform;
    int64_t n_layer;
    mdp_plan_layer *layers; /* MoE layers, ascending */
} mdp_plan;

/* A new plan with n_layer empty layers and an empty recipe. */
mdp_status mdp_plan_new(int64_t n_layer, mdp_plan **out);
void mdp_plan_destroy(mdp_plan *plan); /* NULL is allowed */
/* plan.json text, new; equal plans give equal bytes. */
mdp_status mdp_plan_print(const mdp_plan *plan, char **out);
/* Parse and check a plan by itself: every expert named once, kept ones ascending, actions known. `path` names it in
 * errors, which are MDP_BAD_INPUT and name the layer and the expert. */
mdp_status mdp_plan_parse(const char *text, int64_t n_byte, const char *path, mdp_plan **out);
/* Check a plan against a model whose catalogue has its fingerprint: fingerprint, family, layers, expert counts,
 * keep >= k, "uniform" true to the layers. MDP_BAD_INPUT, naming the layer. */
mdp_status mdp_plan_check(const mdp_plan *plan, const mdp_model *model);

typedef enum mdp_budget { MDP_BUDGET_UNIFORM, MDP_BUDGET_GLOBAL } mdp_budget;
typedef enum mdp_score_normalise { MDP_RAW, MDP_LAYER_SUM, MDP_LAYER_MAX, MDP_LAYER_Z } mdp_score_normalise;

extern const char *const mdp_budget_names[];          /* indexed by mdp_budget; NULL at the end */
extern const char *const mdp_score_normalise_names[]; /* indexed by mdp_score_normalise; NULL at the end */

typedef struct mdp_budget_options {
    mdp_budget budget;
    mdp_score_normalise normalise;
    int32_t keep;     /* experts per layer (uniform), or on average (global) */
    int32_t min_keep; /* global: never fewer in a layer; 0: the model's top_k */
} mdp_budget_options;

/* Choose from scores (rounded to 30 bits; of equal scores the lower layer, then the lower expert goes first).
 * plan->layers[].scores and n_expert are set; fills kept and dropped and plan->uniform. top_k [n_layer]. Local: rank 0
 * decides, the text is broadcast. */
mdp_status mdp_plan_choose(mdp_plan *plan, const int32_t *top_k, const mdp_budget_options *options);

/* How a router treats an expert that goes. */
typedef enum mdp_pruned_route { MDP_ROUTE_SLICE, MDP_ROUTE_ZERO } mdp_pruned_route;
extern const char *const mdp_pruned_route_names[]; /* indexed by mdp_pruned_route; NULL at the end */

/* What a scored plan is made from. */
typedef struct mdp_plan_request {
    const mdp_criterion *criterion;
    const mdp_stats *stats;                    /* NULL: a criterion that needs none, for `model` */
    const mdp_model *model;                    /* used when stats is NULL; its catalogue has the fingerprint */
    const mdp_weights *weights;                /* of `model`; for criteria that look at tensors */
    const mdp_proficiency *const *proficiency; /* [layers of the model]; for the criterion with its own pass */
    const mdp_tokens *tokens;                  /* that it ran on */
    const double *weight;                      /* [n_category of stats] or NULL: every category counts as it is */
    bool worst_category;                       /* mdp_score_worst_category */
    bool protect_super_experts;                /* never choose those (needs stats) */
    mdp_soft_mask soft_mask;
    uint64_t seed;
    mdp_pruned_route pruned_route;
    mdp_budget_options budget;
} mdp_plan_request;

/* Statistics -> scores -> choice, with the recipe that says so. Local: rank 0 decides, the text is broadcast.
 * Errors: MDP_USAGE for a budget that cannot be met. */
mdp_status mdp_plan_make(const mdp_plan_request *request, mdp_plan **out);

#endif
