/* compute.c - choosing what multiplies: see compute.h. */
#include "command/compute.h"
#include "command/continue.h"

#include <stdlib.h>
#include <string.h>

#define MEASURE_SECONDS 0.3
#define MEASURE_ROUNDS 25   /* at most */
#define MEASURE_WIDEST 4096 /* inner dimension: what is longer multiplies as fast */
#define WORTHWHILE 0.97     /* a candidate must take less of the first one's time than this */

typedef struct candidate {
    mdp_gemm_library library;
    mdp_gemm_type type;
    char name[128];
    mdp_gemm *gemm; /* while candidates are compared */
    double seconds[MEASURE_ROUNDS];
} candidate;

/* The plainest is first: it is taken where nothing speaks for another. */
typedef struct candidates {
    int n;
    candidate items[MDP_N_GEMM_LIBRARY * MDP_N_GEMM_TYPE];
} candidates;

/* ---- what the options allow ---------------------------------------------------------------------------------- */

/* Where --gemm says nothing, f32 is the CBLAS library's and bf16 is oneDNN's, which alone has it. */
static bool is_wanted(const mdp_session *session, mdp_gemm_library library, mdp_gemm_type type) {
    const mdp_option_value *gemm = mdp_session_option(session, OPTION_GEMM);
    const mdp_option_value *compute = mdp_session_option(session, OPTION_COMPUTE);
    if (compute->integer != MDP_N_GEMM_TYPE && compute->integer != (int64_t)type) return false;
    if (!gemm->given) return library == (type == MDP_GEMM_F32 ? MDP_OPENBLAS : MDP_ONEDNN);
    return gemm->integer == MDP_N_GEMM_LIBRARY || gemm->integer == (int64_t)library;
}

/* Does an option leave it open which of several is taken? */
static bool is_open(const mdp_session *session) {
    return mdp_session_option(session, OPTION_GEMM)->integer == MDP_N_GEMM_LIBRARY ||
           mdp_session_option(session, OPTION_COMPUTE)->integer == MDP_N_GEMM_TYPE;
}

static void close_candidates(candidates *all) {
    for (int i = 0; i < all->n; i++) mdp_gemm_destroy(all->items[i].gemm);
    all->n = 0;
}

/* All that are wanted and possible here; the reason why not when none is. */
static mdp_status open_candidates(const mdp_session *session, candidates *all) {
    mdp_status refused = mdp_ok();
    all->n = 0;
    for (int type = 0; type < MDP_N_GEMM_TYPE; type++) {
        for (int library = 0; library < MDP_N_GEMM_LIBRARY; library++) {
            if (!is_wanted(session, (mdp_gemm_library)library, (mdp_gemm_type)type)) continue;
            candidate *next = &all->items[all->n];
            *next = (candidate){.library = (mdp_gemm_library)library, .type = (mdp_gemm_type)type};
            mdp_status status = mdp_gemm_new(next->library, next->type, 1, &next->gemm);
            if (status.code != MDP_OK && status.code != MDP_USAGE) return status;
            if (status.code != MDP_OK) {
                refused = status;
                continue;
            }
            mdp_gemm_describe(next->gemm, next->name, sizeof next->name);
            all->n++;
        }
    }
    return all->n > 0 ? mdp_ok() : refused;
}

/* ---- measuring ----------------------------------------------------------------------------------------------- */

typedef struct operands {
    int width; /* inner dimension of the widest */
    float *x, *w, *y;
    uint16_t *rounded; /* w in bf16 */
} operands;

static void free_operands(operands *of) {
    mdp_free(of->x);
    mdp_free(of->w);
    mdp_free(of->rounded);
    mdp_free(of->y);
}

static mdp_status fill_operands(operands *of) {
    int64_t n_x = (int64_t)MDP_TILE_ROWS * of->width, n_w = (int64_t)MDP_PANEL_ROWS * of->width;
    MDP_TRY(MDP_ALLOC(&of->x, n_x, "a measurement"));
    MDP_TRY(MDP_ALLOC(&of->w, n_w, "a measurement"));
    MDP_TRY(MDP_ALLOC(&of->rounded, n_w, "a measurement"));
    MDP_TRY(MDP_ALLOC(&of->y, MDP_TILE_ROWS * MDP_PANEL_ROWS, "a measurement"));
    /* zeros and numbers that are not normal multiply at other speeds */
    for (int64_t i = 0; i < n_x; i++) of->x[i] = (float)(mdp_random_uniform(0, 0, (uint64_t)i) - 0.5);
    for (int64_t i = 0; i < n_w; i++) of->w[i] = (float)(mdp_random_uniform(0, 1, (uint64_t)i) - 0.5);
    mdp_round_bf16(of->w, n_w, of->rounded);
    return mdp_ok();
}

/* One product of a tile with a panel for each inner dimension. */
static double time_products(candidate *of, const operands *with, const int *width, int n_width) {
    const void *w = of->type == MDP_GEMM_BF16 ? (const void *)with->rounded : with->w;
    double start = mdp_seconds();
    for (int i = 0; i < n_width; i++)
        mdp_gemm_weights(of->gemm, MDP_TILE_ROWS, MDP_PANEL_ROWS, width[i], with->x, width[i], w, width[i], with->y,
                         MDP_PANEL_ROWS);
    return mdp_seconds() - start;
}

static int compare_seconds(const void *left, const void *right) {
    double a = *(const double *)left, b = *(const double *)right;
    return a < b ? -1 : a > b;
}

