/* json_text.c - see json_text.h. The text is valid JSON, so that these only have to find where its parts lie: they step
 * over texts and nested values and do not judge them. */
#include "model/json_text.h"

#include <string.h>

int64_t mdp_json_skip_space(const char *text, int64_t at) {
    while (text[at] == ' ' || text[at] == '\t' || text[at] == '\n' || text[at] == '\r') at++;
    return at;
}

int64_t mdp_json_skip_text(const char *text, int64_t at) {
    for (at++; text[at] != '"' && text[at] != '\0'; at++) {
        if (text[at] == '\\' && text[at + 1] != '\0') at++;
    }
    return text[at] == '"' ? at + 1 : at;
}

int64_t mdp_json_skip_value(const char *text, int64_t at) {
    int64_t depth = 0;
    while (text[at] != '\0') {
        char c = text[at];
        if (c == '"') {
            at = mdp_json_skip_text(text, at);
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

mdp_status mdp_json_read_text(const char *text, mdp_span span, char **out) {
    json_t *value = json_loadb(text + span.begin, (size_t)(span.end - span.begin), JSON_DECODE_ANY, NULL);
    const char *content = json_string_value(value);
    mdp_status status = content ? mdp_copy_text(out, content) : MDP_ERROR(MDP_INTERNAL, "a text of JSON is none.");
    json_decref(value);
    return status;
}

bool mdp_json_next_member(const char *text, int64_t *at, mdp_span *key, mdp_span *value) {
    int64_t to = mdp_json_skip_space(text, *at);
    if (text[to] != '{' && text[to] != ',') return false;
    to = mdp_json_skip_space(text, to + 1);
    if (text[to] != '"') return false;
    *key = (mdp_span){.begin = to, .end = mdp_json_skip_text(text, to)};
    to = mdp_json_skip_space(text, key->end);
    if (text[to] != ':') return false;
    value->begin = mdp_json_skip_space(text, to + 1);
    value->end = mdp_json_skip_value(text, value->begin);
    *at = value->end;
    return true;
}

bool mdp_json_is_key(const char *text, mdp_span key, const char *name) {
    json_t *value = json_loadb(text + key.begin, (size_t)(key.end - key.begin), JSON_DECODE_ANY, NULL);
    bool same = value != NULL && json_is_string(value) && strcmp(json_string_value(value), name) == 0;
    json_decref(value);
    return same;
}

bool mdp_json_find_member(const char *text, int64_t from, const char *name, mdp_span *value) {
    mdp_span key;
    if (text[mdp_json_skip_space(text, from)] != '{') return false;
    while (mdp_json_next_member(text, &from, &key, value))
        if (mdp_json_is_key(text, key, name)) return true;
    return false;
}

mdp_status mdp_json_make_insertion(const char *text, int64_t from, const char *name, const char *value, mdp_edit *out) {
    int64_t brace = mdp_json_skip_space(text, from);
    int64_t first = mdp_json_skip_space(text, brace + 1);
    out->old.begin = out->old.end = brace + 1;
    return mdp_format(&out->text, "%.*s\"%s\": %s%s", (int)(first - brace - 1), text + brace + 1, name, value,
                      text[first] == '}' ? "" : ",");
}

void mdp_edits_sort(mdp_edit *edits, int64_t n) {
    for (int64_t i = 1; i < n; i++) {
        mdp_edit one = edits[i];
        int64_t j = i;
        for (; j > 0 && edits[j - 1].old.begin > one.old.begin; j--) edits[j] = edits[j - 1];
        edits[j] = one;
    }
}

mdp_status mdp_edits_apply(const char *text, int64_t n_byte, const mdp_edit *edits, int64_t n, char **out,
                           int64_t *n_out) {
    int64_t size = n_byte, from = 0, to = 0;
    for (int64_t i = 0; i < n; i++) size += (int64_t)strlen(edits[i].text) - (edits[i].old.end - edits[i].old.begin);
    char *made;
    MDP_TRY(MDP_ALLOC(&made, size + 1, "the new config.json"));
    for (int64_t i = 0; i < n; i++) {
        int64_t n_kept = edits[i].old.begin - from, n_new = (int64_t)strlen(edits[i].text);
        memcpy(made + to, text + from, (size_t)n_kept);
        memcpy(made + to + n_kept, edits[i].text, (size_t)n_new);
        to += n_kept + n_new;
        from = edits[i].old.end;
    }
    memcpy(made + to, text + from, (size_t)(n_byte - from));
    *out = made;
    *n_out = size;
    return mdp_ok();
}
