/* json.c - JSON through jansson: strict parsing, members with their type checked, printing in one form.
 *
 * A tree is built by mdp_json_put and mdp_json_add alone, which lose nothing unseen. Every refusal names the file and
 * the key, or the line and column. Refuses: duplicate keys, numbers that do not fit, text after the value. */
#include "mdp/base.h"

#include <math.h>
#include <string.h>

#define NEAR_BYTE 12 /* a number that is none ends so near to where the parser stopped */

/* What Python writes for numbers that are none, where the parser stopped at `at`; NULL: something else. */
static const char *find_no_number(const char *text, int64_t n_byte, int64_t at) {
    static const char *const names[] = {"NaN", "Infinity"};
    int64_t begin = at > NEAR_BYTE ? at - NEAR_BYTE : 0, end = at + NEAR_BYTE < n_byte ? at + NEAR_BYTE : n_byte;
    for (int i = 0; i < 2; i++) {
        if (end > begin && memmem(text + begin, (size_t)(end - begin), names[i], strlen(names[i]))) return names[i];
    }
    return NULL;
}

static mdp_status refuse(const char *text, int64_t n_byte, const char *path, const json_error_t *error) {
    const char *found = n_byte > 0 ? mdp_recognise(text, n_byte) : NULL;
    const char *number = find_no_number(text, n_byte, error->position);
    if (found && strcmp(found, "a JSON text") != 0)
        return MDP_ERROR(MDP_BAD_INPUT, "%s: expected a JSON text, found %s.", path, found);
    if (number)
        return MDP_ERROR(MDP_BAD_INPUT,
                         "%s: not valid JSON at line %d, column %d: %s is written there, as Python does, but JSON has "
                         "no such number; write a number or null.",
                         path, error->line, error->column, number);
    return MDP_ERROR(MDP_BAD_INPUT, "%s: not valid JSON at line %d, column %d (byte %d): %s.", path, error->line,
                     error->column, error->position, error->text);
}

mdp_status mdp_json_parse(const char *text, int64_t n_byte, const char *path, json_t **out) {
    *out = NULL;
    MDP_TRY(mdp_fault(MDP_EXHAUSTED, "parse JSON"));
    json_error_t error;
    json_t *value = json_loadb(text, (size_t)n_byte, JSON_REJECT_DUPLICATES, &error);
    if (!value) return refuse(text, n_byte, path, &error);
    *out = value;
    return mdp_ok();
}

const char *mdp_json_kind(const json_t *value) {
    if (value == NULL) return "missing";
    switch (json_typeof(value)) {
    case JSON_OBJECT:
        return "an object";
    case JSON_ARRAY:
        return "a list";
    case JSON_STRING:
        return "a text";
    case JSON_INTEGER:
        return "a whole number";
    case JSON_REAL:
        return "a number with a fraction";
    case JSON_TRUE:
        return "true";
    case JSON_FALSE:
        return "false";
    case JSON_NULL:
        return "null";
    }
    return "unknown";
}

static mdp_status wrong_type(const json_t *value, const char *key, const char *path, const char *expected) {
    return MDP_ERROR(MDP_BAD_INPUT, "%s: '%s' is %s; expected %s.", path, key, mdp_json_kind(value), expected);
}

static mdp_status member(const json_t *object, const char *key, const char *path, const char *expected, json_t **out) {
    if (!json_is_object(object))
        return MDP_ERROR(MDP_BAD_INPUT, "%s: expected an object with the key '%s', found %s.", path, key,
                         object ? mdp_json_kind(object) : "nothing");
    *out = json_object_get(object, key);
    if (!*out) return MDP_ERROR(MDP_BAD_INPUT, "%s: the key '%s' is missing; expected %s.", path, key, expected);
    return mdp_ok();
}

mdp_status mdp_json_int(const json_t *object, const char *key, const char *path, int64_t *out) {
    json_t *value;
    MDP_TRY(member(object, key, path, "a whole number", &value));
    if (!json_is_integer(value)) return wrong_type(value, key, path, "a whole number");
    *out = json_integer_value(value);
    return mdp_ok();
}

mdp_status mdp_json_real(const json_t *object, const char *key, const char *path, double *out) {
    json_t *value;
    MDP_TRY(member(object, key, path, "a number", &value));
    if (!json_is_number(value)) return wrong_type(value, key, path, "a number");
    *out = json_number_value(value);
    return mdp_ok();
}

mdp_status mdp_json_text(const json_t *object, const char *key, const char *path, const char **out) {
    json_t *value;
    MDP_TRY(member(object, key, path, "a text", &value));
    if (!json_is_string(value)) return wrong_type(value, key, path, "a text");
    *out = json_string_value(value);
    return mdp_ok();
}

mdp_status mdp_json_array(const json_t *object, const char *key, const char *path, json_t **out) {
    json_t *value;
    MDP_TRY(member(object, key, path, "a list", &value));
    if (!json_is_array(value)) return wrong_type(value, key, path, "a list");
    *out = value;
    return mdp_ok();
}

/* The container whole, or not at all. */
static void keep_if(bool good, json_t **container) {
    if (good) return;
    json_decref(*container);
    *container = NULL;
}

void mdp_json_put(json_t **container, const char *key, json_t *value) {
    keep_if(json_object_set_new(*container, key, value) == 0, container); /* NULL for either is refused */
}

void mdp_json_add(json_t **container, json_t *value) {
    keep_if(json_array_append_new(*container, value) == 0, container);
}

json_t *mdp_json_number_or_null(double value) {
    return isfinite(value) ? json_real(value) : json_null();
}

mdp_status mdp_json_print(const json_t *value, char **out) {
    *out = NULL;
    if (!value)
        return MDP_ERROR(MDP_INTERNAL,
                         "a text of JSON cannot be made: memory ran out, or a number in it is not finite.");
    MDP_TRY(mdp_fault(MDP_EXHAUSTED, "print JSON"));
    char *text = json_dumps(value, JSON_INDENT(1) | JSON_REAL_PRECISION(9) | JSON_ENCODE_ANY);
    if (!text) return MDP_ERROR(MDP_INTERNAL, "cannot print a JSON value: it is not valid or memory ran out.");
    mdp_status status = mdp_format(out, "%s\n", text);
    mdp_json_free(text);
    return status;
}

void mdp_json_free(char *text) {
    json_free_t release = NULL;
    json_get_alloc_funcs(NULL, &release);
    if (text) release(text);
}
