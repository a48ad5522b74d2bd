/* patch_config.c - other numbers of experts in config.json, all other bytes kept.
 *
 * The text has been parsed before (mdp_model_bind), so this scanner only has to find where the members of the outermost
 * object lie: it steps over texts and nested values and does not judge them. */
#include "model/config.h"

#include <string.h>

/* A stretch of the text, [begin, end). */
typedef struct span {
    int64_t begin, end;
} span;

/* One replacement or insertion. */
typedef struct edit {
    span old;
    char *text; /* owned */
} edit;

enum { MAX_SPELLING = 2, MAX_EDIT = 3 * MAX_SPELLING + 1 };

static int64_t skip_space(const char *text, int64_t at) {
    while (text[at] == ' ' || text[at] == '\t' || text[at] == '\n' || text[at] == '\r') at++;
    return at;
}

/* First byte after the text that opens at `at`. */
static int64_t skip_text(const char *text, int64_t at) {
    for (at++; text[at] != '"' && text[at] != '\0'; at++) {
        if (text[at] == '\\' && text[at + 1] != '\0') at++;
    }
    return text[at] == '"' ? at + 1 : at;
}

/* First byte after the value that begins at `at`. */
static int64_t skip_value(const char *text, int64_t at) {
    int64_t depth = 0;
    while (text[at] != '\0') {
        char c = text[at];
        if (c == '"') {
            at = skip_text(text, at);
            if (depth == 0) return at;
            continue;
        }
        bool ends = c == ',' || c == '}' || c == ']' || c == ' ' || c == '\t' || c == '\n' || c == '\r';
        if (depth == 0 && ends) return at;
        if (c == '{' || c == '[') depth++;
        if (c == '}' || c == ']') depth--;
        at++;
        if (depth == 0 && (c == '}' || c == ']')) return at;
    }
    return at;
}

/* Is the key at `key` (with its quotes) the one called `name`? A key may be spelled with escapes. */
static bool is_key(const char *text, span key, const char *name) {
    json_t *value = json_loadb(text + key.begin, (size_t)(key.end - key.begin), JSON_DECODE_ANY, NULL);
    bool same = value != NULL && json_is_string(value) && strcmp(json_string_value(value), name) == 0;
    json_decref(value);
    return same;
}

/* The value of the member `name` of the object at `from`; false when there is none. */
static bool find_member(const char *text, int64_t from, const char *name, span *value) {
    int64_t at = skip_space(text, from);
    if (text[at] != '{') return false;
    at = skip_space(text, at + 1);
    while (text[at] == '"') {
        span key = {.begin = at, .end = skip_text(text, at)};
        at = skip_space(text, key.end);
        if (text[at] != ':') return false;
        value->begin = skip_space(text, at + 1);
        value->end = skip_value(text, value->begin);
        if (is_key(text, key, name)) return true;
        at = skip_space(text, value->end);
        if (text[at] != ',') return false;
        at = skip_space(text, at + 1);
    }
    return false;
}

/* A new member right after the brace of the object at `from`, spaced as the first member is. */
static mdp_status make_insertion(const char *text, int64_t from, const char *name, const char *value, edit *out) {
    int64_t brace = skip_space(text, from);
    int64_t first = skip_space(text, brace + 1);
    out->old.begin = out->old.end = brace + 1;
    return mdp_format(&out->text, "%.*s\"%s\": %s%s", (int)(first - brace - 1), text + brace + 1, name, value,
                      text[first] == '}' ? "" : ",");
}

/* Set a key within an object ("ffn_config.moe_top_k"); what is not there is inserted. */
static mdp_status set_inner_key(const char *text, int64_t from, const char *name, const char *dot, const char *value,
                                edit edits[MAX_EDIT], int *n_edit) {
    char outer[64];
    span object, old;
    edit *next = &edits[(*n_edit)++];
    (void)snprintf(outer, sizeof outer, "%.*s", (int)(dot - name), name);
    if (!find_member(text, from, outer, &object) || text[object.begin] != '{') {
        int64_t brace = skip_space(text, from);
        next->old.begin = next->old.end = brace + 1;
        return mdp_format(&next->text, "\"%s\": {\"%s\": %s}, ", outer, dot + 1, value);
    }
    if (!find_member(text, object.begin, dot + 1, &old)) {
        return make_insertion(text, object.begin, dot + 1, value, next);
    }
    next->old = old;
    return mdp_copy_text(&next->text, value);
}

/* Set every spelling of a key that is there, or insert the first. */
static mdp_status set_key(const char *text, int64_t from, const mdp_int_key *key, int64_t number, edit edits[MAX_EDIT],
                          int *n_edit) {
    char value[32];
    (void)snprintf(value, sizeof value, "%lld", (long long)number);
    const char *names[MAX_SPELLING] = {key->name, key->other};
    int n_before = *n_edit;
    const char *dot = key->name == NULL ? NULL : strchr(key->name, '.');
    if (dot != NULL) return set_inner_key(text, from, key->name, dot, value, edits, n_edit);
    span old;
    for (int i = 0; i < MAX_SPELLING; i++) {
        if (names[i] == NULL || !find_member(text, from, names[i], &old)) continue;
        edits[*n_edit].old = old;
        MDP_TRY(mdp_copy_text(&edits[*n_edit].text, value));
        (*n_edit)++;
    }
    if (*n_edit > n_before) return mdp_ok();
    MDP_TRY(make_insertion(text, from, names[0], value, &edits[*n_edit]));
    (*n_edit)++;
    return mdp_ok();
}

