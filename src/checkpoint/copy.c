/* copy.c - the moving part that all checkpoint writers share.
 *
 * In: items (lists of byte runs inside stored tensors) and a function that puts bytes where they belong. An I/O thread
 * reads pieces ahead into two buffers and computes each item's checksum; the main thread puts them, because only it may
 * call HDF5. Where a source has a checksum, an item that is all of it must have the same; a source of which an item has
 * a part is read through for it. Refuses a source that differs; other errors are those of reading and of putting.
 * Memory is the two buffers. */
#include "checkpoint/copy.h"
#include "checkpoint/checksums.h"
#include "mdp/recast.h"

#include <pthread.h>
#include <string.h>

#define N_SLOT 2
#define SMALLEST_SLOT 64                 /* bytes; above the largest unit */
#define AHEAD_BYTE (INT64_C(32) << 20)   /* the system is told this early what will be read */
#define ANNOUNCE_BYTE (INT64_C(4) << 20) /* so much at a time */

typedef struct copy_slot {
    char *data;
    int64_t item, offset, n_byte;
    bool full;
} copy_slot;

/* Where the I/O thread is: item and byte in it, and the same byte as a place in its segments. */
typedef struct cursor {
    int64_t item, offset;
    int64_t segment, segment_offset;
} cursor;

typedef struct copy_pump {
    const mdp_copy *copy;
    cursor announced;
    int64_t n_announced; /* bytes of files */
    int64_t slot_byte;
    mdp_hash *hash;
    mdp_recaster recaster; /* of the I/O thread */
    copy_slot slots[N_SLOT];
    pthread_mutex_t lock;
    pthread_cond_t changed;
    int64_t n_read;              /* bytes from files; of the I/O thread, like what follows */
    int64_t n_checked;           /* bytes that were read once more for their checksum */
    double read_time, hash_time; /* seconds */
    bool done;                   /* the I/O thread has read everything, or failed */
    bool stop;                   /* the main thread wants no more */
    mdp_status status;           /* of the I/O thread */
} copy_pump;

static double sum_bytes(const mdp_copy_item *items, int64_t n_item) {
    double total = 0.0;
    for (int64_t i = 0; i < n_item; i++) total += (double)items[i].n_byte;
    return total;
}

/* An item belongs to the rank in whose share of the bytes its middle lies: monotone, so intervals are contiguous.
 * *before: bytes of the items before it, moved on. */
static int owner_of(const mdp_copy_item *item, double total, int size, double *before) {
    double middle = *before + 0.5 * (double)item->n_byte;
    *before += (double)item->n_byte;
    int owner = total > 0.0 ? (int)(middle / total * size) : 0;
    return owner < size ? owner : size - 1;
}

void mdp_copy_share(const mdp_copy_item *items, int64_t n_item, int size, int rank, int64_t *first, int64_t *last) {
    double total = sum_bytes(items, n_item), before = 0.0;
    *first = n_item;
    *last = n_item;
    for (int64_t i = 0; i < n_item; i++) {
        int owner = owner_of(&items[i], total, size, &before);
        if (owner >= rank && *first == n_item) *first = i;
        if (owner > rank) {
            *last = i;
            return;
        }
    }
}

void mdp_copy_owners(const mdp_copy_item *items, int64_t n_item, int size, int *owner) {
    double total = sum_bytes(items, n_item), before = 0.0;
    for (int64_t i = 0; i < n_item; i++) owner[i] = owner_of(&items[i], total, size, &before);
}

/* Bytes of the piece that begins at the cursor. */
static int64_t piece_bytes(const copy_pump *pump, const cursor *at) {
    const mdp_copy_item *item = &pump->copy->items[at->item];
    int64_t n_unit = pump->slot_byte / item->unit;
    if (n_unit > pump->copy->count_max) n_unit = pump->copy->count_max;
    int64_t left = item->n_byte - at->offset;
    return left < n_unit * item->unit ? left : n_unit * item->unit;
}

/* n bytes of a segment from `offset` in it. */
static mdp_status read_run(copy_pump *pump, const mdp_segment *segment, int64_t offset, int64_t n, char *out) {
    const mdp_tensor *source = segment->source;
    if (segment->recast)
        return mdp_recaster_read(&pump->recaster, pump->copy->reader, segment->recast, segment->offset + offset, n, out,
                                 &pump->n_read);
    if (source) {
        pump->n_read += n;
        return mdp_reader_read(pump->copy->reader, source->file, source->offset + segment->offset + offset, n, out);
    }
    for (int64_t i = 0; i < n; i++) out[i] = (char)(segment->fill >> (offset + i) % 4 * 8 & 0xff);
    return mdp_ok();
}

