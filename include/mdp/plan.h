/* plan.h - what is to become of every expert: budgets turn scores into a plan; the plan and its JSON. */
#ifndef MDP_PLAN_H
#define MDP_PLAN_H

#include "mdp/group.h"
#include "mdp/mask.h"
#include "mdp/score.h"

/* What becomes of experts. zero: it keeps its place and its router row, but returns 0. constant: it returns one vector.
 * condense: it sees every token, without a router. neurons: some of its neurons go. mask: some of its weights. */
typedef enum mdp_action {
    MDP_KEEP,
    MDP_DROP,
    MDP_ZERO,
    MDP_MERGE,
    MDP_CONSTANT,
    MDP_CONDENSE,
    MDP_NEURONS,
    MDP_MASK,
    MDP_N_ACTION
} mdp_action;
const char *mdp_action_name(mdp_action action);

/* How the neurons of merged experts were brought into one order. */
typedef enum mdp_plan_align { MDP_ALIGN_UNSAID, MDP_ALIGN_NONE, MDP_ALIGN_WEIGHT, MDP_ALIGN_ACTIVATION } mdp_plan_align;

/* The router row of a merged expert, of those of its members: their mean by the weights, their sum (biases: the mean),
 * the row of largest norm, or the dominant member's. */
typedef enum mdp_merge_router {
    MDP_ROUTER_MEAN,
    MDP_ROUTER_SUM,
    MDP_ROUTER_MAX,
    MDP_ROUTER_DOMINANT,
    MDP_N_MERGE_ROUTER
} mdp_merge_router;
extern const char *const mdp_merge_router_names[]; /* NULL at the end */

/* An array in plan.h5 that an action needs. */
typedef struct mdp_plan_array {
    char *name;    /* what it is to the action: "down", "value", ... */
    char *path;    /* of the dataset in plan.h5 */
    char xxh3[33]; /* of its stored bytes */
} mdp_plan_array;

/* One expert of the result. */
typedef struct mdp_plan_expert {
    mdp_action action;
    int32_t n_from;
    mdp_expert_t *from; /* [n_from] original experts, ascending */
    double *weights;    /* [n_from] of merged (sum 1) and condensed ones; else NULL */
    mdp_plan_align align;
    int32_t dominant; /* merged: the member that neurons are aligned to, counted in `from` */
    mdp_merge_router router;
    bool takes_in;      /* merged of one: it takes in neurons of dropped experts, */
    double alpha;       /* whose cosine with one of its own is above this */
    bool fitted;        /* merged: its down projection is the least squares of its members' outputs */
    mdp_mask_rule mask; /* masked: which entries of its matrices count as 0 */
    char *neurons; /* cut: a hex digit for four neurons, the lowest bit for the first; its 1 bits stay; else NULL */
    int n_array;
    mdp_plan_array *arrays; /* [n_array] */
} mdp_plan_expert;

typedef struct mdp_plan_layer {
    int64_t layer;            /* of the model */
    int32_t n_expert;         /* before */
    double *scores;           /* [n_expert] original order, or NULL */
    double *mass;             /* [n_expert] what neurons of each count for where others take them in; NULL: not said */
    unsigned char *must_keep; /* [n_expert] nonzero: not to be chosen for removal; NULL: none. Not part of plan.json */
    unsigned char *gone;      /* [n_expert] nonzero: removed in an earlier round; NULL: none. Not part of plan.json */
    unsigned char *unseen;    /* [n_expert] nonzero: no token reached it, so its score says nothing; NULL: none */
    int32_t top_k;            /* experts that each token uses in the result; 0: as many as in the model */
    int32_t n_kept;
    mdp_plan_expert *kept; /* [n_kept] in the new numbering, which follows the first original of each */
    int32_t n_dropped;
    mdp_expert_t *dropped; /* [n_dropped] ascending */
} mdp_plan_layer;

typedef struct mdp_plan {
    char *path;                           /* the file it was parsed from, for errors; NULL: made here; owned */
    char fingerprint[33], model_type[64]; /* of the model it is for */
    json_t *recipe;                       /* {"method", "budget", "keep", "options", ...}; owned */
    bool uniform;
    bool widened; /* the result has all codes with scales (FP8, MXFP4) in bf16, and so have arrays of its experts */
    int64_t n_layer;
    mdp_plan_layer *layers; /* MoE layers, ascending */
} mdp_plan;

