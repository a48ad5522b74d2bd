/* model.c - fuzz target: the bytes change a model.h5 that is right; it is opened, fingerprinted and verified. */
#include "fuzz.h"

#include <string.h>

static const uint8_t weights[64] = {1, 2, 3, 4, 5, 6, 7, 8, 9};

static void add_tensor(fuzz_file *file, const char *path, const char *name, const char *stored, fuzz_type type,
                       int n_dim, const int64_t *shape, size_t n_byte) {
    char digests[160] = {0};
    bool stack = strstr(name, "{expert}");
    int64_t n = stack ? shape[0] : 1;
    for (int64_t i = 0; i < n; i++) {
        mdp_digest digest = mdp_hash_bytes(weights + (size_t)i * n_byte / (size_t)n, (int64_t)n_byte / n);
        memcpy(digests + 32 * i, digest.hex, 32);
    }
    static const int32_t original[] = {0, 2, 5, 6};
    fuzz_file_add(file, path, NULL, type, n_dim, shape, weights, n_byte);
    if (name[0]) fuzz_file_add_text(file, path, "hf_name", name);
    if (name[0]) fuzz_file_add_text(file, path, "stored_type", stored);
    fuzz_file_add(file, path, "xxh3_128", FUZZ_TEXT_LIST, stack ? 1 : 0, &n, digests, 32 * (size_t)n);
    if (stack) fuzz_file_add(file, path, "original_expert", FUZZ_I32, 1, &n, original, 4 * (size_t)n);
}

static void add_text(fuzz_file *file, const char *path, const char *text) {
    mdp_digest digest = mdp_hash_bytes(text, (int64_t)strlen(text));
    fuzz_file_add_text(file, path, NULL, text);
    fuzz_file_add(file, path, "xxh3_128", FUZZ_TEXT_LIST, 0, NULL, digest.hex, 32);
}

static fuzz_file *sample(void) {
    static const int64_t one = 1, n_layer = 2, shape[] = {2, 3, 4}, n_side[] = {5}, n_fp8[] = {2, 8}, n_seal[] = {32};
    fuzz_file *file = fuzz_file_new();
    fuzz_file_add_text(file, "/", "format", "moe-dist-prune checkpoint");
    fuzz_file_add_text(file, "/", "version", "1.0");
    fuzz_file_add_text(file, "/", "model_type", "mixtral");
    fuzz_file_add_text(file, "/", "writer", "moe-dist-prune");
    fuzz_file_add(file, "/", "n_layers", FUZZ_I64, 0, NULL, &n_layer, 8);
    add_text(file, "/config", "{}");
    add_text(file, "/plan", "{\"a\": 1}");
    add_text(file, "/provenance", "{}");
    add_tensor(file, "/files/tokenizer.json", "", "", FUZZ_U8, 1, n_side, 5);
    add_tensor(file, "/model/x/weight", "model.x.weight", "BF16", FUZZ_BF16, 2, shape, 12);
    add_tensor(file, "/model/experts/w/weight", "model.experts.{expert}.w.weight", "F16", FUZZ_F16, 3, shape, 48);
    add_tensor(file, "/model/q/weight", "model.q.weight", "F8_E4M3", FUZZ_U8, 2, n_fp8, 16);
    fuzz_file_add(file, "/", "complete", FUZZ_I32, 0, NULL, &one, 4);
    fuzz_file_add(file, "/seal", NULL, FUZZ_U8, 1, n_seal, weights, 32);
    return file;
}

/* Fill in the seal, where there is one, so that what is verified after it is reached. */
static void seal(const mdp_catalogue *catalogue) {
    mdp_run runs[64];
    int64_t n = 0;
    for (int64_t i = 0; i < catalogue->n_tensor && n < 64; i++)
        runs[n++] = (mdp_run){.offset = catalogue->tensors[i].offset, .n_byte = catalogue->tensors[i].n_byte};
    for (int64_t i = 0; i < catalogue->n_side_file && n < 64; i++)
        runs[n++] = (mdp_run){.offset = catalogue->side_files[i].offset, .n_byte = catalogue->side_files[i].n_byte};
    mdp_status ignored = mdp_seal_write(catalogue->path, runs, n);
    (void)ignored;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_byte) {
    static const char *path = NULL;
    if (!path) path = fuzz_path("model.h5");
    const mdp_comm *comm = fuzz_comm();
    fuzz_file *file = sample();
    fuzz_file_edit(file, data, n_byte);
    fuzz_file_write(file, path);
    fuzz_file_destroy(file);
    mdp_catalogue *catalogue = NULL;
    mdp_verified verified = {0};
    fuzz_begin();
    mdp_status status = mdp_catalogue_open_all(comm, path, &catalogue);
    fuzz_end(&status);
    if (status.code != MDP_OK) return 0;
    fuzz_check_catalogue(catalogue);
    status = mdp_catalogue_fingerprint_all(comm, catalogue);
    fuzz_require(status.code == MDP_OK, status.text);
    seal(catalogue);
    fuzz_begin();
    status = mdp_verify_all(comm, catalogue, NULL, NULL, &verified);
    fuzz_end(&status);
    mdp_free(verified.digests);
    mdp_catalogue_destroy(catalogue);
    return 0;
}
