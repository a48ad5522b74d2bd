/* plan_expert.h - one expert of a plan as JSON; private to src/plan. */
#ifndef MDP_PLAN_EXPERT_H
#define MDP_PLAN_EXPERT_H

#include "mdp/plan.h"

#define MDP_PLAN_MAX_EXPERT 1000000 /* far beyond any model; bounds what a hand-written number can make us allocate */

/* Where we are, for error sentences. */
typedef struct mdp_plan_place {
    const char *path;
    int64_t layer;
} mdp_plan_place;

#define MDP_REFUSE(where, format, ...)                                                                                 \
    MDP_ERROR(MDP_BAD_INPUT, "%s: layer %lld: " format ".", (where)->path, (long long)(where)->layer, __VA_ARGS__)

/* No key of the object but the known ones (NULL at the end). */
mdp_status mdp_plan_check_keys(const json_t *object, const char *const *known, const mdp_plan_place *where);
mdp_status mdp_plan_parse_number(const json_t *value, const mdp_plan_place *where, mdp_expert_t *out);
/* One entry of "experts". What was parsed before an error is left in *out for the plan to free. */
mdp_status mdp_plan_parse_expert(const json_t *item, const mdp_plan_place *where, mdp_plan_expert *out);
/* New; NULL when memory is out. */
json_t *mdp_plan_print_expert(const mdp_plan_expert *expert);

#endif
