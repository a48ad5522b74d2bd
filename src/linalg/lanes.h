/* lanes.h - the one order in which the row kernels add, and the instruction sets that they are compiled for.
 *
 * Element i of a row belongs to lane i mod MDP_LANES. Each lane adds its elements in ascending order, then the lanes
 * are combined in one fixed tree. A compiler may put any number of lanes into a register without changing a bit, and
 * since nothing is contracted to a fused multiply-add (-ffp-contract=off) every instruction set gives the same result.
 */
#ifndef MDP_LINALG_LANES_H
#define MDP_LINALG_LANES_H

#include <stdint.h>

#define MDP_LANES 16

/* Several versions of a function, the best chosen when the program is loaded. Needs glibc's indirect functions, which
 * the sanitizers' start-up does not go together with; elsewhere the one version is as right, only slower. */
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__) &&                           \
    !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define MDP_CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define MDP_CLONES
#endif

/* Inlined into every version, so that it is compiled for that version's instructions. */
#define MDP_INLINE static inline __attribute__((always_inline))

/* The lanes in their fixed tree: distance 8, 4, 2, 1. */
MDP_INLINE double lanes_sum(const double lane[MDP_LANES]) {
    double sum[MDP_LANES / 2];
    for (int j = 0; j < MDP_LANES / 2; j++) sum[j] = lane[j] + lane[j + MDP_LANES / 2];
    for (int width = MDP_LANES / 4; width > 0; width /= 2) {
        for (int j = 0; j < width; j++) sum[j] += sum[j + width];
    }
    return sum[0];
}

#endif
