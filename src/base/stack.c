/* stack.c - memory that is given back in the reverse order of taking, and kept for the next time.
 *
 * The steps of a layer take and give back the same large buffers layer after layer; memory from the kernel would be
 * cleared and faulted in each time. So a stack learns how much it held at most, and from the next time that it is empty
 * keeps that much in one piece; what does not fit into it is allocated by itself. Contents are not cleared: with
 * assertions their beginning is filled with NaN, so that a test fails where somebody relies on zeros. Sanitizers watch
 * single allocations, so with them every buffer stays one. */
#include "mdp/base.h"

#include <string.h>

#define ALIGNMENT 64
#define FILLED_BYTE 65536 /* no more, so that memory is touched as without assertions */

struct mdp_stack {
    char *piece; /* [n_byte] */
    int64_t n_byte;
    mdp_mark top;
    int64_t most;  /* largest top.n_byte so far */
    void **single; /* [capacity] allocations of their own, the first top.n_single in use */
    int64_t capacity;
};

mdp_status mdp_stack_new(mdp_stack **out) {
    return MDP_ALLOC(out, 1, "a stack of buffers");
}

void mdp_stack_destroy(mdp_stack *stack) {
    if (!stack) return;
    mdp_stack_return(stack, (mdp_mark){0});
    mdp_free(stack->piece);
    mdp_free(stack->single);
    mdp_free(stack);
}

mdp_mark mdp_stack_mark(const mdp_stack *stack) {
    return stack->top;
}

void mdp_stack_return(mdp_stack *stack, mdp_mark mark) {
    while (stack->top.n_single > mark.n_single) mdp_free(stack->single[--stack->top.n_single]);
    stack->top = mark;
}

/* An empty stack keeps as much as it held at most. */
static mdp_status enlarge(mdp_stack *stack) {
    if (stack->top.n_byte > 0 || stack->n_byte >= stack->most || mdp_memory_is_watched()) return mdp_ok();
    mdp_free(stack->piece);
    stack->piece = NULL;
    stack->n_byte = 0;
    MDP_TRY(MDP_ALLOC(&stack->piece, stack->most, "the buffers of a layer"));
    stack->n_byte = stack->most;
    return mdp_ok();
}

static mdp_status take_single(mdp_stack *stack, int64_t n_byte, const char *what, char **out) {
    if (stack->top.n_single == stack->capacity) {
        int64_t capacity = stack->capacity > 0 ? 2 * stack->capacity : 32;
        MDP_TRY(MDP_GROW(&stack->single, stack->capacity, capacity, "a stack of buffers"));
        stack->capacity = capacity;
    }
    MDP_TRY(MDP_ALLOC(out, n_byte, what));
    stack->single[stack->top.n_single++] = *out;
    return mdp_ok();
}

mdp_status mdp_stack_take(mdp_stack *stack, void **out, mdp_count_t n, size_t size, const char *what) {
    char *memory = NULL;
    int64_t n_byte;
    memcpy(out, &memory, sizeof memory); /* as in mdp_alloc */
    if (!mdp_multiply(n, (int64_t)size, &n_byte) || !mdp_add(n_byte, ALIGNMENT - 1, &n_byte))
        return MDP_ERROR(MDP_EXHAUSTED, "cannot allocate %lld elements of %zu bytes for %s.", (long long)n, size, what);
    n_byte -= n_byte % ALIGNMENT;
    MDP_TRY(enlarge(stack));
    if (n_byte <= stack->n_byte - stack->top.in_piece) {
        memory = stack->piece + stack->top.in_piece;
        stack->top.in_piece += n_byte;
    } else {
        MDP_TRY(take_single(stack, n_byte, what, &memory));
    }
#ifndef NDEBUG
    memset(memory, 0xff, n_byte < FILLED_BYTE ? (size_t)n_byte : FILLED_BYTE);
#endif
    stack->top.n_byte += n_byte;
    if (stack->top.n_byte > stack->most) stack->most = stack->top.n_byte;
    memcpy(out, &memory, sizeof memory);
    return mdp_ok();
}
