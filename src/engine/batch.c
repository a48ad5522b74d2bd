/* batch.c - the tokens of a batch that this rank holds, and their residual streams. */
#include "engine/engine.h"

#include <string.h>

void mdp_branch_free(mdp_branch *branch) {
    mdp_free(branch->x);
    mdp_free(branch->row);
    mdp_free(branch->index);
    mdp_free(branch->weight);
    memset(branch, 0, sizeof *branch);
}

static void describe_batch(mdp_engine *engine, int64_t batch) {
    const mdp_partition *partition = engine->partition;
    int64_t first, end;
    mdp_partition_share(partition, batch, engine->comm->rank, engine->comm->size, &first, &end);
    engine->team = mdp_team_of_batch(engine, batch);
    engine->batch = (mdp_local_batch){.number = batch, .first_pack = first, .n_pack = end - first};
    if (first == end) return;
    engine->batch.first_token = partition->packs[first].first_token;
    engine->batch.n_token =
        partition->packs[end - 1].first_token + partition->packs[end - 1].n_token - engine->batch.first_token;
}

static void fill_categories(mdp_engine *engine) {
    const mdp_tokens *tokens = engine->tokens;
    for (int64_t p = 0; p < engine->batch.n_pack; p++) {
        const mdp_pack *pack = &engine->partition->packs[engine->batch.first_pack + p];
        for (int64_t s = pack->first_sequence; s < pack->first_sequence + pack->n_sequence; s++) {
            for (int64_t t = tokens->offset[s]; t < tokens->offset[s + 1]; t++) {
                engine->category[t - engine->batch.first_token] = tokens->sequence_category[s];
            }
        }
    }
}

/* One row of the embedding for every token, read where it lies. */
static mdp_status read_embeddings(mdp_engine *engine) {
    const mdp_matrix *embedding = &engine->model->embedding;
    int64_t d = engine->model->d_model;
    float scale = (float)engine->model->embedding_scale;
    mdp_status failed = mdp_ok();
#pragma omp parallel num_threads(engine->n_thread)
    {
        void *scratch = NULL;
        mdp_status status = mdp_alloc(&scratch, mdp_matrix_scratch(embedding, 1), 1, "an embedding row");
#pragma omp for schedule(static)
        for (int64_t i = 0; i < engine->batch.n_token; i++) {
            if (status.code != MDP_OK) continue;
            float *x = engine->branches[0].x + i * d;
            status = mdp_matrix_read(engine->reader, embedding, engine->ids[i], 1, scratch, x);
            for (int64_t j = 0; j < d && scale != 1.0F; j++) x[j] *= scale;
        }
        if (status.code != MDP_OK) {
#pragma omp critical(mdp_embedding)
            failed = status;
        }
        mdp_free(scratch);
    }
    return failed;
}

/* The batch's tokens, and n_branch empty residual streams. */
static mdp_status take_tokens(mdp_engine *engine, int n_branch) {
    int64_t n = engine->batch.n_token;
    mdp_free(engine->ids);
    mdp_free(engine->category);
    engine->ids = NULL;
    engine->category = NULL;
    MDP_TRY(MDP_ALLOC(&engine->ids, n, "token ids"));
    MDP_TRY(MDP_ALLOC(&engine->category, n, "categories"));
    engine->batch.ids = engine->ids;
    engine->batch.category = engine->category;
    MDP_TRY(mdp_tokens_read(engine->tokens, engine->batch.first_token, n, engine->ids));
    fill_categories(engine);
    for (int s = 0; s < engine->n_branch; s++) mdp_branch_free(&engine->branches[s]);
    engine->n_branch = n_branch;
    for (int s = 0; s < n_branch; s++)
        MDP_TRY(MDP_ALLOC(&engine->branches[s].x, n * engine->model->d_model, "the residual stream"));
    mdp_free(engine->input);
    engine->input = NULL;
    if (!engine->redo_block) return mdp_ok();
    return MDP_ALLOC(&engine->input, n * engine->model->d_model, "the input of a MoE block");
}

static mdp_status begin_local(mdp_engine *engine) {
    MDP_TRY(take_tokens(engine, 1));
    memset(engine->stream_branch, 0, (size_t)engine->n_stream * sizeof *engine->stream_branch);
    mdp_reading reading = mdp_engine_begin_reading(engine);
    mdp_status status = read_embeddings(engine);
    mdp_engine_end_reading(engine, &reading);
    return status;
}

mdp_status mdp_engine_begin_batch_all(mdp_engine *engine, int64_t batch) {
    describe_batch(engine, batch);
    mdp_status status = begin_local(engine);
    status = mdp_engine_agree_all(engine, status);
    return status;
}

mdp_status mdp_engine_restore_batch_all(mdp_engine *engine, int64_t batch, int n_branch, const int *leader,
                                        const int *stream_branch) {
    describe_batch(engine, batch);
    MDP_AGREE(engine->comm, take_tokens(engine, n_branch));
    for (int s = 0; s < n_branch; s++) engine->branches[s].leader = leader[s];
    memcpy(engine->stream_branch, stream_branch, (size_t)engine->n_stream * sizeof *stream_branch);
    return mdp_ok();
}

mdp_status mdp_engine_unshared(const mdp_engine *engine) {
    return engine->unshared;
}

const mdp_local_batch *mdp_engine_batch(const mdp_engine *engine) {
    return &engine->batch;
}

mdp_profile *mdp_engine_profile(const mdp_engine *engine) {
    return engine->profile;
}

int mdp_engine_n_branch(const mdp_engine *engine) {
    return engine->n_branch;
}

int mdp_engine_branch_of(const mdp_engine *engine, int stream) {
    return engine->stream_branch[stream];
}

int mdp_engine_leader_of(const mdp_engine *engine, int branch) {
    return engine->branches[branch].leader;
}

void mdp_engine_routes(const mdp_engine *engine, int branch, const mdp_expert_t **index, const float **weight) {
    *index = engine->branches[branch].index;
    *weight = engine->branches[branch].weight;
}

float *mdp_engine_residual(const mdp_engine *engine, int branch) {
    return engine->branches[branch].x;
}
