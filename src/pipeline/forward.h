/* forward.h - one forward pass over all batches and layers; what observe and eval share. */
#ifndef MDP_SRC_PIPELINE_FORWARD_H
#define MDP_SRC_PIPELINE_FORWARD_H

#include "mdp/pipeline.h"

/* Between two layers, or between two batches: `layer` layers of batch `batch` are done (all of them: the head is not).
 */
typedef struct mdp_position {
    int64_t batch, layer;
} mdp_position;

typedef struct mdp_forward {
    const mdp_comm *comm;
    const mdp_model *model;
    mdp_reader *reader;
    const mdp_tokens *tokens;
    const mdp_forward_options *options;
    const char *phase; /* for the progress line */
    mdp_pass pass;
    const mdp_view *const *views; /* [n_stream] or NULL */
    const mdp_observers *observers;
    /* Steps of the caller; each may be NULL. Local: errors are agreed on by the caller of them. cut: how tokens are
     * cut, before anything else; nothing can fail. */
    void (*cut)(void *context, const mdp_partition *partition);
    mdp_status (*begin_batch)(void *context, const mdp_engine *engine);
    mdp_status (*layer_done)(void *context, int64_t layer);
    /* After each layer of each batch; then a pass that redoes blocks does so, by redo_all (NULL: unseen). Both are
     * collective. */
    mdp_status (*layer_all)(void *context, int64_t layer);
    mdp_status (*redo_all)(void *context, mdp_engine *engine, int64_t layer);
    /* Collective. Runs the head and uses what it gives. */
    mdp_status (*head_all)(void *context, mdp_engine *engine);
    /* For resume points; without them the pass takes none. gather_all (collective): bring what ranks have added up to
     * the ranks that keep it, and leave nothing elsewhere. describe (local): sections for what has been added up at a
     * position, and this rank's parts of them; `taken` when they are about to be read. restored_all (collective, may be
     * NULL): they have been read. */
    mdp_status (*gather_all)(void *context);
    mdp_status (*describe)(void *context, const mdp_position *at, bool taken, mdp_point *point);
    mdp_status (*restored_all)(void *context, const mdp_position *at);
    void *context;
} mdp_forward;

/* Must all tokens be one batch? */
static inline bool mdp_pass_is_whole(const mdp_pass *pass) {
    return pass->redo_block || pass->one_batch || pass->aside_slots > 0;
}

/* Fill batch_tokens, n_batch and memory, as mdp_forward_cost_of does. Local. MDP_USAGE: no batch fits. */
mdp_status mdp_forward_choose_batch(const mdp_comm *layout, const mdp_model *model, const mdp_tokens *tokens,
                                    const mdp_pass *pass, const mdp_forward_options *options, mdp_forward_cost *out);
/* Collective on forward->comm. */
mdp_status mdp_forward_all(const mdp_forward *forward);

#endif
