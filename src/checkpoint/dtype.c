/* dtype.c - the number formats of safetensors: names, sizes, and exact widening to f32.
 *
 * Owns the table of formats, in safetensors' own order. Widening takes stored little-endian values at any address and
 * is exact for every bit pattern (subnormals, infinities; NaN payloads of 16 and 32 bits keep their bits). Loops are
 * branch-free so that the compiler turns them into vector code. Refuses nothing: callers ask first. */
#include "linalg/lanes.h"
#include "mdp/checkpoint.h"

#include <string.h>

static const struct {
    const char *name;
    int bits;
    bool widens;
} formats[MDP_N_DTYPE] = {
    [MDP_BOOL] = {"BOOL", 8, false},
    [MDP_F4] = {"F4", 4, false},
    [MDP_F6_E2M3] = {"F6_E2M3", 6, false},
    [MDP_F6_E3M2] = {"F6_E3M2", 6, false},
    [MDP_U8] = {"U8", 8, false},
    [MDP_I8] = {"I8", 8, false},
    [MDP_F8_E5M2] = {"F8_E5M2", 8, false},
    [MDP_F8_E4M3] = {"F8_E4M3", 8, false},
    [MDP_F8_E8M0] = {"F8_E8M0", 8, false},
    [MDP_F8_E4M3FNUZ] = {"F8_E4M3FNUZ", 8, false},
    [MDP_F8_E5M2FNUZ] = {"F8_E5M2FNUZ", 8, false},
    [MDP_I16] = {"I16", 16, false},
    [MDP_U16] = {"U16", 16, false},
    [MDP_F16] = {"F16", 16, true},
    [MDP_BF16] = {"BF16", 16, true},
    [MDP_I32] = {"I32", 32, false},
    [MDP_U32] = {"U32", 32, false},
    [MDP_F32] = {"F32", 32, true},
    [MDP_C64] = {"C64", 64, false},
    [MDP_F64] = {"F64", 64, false},
    [MDP_I64] = {"I64", 64, false},
    [MDP_U64] = {"U64", 64, false},
};

const char *mdp_dtype_name(mdp_dtype type) {
    return formats[type].name;
}

int mdp_dtype_bits(mdp_dtype type) {
    return formats[type].bits;
}

bool mdp_dtype_find(const char *name, mdp_dtype *out) {
    for (int i = 0; i < MDP_N_DTYPE; i++) {
        if (strcmp(formats[i].name, name) == 0) {
            *out = (mdp_dtype)i;
            return true;
        }
    }
    return false;
}

bool mdp_dtype_bytes(mdp_dtype type, int n_dim, const int64_t *shape, int64_t *n_byte) {
    /* safetensors multiplies in shape order and lets a later 0 not heal an earlier overflow */
    int64_t n = 1;
    for (int i = 0; i < n_dim; i++) {
        if (!mdp_multiply(n, shape[i], &n)) return false;
    }
    int64_t bits;
    if (!mdp_multiply(n, mdp_dtype_bits(type), &bits) || bits % 8 != 0) return false;
    *n_byte = bits / 8;
    return true;
}

bool mdp_dtype_widens(mdp_dtype type) {
    return formats[type].widens;
}

/* bf16 is the upper half of an f32. */
MDP_CLONES static void widen_bf16(const unsigned char *restrict stored, int64_t n, float *restrict out) {
    for (int64_t i = 0; i < n; i++) {
        uint16_t half;
        memcpy(&half, stored + 2 * i, sizeof half);
        uint32_t bits = (uint32_t)half << 16;
        memcpy(out + i, &bits, sizeof bits);
    }
}

/* Three cases by exponent, computed for every element and selected. A subnormal m * 2^-24 is found as
 * 2^-14 (1 + m / 1024) - 2^-14, which never meets an f32 subnormal: the result does not depend on flush-to-zero. */
