/* replaced.h - experts that a plan keeps with another down projection, merges of several, or cuts: what is new of them
 * stands in plan.h5 as the checkpoint would store it; found in the plan, or listed to be made. */
#ifndef MDP_REPLACED_H
#define MDP_REPLACED_H

#include "mdp/arrays.h"
#include "mdp/plan.h"
#include "mdp/recast.h"

/* What of an expert is replaced: stored tensors, or an expert's slice of one that holds all experts. */
typedef enum mdp_expert_part {
    MDP_PART_GATE,
    MDP_PART_GATE_SCALE,
    MDP_PART_GATE_BIAS,
    MDP_PART_UP,
    MDP_PART_UP_SCALE,
    MDP_PART_UP_BIAS,
    MDP_PART_DOWN,
    MDP_PART_DOWN_SCALE,
    MDP_PART_DOWN_BIAS,
    MDP_PART_ROUTER,
    MDP_PART_ROUTER_BIAS,
    MDP_PART_CHOICE_BIAS,
    MDP_PART_INPUT_NORM, /* of masked experts: no part of the model's */
    MDP_PART_HIDDEN_NORM,
    MDP_N_EXPERT_PART
} mdp_expert_part;
extern const char *const mdp_expert_part_names[MDP_N_EXPERT_PART]; /* names of its arrays in a plan */

typedef struct mdp_replaced_expert {
    int64_t layer;                               /* of the model */
    int32_t kept;                                /* number in the result */
    mdp_expert_t from;                           /* in the model */
    bool cut;                                    /* it has the width of the result */
    int64_t array[MDP_N_EXPERT_PART];            /* number of its array, which parts share that are stored as one
                                                    tensor; -1: it has no such part, or keeps it */
    const mdp_tensor *stored[MDP_N_EXPERT_PART]; /* in the model */
    bool masked;                                 /* its matrices are read through */
    mdp_mask mask[2];                            /* these: gate and up, down */
    mdp_expert expert; /* what computes: all but those parts the model's; set when arrays are there */
} mdp_replaced_expert;

typedef struct mdp_replaced {
    const mdp_model *model;
    bool widened;            /* codes with scales are bf16 there, in the order in which the checkpoint has the codes */
    struct mdp_width *width; /* the model as if all experts had the result's neurons; NULL: they have; owned */
    int64_t n;
    mdp_replaced_expert *experts; /* [n] by layer, then kept */
    int64_t n_array;
    mdp_array *list;    /* [n_array] */
    char **names;       /* [n_array] of them */
    mdp_arrays *arrays; /* NULL: not there yet; owned */
} mdp_replaced;

/* Which experts, with which parts. */
typedef enum mdp_replaced_which {
    MDP_REPLACED_NAMED,   /* what the plan says is in plan.h5 */
    MDP_REPLACED_MERGED,  /* merged experts with all parts, and cut ones without router rows, to be made */
    MDP_REPLACED_FITTED,  /* and down projections of those that are kept */
    MDP_REPLACED_ROUTERS, /* or router rows of those that are kept, */
    MDP_REPLACED_EXPERTS, /* or all but those, */
    MDP_REPLACED_BLOCKS   /* or both; with what the plan says is in plan.h5 */
} mdp_replaced_which;
/* Local. MDP_BAD_INPUT: an array that the expert cannot have. Freed with mdp_replaced_destroy. */
mdp_status mdp_replaced_list(const mdp_model *model, const mdp_plan *plan, mdp_replaced_which which,
                             mdp_replaced **out);
void mdp_replaced_destroy(mdp_replaced *replaced); /* NULL is allowed */
/* The arrays are there (taken over), and `reader` is to read them: the experts compute. Local. */
mdp_status mdp_replaced_bind(mdp_replaced *replaced, mdp_arrays *arrays, mdp_reader *reader);
/* Let the arrays of an expert hold what the model stores of the one that it comes from, bit for bit. Local. */
mdp_status mdp_replaced_copy(const mdp_replaced *replaced, const mdp_replaced_expert *expert, mdp_reader *reader);
/* The same of a plan whose arrays are not there, or that has none: what computes can be described, and not read. Local.
 */
mdp_status mdp_replaced_stand_in(const mdp_model *model, const mdp_plan *plan, mdp_replaced **out);
/* The model whose shapes the experts of the result have: that of the plan, or one of another width. `replaced` may be
 * NULL. */
const mdp_model *mdp_replaced_shapes(const mdp_replaced *replaced, const mdp_model *model);
/* Number of an expert of the result; -1: it is not among them. `replaced` may be NULL. */
int64_t mdp_replaced_find(const mdp_replaced *replaced, int64_t layer, int32_t kept);
/* Bytes of all arrays. */
int64_t mdp_replaced_bytes(const mdp_replaced *replaced);
/* Is the part's array that of an earlier part too? */
bool mdp_replaced_is_shared(const mdp_replaced_expert *expert, mdp_expert_part part);
/* The arrays of experts of layers first_layer .. end_layer - 1, which lie one after the other: n from *first on. */
void mdp_replaced_arrays(const mdp_replaced *replaced, int64_t first_layer, int64_t end_layer, int64_t *first,
                         int64_t *n);
/* What a masked expert leaves of a stored tensor, or of its slice of one: as of mdp_recast; n is 0 where the expert is
 * not masked, or has no matrix there. */
mdp_masked mdp_replaced_masked(const mdp_replaced *replaced, int64_t layer, int32_t kept, const mdp_tensor *stored);
/* What stands in plan.h5 in the place of a stored tensor, or of the expert's slice of it; NULL: nothing does. */
const mdp_tensor *mdp_replaced_tensor(const mdp_replaced *replaced, int64_t layer, int32_t kept,
                                      const mdp_tensor *stored);

/* Those of a plan where a result of it, bound as `result`, holds them: file_of [files of the result] are the numbers
 * that a reader gave its files. Who copies compares them with the checksums in the plan. NULL where the plan has none.
 * Local. MDP_BAD_INPUT: the result has no such experts. */
mdp_status mdp_replaced_find_in(const mdp_model *model, const mdp_plan *plan, const mdp_model *result,
                                const int32_t *file_of, mdp_replaced **out);

/* Those of a plan, opened beside it, with checksums for who copies; NULL where it has none. Collective on `comm`
 * (agrees). MDP_BAD_INPUT. */
mdp_status mdp_replaced_open_all(const mdp_comm *comm, const mdp_model *model, const mdp_plan *plan, mdp_reader *reader,
                                 mdp_replaced **out);

#endif
