/* gate_back.c - the way back through gated activations: with h = act(a) u, du = dh act(a) and da = dh u act'(a).
 *
 * Sources of the derivatives: those of exponential.c's formulas. Clamps pass no gradient beyond their limits. */
#include "mdp/linalg.h"

#include <math.h>

#define ROOT_HALF 0.70710678118654752
#define DENSITY 0.39894228040143268 /* 1 / sqrt(2 pi) */

static void back_silu(const float *gate, const float *u, const float *dh, int64_t n, float *dgate, float *du) {
    for (int64_t i = 0; i < n; i++) {
        float a = gate[i], s = 1.0F / (1.0F + mdp_exp(-a));
        du[i] = dh[i] * (a * s);
        dgate[i] = dh[i] * u[i] * (s * (1.0F + a * (1.0F - s)));
    }
}

/* x / (1 + e^-2z), z = c (x + 0.044715 x^3) */
static void back_gelu_tanh(const float *gate, const float *u, const float *dh, int64_t n, float *dgate, float *du) {
    for (int64_t i = 0; i < n; i++) {
        float x = gate[i], square = x * x;
        float s = 1.0F / (1.0F + mdp_exp(-2.0F * 0.797884561F * (x + 0.044715F * (square * x))));
        float slope = 2.0F * 0.797884561F * (1.0F + 3.0F * 0.044715F * square);
        du[i] = dh[i] * (x * s);
        dgate[i] = dh[i] * u[i] * (s + x * s * (1.0F - s) * slope);
    }
}

static void back_gelu(const float *gate, const float *u, const float *dh, int64_t n, float *dgate, float *du) {
    for (int64_t i = 0; i < n; i++) {
        double x = (double)gate[i], below = 0.5 * erfc(-x * ROOT_HALF);
        du[i] = dh[i] * (float)(x * below);
        dgate[i] = dh[i] * u[i] * (float)(below + x * DENSITY * exp(-0.5 * x * x));
    }
}

/* g s (c + 1), s = 1 / (1 + e^(-alpha g)), g = min(a, limit), c = u within +-limit */
static void back_clamped(const mdp_activation *by, const float *gate, const float *u, const float *dh, int64_t n,
                         float *dgate, float *du) {
    for (int64_t i = 0; i < n; i++) {
        float g = gate[i] > by->limit ? by->limit : gate[i];
        float c = u[i] > by->limit ? by->limit : u[i] < -by->limit ? -by->limit : u[i];
        float s = 1.0F / (1.0F + mdp_exp(-by->alpha * g));
        du[i] = u[i] > by->limit || u[i] < -by->limit ? 0.0F : dh[i] * (g * s);
        dgate[i] = gate[i] > by->limit ? 0.0F : dh[i] * (c + 1.0F) * (s * (1.0F + by->alpha * g * (1.0F - s)));
    }
}

void mdp_gate_back(const mdp_activation *activation, const float *gate, const float *u, const float *dh, int64_t n,
                   float *dgate, float *du) {
    switch (activation->kind) {
    case MDP_SILU:
        back_silu(gate, u, dh, n, dgate, du);
        break;
    case MDP_GELU:
        back_gelu(gate, u, dh, n, dgate, du);
        break;
    case MDP_GELU_TANH:
        back_gelu_tanh(gate, u, dh, n, dgate, du);
        break;
    case MDP_SWIGLU_CLAMPED:
        back_clamped(activation, gate, u, dh, n, dgate, du);
        break;
    }
}
