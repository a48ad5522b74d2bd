/* panel.c - weights read ahead while the main thread computes.
 *
 * A ring of `depth` buffers. Panels are numbered from 0 over the life of the feed; panel p uses buffer p % depth.
 * Two counters divide them: below `released` the buffers are free again, below `filled` they are read. The I/O thread
 * may fill as long as filled < released + depth, and sleeps otherwise. An error stops reading and is kept for whoever
 * waits for a panel that will not come. All state is guarded by one lock; it is not held while reading. */
#include "checkpoint/matrix.h"

#include <inttypes.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>

struct mdp_panel_feed {
    mdp_reader *reader; /* owned */
    int depth;
    mdp_dtype type; /* of the values of panels */
    int64_t max_byte;
    char *buffers;  /* [depth, max_byte]; owned */
    void *scratch;  /* of the I/O thread; owned */
    int64_t *n_use; /* [depth] users that a panel still has, -1: all that it ever had; owned */

    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t work;  /* the I/O thread waits here */
    pthread_cond_t ready; /* consumers wait here */
    mdp_panel *items;     /* [capacity] of the sequence at hand; owned */
    int64_t capacity;
    int64_t base, end; /* the sequence at hand is panels base .. end-1 */
    int64_t released, filled;
    int64_t passed; /* the consumer counts from here; changed while no thread waits */
    bool reading;   /* the I/O thread is reading panel `filled` now, without the lock */
    bool quit;
    pthread_t main_thread; /* who made the feed */
    mdp_status error;      /* of the I/O thread; kept until stop */

    mdp_profile *profile; /* borrowed; NULL: nothing is counted */
    mdp_phase phase;      /* in which the sequence at hand was started */
};

/* ---- the I/O thread ------------------------------------------------------------------------------------------ */

static bool has_work(const mdp_panel_feed *s) {
    return s->error.code == MDP_OK && s->filled < s->end && s->filled < s->released + s->depth;
}

static void *buffer_of(const mdp_panel_feed *s, int64_t panel) {
    return s->buffers + panel % s->depth * s->max_byte;
}

/* Read panel s->filled; the lock is held on entry and on return. */
static void read_one(mdp_panel_feed *s) {
    mdp_panel item = s->items[s->filled - s->base];
    void *to = buffer_of(s, s->filled);
    int64_t n_byte = mdp_reader_bytes(s->reader);
    double reading = mdp_reader_seconds(s->reader), start = mdp_seconds();
    s->reading = true;
    pthread_mutex_unlock(&s->lock);
    mdp_status status = mdp_matrix_read_as(s->reader, item.matrix, s->type, item.row0, item.n_row, s->scratch, to);
    reading = mdp_reader_seconds(s->reader) - reading;
    double widening = mdp_seconds() - start - reading;
    pthread_mutex_lock(&s->lock);
    s->reading = false;
    if (s->profile) {
        s->profile->n_read[s->phase] += mdp_reader_bytes(s->reader) - n_byte;
        s->profile->read_ahead += reading;
        s->profile->widen_ahead += widening;
    }
    if (status.code == MDP_OK) {
        s->filled++;
    } else {
        s->error = status;
    }
    pthread_cond_broadcast(&s->ready);
}

static void *run_reader(void *context) {
    mdp_panel_feed *s = context;
    pthread_mutex_lock(&s->lock);
    while (!s->quit) {
        if (has_work(s)) {
            read_one(s);
        } else {
            pthread_cond_wait(&s->work, &s->lock);
        }
    }
    pthread_mutex_unlock(&s->lock);
    return NULL;
}

/* Signals are for the main thread, which knows what to do with them. */
static mdp_status start_thread(mdp_panel_feed *s) {
    MDP_TRY(mdp_fault(MDP_EXHAUSTED, "start a thread"));
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int code = pthread_create(&s->thread, NULL, run_reader, s);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (code == 0) return mdp_ok();
    return MDP_ERROR(MDP_EXHAUSTED, "the reading thread cannot be started: %s.", strerror(code));
}

