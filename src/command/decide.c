/* decide.c - one decision for all ranks: see decide.h. */
#include "command/decide.h"
#include "command/categories.h"
#include "command/cutting.h"
#include "command/masking.h"
#include "command/widen.h"

#include <string.h>

const mdp_criterion *mdp_session_criterion(const mdp_session *session) {
    return mdp_criterion_find(mdp_session_option(session, OPTION_METHOD)->text);
}

/* ---- what the options say ------------------------------------------------------------------------------------ */

static mdp_status check_categories(const mdp_session *session, const mdp_criterion *criterion) {
    const char *categories = mdp_session_option(session, OPTION_CATEGORIES)->text;
    bool worst = mdp_session_option(session, OPTION_WORST_CATEGORY)->flag;
    bool weighted = categories && mdp_category_has_weights(categories);
    bool observed = mdp_session_option(session, OPTION_STATS)->present;
    if (worst && (!criterion->needs_stats || criterion->needs_vectors))
        return MDP_ERROR(MDP_USAGE, "--worst-category compares categories, which method '%s' does not tell apart.",
                         criterion->name);
    if (worst && weighted)
        return MDP_ERROR(MDP_USAGE, "--worst-category treats all categories alike; name them without weights.");
    if (criterion->needs_vectors && (weighted || (categories && observed)))
        return MDP_ERROR(MDP_USAGE,
                         "the statistics of method '%s' are kept for all categories together; observe the categories "
                         "that you want with --categories, then plan without it.",
                         criterion->name);
    if (weighted && !criterion->needs_stats)
        return MDP_ERROR(MDP_USAGE, "method '%s' has no use for weights of categories.", criterion->name);
    return mdp_ok();
}

static mdp_status check_own_pass(const mdp_session *session, const mdp_criterion *criterion) {
    if (!criterion->own_pass) return mdp_ok();
    if (mdp_session_option(session, OPTION_BUDGET)->integer != MDP_BUDGET_UNIFORM)
        return MDP_ERROR(MDP_USAGE, "method '%s' must know how many experts each layer keeps; use --budget uniform.",
                         criterion->name);
    if (mdp_session_option(session, OPTION_KEEP_FILE)->present || mdp_session_option(session, OPTION_TOP_K)->present)
        return MDP_ERROR(MDP_USAGE,
                         "method '%s' drops experts itself, by one number for all layers and the experts that each "
                         "token uses now; --keep-file and --top-k do not go with it.",
                         criterion->name);
    if (mdp_session_option(session, OPTION_PROTECT_SUPER_EXPERTS)->flag)
        return MDP_ERROR(MDP_USAGE, "--protect-super-experts does not go with method '%s', which drops experts itself.",
                         criterion->name);
    return mdp_ok();
}

/* What loses least was measured of the model as it is, for whole sets. */
static mdp_status check_subsets(const mdp_session *session, const mdp_criterion *criterion) {
    if (!criterion->needs_subsets) return mdp_ok();
    if (mdp_session_option(session, OPTION_BUDGET)->integer == MDP_BUDGET_GLOBAL)
        return MDP_ERROR(MDP_USAGE,
                         "method '%s' compares sets of one layer, and --budget global ranks all layers "
                         "together; use uniform, trapezoid or --keep-file.",
                         criterion->name);
    if (mdp_session_option(session, OPTION_TOP_K)->present)
        return MDP_ERROR(MDP_USAGE,
                         "method '%s' measures sets with the experts that each token uses now; --top-k does not go "
                         "with it.",
                         criterion->name);
    if (mdp_session_option(session, OPTION_PROTECT_SUPER_EXPERTS)->flag)
        return MDP_ERROR(MDP_USAGE, "--protect-super-experts does not go with method '%s', which chooses whole sets.",
                         criterion->name);
    if (mdp_session_option(session, OPTION_PRUNED_ROUTE)->integer != MDP_ROUTE_SLICE)
        return MDP_ERROR(MDP_USAGE,
                         "method '%s' measures sets that tokens choose among; --pruned-route zero, by which "
                         "they choose as before, does not go with it.",
                         criterion->name);
    return mdp_ok();
}

static mdp_status check_scaling(const mdp_session *session, const mdp_criterion *criterion) {
    mdp_score_normalise how = (mdp_score_normalise)mdp_session_option(session, OPTION_NORMALISE)->integer;
    if (!criterion->is_negative || (how != MDP_LAYER_SUM && how != MDP_LAYER_MAX)) return mdp_ok();
    return MDP_ERROR(MDP_USAGE,
                     "--normalise %s cannot scale the scores of method '%s', which are negative; use layer-z or none.",
                     mdp_score_normalise_names[how], criterion->name);
}