static bool has_key(const char *text, int64_t from, const mdp_int_key *key) {
    span at;
    return (key->name != NULL && find_member(text, from, key->name, &at)) ||
           (key->other != NULL && find_member(text, from, key->other, &at));
}

/* How the text spells a key that it has. */
static const char *spelling(const char *text, int64_t from, const mdp_int_key *key) {
    span at;
    return key->other != NULL && !find_member(text, from, key->name, &at) && find_member(text, from, key->other, &at)
               ? key->other
               : key->name;
}

/* {"3": {"num_experts": 6}, ...}: the layers that have not n_expert experts. New text. */
static mdp_status list_layers(const mdp_config_change *change, int64_t n_layer, const char *name, char **out) {
    size_t each = strlen(name) + 64, room = (size_t)n_layer * each + 3, used = 1;
    MDP_TRY(MDP_ALLOC(out, (int64_t)room, "per_layer_config"));
    (*out)[0] = '{';
    for (int64_t l = 0; change->of_layer != NULL && l < n_layer; l++) {
        if (change->of_layer[l] == 0 || change->of_layer[l] == change->n_expert) continue;
        used += (size_t)snprintf(*out + used, room - used, "%s\"%lld\": {\"%s\": %d}", used > 1 ? ", " : "",
                                 (long long)l, name, (int)change->of_layer[l]);
    }
    (*out)[used] = '}';
    return mdp_ok();
}

/* per_layer_config: written where it is asked for, and never left to say what is no longer so. */
static mdp_status set_layers(const mdp_model *model, const char *text, int64_t from, const mdp_config_change *change,
                             edit edits[MAX_EDIT], int *n_edit) {
    char *value = NULL;
    span old;
    bool known = find_member(text, from, MDP_PER_LAYER, &old);
    if (!known && !change->list_layers) return mdp_ok();
    MDP_TRY(list_layers(change, model->n_layer, spelling(text, from, &model->family->n_expert), &value));
    edit *next = &edits[(*n_edit)++];
    if (!known) {
        mdp_status status = make_insertion(text, from, MDP_PER_LAYER, value, next);
        mdp_free(value);
        return status;
    }
    *next = (edit){.old = old, .text = value};
    return mdp_ok();
}

/* By place in the text; insertions at the same place stay in their order. */
static void sort_edits(edit *edits, int n_edit) {
    for (int i = 1; i < n_edit; i++) {
        edit one = edits[i];
        int j = i;
        for (; j > 0 && edits[j - 1].old.begin > one.old.begin; j--) edits[j] = edits[j - 1];
        edits[j] = one;
    }
}

/* Where the object called `name` begins ("a.b": b within a); the whole where there is none. */
static int64_t find_scope(const char *text, const char *name) {
    int64_t from = 0;
    while (name != NULL) {
        size_t n = strcspn(name, ".");
        char part[64];
        span object;
        (void)snprintf(part, sizeof part, "%.*s", (int)n, name);
        if (!find_member(text, from, part, &object) || text[object.begin] != '{') return 0;
        from = object.begin;
        name = name[n] == '.' ? name + n + 1 : NULL;
    }
    return from;
}

static mdp_status make_edits(const mdp_model *model, const mdp_config_change *change, edit edits[MAX_EDIT],
                             int *n_edit) {
    const char *text = model->catalogue->config_text;
    int64_t from = find_scope(text, model->family->scope);
    MDP_TRY(set_key(text, from, &model->family->n_expert, change->n_expert, edits, n_edit));
    if (change->top_k > 0) MDP_TRY(set_key(text, from, &model->family->top_k, change->top_k, edits, n_edit));
    /* The key is not believed: checkpoints are published without the layers that it counts. */
    if (change->without_extra && (model->n_extra > 0 || has_key(text, from, &model->family->n_extra)))
        MDP_TRY(set_key(text, from, &model->family->n_extra, 0, edits, n_edit));
    MDP_TRY(set_layers(model, text, from, change, edits, n_edit));
    sort_edits(edits, *n_edit);
    return mdp_ok();
}

/* The text with ascending edits carried out. */
static mdp_status apply_edits(const mdp_catalogue *catalogue, const edit *edits, int n_edit, char **out,
                              int64_t *n_byte) {
    int64_t size = catalogue->config_byte;
    for (int i = 0; i < n_edit; i++) size += (int64_t)strlen(edits[i].text) - (edits[i].old.end - edits[i].old.begin);
    char *text;
    MDP_TRY(MDP_ALLOC(&text, size + 1, "the new config.json"));
    int64_t from = 0, to = 0;
    for (int i = 0; i < n_edit; i++) {
        int64_t n_kept = edits[i].old.begin - from, n_new = (int64_t)strlen(edits[i].text);
        memcpy(text + to, catalogue->config_text + from, (size_t)n_kept);
        memcpy(text + to + n_kept, edits[i].text, (size_t)n_new);
        to += n_kept + n_new;
        from = edits[i].old.end;
    }
    memcpy(text + to, catalogue->config_text + from, (size_t)(catalogue->config_byte - from));
    text[size] = '\0';
    *out = text;
    *n_byte = size;
    return mdp_ok();
}

mdp_status mdp_model_patch_config(const mdp_model *model, const mdp_config_change *change, char **out,
                                  int64_t *n_byte) {
    edit edits[MAX_EDIT] = {{{0, 0}, NULL}};
    int n_edit = 0;
    mdp_status status = make_edits(model, change, edits, &n_edit);
    if (status.code == MDP_OK) status = apply_edits(model->catalogue, edits, n_edit, out, n_byte);
    for (int i = 0; i < MAX_EDIT; i++) mdp_free(edits[i].text);
    return status;
}
