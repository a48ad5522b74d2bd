/* batches.c - which sequences make which step of training: drawn by seed over all sequences, whatever the ranks. */
#include "mdp/recover.h"

#include <stdlib.h>
#include <string.h>

#define ORDER_STREAM 201 /* of random numbers; epochs count on from it */

typedef struct drawn {
    uint64_t bits;
    int64_t sequence;
} drawn;

static int compare_drawn(const void *a, const void *b) {
    const drawn *x = a, *y = b;
    if (x->bits != y->bits) return x->bits < y->bits ? -1 : 1;
    return x->sequence < y->sequence ? -1 : x->sequence > y->sequence;
}

static int compare_numbers(const void *a, const void *b) {
    const int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return x < y ? -1 : x > y;
}

static int64_t length_of(const mdp_tokens *tokens, int64_t sequence) {
    return tokens->offset[sequence + 1] - tokens->offset[sequence];
}

/* One epoch's steps, at the end of what is there. order [n]: room. */
static void add_epoch(const mdp_tokens *tokens, int64_t n, drawn *order, const mdp_train_options *options, int epoch,
                      mdp_train_batches *out) {
    int64_t at = out->first[out->n_step], in_step = 0;
    for (int64_t i = 0; i < n; i++)
        order[i].bits = mdp_random_bits(options->seed, ORDER_STREAM + (uint64_t)epoch, (uint64_t)order[i].sequence);
    qsort(order, (size_t)n, sizeof *order, compare_drawn);
    for (int64_t i = 0; i < n; i++) {
        int64_t length = length_of(tokens, order[i].sequence);
        if (in_step > 0 && in_step + length > options->batch_tokens) {
            out->first[++out->n_step] = at;
            in_step = 0;
        }
        out->sequence[at++] = order[i].sequence;
        in_step += length;
    }
    if (in_step > 0) out->first[++out->n_step] = at;
}

mdp_status mdp_train_batches_new(const mdp_tokens *tokens, const unsigned char *skip, const mdp_train_options *options,
                                 mdp_train_batches *out) {
    drawn *order = NULL;
    int64_t n = 0;
    *out = (mdp_train_batches){0};
    MDP_TRY(MDP_ALLOC(&out->first, options->epochs * tokens->n_sequence + 1, "batches"));
    MDP_TRY(MDP_ALLOC(&out->sequence, options->epochs * tokens->n_sequence, "batches"));
    MDP_TRY(MDP_ALLOC(&order, tokens->n_sequence, "batches"));
    for (int64_t s = 0; s < tokens->n_sequence; s++)
        if (!skip || !skip[s]) order[n++].sequence = s;
    for (int epoch = 0; epoch < options->epochs; epoch++) add_epoch(tokens, n, order, options, epoch, out);
    mdp_free(order);
    for (int64_t i = 0; i < out->n_step; i++)
        qsort(out->sequence + out->first[i], (size_t)(out->first[i + 1] - out->first[i]), sizeof *out->sequence,
              compare_numbers);
    return mdp_ok();
}

void mdp_train_batches_clear(mdp_train_batches *batches) {
    mdp_free(batches->first);
    mdp_free(batches->sequence);
    *batches = (mdp_train_batches){0};
}
