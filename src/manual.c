/* manual.c - a program of the build: writes the man pages and the bash completion into a folder. Not installed; starts
 * no MPI, so that it runs wherever the compiler does. */
#include "command/manual.h"

#include <stdlib.h>

/* Open FOLDER/NAME, have it written, close it; false when that fails. */
static bool write_page(const char *folder, const char *suffix, const mdp_command *command) {
    char path[4096];
    if (snprintf(path, sizeof path, "%s/moe-dist-prune%s%s%s", folder, command ? "-" : "", command ? command->name : "",
                 suffix) >= (int)sizeof path)
        return false;
    FILE *file = fopen(path, "w");
    if (!file) return false;
    if (*suffix)
        mdp_manual_page(command, file);
    else
        mdp_manual_completion(file);
    bool failed = ferror(file) != 0;
    return fclose(file) == 0 && !failed;
}

int main(int n_word, char **words) {
    if (n_word != 2) {
        fprintf(stderr, "usage: mdp-manual FOLDER\n");
        return MDP_USAGE;
    }
    bool good = write_page(words[1], "", NULL) && write_page(words[1], ".1", NULL);
    for (int i = 0; i < mdp_n_command && good; i++) good = write_page(words[1], ".1", &mdp_commands[i]);
    if (!good) fprintf(stderr, "mdp-manual: cannot write into %s\n", words[1]);
    return good ? MDP_OK : MDP_CANNOT_CREATE;
}
