/* work.c - what is still to copy, and the journal: see work.h.
 *
 * The journal has a checksum for every item that is safe on disk. It is replaced as a whole by rank 0, after all ranks
 * have synced what they wrote; so whatever it says is true, at whatever moment a run is killed. Items are dealt anew to
 * the ranks that go on. */
#include "checkpoint/work.h"
#include "checkpoint/output.h"
#include "mdp/recast.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define FORMAT "moe-dist-prune journal"
#define MAX_JOURNAL (INT64_C(1) << 30)
#define ROUNDS 64                         /* about so many */
#define SMALLEST_ROUND (INT64_C(1) << 20) /* bytes of a rank */
#define LARGEST_ROUND (INT64_C(1) << 30)

/* ---- the journal ----------------------------------------------------------------------------------------------- */

static mdp_status name_journal(const mdp_resume *resume, const char *target, char **out) {
    char *name = NULL;
    MDP_TRY(mdp_format(&name, "write-%s.json", mdp_path_name(target)));
    mdp_status status = mdp_resume_path(resume, name, out);
    mdp_free(name);
    return status;
}

/* What decides the bytes and their places. */
static mdp_status identify(const mdp_output *output, const mdp_copy_item *items, mdp_work *work) {
    mdp_hash *hash = NULL;
    const char *texts[] = {work->resume->digest, output->config_text, output->plan_text, output->provenance_text};
    MDP_TRY(mdp_hash_new(&hash));
    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++)
        if (texts[i]) mdp_hash_update(hash, texts[i], (int64_t)strlen(texts[i]) + 1);
    for (int64_t i = 0; i < work->n_all; i++) mdp_hash_update(hash, &items[i].n_byte, (int64_t)sizeof items[i].n_byte);
    mdp_digest digest = mdp_hash_digest(hash);
    memcpy(work->identity, digest.hex, sizeof work->identity);
    mdp_hash_destroy(hash);
    return mdp_ok();
}

static mdp_digest digest_of_all(const mdp_work *work) {
    return mdp_hash_bytes(work->all_digests, work->n_all * (int64_t)sizeof *work->all_digests);
}

static mdp_status write_journal(const mdp_work *work) {
    json_t *list = json_array();
    char *text = NULL;
    for (int64_t i = 0; i < work->n_all; i++) mdp_json_add(&list, json_string(work->all_digests[i].hex));
    json_t *root = json_pack("{s:s, s:s, s:s, s:s, s:o}", "format", FORMAT, "version", "1.0", "identity",
                             work->identity, "checksum", digest_of_all(work).hex, "items", list);
    if (!root) return MDP_ERROR(MDP_EXHAUSTED, "out of memory for the journal of %s.", work->target);
    mdp_status status = mdp_json_print(root, &text);
    json_decref(root);
    if (status.code == MDP_OK) status = mdp_file_write_all(work->journal, text, (int64_t)strlen(text));
    mdp_free(text);
    return status;
}

/* A journal of another output, or one that is damaged, is of no use and no harm: the copy begins again. */
static bool take_journal(const json_t *root, mdp_work *work) {
    const char *identity = json_string_value(json_object_get(root, "identity"));
    const char *checksum = json_string_value(json_object_get(root, "checksum"));
    const json_t *list = json_object_get(root, "items");
    if (!identity || !checksum || strcmp(identity, work->identity) != 0) return false;
    if (json_array_size(list) != (size_t)work->n_all) return false;
    for (int64_t i = 0; i < work->n_all; i++) {
        const char *hex = json_string_value(json_array_get(list, (size_t)i));
        if (!hex || strlen(hex) >= sizeof work->all_digests[i].hex) return false;
        memcpy(work->all_digests[i].hex, hex, strlen(hex));
    }
    return strcmp(checksum, digest_of_all(work).hex) == 0;
}

