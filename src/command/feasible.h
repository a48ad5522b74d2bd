/* feasible.h - what is checked before anything heavy runs: the budget, the shape of the result. */
#ifndef MDP_FEASIBLE_H
#define MDP_FEASIBLE_H

#include "command/session.h"

/* Experts of the layers that a budget is about. */
typedef struct mdp_census {
    int64_t n_layer;           /* layers with experts */
    int32_t smallest, largest; /* experts of a layer */
    int32_t top_k;             /* most that a token uses in a layer */
    int32_t n_group, n_open;   /* groups of experts, and how many a token sees; the same in all layers */
} mdp_census;

mdp_census mdp_census_of_model(const mdp_model *model);
mdp_census mdp_census_of_stats(const mdp_stats *stats);

/* How many experts stay in each layer, on average, when this share of them stays, or is removed (`removes`): half up,
 * and with the uniform budget a number that multiples and groups allow. Layers are alike. Local. */
int32_t mdp_census_keep(const mdp_census *census, double ratio, bool removes, const mdp_budget_options *budget);
/* --keep and its likes, --budget, --min-keep, --normalise, --keep-multiple-of and --top-k, checked against the layers
 * of the statistics or (NULL) of the open model. The list of out is the session's. Local. Errors: MDP_USAGE. */
mdp_status mdp_session_budget(mdp_session *session, const mdp_stats *stats, mdp_budget_options *out);
/* The n layers with experts of the statistics or (NULL) of the model; new. Local. */
mdp_status mdp_session_list_layers(const mdp_model *model, const mdp_stats *stats, int64_t n, mdp_budget_layer **out);
/* --keep-file, when it is given: into the session. Collective. */
mdp_status mdp_session_read_keep_file_all(mdp_session *session);
/* The first part of it: what the options say without any model (one way to choose a number is given, options of the
 * global budget only with it). Local. MDP_USAGE. */
mdp_status mdp_session_check_budget(const mdp_session *session);

/* Does --format ask for this container? */
bool mdp_session_wants_native(const mdp_session *session);
bool mdp_session_wants_hf(const mdp_session *session);

/* What --non-uniform asks for. Local. */
mdp_unequal mdp_session_unequal(const mdp_session *session);
/* A Hugging Face folder can hold only layers with equal numbers of experts. Local. MDP_USAGE. */
mdp_status mdp_session_check_uniform(const mdp_session *session, const mdp_plan *plan);
/* The same before there is a plan, for any that the budget may lead to; the global budget says only with the scores how
 * many experts stay where, so there what --non-uniform asks for must be possible. `stand_in` has the numbers that the
 * others lead to. Local. MDP_USAGE. */
mdp_status mdp_session_check_budget_fits(const mdp_session *session, const mdp_budget_options *budget,
                                         const mdp_plan *stand_in);
/* What else can stand in the way of writing a result, whichever experts stay: side files that cannot be read (rank 0
 * looks), experts that --format hdf5 cannot stack. Names of tensors are looked at where files are laid out, by
 * mdp_session_add_writes_all. Local. */
mdp_status mdp_session_check_result(const mdp_session *session);
/* The first part of it, for results whose experts are known. */
mdp_status mdp_session_check_side_files(const mdp_session *session);

#endif
