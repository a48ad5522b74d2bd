/* score.h - statistics or weights -> one number per expert; lower is pruned first. A criterion is a row of a table. */
#ifndef MDP_SCORE_H
#define MDP_SCORE_H

#include "mdp/observe.h"

/* ---- what weights say ------------------------------------------------------------------------------------------ */

/* One layer with experts; arrays are NULL where they were not asked for. */
typedef struct mdp_layer_weights {
    int32_t n_expert;
    int64_t n_value;         /* of one expert: its three matrices together */
    mdp_exact *square_sum;   /* [n_expert] sum of w^2 over them */
    mdp_exact *abs_sum;      /* [n_expert] sum of |w| */
    double *router_norm;     /* [n_expert] norm2 of the expert's router row */
    double *pretrained_norm; /* [n_expert] the same in the model before fine-tuning */
} mdp_layer_weights;

typedef struct mdp_weights {
    int64_t n_layer; /* layers with experts */
    mdp_layer_weights *layers;
    char pretrained_routers[33]; /* digest of the other model's router rows; empty: none was read */
} mdp_weights;

/* Sums over the matrices of every expert; complete on rank 0. Experts are shared out over ranks and threads; every row
 * of a matrix is added exactly, so that neither can show. Collective on `comm`. */
mdp_status mdp_weights_of_experts_all(const mdp_comm *comm, const mdp_model *model, mdp_reader *reader, int n_thread,
                                      mdp_weights **out);
/* Norms of the router rows of a model and, where `pretrained` is given, of the model that it was fine-tuned from. No
 * other tensor is read. Local: rank 0 calls it. MDP_BAD_INPUT: the routers of the two do not correspond, or no row
 * differs. */
mdp_status mdp_weights_of_routers(const mdp_model *model, mdp_reader *reader, const mdp_model *pretrained,
                                  mdp_reader *pretrained_reader, mdp_weights **out);
void mdp_weights_destroy(mdp_weights *weights); /* NULL is allowed */

/* ---- criteria -------------------------------------------------------------------------------------------------- */

typedef enum mdp_soft_mask { MDP_SOFT_CHOSEN, MDP_SOFT_ROUTED_P, MDP_SOFT_ALL } mdp_soft_mask;
extern const char *const mdp_soft_mask_names[]; /* indexed by mdp_soft_mask; NULL at the end */

typedef struct mdp_score_input {
    const mdp_stats *stats;     /* NULL for criteria that need none */
    const mdp_weights *weights; /* NULL for criteria that need none */
    const double *weight;       /* [n_category] or NULL */
    mdp_soft_mask soft_mask;
    uint64_t seed;
    int64_t layer_index; /* index into stats->layers or weights->layers */
    int64_t layer;       /* layer of the model */
    int32_t n_expert;
} mdp_score_input;

/* Tensors that a criterion reads when a plan is made. */
typedef enum mdp_score_tensors {
    MDP_NO_TENSORS,
    MDP_EXPERT_TENSORS,
    MDP_ROUTER_TENSORS,
    MDP_ROUTER_PAIRS
} mdp_score_tensors;

typedef struct mdp_criterion {
    const char *name;    /* --method NAME */
    const char *help;    /* one line, "after <paper>" */
    unsigned statistics; /* bit per mdp_statistic_id that the formula reads */
    bool needs_stats;
    bool needs_vectors; /* of the statistics: kept in total, so categories cannot be told apart */
    bool has_soft_mask; /* --soft-mask says which statistic */
    bool is_seeded;
    bool is_negative;   /* every score is: there is no scaling by the sum or the largest of a layer */
    bool needs_subsets; /* it takes the set of experts that loses least (subsets.h); score is NULL */
    bool own_pass;      /* --keep decides what it measures: it runs the model itself (proficiency.h); score is NULL */
    mdp_score_tensors tensors;
    /* Fill score[n_expert]. Local. An expert never routed scores 0 under a calibrated unsigned criterion. */
    mdp_status (*score)(const mdp_score_input *input, double *score);
} mdp_criterion;

extern const mdp_criterion mdp_criteria[];
extern const int mdp_n_criterion;
const mdp_criterion *mdp_criterion_find(const char *name); /* NULL when unknown */

/* Each expert by the category that needs it most: its score in a category relative to the largest score of the layer in
 * that category, at its best over categories (those with input->weight > 0). The best expert of every category gets 1,
 * so none loses it while a layer keeps as many experts as there are categories. For criteria of statistics that know
 * categories. Local. */
mdp_status mdp_score_worst_category(const mdp_criterion *criterion, const mdp_score_input *input, double *score);

/* ---- super experts ---------------------------------------------------------------------------------------------- */

typedef struct mdp_super_expert {
    int64_t layer_index, layer;
    mdp_expert_t expert;
    double max_abs; /* largest |y| over tokens and channels */
} mdp_super_expert;

/* Experts with massive activations (arXiv 2507.23279): max abs(y) above the 99.5th percentile (nearest rank) over all
 * experts and above a tenth of the largest, in the first ceil(0.75 L) layers that have experts. *out (new) is ascending
 * by layer and expert. weight as in mdp_stats_max. Local. */
mdp_status mdp_super_experts(const mdp_stats *stats, const double *weight, mdp_super_expert **out, int64_t *n);

/* ---- proficiency ------------------------------------------------------------------------------------------------ */

#define MDP_PROFICIENCY_WINDOW 8192 /* tokens */
#define MDP_PROFICIENCY_BETA 0.3

/* One layer while windows go by (TSEP, arXiv 2207.00277): each window's share of the routing weight that every expert
 * still alive receives when only those are routed to; after each window the weakest are dropped. */
typedef struct mdp_proficiency {
    mdp_router_rule rule;
    float *bias; /* [n_expert] for choosing; NULL: none */
    int32_t n_expert, top_k, keep, n_alive;
    mdp_expert_t *alive; /* [n_alive] ascending */
    double *share_sum;   /* [n_expert] sum over windows of the share */
    double *score;       /* [n_expert] alpha: mean share, for a dropped expert as it was then */
    int64_t n_window;
    mdp_exact *gate_sum; /* [n_expert] of the window in the making, this rank's tokens */
} mdp_proficiency;

/* Groups of experts keep equally many. The choice bias is read. Local. */
mdp_status mdp_proficiency_new(mdp_reader *reader, const mdp_moe *moe, int32_t keep, mdp_proficiency **out);
void mdp_proficiency_destroy(mdp_proficiency *proficiency); /* NULL is allowed */
/* Route tokens among the experts alive and add their weights to the window. logits [n_token, n_expert]. Local. */
mdp_status mdp_proficiency_add(mdp_proficiency *proficiency, const double *logits, int64_t n_token);
/* Add up the window over the ranks, drop, begin the next. Every rank decides the same. Collective on `comm`. */
mdp_status mdp_proficiency_close_window_all(const mdp_comm *comm, mdp_proficiency *proficiency);
/* Drop the weakest until `keep` are left. Local. */
void mdp_proficiency_trim(mdp_proficiency *proficiency);

#endif
