/* frontier.h - quality against size: many plans of one model, measured on one text, and which of them no other beats.
 */
#ifndef MDP_FRONTIER_H
#define MDP_FRONTIER_H

#include "mdp/evaluate.h"
#include "mdp/transform.h"

/* What a plan makes of the model; of the first point, the model as it is. */
typedef struct mdp_frontier_size {
    int64_t n_expert;    /* of all layers */
    int32_t least, most; /* experts of a layer that has any */
    mdp_result_size values;
    int64_t n_byte; /* of the tensors as written */
    double flop;    /* of a token's matrix products */
} mdp_frontier_size;

/* What was asked for, and what it came to. */
typedef struct mdp_frontier_point {
    const char *method; /* NULL: the original, which is the first point; borrowed */
    mdp_budget budget;
    double ratio;  /* share of the experts that was to be removed */
    int32_t keep;  /* experts of a layer, on average */
    char *refused; /* why there is no such plan; NULL: there is; owned */
    int same_as;   /* index of an earlier point with the same plan, whose numbers are here too; -1: none */
    mdp_frontier_size size;
    const mdp_evaluation *evaluation; /* that has it as stream number `stream`; borrowed */
    int stream;
    bool undominated; /* no other is at most as large and at most as perplexed, and less of one */
} mdp_frontier_point;

typedef struct mdp_frontier {
    const mdp_model *model;   /* borrowed */
    const mdp_tokens *tokens; /* borrowed */
    int n;
    mdp_frontier_point *points; /* [n] the original and all that was asked for, in that order; owned */
    double within;              /* allowed growth of the perplexity, 0.05 for 5%; 0: not asked */
    int answer;                 /* the smallest point within that; -1: none, or not asked */
} mdp_frontier;

void mdp_frontier_destroy(mdp_frontier *frontier); /* NULL is allowed */

/* Sizes of the model (plan NULL) and of a plan's result, which is laid out and forgotten. Local. */
mdp_status mdp_frontier_size_of(const mdp_model *model, const mdp_plan *plan, mdp_frontier_size *out);
/* When everything is measured: which are undominated, and the answer. Local. */
void mdp_frontier_judge(mdp_frontier *frontier);

/* frontier.json, new text. Local. */
mdp_status mdp_frontier_print(const mdp_frontier *frontier, const char *identity, char **out);
/* The page with the curve, new text, from that text. Local. */
mdp_status mdp_frontier_page(const char *json, char **out);
/* The closing table, new text. next: a command that goes on from the answer; NULL: none. Local. */
mdp_status mdp_frontier_table(const mdp_frontier *frontier, const char *next, char **out);

#endif
