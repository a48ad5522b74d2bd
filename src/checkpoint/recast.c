/* recast.c - stored values in another type, band by band: see recast.h.
 *
 * In: rows of a matrix as matrix.c and scaled.c read them, exact in f32. Out: bytes of the result, rounded once to
 * nearest, ties to even. A band of FP8 is a row of blocks, so its scales are known when its codes are made; scales by
 * themselves are made from the same values by the same steps. Refuses what the type cannot hold. */
#include "mdp/recast.h"
#include "checkpoint/masked.h"
#include "mdp/narrow.h"

#include <math.h>
#include <string.h>

/* Values of a band. Where columns become rows, whole rows are read for it, so it is larger. */
#define BAND_VALUES (INT64_C(1) << 20)
#define TURNED_VALUES (INT64_C(1) << 22)
#define TURNED_STEP 32 /* columns whose codes begin at a whole byte, and at a block of MXFP4 */

/* How a result is cut. */
typedef struct cut {
    int64_t n_row;      /* of one of its matrices */
    int64_t length;     /* rows, or columns that become rows, of one */
    int64_t step;       /* of them in a band; the last has fewer */
    int64_t n_band;     /* of a matrix */
    int64_t entry_byte; /* bytes of one of them; of scales: of one row of blocks */
    int64_t band_byte, run_byte;
} cut;

static int64_t step_of(const mdp_recast *recast, int64_t n_row) {
    int64_t n_col = recast->from.n_col > 0 ? recast->from.n_col : 1;
    if (recast->type == MDP_F8_E4M3) return MDP_FP8_BLOCK;
    if (!recast->transposed) return BAND_VALUES / n_col > 1 ? BAND_VALUES / n_col : 1;
    int64_t step = TURNED_VALUES / (n_row > 0 ? n_row : 1) / TURNED_STEP * TURNED_STEP;
    return step > TURNED_STEP ? step : TURNED_STEP;
}

/* Bytes of a band of n rows, or of columns that become rows. */
static int64_t bytes_of(const mdp_recast *recast, const cut *c, int64_t n) {
    return recast->scales ? mdp_divide_up(n, MDP_FP8_BLOCK) * c->entry_byte : n * c->entry_byte;
}

static cut cut_up(const mdp_recast *recast) {
    const mdp_matrix *from = &recast->from;
    cut c = {.n_row = recast->n_run > 0 ? from->n_row / recast->n_run : 0};
    c.length = recast->transposed ? from->n_col : c.n_row;
    c.step = step_of(recast, c.n_row);
    c.n_band = mdp_divide_up(c.length, c.step);
    int64_t width = recast->transposed ? c.n_row : from->n_col;
    c.entry_byte = recast->scales ? mdp_divide_up(width, MDP_FP8_BLOCK) * (int64_t)sizeof(float)
                                  : width * mdp_dtype_bits(recast->type) / 8;
    c.band_byte = bytes_of(recast, &c, c.step);
    c.run_byte = bytes_of(recast, &c, c.length);
    return c;
}

/* The rows of the source that n entries from `first` on of matrix `run` are made of; *row0: the first. */
static mdp_matrix source_of(const mdp_recast *recast, const cut *c, int64_t run, int64_t first, int64_t n,
                            int64_t *row0) {
    mdp_matrix part = recast->from;
    *row0 = run * c->n_row + (recast->transposed ? 0 : first);
    if (!recast->transposed) return part;
    part.first += first;
    part.n_col = n;
    return part;
}

static int64_t rows_of(const mdp_recast *recast, const cut *c, int64_t n) {
    return recast->transposed ? c->n_row : n;
}

int64_t mdp_recast_bytes(const mdp_recast *recast) {
    if (recast->masked.n > 0) return recast->masked.n_byte;
    return recast->n_run * cut_up(recast).run_byte;
}

int64_t mdp_recast_read_bytes(const mdp_recast *recast) {
    if (recast->masked.n > 0) return mdp_masked_read_bytes(recast);
    const cut c = cut_up(recast);
    int64_t n_byte = 0, row0;
    for (int64_t run = 0; run < recast->n_run && c.run_byte > 0; run++) {
        for (int64_t first = 0; first < c.length; first += c.step) {
            int64_t n = c.length - first < c.step ? c.length - first : c.step;
            mdp_matrix part = source_of(recast, &c, run, first, n, &row0);
            n_byte += mdp_matrix_read_bytes(&part, row0, rows_of(recast, &c, n));
        }
    }
    return n_byte;
}

