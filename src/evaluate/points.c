/* points.c - the sums of an unfinished evaluation in a resume point. They are small, so rank 0 keeps them. */
#include "evaluate/evaluate.h"

#include <string.h>

/* The arrays of a stream, one number of `each` for every category (or choice). */
typedef struct array {
    const char *name;
    mdp_dtype type;
    int64_t n;
    void *data;
} array;

#define N_TEXT 6

static void list_text(const mdp_evaluation *evaluation, const mdp_eval_stream *stream, array out[N_TEXT]) {
    int64_t n = evaluation->n_category;
    out[0] = (array){"nll", MDP_I64, n * MDP_LIMBS, stream->nll};
    out[1] = (array){"kl", MDP_I64, n * MDP_LIMBS, stream->kl};
    out[2] = (array){"n-agree", MDP_I64, n, stream->n_agree};
    out[3] = (array){"n-exact", MDP_I64, n, stream->n_exact};
    out[4] = (array){"layer-square", MDP_I64, evaluation->n_layer * MDP_LIMBS, stream->layer_square};
    out[5] = (array){"overlap", MDP_I64, n * MDP_LIMBS, stream->overlap};
}

/* Returns how many. */
static int list_arrays(const mdp_evaluation *evaluation, int stream, bool tasks, array out[N_TEXT]) {
    if (!tasks) {
        list_text(evaluation, &evaluation->streams[stream], out);
        return N_TEXT;
    }
    out[0] = (array){"loglikelihood", MDP_F64, evaluation->tasks->tokens->n_sequence,
                     evaluation->streams[stream].loglikelihood};
    return 1;
}

mdp_status mdp_evaluation_gather_all(const mdp_comm *comm, mdp_evaluation *evaluation, bool tasks) {
    array arrays[N_TEXT];
    if (tasks)
        MDP_TRY(mdp_evaluation_reduce_choices_all(comm, evaluation));
    else
        MDP_TRY(mdp_evaluation_reduce_all(comm, evaluation));
    for (int s = 0; s < evaluation->n_stream && comm->rank != 0; s++) {
        int n = list_arrays(evaluation, s, tasks, arrays);
        for (int i = 0; i < n; i++) memset(arrays[i].data, 0, (size_t)arrays[i].n * sizeof(int64_t));
    }
    return mdp_ok();
}

mdp_status mdp_evaluation_describe(const mdp_comm *comm, mdp_evaluation *evaluation, bool tasks, mdp_point *point) {
    array arrays[N_TEXT];
    for (int s = 0; s < evaluation->n_stream; s++) {
        int n = list_arrays(evaluation, s, tasks, arrays);
        for (int i = 0; i < n; i++) {
            char name[64];
            snprintf(name, sizeof name, "%s-%d", arrays[i].name, s);
            MDP_TRY(mdp_point_add_array(point, name, arrays[i].type, arrays[i].n, arrays[i].data, comm->rank == 0));
        }
    }
    return mdp_ok();
}
