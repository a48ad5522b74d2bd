/* report.c - report.json and the closing table of a run: see mdp/report.h.
 *
 * Both tell the same numbers: experts, parameters, bytes and perplexity before and after, what stayed, where the files
 * are. Sizes come from the described result, not from files, so that they are the same for every container. */
#include "report/layers.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define MAX_LISTED_LAYERS 8   /* the table lists what stayed in models up to this depth */
#define MAX_LISTED_EXPERTS 16 /* and up to this width; plan.json has all */

char *mdp_print_large(char out[32], double n) {
    static const char *const units[] = {"", " k", " M", " B", " T"};
    int unit = 0;
    while (unit < 4 && n >= 999.95) {
        n /= 1000.0;
        unit++;
    }
    int digits = unit == 0 ? 0 : n >= 99.995 ? 1 : n >= 9.9995 ? 2 : 3;
    snprintf(out, 32, "%.*f%s", digits, n, units[unit]);
    return out;
}

/* ---- numbers of both ----------------------------------------------------------------------------------------- */

typedef struct summary {
    int64_t n_layer;           /* layers with experts */
    int64_t n_before, n_after; /* experts of all layers */
    int64_t n_zeroed;          /* of those after: there, but return 0 */
    int64_t n_joined;          /* of those before: they are a part of another */
    int32_t least[2], most[2]; /* experts of a layer; before, after */
    int64_t byte_before, byte_after;
    mdp_result_size before, after;
    double flop[2]; /* of a token's matrix products; before, after */
    double masked;  /* share of the entries of those after that are set to 0 */
} summary;

static summary summarise(const mdp_report *report) {
    const mdp_plan *plan = report->plan;
    summary sum = {.n_layer = plan->n_layer,
                   .byte_before = report->model->catalogue->tensor_byte,
                   .byte_after = report->output->tensor_byte,
                   .before = {report->model->n_parameter, report->model->n_active},
                   .after = mdp_transform_size(report->model, plan),
                   .flop = {mdp_transform_flop(report->model, NULL), mdp_transform_flop(report->model, plan)},
                   .masked = mdp_plan_masked_share(plan, report->model),
                   .least = {INT32_MAX, INT32_MAX}};
    for (int64_t i = 0; i < plan->n_layer; i++) {
        int32_t count[2] = {plan->layers[i].n_expert, plan->layers[i].n_kept};
        for (int32_t j = 0; j < plan->layers[i].n_kept; j++) {
            const mdp_plan_expert *expert = &plan->layers[i].kept[j];
            sum.n_zeroed += expert->action == MDP_ZERO;
            if (expert->action == MDP_MERGE) sum.n_joined += expert->n_from - 1;
        }
        sum.n_before += count[0];
        sum.n_after += count[1];
        for (int side = 0; side < 2; side++) {
            if (count[side] < sum.least[side]) sum.least[side] = count[side];
            if (count[side] > sum.most[side]) sum.most[side] = count[side];
        }
    }
    return sum;
}

/* ---- the sentence -------------------------------------------------------------------------------------------- */

/* "A quarter", "Half", "37.5%" of the experts. */
static void print_share(char *out, size_t n_char, int64_t part, int64_t whole) {
    static const struct {
        int quarters;
        const char *word;
    } words[] = {{1, "A quarter"}, {2, "Half"}, {3, "Three quarters"}};
    snprintf(out, n_char, "%.3g%%", whole > 0 ? 100.0 * (double)part / (double)whole : 0.0);
    for (size_t i = 0; i < sizeof words / sizeof *words; i++) {
        if (part > 0 && 4 * part == words[i].quarters * whole) snprintf(out, n_char, "%s", words[i].word);
    }
}

/* The category whose perplexity grew by the largest factor; -1: none was measured. */
static int worst_category(const mdp_evaluation *evaluation) {
    int worst = -1;
    double most = -INFINITY;
    for (int c = 0; c < evaluation->n_category; c++) {
        double growth = mdp_evaluation_loss(evaluation, 1, c) - mdp_evaluation_loss(evaluation, 0, c);
        if (!(growth > most)) continue;
        most = growth;
        worst = c;
    }
    return worst;
}

