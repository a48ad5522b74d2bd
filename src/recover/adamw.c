/* adamw.c - the optimiser: steps, clipping, learning rates. All f32 but for the few numbers of a step. */
#include "mdp/recover.h"

#include <math.h>

#define BETA_MEAN 0.9
#define BETA_SQUARE 0.95
#define EPS 1e-8
#define CLIP_EPS 1e-6
#define PI 3.14159265358979324

const char *const mdp_schedule_names[] = {
    [MDP_SCHEDULE_COSINE] = "cosine", [MDP_SCHEDULE_LINEAR] = "linear", [MDP_SCHEDULE_CONSTANT] = "constant", NULL};

double mdp_train_rate(const mdp_train_options *options, int64_t step, int64_t n_step) {
    int64_t n_up = (int64_t)ceil(options->warmup * (double)n_step);
    if (step < n_up) return options->rate * (double)(step + 1) / (double)n_up;
    double done = n_step > n_up ? (double)(step - n_up) / (double)(n_step - n_up) : 0.0;
    if (options->schedule == MDP_SCHEDULE_COSINE) return options->rate * 0.5 * (1.0 + cos(PI * done));
    return options->schedule == MDP_SCHEDULE_LINEAR ? options->rate * (1.0 - done) : options->rate;
}

double mdp_clip_scale(double clip, double norm) {
    double scale = clip / (norm + CLIP_EPS);
    return clip > 0.0 && scale < 1.0 ? scale : 1.0;
}

void mdp_adamw_step(const mdp_adamw *step, int64_t n, const float *gradient, float *value, float *mean, float *square) {
    const float keep = (float)(1.0 - step->rate * step->decay), scale = (float)step->scale;
    const float b1 = (float)BETA_MEAN, b2 = (float)BETA_SQUARE, eps = (float)EPS;
    const float part1 = (float)(1.0 - BETA_MEAN), part2 = (float)(1.0 - BETA_SQUARE);
    const float length = (float)(step->rate / (1.0 - pow(BETA_MEAN, (double)step->number)));
    const float root = (float)sqrt(1.0 - pow(BETA_SQUARE, (double)step->number));
    for (int64_t i = 0; i < n; i++) {
        float g = gradient[i] * scale;
        mean[i] = b1 * mean[i] + part1 * g;
        square[i] = b2 * square[i] + part2 * (g * g);
        value[i] = value[i] * keep - length * (mean[i] / (sqrtf(square[i]) / root + eps));
    }
}
