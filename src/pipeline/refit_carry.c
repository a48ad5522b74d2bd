/* refit_carry.c - what stands in plan.h5 of a plan that is refitted, into the new one: all of its merged experts, of
 * which the fit then replaces down projections. */
#include "pipeline/refit_run.h"

#include <string.h>

#define CHUNK_BYTE ((int64_t)4 << 20)

static mdp_status copy_array(const mdp_refit_run *run, const mdp_tensor *from, int64_t to, void *buffer) {
    for (int64_t at = 0; at < from->n_byte; at += CHUNK_BYTE) {
        int64_t n = from->n_byte - at < CHUNK_BYTE ? from->n_byte - at : CHUNK_BYTE;
        MDP_TRY(mdp_reader_read(run->reader, from->file, from->offset + at, n, buffer));
        MDP_TRY(mdp_arrays_put(run->replaced->arrays, to, at, n, buffer));
    }
    return mdp_ok();
}

/* For each array of the layer's merged experts. `see`: with its tensor in the old file and its number in the new one.
 */
typedef mdp_status array_fn(const mdp_refit_run *run, const mdp_tensor *from, int64_t to, void *context);

static mdp_status walk(const mdp_refit_run *run, bool own, array_fn *see, void *context) {
    int64_t turn = 0;
    for (int64_t i = 0; i < run->before->n; i++) {
        const mdp_replaced_expert *old = &run->before->experts[i];
        if (old->layer != run->layer) continue;
        const mdp_replaced_expert *new =
            &run->replaced->experts[mdp_replaced_find(run->replaced, old->layer, old->kept)];
        for (int part = 0; part < MDP_N_EXPERT_PART; part++) {
            if (old->array[part] < 0 || mdp_replaced_is_shared(old, (mdp_expert_part)part)) continue;
            if (own && turn++ % run->comm->size != run->comm->rank) continue;
            MDP_TRY(see(run, &run->before->arrays->tensors[old->array[part]], new->array[part], context));
        }
    }
    return mdp_ok();
}

static mdp_status copy_own(const mdp_refit_run *run) {
    void *buffer = NULL;
    MDP_TRY(mdp_alloc(&buffer, CHUNK_BYTE, 1, "what is carried over"));
    mdp_status status = walk(run, true, copy_array, buffer);
    mdp_free(buffer);
    return status;
}

static mdp_status compare(const mdp_refit_run *run, const mdp_tensor *from, int64_t to, void *context) {
    const char *found = run->replaced->arrays->digests[to].hex;
    (void)context;
    if (!from->digest || strcmp(from->digest, found) == 0) return mdp_ok();
    return MDP_ERROR(MDP_BAD_INPUT, "%s: '%s' has checksum %s, and the plan says %s; it is damaged.",
                     run->before->arrays->path, from->name, found, from->digest);
}

mdp_status mdp_refit_carry_all(mdp_refit_run *run) {
    int64_t first, n;
    if (!run->before) return mdp_ok();
    MDP_AGREE(run->comm, copy_own(run));
    mdp_replaced_arrays(run->replaced, run->layer, run->layer + 1, &first, &n);
    MDP_TRY(mdp_arrays_settle_all(run->comm, run->replaced->arrays, first, n));
    return mdp_agree_all(run->comm, walk(run, false, compare, NULL));
}
