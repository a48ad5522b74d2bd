/* similar.h - --similarity and --probe-tokens: what is collected for similarities of experts, and what it takes. */
#ifndef MDP_SIMILAR_H
#define MDP_SIMILAR_H

#include "command/opening.h"

/* What the options ask for. Local. MDP_USAGE: an unknown name. */
mdp_status mdp_session_similarity(const mdp_session *session, mdp_similarity_request *out);
/* Bytes that a rank will hold for statistics, similarities included; model and tokens are open. Local. */
int64_t mdp_session_stats_memory(const mdp_session *session, const mdp_similarity_request *request);
/* Add what similarities take beside the pass that observes, as a step of their own. Local. */
mdp_status mdp_session_add_similarity(const mdp_session *session, const mdp_similarity_request *request,
                                      mdp_estimate *estimate);

#endif
