/* candidates.c - the plans of a frontier: see candidates.h.
 *
 * Rank 0 makes a plan at a time; its text goes to all, who make the view of it, so that every rank measures the same
 * bytes. Plans are told apart by which experts they keep. */
#include "command/candidates.h"
#include "command/feasible.h"
#include "command/recipes.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define MAX_RATIO 1000

/* ---- --ratios --------------------------------------------------------------------------------------------------- */

static mdp_status refuse_ratios(const char *text) {
    return MDP_ERROR(
        MDP_USAGE,
        "--ratios %s: expected FROM:TO:N, or numbers like 0.25,0.5: shares of the experts to remove, above "
        "0 and below 1, ascending, at most %d.",
        text, MAX_RATIO);
}

static bool is_ratio(double value) {
    return value > 0.0 && value < 1.0;
}

/* FROM:TO:N, at equal distances; rounded to 12 digits, so that 0.1:0.8:8 has 0.3 in it. */
static mdp_status parse_range(const char *text, double *ratios, int *n) {
    double from, to;
    int end = 0;
    if (sscanf(text, "%lf:%lf:%d%n", &from, &to, n, &end) != 3 || text[end] != '\0') return refuse_ratios(text);
    if (!is_ratio(from) || !is_ratio(to) || *n < 2 || *n > MAX_RATIO || !(to > from)) return refuse_ratios(text);
    for (int i = 0; i < *n; i++) ratios[i] = round((from + (to - from) * i / (*n - 1)) * 1e12) / 1e12;
    return mdp_ok();
}

static mdp_status parse_list(const char *text, double *ratios, int *n) {
    for (const char *at = text; at; *n += 1) {
        char *end = NULL;
        double value = strtod(at, &end);
        if (end == at || (*end != '\0' && *end != ',') || !is_ratio(value) || *n == MAX_RATIO)
            return refuse_ratios(text);
        if (*n > 0 && value <= ratios[*n - 1]) return refuse_ratios(text);
        ratios[*n] = value;
        at = *end == ',' ? end + 1 : NULL;
    }
    return mdp_ok();
}

/* ---- --methods -------------------------------------------------------------------------------------------------- */

/* What a recipe stands for, where that is a criterion and a budget alone. */
static mdp_status take_recipe(const mdp_recipe *recipe, mdp_candidate_method *out) {
    json_t *list = NULL;
    MDP_TRY(mdp_json_parse(recipe->options, (int64_t)strlen(recipe->options), recipe->name, &list));
    const char *budget = json_string_value(json_object_get(list, "budget"));
    out->name = recipe->name;
    out->criterion = mdp_criterion_find(json_string_value(json_object_get(list, "method")));
    bool plain = json_object_size(list) == (budget ? 2U : 1U) && out->criterion;
    for (int i = 0; budget && mdp_budget_names[i]; i++) {
        if (strcmp(budget, mdp_budget_names[i]) == 0) out->budget = (mdp_budget)i;
    }
    json_decref(list);
    if (plain) return mdp_ok();
    return MDP_ERROR(MDP_USAGE,
                     "method '%s' makes experts of several, which frontier does not measure; take plan, merge and eval "
                     "for it.",
                     recipe->name);
}

static mdp_status refuse_name(const char *name) {
    const char **names = NULL;
    int n = 0;
    MDP_TRY(mdp_alloc((void **)&names, mdp_n_criterion + mdp_n_recipe, sizeof *names, "names of methods"));
    for (int i = 0; i < mdp_n_criterion; i++) names[n++] = mdp_criteria[i].name;
    for (int i = 0; i < mdp_n_recipe; i++) names[n++] = mdp_recipes[i].name;
    const char *nearest = mdp_nearest(name, names, n);
    mdp_status status =
        nearest ? MDP_ERROR(MDP_USAGE, "unknown method '%s'. Did you mean '%s'? See moe-dist-prune plan --help.", name,
                            nearest)
                : MDP_ERROR(MDP_USAGE, "unknown method '%s'. See moe-dist-prune plan --help.", name);
    mdp_free(names);
    return status;
}

static mdp_status find_method(const char *name, mdp_candidate_method *out) {
    const mdp_criterion *criterion = mdp_criterion_find(name);
    for (int i = 0; !criterion && i < mdp_n_recipe; i++) {
        if (strcmp(mdp_recipes[i].name, name) == 0) return take_recipe(&mdp_recipes[i], out);
    }
    if (!criterion) return refuse_name(name);
    out->name = criterion->name;
    out->criterion = criterion;
    if (criterion->own_pass)
        return MDP_ERROR(MDP_USAGE, "method '%s' runs the model for every ratio by itself; take plan and eval for it.",
                         name);
    if (criterion->tensors == MDP_ROUTER_PAIRS)
        return MDP_ERROR(MDP_USAGE, "method '%s' compares two models; take plan --pretrained and eval for it.", name);
    return mdp_ok();
}