MDP_CLONES static void widen_f16(const unsigned char *restrict stored, int64_t n, float *restrict out) {
    for (int64_t i = 0; i < n; i++) {
        uint16_t half;
        memcpy(&half, stored + 2 * i, sizeof half);
        uint32_t magnitude = ((uint32_t)half & 0x7fffu) << 13; /* exponent and mantissa at f32's places */
        uint32_t exponent = magnitude & 0x0f800000u;
        uint32_t small_bits = 0x38800000u + magnitude; /* meaningful when exponent is 0 */
        float small;
        memcpy(&small, &small_bits, sizeof small);
        small -= 0x1p-14f;
        memcpy(&small_bits, &small, sizeof small_bits);
        uint32_t normal = magnitude + 0x38000000u;  /* bias 15 to bias 127 */
        uint32_t special = magnitude | 0x7f800000u; /* infinity, NaN */
        uint32_t bits = exponent == 0 ? small_bits : exponent == 0x0f800000u ? special : normal;
        bits |= ((uint32_t)half & 0x8000u) << 16;
        memcpy(out + i, &bits, sizeof bits);
    }
}

/* Sign, 4 bits of exponent (bias 7), 3 of mantissa; no infinity, one NaN of each sign. A subnormal m * 2^-9 is found as
 * 2^-6 (1 + m / 8) - 2^-6, for the reason given above. */
MDP_CLONES static void widen_f8_e4m3(const unsigned char *restrict stored, int64_t n, float *restrict out) {
    for (int64_t i = 0; i < n; i++) {
        uint32_t magnitude = ((uint32_t)stored[i] & 0x7fu) << 20;
        uint32_t small_bits = 0x3c800000u + magnitude;
        float small;
        memcpy(&small, &small_bits, sizeof small);
        small -= 0x1p-6f;
        memcpy(&small_bits, &small, sizeof small_bits);
        uint32_t normal = magnitude + 0x3c000000u; /* bias 7 to bias 127 */
        uint32_t bits = magnitude == 0x07f00000u ? 0x7fc00000u : magnitude < 0x00800000u ? small_bits : normal;
        bits |= ((uint32_t)stored[i] & 0x80u) << 24;
        memcpy(out + i, &bits, sizeof bits);
    }
}

/* 2^(code - 127), an f32 subnormal for code 0; 255 is NaN. */
static void widen_f8_e8m0(const unsigned char *restrict stored, int64_t n, float *restrict out) {
    for (int64_t i = 0; i < n; i++) {
        uint32_t code = stored[i];
        uint32_t bits = code == 0 ? 0x00400000u : code == 255 ? 0x7fc00000u : code << 23;
        memcpy(out + i, &bits, sizeof bits);
    }
}

static void widen_f4(const unsigned char *restrict stored, int64_t n, float *restrict out) {
    static const float values[16] = {0.0F,  0.5F,  1.0F,  1.5F,  2.0F,  3.0F,  4.0F,  6.0F,
                                     -0.0F, -0.5F, -1.0F, -1.5F, -2.0F, -3.0F, -4.0F, -6.0F};
    for (int64_t i = 0; i < n / 2; i++) {
        out[2 * i] = values[stored[i] & 15u];
        out[2 * i + 1] = values[stored[i] >> 4];
    }
    if (n % 2 != 0) out[n - 1] = values[stored[n / 2] & 15u];
}

void mdp_widen(mdp_dtype type, const void *stored, int64_t n, float *out) {
    if (type == MDP_F32) memcpy(out, stored, (size_t)n * sizeof *out);
    if (type == MDP_BF16) widen_bf16(stored, n, out);
    if (type == MDP_F16) widen_f16(stored, n, out);
    if (type == MDP_F8_E4M3) widen_f8_e4m3(stored, n, out);
    if (type == MDP_F8_E8M0) widen_f8_e8m0(stored, n, out);
    if (type == MDP_F4) widen_f4(stored, n, out);
}
