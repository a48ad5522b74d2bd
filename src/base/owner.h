/* owner.h - who a process is, in words that processes on other hosts understand. */
#ifndef MDP_BASE_OWNER_H
#define MDP_BASE_OWNER_H

#include "mdp/base.h"

typedef struct mdp_owner {
    char host[256];
    char boot[64];  /* of the host's kernel; empty: not known */
    char space[64]; /* in which process numbers count; empty: not known */
    int64_t pid;
    int64_t begun;    /* of the process, in the kernel's ticks since its boot */
    char job[100];    /* of the batch system; empty: none */
    int64_t restarts; /* of that job before */
    char since[32];   /* UTC, when it became owner */
    bool locked;      /* it holds a lock of the file system, not the name alone */
} mdp_owner;

void mdp_owner_self(mdp_owner *out);
/* One document of JSON. New text. */
mdp_status mdp_owner_print(const mdp_owner *owner, char **out);
/* false: not such a document. */
bool mdp_owner_parse(const char *text, int64_t n_byte, mdp_owner *out);

typedef enum mdp_alive {
    MDP_ALIVE,  /* the process runs on this host */
    MDP_GONE,   /* it ended, or the job has begun anew since */
    MDP_UNKNOWN /* it is not to be seen from here */
} mdp_alive;
mdp_alive mdp_owner_lives(const mdp_owner *owner, const mdp_owner *self);
/* "process 12 on host n3 (job 17), since 2026-11-30 04:57:12 UTC" into out [n_byte]; returns out. */
char *mdp_owner_name(const mdp_owner *owner, char *out, size_t n_byte);

#endif
