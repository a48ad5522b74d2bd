/* fault.c - failures on request, for tests.
 *
 * Owns the one process-wide state of libmdp, and that in debug builds only (MDP_DEBUG_HOOKS): a count of fallible
 * operations and which of them are to fail. In release builds every operation is allowed and nothing is counted. */
#include "mdp/base.h"

#ifdef MDP_DEBUG_HOOKS

#include <inttypes.h>
#include <stdatomic.h>

static _Atomic int64_t fault_every;
static _Atomic int64_t fault_shift;
static _Atomic int64_t fault_counter;

void mdp_fault_configure(int64_t every, uint64_t seed) {
    atomic_store(&fault_every, 0); /* no operation may see half of a new setting */
    atomic_store(&fault_counter, 0);
    atomic_store(&fault_shift, every > 0 ? (int64_t)(seed % (uint64_t)every) : 0);
    atomic_store(&fault_every, every > 0 ? every : 0);
}

int64_t mdp_fault_count(void) {
    return atomic_load(&fault_counter);
}

mdp_status mdp_fault(mdp_code code, const char *what) {
    int64_t n = atomic_fetch_add(&fault_counter, 1) + 1;
    int64_t every = atomic_load(&fault_every);
    if (every <= 0 || (n + atomic_load(&fault_shift)) % every != 0) return mdp_ok();
    return MDP_ERROR(code, "fault on request: operation %" PRId64 " (%s) was made to fail (--fault-every).", n, what);
}

#else

void mdp_fault_configure(int64_t every, uint64_t seed) {
    (void)every;
    (void)seed;
}

int64_t mdp_fault_count(void) {
    return 0;
}

mdp_status mdp_fault(mdp_code code, const char *what) {
    (void)code;
    (void)what;
    return mdp_ok();
}

#endif
