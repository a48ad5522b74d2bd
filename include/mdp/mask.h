/* mask.h - single weights of a matrix that count as 0: which of a row, by a rule.
 *
 * An entry (i, j) scores |W_ij| a_j, a_j the norm of the channel that column j multiplies; of each row the lowest go,
 * or of each run of columns all but the highest. So a mask is a few numbers, and rows are masked as they are read. */
#ifndef MDP_MASK_H
#define MDP_MASK_H

#include "mdp/checkpoint.h"

/* One of the two. */
typedef struct mdp_mask_rule {
    double sparsity;  /* this share of each row, rounded down; in (0, 1) */
    int32_t keep, of; /* so many of each `of` columns stay; of == 0: by sparsity */
} mdp_mask_rule;
#define MDP_MASK_MOST_OF 256

/* What a matrix is masked by. */
typedef struct mdp_mask {
    mdp_mask_rule rule;
    const mdp_tensor *norm; /* [n_col] f32; NULL: all 1 */
} mdp_mask;

/* Is it a rule at all? MDP_USAGE. Local. */
mdp_status mdp_mask_rule_check(const mdp_mask_rule *rule);
/* Does it go with rows of n_col entries? `what` names them. MDP_USAGE. Local. */
mdp_status mdp_mask_rule_fits(const mdp_mask_rule *rule, int64_t n_col, const char *what);
/* "0.5" or "2:4" -> a rule. MDP_USAGE. Local. */
mdp_status mdp_mask_rule_parse(const char *text, mdp_mask_rule *out);
/* Entries of a row of n_col that go. */
int64_t mdp_mask_count(const mdp_mask_rule *rule, int64_t n_col);
/* Which entries of a row go: drop [n_col] 0 or 1. norm NULL: all 1. Of equal scores the lower column goes first.
 * scratch [2 * n_col]. */
void mdp_mask_choose(const mdp_mask_rule *rule, const float *row, const float *norm, int64_t n_col, double *scratch,
                     unsigned char *drop);
/* Bytes of scratch for rows of n_col entries; norms are read into it. */
int64_t mdp_mask_scratch(int64_t n_col);
/* Bytes that are read for rows of a matrix beside the rows. */
int64_t mdp_mask_read_bytes(const mdp_mask *mask);
/* Rows [n_row, n_col] of a matrix with a mask, as read: what goes becomes 0. MDP_IO. Local. */
mdp_status mdp_mask_rows(mdp_reader *reader, const mdp_matrix *matrix, int64_t n_row, void *scratch, float *rows);

#endif
