/* Logical matrices: every layout that a stored tensor may have, in every format that widens, against values that the
 * test computes from the element's number; and the panel stream against the same, under stress and with errors. */
#include "mdp/checkpoint.h"
#include "mdp/linalg.h"

#include <pthread.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#define N_ELEMENT (3 << 20)
#define START 13 /* bytes before the data: stored values are not aligned */

/* One file that holds the same numbers three times, as F32, F16 and BF16, and a catalogue made by hand. */
typedef struct store {
    char path[64];
    char *paths[1];
    int64_t sizes[1];
    mdp_tensor tensors[4];
    mdp_catalogue catalogue;
    mdp_reader *reader;
} store;

/* Small integers are exact in all three formats. */
static float value_of(int64_t element) {
    return (float)(element * 2654435761u % 251) - 125.0f;
}

static void put_half(unsigned char *to, mdp_dtype type, float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    uint16_t half = (uint16_t)(bits >> 16);
    if (type == MDP_F16) { /* exponent from bias 127 to 15; the values have at most 7 significant bits */
        uint32_t magnitude = bits & 0x7fffffffu;
        half = (uint16_t)((bits >> 16 & 0x8000u) | (magnitude == 0 ? 0 : (magnitude - 0x38000000u) >> 13));
    }
    memcpy(to, &half, sizeof half);
}

static void write_values(FILE *file, mdp_dtype type) {
    for (int64_t i = 0; i < N_ELEMENT; i++) {
        unsigned char raw[4];
        float value = value_of(i);
        size_t size = (size_t)mdp_dtype_bits(type) / 8;
        if (type == MDP_F32) {
            memcpy(raw, &value, 4);
        } else {
            put_half(raw, type, value);
        }
        assert_int_equal(fwrite(raw, 1, size, file), size);
    }
}

static int make_store(void **state) {
    static const mdp_dtype types[4] = {MDP_F32, MDP_F16, MDP_BF16, MDP_I32};
    static const char *const names[4] = {"f32", "f16", "bf16", "i32"};
    store *s = calloc(1, sizeof *s);
    snprintf(s->path, sizeof s->path, "/tmp/mdp-matrix-XXXXXX");
    int fd = mkstemp(s->path);
    FILE *file = fdopen(fd, "wb");
    int64_t offset = START;
    for (int i = 0; i < START; i++) fputc(i, file);
    for (int i = 0; i < 4; i++) {
        int64_t n_byte = (int64_t)N_ELEMENT * mdp_dtype_bits(types[i]) / 8;
        s->tensors[i] = (mdp_tensor){.name = names[i],
                                     .type = types[i],
                                     .n_dim = 2,
                                     .shape = {N_ELEMENT / 1024, 1024},
                                     .offset = i == 3 ? START : offset,
                                     .n_byte = n_byte};
        if (i < 3) write_values(file, types[i]);
        if (i < 3) offset += n_byte;
    }
    fclose(file);
    s->paths[0] = s->path;
    s->sizes[0] = offset;
    s->catalogue = (mdp_catalogue){.path = s->path, .n_file = 1, .files = s->paths, .file_bytes = s->sizes};
    *state = s;
    return mdp_reader_new(&s->catalogue, &s->reader).code;
}

static int remove_store(void **state) {
    store *s = *state;
    mdp_reader_destroy(s->reader);
    int code = unlink(s->path);
    free(s);
    return code;
}

static void assert_ok(mdp_status status) {
    if (status.code != MDP_OK) print_error("%s\n", status.text);
    assert_int_equal(status.code, MDP_OK);
}

