/* flip.c - flip N SEED PATH: does verify see every single changed bit? PATH (a model.h5, a stats.h5 or a folder of
 * ours) is changed in place, one bit at a time, and changed back. Every other bit lies outside the tensors, where there
 * are few. Each look is a process of its own, because libhdf5 may crash on what is damaged. Prints how many were
 * refused, how many crashed, and where the accepted ones lie; exit status 1 when there are any. */
#include "fuzz.h"

#include "mdp/observe.h"

#include <dirent.h>
#include <fcntl.h>
#include <hdf5.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

enum { MAX_REGION = 4096 };

typedef struct region {
    const char *path;
    int64_t begin, end;
} region;

static region all[MAX_REGION], outside[MAX_REGION];
static int n_all = 0, n_outside = 0;

static void add(region *list, int *n, const char *path, int64_t begin, int64_t end) {
    fuzz_require(*n < MAX_REGION, "too many files or tensors");
    if (begin < end) list[(*n)++] = (region){path, begin, end};
}

static int compare_runs(const void *left, const void *right) {
    const mdp_run *a = left, *b = right;
    return a->offset < b->offset ? -1 : a->offset > b->offset;
}

/* The bytes of a file that belong to no tensor of the catalogue (NULL: to none at all). */
static void add_file(const char *path, const mdp_catalogue *catalogue) {
    struct stat info;
    fuzz_require(stat(path, &info) == 0, path);
    add(all, &n_all, path, 0, info.st_size);
    mdp_run runs[MAX_REGION];
    int n = 0;
    for (int64_t i = 0; catalogue && i < catalogue->n_tensor; i++) {
        const mdp_tensor *t = &catalogue->tensors[i];
        if (strcmp(catalogue->files[t->file], path) != 0 || t->n_byte == 0) continue;
        fuzz_require(n < MAX_REGION, "too many tensors");
        runs[n++] = (mdp_run){t->offset, t->n_byte};
    }
    qsort(runs, (size_t)n, sizeof *runs, compare_runs);
    int64_t at = 0;
    for (int i = 0; i < n; i++) {
        add(outside, &n_outside, path, at, runs[i].offset);
        at = runs[i].offset + runs[i].n_byte;
    }
    add(outside, &n_outside, path, at, info.st_size);
}

/* The exit code that `verify` would have. */
static int look(const char *path) {
    mdp_catalogue *catalogue = NULL;
    mdp_stats *stats = NULL;
    mdp_verified verified = {0};
    int64_t n_byte;
    size_t length = strlen(path);
    H5Eset_auto2(H5E_DEFAULT, NULL, NULL);
    mdp_status status;
    if (length > 8 && strcmp(path + length - 8, "stats.h5") == 0) {
        status = mdp_stats_read(path, &stats);
        if (status.code == MDP_OK) status = mdp_verify_sealed(path, &n_byte);
        mdp_stats_destroy(stats);
        return status.code;
    }
    status = mdp_catalogue_open_all(fuzz_comm(), path, &catalogue);
    if (status.code == MDP_OK) status = mdp_verify_all(fuzz_comm(), catalogue, NULL, NULL, &verified);
    mdp_free(verified.digests);
    mdp_catalogue_destroy(catalogue);
    return status.code;
}

/* 0: accepted, 1: refused, 2: crashed, 3: another code than that of a bad file. */
static int judge(const char *path) {
    int how;
    pid_t child = fork();
    fuzz_require(child >= 0, "no process");
    if (child == 0) _exit(look(path));
    waitpid(child, &how, 0);
    if (!WIFEXITED(how)) return 2;
    int code = WEXITSTATUS(how);
    return code == MDP_OK ? 0 : code == MDP_BAD_INPUT || code == MDP_IO ? 1 : 3;
}

static void flip(const region *r, int64_t at, int bit) {
    unsigned char byte;
    int fd = open(r->path, O_RDWR);
    fuzz_require(fd >= 0 && pread(fd, &byte, 1, at) == 1, r->path);
    byte = (unsigned char)(byte ^ 1 << bit);
    fuzz_require(pwrite(fd, &byte, 1, at) == 1 && close(fd) == 0, r->path);
}

/* A byte of a list of regions, all of them equally likely. */
static const region *choose(const region *list, int n, uint64_t random, int64_t *at) {
    int64_t total = 0;
    for (int i = 0; i < n; i++) total += list[i].end - list[i].begin;
    *at = (int64_t)(random % (uint64_t)total);
    while (*at >= list->end - list->begin) {
        *at -= list->end - list->begin;
        list++;
    }
    *at += list->begin;
    return list;
}

static void list_files(const char *path) {
    struct dirent **names = NULL;
    mdp_catalogue *catalogue = NULL;
    mdp_status ignored = mdp_catalogue_open_all(fuzz_comm(), path, &catalogue); /* none of stats.h5 */
    (void)ignored;
    int n = scandir(path, &names, NULL, alphasort);
    for (int i = 0; i < n; i++) {
        char *file = NULL;
        fuzz_require(asprintf(&file, "%s/%s", path, names[i]->d_name) > 0, "out of memory");
        if (names[i]->d_name[0] != '.') add_file(file, catalogue);
        free(names[i]);
    }
    if (n < 0) add_file(path, catalogue);
    free(names);
    mdp_catalogue_destroy(catalogue);
}

int main(int argc, char **argv) {
    static const char *const words[] = {"accepted", "refused", "crashed", "ended otherwise"};
    int count[2][4] = {{0}};
    fuzz_require(argc == 4, "flip N SEED PATH");
    int n = atoi(argv[1]);
    uint64_t seed = strtoull(argv[2], NULL, 10);
    list_files(argv[3]);
    fuzz_require(judge(argv[3]) == 0, "not accepted before anything is changed");
    for (int i = 0; i < n; i++) {
        int place = i % 2;
        uint64_t random = mdp_random_bits(seed, 0, (uint64_t)i);
        int64_t at;
        const region *r = place ? choose(outside, n_outside, random >> 3, &at) : choose(all, n_all, random >> 3, &at);
        flip(r, at, (int)(random & 7));
        int how = judge(argv[3]);
        flip(r, at, (int)(random & 7));
        count[place][how]++;
        if (how != 1) printf("%s: byte %lld, bit %d: %s\n", r->path, (long long)at, (int)(random & 7), words[how]);
    }
    for (int place = 0; place < 2; place++)
        printf("%s: %d refused, %d accepted, %d crashed, %d ended otherwise\n", place ? "outside tensors" : "anywhere",
               count[place][1], count[place][0], count[place][2], count[place][3]);
    return count[0][0] + count[1][0] + count[0][3] + count[1][3] > 0;
}