/* "removed", or what became of them instead. */
static const char *what_became(const summary *sum) {
    if (sum->n_joined == 0) return "removed";
    bool all = sum->n_joined == sum->n_before - sum->n_after + sum->n_zeroed;
    return all ? "merged into others" : "removed or merged into others";
}

/* "Half of the experts removed; perplexity 4.310 -> 5.020 (+16.5%); the worst category is chat." Returns out. */
static const char *print_sentence(const mdp_report *report, const summary *sum, char *out, size_t n_char) {
    const mdp_evaluation *evaluation = report->evaluation;
    char share[32], masked[64] = "", change[80] = "", worst[100] = "", start[61];
    print_share(share, sizeof share, sum->n_before - sum->n_after + sum->n_zeroed, sum->n_before);
    if (evaluation && evaluation->n_stream == 2) {
        double before = mdp_evaluation_perplexity(evaluation, 0, -1),
               after = mdp_evaluation_perplexity(evaluation, 1, -1);
        int c = worst_category(evaluation);
        if (isfinite(before) && isfinite(after))
            snprintf(change, sizeof change, "; perplexity %.4g -> %.4g (%+.1f%%)", before, after,
                     100.0 * (after / before - 1.0));
        if (c >= 0 && evaluation->n_category > 1)
            snprintf(worst, sizeof worst, "; the worst category is %s",
                     mdp_text_show(start, sizeof start, evaluation->category[c]));
    }
    if (sum->masked > 0.0)
        snprintf(masked, sizeof masked, ", %.3g%% of the weights of those that stay set to 0", 100.0 * sum->masked);
    snprintf(out, n_char, "%s of the experts %s%s%s%s.", share, what_became(sum), masked, change, worst);
    return out;
}

/* ---- report.json --------------------------------------------------------------------------------------------- */

static json_t *print_side(int64_t n_expert, mdp_result_size size, int64_t n_byte, double flop) {
    return json_pack("{s:I, s:I, s:I, s:I, s:f}", "experts", (json_int_t)n_expert, "parameters",
                     (json_int_t)size.n_parameter, "active_parameters", (json_int_t)size.n_active, "bytes",
                     (json_int_t)n_byte, "flop_per_token", flop);
}

/* Of one category, -1: of all. */
static json_t *print_pair(const mdp_evaluation *evaluation, int c) {
    json_t *pair = json_object();
    for (int s = 0; s < evaluation->n_stream; s++)
        mdp_json_put(&pair, s == 0 ? "before" : "after",
                     mdp_json_number_or_null(mdp_evaluation_perplexity(evaluation, s, c)));
    return pair;
}

static json_t *print_perplexity(const mdp_evaluation *evaluation) {
    if (!evaluation) return json_null();
    json_t *list = json_object();
    for (int c = 0; c < evaluation->n_category; c++)
        mdp_json_put(&list, evaluation->category[c], print_pair(evaluation, c));
    return json_pack("{s:o, s:o}", "total", print_pair(evaluation, -1), "categories", list);
}

static json_t *print_words(int n, const char *const *words) {
    json_t *list = json_array();
    for (int i = 0; i < n; i++) mdp_json_add(&list, json_string(words[i]));
    return list;
}

static json_t *print_phases(const mdp_report *report) {
    json_t *list = json_array();
    for (int i = 0; i < report->n_phase; i++)
        mdp_json_add(&list,
                     json_pack("{s:s, s:f}", "name", report->phases[i].name, "seconds", report->phases[i].seconds));
    return list;
}

static json_t *print_run(const mdp_report *report) {
    return json_pack("{s:o, s:i, s:i, s:i, s:s, s:f, s:o, s:I, s:I}", "command",
                     print_words(report->n_word, (const char *const *)report->words), "ranks", report->n_rank, "nodes",
                     report->n_node, "threads", report->n_thread, "blas", report->blas, "seconds", report->seconds,
                     "phases", print_phases(report), "memory_peak_largest", (json_int_t)report->memory_largest,
                     "memory_peak_smallest", (json_int_t)report->memory_smallest);
}

static json_t *print_model(const mdp_report *report) {
    return json_pack("{s:s, s:s, s:s}", "path", report->model->catalogue->path, "model_type", report->model->model_type,
                     "fingerprint", report->model->catalogue->fingerprint);
}

