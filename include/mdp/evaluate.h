/* evaluate.h - measures of a stream per category: loss, perplexity, divergence from the original, agreement with it,
 * exact match; multiple choice; and eval.json (design: cli.md). */
#ifndef MDP_EVALUATE_H
#define MDP_EVALUATE_H

#include "mdp/engine.h"
#include "mdp/resume.h"

/* Sums over predicted positions: every token but a sequence's first. */
typedef struct mdp_eval_stream {
    char *name;              /* "original", or the plan's path */
    char *plan;              /* path of the plan; NULL for the original */
    mdp_exact *nll;          /* [n_category] natural-log loss */
    mdp_exact *kl;           /* [n_category] KL(stream 0 || this one) of the next token's distribution */
    mdp_exact *overlap;      /* [n_category] sum over tokens of the lesser of both probabilities */
    int64_t *n_agree;        /* [n_category] positions whose most likely token is stream 0's */
    int64_t *n_exact;        /* [n_category] sequences with every token of their last half most likely */
    mdp_exact *layer_square; /* [n_layer] squares of the residual stream (stream 0) or of the difference from it */
    double *loglikelihood;   /* [choices of tasks] of the choice's tokens; NULL: no tasks */
} mdp_eval_stream;

/* The same on every rank. Stream 0 is what the others are compared with. */
typedef struct mdp_evaluation {
    int n_category;       /* 0: no text */
    char **category;      /* [n_category] */
    int64_t *n_predicted; /* [n_category] positions */
    int64_t *n_sequence;  /* [n_category] sequences with predicted positions */
    int64_t n_layer;      /* of the model */
    bool has_overlap;     /* overlaps are measured */
    int n_stream;
    mdp_eval_stream *streams;
    const mdp_tasks *tasks; /* borrowed; NULL: none */
    int n_rank;
    int64_t n_token; /* of text and tasks */
    double seconds, tokens_per_second;
} mdp_evaluation;
void mdp_evaluation_destroy(mdp_evaluation *evaluation); /* NULL is allowed */

/* Means of a stream; category < 0: over all tokens, or all sequences. NaN when there are none. */
typedef double mdp_measure_fn(const mdp_evaluation *evaluation, int stream, int category);
mdp_measure_fn mdp_evaluation_loss;
mdp_measure_fn mdp_evaluation_perplexity;
mdp_measure_fn mdp_evaluation_kl;
mdp_measure_fn mdp_evaluation_agreement;
mdp_measure_fn mdp_evaluation_overlap; /* 1 - total variation from stream 0: how often both could draw the same token */
mdp_measure_fn mdp_evaluation_exact_match; /* share of sequences whose last half greedy decoding would reproduce */

/* Relative error of the residual stream after a layer, over all text: norm_F(x - x_0) / norm_F(x_0). NaN when there is
 * no text. */
double mdp_evaluation_layer_error(const mdp_evaluation *evaluation, int stream, int64_t layer);

/* How choices of different lengths are compared. */
typedef enum mdp_choice_by { MDP_BY_SUM, MDP_BY_TOKEN, MDP_BY_BYTE, MDP_N_CHOICE_BY } mdp_choice_by;
/* Share of items whose right choice has the highest log-likelihood, ties to the lower index; task < 0: of all items.
 * Needs evaluation->tasks. */
double mdp_evaluation_accuracy(const mdp_evaluation *evaluation, int stream, int task, mdp_choice_by by);

/* A measure by the name it has in eval.json. */
typedef struct mdp_measure {
    const char *name;
    mdp_measure_fn *of;
} mdp_measure;
#define MDP_N_MEASURE 6
extern const mdp_measure mdp_measures[MDP_N_MEASURE];
/* The first so many are measured. */
int mdp_evaluation_n_measure(const mdp_evaluation *evaluation);
extern const char *const mdp_choice_names[MDP_N_CHOICE_BY]; /* members of a task in eval.json */

/* eval.json, new text. `identity`: digest of what it depends on; NULL: left out. */
mdp_status mdp_evaluation_print(const mdp_evaluation *evaluation, const char *identity, char **out);

/* Put every measure of a stream, and the error of each layer, into a JSON object. Local. */
void mdp_evaluation_print_measures(const mdp_evaluation *evaluation, int stream, json_t **object);

/* ---- measuring ----------------------------------------------------------------------------------------------- */

