/* tokens.c - fuzz target: the bytes change a tokens.h5 that is right. */
#include "fuzz.h"

#include <string.h>

enum { VOCABULARY = 100 };

static fuzz_file *sample(void) {
    static const uint32_t ids[] = {1, 2, 3, 99, 0, 50};
    static const int64_t offsets[] = {0, 2, 2, 6}, n_id[] = {6}, n_offset[] = {4};
    fuzz_file *file = fuzz_file_new();
    fuzz_file_add(file, "/a", NULL, FUZZ_GROUP, 0, NULL, NULL, 0);
    fuzz_file_add(file, "/a/input_ids", NULL, FUZZ_U32, 1, n_id, ids, sizeof ids);
    fuzz_file_add(file, "/a/offsets", NULL, FUZZ_I64, 1, n_offset, offsets, sizeof offsets);
    fuzz_file_add(file, "/b", NULL, FUZZ_GROUP, 0, NULL, NULL, 0);
    fuzz_file_add(file, "/b/input_ids", NULL, FUZZ_I64, 1, n_id, offsets, sizeof offsets);
    fuzz_file_add(file, "/b/offsets", NULL, FUZZ_I64, 1, n_offset, offsets, sizeof offsets);
    fuzz_file_add_text(file, "/", "tokenizer", "abc");
    return file;
}

static void check(const mdp_tokens *tokens) {
    uint32_t ids[256];
    fuzz_require(tokens->n_token > 0 && tokens->offset[0] == 0, "no tokens");
    fuzz_require(tokens->offset[tokens->n_sequence] == tokens->n_token, "offsets end elsewhere");
    for (int64_t i = 0; i < tokens->n_sequence; i++)
        fuzz_require(tokens->offset[i] < tokens->offset[i + 1], "an empty sequence");
    for (int64_t first = 0; first < tokens->n_token; first += 256) {
        int64_t n = tokens->n_token - first < 256 ? tokens->n_token - first : 256;
        mdp_status status = mdp_tokens_read(tokens, first, n, ids);
        fuzz_require(status.code == MDP_OK, status.text);
        for (int64_t i = 0; i < n; i++) fuzz_require(ids[i] < VOCABULARY, "an id outside the vocabulary");
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_byte) {
    static const char *path = NULL;
    if (!path) path = fuzz_path("tokens.h5");
    const mdp_comm *comm = fuzz_comm();
    fuzz_file *file = sample();
    fuzz_file_edit(file, data, n_byte);
    fuzz_file_write(file, path);
    fuzz_file_destroy(file);
    for (int selected = 0; selected < 2; selected++) {
        mdp_tokens *tokens = NULL;
        fuzz_begin();
        mdp_status status = mdp_tokens_open_all(comm, path, selected ? "b" : NULL, VOCABULARY, &tokens);
        if (status.code == MDP_OK) check(tokens);
        mdp_tokens_destroy(tokens);
        fuzz_end(&status);
    }
    return 0;
}