static json_t *print_tokens(const mdp_tokens *tokens) {
    return json_pack("{s:s, s:s, s:I, s:I}", "path", tokens->path, "fingerprint", tokens->fingerprint, "n_tokens",
                     (json_int_t)tokens->n_token, "n_sequences", (json_int_t)tokens->n_sequence);
}

static void leave_choices_out_of(json_t *tasks) {
    const char *name;
    json_t *task;
    json_object_foreach(tasks, name, task) {
        json_object_del(task, "loglikelihood");
    }
}

/* Log-likelihoods of single choices stay in eval.json. */
static void leave_choices_out(const json_t *streams) {
    for (size_t s = 0; s < json_array_size(streams); s++)
        leave_choices_out_of(json_object_get(json_array_get(streams, s), "tasks"));
}

/* Every measure of every stream, as eval.json has them; null when nothing was evaluated. */
static mdp_status print_streams(const mdp_evaluation *evaluation, json_t **out) {
    char *text = NULL;
    json_t *root = NULL;
    *out = json_null();
    if (!evaluation) return mdp_ok();
    MDP_TRY(mdp_evaluation_print(evaluation, NULL, &text));
    mdp_status status = mdp_json_parse(text, (int64_t)strlen(text), "eval.json", &root);
    if (status.code == MDP_OK) {
        *out = json_incref(json_object_get(root, "streams"));
        leave_choices_out(*out);
    }
    json_decref(root);
    mdp_free(text);
    return status;
}

/* What makes the numbers doubtful; mostly nothing. */
static json_t *print_warnings(const mdp_report *report) {
    char text[MDP_PLAN_UNSEEN_TEXT];
    json_t *list = json_array();
    if (mdp_plan_describe_unseen(report->plan, text)) mdp_json_add(&list, json_string(text));
    return list;
}

mdp_status mdp_report_print(const mdp_report *report, char **out) {
    summary sum = summarise(report);
    char sentence[256];
    json_t *layers = NULL, *streams = NULL;
    *out = NULL;
    MDP_TRY(print_streams(report->evaluation, &streams));
    mdp_status status = mdp_report_layers(report, &layers);
    if (status.code != MDP_OK) {
        json_decref(streams);
        return status;
    }
    json_t *root =
        json_pack("{s:s, s:s, s:s, s:s, s:o, s:o, s:o, s:o, s:O, s:b, s:o, s:o, s:o, s:o, s:o, s:o, s:o}", "format",
                  "moe-dist-prune report", "version", "1.0", "writer", "moe-dist-prune " MDP_VERSION, "sentence",
                  print_sentence(report, &sum, sentence, sizeof sentence), "warnings", print_warnings(report), "run",
                  print_run(report), "model", print_model(report), "tokens", print_tokens(report->tokens), "recipe",
                  report->plan->recipe, "uniform", (int)report->plan->uniform, "before",
                  print_side(sum.n_before, sum.before, sum.byte_before, sum.flop[0]), "after",
                  print_side(sum.n_after, sum.after, sum.byte_after, sum.flop[1]), "perplexity",
                  print_perplexity(report->evaluation), "streams", streams, "observed", mdp_report_observed(report),
                  "layers", layers, "written", print_words(report->n_written, report->written));
    if (!root) return MDP_ERROR(MDP_EXHAUSTED, "out of memory for the report.");
    if (sum.masked > 0.0) mdp_json_put(&root, "masked_share", json_real(sum.masked));
    status = mdp_json_print(root, out);
    json_decref(root);
    return status;
}

/* ---- the closing table --------------------------------------------------------------------------------------- */

/* "8 x 32", or "4-8 x 32" when layers differ. */
static char *print_experts(char out[32], const summary *sum, int side) {
    if (sum->least[side] == sum->most[side])
        snprintf(out, 32, "%d x %lld", (int)sum->most[side], (long long)sum->n_layer);
    else
        snprintf(out, 32, "%d-%d x %lld", (int)sum->least[side], (int)sum->most[side], (long long)sum->n_layer);
    return out;
}

