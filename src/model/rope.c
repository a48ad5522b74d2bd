/* rope.c - rotary positions: config.json to angles per position, in the f32 arithmetic of the models' own library, step
 * by step, because an angle at position 30,000 shows every last bit of its frequency.
 *
 * Reads rope_theta with rope_scaling (key type or rope_type; may be null) and rope_parameters. A value inside the dict
 * goes before one at top level, that before the class default. Types: default, linear, dynamic, yarn, llama3,
 * longrope. */
#include "model/config.h"

#include <math.h>
#include <string.h>

/* Where rope settings are looked up. */
typedef struct rope_source {
    const json_t *json; /* config.json */
    const json_t *dict; /* rope_scaling or rope_parameters; NULL when there is none */
    const char *dict_name;
    const char *path;
    const mdp_config *config;
    double theta;
    int64_t dim; /* rotated values of a head */
} rope_source;

static mdp_status bad_value(const rope_source *s, const char *key, const json_t *value, const char *expected) {
    return MDP_ERROR(MDP_BAD_INPUT, "%s: '%s' of %s is %s; expected %s.", s->path, key, s->dict_name,
                     mdp_json_kind(value), expected);
}

/* A number of the dict; absent and null give `absent`. */
static mdp_status dict_number(const rope_source *s, const char *key, double absent, double *out) {
    const json_t *value = json_object_get(s->dict, key);
    *out = absent;
    if (value == NULL || json_is_null(value)) return mdp_ok();
    if (!json_is_number(value)) return bad_value(s, key, value, "a number");
    *out = json_number_value(value);
    return mdp_ok();
}

/* A number of the dict that must be there and positive. */
static mdp_status dict_positive(const rope_source *s, const char *key, double *out) {
    MDP_TRY(dict_number(s, key, -1.0, out));
    if (!(*out > 0.0)) return bad_value(s, key, json_object_get(s->dict, key), "a positive number");
    return mdp_ok();
}

/* rope_scaling goes before rope_parameters; null and {} count as absent. */
static mdp_status find_dict(rope_source *s) {
    static const char *const names[] = {"rope_scaling", "rope_parameters"};
    for (int i = 0; i < 2; i++) {
        const json_t *value = json_object_get(s->json, names[i]);
        if (value == NULL || json_is_null(value)) continue;
        if (!json_is_object(value)) {
            return MDP_ERROR(MDP_BAD_INPUT, "%s: '%s' is %s; expected an object or null.", s->path, names[i],
                             mdp_json_kind(value));
        }
        if (json_object_size(value) == 0) continue;
        s->dict = value;
        s->dict_name = names[i];
        return mdp_ok();
    }
    return mdp_ok();
}

static mdp_status find_theta(rope_source *s, const mdp_family *family) {
    const json_t *value = mdp_config_get(s->json, family->rope_theta_key);
    if (value == NULL || json_is_null(value)) value = json_object_get(s->dict, "rope_theta");
    if (value == NULL || json_is_null(value)) value = json_object_get(s->json, "rope_theta");
    s->theta = family->rope_theta;
    if (value == NULL || json_is_null(value)) return mdp_ok();
    s->theta = json_is_number(value) ? json_number_value(value) : 0.0;
    if (!(s->theta > 1.0 && isfinite(s->theta))) {
        return MDP_ERROR(MDP_BAD_INPUT, "%s: 'rope_theta' is %s (%g); expected a number above 1.", s->path,
                         mdp_json_kind(value), s->theta);
    }
    return mdp_ok();
}

static mdp_status find_type(const rope_source *s, const char **out) {
    const json_t *value = json_object_get(s->dict, "rope_type");
    if (value == NULL || json_is_null(value)) value = json_object_get(s->dict, "type");
    *out = "default";
    if (value == NULL || json_is_null(value)) return mdp_ok();
    *out = json_string_value(value);
    if (*out == NULL) return bad_value(s, "rope_type", value, "a text");
    return mdp_ok();
}

/* The length that the model was first trained for: top level, then the dict, then max_position_embeddings. */
static mdp_status original_length(const rope_source *s, double *out) {
    const char *key = "original_max_position_embeddings";
    const json_t *value = json_object_get(s->json, key);
    if (value == NULL || json_is_null(value)) value = json_object_get(s->dict, key);
    *out = (double)s->config->max_position;
    if (value == NULL || json_is_null(value)) return mdp_ok();
    *out = json_is_number(value) ? json_number_value(value) : 0.0;
    if (!(*out > 0.0)) return bad_value(s, key, value, "a positive number");
    return mdp_ok();
}

