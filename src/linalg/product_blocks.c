/* product_blocks.c - row products cut into blocks, and blocks dealt to ranks.
 *
 * In: sides, pairs of them and how many tokens each pair has. Out: blocks with owners, and the segments whose rows each
 * rank needs. A rank's place in a grid says which segments it takes as rows and as columns; a block may also lie
 * mirrored, since left and right are both there. Dealt from the costliest block on. */
#include "mdp/row_product.h"

#include <stdlib.h>
#include <string.h>

#define START_ROWS 16    /* a block costs as if it had so many tokens more: loading, and calls of small products */
#define SHARE_BOUND 1.03 /* a rank of the grid takes a block up to this part of the mean */

int64_t mdp_product_width(const mdp_product_side *side) {
    return side->n_value + side->with_one;
}

static int64_t count_segments(const mdp_product_side *side) {
    return (mdp_product_width(side) + MDP_PRODUCT_SEGMENT - 1) / MDP_PRODUCT_SEGMENT;
}

int32_t mdp_product_segment(const mdp_product_layout *layout, int64_t segment, int64_t *first, int64_t *n) {
    int32_t low = 0, high = layout->n_side - 1;
    while (low < high) {
        int32_t middle = low + (high - low + 1) / 2;
        if (layout->first_segment[middle] <= segment)
            low = middle;
        else
            high = middle - 1;
    }
    int64_t count = layout->first_segment[low + 1] - layout->first_segment[low];
    int64_t at = segment - layout->first_segment[low], width = mdp_product_width(&layout->sides[low]);
    *first = width * at / count;
    *n = width * (at + 1) / count - *first;
    return low;
}

/* ---- cutting --------------------------------------------------------------------------------------------------- */

/* Columns that row segment `row` of a pair has blocks with. */
static int64_t count_columns(const mdp_product_layout *layout, const mdp_product_pair *pair, int64_t row) {
    if (pair->left == pair->right) return row + 1;
    return layout->first_segment[pair->right + 1] - layout->first_segment[pair->right];
}

static int64_t count_blocks(const mdp_product_layout *layout) {
    int64_t n = 0;
    for (int32_t p = 0; p < layout->n_pair; p++) {
        const mdp_product_pair *pair = &layout->pairs[p];
        int64_t n_row = layout->first_segment[pair->left + 1] - layout->first_segment[pair->left];
        for (int64_t row = 0; row < n_row; row++) n += count_columns(layout, pair, row);
    }
    return n;
}

static void cut_pair(mdp_product_layout *layout, int32_t number) {
    const mdp_product_pair *pair = &layout->pairs[number];
    int64_t first_row = layout->first_segment[pair->left], first_column = layout->first_segment[pair->right];
    for (int64_t row = 0; row < layout->first_segment[pair->left + 1] - first_row; row++) {
        for (int64_t column = 0; column < count_columns(layout, pair, row); column++) {
            mdp_product_block *block = &layout->blocks[layout->n_block++];
            *block = (mdp_product_block){.pair = number, .left = first_row + row, .right = first_column + column};
            (void)mdp_product_segment(layout, block->left, &block->row0, &block->n_row);
            (void)mdp_product_segment(layout, block->right, &block->col0, &block->n_col);
        }
    }
}

static mdp_status cut(mdp_product_layout *layout) {
    MDP_TRY(MDP_ALLOC(&layout->first_segment, layout->n_side + 1, "segments of row products"));
    for (int32_t s = 0; s < layout->n_side; s++)
        layout->first_segment[s + 1] = layout->first_segment[s] + count_segments(&layout->sides[s]);
    MDP_TRY(MDP_ALLOC(&layout->blocks, count_blocks(layout), "blocks of row products"));
    for (int32_t p = 0; p < layout->n_pair; p++) cut_pair(layout, p);
    return mdp_ok();
}

/* ---- dealing --------------------------------------------------------------------------------------------------- */

static double cost_of(const mdp_product_layout *layout, const mdp_product_block *block) {
    double area = (double)block->n_row * (double)block->n_col;
    return area * (double)(layout->pairs[block->pair].n_row + START_ROWS) * (block->left == block->right ? 0.5 : 1.0);
}

/* A block to be dealt. */
typedef struct card {
    double cost;
    int64_t block;
} card;

static int compare_cards(const void *left, const void *right) {
    const card *a = left, *b = right;
    if (a->cost != b->cost) return a->cost < b->cost ? 1 : -1;
    return a->block < b->block ? -1 : a->block > b->block;
}

/* Rows of the grid, near its columns; ranks that are left over get blocks by their load only. */
static int grid_rows(int size) {
    int rows = 1;
    while ((rows + 1) * (rows + 1) <= size) rows++;
    return rows;
}

static int choose_owner(const mdp_product_layout *layout, const mdp_product_block *block, double cost, double bound,
                        const double *load) {
    int rows = grid_rows(layout->size), columns = layout->size / rows, least = 0;
    int straight = (int)(block->left % rows) * columns + (int)(block->right % columns);
    int mirrored = (int)(block->right % rows) * columns + (int)(block->left % columns);
    int owner = load[mirrored] < load[straight] ? mirrored : straight;
    if (load[owner] + cost <= bound) return owner;
    for (int rank = 1; rank < layout->size; rank++) least = load[rank] < load[least] ? rank : least;
    return least;
}