/* Memory beyond the stated scratch and output must stay as it is: both are followed by a guard. */
static void assert_rows(store *s, const mdp_matrix *m, int64_t row0, int64_t n_row) {
    int64_t n = n_row * m->n_col, n_scratch = mdp_matrix_scratch(m, n_row);
    assert_true(n_scratch <= 4 << 20);
    float *out = malloc((size_t)(n + 1) * sizeof *out);
    unsigned char *scratch = malloc((size_t)n_scratch + 1);
    out[n] = 12345.0f;
    scratch[n_scratch] = 77;
    assert_ok(mdp_matrix_read(s->reader, m, row0, n_row, scratch, out));
    for (int64_t r = 0; r < n_row; r++) {
        for (int64_t c = 0; c < m->n_col; c++) {
            int64_t element = m->first + (row0 + r) * m->row_stride + c * m->col_stride;
            if (out[r * m->n_col + c] != value_of(element)) {
                fail_msg("%s first %lld strides %lld %lld: row %lld column %lld", m->tensor->name, (long long)m->first,
                         (long long)m->row_stride, (long long)m->col_stride, (long long)(row0 + r), (long long)c);
            }
        }
    }
    assert_true(out[n] == 12345.0f);
    assert_int_equal(scratch[n_scratch], 77);
    free(scratch);
    free(out);
}

/* The same as bf16, in which the values are exact. */
static void assert_rounded_rows(store *s, const mdp_matrix *m, int64_t row0, int64_t n_row) {
    int64_t n = n_row * m->n_col, n_scratch = mdp_matrix_scratch(m, n_row), room = mdp_matrix_room(m, MDP_BF16, n_row);
    bool as_it_is = m->tensor->type == MDP_BF16 && m->col_stride == 1 && (m->row_stride == m->n_col || n_row == 1);
    assert_int_equal(room, as_it_is ? 2 * n : 4 * n);
    unsigned char *out = malloc((size_t)room + 1), *scratch = malloc((size_t)n_scratch + 1);
    out[room] = scratch[n_scratch] = 77;
    assert_ok(mdp_matrix_read_as(s->reader, m, MDP_BF16, row0, n_row, scratch, out));
    for (int64_t i = 0; i < n; i++) {
        unsigned char expected[2];
        int64_t row = row0 + i / m->n_col, column = i % m->n_col;
        put_half(expected, MDP_BF16, value_of(m->first + row * m->row_stride + column * m->col_stride));
        assert_memory_equal(out + 2 * i, expected, 2);
    }
    assert_int_equal(out[room], 77);
    assert_int_equal(scratch[n_scratch], 77);
    free(scratch);
    free(out);
}

static void every_layout_reads_right(void **state) {
    store *s = *state;
    static const struct {
        int64_t n_row, n_col, first, row_stride, col_stride;
    } layouts[] = {
        {3072, 1024, 0, 1024, 1},    /* whole */
        {7, 1024, 5000, 1024, 1},    /* one expert of a stack */
        {64, 96, 96, 192, 1},        /* interleaved rows */
        {64, 96, 1000, 500, 1},      /* part of wider rows */
        {96, 64, 31, 1, 96},         /* transposed */
        {48, 64, 1, 2, 96},          /* transposed and interleaved */
        {1, 4096, 17, 4096, 1},      /* a vector */
        {5, 7, 3, 1000, 9},          /* gaps in both directions */
        {4, 20000, 11, 1, 4},        /* runs of few rows, many columns */
        {2, 1500000, 0, 1500000, 1}, /* rows larger than a read */
        {2, 700000, 1, 5, 4},        /* strided rows larger than the scratch, read in pieces */
        {1, 1, N_ELEMENT - 1, 1, 1}, /* the last element */
    };
    for (int t = 0; t < 3; t++) {
        for (size_t i = 0; i < sizeof layouts / sizeof *layouts; i++) {
            mdp_matrix m = {&s->tensors[t],
                            layouts[i].n_row,
                            layouts[i].n_col,
                            layouts[i].first,
                            layouts[i].row_stride,
                            layouts[i].col_stride,
                            {0},
                            NULL};
            assert_rows(s, &m, 0, m.n_row);
            if (m.n_row > 3) assert_rows(s, &m, 1, 2);
            assert_rows(s, &m, m.n_row - 1, 1);
            assert_rows(s, &m, 0, 0);
            assert_rounded_rows(s, &m, 0, m.n_row);
            assert_rounded_rows(s, &m, m.n_row - 1, 1);
        }
    }
}

