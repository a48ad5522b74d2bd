/* mask.c - which entries of a row count as 0: see mdp/mask.h.
 *
 * A score is the product of two f32 in f64, which is exact, so that neither the order of columns nor a machine can
 * show. A value that is no number is never the lowest. */
#include "mdp/mask.h"
#include "checkpoint/masked.h"
#include "checkpoint/matrix.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- rules --------------------------------------------------------------------------------------------------- */

mdp_status mdp_mask_rule_check(const mdp_mask_rule *rule) {
    if (rule->of == 0 && rule->sparsity > 0.0 && rule->sparsity < 1.0) return mdp_ok();
    if (rule->of == 0)
        return MDP_ERROR(MDP_USAGE, "a mask of sparsity %g: it must be between 0 and 1 (both excluded).",
                         rule->sparsity);
    if (rule->of >= 2 && rule->of <= MDP_MASK_MOST_OF && rule->keep >= 1 && rule->keep < rule->of) return mdp_ok();
    return MDP_ERROR(MDP_USAGE, "a mask that keeps %d of %d: at least one must stay and one go, of at most %d.",
                     (int)rule->keep, (int)rule->of, MDP_MASK_MOST_OF);
}

mdp_status mdp_mask_rule_fits(const mdp_mask_rule *rule, int64_t n_col, const char *what) {
    if (rule->of == 0 || n_col % rule->of == 0) return mdp_ok();
    return MDP_ERROR(MDP_USAGE,
                     "a mask that keeps %d of %d columns does not go with %s of %lld, which %d does not divide; use "
                     "--sparsity.",
                     (int)rule->keep, (int)rule->of, what, (long long)n_col, (int)rule->of);
}

mdp_status mdp_mask_rule_parse(const char *text, mdp_mask_rule *out) {
    char *end = NULL;
    long keep = strtol(text, &end, 10), of = 0;
    bool good = end != text && *end == ':' && end[1] >= '0' && end[1] <= '9';
    if (good) of = strtol(end + 1, &end, 10);
    *out = (mdp_mask_rule){.keep = (int32_t)keep, .of = (int32_t)of};
    if (good && *end == '\0' && keep >= 0 && keep < of && of <= MDP_MASK_MOST_OF) return mdp_mask_rule_check(out);
    return MDP_ERROR(MDP_USAGE, "'%s' is not N:M, such as 2:4: N of each M columns stay, N below M, M at most %d.",
                     text, MDP_MASK_MOST_OF);
}

int64_t mdp_mask_count(const mdp_mask_rule *rule, int64_t n_col) {
    if (rule->of > 0) return n_col / rule->of * (rule->of - rule->keep);
    return (int64_t)floor(rule->sparsity * (double)n_col);
}

/* ---- one row ------------------------------------------------------------------------------------------------- */

/* The n_drop lowest of score [n], of equal ones those first in order. sorted [n] is scratch. */
static void drop_lowest(const double *score, int64_t n, int64_t n_drop, double *sorted, unsigned char *drop) {
    int64_t n_below = 0;
    if (n_drop == 0) {
        memset(drop, 0, (size_t)n);
        return;
    }
    memcpy(sorted, score, (size_t)n * sizeof *score);
    mdp_select_rank(sorted, n, n_drop - 1);
    double cut = sorted[n_drop - 1];
    for (int64_t j = 0; j < n; j++) n_below += score[j] < cut;
    int64_t n_equal = n_drop - n_below; /* of those at the cut */
    for (int64_t j = 0; j < n; j++) {
        bool equal = score[j] == cut && n_equal > 0;
        drop[j] = score[j] < cut || equal;
        n_equal -= equal;
    }
}

void mdp_mask_choose(const mdp_mask_rule *rule, const float *row, const float *norm, int64_t n_col, double *scratch,
                     unsigned char *drop) {
    double *score = scratch, *sorted = scratch + n_col;
    int64_t run = rule->of > 0 ? rule->of : n_col;
    for (int64_t j = 0; j < n_col; j++) {
        score[j] = fabs((double)row[j]) * (norm ? (double)norm[j] : 1.0);
        if (isnan(score[j])) score[j] = HUGE_VAL;
    }
    for (int64_t first = 0; first < n_col; first += run)
        drop_lowest(score + first, run, mdp_mask_count(rule, run), sorted, drop + first);
}

/* ---- rows of a matrix ---------------------------------------------------------------------------------------- */

/* Two f64, one f32 and one byte for each column. */
int64_t mdp_mask_scratch(int64_t n_col) {
    return n_col * (int64_t)(2 * sizeof(double) + sizeof(float) + 1);
}

int64_t mdp_mask_read_bytes(const mdp_mask *mask) {
    return mask && mask->norm ? mask->norm->n_byte : 0;
}

mdp_status mdp_mask_load_norm(mdp_reader *reader, const mdp_matrix *matrix, float *room, const float **out) {
    const mdp_tensor *norm = matrix->mask->norm;
    *out = norm ? room : NULL;
    if (!norm) return mdp_ok();
    if (norm->n_byte != matrix->n_col * (int64_t)sizeof *room)
        return MDP_ERROR(MDP_BAD_INPUT, "'%s' has %lld bytes; '%s' has %lld columns.", norm->name,
                         (long long)norm->n_byte, matrix->tensor->name, (long long)matrix->n_col);
    return mdp_reader_read(reader, norm->file, norm->offset, norm->n_byte, room);
}

mdp_status mdp_mask_rows(mdp_reader *reader, const mdp_matrix *matrix, int64_t n_row, void *scratch, float *rows) {
    int64_t n = matrix->n_col;
    double *scores = scratch;
    float *room = (float *)(scores + 2 * n);
    unsigned char *drop = (unsigned char *)(room + n);
    const float *norm;
    if (mdp_mask_scratch(n) > MDP_MATRIX_CHUNK_BYTE)
        return MDP_ERROR(MDP_BAD_INPUT, "'%s': rows of %lld values are too wide for a mask.", matrix->tensor->name,
                         (long long)n);
    MDP_TRY(mdp_mask_load_norm(reader, matrix, room, &norm));
    for (int64_t r = 0; r < n_row; r++, rows += n) {
        mdp_mask_choose(&matrix->mask->rule, rows, norm, n, scores, drop);
        for (int64_t j = 0; j < n; j++) rows[j] = drop[j] ? 0.0F : rows[j];
    }
    return mdp_ok();
}