/* A stream to measure. */
typedef struct mdp_eval_request {
    const char *name;
    const char *plan;     /* path, NULL: original */
    const mdp_view *view; /* NULL: original */
} mdp_eval_request;

/* An empty evaluation of requests on tokens (NULL: no text): names, predicted positions, zero sums. Local. */
mdp_status mdp_evaluation_new(const mdp_tokens *tokens, int64_t n_layer, const mdp_eval_request *requests,
                              int n_request, mdp_evaluation **out);
/* Room for the log-likelihoods of tasks, which are borrowed. Local. */
mdp_status mdp_evaluation_expect_tasks(mdp_evaluation *evaluation, const mdp_tasks *tasks);

typedef struct mdp_dump mdp_dump;

/* What the logits of one batch say about its predicted positions, while the head runs. */
typedef struct mdp_loss mdp_loss;
/* For the engine's current batch. given [n_sequence] tokens at the beginning of each sequence that are not predicted
 * (NULL: 1); `dump` (NULL: none) sees the logits too. */
mdp_status mdp_loss_new(const mdp_engine *engine, const mdp_tokens *tokens, const int64_t *given, mdp_dump *dump,
                        mdp_loss **out);
void mdp_loss_destroy(mdp_loss *loss); /* NULL is allowed */
/* Measure what distributions share, too: the consumer takes panels twice. Before it is made. */
void mdp_loss_share(mdp_loss *loss);
mdp_head_consumer mdp_loss_consumer(mdp_loss *loss);
/* What a forward pass is that has a loss of each of n_stream streams, views [n_stream] or NULL (borrowed); head_again
 * is the caller's to set. */
mdp_pass mdp_loss_pass(int n_stream, const mdp_view *const *views);
/* After a layer: this rank's rows into every stream's sums. Local. MDP_BAD_INPUT when a row is not finite. */
mdp_status mdp_evaluation_add_layer(mdp_evaluation *evaluation, const mdp_engine *engine, int64_t d_model,
                                    int64_t layer);
/* After the head: this rank's sequences into every stream's sums. Local. MDP_BAD_INPUT when a number is not finite. */
mdp_status mdp_evaluation_add(mdp_evaluation *evaluation, const mdp_loss *loss, const mdp_tokens *tokens);
/* The same for choices of the tasks. */
mdp_status mdp_evaluation_add_choices(mdp_evaluation *evaluation, const mdp_loss *loss);
/* Sum over ranks, the same on every rank afterwards. Once for text, once for tasks. Collective on `comm`. */
mdp_status mdp_evaluation_reduce_all(const mdp_comm *comm, mdp_evaluation *evaluation);
mdp_status mdp_evaluation_reduce_choices_all(const mdp_comm *comm, mdp_evaluation *evaluation);
/* For a resume point: bring the sums of text, or of tasks, to rank 0 and leave nothing elsewhere. Collective on `comm`.
 */
mdp_status mdp_evaluation_gather_all(const mdp_comm *comm, mdp_evaluation *evaluation, bool tasks);
/* What they are, rank 0's. Local. */
mdp_status mdp_evaluation_describe(const mdp_comm *comm, mdp_evaluation *evaluation, bool tasks, mdp_point *point);

/* Is a dump of so many streams small enough to be made? MDP_USAGE above 1 GiB. Local. */
mdp_status mdp_dump_check(const mdp_model *model, const mdp_tokens *tokens, int n_request);
/* --dump: the arrays of a forward pass, sequence by sequence (cli.md), in parallel HDF5, at `path`, a place of the
 * caller's own (mdp_workshop_path). Refused as by mdp_dump_check. Collective on `comm`. */
mdp_status mdp_dump_new_all(const mdp_comm *comm, const mdp_model *model, const mdp_tokens *tokens,
                            const mdp_eval_request *requests, int n_request, const char *path, mdp_dump **out);
/* What the engine must call so that the dump sees routes and outputs. */
mdp_observers mdp_dump_observers(mdp_dump *dump);
/* Room for the engine's current batch. Local. */
mdp_status mdp_dump_begin_batch(mdp_dump *dump, const mdp_engine *engine);
/* Write what the layer, and after the head the final rows, left behind. Local; main thread. */
mdp_status mdp_dump_layer(mdp_dump *dump, int64_t layer);
mdp_status mdp_dump_head(mdp_dump *dump);
/* Close and sync the file when `status` is good on all ranks, else remove it. Destroys the dump. Collective. */
mdp_status mdp_dump_finish_all(mdp_dump *dump, mdp_status status);

#endif