/* The inner dimensions of the run's own products: those of attention and of experts. */
static int find_widths(const mdp_session *session, int width[2]) {
    int64_t d_model = 1024, d_ff = 0;
    if (session->model) {
        d_model = session->model->d_model;
        for (int64_t l = 0; l < session->model->n_layer; l++) {
            const mdp_layer *layer = &session->model->layers[l];
            int64_t own = layer->is_moe ? layer->moe.d_ff : layer->dense_ff;
            d_ff = own > d_ff ? own : d_ff;
        }
    }
    width[0] = (int)(d_model < MEASURE_WIDEST ? d_model : MEASURE_WIDEST);
    width[1] = (int)(d_ff < MEASURE_WIDEST ? d_ff : MEASURE_WIDEST);
    return d_ff > 0 ? 2 : 1;
}

/* In turn, so that a change of the machine's speed meets all of them; the first round is for making ready. */
static mdp_status measure(const mdp_session *session, candidates *all, double *flop) {
    int width[2], n_width = find_widths(session, width), n_round = 0;
    operands with = {.width = n_width > 1 && width[1] > width[0] ? width[1] : width[0]};
    mdp_status status = fill_operands(&with);
    double start = mdp_seconds();
    *flop = 0.0;
    for (int i = 0; i < n_width; i++) *flop += 2.0 * MDP_TILE_ROWS * MDP_PANEL_ROWS * width[i];
    for (int round = -1; status.code == MDP_OK && round < MEASURE_ROUNDS; round++) {
        if (round > 2 && mdp_seconds() - start > MEASURE_SECONDS) break;
        for (int i = 0; i < all->n; i++) {
            double seconds = time_products(&all->items[i], &with, width, n_width);
            if (round >= 0) all->items[i].seconds[round] = seconds;
        }
        n_round = round + 1;
    }
    for (int i = 0; i < all->n && status.code == MDP_OK; i++) {
        status = mdp_gemm_check(all->items[i].gemm);
        qsort(all->items[i].seconds, (size_t)n_round, sizeof(double), compare_seconds);
        all->items[i].seconds[0] = all->items[i].seconds[n_round / 2];
    }
    free_operands(&with);
    return status;
}

/* The fastest by its median, if it is clearly faster than the plainest; says so. */
static mdp_status choose_fastest(const mdp_session *session, candidates *all, int *chosen) {
    char line[500] = "";
    double flop;
    MDP_TRY(measure(session, all, &flop));
    *chosen = 0;
    for (int i = 1; i < all->n; i++) {
        if (all->items[i].seconds[0] < all->items[*chosen].seconds[0]) *chosen = i;
    }
    if (all->items[*chosen].seconds[0] > WORTHWHILE * all->items[0].seconds[0]) *chosen = 0;
    for (int i = 0; i < all->n; i++) {
        size_t used = strlen(line);
        snprintf(line + used, sizeof line - used, "%s%s %.3g GFLOP/s a thread", i == 0 ? "" : ", ", all->items[i].name,
                 flop / all->items[i].seconds[0] / 1e9);
    }
    mdp_log_message(session->log, MDP_LEVEL_INFO, "measured %s; taking %s", line, all->items[*chosen].name);
    return mdp_ok();
}

/* ---- choosing ------------------------------------------------------------------------------------------------ */

/* What rank 0 takes. */
typedef struct choice {
    int32_t library, type;
} choice;

static mdp_status choose_among(const mdp_session *session, bool in_folder, candidates *all, choice *out) {
    char recorded[128] = "";
    int chosen = -1;
    MDP_TRY(open_candidates(session, all));
    if (is_open(session)) MDP_TRY(mdp_session_recorded_compute(session, in_folder, recorded, sizeof recorded));
    for (int i = 0; i < all->n; i++) {
        if (strcmp(all->items[i].name, recorded) == 0) chosen = i;
    }
    if (all->n == 1) chosen = 0;
    if (chosen < 0) MDP_TRY(choose_fastest(session, all, &chosen));
    *out = (choice){.library = (int32_t)all->items[chosen].library, .type = (int32_t)all->items[chosen].type};
    return mdp_ok();
}

/* Rank 0. */
static mdp_status choose(const mdp_session *session, bool in_folder, choice *out) {
    candidates *all = NULL;
    MDP_TRY(MDP_ALLOC(&all, 1, "the choice of a library"));
    mdp_status status = choose_among(session, in_folder, all, out);
    close_candidates(all);
    mdp_free(all);
    return status;
}

static mdp_status compare_all(const mdp_session *session) {
    char name[sizeof session->compute] = {0};
    memcpy(name, session->compute, sizeof name);
    MDP_TRY(mdp_bcast_all(session->comm, name, (int64_t)sizeof name, 0));
    mdp_status status = mdp_ok();
    if (strcmp(name, session->compute) != 0)
        status = MDP_ERROR(MDP_INTERNAL,
                           "rank %d computes with %s, rank 0 with %s; results would depend on where experts land. Set "
                           "OPENBLAS_CORETYPE (oneDNN: DNNL_MAX_CPU_ISA) to one kernel that all machines have.",
                           session->comm->rank, session->compute, name);
    return mdp_agree_all(session->comm, status);
}

mdp_status mdp_session_choose_compute_all(mdp_session *session, bool in_folder) {
    choice taken = {0, 0};
    mdp_status status = mdp_ok();
    if (session->comm->rank == 0) status = choose(session, in_folder, &taken);
    MDP_AGREE(session->comm, status);
    MDP_TRY(mdp_bcast_all(session->comm, &taken, (int64_t)sizeof taken, 0));
    MDP_AGREE(session->comm, mdp_gemm_new((mdp_gemm_library)taken.library, (mdp_gemm_type)taken.type, session->n_thread,
                                          &session->gemm));
    mdp_gemm_describe(session->gemm, session->compute, sizeof session->compute);
    return compare_all(session);
}
