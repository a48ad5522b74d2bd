/* patch_config.c - other numbers of experts in config.json, all other bytes kept.
 *
 * The text has been parsed before (mdp_model_bind), so this scanner only has to find where the members of the outermost
 * object lie: it steps over texts and nested values and does not judge them. */
#include "model/config.h"
#include "model/json_text.h"
#include "model/renumber.h"

#include <string.h>

enum { MAX_SPELLING = 2, MAX_EDIT = 5 * MAX_SPELLING + 1 };

/* Set a key within an object ("ffn_config.moe_top_k"); what is not there is inserted. */
static mdp_status set_inner_key(const char *text, int64_t from, const char *name, const char *dot, const char *value,
                                mdp_edit edits[MAX_EDIT], int *n_edit) {
    char outer[64];
    mdp_span object, old;
    mdp_edit *next = &edits[(*n_edit)++];
    (void)snprintf(outer, sizeof outer, "%.*s", (int)(dot - name), name);
    if (!mdp_json_find_member(text, from, outer, &object) || text[object.begin] != '{') {
        int64_t brace = mdp_json_skip_space(text, from);
        next->old.begin = next->old.end = brace + 1;
        return mdp_format(&next->text, "\"%s\": {\"%s\": %s}, ", outer, dot + 1, value);
    }
    if (!mdp_json_find_member(text, object.begin, dot + 1, &old)) {
        return mdp_json_make_insertion(text, object.begin, dot + 1, value, next);
    }
    next->old = old;
    return mdp_copy_text(&next->text, value);
}

/* Set every spelling of a key that is there, or insert the first. */
static mdp_status set_key(const char *text, int64_t from, const mdp_int_key *key, int64_t number,
                          mdp_edit edits[MAX_EDIT], int *n_edit) {
    char value[32];
    (void)snprintf(value, sizeof value, "%lld", (long long)number);
    const char *names[MAX_SPELLING] = {key->name, key->other};
    int n_before = *n_edit;
    const char *dot = key->name == NULL ? NULL : strchr(key->name, '.');
    if (dot != NULL) return set_inner_key(text, from, key->name, dot, value, edits, n_edit);
    mdp_span old;
    for (int i = 0; i < MAX_SPELLING; i++) {
        if (names[i] == NULL || !mdp_json_find_member(text, from, names[i], &old)) continue;
        edits[*n_edit].old = old;
        MDP_TRY(mdp_copy_text(&edits[*n_edit].text, value));
        (*n_edit)++;
    }
    if (*n_edit > n_before) return mdp_ok();
    MDP_TRY(mdp_json_make_insertion(text, from, names[0], value, &edits[*n_edit]));
    (*n_edit)++;
    return mdp_ok();
}

static bool has_key(const char *text, int64_t from, const mdp_int_key *key) {
    mdp_span at;
    return (key->name != NULL && mdp_json_find_member(text, from, key->name, &at)) ||
           (key->other != NULL && mdp_json_find_member(text, from, key->other, &at));
}

/* How the text spells a key that it has. */
static const char *spelling(const char *text, int64_t from, const mdp_int_key *key) {
    mdp_span at;
    return key->other != NULL && !mdp_json_find_member(text, from, key->name, &at) &&
                   mdp_json_find_member(text, from, key->other, &at)
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
                             mdp_edit edits[MAX_EDIT], int *n_edit) {
    char *value = NULL;
    mdp_span old;
    bool known = mdp_json_find_member(text, from, MDP_PER_LAYER, &old);
    if (!known && !change->list_layers) return mdp_ok();
    MDP_TRY(list_layers(change, model->n_layer, spelling(text, from, &model->family->n_expert), &value));
    mdp_edit *next = &edits[(*n_edit)++];
    if (!known) {
        mdp_status status = mdp_json_make_insertion(text, from, MDP_PER_LAYER, value, next);
        mdp_free(value);
        return status;
    }
    *next = (mdp_edit){.old = old, .text = value};
    return mdp_ok();
}

/* Where the object called `name` begins ("a.b": b within a); the whole where there is none. */
static int64_t find_scope(const char *text, const char *name) {
    int64_t from = 0;
    while (name != NULL) {
        size_t n = strcspn(name, ".");
        char part[64];
        mdp_span object;
        (void)snprintf(part, sizeof part, "%.*s", (int)n, name);
        if (!mdp_json_find_member(text, from, part, &object) || text[object.begin] != '{') return 0;
        from = object.begin;
        name = name[n] == '.' ? name + n + 1 : NULL;
    }
    return from;
}

/* Another width of experts. Where that of the shared one is so many times it, so many more. */
static mdp_status set_width(const mdp_model *model, const char *text, int64_t from, int64_t d_ff,
                            mdp_edit edits[MAX_EDIT], int *n_edit) {
    const mdp_moe *moe = NULL;
    for (int64_t l = 0; l < model->n_layer && moe == NULL; l++)
        if (model->layers[l].is_moe) moe = &model->layers[l].moe;
    if (d_ff == 0 || moe == NULL) return mdp_ok();
    MDP_TRY(set_key(text, from, &model->family->d_ff, d_ff, edits, n_edit));
    if (model->family->n_shared.name == NULL || moe->shared_ff == 0) return mdp_ok();
    if (moe->shared_ff % d_ff == 0)
        return set_key(text, from, &model->family->n_shared, moe->shared_ff / d_ff, edits, n_edit);
    return MDP_ERROR(MDP_USAGE,
                     "experts of %lld neurons: %s says the shared expert's %lld as a multiple of them; keep a number "
                     "that divides it.",
                     (long long)d_ff, model->family->n_shared.name, (long long)moe->shared_ff);
}

static mdp_status make_edits(const mdp_model *model, const mdp_config_change *change, mdp_edit edits[MAX_EDIT],
                             int *n_edit) {
    const char *text = model->catalogue->config_text;
    int64_t from = find_scope(text, model->family->scope);
    MDP_TRY(set_key(text, from, &model->family->n_expert, change->n_expert, edits, n_edit));
    if (change->top_k > 0) MDP_TRY(set_key(text, from, &model->family->top_k, change->top_k, edits, n_edit));
    MDP_TRY(set_width(model, text, from, change->d_ff, edits, n_edit));
    /* The key is not believed: checkpoints are published without the layers that it counts. */
    if (change->without_extra && (model->n_extra > 0 || has_key(text, from, &model->family->n_extra)))
        MDP_TRY(set_key(text, from, &model->family->n_extra, 0, edits, n_edit));
    MDP_TRY(set_layers(model, text, from, change, edits, n_edit));
    mdp_edits_sort(edits, *n_edit);
    return mdp_ok();
}

mdp_status mdp_model_patch_config(const mdp_model *model, const mdp_config_change *change, char **out,
                                  int64_t *n_byte) {
    mdp_edit edits[MAX_EDIT] = {{{0, 0}, NULL}};
    int n_edit = 0;
    mdp_status status = make_edits(model, change, edits, &n_edit);
    const mdp_catalogue *catalogue = model->catalogue;
    *out = NULL;
    if (status.code == MDP_OK)
        status = mdp_edits_apply(catalogue->config_text, catalogue->config_byte, edits, n_edit, out, n_byte);
    if (status.code == MDP_OK && change->numbering)
        status = mdp_renumber_config(change->numbering, catalogue->path, out, n_byte);
    if (status.code != MDP_OK) {
        mdp_free(*out);
        *out = NULL;
    }
    for (int i = 0; i < MAX_EDIT; i++) mdp_free(edits[i].text);
    return status;
}