static mdp_status check_method(const mdp_session *session, const mdp_candidates *all,
                               const mdp_candidate_method *method) {
    mdp_score_normalise how = (mdp_score_normalise)mdp_session_option(session, OPTION_NORMALISE)->integer;
    for (int i = 0; i < all->n_method; i++) {
        if (strcmp(all->methods[i].name, method->name) == 0)
            return MDP_ERROR(MDP_USAGE, "--methods names '%s' twice.", method->name);
    }
    if (method->criterion->needs_stats && !mdp_session_option(session, OPTION_STATS)->present)
        return MDP_ERROR(MDP_USAGE, "method '%s' needs --stats FILE, which the command observe writes.", method->name);
    if (method->criterion->is_negative && (how == MDP_LAYER_SUM || how == MDP_LAYER_MAX))
        return MDP_ERROR(MDP_USAGE,
                         "--normalise %s cannot scale the scores of method '%s', which are negative; use layer-z or "
                         "none.",
                         mdp_score_normalise_names[how], method->name);
    return mdp_ok();
}

/* `name` has room for any of the names. */
static mdp_status parse_methods(const mdp_session *session, const char *text, char *name, mdp_candidates *out) {
    const mdp_option_value *budget = mdp_session_option(session, OPTION_BUDGET);
    const char *at = text, *rest, *end;
    while (at) {
        mdp_candidate_method method = {.budget = (mdp_budget)budget->integer};
        mdp_next_name(&at, name, &rest, &end);
        MDP_TRY(find_method(name, &method));
        if (budget->given) method.budget = (mdp_budget)budget->integer;
        MDP_TRY(check_method(session, out, &method));
        out->methods[out->n_method++] = method;
        out->needs_stats = out->needs_stats || method.criterion->needs_stats;
        if (method.criterion->needs_vectors) out->vectors |= 1u << MDP_OUTPUT_SUM;
    }
    return mdp_ok();
}

mdp_status mdp_session_parse_candidates(const mdp_session *session, mdp_candidates *out) {
    const char *methods = mdp_session_option(session, OPTION_METHODS)->text;
    const char *ratios = mdp_session_option(session, OPTION_RATIOS)->text;
    char *name = NULL;
    MDP_TRY(MDP_ALLOC(&out->ratios, MAX_RATIO, "ratios"));
    MDP_TRY(strchr(ratios, ':') ? parse_range(ratios, out->ratios, &out->n_ratio)
                                : parse_list(ratios, out->ratios, &out->n_ratio));
    MDP_TRY(MDP_ALLOC(&out->methods, (mdp_count_t)strlen(methods) + 1, "methods"));
    MDP_TRY(MDP_ALLOC(&name, (mdp_count_t)strlen(methods) + 1, "the name of a method"));
    mdp_status status = parse_methods(session, methods, name, out);
    mdp_free(name);
    return status;
}

void mdp_candidates_free(mdp_candidates *candidates) {
    mdp_free(candidates->methods);
    mdp_free(candidates->ratios);
}

void mdp_candidate_plans_free(mdp_candidate_plans *plans) {
    for (int i = 0; plans->views && i < plans->n; i++) mdp_view_destroy(plans->views[i]);
    mdp_free(plans->views);
    mdp_free(plans->point);
}

/* ---- plans, by rank 0 ------------------------------------------------------------------------------------------- */

/* What plans are made from. */
typedef struct making {
    mdp_session *session;
    const mdp_stats *stats;
    mdp_weights *experts, *routers; /* NULL: nobody wants them */
    mdp_census census;
    bool dry;
} making;

static mdp_budget_options budget_of(const making *with, mdp_budget budget, double ratio) {
    const mdp_session *session = with->session;
    mdp_budget_options options = {.budget = budget,
                                  .min_keep = (int32_t)mdp_session_option(session, OPTION_MIN_KEEP)->integer,
                                  .multiple_of = (int32_t)mdp_session_option(session, OPTION_KEEP_MULTIPLE_OF)->integer,
                                  .n_group = with->census.n_group,
                                  .n_open = with->census.n_open};
    if (budget == MDP_BUDGET_GLOBAL)
        options.normalise = (mdp_score_normalise)mdp_session_option(session, OPTION_NORMALISE)->integer;
    if (budget == MDP_BUDGET_UNIFORM) options.min_keep = 0;
    options.keep = mdp_census_keep(&with->census, ratio, true, &options);
    return options;
}

