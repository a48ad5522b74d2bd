/* memory.h - what a rank has of a batch at most, and what its buffers take. */
#ifndef MDP_SRC_ENGINE_MEMORY_H
#define MDP_SRC_ENGINE_MEMORY_H

#include "mdp/engine.h"

/* The most that a rank, or a team, has of a batch. */
typedef struct mdp_rank_share {
    int n_rank; /* of the team */
    int64_t n_token, n_sequence;
    int64_t n_tile;       /* of its packs */
    int64_t longest_pack; /* tokens */
} mdp_rank_share;
/* Panels as a gemm takes them: the type of their values, the bytes of the largest of any matrix that the engine
 * streams, of those that views (NULL: none) make too, and those that reading one takes beside it. */
typedef struct mdp_panel_size {
    mdp_dtype type;
    int64_t n_byte, n_scratch;
} mdp_panel_size;
mdp_panel_size mdp_largest_panel(const mdp_model *model, const mdp_view *const *views, int n_view, mdp_gemm_type type);
/* Neurons of the widest expert of the model or of views (NULL: none). */
int64_t mdp_widest_expert(const mdp_model *model, const mdp_view *const *views, int n_view);
/* Panels in the feed: a gate and an up panel for each thread, as where experts have one tile each, and one read
 * ahead. */
int mdp_feed_depth(int n_thread);

#endif