/* Bytes of the three buffers for a band. */
static void rooms_of(const mdp_recast *recast, const cut *c, int64_t *values, int64_t *scratch, int64_t *made) {
    int64_t n = c->length < c->step ? c->length : c->step, row0;
    mdp_matrix part = source_of(recast, c, 0, 0, n, &row0);
    *values = rows_of(recast, c, n) * part.n_col * (int64_t)sizeof(float);
    *scratch = mdp_matrix_scratch(&part, rows_of(recast, c, n));
    *made = bytes_of(recast, c, n);
}

int64_t mdp_recast_memory(const mdp_recast *recast) {
    if (recast->masked.n > 0) return mdp_masked_memory(recast);
    const cut c = cut_up(recast);
    int64_t values, scratch, made;
    rooms_of(recast, &c, &values, &scratch, &made);
    return values + scratch + made;
}

/* ---- values to bytes --------------------------------------------------------------------------------------------- */

/* What rounds to infinity, from here on. */
static double limit_of(mdp_dtype type) {
    if (type == MDP_F16) return ldexp(2.0 - ldexp(1.0, -11), 15);
    return type == MDP_BF16 ? ldexp(2.0 - ldexp(1.0, -8), 127) : INFINITY;
}

static mdp_status too_large(const mdp_recast *recast, double value) {
    return MDP_ERROR(MDP_BAD_INPUT, "'%s' has the value %g, which %s cannot hold; take --type bf16 or f32.",
                     recast->from.tensor->name, value, mdp_dtype_name(recast->type));
}

/* n values, `stride` apart, stored side by side. */
static mdp_status narrow(const mdp_recast *recast, const float *values, int64_t stride, int64_t n, unsigned char *out) {
    enum { CHUNK = 1024 };
    double wide[CHUNK];
    double limit = limit_of(recast->type);
    int64_t size = mdp_dtype_bits(recast->type) / 8;
    for (int64_t done = 0; done < n; done += CHUNK) {
        int64_t now = n - done < CHUNK ? n - done : CHUNK;
        for (int64_t i = 0; i < now; i++) {
            wide[i] = (double)values[(done + i) * stride];
            if (fabs(wide[i]) >= limit && isfinite(wide[i])) return too_large(recast, wide[i]);
        }
        mdp_narrow(recast->type, wide, now, out + done * size);
    }
    return mdp_ok();
}

/* The scale of a block [n_row, n_col] of FP8; leading dimension ld. */
static mdp_status find_scale(const mdp_recast *recast, const float *values, int64_t ld, int64_t n_row, int64_t n_col,
                             float *scale, void *stored) {
    float largest = 0.0F;
    for (int64_t r = 0; r < n_row; r++) {
        for (int64_t c = 0; c < n_col; c++) {
            float size = fabsf(values[r * ld + c]);
            if (!isfinite(size))
                return MDP_ERROR(MDP_BAD_INPUT, "'%s' has a value that is not finite, which FP8 cannot hold.",
                                 recast->from.tensor->name);
            if (size > largest) largest = size;
        }
    }
    *scale = mdp_block_scale(MDP_F8_E4M3, MDP_F32, largest, stored);
    return mdp_ok();
}

/* Codes of a block: quotients in f32, as the kernels of DeepSeek and torch have them, so that codes equal theirs. */
static void encode(const float *values, int64_t ld, int64_t n_row, int64_t n_col, float scale, unsigned char *out) {
    double parts[MDP_FP8_BLOCK];
    for (int64_t r = 0; r < n_row; r++) {
        for (int64_t c = 0; c < n_col; c++) parts[c] = (double)(values[r * ld + c] / scale);
        mdp_narrow(MDP_F8_E4M3, parts, n_col, out + r * ld);
    }
}

