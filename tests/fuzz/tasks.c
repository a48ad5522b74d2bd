/* tasks.c - fuzz target: the bytes change a tasks.h5 that is right. */
#include "fuzz.h"

static fuzz_file *sample(void) {
    static const uint32_t ids[] = {1, 2, 3, 99, 0, 50, 7, 8};
    static const int64_t context[] = {0, 2, 6}, items[] = {0, 2, 4}, choices[] = {0, 1, 3, 6, 8},
                         sizes[] = {1, 5, 2, 9};
    static const int64_t answers[] = {1, 0};
    static const struct {
        const char *name;
        fuzz_type type;
        int64_t n;
        const void *data;
    } rows[] = {{"context_ids", FUZZ_U32, 6, ids},        {"context_offsets", FUZZ_I64, 3, context},
                {"item_offsets", FUZZ_I64, 3, items},     {"choice_ids", FUZZ_U32, 8, ids},
                {"choice_offsets", FUZZ_I64, 5, choices}, {"choice_bytes", FUZZ_I64, 4, sizes},
                {"answer", FUZZ_I64, 2, answers}};
    fuzz_file *file = fuzz_file_new();
    for (int task = 0; task < 2; task++) {
        char path[64];
        (void)snprintf(path, sizeof path, "/task%d", task);
        fuzz_file_add(file, path, NULL, FUZZ_GROUP, 0, NULL, NULL, 0);
        for (size_t r = 0; r < sizeof rows / sizeof rows[0]; r++) {
            (void)snprintf(path, sizeof path, "/task%d/%s", task, rows[r].name);
            fuzz_file_add(file, path, NULL, rows[r].type, 1, &rows[r].n, rows[r].data,
                          (size_t)rows[r].n * (rows[r].type == FUZZ_U32 ? 4 : 8));
        }
    }
    return file;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_byte) {
    static const char *path = NULL;
    if (!path) path = fuzz_path("tasks.h5");
    const mdp_comm *comm = fuzz_comm();
    fuzz_file *file = sample();
    fuzz_file_edit(file, data, n_byte);
    fuzz_file_write(file, path);
    fuzz_file_destroy(file);
    mdp_tasks *tasks = NULL;
    fuzz_begin();
    mdp_status status = mdp_tasks_open_all(comm, path, 100, &tasks);
    for (int64_t i = 0; status.code == MDP_OK && i < tasks->n_item; i++) {
        int64_t n_choice = tasks->item_choice[i + 1] - tasks->item_choice[i];
        fuzz_require(n_choice >= 2 && tasks->answer[i] >= 0 && tasks->answer[i] < n_choice, "an answer that is none");
    }
    mdp_tasks_destroy(tasks);
    fuzz_end(&status);
    return 0;
}
