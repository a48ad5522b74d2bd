/* loss.c - what the logits of a batch say about every predicted position, from panels of the vocabulary: negative
 * log-likelihood, most likely token, and divergence from the first stream.
 *
 * In: panels in ascending order, the first branch's before the others. Per row it keeps a running maximum m, the sum of
 * e = exp(logit - m), the target's logit and where the maximum was. For the divergence of a branch from the first one,
 *     KL = sum p (l - l') - (ln Z - ln Z'),   p = e / sum e, Z = sum exp l,
 * it keeps the sum of e l' with the first branch's e; sums follow when a maximum moves. What both distributions share,
 *     sum min(p, p') = 1 - TV,
 * needs both Z, so the panels are taken once more for it. A position is predicted when its target, the next token, is
 * not given and not of another sequence. */
#include "evaluate/evaluate.h"

#include <math.h>
#include <string.h>

typedef struct row_loss {
    double sum;      /* of e */
    double cross;    /* of e (of the first branch) * logit */
    double overlap;  /* sum of min(p, p'); of panels taken twice */
    float maximum;   /* m */
    float moved;     /* what the last move of the maximum multiplied the sums by */
    float target;    /* logit of the next token */
    uint32_t next;   /* the next token */
    uint32_t likely; /* the token of the maximum; the lowest where several are equal */
    bool predicted;
} row_loss;

struct mdp_loss {
    const mdp_engine *engine;
    const mdp_local_batch *batch;
    mdp_dump *dump;
    bool twice; /* panels are taken once more, for the overlap */
    int n_branch;
    row_loss *rows; /* [n_branch, batch->n_token] */
};

/* ---- rows ---------------------------------------------------------------------------------------------------- */

/* The rows before the first predicted one and the last row of every sequence have no target; the others know it. */
static void set_targets(mdp_loss *loss, const mdp_tokens *tokens, const int64_t *given) {
    const mdp_local_batch *batch = loss->batch;
    int64_t n = batch->n_token;
    for (int64_t i = 0; i < n; i++) loss->rows[i].maximum = -INFINITY;
    for (int64_t s = 0; s < tokens->n_sequence; s++) {
        int64_t begin = tokens->offset[s] - batch->first_token, last = tokens->offset[s + 1] - 1 - batch->first_token;
        if (begin < 0 || last >= n) continue;
        for (int64_t i = begin + (given ? given[s] : 1) - 1; i < last; i++) {
            loss->rows[i].predicted = true;
            loss->rows[i].next = batch->ids[i + 1];
        }
    }
    for (int64_t i = n; i < n * loss->n_branch; i++) loss->rows[i] = loss->rows[i - n];
}

mdp_status mdp_loss_new(const mdp_engine *engine, const mdp_tokens *tokens, const int64_t *given, mdp_dump *dump,
                        mdp_loss **out) {
    mdp_loss *loss = NULL;
    *out = NULL;
    MDP_TRY(MDP_ALLOC(&loss, 1, "losses"));
    loss->engine = engine;
    loss->batch = mdp_engine_batch(engine);
    loss->dump = dump;
    loss->n_branch = mdp_engine_n_branch(engine);
    mdp_status status = MDP_ALLOC(&loss->rows, loss->n_branch * loss->batch->n_token, "losses");
    if (status.code != MDP_OK) {
        mdp_loss_destroy(loss);
        return status;
    }
    set_targets(loss, tokens, given);
    *out = loss;
    return mdp_ok();
}

void mdp_loss_destroy(mdp_loss *loss) {
    if (!loss) return;
    mdp_free(loss->rows);
    mdp_free(loss);
}

mdp_pass mdp_loss_pass(int n_stream, const mdp_view *const *views) {
    return (mdp_pass){.n_stream = n_stream, .with_head = true, .token_byte = (int64_t)sizeof(row_loss), .views = views};
}

/* ---- panels -------------------------------------------------------------------------------------------------- */

/* The maximum over the panels so far, and what it moved by. */
static void move_maximum(row_loss *row, const float *logits, const mdp_logit_panel *panel) {
    float top = mdp_max(logits, panel->n_value);
    row->moved = 1.0F;
    if (!(top > row->maximum)) return;
    row->moved = mdp_exp(row->maximum - top);
    row->sum *= (double)row->moved;
    row->maximum = top;
    int64_t i = 0;
    while (i < panel->n_value - 1 && logits[i] < top) i++;
    row->likely = (uint32_t)(panel->first_token + i);
}

static void take_row(row_loss *row, float *logits, const mdp_logit_panel *panel) {
    int64_t target = (int64_t)row->next - panel->first_token;
    if (target >= 0 && target < panel->n_value) row->target = logits[target];
    move_maximum(row, logits, panel);
}

