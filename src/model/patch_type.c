/* patch_type.c - another type of numbers in config.json, all other bytes kept: dtype, torch_dtype, and
 * quantization_config.
 *
 * Configurations of several parts (text, vision) say the type in each: the objects in the whole are looked through, one
 * level deep. */
#include "mdp/model.h"
#include "model/json_text.h"

#include <string.h>

#define QUANTISATION "quantization_config"
enum { MAX_EDIT = 64 };

typedef struct changes {
    const char *text; /* of config.json */
    char value[32];   /* "bfloat16" in quotes */
    mdp_edit edits[MAX_EDIT];
    int n;
    int n_type; /* of them, types */
} changes;

static mdp_status add(changes *to, mdp_span old, const char *value) {
    if (to->n == MAX_EDIT - 1) /* one is kept for what may be inserted */
        return MDP_ERROR(MDP_BAD_INPUT, "config.json has 'dtype' in more than %d objects.", MAX_EDIT - 2);
    to->edits[to->n].old = old;
    return mdp_copy_text(&to->edits[to->n++].text, value);
}

/* Set the types that an object says, and those in it, `depth` levels deep. */
static mdp_status set_types(changes *to, int64_t from, int depth) {
    mdp_span key, value;
    if (to->text[mdp_json_skip_space(to->text, from)] != '{') return mdp_ok();
    while (mdp_json_next_member(to->text, &from, &key, &value)) {
        bool is_text = to->text[value.begin] == '"', is_object = to->text[value.begin] == '{';
        bool is_type =
            is_text && (mdp_json_is_key(to->text, key, "dtype") || mdp_json_is_key(to->text, key, "torch_dtype"));
        if (is_type) MDP_TRY(add(to, value, to->value));
        to->n_type += is_type;
        if (is_object && depth > 0 && !mdp_json_is_key(to->text, key, QUANTISATION))
            MDP_TRY(set_types(to, value.begin, depth - 1));
    }
    return mdp_ok();
}

/* With the comma before it, or the one after it. */
static mdp_status remove_quantisation(changes *to) {
    mdp_span key, value, next, ignored;
    int64_t from = 0, before = -1;
    while (mdp_json_next_member(to->text, &from, &key, &value)) {
        if (mdp_json_is_key(to->text, key, QUANTISATION)) {
            int64_t after = value.end;
            if (before < 0 && mdp_json_next_member(to->text, &after, &next, &ignored))
                return add(to, (mdp_span){key.begin, next.begin}, "");
            return add(to, (mdp_span){before < 0 ? key.begin : before, value.end}, "");
        }
        before = value.end;
    }
    return mdp_ok();
}

static mdp_status set_quantisation(changes *to, const char *quantisation) {
    mdp_span old;
    if (!quantisation) return remove_quantisation(to);
    if (mdp_json_find_member(to->text, 0, QUANTISATION, &old)) return add(to, old, quantisation);
    return mdp_json_make_insertion(to->text, 0, QUANTISATION, quantisation, &to->edits[to->n++]);
}

static mdp_status make_changes(const char *quantisation, changes *to) {
    MDP_TRY(set_types(to, 0, 1));
    MDP_TRY(set_quantisation(to, quantisation));
    if (to->n_type > 0) return mdp_ok();
    return mdp_json_make_insertion(to->text, 0, "torch_dtype", to->value, &to->edits[to->n++]);
}

mdp_status mdp_config_set_type(const char *dtype, const char *quantisation, char **text, int64_t *n_byte) {
    changes to = {.text = *text};
    char *made = NULL;
    int64_t n_made = 0;
    (void)snprintf(to.value, sizeof to.value, "\"%s\"", dtype);
    mdp_status status = make_changes(quantisation, &to);
    if (status.code == MDP_OK) {
        mdp_edits_sort(to.edits, to.n);
        status = mdp_edits_apply(*text, *n_byte, to.edits, to.n, &made, &n_made);
    }
    for (int i = 0; i < MAX_EDIT; i++) mdp_free(to.edits[i].text);
    MDP_TRY(status);
    mdp_free(*text);
    *text = made;
    *n_byte = n_made;
    return mdp_ok();
}
