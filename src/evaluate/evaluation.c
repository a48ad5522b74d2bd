/* evaluation.c - results of an evaluation on text: exact sums by stream and category, and means of them.
 *
 * Sums are exact or of integers, so that ranks, threads and batches cannot show. A sequence lies on one rank, in one
 * batch, as a whole. */
#include "evaluate/evaluate.h"

#include <math.h>

/* ---- room ---------------------------------------------------------------------------------------------------- */

static void count_predicted(const mdp_tokens *tokens, mdp_evaluation *evaluation) {
    for (int64_t s = 0; s < tokens->n_sequence; s++) {
        int64_t length = tokens->offset[s + 1] - tokens->offset[s];
        if (length < 2) continue;
        evaluation->n_predicted[tokens->sequence_category[s]] += length - 1;
        evaluation->n_sequence[tokens->sequence_category[s]]++;
    }
}

static mdp_status fill_stream(mdp_eval_stream *stream, const mdp_eval_request *request, int n_category,
                              int64_t n_layer) {
    MDP_TRY(mdp_copy_text(&stream->name, request->name));
    if (request->plan) MDP_TRY(mdp_copy_text(&stream->plan, request->plan));
    MDP_TRY(MDP_ALLOC(&stream->nll, n_category, "losses"));
    MDP_TRY(MDP_ALLOC(&stream->kl, n_category, "losses"));
    MDP_TRY(MDP_ALLOC(&stream->overlap, n_category, "losses"));
    MDP_TRY(MDP_ALLOC(&stream->n_agree, n_category, "losses"));
    MDP_TRY(MDP_ALLOC(&stream->layer_square, n_layer, "errors of layers"));
    return MDP_ALLOC(&stream->n_exact, n_category, "losses");
}

static mdp_status fill_categories(mdp_evaluation *evaluation, const mdp_tokens *tokens) {
    int n = tokens ? tokens->n_category : 0;
    MDP_TRY(MDP_ALLOC(&evaluation->category, n, "categories"));
    MDP_TRY(MDP_ALLOC(&evaluation->n_predicted, n, "categories"));
    MDP_TRY(MDP_ALLOC(&evaluation->n_sequence, n, "categories"));
    for (int c = 0; c < n; c++) {
        MDP_TRY(mdp_copy_text(&evaluation->category[c], tokens->category[c]));
        evaluation->n_category++;
    }
    if (tokens) count_predicted(tokens, evaluation);
    return mdp_ok();
}

mdp_status mdp_evaluation_new(const mdp_tokens *tokens, int64_t n_layer, const mdp_eval_request *requests,
                              int n_request, mdp_evaluation **out) {
    mdp_evaluation *evaluation = NULL;
    mdp_status status;
    *out = NULL;
    MDP_TRY(MDP_ALLOC(&evaluation, 1, "the evaluation"));
    MDP_TRY_GOTO(status, fail, fill_categories(evaluation, tokens));
    MDP_TRY_GOTO(status, fail, MDP_ALLOC(&evaluation->streams, n_request, "streams"));
    evaluation->n_stream = n_request;
    evaluation->n_layer = n_layer;
    for (int s = 0; s < n_request; s++) {
        MDP_TRY_GOTO(status, fail, fill_stream(&evaluation->streams[s], &requests[s], evaluation->n_category, n_layer));
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
        mdp_free(evaluation->streams[s].kl);
        mdp_free(evaluation->streams[s].overlap);
        mdp_free(evaluation->streams[s].n_agree);
        mdp_free(evaluation->streams[s].n_exact);
        mdp_free(evaluation->streams[s].layer_square);
        mdp_free(evaluation->streams[s].loglikelihood);
    }
    mdp_free(evaluation->category);
    mdp_free(evaluation->n_predicted);
    mdp_free(evaluation->n_sequence);
    mdp_free(evaluation->streams);
    mdp_free(evaluation);
}

/* ---- sums ---------------------------------------------------------------------------------------------------- */

/* One sequence of `length` tokens whose first row is `local`. */
static mdp_status add_sequence(mdp_evaluation *evaluation, int number, const mdp_loss *loss, int64_t local,
                               int64_t length) {
    const mdp_local_batch *batch = mdp_loss_batch(loss);
    mdp_eval_stream *stream = &evaluation->streams[number];
    int32_t category = batch->category[local];
    int64_t half = length - length / 2 - 1; /* the row that predicts the first token of the last half */
    bool exact = true;
    for (int64_t i = 0; i < length - 1; i++) {
        mdp_position position;
        if (!mdp_loss_at(loss, number, local + i, &position)) continue;
        MDP_TRY(mdp_position_check(&position, stream->name, evaluation->category[category],
                                   batch->first_token + local + i));
        mdp_exact_add(&stream->nll[category], position.nll);
        mdp_exact_add(&stream->kl[category], position.kl);
        mdp_exact_add(&stream->overlap[category], position.overlap);
        stream->n_agree[category] += position.agrees;
        if (i >= half) exact = exact && position.right;
    }
    stream->n_exact[category] += exact && length > 1;
    return mdp_ok();
}

