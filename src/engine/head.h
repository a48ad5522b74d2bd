/* head.h - final norm and lm_head. */
#ifndef MDP_SRC_ENGINE_HEAD_H
#define MDP_SRC_ENGINE_HEAD_H

#include "engine/memory.h"

/* Bytes that mdp_engine_head_all takes. */
int64_t mdp_head_memory(const mdp_rank_share *share, int n_stream, int n_thread);

#endif
