/* stage.c - resume points of one forward pass: what they hold, when they are taken, and going on from one.
 *
 * A point holds, for a position between two layers: the residual streams of the batch, unless it is done; what the pass
 * has added up (the caller's sections); and a text with the position and the cut of the tokens. Rows lie in packs and
 * sums are exact, so any number of ranks can go on. A finished pass leaves a point without residual streams: going on,
 * the command repeats nothing that took long. */
#include "pipeline/stage.h"

#include <string.h>

/* ---- the text -------------------------------------------------------------------------------------------------- */

static json_t *int_list(int n, int (*of)(const mdp_engine *engine, int i), const mdp_engine *engine) {
    json_t *list = json_array();
    for (int i = 0; i < n; i++) mdp_json_add(&list, json_integer(of(engine, i)));
    return list;
}

/* engine NULL: no batch is in the making. `nonfinite`: as in mdp_stage. */
static mdp_status print_text(const mdp_stage *stage, const mdp_engine *engine, const int64_t nonfinite[2], char **out) {
    int n_branch = engine ? mdp_engine_n_branch(engine) : 0;
    json_t *root =
        json_pack("{s:s, s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:o, s:o}", "identity", stage->resume->digest, "phase",
                  stage->forward->phase, "batch", (json_int_t)stage->at.batch, "layer", (json_int_t)stage->at.layer,
                  "n_batch", (json_int_t)stage->partition->n_batch, "batch_tokens", (json_int_t)stage->batch_tokens,
                  "nonfinite", (json_int_t)nonfinite[0], "first_nonfinite", (json_int_t)nonfinite[1], "leaders",
                  int_list(n_branch, mdp_engine_leader_of, engine), "stream_states",
                  int_list(engine ? stage->forward->pass.n_stream : 0, mdp_engine_branch_of, engine));
    *out = NULL;
    if (!root) return MDP_ERROR(MDP_EXHAUSTED, "out of memory for the text of a resume point.");
    mdp_status status = mdp_json_print(root, out);
    json_decref(root);
    return status;
}

static mdp_status no_match(const mdp_stage *stage) {
    return MDP_ERROR(MDP_BAD_INPUT,
                     "%s: this resume point is not of this command; remove it, or start again with --overwrite.",
                     stage->path);
}

static mdp_status parse_text(mdp_stage *stage, const char *text) {
    const char *identity, *phase;
    MDP_TRY(mdp_json_parse(text, (int64_t)strlen(text), stage->path, &stage->found));
    MDP_TRY(mdp_json_text(stage->found, "identity", stage->path, &identity));
    MDP_TRY(mdp_json_text(stage->found, "phase", stage->path, &phase));
    MDP_TRY(mdp_json_int(stage->found, "batch", stage->path, &stage->at.batch));
    MDP_TRY(mdp_json_int(stage->found, "layer", stage->path, &stage->at.layer));
    MDP_TRY(mdp_json_int(stage->found, "batch_tokens", stage->path, &stage->batch_tokens));
    MDP_TRY(mdp_json_int(stage->found, "nonfinite", stage->path, &stage->nonfinite[0]));
    MDP_TRY(mdp_json_int(stage->found, "first_nonfinite", stage->path, &stage->nonfinite[1]));
    if (strcmp(identity, stage->resume->digest) != 0 || strcmp(phase, stage->forward->phase) != 0)
        return no_match(stage);
    return mdp_ok();
}

/* n integers in [0, end) of a list. */
static mdp_status read_list(const mdp_stage *stage, const char *key, int n, int end, int *out) {
    json_t *list = NULL;
    MDP_TRY(mdp_json_array(stage->found, key, stage->path, &list));
    if (json_array_size(list) != (size_t)n) return no_match(stage);
    for (int i = 0; i < n; i++) {
        const json_t *value = json_array_get(list, (size_t)i);
        out[i] = (int)json_integer_value(value);
        if (!json_is_integer(value) || out[i] < 0 || out[i] >= end) return no_match(stage);
    }
    return mdp_ok();
}

/* ---- opening --------------------------------------------------------------------------------------------------- */

static mdp_status look_for_point_all(mdp_stage *stage) {
    const mdp_comm *comm = stage->forward->comm;
    char *text = NULL;
    if (!stage->resume->continues) return mdp_ok();
    mdp_status status = mdp_point_read_text_all(comm, stage->path, &text);
    if (status.code == MDP_OK && text) status = mdp_agree_all(comm, parse_text(stage, text));
    mdp_free(text);
    return status;
}

mdp_status mdp_stage_open_all(const mdp_forward *forward, mdp_stage *stage) {
    *stage = (mdp_stage){.forward = forward, .start = mdp_seconds(), .nonfinite = {0, -1}};
    if (!forward->options->resume || !forward->describe) return mdp_ok();
    stage->resume = forward->options->resume;
    MDP_AGREE(forward->comm, mdp_resume_next_point(stage->resume, &stage->path));
    stage->resume->n_pass++;
    MDP_TRY(look_for_point_all(stage));
    stage->was_stopped = stage->found != NULL;
    return mdp_ok();
}

