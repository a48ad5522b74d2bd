/* worst_category.c - scores for text of every kind: an expert counts by the category that needs it most (score.h). */
#include "mdp/score.h"

#include <string.h>

/* weight [n_category]: the category `c` and those of its name, as `all` (NULL: 1) has them; 0 elsewhere. */
static void select_category(const mdp_stats *stats, const double *all, int c, double *weight) {
    const double *factor = all ? all : stats->category_weight;
    for (int i = 0; i < stats->n_category; i++) {
        bool same = strcmp(stats->category[i], stats->category[c]) == 0;
        weight[i] = !same ? 0.0 : factor ? factor[i] : 1.0;
    }
}

static mdp_status raise_scores(const mdp_criterion *criterion, const mdp_score_input *input, double *own,
                               double *score) {
    double most = 0.0;
    MDP_TRY(criterion->score(input, own));
    for (mdp_expert_t e = 0; e < input->n_expert; e++) most = own[e] > most ? own[e] : most;
    for (mdp_expert_t e = 0; e < input->n_expert && most > 0.0; e++)
        score[e] = own[e] / most > score[e] ? own[e] / most : score[e];
    return mdp_ok();
}

mdp_status mdp_score_worst_category(const mdp_criterion *criterion, const mdp_score_input *input, double *score) {
    const mdp_stats *stats = input->stats;
    double *weight = NULL, *own = NULL;
    mdp_status status = MDP_ALLOC(&weight, stats->n_category, "weights of categories");
    if (status.code == MDP_OK) status = MDP_ALLOC(&own, input->n_expert, "scores of a category");
    for (mdp_expert_t e = 0; e < input->n_expert; e++) score[e] = 0.0;
    for (int c = 0; c < stats->n_category && status.code == MDP_OK; c++) {
        bool chosen = !input->weight || input->weight[c] > 0.0;
        bool first = c == 0 || strcmp(stats->category[c], stats->category[c - 1]) != 0;
        if (!chosen || !first) continue;
        mdp_score_input one = *input;
        select_category(stats, input->weight, c, weight);
        one.weight = weight;
        status = raise_scores(criterion, &one, own, score);
    }
    mdp_free(weight);
    mdp_free(own);
    return status;
}
