/* trainer.h - the state of a layer in training. Private to src/recover. */
#ifndef MDP_SRC_RECOVER_TRAINER_H
#define MDP_SRC_RECOVER_TRAINER_H

#include "mdp/recover.h"
#include "mdp/row_product.h"

#define MDP_TRAIN_SLICES 8    /* units of an expert, at most */
#define MDP_TRAIN_NEURONS 128 /* of a unit, at least, where there are more */
#define MDP_TRAIN_PANEL 128   /* rows of a gradient that a thread computes at a time */
#define MDP_TRAIN_CHUNK 65536 /* values that a thread updates at a time */

/* Neurons first .. first + n - 1 of an expert. Its values: gate [n, d], up [n, d], down [d, n], their biases [n], [n],
 * [d] (of down in the first unit of an expert alone), one part after the other. */
typedef struct mdp_train_unit {
    int32_t expert;
    int64_t first, n;
    int64_t at[MDP_TRAIN_N_PART + 1]; /* where each part begins among the values, and the number of all */
    float *value;                     /* [at[MDP_TRAIN_N_PART]] here, like the following; NULL: another rank's */
    float *gradient, *mean, *square;  /* NULL: experts are not trained */
    /* of the step at hand: [rows of the expert, n], [.., d] */
    float *gate, *up, *h, *dgate, *dup, *y;
} mdp_train_unit;

struct mdp_trainer {
    const mdp_comm *comm;
    mdp_gemm *gemm;
    int n_thread;
    mdp_profile *profile;
    mdp_train_layer layer;
    mdp_train_options options;
    int64_t n_update; /* steps so far */

    int32_t n_slice; /* units of an expert: those of expert e are e * n_slice .. */
    int64_t n_unit;
    mdp_train_unit *units;        /* [n_unit] */
    int64_t first_unit, end_unit; /* this rank's */
    float *panels;                /* [n_thread, MDP_TRAIN_PANEL, MDP_TILE_ROWS] */

    /* the router, the same on every rank: rows [n_expert, d_model], then biases [n_expert] where there are any */
    int64_t n_router;
    bool has_bias;
    float *router, *router_gradient, *router_mean, *router_square;
    float *choice_bias; /* [n_expert]; NULL: none */
    int32_t *own_row;   /* [n_expert] 0, 1, ...: whose choice bias is whose */
    mdp_product_layout *layout;
    mdp_products *products;
    mdp_exchange_room *room;
};

/* A token's row on the way to an expert. */
typedef struct mdp_train_visit {
    int32_t row, slot;
} mdp_train_visit;

/* One step under way. */
typedef struct mdp_train_step {
    mdp_trainer *trainer;
    const mdp_train_rows *rows;
    double *logits;           /* [n, 4, n_expert] logits, and room for what is made of them */
    mdp_expert_t *index;      /* [n, top_k] */
    float *weight;            /* [n, top_k] */
    int64_t *count;           /* [n_expert] visits of this rank to each expert */
    int64_t *first;           /* [n_expert + 1] of them among the visits */
    mdp_train_visit *visits;  /* by expert, then token */
    int64_t *told, *telling;  /* [size, n_expert] visits from each rank to each expert; what this rank tells */
    int64_t *n_send, *n_recv; /* [size] */
    float **x, **dy; /* [n_expert] rows of all ranks in the order of tokens, [rows, d], of experts with units here */
    int64_t *n_row;  /* [n_expert] their number */
    float *parts;    /* [n, top_k, n_slice, d] outputs of units at the tokens' owner */
    float *back;     /* [n, d] gradient of what the block gives */
    double *dg;      /* [n, top_k] gradient of the applied weights */
    mdp_exact error; /* sum of squares */
} mdp_train_step;

/* Units of a rank, and those of them that an expert has. */
void mdp_train_units_of(const mdp_trainer *trainer, int rank, int64_t *first, int64_t *end);
int64_t mdp_train_slices_at(const mdp_trainer *trainer, int rank, int32_t expert, int64_t *first);

/* ---- rows.c: rows to the units and back ---- */

/* Visits are known: counts of all ranks, and room for what comes. Collective (agrees). */
mdp_status mdp_train_meet_all(mdp_train_step *step);
/* x, or weight times back, of every visit to the units. Collective. */
mdp_status mdp_train_send_rows_all(mdp_train_step *step, bool back);
/* Outputs of units to the tokens' owners. Collective. */
mdp_status mdp_train_return_all(mdp_train_step *step);

/* ---- unit_pass.c: the products of units ---- */

/* Room for the rows of the step at this rank's units. Local. */
mdp_status mdp_train_open_units(mdp_train_step *step);
void mdp_train_close_units(mdp_train_step *step);
void mdp_train_forward(mdp_train_step *step);
void mdp_train_backward(mdp_train_step *step);

/* ---- route_step.c: routes, errors, the router's gradient ---- */

/* Choose for all rows. Local. */
void mdp_train_route(mdp_train_step *step);
/* Errors, and gradients of outputs and weights. Local. */
mdp_status mdp_train_compare(mdp_train_step *step);
/* Collective (agrees). */
mdp_status mdp_train_router_back_all(mdp_train_step *step);

#endif
