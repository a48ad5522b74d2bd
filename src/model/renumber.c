/* renumber.c - experts that a text of JSON names by their numbers, as `ignore` and `modules_to_not_convert` of
 * quantization_config do: "model.layers.3.mlp.experts.7.down_proj".
 *
 * A name is a text or a key in which a number follows "experts". One that is a tensor's, or begins that of one, gets
 * the expert's new number, or goes with it: out of its list, or with its member. Any other (a pattern, a name of
 * another form) is refused, naming the key: nobody can tell what it should become. All other bytes stay. The text has
 * been parsed before. */
#include "model/renumber.h"
#include "model/json_text.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

#define WORD "experts"
#define MAX_PLACE 200 /* of a place such as "quantization_config.ignore", for sentences */

typedef struct scanner {
    const mdp_numbering *numbering;
    const char *path, *text;
    char place[MAX_PLACE];
    mdp_edit *edits; /* [n_edit] ascending; owned */
    int64_t n_edit, capacity;
} scanner;

/* Where a number follows "experts", whatever joins them in names and patterns ("experts.3", "experts\.3",
 * "experts[3]"); NULL: nowhere. */
static const char *find_number(const char *name) {
    for (const char *at = strstr(name, WORD); at; at = strstr(at, WORD)) {
        at += strlen(WORD);
        size_t n_joint = strspn(at, "./\\[(");
        if (n_joint > 0 && isdigit((unsigned char)at[n_joint])) return at + n_joint;
    }
    return NULL;
}

bool mdp_names_expert(const char *name) {
    return find_number(name) != NULL;
}

static mdp_status cannot_tell(const scanner *s, const char *name) {
    return MDP_ERROR(MDP_BAD_INPUT,
                     "%s: config.json: '%s' names experts by number ('%.200s') in a way that does not tell which they "
                     "are when experts "
                     "are numbered anew; name them as their tensors are named, or all of them by a pattern, or use "
                     "--pruned-route zero.",
                     s->path, s->place, name);
}

/* The new number of the expert that a name speaks of; -1: it goes. */
static mdp_status look_up(const scanner *s, const char *name, const char *number, mdp_expert_t *out) {
    char *end = NULL;
    long old = strtol(number, &end, 10);
    bool exact = number[-1] == '.' && (*end == '\0' || *end == '.') && old <= INT32_MAX && !find_number(end) &&
                 !strpbrk(name, "\"\\");
    if (exact && s->numbering->find(s->numbering->context, name, (mdp_expert_t)old, out)) return mdp_ok();
    return cannot_tell(s, name);
}

/* `text` is taken over. */
static mdp_status add_edit(scanner *s, int64_t begin, int64_t end, char *text) {
    mdp_status status = mdp_ok();
    if (s->n_edit == s->capacity) {
        int64_t capacity = s->capacity == 0 ? 64 : 2 * s->capacity;
        status = MDP_GROW(&s->edits, s->n_edit, capacity, "changes of config.json");
        if (status.code == MDP_OK) s->capacity = capacity;
    }
    if (status.code != MDP_OK) {
        mdp_free(text);
        return status;
    }
    s->edits[s->n_edit++] = (mdp_edit){.old = {begin, end}, .text = text};
    return status;
}

static mdp_status remove_span(scanner *s, int64_t begin, int64_t end) {
    char *nothing = NULL;
    MDP_TRY(mdp_copy_text(&nothing, ""));
    return add_edit(s, begin, end, nothing);
}

/* A name in quotes at `span`: changed where its expert has another number; *goes: with its expert. */
static mdp_status visit_decoded(scanner *s, mdp_span span, const char *name, bool *goes) {
    const char *number = find_number(name);
    mdp_expert_t becomes = -1;
    *goes = false;
    if (!number) return mdp_ok();
    MDP_TRY(look_up(s, name, number, &becomes));
    *goes = becomes < 0;
    if (*goes || becomes == strtol(number, NULL, 10)) return mdp_ok();
    char *text = NULL; /* a tensor's name: nothing in it is escaped */
    MDP_TRY(mdp_format(&text, "\"%.*s%d%s\"", (int)(number - name), name, (int)becomes,
                       number + strspn(number, "0123456789")));
    return add_edit(s, span.begin, span.end, text);
}

