/* others.h - plans and scores in forms that other software reads (doc/formats.md, "Plans for others"). */
#ifndef MDP_OTHERS_H
#define MDP_OTHERS_H

#include "mdp/plan.h"

typedef enum mdp_other {
    MDP_FOR_KEEP_LIST,
    MDP_FOR_SCORES,
    MDP_FOR_VLLM_ASCEND,
    MDP_FOR_PRECISION,
    MDP_FOR_PER_CATEGORY,
    MDP_N_OTHER
} mdp_other;
extern const char *const mdp_other_names[]; /* NULL at the end */
extern const char *const mdp_other_help[];  /* [MDP_N_OTHER] one line each */
/* Does it say something of every expert, whether it stays or not? Then no number to keep is wanted. */
bool mdp_other_needs_no_number(mdp_other other);

/* keep-list: which experts stay in each layer, as JSON. MDP_USAGE: the plan does more than keep and drop. New text.
 * Local. */
mdp_status mdp_keep_list_print(const mdp_plan *plan, char **out);
/* vllm-ascend: a line of JSON for each layer, {"0": [7, 2, ...]}, with all experts of it, those that stay first, the
 * best first. MDP_USAGE: layers keep different numbers, or experts do not simply stay or go. New text. Local. */
mdp_status mdp_expert_order_print(const mdp_plan *plan, char **out);
/* precision: how important every expert is, as its place in its layer and in all layers, 0 to 1. New text. Local. */
mdp_status mdp_precision_print(const mdp_plan *plan, char **out);
/* scores: by the plan's own criterion, and by all that these statistics (NULL: none) give, with the weights of
 * categories that the plan was made with (NULL: every one counts as it is). New text. Local. */
mdp_status mdp_scores_print(const mdp_plan *plan, const mdp_stats *stats, const double *weight, char **out);
/* per-category: the lists of n plans, each made by the category of that name alone; and which experts all of them keep,
 * and one alone. New text. Local. */
mdp_status mdp_category_lists_print(int n, char *const *names, mdp_plan *const *plans, char **out);

#endif
