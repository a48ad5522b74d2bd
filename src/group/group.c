/* group.c - grouping the experts of a layer: checks, blocks, experts that stay whole, and the method between.
 *
 * In: a matrix or vectors of all experts and what is asked for. Each block, without the experts that stay alone, is
 * copied into a problem of its own and given to the method (a row of `methods`); its answer is put together with the
 * others. Refuses what cannot be met. */
#include "mdp/group.h"

#include "group/problem.h"

#include <inttypes.h>
#include <string.h>

typedef struct group_method {
    mdp_status (*solve)(const group_problem *problem, group_answer *answer);
    mdp_group_by by;
    bool needs_score;
    bool largest; /* the objective of several blocks is the largest of theirs, not the sum */
} group_method;

static const group_method methods[] = {
    [MDP_GROUP_HIERARCHICAL] = {group_hierarchical, MDP_BY_DISTANCE, .largest = true},
    [MDP_GROUP_KMEANS] = {group_kmeans, MDP_BY_FEATURES},
    [MDP_GROUP_SPECTRAL] = {group_spectral, MDP_BY_SIMILARITY},
    [MDP_GROUP_PARTITION] = {group_partition, MDP_BY_SIMILARITY},
    [MDP_GROUP_DOMINANT] = {group_dominant, MDP_BY_SIMILARITY},
    [MDP_GROUP_CENTROID] = {group_centroid, MDP_BY_SIMILARITY, .needs_score = true},
};

const char *const mdp_group_method_names[] = {[MDP_GROUP_HIERARCHICAL] = "hierarchical",
                                              [MDP_GROUP_KMEANS] = "kmeans",
                                              [MDP_GROUP_SPECTRAL] = "spectral",
                                              [MDP_GROUP_PARTITION] = "partition",
                                              [MDP_GROUP_DOMINANT] = "dominant",
                                              [MDP_GROUP_CENTROID] = "centroid",
                                              NULL};

#define MAX_START 4096 /* group_draw */

mdp_group_by mdp_group_wants(mdp_group_method method) {
    return methods[method].by;
}

void mdp_group_flip(int32_t n, double *matrix) {
    for (int64_t at = 0; at < (int64_t)n * n; at++) matrix[at] = 1.0 - matrix[at];
}

void mdp_group_penalise(int32_t n, const double *share, double *distance) {
    for (int32_t i = 0; i < n; i++) {
        for (int32_t j = 0; j < n; j++) distance[(int64_t)i * n + j] *= share[i] + share[j];
    }
}

/* ---- what methods share ------------------------------------------------------------------------------------------ */

int32_t group_canonical(int32_t n, int32_t *group, int32_t n_name, int32_t *name) {
    int32_t n_group = 0;
    for (int32_t g = 0; g < n_name; g++) name[g] = -1;
    for (int32_t e = 0; e < n; e++) {
        if (name[group[e]] < 0) name[group[e]] = n_group++;
        group[e] = name[group[e]];
    }
    return n_group;
}

mdp_status group_rank(int32_t n, const double *score, int32_t *order) {
    double *rounded = NULL;
    MDP_TRY(MDP_ALLOC(&rounded, n, "ranked experts"));
    for (int32_t e = 0; e < n; e++) {
        int32_t at = e;
        rounded[e] = mdp_round30(score[e]);
        for (; at > 0 && rounded[order[at - 1]] < rounded[e]; at--) order[at] = order[at - 1];
        order[at] = e;
    }
    mdp_free(rounded);
    return mdp_ok();
}

void group_best_hold(group_best *best, const int32_t *group, double value) {
    size_t n_byte = (size_t)best->n * sizeof *group;
    if (best->found && memcmp(best->group, group, n_byte) == 0) return;
    bool better = !best->found || mdp_round30(value) > mdp_round30(best->value);
    if (best->found) best->second = fmax(best->second, better ? best->value : value); /* of NAN and one, that one */
    if (!better) return;
    best->found = true;
    best->value = value;
    memcpy(best->group, group, n_byte);
}

/* ---- what was asked for ------------------------------------------------------------------------------------------ */

static mdp_status check_numbers(const mdp_group_input *input, int32_t n_block) {
    if (input->n_group < 1 || input->n_group > input->n)
        return MDP_ERROR(MDP_USAGE, "%" PRId32 " experts cannot form %" PRId32 " groups.", input->n, input->n_group);
    if (input->n % n_block != 0 || input->n_group % n_block != 0)
        return MDP_ERROR(MDP_USAGE,
                         "%" PRId32 " experts and %" PRId32 " groups must be multiples of the router's %" PRId32
                         " groups of experts: each has as many.",
                         input->n, input->n_group, n_block);
    if (!(input->keep_whole >= 0.0 && input->keep_whole <= 1.0))
        return MDP_ERROR(MDP_USAGE, "the share of experts that stay whole is %g, which is not in 0 to 1.",
                         input->keep_whole);
    if (input->n_start < 0 || input->n_start > MAX_START)
        return MDP_ERROR(MDP_USAGE, "%" PRId32 " starts are not in 1 to %d.", input->n_start, MAX_START);
    return mdp_ok();
}

