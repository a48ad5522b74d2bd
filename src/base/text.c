/* text.c - sizes, counts and times as people write and read them, the nearest name, and the clock. */
#include "mdp/base.h"

#include <ctype.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define MAX_NAME 64          /* longest name that is compared by edit distance */
#define MAX_EDIT 3           /* more edits than this are no likely slip of the finger */
#define MAX_FRACTION_DIGIT 6 /* of a size: 10^6 * 2^40 fits in 64 bits */

/* The factor of a unit (empty, B, k, kB, Ki, KiB ... T), or 0 when `text` is not one. */
static int64_t unit_factor(const char *text) {
    static const char letters[] = "kmgt";
    int64_t factor = 1;
    const char *letter = text[0] ? strchr(letters, tolower((unsigned char)text[0])) : NULL;
    if (letter) {
        int64_t base = text[1] == 'i' ? 1024 : 1000;
        for (const char *l = letters; l <= letter; l++) factor *= base;
        text += base == 1024 ? 2 : 1;
    }
    if (*text == 'B' || *text == 'b') text++;
    return *text ? 0 : factor;
}

bool mdp_parse_size(const char *text, int64_t *out) {
    if (!isdigit((unsigned char)*text)) return false;
    int64_t whole = 0, fraction = 0, scale = 1;
    for (; isdigit((unsigned char)*text); text++)
        if (!mdp_multiply(whole, 10, &whole) || !mdp_add(whole, *text - '0', &whole)) return false;
    bool has_fraction = *text == '.';
    if (has_fraction) {
        text++;
        int n_digit = 0;
        for (; isdigit((unsigned char)*text); text++, n_digit++) {
            if (n_digit == MAX_FRACTION_DIGIT) return false;
            fraction = fraction * 10 + (*text - '0');
            scale *= 10;
        }
        if (n_digit == 0) return false;
    }
    int64_t factor = unit_factor(text), value;
    if (factor == 0 || (has_fraction && factor == 1)) return false; /* half a byte is a mistake */
    if (!mdp_multiply(whole, factor, &value) || !mdp_add(value, fraction * factor / scale, &value)) return false;
    *out = value;
    return true;
}

bool mdp_parse_positive(const char *text, const char *end, double *out) {
    char *stop = NULL;
    *out = strtod(text, &stop);
    return stop == end && stop != text && *out >= 1e-12 && *out <= 1e12;
}

void mdp_next_name(const char **at, char *name, const char **rest, const char **end) {
    const char *from = *at;
    for (; *from && *from != ',' && *from != ':'; from++) {
        if (*from == '\\' && from[1] != '\0' && strchr(",:\\", from[1])) from++;
        *name++ = *from;
    }
    *name = '\0';
    *rest = *from == ':' ? from + 1 : NULL;
    *end = from + strcspn(from, ",");
    *at = **end == ',' ? *end + 1 : NULL;
}

bool mdp_parse_seconds(const char *text, double *out) {
    static const struct {
        const char *name;
        double factor;
    } units[] = {{"", 1.0}, {"s", 1.0}, {"min", 60.0}, {"h", 3600.0}};
    char *end = NULL;
    if (!isdigit((unsigned char)*text)) return false;
    double value = strtod(text, &end);
    for (size_t i = 0; i < sizeof units / sizeof units[0]; i++) {
        if (strcmp(end, units[i].name) != 0) continue;
        *out = value * units[i].factor;
        return isfinite(*out);
    }
    return false;
}

char *mdp_print_bytes(char out[32], int64_t n_byte) {
    static const char *const unit[] = {"B", "kB", "MB", "GB", "TB", "PB", "EB"};
    double value = (double)n_byte;
    int u = 0;
    while (u < 6 && fabs(value) >= (u == 0 ? 1000.0 : 999.95)) {
        value /= 1000;
        u++;
    }
    snprintf(out, 32, u == 0 ? "%.0f %s" : "%.1f %s", value, unit[u]);
    return out;
}

char *mdp_print_count(char out[32], int64_t n) {
    char digit[24];
    uint64_t size = n < 0 ? 0 - (uint64_t)n : (uint64_t)n;
    int n_digit = snprintf(digit, sizeof digit, "%llu", (unsigned long long)size);
    char *to = out;
    if (n < 0) *to++ = '-';
    for (int i = 0; i < n_digit; i++) {
        if (i > 0 && (n_digit - i) % 3 == 0) *to++ = ',';
        *to++ = digit[i];
    }
    *to = '\0';
    return out;
}

char *mdp_print_seconds(char out[32], double seconds) {
    if (!isfinite(seconds) || seconds < 0 || seconds > 1e12) {
        snprintf(out, 32, "unknown");
    } else if (seconds < 59.95) {
        snprintf(out, 32, "%.1f s", seconds);
    } else if (seconds < 3599.5) {
        long long whole = llround(seconds);
        snprintf(out, 32, "%lld min %lld s", whole / 60, whole % 60);
    } else {
        long long minute = llround(seconds / 60);
        snprintf(out, 32, "%lld h %lld min", minute / 60, minute % 60);
    }
    return out;
}

/* Levenshtein distance of two names, one row at a time. */
static int edit_distance(const char *a, const char *b) {
    int n_a = (int)strlen(a), n_b = (int)strlen(b), row[MAX_NAME + 1];
    for (int j = 0; j <= n_b; j++) row[j] = j;
    for (int i = 1; i <= n_a; i++) {
        int diagonal = row[0];
        row[0] = i;
        for (int j = 1; j <= n_b; j++) {
            int best = diagonal + (a[i - 1] != b[j - 1]);
            diagonal = row[j];
            if (row[j] + 1 < best) best = row[j] + 1;
            if (row[j - 1] + 1 < best) best = row[j - 1] + 1;
            row[j] = best;
        }
    }
    return row[n_b];
}

const char *mdp_nearest(const char *text, const char *const *names, int n) {
    if (strlen(text) > MAX_NAME) return NULL;
    const char *nearest = NULL;
    int least = MAX_EDIT + 1;
    for (int i = 0; i < n; i++) {
        if (strlen(names[i]) > MAX_NAME) continue;
        int distance = edit_distance(text, names[i]);
        /* A name all of whose letters would change is not near, however short it is. */
        if (distance < least && distance < (int)strlen(names[i])) {
            least = distance;
            nearest = names[i];
        }
    }
    return nearest;
}

double mdp_seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}
