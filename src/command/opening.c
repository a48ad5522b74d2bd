/* opening.c - the opening lines and --dry-run: see opening.h. */
#include "command/opening.h"
#include "command/feasible.h"
#include "command/threads.h"
#include "mdp/report.h"

#include <string.h>
#include <sys/statvfs.h>

#define MEASURE_FROM_FLOP 2e13 /* runs above this many are worth a second of measuring */
#define MAX_LINE 600

/* What libraries and the program's own code come to hold once they work, and small allocations (measured,
 * doc/engine.md): BLAS packs panels for each thread, MPI opens connections. */
#define LIBRARY_BYTE ((int64_t)3 << 20)
#define THREAD_BYTE ((int64_t)3 << 19)

/* ---- costs --------------------------------------------------------------------------------------------------- */

/* Bytes of memory that this node can still give; 0 when unknown. */
static int64_t available_memory(void) {
    char line[200];
    long long kib = 0;
    FILE *file = fopen("/proc/meminfo", "re");
    if (!file) return 0;
    while (fgets(line, sizeof line, file) && kib == 0) (void)sscanf(line, "MemAvailable: %lld kB", &kib);
    fclose(file);
    return kib * 1024;
}

int64_t mdp_session_node_share(const mdp_session *session) {
    int64_t available = available_memory();
    return available > 0 ? available / session->comm->node_size + session->at_start : INT64_MAX;
}

/* `instead`: what else than fewer ranks would do. */
static mdp_status check_memory(const mdp_comm *comm, int64_t need, const char *instead) {
    int64_t available = available_memory();
    char a[32], b[32], name[MPI_MAX_PROCESSOR_NAME] = "";
    int n_char = 0;
    if (available == 0 || need <= available / comm->node_size) return mdp_ok();
    MPI_Get_processor_name(name, &n_char);
    return MDP_ERROR(MDP_USAGE, "%d ranks need %s each on node %s, which has %s free. Use at most %lld ranks a node%s.",
                     comm->node_size, mdp_print_bytes(a, need), name, mdp_print_bytes(b, available),
                     (long long)(available / need), instead);
}

mdp_status mdp_session_check_node(const mdp_session *session, int64_t memory) {
    const char *instead = session->gemm ? ", fewer threads, or a smaller --batch-tokens" : "";
    if (session->layout != session->comm) return mdp_ok();
    return check_memory(session->comm, memory - session->at_start, instead);
}

void mdp_estimate_note_shortage(mdp_estimate *estimate, mdp_shortage shortage) {
    mdp_shortage *most = &estimate->shortage;
    bool first = most->need == 0, none = !first && (most->n_rank == 0 || shortage.n_rank == 0);
    int n_rank = none ? 0 : shortage.n_rank > most->n_rank ? shortage.n_rank : most->n_rank;
    if (shortage.need > most->need) *most = shortage;
    most->n_rank = n_rank;
}

mdp_status mdp_session_check_memory(const mdp_session *session, const mdp_estimate *estimate) {
    const mdp_shortage *most = &estimate->shortage;
    mdp_forward_options options = mdp_session_forward_options(session);
    char given[32], need[32];
    if (most->need == 0) return mdp_ok();
    if (!most->writing) return mdp_forward_too_little(session->layout, &most->pass, &options, most->need, most->n_rank);
    return MDP_ERROR(MDP_USAGE,
                     "--memory %s is too little: %s a rank are needed to write the result. Give --memory %lld.",
                     mdp_print_bytes(given, options.memory), mdp_print_bytes(need, most->need),
                     (long long)mdp_memory_to_give(most->need));
}

static mdp_status cost_of(const mdp_session *session, const mdp_tokens *tokens, const mdp_pass *pass,
                          mdp_forward_cost *cost, mdp_estimate *estimate) {
    mdp_forward_options options = mdp_session_forward_options(session);
    MDP_TRY(mdp_forward_cost_of(session->layout, session->model, tokens, pass, &options, cost));
    if (cost->fits) return mdp_session_check_node(session, cost->memory);
    mdp_shortage shortage = {.need = cost->memory, .pass = *pass};
    MDP_TRY(mdp_forward_find_ranks(session->layout, session->model, tokens, pass, &options, cost->batch_tokens,
                                   &shortage.n_rank));
    mdp_estimate_note_shortage(estimate, shortage);
    return mdp_ok();
}

