/* index.c - fuzz target: the bytes are the index of a folder with two shards that are right. */
#include "fuzz.h"

#include <string.h>

static void write_shard(const char *name, const char *header, size_t n_data) {
    char file[256] = {0};
    uint64_t n = strlen(header);
    memcpy(file, &n, sizeof n);
    memcpy(file + 8, header, n);
    fuzz_write(fuzz_path(name), file, 8 + n + n_data);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_byte) {
    static const char *index = NULL;
    static char folder[64];
    if (!index) {
        index = fuzz_path("model.safetensors.index.json");
        (void)snprintf(folder, sizeof folder, "%.*s", (int)(strrchr(index, '/') - index), index);
        write_shard("a.safetensors", "{\"x\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]}}", 2);
        write_shard("b.safetensors",
                    "{\"y\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]},"
                    "\"z\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[1,2]}}",
                    2);
        fuzz_write(fuzz_path("config.json"), "{}", 2);
        fuzz_write(fuzz_path("tokenizer.json"), "{}", 2);
    }
    const mdp_comm *comm = fuzz_comm();
    mdp_catalogue *catalogue = NULL;
    fuzz_write(index, data, n_byte);
    fuzz_begin();
    mdp_status status = mdp_catalogue_open_all(comm, folder, &catalogue);
    fuzz_end(&status);
    if (status.code == MDP_OK) {
        fuzz_check_catalogue(catalogue);
        /* the index names what is stored, all of it: x alone is possible, y without z is not */
        bool y = mdp_catalogue_find(catalogue, "y"), z = mdp_catalogue_find(catalogue, "z");
        fuzz_require(catalogue->n_tensor > 0 && y == z, "an index that does not fit was taken");
        fuzz_require(catalogue->n_side_file == 1, "other side files than there are");
    }
    mdp_catalogue_destroy(catalogue);
    return 0;
}
