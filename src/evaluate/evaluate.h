/* evaluate.h - what the topics of this folder share. */
#ifndef MDP_SRC_EVALUATE_EVALUATE_H
#define MDP_SRC_EVALUATE_EVALUATE_H

#include "mdp/evaluate.h"

/* Rows of logits and of final hidden states, while the head runs; called from worker threads. */
void mdp_dump_take_logits(mdp_dump *dump, const mdp_logit_panel *panel);
void mdp_dump_take_hidden(mdp_dump *dump, int branch, int64_t first_local, int32_t n_row, const float *hidden);

/* What the logits say about one position whose next token is known. */
typedef struct mdp_position {
    double nll; /* -ln p(next token) */
    double kl;  /* KL(first stream || this one) of the next token's distribution; exactly 0 where they share a branch */
    double overlap; /* sum of the lesser probability of both; exactly 1 where they share a branch; 0: not measured */
    bool right;     /* the most likely token is the next one */
    bool agrees;    /* the most likely token is the first stream's */
} mdp_position;
const mdp_local_batch *mdp_loss_batch(const mdp_loss *loss);
/* false: the position is not predicted. */
bool mdp_loss_at(const mdp_loss *loss, int stream, int64_t local, mdp_position *out);
/* Refuse a position whose numbers are not finite (MDP_BAD_INPUT). */
mdp_status mdp_position_check(const mdp_position *position, const char *stream, const char *category, int64_t token);

#endif
