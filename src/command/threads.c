/* threads.c - threads of a rank, and the speed of its matrix products: see threads.h. */
#include "command/threads.h"
#include "mdp/engine.h"

#include <limits.h>
#include <math.h>
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MAX_THREAD 1024
#define MEASURE_SECONDS 1.0
#define MEASURE_WIDTH 1024 /* inner dimension of the measured product */

/* ---- before the start ---------------------------------------------------------------------------------------- */

void mdp_threads_prepare(char **words) {
    char program[PATH_MAX];
    if (getenv("OMP_WAIT_POLICY") || getenv("GOMP_SPINCOUNT") || getenv("KMP_BLOCKTIME")) return;
    ssize_t n = readlink("/proc/self/exe", program, sizeof program);
    if (n < 0 || n == sizeof program) return;
    program[n] = '\0';
    if (setenv("OMP_WAIT_POLICY", "passive", 0) != 0 || setenv("OPENBLAS_NUM_THREADS", "1", 0) != 0) return;
    execv(program, words); /* returns where it is not possible: then as it is */
}

/* ---- start --------------------------------------------------------------------------------------------------- */

typedef struct gate {
    pthread_mutex_t lock;
    pthread_cond_t moved;
    bool open;
} gate;

static void *wait_at(void *context) {
    gate *g = context;
    pthread_mutex_lock(&g->lock);
    while (!g->open) pthread_cond_wait(&g->moved, &g->lock);
    pthread_mutex_unlock(&g->lock);
    return NULL;
}

/* Can n threads live at once beside this one? The OpenMP library would end the process where they cannot. */
static mdp_status try_threads(int n) {
    gate g = {.lock = PTHREAD_MUTEX_INITIALIZER, .moved = PTHREAD_COND_INITIALIZER};
    pthread_t *threads = NULL;
    int n_started = 0, code = 0;
    MDP_TRY(mdp_fault(MDP_EXHAUSTED, "start threads"));
    MDP_TRY(MDP_ALLOC(&threads, n, "threads"));
    for (; n_started < n && code == 0; n_started += code == 0)
        code = pthread_create(&threads[n_started], NULL, wait_at, &g);
    pthread_mutex_lock(&g.lock);
    g.open = true;
    pthread_cond_broadcast(&g.moved);
    pthread_mutex_unlock(&g.lock);
    for (int i = 0; i < n_started; i++) pthread_join(threads[i], NULL);
    mdp_free(threads);
    if (code == 0) return mdp_ok();
    return MDP_ERROR(MDP_EXHAUSTED,
                     "a rank was to have %d threads and can have %d: %s. Raise the limit (ulimit -u or -v, or that of "
                     "the batch system), or use fewer (--threads).",
                     n + 1, n_started + 1, strerror(code));
}

static mdp_status start_threads(int n_thread) {
    int n_here = 0;
    if (n_thread > 1) MDP_TRY(try_threads(n_thread - 1));
#pragma omp parallel num_threads(n_thread)
    {
#pragma omp atomic
        n_here++;
    }
    if (n_here != n_thread)
        return MDP_ERROR(MDP_EXHAUSTED,
                         "a rank was to have %d threads and the OpenMP library gives %d; see OMP_THREAD_LIMIT and "
                         "OMP_DYNAMIC, or use fewer (--threads).",
                         n_thread, n_here);
    return mdp_blas_reserve(n_thread);
}

mdp_status mdp_threads_start_all(const mdp_comm *comm, int n_thread) {
    return mdp_agree_all(comm, start_threads(n_thread));
}

/* ---- threads ------------------------------------------------------------------------------------------------- */

int mdp_threads_cores(void) {
    cpu_set_t mask;
    if (sched_getaffinity(0, sizeof mask, &mask) != 0) return 1;
    int n = CPU_COUNT(&mask);
    return n > 0 ? n : 1;
}

/* A number that stands for the set of cores of this process. */
static int64_t mask_identity(void) {
    cpu_set_t mask;
    CPU_ZERO(&mask);
    if (sched_getaffinity(0, sizeof mask, &mask) != 0) return 0;
    char hex[16] = {0};
    mdp_digest digest = mdp_hash_bytes(&mask, (int64_t)sizeof mask);
    for (int i = 0; i < 15; i++) hex[i] = digest.hex[i];
    return strtoll(hex, NULL, 16);
}