mdp_status mdp_session_weigh_all(mdp_session *session, int64_t n_byte) {
    session->held = n_byte;
    session->beside = n_byte + LIBRARY_BYTE + session->n_thread * THREAD_BYTE;
    session->at_start = mdp_memory_share(session->layout->node_size);
    return mdp_max_i64_all(session->comm, &session->at_start, 1);
}

static json_t *describe_cost(const mdp_rank_cost *cost) {
    return json_pack("{s:I, s:I, s:I, s:I, s:I, s:I}", "flop", (json_int_t)cost->flop, "bytes_read",
                     (json_int_t)cost->bytes_read, "bytes_written", (json_int_t)cost->bytes_written, "bytes_sent",
                     (json_int_t)cost->bytes_sent, "bytes_sent_between_nodes", (json_int_t)cost->bytes_away, "messages",
                     (json_int_t)cost->n_message);
}

mdp_status mdp_session_add_costs(const mdp_session *session, const char *name, int64_t bytes_stored,
                                 const mdp_rank_cost *total, const mdp_rank_cost *least, const mdp_rank_cost *most,
                                 mdp_estimate *estimate) {
    json_t *pass =
        json_pack("{s:s, s:I, s:o, s:o, s:o}", "pass", name, "bytes_read", (json_int_t)bytes_stored, "all_ranks",
                  describe_cost(total), "least_of_a_rank", describe_cost(least), "most_of_a_rank", describe_cost(most));
    if (json_array_append_new(session->foretold, pass) != 0)
        return MDP_ERROR(MDP_EXHAUSTED, "out of memory for the estimate.");
    mdp_rank_cost_add(total, &estimate->total);
    mdp_rank_cost_add(least, &estimate->least);
    mdp_rank_cost_add(most, &estimate->most);
    estimate->bytes_read += bytes_stored;
    return mdp_ok();
}

/* Foretell a pass and add it. Local. */
static mdp_status add_pass(const mdp_session *session, const char *name, const mdp_tokens *tokens, const mdp_pass *pass,
                           mdp_forward_cost *cost, mdp_estimate *estimate) {
    MDP_TRY(cost_of(session, tokens, pass, cost, estimate));
    return mdp_session_add_costs(session, name, cost->bytes_stored, &cost->total, &cost->least, &cost->most, estimate);
}

mdp_status mdp_session_add_pass_all(const mdp_session *session, const char *name, const mdp_tokens *tokens,
                                    mdp_pass pass, mdp_estimate *estimate) {
    mdp_forward_cost cost = {0};
    MDP_AGREE(session->comm, add_pass(session, name, tokens, &pass, &cost, estimate));
    if (cost.memory > estimate->memory) estimate->memory = cost.memory;
    int64_t saved = 2 * pass.n_stream * cost.batch_tokens * session->model->d_model * (int64_t)sizeof(float);
    if (saved > estimate->bytes_saved) estimate->bytes_saved = saved;
    if (estimate->n_batch == 0) {
        estimate->batch_tokens = cost.batch_tokens;
        estimate->n_batch = cost.n_batch;
    }
    return mdp_ok();
}

mdp_status mdp_session_add_shares(const mdp_session *session, const char *name, const mdp_write_share *shares,
                                  mdp_estimate *estimate) {
    int size = session->layout->size;
    mdp_rank_cost *ranks = NULL, total = {0}, least = {0}, most = {0};
    MDP_TRY(MDP_ALLOC(&ranks, size, "costs of ranks"));
    for (int r = 0; r < size; r++) {
        ranks[r] = (mdp_rank_cost){.bytes_read = shares[r].bytes_read, .bytes_written = shares[r].bytes_written};
        mdp_rank_cost_add(&ranks[r], &total);
    }
    mdp_rank_cost_bound(ranks, size, &least, &most);
    mdp_free(ranks);
    estimate->bytes_written += total.bytes_written;
    return mdp_session_add_costs(session, name, total.bytes_read, &total, &least, &most, estimate);
}

