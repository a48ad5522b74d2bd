/* engine_harness.c - settings and tensors of a case to a model of one layer, and an engine for it. */
#include "engine_harness.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Largest error of a result, in units of its largest entry: some roundings of f32 (6e-8), and those of our exp. */
#define TOLERANCE 2e-6

void harness_ok(mdp_status status) {
    if (status.code != MDP_OK) print_error("%s\n", status.text);
    assert_int_equal(status.code, MDP_OK);
}

/* ---- settings ------------------------------------------------------------------------------------------------- */

typedef struct setting {
    const char *key;
    size_t at; /* in the harness */
    enum { COUNT, REAL, REAL32, TRUTH, NAME } kind;
} setting;

#define OF(field) offsetof(harness, field)
static const setting SETTINGS[] = {
    {"d_model", OF(model.d_model), COUNT},
    {"vocab_size", OF(model.vocab_size), COUNT},
    {"norm_kind", OF(model.norm_kind), NAME},
    {"norm_eps", OF(model.norm_eps), REAL},
    {"embedding_scale", OF(model.embedding_scale), REAL},
    {"residual_scale", OF(model.residual_scale), REAL},
    {"logit_divisor", OF(model.logit_divisor), REAL},
    {"n_head", OF(model.n_head), COUNT},
    {"n_kv_head", OF(model.n_kv_head), COUNT},
    {"head_dim", OF(model.head_dim), COUNT},
    {"q_step", OF(model.q_step), COUNT},
    {"rope_layout", OF(model.rope.layout), NAME},
    {"n_pair", OF(model.rope.n_pair), COUNT},
    {"attention_factor", OF(model.rope.attention_factor), REAL},
    {"long_beyond", OF(model.rope.long_beyond), COUNT},
    {"long_attention_factor", OF(model.rope.long_attention_factor), REAL},
    {"q_rank", OF(model.latent.q_rank), COUNT},
    {"kv_rank", OF(model.latent.kv_rank), COUNT},
    {"n_own", OF(model.latent.n_own), COUNT},
    {"n_rope", OF(model.latent.n_rope), COUNT},
    {"n_value", OF(model.latent.n_value), COUNT},
    {"scale", OF(layer.attention.scale), REAL},
    {"window", OF(layer.attention.window), COUNT},
    {"chunk", OF(layer.attention.chunk), COUNT},
    {"plain", OF(layer.attention.plain), TRUTH},
    {"clip", OF(layer.attention.clip), REAL},
    {"qk_norm", OF(layer.attention.qk_norm), NAME},
    {"qk_norm_last", OF(layer.attention.qk_norm_last), TRUTH},
    {"temper_floor", OF(layer.attention.temper_floor), COUNT},
    {"temper_scale", OF(layer.attention.temper_scale), REAL},
    {"n_key", OF(model.delta.n_key), COUNT},
    {"d_key", OF(model.delta.d_key), COUNT},
    {"n_delta_value", OF(model.delta.n_value), COUNT},
    {"d_value", OF(model.delta.d_value), COUNT},
    {"n_kernel", OF(model.delta.n_kernel), COUNT},
    {"n_channel", OF(model.delta.n_channel), COUNT},
    {"grouped", OF(layer.attention.delta.grouped), TRUTH},
    {"activation", OF(layer.activation.kind), NAME},
    {"activation", OF(layer.attention.delta.activation.kind), NAME},
    {"alpha", OF(layer.activation.alpha), REAL32},
    {"limit", OF(layer.activation.limit), REAL32},
    {"d_ff", OF(layer.dense_ff), COUNT},
};

