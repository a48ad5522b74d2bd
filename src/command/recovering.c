/* recovering.c - training for the command recover: see recovering.h. */
#include "command/recovering.h"
#include "command/made.h"
#include "command/merging.h"
#include "command/outputs.h"

#include <stdlib.h>
#include <string.h>

/* ---- options --------------------------------------------------------------------------------------------------- */

enum { TRAIN_ROUTER, TRAIN_EXPERTS, TRAIN_MOE };
const char *const mdp_train_names[] = {
    [TRAIN_ROUTER] = "router", [TRAIN_EXPERTS] = "experts", [TRAIN_MOE] = "moe", NULL};

/* A number from 0 to `most`; 0 where `may_be_zero`. */
static mdp_status parse(const mdp_session *session, mdp_option_id id, bool may_be_zero, double most, double *out) {
    const char *text = mdp_session_option(session, id)->text;
    *out = 0.0;
    if (may_be_zero && strcmp(text, "0") == 0) return mdp_ok();
    if (mdp_parse_positive(text, text + strlen(text), out) && *out <= most) return mdp_ok();
    return MDP_ERROR(MDP_USAGE, "--%s %s: expected %sa positive number of %g at most.", mdp_option_table[id].name, text,
                     may_be_zero ? "0, or " : "", most);
}

static mdp_status parse_training(const mdp_session *session, mdp_train_options *out) {
    int64_t what = mdp_session_option(session, OPTION_TRAIN)->integer;
    *out = (mdp_train_options){.router = what != TRAIN_EXPERTS,
                               .experts = what != TRAIN_ROUTER,
                               .epochs = (int)mdp_session_option(session, OPTION_EPOCHS)->integer,
                               .batch_tokens = mdp_session_option(session, OPTION_STEP_TOKENS)->integer,
                               .schedule = (mdp_schedule)mdp_session_option(session, OPTION_SCHEDULE)->integer,
                               .seed = (uint64_t)mdp_session_option(session, OPTION_SEED)->integer};
    MDP_TRY(parse(session, OPTION_LR, false, 1.0, &out->rate));
    MDP_TRY(parse(session, OPTION_WARMUP, true, 1.0, &out->warmup));
    MDP_TRY(parse(session, OPTION_WEIGHT_DECAY, true, 1.0, &out->decay));
    return parse(session, OPTION_CLIP, true, 1e6, &out->clip);
}

mdp_status mdp_session_recovery(const mdp_session *session, mdp_recovery *out) {
    *out = (mdp_recovery){0};
    MDP_TRY(parse_training(session, &out->train));
    MDP_TRY(mdp_session_refit_target(session, &out->refit));
    out->refit.train = &out->train;
    return mdp_ok();
}

/* Is there a layer whose router can learn? A single expert that is weighed by itself gives it no gradient. */
static bool router_learns(const mdp_session *session, const mdp_plan *plan) {
    for (int64_t i = 0; i < plan->n_layer; i++) {
        const mdp_moe *moe = &session->model->layers[plan->layers[i].layer].moe;
        if (!mdp_route_is_constant(&moe->rule, plan->layers[i].top_k > 0 ? plan->layers[i].top_k : moe->top_k))
            return true;
    }
    return false;
}

/* Weights are trained in the shapes and places that the model has. */
static mdp_status check_experts(const mdp_plan *plan, const char *name) {
    for (int64_t i = 0; i < plan->n_layer; i++)
        for (int32_t j = 0; j < plan->layers[i].n_kept; j++) {
            mdp_action action = plan->layers[i].kept[j].action;
            if (action == MDP_MASK || action == MDP_NEURONS)
                return MDP_ERROR(MDP_USAGE,
                                 "%s: expert %d of layer %lld is %s, and such experts cannot be trained; train what "
                                 "apply makes of the plan, as a model of its own.",
                                 name, (int)plan->layers[i].kept[j].from[0], (long long)plan->layers[i].layer,
                                 action == MDP_MASK ? "masked" : "cut");
        }
    return mdp_ok();
}

mdp_status mdp_session_check_recovery(const mdp_session *session, const mdp_plan *plan, const mdp_recovery *recovery) {
    const char *name = plan->path ? plan->path : "the plan";
    if (mdp_plan_is_unmerged(plan))
        return MDP_ERROR(MDP_USAGE, "%s: its merged experts are not made yet; give it to merge first.", name);
    MDP_TRY(check_experts(plan, name));
    if (!recovery->train.router) return mdp_ok();
    for (int64_t i = 0; i < plan->n_layer; i++)
        if (session->model->layers[plan->layers[i].layer].moe.rule.weigh_input)
            return MDP_ERROR(MDP_USAGE,
                             "routers of %s weigh what experts read, and there is no way back through that; give "
                             "--train experts.",
                             session->model->model_type);
    if (recovery->train.experts || router_learns(session, plan)) return mdp_ok();
    return MDP_ERROR(
        MDP_USAGE, "--train router: each token uses one expert, whose weight is divided by itself, so routers have no "
                   "gradient; give --train experts.");
}

