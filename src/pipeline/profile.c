/* profile.c - profiles of all ranks as one table: least, mean and most of each phase.
 *
 * Times travel as whole nanoseconds, so that the collectives for integers serve. Mean times of the phases add up to the
 * mean time of the pass. */
#include "mdp/pipeline.h"

#include <math.h>

/* Columns of a profile; all but the first are sums over ranks in the table. */
typedef enum column { SECONDS, FLOP, BYTES_READ, BYTES_WRITTEN, BYTES_SENT, BYTES_AWAY, N_COLUMN } column;
static const char *const column_names[N_COLUMN] = {"seconds",       "flop",       "bytes_read",
                                                   "bytes_written", "bytes_sent", "bytes_sent_between_nodes"};

/* Rows: the phases, then what goes on beside them, then the whole pass. */
enum { READ_AHEAD = MDP_N_PHASE, WIDEN_AHEAD, HASH_AHEAD, PASS, N_ROW };
#define N_CELL (N_ROW * N_COLUMN)
#define LEAST_SHOWN 500000 /* nanoseconds */

/* Over all ranks; rank 0's. */
typedef struct merged {
    int64_t least[N_CELL], sum[N_CELL], most[N_CELL];
    int n_rank;
} merged;

static const char *row_name(int row) {
    static const char *const beside[] = {"read-ahead", "widen-ahead", "checksum-ahead", "pass"};
    return row < MDP_N_PHASE ? mdp_phase_names[row] : beside[row - MDP_N_PHASE];
}

static int64_t nanoseconds(double seconds) {
    return llround(seconds * 1e9);
}

static void fill(const mdp_profile *profile, int64_t cell[N_CELL]) {
    for (int row = 0; row < MDP_N_PHASE; row++) {
        const int64_t own[N_COLUMN] = {nanoseconds(profile->seconds[row]),
                                       profile->flop[row],
                                       profile->n_read[row],
                                       profile->n_written[row],
                                       profile->n_sent[row],
                                       profile->n_away[row]};
        for (int c = 0; c < N_COLUMN; c++) {
            cell[row * N_COLUMN + c] = own[c];
            cell[PASS * N_COLUMN + c] += own[c];
        }
    }
    cell[READ_AHEAD * N_COLUMN + SECONDS] = nanoseconds(profile->read_ahead);
    cell[WIDEN_AHEAD * N_COLUMN + SECONDS] = nanoseconds(profile->widen_ahead);
    cell[HASH_AHEAD * N_COLUMN + SECONDS] = nanoseconds(profile->hash_ahead);
}

static mdp_status merge_all(const mdp_comm *comm, const mdp_profile *profile, merged *out) {
    int64_t cell[N_CELL] = {0};
    fill(profile, cell);
    for (int i = 0; i < N_CELL; i++) {
        out->least[i] = -cell[i];
        out->sum[i] = out->most[i] = cell[i];
    }
    out->n_rank = comm->size;
    MDP_TRY(mdp_max_i64_all(comm, out->least, N_CELL));
    for (int i = 0; i < N_CELL; i++) out->least[i] = -out->least[i];
    MDP_TRY(mdp_sum_i64_all(comm, out->sum, N_CELL));
    return mdp_max_i64_all(comm, out->most, N_CELL);
}

/* ---- the table ----------------------------------------------------------------------------------------------- */

static bool has(const merged *all, int row, column what) {
    return all->sum[row * N_COLUMN + what] > 0;
}

static bool is_empty(const merged *all, int row) {
    return all->most[row * N_COLUMN] < LEAST_SHOWN && !has(all, row, FLOP) && !has(all, row, BYTES_READ) &&
           !has(all, row, BYTES_WRITTEN);
}

/* The columns behind the times: of operations where the pass has some, else of bytes written. */
static void print_amounts(const merged *all, int row, char *out, size_t n) {
    char read[32] = "", third[32] = "", work[32] = "", speed[16] = "";
    int at = row * N_COLUMN;
    double mean = 1e-9 * (double)all->sum[at] / all->n_rank, flop = 1e-9 * (double)all->sum[at + FLOP];
    column what = has(all, PASS, BYTES_WRITTEN) ? BYTES_WRITTEN : BYTES_SENT;
    if (has(all, row, BYTES_READ)) mdp_print_bytes(read, all->sum[at + BYTES_READ]);
    if (has(all, row, what)) mdp_print_bytes(third, all->sum[at + what]);
    if (has(all, row, FLOP)) snprintf(work, sizeof work, "%.4g", flop);
    if (has(all, row, FLOP) && mean > 0.0) snprintf(speed, sizeof speed, "%.1f", flop / all->n_rank / mean);
    snprintf(out, n, "%10s %10s %10s %8s", read, third, work, speed);
}