static mdp_status check_merge(const mdp_session *session) {
    if (mdp_session_option(session, OPTION_PRUNED_ROUTE)->integer != MDP_ROUTE_SLICE)
        return MDP_ERROR(MDP_USAGE, "--merge takes experts together; --pruned-route zero, which leaves them where they "
                                    "are, does not go with it.");
    if (mdp_session_option(session, OPTION_ROUNDS)->integer > 1)
        return MDP_ERROR(MDP_USAGE, "--merge makes groups once; --rounds does not go with it.");
    if (mdp_session_option(session, OPTION_PROPAGATE)->integer == PROPAGATE_PRUNED)
        return MDP_ERROR(MDP_USAGE, "--merge makes groups of what the original shows; --propagate pruned does not go "
                                    "with it.");
    if (mdp_session_option(session, OPTION_PROTECT_SUPER_EXPERTS)->flag)
        return MDP_ERROR(MDP_USAGE,
                         "--merge takes experts together by how alike they are; --protect-super-experts does "
                         "not go with it.");
    if (mdp_session_criterion(session)->own_pass)
        return MDP_ERROR(MDP_USAGE, "method '%s' drops experts itself; --merge does not go with it.",
                         mdp_session_criterion(session)->name);
    return mdp_ok();
}

/* What a way to group has no use for, or cannot do. */
static mdp_status check_grouping(const mdp_session *session, const mdp_merge_request *merge) {
    const mdp_criterion *criterion = mdp_session_criterion(session);
    const char *group = mdp_group_method_names[merge->group];
    if (merge->max_group > 0 && merge->group != MDP_GROUP_CENTROID)
        return MDP_ERROR(MDP_USAGE, "--max-group has a meaning with --group centroid; the groups are %s.", group);
    if (merge->linkage != MDP_LINKAGE_AVERAGE && merge->group != MDP_GROUP_HIERARCHICAL)
        return MDP_ERROR(MDP_USAGE, "--linkage has a meaning with --group hierarchical; the groups are %s.", group);
    if (merge->frequency_penalty && mdp_group_wants(merge->group) == MDP_BY_FEATURES)
        return MDP_ERROR(MDP_USAGE, "--frequency-penalty is for distances; --group %s has none.", group);
    if (merge->group == MDP_GROUP_SPECTRAL && mdp_similarities[merge->similarity].is_negative)
        return MDP_ERROR(MDP_USAGE, "--group spectral needs similarities above 0; %s has none.",
                         mdp_similarities[merge->similarity].name);
    if (merge->weights == MDP_MERGE_LEAST_SQUARES && mdp_session_option(session, OPTION_BATCH_TOKENS)->given)
        return MDP_ERROR(MDP_USAGE, "--merge least-squares fits to all tokens at once, so they are one batch; leave "
                                    "--batch-tokens out.");
    if (merge->weights == MDP_MERGE_SALIENCY && criterion->is_negative)
        return MDP_ERROR(MDP_USAGE, "--merge saliency: the scores of method '%s' are negative, and weights cannot be.",
                         criterion->name);
    return mdp_ok();
}

/* Options about groups. */
static const mdp_option_id of_groups[] = {OPTION_GROUP,     OPTION_GROUP_BY,    OPTION_LINKAGE,
                                          OPTION_MAX_GROUP, OPTION_KEEP_WHOLE,  OPTION_FREQUENCY_PENALTY,
                                          OPTION_ALIGN,     OPTION_MERGE_ROUTER};
#define N_OF_GROUPS (sizeof of_groups / sizeof of_groups[0])

/* Nothing is grouped. */
static mdp_status check_dern(const mdp_session *session, const mdp_merge_request *merge) {
    if (merge->alpha >= 1.0)
        return MDP_ERROR(MDP_USAGE, "--dern-alpha %g is a cosine; it must be below 1.", merge->alpha);
    return mdp_session_check_unused(session, of_groups, N_OF_GROUPS, "merge of whole experts (not dern)");
}

