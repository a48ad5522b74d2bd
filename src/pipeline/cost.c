/* cost.c - what a forward pass will take, from headers alone, and the choice of the batch. */
#include "mdp/pipeline.h"

/* Of one token in a layer, its attention over keys aside. Biases add one each. */
static double layer_flop(const mdp_model *model, const mdp_layer *layer) {
    const mdp_attention *a = &layer->attention;
    const mdp_matrix *biases[] = {&a->q_bias, &a->k_bias, &a->v_bias, &a->o_bias};
    double d = (double)model->d_model;
    double flop = 4.0 * d * (double)((model->n_head + model->n_kv_head) * model->head_dim);
    for (int i = 0; i < 4; i++) flop += biases[i]->tensor ? (double)biases[i]->n_col : 0.0;
    if (!layer->is_moe) return flop + 6.0 * d * (double)layer->dense_ff;
    const mdp_moe *moe = &layer->moe;
    flop += 2.0 * d * ((double)moe->n_expert + 3.0 * (double)moe->d_ff * (double)moe->top_k);
    return flop + 6.0 * d * (double)moe->shared_ff + (moe->shared_gate.tensor ? 2.0 * d : 0.0);
}

/* Multiply-adds count as two. Attention counts every visible key. */
static double forward_flop(const mdp_model *model, const mdp_tokens *tokens, bool with_head) {
    double heads = (double)(model->n_head * model->head_dim), row = 0.0, pairs = 0.0;
    for (int64_t l = 0; l < model->n_layer; l++) {
        const mdp_layer *layer = &model->layers[l];
        int64_t window = layer->attention.window;
        row += layer_flop(model, layer);
        for (int64_t s = 0; s < tokens->n_sequence; s++) {
            double length = (double)(tokens->offset[s + 1] - tokens->offset[s]);
            double w = window > 0 && (double)window < length ? (double)window : length;
            pairs += w * (length - w) + 0.5 * w * (w + 1.0);
        }
    }
    if (with_head) row += 2.0 * (double)model->d_model * (double)model->vocab_size;
    return (double)tokens->n_token * row + 4.0 * heads * pairs;
}

static int64_t matrix_bytes(const mdp_matrix *matrix) {
    return matrix->tensor ? matrix->n_row * matrix->n_col * mdp_dtype_bits(matrix->tensor->type) / 8 : 0;
}

static int64_t mlp_bytes(const mdp_expert *mlp) {
    return matrix_bytes(&mlp->gate) + matrix_bytes(&mlp->up) + matrix_bytes(&mlp->down);
}

/* What every node reads of a layer: all but its routed experts. */
static int64_t common_bytes(const mdp_layer *layer) {
    const mdp_attention *a = &layer->attention;
    const mdp_matrix *matrices[] = {
        &layer->norm1,
        &layer->norm2,
        &a->q,
        &a->k,
        &a->v,
        &a->o,
        &a->q_bias,
        &a->k_bias,
        &a->v_bias,
        &a->o_bias,
        &a->q_norm,
        &a->k_norm,
        &layer->moe.router,
        &layer->moe.shared_gate,
    };
    int64_t n_byte = mlp_bytes(&layer->dense) + mlp_bytes(&layer->moe.shared);
    for (size_t i = 0; i < sizeof matrices / sizeof matrices[0]; i++) n_byte += matrix_bytes(matrices[i]);
    return n_byte;
}

/* Bytes of weights that one batch meets, on all nodes together: experts once, the rest on every node. */
static int64_t batch_bytes(const mdp_model *model, int n_node, bool with_head) {
    int64_t common = with_head ? matrix_bytes(&model->head) : 0, experts = 0;
    for (int64_t l = 0; l < model->n_layer; l++) {
        const mdp_layer *layer = &model->layers[l];
        common += common_bytes(layer);
        for (int32_t e = 0; e < layer->moe.n_expert; e++) experts += mlp_bytes(&layer->moe.experts[e]);
    }
    return experts + n_node * common;
}

/* Fill the cost of one choice of the batch. */
static mdp_status cost_of_batch(const mdp_comm *comm, const mdp_model *model, const mdp_tokens *tokens, int n_stream,
                                bool with_head, int n_thread, int64_t batch_tokens, mdp_forward_cost *out) {
    mdp_partition *partition = NULL;
    MDP_TRY(mdp_partition_new(tokens, batch_tokens, &partition));
    out->batch_tokens = batch_tokens;
    out->n_batch = partition->n_batch;
    out->memory = mdp_engine_memory(comm, model, partition, n_thread, n_stream, with_head);
    mdp_partition_destroy(partition);
    return mdp_ok();
}

mdp_status mdp_forward_cost_of(const mdp_comm *comm, const mdp_model *model, const mdp_tokens *tokens, int n_stream,
                               bool with_head, const mdp_forward_options *options, mdp_forward_cost *out) {
    int64_t batch = options->batch_tokens > 0 ? options->batch_tokens : tokens->n_token;
    for (;;) {
        MDP_TRY(cost_of_batch(comm, model, tokens, n_stream, with_head, options->n_thread, batch, out));
        if (options->memory <= 0 || out->memory <= options->memory) break;
        if (options->batch_tokens > 0 || batch <= MDP_BLOCK_TOKENS) {
            char need[32], have[32];
            return MDP_ERROR(MDP_USAGE, "--memory %s is too little: %s a rank are needed on %d ranks%s",
                             mdp_print_bytes(have, options->memory), mdp_print_bytes(need, out->memory), comm->size,
                             options->batch_tokens > 0 ? " with this --batch-tokens; take a smaller one, or more ranks"
                                                       : "; give more memory or more ranks");
        }
        batch = batch / 2 > MDP_BLOCK_TOKENS ? batch / 2 : MDP_BLOCK_TOKENS;
    }
    out->flop = n_stream * forward_flop(model, tokens, with_head);
    out->bytes_read = out->n_batch * batch_bytes(model, comm->n_node, with_head);
    return mdp_ok();
}
