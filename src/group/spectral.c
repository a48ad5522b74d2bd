/* spectral.c - spectral grouping (Ng, Jordan, Weiss 2001).
 *
 * In: similarities A. W = max(A, 0) without its diagonal; the eigenvectors of the n_group smallest eigenvalues of the
 * symmetric normalised Laplacian I - D^-1/2 W D^-1/2, a row for each expert, rows scaled to length 1, k-means on them.
 * An expert that is similar to none is a component of its own: its row of the Laplacian is 0. */
#include "group/kmeans.h"
#include "linalg/mdp_lapack.h"

#include <inttypes.h>

static void make_laplacian(int32_t n, double *w, double *scale) {
    for (int32_t i = 0; i < n; i++) {
        double degree = 0.0;
        for (int32_t j = 0; j < n; j++) degree += fmax(w[(int64_t)i * n + j], 0.0);
        scale[i] = degree > 0.0 ? 1.0 / sqrt(degree) : 0.0;
    }
    for (int32_t i = 0; i < n; i++) {
        for (int32_t j = 0; j < n; j++) w[(int64_t)i * n + j] = -fmax(w[(int64_t)i * n + j], 0.0) * scale[i] * scale[j];
        w[(int64_t)i * n + i] = scale[i] > 0.0 ? 1.0 : 0.0;
    }
}

/* a [n, n] symmetric becomes its eigenvectors, one after another, by rising eigenvalues. */
static mdp_status find_eigenvectors(int32_t n, double *a, double *eigenvalue) {
    double best_size = 0.0, *work = NULL;
    int order = n, n_work = -1, info = 0;
    dsyev_("V", "L", &order, a, &order, eigenvalue, &best_size, &n_work, &info);
    n_work = (int)best_size;
    MDP_TRY(MDP_ALLOC(&work, n_work, "eigenvectors"));
    dsyev_("V", "L", &order, a, &order, eigenvalue, work, &n_work, &info);
    mdp_free(work);
    if (info == 0) return mdp_ok();
    return MDP_ERROR(MDP_INTERNAL, "LAPACK's dsyev of order %" PRId32 " ended with %d.", n, info);
}

/* Rows of the first n_group eigenvectors, scaled to length 1 where they are not 0. */
static void take_rows(int32_t n, int32_t n_group, const double *vectors, double *rows, const double **row) {
    for (int32_t i = 0; i < n; i++) {
        double *to = rows + (int64_t)i * n_group, square = 0.0;
        row[i] = to;
        for (int32_t g = 0; g < n_group; g++) {
            to[g] = vectors[(int64_t)g * n + i];
            square += to[g] * to[g];
        }
        for (int32_t g = 0; square > 0.0 && g < n_group; g++) to[g] /= sqrt(square);
    }
}

mdp_status group_spectral(const group_problem *problem, group_answer *answer) {
    int32_t n = problem->n;
    double *scale = NULL, *rows = NULL;
    mdp_status status = MDP_ALLOC(&scale, n, "eigenvalues");
    if (status.code == MDP_OK) status = MDP_ALLOC(&rows, (int64_t)n * problem->n_group, "rows of eigenvectors");
    if (status.code == MDP_OK) {
        make_laplacian(n, problem->matrix, scale);
        status = find_eigenvectors(n, problem->matrix, scale);
    }
    if (status.code == MDP_OK) {
        take_rows(n, problem->n_group, problem->matrix, rows, problem->feature);
        status = kmeans_run(problem, (const double *const *)problem->feature, problem->n_group, answer);
    }
    mdp_free(scale);
    mdp_free(rows);
    return status;
}