/* ---- life of a feed ---------------------------------------------------------------------------------------- */

static void free_feed(mdp_panel_feed *s) {
    mdp_free(s->items);
    mdp_reader_destroy(s->reader);
    mdp_free(s->n_use);
    mdp_free(s->scratch);
    mdp_free(s->buffers);
    mdp_free(s);
}

static mdp_status allocate(const mdp_reader *reader, mdp_panel_feed *s) {
    int64_t n;
    if (s->depth < 2 || s->max_byte < 0 || !mdp_multiply(s->depth, s->max_byte, &n)) {
        return MDP_ERROR(MDP_INTERNAL, "a panel feed of depth %d and %" PRId64 " bytes is impossible.", s->depth,
                         s->max_byte);
    }
    MDP_TRY(mdp_reader_twin(reader, &s->reader));
    MDP_TRY(MDP_ALLOC(&s->n_use, s->depth, "panels of weights"));
    memset(s->n_use, -1, (size_t)s->depth * sizeof *s->n_use);
    MDP_TRY(MDP_ALLOC(&s->buffers, n, "panels of weights"));
    return mdp_alloc(&s->scratch, MDP_MATRIX_CHUNK_BYTE, 1, "read buffer");
}

mdp_status mdp_panel_feed_new(const mdp_reader *reader, int depth, mdp_dtype type, int64_t max_byte,
                              mdp_profile *profile, mdp_panel_feed **out) {
    mdp_panel_feed *s = NULL;
    *out = NULL;
    MDP_TRY(MDP_ALLOC(&s, 1, "panel feed"));
    s->profile = profile;
    s->depth = depth;
    s->type = type;
    s->max_byte = max_byte;
    s->main_thread = pthread_self();
    s->error = mdp_ok();
    mdp_status status = allocate(reader, s);
    if (status.code != MDP_OK) {
        free_feed(s);
        return status;
    }
    pthread_mutex_init(&s->lock, NULL); /* with default attributes none of the three can fail on Linux */
    pthread_cond_init(&s->work, NULL);
    pthread_cond_init(&s->ready, NULL);
    status = start_thread(s);
    if (status.code != MDP_OK) {
        pthread_cond_destroy(&s->ready);
        pthread_cond_destroy(&s->work);
        pthread_mutex_destroy(&s->lock);
        free_feed(s);
        return status;
    }
    *out = s;
    return mdp_ok();
}

void mdp_panel_feed_destroy(mdp_panel_feed *s) {
    if (s == NULL) return;
    pthread_mutex_lock(&s->lock);
    s->quit = true;
    pthread_cond_signal(&s->work);
    pthread_mutex_unlock(&s->lock);
    pthread_join(s->thread, NULL);
    pthread_cond_destroy(&s->ready);
    pthread_cond_destroy(&s->work);
    pthread_mutex_destroy(&s->lock);
    free_feed(s);
}

/* ---- the consumer -------------------------------------------------------------------------------------------- */

static mdp_status check_items(const mdp_panel_feed *s, const mdp_panel *items, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        const mdp_matrix *matrix = items[i].matrix;
        int64_t n_value, room = INT64_MAX;
        if (mdp_multiply(items[i].n_row, matrix->n_col * (int64_t)sizeof(float), &n_value))
            room = mdp_matrix_room(matrix, s->type, items[i].n_row);
        if (room > s->max_byte) {
            return MDP_ERROR(MDP_INTERNAL,
                             "a panel of %" PRId64 " rows of '%s' does not fit a buffer of %" PRId64 " bytes.",
                             items[i].n_row, matrix->tensor->name, s->max_byte);
        }
    }
    return mdp_ok();
}

/* Called with the lock held and the I/O thread idle: it has nothing left to fill. */
static mdp_status begin(mdp_panel_feed *s, const mdp_panel *items, int64_t n) {
    if (s->error.code != MDP_OK || s->passed != s->end) {
        return MDP_ERROR(MDP_INTERNAL, "a panel feed was started before its last sequence had ended.");
    }
    if (n > s->capacity) {
        MDP_TRY(MDP_GROW(&s->items, s->capacity, n, "list of panels"));
        s->capacity = n;
    }
    if (n > 0) memcpy(s->items, items, (size_t)n * sizeof *items);
    s->base = s->end;
    s->end += n;
    s->phase = s->profile ? s->profile->phase : MDP_PHASE_OTHER;
    pthread_cond_signal(&s->work);
    return mdp_ok();
}

