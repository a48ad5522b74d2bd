/* row_product.h - sums over tokens of left^T right, in f64, over all ranks: what least squares, second moments and
 * gradients of weights are made of.
 *
 * A side is a kind of row: the activations of one expert, a residual. A token has a row on some sides. For pairs of
 * sides the sum over the tokens that have both is wanted: [width of left, width of right]. Sides are cut into segments
 * of at most MDP_PRODUCT_SEGMENT values, so a pair is cut into blocks, which are dealt to ranks. Rows travel to the
 * owners of the blocks that they are part of. A block is the sum of products of at most MDP_PRODUCT_ROWS tokens, in
 * the order of tokens, so its bits depend on the rows alone, not on ranks, threads or who owns it. */
#ifndef MDP_ROW_PRODUCT_H
#define MDP_ROW_PRODUCT_H

#include "mdp/linalg.h"
#include "mdp/profile.h"

#define MDP_PRODUCT_SEGMENT 512 /* the widest segment of a side */
#define MDP_PRODUCT_ROWS 512    /* the most tokens of one product */

/* ---- who has which block ------------------------------------------------------------------------------------- */

typedef struct mdp_product_side {
    int64_t n_value; /* values of a row */
    bool with_one;   /* a 1 stands behind them, times the row's scale: for a bias */
} mdp_product_side;

/* Left and right may be one side; then only the lower triangle is kept. */
typedef struct mdp_product_pair {
    int32_t left, right;
    int64_t n_row; /* tokens that have both, about: blocks are dealt by it */
} mdp_product_pair;

/* Rows row0 .. row0 + n_row - 1 and columns col0 .. col0 + n_col - 1 of a pair's sum. */
typedef struct mdp_product_block {
    int32_t pair;
    int64_t left, right; /* segments, numbered over all sides */
    int64_t row0, n_row, col0, n_col;
    int owner;
} mdp_product_block;

typedef struct mdp_product_layout {
    int size; /* ranks */
    int32_t n_side;
    mdp_product_side *sides; /* [n_side] */
    int32_t n_pair;
    mdp_product_pair *pairs; /* [n_pair] */
    int64_t *first_segment;  /* [n_side + 1] */
    int64_t n_block;
    mdp_product_block *blocks; /* [n_block] by pair, row0, col0 */
    int64_t *first_need;       /* [size + 1] into needs */
    int64_t *needs;            /* segments that the blocks of each rank are made of, ascending */
} mdp_product_layout;

/* Cut and deal for `size` ranks, which need not exist. Ranks are taken as a grid, so that a rank needs the rows of few
 * segments; where that would give a rank more than its share of the operations, a block goes to the rank with the
 * least. `sides`, `pairs` are copied. Local, the same everywhere. Freed with mdp_product_layout_destroy. */
mdp_status mdp_product_layout_new(int size, int32_t n_side, const mdp_product_side *sides, int32_t n_pair,
                                  const mdp_product_pair *pairs, mdp_product_layout **out);
void mdp_product_layout_destroy(mdp_product_layout *layout); /* NULL is allowed */
/* Values of a row of a side, its 1 included. */
int64_t mdp_product_width(const mdp_product_side *side);
/* The side of a segment, and its first value and number of values there. */
int32_t mdp_product_segment(const mdp_product_layout *layout, int64_t segment, int64_t *first, int64_t *n);

/* What a rank does and holds, by the pairs' n_row. */
typedef struct mdp_product_cost {
    int64_t flop;
    int64_t value_byte; /* of its blocks, of one set */
    int64_t n_segment;  /* whose rows it needs */
} mdp_product_cost;
mdp_product_cost mdp_product_cost_of(const mdp_product_layout *layout, int rank);

/* Bytes that a rank of `size` holds for sums beside their blocks, and those for the rows of one call: row [n_side], the
 * most of each side, of all ranks. Local. */
int64_t mdp_products_room_memory(int size, int n_thread);
int64_t mdp_products_row_memory(const mdp_product_layout *layout, int rank, const int64_t *row);

/* ---- sums ---------------------------------------------------------------------------------------------------- */

typedef struct mdp_products mdp_products;

/* Zeroed sums in n_set sets, for rows that are told apart when they are added. `comm` and `layout` (of its size) are
 * borrowed. Collective on `comm` (agrees). */
mdp_status mdp_products_new_all(const mdp_comm *comm, const mdp_product_layout *layout, int n_set, int n_thread,
                                mdp_profile *profile, mdp_products **out);
void mdp_products_destroy(mdp_products *products); /* NULL is allowed */

/* This rank's rows of one side. */
typedef struct mdp_product_rows {
    int64_t n;
    const int64_t *token;       /* [n] ascending; every rank's are above those of lower ranks */
    const float *const *values; /* [n] rows of n_value values */
    const float *scale;         /* [n] what each row is multiplied by, in f32; NULL: 1 */
} mdp_product_rows;

/* Add the rows of some tokens, at all ranks, to a set: rows [n_side]. The tokens of one call are what products of
 * MDP_PRODUCT_ROWS are cut from, so which tokens come together must not depend on the ranks. Collective on `comm`
 * (agrees). */
mdp_status mdp_products_add_all(mdp_products *products, int set, const mdp_product_rows *rows);

/* Blocks of this rank: their numbers in the layout, ascending, and values [n_row, n_col] of block number own[i]. Of a
 * block on the diagonal of a pair of one side only the lower triangle is defined. */
int64_t mdp_products_own(const mdp_products *products, const int64_t **own);
double *mdp_products_values(mdp_products *products, int set, int64_t i);

#endif
