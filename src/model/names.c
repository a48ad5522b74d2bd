/* names.c - tensor name patterns: {layer} and {expert} against numbers, both ways. */
#include "model/names.h"

#include <string.h>

static const char LAYER[] = "{layer}", EXPERT[] = "{expert}";

static bool begins(const char *text, const char *word) {
    return strncmp(text, word, strlen(word)) == 0;
}

void mdp_name_fill(const char *pattern, int64_t layer, int64_t expert, char out[MDP_NAME_BYTES]) {
    size_t used = 0;
    while (*pattern != '\0' && used < MDP_NAME_BYTES - 24) {
        bool is_layer = layer >= 0 && begins(pattern, LAYER), is_expert = expert >= 0 && begins(pattern, EXPERT);
        if (is_layer || is_expert) {
            used += (size_t)snprintf(out + used, MDP_NAME_BYTES - used, "%lld", (long long)(is_layer ? layer : expert));
            pattern += is_layer ? sizeof LAYER - 1 : sizeof EXPERT - 1;
        } else {
            out[used++] = *pattern++;
        }
    }
    out[used] = '\0';
}

bool mdp_name_number(const char *text, int64_t *number, const char **rest) {
    int64_t value = 0;
    const char *at = text;
    for (; *at >= '0' && *at <= '9'; at++) {
        value = 10 * value + (*at - '0');
        if (value > INT32_MAX) return false;
    }
    *number = value;
    *rest = at;
    return at != text;
}

bool mdp_name_begins(const char *name, const char *pattern, int64_t *layer, const char **rest) {
    while (*pattern != '\0') {
        if (begins(pattern, LAYER)) {
            if (!mdp_name_number(name, layer, &name)) return false;
            pattern += sizeof LAYER - 1;
        } else if (*name++ != *pattern++) {
            return false;
        }
    }
    *rest = name;
    return true;
}
