/* evaluate.h - measures of a stream: loss per category, perplexity, and eval.json (design: cli.md). */
#ifndef MDP_EVALUATE_H
#define MDP_EVALUATE_H

#include "mdp/engine.h"

typedef struct mdp_eval_stream {
    char *name;     /* "original", or the plan's path */
    char *plan;     /* path of the plan; NULL for the original */
    mdp_exact *nll; /* [n_category] summed natural-log loss */
} mdp_eval_stream;

/* The same on every rank. */
typedef struct mdp_evaluation {
    int n_category;
    char **category;      /* [n_category] */
    int64_t *n_predicted; /* [n_category] */
    int n_stream;
    mdp_eval_stream *streams;
    int n_rank;
    double seconds, tokens_per_second;
} mdp_evaluation;
void mdp_evaluation_destroy(mdp_evaluation *evaluation); /* NULL is allowed */
/* Mean loss and perplexity of a stream; category < 0: over all tokens. NaN when nothing was predicted. */
double mdp_evaluation_loss(const mdp_evaluation *evaluation, int stream, int category);
double mdp_evaluation_perplexity(const mdp_evaluation *evaluation, int stream, int category);
/* eval.json, new text. */
mdp_status mdp_evaluation_print(const mdp_evaluation *evaluation, char **out);

/* ---- measuring ----------------------------------------------------------------------------------------------- */

/* A stream to measure. */
typedef struct mdp_eval_request {
    const char *name;
    const char *plan;     /* path, NULL: original */
    const mdp_view *view; /* NULL: original */
} mdp_eval_request;

/* An empty evaluation of requests on tokens: names, predicted positions, zero sums. Local. */
mdp_status mdp_evaluation_new(const mdp_tokens *tokens, const mdp_eval_request *requests, int n_request,
                              mdp_evaluation **out);

typedef struct mdp_dump mdp_dump;

/* Adds the loss of every predicted position of one batch to an evaluation, from the logits of the head. */
typedef struct mdp_loss mdp_loss;
/* For the engine's current batch. `dump` (NULL: none) sees the logits too. */
mdp_status mdp_loss_new(const mdp_engine *engine, const mdp_tokens *tokens, mdp_dump *dump, mdp_loss **out);
void mdp_loss_destroy(mdp_loss *loss); /* NULL is allowed */
mdp_head_consumer mdp_loss_consumer(mdp_loss *loss);
/* After the head: this rank's losses into every stream's sums. Local. MDP_BAD_INPUT when one is not finite. */
mdp_status mdp_loss_add(const mdp_loss *loss, mdp_evaluation *evaluation);
/* Sum over ranks, the same on every rank afterwards. Collective on `comm`. */
mdp_status mdp_evaluation_reduce_all(const mdp_comm *comm, mdp_evaluation *evaluation);

/* --dump: the arrays of a forward pass, sequence by sequence (cli.md), in parallel HDF5. Refused (MDP_USAGE) above
 * 1 GiB. Collective on `comm`. */
mdp_status mdp_dump_new_all(const mdp_comm *comm, const mdp_model *model, const mdp_tokens *tokens,
                            const mdp_eval_request *requests, int n_request, const char *path, mdp_dump **out);
/* What the engine must call so that the dump sees routes and outputs. */
mdp_observers mdp_dump_observers(mdp_dump *dump);
/* Room for the engine's current batch. Local. */
mdp_status mdp_dump_begin_batch(mdp_dump *dump, const mdp_engine *engine);
/* Write what the layer, and after the head the final rows, left behind. Local; main thread. */
mdp_status mdp_dump_layer(mdp_dump *dump, int64_t layer);
mdp_status mdp_dump_head(mdp_dump *dump);
/* Close; rename the file into place when `status` is good on all ranks, else remove it. Destroys the dump. Collective.
 */
mdp_status mdp_dump_finish_all(mdp_dump *dump, mdp_status status);

#endif
