/* exponential.c - exp in f32 and what is built on it: softmax rows, gated activations.
 *
 * exp is ours because libm's picks its code by the processor: here the same few additions and multiplications are done
 * everywhere, so every machine gives the same bits, and the loops vectorise. */
#include "linalg/lanes.h"
#include "mdp/linalg.h"

#include <math.h>
#include <string.h>

MDP_INLINE uint32_t float_bits(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

/* 2^n for n in [-126, 127]. */
MDP_INLINE float power_of_two(int32_t n) {
    uint32_t bits = (uint32_t)(n + 127) << 23;
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* x = n ln 2 + r with |r| <= ln 2 / 2; e^r by its Taylor series to r^7, whose remainder, 0.35^8 / 8!, is a tenth of
 * half a unit in the last place; then times 2^n in two steps, because n goes from -150 to 128 and 2^n alone would not
 * fit. */
MDP_INLINE float exponential(float x) {
    /* Outside of this range the result is 0 or infinity; not-a-number passes both tests. */
    x = x > 89.0F ? 89.0F : x;
    x = x < -104.0F ? -104.0F : x;
    /* Adding 1.5 * 2^23 rounds to an integer, which then stands in the low bits. */
    const float shift = 12582912.0F;
    float shifted = x * 1.44269504F + shift;
    int32_t n = (int32_t)(float_bits(shifted) - float_bits(shift));
    float whole = shifted - shift;
    /* ln 2 in two parts; the first has 9 bits, so its product with n is exact. */
    float r = (x - whole * 0.693359375F) - whole * -2.12194440e-4F;
    float p = 1.0F / 5040.0F;
    p = p * r + 1.0F / 720.0F;
    p = p * r + 1.0F / 120.0F;
    p = p * r + 1.0F / 24.0F;
    p = p * r + 1.0F / 6.0F;
    p = p * r + 0.5F;
    p = (p * r) * r + r;
    p = p + 1.0F;
    int32_t half = n >> 1;
    return (p * power_of_two(half)) * power_of_two(n - half);
}

float mdp_exp(float x) {
    return exponential(x);
}

MDP_CLONES double mdp_exp_shift(float *x, float shift, int64_t n) {
    double lane[MDP_LANES] = {0.0};
    int64_t whole = n - n % MDP_LANES;
    /* Two loops: with the sum in the first one, each exponential waits for the one before it. */
    for (int64_t i = 0; i < n; i++) x[i] = exponential(x[i] - shift);
    for (int64_t i = 0; i < whole; i += MDP_LANES) {
        for (int j = 0; j < MDP_LANES; j++) lane[j] += (double)x[i + j];
    }
    for (int64_t i = whole; i < n; i++) lane[i - whole] += (double)x[i];
    return lanes_sum(lane);
}

/* x / (1 + e^-x) */
MDP_CLONES static void gate_silu(const float *restrict u, int64_t n, float *restrict h) {
    for (int64_t i = 0; i < n; i++) h[i] = h[i] / (1.0F + exponential(-h[i])) * u[i];
}

/* x / 2 (1 + tanh z) with z = sqrt(2 / pi) (x + 0.044715 x^3), written as x / (1 + e^-2z). */
MDP_CLONES static void gate_gelu_tanh(const float *restrict u, int64_t n, float *restrict h) {
    for (int64_t i = 0; i < n; i++) {
        float x = h[i];
        float z = 0.797884561F * (x + 0.044715F * (x * x * x));
        h[i] = x / (1.0F + exponential(-2.0F * z)) * u[i];
    }
}

/* x / 2 erfc(-x / sqrt 2) in f64, rounded once: what libm's f64 kernels differ by does not reach the f32 result. */
static void gate_gelu(const float *restrict u, int64_t n, float *restrict h) {
    for (int64_t i = 0; i < n; i++) {
        double x = (double)h[i];
        h[i] = (float)(0.5 * x * erfc(-x * 0.70710678118654752)) * u[i];
    }
}

MDP_CLONES static void gate_clamped(float alpha, float limit, const float *restrict u, int64_t n, float *restrict h) {
    for (int64_t i = 0; i < n; i++) {
        float g = h[i] > limit ? limit : h[i];
        float c = u[i] > limit ? limit : u[i] < -limit ? -limit : u[i];
        h[i] = g / (1.0F + exponential(-alpha * g)) * (c + 1.0F);
    }
}

void mdp_gate(const mdp_activation *activation, const float *u, int64_t n, float *h) {
    switch (activation->kind) {
    case MDP_SILU:
        gate_silu(u, n, h);
        break;
    case MDP_GELU:
        gate_gelu(u, n, h);
        break;
    case MDP_GELU_TANH:
        gate_gelu_tanh(u, n, h);
        break;
    case MDP_SWIGLU_CLAMPED:
        gate_clamped(activation->alpha, activation->limit, u, n, h);
        break;
    }
}
