/* partition.c - cuts a tokens file into packs, blocks and batches, and deals packs to ranks.
 *
 * In: offsets of the sequences. Out: intervals only, a few words a pack. Packs and blocks depend on the tokens alone;
 * batches on --batch-tokens; the dealing on the number of ranks. Only the first two may decide arithmetic. */
#include "mdp/engine.h"

/* Whole sequences until MDP_PACK_TOKENS are reached. Returns the number of packs; fills `packs` unless NULL. */
static int64_t cut_packs(const mdp_tokens *tokens, mdp_pack *packs) {
    int64_t n_pack = 0;
    for (int64_t first = 0; first < tokens->n_sequence;) {
        int64_t end = first, n_pair = 0;
        do {
            int64_t length = tokens->offset[end + 1] - tokens->offset[end];
            n_pair += length * (length + 1) / 2;
            end++;
        } while (end < tokens->n_sequence && tokens->offset[end] - tokens->offset[first] < MDP_PACK_TOKENS);
        if (packs) {
            packs[n_pack] = (mdp_pack){.first_sequence = first,
                                       .n_sequence = end - first,
                                       .first_token = tokens->offset[first],
                                       .n_token = tokens->offset[end] - tokens->offset[first],
                                       .n_pair = n_pair};
        }
        n_pack++;
        first = end;
    }
    return n_pack;
}

/* Whole packs until MDP_BLOCK_TOKENS are reached; numbers the packs' blocks and fills block_pack. */
static int64_t cut_blocks(mdp_pack *packs, int64_t n_pack, int64_t *block_pack) {
    int64_t n_block = 0, n_token = 0;
    block_pack[0] = 0;
    for (int64_t p = 0; p < n_pack; p++) {
        packs[p].block = n_block;
        n_token += packs[p].n_token;
        if (n_token >= MDP_BLOCK_TOKENS || p == n_pack - 1) {
            block_pack[++n_block] = p + 1;
            n_token = 0;
        }
    }
    return n_block;
}

int64_t mdp_partition_block_tokens(const mdp_partition *partition, int64_t block) {
    const mdp_pack *first = &partition->packs[partition->block_pack[block]];
    const mdp_pack *last = &partition->packs[partition->block_pack[block + 1] - 1];
    return last->first_token + last->n_token - first->first_token;
}

/* Whole blocks while the batch stays within batch_tokens. */
static void cut_batches(mdp_partition *partition, int64_t batch_tokens) {
    int64_t n_token = 0;
    partition->batch_block[0] = 0;
    for (int64_t b = 0; b < partition->n_block; b++) {
        int64_t n = mdp_partition_block_tokens(partition, b);
        if (n_token > 0 && batch_tokens > 0 && n_token + n > batch_tokens) {
            partition->batch_block[++partition->n_batch] = b;
            n_token = 0;
        }
        n_token += n;
        if (n_token > partition->batch_tokens) partition->batch_tokens = n_token;
    }
    partition->batch_block[++partition->n_batch] = partition->n_block;
}

mdp_status mdp_partition_new(const mdp_tokens *tokens, int64_t batch_tokens, mdp_partition **out) {
    mdp_partition *partition = NULL;
    mdp_status status;
    *out = NULL;
    MDP_TRY(MDP_ALLOC(&partition, 1, "the cut of the tokens"));
    partition->n_pack = cut_packs(tokens, NULL);
    MDP_TRY_GOTO(status, fail, MDP_ALLOC(&partition->packs, partition->n_pack, "packs"));
    cut_packs(tokens, partition->packs);
    MDP_TRY_GOTO(status, fail, MDP_ALLOC(&partition->block_pack, partition->n_pack + 1, "blocks"));
    partition->n_block = cut_blocks(partition->packs, partition->n_pack, partition->block_pack);
    MDP_TRY_GOTO(status, fail, MDP_ALLOC(&partition->batch_block, partition->n_block + 1, "batches"));
    cut_batches(partition, batch_tokens);
    for (int64_t s = 0; s < tokens->n_sequence; s++) {
        int64_t length = tokens->offset[s + 1] - tokens->offset[s];
        if (length > partition->longest) partition->longest = length;
    }
    *out = partition;
    return mdp_ok();
fail:
    mdp_partition_destroy(partition);
    return status;
}

void mdp_partition_destroy(mdp_partition *partition) {
    if (!partition) return;
    mdp_free(partition->packs);
    mdp_free(partition->block_pack);
    mdp_free(partition->batch_block);
    mdp_free(partition);
}

/* First pack of the batch whose middle lies at or after share `rank` of `size`. */
static int64_t share_start(const mdp_partition *partition, int64_t batch, int rank, int size) {
    int64_t low = partition->block_pack[partition->batch_block[batch]];
    int64_t high = partition->block_pack[partition->batch_block[batch + 1]];
    int64_t first_token = partition->packs[low].first_token;
    int64_t n_token = partition->packs[high - 1].first_token + partition->packs[high - 1].n_token - first_token;
    double cut = (double)n_token * rank / size;
    while (low < high) { /* invariant: packs below `low` are before the cut, packs from `high` are not */
        int64_t middle = low + (high - low) / 2;
        const mdp_pack *pack = &partition->packs[middle];
        double centre = (double)(pack->first_token - first_token) + 0.5 * (double)pack->n_token;
        if (centre < cut) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low;
}

void mdp_partition_share(const mdp_partition *partition, int64_t batch, int rank, int size, int64_t *first,
                         int64_t *end) {
    *first = share_start(partition, batch, rank, size);
    *end = share_start(partition, batch, rank + 1, size);
}
