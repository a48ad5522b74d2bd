/* replay.c - runs a fuzz target over the files and folders named, each file once: the kept corpus as a test. */
#include "fuzz.h"

#include <dirent.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

static int n_run = 0;

static void replay_file(const char *path) {
    char *text = NULL;
    int64_t n_byte = 0;
    mdp_status status = mdp_file_read_all(path, (int64_t)1 << 24, &text, &n_byte);
    fuzz_require(status.code == MDP_OK, status.text);
    uint8_t *data = malloc((size_t)n_byte + 1); /* exactly as long, so that a sanitizer sees what is read beyond */
    fuzz_require(data != NULL, "out of memory");
    data = realloc(data, n_byte > 0 ? (size_t)n_byte : 1);
    memcpy(data, text, (size_t)n_byte);
    mdp_free(text);
    if (getenv("MDP_FUZZ_NAME_FILES")) fprintf(stderr, "%s\n", path);
    LLVMFuzzerTestOneInput(data, (size_t)n_byte);
    free(data);
    n_run++;
}

static void replay(const char *path) {
    struct stat info;
    struct dirent **names = NULL;
    fuzz_require(stat(path, &info) == 0, path);
    if (!S_ISDIR(info.st_mode)) {
        replay_file(path);
        return;
    }
    int n = scandir(path, &names, NULL, alphasort);
    for (int i = 0; i < n; i++) {
        char *file = NULL;
        if (names[i]->d_name[0] != '.' && asprintf(&file, "%s/%s", path, names[i]->d_name) > 0) replay(file);
        free(file);
        free(names[i]);
    }
    free(names);
}

int main(int argc, char **argv) {
    static const uint8_t nothing[1];
    LLVMFuzzerTestOneInput(nothing, 0);
    for (int i = 1; i < argc; i++) replay(argv[i]);
    printf("%d inputs\n", n_run);
    return n_run > 0 ? 0 : 1;
}