/* Read n_byte bytes at the cursor and move it on. */
static mdp_status read_piece(copy_pump *pump, cursor *at, char *out, int64_t n_byte) {
    const mdp_copy_item *item = &pump->copy->items[at->item];
    for (int64_t done = 0; done < n_byte;) {
        const mdp_segment *segment = &item->segments[at->segment];
        int64_t n = segment->n_byte - at->segment_offset;
        if (n > n_byte - done) n = n_byte - done;
        if (n > 0) MDP_TRY(read_run(pump, segment, at->segment_offset, n, out + done));
        done += n;
        at->segment_offset += n;
        if (at->segment_offset == segment->n_byte) {
            at->segment++;
            at->segment_offset = 0;
        }
    }
    at->offset += n_byte;
    return mdp_ok();
}

/* Bytes of its source that a segment reads, about; *first: where they begin. */
static int64_t source_bytes(const mdp_segment *segment, int64_t *first) {
    const mdp_recast *recast = segment->recast;
    *first = segment->offset;
    if (!recast || segment->n_byte == 0) return segment->n_byte;
    if (recast->masked.n > 0) {
        *first = recast->masked.first_byte;
        return recast->masked.n_byte;
    }
    double part = (double)segment->source->n_byte / (double)mdp_recast_bytes(recast);
    *first = (int64_t)(part * (double)segment->offset);
    return (int64_t)(part * (double)segment->n_byte);
}

/* Tell the system what will be read next. What it reads ahead by itself goes on where items that are not wanted begin.
 */
static void announce(copy_pump *pump) {
    cursor *at = &pump->announced;
    while (at->item < pump->copy->announce_last && pump->n_announced < pump->n_read + AHEAD_BYTE) {
        const mdp_copy_item *item = &pump->copy->items[at->item];
        if (at->segment == item->n_segment) {
            *at = (cursor){.item = at->item + 1};
            continue;
        }
        const mdp_segment *segment = &item->segments[at->segment];
        int64_t first, left = source_bytes(segment, &first) - at->segment_offset,
                       n = left < ANNOUNCE_BYTE ? left : ANNOUNCE_BYTE;
        if (segment->source) {
            mdp_reader_announce(pump->copy->reader, segment->source->file,
                                segment->source->offset + first + at->segment_offset, n);
            pump->n_announced += n;
        }
        at->segment_offset += n;
        if (n < left) continue;
        at->segment++;
        at->segment_offset = 0;
    }
}

/* Wait until the main thread has emptied the slot; false when it wants no more. */
static bool await_empty(copy_pump *pump, const copy_slot *slot) {
    pthread_mutex_lock(&pump->lock);
    while (slot->full && !pump->stop) pthread_cond_wait(&pump->changed, &pump->lock);
    bool go_on = !pump->stop;
    pthread_mutex_unlock(&pump->lock);
    return go_on;
}

static void announce_full(copy_pump *pump, copy_slot *slot) {
    pthread_mutex_lock(&pump->lock);
    slot->full = true;
    pthread_cond_broadcast(&pump->changed);
    pthread_mutex_unlock(&pump->lock);
}

/* ---- comparing ----------------------------------------------------------------------------------------------- */

/* The next source with a checksum among the segments from *at on that is not `last`; NULL: there is none. */
static const mdp_tensor *next_source(const mdp_copy_item *item, int64_t *at, const mdp_tensor *last) {
    for (; *at < item->n_segment; (*at)++) {
        const mdp_tensor *source = item->segments[*at].source;
        if (source && source != last && source->digest) return source;
    }
    return NULL;
}

/* Is the item one source and nothing else? */
static bool is_whole(const mdp_copy_item *item) {
    const mdp_segment *only = item->segments;
    return item->n_segment == 1 && only->source && !only->recast && only->offset == 0 &&
           only->n_byte == only->source->n_byte;
}

int64_t mdp_copy_check_bytes(const mdp_copy_item *item) {
    int64_t n_byte = 0, at = 0;
    if (is_whole(item)) return 0;
    for (const mdp_tensor *source = NULL; (source = next_source(item, &at, source));) n_byte += source->n_byte;
    return n_byte;
}

/* Hash a source through an empty slot, which stays empty. */
static mdp_status hash_source(copy_pump *pump, const mdp_tensor *source, const copy_slot *slot, bool *stopped) {
    mdp_hash_reset(pump->hash);
    for (int64_t done = 0, n; done < source->n_byte; done += n) {
        n = source->n_byte - done < pump->slot_byte ? source->n_byte - done : pump->slot_byte;
        *stopped = !await_empty(pump, slot);
        if (*stopped) return mdp_ok();
        double start = mdp_seconds();
        MDP_TRY(mdp_reader_read(pump->copy->reader, source->file, source->offset + done, n, slot->data));
        double read = mdp_seconds();
        mdp_hash_update(pump->hash, slot->data, n);
        pump->n_checked += n;
        pump->read_time += read - start;
        pump->hash_time += mdp_seconds() - read;
    }
    return mdp_ok();
}

