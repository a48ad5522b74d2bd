/* plan.c - fuzz target: the bytes are plan.json; beside it lies a plan.h5 with arrays of every kind. */
#include "fuzz.h"

#include "mdp/plan.h"

#include <string.h>

/* Arrays that a plan may name: right ones, and ones that hold pointers, nothing, or more than there is. */
static void write_arrays(const char *path) {
    fuzz_file *file = fuzz_file_new();
    const int64_t four[] = {4}, large[] = {(int64_t)1 << 40}, larger[] = {(int64_t)1 << 61};
    fuzz_file_add(file, "/a", NULL, FUZZ_F32, 1, four, "0123456789abcdef", 16);
    fuzz_file_add_text(file, "/t", NULL, "text");
    fuzz_file_add(file, "/g", NULL, FUZZ_GROUP, 0, NULL, NULL, 0);
    fuzz_file_add(file, "/big", NULL, FUZZ_U8, 1, large, NULL, 0);
    fuzz_file_add(file, "/bigger", NULL, FUZZ_F64, 1, larger, NULL, 0);
    static const uint8_t odd[][3] = {{2, 0, 2}, {2, 0, 3}, {2, 0, 4}, {3, 0, 0}, {7, 0, 1}, {8, 0, 2}};
    for (size_t i = 0; i < sizeof odd / sizeof odd[0]; i++) {
        char name[8];
        (void)snprintf(name, sizeof name, "/o%d", (int)i);
        fuzz_file_add(file, name, NULL, FUZZ_F32, 1, four, "0123456789abcdef", 16);
        uint8_t edit[3] = {odd[i][0], (uint8_t)(5 + i), odd[i][2]};
        fuzz_file_edit(file, edit, sizeof edit);
    }
    fuzz_file_write(file, path);
    fuzz_file_destroy(file);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_byte) {
    static const char *path = NULL;
    if (!path) {
        path = fuzz_path("plan.json");
        write_arrays(fuzz_path("plan.h5"));
    }
    mdp_plan *plan = NULL, *again = NULL;
    char *text = NULL, *second = NULL;
    fuzz_begin();
    mdp_status status = mdp_plan_parse((const char *)data, (int64_t)n_byte, path, &plan);
    fuzz_end(&status);
    if (status.code != MDP_OK) return 0;
    fuzz_begin();
    status = mdp_plan_check_arrays(plan, 0, 1);
    fuzz_end(&status);
    /* what was understood prints as a plan that means the same */
    status = mdp_plan_print(plan, &text);
    fuzz_require(status.code == MDP_OK, status.text);
    status = mdp_plan_parse(text, (int64_t)strlen(text), path, &again);
    fuzz_require(status.code == MDP_OK, status.text);
    status = mdp_plan_print(again, &second);
    fuzz_require(status.code == MDP_OK && strcmp(text, second) == 0, "a plan changes by being printed and read");
    mdp_free(text);
    mdp_free(second);
    mdp_plan_destroy(again);
    mdp_plan_destroy(plan);
    return 0;
}