/* Numbers that are not exact in bf16: the bytes of others, read from an odd place. */
static void other_formats_are_rounded_to_bf16(void **state) {
    store *s = *state;
    mdp_tensor odd = s->tensors[0];
    odd.offset += 1;
    odd.n_byte -= 4;
    mdp_matrix m = {&odd, 700, 1024, 3, 1024, 1, {0}, NULL};
    void *scratch = malloc(4 << 20);
    float *exact = malloc((size_t)(700 * 1024) * sizeof *exact);
    uint16_t *rounded = malloc((size_t)mdp_matrix_room(&m, MDP_BF16, 700));
    assert_ok(mdp_matrix_read(s->reader, &m, 0, 700, scratch, exact));
    assert_ok(mdp_matrix_read_as(s->reader, &m, MDP_BF16, 0, 700, scratch, rounded));
    int64_t n_different = 0;
    for (int64_t i = 0; i < 700 * 1024; i++) {
        uint32_t bits;
        uint16_t expected;
        memcpy(&bits, &exact[i], sizeof bits);
        mdp_round_bf16(&exact[i], 1, &expected);
        assert_int_equal(rounded[i], expected);
        n_different += (bits & 0xffffu) != 0;
    }
    assert_true(n_different > 10000);
    free(rounded);
    free(exact);
    free(scratch);
}

static void a_matrix_loads_whole(void **state) {
    store *s = *state;
    mdp_matrix m = {&s->tensors[2], 48, 64, 1, 2, 96, {0}, NULL};
    float *values = NULL;
    assert_ok(mdp_matrix_load(s->reader, &m, &values));
    for (int64_t r = 0; r < 48; r++) {
        for (int64_t c = 0; c < 64; c++) assert_true(values[r * 64 + c] == value_of(1 + 2 * r + 96 * c));
    }
    mdp_free(values);
}

static void whole_tensors_are_matrices(void **state) {
    (void)state;
    mdp_tensor scalar = {.n_dim = 0}, vector = {.n_dim = 1, .shape = {9}}, stack = {.n_dim = 3, .shape = {2, 3, 4}};
    mdp_matrix m = mdp_matrix_whole(&scalar);
    assert_true(m.n_row == 1 && m.n_col == 1);
    m = mdp_matrix_whole(&vector);
    assert_true(m.n_row == 1 && m.n_col == 9 && m.row_stride == 9 && m.col_stride == 1);
    m = mdp_matrix_whole(&stack);
    assert_true(m.n_row == 6 && m.n_col == 4 && m.row_stride == 4 && m.first == 0);
}

static void assert_refused(store *s, mdp_matrix m, int64_t row0, int64_t n_row, mdp_code code, const char *part) {
    static float out[4096], scratch[1 << 20];
    mdp_status status = mdp_matrix_read(s->reader, &m, row0, n_row, scratch, out);
    assert_int_equal(status.code, code);
    assert_non_null(strstr(status.text, part));
}

static void what_is_outside_is_refused(void **state) {
    store *s = *state;
    mdp_matrix m = {&s->tensors[1], 4, 8, N_ELEMENT - 31, 8, 1, {0}, NULL};
    assert_refused(s, m, 3, 1, MDP_INTERNAL, "outside the tensor");
    m.first--;
    assert_rows(s, &m, 3, 1);
    assert_refused(s, m, 4, 1, MDP_INTERNAL, "rows 4 to 5 of a matrix of 4 x 8 are outside");
    assert_refused(s, m, -1, 1, MDP_INTERNAL, "outside");
    m.tensor = &s->tensors[3];
    assert_refused(s, m, 0, 1, MDP_BAD_INPUT, "'i32' is stored as I32; only F32, F16 and BF16");
}

/* ---- panel stream -------------------------------------------------------------------------------------------- */

static uint64_t next_random(uint64_t *seed) {
    return mdp_random_bits(20, 1, (*seed)++);
}

static void check_panel(const mdp_panel *panel) {
    const mdp_matrix *m = panel->matrix;
    const float *data = panel->data;
    for (int64_t r = 0; r < panel->n_row; r++) {
        for (int64_t c = 0; c < m->n_col; c++) {
            float expected = value_of(m->first + (panel->row0 + r) * m->row_stride + c * m->col_stride);
            assert_true(data[r * m->n_col + c] == expected);
        }
    }
}

/* The next n panels, which stay until mdp_panel_feed_pass. */
static mdp_status take(mdp_panel_feed *feed, int n, mdp_panel *out) {
    return mdp_panel_feed_wait(feed, 0, n, out);
}