/* base ^ (2 i / dim), every step rounded to f32. */
static float power(float base, int64_t i, int64_t dim) {
    float exponent = (float)(2 * i) / (float)dim;
    return (float)pow((double)base, (double)exponent);
}

static mdp_status set_default(const rope_source *s, mdp_rope *rope) {
    for (int64_t i = 0; i < rope->n_pair; i++) rope->frequency[i] = (double)(1.0F / power((float)s->theta, i, s->dim));
    return mdp_ok();
}

static mdp_status set_linear(const rope_source *s, mdp_rope *rope) {
    double factor;
    MDP_TRY(dict_positive(s, "factor", &factor));
    MDP_TRY(set_default(s, rope));
    for (int64_t i = 0; i < rope->n_pair; i++) {
        rope->frequency[i] = (double)((float)rope->frequency[i] / (float)factor);
    }
    return mdp_ok();
}

/* The base grows with the length of the sequence beyond max_position_embeddings; up to there it is theta. */
static mdp_status set_dynamic(const rope_source *s, mdp_rope *rope) {
    double alpha;
    MDP_TRY(dict_number(s, "alpha", 0.0, &alpha));
    if (alpha > 0.0 && s->dim >= 4) { /* Hunyuan's: a base of its own, the same for every length */
        rope_source stretched = *s;
        stretched.theta *= pow(alpha, (double)s->dim / (double)(s->dim - 2));
        return set_default(&stretched, rope);
    }
    MDP_TRY(dict_positive(s, "factor", &rope->factor));
    if (s->dim < 4) return MDP_ERROR(MDP_BAD_INPUT, "%s: dynamic rope needs heads of 4 values.", s->path);
    rope->dynamic = true;
    return set_default(s, rope);
}

/* 0.1 mscale ln(factor) + 1 */
static double yarn_scale(double factor, double mscale) {
    return factor <= 1.0 ? 1.0 : 0.1 * mscale * log(factor) + 1.0;
}

static mdp_status yarn_attention_factor(const rope_source *s, double factor, double *out) {
    double mscale, mscale_all_dim;
    MDP_TRY(dict_number(s, "attention_factor", NAN, out));
    MDP_TRY(dict_number(s, "mscale", 0.0, &mscale));
    MDP_TRY(dict_number(s, "mscale_all_dim", 0.0, &mscale_all_dim));
    if (!isnan(*out)) return mdp_ok();
    bool both = mscale != 0.0 && mscale_all_dim != 0.0;
    *out = both ? yarn_scale(factor, mscale) / yarn_scale(factor, mscale_all_dim) : yarn_scale(factor, 1.0);
    return mdp_ok();
}

/* Pairs below `low` keep their frequency, pairs above `high` are slowed by the factor, a ramp in between. */
static mdp_status yarn_range(const rope_source *s, double original, double *low, double *high) {
    double beta_fast, beta_slow;
    MDP_TRY(dict_number(s, "beta_fast", 0.0, &beta_fast));
    MDP_TRY(dict_number(s, "beta_slow", 0.0, &beta_slow));
    const json_t *value = json_object_get(s->dict, "truncate");
    if (value != NULL && !json_is_null(value) && !json_is_boolean(value)) {
        return bad_value(s, "truncate", value, "true or false");
    }
    bool truncate = value == NULL || json_is_true(value); /* null means false in the library */
    if (beta_fast == 0.0) beta_fast = 32.0;
    if (beta_slow == 0.0) beta_slow = 1.0;
    if (beta_fast < 0.0 || beta_slow < 0.0) {
        return MDP_ERROR(MDP_BAD_INPUT, "%s: 'beta_fast' and 'beta_slow' of %s must be positive.", s->path,
                         s->dict_name);
    }
    const double two_pi = 2.0 * 3.14159265358979323846;
    double dim = (double)s->dim;
    *low = dim * log(original / (beta_fast * two_pi)) / (2.0 * log(s->theta));
    *high = dim * log(original / (beta_slow * two_pi)) / (2.0 * log(s->theta));
    if (truncate) {
        *low = floor(*low);
        *high = ceil(*high);
    }
    *low = fmax(*low, 0.0);
    *high = fmin(*high, dim - 1.0);
    if (*low == *high) *high += 0.001;
    return mdp_ok();
}