/* Rank 0. */
static mdp_status read_journal(mdp_work *work) {
    char *text = NULL;
    int64_t n_byte;
    json_t *root = NULL;
    if (!mdp_path_exists(work->journal)) return mdp_ok();
    MDP_TRY(mdp_file_read_all(work->journal, MAX_JOURNAL, &text, &n_byte));
    mdp_status status = mdp_json_parse(text, n_byte, work->journal, &root);
    mdp_free(text);
    MDP_TRY(status);
    work->continues = take_journal(root, work);
    if (!work->continues) memset(work->all_digests, 0, (size_t)work->n_all * sizeof *work->all_digests);
    json_decref(root);
    return mdp_ok();
}

mdp_status mdp_work_forget(mdp_work *work) {
    char *folder = NULL;
    if (!work->recorded) return mdp_ok();
    work->recorded = false;
    unlink(work->journal);
    MDP_TRY(mdp_path_folder(&folder, work->journal));
    mdp_status status = mdp_folder_sync(folder);
    mdp_free(folder);
    return status;
}

/* ---- dealing --------------------------------------------------------------------------------------------------- */

/* Items without a digest; `known` [n_all] or NULL. */
static mdp_status list_items(const mdp_copy_item *items, const mdp_digest *known, mdp_work *work) {
    MDP_TRY(MDP_ALLOC(&work->items, work->n_all, "what is to be written"));
    MDP_TRY(MDP_ALLOC(&work->number, work->n_all, "what is to be written"));
    for (int64_t i = 0; i < work->n_all; i++) {
        work->n_byte += items[i].n_byte;
        if (known && known[i].hex[0] != '\0') continue;
        work->items[work->n] = items[i];
        work->number[work->n++] = i;
    }
    mdp_copy_share(work->items, work->n, work->comm->size, work->comm->rank, &work->first, &work->last);
    for (int64_t i = work->first; i < work->last; i++) work->n_byte_own += work->items[i].n_byte;
    return MDP_ALLOC(&work->digests, work->last - work->first, "checksums");
}

/* What rank 0 has read, on every rank; *known is new. */
static mdp_status share_journal_all(mdp_work *work, mdp_digest **known) {
    int64_t continues = work->continues;
    MDP_TRY(mdp_bcast_all(work->comm, &continues, (int64_t)sizeof continues, 0));
    work->continues = work->recorded = continues != 0;
    if (!work->continues) return mdp_ok();
    MDP_AGREE(work->comm, MDP_ALLOC(known, work->n_all, "checksums"));
    int64_t n_byte = work->n_all * (int64_t)sizeof **known;
    if (work->comm->rank == 0) memcpy(*known, work->all_digests, (size_t)n_byte);
    return mdp_bcast_all(work->comm, *known, n_byte, 0);
}

static mdp_status prepare(const mdp_output *output, bool partial_is_whole, const mdp_copy_item *items, mdp_work *work) {
    if (work->comm->rank == 0) MDP_TRY(MDP_ALLOC(&work->all_digests, work->n_all, "checksums"));
    if (!work->resume) return mdp_ok();
    MDP_TRY(name_journal(work->resume, work->target, &work->journal));
    MDP_TRY(identify(output, items, work));
    if (work->comm->rank == 0 && work->resume->continues && partial_is_whole) return read_journal(work);
    return mdp_ok();
}

mdp_status mdp_work_open_all(const mdp_comm *comm, const mdp_write_options *options, const mdp_output *output,
                             const char *target, bool partial_is_whole, const mdp_copy_item *items, int64_t n_all,
                             mdp_work *out) {
    mdp_digest *known = NULL;
    *out = (mdp_work){.comm = comm, .resume = options->resume, .profile = options->profile, .n_all = n_all};
    out->target = options->name ? options->name : target;
    MDP_AGREE(comm, prepare(output, partial_is_whole, items, out));
    mdp_status status = share_journal_all(out, &known);
    if (status.code == MDP_OK) status = mdp_agree_all(comm, list_items(items, known, out));
    mdp_free(known);
    return status;
}

