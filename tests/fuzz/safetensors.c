/* safetensors.c - fuzz target: the bytes are a safetensors file. */
#include "fuzz.h"

#include "checkpoint/safetensors.h"

#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_byte) {
    static const char *path = NULL;
    if (!path) path = fuzz_path("model.safetensors");
    fuzz_write(path, data, n_byte);
    mdp_draft draft;
    fuzz_begin();
    mdp_draft_init(&draft, MDP_HF_FOLDER);
    mdp_status status = mdp_safetensors_add(&draft, path);
    fuzz_end(&status);
    int64_t sum = 0;
    for (int64_t i = 0; status.code == MDP_OK && i < draft.n_tensor; i++) {
        const mdp_tensor *t = &draft.tensors[i];
        int64_t want = -1;
        fuzz_require(mdp_dtype_bytes(t->type, t->n_dim, t->shape, &want) && want == t->n_byte, "wrong size");
        fuzz_require(t->offset >= 8 && t->offset <= (int64_t)n_byte - t->n_byte, "a tensor outside its file");
        sum += t->n_byte;
    }
    /* the header and the tensors are the whole file */
    uint64_t header = 0;
    if (n_byte >= 8) memcpy(&header, data, 8);
    fuzz_require(status.code != MDP_OK || 8 + header + (uint64_t)sum == n_byte, "bytes that belong to nothing");
    mdp_draft_clear(&draft);
    return 0;
}
