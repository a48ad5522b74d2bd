/* json_arrays.h - arrays and numbers of a fixture in JSON. */
#ifndef MDP_TESTS_JSON_ARRAYS_H
#define MDP_TESTS_JSON_ARRAYS_H

#include "mdp/base.h"

#include <setjmp.h>
#include <stdlib.h>

#include <cmocka.h>

static inline double json_double(const json_t *object, const char *key) {
    const json_t *value = json_object_get(object, key);
    if (!json_is_number(value)) fail_msg("%s is no number of the fixture", key);
    return json_number_value(value);
}

static inline int32_t json_int(const json_t *object, const char *key) {
    return (int32_t)json_double(object, key);
}

/* The numbers of an array, with one more element so that empty ones have memory; to be freed with mdp_free. */
static inline double *json_doubles(const json_t *array, int64_t n) {
    double *values = NULL;
    if ((int64_t)json_array_size(array) != n)
        fail_msg("an array of the fixture has %d numbers of %d", (int)json_array_size(array), (int)n);
    assert_int_equal(MDP_ALLOC(&values, n + 1, "numbers").code, MDP_OK);
    for (int64_t i = 0; i < n; i++) values[i] = json_number_value(json_array_get(array, (size_t)i));
    return values;
}

/* A symmetric matrix [n, n] from what is above its diagonal; below it and on it are values that nobody may read. */
static inline double *json_symmetric(const json_t *array, int32_t n) {
    double *matrix = NULL, *above = json_doubles(array, (int64_t)n * (n - 1) / 2), *next = above;
    assert_int_equal(MDP_ALLOC(&matrix, (int64_t)n * n, "a matrix").code, MDP_OK);
    for (int32_t i = 0; i < n; i++) {
        for (int32_t j = 0; j < n; j++) matrix[i * n + j] = j > i ? *next++ : -1e30;
    }
    mdp_free(above);
    return matrix;
}

#endif
