/* cost.c - what a forward pass will take, from headers alone, and the choice of the batch. */
#include "pipeline/forward.h"

#define MOST_RANKS (1 << 20) /* that anybody has */

/* ---- storage ------------------------------------------------------------------------------------------------- */

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
    int64_t heads = pass->head_again ? 2 : pass->with_head ? 1 : 0, times = pass->redo_block ? 2 : 1;
    int64_t common = heads * mdp_matrix_bytes(&model->head), experts = 0;
    for (int64_t l = 0; l < model->n_layer; l++) {
        const mdp_layer *layer = &model->layers[l];
        common += attention_bytes(layer) + (layer->is_moe ? times * block_bytes(layer) : dense_bytes(layer));
        for (int32_t e = 0; e < layer->moe.n_expert; e++) experts += times * mlp_bytes(&layer->moe.experts[e]);
    }
    return experts + n_node * common;
}

/* ---- the batch ----------------------------------------------------------------------------------------------- */

/* Fill what is known of one choice of the batch. */
static mdp_status size_of_batch(const mdp_comm *layout, const mdp_model *model, const mdp_tokens *tokens,
                                const mdp_pass *pass, const mdp_forward_options *options, int64_t batch_tokens,
                                mdp_forward_cost *out) {
    mdp_partition *partition = NULL;
    MDP_TRY(mdp_partition_new(tokens, batch_tokens, &partition));
    out->batch_tokens = batch_tokens;
    out->n_batch = partition->n_batch;
    mdp_gemm_type type = mdp_gemm_type_of(options->gemm);
    out->memory = options->reserve + mdp_gemm_memory(options->gemm) +
                  mdp_engine_memory(layout, model, partition, options->n_thread, type, pass);
    mdp_partition_destroy(partition);
    return mdp_ok();
}

/* What so many ranks would need, on one node or on nodes of this size. */
static mdp_status memory_of_ranks(const mdp_comm *layout, int size, const mdp_model *model, const mdp_tokens *tokens,
                                  const mdp_pass *pass, const mdp_forward_options *options, int64_t batch_tokens,
                                  int64_t *out) {
    mdp_comm *asked = NULL;
    mdp_forward_cost cost = {0};
    MDP_TRY(mdp_layout_new(size, layout->n_node == 1 ? size : layout->node_size, &asked));
    mdp_status status = size_of_batch(asked, model, tokens, pass, options, batch_tokens, &cost);
    mdp_layout_destroy(asked);
    *out = cost.memory;
    return status;
}

/* More ranks hardly ever need more each. */
mdp_status mdp_forward_find_ranks(const mdp_comm *layout, const mdp_model *model, const mdp_tokens *tokens,
                                  const mdp_pass *pass, const mdp_forward_options *options, int64_t batch_tokens,
                                  int *out) {
    int64_t memory;
    int low = layout->size, high = low; /* low does not fit; high is to */
    *out = 0;
    do {
        if (high > MOST_RANKS / 2) return mdp_ok();
        low = high;
        high = 2 * high;
        MDP_TRY(memory_of_ranks(layout, high, model, tokens, pass, options, batch_tokens, &memory));
    } while (memory > options->memory);
    while (high - low > 1) {
        int middle = low + (high - low) / 2;
        MDP_TRY(memory_of_ranks(layout, middle, model, tokens, pass, options, batch_tokens, &memory));
        *(memory > options->memory ? &low : &high) = middle;
    }
    *out = high;
    return mdp_ok();
}

int64_t mdp_memory_to_give(int64_t need) {
    const int64_t unit = 1000000, more = need + need / 32;
    return (more + unit - 1) / unit * unit;
}

mdp_status mdp_forward_too_little(const mdp_comm *layout, const mdp_pass *pass, const mdp_forward_options *options,
                                  int64_t need, int n_rank) {
    const char *why = pass->aside_slots > 0       ? " (a fit takes all tokens as one batch)"
                      : pass->redo_block          ? " (pruned propagation takes all tokens as one batch)"
                      : pass->one_batch           ? " (a search for sets of experts takes all its tokens as one batch; "
                                                    "--naee-tokens takes fewer)"
                      : options->batch_tokens > 0 ? " with this --batch-tokens"
                                                  : "";
    char given[32], needed[32], ranks[64] = "; no number of ranks would do with less";
    if (n_rank > 0) snprintf(ranks, sizeof ranks, ", or take %d ranks or more", n_rank);
    return MDP_ERROR(MDP_USAGE,
                     "--memory %s is too little: %s a rank are needed on %d rank%s%s. Give --memory %lld%s%s.",
                     mdp_print_bytes(given, options->memory), mdp_print_bytes(needed, need), layout->size,
                     layout->size == 1 ? "" : "s", why, (long long)mdp_memory_to_give(need), ranks,
                     options->batch_tokens > 0 ? ", or a smaller --batch-tokens" : "");
}