static mdp_status find_speed_all(const mdp_session *session, mdp_estimate *estimate) {
    const mdp_option_value *given = mdp_session_option(session, OPTION_GFLOPS);
    double share = (double)session->layout->size / session->comm->size;
    if (estimate->total.flop == 0) return mdp_ok();
    if (given->present) {
        estimate->flop_per_second = given->real * 1e9 * session->layout->size;
        return mdp_ok();
    }
    if (!mdp_session_option(session, OPTION_DRY_RUN)->flag && (double)estimate->total.flop < MEASURE_FROM_FLOP)
        return mdp_ok();
    MDP_TRY(mdp_threads_measure_all(session->comm, session->gemm, session->n_thread, &estimate->flop_per_second));
    estimate->flop_per_second *= share; /* as if other ranks were as fast as these */
    return mdp_ok();
}

/* ---- the lines ----------------------------------------------------------------------------------------------- */

/* Text that grows in a buffer; what does not fit is cut. */
typedef struct line {
    char text[MAX_LINE];
    size_t used;
} line;

static void add(line *to, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void add(line *to, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    int n = vsnprintf(to->text + to->used, MAX_LINE - to->used, format, arguments);
    va_end(arguments);
    if (n > 0) to->used += (size_t)n < MAX_LINE - to->used ? (size_t)n : MAX_LINE - to->used - 1;
}

/* 4.16e16 -> "41.6 PFLOP". */
static void add_flop(line *to, double flop, const char *unit) {
    static const char *const prefixes[] = {"", "k", "M", "G", "T", "P", "E"};
    int p = 0;
    while (p < 6 && flop >= 999.5) {
        flop /= 1000.0;
        p++;
    }
    add(to, "%.3g %s%s", flop, prefixes[p], unit);
}

static void machine_line(const mdp_session *session, const mdp_estimate *estimate, line *out) {
    const mdp_comm *comm = session->layout;
    bool computes = session->gemm != NULL;
    char blas[100];
    mdp_blas_name(blas, sizeof blas);
    add(out, "moe-dist-prune %s   %d rank%s on %d node%s, %d thread%s each, %s", MDP_VERSION, comm->size,
        comm->size == 1 ? "" : "s", comm->n_node, comm->n_node == 1 ? "" : "s", session->n_thread,
        session->n_thread == 1 ? "" : "s", computes ? session->compute : blas);
    if (estimate->flop_per_second <= 0.0) return;
    add(out, ", ");
    add_flop(out, estimate->flop_per_second, "FLOP/s");
    add(out, mdp_session_option(session, OPTION_GFLOPS)->present ? " assumed" : " measured");
}

/* The type that most bytes of the model are stored in. */
static const char *main_type(const mdp_catalogue *catalogue) {
    int64_t n_byte[MDP_N_DTYPE] = {0};
    int best = 0;
    for (int64_t t = 0; t < catalogue->n_tensor; t++)
        n_byte[catalogue->tensors[t].type] += catalogue->tensors[t].n_byte;
    for (int i = 1; i < MDP_N_DTYPE; i++) best = n_byte[i] > n_byte[best] ? i : best;
    return mdp_dtype_name((mdp_dtype)best);
}

int64_t mdp_catalogue_weight_files(const mdp_catalogue *catalogue) {
    return catalogue->container == MDP_NATIVE ? catalogue->n_file : catalogue->n_file - catalogue->n_side_file;
}

static void model_line(const mdp_session *session, line *out) {
    const mdp_model *model = session->model;
    mdp_census census = mdp_census_of_model(model);
    long long n_file = (long long)mdp_catalogue_weight_files(model->catalogue);
    char a[32], b[32], c[32], range[32];
    if (census.smallest == census.largest)
        snprintf(range, sizeof range, "%d", (int)census.largest);
    else
        snprintf(range, sizeof range, "%d to %d", (int)census.smallest, (int)census.largest);
    add(out, "model    %s  %s, %lld layers, %s experts top-%d, %s parameters (%s active), %s %s in %lld file%s",
        model->catalogue->path, model->model_type, (long long)model->n_layer, range, (int)census.top_k,
        mdp_print_large(a, (double)model->n_parameter), mdp_print_large(b, (double)model->n_active),
        mdp_print_bytes(c, model->catalogue->tensor_byte), main_type(model->catalogue), n_file, n_file == 1 ? "" : "s");
}

static void add_tokens(line *out, const mdp_tokens *tokens) {
    char a[32], b[32];
    add(out, "%s  %s tokens, %s sequences, %d categor%s", tokens->path, mdp_print_count(a, tokens->n_token),
        mdp_print_count(b, tokens->n_sequence), tokens->n_category, tokens->n_category == 1 ? "y" : "ies");
}

static void add_tasks(line *out, const mdp_tasks *tasks) {
    char a[32];
    add(out, "   tasks %s  %s items", tasks->tokens->path, mdp_print_count(a, tasks->n_item));
}

/* Free bytes where --out is or will be; -1 when unknown. */
static int64_t free_space(const char *path) {
    struct statvfs space;
    char *folder = NULL;
    if (statvfs(path, &space) == 0) return (int64_t)space.f_bavail * (int64_t)space.f_frsize;
    mdp_status status = mdp_path_folder(&folder, path);
    int64_t n_byte = -1;
    if (status.code == MDP_OK && statvfs(folder, &space) == 0)
        n_byte = (int64_t)space.f_bavail * (int64_t)space.f_frsize;
    mdp_free(folder);
    return n_byte;
}

/* As long as the rank with the most to do takes. */
static double seconds_of(const mdp_session *session, const mdp_estimate *estimate) {
    if (estimate->flop_per_second <= 0.0) return 0.0;
    return (double)estimate->most.flop * session->layout->size / estimate->flop_per_second;
}

/* What ranks do one by one, for dry runs. */
static void ranks_line(const mdp_estimate *estimate, line *out) {
    char a[32], b[32];
    add(out, "ranks    ");
    if (estimate->total.flop > 0) {
        add_flop(out, (double)estimate->least.flop, "FLOP to ");
        add_flop(out, (double)estimate->most.flop, "FLOP   ");
    }
    add(out, "read %s to %s through the page cache", mdp_print_bytes(a, estimate->least.bytes_read),
        mdp_print_bytes(b, estimate->most.bytes_read));
    if (estimate->most.bytes_written > 0)
        add(out, "   write %s to %s", mdp_print_bytes(a, estimate->least.bytes_written),
            mdp_print_bytes(b, estimate->most.bytes_written));
    if (estimate->total.flop == 0) return;
    add(out, "   send about %s", mdp_print_bytes(a, estimate->most.bytes_sent));
    if (estimate->most.bytes_away > 0)
        add(out, " (%s of it to other nodes)", mdp_print_bytes(a, estimate->most.bytes_away));
    add(out, " in %s messages each", mdp_print_count(b, estimate->most.n_message));
}

/* One pass of several, for dry runs. */
static void pass_line(const json_t *pass, line *out) {
    char a[32];
    const json_t *cost = json_object_get(pass, "all_ranks");
    add(out, "pass     %s", json_string_value(json_object_get(pass, "pass")));
    double flop = (double)json_integer_value(json_object_get(cost, "flop"));
    if (flop > 0.0) add(out, " ");
    if (flop > 0.0) add_flop(out, flop, "FLOP");
    add(out, "   read %s", mdp_print_bytes(a, json_integer_value(json_object_get(pass, "bytes_read"))));
    int64_t n_written = json_integer_value(json_object_get(cost, "bytes_written"));
    if (n_written > 0) add(out, "   write %s", mdp_print_bytes(a, n_written));
}

static void plan_line(const mdp_session *session, const mdp_estimate *estimate, line *out) {
    char a[32];
    add(out, "plan     %s", estimate->phase);
    if (estimate->total.flop > 0) {
        add(out, " ");
        add_flop(out, (double)estimate->total.flop, "FLOP");
    }
    if (estimate->flop_per_second > 0.0) add(out, "  ~%s", mdp_print_seconds(a, seconds_of(session, estimate)));
    add(out, "   read %s", mdp_print_bytes(a, estimate->bytes_read));
    if (estimate->memory > 0) add(out, "   %s a rank", mdp_print_bytes(a, estimate->memory));
    if (estimate->n_batch > 1) add(out, "   %s batches", mdp_print_count(a, estimate->n_batch));
    if (estimate->bytes_written > 0) {
        int64_t n_free = free_space(mdp_session_option(session, OPTION_OUT)->text);
        add(out, "   write %s", mdp_print_bytes(a, estimate->bytes_written));
        if (n_free >= 0) add(out, " (%s free)", mdp_print_bytes(a, n_free));
    }
}

static mdp_status print_json(const mdp_session *session, const mdp_estimate *estimate, char **out) {
    const mdp_comm *layout = session->layout;
    json_t *root =
        json_pack("{s:s, s:s, s:i, s:i, s:i, s:s, s:I, s:f, s:f, s:I, s:I, s:I, s:I, s:I, s:I, s:o, s:o, s:o, s:O}",
                  "format", "moe-dist-prune estimate", "version", "1.0", "ranks", layout->size, "nodes", layout->n_node,
                  "threads", session->n_thread, "compute", session->compute, "flop", (json_int_t)estimate->total.flop,
                  "flop_per_second", estimate->flop_per_second, "seconds", seconds_of(session, estimate),
                  "memory_per_rank", (json_int_t)estimate->memory, "memory_at_start", (json_int_t)session->at_start,
                  "bytes_read", (json_int_t)estimate->bytes_read, "bytes_written", (json_int_t)estimate->bytes_written,
                  "batch_tokens", (json_int_t)estimate->batch_tokens, "n_batches", (json_int_t)estimate->n_batch,
                  "all_ranks", describe_cost(&estimate->total), "least_of_a_rank", describe_cost(&estimate->least),
                  "most_of_a_rank", describe_cost(&estimate->most), "passes", session->foretold);
    if (!root) return MDP_ERROR(MDP_EXHAUSTED, "out of memory for the estimate.");
    mdp_status status = mdp_json_print(root, out);
    json_decref(root);
    return status;
}

static void say(const mdp_session *session, const line *what) {
    if (mdp_session_option(session, OPTION_DRY_RUN)->flag)
        mdp_print("%s\n", what->text);
    else
        mdp_log_message(session->log, MDP_LEVEL_INFO, "%s", what->text);
}

/* Rank 0. */
static mdp_status say_lines(const mdp_session *session, const mdp_estimate *estimate) {
    if (mdp_session_option(session, OPTION_DRY_RUN)->flag && mdp_session_option(session, OPTION_JSON)->flag) {
        char *text = NULL;
        MDP_TRY(print_json(session, estimate, &text));
        mdp_print_text(text);
        mdp_free(text);
        return mdp_ok();
    }
    line machine = {.used = 0}, model = {.used = 0}, tokens = {.used = 0}, plan = {.used = 0};
    machine_line(session, estimate, &machine);
    say(session, &machine);
    model_line(session, &model);
    say(session, &model);
    if (session->tokens || session->eval_tokens) {
        add(&tokens, "tokens   ");
        if (session->tokens) add_tokens(&tokens, session->tokens);
        if (session->eval_tokens) add(&tokens, session->tokens ? "   evaluation " : "evaluation ");
        if (session->eval_tokens) add_tokens(&tokens, session->eval_tokens);
        if (session->tasks) add_tasks(&tokens, session->tasks);
        say(session, &tokens);
    }
    plan_line(session, estimate, &plan);
    say(session, &plan);
    bool all_passes = mdp_session_option(session, OPTION_DRY_RUN)->flag && json_array_size(session->foretold) > 1;
    for (size_t i = 0; all_passes && i < json_array_size(session->foretold); i++) {
        line pass = {.used = 0};
        pass_line(json_array_get(session->foretold, i), &pass);
        say(session, &pass);
    }
    if (mdp_session_option(session, OPTION_DRY_RUN)->flag && json_array_size(session->foretold) > 0) {
        line ranks = {.used = 0};
        ranks_line(estimate, &ranks);
        say(session, &ranks);
    }
    return mdp_ok();
}

mdp_status mdp_session_open_lines_all(const mdp_session *session, mdp_estimate *estimate) {
    MDP_TRY(find_speed_all(session, estimate));
    mdp_status status = mdp_ok();
    if (session->comm->rank == 0) status = say_lines(session, estimate);
    return mdp_agree_all(session->comm, status);
}
