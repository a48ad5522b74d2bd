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

#endif
