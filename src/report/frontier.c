/* frontier.c - many plans of one model, judged and told: see mdp/frontier.h.
 *
 * frontier.json holds nothing of ranks, lots or times, so that equal questions give equal bytes. */
#include "mdp/frontier.h"
#include "mdp/report.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

void mdp_frontier_destroy(mdp_frontier *frontier) {
    if (!frontier) return;
    for (int i = 0; frontier->points && i < frontier->n; i++) mdp_free(frontier->points[i].refused);
    mdp_free(frontier->points);
    mdp_free(frontier);
}

/* ---- sizes ----------------------------------------------------------------------------------------------------- */

static void count_layer(int32_t n, mdp_frontier_size *out) {
    if (out->n_expert == 0 || n < out->least) out->least = n;
    if (n > out->most) out->most = n;
    out->n_expert += n;
}

mdp_status mdp_frontier_size_of(const mdp_model *model, const mdp_plan *plan, mdp_frontier_size *out) {
    mdp_output *output = NULL;
    *out = (mdp_frontier_size){.values = {model->n_parameter, model->n_active},
                               .n_byte = model->catalogue->tensor_byte,
                               .flop = mdp_transform_flop(model, plan)};
    for (int64_t l = 0; !plan && l < model->n_layer; l++)
        if (model->layers[l].is_moe) count_layer(model->layers[l].moe.n_expert, out);
    if (!plan) return mdp_ok();
    for (int64_t i = 0; i < plan->n_layer; i++) count_layer(plan->layers[i].n_kept, out);
    MDP_TRY(mdp_transform_output(model, plan, NULL, NULL, NULL, NULL, MDP_UNEQUAL_STACKED, &output));
    out->values = mdp_transform_size(model, plan);
    out->n_byte = output->tensor_byte;
    mdp_output_destroy(output);
    return mdp_ok();
}

/* ---- judging --------------------------------------------------------------------------------------------------- */

static double perplexity_of(const mdp_frontier_point *point) {
    return mdp_evaluation_perplexity(point->evaluation, point->stream, -1);
}

static bool is_beaten_by(const mdp_frontier_point *point, const mdp_frontier_point *other) {
    double mine = perplexity_of(point), theirs = perplexity_of(other);
    if (other->size.n_byte > point->size.n_byte || !(theirs <= mine)) return false;
    return other->size.n_byte < point->size.n_byte || theirs < mine;
}

/* Is it smaller, or as small and less perplexed? */
static bool is_better_answer(const mdp_frontier_point *point, const mdp_frontier_point *best) {
    if (point->size.n_byte != best->size.n_byte) return point->size.n_byte < best->size.n_byte;
    return perplexity_of(point) < perplexity_of(best);
}

void mdp_frontier_judge(mdp_frontier *frontier) {
    const mdp_frontier_point *all = frontier->points;
    double most = perplexity_of(&all[0]) * (1.0 + frontier->within);
    frontier->answer = -1;
    for (int i = 0; i < frontier->n; i++) {
        mdp_frontier_point *point = &frontier->points[i];
        point->undominated = !point->refused && isfinite(perplexity_of(point));
        for (int j = 0; j < frontier->n && point->undominated; j++)
            point->undominated = all[j].refused || !is_beaten_by(point, &all[j]);
        if (frontier->within <= 0.0 || point->refused || !(perplexity_of(point) <= most)) continue;
        if (frontier->answer < 0 || is_better_answer(point, &all[frontier->answer])) frontier->answer = i;
    }
}

/* ---- frontier.json --------------------------------------------------------------------------------------------- */

static json_t *print_request(const mdp_frontier_point *point) {
    json_t *object = json_pack("{s:s?, s:s?, s:f, s:n}", "method", point->method, "budget",
                               point->method ? mdp_budget_names[point->budget] : NULL, "ratio", point->ratio, "refit");
    if (point->method) mdp_json_put(&object, "keep", json_integer(point->keep));
    if (point->refused) mdp_json_put(&object, "refused", json_string(point->refused));
    return object;
}

static json_t *print_point(const mdp_frontier_point *point) {
    json_t *object = print_request(point);
    if (point->refused) return object;
    mdp_json_put(&object, "same_as", point->same_as < 0 ? json_null() : json_integer(point->same_as));
    mdp_json_put(&object, "undominated", json_boolean(point->undominated));
    mdp_json_put(&object, "experts", json_integer((json_int_t)point->size.n_expert));
    mdp_json_put(&object, "experts_of_a_layer", json_pack("[i, i]", (int)point->size.least, (int)point->size.most));
    mdp_json_put(&object, "parameters", json_integer((json_int_t)point->size.values.n_parameter));
    mdp_json_put(&object, "active_parameters", json_integer((json_int_t)point->size.values.n_active));
    mdp_json_put(&object, "bytes", json_integer((json_int_t)point->size.n_byte));
    mdp_json_put(&object, "flop_per_token", json_real(point->size.flop));
    mdp_evaluation_print_measures(point->evaluation, point->stream, &object);
    return object;
}

static json_t *print_within(const mdp_frontier *frontier) {
    if (frontier->within <= 0.0) return json_null();
    return json_pack("{s:f, s:o}", "allowed", frontier->within, "point",
                     frontier->answer < 0 ? json_null() : json_integer(frontier->answer));
}

