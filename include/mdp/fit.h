/* fit.h - ridge least squares over experts: D [n, d] that solves (A + lambda I) D = B, A and B row products, n the
 * values of all expert sides. The columns of D are dealt to ranks in runs of whole units, and every column is computed
 * by products of shapes that do not depend on the number of ranks.
 *
 * All functions whose names end in _all are collective on the communicator of the products and agree. */
#ifndef MDP_FIT_H
#define MDP_FIT_H

#include "mdp/row_product.h"
#include "mdp/spd.h"

typedef enum mdp_fit_mode { MDP_FIT_JOINT, MDP_FIT_SWEEPS, MDP_FIT_DIAGONAL } mdp_fit_mode;

/* Sides 0 .. n_side - 2 of the layout are experts, the last one is what they are fitted to. Its pairs: of each expert
 * with every expert up to itself (or, for diagonal, with itself only), ascending, then of each with the last side. */
typedef struct mdp_fit mdp_fit;

/* The pairs of a fit of n_expert experts, in that order: pairs [mdp_fit_count_pairs]; rows [n_expert, n_expert] tokens
 * that chose both, n_row tokens that chose any: of each with the last side, its own. */
int32_t mdp_fit_count_pairs(int32_t n_expert, mdp_fit_mode mode);
void mdp_fit_list_pairs(int32_t n_expert, mdp_fit_mode mode, const int64_t *rows, mdp_product_pair *pairs);

/* `unit`: columns of D that stay together, a multiple of MDP_SPD_COLUMNS; `alone`: see mdp_grid_new_all. `products`,
 * `layout` and `profile` (may be NULL) are borrowed. */
mdp_status mdp_fit_new_all(const mdp_comm *comm, mdp_products *products, const mdp_product_layout *layout,
                           mdp_fit_mode mode, int64_t alone, int64_t unit, int n_thread, mdp_profile *profile,
                           mdp_fit **out);
void mdp_fit_destroy_all(mdp_fit *fit);                     /* NULL is allowed */
int64_t mdp_fit_order(const mdp_fit *fit);                  /* n */
int64_t mdp_fit_offset(const mdp_fit *fit, int32_t expert); /* of an expert's values among them */
/* Columns of D that this rank has, and those that any rank of `size` has of d. */
void mdp_fit_columns(const mdp_fit *fit, int64_t *first, int64_t *n);
void mdp_fit_share(int64_t d, int64_t unit, int size, int rank, int64_t *first, int64_t *n);

/* Which sets of the products count: part [n_set], 1 or 0 each. */
typedef struct mdp_fit_sets {
    int n_set;
    const double *part;
} mdp_fit_sets;
/* The mean of diag A, rounded once. */
mdp_status mdp_fit_mean_diagonal_all(const mdp_fit *fit, const mdp_fit_sets *sets, double *out);
/* This rank's columns of B: b [n_col, n], a column after the other. */
mdp_status mdp_fit_right_hand_side_all(mdp_fit *fit, const mdp_fit_sets *sets, double *b);
/* b becomes this rank's columns of D. n_sweep counts for sweeps. *rcond: about the reciprocal condition number of what
 * was factored, of the worst of several. MDP_BAD_INPUT: not positive definite. */
mdp_status mdp_fit_solve_all(mdp_fit *fit, const mdp_fit_sets *sets, double lambda, int n_sweep, double *b,
                             double *rcond);
/* tr(D^T A D) and tr(D^T B) of this rank's columns d, b [n_col, n], over all ranks. Not for diagonal. */
mdp_status mdp_fit_forms_all(mdp_fit *fit, const mdp_fit_sets *sets, const double *b, const double *d,
                             double *quadratic, double *linear);

#endif
