/* names.h - tensor name patterns: {layer} and {expert} against numbers, both ways. */
#ifndef MDP_MODEL_NAMES_H
#define MDP_MODEL_NAMES_H

#include "mdp/base.h"

#define MDP_NAME_BYTES 512

/* Write `pattern` with {layer} replaced by `layer` and {expert} by `expert` (a negative number leaves it as it is) to
 * `out`. Patterns come from the family table, so the result always fits. */
void mdp_name_fill(const char *pattern, int64_t layer, int64_t expert, char out[MDP_NAME_BYTES]);

/* Does `name` begin with `pattern`, {layer} standing for a number? If so, the layer and what follows. */
bool mdp_name_begins(const char *name, const char *pattern, int64_t *layer, const char **rest);

/* Leading decimal number of `text` ("12.w1": 12); false when it does not begin with a digit or is beyond 2^31. */
bool mdp_name_number(const char *text, int64_t *number, const char **rest);

#endif
