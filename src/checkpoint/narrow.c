/* narrow.c - values to stored types, rounded once to nearest, ties to even; and matrices to codes with block scales.
 *
 * Every type is a sign, an exponent and a mantissa of m bits, so one function rounds a double to all of them: the bits
 * of its mantissa that do not fit are cut off, half of the last place decides, and a carry runs into the exponent by
 * itself. Below the smallest normal number more bits are cut. What is too large becomes infinity where the type has
 * one, else the largest value. */
#include "mdp/narrow.h"

#include <math.h>
#include <string.h>

#define DOUBLE_MANTISSA 52

typedef struct format {
    int mantissa, bias;
    uint32_t largest; /* code of the largest value */
    bool infinite;    /* the code after it is infinity */
} format;

static const format bf16 = {7, 127, 0x7f7f, true}, f16 = {10, 15, 0x7bff, true}, f8_e4m3 = {3, 7, 0x7e, false},
                    f4 = {1, 1, 0x7, false};

/* Code of |value| without its sign; value is no NaN. */
static uint32_t round_to(const format *to, double value) {
    uint64_t bits;
    memcpy(&bits, &value, sizeof bits);
    int exponent = (int)(bits >> DOUBLE_MANTISSA & 0x7ff) - 1023;
    uint64_t mantissa = (bits & ((UINT64_C(1) << DOUBLE_MANTISSA) - 1)) | UINT64_C(1) << DOUBLE_MANTISSA;
    int lowest = 1 - to->bias, cut = DOUBLE_MANTISSA - to->mantissa + (exponent < lowest ? lowest - exponent : 0);
    if (exponent > to->bias + 1) return to->largest + to->infinite; /* by far, and infinity itself */
    if (cut > DOUBLE_MANTISSA + 1) return 0;                        /* less than half of the smallest, and 0 */
    uint64_t rest = mantissa & ((UINT64_C(1) << cut) - 1), half = UINT64_C(1) << (cut - 1), kept = mantissa >> cut;
    kept += rest > half || (rest == half && (kept & 1));
    uint32_t code = (uint32_t)kept;
    if (exponent >= lowest)
        code += (uint32_t)(exponent + to->bias - 1) << to->mantissa; /* the leading bit is one more */
    return code > to->largest ? to->largest + to->infinite : code;
}

static uint32_t sign_of(double value, int place) {
    return (uint32_t)(signbit(value) != 0) << place;
}

static void narrow_16(const format *to, const double *values, int64_t n, unsigned char *out) {
    for (int64_t i = 0; i < n; i++, out += 2) {
        uint32_t code = sign_of(values[i], 15);
        code |= isnan(values[i]) ? to->largest + 1 + (1u << (to->mantissa - 1)) : round_to(to, values[i]);
        out[0] = (unsigned char)(code & 0xff);
        out[1] = (unsigned char)(code >> 8);
    }
}

static void narrow_f32(const double *values, int64_t n, unsigned char *out) {
    for (int64_t i = 0; i < n; i++, out += sizeof(float)) {
        float value = (float)values[i];
        memcpy(out, &value, sizeof value);
    }
}

static void narrow_f8(const double *values, int64_t n, unsigned char *out) {
    for (int64_t i = 0; i < n; i++)
        out[i] = (unsigned char)(sign_of(values[i], 7) | (isnan(values[i]) ? 0x7fu : round_to(&f8_e4m3, values[i])));
}

/* Two in a byte, the lower half first; an odd last one leaves the upper half 0. */
static void narrow_f4(const double *values, int64_t n, unsigned char *out) {
    for (int64_t i = 0; i < n; i++) {
        uint32_t code = sign_of(values[i], 3) | round_to(&f4, values[i]);
        out[i / 2] = (unsigned char)(i % 2 ? out[i / 2] | code << 4 : code);
    }
}

bool mdp_dtype_narrows(mdp_dtype type) {
    return type == MDP_F32 || type == MDP_BF16 || type == MDP_F16 || type == MDP_F8_E4M3 || type == MDP_F4;
}

void mdp_narrow(mdp_dtype type, const double *values, int64_t n, void *stored) {
    if (type == MDP_F32) narrow_f32(values, n, stored);
    if (type == MDP_BF16) narrow_16(&bf16, values, n, stored);
    if (type == MDP_F16) narrow_16(&f16, values, n, stored);
    if (type == MDP_F8_E4M3) narrow_f8(values, n, stored);
    if (type == MDP_F4) narrow_f4(values, n, stored);
}

/* ---- block scales ---------------------------------------------------------------------------------------------- */

/* Exponent of the shared power of two of a block: codes then reach to the largest value of their type or, for MXFP4,
 * whose rule is the largest power of two in the block over that of the type, may be cut off at it. */
static int shared_exponent(mdp_dtype code, float largest) {
    int exponent;
    if (code == MDP_F4) {
        (void)frexpf(largest, &exponent); /* largest = m 2^exponent, 0.5 <= m < 1 */
        return exponent - 1 - 2;
    }
    float ratio = largest / 448.0F, mantissa = frexpf(ratio, &exponent);
    return mantissa == 0.5F ? exponent - 1 : exponent; /* a power of two stays, else the next one */
}

float mdp_block_scale(mdp_dtype code, mdp_dtype scale, float largest, void *stored) {
    if (scale == MDP_F8_E8M0 || scale == MDP_U8) {
        int exponent = largest > 0.0F ? shared_exponent(code, largest) : -127;
        if (exponent < -127) exponent = -127;
        if (exponent > 127) exponent = 127;
        *(unsigned char *)stored = (unsigned char)(exponent + 127);
        return ldexpf(1.0F, exponent);
    }
    double value = largest > 0.0F ? (double)(largest / 448.0F) : 1.0;
    float rounded;
    mdp_narrow(scale, &value, 1, stored);
    mdp_widen(scale, stored, 1, &rounded);
    if (rounded > 0.0F) return rounded;
    value = 1.0;
    mdp_narrow(scale, &value, 1, stored);
    return 1.0F;
}

void mdp_block_largest(const double *values, int64_t n_row, int64_t n_col, int64_t ld, float *largest) {
    for (int64_t i = 0; i < n_row; i++) {
        for (int64_t j = 0; j < n_col; j++) {
            float size = fabsf((float)values[i * ld + j]);
            if (size > *largest) *largest = size;
        }
    }
}
