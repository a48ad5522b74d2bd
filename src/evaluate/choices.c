/* choices.c - multiple choice: the log-likelihood of every choice after its context, and accuracies.
 *
 * A choice is a sequence, which lies on one rank; its tokens' losses are added there in order. Summing over ranks adds
 * the bits of one number and of zeros, so the result is that number. */
#include "evaluate/evaluate.h"

#include <math.h>
#include <string.h>

const char *const mdp_choice_names[MDP_N_CHOICE_BY] = {
    [MDP_BY_SUM] = "accuracy_sum", [MDP_BY_TOKEN] = "accuracy_token", [MDP_BY_BYTE] = "accuracy_byte"};

mdp_status mdp_evaluation_expect_tasks(mdp_evaluation *evaluation, const mdp_tasks *tasks) {
    evaluation->tasks = tasks;
    for (int s = 0; s < evaluation->n_stream; s++) {
        MDP_TRY(MDP_ALLOC(&evaluation->streams[s].loglikelihood, tasks->tokens->n_sequence, "log-likelihoods"));
    }
    return mdp_ok();
}

static mdp_status add_choice(const mdp_evaluation *evaluation, int number, const mdp_loss *loss, int64_t choice) {
    const mdp_tokens *tokens = evaluation->tasks->tokens;
    const mdp_eval_stream *stream = &evaluation->streams[number];
    int64_t first = mdp_loss_batch(loss)->first_token;
    double sum = 0.0;
    for (int64_t t = tokens->offset[choice]; t < tokens->offset[choice + 1]; t++) {
        mdp_position position;
        if (!mdp_loss_at(loss, number, t - first, &position)) continue;
        MDP_TRY(mdp_position_check(&position, stream->name, tokens->category[tokens->sequence_category[choice]], t));
        sum -= position.nll;
    }
    stream->loglikelihood[choice] = sum;
    return mdp_ok();
}

mdp_status mdp_evaluation_add_choices(mdp_evaluation *evaluation, const mdp_loss *loss) {
    const mdp_tokens *tokens = evaluation->tasks->tokens;
    const mdp_local_batch *batch = mdp_loss_batch(loss);
    for (int64_t c = 0; c < tokens->n_sequence; c++) {
        if (tokens->offset[c] < batch->first_token) continue;
        if (tokens->offset[c + 1] > batch->first_token + batch->n_token) continue;
        for (int s = 0; s < evaluation->n_stream; s++) MDP_TRY(add_choice(evaluation, s, loss, c));
    }
    return mdp_ok();
}

mdp_status mdp_evaluation_reduce_choices_all(const mdp_comm *comm, mdp_evaluation *evaluation) {
    int64_t n = evaluation->tasks->tokens->n_sequence, *bits = NULL;
    mdp_status status = mdp_agree_all(comm, MDP_ALLOC(&bits, n, "log-likelihoods"));
    for (int s = 0; s < evaluation->n_stream && status.code == MDP_OK; s++) {
        double *loglikelihood = evaluation->streams[s].loglikelihood;
        memcpy(bits, loglikelihood, (size_t)n * sizeof *bits);
        status = mdp_sum_i64_all(comm, bits, n);
        memcpy(loglikelihood, bits, (size_t)n * sizeof *bits);
    }
    mdp_free(bits);
    return status;
}

/* What the choice is divided by. */
static double length_of(const mdp_tasks *tasks, int64_t choice, mdp_choice_by by) {
    const int64_t *offset = tasks->tokens->offset;
    switch (by) {
    case MDP_BY_TOKEN:
        return (double)(offset[choice + 1] - offset[choice] - tasks->given[choice]);
    case MDP_BY_BYTE:
        return (double)tasks->n_byte[choice];
    default:
        return 1.0;
    }
}

static bool is_right(const mdp_tasks *tasks, const double *loglikelihood, int64_t item, mdp_choice_by by) {
    int64_t first = tasks->item_choice[item], best = first;
    double most = -INFINITY;
    for (int64_t c = first; c < tasks->item_choice[item + 1]; c++) {
        double value = loglikelihood[c] / length_of(tasks, c, by);
        if (!(value > most)) continue;
        most = value;
        best = c;
    }
    return best - first == tasks->answer[item];
}

double mdp_evaluation_accuracy(const mdp_evaluation *evaluation, int stream, int task, mdp_choice_by by) {
    const mdp_tasks *tasks = evaluation->tasks;
    int64_t first = task < 0 ? 0 : tasks->task_item[task];
    int64_t end = task < 0 ? tasks->n_item : tasks->task_item[task + 1], n_right = 0;
    for (int64_t i = first; i < end; i++) {
        n_right += is_right(tasks, evaluation->streams[stream].loglikelihood, i, by);
    }
    return (double)n_right / (double)(end - first);
}
