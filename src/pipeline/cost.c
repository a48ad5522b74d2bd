/* cost.c - what a forward pass will take, from headers alone, and the choice of the batch. */
#include "mdp/pipeline.h"

/* Of one token in the products of linear attention: with the state, and within chunks. */
static double mixing_flop(const mdp_delta_sizes *n) {
    double key = (double)n->d_key, value = (double)n->d_value;
    return 2.0 * (double)n->n_value * (3.0 * key * value + MDP_DELTA_CHUNK * (2.0 * key + 1.5 * value));
}

/* Of one token in a layer, its attention over keys aside. Biases add one each. */
static double layer_flop(const mdp_model *model, const mdp_layer *layer, bool recompute) {
    const mdp_attention *a = &layer->attention;
    const mdp_matrix *biases[] = {&a->q_bias, &a->k_bias, &a->v_bias, &a->o_bias, &a->q_a_bias, &a->kv_a_bias};
    double d = (double)model->d_model;
    double flop = 2.0 * (double)mdp_attention_values(a);
    for (int i = 0; i < 6; i++) flop += biases[i]->tensor ? (double)biases[i]->n_col : 0.0;
    if (a->delta.kernel.tensor) flop += mixing_flop(&model->delta);
    if (!layer->is_moe) return flop + 6.0 * d * (double)layer->dense_ff;
    const mdp_moe *moe = &layer->moe;
    double block = 2.0 * d * ((double)moe->n_expert + 3.0 * (double)moe->d_ff * (double)moe->top_k);
    block += 6.0 * d * (double)moe->shared_ff + (moe->shared_gate.tensor ? 2.0 * d : 0.0);
    return flop + (recompute ? 2.0 : 1.0) * block;
}

/* Multiply-adds count as two. Attention counts every visible key. */
static double forward_flop(const mdp_model *model, const mdp_tokens *tokens, const mdp_pass *pass) {
    int64_t n_value = model->latent.kv_rank > 0 ? model->latent.n_value : model->head_dim;
    double heads = 0.5 * (double)(model->n_head * (model->head_dim + n_value)), row = 0.0, pairs = 0.0;
    for (int64_t l = 0; l < model->n_layer; l++) {
        const mdp_layer *layer = &model->layers[l];
        int64_t window = layer->attention.window;
        row += layer_flop(model, layer, pass->recompute);
        for (int64_t s = 0; !layer->attention.delta.kernel.tensor && s < tokens->n_sequence; s++) {
            double length = (double)(tokens->offset[s + 1] - tokens->offset[s]);
            double w = window > 0 && (double)window < length ? (double)window : length;
            pairs += w * (length - w) + 0.5 * w * (w + 1.0);
        }
    }
    if (pass->with_head) row += 2.0 * (double)model->d_model * (double)model->vocab_size;
    return pass->n_stream * ((double)tokens->n_token * row + 4.0 * heads * pairs);
}

static int64_t mlp_bytes(const mdp_expert *mlp) {
    return mdp_matrix_bytes(&mlp->gate) + mdp_matrix_bytes(&mlp->up) + mdp_matrix_bytes(&mlp->down) +
           mdp_matrix_bytes(&mlp->gate_bias) + mdp_matrix_bytes(&mlp->up_bias) + mdp_matrix_bytes(&mlp->down_bias);
}

static int64_t norm_bytes(const mdp_norm *norm) {
    return mdp_matrix_bytes(&norm->weight) + mdp_matrix_bytes(&norm->bias);
}

static int64_t attention_bytes(const mdp_layer *layer) {
    const mdp_attention *a = &layer->attention;
    const mdp_matrix *matrices[] = {
        &a->q,           &a->k,         &a->v,         &a->o,         &a->q_bias,       &a->k_bias,
        &a->v_bias,      &a->o_bias,    &a->q_norm,    &a->k_norm,    &a->q_a,          &a->q_a_bias,
        &a->q_a_norm,    &a->kv_a,      &a->kv_a_bias, &a->kv_a_norm, &a->kv_b,         &a->sinks,
        &a->delta.in,    &a->delta.z,   &a->delta.b,   &a->delta.a,   &a->delta.kernel, &a->delta.rate,
        &a->delta.shift, &a->delta.norm};
    int64_t n_byte = norm_bytes(&layer->norm1);
    for (size_t i = 0; i < sizeof matrices / sizeof matrices[0]; i++) n_byte += mdp_matrix_bytes(matrices[i]);
    return n_byte;
}

