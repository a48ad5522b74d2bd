/* fingerprint.c - which model is this: the same text for a HF folder, sharded or not, and its model.h5.
 *
 * Hashed, in this order: config.json's bytes; then for each tensor by name: name and a 0 byte, dtype and a 0 byte,
 * number of dimensions and the dimensions (int64), and the 32 hex digits of the digest of its first 4,096 bytes. Each
 * rank reads the heads of a part of the tensors; rank 0 puts the digests in order. */
#include "mdp/checkpoint.h"

#include <string.h>

#define HEAD_BYTE 4096

/* Digests of the heads of tensors first .. end-1. */
static mdp_status digest_heads(const mdp_catalogue *catalogue, mdp_reader *reader, int64_t first, int64_t end,
                               mdp_digest *digests) {
    unsigned char head[HEAD_BYTE];
    for (int64_t i = first; i < end; i++) {
        const mdp_tensor *tensor = &catalogue->tensors[i];
        int64_t n_byte = tensor->n_byte < HEAD_BYTE ? tensor->n_byte : HEAD_BYTE;
        MDP_TRY(mdp_reader_read(reader, tensor->file, tensor->offset, n_byte, head));
        digests[i - first] = mdp_hash_bytes(head, n_byte);
    }
    return mdp_ok();
}

static mdp_status digest_share(const mdp_catalogue *catalogue, int64_t first, int64_t end, mdp_digest **digests) {
    mdp_reader *reader = NULL;
    MDP_TRY(MDP_ALLOC(digests, end - first, "digests of tensors"));
    MDP_TRY(mdp_reader_new(catalogue, &reader));
    mdp_status status = digest_heads(catalogue, reader, first, end, *digests);
    mdp_reader_destroy(reader);
    return status;
}

static void hash_tensor(mdp_hash *hash, const mdp_tensor *tensor, const mdp_digest *digest) {
    const char *type = mdp_dtype_name(tensor->type);
    int64_t n_dim = tensor->n_dim;
    mdp_hash_update(hash, tensor->name, (int64_t)strlen(tensor->name) + 1);
    mdp_hash_update(hash, type, (int64_t)strlen(type) + 1);
    mdp_hash_update(hash, &n_dim, sizeof n_dim);
    mdp_hash_update(hash, tensor->shape, n_dim * (int64_t)sizeof *tensor->shape);
    mdp_hash_update(hash, digest->hex, 32);
}

static mdp_status hash_all_tensors(const mdp_catalogue *catalogue, const mdp_digest *digests, mdp_digest *out) {
    mdp_hash *hash = NULL;
    MDP_TRY(mdp_hash_new(&hash));
    mdp_hash_update(hash, catalogue->config_text, catalogue->config_byte);
    for (int64_t i = 0; i < catalogue->n_tensor; i++) hash_tensor(hash, &catalogue->tensors[i], &digests[i]);
    *out = mdp_hash_digest(hash);
    mdp_hash_destroy(hash);
    return mdp_ok();
}

mdp_status mdp_catalogue_fingerprint_all(const mdp_comm *comm, mdp_catalogue *catalogue) {
    int64_t n = catalogue->n_tensor;
    int64_t first = n / comm->size * comm->rank + (n % comm->size) * comm->rank / comm->size;
    int64_t end = n / comm->size * (comm->rank + 1) + (n % comm->size) * (comm->rank + 1) / comm->size;
    mdp_digest *mine = NULL, result = {{0}};
    void *all = NULL;
    int64_t n_byte;
    mdp_status status = digest_share(catalogue, first, end, &mine);
    MDP_TRY_GOTO(status, done, mdp_agree_all(comm, status));
    MDP_TRY_GOTO(status, done,
                 mdp_gather_bytes_all(comm, mine, (end - first) * (int64_t)sizeof *mine, 0, &all, &n_byte));
    if (comm->rank == 0) status = hash_all_tensors(catalogue, all, &result);
    MDP_TRY_GOTO(status, done, mdp_agree_all(comm, status));
    MDP_TRY_GOTO(status, done, mdp_bcast_all(comm, result.hex, sizeof result.hex, 0));
    memcpy(catalogue->fingerprint, result.hex, sizeof catalogue->fingerprint);
done:
    mdp_free(all);
    mdp_free(mine);
    return status;
}
