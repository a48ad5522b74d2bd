/* merge.c - merged and cut experts, layer after layer: neurons are aligned, matrices made and put into the plan's
 * arrays.
 *
 * Matrices of a layer are dealt to ranks one by one. A resume point is taken between layers: it has the checksums of
 * the arrays of those that are done, which are on storage by then; of a layer that was under way nothing is kept. */
#include "pipeline/merge_run.h"

#include "mdp/pipeline.h"

#include <string.h>

/* Where a merge is, for its resume points. */
typedef struct stage {
    mdp_merge_run *run;
    mdp_resume *resume; /* NULL: there are none */
    char *path;
    int64_t *digests; /* [arrays] as they are saved */
    int64_t done;     /* layers of the plan */
    double start;
    bool was_stopped; /* it goes on from a point */
} stage;

/* ---- a layer ---------------------------------------------------------------------------------------------------- */

static bool is_merged(const mdp_plan_layer *planned) {
    for (int32_t i = 0; i < planned->n_kept; i++)
        if (mdp_merge_makes(&planned->kept[i])) return true;
    return false;
}

static mdp_status list_neurons(const mdp_plan_expert *planned, int64_t **out) {
    MDP_TRY(MDP_ALLOC(out, mdp_plan_neurons(planned, NULL), "neurons of an expert"));
    (void)mdp_plan_neurons(planned, *out);
    return mdp_ok();
}

/* This rank's share of the layer. Local. */
static mdp_status make_own(const mdp_merge_run *run) {
    int64_t member = 0;
    int32_t n = 0;
    for (int32_t i = 0; i < run->planned->n_kept; i++) {
        const mdp_plan_expert *planned = &run->planned->kept[i];
        if (!mdp_merge_makes(planned)) continue;
        if (planned->takes_in) {
            if (n % run->comm->size == run->comm->rank) MDP_TRY(mdp_merge_take_in(run, i));
            member += planned->n_from;
            n++;
            continue;
        }
        mdp_merge_item item = {.run = run,
                               .planned = planned,
                               .to = &run->replaced->experts[mdp_replaced_find(run->replaced, run->planned->layer, i)],
                               .order = mdp_merge_is_aligned(planned) ? run->order + member * run->moe->d_ff : NULL};
        int64_t *neurons = NULL;
        if (planned->action == MDP_NEURONS) MDP_TRY(list_neurons(planned, &neurons));
        if (neurons) item.order = neurons;
        mdp_status status = mdp_ok();
        for (int share = 0; share < MDP_N_SHARE; share++) {
            int64_t turn =
                mdp_merge_turn(n, (mdp_merge_share)share, mdp_merge_heavy_shares(&run->moe->experts[planned->from[0]]));
            if (turn % run->comm->size == run->comm->rank && status.code == MDP_OK)
                status = mdp_merge_make(&item, (mdp_merge_share)share);
        }
        mdp_free(neurons);
        MDP_TRY(status);
        if (planned->action == MDP_MERGE) member += planned->n_from;
        n++;
    }
    return mdp_ok();
}

mdp_status mdp_merge_layer_all(mdp_merge_run *run, const mdp_plan_layer *planned) {
    int64_t first, n;
    if (!is_merged(planned)) return mdp_ok();
    run->planned = planned;
    run->moe = &run->model->layers[planned->layer].moe;
    int64_t n_read = mdp_reader_bytes(run->reader);
    mdp_profile_switch(run->profile, MDP_PHASE_SOLVE);
    mdp_status status = mdp_merge_align_all(run);
    if (status.code == MDP_OK) status = mdp_merge_match_all(run);
    mdp_profile_read(run->profile, mdp_reader_bytes(run->reader) - n_read);
    if (status.code == MDP_OK) {
        n_read = mdp_reader_bytes(run->reader);
        mdp_profile_switch(run->profile, MDP_PHASE_WRITE);
        status = make_own(run);
        mdp_profile_read(run->profile, mdp_reader_bytes(run->reader) - n_read);
        mdp_profile_switch(run->profile, MDP_PHASE_WAIT_RANKS);
        status = mdp_agree_all(run->comm, status);
    }
    mdp_free(run->order);
    mdp_free(run->keys);
    run->order = run->keys = NULL;
    MDP_TRY(status);
    mdp_profile_switch(run->profile, MDP_PHASE_SYNC);
    mdp_replaced_arrays(run->replaced, planned->layer, planned->layer + 1, &first, &n);
    status = mdp_arrays_settle_all(run->comm, run->replaced->arrays, first, n);
    mdp_profile_switch(run->profile, MDP_PHASE_OTHER);
    return status;
}

