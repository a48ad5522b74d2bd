/* show.c - texts of other people before people and shells see them.
 *
 * A name comes from a file, a folder or a command line, and may hold anything. Plain is what is UTF-8 without control
 * characters (those of ASCII, DEL, U+0080 to U+009F), line separators (U+2028, U+2029) and marks that turn the
 * direction of writing (U+202A to U+202E, U+2066 to U+2069): such a text can move no cursor and hide no letter. All
 * else is shown as \u001b (which JSON reads as what it is), bytes that are no UTF-8 as \xff. Refuses nothing but
 * names. */
#include "mdp/base.h"

#include <string.h>

/* Bytes of the UTF-8 character at `at` and its number; 0: it is none, or not the shortest form of one. */
static int read_character(const unsigned char *at, uint32_t *out) {
    static const uint32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
    int n = at[0] < 0x80 ? 1 : at[0] >> 5 == 0x6 ? 2 : at[0] >> 4 == 0xe ? 3 : at[0] >> 3 == 0x1e ? 4 : 0;
    if (n == 0) return 0;
    uint32_t value = n == 1 ? at[0] : at[0] & (0x7fu >> n);
    for (int i = 1; i < n; i++) {
        if (at[i] >> 6 != 0x2) return 0; /* the 0 byte at the end, too */
        value = value << 6 | (at[i] & 0x3fu);
    }
    *out = value;
    bool surrogate = value >= 0xd800 && value < 0xe000;
    return value < least[n] || value > 0x10ffff || surrogate ? 0 : n;
}

static bool is_plain(uint32_t value) {
    if (value < 0x20 || (value >= 0x7f && value < 0xa0)) return false;
    return !(value >= 0x2028 && value <= 0x202e) && !(value >= 0x2066 && value <= 0x2069);
}

bool mdp_text_is_plain(const char *text) {
    const unsigned char *at = (const unsigned char *)text;
    while (*at != '\0') {
        uint32_t value = 0;
        int n = read_character(at, &value);
        if (n == 0 || !is_plain(value)) return false;
        at += n;
    }
    return true;
}

/* The character at `at` as it is shown; returns its bytes. */
static int show_character(const unsigned char *at, char out[8]) {
    uint32_t value = 0;
    int n = read_character(at, &value);
    if (n == 0)
        (void)snprintf(out, 8, "\\x%02x", (unsigned)*at);
    else if (!is_plain(value))
        (void)snprintf(out, 8, "\\u%04x", (unsigned)value);
    else
        (void)snprintf(out, 8, "%.*s", n, (const char *)at);
    return n == 0 ? 1 : n;
}

char *mdp_text_show(char *out, size_t n_byte, const char *text) {
    const unsigned char *at = (const unsigned char *)text;
    size_t used = 0;
    while (*at != '\0') {
        char one[8];
        at += show_character(at, one);
        if (used + strlen(one) >= n_byte) break;
        memcpy(out + used, one, strlen(one));
        used += strlen(one);
    }
    out[used] = '\0';
    return out;
}

mdp_status mdp_name_check(const char *path, const char *what, const char *name) {
    if (mdp_text_is_plain(name)) return mdp_ok();
    return MDP_ERROR(MDP_BAD_INPUT,
                     "%s: the name of %s, '%s', is not UTF-8, or has control characters; give it another name.", path,
                     what, name);
}

void mdp_print_text(const char *text) {
    const unsigned char *at = (const unsigned char *)text;
    while (*at != '\0') {
        char one[8] = "\n";
        at += *at == '\n' ? 1 : show_character(at, one);
        fputs(one, stdout);
    }
}

void mdp_print(const char *format, ...) {
    char text[2000], *whole = NULL;
    va_list arguments;
    va_start(arguments, format);
    int n = vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    if (n >= (int)sizeof text && MDP_ALLOC(&whole, n + 1, "a line to print").code == MDP_OK) {
        va_start(arguments, format);
        (void)vsnprintf(whole, (size_t)n + 1, format, arguments);
        va_end(arguments);
    }
    mdp_print_text(whole ? whole : text);
    mdp_free(whole);
}

/* ---- for shells ---------------------------------------------------------------------------------------------- */

/* 'it'\''s': nothing is special between quotes but the quote itself. */
static size_t quote(const char *word, char *out) {
    size_t used = 0;
    out[used++] = '\'';
    for (; *word != '\0'; word++) {
        if (*word == '\'') {
            memcpy(out + used, "'\\''", 4);
            used += 4;
        } else {
            out[used++] = *word;
        }
    }
    out[used++] = '\'';
    return used;
}

static bool is_bare(const char *word) {
    static const char safe[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-./:,+@%";
    return *word != '\0' && word[strspn(word, safe)] == '\0';
}

mdp_status mdp_shell_line(int n_word, const char *const *words, char **out) {
    size_t room = 1, used = 0;
    for (int i = 0; i < n_word; i++) room += 4 * strlen(words[i]) + 3;
    MDP_TRY(MDP_ALLOC(out, (mdp_count_t)room, "a command line"));
    for (int i = 0; i < n_word; i++) {
        if (i > 0) (*out)[used++] = ' ';
        if (is_bare(words[i])) {
            memcpy(*out + used, words[i], strlen(words[i]));
            used += strlen(words[i]);
        } else {
            used += quote(words[i], *out + used);
        }
    }
    (*out)[used] = '\0';
    return mdp_ok();
}
