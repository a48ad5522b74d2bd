/* renumber.h - experts that config.json names by their numbers. */
#ifndef MDP_MODEL_RENUMBER_H
#define MDP_MODEL_RENUMBER_H

#include "mdp/model.h"

/* Give experts that the text (config.json, [*n_byte]) names by number the numbers that `numbering` says; *text is
 * replaced. `path` stands in errors. MDP_BAD_INPUT: a name from which it cannot be told which experts are meant, with
 * its key. */
mdp_status mdp_renumber_config(const mdp_numbering *numbering, const char *path, char **text, int64_t *n_byte);

#endif