mdp_status mdp_evaluation_add(mdp_evaluation *evaluation, const mdp_loss *loss, const mdp_tokens *tokens) {
    const mdp_local_batch *batch = mdp_loss_batch(loss);
    for (int64_t s = 0; s < tokens->n_sequence; s++) {
        int64_t local = tokens->offset[s] - batch->first_token, length = tokens->offset[s + 1] - tokens->offset[s];
        if (local < 0 || local + length > batch->n_token || length == 0) continue;
        for (int n = 0; n < evaluation->n_stream; n++) MDP_TRY(add_sequence(evaluation, n, loss, local, length));
    }
    return mdp_ok();
}

static mdp_status reduce_exact_all(const mdp_comm *comm, mdp_exact *sum, int64_t n) {
    for (int64_t c = 0; c < n; c++) mdp_exact_normalise(&sum[c]);
    MDP_TRY(mdp_sum_i64_all(comm, &sum[0].limb[0], n * MDP_LIMBS));
    for (int64_t c = 0; c < n; c++) mdp_exact_normalise(&sum[c]);
    return mdp_ok();
}

mdp_status mdp_evaluation_reduce_all(const mdp_comm *comm, mdp_evaluation *evaluation) {
    int n = evaluation->n_category;
    for (int s = 0; s < evaluation->n_stream; s++) {
        mdp_eval_stream *stream = &evaluation->streams[s];
        MDP_TRY(reduce_exact_all(comm, stream->nll, n));
        MDP_TRY(reduce_exact_all(comm, stream->kl, n));
        MDP_TRY(reduce_exact_all(comm, stream->overlap, n));
        MDP_TRY(reduce_exact_all(comm, stream->layer_square, evaluation->n_layer));
        MDP_TRY(mdp_sum_i64_all(comm, stream->n_agree, n));
        MDP_TRY(mdp_sum_i64_all(comm, stream->n_exact, n));
    }
    return mdp_ok();
}

/* ---- means --------------------------------------------------------------------------------------------------- */

static double ratio(double sum, int64_t n) {
    return n > 0 ? sum / (double)n : (double)NAN;
}

/* Of one category, or of all (category < 0). */
static double exact_sum(const mdp_evaluation *evaluation, const mdp_exact *sums, int category) {
    mdp_exact sum = {{0}};
    for (int c = 0; c < evaluation->n_category; c++) {
        if (category >= 0 && c != category) continue;
        for (int i = 0; i < MDP_LIMBS; i++) sum.limb[i] += sums[c].limb[i];
    }
    return mdp_exact_value(&sum);
}

static int64_t total(const mdp_evaluation *evaluation, const int64_t *counts, int category) {
    int64_t sum = 0;
    for (int c = 0; c < evaluation->n_category; c++) sum += category < 0 || c == category ? counts[c] : 0;
    return sum;
}

double mdp_evaluation_loss(const mdp_evaluation *evaluation, int stream, int category) {
    return ratio(exact_sum(evaluation, evaluation->streams[stream].nll, category),
                 total(evaluation, evaluation->n_predicted, category));
}

double mdp_evaluation_perplexity(const mdp_evaluation *evaluation, int stream, int category) {
    return exp(mdp_evaluation_loss(evaluation, stream, category));
}

double mdp_evaluation_kl(const mdp_evaluation *evaluation, int stream, int category) {
    return ratio(exact_sum(evaluation, evaluation->streams[stream].kl, category),
                 total(evaluation, evaluation->n_predicted, category));
}

double mdp_evaluation_overlap(const mdp_evaluation *evaluation, int stream, int category) {
    return ratio(exact_sum(evaluation, evaluation->streams[stream].overlap, category),
                 total(evaluation, evaluation->n_predicted, category));
}

double mdp_evaluation_agreement(const mdp_evaluation *evaluation, int stream, int category) {
    return ratio((double)total(evaluation, evaluation->streams[stream].n_agree, category),
                 total(evaluation, evaluation->n_predicted, category));
}

double mdp_evaluation_exact_match(const mdp_evaluation *evaluation, int stream, int category) {
    return ratio((double)total(evaluation, evaluation->streams[stream].n_exact, category),
                 total(evaluation, evaluation->n_sequence, category));
}

const mdp_measure mdp_measures[MDP_N_MEASURE] = {{"nll", mdp_evaluation_loss},
                                                 {"perplexity", mdp_evaluation_perplexity},
                                                 {"kl_to_original", mdp_evaluation_kl},
                                                 {"top1_agreement", mdp_evaluation_agreement},
                                                 {"exact_match", mdp_evaluation_exact_match},
                                                 {"overlap", mdp_evaluation_overlap}};

int mdp_evaluation_n_measure(const mdp_evaluation *evaluation) {
    return evaluation->has_overlap ? MDP_N_MEASURE : MDP_N_MEASURE - 1;
}
