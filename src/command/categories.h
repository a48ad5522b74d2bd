/* categories.h - the option --categories: which kinds of text count, and how much. */
#ifndef MDP_CATEGORIES_H
#define MDP_CATEGORIES_H

#include "command/session.h"

/* "code:2,math" -> "code,math": the names alone, as tokens files are opened by (mdp_next_name: a comma, a colon or a
 * backslash of a name stands behind a backslash). New text. Local. MDP_USAGE: an empty name, a weight that is not a
 * number from 1e-12 to 1e12, a name twice. */
mdp_status mdp_category_names(const char *text, char **names);
/* Does any name carry a weight other than 1? Local. */
bool mdp_category_has_weights(const char *text);
/* The weight of every category of the statistics: 0 for those not named, else the name's times what a weighted join
 * gave. *weight (new) [n_category]; NULL when text is NULL. Local. MDP_USAGE: a name that the statistics lack. */
mdp_status mdp_category_weights(const char *text, const mdp_stats *stats, double **weight);

#endif
