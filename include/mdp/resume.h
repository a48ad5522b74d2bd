/* resume.h - resume points: what an unfinished command leaves, so that --resume can go on with it on any number of
 * ranks.
 *
 * They lie in the state folder beside the result (mdp_workshop), which is removed when the command succeeds.
 * identity.json in it says what the results depend on and of which files; it is compared before anything is used. A
 * pass of the forward has a file of its own (mdp_point); a checkpoint that is being written has a journal of the
 * tensors that are safe on disk. Each is complete or absent, and replaced only by a complete one. */
#ifndef MDP_RESUME_H
#define MDP_RESUME_H

#include "mdp/checkpoint.h"
#include "mdp/outputs.h"

typedef struct mdp_resume mdp_resume;
struct mdp_resume {
    const mdp_workshop *workshop; /* borrowed */
    char *identity;               /* what identity.json holds or would hold; owned */
    char digest[33];              /* of what the results depend on */
    bool exists;                  /* identity.json is there, of this very command; the same on every rank */
    bool saved;                   /* there is something in it to go on from; the same on every rank */
    bool continues;               /* it was there when the command began, and --resume was given */
    mdp_watch watch;
    int n_pass; /* forward passes begun: they come in the same order in every run */
    mdp_log *log;
};

void mdp_resume_destroy(mdp_resume *resume); /* NULL is allowed */
/* Before something is saved: the folder is this job's still, and says what it is of. Collective on `comm`. */
mdp_status mdp_resume_prepare_all(const mdp_comm *comm, mdp_resume *resume);
/* Are the files that the reader has read as they were (mdp_reader_check)? If not, what was saved from them is removed,
 * since it may be of two models. `resume` may be NULL. Collective on `comm`. */
mdp_status mdp_resume_check_inputs_all(const mdp_comm *comm, mdp_resume *resume, mdp_reader *reader);
/* name in the folder, new text. */
mdp_status mdp_resume_path(const mdp_resume *resume, const char *name, char **out);
/* The resume point of the forward pass that is begun next, new text. */
mdp_status mdp_resume_next_point(const mdp_resume *resume, char **out);

/* ---- points ---------------------------------------------------------------------------------------------------- */

/* An array over all ranks, cut into items. An item lies whole on one rank and has a checksum. */
typedef struct mdp_section {
    char *name; /* owned */
    mdp_dtype type;
    int64_t n_item;
    int64_t *offset; /* [n_item + 1] numbers before each item; owned */
} mdp_section;

/* Items of a section that this rank has, one after another in memory. */
typedef struct mdp_part {
    int section;
    int64_t first, n; /* items */
    void *data;       /* borrowed */
} mdp_part;

/* The content of one resume point. Sections are the same on every rank, parts are this rank's. */
typedef struct mdp_point {
    int n_section, n_part;
    mdp_section *sections;
    mdp_part *parts;
} mdp_point;

/* A new section of items of n_number[i] numbers each (or of `each` where n_number is NULL); its index. Local. */
mdp_status mdp_point_add_section(mdp_point *point, const char *name, mdp_dtype type, int64_t n_item,
                                 const int64_t *n_number, int64_t each, int *out);
mdp_status mdp_point_add_part(mdp_point *point, int section, int64_t first, int64_t n, void *data);
/* A section of its own for one array of n numbers, one item; `held`: this rank has it. Local. */
mdp_status mdp_point_add_array(mdp_point *point, const char *name, mdp_dtype type, int64_t n, void *data, bool held);
void mdp_point_clear(mdp_point *point);

/* Write `path` through path.partial: parallel HDF5, checksums, completion mark, fsync, rename. Every item must be in a
 * part of one rank. `text` (the same on every rank) describes the point. Collective on `comm`. */
mdp_status mdp_point_write_all(const mdp_comm *comm, const char *path, const char *text, const mdp_point *point);
/* Its text, new, on every rank; NULL when there is no such file. Collective on `comm`. MDP_BAD_INPUT: not a complete
 * resume point. */
mdp_status mdp_point_read_text_all(const mdp_comm *comm, const char *path, char **text);
/* Read every rank's parts into their memory and compare the checksums. Items may be wanted by several ranks or by none.
 * Collective on `comm`. */
mdp_status mdp_point_read_all(const mdp_comm *comm, const char *path, const mdp_point *point);

#endif
