/* manual.h - man pages and bash completion, printed from the tables of commands and options. */
#ifndef MDP_MANUAL_H
#define MDP_MANUAL_H

#include "command/command.h"

/* The man page (section 1, roff) of the program when `command` is NULL, else of that command. Local. */
void mdp_manual_page(const mdp_command *command, FILE *file);
/* Completion for bash. Local. */
void mdp_manual_completion(FILE *file);

#endif