/* The largest batch that fits, or the smallest that may be taken where none does. More tokens than there are make no
 * larger batch. */
static mdp_status choose_batch(const mdp_comm *layout, const mdp_model *model, const mdp_tokens *tokens,
                               const mdp_pass *pass, const mdp_forward_options *options, mdp_forward_cost *out) {
    bool given = options->batch_tokens > 0;
    int64_t batch = given && options->batch_tokens < tokens->n_token ? options->batch_tokens : tokens->n_token;
    for (;;) {
        MDP_TRY(size_of_batch(layout, model, tokens, pass, options, batch, out));
        out->fits = options->memory <= 0 || out->memory <= options->memory;
        if (out->fits || mdp_pass_is_whole(pass) || given || batch <= MDP_BLOCK_TOKENS) return mdp_ok();
        batch = batch / 2 > MDP_BLOCK_TOKENS ? batch / 2 : MDP_BLOCK_TOKENS;
    }
}

/* ---- ranks --------------------------------------------------------------------------------------------------- */

static mdp_status add_ranks(const mdp_comm *layout, const mdp_model *model, const mdp_tokens *tokens,
                            const mdp_pass *pass, int n_thread, mdp_forward_cost *out) {
    mdp_partition *partition = NULL;
    mdp_rank_cost *ranks = NULL;
    MDP_TRY(mdp_partition_new(tokens, out->batch_tokens, &partition));
    mdp_status status = MDP_ALLOC(&ranks, layout->size, "costs of ranks");
    if (status.code == MDP_OK) status = mdp_engine_cost(layout, model, tokens, partition, n_thread, pass, ranks);
    if (status.code == MDP_OK) {
        for (int r = 0; r < layout->size; r++) mdp_rank_cost_add(&ranks[r], &out->total);
        mdp_rank_cost_bound(ranks, layout->size, &out->least, &out->most);
    }
    mdp_free(ranks);
    mdp_partition_destroy(partition);
    return status;
}

static mdp_status cut_into_batches(const mdp_comm *layout, const mdp_model *model, const mdp_tokens *tokens,
                                   const mdp_pass *pass, const mdp_forward_options *options, mdp_forward_cost *out) {
    *out = (mdp_forward_cost){0};
    MDP_TRY(choose_batch(layout, model, tokens, pass, options, out));
    if (!mdp_pass_is_whole(pass) || out->n_batch == 1) return mdp_ok();
    return MDP_ERROR(MDP_USAGE,
                     "%s a layer from all %lld tokens at once, so they are one batch; leave --batch-tokens out.",
                     pass->aside_slots > 0 ? "a fit is of"
                     : pass->redo_block    ? "pruned propagation decides"
                                           : "a search for sets of experts judges",
                     (long long)tokens->n_token);
}

mdp_status mdp_forward_choose_batch(const mdp_comm *layout, const mdp_model *model, const mdp_tokens *tokens,
                                    const mdp_pass *pass, const mdp_forward_options *options, mdp_forward_cost *out) {
    int n_rank;
    MDP_TRY(cut_into_batches(layout, model, tokens, pass, options, out));
    if (out->fits) return mdp_ok();
    MDP_TRY(mdp_forward_find_ranks(layout, model, tokens, pass, options, out->batch_tokens, &n_rank));
    return mdp_forward_too_little(layout, pass, options, out->memory, n_rank);
}

mdp_status mdp_forward_cost_of(const mdp_comm *layout, const mdp_model *model, const mdp_tokens *tokens,
                               const mdp_pass *pass, const mdp_forward_options *options, mdp_forward_cost *out) {
    MDP_TRY(cut_into_batches(layout, model, tokens, pass, options, out));
    out->bytes_stored = out->n_batch * batch_bytes(model, layout->n_node, pass);
    return add_ranks(layout, model, tokens, pass, options->n_thread, out);
}
