/* owner.c - who a process is, and whether it still lives: see owner.h.
 *
 * A process number alone says little: it is used again, after a boot, in another container, on another host. With the
 * host, the boot, the space of process numbers and the time of its start it names one process for good. */
#include "base/owner.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define FORMAT "moe-dist-prune lock"

/* ---- this process -------------------------------------------------------------------------------------------- */

/* The first line of a small file of the system; empty when there is none. */
static void read_line(const char *path, char *out, size_t n_byte) {
    FILE *file = fopen(path, "re");
    out[0] = '\0';
    if (!file) return;
    if (!fgets(out, (int)n_byte, file)) out[0] = '\0';
    out[strcspn(out, "\n")] = '\0';
    fclose(file);
}

/* When a process began, in ticks since the boot; -1: there is no such process, or nobody has asked yet how it ended. */
static int64_t begin_of(int64_t pid) {
    char path[64], line[1024];
    snprintf(path, sizeof path, "/proc/%" PRId64 "/stat", pid);
    read_line(path, line, sizeof line);
    const char *at = strrchr(line, ')'); /* the name before it may hold anything */
    if (!at || strncmp(at, ") Z", 3) == 0 || strncmp(at, ") X", 3) == 0) return -1;
    for (int field = 2; at && field < 22; field++) at = strchr(at + 1, ' ');
    return at ? strtoll(at, NULL, 10) : -1;
}

static const char *text_of_variable(const char *name) {
    const char *text = getenv(name);
    return text ? text : "";
}

/* "CLUSTER.ID[ELEMENT]": clusters that share a file system have jobs of the same numbers, and so have the elements of
 * an array (LSF). */
static void name_job(mdp_owner *out) {
    static const char *const names[][3] = {{"SLURM_JOB_ID", "SLURM_CLUSTER_NAME", ""},
                                           {"PBS_JOBID", "", ""},
                                           {"LSB_JOBID", "LSB_CLUSTER_NAME", "LSB_JOBINDEX"}};
    static const char *const counts[] = {"SLURM_RESTART_COUNT", "MDP_RESTARTS"};
    for (size_t i = 0; i < sizeof names / sizeof *names && out->job[0] == '\0'; i++) {
        const char *id = text_of_variable(names[i][0]), *cluster = text_of_variable(names[i][1]);
        const char *element = text_of_variable(names[i][2]);
        bool array = *element && strcmp(element, "0") != 0; /* 0: there is none */
        if (*id)
            snprintf(out->job, sizeof out->job, "%s%s%s%s%s%s", cluster, *cluster ? "." : "", id, array ? "[" : "",
                     array ? element : "", array ? "]" : "");
    }
    for (size_t i = 0; i < sizeof counts / sizeof *counts && out->restarts == 0; i++) {
        const char *text = getenv(counts[i]);
        if (text) out->restarts = strtoll(text, NULL, 10);
    }
}

void mdp_owner_self(mdp_owner *out) {
    time_t now = time(NULL);
    struct tm utc;
    *out = (mdp_owner){.pid = getpid()};
    if (gethostname(out->host, sizeof out->host - 1) != 0) snprintf(out->host, sizeof out->host, "unknown");
    read_line("/proc/sys/kernel/random/boot_id", out->boot, sizeof out->boot);
    ssize_t n = readlink("/proc/self/ns/pid", out->space, sizeof out->space - 1);
    out->space[n > 0 ? n : 0] = '\0';
    out->begun = begin_of(out->pid);
    name_job(out);
    if (gmtime_r(&now, &utc)) strftime(out->since, sizeof out->since, "%Y-%m-%d %H:%M:%S UTC", &utc);
}

/* ---- as text --------------------------------------------------------------------------------------------------- */

/* A name of a host or job is whatever the system says. */
static json_t *text_of(const char *text) {
    json_t *value = json_string(text);
    return value ? value : json_string("?");
}

mdp_status mdp_owner_print(const mdp_owner *owner, char **out) {
    json_t *root =
        json_pack("{s:s, s:s, s:o, s:s, s:s, s:I, s:I, s:o, s:I, s:s, s:b}", "format", FORMAT, "version", "1.0", "host",
                  text_of(owner->host), "boot", owner->boot, "space", owner->space, "pid", (json_int_t)owner->pid,
                  "begun", (json_int_t)owner->begun, "job", text_of(owner->job), "restarts",
                  (json_int_t)owner->restarts, "since", owner->since, "locked", (int)owner->locked);
    *out = NULL;
    if (!root) return MDP_ERROR(MDP_EXHAUSTED, "out of memory for the lock.");
    mdp_status status = mdp_json_print(root, out);
    json_decref(root);
    return status;
}

static void take_text(const json_t *root, const char *key, char *out, size_t n_byte) {
    const char *text = json_string_value(json_object_get(root, key));
    snprintf(out, n_byte, "%s", text ? text : "");
}

bool mdp_owner_parse(const char *text, int64_t n_byte, mdp_owner *out) {
    json_t *root = json_loadb(text, (size_t)n_byte, JSON_REJECT_DUPLICATES, NULL);
    const char *format = json_string_value(json_object_get(root, "format"));
    bool ours = format && strcmp(format, FORMAT) == 0;
    *out = (mdp_owner){.pid = 0};
    if (ours) {
        take_text(root, "host", out->host, sizeof out->host);
        take_text(root, "boot", out->boot, sizeof out->boot);
        take_text(root, "space", out->space, sizeof out->space);
        take_text(root, "job", out->job, sizeof out->job);
        take_text(root, "since", out->since, sizeof out->since);
        out->pid = json_integer_value(json_object_get(root, "pid"));
        out->begun = json_integer_value(json_object_get(root, "begun"));
        out->restarts = json_integer_value(json_object_get(root, "restarts"));
        out->locked = json_is_true(json_object_get(root, "locked"));
    }
    json_decref(root);
    return ours;
}

char *mdp_owner_name(const mdp_owner *owner, char *out, size_t n_byte) {
    char job[120] = "";
    if (owner->job[0] != '\0') snprintf(job, sizeof job, " (job %s)", owner->job);
    snprintf(out, n_byte, "process %" PRId64 " on host %s%s, since %s", owner->pid, owner->host, job, owner->since);
    return out;
}

/* ---- alive? ---------------------------------------------------------------------------------------------------- */

mdp_alive mdp_owner_lives(const mdp_owner *owner, const mdp_owner *self) {
    bool here = strcmp(owner->host, self->host) == 0 && strcmp(owner->boot, self->boot) == 0 &&
                strcmp(owner->space, self->space) == 0 && self->begun >= 0;
    if (here) return begin_of(owner->pid) == owner->begun ? MDP_ALIVE : MDP_GONE;
    bool earlier = self->job[0] != '\0' && strcmp(owner->job, self->job) == 0 && owner->restarts < self->restarts;
    return earlier ? MDP_GONE : MDP_UNKNOWN;
}