static mdp_status compare(const copy_pump *pump, const mdp_tensor *source, const mdp_digest *found) {
    if (strcmp(found->hex, source->digest) == 0) return mdp_ok();
    const mdp_catalogue *catalogue = mdp_reader_catalogue(pump->copy->reader);
    bool listed = source >= catalogue->tensors && source < catalogue->tensors + catalogue->n_tensor;
    const char *kind = listed ? "tensor" : source->file < catalogue->n_file ? "side file" : "array";
    const mdp_item what = {
        .kind = kind, .name = source->name, .file = source->file, .offset = source->offset, .n_byte = source->n_byte};
    return mdp_checksum_differs(mdp_reader_path(pump->copy->reader, source->file), &what, found->hex, source->digest);
}

/* Are the item's sources as their checkpoint says? `digest`: of the item. */
static mdp_status check_sources(copy_pump *pump, const mdp_copy_item *item, const mdp_digest *digest,
                                const copy_slot *slot, bool *stopped) {
    int64_t at = 0;
    for (const mdp_tensor *source = NULL; (source = next_source(item, &at, source)) && !*stopped;) {
        if (is_whole(item)) return compare(pump, source, digest);
        MDP_TRY(hash_source(pump, source, slot, stopped));
        mdp_digest found = mdp_hash_digest(pump->hash);
        if (!*stopped) MDP_TRY(compare(pump, source, &found));
    }
    return mdp_ok();
}

/* ---- the two threads ----------------------------------------------------------------------------------------- */

/* Read one item piece by piece; *turn counts pieces over all items. Sets *stopped when the main thread wants no more.
 */
static mdp_status read_item(copy_pump *pump, int64_t item, int64_t *turn, bool *stopped) {
    cursor at = {.item = item};
    mdp_hash_reset(pump->hash);
    while (at.offset < pump->copy->items[item].n_byte) {
        copy_slot *slot = &pump->slots[(*turn)++ % N_SLOT];
        *stopped = !await_empty(pump, slot);
        if (*stopped) return mdp_ok();
        slot->item = item;
        slot->offset = at.offset;
        slot->n_byte = piece_bytes(pump, &at);
        announce(pump);
        double start = mdp_seconds();
        MDP_TRY(read_piece(pump, &at, slot->data, slot->n_byte));
        double read = mdp_seconds();
        mdp_hash_update(pump->hash, slot->data, slot->n_byte);
        pump->read_time += read - start;
        pump->hash_time += mdp_seconds() - read;
        announce_full(pump, slot);
    }
    mdp_digest digest = mdp_hash_digest(pump->hash);
    MDP_TRY(check_sources(pump, &pump->copy->items[item], &digest, &pump->slots[*turn % N_SLOT], stopped));
    pump->copy->digests[item - pump->copy->first] = digest;
    return mdp_ok();
}

static void *read_ahead(void *argument) {
    copy_pump *pump = argument;
    mdp_status status = mdp_ok();
    int64_t turn = 0;
    bool stopped = false;
    for (int64_t i = pump->copy->first; i < pump->copy->last && status.code == MDP_OK && !stopped; i++)
        status = read_item(pump, i, &turn, &stopped);
    pthread_mutex_lock(&pump->lock);
    pump->status = status;
    pump->done = true;
    pthread_cond_broadcast(&pump->changed);
    pthread_mutex_unlock(&pump->lock);
    return NULL;
}

/* Wait for the next piece; NULL when there is none left. */
static copy_slot *await_full(copy_pump *pump, copy_slot *slot) {
    pthread_mutex_lock(&pump->lock);
    while (!slot->full && !pump->done) pthread_cond_wait(&pump->changed, &pump->lock);
    bool full = slot->full;
    pthread_mutex_unlock(&pump->lock);
    return full ? slot : NULL;
}

static void announce_empty(copy_pump *pump, copy_slot *slot) {
    pthread_mutex_lock(&pump->lock);
    slot->full = false;
    pthread_cond_broadcast(&pump->changed);
    pthread_mutex_unlock(&pump->lock);
}