static mdp_status set_yarn(const rope_source *s, mdp_rope *rope) {
    double original, factor, low = 0.0, high = 0.0;
    MDP_TRY(original_length(s, &original));
    MDP_TRY(dict_number(s, "factor", (double)s->config->max_position / original, &factor));
    if (!(factor > 0.0)) return bad_value(s, "factor", json_object_get(s->dict, "factor"), "a positive number");
    MDP_TRY(yarn_attention_factor(s, factor, &rope->attention_factor));
    MDP_TRY(yarn_range(s, original, &low, &high));
    for (int64_t i = 0; i < rope->n_pair; i++) {
        float p = power((float)s->theta, i, s->dim);
        float ramp = ((float)i - (float)low) / (float)(high - low);
        ramp = ramp < 0.0F ? 0.0F : ramp > 1.0F ? 1.0F : ramp;
        float keep = 1.0F - ramp;
        float slowed = 1.0F / ((float)factor * p);
        rope->frequency[i] = (double)(slowed * (1.0F - keep) + 1.0F / p * keep);
    }
    return mdp_ok();
}

static mdp_status set_llama3(const rope_source *s, mdp_rope *rope) {
    double original, factor, low, high;
    MDP_TRY(original_length(s, &original));
    MDP_TRY(dict_positive(s, "factor", &factor));
    MDP_TRY(dict_positive(s, "low_freq_factor", &low));
    MDP_TRY(dict_positive(s, "high_freq_factor", &high));
    float longest = (float)(original / low), shortest = (float)(original / high);
    for (int64_t i = 0; i < rope->n_pair; i++) {
        float inverse = 1.0F / power((float)s->theta, i, s->dim);
        /* the library multiplies by reciprocals here; the bits follow it */
        float wave = (1.0F / inverse) * (float)(2.0 * 3.14159265358979323846);
        if (wave > longest) {
            inverse = inverse / (float)factor;
        } else if (!(wave < shortest)) { /* reached with low == high only when neither test holds: wave equals both */
            float smooth = high == low ? 1.0F : ((1.0F / wave) * (float)original - (float)low) / (float)(high - low);
            inverse = (1.0F - smooth) * inverse / (float)factor + smooth * inverse;
        }
        rope->frequency[i] = (double)inverse;
    }
    return mdp_ok();
}

/* frequency [n_pair] slowed by the list `key` of the dict. */
static mdp_status read_slowed(const rope_source *s, const char *key, int64_t n_pair, double *frequency) {
    const json_t *list = json_object_get(s->dict, key), *value;
    if (!json_is_array(list)) return bad_value(s, key, list, "a list of positive numbers");
    if ((int64_t)json_array_size(list) != n_pair) {
        return MDP_ERROR(MDP_BAD_INPUT, "%s: '%s' of %s has %zu entries; expected one for each of %lld rotated pairs.",
                         s->path, key, s->dict_name, json_array_size(list), (long long)n_pair);
    }
    size_t i;
    json_array_foreach(list, i, value) {
        if (!(json_number_value(value) > 0.0)) return bad_value(s, key, value, "a list of positive numbers");
        float slowing = (float)json_number_value(value);
        frequency[i] = (double)(1.0F / (slowing * power((float)s->theta, (int64_t)i, s->dim)));
    }
    return mdp_ok();
}

/* cos and sin are multiplied by short_mscale or long_mscale where these are given, else by one factor. */
static mdp_status longrope_factors(const rope_source *s, double original, mdp_rope *rope) {
    double factor, both;
    MDP_TRY(dict_number(s, "factor", (double)s->config->max_position / original, &factor));
    MDP_TRY(dict_number(s, "attention_factor", NAN, &both));
    if (isnan(both)) both = factor <= 1.0 ? 1.0 : sqrt(1.0 + log(factor) / log(original));
    MDP_TRY(dict_number(s, "short_mscale", both, &rope->attention_factor));
    return dict_number(s, "long_mscale", both, &rope->long_attention_factor);
}

/* Two lists of slowings: for sequences within the length that the model was first trained for, and for longer ones. */
static mdp_status set_longrope(const rope_source *s, mdp_rope *rope) {
    double original;
    MDP_TRY(original_length(s, &original));
    MDP_TRY(longrope_factors(s, original, rope));
    rope->long_beyond = (int64_t)original;
    MDP_TRY(MDP_ALLOC(&rope->long_frequency, rope->n_pair, "the rope frequencies"));
    MDP_TRY(read_slowed(s, "short_factor", rope->n_pair, rope->frequency));
    return read_slowed(s, "long_factor", rope->n_pair, rope->long_frequency);
}

