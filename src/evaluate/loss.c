/* loss.c - negative log-likelihood of every predicted position, from logits that come in panels of the vocabulary.
 *
 * Per row it keeps a running maximum, the sum of exponentials below it and the target's logit. A position is predicted
 * when it is not the last of its sequence; its target is the next token. Losses are added exactly, so that ranks,
 * threads and batches cannot show. */
#include "evaluate/evaluate.h"

#include <math.h>

typedef struct row_loss {
    double sum; /* of exp(logit - maximum) */
    float maximum;
    float target;  /* logit of the next token */
    uint32_t next; /* the next token */
    bool predicted;
} row_loss;

struct mdp_loss {
    const mdp_engine *engine;
    const mdp_local_batch *batch;
    mdp_dump *dump;
    int n_state;
    row_loss *rows; /* [n_state, batch->n_token] */
};

/* Mark the last row of every sequence as not predicted; the others know their target. */
static void set_targets(mdp_loss *loss, const mdp_tokens *tokens) {
    const mdp_local_batch *batch = loss->batch;
    int64_t n = batch->n_token;
    for (int64_t i = 0; i < n; i++) {
        loss->rows[i] =
            (row_loss){.maximum = -INFINITY, .predicted = i + 1 < n, .next = i + 1 < n ? batch->ids[i + 1] : 0};
    }
    for (int64_t s = 0; s < tokens->n_sequence; s++) {
        int64_t last = tokens->offset[s + 1] - 1 - batch->first_token;
        if (last >= 0 && last < n) loss->rows[last].predicted = false;
    }
    for (int64_t i = n; i < n * loss->n_state; i++) loss->rows[i] = loss->rows[i - n];
}

mdp_status mdp_loss_new(const mdp_engine *engine, const mdp_tokens *tokens, mdp_dump *dump, mdp_loss **out) {
    mdp_loss *loss = NULL;
    *out = NULL;
    MDP_TRY(MDP_ALLOC(&loss, 1, "losses"));
    loss->engine = engine;
    loss->batch = mdp_engine_batch(engine);
    loss->dump = dump;
    loss->n_state = mdp_engine_n_state(engine);
    mdp_status status = MDP_ALLOC(&loss->rows, loss->n_state * loss->batch->n_token, "losses");
    if (status.code != MDP_OK) {
        mdp_loss_destroy(loss);
        return status;
    }
    set_targets(loss, tokens);
    *out = loss;
    return mdp_ok();
}

void mdp_loss_destroy(mdp_loss *loss) {
    if (!loss) return;
    mdp_free(loss->rows);
    mdp_free(loss);
}

static void take_panel(void *context, const mdp_logit_panel *panel) {
    mdp_loss *loss = context;
    row_loss *rows = loss->rows + panel->state * loss->batch->n_token + panel->first_local;
    if (loss->dump) mdp_dump_take_logits(loss->dump, panel);
    for (int32_t i = 0; i < panel->n_row; i++) {
        row_loss *row = &rows[i];
        float *logits = panel->logits + (size_t)i * MDP_PANEL_ROWS;
        if (!row->predicted) continue;
        int64_t target = (int64_t)row->next - panel->first_token;
        if (target >= 0 && target < panel->n_value) row->target = logits[target];
        float top = mdp_max(logits, panel->n_value);
        if (top > row->maximum) {
            row->sum *= (double)mdp_exp(row->maximum - top);
            row->maximum = top;
        }
        row->sum += mdp_exp_shift(logits, row->maximum, panel->n_value);
    }
}

static void take_hidden(void *context, int state, int64_t first_local, int32_t n_row, const float *hidden) {
    mdp_loss *loss = context;
    if (loss->dump) mdp_dump_take_hidden(loss->dump, state, first_local, n_row, hidden);
}

mdp_head_consumer mdp_loss_consumer(mdp_loss *loss) {
    return (mdp_head_consumer){.panel = take_panel, .hidden = take_hidden, .context = loss};
}

mdp_status mdp_loss_add(const mdp_loss *loss, mdp_evaluation *evaluation) {
    const mdp_local_batch *batch = loss->batch;
    for (int s = 0; s < evaluation->n_stream; s++) {
        const row_loss *rows = loss->rows + mdp_engine_state_of(loss->engine, s) * batch->n_token;
        for (int64_t i = 0; i < batch->n_token; i++) {
            if (!rows[i].predicted) continue;
            double nll = log(rows[i].sum) + (double)rows[i].maximum - (double)rows[i].target;
            if (mdp_exact_add(&evaluation->streams[s].nll[batch->category[i]], nll)) continue;
            return MDP_ERROR(MDP_BAD_INPUT,
                             "stream '%s': the loss at token %lld (category '%s') is %g; weights or "
                             "activations are not finite",
                             evaluation->streams[s].name, (long long)(batch->first_token + i),
                             evaluation->category[batch->category[i]], nll);
        }
    }
    return mdp_ok();
}