/* A new plan with n_layer empty layers and an empty recipe. */
mdp_status mdp_plan_new(int64_t n_layer, mdp_plan **out);
void mdp_plan_destroy(mdp_plan *plan); /* NULL is allowed */
/* Say that an array in plan.h5 is the expert's. Local. */
mdp_status mdp_plan_add_array(mdp_plan_expert *expert, const char *name, const char *path, const char *xxh3);
/* Does any expert have arrays? */
bool mdp_plan_has_arrays(const mdp_plan *plan);
/* Forget the expert's arrays. Local. */
void mdp_plan_clear_arrays(mdp_plan_expert *expert);
/* Members of the layer's merged experts, a list each: [[1, 5], ...]. New, or NULL when memory is out. */
json_t *mdp_plan_list_merged(const mdp_plan_layer *layer);
/* How each was made: [{"from", "action", "weights", "align", "dominant", "router"}, ...]. New, or NULL. */
json_t *mdp_plan_describe_merged(const mdp_plan_layer *layer);
/* A new plan equal to this one, as its text says it; `path` names it in errors. Local. */
mdp_status mdp_plan_copy(const mdp_plan *plan, const char *path, mdp_plan **out);
/* plan.json text, new; equal plans give equal bytes. */
mdp_status mdp_plan_print(const mdp_plan *plan, char **out);
/* What to say when the choice rests on text from which no token reached some experts: how many in which layers, and how
 * many of them go. Returns out, or NULL when there are none. Local. */
#define MDP_PLAN_UNSEEN_TEXT 512
const char *mdp_plan_describe_unseen(const mdp_plan *plan, char out[MDP_PLAN_UNSEEN_TEXT]);
/* Parse and check a plan by itself: every expert named once, kept ones ascending, actions with all that they need.
 * `path` names it in errors, which are MDP_BAD_INPUT and name the layer and the expert. */
mdp_status mdp_plan_parse(const char *text, int64_t n_byte, const char *path, mdp_plan **out);
/* Check a plan against a model whose catalogue has its fingerprint: fingerprint, family, layers, expert counts,
 * keep >= k, "uniform" true to the layers. MDP_BAD_INPUT, naming the layer. */
mdp_status mdp_plan_check(const mdp_plan *plan, const mdp_model *model);
/* The .h5 file beside a plan of that path, and beside one that was read from a file. New text. */
mdp_status mdp_plan_arrays_name(const char *plan_path, char **out);
mdp_status mdp_plan_arrays_path(const mdp_plan *plan, char **out);
/* The arrays that the plan names are in the .h5 file beside it, with the checksums that it names: those that rank
 * `rank` of `size` is to look at. Local, main thread (HDF5); agreed on, the error is the same for any number of ranks.
 * MDP_BAD_INPUT, naming layer and expert. */
mdp_status mdp_plan_check_arrays(const mdp_plan *plan, int rank, int size);

/* grape: layers whose experts are most alike merge most; without similarities, as uniform. list: as many as
 * mdp_budget_options.list says for each layer. */
typedef enum mdp_budget {
    MDP_BUDGET_UNIFORM,
    MDP_BUDGET_GLOBAL,
    MDP_BUDGET_TRAPEZOID,
    MDP_BUDGET_GRAPE,
    MDP_BUDGET_LIST
} mdp_budget;
/* Is its number an average over layers? */
static inline bool mdp_budget_spreads(mdp_budget budget) {
    return budget != MDP_BUDGET_UNIFORM && budget != MDP_BUDGET_LIST;
}
typedef enum mdp_score_normalise { MDP_RAW, MDP_LAYER_SUM, MDP_LAYER_MAX, MDP_LAYER_Z } mdp_score_normalise;

extern const char *const mdp_budget_names[];          /* indexed by mdp_budget; NULL at the end */
extern const char *const mdp_score_normalise_names[]; /* indexed by mdp_score_normalise; NULL at the end */

/* What a list budget says about one layer. */
typedef struct mdp_keep_entry {
    int64_t layer; /* of the model */
    int32_t keep;
} mdp_keep_entry;

