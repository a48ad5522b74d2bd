/* compare.c - every byte of a checkpoint of ours against the checksums in it.
 *
 * What the checkpoint says of itself is read by rank 0 (checksums.h). To verify it, every tensor and side file is read
 * once, in order, by the rank to which it falls, each rank having one run of them, so that the first fault is the same
 * for any number of ranks. To copy from it, the checksums are noted in the catalogue, and compared by those who copy
 * (copy.c). */
#include "checkpoint/checksums.h"

#include <string.h>

#define CHUNK_BYTE ((int64_t)4 << 20)
#define MANIFEST "moe-dist-prune.json"

mdp_item mdp_item_at(const mdp_catalogue *catalogue, int64_t i) {
    if (i < catalogue->n_tensor) {
        const mdp_tensor *tensor = &catalogue->tensors[i];
        return (mdp_item){"tensor", tensor->name, tensor->file, tensor->offset, tensor->n_byte};
    }
    const mdp_side_file *side = &catalogue->side_files[i - catalogue->n_tensor];
    return (mdp_item){"side file", side->name, side->file, side->offset, side->n_byte};
}

mdp_status mdp_checksum_differs(const char *path, const mdp_item *item, const char *found, const char *expected) {
    char n_byte[32], offset[32];
    return MDP_ERROR(MDP_BAD_INPUT,
                     "%s: %s '%s' (%s bytes from byte %s) has checksum %s; expected %s. The file is damaged; copy or "
                     "write it again.",
                     path, item->kind, item->name, mdp_print_count(n_byte, item->n_byte),
                     mdp_print_count(offset, item->offset), found, expected);
}

/* ---- verifying ----------------------------------------------------------------------------------------------- */

typedef struct share {
    int64_t first, last; /* items */
    int64_t n_byte;      /* of them */
    int64_t n_byte_all;  /* of all items */
} share;

/* Items of this rank: a run of them, cut where the bytes before it pass this rank's part of all bytes. */
static share share_of(const mdp_checksums *v, const mdp_comm *comm) {
    share mine = {.first = v->n_item, .last = v->n_item};
    for (int64_t i = 0; i < v->n_item; i++) mine.n_byte_all += mdp_item_at(v->catalogue, i).n_byte;
    int64_t before = 0, n_own = 0;
    for (int64_t i = 0; i < v->n_item; i++) {
        int64_t n_byte = mdp_item_at(v->catalogue, i).n_byte;
        int owner = mine.n_byte_all > 0 ? (int)((double)before / (double)mine.n_byte_all * comm->size) : 0;
        if (owner >= comm->size) owner = comm->size - 1;
        before += n_byte;
        if (owner != comm->rank) continue;
        if (n_own++ == 0) mine.first = i;
        mine.last = i + 1;
        mine.n_byte += n_byte;
    }
    return mine;
}

typedef struct reading {
    mdp_reader *reader;
    mdp_hash *hash;
    char *buffer; /* [CHUNK_BYTE] */
    share mine;
    int64_t n_byte_done;
    mdp_verified_fn *shown; /* NULL: nobody looks */
    void *context;
} reading;

static mdp_status hash_item(reading *r, const mdp_item *it, mdp_digest *out) {
    mdp_hash_reset(r->hash);
    for (int64_t at = 0; at < it->n_byte; at += CHUNK_BYTE) {
        int64_t n = it->n_byte - at < CHUNK_BYTE ? it->n_byte - at : CHUNK_BYTE;
        MDP_TRY(mdp_reader_read(r->reader, it->file, it->offset + at, n, r->buffer));
        mdp_hash_update(r->hash, r->buffer, n);
        r->n_byte_done += n;
        if (r->shown)
            r->shown(r->context,
                     (int64_t)((double)r->n_byte_done / (double)r->mine.n_byte * (double)r->mine.n_byte_all),
                     r->mine.n_byte_all);
    }
    *out = mdp_hash_digest(r->hash);
    return mdp_ok();
}

static mdp_status check_item(const mdp_checksums *v, reading *r, int64_t i) {
    mdp_item it = mdp_item_at(v->catalogue, i);
    mdp_digest found;
    MDP_TRY(hash_item(r, &it, &found));
    if (v->digests[i].hex[0] == '\0' || strcmp(found.hex, v->digests[i].hex) == 0) return mdp_ok();
    return mdp_checksum_differs(v->catalogue->files[it.file], &it, found.hex, v->digests[i].hex);
}

