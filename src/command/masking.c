/* masking.c - masks for commands: see masking.h.
 *
 * Rank 0 has the statistics, so it puts the norms, a few numbers for each row of a matrix; checksums are shared out. */
#include "command/masking.h"
#include "command/categories.h"
#include "command/outputs.h"

#include <string.h>
#include <unistd.h>

/* ---- what the options say ---------------------------------------------------------------------------------------- */

static mdp_status check_alone(const mdp_session *session) {
    static const struct {
        mdp_option_id id;
        const char *why;
    } others[] = {{OPTION_MERGE, "merged experts have other channels than those that were observed"},
                  {OPTION_NEURONS, "cut experts have other channels than those that were observed"},
                  {OPTION_ROUNDS, "masks look at what the original shows"},
                  {OPTION_PROPAGATE, "masks look at what the original shows"},
                  {OPTION_REFIT, "fitted down projections would have no zeros left"}};
    const int64_t without[] = {0, 0, 1, PROPAGATE_ORIGINAL, 0};
    for (size_t i = 0; i < sizeof others / sizeof others[0]; i++) {
        const mdp_option_value *value = mdp_session_option(session, others[i].id);
        bool there = others[i].id == OPTION_REFIT ? value->present : value->integer > without[i];
        if (there)
            return MDP_ERROR(MDP_USAGE, "--mask and --%s do not go together: %s.", mdp_option_table[others[i].id].name,
                             others[i].why);
    }
    return mdp_ok();
}

static mdp_status check_categories(const mdp_session *session) {
    const char *categories = mdp_session_option(session, OPTION_CATEGORIES)->text;
    bool weighted = categories && mdp_category_has_weights(categories);
    if (mdp_session_mask_norms(session) == MDP_NORMS_NONE) return mdp_ok();
    if (!categories || (session->options->bit == COMMAND_RUN && !weighted)) return mdp_ok();
    return MDP_ERROR(MDP_USAGE, "channel norms are kept for all categories together; observe the categories that you "
                                "want with --categories, without weights, then plan without it.");
}

mdp_status mdp_session_mask_request(const mdp_session *session, bool *wanted, mdp_mask_request *out) {
    static const mdp_option_id only[] = {OPTION_SPARSITY, OPTION_NM};
    int64_t how = mdp_session_option(session, OPTION_MASK)->integer;
    const mdp_option_value *sparsity = mdp_session_option(session, OPTION_SPARSITY),
                           *runs = mdp_session_option(session, OPTION_NM);
    *wanted = how > 0;
    *out = (mdp_mask_request){.by = (mdp_mask_by)(how - 1), .rule = {.sparsity = sparsity->real}};
    if (!*wanted) return mdp_session_check_unused(session, only, sizeof only / sizeof only[0], "mask");
    if (!sparsity->present && !runs->present)
        return MDP_ERROR(MDP_USAGE, "--mask %s needs --sparsity R or --nm N:M.", mdp_mask_by_names[out->by]);
    MDP_TRY(check_alone(session));
    MDP_TRY(check_categories(session));
    if (!runs->present) return mdp_mask_rule_check(&out->rule);
    mdp_status status = mdp_mask_rule_parse(runs->text, &out->rule);
    return status.code == MDP_OK ? status : MDP_ERROR(MDP_USAGE, "--nm: %s", status.text);
}

mdp_channel_norms mdp_session_mask_norms(const mdp_session *session) {
    int64_t how = mdp_session_option(session, OPTION_MASK)->integer;
    return how > 0 ? mdp_mask_norms((mdp_mask_by)(how - 1)) : MDP_NORMS_NONE;
}

mdp_status mdp_session_check_mask_widths(const mdp_session *session) {
    mdp_mask_request mask;
    bool wanted;
    MDP_TRY(mdp_session_mask_request(session, &wanted, &mask));
    for (int64_t l = 0; wanted && session->model && l < session->model->n_layer; l++) {
        const mdp_moe *moe = &session->model->layers[l].moe;
        for (mdp_expert_t e = 0; session->model->layers[l].is_moe && e < moe->n_expert; e++) {
            MDP_TRY(mdp_mask_rule_fits(&mask.rule, moe->experts[e].gate.n_col, "hidden states"));
            MDP_TRY(mdp_mask_rule_fits(&mask.rule, moe->experts[e].down.n_col, "neurons of experts"));
        }
    }
    return mdp_ok();
}

mdp_status mdp_session_mask_bytes(const mdp_session *session, const mdp_plan *plan, int64_t *out) {
    mdp_replaced *replaced = NULL;
    *out = 0;
    if (mdp_session_mask_norms(session) == MDP_NORMS_NONE) return mdp_ok();
    MDP_TRY(mdp_replaced_list(session->model, plan, MDP_REPLACED_NAMED, &replaced));
    *out = mdp_replaced_bytes(replaced);
    mdp_replaced_destroy(replaced);
    return mdp_ok();
}

/* ---- plan.h5 ----------------------------------------------------------------------------------------------------- */

/* The norms of a plan in its order, two for each expert that has any. */
typedef struct norms {
    int64_t n;
    bool gated;      /* by tokens times their weights */
    mdp_array *list; /* [n] */
    int64_t *width;  /* [1 + layers] d_model, and d_ff of each layer; only rank 0 has the statistics */
    mdp_arrays *arrays;
} norms;