/* ---- resume points ---------------------------------------------------------------------------------------------- */

static mdp_status describe(const stage *at, mdp_point *point) {
    return mdp_point_add_array(point, "digests", MDP_I64, MDP_NOTED * at->run->replaced->arrays->n, at->digests,
                               at->run->comm->rank == 0);
}

static mdp_status print_text(const stage *at, char **out) {
    json_t *root =
        json_pack("{s:s, s:s, s:I}", "identity", at->resume->digest, "phase", "merge", "layers", (json_int_t)at->done);
    *out = NULL;
    if (!root) return MDP_ERROR(MDP_EXHAUSTED, "out of memory for the text of a resume point.");
    mdp_status status = mdp_json_print(root, out);
    json_decref(root);
    return status;
}

static mdp_status save_all(const stage *at) {
    const mdp_comm *comm = at->run->comm;
    double start = mdp_seconds();
    mdp_point point = {0};
    char *text = NULL;
    MDP_TRY(mdp_resume_check_inputs_all(comm, at->resume, at->run->reader));
    mdp_arrays_note(at->run->replaced->arrays, at->digests);
    mdp_status status = describe(at, &point);
    if (status.code == MDP_OK) status = print_text(at, &text);
    status = mdp_agree_all(comm, status);
    if (status.code == MDP_OK) status = mdp_resume_prepare_all(comm, at->resume);
    if (status.code == MDP_OK) status = mdp_point_write_all(comm, at->path, text, &point);
    mdp_point_clear(&point);
    mdp_free(text);
    mdp_watch_saved(&at->resume->watch, start);
    at->resume->saved = at->resume->saved || status.code == MDP_OK;
    return status;
}

/* The point could not be taken: the run can only not be continued from it. */
static mdp_status bear(const stage *at, mdp_status status) {
    if (status.code == MDP_OK || status.code == MDP_BAD_INPUT) return status;
    mdp_log_message(at->resume->log, MDP_LEVEL_WARN, "no resume point was taken: %s", status.text);
    return mdp_ok();
}

/* After a layer: all that is done can be saved. */
static mdp_status look_all(const stage *at) {
    mdp_verdict verdict;
    if (!at->resume) return mdp_ok();
    MDP_TRY(mdp_watch_look_all(at->run->comm, &at->resume->watch, &verdict));
    if (verdict == MDP_GO_ON) return mdp_ok();
    mdp_status status = save_all(at);
    if (verdict == MDP_SAVE) return bear(at, status);
    MDP_TRY(status);
    return MDP_ERROR(MDP_STOPPED,
                     "stopped by %s after layer %lld of %lld of merge; go on with the same command and --resume.",
                     at->resume->watch.reason, (long long)at->done, (long long)at->run->plan->n_layer);
}

/* All layers are done: what took long is not done again by a run that is stopped later. */
static mdp_status keep_all(const stage *at) {
    bool worth = false;
    if (!at->resume) return mdp_ok();
    MDP_TRY(mdp_watch_worth_all(at->run->comm, &at->resume->watch, at->start, &worth));
    return worth || at->was_stopped ? bear(at, save_all(at)) : mdp_ok();
}

static mdp_status parse_text(stage *at, const char *text) {
    json_t *root = NULL;
    const char *identity = NULL, *phase = NULL;
    MDP_TRY(mdp_json_parse(text, (int64_t)strlen(text), at->path, &root));
    mdp_status status = mdp_json_text(root, "identity", at->path, &identity);
    if (status.code == MDP_OK) status = mdp_json_text(root, "phase", at->path, &phase);
    if (status.code == MDP_OK) status = mdp_json_int(root, "layers", at->path, &at->done);
    if (status.code == MDP_OK && (strcmp(identity, at->resume->digest) != 0 || strcmp(phase, "merge") != 0 ||
                                  at->done < 0 || at->done > at->run->plan->n_layer))
        status = MDP_ERROR(MDP_BAD_INPUT,
                           "%s: this resume point is not of this command; remove it, or start again with --overwrite.",
                           at->path);
    json_decref(root);
    return status;
}

