/* cutting.c - neurons that go, for commands: see cutting.h. */
#include "command/cutting.h"
#include "command/categories.h"
#include "command/decide.h"

#include <stdlib.h>
#include <string.h>

/* ---- options ---------------------------------------------------------------------------------------------------- */

/* "N" from 2 on, or a part: above 0, at most 1. */
static mdp_status parse_keep(const char *text, mdp_cut_request *out) {
    char *end = NULL;
    double value = strtod(text, &end);
    if (end == text || *end != '\0' || !(value > 0.0) || value > (double)(1 << 24))
        return MDP_ERROR(MDP_USAGE,
                         "--keep-neurons '%s' is neither a number of neurons nor a part of them (above 0, "
                         "at most 1).",
                         text);
    if (value <= 1.0)
        out->ratio = value;
    else
        out->keep = (int64_t)value;
    if (out->keep == 0 || (double)out->keep == value) return mdp_ok();
    return MDP_ERROR(MDP_USAGE, "--keep-neurons '%s' is above 1, so it is a number of neurons, which is whole.", text);
}

static mdp_status check_others(const mdp_session *session) {
    const char *categories = mdp_session_option(session, OPTION_CATEGORIES)->text;
    if (mdp_session_option(session, OPTION_MERGE)->integer > 0)
        return MDP_ERROR(MDP_USAGE, "--neurons cuts experts of the model, not merged ones; --merge does not go with "
                                    "it.");
    if (mdp_session_option(session, OPTION_PRUNED_ROUTE)->integer != MDP_ROUTE_SLICE)
        return MDP_ERROR(MDP_USAGE, "--neurons cuts all experts to one width; --pruned-route zero, which leaves those "
                                    "that go in their place, does not go with it.");
    if (mdp_session_option(session, OPTION_ROUNDS)->integer > 1)
        return MDP_ERROR(MDP_USAGE, "--neurons cuts by what the original shows; --rounds does not go with it.");
    if (mdp_session_option(session, OPTION_PROPAGATE)->integer == PROPAGATE_PRUNED)
        return MDP_ERROR(MDP_USAGE, "--neurons cuts by what the original shows; --propagate pruned does not go with "
                                    "it.");
    if (mdp_session_option(session, OPTION_MTP)->integer == MTP_PRUNE)
        return MDP_ERROR(MDP_USAGE, "--neurons cuts experts that tokens have been through; --mtp prune, which keeps "
                                    "layers that none went through, does not go with it.");
    if (categories && (mdp_category_has_weights(categories) || mdp_session_option(session, OPTION_STATS)->present))
        return MDP_ERROR(MDP_USAGE, "sums for neurons are kept for all categories together; observe the categories "
                                    "that you want with --categories and --neuron-scores, then plan without it.");
    if (session->options->bit == COMMAND_PLAN && !mdp_session_option(session, OPTION_STATS)->present)
        return MDP_ERROR(MDP_USAGE, "--neurons chooses by sums for neurons; it needs --stats FILE, observed with "
                                    "--neuron-scores.");
    return mdp_ok();
}

mdp_status mdp_session_cut_request(const mdp_session *session, bool *wanted, mdp_cut_request *out) {
    static const mdp_option_id only[] = {OPTION_KEEP_NEURONS, OPTION_WIDTH_MULTIPLE_OF};
    const mdp_option_value *keep = mdp_session_option(session, OPTION_KEEP_NEURONS);
    int64_t how = mdp_session_option(session, OPTION_NEURONS)->integer;
    *wanted = how > 0;
    *out = (mdp_cut_request){.score = (mdp_neuron_score)(how - 1),
                             .multiple_of = mdp_session_option(session, OPTION_WIDTH_MULTIPLE_OF)->integer};
    if (!(session->options->bit & (COMMAND_RUN | COMMAND_PLAN))) {
        *wanted = false;
        return mdp_ok();
    }
    if (!*wanted) return mdp_session_check_unused(session, only, sizeof only / sizeof only[0], "neurons");
    if (!keep->present)
        return MDP_ERROR(MDP_USAGE, "--neurons needs --keep-neurons, the number of neurons that each expert keeps or "
                                    "the part of them.");
    MDP_TRY(parse_keep(keep->text, out));
    return check_others(session);
}

/* ---- a model ---------------------------------------------------------------------------------------------------- */

mdp_status mdp_session_cut_width(const mdp_session *session, int64_t *width) {
    bool wanted;
    mdp_cut_request cut;
    int64_t n = 0;
    *width = 0;
    MDP_TRY(mdp_session_cut_request(session, &wanted, &cut));
    for (int64_t l = 0; l < session->model->n_layer; l++) {
        const mdp_layer *layer = &session->model->layers[l];
        if (!layer->is_moe) continue;
        if (n > 0 && layer->moe.d_ff != n)
            return MDP_ERROR(MDP_USAGE,
                             "experts of layer %lld have %lld neurons, others %lld; config.json has one number for all "
                             "layers, so such a model is not cut.",
                             (long long)l, (long long)layer->moe.d_ff, (long long)n);
        n = layer->moe.d_ff;
    }
    if (!wanted || n == 0) return mdp_ok();
    MDP_TRY(mdp_cut_width(&cut, n, width));
    if (*width == n) *width = 0;
    return mdp_ok();
}

static mdp_status cut_all(mdp_plan *plan, int64_t n, int64_t width) {
    unsigned char *marks = NULL;
    mdp_status status = MDP_ALLOC(&marks, n, "neurons of an expert");
    if (status.code == MDP_OK) memset(marks, 1, (size_t)width);
    for (int64_t i = 0; i < plan->n_layer; i++)
        for (int32_t j = 0; j < plan->layers[i].n_kept && status.code == MDP_OK; j++)
            status = mdp_plan_cut_expert(marks, n, &plan->layers[i].kept[j]);
    mdp_free(marks);
    return status;
}

/* Let the plan name what it would have. */
static mdp_status name_arrays(const mdp_replaced *replaced, mdp_plan *plan) {
    static const char digest[33] = "00000000000000000000000000000000";
    for (int64_t i = 0; i < plan->n_layer; i++) {
        for (int32_t j = 0; j < plan->layers[i].n_kept; j++) {
            int64_t at = mdp_replaced_find(replaced, plan->layers[i].layer, j);
            for (int part = 0; at >= 0 && part < MDP_N_EXPERT_PART; part++) {
                const mdp_replaced_expert *expert = &replaced->experts[at];
                if (expert->array[part] < 0 || mdp_replaced_is_shared(expert, (mdp_expert_part)part)) continue;
                MDP_TRY(mdp_plan_add_array(&plan->layers[i].kept[j], mdp_expert_part_names[part],
                                           replaced->list[expert->array[part]].name, digest));
            }
        }
    }
    return mdp_ok();
}

mdp_status mdp_session_pretend_cut(const mdp_session *session, mdp_plan *plan) {
    int64_t width, n = 0;
    MDP_TRY(mdp_session_cut_width(session, &width));
    if (width == 0) return mdp_ok();
    for (int64_t l = 0; l < session->model->n_layer; l++)
        if (session->model->layers[l].is_moe) n = session->model->layers[l].moe.d_ff;
    MDP_TRY(cut_all(plan, n, width));
    mdp_replaced *replaced = NULL;
    MDP_TRY(mdp_replaced_list(session->model, plan, MDP_REPLACED_MERGED, &replaced));
    mdp_status status = name_arrays(replaced, plan);
    mdp_replaced_destroy(replaced);
    return status;
}