/* A row of the first branch: leaves e in place of its logits. */
static void take_first(row_loss *row, float *logits, const mdp_logit_panel *panel, bool compared) {
    float copy[MDP_PANEL_ROWS];
    take_row(row, logits, panel);
    if (compared) memcpy(copy, logits, (size_t)panel->n_value * sizeof(float));
    row->sum += mdp_exp_shift(logits, row->maximum, panel->n_value);
    if (compared) row->cross = row->cross * (double)row->moved + mdp_dot(logits, copy, panel->n_value);
}

/* A row of another branch, beside the first branch's row and its e. */
static void take_other(row_loss *row, const row_loss *first, const float *e, float *logits,
                       const mdp_logit_panel *panel) {
    take_row(row, logits, panel);
    row->cross = row->cross * (double)first->moved + mdp_dot(e, logits, panel->n_value);
    row->sum += mdp_exp_shift(logits, row->maximum, panel->n_value);
}

static void take_panel(void *context, const mdp_logit_panel *panel) {
    mdp_loss *loss = context;
    const row_loss *first = loss->rows + panel->first_local;
    row_loss *rows = loss->rows + panel->branch * loss->batch->n_token + panel->first_local;
    if (loss->dump) mdp_dump_take_logits(loss->dump, panel);
    for (int32_t i = 0; i < panel->n_row; i++) {
        size_t at = (size_t)i * MDP_PANEL_ROWS;
        if (!rows[i].predicted) continue;
        if (panel->first)
            take_other(&rows[i], &first[i], panel->first + at, panel->logits + at, panel);
        else
            take_first(&rows[i], panel->logits + at, panel, loss->n_branch > 1);
    }
}

/* Logits -> probabilities. */
static void normalise(const row_loss *row, float *logits, int64_t n) {
    float share = (float)(1.0 / row->sum);
    (void)mdp_exp_shift(logits, row->maximum, n);
    for (int64_t i = 0; i < n; i++) logits[i] *= share;
}

/* When the sums of whole rows are known: the first branch's probabilities stay for the others. */
static void take_again(void *context, const mdp_logit_panel *panel) {
    const mdp_loss *loss = context;
    row_loss *rows = loss->rows + panel->branch * loss->batch->n_token + panel->first_local;
    for (int32_t i = 0; i < panel->n_row; i++) {
        size_t at = (size_t)i * MDP_PANEL_ROWS;
        if (!rows[i].predicted) continue;
        normalise(&rows[i], panel->logits + at, panel->n_value);
        if (panel->first) rows[i].overlap += mdp_sum_least(panel->first + at, panel->logits + at, panel->n_value);
    }
}

static void take_hidden(void *context, int branch, int64_t first_local, int32_t n_row, const float *hidden) {
    mdp_loss *loss = context;
    if (loss->dump) mdp_dump_take_hidden(loss->dump, branch, first_local, n_row, hidden);
}

void mdp_loss_share(mdp_loss *loss) {
    loss->twice = true;
}

mdp_head_consumer mdp_loss_consumer(mdp_loss *loss) {
    return (mdp_head_consumer){
        .panel = take_panel, .again = loss->twice ? take_again : NULL, .hidden = take_hidden, .context = loss};
}

/* ---- results ------------------------------------------------------------------------------------------------- */

const mdp_local_batch *mdp_loss_batch(const mdp_loss *loss) {
    return loss->batch;
}

bool mdp_loss_at(const mdp_loss *loss, int stream, int64_t local, mdp_position *out) {
    int branch = mdp_engine_branch_of(loss->engine, stream);
    const row_loss *first = &loss->rows[local], *row = first + branch * loss->batch->n_token;
    if (!row->predicted) return false;
    double log_z = log(row->sum) + (double)row->maximum;
    out->nll = log_z - (double)row->target;
    out->kl = 0.0;
    out->overlap = branch > 0 ? row->overlap : 1.0;
    if (branch > 0) {
        double first_log_z = log(first->sum) + (double)first->maximum;
        out->kl = (first->cross - row->cross) / first->sum - (first_log_z - log_z);
    }
    out->right = row->likely == row->next;
    out->agrees = row->likely == first->likely;
    return true;
}

mdp_status mdp_position_check(const mdp_position *position, const char *stream, const char *category, int64_t token) {
    if (isfinite(position->nll) && isfinite(position->kl)) return mdp_ok();
    return MDP_ERROR(MDP_BAD_INPUT,
                     "stream '%s': the loss at token %lld (category '%s') is %g; weights or activations are not "
                     "finite.",
                     stream, (long long)token, category, position->nll);
}
