/* tokens_sample.c - whole sequences of a tokens file, drawn by a seed, in memory. */
#include "mdp/checkpoint.h"

#include <stdlib.h>
#include <string.h>

#define SEQUENCE_STREAM 0x73657173 /* of random numbers */

typedef struct ticket {
    uint64_t number;
    int64_t sequence;
} ticket;

static int compare_tickets(const void *left, const void *right) {
    const ticket *a = left, *b = right;
    if (a->number != b->number) return a->number < b->number ? -1 : 1;
    return a->sequence < b->sequence ? -1 : a->sequence > b->sequence;
}

/* taken [n_sequence]: nonzero for sequences of the sample. */
static mdp_status draw(const mdp_tokens *tokens, int64_t n_token, uint64_t seed, unsigned char *taken) {
    ticket *tickets = NULL;
    MDP_TRY(MDP_ALLOC(&tickets, tokens->n_sequence, "the sequences of a sample"));
    for (int64_t s = 0; s < tokens->n_sequence; s++)
        tickets[s] = (ticket){mdp_random_bits(seed, SEQUENCE_STREAM, (uint64_t)s), s};
    qsort(tickets, (size_t)tokens->n_sequence, sizeof *tickets, compare_tickets);
    int64_t n = 0;
    for (int64_t i = 0; i < tokens->n_sequence && n < n_token; i++) {
        int64_t s = tickets[i].sequence;
        taken[s] = 1;
        n += tokens->offset[s + 1] - tokens->offset[s];
    }
    mdp_free(tickets);
    return mdp_ok();
}

/* What a sample consists of: arrays as mdp_tokens_new_in_memory takes them. */
typedef struct parts {
    unsigned char *taken; /* [n_sequence] of the whole */
    const char **names;   /* [n_category] of those with sequences */
    int64_t *n_sequence;  /* the same */
    int64_t *lengths;
    int n_category;
} parts;

static void free_parts(parts *of) {
    mdp_free(of->taken);
    mdp_free((void *)of->names);
    mdp_free(of->n_sequence);
    mdp_free(of->lengths);
}

static mdp_status take_parts(const mdp_tokens *tokens, int64_t n_token, uint64_t seed, parts *of) {
    int64_t at = 0;
    int last = -1;
    MDP_TRY(MDP_ALLOC(&of->taken, tokens->n_sequence, "the sequences of a sample"));
    MDP_TRY(MDP_ALLOC(&of->names, tokens->n_category, "the categories of a sample"));
    MDP_TRY(MDP_ALLOC(&of->n_sequence, tokens->n_category, "the categories of a sample"));
    MDP_TRY(MDP_ALLOC(&of->lengths, tokens->n_sequence, "the sequences of a sample"));
    MDP_TRY(draw(tokens, n_token, seed, of->taken));
    for (int64_t s = 0; s < tokens->n_sequence; s++) {
        if (!of->taken[s]) continue;
        if (tokens->sequence_category[s] != last) of->n_category++;
        last = tokens->sequence_category[s];
        of->names[of->n_category - 1] = tokens->category[last];
        of->n_sequence[of->n_category - 1]++;
        of->lengths[at++] = tokens->offset[s + 1] - tokens->offset[s];
    }
    return mdp_ok();
}

static mdp_status copy_ids(const mdp_tokens *tokens, const unsigned char *taken, mdp_tokens *sample) {
    int64_t at = 0;
    for (int64_t s = 0; s < tokens->n_sequence; s++) {
        int64_t n = tokens->offset[s + 1] - tokens->offset[s];
        if (!taken[s]) continue;
        MDP_TRY(mdp_tokens_read(tokens, tokens->offset[s], n, sample->ids + at));
        at += n;
    }
    return mdp_ok();
}

mdp_status mdp_tokens_sample(const mdp_tokens *tokens, int64_t n_token, uint64_t seed, mdp_tokens **out) {
    parts of = {0};
    *out = NULL;
    mdp_status status = take_parts(tokens, n_token, seed, &of);
    if (status.code == MDP_OK)
        status = mdp_tokens_new_in_memory(tokens->path, of.n_category, of.names, of.n_sequence, of.lengths, out);
    if (status.code == MDP_OK) status = copy_ids(tokens, of.taken, *out);
    free_parts(&of);
    if (status.code == MDP_OK) return status;
    mdp_tokens_destroy(*out);
    *out = NULL;
    return status;
}
