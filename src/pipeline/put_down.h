/* put_down.h - a down projection that a fit has found, put into the plan's arrays by all ranks. */
#ifndef MDP_SRC_PIPELINE_PUT_DOWN_H
#define MDP_SRC_PIPELINE_PUT_DOWN_H

#include "mdp/arrays.h"
#include "mdp/model.h"

/* What rounding takes: sums of squares over all rows that are put. */
typedef struct mdp_put_error {
    mdp_exact fitted, lost;
} mdp_put_error;

/* One expert's rows on this rank. */
typedef struct mdp_put_down {
    const mdp_comm *comm;
    mdp_reader *reader;
    mdp_arrays *arrays;
    const mdp_expert *from; /* what `part` is of */
    const mdp_expert *to;   /* in the arrays, as it will be stored */
    const double *d;        /* [n_col, order] */
    int64_t order, offset;  /* of the expert's values in a column */
    int64_t first, n_col;   /* rows of W */
    double part, step;      /* what is put: part * W + step * D; part 0: W is not read */
    mdp_put_error *error;   /* is added to; NULL: not wanted */
    void *scratch;          /* room of mdp_put_down_all */
    float *stored;          /* [PUT_ROWS.., f] */
    double *values;         /* the same */
    double *fitted;         /* the same, before it is rounded */
} mdp_put_down;

/* Put the rows, and the bias, whose change is the last value of a column. Collective on `comm` (agrees). */
mdp_status mdp_put_down_all(mdp_put_down *w);

#endif