static mdp_status visit_name(scanner *s, mdp_span span, bool *goes) {
    char *name = NULL;
    MDP_TRY(mdp_json_read_text(s->text, span, &name));
    mdp_status status = visit_decoded(s, span, name, goes);
    mdp_free(name);
    return status;
}

static mdp_status visit_container(scanner *s, int64_t *at);

/* The value at *at, which is moved past it. *goes: it is a name and goes with its expert. */
static mdp_status visit_value(scanner *s, int64_t *at, bool *goes) {
    int64_t begin = *at;
    *goes = false;
    if (s->text[begin] == '{' || s->text[begin] == '[') return visit_container(s, at);
    *at = mdp_json_skip_value(s->text, begin);
    return s->text[begin] == '"' ? visit_name(s, (mdp_span){begin, *at}, goes) : mdp_ok();
}

/* The member at *at. A value that goes where a member must have one is for nobody to decide. */
static mdp_status visit_member(scanner *s, int64_t *at, bool *goes) {
    mdp_span key = {.begin = *at, .end = mdp_json_skip_text(s->text, *at)};
    size_t used = strlen(s->place);
    bool value_goes = false;
    (void)snprintf(s->place + used, MAX_PLACE - used, "%s%.*s", used > 0 ? "." : "", (int)(key.end - key.begin - 2),
                   s->text + key.begin + 1);
    mdp_status status = visit_name(s, key, goes);
    *at = mdp_json_skip_space(s->text, mdp_json_skip_space(s->text, key.end) + 1);
    int64_t begin = *at;
    if (status.code == MDP_OK && *goes)
        *at = mdp_json_skip_value(s->text, begin);
    else if (status.code == MDP_OK)
        status = visit_value(s, at, &value_goes);
    if (value_goes)
        status =
            MDP_ERROR(MDP_BAD_INPUT,
                      "%s: config.json: '%s' is the name of an expert that goes, and nothing else can stand there; "
                      "change or remove it.",
                      s->path, s->place);
    s->place[used] = '\0';
    return status;
}

/* An object or a list at *at, which is moved past it. What goes takes the comma before it along, or after it where
 * nothing before it stays. */
static mdp_status visit_container(scanner *s, int64_t *at) {
    bool object = s->text[*at] == '{', any = false;
    int64_t before = *at + 1; /* end of the entry before */
    *at = mdp_json_skip_space(s->text, before);
    while (s->text[*at] != '}' && s->text[*at] != ']') {
        int64_t begin = *at;
        bool goes = false;
        MDP_TRY(object ? visit_member(s, at, &goes) : visit_value(s, at, &goes));
        int64_t end = *at;
        *at = mdp_json_skip_space(s->text, end);
        bool last = s->text[*at] != ',';
        if (!last) *at = mdp_json_skip_space(s->text, *at + 1);
        if (goes) MDP_TRY(any ? remove_span(s, before, end) : remove_span(s, begin, last ? end : *at));
        any = any || !goes;
        before = end;
    }
    (*at)++;
    return mdp_ok();
}

mdp_status mdp_renumber_config(const mdp_numbering *numbering, const char *path, char **text, int64_t *n_byte) {
    scanner s = {.numbering = numbering, .path = path, .text = *text};
    int64_t at = mdp_json_skip_space(*text, 0);
    bool goes = false;
    char *made = NULL;
    mdp_status status = visit_value(&s, &at, &goes);
    if (status.code == MDP_OK && s.n_edit > 0)
        status = mdp_edits_apply(*text, *n_byte, s.edits, s.n_edit, &made, n_byte);
    for (int64_t i = 0; i < s.n_edit; i++) mdp_free(s.edits[i].text);
    mdp_free(s.edits);
    if (!made) return status;
    mdp_free(*text);
    *text = made;
    return status;
}
