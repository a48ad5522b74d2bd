/* recover.h - training by gradients: AdamW, its schedule and batches, and the block of experts of one layer trained on
 * its inputs and targets over all ranks (doc/recover.md). */
#ifndef MDP_RECOVER_H
#define MDP_RECOVER_H

#include "mdp/engine.h"

/* ---- the optimiser ----------------------------------------------------------------------------------------------- */

typedef enum mdp_schedule { MDP_SCHEDULE_COSINE, MDP_SCHEDULE_LINEAR, MDP_SCHEDULE_CONSTANT } mdp_schedule;
extern const char *const mdp_schedule_names[]; /* NULL at the end */

typedef struct mdp_train_options {
    bool router, experts; /* what is trained */
    int epochs;
    int64_t batch_tokens; /* tokens of a step, about */
    double rate;          /* the largest learning rate */
    double warmup;        /* part of the steps in which it rises to that */
    mdp_schedule schedule;
    double decay; /* of weights, decoupled: a step multiplies them by 1 - rate * decay */
    double clip;  /* largest norm of the gradient of a layer; 0: any */
    uint64_t seed;
} mdp_train_options;

/* Learning rate of step `step` (from 0) of n_step: linear up to the full rate, then by the schedule towards 0. */
double mdp_train_rate(const mdp_train_options *options, int64_t step, int64_t n_step);

/* A step of AdamW (arXiv 1711.05101) as torch.optim.AdamW does it, betas 0.9 and 0.95, eps 1e-8. */
typedef struct mdp_adamw {
    double rate, decay;
    double scale;   /* gradients are multiplied by it: clipping */
    int64_t number; /* of the step, from 1 */
} mdp_adamw;
/* value, mean, square [n]; mean and square are 0 before step 1. */
void mdp_adamw_step(const mdp_adamw *step, int64_t n, const float *gradient, float *value, float *mean, float *square);
/* min(1, clip / (norm + 1e-6)), as torch.nn.utils.clip_grad_norm_; clip 0: 1. */
double mdp_clip_scale(double clip, double norm);

/* Which sequences make which step. */
typedef struct mdp_train_batches {
    int64_t n_step;
    int64_t *first;    /* [n_step + 1] into sequence */
    int64_t *sequence; /* of a step, ascending */
} mdp_train_batches;
/* For all epochs: the sequences of a tokens file but for those with skip [n_sequence] (NULL: none) in an order drawn
 * anew for each epoch, in runs of batch_tokens tokens at most (one sequence at least). Local, the same everywhere.
 * Freed with mdp_train_batches_clear, on error too. */
mdp_status mdp_train_batches_new(const mdp_tokens *tokens, const unsigned char *skip, const mdp_train_options *options,
                                 mdp_train_batches *out);
void mdp_train_batches_clear(mdp_train_batches *batches);

/* ---- a layer ----------------------------------------------------------------------------------------------------- */

/* The experts of a layer and its router as they are before training. */
typedef struct mdp_train_layer {
    const mdp_moe *moe; /* rule, sizes, activation */
    int64_t d_model;
    int32_t n_expert, top_k;
    const mdp_expert_t *source;      /* [n_expert] their numbers in the model, ascending */
    const unsigned char *zero;       /* [n_expert] nonzero: returns 0 and is not trained; NULL: none */
    const mdp_expert *const *expert; /* [n_expert] whose matrices are gone on from */
    const mdp_expert *const *row;    /* [n_expert] who has a router row of its own; NULL entry: the layer's is taken */
} mdp_train_layer;

typedef struct mdp_trainer mdp_trainer;
/* Read the weights of this rank's units; all else in the arguments is borrowed. Collective on `comm` (agrees). Errors:
 * MDP_USAGE for a router that weighs inputs, if it is to be trained. */
mdp_status mdp_trainer_new_all(const mdp_comm *comm, mdp_reader *reader, mdp_gemm *gemm, int n_thread,
                               mdp_profile *profile, const mdp_train_layer *layer, const mdp_train_options *options,
                               mdp_trainer **out);
void mdp_trainer_destroy(mdp_trainer *trainer); /* NULL is allowed */

/* This rank's tokens of a step. */
typedef struct mdp_train_rows {
    int64_t n;
    const int64_t *token; /* [n] numbers in the tokens file, ascending; every rank's are above those of lower ranks */
    const float **x;      /* [n] rows of d_model: inputs */
    const float **target; /* [n] and what is to come out */
    double scale;         /* of squared errors: the loss is their sum times this */
} mdp_train_rows;
/* Loss and gradients of the rows of all ranks, with the weights as they are. Collective (agrees). */
mdp_status mdp_trainer_gradient_all(mdp_trainer *trainer, const mdp_train_rows *rows, double *loss);
/* Norm of the gradient that is there, and a step by it. Collective (agrees). */
mdp_status mdp_trainer_update_all(mdp_trainer *trainer, double rate, double *norm);

/* What is trained of an expert: matrices and biases in the order of mdp_expert. */
typedef enum mdp_train_part {
    MDP_TRAIN_GATE,      /* [d_ff, d_model] */
    MDP_TRAIN_UP,        /* [d_ff, d_model] */
    MDP_TRAIN_DOWN,      /* [d_model, d_ff] */
    MDP_TRAIN_GATE_BIAS, /* [d_ff] */
    MDP_TRAIN_UP_BIAS,   /* [d_ff] */
    MDP_TRAIN_DOWN_BIAS, /* [d_model] */
    MDP_TRAIN_N_PART
} mdp_train_part;
/* A part whole, at rank `root` (new; NULL elsewhere, and where the expert has none), of weights or of the gradient.
 * Collective (agrees). */
mdp_status mdp_trainer_gather_all(const mdp_trainer *trainer, int32_t expert, mdp_train_part part, bool gradient,
                                  int root, float **out);
/* Rows of the router [n_expert, d_model] and its bias [n_expert] (NULL: it has none); the same on every rank. */
const float *mdp_trainer_router(const mdp_trainer *trainer, bool gradient, const float **bias);
int64_t mdp_trainer_values(const mdp_trainer *trainer); /* that are trained, on all ranks */

/* What training a layer takes, foretold: tokens choose at random. */
typedef struct mdp_train_cost {
    int64_t flop, flop_most; /* of all ranks, and of the one with the most, for one pass over n_token tokens */
    int64_t memory;          /* bytes of a rank for weights, moments and one step */
} mdp_train_cost;
mdp_train_cost mdp_train_cost_of(const mdp_train_options *options, const mdp_moe *moe, int64_t d_model,
                                 int32_t n_expert, int32_t top_k, int64_t n_token, int size, int n_thread);

#endif
