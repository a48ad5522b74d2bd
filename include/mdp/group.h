/* group.h - which experts of a layer are merged into one, and which neuron of one expert answers to which of another.
 *
 * Pure functions of arrays: nothing here reads a file, communicates or keeps state, and the same arrays give the same
 * answer. Matrices are f64, [n, n] and symmetric; of each only what is above the diagonal is read. Choices compare
 * values rounded to 30 significant bits (mdp_round30); of equal ones the lower expert, then the lower partner wins.
 * doc/grouping.md says what each method does and how good it was measured to be. */
#ifndef MDP_GROUP_H
#define MDP_GROUP_H

#include "mdp/base.h"

/* ---- joining the nearest ----------------------------------------------------------------------------------------- */

typedef enum mdp_linkage {
    MDP_LINKAGE_AVERAGE,
    MDP_LINKAGE_COMPLETE,
    MDP_LINKAGE_SINGLE,
    MDP_LINKAGE_WARD
} mdp_linkage;
extern const char *const mdp_linkage_names[]; /* indexed by mdp_linkage; NULL at the end */

/* Two groups become one. A group is named by its smallest member. */
typedef struct mdp_join {
    mdp_expert_t left, right; /* left < right; the new group is `left` */
    int32_t size;             /* members of the new group */
    double height;            /* distance of the two: mean (UPGMA), largest or smallest over the pairs of their members;
                               * ward: sqrt(2 a b / (a + b)) times the distance of their means, a and b their sizes */
} mdp_join;

/* Join the two nearest groups until n_group are left: joins [n - n_group], in order. distance [n, n]; for ward, of
 * vectors, euclidean. MDP_USAGE: n_group is not in 1 .. n. MDP_BAD_INPUT: a distance is not finite. Memory O(n^2); time
 * O(n^2), O(n^3) at worst. */
mdp_status mdp_joins_make(int32_t n, const double *distance, mdp_linkage linkage, int32_t n_group, mdp_join *joins);
/* The groups after the first n_join joins: group [n], numbered by their smallest members. */
void mdp_joins_cut(int32_t n, const mdp_join *joins, int32_t n_join, int32_t *group);
/* Leaves of the dendrogram of all joins [n - 1] from left to right, for the rows of a heat map: order [n]. Of two
 * branches the one with the smallest member is on the left. */
mdp_status mdp_joins_leaves(int32_t n, const mdp_join *joins, mdp_expert_t *order);

/* ---- grouping the experts of a layer ----------------------------------------------------------------------------- */

typedef enum mdp_group_method {
    MDP_GROUP_HIERARCHICAL, /* joins of the nearest, HC-SMoE (arXiv 2410.08589) with the average */
    MDP_GROUP_KMEANS,       /* least sum of squared distances to the means; starts by k-means++ */
    MDP_GROUP_SPECTRAL,     /* k-means on eigenvectors of the normalised Laplacian of max(A, 0); UNCURL */
    MDP_GROUP_PARTITION,    /* largest sum over groups of (sum of A over pairs) / size; DEK (arXiv 2407.09590) */
    MDP_GROUP_DOMINANT,     /* the others join the most similar dominant; M-SMoE (arXiv 2310.01334) */
    MDP_GROUP_CENTROID      /* the others join centres that have room, the most similar pairs first; after REAM */
} mdp_group_method;
extern const char *const mdp_group_method_names[]; /* indexed by mdp_group_method; NULL at the end */

/* What a method groups by. */
typedef enum mdp_group_by { MDP_BY_DISTANCE, MDP_BY_SIMILARITY, MDP_BY_FEATURES } mdp_group_by;
mdp_group_by mdp_group_wants(mdp_group_method method);

typedef struct mdp_group_input {
    mdp_group_method method;
    int32_t n;                     /* experts of the layer */
    int32_t n_group;               /* groups to be made */
    int32_t n_block;               /* n_group of group-limited routing: consecutive blocks of n / n_block experts, each
                                    * with as many groups, none across; 0 or 1: no blocks */
    const double *matrix;          /* [n, n] distance or similarity, as mdp_group_wants says */
    const double *feature;         /* [n, n_feature] for MDP_BY_FEATURES */
    int64_t n_feature;             /* length of an expert's vector */
    const double *score;           /* [n] number of tokens or saliency, the highest first: for keep_whole, centroid, and
                                    * dominant without a list; else may be NULL */
    const unsigned char *dominant; /* [n] 1 where dominant, n_group in all; NULL: those with the highest score */
    mdp_linkage linkage;           /* hierarchical */
    int32_t max_group;             /* centroid: most members of a group, its centre included; 0: any number */
    int32_t exact_up_to;           /* partition: so many experts of a block are tried in every way; 0: 8; below: none */
    double keep_whole;             /* this share of the groups, rounded down, are the experts of highest score, alone;
                                    * [0, 1] */
    int32_t n_start;               /* kmeans, spectral: starts, of which the best counts; 0: 10 */
    uint64_t seed, stream;         /* of mdp_random_bits: one stream for a layer */
} mdp_group_input;