/* Take a sequence of n items, some at a time; all panels of a call must hold at once. Stop after `n_taken`. */
static void consume(mdp_panel_feed *feed, const mdp_panel *items, int64_t n_taken, int depth, uint64_t *seed) {
    mdp_panel got[8];
    for (int64_t done = 0; done < n_taken;) {
        int64_t n = 1 + (int64_t)(next_random(seed) % (uint64_t)depth);
        if (n > n_taken - done) n = n_taken - done;
        assert_ok(take(feed, (int)n, got));
        if (next_random(seed) % 8 == 0) usleep(200); /* lets the ring run full */
        for (int64_t i = 0; i < n; i++) {
            assert_ptr_equal(got[i].matrix, items[done + i].matrix);
            assert_int_equal(got[i].row0, items[done + i].row0);
            check_panel(&got[i]);
        }
        mdp_panel_feed_pass(feed, n);
        done += n;
    }
}

/* Sequences of random panels of all layouts and formats, taken whole or stopped anywhere, through one feed. */
static void random_sequences_arrive_in_order(void **state) {
    store *s = *state;
    mdp_matrix matrices[] = {
        {&s->tensors[0], 100, 40, 7, 40, 1, {0}, NULL},  {&s->tensors[1], 100, 40, 7, 80, 1, {0}, NULL},
        {&s->tensors[2], 100, 40, 7, 1, 100, {0}, NULL}, {&s->tensors[1], 100, 33, 0, 33, 1, {0}, NULL},
        {&s->tensors[2], 64, 50, 3, 2, 200, {0}, NULL},  {&s->tensors[2], 512, 40, 0, 40, 1, {0}, NULL}};
    uint64_t seed = 0;
    for (int depth = 2; depth <= 7; depth++) {
        mdp_panel_feed *feed = NULL;
        assert_ok(mdp_panel_feed_new(s->reader, depth, MDP_F32, 2000 * 4, NULL, &feed));
        for (int sequence = 0; sequence < 60; sequence++) {
            mdp_panel items[40];
            int64_t n = (int64_t)(next_random(&seed) % 41);
            for (int64_t i = 0; i < n; i++) {
                mdp_matrix *m = &matrices[next_random(&seed) % 6];
                int64_t n_row = 1 + (int64_t)(next_random(&seed) % 40);
                int64_t row0 = (int64_t)(next_random(&seed) % (uint64_t)(m->n_row - n_row + 1));
                items[i] = (mdp_panel){.matrix = m, .row0 = row0, .n_row = n_row};
            }
            assert_ok(mdp_panel_feed_start(feed, items, n));
            bool stop = next_random(&seed) % 3 == 0;
            consume(feed, items, stop && n > 0 ? (int64_t)(next_random(&seed) % (uint64_t)n) : n, depth, &seed);
            if (stop) mdp_panel_feed_stop(feed);
        }
        mdp_panel_feed_destroy(feed); /* also right after a start, below */
    }
}

/* Threads that take panels each by itself, several times, and give them back as they come to their ends. */
static void threads_share_a_sequence(void **state) {
    enum { N_PANEL = 60, N_USE = 3 };
    store *s = *state;
    mdp_matrix matrix = {&s->tensors[2], 100, 40, 0, 40, 1, {0}, NULL};
    mdp_panel items[N_PANEL];
    int n_wrong = 0;
    for (int i = 0; i < N_PANEL; i++) items[i] = (mdp_panel){.matrix = &matrix, .row0 = i, .n_row = 20};
    mdp_panel_feed *feed = NULL;
    assert_ok(mdp_panel_feed_new(s->reader, 3, MDP_F32, 800 * 4, NULL, &feed));
    assert_ok(mdp_panel_feed_start(feed, items, N_PANEL));
#pragma omp parallel for schedule(dynamic, 1) num_threads(4)
    for (int item = 0; item < N_PANEL * N_USE; item++) {
        mdp_panel got = {0};
        mdp_status status = mdp_panel_feed_wait(feed, item / N_USE, 1, &got);
        if (item % 7 == 0) usleep(100);
        bool right =
            status.code == MDP_OK && got.row0 == item / N_USE && ((float *)got.data)[0] == value_of(40 * got.row0);
        mdp_panel_feed_release(feed, item / N_USE, 1, N_USE);
#pragma omp atomic
        n_wrong += !right;
    }
    mdp_panel_feed_pass(feed, N_PANEL);
    assert_int_equal(n_wrong, 0);
    assert_ok(mdp_panel_feed_start(feed, items, 1));
    mdp_panel_feed_destroy(feed);
}