/* The main thread's half: put pieces in the order in which they were read. */
static mdp_status put_pieces(copy_pump *pump) {
    for (int64_t turn = 0;; turn++) {
        mdp_phase before = mdp_profile_switch(pump->copy->profile, MDP_PHASE_WAIT_READER);
        copy_slot *slot = await_full(pump, &pump->slots[turn % N_SLOT]);
        mdp_profile_switch(pump->copy->profile, before);
        if (!slot) return mdp_ok();
        MDP_TRY(pump->copy->put(pump->copy->context, slot->item, slot->offset, slot->n_byte, slot->data));
        announce_empty(pump, slot);
    }
}

/* What the I/O thread has done, once it is over. */
static void count_reading(const copy_pump *pump) {
    mdp_profile *profile = pump->copy->profile;
    if (!profile) return;
    mdp_phase before = mdp_profile_switch(profile, MDP_PHASE_READ);
    mdp_profile_read(profile, pump->n_read + pump->n_checked);
    mdp_profile_switch(profile, before);
    profile->read_ahead += pump->read_time;
    profile->hash_ahead += pump->hash_time;
}

static mdp_status run_threads(copy_pump *pump) {
    MDP_TRY(mdp_fault(MDP_EXHAUSTED, "start a thread"));
    pthread_t thread;
    int failed = pthread_create(&thread, NULL, read_ahead, pump);
    if (failed)
        return MDP_ERROR(MDP_EXHAUSTED, "cannot start the reading thread of a checkpoint writer: %s.",
                         strerror(failed));
    mdp_status status = put_pieces(pump);
    pthread_mutex_lock(&pump->lock);
    pump->stop = true;
    pthread_cond_broadcast(&pump->changed);
    pthread_mutex_unlock(&pump->lock);
    pthread_join(thread, NULL);
    count_reading(pump);
    return status.code != MDP_OK ? status : pump->status;
}

/* Half of the memory, but no more than the largest item, or what it is compared with, needs. */
static int64_t choose_slot_bytes(const mdp_copy_item *items, int64_t n_item, int64_t buffer_byte) {
    int64_t largest = 0;
    for (int64_t i = 0; i < n_item; i++) {
        int64_t n_check = mdp_copy_check_bytes(&items[i]);
        if (items[i].n_byte > largest) largest = items[i].n_byte;
        if (n_check > largest) largest = n_check;
    }
    int64_t n_byte = buffer_byte / N_SLOT;
    if (n_byte > largest) n_byte = largest;
    return n_byte < SMALLEST_SLOT ? SMALLEST_SLOT : n_byte;
}

int64_t mdp_copy_memory(const mdp_copy_item *items, int64_t n_item, int64_t buffer_byte) {
    int64_t slot_byte = choose_slot_bytes(items, n_item, buffer_byte), turn = 0, used[N_SLOT] = {0}, n_byte = 0;
    for (int64_t i = 0; i < n_item; i++) {
        for (int64_t left = items[i].n_byte, n = 0; left > 0 && n < 2 * N_SLOT; n++, turn++, left -= slot_byte) {
            int64_t piece = left < slot_byte ? left : slot_byte;
            if (piece > used[turn % N_SLOT]) used[turn % N_SLOT] = piece;
        }
        int64_t n_check = mdp_copy_check_bytes(&items[i]);
        if (n_check > slot_byte) n_check = slot_byte;
        if (n_check > used[turn % N_SLOT]) used[turn % N_SLOT] = n_check;
    }
    for (int i = 0; i < N_SLOT; i++) n_byte += mdp_memory_taken(slot_byte, used[i]);
    return n_byte;
}

mdp_status mdp_copy_run(const mdp_copy *copy) {
    if (copy->first == copy->last) return mdp_ok();
    int64_t slot_byte = choose_slot_bytes(copy->items + copy->first, copy->last - copy->first, copy->buffer_byte);
    copy_pump pump = {.copy = copy, .announced = {.item = copy->first}, .slot_byte = slot_byte, .status = mdp_ok()};
    mdp_phase before = mdp_profile_switch(copy->profile, MDP_PHASE_WRITE);
    pthread_mutex_init(&pump.lock, NULL);
    pthread_cond_init(&pump.changed, NULL);
    mdp_status status;
    MDP_TRY_GOTO(status, end, mdp_hash_new(&pump.hash));
    for (int i = 0; i < N_SLOT; i++)
        MDP_TRY_GOTO(status, end, MDP_ALLOC(&pump.slots[i].data, pump.slot_byte, "a copy buffer"));
    status = run_threads(&pump);
end:
    for (int i = 0; i < N_SLOT; i++) mdp_free(pump.slots[i].data);
    mdp_hash_destroy(pump.hash);
    mdp_recaster_clear(&pump.recaster);
    pthread_cond_destroy(&pump.changed);
    pthread_mutex_destroy(&pump.lock);
    mdp_profile_switch(copy->profile, before);
    return status;
}