mdp_status mdp_stage_cut(mdp_stage *stage, const mdp_partition *partition, int64_t batch_tokens) {
    int64_t n_layer = stage->forward->model->n_layer;
    stage->partition = partition;
    stage->batch_tokens = batch_tokens;
    if (!stage->found) return mdp_ok();
    int64_t n_batch;
    MDP_TRY(mdp_json_int(stage->found, "n_batch", stage->path, &n_batch));
    bool inside =
        stage->at.batch >= 0 && stage->at.batch < n_batch && stage->at.layer >= 0 && stage->at.layer <= n_layer;
    bool at_end = stage->at.batch == n_batch && stage->at.layer == 0;
    return n_batch == partition->n_batch && (inside || at_end) ? mdp_ok() : no_match(stage);
}

bool mdp_stage_is_finished(const mdp_stage *stage) {
    return stage->at.batch == stage->partition->n_batch;
}

void mdp_stage_close(mdp_stage *stage) {
    json_decref(stage->found);
    mdp_free(stage->path);
}

/* ---- content --------------------------------------------------------------------------------------------------- */

/* Rows of every branch in packs: the residual streams of the batch in the making. */
static mdp_status describe_rows(const mdp_stage *stage, const mdp_engine *engine, mdp_point *point) {
    const mdp_partition *partition = stage->partition;
    const mdp_local_batch *batch = mdp_engine_batch(engine);
    int64_t first = partition->block_pack[partition->batch_block[stage->at.batch]], *n_number = NULL;
    int64_t n_pack = partition->block_pack[partition->batch_block[stage->at.batch + 1]] - first;
    MDP_TRY(MDP_ALLOC(&n_number, n_pack, "packs of a resume point"));
    for (int64_t i = 0; i < n_pack; i++)
        n_number[i] = partition->packs[first + i].n_token * stage->forward->model->d_model;
    mdp_status status = mdp_ok();
    for (int s = 0; s < mdp_engine_n_branch(engine) && status.code == MDP_OK; s++) {
        char name[32];
        int section;
        snprintf(name, sizeof name, "residual-%d", s);
        status = mdp_point_add_section(point, name, MDP_F32, n_pack, n_number, 0, &section);
        if (status.code == MDP_OK)
            status = mdp_point_add_part(point, section, batch->n_pack > 0 ? batch->first_pack - first : 0,
                                        batch->n_pack, mdp_engine_residual(engine, s));
    }
    mdp_free(n_number);
    return status;
}

/* engine NULL: no batch is in the making. */
static mdp_status describe(const mdp_stage *stage, const mdp_engine *engine, bool taken, mdp_point *point) {
    if (engine) MDP_TRY(describe_rows(stage, engine, point));
    return stage->forward->describe(stage->forward->context, &stage->at, taken, point);
}

/* ---- going on -------------------------------------------------------------------------------------------------- */

static mdp_status read_branches(const mdp_stage *stage, int *n_branch, int **leader, int **stream_branch) {
    int n_stream = stage->forward->pass.n_stream;
    json_t *list = NULL;
    MDP_TRY(mdp_json_array(stage->found, "leaders", stage->path, &list));
    *n_branch = (int)json_array_size(list);
    if (*n_branch < 1 || *n_branch > n_stream) return no_match(stage);
    MDP_TRY(MDP_ALLOC(leader, n_stream, "states"));
    MDP_TRY(MDP_ALLOC(stream_branch, n_stream, "states"));
    MDP_TRY(read_list(stage, "leaders", *n_branch, n_stream, *leader));
    return read_list(stage, "stream_states", n_stream, *n_branch, *stream_branch);
}

static mdp_status restore_engine_all(const mdp_stage *stage, mdp_engine *engine) {
    int n_branch = 0, *leader = NULL, *stream_branch = NULL;
    mdp_status status = mdp_agree_all(stage->forward->comm, read_branches(stage, &n_branch, &leader, &stream_branch));
    if (status.code == MDP_OK)
        status = mdp_engine_restore_batch_all(engine, stage->at.batch, n_branch, leader, stream_branch);
    mdp_free(leader);
    mdp_free(stream_branch);
    return status;
}

static void say_where(const mdp_stage *stage) {
    const mdp_forward *forward = stage->forward;
    if (mdp_stage_is_finished(stage))
        mdp_log_message(stage->resume->log, MDP_LEVEL_INFO, "%-8s is done already", forward->phase);
    else
        mdp_log_message(stage->resume->log, MDP_LEVEL_INFO,
                        "%-8s goes on after layer %lld of %lld in batch %lld of %lld", forward->phase,
                        (long long)stage->at.layer, (long long)forward->model->n_layer, (long long)stage->at.batch + 1,
                        (long long)stage->partition->n_batch);
}

