/* transform.h - plan -> tensors: what apply writes, and the same thing as a virtual model for the engine. */
#ifndef MDP_TRANSFORM_H
#define MDP_TRANSFORM_H

#include "mdp/plan.h"

/* The checkpoint that the plan makes of the model: every tensor as segments of stored ones (experts dropped and
 * renumbered, router rows and fused tensors sliced, all else copied), config.json patched. plan == NULL: the model as
 * it is (export). plan_text, provenance_text: copied; may be NULL. Local; every rank does the same. */
mdp_status mdp_transform_output(const mdp_model *model, const mdp_plan *plan, const char *plan_text,
                                const char *provenance_text, mdp_output **out);
/* The same plan as the engine reads it. Local. */
mdp_status mdp_transform_view(const mdp_model *model, const mdp_plan *plan, mdp_view **out);

#endif