static mdp_status deal(mdp_product_layout *layout) {
    card *cards = NULL;
    double *load = NULL, total = 0.0;
    mdp_status status;
    MDP_TRY_GOTO(status, end, MDP_ALLOC(&cards, layout->n_block, "dealing row products"));
    MDP_TRY_GOTO(status, end, MDP_ALLOC(&load, layout->size, "dealing row products"));
    for (int64_t b = 0; b < layout->n_block; b++) {
        cards[b] = (card){.cost = cost_of(layout, &layout->blocks[b]), .block = b};
        total += cards[b].cost;
    }
    qsort(cards, (size_t)layout->n_block, sizeof *cards, compare_cards);
    for (int64_t i = 0; i < layout->n_block; i++) {
        mdp_product_block *block = &layout->blocks[cards[i].block];
        block->owner = choose_owner(layout, block, cards[i].cost, SHARE_BOUND * total / layout->size, load);
        load[block->owner] += cards[i].cost;
    }
end:
    mdp_free(cards);
    mdp_free(load);
    return status;
}

/* ---- what ranks need ------------------------------------------------------------------------------------------- */

typedef struct need {
    int rank;
    int64_t segment;
} need;

static int compare_needs(const void *left, const void *right) {
    const need *a = left, *b = right;
    if (a->rank != b->rank) return a->rank < b->rank ? -1 : 1;
    return a->segment < b->segment ? -1 : a->segment > b->segment;
}

static mdp_status list_needs(mdp_product_layout *layout) {
    need *all = NULL;
    MDP_TRY(MDP_ALLOC(&layout->first_need, layout->size + 1, "segments that ranks need"));
    MDP_TRY(MDP_ALLOC(&layout->needs, 2 * layout->n_block, "segments that ranks need"));
    MDP_TRY(MDP_ALLOC(&all, 2 * layout->n_block, "segments that ranks need"));
    for (int64_t b = 0; b < layout->n_block; b++) {
        const mdp_product_block *block = &layout->blocks[b];
        all[2 * b] = (need){block->owner, block->left};
        all[2 * b + 1] = (need){block->owner, block->right};
    }
    qsort(all, (size_t)(2 * layout->n_block), sizeof *all, compare_needs);
    int64_t n = 0;
    for (int64_t i = 0; i < 2 * layout->n_block; i++) {
        if (i > 0 && compare_needs(&all[i], &all[i - 1]) == 0) continue;
        layout->needs[n++] = all[i].segment;
        layout->first_need[all[i].rank + 1] = n;
    }
    for (int rank = 0; rank < layout->size; rank++) /* ranks without blocks */
        if (layout->first_need[rank + 1] < layout->first_need[rank])
            layout->first_need[rank + 1] = layout->first_need[rank];
    mdp_free(all);
    return mdp_ok();
}

/* ---- life ------------------------------------------------------------------------------------------------------ */

static mdp_status copy(void **out, int64_t n, size_t size, const void *from) {
    MDP_TRY(mdp_alloc(out, n, size, "row products"));
    if (n > 0) memcpy(*out, from, (size_t)n * size);
    return mdp_ok();
}

mdp_status mdp_product_layout_new(int size, int32_t n_side, const mdp_product_side *sides, int32_t n_pair,
                                  const mdp_product_pair *pairs, mdp_product_layout **out) {
    mdp_product_layout *layout = NULL;
    *out = NULL;
    MDP_TRY(MDP_ALLOC(&layout, 1, "row products"));
    *layout = (mdp_product_layout){.size = size, .n_side = n_side, .n_pair = n_pair};
    mdp_status status = copy((void **)&layout->sides, n_side, sizeof *sides, sides);
    if (status.code == MDP_OK) status = copy((void **)&layout->pairs, n_pair, sizeof *pairs, pairs);
    if (status.code == MDP_OK) status = cut(layout);
    if (status.code == MDP_OK) status = deal(layout);
    if (status.code == MDP_OK) status = list_needs(layout);
    if (status.code != MDP_OK) {
        mdp_product_layout_destroy(layout);
        return status;
    }
    *out = layout;
    return status;
}

void mdp_product_layout_destroy(mdp_product_layout *layout) {
    if (!layout) return;
    mdp_free(layout->sides);
    mdp_free(layout->pairs);
    mdp_free(layout->first_segment);
    mdp_free(layout->blocks);
    mdp_free(layout->first_need);
    mdp_free(layout->needs);
    mdp_free(layout);
}

mdp_product_cost mdp_product_cost_of(const mdp_product_layout *layout, int rank) {
    mdp_product_cost cost = {.n_segment = layout->first_need[rank + 1] - layout->first_need[rank]};
    for (int64_t b = 0; b < layout->n_block; b++) {
        const mdp_product_block *block = &layout->blocks[b];
        if (block->owner != rank) continue;
        int64_t n_column = block->left == block->right ? block->n_col + 1 : 2 * block->n_col; /* a triangle, or all */
        cost.flop += layout->pairs[block->pair].n_row * block->n_row * n_column;
        cost.value_byte += block->n_row * block->n_col * (int64_t)sizeof(double);
    }
    return cost;
}
