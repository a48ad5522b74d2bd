/* output.c - a checkpoint to be written: its memory, its consistency, and what both writers need. */
#include "checkpoint/output.h"

#include "mdp/recast.h"

#include <string.h>
#include <sys/statvfs.h>

void mdp_write_cost_free(mdp_write_cost *cost) {
    mdp_free(cost->shares);
    cost->shares = NULL;
}

void mdp_output_destroy(mdp_output *output) {
    if (!output) return;
    for (int64_t i = 0; output->tensors && i < output->n_tensor; i++) {
        mdp_free(output->tensors[i].name);
        mdp_free(output->tensors[i].segments);
        mdp_free(output->tensors[i].stack);
    }
    mdp_free(output->tensors);
    mdp_free(output->recasts);
    mdp_free(output->config_text);
    mdp_free(output->plan_text);
    mdp_free(output->provenance_text);
    mdp_free(output);
}

/* ---- consistency --------------------------------------------------------------------------------------------- */

static mdp_status check_tensor(const mdp_output_tensor *tensor) {
    int64_t n_byte = 0, n_copied = 0;
    if (!mdp_dtype_bytes(tensor->type, tensor->n_dim, tensor->shape, &n_byte) || n_byte != tensor->n_byte)
        return MDP_ERROR(MDP_INTERNAL, "tensor %s of the result has %lld bytes, its shape and type make %lld.",
                         tensor->name, (long long)tensor->n_byte, (long long)n_byte);
    for (int64_t i = 0; i < tensor->n_segment; i++) {
        const mdp_segment *segment = &tensor->segments[i];
        int64_t end;
        n_copied += segment->n_byte;
        if (!segment->source) continue; /* filled */
        int64_t n_source = segment->recast ? mdp_recast_bytes(segment->recast) : segment->source->n_byte;
        if (segment->offset < 0 || !mdp_add(segment->offset, segment->n_byte, &end) || end > n_source)
            return MDP_ERROR(MDP_INTERNAL, "tensor %s of the result takes %lld bytes at %lld of %s, which has %lld.",
                             tensor->name, (long long)segment->n_byte, (long long)segment->offset,
                             segment->source->name, (long long)n_source);
    }
    if (n_copied != n_byte)
        return MDP_ERROR(MDP_INTERNAL, "tensor %s of the result has %lld bytes, its segments have %lld.", tensor->name,
                         (long long)n_byte, (long long)n_copied);
    return mdp_ok();
}

mdp_status mdp_output_check_tensors(const mdp_output *output) {
    for (int64_t i = 0; i < output->n_tensor; i++) {
        const mdp_output_tensor *tensor = &output->tensors[i];
        if (i > 0 && strcmp(output->tensors[i - 1].name, tensor->name) >= 0)
            return MDP_ERROR(MDP_INTERNAL, "tensor %s of the result follows %s; names must be unique and ascend.",
                             tensor->name, output->tensors[i - 1].name);
        MDP_TRY(check_tensor(tensor));
    }
    return mdp_ok();
}

mdp_status mdp_output_side_segments(const mdp_catalogue *source, mdp_tensor **tensors, mdp_segment **segments) {
    MDP_TRY(MDP_ALLOC(tensors, source->n_side_file, "side files"));
    MDP_TRY(MDP_ALLOC(segments, source->n_side_file, "side files"));
    for (int64_t i = 0; i < source->n_side_file; i++) {
        const mdp_side_file *side = &source->side_files[i];
        mdp_tensor *tensor = &(*tensors)[i];
        *tensor = (mdp_tensor){.name = side->name, .type = MDP_U8, .n_dim = 1};
        tensor->shape[0] = side->n_byte;
        tensor->file = side->file;
        tensor->offset = side->offset;
        tensor->n_byte = side->n_byte;
        tensor->digest = side->digest;
        (*segments)[i] = (mdp_segment){.source = tensor, .offset = 0, .n_byte = side->n_byte};
    }
    return mdp_ok();
}

mdp_status mdp_output_gather_all(const mdp_comm *comm, const mdp_digest *digests, int64_t n, int64_t n_item,
                                 mdp_digest **out) {
    void *all = NULL;
    int64_t n_byte = 0;
    *out = NULL;
    mdp_status status = mdp_gather_bytes_all(comm, digests, n * (int64_t)sizeof(mdp_digest), 0, &all, &n_byte);
    if (status.code == MDP_OK && comm->rank == 0 && n_byte != n_item * (int64_t)sizeof(mdp_digest))
        status = MDP_ERROR(MDP_INTERNAL, "%lld bytes of checksums were gathered for %lld tensors.", (long long)n_byte,
                           (long long)n_item);
    status = mdp_agree_all(comm, status);
    if (status.code != MDP_OK) {
        mdp_free(all);
        return status;
    }
    *out = all;
    return mdp_ok();
}

void mdp_output_progress(const mdp_comm *comm, const mdp_write_options *options, const mdp_output *output,
                         int64_t n_byte_done, int64_t n_byte_own) {
    if (comm->rank != 0 || !options->written || n_byte_own <= 0) return;
    double share = (double)n_byte_done / (double)n_byte_own;
    options->written(options->context, (int64_t)(share * (double)output->tensor_byte), output->tensor_byte);
}

bool mdp_output_is_full(const char *path, int64_t n_byte) {
    struct statvfs info;
    return statvfs(path, &info) == 0 && (double)info.f_bavail * (double)info.f_frsize < (double)n_byte;
}
