/* random.c - random numbers without state.
 *
 * A counter-based generator: the bits depend on (seed, stream, index) alone, so every rank can draw any number of any
 * stream in any order. The mixing step is the finaliser of SplitMix64 (Steele, Lea, Flood 2014, doi
 * 10.1145/2660193.2660195); each of the three words passes through it before the next is folded in. */
#include "mdp/base.h"

#define GOLDEN UINT64_C(0x9e3779b97f4a7c15)

static uint64_t mix(uint64_t z) {
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

uint64_t mdp_random_bits(uint64_t seed, uint64_t stream, uint64_t index) {
    uint64_t key = mix(seed + GOLDEN);
    key = mix((key ^ stream) + GOLDEN);
    return mix((key ^ index) + GOLDEN);
}

double mdp_random_uniform(uint64_t seed, uint64_t stream, uint64_t index) {
    return (double)(mdp_random_bits(seed, stream, index) >> 11) * 0x1p-53;
}