static int64_t dense_bytes(const mdp_layer *layer) {
    return norm_bytes(&layer->norm2) + mlp_bytes(&layer->dense);
}

/* What every node reads of a MoE block: all but its routed experts. */
static int64_t block_bytes(const mdp_layer *layer) {
    return norm_bytes(&layer->norm2) + mdp_matrix_bytes(&layer->moe.router) +
           mdp_matrix_bytes(&layer->moe.router_bias) + mdp_matrix_bytes(&layer->moe.shared_gate) +
           mlp_bytes(&layer->moe.shared);
}

/* Bytes of weights that one batch meets, on all nodes together: experts once, the rest on every node. */
static int64_t batch_bytes(const mdp_model *model, int n_node, const mdp_pass *pass) {
    int64_t common = pass->with_head ? mdp_matrix_bytes(&model->head) : 0, experts = 0, times = pass->recompute ? 2 : 1;
    for (int64_t l = 0; l < model->n_layer; l++) {
        const mdp_layer *layer = &model->layers[l];
        common += attention_bytes(layer) + (layer->is_moe ? times * block_bytes(layer) : dense_bytes(layer));
        for (int32_t e = 0; e < layer->moe.n_expert; e++) experts += times * mlp_bytes(&layer->moe.experts[e]);
    }
    return experts + n_node * common;
}

/* Fill the cost of one choice of the batch. */
static mdp_status cost_of_batch(const mdp_comm *comm, const mdp_model *model, const mdp_tokens *tokens,
                                const mdp_pass *pass, const mdp_forward_options *options, int64_t batch_tokens,
                                mdp_forward_cost *out) {
    mdp_partition *partition = NULL;
    MDP_TRY(mdp_partition_new(tokens, batch_tokens, &partition));
    out->batch_tokens = batch_tokens;
    out->n_batch = partition->n_batch;
    out->memory = mdp_engine_memory(comm, model, partition, options->n_thread, pass) + mdp_gemm_memory(options->gemm);
    mdp_partition_destroy(partition);
    return mdp_ok();
}

static mdp_status too_little(const mdp_comm *comm, const mdp_forward_options *options, int64_t need, const char *way) {
    char a[32], b[32];
    return MDP_ERROR(MDP_USAGE, "--memory %s is too little: %s a rank are needed on %d ranks%s",
                     mdp_print_bytes(a, options->memory), mdp_print_bytes(b, need), comm->size, way);
}

/* The largest batch that fits. */
static mdp_status choose_batch(const mdp_comm *comm, const mdp_model *model, const mdp_tokens *tokens,
                               const mdp_pass *pass, const mdp_forward_options *options, mdp_forward_cost *out) {
    int64_t batch = options->batch_tokens > 0 ? options->batch_tokens : tokens->n_token;
    for (;;) {
        MDP_TRY(cost_of_batch(comm, model, tokens, pass, options, batch, out));
        if (options->memory <= 0 || out->memory <= options->memory) return mdp_ok();
        if (pass->recompute)
            return too_little(comm, options, out->memory,
                              ", because pruned propagation takes all tokens as one batch; take more ranks or fewer "
                              "tokens");
        if (options->batch_tokens > 0)
            return too_little(comm, options, out->memory,
                              " with this --batch-tokens; take a smaller one, or more ranks");
        if (batch <= MDP_BLOCK_TOKENS)
            return too_little(comm, options, out->memory, "; give more memory or more ranks");
        batch = batch / 2 > MDP_BLOCK_TOKENS ? batch / 2 : MDP_BLOCK_TOKENS;
    }
}

mdp_status mdp_forward_cost_of(const mdp_comm *comm, const mdp_model *model, const mdp_tokens *tokens,
                               const mdp_pass *pass, const mdp_forward_options *options, mdp_forward_cost *out) {
    MDP_TRY(choose_batch(comm, model, tokens, pass, options, out));
    if (pass->recompute && out->n_batch > 1)
        return MDP_ERROR(
            MDP_USAGE,
            "pruned propagation decides a layer from all %lld tokens at once, so they are one batch; leave "
            "--batch-tokens out.",
            (long long)tokens->n_token);
    out->flop = forward_flop(model, tokens, pass);
    out->bytes_read = out->n_batch * batch_bytes(model, comm->n_node, pass);
    return mdp_ok();
}