void mdp_work_close(mdp_work *work) {
    mdp_free(work->journal);
    mdp_free(work->items);
    mdp_free(work->number);
    mdp_free(work->digests);
    mdp_free(work->all_digests);
}

/* ---- copying --------------------------------------------------------------------------------------------------- */

/* Bring all ranks' new digests to rank 0. */
static mdp_status collect_all(mdp_work *work) {
    mdp_digest *now = NULL;
    MDP_TRY(mdp_output_gather_all(work->comm, work->digests, work->last - work->first, work->n, &now));
    for (int64_t i = 0; now && i < work->n; i++)
        if (now[i].hex[0] != '\0') work->all_digests[work->number[i]] = now[i];
    mdp_free(now);
    return mdp_ok();
}

static mdp_status save_all(mdp_work *work, void *context, mdp_settle_fn *settle) {
    double start = mdp_seconds();
    MDP_AGREE(work->comm, settle(context));
    MDP_TRY(collect_all(work));
    MDP_TRY(mdp_resume_prepare_all(work->comm, work->resume));
    MDP_AGREE(work->comm, work->comm->rank == 0 ? write_journal(work) : mdp_ok());
    work->recorded = work->resume->saved = true;
    mdp_watch_saved(&work->resume->watch, start);
    return mdp_ok();
}

static mdp_status stopped_all(const mdp_work *work) {
    int64_t left = 0;
    char done[32], all[32];
    for (int64_t i = work->first; i < work->last; i++)
        if (work->digests[i - work->first].hex[0] == '\0') left += work->items[i].n_byte;
    MDP_TRY(mdp_sum_i64_all(work->comm, &left, 1));
    return MDP_ERROR(MDP_STOPPED, "stopped by %s after %s of %s of %s; go on with the same command and --resume.",
                     work->resume->watch.reason, mdp_print_bytes(done, work->n_byte - left),
                     mdp_print_bytes(all, work->n_byte), work->target);
}

static mdp_status look_all(mdp_work *work, void *context, mdp_settle_fn *settle) {
    mdp_verdict verdict;
    if (!work->resume) return mdp_ok();
    MDP_TRY(mdp_watch_look_all(work->comm, &work->resume->watch, &verdict));
    if (verdict == MDP_GO_ON) return mdp_ok();
    MDP_TRY(save_all(work, context, settle));
    return verdict == MDP_STOP ? stopped_all(work) : mdp_ok();
}

/* The item after those of a round that ends at `n_byte` of a rank's bytes; the rank's own end at `last`. */
static int64_t round_end(const mdp_copy_item *items, int64_t first, int64_t last, int64_t n_byte, int64_t *done) {
    int64_t end = first;
    while (end < last && *done < n_byte) *done += items[end++].n_byte;
    return end;
}

/* Bytes of a rank in a round, when the rank with most has `most`. */
static int64_t round_bytes(int64_t most) {
    int64_t n_byte = most / ROUNDS;
    if (n_byte < SMALLEST_ROUND) return SMALLEST_ROUND;
    return n_byte < LARGEST_ROUND ? n_byte : LARGEST_ROUND;
}

/* Rounds of all ranks and their bytes. */
static mdp_status count_rounds_all(const mdp_work *work, int64_t *n_round, int64_t *n_byte) {
    int64_t most = work->n_byte_own;
    MDP_TRY(mdp_max_i64_all(work->comm, &most, 1));
    *n_byte = round_bytes(most);
    *n_round = (most + *n_byte - 1) / *n_byte;
    return mdp_ok();
}

mdp_status mdp_work_run_all(mdp_work *work, const mdp_copy *copy, mdp_settle_fn *settle) {
    int64_t n_round, n_byte, first = work->first, done = 0;
    MDP_TRY(count_rounds_all(work, &n_round, &n_byte));
    if (work->resume) mdp_watch_begin_phase(&work->resume->watch, 0);
    for (int64_t r = 0; r < n_round || r == 0; r++) {
        mdp_copy part = *copy;
        part.items = work->items;
        part.profile = work->profile;
        part.first = first;
        part.last = r + 1 < n_round ? round_end(work->items, first, work->last, (r + 1) * n_byte, &done) : work->last;
        part.announce_last = work->last;
        part.digests = work->digests + (first - work->first);
        first = part.last;
        MDP_AGREE(work->comm, mdp_copy_run(&part));
        MDP_TRY(mdp_resume_check_inputs_all(work->comm, work->resume, copy->reader));
        if (r + 1 < n_round) MDP_TRY(look_all(work, copy->context, settle));
    }
    return collect_all(work);
}