static const struct {
    const char *name;
    size_t at;
} MATRICES[] = {
    {"embedding", OF(model.embedding)},
    {"final_norm", OF(model.final_norm.weight)},
    {"final_norm_bias", OF(model.final_norm.bias)},
    {"head", OF(model.head)},
    {"head_bias", OF(model.head_bias)},
    {"norm1", OF(layer.norm1.weight)},
    {"norm1_bias", OF(layer.norm1.bias)},
    {"norm2", OF(layer.norm2.weight)},
    {"norm2_bias", OF(layer.norm2.bias)},
    {"q", OF(layer.attention.q)},
    {"k", OF(layer.attention.k)},
    {"v", OF(layer.attention.v)},
    {"o", OF(layer.attention.o)},
    {"q_bias", OF(layer.attention.q_bias)},
    {"k_bias", OF(layer.attention.k_bias)},
    {"v_bias", OF(layer.attention.v_bias)},
    {"o_bias", OF(layer.attention.o_bias)},
    {"q_norm", OF(layer.attention.q_norm)},
    {"k_norm", OF(layer.attention.k_norm)},
    {"sinks", OF(layer.attention.sinks)},
    {"q_a", OF(layer.attention.q_a)},
    {"q_a_bias", OF(layer.attention.q_a_bias)},
    {"q_a_norm", OF(layer.attention.q_a_norm)},
    {"kv_a", OF(layer.attention.kv_a)},
    {"kv_a_bias", OF(layer.attention.kv_a_bias)},
    {"kv_a_norm", OF(layer.attention.kv_a_norm)},
    {"kv_b", OF(layer.attention.kv_b)},
    {"in", OF(layer.attention.delta.in)},
    {"z", OF(layer.attention.delta.z)},
    {"b", OF(layer.attention.delta.b)},
    {"a", OF(layer.attention.delta.a)},
    {"kernel", OF(layer.attention.delta.kernel)},
    {"rate", OF(layer.attention.delta.rate)},
    {"shift", OF(layer.attention.delta.shift)},
    {"delta_norm", OF(layer.attention.delta.norm)},
};

/* Enumerators by the names that the fixtures give them; all enumerations have the size of an int. */
static const struct {
    const char *name;
    int value;
} NAMES[] = {
    {"rms_norm", MDP_RMS_NORM},
    {"rms_norm_of_one_plus", MDP_RMS_NORM_OF_ONE_PLUS},
    {"layer_norm", MDP_LAYER_NORM},
    {"half", MDP_ROPE_HALF},
    {"pair", MDP_ROPE_PAIR},
    {"none", MDP_QK_NORM_NONE},
    {"head", MDP_QK_NORM_HEAD},
    {"whole", MDP_QK_NORM_WHOLE},
    {"silu", MDP_SILU},
    {"gelu", MDP_GELU},
    {"gelu_tanh", MDP_GELU_TANH},
    {"swiglu_clamped", MDP_SWIGLU_CLAMPED},
};
_Static_assert(sizeof(mdp_norm_kind) == sizeof(int) && sizeof(mdp_qk_norm) == sizeof(int) &&
                   sizeof(mdp_activation_kind) == sizeof(int) && sizeof(mdp_rope_layout) == sizeof(int),
               "enumerations are set as int");

static int value_of_name(const char *name) {
    for (size_t i = 0; i < sizeof NAMES / sizeof NAMES[0]; i++)
        if (strcmp(name, NAMES[i].name) == 0) return NAMES[i].value;
    fail_msg("no enumerator is called '%s'", name);
    return 0;
}

static void apply(harness *h, const setting *s, const json_t *value) {
    char *to = (char *)h + s->at;
    int64_t count = json_integer_value(value);
    double real = json_number_value(value);
    float real32 = (float)real;
    bool truth = json_is_true(value);
    if (s->kind == COUNT) memcpy(to, &count, sizeof count);
    if (s->kind == REAL) memcpy(to, &real, sizeof real);
    if (s->kind == REAL32) memcpy(to, &real32, sizeof real32);
    if (s->kind == TRUTH) memcpy(to, &truth, sizeof truth);
    if (s->kind != NAME) return;
    int number = value_of_name(json_string_value(value));
    memcpy(to, &number, sizeof number);
}

/* ---- tensors -------------------------------------------------------------------------------------------------- */

mdp_matrix harness_matrix(const harness *h, const char *name) {
    char full[200];
    (void)snprintf(full, sizeof full, "%s/%s", h->name, name);
    const mdp_tensor *tensor = mdp_catalogue_find(h->catalogue, full);
    return tensor ? mdp_matrix_whole(tensor) : (mdp_matrix){0};
}

float *harness_values(const harness *h, const char *name) {
    float *out = NULL;
    const mdp_matrix matrix = harness_matrix(h, name);
    if (!matrix.tensor) fail_msg("%s has no '%s'", h->name, name);
    harness_ok(mdp_matrix_load(h->reader, &matrix, &out));
    return out;
}