typedef struct mdp_budget_options {
    mdp_budget budget;
    mdp_score_normalise normalise; /* global */
    int32_t keep;                  /* experts per layer (uniform), or on average (those that spread) */
    int32_t min_keep;              /* those that spread: never fewer in a layer; 0: as many as a token uses */
    int32_t multiple_of;           /* every layer keeps a multiple of it; 0: any number */
    int32_t n_group; /* experts lie in so many blocks of equal size, all of which keep equally many; 0: one */
    int32_t n_open;  /* blocks that a token sees: together they hold the experts that it uses, and each two or more */
    int32_t top_k;   /* experts that each token is to use; 0: as many as before */
    int64_t n_list;
    const mdp_keep_entry *list; /* [n_list] ascending by layer: exactly the layers with experts; borrowed */
} mdp_budget_options;

/* A layer as a budget sees it. */
typedef struct mdp_budget_layer {
    int64_t layer;             /* of the model */
    int32_t n_expert, n_alive; /* in the model, and left by earlier rounds */
    int32_t top_k;             /* of the model */
} mdp_budget_layer;

/* The file of a list budget: a JSON object of layer numbers and counts, {"0": 6, "1": 4}. New list, ascending.
 * MDP_BAD_INPUT. Local. */
mdp_status mdp_keep_list_parse(const char *text, int64_t n_byte, const char *path, mdp_keep_entry **list, int64_t *n);
/* Of n_round rounds (1 or more) those that are of use: no more than there are steps of one expert, or one multiple, in
 * the layer that loses most; 1 where none loses any. Local. */
int64_t mdp_budget_rounds(const mdp_budget_layer *layers, int64_t n_layer, const mdp_budget_options *options,
                          int64_t n_round);
/* The budget of round `round` of n_round: it removes round / n_round of what the whole removes. list [n_layer] backs
 * the budget that comes out. Local. */
mdp_budget_options mdp_budget_of_round(const mdp_budget_layer *layers, int64_t n_layer,
                                       const mdp_budget_options *options, int64_t round, int64_t n_round,
                                       mdp_keep_entry *list);
/* Everything that can be refused before a score is known. MDP_USAGE, naming the layer. Local. */
mdp_status mdp_budget_check(const mdp_budget_layer *layers, int64_t n_layer, const mdp_budget_options *options);
/* How many experts each layer keeps: count [n_layer]. The global budget cannot say it without scores: there `count`
 * comes in as the ranking has it, and is only rounded to what multiples and groups allow. Options have passed the
 * check. Local. */
mdp_status mdp_budget_counts(const mdp_budget_layer *layers, int64_t n_layer, const mdp_budget_options *options,
                             int32_t *count);
/* Fewest experts that a layer may keep. */
int32_t mdp_budget_least(const mdp_budget_layer *layer, const mdp_budget_options *options);
/* Counts of experts that satisfy both multiple_of and n_group are multiples of this. */
int32_t mdp_budget_unit(const mdp_budget_options *options);

/* Choose from scores (rounded to 30 bits; of equal scores the lower layer, then the lower expert goes first).
 * plan->layers[].scores and n_expert are set; fills kept and dropped, top_k, and plan->uniform. top_k [n_layer] of the
 * model. Local: rank 0 decides, the text is broadcast. */
mdp_status mdp_plan_choose(mdp_plan *plan, const int32_t *top_k, const mdp_budget_options *options);

/* How a router treats an expert that goes. */
typedef enum mdp_pruned_route { MDP_ROUTE_SLICE, MDP_ROUTE_ZERO } mdp_pruned_route;
extern const char *const mdp_pruned_route_names[]; /* indexed by mdp_pruned_route; NULL at the end */

/* What the weights of merged experts are made of; or the best member stands for its group. */
typedef enum mdp_merge_weights {
    MDP_MERGE_MEAN,
    MDP_MERGE_FREQUENCY,
    MDP_MERGE_SALIENCY,
    MDP_MERGE_SOFTMAX,
    MDP_MERGE_REPRESENTATIVE,
    MDP_MERGE_LEAST_SQUARES, /* as frequency, and the down projection is fitted */
    MDP_MERGE_DERN           /* no groups: neurons of experts that go join others */
} mdp_merge_weights;
extern const char *const mdp_merge_weights_names[]; /* NULL at the end */

