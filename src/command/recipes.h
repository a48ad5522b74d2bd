/* recipes.h - methods that are only a set of defaults for other options. */
#ifndef MDP_RECIPES_H
#define MDP_RECIPES_H

#include "mdp/options.h"

typedef struct mdp_recipe {
    const char *name;    /* --method NAME */
    const char *help;    /* one line, "after <paper>" */
    const char *options; /* JSON object of options and values; "method" names the criterion */
} mdp_recipe;

extern const mdp_recipe mdp_recipes[];
extern const int mdp_n_recipe;

/* Where the option `method` names a recipe: put its values into all options that were not given, the criterion in place
 * of the name, and say so in one new line; else *line is NULL. Local. */
mdp_status mdp_recipe_expand(mdp_options *options, int method, char **line);

#endif