mdp_expert harness_mlp(const harness *h, const char *prefix) {
    static const char *const names[] = {"gate", "up", "down", "gate_bias", "up_bias", "down_bias"};
    mdp_matrix m[6];
    for (int i = 0; i < 6; i++) {
        char name[100];
        (void)snprintf(name, sizeof name, "%s%s", prefix, names[i]);
        m[i] = harness_matrix(h, name);
    }
    return (mdp_expert){.gate = m[0], .up = m[1], .down = m[2], .gate_bias = m[3], .up_bias = m[4], .down_bias = m[5]};
}

/* f32 as stored to f64; NULL where the case has none. */
static double *frequencies(const harness *h, const char *name) {
    double *out = NULL;
    if (!harness_matrix(h, name).tensor) return NULL;
    float *stored = harness_values(h, name);
    harness_ok(MDP_ALLOC(&out, h->model.rope.n_pair, "frequencies"));
    for (int64_t i = 0; i < h->model.rope.n_pair; i++) out[i] = (double)stored[i];
    mdp_free(stored);
    return out;
}

/* ---- cases ---------------------------------------------------------------------------------------------------- */

static void make_model(harness *h) {
    memset(&h->layer, 0, sizeof h->layer);
    memset(&h->model, 0, sizeof h->model);
    for (size_t i = 0; i < sizeof SETTINGS / sizeof SETTINGS[0]; i++) {
        const json_t *value = json_object_get(h->settings, SETTINGS[i].key);
        if (value) apply(h, &SETTINGS[i], value);
    }
    for (size_t i = 0; i < sizeof MATRICES / sizeof MATRICES[0]; i++) {
        const mdp_matrix matrix = harness_matrix(h, MATRICES[i].name);
        memcpy((char *)h + MATRICES[i].at, &matrix, sizeof matrix);
    }
    h->layer.dense = harness_mlp(h, "");
    h->model.rope.frequency = frequencies(h, "frequency");
    h->model.rope.long_frequency = frequencies(h, "long_frequency");
    if (!h->model.head.tensor) h->model.head = h->model.embedding;
    h->model.catalogue = h->catalogue;
    h->model.layers = &h->layer;
    h->model.n_layer = 1;
}

/* Token ids are whole numbers, which no reader of weights widens. */
static void fill_ids(const harness *h) {
    const mdp_tensor *stored = harness_matrix(h, "ids").tensor;
    for (int64_t i = 0; i < h->tokens->n_token; i++) h->tokens->ids[i] = (uint32_t)i;
    if (stored) harness_ok(mdp_reader_read(h->reader, stored->file, stored->offset, stored->n_byte, h->tokens->ids));
}

static void make_tokens(harness *h) {
    const json_t *lengths = json_object_get(h->settings, "lengths");
    const char *const name = "text";
    const int64_t n = (int64_t)json_array_size(lengths);
    int64_t *own = NULL;
    if (n == 0) fail_msg("%s has no sequences", h->name);
    harness_ok(MDP_ALLOC(&own, n, "lengths"));
    for (int64_t i = 0; i < n; i++) own[i] = json_integer_value(json_array_get(lengths, (size_t)i));
    harness_ok(mdp_tokens_new_in_memory("text", 1, &name, &n, own, &h->tokens));
    mdp_free(own);
    fill_ids(h);
}

void harness_enter(harness *h, const char *name) {
    h->name = name;
    h->settings = json_object_get(h->cases, name);
    if (!h->settings) fail_msg("the fixture has no case '%s'", name);
    make_model(h);
    make_tokens(h);
}

void harness_leave(harness *h) {
    harness_end(h);
    mdp_tokens_destroy(h->tokens);
    h->tokens = NULL;
    mdp_free(h->model.rope.frequency);
    mdp_free(h->model.rope.long_frequency);
    h->model.rope.frequency = h->model.rope.long_frequency = NULL;
}