static const struct {
    const char *name;
    mdp_status (*set)(const rope_source *source, mdp_rope *rope);
} TYPES[] = {
    {"default", set_default}, {"linear", set_linear}, {"dynamic", set_dynamic},
    {"yarn", set_yarn},       {"llama3", set_llama3}, {"longrope", set_longrope},
};

static mdp_status set_type(const rope_source *s, const char *type, mdp_rope *rope) {
    for (size_t i = 0; i < sizeof TYPES / sizeof TYPES[0]; i++) {
        if (strcmp(type, TYPES[i].name) == 0) return TYPES[i].set(s, rope);
    }
    return MDP_ERROR(MDP_BAD_INPUT,
                     "%s: rope type '%s' (%s) is not supported; supported are default, linear, dynamic, "
                     "yarn, llama3 and longrope.",
                     s->path, type, s->dict_name);
}

/* A factor between 0 and 1, of config.json or of the dict. */
static mdp_status check_factor(const rope_source *s, const char *key, const json_t *value, double *out) {
    *out = json_is_number(value) ? json_number_value(value) : 0.0;
    if (*out > 0.0 && *out <= 1.0) return mdp_ok();
    return MDP_ERROR(MDP_BAD_INPUT, "%s: '%s' is %s (%g); expected a number above 0, at most 1.", s->path, key,
                     mdp_json_kind(value), *out);
}

/* Rotated values of a head where the family may leave some alone: by partial_rotary_factor of the dict, then of
 * config.json, where null is no class default but the whole head; without either by the older key for their number. Cut
 * down to a whole number as the library does. */
static mdp_status find_rotated(rope_source *s, const mdp_family *family) {
    const char *key = "partial_rotary_factor";
    double part = family->partial_rotary;
    const json_t *value = json_object_get(s->dict, key), *top = json_object_get(s->json, key);
    const json_t *number = json_object_get(s->json, family->rotary_dim);
    if (value == NULL || json_is_null(value)) value = top;
    if (value != NULL && !json_is_null(value)) {
        MDP_TRY(check_factor(s, key, value, &part));
    } else if (json_is_null(top)) {
        part = 1.0;
    } else if (number != NULL && !json_is_null(number)) {
        if (!json_is_integer(number) || json_integer_value(number) < 2 || json_integer_value(number) > s->dim) {
            return MDP_ERROR(
                MDP_BAD_INPUT, "%s: '%s' is %s (%lld); expected a whole number from 2 to the %lld of a head.", s->path,
                family->rotary_dim, mdp_json_kind(number), (long long)json_integer_value(number), (long long)s->dim);
        }
        part = (double)json_integer_value(number) / (double)s->dim;
    }
    s->dim = (int64_t)((double)s->dim * part);
    if (s->dim >= 2 && s->dim % 2 == 0) return mdp_ok();
    return MDP_ERROR(MDP_BAD_INPUT, "%s: %lld values of each head are rotated ('%s'); expected an even number.",
                     s->path, (long long)s->dim, key);
}

static mdp_status refuse_partial(const rope_source *s, const char *type) {
    const json_t *value = json_object_get(s->dict, "partial_rotary_factor");
    if (value == NULL) value = json_object_get(s->json, "partial_rotary_factor");
    /* The default rope of these families does not look at the key; their scaled ones do, and then do not fit the head.
     */
    if (strcmp(type, "default") == 0 || !json_is_number(value) || json_number_value(value) == 1.0) return mdp_ok();
    return MDP_ERROR(MDP_BAD_INPUT, "%s: 'partial_rotary_factor' is %g, but this model_type rotates whole heads.",
                     s->path, json_number_value(value));
}

static mdp_status find_layout(const rope_source *s, const mdp_family *family, mdp_rope *rope) {
    const char *key = family->rope_pairs.name;
    if (key == NULL) return mdp_ok();
    const json_t *value = json_object_get(s->json, key);
    if (value != NULL && !json_is_boolean(value) && !json_is_null(value)) {
        return MDP_ERROR(MDP_BAD_INPUT, "%s: '%s' is %s; expected true or false.", s->path, key, mdp_json_kind(value));
    }
    bool pairs = value == NULL ? family->rope_pairs.absent : json_is_true(value); /* null does not hold */
    rope->layout = pairs ? MDP_ROPE_PAIR : MDP_ROPE_HALF;
    return mdp_ok();
}

