/* hash_output.c - the checksums that a checkpoint would have, without writing it. */
#include "checkpoint/output.h"
#include "checkpoint/work.h"

#include <string.h>

/* Nothing is kept of what is read. */
static mdp_status put_nowhere(void *context, int64_t item, int64_t offset, int64_t n_byte, const void *data) {
    (void)context, (void)item, (void)offset, (void)n_byte, (void)data;
    return mdp_ok();
}

static mdp_status settle_nothing(void *context) {
    (void)context;
    return mdp_ok();
}

typedef struct items {
    mdp_copy_item *item; /* [tensors of the output, then side files of its source] */
    mdp_tensor *side_tensors;
    mdp_segment *side_segments;
} items;

static mdp_status list_items(const mdp_output *output, items *out) {
    int64_t n_side = output->source->n_side_file;
    MDP_TRY(MDP_ALLOC(&out->item, output->n_tensor + n_side, "the list of tensors"));
    MDP_TRY(mdp_output_side_segments(output->source, &out->side_tensors, &out->side_segments));
    for (int64_t i = 0; i < output->n_tensor; i++) {
        const mdp_output_tensor *tensor = &output->tensors[i];
        out->item[i] = (mdp_copy_item){tensor->n_byte, tensor->n_segment, tensor->segments, 1};
    }
    for (int64_t i = 0; i < n_side; i++)
        out->item[output->n_tensor + i] = (mdp_copy_item){out->side_tensors[i].n_byte, 1, &out->side_segments[i], 1};
    return mdp_ok();
}

static mdp_status hash_all(const mdp_comm *comm, mdp_reader *reader, const mdp_output *output, const items *list,
                           int64_t buffer_byte, mdp_digest **out) {
    const mdp_write_options options = {.buffer_byte = buffer_byte};
    int64_t n = output->n_tensor + output->source->n_side_file;
    mdp_work work;
    mdp_copy copy = {.reader = reader, .buffer_byte = buffer_byte, .count_max = INT64_MAX, .put = put_nowhere};
    mdp_status status = mdp_work_open_all(comm, &options, output, "nothing", false, list->item, n, &work);
    if (status.code == MDP_OK) status = mdp_work_run_all(&work, &copy, settle_nothing);
    if (status.code == MDP_OK) {
        *out = work.all_digests;
        work.all_digests = NULL;
    }
    mdp_work_close(&work);
    return status;
}

mdp_status mdp_output_hash_all(const mdp_comm *comm, mdp_reader *reader, const mdp_output *output, int64_t buffer_byte,
                               mdp_digest **out) {
    items list = {NULL, NULL, NULL};
    *out = NULL;
    mdp_status status = mdp_agree_all(comm, list_items(output, &list));
    if (status.code == MDP_OK) status = hash_all(comm, reader, output, &list, buffer_byte, out);
    mdp_free(list.item);
    mdp_free(list.side_tensors);
    mdp_free(list.side_segments);
    return status;
}