/* What was written then is still there. Local. */
static mdp_status compare(const stage *at, int64_t n) {
    for (int64_t i = 0; i < n; i++) MDP_TRY(mdp_arrays_compare_noted(at->run->replaced->arrays, i, at->digests));
    return mdp_ok();
}

static mdp_status restore_all(stage *at) {
    const mdp_comm *comm = at->run->comm;
    mdp_arrays *arrays = at->run->replaced->arrays;
    mdp_point point = {0};
    int64_t first, n;
    mdp_status status =
        mdp_agree_all(comm, mdp_point_add_array(&point, "digests", MDP_I64, MDP_NOTED * arrays->n, at->digests, true));
    if (status.code == MDP_OK) status = mdp_point_read_all(comm, at->path, &point);
    mdp_point_clear(&point);
    MDP_TRY(status);
    int64_t end = at->done < at->run->plan->n_layer ? at->run->plan->layers[at->done].layer : at->run->model->n_layer;
    mdp_replaced_arrays(at->run->replaced, 0, end, &first, &n);
    MDP_TRY(mdp_arrays_settle_all(comm, arrays, first, n));
    return mdp_agree_all(comm, compare(at, first + n));
}

static mdp_status open_stage_all(stage *at) {
    const mdp_comm *comm = at->run->comm;
    char *text = NULL;
    if (!at->resume) return mdp_ok();
    mdp_watch_begin_phase(&at->resume->watch, 0);
    mdp_status status = mdp_resume_next_point(at->resume, &at->path);
    at->resume->n_pass++;
    if (status.code == MDP_OK)
        status = MDP_ALLOC(&at->digests, MDP_NOTED * at->run->replaced->arrays->n, "a resume point");
    MDP_AGREE(comm, status);
    if (!at->resume->continues) return mdp_ok();
    MDP_TRY(mdp_point_read_text_all(comm, at->path, &text));
    if (!text) return mdp_ok();
    status = mdp_agree_all(comm, parse_text(at, text));
    mdp_free(text);
    at->was_stopped = status.code == MDP_OK;
    return status.code == MDP_OK ? restore_all(at) : status;
}

/* ---- the whole -------------------------------------------------------------------------------------------------- */

static mdp_status make_all(stage *at, mdp_progress *progress) {
    const mdp_plan *plan = at->run->plan;
    bool any = at->done < plan->n_layer; /* layers are to be made: by a run that goes on, perhaps none */
    mdp_progress_go_on(progress, at->done, (double)at->done);
    while (at->done < plan->n_layer) {
        MDP_TRY(mdp_merge_layer_all(at->run, &plan->layers[at->done]));
        at->done++;
        mdp_progress_update(progress, at->done, (double)at->done);
        if (at->done < plan->n_layer) MDP_TRY(look_all(at));
    }
    if (any) MDP_TRY(keep_all(at));
    return mdp_resume_check_inputs_all(at->run->comm, at->resume, at->run->reader);
}

mdp_status mdp_merge_all(const mdp_comm *comm, const mdp_model *model, mdp_reader *reader, const mdp_plan *plan,
                         mdp_replaced *replaced, const mdp_merge_options *options) {
    mdp_merge_run run = {
        .comm = comm, .model = model, .reader = reader, .plan = plan, .replaced = replaced, .options = options};
    stage at = {.run = &run, .resume = options->resume, .start = mdp_seconds()};
    mdp_progress *progress = NULL;
    mdp_profile profile;
    mdp_profile_begin(&profile);
    run.profile = options->profiles ? &profile : NULL;
    mdp_status status = open_stage_all(&at);
    if (status.code == MDP_OK)
        status = mdp_agree_all(comm, mdp_progress_new(&progress, options->progress ? options->log : NULL, "merge",
                                                      "layer", plan->n_layer, "layers"));
    if (status.code == MDP_OK) status = make_all(&at, progress);
    mdp_progress_destroy(progress);
    if (status.code == MDP_OK && options->profiles)
        status = mdp_profile_tell_all(comm, &profile, "merge", options->log, options->profiles);
    mdp_free(at.path);
    mdp_free(at.digests);
    return status;
}
