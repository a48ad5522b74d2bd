/* outputs.h - what may be an output, who owns it while it is made, and how it gets its name (doc/outputs.md). Serial:
 * one rank does this for all, but for mdp_workshop_open_all. */
#ifndef MDP_OUTPUTS_H
#define MDP_OUTPUTS_H

#include "mdp/comm.h"
#include "mdp/lock.h"

/* ---- records --------------------------------------------------------------------------------------------------- */

/* moe-dist-prune.json: what this program has put into a folder. */
#define MDP_RECORD_NAME "moe-dist-prune.json"
typedef enum mdp_record_kind {
    MDP_RECORD_NONE,       /* there is none, or it is not ours */
    MDP_RECORD_CHECKPOINT, /* of a checkpoint in a Hugging Face folder: tensors, headers, files */
    MDP_RECORD_RESULTS     /* of a folder of results: which command has written which of them */
} mdp_record_kind;
typedef struct mdp_record {
    mdp_record_kind kind;
    json_t *root; /* NULL: none; owned */
} mdp_record;
/* Read the record of a folder; of what cannot be read or is no JSON, none. */
void mdp_record_read(const char *folder, mdp_record *out);
void mdp_record_clear(mdp_record *record);
/* Does the record of a checkpoint list a file of that name? */
bool mdp_record_lists(const mdp_record *record, const char *name);
/* What lies in a checkpoint folder and is not listed by its record, in words for a sentence; empty text: nothing. */
mdp_status mdp_record_foreign(const char *folder, const mdp_record *record, char *words, size_t n_byte);
/* Remove from a checkpoint folder what its record lists, the record last, and the folder when it is empty then. */
mdp_status mdp_record_remove(const char *folder);

/* ---- what may be written --------------------------------------------------------------------------------------- */

typedef enum mdp_target_kind {
    MDP_TARGET_FILE,   /* appears by one rename */
    MDP_TARGET_FOLDER, /* a checkpoint; likewise */
    MDP_TARGET_LOG,    /* a file that is added to */
    MDP_TARGET_STATE   /* a state folder */
} mdp_target_kind;

typedef struct mdp_target {
    char *path;         /* without slashes at its end; owned */
    const char *option; /* that names it, for sentences: "--out"; static */
    mdp_target_kind kind;
    bool replace; /* what is there may be replaced */
} mdp_target;

/* All that a command reads and writes. */
typedef struct mdp_places {
    int n_target, n_input;
    mdp_target *targets; /* [n_target] owned */
    char **inputs;       /* [n_input] files, and folders with all in them; owned */
} mdp_places;

mdp_status mdp_places_add_target(mdp_places *places, const char *path, const char *option, mdp_target_kind kind,
                                 bool replace);
mdp_status mdp_places_add_input(mdp_places *places, const char *path);
/* The target at `path`, without slashes at its end; NULL: it is none. Borrowed. */
const mdp_target *mdp_places_find(const mdp_places *places, const char *path);
void mdp_places_clear(mdp_places *places);
/* Could the targets ever be written: every one by its kind, against every input, and against the others?
 * MDP_CANNOT_CREATE naming what is in the way. */
mdp_status mdp_places_check_apart(const mdp_places *places);
/* May they be written now: is nothing there that stays? MDP_CANNOT_CREATE. */
mdp_status mdp_places_check_free(const mdp_places *places);
/* Both, of one target by itself. */
mdp_status mdp_target_check(const mdp_target *target);
/* May files be made in `folder`, and has its file system n_byte free? */
mdp_status mdp_folder_check_room(const char *folder, int64_t n_byte);

/* ---- where it is made ------------------------------------------------------------------------------------------ */

/* The state folder of an output, and the right to write there. */
typedef struct mdp_workshop {
    char *folder;   /* owned */
    char *output;   /* what it is of: a file, or a folder; owned */
    char *making;   /* folder of unfinished outputs; NULL: nothing is to be made (a dry run); owned */
    mdp_lock *lock; /* on rank 0; NULL elsewhere and in a dry run */
} mdp_workshop;

/* Own the state folder of `output`: output/.state where in_folder, else output.state. Whoever owns it, or in another
 * way the same output, is looked at; nothing is removed. `dry`: only look. *out is to be closed on error too.
 * Collective on `comm`. MDP_CANNOT_CREATE: it is owned, or it is not one of ours. */
mdp_status mdp_workshop_open_all(const mdp_comm *comm, const char *output, bool in_folder, mdp_claim claim, bool dry,
                                 mdp_workshop **out);
/* The state folder of an output. New text. */
mdp_status mdp_workshop_name(const char *output, bool in_folder, char **out);
/* Is the state folder one of ours, or absent? Known without a lock. */
mdp_status mdp_workshop_check(const char *folder);
/* What an earlier owner has left: to go on with, or to be done away with; what it had taken away from its place to put
 * something there, but did not, is put back then. */
mdp_status mdp_workshop_adopt(mdp_workshop *workshop, bool go_on);
/* Is it still this process's? */
mdp_status mdp_workshop_check_owner(const mdp_workshop *workshop);
/* Where an output of that name is made. New text. Local. */
mdp_status mdp_workshop_path(const mdp_workshop *workshop, const char *name, char **out);
/* What has been made as mdp_workshop_path(last part of target->path) appears at target->path. */
mdp_status mdp_workshop_publish(const mdp_workshop *workshop, const mdp_target *target);
/* Take `path` away from its place. Until it is done away with, it is put back when nobody goes on. */
mdp_status mdp_workshop_retire(const mdp_workshop *workshop, const char *path);
/* Do away with what was taken away; what cannot be removed is told by mdp_workshop_close. */
void mdp_workshop_discard(const mdp_workshop *workshop);
/* Remove what is saved: resume points, journals and the identity. */
mdp_status mdp_workshop_forget(const mdp_workshop *workshop);
/* Give it back. `keep`: with what is saved in it, if anything is; else it goes, but for what is not ours, and an error
 * says what that is. NULL is allowed. Frees it. */
mdp_status mdp_workshop_close(mdp_workshop *workshop, bool keep);

#endif