static void table_sizes(const mdp_report *report, FILE *file) {
    char a[32], b[32], c[32], d[32];
    summary sum = summarise(report);
    fprintf(file, "%-18s %12s %12s\n", "", "before", "after");
    fprintf(file, "%-18s %12s %12s   (%lld of %lld stay)\n", "experts x layers", print_experts(a, &sum, 0),
            print_experts(b, &sum, 1), (long long)sum.n_after, (long long)sum.n_before);
    if (mdp_plan_width(report->plan) > 0)
        fprintf(file, "%-18s %12lld %12lld\n", "neurons", (long long)mdp_report_neurons(report),
                (long long)mdp_plan_width(report->plan));
    fprintf(file, "%-18s %12s %12s   (active %s -> %s)\n", "parameters",
            mdp_print_large(a, (double)sum.before.n_parameter), mdp_print_large(b, (double)sum.after.n_parameter),
            mdp_print_large(c, (double)sum.before.n_active), mdp_print_large(d, (double)sum.after.n_active));
    if (sum.masked > 0.0) fprintf(file, "%-18s %12s %11.1f%%\n", "set to 0", "", 100.0 * sum.masked);
    fprintf(file, "%-18s %12s %12s   (%+.1f%%)\n", "FLOP per token", mdp_print_large(a, sum.flop[0]),
            mdp_print_large(b, sum.flop[1]), 100.0 * (sum.flop[1] / sum.flop[0] - 1.0));
    fprintf(file, "%-18s %12s %12s   (%+.1f%%)\n", "size", mdp_print_bytes(a, sum.byte_before),
            mdp_print_bytes(b, sum.byte_after), 100.0 * ((double)sum.byte_after / (double)sum.byte_before - 1.0));
}

static void table_perplexity(const mdp_evaluation *evaluation, FILE *file) {
    for (int c = -1; c < evaluation->n_category; c++) {
        double before = mdp_evaluation_perplexity(evaluation, 0, c),
               after = mdp_evaluation_perplexity(evaluation, 1, c);
        if (!isfinite(before) || !isfinite(after)) continue;
        char name[32], start[25];
        snprintf(name, sizeof name, c < 0 ? "perplexity" : "  %s",
                 c < 0 ? "" : mdp_text_show(start, sizeof start, evaluation->category[c]));
        fprintf(file, "%-18s %12.4g %12.4g   (%+.1f%%)\n", name, before, after, 100.0 * (after / before - 1.0));
    }
}

/* What else tells the pruned model from the original, over all text. */
static void table_likeness(const mdp_evaluation *evaluation, FILE *file) {
    double kl = mdp_evaluation_kl(evaluation, 1, -1), agreement = mdp_evaluation_agreement(evaluation, 1, -1);
    double exact[2] = {mdp_evaluation_exact_match(evaluation, 0, -1), mdp_evaluation_exact_match(evaluation, 1, -1)};
    /* texts of one token have nothing to predict, short ones no piece that could match */
    if (isfinite(kl)) fprintf(file, "%-18s %12s %12.4g\n", "KL to original", "", kl);
    if (isfinite(agreement)) fprintf(file, "%-18s %12s %11.1f%%\n", "top-1 agreement", "", 100.0 * agreement);
    if (isfinite(exact[0]) && isfinite(exact[1]))
        fprintf(file, "%-18s %11.1f%% %11.1f%%\n", "exact match", 100.0 * exact[0], 100.0 * exact[1]);
}

/* Accuracies per byte of the choices, of all tasks and of each. */
static void table_tasks(const mdp_evaluation *evaluation, FILE *file) {
    const mdp_tokens *tasks = evaluation->tasks->tokens;
    for (int t = tasks->n_category > 1 ? -1 : 0; t < tasks->n_category; t++) {
        char name[32], start[17];
        double before = mdp_evaluation_accuracy(evaluation, 0, t, MDP_BY_BYTE);
        double after = mdp_evaluation_accuracy(evaluation, 1, t, MDP_BY_BYTE);
        snprintf(name, sizeof name, t < 0 ? "tasks (acc_norm)" : "  %s",
                 t < 0 ? "" : mdp_text_show(start, sizeof start, tasks->category[t]));
        fprintf(file, "%-18s %11.1f%% %11.1f%%   (%+.1f points)\n", name, 100.0 * before, 100.0 * after,
                100.0 * (after - before));
    }
}

static void table_evaluation(const mdp_evaluation *evaluation, FILE *file) {
    table_perplexity(evaluation, file);
    table_likeness(evaluation, file);
    if (evaluation->tasks) table_tasks(evaluation, file);
}