/* What can be said of a ratio before there is a plan. MDP_USAGE. */
static mdp_status check_ratio(const making *with, const mdp_budget_options *budget) {
    const mdp_census *census = &with->census;
    mdp_budget_layer *layers = NULL;
    if (budget->keep < census->top_k)
        return MDP_ERROR(MDP_USAGE, "keeps %d of %d experts, fewer than the %d that each token uses", (int)budget->keep,
                         (int)census->largest, (int)census->top_k);
    if (budget->min_keep > budget->keep)
        return MDP_ERROR(MDP_USAGE, "keeps %d experts on average, fewer than --min-keep %d", (int)budget->keep,
                         (int)budget->min_keep);
    MDP_TRY(mdp_session_list_layers(with->session->model, NULL, census->n_layer, &layers));
    mdp_status status = mdp_budget_check(layers, census->n_layer, budget);
    mdp_free(layers);
    return status;
}

static mdp_status make_plan(const making *with, const mdp_criterion *criterion, const mdp_budget_options *budget,
                            mdp_plan **plan) {
    bool reads = criterion->tensors != MDP_NO_TENSORS;
    mdp_plan_request request = {.criterion = reads && with->dry ? mdp_criterion_find("random") : criterion,
                                .stats = with->stats,
                                .model = with->session->model,
                                .weights = criterion->tensors == MDP_EXPERT_TENSORS ? with->experts : with->routers,
                                .compute = with->session->compute,
                                .seed = (uint64_t)mdp_session_option(with->session, OPTION_SEED)->integer,
                                .budget = *budget};
    MDP_TRY(check_ratio(with, budget));
    return mdp_plan_make(&request, plan);
}

/* The text of a point's plan; or (NULL) why there is none, in the point. */
static mdp_status make_point(const making *with, const mdp_criterion *criterion, mdp_frontier_point *point,
                             char **text) {
    mdp_budget_options budget = budget_of(with, point->budget, point->ratio);
    mdp_plan *plan = NULL;
    *text = NULL;
    mdp_status status = make_plan(with, criterion, &budget, &plan);
    if (status.code == MDP_USAGE) return mdp_copy_text(&point->refused, status.text);
    if (status.code == MDP_OK) status = mdp_plan_print(plan, text);
    mdp_plan_destroy(plan);
    return status;
}

/* ---- all ranks -------------------------------------------------------------------------------------------------- */

/* Which experts stay where. */
static mdp_status digest_plan(const mdp_plan *plan, mdp_digest *out) {
    mdp_hash *hash = NULL;
    MDP_TRY(mdp_hash_new(&hash));
    for (int64_t i = 0; i < plan->n_layer; i++) {
        const mdp_plan_layer *layer = &plan->layers[i];
        mdp_hash_update(hash, &layer->n_kept, (int64_t)sizeof layer->n_kept);
        for (int32_t j = 0; j < layer->n_kept; j++)
            mdp_hash_update(hash, &layer->kept[j].from[0], (int64_t)sizeof layer->kept[j].from[0]);
    }
    *out = mdp_hash_digest(hash);
    mdp_hash_destroy(hash);
    return mdp_ok();
}

static bool keeps_all(const mdp_plan *plan) {
    for (int64_t i = 0; i < plan->n_layer; i++)
        if (plan->layers[i].n_dropped > 0) return false;
    return true;
}

/* Points while they are made. */
typedef struct points {
    mdp_frontier *frontier;
    mdp_candidate_plans *plans;
    mdp_digest *digests; /* [plans->n] */
} points;

/* Point number `at` gets its size; a plan that is new, its view. Local; every rank does the same. */
static mdp_status take_plan(const mdp_model *model, const mdp_plan *plan, int at, points *all) {
    mdp_frontier_point *point = &all->frontier->points[at];
    mdp_candidate_plans *plans = all->plans;
    MDP_TRY(digest_plan(plan, &all->digests[plans->n]));
    point->same_as = keeps_all(plan) ? 0 : -1;
    for (int i = 0; i < plans->n && point->same_as < 0; i++)
        if (strcmp(all->digests[i].hex, all->digests[plans->n].hex) == 0) point->same_as = plans->point[i];
    if (point->same_as >= 0) {
        point->size = all->frontier->points[point->same_as].size;
        return mdp_ok();
    }
    MDP_TRY(mdp_frontier_size_of(model, plan, &point->size));
    MDP_TRY(mdp_transform_view(model, plan, NULL, &plans->views[plans->n]));
    plans->point[plans->n++] = at;
    return mdp_ok();
}

static mdp_status take_text(const mdp_session *session, const char *text, int64_t n_byte, int at, points *all) {
    mdp_plan *plan = NULL;
    MDP_TRY(mdp_plan_parse(text, n_byte, "the plan just made", &plan));
    mdp_status status = mdp_plan_check(plan, session->model);
    if (status.code == MDP_OK) status = take_plan(session->model, plan, at, all);
    mdp_plan_destroy(plan);
    return status;
}