/* Bound ranks have their own cores; unbound ranks of a node see the same ones and must share them. */
static int share_of_cores(const mdp_comm *comm, const int64_t *identity) {
    int n_sharing = 1;
    for (int r = 0; r < comm->size; r++)
        n_sharing += r != comm->rank && comm->rank_node[r] == comm->node && identity[r] == identity[comm->rank];
    int share = mdp_threads_cores() / n_sharing;
    return share > 0 ? share : 1;
}

/* OMP_NUM_THREADS (the first of a list of levels), or 0 when it says nothing. */
static int wished_threads(void) {
    const char *text = getenv("OMP_NUM_THREADS");
    long n = text ? strtol(text, NULL, 10) : 0;
    return n > 0 && n <= MAX_THREAD ? (int)n : 0;
}

mdp_status mdp_threads_default_all(const mdp_comm *comm, int *n_thread) {
    int64_t *identity = NULL;
    mdp_status status = MDP_ALLOC(&identity, comm->size, "the cores of ranks");
    status = mdp_agree_all(comm, status);
    if (status.code == MDP_OK) {
        identity[comm->rank] = mask_identity();
        status = mdp_sum_i64_all(comm, identity, comm->size);
    }
    if (status.code == MDP_OK) {
        int wish = wished_threads();
        *n_thread = wish > 0 ? wish : share_of_cores(comm, identity);
    }
    mdp_free(identity);
    return status;
}

/* ---- speed --------------------------------------------------------------------------------------------------- */

/* Products of one tile with one panel until the time is over; returns FLOP/s of this thread. */
static double measure_thread(mdp_gemm *gemm, const float *x, const float *w, float *y) {
    double start = mdp_seconds(), now = start, flop = 0.0;
    while (now - start < MEASURE_SECONDS) {
        mdp_gemm_weights(gemm, MDP_TILE_ROWS, MDP_PANEL_ROWS, MEASURE_WIDTH, x, MEASURE_WIDTH, w, MEASURE_WIDTH, y,
                         MDP_PANEL_ROWS);
        flop += 2.0 * MDP_TILE_ROWS * MDP_PANEL_ROWS * MEASURE_WIDTH;
        now = mdp_seconds();
    }
    return flop / (now - start);
}

static mdp_status measure(mdp_gemm *gemm, int n_thread, double *flop_per_second) {
    float *x = NULL, *w = NULL, *y = NULL;
    double sum = 0.0;
    mdp_status status = MDP_ALLOC(&x, (mdp_count_t)MDP_TILE_ROWS * MEASURE_WIDTH, "a measurement");
    if (status.code == MDP_OK) status = MDP_ALLOC(&w, (mdp_count_t)MDP_PANEL_ROWS * MEASURE_WIDTH, "a measurement");
    if (status.code == MDP_OK)
        status = MDP_ALLOC(&y, (mdp_count_t)n_thread * MDP_TILE_ROWS * MDP_PANEL_ROWS, "a measurement");
    if (status.code == MDP_OK) {
#pragma omp parallel for num_threads(n_thread) reduction(+ : sum) schedule(static, 1)
        for (int i = 0; i < n_thread; i++)
            sum += measure_thread(gemm, x, w, y + (size_t)i * MDP_TILE_ROWS * MDP_PANEL_ROWS);
    }
    mdp_free(x);
    mdp_free(w);
    mdp_free(y);
    *flop_per_second = sum;
    return status;
}

mdp_status mdp_threads_measure_all(const mdp_comm *comm, mdp_gemm *gemm, int n_thread, double *flop_per_second) {
    double mine = 0.0;
    MDP_AGREE(comm, measure(gemm, n_thread, &mine));
    int64_t megaflop = llround(mine / 1e6);
    MDP_TRY(mdp_sum_i64_all(comm, &megaflop, 1));
    *flop_per_second = (double)megaflop * 1e6;
    return mdp_ok();
}
