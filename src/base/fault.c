/* fault.c - failures on request, for tests.
 *
 * Owns process-wide state, in debug builds only (MDP_DEBUG_HOOKS): a count of fallible operations, and which of them
 * are to fail in which way. In release builds every operation is allowed and nothing is counted. */
#include "mdp/base.h"

#include <errno.h>
#include <string.h>

static const struct {
    const char *name;
    unsigned kind;
} kind_names[] = {{"io", MDP_FAULT_IO},
                  {"alloc", MDP_FAULT_ALLOC},
                  {"short", MDP_FAULT_SHORT},
                  {"enospc", MDP_FAULT_ENOSPC},
                  {"eio", MDP_FAULT_EIO}};
#define N_KIND (sizeof kind_names / sizeof kind_names[0])

mdp_status mdp_fault_parse(const char *text, unsigned *kinds) {
    *kinds = 0;
    for (const char *word = text;; word++) {
        size_t length = strcspn(word, ","), i = 0;
        while (i < N_KIND && (strlen(kind_names[i].name) != length || strncmp(kind_names[i].name, word, length) != 0))
            i++;
        if (i == N_KIND)
            return MDP_ERROR(MDP_USAGE, "'%.*s' is no kind of fault; there are io, alloc, short, enospc, eio.",
                             (int)length, word);
        *kinds |= kind_names[i].kind;
        word += length;
        if (*word == '\0') return mdp_ok();
    }
}

#ifdef MDP_DEBUG_HOOKS

#include <inttypes.h>
#include <stdatomic.h>

static _Atomic int64_t fault_every;
static _Atomic int64_t fault_shift;
static _Atomic int64_t fault_counter;
static atomic_uint fault_kinds = MDP_FAULT_DEFAULT;

void mdp_fault_configure(int64_t every, uint64_t seed) {
    atomic_store(&fault_every, 0); /* no operation may see half of a new setting */
    atomic_store(&fault_counter, 0);
    atomic_store(&fault_shift, every > 0 ? (int64_t)(seed % (uint64_t)every) : 0);
    atomic_store(&fault_every, every > 0 ? every : 0);
}

void mdp_fault_choose(unsigned kinds) {
    atomic_store(&fault_kinds, kinds);
}

int64_t mdp_fault_count(void) {
    return atomic_load(&fault_counter);
}

/* Count one operation of the enabled kinds; its number when it is to fail, else 0. */
static int64_t take_turn(unsigned kinds) {
    if (!(atomic_load(&fault_kinds) & kinds)) return 0;
    int64_t n = atomic_fetch_add(&fault_counter, 1) + 1;
    int64_t every = atomic_load(&fault_every);
    return every > 0 && (n + atomic_load(&fault_shift)) % every == 0 ? n : 0;
}

mdp_status mdp_fault(mdp_code code, const char *what) {
    bool alloc = code == MDP_EXHAUSTED || code == MDP_INTERNAL;
    int64_t n = take_turn(alloc ? MDP_FAULT_ALLOC : MDP_FAULT_IO);
    if (n == 0) return mdp_ok();
    return MDP_ERROR(code, "fault on request: operation %" PRId64 " (%s) was made to fail (--fault-every).", n, what);
}

int mdp_fault_call(bool writes, bool transfers) {
    static _Thread_local bool interrupted; /* by the call before */
    unsigned kinds = MDP_FAULT_EIO | MDP_FAULT_SHORT | (writes ? MDP_FAULT_ENOSPC : 0u);
    int64_t n = take_turn(kinds);
    bool again = interrupted;
    interrupted = false;
    if (n == 0) return 0;
    /* Of the kinds wanted, one by the operation's number. */
    kinds &= atomic_load(&fault_kinds);
    unsigned choice[3] = {0}, n_choice = 0;
    for (unsigned kind = MDP_FAULT_SHORT; kind <= MDP_FAULT_EIO; kind *= 2)
        if (kinds & kind) choice[n_choice++] = kind;
    uint64_t bits = mdp_random_bits((uint64_t)atomic_load(&fault_shift), 0, (uint64_t)n);
    unsigned kind = n_choice == 0 ? 0 : choice[bits % n_choice];
    if (kind == MDP_FAULT_EIO) return EIO;
    if (kind == MDP_FAULT_ENOSPC) return ENOSPC;
    if (kind != MDP_FAULT_SHORT) return 0;
    if (transfers && (again || bits >> 32 & 1)) return MDP_FAULT_PART;
    interrupted = !again;
    return again ? 0 : EINTR;
}

#else

void mdp_fault_configure(int64_t every, uint64_t seed) {
    (void)every;
    (void)seed;
}

void mdp_fault_choose(unsigned kinds) {
    (void)kinds;
}

int64_t mdp_fault_count(void) {
    return 0;
}

mdp_status mdp_fault(mdp_code code, const char *what) {
    (void)code;
    (void)what;
    return mdp_ok();
}

int mdp_fault_call(bool writes, bool transfers) {
    (void)writes;
    (void)transfers;
    return 0;
}

#endif