static mdp_status add_point_all(const making *with, const mdp_criterion *criterion, int at, points *all) {
    const mdp_comm *comm = with->session->comm;
    mdp_frontier_point *point = &all->frontier->points[at];
    char *text = NULL;
    mdp_status status = mdp_ok();
    if (comm->rank == 0) status = make_point(with, criterion, point, &text);
    MDP_AGREE(comm, status);
    int64_t refused = point->refused != NULL, n_byte = 0;
    MDP_TRY(mdp_bcast_all(comm, &refused, (int64_t)sizeof refused, 0));
    char **sent = refused ? &point->refused : &text;
    if (comm->rank == 0) n_byte = (int64_t)strlen(*sent);
    MDP_TRY(mdp_bcast_text_all(comm, sent, &n_byte, 0));
    if (refused) return mdp_ok();
    status = mdp_agree_all(comm, take_text(with->session, text, n_byte, at, all));
    mdp_free(text);
    return status;
}

static mdp_status read_weights_all(const mdp_candidates *candidates, making *with) {
    mdp_session *session = with->session;
    bool experts = false, routers = false;
    for (int m = 0; m < candidates->n_method && !with->dry; m++) {
        experts = experts || candidates->methods[m].criterion->tensors == MDP_EXPERT_TENSORS;
        routers = routers || candidates->methods[m].criterion->tensors == MDP_ROUTER_TENSORS;
    }
    if (experts)
        MDP_TRY(mdp_weights_of_experts_all(session->comm, session->model, session->reader, session->n_thread,
                                           &with->experts));
    if (!routers) return mdp_ok();
    mdp_status status = mdp_ok();
    if (session->comm->rank == 0)
        status = mdp_weights_of_routers(session->model, session->reader, NULL, NULL, &with->routers);
    return mdp_agree_all(session->comm, status);
}

static mdp_status allocate(int n_point, points *all) {
    MDP_TRY(MDP_ALLOC(&all->frontier->points, n_point, "points of a frontier"));
    MDP_TRY(MDP_ALLOC(&all->plans->point, n_point, "points of a frontier"));
    MDP_TRY(mdp_alloc((void **)&all->plans->views, n_point, sizeof(void *), "points of a frontier"));
    MDP_TRY(MDP_ALLOC(&all->digests, n_point, "points of a frontier"));
    all->frontier->points[0].same_as = -1;
    all->frontier->n = 1;
    return mdp_frontier_size_of(all->frontier->model, NULL, &all->frontier->points[0].size);
}

static mdp_status add_points_all(const mdp_candidates *candidates, const making *with, points *all) {
    for (int m = 0; m < candidates->n_method; m++) {
        for (int r = 0; r < candidates->n_ratio; r++) {
            const mdp_candidate_method *method = &candidates->methods[m];
            int at = all->frontier->n++;
            mdp_budget_options budget = budget_of(with, method->budget, candidates->ratios[r]);
            all->frontier->points[at] = (mdp_frontier_point){.method = method->name,
                                                             .budget = method->budget,
                                                             .ratio = candidates->ratios[r],
                                                             .keep = budget.keep,
                                                             .same_as = -1};
            MDP_TRY(add_point_all(with, method->criterion, at, all));
        }
    }
    return mdp_ok();
}

static mdp_status check_census(const mdp_census *census) {
    if (census->n_layer == 0)
        return MDP_ERROR(MDP_BAD_INPUT, "the model has no layer with experts; nothing can be pruned.");
    if (census->smallest == census->largest) return mdp_ok();
    return MDP_ERROR(MDP_USAGE,
                     "--ratios have no one meaning for layers with %d to %d experts; plan with --keep or --keep-file, "
                     "and compare the plans with eval.",
                     (int)census->smallest, (int)census->largest);
}

mdp_status mdp_session_make_candidates_all(mdp_session *session, const mdp_candidates *candidates,
                                           const mdp_stats *stats, mdp_frontier *frontier, mdp_candidate_plans *plans) {
    points all = {.frontier = frontier, .plans = plans};
    making with = {.session = session,
                   .stats = stats,
                   .census = mdp_census_of_model(session->model),
                   .dry = mdp_session_option(session, OPTION_DRY_RUN)->flag};
    int n_point = 1 + candidates->n_method * candidates->n_ratio;
    mdp_status status = check_census(&with.census);
    if (status.code == MDP_OK) status = allocate(n_point, &all);
    status = mdp_agree_all(session->comm, status);
    if (status.code == MDP_OK) status = read_weights_all(candidates, &with);
    if (status.code == MDP_OK) status = add_points_all(candidates, &with, &all);
    mdp_weights_destroy(with.experts);
    mdp_weights_destroy(with.routers);
    mdp_free(all.digests);
    return status;
}
