/* gram.h - inner products of pairs of long vectors, one for each expert of a layer. Private to src/observe.
 *
 * The vectors are cut into chunks of columns that depend on what they hold alone. Within a chunk the products are those
 * of single-threaded products of matrices in f64, block after block; over chunks they are added exactly. So it does not
 * show which chunks a thread or a rank has had. */
#ifndef MDP_OBSERVE_GRAM_H
#define MDP_OBSERVE_GRAM_H

#include "mdp/observe.h"

#define MDP_GRAM_COLUMNS 8192 /* of a chunk, at most: adding exactly costs as much as some hundred columns */
#define MDP_GRAM_BLOCK 2048   /* of one product */

/* What a sum is of, and where it goes. */
typedef struct mdp_gram {
    int32_t n;          /* vectors */
    int n_thread;       /* threads to use */
    int64_t layer;      /* for errors */
    const char *what;   /* "weights", for errors */
    mdp_short_sum *sum; /* [n, n], lower triangle */
} mdp_gram;

/* Write the columns of chunk number `chunk` from its column `first` on, MDP_GRAM_BLOCK at most, of every vector to
 * [n, MDP_GRAM_BLOCK]; returns how many there are. Called by several threads. */
typedef int64_t mdp_gram_fill_fn(void *context, int64_t chunk, int64_t first, double *to);

/* Add the products of n_chunk chunks; *flop is added to. Local. MDP_BAD_INPUT: a product that is not finite or too
 * large. */
mdp_status mdp_gram_add(const mdp_gram *gram, int64_t n_chunk, mdp_gram_fill_fn *fill, void *context, int64_t *flop);
/* The same of vectors of f32 that lie in memory, n_value of each: row [n]. */
mdp_status mdp_gram_add_rows(const mdp_gram *gram, const float *const *row, int64_t n_value, int64_t *flop);
/* Bytes that they take. */
int64_t mdp_gram_memory(int32_t n, int n_thread);

#endif