static void misuse_is_an_error(void **state) {
    store *s = *state;
    mdp_matrix m = {&s->tensors[0], 100, 40, 0, 40, 1, {0}, NULL};
    mdp_panel items[3] = {{&m, 0, 10, NULL}, {&m, 10, 10, NULL}, {&m, 20, 10, NULL}}, got[4];
    mdp_panel_feed *feed = NULL;
    assert_int_equal(mdp_panel_feed_new(s->reader, 1, MDP_F32, 400 * 4, NULL, &feed).code, MDP_INTERNAL);
    assert_null(feed);
    assert_ok(mdp_panel_feed_new(s->reader, 3, MDP_F32, 400 * 4, NULL, &feed));
    assert_ok(mdp_panel_feed_start(feed, items, 3));
    assert_int_equal(mdp_panel_feed_start(feed, items, 3).code, MDP_INTERNAL); /* not passed yet */
    assert_int_equal(take(feed, 4, got).code, MDP_INTERNAL);                   /* depth is the most */
    assert_ok(take(feed, 2, got));
    mdp_panel_feed_pass(feed, 2);
    assert_int_equal(take(feed, 2, got).code, MDP_INTERNAL); /* one is left */
    mdp_panel_feed_stop(feed);
    mdp_panel_feed_stop(feed); /* at any time */
    items[1].n_row = 11;
    assert_int_equal(mdp_panel_feed_start(feed, items, 3).code, MDP_INTERNAL); /* too large */
    mdp_panel_feed_destroy(feed);
    mdp_panel_feed_destroy(NULL);
}

/* A panel that cannot be read is an error of the take that needs it, and of no earlier one; then the feed works on.
 */
static void read_errors_reach_the_consumer(void **state) {
    store *s = *state;
    mdp_tensor beyond = s->tensors[0];
    beyond.name = "beyond";
    beyond.offset = s->sizes[0] - 100;
    mdp_matrix good = {&s->tensors[0], 100, 40, 0, 40, 1, {0}, NULL}, bad = {&beyond, 100, 40, 0, 40, 1, {0}, NULL};
    mdp_panel items[4] = {{&good, 0, 10, NULL}, {&good, 10, 10, NULL}, {&bad, 0, 10, NULL}, {&good, 20, 10, NULL}};
    mdp_panel got[2];
    mdp_panel_feed *feed = NULL;
    assert_ok(mdp_panel_feed_new(s->reader, 3, MDP_F32, 400 * 4, NULL, &feed));
    for (int round = 0; round < 3; round++) {
        assert_ok(mdp_panel_feed_start(feed, items, 4));
        assert_ok(take(feed, 2, got));
        check_panel(&got[1]);
        mdp_panel_feed_pass(feed, 2);
        for (int again = 0; again < 2; again++) {
            mdp_status status = take(feed, 1, got);
            assert_int_equal(status.code, MDP_INTERNAL);
            assert_non_null(strstr(status.text, "which the file does not have"));
        }
        mdp_panel_feed_stop(feed);
    }
    assert_ok(mdp_panel_feed_start(feed, items, 2));
    assert_ok(take(feed, 1, got));
    mdp_panel_feed_destroy(feed); /* with a panel still to come */
}

/* ---- reader -------------------------------------------------------------------------------------------------- */

/* More files than the reader keeps open, read by several threads. */
#define N_FILE 150
#define N_THREAD 4

static void *read_many(void *context) {
    mdp_reader *reader = context;
    for (uint64_t i = 0; i < 3000; i++) {
        uint64_t file = mdp_random_bits(5, (uint64_t)(uintptr_t)&i, i) % N_FILE;
        unsigned char byte[2] = {0, 0};
        mdp_status status = mdp_reader_read(reader, (int32_t)file, 1, 2, byte);
        if (status.code != MDP_OK || byte[0] != file || byte[1] != 255 - file) return context;
    }
    return NULL;
}