mdp_status mdp_session_merge_request(const mdp_session *session, bool *wanted, mdp_merge_request *out) {
    int64_t how = mdp_session_option(session, OPTION_MERGE)->integer;
    *wanted = how > 0;
    *out = (mdp_merge_request){.weights = (mdp_merge_weights)(how - 1),
                               .group = (mdp_group_method)mdp_session_option(session, OPTION_GROUP)->integer,
                               .linkage = (mdp_linkage)mdp_session_option(session, OPTION_LINKAGE)->integer,
                               .max_group = (int32_t)mdp_session_option(session, OPTION_MAX_GROUP)->integer,
                               .keep_whole = mdp_session_option(session, OPTION_KEEP_WHOLE)->real,
                               .frequency_penalty = mdp_session_option(session, OPTION_FREQUENCY_PENALTY)->flag,
                               .similarity = (mdp_similarity_id)mdp_session_option(session, OPTION_GROUP_BY)->integer,
                               .align = mdp_session_option(session, OPTION_ALIGN)->integer ? MDP_ALIGN_WEIGHT
                                                                                           : MDP_ALIGN_NONE,
                               .router = (mdp_merge_router)mdp_session_option(session, OPTION_MERGE_ROUTER)->integer};
    static const mdp_option_id ridge = OPTION_MERGE_RIDGE, alpha = OPTION_DERN_ALPHA;
    if (how != MDP_MERGE_LEAST_SQUARES + 1)
        MDP_TRY(mdp_session_check_unused(session, &ridge, 1, "merge least-squares"));
    if (how != MDP_MERGE_DERN + 1) MDP_TRY(mdp_session_check_unused(session, &alpha, 1, "merge dern"));
    if (!*wanted) return mdp_session_check_unused(session, of_groups, N_OF_GROUPS, "merge");
    out->alpha = mdp_session_option(session, OPTION_DERN_ALPHA)->real;
    MDP_TRY(check_merge(session));
    if (!mdp_merge_has_groups(out)) return check_dern(session, out);
    MDP_TRY(check_grouping(session, out));
    if (out->group == MDP_GROUP_KMEANS || (out->group == MDP_GROUP_HIERARCHICAL && out->linkage == MDP_LINKAGE_WARD)) {
        if (out->similarity == MDP_OUTPUT_MEAN_EUCLIDEAN || out->similarity == MDP_OUTPUT_ROUTED_MEAN_EUCLIDEAN)
            return mdp_ok();
        if (out->group == MDP_GROUP_HIERARCHICAL && out->similarity == MDP_WEIGHT_EUCLIDEAN) return mdp_ok();
        return MDP_ERROR(MDP_USAGE,
                         "--group-by %s: means of vectors are needed here; use output-mean-euclidean or "
                         "output-routed-mean-euclidean.",
                         mdp_similarities[out->similarity].name);
    }
    return mdp_ok();
}

mdp_status mdp_session_will_merge(const mdp_session *session, bool *out) {
    mdp_merge_request merge;
    MDP_TRY(mdp_session_merge_request(session, out, &merge));
    *out = *out && merge.weights != MDP_MERGE_REPRESENTATIVE;
    return mdp_ok();
}

unsigned mdp_session_vectors(const mdp_session *session) {
    unsigned wanted = mdp_session_criterion(session)->needs_vectors ? 1u << MDP_OUTPUT_SUM : 0u;
    bool merges;
    mdp_merge_request merge;
    if (mdp_session_merge_request(session, &merges, &merge).code == MDP_OK && merges && mdp_merge_has_groups(&merge))
        wanted |= mdp_similarity_sources(merge.similarity);
    mdp_cut_request cut;
    if (mdp_session_cut_request(session, &merges, &cut).code == MDP_OK && merges)
        wanted |= mdp_neuron_score_vectors(cut.score);
    return wanted | mdp_channel_norms_vectors(mdp_session_mask_norms(session));
}

mdp_status mdp_session_compare_experts(const mdp_session *session, mdp_stats *stats) {
    bool merges;
    mdp_merge_request merge;
    MDP_TRY(mdp_session_merge_request(session, &merges, &merge));
    return merges && mdp_merge_has_groups(&merge) ? mdp_stats_make_similarity(stats, merge.similarity) : mdp_ok();
}

mdp_status mdp_session_check_method(const mdp_session *session) {
    const mdp_criterion *criterion = mdp_session_criterion(session);
    bool pretrained = mdp_session_option(session, OPTION_PRETRAINED)->present;
    if (mdp_session_option(session, OPTION_SOFT_MASK)->integer != MDP_SOFT_CHOSEN && !criterion->has_soft_mask)
        return MDP_ERROR(MDP_USAGE, "--soft-mask has a meaning only with --method soft; the method is %s.",
                         criterion->name);
    if (pretrained && criterion->tensors != MDP_ROUTER_PAIRS)
        return MDP_ERROR(MDP_USAGE, "--pretrained has no meaning for method '%s'; router-norm-change uses it.",
                         criterion->name);
    if (!pretrained && criterion->tensors == MDP_ROUTER_PAIRS)
        return MDP_ERROR(MDP_USAGE, "method '%s' needs --pretrained PATH, the model before fine-tuning.",
                         criterion->name);
    MDP_TRY(check_scaling(session, criterion));
    MDP_TRY(check_own_pass(session, criterion));
    MDP_TRY(check_subsets(session, criterion));
    bool merges;
    mdp_merge_request merge;
    MDP_TRY(mdp_session_merge_request(session, &merges, &merge));
    mdp_mask_request mask;
    MDP_TRY(mdp_session_mask_request(session, &merges, &mask));
    mdp_cut_request cut;
    MDP_TRY(mdp_session_cut_request(session, &merges, &cut));
    return check_categories(session, criterion);
}