mdp_status mdp_frontier_print(const mdp_frontier *frontier, const char *identity, char **out) {
    const mdp_model *model = frontier->model;
    const mdp_tokens *tokens = frontier->tokens;
    json_t *points = json_array();
    *out = NULL;
    for (int i = 0; i < frontier->n; i++) mdp_json_add(&points, print_point(&frontier->points[i]));
    json_t *root = json_pack("{s:s, s:s, s:s, s:{s:s, s:s}, s:{s:s, s:I}, s:o, s:o, s:s}", "format",
                             "moe-dist-prune frontier", "version", "1.0", "writer", "moe-dist-prune " MDP_VERSION,
                             "model", "model_type", model->model_type, "fingerprint", model->catalogue->fingerprint,
                             "tokens", "fingerprint", tokens->fingerprint, "n_tokens", (json_int_t)tokens->n_token,
                             "within", print_within(frontier), "points", points, "identity", identity);
    if (!root) return MDP_ERROR(MDP_EXHAUSTED, "out of memory for frontier.json.");
    mdp_status status = mdp_json_print(root, out);
    json_decref(root);
    return status;
}

/* ---- the table ------------------------------------------------------------------------------------------------- */

static const char *print_experts(char out[48], const mdp_frontier *frontier, const mdp_frontier_size *size) {
    int64_t n = 0;
    for (int64_t l = 0; l < frontier->model->n_layer; l++) n += frontier->model->layers[l].is_moe;
    if (size->least == size->most)
        snprintf(out, 48, "%d x %lld", (int)size->most, (long long)n);
    else
        snprintf(out, 48, "%d-%d x %lld", (int)size->least, (int)size->most, (long long)n);
    return out;
}

/* "+4.1%" of the original's; "" of the original. */
static const char *print_growth(char out[32], const mdp_frontier *frontier, int i) {
    double first = perplexity_of(&frontier->points[0]), own = perplexity_of(&frontier->points[i]);
    out[0] = '\0';
    if (i > 0) snprintf(out, 32, "(%+.1f%%)", 100.0 * (own / first - 1.0));
    return out;
}

static void table_point(const mdp_frontier *frontier, int i, FILE *file) {
    const mdp_frontier_point *point = &frontier->points[i];
    char ratio[32] = "", experts[48], bytes[32], growth[32];
    if (i > 0) snprintf(ratio, sizeof ratio, "%.4g", point->ratio);
    fprintf(file, "%c %-20s %8s", point->undominated ? '*' : ' ', i == 0 ? "original" : point->method, ratio);
    if (point->refused) {
        fprintf(file, "   %s\n", point->refused);
        return;
    }
    fprintf(file, " %12s %10s %11.4g %9s %10.4g", print_experts(experts, frontier, &point->size),
            mdp_print_bytes(bytes, point->size.n_byte), perplexity_of(point), print_growth(growth, frontier, i),
            mdp_evaluation_kl(point->evaluation, point->stream, -1));
    if (point->same_as == 0) fprintf(file, "   (as the original)");
    if (point->same_as > 0)
        fprintf(file, "   (as %s %.4g)", frontier->points[point->same_as].method,
                frontier->points[point->same_as].ratio);
    fprintf(file, "\n");
}

static void table_answer(const mdp_frontier *frontier, FILE *file) {
    char bytes[32], growth[32];
    if (frontier->within <= 0.0) return;
    fprintf(file, "smallest within %.4g%% of %.4g: ", 100.0 * frontier->within, perplexity_of(&frontier->points[0]));
    if (frontier->answer <= 0) {
        fprintf(file, "none but the original\n");
        return;
    }
    const mdp_frontier_point *point = &frontier->points[frontier->answer];
    fprintf(file, "%s %.4g, %s, perplexity %.4g %s\n", point->method, point->ratio,
            mdp_print_bytes(bytes, point->size.n_byte), perplexity_of(point),
            print_growth(growth, frontier, frontier->answer));
}

static void fill_table(const mdp_frontier *frontier, const char *next, FILE *file) {
    fprintf(file, "  %-20s %8s %12s %10s %11s %9s %10s\n", "", "removed", "experts", "size", "perplexity", "", "KL");
    for (int i = 0; i < frontier->n; i++) table_point(frontier, i, file);
    fprintf(file, "* no other is at most as large and at most as perplexed\n");
    table_answer(frontier, file);
    if (next) fprintf(file, "next     %s\n", next);
}

mdp_status mdp_frontier_table(const mdp_frontier *frontier, const char *next, char **out) {
    char *text = NULL;
    size_t n_byte = 0;
    *out = NULL;
    MDP_TRY(mdp_fault(MDP_EXHAUSTED, "open a text in memory"));
    FILE *file = open_memstream(&text, &n_byte);
    if (!file) return MDP_ERROR(MDP_EXHAUSTED, "out of memory for the table.");
    fill_table(frontier, next, file);
    bool failed = ferror(file) != 0;
    failed = fclose(file) != 0 || failed;
    mdp_status status = failed ? MDP_ERROR(MDP_EXHAUSTED, "out of memory for the table.") : mdp_copy_text(out, text);
    free(text);
    return status;
}