static int count_open(void) {
    int n = 0;
    for (int fd = 0; fd < 1024; fd++) n += lseek(fd, 0, SEEK_CUR) >= 0;
    return n;
}

static void many_files_are_read_with_few_descriptors(void **state) {
    (void)state;
    char folder[] = "/tmp/mdp-reader-XXXXXX";
    static char *paths[N_FILE];
    static int64_t sizes[N_FILE];
    assert_non_null(mkdtemp(folder));
    for (int i = 0; i < N_FILE; i++) {
        assert_ok(mdp_format(&paths[i], "%s/%d", folder, i));
        unsigned char data[3] = {9, (unsigned char)i, (unsigned char)(255 - i)};
        FILE *file = fopen(paths[i], "wb");
        assert_int_equal(fwrite(data, 1, 3, file), 3);
        fclose(file);
        sizes[i] = 3;
    }
    mdp_catalogue catalogue = {.path = folder, .n_file = N_FILE, .files = paths, .file_bytes = sizes};
    mdp_reader *reader = NULL;
    int before = count_open();
    assert_ok(mdp_reader_new(&catalogue, &reader));
    pthread_t threads[N_THREAD];
    for (int i = 0; i < N_THREAD; i++) assert_int_equal(pthread_create(&threads[i], NULL, read_many, reader), 0);
    for (int i = 0; i < N_THREAD; i++) {
        void *failed;
        pthread_join(threads[i], &failed);
        assert_null(failed);
    }
    assert_int_equal(mdp_reader_bytes(reader), 2 * 3000 * N_THREAD);
    assert_true(count_open() - before <= 64 + N_THREAD);
    unsigned char byte;
    assert_int_equal(mdp_reader_read(reader, 3, 2, 2, &byte).code, MDP_INTERNAL);
    assert_int_equal(mdp_reader_read(reader, N_FILE, 0, 1, &byte).code, MDP_INTERNAL);
    mdp_reader_destroy(reader);
    assert_int_equal(count_open(), before);
    for (int i = 0; i < N_FILE; i++) mdp_free(paths[i]);
    assert_ok(mdp_folder_remove(folder));
}

static void a_file_that_shrank_is_an_error(void **state) {
    (void)state;
    char path[] = "/tmp/mdp-shrink-XXXXXX", *paths[1] = {path};
    int fd = mkstemp(path);
    assert_int_equal(write(fd, "abcdef", 6), 6);
    int64_t sizes[1] = {7};
    mdp_catalogue catalogue = {.path = path, .n_file = 1, .files = paths, .file_bytes = sizes};
    mdp_reader *reader = NULL;
    char out[6];
    assert_ok(mdp_reader_new(&catalogue, &reader));
    mdp_status status = mdp_reader_read(reader, 0, 0, 3, out);
    assert_int_equal(status.code, MDP_BAD_INPUT);
    assert_non_null(strstr(status.text, "has 6 bytes, but had 7 when the run began"));
    sizes[0] = 6;
    assert_ok(mdp_reader_read(reader, 0, 0, 3, out));
    assert_int_equal(ftruncate(fd, 4), 0); /* while it is open */
    status = mdp_reader_read(reader, 0, 2, 4, out);
    assert_int_equal(status.code, MDP_BAD_INPUT);
    assert_non_null(strstr(status.text, "truncated"));
    mdp_reader_destroy(reader);
    close(fd);
    unlink(path);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_layout_reads_right),       cmocka_unit_test(other_formats_are_rounded_to_bf16),
        cmocka_unit_test(a_matrix_loads_whole),           cmocka_unit_test(whole_tensors_are_matrices),
        cmocka_unit_test(what_is_outside_is_refused),     cmocka_unit_test(random_sequences_arrive_in_order),
        cmocka_unit_test(threads_share_a_sequence),       cmocka_unit_test(misuse_is_an_error),
        cmocka_unit_test(read_errors_reach_the_consumer), cmocka_unit_test(many_files_are_read_with_few_descriptors),
        cmocka_unit_test(a_file_that_shrank_is_an_error),
    };
    return cmocka_run_group_tests_name("checkpoint_matrix", tests, make_store, remove_store);
}
