/* A layer of experts over ranks and nodes: the same bits for every division into nodes, every token row once to each
 * other node, tiles spread evenly, however uneven the routing to three of eight experts is, and rows on their way while
 * experts are computed. */
#include "engine/dispatch.h"
#include "random_tokens.h"

#include <stdlib.h>
#include <string.h>

enum { SEQUENCE = 256 };

typedef struct pass {
    mdp_comm *comm;
    mdp_model *model;
    mdp_tokens *tokens;
    int64_t n_row;        /* computed on this rank */
    unsigned char *needs; /* [2, size, n_token] does a rank compute an expert for a token in an even, or an odd, round?
                           * this rank's rows are filled */
    int n_round;
    float *residual; /* [n_local, d_model] what came out */
    int64_t n_local, first_token;
    int64_t wanted, sent; /* by this rank, to other nodes */
    const mdp_engine *engine;
    int64_t n_tile, n_ahead; /* tiles, and those of them that were seen while an exchange was under way */
    const float *y;          /* where the next tile of the round will be */
    int64_t moved, n_moved;  /* how far exchanges had come by the last tile; tiles by which they had come further */
} pass;

static void see_exchanges(pass *p, const mdp_tile *tile) {
    const mdp_exchange_room *room = p->engine->room;
    int64_t moved = 1000000 * room->n_done + room->sent.n_passed + room->taken.n_passed;
    p->n_tile++;
    p->n_ahead += room->n_begun > 0;
    p->n_moved += room->n_begun > 0 && tile->y == p->y && moved != p->moved;
    p->y = tile->y + tile->n_row * tile->d_model;
    p->moved = moved;
}

static mdp_status see_tile(void *context, const mdp_tile *tile) {
    pass *p = context;
    p->n_row += tile->n_row;
    p->n_round += tile->y != p->y; /* within a round they follow each other */
    see_exchanges(p, tile);
    unsigned char *needs = p->needs + ((p->n_round - 1) % 2 * p->comm->size + p->comm->rank) * p->tokens->n_token;
    for (int32_t i = 0; i < tile->n_row; i++) needs[tile->token[i]] = 1;
    return mdp_ok();
}

/* The first layer, of n_expert of its experts with top_k chosen, with nodes of `per_node` ranks (0: as the machine is).
 */
static void run_layer(pass *p, const mdp_catalogue *catalogue, int n_expert, int top_k, int per_node) {
    char text[16];
    mdp_expert_t kept[] = {1, 3, 4, 5, 6, 7};
    mdp_layer_view layers[64] = {0};
    mdp_view view = {.n_layer = p->model->n_layer, .layers = layers};
    const mdp_view *views[] = {&view};
    layers[0] = (mdp_layer_view){.n_expert = n_expert, .top_k = top_k, .source = kept};
    snprintf(text, sizeof text, "%d", per_node);
    setenv("MDP_RANKS_PER_NODE", per_node > 0 ? text : "", 1);
    CHECK_OK(mdp_comm_new_all(MPI_COMM_WORLD, &p->comm));
    p->comm->count_max = 4096; /* bytes of a message: many */
    CHECK_OK(MDP_ALLOC(&p->needs, 2 * p->comm->size * p->tokens->n_token, "needs"));
    const mdp_observers observers = {.tile = see_tile, .context = p};
    mdp_gemm *gemm = NULL;
    CHECK_OK(mdp_gemm_new(MDP_OPENBLAS, MDP_GEMM_F32, 1, &gemm));
    const mdp_engine_options options = {
        .n_thread = 1, .gemm = gemm, .pass = {.n_stream = 1}, .views = views, .observers = &observers};
    mdp_reader *reader = NULL;
    mdp_partition *partition = NULL;
    mdp_engine *engine = NULL;
    CHECK_OK(mdp_reader_new(catalogue, &reader));
    CHECK_OK(mdp_partition_new(p->tokens, 0, &partition));
    CHECK_OK(mdp_engine_new_all(p->comm, p->model, reader, p->tokens, partition, &options, &engine));
    p->engine = engine;
    CHECK_OK(mdp_engine_begin_batch_all(engine, 0));
    CHECK_OK(mdp_engine_layer_all(engine, 0));
    p->n_local = engine->batch.n_token;
    p->first_token = engine->batch.first_token;
    p->wanted = engine->away_row_wanted;
    p->sent = engine->away_row;
    CHECK_OK(MDP_ALLOC(&p->residual, p->n_local * p->model->d_model, "rows"));
    memcpy(p->residual, mdp_engine_residual(engine, 0), (size_t)(p->n_local * p->model->d_model) * sizeof *p->residual);
    mdp_engine_destroy_all(engine);
    mdp_gemm_destroy(gemm);
    mdp_partition_destroy(partition);
    mdp_reader_destroy(reader);
}

static void end_pass(pass *p) {
    mdp_comm_destroy_all(p->comm);
    mdp_free(p->needs);
    mdp_free(p->residual);
}