/* ---- what a method measures itself --------------------------------------------------------------------------- */

/* What a decision rests on, beside statistics. */
typedef struct evidence {
    mdp_weights *weights;          /* rank 0 */
    mdp_proficiency **proficiency; /* [layers of the model] */
    double *weight;                /* of categories; rank 0 */
    int64_t n_layer;
} evidence;

static void free_evidence(evidence *found) {
    mdp_weights_destroy(found->weights);
    mdp_proficiencies_destroy(found->proficiency, found->n_layer);
    mdp_free(found->weight);
}

/* The model before fine-tuning. */
typedef struct pretrained {
    mdp_model *model;
    mdp_reader *reader;
} pretrained;

static mdp_status bind(const mdp_catalogue *catalogue, pretrained *other) {
    if (!catalogue) return mdp_ok();
    MDP_TRY(mdp_model_bind(catalogue, &other->model));
    return mdp_reader_new(catalogue, &other->reader);
}

static mdp_status read_routers_all(const mdp_session *session, mdp_weights **out) {
    pretrained other = {NULL, NULL};
    mdp_status status = mdp_agree_all(session->comm, bind(session->pretrained, &other));
    if (status.code == MDP_OK) {
        if (session->comm->rank == 0)
            status = mdp_weights_of_routers(session->model, session->reader, other.model, other.reader, out);
        status = mdp_agree_all(session->comm, status);
    }
    mdp_reader_destroy(other.reader);
    mdp_model_destroy(other.model);
    return status;
}

mdp_status mdp_session_read_routers_all(mdp_session *session) {
    if (mdp_session_criterion(session)->tensors != MDP_ROUTER_PAIRS) return mdp_ok();
    MDP_TRY(read_routers_all(session, &session->routers));
    session->routers_read = true;
    return mdp_ok();
}

static mdp_status measure_all(mdp_session *session, const mdp_criterion *criterion, int32_t keep, evidence *out) {
    mdp_forward_options options = mdp_session_forward_options(session);
    if (criterion->own_pass) {
        out->n_layer = session->model->n_layer;
        return mdp_proficiency_all(session->comm, session->model, session->reader, session->tokens, keep, &options,
                                   &out->proficiency);
    }
    if (criterion->tensors == MDP_EXPERT_TENSORS)
        return mdp_weights_of_experts_all(session->comm, session->model, session->reader, session->n_thread,
                                          &out->weights);
    if (criterion->tensors == MDP_NO_TENSORS) return mdp_ok();
    if (!session->routers_read) return read_routers_all(session, &out->weights);
    out->weights = session->routers;
    session->routers = NULL;
    session->routers_read = false;
    return mdp_ok();
}

/* ---- the decision -------------------------------------------------------------------------------------------- */

mdp_plan_request mdp_session_plan_request(const mdp_session *session, const mdp_stats *stats,
                                          const mdp_budget_options *budget) {
    return (mdp_plan_request){.criterion = mdp_session_criterion(session),
                              .stats = stats,
                              .model = session->model,
                              .tokens = session->tokens,
                              .compute = session->compute,
                              .worst_category = mdp_session_option(session, OPTION_WORST_CATEGORY)->flag,
                              .protect_super_experts = mdp_session_option(session, OPTION_PROTECT_SUPER_EXPERTS)->flag,
                              .soft_mask = (mdp_soft_mask)mdp_session_option(session, OPTION_SOFT_MASK)->integer,
                              .seed = (uint64_t)mdp_session_option(session, OPTION_SEED)->integer,
                              .pruned_route =
                                  (mdp_pruned_route)mdp_session_option(session, OPTION_PRUNED_ROUTE)->integer,
                              .budget = *budget};
}

