/* hash.c - XXH3-128 checksums (libxxhash) as 32 hex digits, high 64 bits first, as xxhsum prints them. */
#include "mdp/base.h"

#include <xxhash.h>

struct mdp_hash {
    XXH3_state_t *state;
};

static mdp_digest to_hex(XXH128_hash_t value) {
    mdp_digest digest;
    snprintf(digest.hex, sizeof digest.hex, "%016llx%016llx", (unsigned long long)value.high64,
             (unsigned long long)value.low64);
    return digest;
}

mdp_status mdp_hash_new(mdp_hash **out) {
    mdp_hash *hash;
    MDP_TRY(MDP_ALLOC(&hash, 1, "a checksum"));
    hash->state = XXH3_createState();
    if (!hash->state) {
        mdp_free(hash);
        *out = NULL;
        return MDP_ERROR(MDP_EXHAUSTED, "cannot allocate the state of a checksum.");
    }
    mdp_hash_reset(hash);
    *out = hash;
    return mdp_ok();
}

void mdp_hash_reset(mdp_hash *hash) {
    XXH3_128bits_reset(hash->state);
}

void mdp_hash_update(mdp_hash *hash, const void *data, int64_t n_byte) {
    if (n_byte > 0) XXH3_128bits_update(hash->state, data, (size_t)n_byte);
}

mdp_digest mdp_hash_digest(const mdp_hash *hash) {
    return to_hex(XXH3_128bits_digest(hash->state));
}

void mdp_hash_destroy(mdp_hash *hash) {
    if (!hash) return;
    XXH3_freeState(hash->state);
    mdp_free(hash);
}

mdp_digest mdp_hash_bytes(const void *data, int64_t n_byte) {
    return to_hex(XXH3_128bits(n_byte > 0 ? data : "", n_byte > 0 ? (size_t)n_byte : 0));
}
