/* evaluate.h - what the topics of this folder share. */
#ifndef MDP_SRC_EVALUATE_EVALUATE_H
#define MDP_SRC_EVALUATE_EVALUATE_H

#include "mdp/evaluate.h"

/* Rows of logits and of final hidden states, while the head runs; called from worker threads. */
void mdp_dump_take_logits(mdp_dump *dump, const mdp_logit_panel *panel);
void mdp_dump_take_hidden(mdp_dump *dump, int state, int64_t first_local, int32_t n_row, const float *hidden);

#endif