/* One row, unless nothing is in it. */
static void say_row(const merged *all, int row, mdp_log *log) {
    int at = row * N_COLUMN;
    char share[16] = "", amounts[64];
    double mean = 1e-9 * (double)all->sum[at] / all->n_rank, pass = 1e-9 * (double)all->sum[PASS * N_COLUMN];
    if (is_empty(all, row)) return;
    if (row < MDP_N_PHASE && pass > 0.0) snprintf(share, sizeof share, "%.1f%%", 100.0 * mean * all->n_rank / pass);
    print_amounts(all, row, amounts, sizeof amounts);
    mdp_log_message(log, MDP_LEVEL_INFO, "  %-14s %9.3f %9.3f %9.3f %7s %s", row_name(row),
                    1e-9 * (double)all->least[at], mean, 1e-9 * (double)all->most[at], share, amounts);
}

static void say_table(const merged *all, const char *pass, mdp_log *log) {
    bool writes = has(all, PASS, BYTES_WRITTEN);
    mdp_log_message(log, MDP_LEVEL_INFO, "profile  %s: seconds of %d rank%s; bytes%s", pass, all->n_rank,
                    all->n_rank == 1 ? "" : "s", writes ? " of all" : " and GFLOP of all, GFLOP/s of one");
    mdp_log_message(log, MDP_LEVEL_INFO, "  %-14s %9s %9s %9s %7s %10s %10s %10s %8s", "phase", "least", "mean", "most",
                    "share", "read", writes ? "written" : "sent", writes ? "" : "GFLOP", writes ? "" : "GFLOP/s");
    for (int row = 0; row < MDP_N_PHASE; row++) say_row(all, row, log);
    say_row(all, PASS, log);
    for (int row = READ_AHEAD; row < PASS; row++) say_row(all, row, log);
}

/* ---- JSON ---------------------------------------------------------------------------------------------------- */

static json_t *describe_cell(const merged *all, int cell, bool is_time) {
    if (is_time)
        return json_pack("{s:f, s:f, s:f}", "min", 1e-9 * (double)all->least[cell], "mean",
                         1e-9 * (double)all->sum[cell] / all->n_rank, "max", 1e-9 * (double)all->most[cell]);
    return json_pack("{s:I, s:f, s:I, s:I}", "min", (json_int_t)all->least[cell], "mean",
                     (double)all->sum[cell] / all->n_rank, "max", (json_int_t)all->most[cell], "total",
                     (json_int_t)all->sum[cell]);
}

static json_t *describe_row(const merged *all, int row) {
    json_t *out = json_object();
    for (int c = 0; c < N_COLUMN; c++) {
        bool beside = row >= READ_AHEAD && row < PASS;
        if (beside && c != SECONDS) continue;
        mdp_json_put(&out, column_names[c], describe_cell(all, row * N_COLUMN + c, c == SECONDS));
    }
    return out;
}

static json_t *describe_rows(const merged *all, int first, int end) {
    json_t *out = json_object();
    for (int row = first; row < end; row++) mdp_json_put(&out, row_name(row), describe_row(all, row));
    return out;
}

static mdp_status add_pass(const merged *all, const char *pass, json_t *passes) {
    json_t *root = json_pack("{s:s, s:i}", "pass", pass, "ranks", all->n_rank);
    mdp_json_put(&root, "phases", describe_rows(all, 0, MDP_N_PHASE));
    mdp_json_put(&root, "beside", describe_rows(all, READ_AHEAD, PASS));
    mdp_json_put(&root, "all", describe_row(all, PASS));
    if (json_array_append_new(passes, root) != 0) return MDP_ERROR(MDP_EXHAUSTED, "out of memory for the profile.");
    return mdp_ok();
}

mdp_status mdp_profile_tell_all(const mdp_comm *comm, mdp_profile *profile, const char *pass, mdp_log *log,
                                json_t *passes) {
    merged all = {.n_rank = 0};
    mdp_profile_switch(profile, MDP_PHASE_OTHER);
    MDP_TRY(merge_all(comm, profile, &all));
    say_table(&all, pass, log);
    return mdp_agree_all(comm, comm->rank == 0 ? add_pass(&all, pass, passes) : mdp_ok());
}
