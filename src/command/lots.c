/* lots.c - how many plans are measured together: see lots.h.
 *
 * A lot reads the model once for each batch, and runs the original beside its plans. More streams in one take more
 * memory for each token; when that cuts the text into batches, more lots may read less. Which plans share a forward
 * does not show in any result, so lots may follow from the memory that there is. */
#include "command/lots.h"

#include <stdio.h>
#include <string.h>

#define NODE_PART 0.8 /* of what a node has free when the command begins; the rest may be wanted by others */

int mdp_lots_begin(const mdp_lots *lots, int lot) {
    return (int)((int64_t)lot * lots->n_plan / lots->n);
}

const char *mdp_lots_name(const mdp_lots *lots, int lot, char out[MDP_LOT_NAME]) {
    snprintf(out, MDP_LOT_NAME, "eval %d/%d", lot + 1, lots->n);
    return out;
}

/* ---- what a run that is gone on with began with ---------------------------------------------------------------- */

/* Does the text of a resume point name one of at most n_plan lots? */
static int parse_lots(const char *text, int n_plan) {
    json_t *root = NULL;
    int lot = 0, n = 0, end = 0;
    if (mdp_json_parse(text, (int64_t)strlen(text), "a resume point", &root).code != MDP_OK) return 0;
    const char *phase = json_string_value(json_object_get(root, "phase"));
    bool named = phase && sscanf(phase, "eval %d/%d%n", &lot, &n, &end) == 2 && phase[end] == '\0';
    json_decref(root);
    return named && n >= 1 && n <= n_plan ? n : 0;
}

/* *n: lots; 0: none is on record. Collective. */
static mdp_status find_recorded_all(const mdp_session *session, int n_plan, int *n) {
    *n = 0;
    if (!session->resume || !session->resume->continues) return mdp_ok();
    for (int i = 0; i < n_plan && *n == 0; i++) {
        char name[32], *path = NULL, *text = NULL;
        snprintf(name, sizeof name, "pass-%d.h5", i);
        mdp_status status = mdp_agree_all(session->comm, mdp_resume_path(session->resume, name, &path));
        if (status.code == MDP_OK) status = mdp_point_read_text_all(session->comm, path, &text);
        if (status.code == MDP_OK && text) *n = parse_lots(text, n_plan);
        mdp_free(path);
        mdp_free(text);
        MDP_TRY(status);
    }
    return mdp_ok();
}

/* ---- what there is room for ------------------------------------------------------------------------------------ */

/* The pass of a lot; all [1 + n_plan] is room for its views. */
static mdp_pass pass_of(const mdp_session *session, const mdp_lots *lots, int lot, const mdp_view *const *views,
                        const mdp_view **all) {
    int begin = mdp_lots_begin(lots, lot), n = mdp_lots_begin(lots, lot + 1) - begin;
    all[0] = NULL;
    for (int i = 0; i < n; i++) all[1 + i] = views[begin + i];
    mdp_pass pass = mdp_loss_pass(1 + n, all);
    pass.head_again = mdp_session_option(session, OPTION_OVERLAP)->flag;
    return pass;
}

/* *n_batch: of all lots together; 0: they need more memory than `limit`. Local. */
static mdp_status try_lots(const mdp_session *session, const mdp_lots *lots, const mdp_view *const *views,
                           int64_t limit, const mdp_view **all, int64_t *n_batch) {
    mdp_forward_options options = mdp_session_forward_options(session);
    *n_batch = 0;
    for (int lot = 0; lot < lots->n; lot++) {
        mdp_pass pass = pass_of(session, lots, lot, views, all);
        mdp_forward_cost cost;
        MDP_TRY(mdp_forward_cost_of(session->layout, session->model, session->eval_tokens, &pass, &options, &cost));
        *n_batch += cost.n_batch;
        if (cost.fits && cost.memory <= limit) continue;
        *n_batch = 0;
        return mdp_ok();
    }
    return mdp_ok();
}

/* Where none fits, each plan by itself: what that needs is said when it is foretold. Local. */
static mdp_status choose(const mdp_session *session, const mdp_view *const *views, int64_t limit, mdp_lots *out) {
    int n_plan = out->n_plan, most = 0;
    int64_t best = 0;
    const mdp_view **all = NULL;
    MDP_TRY(mdp_alloc((void **)&all, 1 + n_plan, sizeof(void *), "the streams"));
    mdp_status status = mdp_ok();
    out->n = n_plan;
    for (int n = 1; n <= n_plan && status.code == MDP_OK && (best == 0 || n < best); n++) {
        mdp_lots lots = {n_plan, n};
        int64_t n_batch;
        int largest = (n_plan + n - 1) / n;
        if (largest == most) continue; /* no smaller than the ones before */
        most = largest;
        status = try_lots(session, &lots, views, limit, all, &n_batch);
        if (n_batch == 0 || (best > 0 && n_batch >= best)) continue;
        best = n_batch;
        *out = lots;
    }
    mdp_free(all);
    return status;
}

mdp_status mdp_session_choose_lots_all(const mdp_session *session, int n_plan, const mdp_view *const *views,
                                       mdp_lots *out) {
    int64_t share = mdp_session_node_share(session);
    bool bounded = mdp_session_option(session, OPTION_MEMORY)->present || session->layout != session->comm;
    int64_t limit = bounded || share == INT64_MAX ? INT64_MAX : (int64_t)((double)share * NODE_PART);
    int64_t least = -limit;
    *out = (mdp_lots){n_plan, 0};
    MDP_TRY(mdp_max_i64_all(session->comm, &least, 1));
    MDP_TRY(find_recorded_all(session, n_plan, &out->n));
    if (out->n > 0) return mdp_ok();
    return mdp_agree_all(session->comm, choose(session, views, -least, out));
}

mdp_status mdp_session_add_lots_all(const mdp_session *session, const mdp_lots *lots, const mdp_view *const *views,
                                    mdp_estimate *estimate) {
    const mdp_view **all = NULL;
    char name[MDP_LOT_NAME];
    mdp_status status =
        mdp_agree_all(session->comm, mdp_alloc((void **)&all, 1 + lots->n_plan, sizeof(void *), "the streams"));
    for (int lot = 0; lot < lots->n && status.code == MDP_OK; lot++)
        status = mdp_session_add_pass_all(session, mdp_lots_name(lots, lot, name), session->eval_tokens,
                                          pass_of(session, lots, lot, views, all), estimate);
    mdp_free(all);
    return status;
}