/* A row of blocks: codes, or scales. */
static mdp_status make_blocks(const mdp_recast *recast, const float *values, int64_t n_row, unsigned char *out) {
    int64_t ld = recast->from.n_col;
    for (int64_t c = 0; c < ld; c += MDP_FP8_BLOCK) {
        int64_t width = ld - c < MDP_FP8_BLOCK ? ld - c : MDP_FP8_BLOCK;
        float scale, stored;
        MDP_TRY(find_scale(recast, values + c, ld, n_row, width, &scale, &stored));
        if (recast->scales)
            memcpy(out + c / MDP_FP8_BLOCK * (int64_t)sizeof stored, &stored, sizeof stored);
        else
            encode(values + c, ld, n_row, width, scale, out + c);
    }
    return mdp_ok();
}

static mdp_status make(const mdp_recast *recast, const cut *c, const float *values, int64_t n, unsigned char *out) {
    if (recast->type == MDP_F8_E4M3) return make_blocks(recast, values, n, out);
    if (!recast->transposed) return narrow(recast, values, 1, n * recast->from.n_col, out);
    for (int64_t i = 0; i < n; i++) MDP_TRY(narrow(recast, values + i, n, c->n_row, out + i * c->entry_byte));
    return mdp_ok();
}

/* ---- a band ------------------------------------------------------------------------------------------------------ */

static mdp_status make_room(void **buffer, int64_t *room, int64_t n_byte) {
    if (*buffer && *room >= n_byte) return mdp_ok();
    mdp_free(*buffer);
    *buffer = NULL;
    *room = n_byte;
    return mdp_alloc(buffer, n_byte, 1, "a tensor in another type");
}

mdp_status mdp_recaster_make_rooms(mdp_recaster *to, int64_t values, int64_t scratch, int64_t made) {
    void *buffers[] = {to->values, to->scratch, to->made};
    mdp_status status = make_room(&buffers[0], &to->room_values, values);
    if (status.code == MDP_OK) status = make_room(&buffers[1], &to->room_scratch, scratch);
    if (status.code == MDP_OK) status = make_room(&buffers[2], &to->room_made, made);
    to->values = buffers[0];
    to->scratch = buffers[1];
    to->made = buffers[2];
    return status;
}

static mdp_status make_band(mdp_recaster *to, mdp_reader *reader, const mdp_recast *recast, const cut *c, int64_t band,
                            int64_t *n_read) {
    int64_t first = band % c->n_band * c->step, n = c->length - first < c->step ? c->length - first : c->step, row0;
    mdp_matrix part = source_of(recast, c, band / c->n_band, first, n, &row0);
    int64_t values, scratch, made;
    rooms_of(recast, c, &values, &scratch, &made);
    to->recast = NULL; /* until it is whole */
    MDP_TRY(mdp_recaster_make_rooms(to, values, scratch, made));
    MDP_TRY(mdp_matrix_read(reader, &part, row0, rows_of(recast, c, n), to->scratch, to->values));
    *n_read += mdp_matrix_read_bytes(&part, row0, rows_of(recast, c, n));
    MDP_TRY(make(recast, c, to->values, n, to->made));
    to->recast = recast;
    to->band = band;
    to->n_made = bytes_of(recast, c, n);
    return mdp_ok();
}

mdp_status mdp_recaster_read(mdp_recaster *recaster, mdp_reader *reader, const mdp_recast *recast, int64_t offset,
                             int64_t n_byte, void *out, int64_t *n_read) {
    if (recast->masked.n > 0) return mdp_masked_read(recaster, reader, recast, offset, n_byte, out, n_read);
    const cut c = cut_up(recast);
    unsigned char *to = out;
    while (n_byte > 0) {
        int64_t inside = offset % c.run_byte, band = offset / c.run_byte * c.n_band + inside / c.band_byte;
        if (recaster->recast != recast || recaster->band != band)
            MDP_TRY(make_band(recaster, reader, recast, &c, band, n_read));
        int64_t at = inside % c.band_byte, now = recaster->n_made - at;
        if (now > n_byte) now = n_byte;
        memcpy(to, recaster->made + at, (size_t)now);
        to += now;
        offset += now;
        n_byte -= now;
    }
    return mdp_ok();
}

void mdp_recaster_clear(mdp_recaster *recaster) {
    mdp_free(recaster->values);
    mdp_free(recaster->scratch);
    mdp_free(recaster->made);
    *recaster = (mdp_recaster){0};
}
