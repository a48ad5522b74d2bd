/* Two streams through a layer of experts: the activations of the last one come back to the tokens' owners and are those
 * that its outputs are made of, for any division into nodes; experts that a view makes compute in the place of the
 * model's; the block of the last stream is redone by itself. */
#include "engine/engine.h"
#include "random_tokens.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { SEQUENCE = 256, N_KEPT = 5 };

static const mdp_expert_t kept[N_KEPT] = {1, 3, 4, 6, 7};

typedef struct pass {
    const mdp_model *model;
    const mdp_engine *engine;
    float *down[N_KEPT];   /* what each expert of the second stream has */
    double *routed;        /* [n_token, d_model] outputs of the second stream's experts, by observers */
    int64_t n_row, n_seen; /* rows of activations, and tokens combined in the second stream */
} pass;

static void see_combined(void *context, const mdp_combined_token *token) {
    pass *p = context;
    if (token->branch != mdp_engine_branch_of(p->engine, 1)) return;
    for (int64_t j = 0; j < p->model->d_model; j++)
        p->routed[token->local * p->model->d_model + j] = (double)token->routed[j];
#pragma omp atomic
    p->n_seen++;
}

/* sum over slots of weight * W_down h is what was combined. */
static mdp_status see_wave(void *context, const mdp_wave_rows *rows) {
    pass *p = context;
    int64_t d = p->model->d_model, f = p->model->layers[0].moe.d_ff;
    CHECK(rows->n_expert == N_KEPT && rows->stride == f);
    for (int64_t i = 0; i < rows->n_local; i++) {
        for (int64_t j = 0; j < d; j += 7) {
            double sum = 0.0, size = 0.0;
            for (int32_t slot = 0; slot < rows->top_k; slot++) {
                int64_t at = i * rows->top_k + slot;
                const float *h = rows->h + at * rows->stride, *w = p->down[rows->index[at]] + j * f;
                for (int64_t k = 0; k < f; k++) {
                    double product = (double)rows->weight[at] * (double)h[k] * (double)w[k];
                    sum += product;
                    size += fabs(product);
                }
            }
            CHECK(fabs(sum - p->routed[(rows->first_local + i) * d + j]) <= 2e-6 * size);
        }
        p->n_row += rows->top_k;
    }
    return mdp_ok();
}

static float *copy_rows(const mdp_engine *engine, int branch) {
    float *out = NULL;
    int64_t n = engine->batch.n_token * engine->model->d_model;
    CHECK_OK(MDP_ALLOC(&out, n, "rows"));
    memcpy(out, mdp_engine_residual(engine, branch), (size_t)n * sizeof *out);
    return out;
}

static bool is_same(const mdp_engine *engine, int branch, const float *rows) {
    size_t n = (size_t)(engine->batch.n_token * engine->model->d_model) * sizeof *rows;
    return memcmp(mdp_engine_residual(engine, branch), rows, n) == 0;
}

/* The first layer of both streams, and the second stream's block again: as it was, then with expert 0 replaced by 5. */
static void redo(mdp_engine *engine, mdp_layer_view *view, const mdp_expert *const *others) {
    float *first = copy_rows(engine, 0), *second = copy_rows(engine, mdp_engine_branch_of(engine, 1));
    const mdp_expert *const *made = view->made;
    int64_t differ = 0;
    CHECK(mdp_engine_n_branch(engine) == 2);
    CHECK_OK(mdp_engine_redo_block_all(engine, 0, NULL));
    CHECK(is_same(engine, 1, second));
    view->made = others;
    CHECK_OK(mdp_engine_redo_block_all(engine, 0, NULL));
    differ = !is_same(engine, 1, second);
    CHECK_OK(mdp_sum_i64_all(engine->comm, &differ, 1));
    CHECK(differ > 0);
    view->made = made;
    CHECK_OK(mdp_engine_redo_block_all(engine, 0, NULL));
    CHECK(is_same(engine, 0, first) && is_same(engine, 1, second));
    mdp_free(first);
    mdp_free(second);
}

