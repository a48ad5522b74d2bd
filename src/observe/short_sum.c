/* short_sum.c - elements of vector sums: fixed point on a grid of 2^-64 with three limbs (observe.h).
 *
 * The scale is one for all arrays, so that files add and no order, batch or rank can show: an element keeps 40 bits
 * where outputs are as small as 1e-7, and a sum may grow to 2^62. */
#include "mdp/observe.h"

#include <math.h>

#define LIMB_MASK INT64_C(0xffffffff)

bool mdp_short_add(mdp_short_sum *sum, double value) {
    if (!isfinite(value) || fabs(value) >= 0x1p60) return false;
    double rest = fabs(value), part[MDP_SHORT_LIMBS];
    for (int i = MDP_SHORT_LIMBS - 1; i > 0; i--) { /* each difference and product is exact */
        part[i] = floor(rest);
        rest = (rest - part[i]) * 0x1p32;
    }
    part[0] = rint(rest);
    for (int i = 0; i < MDP_SHORT_LIMBS; i++) {
        if (part[i] == 0.0) continue;
        __atomic_fetch_add(&sum->limb[i], (int64_t)(value < 0 ? -part[i] : part[i]), __ATOMIC_RELAXED);
    }
    return true;
}

void mdp_short_normalise(mdp_short_sum *sum) {
    for (int i = 0; i < MDP_SHORT_LIMBS - 1; i++) {
        int64_t rest = sum->limb[i] & LIMB_MASK;                        /* of two's complement: the floor's rest */
        sum->limb[i + 1] += (sum->limb[i] - rest) / (INT64_C(1) << 32); /* exact */
        sum->limb[i] = rest;
    }
}

double mdp_short_value(const mdp_short_sum *sum) {
    mdp_short_sum form = *sum;
    mdp_short_normalise(&form);
    bool negative = form.limb[MDP_SHORT_LIMBS - 1] < 0;
    if (negative) {
        for (int i = 0; i < MDP_SHORT_LIMBS; i++) form.limb[i] = -form.limb[i];
        mdp_short_normalise(&form);
    }
    double value = ldexp((double)form.limb[0], -64) + ldexp((double)form.limb[1], -32) + (double)form.limb[2];
    return negative ? -value : value;
}