/* What neurons are cut by. */
typedef enum mdp_neuron_score { MDP_NEURON_ENP, MDP_NEURON_ACT, MDP_N_NEURON_SCORE } mdp_neuron_score;
extern const char *const mdp_neuron_score_names[]; /* NULL at the end */
/* Vectors of statistics that a score takes: a bit for each mdp_vector_id. */
unsigned mdp_neuron_score_vectors(mdp_neuron_score score);

/* Which neurons of experts stay: equally many of each, the best by a score. */
typedef struct mdp_cut_request {
    mdp_neuron_score score;
    int64_t keep;        /* neurons; 0: by ratio */
    double ratio;        /* of the neurons of an expert, above 0, at most 1 */
    int64_t multiple_of; /* their number is rounded down to a multiple of it */
} mdp_cut_request;
/* Neurons that stay of n. MDP_USAGE: more than there are, or none. Local. */
mdp_status mdp_cut_width(const mdp_cut_request *request, int64_t n, int64_t *width);
/* Scores of the neurons of an expert of a layer: out [d_ff]; sums over its tokens, which are to be compared among its
 * neurons alone. The vectors are there. Local. */
void mdp_neuron_scores(const mdp_layer_stats *layer, mdp_neuron_score score, mdp_expert_t expert, double *out);
/* Cut every expert that a plan keeps (cut.c): the vectors of the statistics are there. Local. MDP_USAGE, MDP_BAD_INPUT:
 * the statistics do not hold them. */
mdp_status mdp_plan_cut(const mdp_cut_request *request, const mdp_stats *stats, mdp_plan *plan);
/* Let an expert keep the neurons whose mark is not 0: marks [n]. Local. */
mdp_status mdp_plan_cut_expert(const unsigned char *marks, int64_t n, mdp_plan_expert *expert);
/* Neurons that an expert which is cut keeps; order: their numbers, ascending, [that many], or NULL. Local. */
int64_t mdp_plan_neurons(const mdp_plan_expert *expert, int64_t *order);
/* Neurons of every expert of the result; 0: the plan cuts none. */
int64_t mdp_plan_width(const mdp_plan *plan);
/* Are all experts cut, to the same width, and are there such neurons? MDP_BAD_INPUT. Local. */
mdp_status mdp_plan_check_cut(const mdp_plan *plan, const mdp_model *model);
/* The request as the recipe has it; new, or NULL when memory is out. */
json_t *mdp_plan_describe_cut(const mdp_cut_request *cut, const mdp_stats *stats, const mdp_plan *plan);

/* How experts that do not stay join others. */
typedef struct mdp_merge_request {
    mdp_merge_weights weights;
    mdp_group_method group;
    mdp_linkage linkage;          /* hierarchical */
    int32_t max_group;            /* centroid; 0: any number */
    double keep_whole;            /* this share of the experts of the result, those of highest score, stay alone */
    bool frequency_penalty;       /* distances are multiplied by the shares of the tokens that both have */
    mdp_similarity_id similarity; /* that groups are made by; in the statistics */
    mdp_plan_align align;
    mdp_merge_router router;
    double alpha; /* DERN */
} mdp_merge_request;
/* Are there groups, by some similarity? */
static inline bool mdp_merge_has_groups(const mdp_merge_request *merge) {
    return merge->weights != MDP_MERGE_DERN;
}

/* What the weights of experts that stay are masked by: their size times the norm of the channel that they multiply,
 * over tokens times their weights, over tokens alone, or without it. */
typedef enum mdp_mask_by { MDP_MASK_BY_MOE_PRUNER, MDP_MASK_BY_WANDA, MDP_MASK_BY_MAGNITUDE } mdp_mask_by;
extern const char *const mdp_mask_by_names[]; /* NULL at the end */
typedef struct mdp_mask_request {
    mdp_mask_by by;
    mdp_mask_rule rule;
} mdp_mask_request;
/* Arrays of a masked expert in plan.h5, f32: [d_model] for gate and up, [d_ff] for down. Both or, for norms of 1, none.
 */
