/* tasks.c - multiple choice from tasks.h5, as token sequences.
 *
 * One group per task. Item i has the context context_ids[context_offsets[i] .. [i + 1]) (with the token that begins a
 * text) and the choices item_offsets[i] .. item_offsets[i + 1] - 1; choice j has the tokens
 * choice_ids[choice_offsets[j]
 * .. [j + 1]) and choice_bytes[j] bytes of text; answer[i] counts in the item. Out: one sequence for each choice, its
 * context and then its tokens, tasks in byte order of name, items and choices in file order. Rank 0 reads and checks;
 * the sequences go to every rank. */
#include "checkpoint/hdf5_read.h"

#include "mdp/checkpoint.h"

#include <inttypes.h>
#include <string.h>

typedef enum task_row {
    CONTEXT_IDS,
    CONTEXT_OFFSETS,
    ITEM_OFFSETS,
    CHOICE_IDS,
    CHOICE_OFFSETS,
    CHOICE_BYTES,
    ANSWER,
    N_ROW
} task_row;

static const char *const row_names[N_ROW] = {[CONTEXT_IDS] = "context_ids",
                                             [CONTEXT_OFFSETS] = "context_offsets",
                                             [ITEM_OFFSETS] = "item_offsets",
                                             [CHOICE_IDS] = "choice_ids",
                                             [CHOICE_OFFSETS] = "choice_offsets",
                                             [CHOICE_BYTES] = "choice_bytes",
                                             [ANSWER] = "answer"};

/* One task as stored. */
typedef struct raw_task {
    int64_t *row[N_ROW]; /* owned */
    int64_t n[N_ROW];
} raw_task;

typedef struct raw_file {
    const char *path;
    int64_t vocab_size;
    int n_task;
    char **names;    /* [n_task] owned */
    raw_task *tasks; /* [n_task] owned */
} raw_file;

static void clear_file(raw_file *file) {
    for (int t = 0; t < file->n_task; t++) {
        for (int r = 0; file->tasks && r < N_ROW; r++) mdp_free(file->tasks[t].row[r]);
        mdp_free(file->names[t]);
    }
    mdp_free(file->names);
    mdp_free(file->tasks);
}

/* ---- reading and checking (rank 0) --------------------------------------------------------------------------- */

static mdp_status read_task(const raw_file *file, hid_t opened, int t) {
    for (int r = 0; r < N_ROW; r++) {
        char *place = NULL;
        MDP_TRY(mdp_format(&place, "/%s/%s", file->names[t], row_names[r]));
        mdp_status status = mdp_hdf5_integers(file->path, opened, place, &file->tasks[t].row[r], &file->tasks[t].n[r]);
        mdp_free(place);
        MDP_TRY(status);
    }
    return mdp_ok();
}

/* Offsets rise from 0 to `end`, one more of them than things. */
static mdp_status check_offsets(const raw_file *file, int t, task_row row, int64_t n_thing, int64_t end) {
    const int64_t *offset = file->tasks[t].row[row];
    int64_t n = file->tasks[t].n[row];
    bool good = n == n_thing + 1 && offset[0] == 0 && offset[n - 1] == end;
    for (int64_t i = 1; good && i < n; i++) good = offset[i] >= offset[i - 1];
    if (good) return mdp_ok();
    return MDP_ERROR(MDP_BAD_INPUT,
                     "%s: %s of task '%s' must be %" PRId64 " numbers that rise from 0 to %" PRId64
                     "; the file is not as tools/tokenize --tasks writes it.",
                     file->path, row_names[row], file->names[t], n_thing + 1, end);
}

static mdp_status check_shape(const raw_file *file, int t) {
    const int64_t *n = file->tasks[t].n;
    if (n[ANSWER] == 0) return MDP_ERROR(MDP_BAD_INPUT, "%s: task '%s' has no items.", file->path, file->names[t]);
    MDP_TRY(check_offsets(file, t, CONTEXT_OFFSETS, n[ANSWER], n[CONTEXT_IDS]));
    MDP_TRY(check_offsets(file, t, ITEM_OFFSETS, n[ANSWER], n[CHOICE_BYTES]));
    return check_offsets(file, t, CHOICE_OFFSETS, n[CHOICE_BYTES], n[CHOICE_IDS]);
}

static mdp_status check_item(const raw_file *file, int t, int64_t item) {
    int64_t *const *row = file->tasks[t].row;
    int64_t first = row[ITEM_OFFSETS][item], n_choice = row[ITEM_OFFSETS][item + 1] - first;
    const char *name = file->names[t];
    if (row[CONTEXT_OFFSETS][item + 1] == row[CONTEXT_OFFSETS][item]) {
        return MDP_ERROR(MDP_BAD_INPUT,
                         "%s: task '%s', item %" PRId64
                         " has an empty context, and the tokenizer begins a text with no token of its own; the first "
                         "token of a choice cannot be predicted.",
                         file->path, name, item);
    }
    if (n_choice < 2 || row[ANSWER][item] < 0 || row[ANSWER][item] >= n_choice) {
        return MDP_ERROR(MDP_BAD_INPUT,
                         "%s: task '%s', item %" PRId64 " has %" PRId64 " choices and the answer %" PRId64
                         "; expected at least 2 choices, and one of them, counted from 0, as the answer.",
                         file->path, name, item, n_choice, row[ANSWER][item]);
    }
    for (int64_t j = first; j < first + n_choice; j++) {
        if (row[CHOICE_OFFSETS][j + 1] > row[CHOICE_OFFSETS][j] && row[CHOICE_BYTES][j] > 0) continue;
        return MDP_ERROR(MDP_BAD_INPUT, "%s: task '%s', item %" PRId64 ": choice %" PRId64 " is empty.", file->path,
                         name, item, j - first);
    }
    return mdp_ok();
}