/* ---- what it would take ---------------------------------------------------------------------------------------- */

/* Of what is made in another type, the part that the segment takes. */
static int64_t read_bytes(const mdp_segment *segment) {
    if (!segment->recast || segment->n_byte == 0) return segment->n_byte;
    int64_t whole = mdp_recast_bytes(segment->recast), all = mdp_recast_read_bytes(segment->recast);
    return segment->n_byte == whole ? all : (int64_t)((double)all / (double)whole * (double)segment->n_byte);
}

static void add_shares(const mdp_copy_item *items, int64_t n_all, const int *owner, mdp_write_share *shares) {
    for (int64_t i = 0; i < n_all; i++) {
        mdp_write_share *share = &shares[owner[i]];
        share->bytes_written += items[i].n_byte;
        share->bytes_read += mdp_copy_check_bytes(&items[i]);
        for (int64_t s = 0; s < items[i].n_segment; s++) {
            const mdp_segment *segment = &items[i].segments[s];
            if (segment->source) share->bytes_read += read_bytes(segment);
        }
    }
}

/* Memory for the largest band of what is made in another type. */
static int64_t most_recasting(const mdp_copy_item *items, int64_t n_all) {
    int64_t most = 0;
    for (int64_t i = 0; i < n_all; i++) {
        for (int64_t s = 0; s < items[i].n_segment; s++) {
            const mdp_recast *recast = items[i].segments[s].recast;
            if (recast) most = mdp_larger(most, mdp_recast_memory(recast));
        }
    }
    return most;
}

/* Buffers of the rank that takes most, by the rounds that it will make. */
static int64_t most_buffers(const mdp_copy_item *items, int64_t n_all, const int *owner, const mdp_write_share *shares,
                            int64_t buffer_byte) {
    int64_t most = 0, n_byte = 0;
    for (int64_t i = 0; i < n_all; i++)
        if (shares[owner[i]].bytes_written > most) most = shares[owner[i]].bytes_written;
    for (int64_t first = 0, last = 0; first < n_all; first = last) {
        while (last < n_all && owner[last] == owner[first]) last++;
        int64_t done = 0, limit = 0;
        for (int64_t from = first, end; from < last; from = end) {
            limit += round_bytes(most);
            end = round_end(items, from, last, limit, &done);
            int64_t used = mdp_copy_memory(items + from, end - from, buffer_byte);
            if (used > n_byte) n_byte = used;
        }
    }
    return n_byte;
}

mdp_status mdp_work_cost(const mdp_copy_item *items, int64_t n_all, const mdp_write_options *options, int size,
                         mdp_write_cost *out) {
    int *owner = NULL;
    *out = (mdp_write_cost){0};
    MDP_TRY(MDP_ALLOC(&out->shares, size, "costs of ranks"));
    MDP_TRY(MDP_ALLOC(&owner, n_all, "costs of ranks"));
    mdp_copy_owners(items, n_all, size, owner);
    add_shares(items, n_all, owner, out->shares);
    out->copying = most_buffers(items, n_all, owner, out->shares, options->buffer_byte);
    /* items of the layout and to do, their numbers and places, checksums here, gathered and of all */
    out->beside =
        n_all * (int64_t)(2 * sizeof(mdp_copy_item) + 3 * sizeof(int64_t) + sizeof(void *) + 3 * sizeof(mdp_digest));
    out->beside += most_recasting(items, n_all);
    mdp_free(owner);
    return mdp_ok();
}
