/* exact.c - sums of doubles without rounding (formats.md, "Limbs").
 *
 * A sum is an integer multiple of 2^-160 in 10 limbs of 32 bits, each held in an int64 so that 2^30 additions (and an
 * MPI_SUM over ranks) need no carry. Adding is integer addition, so no order can change a bit of the result.
 * Refuses: addends that are not finite or not below 2^159. */
#include "mdp/base.h"

#include <math.h>
#include <string.h>

#define LIMB_BIT 32
#define LIMB_MASK UINT64_C(0xffffffff)
#define GRID_BIT 160           /* the grid is 2^-GRID_BIT */
#define MANTISSA_BIT 53        /* of a double */
#define LOWEST_BIT 1075        /* a stored exponent less this is that of the lowest bit of the mantissa */
#define N_WORD (MDP_LIMBS + 1) /* 32-bit words of a magnitude: the last limb may use all 63 bits */

/* mantissa / 2^n_bit to the nearest integer, ties to even; mantissa < 2^53. */
static uint64_t shift_right_to_even(uint64_t mantissa, int n_bit) {
    if (n_bit > MANTISSA_BIT) return 0; /* below half of the grid */
    uint64_t whole = mantissa >> n_bit, rest = mantissa & ((UINT64_C(1) << n_bit) - 1);
    uint64_t half = UINT64_C(1) << (n_bit - 1);
    return whole + (rest > half || (rest == half && (whole & 1)));
}

bool mdp_exact_add(mdp_exact *sum, double value) {
    if (!isfinite(value) || fabs(value) >= 0x1p159) return false;
    uint64_t bits;
    memcpy(&bits, &value, sizeof bits);
    int exponent = (int)(bits >> (MANTISSA_BIT - 1) & 0x7ff); /* as stored; 0: below the smallest normal number */
    uint64_t mantissa = bits & ((UINT64_C(1) << (MANTISSA_BIT - 1)) - 1);
    if (exponent > 0) mantissa |= UINT64_C(1) << (MANTISSA_BIT - 1);
    int position = exponent - LOWEST_BIT + GRID_BIT; /* of the mantissa's lowest bit, in bits of the grid */
    if (position < 0) {
        mantissa = shift_right_to_even(mantissa, -position);
        position = 0;
    }
    int limb = position / LIMB_BIT, shift = position % LIMB_BIT;
    uint64_t low = (mantissa & LIMB_MASK) << shift;
    uint64_t high = ((mantissa >> LIMB_BIT) << shift) + (low >> LIMB_BIT);
    int64_t part[3] = {(int64_t)(low & LIMB_MASK), (int64_t)(high & LIMB_MASK), (int64_t)(high >> LIMB_BIT)};
    for (int i = 0; i < 3 && limb + i < MDP_LIMBS; i++) {
        if (part[i] != 0) __atomic_fetch_add(&sum->limb[limb + i], value < 0 ? -part[i] : part[i], __ATOMIC_RELAXED);
    }
    return true;
}

void mdp_exact_normalise(mdp_exact *sum) {
    int64_t carry = 0;
    for (int i = 0; i < MDP_LIMBS - 1; i++) {
        int64_t limb = sum->limb[i] + carry;
        int64_t rest = (int64_t)((uint64_t)limb & LIMB_MASK);
        carry = (limb - rest) / (INT64_C(1) << LIMB_BIT); /* exact, so it is the floor for negative limbs too */
        sum->limb[i] = rest;
    }
    sum->limb[MDP_LIMBS - 1] += carry;
}

bool mdp_exact_fits(const mdp_exact *sum) {
    mdp_exact form = *sum;
    mdp_exact_normalise(&form);
    int64_t top = form.limb[MDP_LIMBS - 1];
    return top >= -(INT64_C(1) << (LIMB_BIT - 1)) && top < INT64_C(1) << (LIMB_BIT - 1);
}

/* |sum| as 32-bit words, lowest first; returns whether the sum is negative. */
static bool magnitude(const mdp_exact *sum, uint32_t word[N_WORD]) {
    mdp_exact form = *sum;
    mdp_exact_normalise(&form);
    bool negative = form.limb[MDP_LIMBS - 1] < 0;
    if (negative) {
        for (int i = 0; i < MDP_LIMBS; i++) form.limb[i] = -form.limb[i];
        mdp_exact_normalise(&form);
    }
    for (int i = 0; i < MDP_LIMBS; i++) word[i] = (uint32_t)((uint64_t)form.limb[i] & LIMB_MASK);
    word[MDP_LIMBS] = (uint32_t)((uint64_t)form.limb[MDP_LIMBS - 1] >> LIMB_BIT);
    return negative;
}

static int bit_at(const uint32_t word[N_WORD], int bit) {
    return (int)(word[bit / LIMB_BIT] >> (bit % LIMB_BIT)) & 1;
}

/* Is any bit below `bit` set? */
static bool any_below(const uint32_t word[N_WORD], int bit) {
    for (int i = 0; i < bit / LIMB_BIT; i++)
        if (word[i]) return true;
    return (word[bit / LIMB_BIT] & ((UINT32_C(1) << (bit % LIMB_BIT)) - 1)) != 0;
}

double mdp_exact_value(const mdp_exact *sum) {
    uint32_t word[N_WORD];
    bool negative = magnitude(sum, word);
    int top = N_WORD * LIMB_BIT - 1;
    while (top >= 0 && !bit_at(word, top)) top--;
    if (top < 0) return 0.0;
    int lowest = top >= MANTISSA_BIT ? top - MANTISSA_BIT + 1 : 0; /* the last bit that a double keeps */
    uint64_t mantissa = 0;
    for (int bit = top; bit >= lowest; bit--) mantissa = mantissa << 1 | (uint64_t)bit_at(word, bit);
    if (lowest > 0 && bit_at(word, lowest - 1) && ((mantissa & 1) || any_below(word, lowest - 1))) mantissa++;
    double value = ldexp((double)mantissa, lowest - GRID_BIT);
    return negative ? -value : value;
}

double mdp_round30(double value) {
    if (!isfinite(value) || value == 0.0) return value;
    int exponent;
    double fraction = frexp(value, &exponent);
    return ldexp(rint(ldexp(fraction, 30)), exponent - 30);
}
