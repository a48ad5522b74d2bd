/* gram.c - see gram.h. */
#include "observe/gram.h"

#include <cblas.h>
#include <omp.h>

/* Scratch of one thread. */
typedef struct bench {
    double *columns;  /* [n, MDP_GRAM_BLOCK] */
    double *products; /* [n, n], lower triangle */
} bench;

int64_t mdp_gram_memory(int32_t n, int n_thread) {
    return n_thread * n * (MDP_GRAM_BLOCK + (int64_t)n) * (int64_t)sizeof(double);
}

static mdp_status add_products(const mdp_gram *gram, const double *products) {
    int64_t n = gram->n;
    for (int64_t i = 0; i < n; i++) {
        for (int64_t j = 0; j <= i; j++) {
            if (mdp_short_add(&gram->sum[i * n + j], products[i * n + j])) continue;
            return MDP_ERROR(MDP_BAD_INPUT,
                             "layer %lld: the product of the %s of experts %lld and %lld is %g; values are not finite, "
                             "or far too large.",
                             (long long)gram->layer, gram->what, (long long)j, (long long)i, products[i * n + j]);
        }
    }
    return mdp_ok();
}

static mdp_status add_chunk(const mdp_gram *gram, int64_t chunk, mdp_gram_fill_fn *fill, void *context,
                            const bench *with, int64_t *flop) {
    int64_t n = gram->n, first = 0, k = MDP_GRAM_BLOCK;
    for (; k == MDP_GRAM_BLOCK && first < MDP_GRAM_COLUMNS; first += k) {
        k = fill(context, chunk, first, with->columns);
        cblas_dsyrk(CblasRowMajor, CblasLower, CblasNoTrans, (int)n, (int)k, 1.0, with->columns, MDP_GRAM_BLOCK,
                    first > 0 ? 1.0 : 0.0, with->products, (int)n);
    }
    *flop += first * n * (n + 1);
    return add_products(gram, with->products);
}

static int threads_for(const mdp_gram *gram, int64_t n_chunk) {
    return n_chunk < gram->n_thread ? (int)n_chunk : gram->n_thread;
}

mdp_status mdp_gram_add(const mdp_gram *gram, int64_t n_chunk, mdp_gram_fill_fn *fill, void *context, int64_t *flop) {
    mdp_status failed = mdp_ok();
    if (n_chunk == 0) return failed;
#pragma omp parallel num_threads(threads_for(gram, n_chunk))
    {
        bench own = {NULL, NULL};
        int64_t done = 0;
        mdp_status status = MDP_ALLOC(&own.columns, gram->n * (int64_t)MDP_GRAM_BLOCK, "products of experts");
        if (status.code == MDP_OK) status = MDP_ALLOC(&own.products, (int64_t)gram->n * gram->n, "products of experts");
#pragma omp for schedule(dynamic, 1)
        for (int64_t c = 0; c < n_chunk; c++)
            if (status.code == MDP_OK) status = add_chunk(gram, c, fill, context, &own, &done);
        mdp_free(own.columns);
        mdp_free(own.products);
#pragma omp critical(mdp_gram)
        {
            *flop += done;
            if (status.code != MDP_OK) failed = status;
        }
    }
    return failed;
}

typedef struct rows {
    const float *const *row;
    int64_t n, n_value;
} rows;

static int64_t widen(void *context, int64_t chunk, int64_t first, double *to) {
    const rows *from = context;
    int64_t start = chunk * MDP_GRAM_COLUMNS + first, n = from->n_value - start;
    if (n > MDP_GRAM_BLOCK) n = MDP_GRAM_BLOCK;
    if (n < 0) n = 0;
    for (int64_t i = 0; i < from->n; i++)
        for (int64_t j = 0; j < n; j++) to[i * MDP_GRAM_BLOCK + j] = (double)from->row[i][start + j];
    return n;
}

mdp_status mdp_gram_add_rows(const mdp_gram *gram, const float *const *row, int64_t n_value, int64_t *flop) {
    rows from = {.row = row, .n = gram->n, .n_value = n_value};
    return mdp_gram_add(gram, (n_value + MDP_GRAM_COLUMNS - 1) / MDP_GRAM_COLUMNS, widen, &from, flop);
}
