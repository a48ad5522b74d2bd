/* pipeline.h - engine and methods tied together: the layer loop of observe and eval. */
#ifndef MDP_PIPELINE_H
#define MDP_PIPELINE_H

#include "mdp/evaluate.h"
#include "mdp/observe.h"
#include "mdp/profile.h"
#include "mdp/resume.h"
#include "mdp/transform.h"

typedef struct mdp_forward_options {
    int n_thread;         /* threads of this rank, >= 1 */
    mdp_gemm *gemm;       /* for as many threads; borrowed */
    int64_t batch_tokens; /* over all ranks; 0: all tokens, or the largest batch that fits `memory` */
    int64_t memory;       /* bytes per rank; 0: no limit */
    int64_t reserve;      /* bytes of a rank that other things than the engine take, out of `memory` */
    mdp_log *log;
    const char *phase; /* what an evaluation on text is called, also in resume points; NULL: "eval"; borrowed */
    bool overlap;      /* an evaluation on text measures what distributions share, too */
    bool progress;
    mdp_resume *resume;   /* NULL: no resume points, no stopping */
    bool allow_nonfinite; /* activations that are not finite count as 0 instead of ending the pass */
    json_t *profiles;     /* array that gets where the time of each pass went, which is also said on `log`; NULL: not
                             wanted; borrowed */
} mdp_forward_options;

/* Say on `log` where the time of a pass went, and add it to `passes` (rank 0). The profile is ended. Collective on
 * `comm`. */
mdp_status mdp_profile_tell_all(const mdp_comm *comm, mdp_profile *profile, const char *pass, mdp_log *log,
                                json_t *passes);

/* What a forward pass will take, from headers alone. */
typedef struct mdp_forward_cost {
    int64_t batch_tokens; /* chosen */
    int64_t n_batch;
    bool fits;                        /* into `memory`; else this is of the smallest batch that may be taken */
    int64_t memory;                   /* bytes of the largest rank, the reserve included */
    int64_t bytes_stored;             /* read from storage: what the ranks of a node read again is in its memory */
    mdp_rank_cost total, least, most; /* of all ranks together, and of those with the least and most of each */
} mdp_forward_cost;

/* Choose batches and say what they take on the ranks of a layout, which need not exist (mdp_engine_cost). A pass that
 * redoes blocks has all tokens in one batch. Local. */
mdp_status mdp_forward_cost_of(const mdp_comm *layout, const mdp_model *model, const mdp_tokens *tokens,
                               const mdp_pass *pass, const mdp_forward_options *options, mdp_forward_cost *out);

/* The smallest number of ranks, of nodes like those of the layout, with which a batch fits into `memory`, when it does
 * not on those of the layout; 0: none. Local. */
mdp_status mdp_forward_find_ranks(const mdp_comm *layout, const mdp_model *model, const mdp_tokens *tokens,
                                  const mdp_pass *pass, const mdp_forward_options *options, int64_t batch_tokens,
                                  int *out);
/* What --memory should be where `need` bytes are needed: a little more, since what a process holds at its start is not
 * the same from run to run. */
int64_t mdp_memory_to_give(int64_t need);
/* The MDP_USAGE sentence for `need` bytes of a rank that options->memory does not allow; n_rank ranks would do with
 * what it allows (0: none would). */
mdp_status mdp_forward_too_little(const mdp_comm *layout, const mdp_pass *pass, const mdp_forward_options *options,
                                  int64_t need, int n_rank);

/* Pruned propagation: a layer is decided as soon as its statistics are there, and what the decision leaves of it
 * computes the input of the next. */
typedef struct mdp_propagation {
    mdp_view *view; /* from mdp_transform_view_new; gets the decided layers */
    /* Put what is left of a layer into `view`; `stats` are complete, on rank 0, up to this layer. Collective. */
    mdp_status (*decide_all)(void *context, int64_t layer, const mdp_stats *stats, mdp_view *view);
    void *context;
} mdp_propagation;

/* One forward over all tokens of the model, or (view not NULL) of what a plan leaves of it, with every tile observer;
 * the sums in *out, for experts as the model numbers them, are complete on rank 0. similarity: what is collected for
 * similarities of experts; NULL: nothing, as for a view. Collective on `comm`. Errors: reading weights; NaN or Inf in a
 * router (names layer and expert). */
mdp_status mdp_observe_all(const mdp_comm *comm, const mdp_model *model, mdp_reader *reader, const mdp_tokens *tokens,
                           const mdp_view *view, const mdp_similarity_request *similarity,
                           const mdp_forward_options *options, mdp_stats **out);
/* The same with pruned propagation: every layer as the model has it, on inputs that the decided layers before it
 * computed. Collective on `comm`. */
mdp_status mdp_observe_pruned_all(const mdp_comm *comm, const mdp_model *model, mdp_reader *reader,
                                  const mdp_tokens *tokens, const mdp_propagation *propagation,
                                  const mdp_similarity_request *similarity, const mdp_forward_options *options,
                                  mdp_stats **out);

/* The criterion proficiency: one forward over all tokens of the model as it is, windows of MDP_PROFICIENCY_WINDOW
 * tokens in order. *out (new) [layers of the model], NULL for layers without experts; the same on every rank.
 * Collective on `comm`. */
mdp_status mdp_proficiency_all(const mdp_comm *comm, const mdp_model *model, mdp_reader *reader,
                               const mdp_tokens *tokens, int32_t keep, const mdp_forward_options *options,
                               mdp_proficiency ***out);
void mdp_proficiencies_destroy(mdp_proficiency **layers, int64_t n_layer); /* NULL is allowed */

/* Can sets of experts of these sizes be measured? MDP_USAGE, naming the layer. Local. */
mdp_status mdp_subsets_check(const mdp_model *model, const mdp_subset_request *request);
/* The pass that measures them, for forecasts, with the view (new) that it sees the model through; the caller points
 * pass->views at it. Local. */
mdp_status mdp_subset_pass_new(const mdp_model *model, const mdp_subset_request *request, mdp_view **view,
                               mdp_pass *pass);
/* Bytes of a rank for what is added up, and about as many in stats.h5. */
int64_t mdp_subset_sums_memory(const mdp_model *model, const mdp_subset_request *request);
/* One forward over all tokens, every expert on every token, by which sets of experts are measured; into stats->layers,
 * the same on every rank. Collective on `comm`. */
mdp_status mdp_subsets_all(const mdp_comm *comm, const mdp_model *model, mdp_reader *reader, const mdp_tokens *tokens,
                           const mdp_subset_request *request, const mdp_forward_options *options, mdp_stats *stats);

/* Measures per category of n_request streams in one forward over tokens (NULL: no text, only room for tasks); stream 0
 * is what the others are compared with. dump_path (NULL: none): the arrays of cli.md, --dump; MDP_USAGE when they
 * exceed 1 GiB. Collective on `comm`. */
mdp_status mdp_evaluate_all(const mdp_comm *comm, const mdp_model *model, mdp_reader *reader, const mdp_tokens *tokens,
                            const mdp_eval_request *requests, int n_request, const mdp_forward_options *options,
                            const char *dump_path, mdp_evaluation **out);
/* Add multiple choice to an evaluation of the same requests, by a forward over the choices. `tasks` stays borrowed by
 * the evaluation. Collective on `comm`. */
mdp_status mdp_evaluate_tasks_all(const mdp_comm *comm, const mdp_model *model, mdp_reader *reader,
                                  const mdp_tasks *tasks, const mdp_eval_request *requests,
                                  const mdp_forward_options *options, mdp_evaluation *evaluation);

#endif