typedef struct mdp_grouping {
    int32_t n, n_group;
    int32_t *group;       /* [n] 0 .. n_group - 1, numbered by their smallest members */
    mdp_expert_t *centre; /* [n_group] dominant or centre of each group; the only member; else -1 */
    int32_t n_join;       /* hierarchical: joins made, block after block; else 0 */
    mdp_join *joins;      /* [n_join] by experts of the layer */
    double objective;     /* hierarchical: largest height; kmeans, spectral: sum of squared distances to the means;
                           * partition: what it maximises; dominant, centroid: sum of similarities to the centres */
    double gap;           /* how much worse the next choice is, the least over the blocks; NAN where none is known.
                           * hierarchical: height of the next join - objective; kmeans, spectral: of the next result of
                           * a start; partition: of the next partition (tried in every way) or local optimum;
                           * dominant, centroid: the smallest lead of a similarity over that to another centre */
} mdp_grouping;

/* Group the experts of a layer. *out is to be cleared, on error too. MDP_USAGE: numbers that cannot be met, with the
 * reason. MDP_BAD_INPUT: a value is not finite. MDP_INTERNAL: something the method wants is missing. Memory:
 * O(n^2). */
mdp_status mdp_group(const mdp_group_input *input, mdp_grouping *out);
void mdp_grouping_clear(mdp_grouping *grouping);

/* D = 1 - A of a similarity, or A = 1 - D: in place, the diagonal too. */
void mdp_group_flip(int32_t n, double *matrix);
/* Multiply distance [n, n] by p_i + p_j in place; p [n] shares of the routed tokens, n_i / (T k). */
void mdp_group_penalise(int32_t n, const double *share, double *distance);

/* ---- how many groups in each layer, by similarity (after GRAPE, arXiv 2604.06542) -------------------------------- */

typedef struct mdp_grape_layer {
    int32_t n;                /* experts */
    const double *similarity; /* [n, n] */
    int32_t min_keep;         /* least groups, at least n_block */
    int32_t keep;             /* out: groups */
    int32_t *group;           /* [n] out: the groups, numbered by their smallest members; the caller's */
} mdp_grape_layer;

/* Merge until `total` groups are left in all layers together: the layer whose groups have the largest sum of
 * similarities between them (means over the pairs of their members) merges its most similar pair, with blocks one pair
 * in each. A layer freezes when the entropy of its groups' shares of the experts falls below (1 - gamma) of what it was
 * when it last began; when none is left that may merge, all begin anew. MDP_USAGE: total cannot be met. */
mdp_status mdp_grape(int64_t n_layer, mdp_grape_layer *layers, int64_t total, int32_t n_block, double gamma);
#define MDP_GRAPE_GAMMA 0.1

/* ---- assignment -------------------------------------------------------------------------------------------------- */

/* The permutation with the largest sum of gain[a, permutation[a]], by shortest augmenting paths (Jonker and Volgenant
 * 1987). gain [n, n], permutation [n]; row_price, col_price [n] prove it: row_price[a] + col_price[b] >= gain[a, b]
 * (to rounding), and their sum is *value. Of equal sums always the same one. Time O(n^3) at worst. MDP_BAD_INPUT: a
 * gain is not finite. */
mdp_status mdp_assign(int64_t n, const double *gain, int64_t *permutation, double *row_price, double *col_price,
                      double *value);

/* Write rows rows[n_row] of the gain matrix to gain [n_row, n]. At most MDP_AUCTION_ROWS at once. */
typedef mdp_status mdp_gain_rows_fn(void *context, int64_t n_row, const int64_t *rows, double *gain);
#define MDP_AUCTION_ROWS 32

typedef struct mdp_auction {
    int64_t n;
    mdp_gain_rows_fn *rows; /* a row is asked for often: it should be quick, and the same each time */
    void *context;
    double tolerance; /* go on until bound - value <= tolerance * |bound|, or rounding forbids more */
} mdp_auction;

typedef struct mdp_auction_result {
    double value;  /* sum of the gains chosen */
    double bound;  /* no permutation has a larger sum */
    int64_t n_row; /* rows that were asked for */
} mdp_auction_result;

/* The same to within a proven gap, without the matrix: Bertsekas' auction with epsilon scaling. permutation [n].
 * Memory O(n) beside the rows at hand. */
mdp_status mdp_assign_auction(const mdp_auction *auction, int64_t *permutation, mdp_auction_result *result);

#endif