static mdp_status check_parts(const mdp_group_input *input) {
    const group_method *method = &methods[input->method];
    bool ranked = input->method == MDP_GROUP_DOMINANT && input->dominant == NULL;
    if (method->by == MDP_BY_FEATURES ? !input->feature || input->n_feature < 1 : !input->matrix)
        return MDP_ERROR(MDP_INTERNAL, "grouping by %s was given nothing to group by.",
                         mdp_group_method_names[input->method]);
    if (!input->score && (method->needs_score || ranked || input->keep_whole > 0.0))
        return MDP_ERROR(MDP_INTERNAL, "grouping by %s was given no scores.", mdp_group_method_names[input->method]);
    for (int32_t e = 0; input->score && e < input->n; e++) {
        if (!isfinite(input->score[e]))
            return MDP_ERROR(MDP_BAD_INPUT, "the score of expert %" PRId32 " is %g.", e, input->score[e]);
    }
    return mdp_ok();
}

static mdp_status check_values(const mdp_group_input *input) {
    bool by_feature = methods[input->method].by == MDP_BY_FEATURES;
    int64_t n_col = by_feature ? input->n_feature : input->n;
    for (int32_t i = 0; i < input->n; i++) {
        for (int64_t j = by_feature ? 0 : i + 1; j < n_col; j++) {
            double value = (by_feature ? input->feature : input->matrix)[i * n_col + j];
            if (!isfinite(value))
                return MDP_ERROR(MDP_BAD_INPUT, "%s %" PRId64 " of expert %" PRId32 " is %g.",
                                 by_feature ? "component" : "the value for expert", j, i, value);
        }
    }
    return mdp_ok();
}

/* ---- one block --------------------------------------------------------------------------------------------------- */

/* Buffers of one grouping. */
typedef struct workspace {
    int32_t n_block, block_size, block_groups, n_whole; /* of each block: experts, groups, experts that stay whole */
    group_problem problem;
    group_answer answer;
    double *score;           /* [block_size] */
    unsigned char *dominant; /* [block_size] */
    int32_t *order;          /* [block_size] by falling score */
    int32_t *member;         /* [block_size] experts of the layer that the problem is about */
    int32_t *name;           /* [n_group] */
} workspace;

static void free_workspace(workspace *space) {
    mdp_free(space->problem.matrix);
    mdp_free(space->problem.feature);
    mdp_free(space->answer.group);
    mdp_free(space->answer.centre);
    mdp_free(space->answer.joins);
    mdp_free(space->score);
    mdp_free(space->dominant);
    mdp_free(space->order);
    mdp_free(space->member);
    mdp_free(space->name);
}

static mdp_status allocate_workspace(const mdp_group_input *input, workspace *space) {
    int32_t n = space->block_size;
    bool by_feature = methods[input->method].by == MDP_BY_FEATURES;
    MDP_TRY(MDP_ALLOC(&space->problem.matrix, by_feature ? 0 : (int64_t)n * n, "the matrix of a grouping"));
    MDP_TRY(MDP_ALLOC(&space->problem.feature, n, "the vectors of a grouping"));
    MDP_TRY(MDP_ALLOC(&space->answer.group, n, "groups"));
    MDP_TRY(MDP_ALLOC(&space->answer.centre, n, "the centres of groups"));
    MDP_TRY(MDP_ALLOC(&space->answer.joins, n, "the joins of groups"));
    MDP_TRY(MDP_ALLOC(&space->score, n, "the scores of a grouping"));
    MDP_TRY(MDP_ALLOC(&space->dominant, n, "dominant experts"));
    MDP_TRY(MDP_ALLOC(&space->order, n, "ranked experts"));
    MDP_TRY(MDP_ALLOC(&space->member, n, "the experts of a block"));
    return MDP_ALLOC(&space->name, input->n_group, "the numbers of groups");
}

/* The experts of highest score get groups of their own; the others, in ascending order, are the problem's. */
static mdp_status choose_members(const mdp_group_input *input, int32_t block, workspace *space, mdp_grouping *out) {
    int32_t first = block * space->block_size, n = 0;
    for (int32_t e = first; e < first + space->block_size; e++) out->group[e] = -1;
    if (space->n_whole > 0) MDP_TRY(group_rank(space->block_size, input->score + first, space->order));
    for (int32_t at = 0; at < space->n_whole; at++) {
        int32_t group = block * space->block_groups + at;
        out->group[first + space->order[at]] = group;
        out->centre[group] = first + space->order[at];
    }
    for (int32_t e = first; e < first + space->block_size; e++) {
        if (out->group[e] < 0) space->member[n++] = e;
    }
    return mdp_ok();
}