typedef mdp_status visit_fn(norms *all, const mdp_plan *plan, const mdp_stats *stats, int64_t layer, int32_t kept,
                            bool hidden, int64_t at);

static mdp_status visit_norms(norms *all, const mdp_plan *plan, const mdp_stats *stats, visit_fn *visit) {
    int64_t at = 0;
    for (int64_t i = 0; i < plan->n_layer; i++) {
        for (int32_t j = 0; j < plan->layers[i].n_kept; j++) {
            if (plan->layers[i].kept[j].action != MDP_MASK || plan->layers[i].kept[j].n_array == 0) continue;
            for (int hidden = 0; hidden < 2; hidden++) MDP_TRY(visit(all, plan, stats, i, j, hidden != 0, at++));
        }
    }
    return mdp_ok();
}

/* mdp_plan_mask has named the norm of inputs first. */
static const mdp_plan_array *named(const mdp_plan *plan, int64_t layer, int32_t kept, bool hidden) {
    return &plan->layers[layer].kept[kept].arrays[hidden];
}

static mdp_status list_norm(norms *all, const mdp_plan *plan, const mdp_stats *stats, int64_t layer, int32_t kept,
                            bool hidden, int64_t at) {
    (void)stats;
    all->list[at] = (mdp_array){.name = named(plan, layer, kept, hidden)->path,
                                .type = MDP_F32,
                                .n_dim = 1,
                                .shape = {hidden ? all->width[1 + layer] : all->width[0]}};
    return mdp_ok();
}

static mdp_status put_norm(norms *all, const mdp_plan *plan, const mdp_stats *stats, int64_t layer, int32_t kept,
                           bool hidden, int64_t at) {
    int64_t n = mdp_mask_norm_width(stats, layer, hidden);
    float *norm = NULL;
    bool seen;
    MDP_TRY(MDP_ALLOC(&norm, n, "the norms of channels"));
    mdp_stats_channel_norms(stats, layer, plan->layers[layer].kept[kept].from[0], all->gated, hidden, norm, &seen);
    mdp_status status = mdp_arrays_put(all->arrays, at, 0, n * (int64_t)sizeof *norm, norm);
    mdp_free(norm);
    return status;
}

static mdp_status count_norm(norms *all, const mdp_plan *plan, const mdp_stats *stats, int64_t layer, int32_t kept,
                             bool hidden, int64_t at) {
    (void)plan;
    (void)stats;
    (void)layer;
    (void)kept;
    (void)hidden;
    all->n = at + 1;
    return mdp_ok();
}

static mdp_status compare_norm(norms *all, const mdp_plan *plan, const mdp_stats *stats, int64_t layer, int32_t kept,
                               bool hidden, int64_t at) {
    const mdp_plan_array *array = named(plan, layer, kept, hidden);
    (void)stats;
    if (strcmp(array->xxh3, all->arrays->digests[at].hex) == 0) return mdp_ok();
    return MDP_ERROR(MDP_INTERNAL, "'%s' is not what the plan was made with.", array->path);
}

static mdp_status prepare_all(const mdp_session *session, const mdp_plan *plan, const mdp_stats *stats, norms *all) {
    mdp_status status = visit_norms(all, plan, NULL, count_norm);
    if (status.code == MDP_OK) status = MDP_ALLOC(&all->list, all->n, "the norms of a plan");
    if (status.code == MDP_OK) status = MDP_ALLOC(&all->width, 1 + plan->n_layer, "the norms of a plan");
    MDP_AGREE(session->comm, status);
    if (session->comm->rank == 0 && all->n > 0) {
        all->width[0] = stats->d_model;
        for (int64_t i = 0; i < plan->n_layer; i++) all->width[1 + i] = stats->layers[i].d_ff;
    }
    MDP_TRY(mdp_bcast_all(session->comm, all->width, (1 + plan->n_layer) * (int64_t)sizeof *all->width, 0));
    return visit_norms(all, plan, NULL, list_norm);
}

static mdp_status fill_all(const mdp_session *session, const mdp_plan *plan, const mdp_stats *stats, const char *path,
                           norms *all) {
    const mdp_comm *comm = session->comm;
    if (comm->rank == 0) (void)unlink(path); /* what a killed run has left */
    MDP_TRY(mdp_arrays_create_all(comm, path, all->n, all->list, &all->arrays));
    MDP_AGREE(comm, comm->rank == 0 ? visit_norms(all, plan, stats, put_norm) : mdp_ok());
    MDP_TRY(mdp_arrays_settle_all(comm, all->arrays, 0, all->n));
    MDP_AGREE(comm, visit_norms(all, plan, NULL, compare_norm));
    return mdp_arrays_finish_all(comm, all->arrays);
}

mdp_status mdp_session_write_norms_all(const mdp_session *session, const mdp_plan *plan, const mdp_stats *stats,
                                       const char *published, bool *made) {
    norms all = {.gated = mdp_session_mask_norms(session) == MDP_NORMS_GATED};
    char *path = NULL;
    mdp_status status = mdp_agree_all(session->comm, mdp_session_make_path(session, mdp_path_name(published), &path));
    if (status.code == MDP_OK) status = prepare_all(session, plan, stats, &all);
    *made = all.n > 0;
    if (status.code == MDP_OK && all.n > 0) status = fill_all(session, plan, stats, path, &all);
    mdp_arrays_destroy(all.arrays);
    mdp_free(all.list);
    mdp_free(all.width);
    mdp_free(path);
    return status;
}
