/* report.h - what a run did, for a person (the closing table, report.html) and for programs (report.json). */
#ifndef MDP_REPORT_H
#define MDP_REPORT_H

#include "mdp/evaluate.h"
#include "mdp/transform.h"

#define MDP_REPORT_MAX_WRITTEN 16
#define MDP_REPORT_MAX_PHASE 8

/* A part of a run and the time that it took. */
typedef struct mdp_report_phase {
    const char *name;
    double seconds;
} mdp_report_phase;

/* Everything that a report tells; all borrowed. */
typedef struct mdp_report {
    const mdp_model *model;
    const mdp_plan *plan;
    const mdp_output *output;         /* the result as written */
    const mdp_stats *stats;           /* sums complete; NULL: not observed */
    const mdp_evaluation *evaluation; /* streams original and pruned; NULL: not evaluated */
    const mdp_tokens *tokens;
    int n_rank, n_node, n_thread;
    const char *blas;
    double seconds;
    int n_phase;
    mdp_report_phase phases[MDP_REPORT_MAX_PHASE]; /* in order */
    int64_t memory_largest, memory_smallest;       /* peak of a rank, bytes */
    int n_word;                                    /* the command line */
    char *const *words;
    int n_written;
    const char *written[MDP_REPORT_MAX_WRITTEN]; /* paths of the results */
    const char *next;                            /* a command that goes on from here; NULL: none */
} mdp_report;

/* report.json, new text. Local. */
mdp_status mdp_report_print(const mdp_report *report, char **out);
/* report.html, new text: one file that shows what report.json (`json`) says and loads nothing else. Local. */
mdp_status mdp_report_page(const char *json, char **out);
/* The closing table, new text. Local. */
mdp_status mdp_report_table(const mdp_report *report, char **out);

/* 140630000000 -> "140.6 B", 12345678 -> "12.35 M": four significant digits. `out` has at least 32 bytes; returns it.
 */
char *mdp_print_large(char out[32], double n);

#endif