/* Latent attention scales q . k by the square of what yarn gives for mscale_all_dim. */
static mdp_status find_score_factor(const rope_source *s, mdp_rope *rope) {
    double all_dim, factor;
    MDP_TRY(dict_number(s, "mscale_all_dim", 0.0, &all_dim));
    if (all_dim == 0.0) return mdp_ok();
    MDP_TRY(dict_positive(s, "factor", &factor));
    rope->score_factor = yarn_scale(factor, all_dim) * yarn_scale(factor, all_dim);
    return mdp_ok();
}

/* defaults: the class default of rope_parameters, or NULL. */
static mdp_status read_rope(const json_t *json, const mdp_family *family, const mdp_config *config, const char *path,
                            const json_t *defaults, mdp_rope *out) {
    rope_source s = {.json = json, .dict_name = "rope_parameters", .path = path, .config = config};
    const char *type;
    s.dim = config->latent.kv_rank > 0 ? config->latent.n_rope : config->head_dim;
    MDP_TRY(find_dict(&s));
    if (s.dict == NULL) s.dict = defaults;
    MDP_TRY(find_theta(&s, family));
    MDP_TRY(find_type(&s, &type));
    MDP_TRY(family->partial_rotary > 0.0 ? find_rotated(&s, family) : refuse_partial(&s, type));
    mdp_rope rope = {
        .layout = family->rope_layout,
        .n_pair = s.dim / 2,
        .attention_factor = 1.0,
        .score_factor = 1.0,
        .theta = s.theta,
        .factor = 1.0,
        .max_position = config->max_position,
        .n_rotated = s.dim,
    };
    MDP_TRY(find_layout(&s, family, &rope));
    if (config->latent.kv_rank > 0 && strcmp(type, "default") != 0) MDP_TRY(find_score_factor(&s, &rope));
    MDP_TRY(MDP_ALLOC(&rope.frequency, rope.n_pair, "the rope frequencies"));
    mdp_status status = set_type(&s, type, &rope);
    if (status.code != MDP_OK) {
        mdp_free(rope.frequency);
        mdp_free(rope.long_frequency);
        return status;
    }
    *out = rope;
    return mdp_ok();
}

mdp_status mdp_rope_read(const json_t *json, const mdp_family *family, const mdp_config *config, const char *path,
                         mdp_rope *out) {
    json_t *defaults = NULL;
    if (family->rope_default != NULL)
        MDP_TRY(
            mdp_json_parse(family->rope_default, (int64_t)strlen(family->rope_default), "rope_parameters", &defaults));
    mdp_status status = read_rope(json, family, config, path, defaults, out);
    json_decref(defaults);
    return status;
}

/* Base of dynamic rope for a sequence longer than max_position, in the library's f32 steps. */
static float dynamic_base(const mdp_rope *rope, int64_t length) {
    float growth = (float)rope->factor * (float)length / (float)rope->max_position - (float)(rope->factor - 1.0);
    double dim = (double)rope->n_rotated;
    return (float)rope->theta * (float)pow((double)growth, (double)(float)(dim / (dim - 2.0)));
}

static bool is_long(const mdp_rope *rope, int64_t length) {
    return rope->long_frequency && length > rope->long_beyond;
}

bool mdp_rope_is_stretched(const mdp_rope *rope, int64_t length) {
    return (rope->dynamic && length > rope->max_position) || is_long(rope, length);
}

void mdp_rope_angles(const mdp_rope *rope, int64_t length, int64_t position, float *cosine, float *sine) {
    bool grows = rope->dynamic && length > rope->max_position;
    float base = grows ? dynamic_base(rope, length) : 0.0F;
    const double *frequencies = is_long(rope, length) ? rope->long_frequency : rope->frequency;
    float scale = (float)(is_long(rope, length) ? rope->long_attention_factor : rope->attention_factor);
    for (int64_t i = 0; i < rope->n_pair; i++) {
        float frequency = grows ? 1.0F / power(base, i, rope->n_rotated) : (float)frequencies[i];
        /* f64 cosine of the f32 angle, rounded once: what libm kernels differ by does not reach the f32 result */
        double angle = (double)((float)position * frequency);
        cosine[i] = (float)cos(angle) * scale;
        sine[i] = (float)sin(angle) * scale;
    }
}
