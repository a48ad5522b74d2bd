/* sample_output.h - a small made-up checkpoint and what is to be written of it, for the tests of the writers.
 *
 * The source is one file of noise, with a catalogue made by hand: every kind of tensor that a writer must treat in its
 * own way. All ranks of a test make the same one. */
#ifndef MDP_TESTS_SAMPLE_OUTPUT_H
#define MDP_TESTS_SAMPLE_OUTPUT_H

#include "mdp/checkpoint.h"

#include <stdlib.h>
#include <string.h>

#define SAMPLE_SOURCE_BYTE 700000
#define SAMPLE_N_SIDE 3

typedef struct sample {
    char *bytes; /* [SAMPLE_SOURCE_BYTE] of the source file */
    mdp_catalogue catalogue;
    char *files[1];
    int64_t file_bytes[1];
    mdp_side_file sides[SAMPLE_N_SIDE];
    mdp_tensor *sources; /* one for each output tensor, plus one */
    mdp_output output;
    mdp_reader *reader;
} sample;

static void sample_must(mdp_status status) {
    if (status.code == MDP_OK) return;
    fprintf(stderr, "sample: %s\n", status.text);
    abort();
}

/* The next tensor of the output: `n_segment` runs, the last ones first, of a source tensor of its own. */
static void sample_add(sample *s, int64_t *place, const char *name, mdp_dtype type, int n_dim, const int64_t *shape,
                       int64_t n_segment, const char *stack, int expert, int original) {
    int64_t index = s->output.n_tensor++, n_byte = mdp_dtype_bits(type);
    mdp_output_tensor *tensor = &s->output.tensors[index];
    mdp_tensor *source = &s->sources[index];
    for (int d = 0; d < n_dim; d++) n_byte *= shape[d];
    n_byte /= 8;
    sample_must(mdp_copy_text(&tensor->name, name));
    if (stack) sample_must(mdp_copy_text(&tensor->stack, stack));
    tensor->type = type;
    tensor->n_dim = n_dim;
    if (n_dim > 0) memcpy(tensor->shape, shape, (size_t)n_dim * sizeof *shape);
    tensor->n_byte = n_byte;
    tensor->expert = expert;
    tensor->original_expert = original;
    /* Between the runs lie bytes that must not be copied. */
    *source = (mdp_tensor){.name = tensor->name, .type = MDP_U8, .n_dim = 1, .offset = *place};
    source->n_byte = n_byte + 3 * n_segment;
    source->shape[0] = source->n_byte;
    *place += source->n_byte;
    sample_must(MDP_ALLOC(&tensor->segments, n_segment, "segments"));
    tensor->n_segment = n_segment;
    for (int64_t i = 0; i < n_segment; i++) {
        int64_t begin = n_byte * i / n_segment, end = n_byte * (i + 1) / n_segment;
        tensor->segments[i].source = source;
        tensor->segments[i].n_byte = end - begin;
        tensor->segments[i].offset = source->n_byte - end - 3 * i - 1;
    }
    s->output.tensor_byte += n_byte;
}

static int sample_compare(const void *a, const void *b) {
    return strcmp(((const mdp_output_tensor *)a)->name, ((const mdp_output_tensor *)b)->name);
}

static void sample_add_tensors(sample *s) {
    int64_t place = 11; /* odd: no source is aligned */
#define ADD(name, type, n_segment, ...)                                                                                \
    sample_add(s, &place, name, type, (int)(sizeof((int64_t[]){__VA_ARGS__}) / sizeof(int64_t)),                       \
               (int64_t[]){__VA_ARGS__}, n_segment, NULL, -1, -1)
    ADD("lm_head.weight", MDP_F32, 1, 301, 257);
    ADD("model.bf16", MDP_BF16, 3, 61, 10);
    ADD("model.bool", MDP_BOOL, 1, 3);
    ADD("model.cube", MDP_F32, 2, 13, 5, 7, 3);
    ADD("model.f16", MDP_F16, 1, 7);
    ADD("model.f4", MDP_F4, 2, 5, 6);
    ADD("model.f64", MDP_F64, 1, 9);
    ADD("model.f8", MDP_F8_E4M3, 1, 5, 3);
    ADD("model.i64", MDP_I64, 4, 4);
    ADD("model.none", MDP_BF16, 0, 0, 4);
    ADD("model.c64", MDP_C64, 1, 2, 3);
    ADD("model.router", MDP_BF16, 12, 12, 33);
#undef ADD
    sample_add(s, &place, "model.scalar", MDP_F32, 0, NULL, 1, NULL, -1, -1);
    for (int layer = 0; layer < 2; layer++) {
        for (int expert = 0; expert < 12; expert++) {
            char name[100], stack[100];
            snprintf(name, sizeof name, "model.layers.%d.mlp.experts.%d.up_proj.weight", layer, expert);
            snprintf(stack, sizeof stack, "model.layers.%d.mlp.experts.{expert}.up_proj.weight", layer);
            sample_add(s, &place, name, MDP_BF16, 2, (int64_t[]){17, 257 + layer}, 1, stack, expert, 2 * expert + 1);
        }
    }
    qsort(s->output.tensors, (size_t)s->output.n_tensor, sizeof *s->output.tensors, sample_compare);
    /* The side files follow; one is empty. */
    const char *names[SAMPLE_N_SIDE] = {"empty.txt", "generation_config.json", "tokenizer.json"};
    const int64_t sizes[SAMPLE_N_SIDE] = {0, 117, 20011};
    for (int i = 0; i < SAMPLE_N_SIDE; i++) {
        s->sides[i] = (mdp_side_file){.name = names[i], .file = 0, .offset = place, .n_byte = sizes[i]};
        place += sizes[i];
    }
    if (place > SAMPLE_SOURCE_BYTE) abort();
}