static void table_kept(const mdp_plan *plan, FILE *file) {
    bool listed = plan->n_layer <= MAX_LISTED_LAYERS;
    for (int64_t i = 0; i < plan->n_layer; i++) listed = listed && plan->layers[i].n_expert <= MAX_LISTED_EXPERTS;
    for (int64_t i = 0; i < plan->n_layer && listed; i++) {
        fprintf(file, "layer %-3lld keeps    ", (long long)plan->layers[i].layer);
        for (int32_t j = 0; j < plan->layers[i].n_kept; j++) {
            const mdp_plan_expert *expert = &plan->layers[i].kept[j];
            for (int32_t m = 0; m < expert->n_from; m++)
                fprintf(file, "%s%d", m == 0 ? " " : "+", (int)expert->from[m]);
        }
        fprintf(file, "\n");
    }
}

/* What a refit has come to: the mean over layers of how much of their output is lost. */
static void table_refit(const mdp_plan *plan, FILE *file) {
    const json_t *layers = json_object_get(json_object_get(plan->recipe, "refit"), "layers");
    double sums[2][2] = {{0.0}};
    static const char *const when[2] = {"error_before", "error_after"}, *const of[2] = {"fitted", "held_out"};
    int n[2] = {0, 0};
    for (size_t i = 0; i < json_array_size(layers); i++) {
        const json_t *layer = json_array_get(layers, i);
        for (int o = 0; o < 2; o++) {
            if (!json_is_number(json_object_get(json_object_get(layer, when[0]), of[o]))) continue;
            for (int w = 0; w < 2; w++)
                sums[w][o] += json_number_value(json_object_get(json_object_get(layer, when[w]), of[o]));
            n[o]++;
        }
    }
    for (int o = 0; o < 2; o++) {
        const char *name = o == 0 ? "lost per layer" : "  held out";
        if (n[o] > 0)
            fprintf(file, "%-18s %11.1f%% %11.1f%%   (%s)\n", name, 100.0 * sums[0][o] / n[o],
                    100.0 * sums[1][o] / n[o], o == 0 ? "without and with refit" : "text that was not fitted to");
    }
}

static void table_phases(const mdp_report *report, FILE *file) {
    char time[32];
    for (int i = 0; i < report->n_phase; i++)
        fprintf(file, "%s%s %s", i == 0 ? "time     " : ", ", report->phases[i].name,
                mdp_print_seconds(time, report->phases[i].seconds));
    if (report->n_phase > 0) fprintf(file, "\n");
}

static void fill_table(const mdp_report *report, FILE *file) {
    char time[32], most[32];
    fprintf(file, "done in %s on %d rank%s, peak memory %s a rank\n", mdp_print_seconds(time, report->seconds),
            report->n_rank, report->n_rank == 1 ? "" : "s", mdp_print_bytes(most, report->memory_largest));
    table_phases(report, file);
    table_sizes(report, file);
    if (report->evaluation && report->evaluation->n_stream == 2) table_evaluation(report->evaluation, file);
    table_refit(report->plan, file);
    table_kept(report->plan, file);
    char unseen[MDP_PLAN_UNSEEN_TEXT];
    if (mdp_plan_describe_unseen(report->plan, unseen)) fprintf(file, "warning  %s\n", unseen);
    fprintf(file, "written ");
    for (int i = 0; i < report->n_written; i++) fprintf(file, " %s", report->written[i]);
    fprintf(file, "\n");
    if (report->next) fprintf(file, "next     %s\n", report->next);
}

mdp_status mdp_report_table(const mdp_report *report, char **out) {
    char *text = NULL;
    size_t n_byte = 0;
    *out = NULL;
    MDP_TRY(mdp_fault(MDP_EXHAUSTED, "open a text in memory"));
    FILE *file = open_memstream(&text, &n_byte);
    if (!file) return MDP_ERROR(MDP_EXHAUSTED, "out of memory for the closing table.");
    fill_table(report, file);
    bool failed = ferror(file) != 0;
    failed = fclose(file) != 0 || failed;
    mdp_status status =
        failed ? MDP_ERROR(MDP_EXHAUSTED, "out of memory for the closing table.") : mdp_copy_text(out, text);
    free(text);
    return status;
}