static void run(const mdp_catalogue *catalogue, mdp_model *model, const mdp_tokens *tokens, int per_node,
                int n_thread) {
    char text[16];
    mdp_comm *comm = NULL;
    snprintf(text, sizeof text, "%d", per_node);
    setenv("MDP_RANKS_PER_NODE", per_node > 0 ? text : "", 1);
    CHECK_OK(mdp_comm_new_all(MPI_COMM_WORLD, &comm));
    comm->count_max = 4096; /* bytes of a message: many */
    const mdp_expert *experts = model->layers[0].moe.experts;
    mdp_expert mixed = experts[3], other = experts[5];
    mixed.down = experts[2].down;
    const mdp_expert *made[N_KEPT] = {NULL, &mixed, NULL, NULL, NULL},
                     *others[N_KEPT] = {&other, &mixed, NULL, NULL, NULL};
    mdp_layer_view layers[64] = {0};
    mdp_view view = {.n_layer = model->n_layer, .layers = layers};
    const mdp_view *views[] = {NULL, &view};
    layers[0] = (mdp_layer_view){.n_expert = N_KEPT, .top_k = 2, .source = kept, .made = made};
    pass p = {.model = model};
    const mdp_observers observers = {.combined = see_combined, .wave_all = see_wave, .context = &p};
    mdp_gemm *gemm = NULL;
    mdp_reader *reader = NULL;
    mdp_partition *partition = NULL;
    mdp_engine *engine = NULL;
    CHECK_OK(mdp_gemm_new(MDP_OPENBLAS, MDP_GEMM_F32, n_thread, &gemm));
    const mdp_engine_options options = {.n_thread = n_thread,
                                        .gemm = gemm,
                                        .pass = {.n_stream = 2, .redo_block = true, .activations = true},
                                        .views = views,
                                        .observers = &observers};
    CHECK_OK(mdp_reader_new(catalogue, &reader));
    for (int e = 0; e < N_KEPT; e++)
        CHECK_OK(mdp_matrix_load(reader, made[e] ? &made[e]->down : &experts[kept[e]].down, &p.down[e]));
    CHECK_OK(mdp_partition_new(tokens, 0, &partition));
    CHECK_OK(mdp_engine_new_all(comm, model, reader, tokens, partition, &options, &engine));
    p.engine = engine;
    CHECK_OK(mdp_engine_begin_batch_all(engine, 0));
    CHECK_OK(MDP_ALLOC(&p.routed, engine->batch.n_token * model->d_model, "outputs"));
    CHECK_OK(mdp_engine_layer_all(engine, 0));
    CHECK(p.n_row == 2 * engine->batch.n_token && p.n_seen == engine->batch.n_token);
    redo(engine, &layers[0], others);
    CHECK(p.n_row == 2 * engine->batch.n_token &&
          p.n_seen == engine->batch.n_token); /* observers saw nothing of that */
    for (int e = 0; e < N_KEPT; e++) mdp_free(p.down[e]);
    mdp_free(p.routed);
    mdp_engine_destroy_all(engine);
    mdp_gemm_destroy(gemm);
    mdp_partition_destroy(partition);
    mdp_reader_destroy(reader);
    mdp_comm_destroy_all(comm);
}

int main(int argc, char **argv) {
    mdp_comm *comm = NULL;
    mdp_catalogue *catalogue = NULL;
    mdp_model *model = NULL;
    MPI_Init(&argc, &argv);
    CHECK_OK(mdp_blas_start());
    CHECK_OK(mdp_comm_new_all(MPI_COMM_WORLD, &comm));
    CHECK_OK(mdp_catalogue_open_all(comm, MDP_TEST_FIXTURES "/mixtral-demo", &catalogue));
    CHECK_OK(mdp_model_bind(catalogue, &model));
    mdp_tokens *tokens = random_tokens(4 * comm->size + 3, SEQUENCE);
    for (int per_node = 0; per_node <= 2 && per_node <= comm->size; per_node++)
        run(catalogue, model, tokens, per_node, per_node == 0 ? 2 : 1);
    mdp_tokens_destroy(tokens);
    mdp_model_destroy(model);
    mdp_catalogue_destroy(catalogue);
    mdp_comm_destroy_all(comm);
    return check_end_all("engine_activations");
}