mdp_status mdp_stage_restore_all(mdp_stage *stage, mdp_engine *engine) {
    const mdp_forward *forward = stage->forward;
    mdp_point point = {0};
    if (!stage->found) return mdp_ok();
    say_where(stage);
    bool inside = stage->at.layer > 0;
    if (inside) MDP_TRY(restore_engine_all(stage, engine));
    mdp_status status = mdp_agree_all(forward->comm, describe(stage, inside ? engine : NULL, true, &point));
    if (status.code == MDP_OK) status = mdp_point_read_all(forward->comm, stage->path, &point);
    mdp_point_clear(&point);
    if (status.code == MDP_OK && forward->restored_all) status = forward->restored_all(forward->context, &stage->at);
    return status;
}

mdp_status mdp_stage_nonfinite_all(const mdp_stage *stage, const mdp_engine *engine, int64_t *n, int64_t *layer) {
    *n = 0;
    *layer = -1;
    if (engine) MDP_TRY(mdp_engine_nonfinite_all(engine, n, layer));
    if (stage->nonfinite[0] == 0) return mdp_ok();
    *n += stage->nonfinite[0];
    if (*layer < 0 || stage->nonfinite[1] < *layer) *layer = stage->nonfinite[1];
    return mdp_ok();
}

/* ---- saving and stopping --------------------------------------------------------------------------------------- */

static mdp_status write_point_all(const mdp_stage *stage, const mdp_engine *engine) {
    const mdp_comm *comm = stage->forward->comm;
    const mdp_engine *inside = stage->at.layer > 0 ? engine : NULL;
    mdp_point point = {0};
    char *text = NULL;
    int64_t nonfinite[2];
    MDP_TRY(mdp_stage_nonfinite_all(stage, engine, &nonfinite[0], &nonfinite[1]));
    mdp_status status = describe(stage, inside, false, &point);
    if (status.code == MDP_OK) status = print_text(stage, inside, nonfinite, &text);
    status = mdp_agree_all(comm, status);
    if (status.code == MDP_OK) status = mdp_resume_prepare_all(comm, stage->resume);
    if (status.code == MDP_OK) status = mdp_point_write_all(comm, stage->path, text, &point);
    mdp_point_clear(&point);
    mdp_free(text);
    return status;
}

static mdp_status save_all(const mdp_stage *stage, const mdp_engine *engine) {
    double start = mdp_seconds();
    MDP_TRY(stage->forward->gather_all(stage->forward->context));
    mdp_status status = mdp_resume_check_inputs_all(stage->forward->comm, stage->resume, stage->forward->reader);
    if (status.code == MDP_OK) status = write_point_all(stage, engine);
    mdp_watch_saved(&stage->resume->watch, start);
    stage->resume->saved = stage->resume->saved || status.code == MDP_OK;
    return status;
}

static mdp_status stopped(const mdp_stage *stage) {
    const mdp_forward *forward = stage->forward;
    char batch[60] = "";
    if (stage->partition->n_batch > 1)
        snprintf(batch, sizeof batch, ", batch %lld of %lld", (long long)stage->at.batch + 1,
                 (long long)stage->partition->n_batch);
    if (mdp_stage_is_finished(stage))
        return MDP_ERROR(MDP_STOPPED, "stopped by %s after %s; go on with the same command and --resume.",
                         stage->resume->watch.reason, forward->phase);
    return MDP_ERROR(MDP_STOPPED,
                     "stopped by %s after layer %lld of %lld of %s%s; go on with the same command and --resume.",
                     stage->resume->watch.reason, (long long)stage->at.layer, (long long)forward->model->n_layer,
                     forward->phase, batch);
}

/* The run does not need a point that it takes on the way: without it, it can only not be continued from there. */
static void warn(const mdp_stage *stage, const mdp_status *status) {
    mdp_log_message(stage->resume->log, MDP_LEVEL_WARN, "no resume point was taken: %s", status->text);
}

mdp_status mdp_stage_look_all(mdp_stage *stage, mdp_engine *engine, mdp_position at) {
    mdp_verdict verdict;
    stage->at = at;
    if (!stage->resume) return mdp_ok();
    const mdp_comm *comm = stage->forward->comm;
    MDP_TRY(mdp_watch_look_all(comm, &stage->resume->watch, &verdict));
    if (verdict == MDP_GO_ON && mdp_stage_is_finished(stage)) {
        bool worth = false;
        MDP_TRY(mdp_watch_worth_all(comm, &stage->resume->watch, stage->start, &worth));
        if (worth || stage->was_stopped) verdict = MDP_SAVE;
    }
    if (verdict == MDP_GO_ON) return mdp_ok();
    mdp_status status = save_all(stage, engine);
    if (verdict == MDP_STOP && status.code == MDP_OK) return stopped(stage);
    if (verdict == MDP_STOP || status.code == MDP_BAD_INPUT) return status;
    if (status.code != MDP_OK) warn(stage, &status);
    return mdp_ok();
}