extern const char *const mdp_mask_norm_names[2];
mdp_channel_norms mdp_mask_norms(mdp_mask_by by); /* that it needs of statistics */
int64_t mdp_mask_norm_width(const mdp_stats *stats, int64_t layer_index, bool hidden);
/* The share of the entries of all experts' matrices that the plan masks. Local. */
double mdp_plan_masked_share(const mdp_plan *plan, const mdp_model *model);

/* What a scored plan is made from. */
typedef struct mdp_plan_request {
    const mdp_criterion *criterion;
    const mdp_stats *stats;                    /* NULL: a criterion that needs none, for `model` */
    const mdp_model *model;                    /* used when stats is NULL; its catalogue has the fingerprint */
    const mdp_weights *weights;                /* of `model`; for criteria that look at tensors */
    const mdp_proficiency *const *proficiency; /* [layers of the model]; for the criterion with its own pass */
    const mdp_tokens *tokens;                  /* that it ran on */
    const char *compute;                       /* and what multiplied */
    const double *weight;                      /* [n_category of stats] or NULL: every category counts as it is */
    bool worst_category;                       /* mdp_score_worst_category */
    bool protect_super_experts;                /* never choose those (needs stats) */
    mdp_soft_mask soft_mask;
    uint64_t seed;
    mdp_pruned_route pruned_route;
    mdp_budget_options budget;
    const mdp_mask_request *mask;   /* experts that stay are masked (needs stats with channel norms; without stats the
                                       norms are named and not known); NULL: they are not */
    const mdp_merge_request *merge; /* experts that do not stay join others (needs stats); NULL: they go */
    const mdp_cut_request *cut;     /* neurons of those that stay go (needs stats); NULL: none */
    int64_t n_round;                /* rounds that it takes in all; 0 and 1: one */
    const mdp_plan *previous; /* of the round before, through which `stats` were taken: what it removed stays removed,
                                 with the score that it had; NULL: none */
} mdp_plan_request;

/* A chosen plan -> one in which the experts that go join those that are like them (merge.c). Local. MDP_BAD_INPUT: the
 * statistics have not that similarity; MDP_USAGE: groups that cannot be made, weights that cannot be. */
mdp_status mdp_plan_group(const mdp_plan_request *request, mdp_plan *plan);
/* The counts of the budget grape, from the similarity that groups are made by: list [n_layer of plan]; top_k [n_layer]
 * of the model. Local. MDP_BAD_INPUT: the statistics have not that similarity; MDP_USAGE: the total cannot be met. */
mdp_status mdp_plan_share_alike(const mdp_plan_request *request, const mdp_plan *plan, const int32_t *top_k,
                                mdp_keep_entry *list);
/* Let the experts that a layer keeps take in neurons of those that it drops; masses are zeros. Local. */
mdp_status mdp_plan_take_in(double alpha, mdp_plan_layer *layer);
/* Experts that stay become masked ones, with names and checksums of their norms (mask.c), and the recipe says so.
 * Local. MDP_USAGE: a rule that does not go with the widths. */
mdp_status mdp_plan_mask(const mdp_plan_request *request, mdp_plan *plan, json_t **recipe);
/* The request as the recipe of a plan has it; new, or NULL when memory is out. */
json_t *mdp_plan_describe_merge(const mdp_merge_request *merge);

/* What the statistics say of sets of as many experts as each layer keeps: the best set is not to be chosen for removal,
 * an expert's score is the least loss without it. top_k [n_layer] of the model. Local. MDP_USAGE: sets of that size
 * were not measured; a budget that ranks layers. */
mdp_status mdp_plan_take_subsets(const mdp_plan_request *request, const int32_t *top_k, mdp_plan *plan);
/* How they were measured, and per layer what the chosen set loses; new, or NULL when memory is out. */
json_t *mdp_plan_describe_subsets(const mdp_stats *stats, const mdp_plan *plan);

/* Statistics -> scores -> choice, with the recipe that says so. Local: rank 0 decides, the text is broadcast.
 * Errors: MDP_USAGE for a budget that cannot be met. */
mdp_status mdp_plan_make(const mdp_plan_request *request, mdp_plan **out);

#endif