static mdp_status check_share(const mdp_checksums *v, reading *r) {
    MDP_TRY(mdp_reader_new(v->catalogue, &r->reader));
    MDP_TRY(mdp_hash_new(&r->hash));
    MDP_TRY(MDP_ALLOC(&r->buffer, CHUNK_BYTE, "the bytes to verify"));
    for (int64_t i = r->mine.first; i < r->mine.last; i++) MDP_TRY(check_item(v, r, i));
    return mdp_ok();
}

static mdp_status verify_all(const mdp_comm *comm, mdp_checksums *v, mdp_verified_fn *shown, void *context) {
    MDP_AGREE(comm, MDP_ALLOC(&v->digests, v->n_item, "checksums"));
    MDP_AGREE(comm, comm->rank == 0 ? mdp_checksums_read(v) : mdp_ok());
    MDP_TRY(mdp_bcast_all(comm, v->digests, v->n_item * (int64_t)sizeof *v->digests, 0));
    reading r = {.mine = share_of(v, comm), .shown = comm->rank == 0 ? shown : NULL, .context = context};
    mdp_status status = check_share(v, &r);
    mdp_free(r.buffer);
    mdp_hash_destroy(r.hash);
    mdp_reader_destroy(r.reader);
    return mdp_agree_all(comm, status);
}

mdp_status mdp_verify_all(const mdp_comm *comm, const mdp_catalogue *catalogue, mdp_verified_fn *shown, void *context,
                          mdp_verified *out) {
    mdp_checksums v = {.catalogue = catalogue, .n_item = catalogue->n_tensor + catalogue->n_side_file};
    mdp_status status = verify_all(comm, &v, shown, context);
    *out = (mdp_verified){.n_byte = v.n_byte};
    for (int64_t i = 0; i < v.n_item && status.code == MDP_OK; i++) {
        out->n_byte += mdp_item_at(catalogue, i).n_byte;
        out->n_without += v.digests[i].hex[0] == '\0';
    }
    if (status.code == MDP_OK)
        out->digests = v.digests;
    else
        mdp_free(v.digests);
    return status;
}

/* ---- for those who copy -------------------------------------------------------------------------------------- */

/* Is there anything to compare with? A folder of somebody else's has no record. Rank 0. */
static mdp_status has_checksums(const mdp_catalogue *catalogue, bool *out) {
    char *record = NULL;
    *out = true;
    if (catalogue->container == MDP_NATIVE) return mdp_ok();
    MDP_TRY(mdp_path_join(&record, catalogue->path, MANIFEST));
    *out = mdp_path_exists(record);
    mdp_free(record);
    return mdp_ok();
}

/* Rank 0. */
static mdp_status read_if_any(mdp_checksums *c) {
    bool any;
    MDP_TRY(has_checksums(c->catalogue, &any));
    if (!any) return mdp_ok();
    mdp_status status = mdp_checksums_read(c);
    if (status.code != MDP_BAD_INPUT || c->catalogue->container == MDP_NATIVE) return status;
    return MDP_ERROR(MDP_BAD_INPUT, "%.600s If it was changed on purpose, remove " MANIFEST " from %.200s.",
                     status.text, c->catalogue->path);
}

/* Every rank: tensors and side files know their checksums. */
static void note(mdp_catalogue *catalogue, const mdp_digest *digests) {
    for (int64_t i = 0; i < catalogue->n_tensor; i++)
        catalogue->tensors[i].digest = digests[i].hex[0] != '\0' ? digests[i].hex : NULL;
    digests += catalogue->n_tensor;
    for (int64_t i = 0; i < catalogue->n_side_file; i++)
        catalogue->side_files[i].digest = digests[i].hex[0] != '\0' ? digests[i].hex : NULL;
}

mdp_status mdp_catalogue_checksums_all(const mdp_comm *comm, mdp_catalogue *catalogue, bool *unsealed) {
    mdp_checksums c = {
        .catalogue = catalogue, .seal_may_be_broken = true, .n_item = catalogue->n_tensor + catalogue->n_side_file};
    *unsealed = false;
    mdp_status status = mdp_agree_all(comm, MDP_ALLOC(&c.digests, c.n_item, "checksums"));
    if (status.code == MDP_OK) status = mdp_agree_all(comm, comm->rank == 0 ? read_if_any(&c) : mdp_ok());
    if (status.code == MDP_OK) status = mdp_bcast_all(comm, c.digests, c.n_item * (int64_t)sizeof *c.digests, 0);
    if (status.code != MDP_OK) {
        mdp_free(c.digests);
        return status;
    }
    mdp_free(catalogue->digests);
    catalogue->digests = c.digests;
    note(catalogue, c.digests);
    *unsealed = c.unsealed;
    return status;
}
