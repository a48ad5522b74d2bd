/* evaluate.c - measures of several streams in one forward pass over text and in one over multiple choice, and the dump
 * of the first one's arrays. */
#include "pipeline/forward.h"

typedef struct evaluation_run {
    const mdp_comm *comm;
    const mdp_tokens *tokens;
    const mdp_tasks *tasks; /* what `tokens` are the choices of; NULL: they are text */
    mdp_evaluation *evaluation;
    int64_t d_model;
    bool overlap;             /* is measured */
    const mdp_engine *engine; /* in the middle of a batch */
    mdp_dump *dump;           /* or NULL */
} evaluation_run;

static mdp_status begin_batch(void *context, const mdp_engine *engine) {
    evaluation_run *run = context;
    run->engine = engine;
    return run->dump ? mdp_dump_begin_batch(run->dump, engine) : mdp_ok();
}

static mdp_status layer_done(void *context, int64_t layer) {
    const evaluation_run *run = context;
    if (run->dump) MDP_TRY(mdp_dump_layer(run->dump, layer));
    return run->tasks ? mdp_ok() : mdp_evaluation_add_layer(run->evaluation, run->engine, run->d_model, layer);
}

static mdp_status take_results(const evaluation_run *run, const mdp_loss *loss) {
    if (run->tasks) return mdp_evaluation_add_choices(run->evaluation, loss);
    MDP_TRY(mdp_evaluation_add(run->evaluation, loss, run->tokens));
    return run->dump ? mdp_dump_head(run->dump) : mdp_ok();
}

static mdp_status head_all(void *context, mdp_engine *engine) {
    const evaluation_run *run = context;
    mdp_loss *loss = NULL;
    mdp_status status = mdp_agree_all(
        run->comm, mdp_loss_new(engine, run->tokens, run->tasks ? run->tasks->given : NULL, run->dump, &loss));
    if (status.code == MDP_OK) {
        if (run->overlap) mdp_loss_share(loss);
        mdp_head_consumer consumer = mdp_loss_consumer(loss);
        status = mdp_engine_head_all(engine, &consumer);
    }
    if (status.code == MDP_OK) status = mdp_agree_all(run->comm, take_results(run, loss));
    mdp_loss_destroy(loss);
    return status;
}

static mdp_status gather_all(void *context) {
    const evaluation_run *run = context;
    return mdp_evaluation_gather_all(run->comm, run->evaluation, run->tasks != NULL);
}

static mdp_status describe(void *context, const mdp_position *at, bool taken, mdp_point *point) {
    const evaluation_run *run = context;
    (void)at;
    (void)taken;
    return mdp_evaluation_describe(run->comm, run->evaluation, run->tasks != NULL, point);
}

static mdp_status measure_all(evaluation_run *run, const mdp_forward *base, const mdp_eval_request *requests,
                              const char *dump_path) {
    mdp_observers observers;
    mdp_forward forward = *base;
    if (dump_path) {
        MDP_TRY(mdp_dump_new_all(forward.comm, forward.model, forward.tokens, requests, forward.pass.n_stream,
                                 dump_path, &run->dump));
        observers = mdp_dump_observers(run->dump);
        forward.observers = &observers;
        forward.describe = NULL; /* a dump is for small inputs, and is not continued */
    }
    mdp_status status = mdp_forward_all(&forward);
    return run->dump ? mdp_dump_finish_all(run->dump, status) : status;
}

/* One forward over run->tokens. Collective. */
static mdp_status forward_all(evaluation_run *run, const mdp_model *model, mdp_reader *reader,
                              const mdp_eval_request *requests, const mdp_forward_options *options,
                              const char *dump_path) {
    int n_stream = run->evaluation->n_stream;
    const mdp_view **views = NULL;
    double start = mdp_seconds();
    mdp_status status = mdp_agree_all(run->comm, mdp_alloc((void **)&views, n_stream, sizeof(void *), "streams"));
    if (status.code != MDP_OK) {
        mdp_free(views);
        return status;
    }
    for (int i = 0; i < n_stream; i++) views[i] = requests[i].view;
    mdp_pass pass = mdp_loss_pass(n_stream, NULL);
    pass.head_again = run->overlap;
    mdp_forward forward = {.comm = run->comm,
                           .model = model,
                           .reader = reader,
                           .tokens = run->tokens,
                           .options = options,
                           .phase = run->tasks       ? "tasks"
                                    : options->phase ? options->phase
                                                     : "eval",
                           .pass = pass,
                           .views = views,
                           .begin_batch = begin_batch,
                           .layer_done = layer_done,
                           .head_all = head_all,
                           .gather_all = gather_all,
                           .describe = describe,
                           .context = run};
    status = measure_all(run, &forward, requests, dump_path);
    mdp_free(views);
    run->evaluation->n_token += run->tokens->n_token;
    run->evaluation->seconds += mdp_seconds() - start;
    run->evaluation->tokens_per_second = (double)run->evaluation->n_token / run->evaluation->seconds;
    return status;
}

mdp_status mdp_evaluate_all(const mdp_comm *comm, const mdp_model *model, mdp_reader *reader, const mdp_tokens *tokens,
                            const mdp_eval_request *requests, int n_request, const mdp_forward_options *options,
                            const char *dump_path, mdp_evaluation **out) {
    evaluation_run run = {.comm = comm, .tokens = tokens, .d_model = model->d_model, .overlap = options->overlap};
    *out = NULL;
    mdp_status status =
        mdp_agree_all(comm, mdp_evaluation_new(tokens, model->n_layer, requests, n_request, &run.evaluation));
    if (tokens && status.code == MDP_OK) status = forward_all(&run, model, reader, requests, options, dump_path);
    if (tokens && status.code == MDP_OK) status = mdp_evaluation_reduce_all(comm, run.evaluation);
    if (status.code != MDP_OK) {
        mdp_evaluation_destroy(run.evaluation);
        return status;
    }
    run.evaluation->n_rank = comm->size;
    run.evaluation->has_overlap = tokens && run.overlap;
    *out = run.evaluation;
    return mdp_ok();
}

mdp_status mdp_evaluate_tasks_all(const mdp_comm *comm, const mdp_model *model, mdp_reader *reader,
                                  const mdp_tasks *tasks, const mdp_eval_request *requests,
                                  const mdp_forward_options *options, mdp_evaluation *evaluation) {
    evaluation_run run = {.comm = comm, .tokens = tasks->tokens, .tasks = tasks, .evaluation = evaluation};
    MDP_AGREE(comm, mdp_evaluation_expect_tasks(evaluation, tasks));
    MDP_TRY(forward_all(&run, model, reader, requests, options, NULL));
    return mdp_evaluation_reduce_choices_all(comm, evaluation);
}