static mdp_status check_ids(const raw_file *file, int t, task_row row) {
    const raw_task *task = &file->tasks[t];
    for (int64_t i = 0; i < task->n[row]; i++) {
        if (task->row[row][i] >= 0 && task->row[row][i] < file->vocab_size) continue;
        return MDP_ERROR(MDP_BAD_INPUT,
                         "%s: task '%s', %s, position %" PRId64 ": token id %" PRId64
                         " is outside the vocabulary of %" PRId64
                         " (vocab_size); the file was made with another tokenizer.",
                         file->path, file->names[t], row_names[row], i, task->row[row][i], file->vocab_size);
    }
    return mdp_ok();
}

static mdp_status read_opened(raw_file *file, hid_t opened) {
    MDP_TRY(mdp_hdf5_groups(file->path, opened, &file->names, &file->n_task));
    MDP_TRY(MDP_ALLOC(&file->tasks, file->n_task, "tasks"));
    if (file->n_task == 0) {
        return MDP_ERROR(MDP_BAD_INPUT, "%s: there is no task: expected groups as tools/tokenize --tasks writes them.",
                         file->path);
    }
    for (int t = 0; t < file->n_task; t++) {
        MDP_TRY(read_task(file, opened, t));
        MDP_TRY(check_shape(file, t));
        for (int64_t i = 0; i < file->tasks[t].n[ANSWER]; i++) MDP_TRY(check_item(file, t, i));
        MDP_TRY(check_ids(file, t, CONTEXT_IDS));
        MDP_TRY(check_ids(file, t, CHOICE_IDS));
    }
    return mdp_ok();
}

static mdp_status read_file(raw_file *file) {
    hid_t opened;
    MDP_TRY(mdp_hdf5_open(file->path, "a tasks file as tools/tokenize --tasks writes it", &opened));
    mdp_status status = read_opened(file, opened);
    H5Fclose(opened);
    return status;
}

/* ---- sequences ----------------------------------------------------------------------------------------------- */

/* Numbers that fix the sizes of everything. */
typedef struct task_sizes {
    int64_t n_task, n_item, n_choice;
} task_sizes;

static task_sizes count(const raw_file *file) {
    task_sizes sizes = {.n_task = file->n_task};
    for (int t = 0; t < file->n_task; t++) {
        sizes.n_item += file->tasks[t].n[ANSWER];
        sizes.n_choice += file->tasks[t].n[CHOICE_BYTES];
    }
    return sizes;
}

static mdp_status allocate(mdp_tasks *tasks, const task_sizes *sizes, int64_t **lengths) {
    tasks->n_item = sizes->n_item;
    MDP_TRY(MDP_ALLOC(lengths, sizes->n_choice, "choices"));
    MDP_TRY(MDP_ALLOC(&tasks->given, sizes->n_choice, "choices"));
    MDP_TRY(MDP_ALLOC(&tasks->n_byte, sizes->n_choice, "choices"));
    MDP_TRY(MDP_ALLOC(&tasks->item_choice, sizes->n_item + 1, "items of tasks"));
    MDP_TRY(MDP_ALLOC(&tasks->answer, sizes->n_item, "items of tasks"));
    return MDP_ALLOC(&tasks->task_item, sizes->n_task + 1, "tasks");
}

/* Everything but the tokens, and the lengths of the sequences. Rank 0. */
static void fill(mdp_tasks *tasks, const raw_file *file, int64_t *lengths) {
    int64_t item = 0, choice = 0;
    for (int t = 0; t < file->n_task; t++) {
        int64_t *const *row = file->tasks[t].row;
        for (int64_t i = 0; i < file->tasks[t].n[ANSWER]; i++, item++) {
            int64_t given = row[CONTEXT_OFFSETS][i + 1] - row[CONTEXT_OFFSETS][i];
            tasks->answer[item] = row[ANSWER][i];
            for (int64_t j = row[ITEM_OFFSETS][i]; j < row[ITEM_OFFSETS][i + 1]; j++, choice++) {
                tasks->given[choice] = given;
                tasks->n_byte[choice] = row[CHOICE_BYTES][j];
                lengths[choice] = given + row[CHOICE_OFFSETS][j + 1] - row[CHOICE_OFFSETS][j];
            }
            tasks->item_choice[item + 1] = choice;
        }
        tasks->task_item[t + 1] = item;
    }
}