mdp_status mdp_panel_feed_start(mdp_panel_feed *feed, const mdp_panel *items, int64_t n) {
    MDP_TRY(check_items(feed, items, n));
    pthread_mutex_lock(&feed->lock);
    mdp_status status = begin(feed, items, n);
    pthread_mutex_unlock(&feed->lock);
    return status;
}

/* Wait until panels below `end` are filled; the lock is held. Only the main thread has a phase. */
static void wait_until_filled(mdp_panel_feed *s, int64_t end) {
    bool is_main = pthread_equal(pthread_self(), s->main_thread) != 0;
    mdp_profile *profile = is_main ? s->profile : NULL;
    if (s->filled >= end || s->error.code != MDP_OK) return;
    mdp_phase before = mdp_profile_switch(profile, MDP_PHASE_WAIT_READER);
    while (s->filled < end && s->error.code == MDP_OK) pthread_cond_wait(&s->ready, &s->lock);
    mdp_profile_switch(profile, before);
}

mdp_status mdp_panel_feed_wait(mdp_panel_feed *feed, int64_t first, int n, mdp_panel *out) {
    mdp_panel_feed *s = feed;
    mdp_status status = mdp_ok();
    pthread_mutex_lock(&s->lock);
    int64_t at = s->passed + first;
    if (n < 1 || n > s->depth || first < 0 || n > s->end - at) {
        status = MDP_ERROR(MDP_INTERNAL,
                           "panels %" PRId64 " to %" PRId64 " were asked for; %" PRId64
                           " are left, and %d are the most at once.",
                           first, first + n - 1, s->end - s->passed, s->depth);
    } else {
        wait_until_filled(s, at + n);
        if (s->filled < at + n) status = s->error;
    }
    for (int i = 0; i < n && status.code == MDP_OK; i++) {
        out[i] = s->items[at + i - s->base];
        out[i].data = buffer_of(s, at + i);
    }
    pthread_mutex_unlock(&s->lock);
    return status;
}

/* Nobody needs panel s->released; the lock is held. */
static void release_one(mdp_panel_feed *s) {
    s->n_use[s->released++ % s->depth] = -1;
}

void mdp_panel_feed_release(mdp_panel_feed *feed, int64_t first, int n, int64_t n_use) {
    mdp_panel_feed *s = feed;
    pthread_mutex_lock(&s->lock);
    for (int64_t panel = s->passed + first; panel < s->passed + first + n; panel++) {
        int64_t *left = &s->n_use[panel % s->depth];
        *left = (*left < 0 ? n_use : *left) - 1;
    }
    while (s->released < s->filled && s->n_use[s->released % s->depth] == 0) release_one(s);
    pthread_cond_signal(&s->work);
    pthread_mutex_unlock(&s->lock);
}

void mdp_panel_feed_pass(mdp_panel_feed *feed, int64_t n) {
    pthread_mutex_lock(&feed->lock);
    feed->passed += n;
    while (feed->released < feed->passed) release_one(feed);
    pthread_cond_signal(&feed->work);
    pthread_mutex_unlock(&feed->lock);
}

void mdp_panel_feed_stop(mdp_panel_feed *feed) {
    mdp_panel_feed *s = feed;
    pthread_mutex_lock(&s->lock);
    s->end = s->filled; /* nothing more to read, except what is being read now */
    while (s->reading) pthread_cond_wait(&s->ready, &s->lock);
    s->end = s->passed = s->released = s->base = s->filled;
    memset(s->n_use, -1, (size_t)s->depth * sizeof *s->n_use);
    s->error = mdp_ok();
    pthread_mutex_unlock(&s->lock);
}