void harness_begin(harness *h, int n_thread, int n_stream) {
    harness_ok(mdp_gemm_new(MDP_OPENBLAS, MDP_GEMM_F32, n_thread, &h->gemm));
    const mdp_engine_options options = {.n_thread = n_thread, .gemm = h->gemm, .pass = {.n_stream = n_stream}};
    harness_ok(mdp_partition_new(h->tokens, 0, &h->partition));
    harness_ok(mdp_engine_new_all(h->comm, &h->model, h->reader, h->tokens, h->partition, &options, &h->engine));
    harness_ok(mdp_engine_begin_batch_all(h->engine, 0));
}

void harness_end(harness *h) {
    mdp_engine_destroy_all(h->engine);
    mdp_partition_destroy(h->partition);
    mdp_gemm_destroy(h->gemm);
    h->engine = NULL;
    h->partition = NULL;
    h->gemm = NULL;
}

/* ---- results -------------------------------------------------------------------------------------------------- */

void harness_expect(const harness *h, const char *name, const float *found, int64_t n) {
    const mdp_matrix matrix = harness_matrix(h, name);
    float *expected = harness_values(h, name);
    double largest = 0.0;
    assert_int_equal(matrix.n_row * matrix.n_col, n);
    for (int64_t i = 0; i < n; i++) largest = fmax(largest, fabs((double)expected[i]));
    for (int64_t i = 0; i < n; i++) {
        double error = fabs((double)found[i] - (double)expected[i]);
        if (error <= TOLERANCE * largest) continue; /* false for NaN */
        fail_msg("%s/%s: value %lld (row %lld) is %.9g, expected %.9g; the largest is %g", h->name, name, (long long)i,
                 (long long)(i / matrix.n_col), (double)found[i], (double)expected[i], largest);
    }
    mdp_free(expected);
}

void harness_expect_same(float **kept, const float *found, int64_t n) {
    if (*kept) {
        assert_memory_equal(found, *kept, (size_t)n * sizeof *found);
        return;
    }
    harness_ok(MDP_ALLOC(kept, n, "results"));
    memcpy(*kept, found, (size_t)n * sizeof *found);
}

void harness_expect_step(harness *h, harness_step *step, const char *name) {
    float *kept = NULL;
    harness_enter(h, name);
    int64_t n = h->tokens->n_token * h->model.d_model;
    for (int n_thread = 1; n_thread <= HARNESS_MOST_THREADS; n_thread++) {
        harness_begin(h, n_thread, 1);
        harness_ok(step(h->engine, &h->layer));
        harness_expect(h, "want", mdp_engine_residual(h->engine, 0), n);
        harness_expect_same(&kept, mdp_engine_residual(h->engine, 0), n);
        harness_end(h);
    }
    mdp_free(kept);
    harness_leave(h);
}

/* ---- the group ------------------------------------------------------------------------------------------------ */

static mdp_status open_fixture(harness *h, const char *fixture) {
    char path[1000];
    (void)snprintf(path, sizeof path, "%s/engine/%s", MDP_TEST_FIXTURES, fixture);
    MDP_TRY(mdp_comm_new_all(MPI_COMM_WORLD, &h->comm));
    MDP_TRY(mdp_catalogue_open_all(h->comm, path, &h->catalogue));
    MDP_TRY(mdp_reader_new(h->catalogue, &h->reader));
    return mdp_json_parse(h->catalogue->config_text, h->catalogue->config_byte, path, &h->cases);
}

static void close_fixture(harness *h) {
    json_decref(h->cases);
    mdp_reader_destroy(h->reader);
    mdp_catalogue_destroy(h->catalogue);
    mdp_comm_destroy_all(h->comm);
}

int harness_run(const char *fixture, const struct CMUnitTest *tests, size_t n_test) {
    harness h = {.name = fixture};
    struct CMUnitTest *own = calloc(n_test, sizeof *own);
    mdp_comm_prepare();
    MPI_Init(NULL, NULL);
    mdp_status status = open_fixture(&h, fixture);
    if (status.code != MDP_OK) print_error("%s\n", status.text);
    int n_failed = status.code;
    for (size_t i = 0; own && i < n_test; i++) {
        own[i] = tests[i];
        own[i].initial_state = &h;
    }
    if (own && status.code == MDP_OK) n_failed = _cmocka_run_group_tests(fixture, own, n_test, NULL, NULL);
    close_fixture(&h);
    MPI_Finalize();
    free(own);
    return n_failed;
}