/* Context and choice of every sequence. Rank 0. */
static void fill_ids(mdp_tasks *tasks, const raw_file *file) {
    uint32_t *id = tasks->tokens->ids;
    for (int t = 0; t < file->n_task; t++) {
        int64_t *const *row = file->tasks[t].row;
        for (int64_t i = 0; i < file->tasks[t].n[ANSWER]; i++) {
            for (int64_t j = row[ITEM_OFFSETS][i]; j < row[ITEM_OFFSETS][i + 1]; j++) {
                for (int64_t k = row[CONTEXT_OFFSETS][i]; k < row[CONTEXT_OFFSETS][i + 1]; k++) {
                    *id++ = (uint32_t)row[CONTEXT_IDS][k];
                }
                for (int64_t k = row[CHOICE_OFFSETS][j]; k < row[CHOICE_OFFSETS][j + 1]; k++) {
                    *id++ = (uint32_t)row[CHOICE_IDS][k];
                }
            }
        }
    }
}

/* Collective on `comm`. Names of rank 0 become names everywhere. */
static mdp_status share_names_all(const mdp_comm *comm, raw_file *file, int64_t n_task) {
    mdp_status status = comm->rank == 0 ? mdp_ok() : MDP_ALLOC(&file->names, n_task, "tasks");
    MDP_AGREE(comm, status);
    file->n_task = (int)n_task;
    for (int64_t t = 0; t < n_task && file->names != NULL; t++) {
        int64_t n_byte = comm->rank == 0 ? (int64_t)strlen(file->names[t]) : 0;
        MDP_TRY(mdp_bcast_text_all(comm, &file->names[t], &n_byte, 0));
    }
    return mdp_ok();
}

/* Sequences of each task, from the items. */
static mdp_status new_tokens(mdp_tasks *tasks, const raw_file *file, const int64_t *lengths) {
    int64_t *n_sequence = NULL;
    MDP_TRY(MDP_ALLOC(&n_sequence, file->n_task, "tasks"));
    for (int t = 0; t < file->n_task; t++) {
        n_sequence[t] = tasks->item_choice[tasks->task_item[t + 1]] - tasks->item_choice[tasks->task_item[t]];
    }
    mdp_status status = mdp_tokens_new_in_memory(file->path, file->n_task, (const char *const *)file->names, n_sequence,
                                                 lengths, &tasks->tokens);
    mdp_free(n_sequence);
    return status;
}

/* Collective on `comm`. From rank 0's file to the same tasks on every rank. */
static mdp_status share_all(const mdp_comm *comm, raw_file *file, mdp_tasks *tasks, int64_t **lengths) {
    task_sizes sizes = count(file);
    const int64_t word = (int64_t)sizeof(int64_t);
    MDP_TRY(mdp_bcast_all(comm, &sizes, (int64_t)sizeof sizes, 0));
    MDP_AGREE(comm, allocate(tasks, &sizes, lengths));
    if (comm->rank == 0) fill(tasks, file, *lengths);
    MDP_TRY(share_names_all(comm, file, sizes.n_task));
    MDP_TRY(mdp_bcast_all(comm, *lengths, sizes.n_choice * word, 0));
    MDP_TRY(mdp_bcast_all(comm, tasks->given, sizes.n_choice * word, 0));
    MDP_TRY(mdp_bcast_all(comm, tasks->n_byte, sizes.n_choice * word, 0));
    MDP_TRY(mdp_bcast_all(comm, tasks->item_choice, (sizes.n_item + 1) * word, 0));
    MDP_TRY(mdp_bcast_all(comm, tasks->answer, sizes.n_item * word, 0));
    MDP_TRY(mdp_bcast_all(comm, tasks->task_item, (sizes.n_task + 1) * word, 0));
    MDP_AGREE(comm, new_tokens(tasks, file, *lengths));
    if (file->tasks) fill_ids(tasks, file); /* on rank 0 */
    return mdp_bcast_all(comm, tasks->tokens->ids, tasks->tokens->n_token * (int64_t)sizeof(uint32_t), 0);
}

mdp_status mdp_tasks_open_all(const mdp_comm *comm, const char *path, int64_t vocab_size, mdp_tasks **out) {
    raw_file file = {.path = path, .vocab_size = vocab_size};
    int64_t *lengths = NULL;
    mdp_tasks *tasks = NULL;
    *out = NULL;
    mdp_status status = MDP_ALLOC(&tasks, 1, "tasks");
    if (status.code == MDP_OK && comm->rank == 0) status = read_file(&file);
    status = mdp_agree_all(comm, status);
    if (status.code == MDP_OK) status = share_all(comm, &file, tasks, &lengths);
    clear_file(&file);
    mdp_free(lengths);
    if (status.code != MDP_OK) {
        mdp_tasks_destroy(tasks);
        return status;
    }
    *out = tasks;
    return mdp_ok();
}

void mdp_tasks_destroy(mdp_tasks *tasks) {
    if (!tasks) return;
    mdp_tokens_destroy(tasks->tokens);
    mdp_free(tasks->given);
    mdp_free(tasks->n_byte);
    mdp_free(tasks->item_choice);
    mdp_free(tasks->answer);
    mdp_free(tasks->task_item);
    mdp_free(tasks);
}