/* Rank 0. */
static mdp_status decide(const mdp_session *session, const mdp_stats *stats, const mdp_budget_options *budget,
                         mdp_round round, evidence *found, char **text, int64_t *n_byte) {
    const char *categories = mdp_session_option(session, OPTION_CATEGORIES)->text;
    bool merges, masks;
    mdp_merge_request merge;
    mdp_mask_request mask;
    if (stats) MDP_TRY(mdp_category_weights(categories, stats, &found->weight));
    MDP_TRY(mdp_session_merge_request(session, &merges, &merge));
    bool cuts;
    mdp_cut_request cut;
    MDP_TRY(mdp_session_cut_request(session, &cuts, &cut));
    MDP_TRY(mdp_session_mask_request(session, &masks, &mask));
    mdp_plan_request request = mdp_session_plan_request(session, stats, budget);
    request.weights = found->weights;
    request.proficiency = (const mdp_proficiency *const *)found->proficiency;
    request.weight = found->weight;
    request.merge = merges ? &merge : NULL;
    request.mask = masks ? &mask : NULL;
    request.cut = cuts ? &cut : NULL;
    request.n_round = round.n;
    request.previous = round.previous;
    mdp_plan *plan = NULL;
    MDP_TRY(mdp_plan_make(&request, &plan));
    plan->widened = mdp_session_widens(session);
    mdp_status status = mdp_plan_print(plan, text);
    mdp_plan_destroy(plan);
    if (status.code == MDP_OK) *n_byte = (int64_t)strlen(*text);
    return status;
}

/* Rank 0 decides and prints; the text goes to all. */
static mdp_status make_text_all(mdp_session *session, const mdp_stats *stats, const mdp_budget_options *budget,
                                mdp_round round, char **text, int64_t *n_byte) {
    evidence found = {NULL, NULL, NULL, 0};
    mdp_status status = measure_all(session, mdp_session_criterion(session), budget->keep, &found);
    if (status.code == MDP_OK) {
        if (session->comm->rank == 0) status = decide(session, stats, budget, round, &found, text, n_byte);
        status = mdp_agree_all(session->comm, status);
    }
    free_evidence(&found);
    MDP_TRY(status);
    return mdp_bcast_text_all(session->comm, text, n_byte, 0);
}

mdp_status mdp_session_decide_all(mdp_session *session, const mdp_stats *stats, const mdp_budget_options *budget,
                                  mdp_round round, mdp_plan **plan, char **text) {
    mdp_budget_options common = *budget;
    int64_t n_byte = 0;
    *plan = NULL;
    *text = NULL;
    MDP_TRY(mdp_bcast_all(session->comm, &common, (int64_t)sizeof common, 0)); /* only rank 0 may know it */
    mdp_status status = make_text_all(session, stats, &common, round, text, &n_byte);
    if (status.code == MDP_OK)
        status = mdp_agree_all(session->comm, mdp_plan_parse(*text, n_byte, "the plan just made", plan));
    if (status.code == MDP_OK) return status;
    mdp_plan_destroy(*plan);
    mdp_free(*text);
    *plan = NULL;
    *text = NULL;
    return status;
}

void mdp_session_tell_unseen(const mdp_session *session, const mdp_plan *plan) {
    char text[MDP_PLAN_UNSEEN_TEXT];
    if (mdp_plan_describe_unseen(plan, text)) mdp_log_message(session->log, MDP_LEVEL_WARN, "%s", text);
}

/* What multiplied when the statistics of a plan were taken: the bytes of a result depend on nothing else that computes.
 * NULL: the plan rests on no statistics, or does not say. Borrowed. */
static json_t *compute_of(const mdp_plan *plan) {
    return plan ? json_object_get(json_object_get(plan->recipe, "calibration"), "compute") : NULL;
}

mdp_status mdp_session_provenance(const mdp_session *session, const mdp_plan *plan, const char *type, char **out) {
    json_t *root = json_pack("{s:s, s:s, s:s, s:{s:s, s:s}, s:O?, s:O?}", "format", "moe-dist-prune provenance",
                             "version", "1.0", "writer", "moe-dist-prune " MDP_VERSION, "model", "fingerprint",
                             session->catalogue->fingerprint, "model_type", session->model->model_type, "recipe",
                             plan ? plan->recipe : NULL, "compute", compute_of(plan));
    *out = NULL;
    if (!root) return MDP_ERROR(MDP_EXHAUSTED, "out of memory for the provenance of a checkpoint.");
    if (session->mtp_plan) mdp_json_put(&root, "mtp", json_incref(session->mtp_plan->recipe));
    const mdp_option_value *layers = mdp_session_option(session, OPTION_LAYERS);
    if (layers->present) mdp_json_put(&root, "layers", json_string(layers->text));
    if (type) mdp_json_put(&root, "type", json_string(type));
    mdp_status status = mdp_json_print(root, out);
    json_decref(root);
    return status;
}