/* Local: the same on every rank. `path` is where sample_write_source puts, or has put, the file. */
static void sample_make(sample *s, const char *path) {
    memset(s, 0, sizeof *s);
    sample_must(MDP_ALLOC(&s->bytes, SAMPLE_SOURCE_BYTE, "the source"));
    for (int64_t i = 0; i < SAMPLE_SOURCE_BYTE; i++) s->bytes[i] = (char)mdp_random_bits(7, 0, (uint64_t)i);
    sample_must(mdp_copy_text(&s->files[0], path));
    s->file_bytes[0] = SAMPLE_SOURCE_BYTE;
    s->catalogue = (mdp_catalogue){.path = s->files[0],
                                   .n_file = 1,
                                   .files = s->files,
                                   .file_bytes = s->file_bytes,
                                   .n_side_file = SAMPLE_N_SIDE,
                                   .side_files = s->sides};
    sample_must(MDP_ALLOC(&s->sources, 64, "source tensors"));
    sample_must(MDP_ALLOC(&s->output.tensors, 64, "output tensors"));
    sample_add_tensors(s);
    s->output.source = &s->catalogue;
    sample_must(mdp_copy_text(&s->output.config_text, "{\"model_type\": \"sample\",  \"num_experts\": 12}\n"));
    s->output.config_byte = (int64_t)strlen(s->output.config_text);
    sample_must(mdp_copy_text(&s->output.plan_text, "{\"format\": \"moe-dist-prune plan\", \"scores\": [0.25, 1]}\n"));
    sample_must(mdp_copy_text(&s->output.provenance_text, "{\"seed\": 7}\n"));
    snprintf(s->output.model_type, sizeof s->output.model_type, "sample");
    s->output.n_layer = 2;
    s->output.uniform = true;
    sample_must(mdp_reader_new(&s->catalogue, &s->reader));
}

static void sample_write_source(const sample *s) {
    int fd;
    sample_must(mdp_file_create(s->files[0], &fd));
    sample_must(mdp_file_pwrite(s->files[0], fd, s->bytes, SAMPLE_SOURCE_BYTE, 0));
    sample_must(mdp_file_close(s->files[0], fd));
}

/* The bytes that a tensor of the result must have. New. */
static inline char *sample_expected(const sample *s, const mdp_output_tensor *tensor) {
    char *out = NULL, *to;
    sample_must(MDP_ALLOC(&out, tensor->n_byte, "expected bytes"));
    to = out;
    for (int64_t i = 0; i < tensor->n_segment; i++) {
        const mdp_segment *segment = &tensor->segments[i];
        memcpy(to, s->bytes + segment->source->offset + segment->offset, (size_t)segment->n_byte);
        to += segment->n_byte;
    }
    return out;
}

static void sample_end(sample *s) {
    mdp_reader_destroy(s->reader);
    for (int64_t i = 0; i < s->output.n_tensor; i++) {
        mdp_free(s->output.tensors[i].name);
        mdp_free(s->output.tensors[i].stack);
        mdp_free(s->output.tensors[i].segments);
    }
    mdp_free(s->output.tensors);
    mdp_free(s->output.config_text);
    mdp_free(s->output.plan_text);
    mdp_free(s->output.provenance_text);
    mdp_free(s->sources);
    mdp_free(s->files[0]);
    mdp_free(s->bytes);
}

#endif
