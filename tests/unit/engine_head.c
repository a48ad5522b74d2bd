/* Final norm, head and loss against numpy in float64, for two residual streams: hidden states, logits, and of every
 * predicted position the loss, the divergence and the most likely token; the same bytes for any number of threads. */
#include "engine_harness.h"
#include "evaluate/evaluate.h"

#include <string.h>

enum { N_STREAM = 2, MOST_ROWS = 16 };

/* What the consumer keeps before the loss takes the logits. */
typedef struct seen {
    int64_t n_token, d_model, vocab_size;
    int64_t n_row;           /* whose logits are kept */
    int64_t rows[MOST_ROWS]; /* [n_row] */
    float *logits;           /* [N_STREAM, n_row, vocab_size] */
    float *hidden;           /* [N_STREAM, n_token, d_model] */
    mdp_head_consumer loss;
} seen;

static void keep_panel(void *context, const mdp_logit_panel *panel) {
    const seen *s = context;
    for (int64_t i = 0; i < s->n_row; i++) {
        int64_t row = s->rows[i] - panel->first_local;
        if (row < 0 || row >= panel->n_row) continue;
        memcpy(s->logits + (panel->branch * s->n_row + i) * s->vocab_size + panel->first_token,
               panel->logits + row * MDP_PANEL_ROWS, (size_t)panel->n_value * sizeof *panel->logits);
    }
    s->loss.panel(s->loss.context, panel);
}

static void keep_hidden(void *context, int branch, int64_t first_local, int32_t n_row, const float *hidden) {
    const seen *s = context;
    memcpy(s->hidden + (branch * s->n_token + first_local) * s->d_model, hidden,
           (size_t)(n_row * s->d_model) * sizeof *hidden);
}

static void begin_seen(const harness *h, seen *s) {
    const json_t *rows = json_object_get(h->settings, "logit_rows"), *row;
    size_t i;
    *s = (seen){.n_token = h->tokens->n_token, .d_model = h->model.d_model, .vocab_size = h->model.vocab_size};
    json_array_foreach(rows, i, row) {
        s->rows[s->n_row++] = json_integer_value(row);
    }
    harness_ok(MDP_ALLOC(&s->logits, N_STREAM * s->n_row * s->vocab_size, "logits"));
    harness_ok(MDP_ALLOC(&s->hidden, N_STREAM * s->n_token * s->d_model, "hidden states"));
}

static void end_seen(seen *s) {
    mdp_free(s->logits);
    mdp_free(s->hidden);
}

/* The first stream has the embeddings, the second other rows. */
static void begin_streams(harness *h, int n_thread) {
    const int leader[N_STREAM] = {0, 1}, stream_branch[N_STREAM] = {0, 1};
    harness_begin(h, n_thread, N_STREAM);
    size_t n_byte = (size_t)(h->tokens->n_token * h->model.d_model) * sizeof(float);
    float *embedded = NULL, *other = harness_values(h, "other");
    harness_expect_same(&embedded, mdp_engine_residual(h->engine, 0), h->tokens->n_token * h->model.d_model);
    harness_ok(mdp_engine_restore_batch_all(h->engine, 0, N_STREAM, leader, stream_branch));
    memcpy(mdp_engine_residual(h->engine, 0), embedded, n_byte);
    memcpy(mdp_engine_residual(h->engine, 1), other, n_byte);
    mdp_free(embedded);
    mdp_free(other);
}

/* The most likely token itself is not told: whether it is the next one, and the first stream's, is. */
static void expect_likely(const harness *h, const mdp_position *position, const float *likely, int64_t i, int64_t n,
                          int64_t row) {
    assert_int_equal(position->right, (uint32_t)likely[i] == h->tokens->ids[row + 1]);
    assert_int_equal(position->agrees, likely[i] == likely[i % n]);
}

static void expect_losses(const harness *h, const mdp_loss *loss, float **kept) {
    int64_t n = h->tokens->n_token - h->tokens->n_sequence, at = 0; /* predicted: all but the first of each */
    float *nll = NULL, *likely = harness_values(h, "want_likely");
    harness_ok(MDP_ALLOC(&nll, 2 * N_STREAM * n, "losses"));
    float *kl = nll + N_STREAM * n;
    for (int stream = 0; stream < N_STREAM; stream++) {
        for (int64_t row = 0; row < h->tokens->n_token; row++) {
            mdp_position position;
            if (!mdp_loss_at(loss, stream, row, &position)) continue;
            assert_true(at < N_STREAM * n);
            expect_likely(h, &position, likely, at, n, row);
            nll[at] = (float)position.nll;
            kl[at++] = (float)position.kl;
        }
    }
    assert_int_equal(at, N_STREAM * n);
    harness_expect(h, "want_nll", nll, N_STREAM * n);
    harness_expect(h, "want_kl", kl, N_STREAM * n);
    harness_expect_same(kept, nll, 2 * N_STREAM * n);
    mdp_free(nll);
    mdp_free(likely);
}

static void expect_head(harness *h, const char *name) {
    float *kept_logits = NULL, *kept_losses = NULL;
    seen s;
    harness_enter(h, name);
    begin_seen(h, &s);
    for (int n_thread = 1; n_thread <= HARNESS_MOST_THREADS; n_thread++) {
        mdp_loss *loss = NULL;
        begin_streams(h, n_thread);
        harness_ok(mdp_loss_new(h->engine, h->tokens, NULL, NULL, &loss));
        s.loss = mdp_loss_consumer(loss);
        const mdp_head_consumer consumer = {.panel = keep_panel, .hidden = keep_hidden, .context = &s};
        harness_ok(mdp_engine_head_all(h->engine, &consumer));
        harness_expect(h, "want_hidden", s.hidden, N_STREAM * s.n_token * s.d_model);
        harness_expect(h, "want_logits", s.logits, N_STREAM * s.n_row * s.vocab_size);
        harness_expect_same(&kept_logits, s.logits, N_STREAM * s.n_row * s.vocab_size);
        expect_losses(h, loss, &kept_losses);
        mdp_loss_destroy(loss);
        harness_end(h);
    }
    mdp_free(kept_logits);
    mdp_free(kept_losses);
    end_seen(&s);
    harness_leave(h);
}

static void logits_and_losses_over_several_panels_and_tiles(void **state) {
    expect_head(*state, "rms_norm");
}

static void tied_embeddings_are_scaled_and_logits_divided(void **state) {
    expect_head(*state, "tied");
}

static void norm_and_head_may_have_biases(void **state) {
    expect_head(*state, "biased");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(logits_and_losses_over_several_panels_and_tiles),
        cmocka_unit_test(tied_embeddings_are_scaled_and_logits_divided),
        cmocka_unit_test(norm_and_head_may_have_biases),
    };
    return harness_run("head", tests, sizeof tests / sizeof tests[0]);
}