/* ---- the plan -------------------------------------------------------------------------------------------------- */

static json_t *print_layer(const mdp_refit_layer *layer) {
    json_t *rows = json_array();
    for (int32_t e = 0; e < layer->n_expert; e++) mdp_json_add(&rows, json_integer(layer->rows[e]));
    json_t *item = json_pack("{s:I, s:o, s:I}", "layer", (json_int_t)layer->layer, "rows", rows, "trained",
                             (json_int_t)layer->order);
    if (layer->order == 0) return item;
    mdp_json_put(&item, "error_before", mdp_refit_print_errors(&layer->before));
    mdp_json_put(&item, "error_after", mdp_refit_print_errors(&layer->after));
    return item;
}

static json_t *print_recipe(const mdp_session *session, const void *context, const mdp_refit *refit,
                            const json_t *earlier) {
    const mdp_recovery *recovery = context;
    const mdp_train_options *train = &recovery->train;
    const mdp_refit_options *options = &recovery->refit;
    json_t *layers = json_array();
    for (int64_t i = 0; i < refit->n_layer; i++) mdp_json_add(&layers, print_layer(&refit->layers[i]));
    json_t *root =
        json_pack("{s:s, s:s, s:s, s:s, s:f, s:i, s:I, s:f, s:f, s:s, s:f, s:f, s:s, s:I, s:s, s:s, s:o}", "loss",
                  "layer", "trained", mdp_train_names[mdp_session_option(session, OPTION_TRAIN)->integer], "target",
                  options->target == MDP_REFIT_RESIDUAL ? "residual" : "output", "inputs",
                  options->original_inputs ? "original" : "pruned", "holdout", options->holdout, "epochs",
                  train->epochs, "step_tokens", (json_int_t)train->batch_tokens, "lr", train->rate, "warmup",
                  train->warmup, "schedule", mdp_schedule_names[train->schedule], "weight_decay", train->decay, "clip",
                  train->clip, "tokens", session->tokens->fingerprint, "seed", (json_int_t)train->seed, "compute",
                  session->compute, "reproducible", "any-layout", "layers", layers);
    if (session->resume) mdp_json_put(&root, "identity", json_string(session->resume->digest));
    if (earlier) mdp_json_put(&root, "earlier", json_deep_copy(earlier));
    return root;
}

/* ---- what it came to ------------------------------------------------------------------------------------------- */

/* Rank 0. */
static void tell(const mdp_session *session, const mdp_refit *refit) {
    double before[2] = {0.0}, after[2] = {0.0};
    int64_t n = 0, n_held = 0;
    for (int64_t i = 0; i < refit->n_layer; i++) {
        const mdp_refit_layer *layer = &refit->layers[i];
        if (layer->order == 0) continue;
        n++;
        before[0] += layer->before.fitted;
        after[0] += layer->after.fitted;
        if (layer->before.held_out < 0.0) continue;
        n_held++;
        before[1] += layer->before.held_out;
        after[1] += layer->after.held_out;
    }
    if (n == 0) {
        mdp_log_message(session->log, MDP_LEVEL_WARN, "recover: nothing was trained: the plan changes nothing");
        return;
    }
    mdp_log_message(session->log, MDP_LEVEL_INFO,
                    "recover  %lld layers: a mean of %.3f of their output was lost, %.3f is now", (long long)n,
                    before[0] / (double)n, after[0] / (double)n);
    if (n_held == 0) return;
    mdp_log_message(session->log, MDP_LEVEL_INFO, "recover  text that was held out: %.3f, and %.3f now",
                    before[1] / (double)n_held, after[1] / (double)n_held);
    if (after[1] * before[0] > MDP_OVERFITTED * after[0] * before[1])
        mdp_log_message(session->log, MDP_LEVEL_WARN,
                        "recover: text that was held out gains less than text that was trained on; more text, fewer "
                        "--epochs or a smaller --lr would help");
}

/* ---- the training ---------------------------------------------------------------------------------------------- */

mdp_status mdp_session_recover_all(mdp_session *session, const mdp_plan *plan, const mdp_recovery *recovery,
                                   const char *published, char **text) {
    static const mdp_fit_words words = {
        .key = "recover", .what = "the plan that is trained", .recipe = print_recipe, .tell = tell};
    return mdp_session_fit_all(session, plan, &recovery->refit, &words, recovery, published, text);
}
