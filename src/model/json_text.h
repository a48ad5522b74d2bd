/* json_text.h - changing a text of JSON that has been parsed before, all other bytes kept: steps over its parts, and
 * edits.
 */
#ifndef MDP_MODEL_JSON_TEXT_H
#define MDP_MODEL_JSON_TEXT_H

#include "mdp/base.h"

/* A stretch of a text, [begin, end). */
typedef struct mdp_span {
    int64_t begin, end;
} mdp_span;

/* One replacement or insertion. */
typedef struct mdp_edit {
    mdp_span old;
    char *text; /* owned */
} mdp_edit;

/* First byte at or after `at` that is no white space. */
int64_t mdp_json_skip_space(const char *text, int64_t at);
/* First byte after the text that opens at `at`, and after the value that begins there. */
int64_t mdp_json_skip_text(const char *text, int64_t at);
int64_t mdp_json_skip_value(const char *text, int64_t at);
/* What the text in quotes at `span` says, escapes undone; new. */
mdp_status mdp_json_read_text(const char *text, mdp_span span, char **out);
/* The next member of an object: *at is where the object begins, then where the member before has ended, moved on.
 * false: there is none. */
bool mdp_json_next_member(const char *text, int64_t *at, mdp_span *key, mdp_span *value);
/* Is the key (with its quotes) the one called `name`? It may be spelled with escapes. */
bool mdp_json_is_key(const char *text, mdp_span key, const char *name);
/* The value of the member `name` of the object at `from`; false when there is none. */
bool mdp_json_find_member(const char *text, int64_t from, const char *name, mdp_span *value);
/* A new member right after the brace of the object at `from`, spaced as the first member is. out->text is new. */
mdp_status mdp_json_make_insertion(const char *text, int64_t from, const char *name, const char *value, mdp_edit *out);
/* By place in the text; insertions at the same place stay in their order. */
void mdp_edits_sort(mdp_edit *edits, int64_t n);
/* The text [n_byte] with ascending edits [n] carried out; new, with a 0 byte added. */
mdp_status mdp_edits_apply(const char *text, int64_t n_byte, const mdp_edit *edits, int64_t n, char **out,
                           int64_t *n_out);

#endif
