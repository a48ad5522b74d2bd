/* evaluation.c - results of an evaluation: sums by stream and category, means of them, eval.json. */
#include "mdp/evaluate.h"

#include <math.h>

static void count_predicted(const mdp_tokens *tokens, int64_t *n_predicted) {
    for (int64_t s = 0; s < tokens->n_sequence; s++) {
        int64_t length = tokens->offset[s + 1] - tokens->offset[s];
        if (length > 1) n_predicted[tokens->sequence_category[s]] += length - 1;
    }
}

static mdp_status fill_stream(mdp_eval_stream *stream, const mdp_eval_request *request, int n_category) {
    MDP_TRY(mdp_copy_text(&stream->name, request->name));
    if (request->plan) MDP_TRY(mdp_copy_text(&stream->plan, request->plan));
    return MDP_ALLOC(&stream->nll, n_category, "losses");
}

mdp_status mdp_evaluation_new(const mdp_tokens *tokens, const mdp_eval_request *requests, int n_request,
                              mdp_evaluation **out) {
    mdp_evaluation *evaluation = NULL;
    mdp_status status;
    *out = NULL;
    MDP_TRY(MDP_ALLOC(&evaluation, 1, "the evaluation"));
    MDP_TRY_GOTO(status, fail, MDP_ALLOC(&evaluation->category, tokens->n_category, "categories"));
    MDP_TRY_GOTO(status, fail, MDP_ALLOC(&evaluation->n_predicted, tokens->n_category, "categories"));
    for (int c = 0; c < tokens->n_category; c++) {
        MDP_TRY_GOTO(status, fail, mdp_copy_text(&evaluation->category[c], tokens->category[c]));
        evaluation->n_category++;
    }
    count_predicted(tokens, evaluation->n_predicted);
    MDP_TRY_GOTO(status, fail, MDP_ALLOC(&evaluation->streams, n_request, "streams"));
    evaluation->n_stream = n_request;
    for (int s = 0; s < n_request; s++) {
        MDP_TRY_GOTO(status, fail, fill_stream(&evaluation->streams[s], &requests[s], tokens->n_category));
    }
    *out = evaluation;
    return mdp_ok();
fail:
    mdp_evaluation_destroy(evaluation);
    return status;
}

void mdp_evaluation_destroy(mdp_evaluation *evaluation) {
    if (!evaluation) return;
    for (int c = 0; evaluation->category && c < evaluation->n_category; c++) mdp_free(evaluation->category[c]);
    for (int s = 0; evaluation->streams && s < evaluation->n_stream; s++) {
        mdp_free(evaluation->streams[s].name);
        mdp_free(evaluation->streams[s].plan);
        mdp_free(evaluation->streams[s].nll);
    }
    mdp_free(evaluation->category);
    mdp_free(evaluation->n_predicted);
    mdp_free(evaluation->streams);
    mdp_free(evaluation);
}

mdp_status mdp_evaluation_reduce_all(const mdp_comm *comm, mdp_evaluation *evaluation) {
    for (int s = 0; s < evaluation->n_stream; s++) {
        mdp_exact *nll = evaluation->streams[s].nll;
        for (int c = 0; c < evaluation->n_category; c++) mdp_exact_normalise(&nll[c]);
        MDP_TRY(mdp_sum_i64_all(comm, &nll[0].limb[0], (int64_t)evaluation->n_category * MDP_LIMBS));
        for (int c = 0; c < evaluation->n_category; c++) mdp_exact_normalise(&nll[c]);
    }
    return mdp_ok();
}

double mdp_evaluation_loss(const mdp_evaluation *evaluation, int stream, int category) {
    mdp_exact sum = {{0}};
    int64_t n = 0;
    for (int c = 0; c < evaluation->n_category; c++) {
        if (category >= 0 && c != category) continue;
        for (int i = 0; i < MDP_LIMBS; i++) sum.limb[i] += evaluation->streams[stream].nll[c].limb[i];
        n += evaluation->n_predicted[c];
    }
    return n > 0 ? mdp_exact_value(&sum) / (double)n : (double)NAN;
}

double mdp_evaluation_perplexity(const mdp_evaluation *evaluation, int stream, int category) {
    return exp(mdp_evaluation_loss(evaluation, stream, category));
}

/* ---- eval.json ---- */

/* A number, or null where nothing was predicted or the exponential is infinite. */
static json_t *number(double value) {
    return isfinite(value) ? json_real(value) : json_null();
}

typedef double measure_fn(const mdp_evaluation *evaluation, int stream, int category);

/* {"total": ..., "categories": {...}} of one measure. */
static json_t *measure(const mdp_evaluation *evaluation, int stream, measure_fn *of) {
    json_t *categories = json_object();
    for (int c = 0; c < evaluation->n_category; c++) {
        json_object_set_new(categories, evaluation->category[c], number(of(evaluation, stream, c)));
    }
    return json_pack("{s:o, s:o}", "total", number(of(evaluation, stream, -1)), "categories", categories);
}

static json_t *predicted(const mdp_evaluation *evaluation) {
    json_t *categories = json_object();
    int64_t total = 0;
    for (int c = 0; c < evaluation->n_category; c++) {
        json_object_set_new(categories, evaluation->category[c], json_integer(evaluation->n_predicted[c]));
        total += evaluation->n_predicted[c];
    }
    return json_pack("{s:I, s:o}", "total", (json_int_t)total, "categories", categories);
}

mdp_status mdp_evaluation_print(const mdp_evaluation *evaluation, char **out) {
    json_t *streams = json_array();
    for (int s = 0; s < evaluation->n_stream; s++) {
        const mdp_eval_stream *stream = &evaluation->streams[s];
        json_array_append_new(streams, json_pack("{s:s, s:s?, s:o, s:o, s:o}", "name", stream->name, "plan",
                                                 stream->plan, "n_predicted", predicted(evaluation), "nll",
                                                 measure(evaluation, s, mdp_evaluation_loss), "perplexity",
                                                 measure(evaluation, s, mdp_evaluation_perplexity)));
    }
    json_t *root = json_pack("{s:s, s:s, s:i, s:o, s:o, s:o}", "format", "moe-dist-prune eval", "version", "1.0",
                             "n_ranks", evaluation->n_rank, "seconds", number(evaluation->seconds), "tokens_per_second",
                             number(evaluation->tokens_per_second), "streams", streams);
    if (!root) return MDP_ERROR(MDP_INTERNAL, "eval.json: a name is not valid UTF-8, or memory ran out");
    mdp_status status = mdp_json_print(root, out);
    json_decref(root);
    return status;
}