static void fill_problem(const mdp_group_input *input, int32_t block, workspace *space) {
    group_problem *problem = &space->problem;
    bool by_feature = methods[input->method].by == MDP_BY_FEATURES;
    int32_t n = space->block_size - space->n_whole;
    problem->input = input;
    problem->n = n;
    problem->n_group = space->block_groups - space->n_whole;
    problem->score = input->score ? space->score : NULL;
    problem->dominant = input->dominant ? space->dominant : NULL;
    problem->first_draw = (uint64_t)block * MAX_START << 32;
    for (int32_t i = 0; i < n; i++) {
        int64_t from = space->member[i];
        if (input->score) space->score[i] = input->score[from];
        if (input->dominant) space->dominant[i] = input->dominant[from];
        if (by_feature) problem->feature[i] = input->feature + from * input->n_feature;
        for (int32_t j = i; !by_feature && j < n; j++) {
            double value = i == j ? 0.0 : input->matrix[from * input->n + space->member[j]];
            problem->matrix[(int64_t)i * n + j] = problem->matrix[(int64_t)j * n + i] = value;
        }
    }
    for (int32_t g = 0; g < problem->n_group; g++) space->answer.centre[g] = -1;
    space->answer.objective = 0.0;
    space->answer.gap = (double)NAN;
}

static void take_answer(const group_method *method, int32_t block, const workspace *space, mdp_grouping *out) {
    const group_answer *answer = &space->answer;
    int32_t first_group = block * space->block_groups + space->n_whole;
    for (int32_t i = 0; i < space->problem.n; i++) out->group[space->member[i]] = first_group + answer->group[i];
    for (int32_t g = 0; g < space->problem.n_group; g++)
        if (answer->centre[g] >= 0) out->centre[first_group + g] = space->member[answer->centre[g]];
    for (int32_t at = 0; out->joins && at < space->problem.n - space->problem.n_group; at++) {
        mdp_join *join = &out->joins[out->n_join++];
        *join = answer->joins[at];
        join->left = space->member[join->left];
        join->right = space->member[join->right];
    }
    out->objective = method->largest ? fmax(out->objective, answer->objective) : out->objective + answer->objective;
    out->gap = fmin(out->gap, answer->gap); /* of NAN and a number, the number */
}

/* ---- the layer --------------------------------------------------------------------------------------------------- */

/* Number the groups by their smallest members; an expert that is alone is its centre. */
static mdp_status finish(mdp_grouping *out, int32_t *name) {
    mdp_expert_t *centre = NULL;
    int32_t *size = NULL;
    mdp_status status = MDP_ALLOC(&centre, out->n_group, "the centres of groups");
    if (status.code == MDP_OK) status = MDP_ALLOC(&size, out->n_group, "the sizes of groups");
    int32_t n_group = status.code == MDP_OK ? group_canonical(out->n, out->group, out->n_group, name) : 0;
    if (status.code == MDP_OK && n_group != out->n_group)
        status = MDP_ERROR(MDP_INTERNAL, "grouping made %" PRId32 " groups of %" PRId32 ".", n_group, out->n_group);
    if (status.code == MDP_OK) {
        for (int32_t g = 0; g < n_group; g++) centre[name[g]] = out->centre[g];
        for (int32_t e = 0; e < out->n; e++) size[out->group[e]]++;
        for (int32_t e = 0; e < out->n; e++)
            if (size[out->group[e]] == 1) centre[out->group[e]] = e;
        memcpy(out->centre, centre, (size_t)n_group * sizeof *centre);
    }
    mdp_free(centre);
    mdp_free(size);
    return status;
}

static mdp_status group_blocks(const mdp_group_input *input, workspace *space, mdp_grouping *out) {
    const group_method *method = &methods[input->method];
    MDP_TRY(allocate_workspace(input, space));
    for (int32_t block = 0; block < space->n_block; block++) {
        MDP_TRY(choose_members(input, block, space, out));
        fill_problem(input, block, space);
        MDP_TRY(method->solve(&space->problem, &space->answer));
        take_answer(method, block, space, out);
    }
    return finish(out, space->name);
}

mdp_status mdp_group(const mdp_group_input *input, mdp_grouping *out) {
    int32_t n_block = input->n_block > 1 ? input->n_block : 1;
    *out = (mdp_grouping){.n = input->n, .n_group = input->n_group, .gap = (double)NAN};
    MDP_TRY(check_numbers(input, n_block));
    MDP_TRY(check_parts(input));
    MDP_TRY(check_values(input));
    MDP_TRY(MDP_ALLOC(&out->group, input->n, "groups"));
    MDP_TRY(MDP_ALLOC(&out->centre, input->n_group, "the centres of groups"));
    for (int32_t g = 0; g < input->n_group; g++) out->centre[g] = -1;
    if (input->method == MDP_GROUP_HIERARCHICAL) MDP_TRY(MDP_ALLOC(&out->joins, input->n, "the joins of groups"));
    workspace space = {.n_block = n_block, .block_size = input->n / n_block, .block_groups = input->n_group / n_block};
    space.n_whole = (int32_t)floor(mdp_round30(input->keep_whole * space.block_groups));
    /* Where all groups stay whole, the last one is for all others; without others there is nothing to be done. */
    if (space.n_whole == space.block_groups) space.n_whole--;
    mdp_status status = group_blocks(input, &space, out);
    free_workspace(&space);
    return status;
}

void mdp_grouping_clear(mdp_grouping *grouping) {
    mdp_free(grouping->group);
    mdp_free(grouping->centre);
    mdp_free(grouping->joins);
    *grouping = (mdp_grouping){0};
}
