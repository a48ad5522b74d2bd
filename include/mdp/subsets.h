/* subsets.h - what a layer loses when it keeps these experts and no others, for every set of so many of them, or for
 * those that a search tries (NAEE, arXiv 2402.14800). */
#ifndef MDP_SUBSETS_H
#define MDP_SUBSETS_H

#include "mdp/engine.h"

#define MDP_MOST_KEEPS 16 /* numbers of experts that one run measures */
#define MDP_BEAM_WIDTH 8

/* Which sets are tried: all, or by dropping one expert at a time from the best set so far, or from the best few. */
typedef enum mdp_subset_search { MDP_SUBSETS_GREEDY, MDP_SUBSETS_BEAM, MDP_SUBSETS_EVERY } mdp_subset_search;
extern const char *const mdp_subset_search_names[]; /* NULL at the end */

/* What is to be measured. */
typedef struct mdp_subset_request {
    int n_keep;                   /* 0: nothing */
    int32_t keep[MDP_MOST_KEEPS]; /* [n_keep] ascending: experts of a set */
    int64_t batch;                /* sequences whose squared errors are added before the root is taken */
    int64_t n_token;              /* about so many tokens, whole sequences drawn by the seed; 0: all */
    uint64_t seed;
    int64_t most;             /* every set is tried where there are no more than so many of one size */
    mdp_subset_search search; /* else this */
} mdp_subset_request;

/* "4,6" -> the numbers. MDP_USAGE. Local. */
mdp_status mdp_subset_keeps_parse(const char *text, mdp_subset_request *out);
/* Add a number, once, in order. MDP_USAGE: there are too many. Local. */
mdp_status mdp_subset_keeps_add(mdp_subset_request *request, int32_t keep);
/* The request as one line of JSON, new; NULL text: there is none. Local. */
mdp_status mdp_subset_request_print(const mdp_subset_request *request, char **text);

/* What was found for sets of one size. */
typedef struct mdp_subsets {
    int32_t keep;
    mdp_subset_search search;
    int64_t n_tried;    /* sets of this size whose loss is known */
    mdp_expert_t *kept; /* [keep] the best set, ascending; of equal ones the first in lexicographic order */
    double loss, next;  /* its loss, and that of the best of the others (infinite: there is none) */
    double *without;    /* [n_expert] least loss of those that leave the expert out */
    double *losses;     /* [n_tried] of every set, in lexicographic order; NULL: not kept, or not read */
} mdp_subsets;
void mdp_subsets_clear(mdp_subsets *subsets);

/* ---- sets of experts ------------------------------------------------------------------------------------------- */

/* Sets of `keep` of n_expert experts; where these lie in groups, equally many of each. */
typedef struct mdp_subset_kind {
    int32_t n_expert, keep, n_group; /* n_group divides both */
} mdp_subset_kind;
/* How many there are; INT64_MAX: more than can be counted. */
int64_t mdp_subset_count(const mdp_subset_kind *kind);
/* set [keep]: the first in lexicographic order; and the one after it, or false. Local. */
void mdp_subset_first(const mdp_subset_kind *kind, mdp_expert_t *set);
bool mdp_subset_next(const mdp_subset_kind *kind, mdp_expert_t *set);

/* ---- losses ---------------------------------------------------------------------------------------------------- */

/* What is known of a layer's tokens at their owners: all that the losses of sets follow from. */
typedef struct mdp_subset_tokens {
    int32_t n_expert, top_k;
    int64_t n_token;
    double *gram;        /* [n_token, n_expert (n_expert + 1) / 2] products of expert outputs, i >= j */
    double *logits;      /* [n_token, n_expert] */
    mdp_expert_t *index; /* [n_token, top_k] chosen by all, and */
    float *weight;       /* [n_token, top_k] their weights */
} mdp_subset_tokens;
/* Bytes of a token. */
int64_t mdp_subset_token_bytes(int32_t n_expert, int32_t top_k);
/* Room for the widest layer, n_expert and top_k, which may be set lower from layer to layer. Local. */
mdp_status mdp_subset_tokens_take(mdp_subset_tokens *tokens);
void mdp_subset_tokens_clear(mdp_subset_tokens *tokens);
/* A token of the local batch after its router, and after its experts. From any thread. */
void mdp_subset_tokens_route(const mdp_subset_tokens *tokens, const mdp_routed_token *token);
void mdp_subset_tokens_multiply(const mdp_subset_tokens *tokens, const mdp_combined_token *token, int64_t d_model);

/* What the losses of a layer are computed with. */
typedef struct mdp_subset_layer {
    const mdp_comm *comm;
    int64_t layer; /* of the model */
    const mdp_router_rule *rule;
    const float *bias; /* [n_expert] for choosing; NULL: none */
    int n_thread;
    const mdp_subset_tokens *tokens; /* of this rank */
    const int64_t *first_row;        /* [n_sequence + 1] of this rank's sequences, which follow those of lower ranks */
    int64_t n_sequence;              /* of this rank */
    int64_t first_sequence, end_sequence; /* of all ranks, in the batch at hand */
    int64_t all_sequences;                /* of the text */
    int64_t batch;                        /* as in the request */
} mdp_subset_layer;

/* What has been added up for a list of sets: [2, n], their losses, and squared errors of a batch of sequences that is
 * not complete. The same on every rank. */
typedef double mdp_subset_sums;

/* Try every set: add the tokens at hand to sums [2, mdp_subset_count]. Collective on layer->comm (agrees).
 * MDP_BAD_INPUT: a loss is not finite. */
mdp_status mdp_subsets_add_all(const mdp_subset_layer *layer, const mdp_subset_kind *kind, mdp_subset_sums *sums);
/* Choose by them; takes over nothing. Local. */
mdp_status mdp_subsets_choose(const mdp_subset_kind *kind, const mdp_subset_sums *sums, mdp_subsets *out);
/* Search among them with the tokens at hand, which are all. Collective on layer->comm (agrees). */
mdp_status mdp_subsets_search_all(const mdp_subset_layer *layer, const mdp_subset_kind *kind, mdp_subset_search search,
                                  mdp_subsets *out);

#endif
