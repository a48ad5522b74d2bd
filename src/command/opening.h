/* opening.h - what a command will take, known from headers before anything heavy: the opening lines and --dry-run. */
#ifndef MDP_OPENING_H
#define MDP_OPENING_H

#include "command/session.h"

/* What --memory does not allow: the most that any step of a command cannot do without. */
typedef struct mdp_shortage {
    int64_t need; /* bytes of a rank; 0: --memory suffices */
    bool writing; /* the step is writing, else the pass */
    mdp_pass pass;
    int n_rank; /* with so many ranks every pass would have enough, 0: with none */
} mdp_shortage;

/* What all passes of a command take together. */
typedef struct mdp_estimate {
    const char *phase;         /* name of the plan line: what will be done */
    mdp_rank_cost total;       /* of all ranks, all forward passes; flop of 0: none */
    mdp_rank_cost least, most; /* of the ranks with the least and the most of each; sums over passes */
    int64_t memory;            /* bytes of the largest rank, with what it has already */
    int64_t batch_tokens;      /* of the first pass */
    int64_t n_batch;           /* of the first pass */
    int64_t bytes_read;        /* from storage, all ranks; what ranks of a node read again is in its memory */
    int64_t bytes_written;     /* all ranks */
    int64_t bytes_saved;       /* the largest resume point, and the one that it takes the place of */
    double flop_per_second;    /* all ranks; 0: neither measured nor given */
    mdp_shortage shortage;
} mdp_estimate;

/* Note what the largest rank holds by now, and that n_byte more will be held beside the engine. When everything is
 * open, before the first pass is added. Collective. */
mdp_status mdp_session_weigh_all(mdp_session *session, int64_t n_byte);
/* Add a forward pass over `tokens`, known as `name`. Refuses what does not fit this node's free memory; what does not
 * fit --memory is noted. Collective. */
mdp_status mdp_session_add_pass_all(const mdp_session *session, const char *name, const mdp_tokens *tokens,
                                    mdp_pass pass, mdp_estimate *estimate);
/* Files that hold weights: all but the side files of a Hugging Face folder. */
int64_t mdp_catalogue_weight_files(const mdp_catalogue *catalogue);

/* Add what all ranks together, and those with the least and the most, do in a step of that name. Local. */
mdp_status mdp_session_add_costs(const mdp_session *session, const char *name, int64_t bytes_stored,
                                 const mdp_rank_cost *total, const mdp_rank_cost *least, const mdp_rank_cost *most,
                                 mdp_estimate *estimate);
/* Bytes that a rank of this node can have, those that it has included; INT64_MAX: unknown. Local. */
int64_t mdp_session_node_share(const mdp_session *session);
/* Add the writing of a result by the ranks of the layout, known as `name`: shares [session->layout->size]. Local. */
mdp_status mdp_session_add_shares(const mdp_session *session, const char *name, const mdp_write_share *shares,
                                  mdp_estimate *estimate);
/* Note a step that needs more than --memory allows. Local. */
void mdp_estimate_note_shortage(mdp_estimate *estimate, mdp_shortage shortage);
/* When all steps are added: refuse a --memory that is too little for any, with one that suffices for all. Local. */
mdp_status mdp_session_check_memory(const mdp_session *session, const mdp_estimate *estimate);
/* Refuse what the ranks of this node cannot have. Local. */
mdp_status mdp_session_check_node(const mdp_session *session, int64_t memory);
/* Speed by --gflops-per-rank, or measured when it is a dry run or a long one; then the opening lines: on stdout for a
 * dry run (as JSON with --json), else on stderr. Collective. */
mdp_status mdp_session_open_lines_all(const mdp_session *session, mdp_estimate *estimate);

#endif
