/* transform.h - plan -> tensors: what apply writes, and the same thing as a virtual model for the engine. */
#ifndef MDP_TRANSFORM_H
#define MDP_TRANSFORM_H

#include "mdp/replaced.h"

/* Can every action of the plan be carried out? MDP_USAGE, naming layer, expert and action. Local. */
mdp_status mdp_transform_check(const mdp_plan *plan);
/* Layers that predict tokens further ahead, where they stay in the result. */
typedef struct mdp_extra {
    const mdp_model *model; /* as mdp_model_bind_extra makes it */
    const mdp_plan *plan;   /* for its layers; NULL: they keep all their experts */
} mdp_extra;
/* What becomes of layers that keep different numbers of experts. */
typedef enum mdp_unequal {
    MDP_UNEQUAL_STACKED, /* they stay so; only model.h5, whose stacks carry the numbers, can hold them */
    MDP_UNEQUAL_PADDED,  /* experts that are never chosen make up the difference */
    MDP_UNEQUAL_LISTED   /* config.json gives each its number, in per_layer_config */
} mdp_unequal;
/* replaced: experts whose parts stand in plan.h5 (NULL: none do).
 *
 * The checkpoint that the plan makes of the model: every tensor as segments of stored ones (experts dropped and
 * renumbered, router rows and fused tensors sliced, all else copied), config.json patched. plan == NULL: the model as
 * it is (export). extra == NULL: a plan leaves no layers that predict tokens further ahead. When layers keep different
 * numbers, config.json keeps the largest count: only model.h5, whose stacks carry each layer's own number, can hold
 * such a result, unless `unequal` says otherwise. plan_text,
 * provenance_text: copied; may be NULL. Local; every rank does the same. */
mdp_status mdp_transform_output(const mdp_model *model, const mdp_plan *plan, const mdp_replaced *replaced,
                                const mdp_extra *extra, const char *plan_text, const char *provenance_text,
                                mdp_unequal unequal, mdp_output **out);
/* Experts are to be numbered anew: can config.json follow, wherever it names them by number? `extra` as above.
 * MDP_BAD_INPUT, naming the key. Local. */
mdp_status mdp_transform_check_names(const mdp_model *model, const mdp_extra *extra);
/* And is there no side file that names them, which cannot follow? MDP_BAD_INPUT, naming file and key. Local: it reads.
 */
mdp_status mdp_transform_check_side_files(const mdp_catalogue *catalogue, mdp_reader *reader);
/* Can config.json say how many experts each layer has? MDP_USAGE, saying why not. Local. */
mdp_status mdp_transform_check_list(const mdp_model *model);
/* Another type for all tensors of a checkpoint. */
typedef enum mdp_retype { MDP_RETYPE_BF16, MDP_RETYPE_F16, MDP_RETYPE_F32, MDP_RETYPE_FP8, MDP_N_RETYPE } mdp_retype;
extern const char *const mdp_retype_names[MDP_N_RETYPE + 1]; /* NULL at the end */
/* Let a described result of the whole model have its real numbers in that type, and config.json say so. FP8: E4M3 with
 * a scale for each 128 x 128 block for linear layers, as DeepSeek-V3 has it, and bf16 for the rest. What stays f32, and
 * what is no real number: mdp_model_list_stored. *changed: is anything not as it was? Local. MDP_BAD_INPUT, MDP_USAGE:
 * it cannot be done; `output` is then only to be destroyed. */
mdp_status mdp_transform_retype(const mdp_model *model, mdp_retype to, mdp_output *output, bool *changed);
/* Let a described result of a plan have all codes with scales in bf16, and config.json not speak of them: what stands
 * in plan.h5 has that type already, all other tensors keep theirs. Local. `output` is only to be destroyed after an
 * error. */
mdp_status mdp_transform_widen(const mdp_model *model, mdp_output *output);
/* Has the model such codes, and nothing that would still speak of them? MDP_USAGE, MDP_BAD_INPUT. Local. */
mdp_status mdp_transform_check_widen(const mdp_model *model);
/* The number of experts of a layer that config.json says where a plan is carried out: the largest of all layers.
 * Local. */
int32_t mdp_transform_count(const mdp_plan *plan);
/* Leave only the tensors of layers first .. last of a result: no model, but every byte of a part of one. MDP_USAGE when
 * the model has no such layers. Local. */
mdp_status mdp_transform_excerpt(mdp_output *output, int64_t first, int64_t last);
/* Can layers be padded so that results stay as they are to the last bit? MDP_USAGE, saying why not. Local. */
mdp_status mdp_transform_check_pad(const mdp_model *model);
/* What the plan makes of the model (NULL: as it is): all values, scales not counted, and those that one token meets.
 * Local. */
typedef struct mdp_result_size {
    int64_t n_parameter, n_active;
} mdp_result_size;
mdp_result_size mdp_transform_size(const mdp_model *model, const mdp_plan *plan);
/* Floating-point operations of one token's matrix products, a multiply-add counted as two; attention over earlier
 * tokens is not in it, since it grows with the text. plan NULL: the model as it is. Local. */
double mdp_transform_flop(const mdp_model *model, const mdp_plan *plan);
/* Can model.h5 hold the experts, whichever stay? It stacks those of a layer, which must be stored alike. MDP_BAD_INPUT,
 * naming the layer's tensors. Local. */
mdp_status mdp_transform_check_stacks(const mdp_model *model);
/* A view with room for every layer of a plan; so far it shows all layers as the model has them. Local. */
mdp_status mdp_transform_view_new(const mdp_model *model, mdp_view **out);
/* Put one layer of a plan into a view that has not had it yet. Local. */
void mdp_transform_view_layer(const mdp_model *model, const mdp_plan_layer *planned, const mdp_replaced *replaced,
                              mdp_view *view);
/* Let `expert` compute in the place of a kept one, in a layer that the view has. Local. */
void mdp_transform_view_make(const mdp_model *model, int64_t layer, int32_t kept, const mdp_expert *expert,
                             mdp_view *view);
/* A plan as the engine reads it. The view has pointers into `replaced` (NULL: nothing stands in plan.h5). Local. */
mdp_status mdp_transform_view(const mdp_model *model, const mdp_plan *plan, const mdp_replaced *replaced,
                              mdp_view **out);

#endif