/* What this rank's tokens need of other nodes, from who computed what in which of two rounds. */
static void check_counts(pass *p) {
    const mdp_comm *comm = p->comm;
    int64_t n = p->tokens->n_token, by_rank = 0, by_node = 0;
    MPI_Allreduce(MPI_IN_PLACE, p->needs, (int)(2 * comm->size * n), MPI_UNSIGNED_CHAR, MPI_MAX, MPI_COMM_WORLD);
    CHECK(p->n_round <= 2);
    for (int64_t i = 0; i < 2 * p->n_local; i++) {
        const unsigned char *needs = p->needs + i % 2 * comm->size * n + p->first_token + i / 2;
        for (int node = 0; node < comm->n_node; node++) {
            bool needed = false;
            for (int r = 0; r < comm->size; r++) {
                if (comm->rank_node[r] != node || node == comm->node || !needs[r * n]) continue;
                needed = true;
                by_rank++;
            }
            by_node += needed;
        }
    }
    CHECK(p->wanted == by_rank);
    CHECK(p->sent == by_node);
    CHECK(comm->n_node == 1 || comm->size < 4 || by_rank > 0);
}

static void nodes_change_the_way_but_no_bit(const mdp_catalogue *catalogue, mdp_model *model, int size) {
    const int per_node[] = {0, 1, 2, 3, 4};
    mdp_tokens *tokens = random_tokens(3 * size, SEQUENCE); /* 3,072 rows of experts a rank */
    pass first = {.model = model, .tokens = tokens};
    run_layer(&first, catalogue, 6, 4, per_node[0]);
    check_counts(&first);
    for (size_t i = 1; i < sizeof per_node / sizeof *per_node && per_node[i] < 2 * size; i++) {
        pass other = {.model = model, .tokens = tokens};
        run_layer(&other, catalogue, 6, 4, per_node[i]);
        check_counts(&other);
        CHECK(other.n_local == first.n_local);
        CHECK(memcmp(first.residual, other.residual, (size_t)(first.n_local * model->d_model) * sizeof(float)) == 0);
        /* four of six experts are on few nodes: most tokens have two on one of several ranks */
        int64_t rows[2] = {other.wanted, other.sent};
        MPI_Allreduce(MPI_IN_PLACE, rows, 2, MPI_INT64_T, MPI_SUM, MPI_COMM_WORLD);
        if (other.comm->rank == 0)
            printf("%d ranks, %d on a node: %lld rows to other nodes for %lld owners\n", size, per_node[i],
                   (long long)rows[1], (long long)rows[0]);
        CHECK(rows[1] <= rows[0] && (mdp_landing_words(other.comm) == 0 || rows[1] < rows[0]));
        end_pass(&other);
    }
    end_pass(&first);
    mdp_tokens_destroy(tokens);
}

/* With 20 tiles a rank, in several rounds: every tile is seen while rows of the round before or after travel, and they
 * come further from one tile to the next. */
static void work_is_even_and_rows_travel_meanwhile(const mdp_catalogue *catalogue, mdp_model *model, int size,
                                                   int per_node) {
    mdp_tokens *tokens = random_tokens(20 * size, SEQUENCE);
    pass p = {.model = model, .tokens = tokens};
    run_layer(&p, catalogue, 3, 2, per_node);
    CHECK(p.n_ahead == (size > 1 ? p.n_tile : 0));
    MPI_Allreduce(MPI_IN_PLACE, &p.n_moved, 1, MPI_INT64_T, MPI_SUM, MPI_COMM_WORLD);
    CHECK((p.n_moved > 0) == (size > 1));
    int64_t most = p.n_row, sum = p.n_row;
    MPI_Allreduce(MPI_IN_PLACE, &most, 1, MPI_INT64_T, MPI_MAX, MPI_COMM_WORLD);
    MPI_Allreduce(MPI_IN_PLACE, &sum, 1, MPI_INT64_T, MPI_SUM, MPI_COMM_WORLD);
    CHECK(sum == 2 * tokens->n_token);
    CHECK((double)most * size <= 1.05 * (double)sum);
    end_pass(&p);
    mdp_tokens_destroy(tokens);
}

int main(int argc, char **argv) {
    MPI_Init(&argc, &argv);
    CHECK_OK(mdp_blas_start());
    mdp_comm *comm = NULL;
    mdp_catalogue *catalogue = NULL;
    mdp_model *model = NULL;
    CHECK_OK(mdp_comm_new_all(MPI_COMM_WORLD, &comm));
    CHECK_OK(mdp_catalogue_open_all(comm, MDP_TEST_FIXTURES "/mixtral-demo", &catalogue));
    CHECK_OK(mdp_model_bind(catalogue, &model));
    nodes_change_the_way_but_no_bit(catalogue, model, comm->size);
    work_is_even_and_rows_travel_meanwhile(catalogue, model, comm->size, 2);
    work_is_even_and_rows_travel_meanwhile(catalogue, model, comm->size, 8);
    mdp_model_destroy(model);
    mdp_catalogue_destroy(catalogue);
    mdp_comm_destroy_all(comm);
    return check_end_all("engine_dispatch");
}
