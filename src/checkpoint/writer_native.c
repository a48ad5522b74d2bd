/* writer_native.c - model.h5, written by all ranks at once.
 *
 * In: an mdp_output and a reader of its source. Out: the file under the name given, complete, or nothing. Steps: rank 0
 * makes it with every dataset and attribute in it; all ranks open it with the MPI driver and write the
 * tensors they own, each for itself; rank 0 fills in the checksums, adds `complete` and seals; all sync. Which rank
 * wrote what leaves no trace: metadata is rank 0's alone and every dataset has its place before ranks start. */
#include "checkpoint/h5_make.h"
#include "checkpoint/h5_parallel.h"
#include "checkpoint/native_layout.h"
#include "checkpoint/output.h"
#include "checkpoint/work.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

/* Bytes that HDF5 comes to hold, with MPI's part in a file open on all ranks, and of them for each dataset (measured,
 * doc/engine.md). */
#define HDF5_MEMORY ((int64_t)2 << 20)
#define SET_MEMORY 2048

typedef struct native_writer {
    const mdp_comm *comm;
    const mdp_output *output;
    const mdp_write_options *options;
    const char *path;
    bool made; /* rank 0: the file is ours and to be removed on error */
    mdp_native_layout layout;
    mdp_work work;
    int64_t n_byte;             /* that this rank has written */
    hid_t file;                 /* opened by all ranks */
    int64_t set;                /* dataset open now, -1: none */
    hid_t dataset, space, type; /* of that */
} native_writer;

/* ---- rank 0 makes the file ----------------------------------------------------------------------------------- */

static mdp_status make_tensor_attributes(const native_writer *writer, const mdp_native_set *set, hid_t dataset) {
    const char *path = writer->path;
    hid_t digest_type = mdp_h5_text_type(32);
    mdp_status status;
    MDP_TRY_GOTO(status, end,
                 mdp_h5_make_attribute(dataset, "xxh3_128", digest_type, set->stacked ? set->n_item : -1, NULL, path));
    if (!set->hf_name) goto end;
    MDP_TRY_GOTO(status, end, mdp_h5_make_text_attribute(dataset, "hf_name", set->hf_name, path));
    MDP_TRY_GOTO(status, end, mdp_h5_make_text_attribute(dataset, "stored_type", mdp_dtype_name(set->type), path));
    if (!set->stacked) goto end;
    int32_t *original = NULL;
    MDP_TRY_GOTO(status, end, MDP_ALLOC(&original, set->n_item, "expert numbers"));
    for (int64_t i = 0; i < set->n_item; i++)
        original[i] = writer->layout.tensors[set->first_item + i]->original_expert;
    status = mdp_h5_make_attribute(dataset, "original_expert", H5T_STD_I32LE, set->n_item, original, path);
    mdp_free(original);
end:
    H5Tclose(digest_type);
    return status;
}

static mdp_status make_set(const native_writer *writer, hid_t file, const mdp_native_set *set) {
    MDP_TRY(mdp_h5_make_groups(file, set->path, writer->path));
    hid_t type = mdp_h5_number_type(set->type, set->as_bytes), dataset = -1;
    mdp_status status = mdp_h5_make_dataset(file, set->path, type, set->n_dim, set->shape, writer->path, &dataset);
    if (status.code == MDP_OK) status = make_tensor_attributes(writer, set, dataset);
    if (dataset >= 0) H5Dclose(dataset);
    if (type >= 0) H5Tclose(type);
    return status;
}

static mdp_status make_root(const native_writer *writer, hid_t file) {
    const mdp_output *output = writer->output;
    const char *path = writer->path;
    int64_t n_layer = output->n_layer;
    MDP_TRY(mdp_h5_make_text_attribute(file, "format", "moe-dist-prune checkpoint", path));
    MDP_TRY(mdp_h5_make_text_attribute(file, "version", "1.0", path));
    MDP_TRY(mdp_h5_make_text_attribute(file, "model_type", output->model_type, path));
    MDP_TRY(mdp_h5_make_text_attribute(file, "writer", "moe-dist-prune " MDP_VERSION, path));
    MDP_TRY(mdp_h5_make_attribute(file, "n_layers", H5T_STD_I64LE, -1, &n_layer, path));
    MDP_TRY(mdp_h5_make_text(file, "/config", output->config_text, output->config_byte, path));
    const char *plan = output->plan_text, *provenance = output->provenance_text;
    if (plan) MDP_TRY(mdp_h5_make_text(file, "/plan", plan, (int64_t)strlen(plan), path));
    if (provenance) MDP_TRY(mdp_h5_make_text(file, "/provenance", provenance, (int64_t)strlen(provenance), path));
    return mdp_seal_make(file, path);
}

/* Closes the file. */
static mdp_status make_content(const native_writer *writer, hid_t file) {
    mdp_status status = make_root(writer, file);
    for (int64_t i = 0; i < writer->layout.n_set && status.code == MDP_OK; i++)
        status = make_set(writer, file, &writer->layout.sets[i]);
    return mdp_hdf5_close_written(file, writer->path, status);
}

static mdp_status make_file(void *context) {
    native_writer *writer = context;
    if (unlink(writer->path) != 0 && errno != ENOENT)
        return MDP_ERROR(MDP_CANNOT_CREATE, "cannot remove %s, left by a run that did not end: %s.", writer->path,
                         strerror(errno));
    hid_t file;
    writer->made = true;
    MDP_TRY(mdp_h5_create_file(writer->path, &file));
    return make_content(writer, file);
}

/* ---- all ranks fill it --------------------------------------------------------------------------------------- */

static void close_set(native_writer *writer) {
    if (writer->space >= 0) H5Sclose(writer->space);
    if (writer->type >= 0) H5Tclose(writer->type);
    if (writer->dataset >= 0) H5Dclose(writer->dataset);
    writer->dataset = writer->space = writer->type = -1;
    writer->set = -1;
}

static mdp_status open_set(native_writer *writer, int64_t index) {
    if (writer->set == index) return mdp_ok();
    close_set(writer);
    const mdp_native_set *set = &writer->layout.sets[index];
    MDP_TRY(mdp_fault(MDP_IO, "open a dataset"));
    writer->dataset = H5Dopen2(writer->file, set->path, H5P_DEFAULT);
    if (writer->dataset >= 0) writer->space = H5Dget_space(writer->dataset);
    /* Not the type of the file: the one we made it with, so that a mix-up shows as a conversion error, not as data. */
    writer->type = mdp_h5_number_type(set->type, set->as_bytes);
    if (writer->dataset < 0 || writer->space < 0 || writer->type < 0)
        return mdp_h5_error(MDP_IO, "open the dataset", set->path, writer->path);
    writer->set = index;
    return mdp_ok();
}

/* The largest block of the dataset that begins at element `at` and has at most n elements in row-major order: whole
 * slices of one dimension. Returns its number of elements. */
static int64_t choose_block(const mdp_native_set *set, int64_t at, int64_t n, hsize_t *start, hsize_t *count) {
    int64_t index[MDP_MAX_DIM + 1] = {0}, inner = 1;
    for (int d = set->n_dim - 1; d >= 0; d--) {
        index[d] = at % set->shape[d];
        at /= set->shape[d];
    }
    /* Outwards from the last dimension while the block begins at a slice of the next one and a whole slice fits. */
    int d = set->n_dim - 1;
    while (d > 0 && index[d] == 0 && inner * set->shape[d] <= n) inner *= set->shape[d--];
    int64_t n_slice = n / inner;
    if (n_slice > set->shape[d] - index[d]) n_slice = set->shape[d] - index[d];
    for (int i = 0; i < set->n_dim; i++) {
        start[i] = (hsize_t)index[i];
        count[i] = i < d ? 1 : i == d ? (hsize_t)n_slice : (hsize_t)set->shape[i];
    }
    return n_slice * inner;
}

static mdp_status write_error(const native_writer *writer, const mdp_native_set *set, int64_t n_byte) {
    if (mdp_output_is_full(writer->path, n_byte))
        return MDP_ERROR(MDP_IO,
                         "%s: cannot write %s: no space left on the file system. Free some space or choose another "
                         "--out.",
                         writer->path, set->path);
    return mdp_h5_error(MDP_IO, "write", set->path, writer->path);
}

/* n elements to the open dataset from element `at` on. */
static mdp_status write_block(const native_writer *writer, const mdp_native_set *set, int64_t at, int64_t n,
                              const void *data, int64_t *n_written) {
    MDP_TRY(mdp_fault(MDP_IO, "write to HDF5"));
    hid_t memory = H5S_ALL, space = H5S_ALL;
    *n_written = n;
    bool good = true;
    if (set->n_dim > 0) {
        hsize_t start[MDP_MAX_DIM + 1], count[MDP_MAX_DIM + 1];
        *n_written = choose_block(set, at, n, start, count);
        hsize_t length = (hsize_t)*n_written;
        space = writer->space;
        memory = H5Screate_simple(1, &length, NULL);
        good = memory >= 0 && H5Sselect_hyperslab(space, H5S_SELECT_SET, start, NULL, count, NULL) >= 0;
    }
    errno = 0; /* mdp_h5_error looks at it */
    good = good && H5Dwrite(writer->dataset, writer->type, memory, space, H5P_DEFAULT, data) >= 0;
    mdp_status status = good ? mdp_ok() : write_error(writer, set, *n_written * set->unit);
    if (memory > 0) H5Sclose(memory);
    return status;
}

static mdp_status put(void *context, int64_t item, int64_t offset, int64_t n_byte, const void *data) {
    native_writer *writer = context;
    int64_t number = writer->work.number[item], index = writer->layout.item_set[number];
    const mdp_native_set *set = &writer->layout.sets[index];
    MDP_TRY(open_set(writer, index));
    int64_t at = (number - set->first_item) * set->n_element + offset / set->unit;
    int64_t n_left = n_byte / set->unit;
    const char *from = data;
    while (n_left > 0) {
        int64_t n_written;
        MDP_TRY(write_block(writer, set, at, n_left, from, &n_written));
        at += n_written;
        n_left -= n_written;
        from += n_written * set->unit;
    }
    writer->n_byte += n_byte;
    mdp_profile_written(writer->options->profile, n_byte);
    mdp_output_progress(writer->comm, writer->options, writer->output, writer->n_byte, writer->work.n_byte_own);
    return mdp_ok();
}

/* What this rank's node has put so far becomes durable. */
static mdp_status settle(void *context) {
    native_writer *writer = context;
    mdp_phase before = mdp_profile_switch(writer->options->profile, MDP_PHASE_SYNC);
    close_set(writer);
    mdp_status status = writer->comm->node_rank == 0 ? mdp_h5_sync(writer->path) : mdp_ok();
    mdp_profile_switch(writer->options->profile, before);
    return status;
}

/* Collective on writer->comm. */
static mdp_status fill_file_all(native_writer *writer, mdp_reader *reader) {
    MDP_TRY(mdp_h5_open_all(writer->comm, writer->path, &writer->file));
    mdp_copy copy = {.reader = reader,
                     .buffer_byte = writer->options->buffer_byte,
                     .count_max = writer->comm->count_max,
                     .put = put,
                     .context = writer};
    mdp_status status = mdp_work_run_all(&writer->work, &copy, settle);
    close_set(writer);
    /* No rank has metadata to write. */
    return mdp_h5_close_all(writer->comm, writer->path, writer->file, status);
}

/* ---- rank 0 completes it ------------------------------------------------------------------------------------- */

/* *run: where the bytes lie that they are of. */
static mdp_status write_digests(const native_writer *writer, hid_t file, const mdp_native_set *set, char *scratch,
                                mdp_run *run) {
    for (int64_t i = 0; i < set->n_item; i++)
        memcpy(scratch + 32 * i, writer->work.all_digests[set->first_item + i].hex, 32);
    hid_t type = mdp_h5_text_type(32);
    hid_t dataset = H5Dopen2(file, set->path, H5P_DEFAULT);
    mdp_status status = dataset >= 0 ? mdp_h5_write_attribute(dataset, "xxh3_128", type, scratch, writer->path)
                                     : mdp_h5_error(MDP_IO, "open", set->path, writer->path);
    run->n_byte = set->n_item * set->n_element * set->unit;
    run->offset = status.code == MDP_OK && run->n_byte > 0 ? (int64_t)H5Dget_offset(dataset) : 0;
    if (dataset >= 0) H5Dclose(dataset);
    if (type >= 0) H5Tclose(type);
    return status;
}

/* runs [layout.n_set] */
static mdp_status write_marks(const native_writer *writer, hid_t file, mdp_run *runs) {
    char *scratch = NULL;
    MDP_TRY(MDP_ALLOC(&scratch, 32 * writer->layout.n_item, "checksums"));
    mdp_status status = mdp_ok();
    for (int64_t i = 0; i < writer->layout.n_set && status.code == MDP_OK; i++)
        status = write_digests(writer, file, &writer->layout.sets[i], scratch, &runs[i]);
    mdp_free(scratch);
    MDP_TRY(status);
    const int32_t one = 1;
    return mdp_h5_make_attribute(file, "complete", H5T_STD_I32LE, -1, &one, writer->path);
}

/* runs [layout.n_set]: where the datasets lie, for the seal. */
static mdp_status mark_file(const native_writer *writer, mdp_run *runs) {
    hid_t file;
    MDP_TRY(mdp_h5_reopen_file(writer->path, &file));
    mdp_status status = write_marks(writer, file, runs);
    return mdp_hdf5_close_written(file, writer->path, status);
}

/* Size of the file at writer->path. */
static mdp_status size_of_file(const native_writer *writer, int64_t *n_byte) {
    int fd = -1;
    MDP_TRY(mdp_file_open_read(writer->path, &fd));
    mdp_status status = mdp_file_size(writer->path, fd, n_byte);
    mdp_status closed = mdp_file_close(writer->path, fd);
    return status.code == MDP_OK ? closed : status;
}

static int64_t data_bytes(const mdp_native_layout *layout) {
    int64_t n_byte = 0;
    for (int64_t i = 0; i < layout->n_item; i++) n_byte += layout->items[i].n_byte;
    return n_byte;
}

/* What is in the file beside the data, in whichever steps it came there, counts as written once. */
static mdp_status count_rest(const native_writer *writer) {
    int64_t n_byte = 0;
    if (!writer->options->profile) return mdp_ok();
    MDP_TRY(size_of_file(writer, &n_byte));
    mdp_profile_written(writer->options->profile, n_byte - data_bytes(&writer->layout));
    return mdp_ok();
}

static mdp_status complete_file(void *context) {
    native_writer *writer = context;
    mdp_run *runs = NULL;
    MDP_TRY(mdp_work_forget(&writer->work)); /* from here on the metadata may be half written */
    MDP_TRY(MDP_ALLOC(&runs, writer->layout.n_set, "places of datasets"));
    mdp_status status = mark_file(writer, runs);
    if (status.code == MDP_OK) status = mdp_seal_write(writer->path, runs, writer->layout.n_set);
    mdp_free(runs);
    return status.code == MDP_OK ? count_rest(writer) : status;
}

static mdp_status sync_file(void *context) {
    const native_writer *writer = context;
    return mdp_h5_sync(writer->path);
}

/* ---- the whole ----------------------------------------------------------------------------------------------- */

static mdp_status prepare(native_writer *writer) {
    return mdp_native_layout_make(writer->output, &writer->layout);
}

/* Collective on writer->comm. Every return is agreed. */
static mdp_status write_all(native_writer *writer, mdp_reader *reader) {
    const mdp_comm *comm = writer->comm;
    mdp_profile *profile = writer->options->profile;
    MDP_AGREE(comm, prepare(writer));
    mdp_profile_switch(profile, MDP_PHASE_WAIT_RANKS); /* but for the steps below */
    bool there = comm->rank == 0 && mdp_path_exists(writer->path);
    MDP_TRY(mdp_work_open_all(comm, writer->options, writer->output, writer->path, there, writer->layout.items,
                              writer->layout.n_item, &writer->work));
    writer->made = comm->rank == 0 && writer->work.continues;
    if (!writer->work.continues)
        MDP_AGREE(comm, comm->rank == 0 ? mdp_profile_step(profile, MDP_PHASE_WRITE, make_file, writer) : mdp_ok());
    MDP_TRY(fill_file_all(writer, reader));
    MDP_AGREE(comm, comm->rank == 0 ? mdp_profile_step(profile, MDP_PHASE_WRITE, complete_file, writer) : mdp_ok());
    MDP_AGREE(comm, comm->node_rank == 0 ? mdp_profile_step(profile, MDP_PHASE_SYNC, sync_file, writer) : mdp_ok());
    return mdp_ok();
}

mdp_status mdp_write_native_all(const mdp_comm *comm, mdp_reader *reader, const mdp_output *output, const char *path,
                                const mdp_write_options *options) {
    native_writer writer = {.comm = comm, .output = output, .options = options, .path = path};
    writer.set = writer.file = writer.dataset = writer.space = writer.type = -1;
    mdp_h5_silence silence = mdp_h5_silence_begin();
    mdp_status status = write_all(&writer, reader);
    if (status.code != MDP_OK && writer.made && !writer.work.recorded) unlink(writer.path);
    mdp_h5_silence_end(silence);
    mdp_native_layout_destroy(&writer.layout);
    mdp_work_close(&writer.work);
    return status;
}

/* ---- what it would take ---------------------------------------------------------------------------------------- */

/* Make the file but for its data; *n_byte: its size, untouched where there is no place to make it. */
static mdp_status measure_file(native_writer *writer, int64_t *n_byte) {
    mdp_run *runs = NULL;
    hid_t file;
    char path[MDP_H5_SCRATCH_PATH];
    mdp_status status = mdp_h5_create_scratch(path, &file);
    if (status.code == MDP_CANNOT_CREATE && path[0] == '\0') return mdp_ok();
    writer->path = path;
    if (status.code == MDP_OK) status = make_content(writer, file);
    if (status.code == MDP_OK) status = MDP_ALLOC(&runs, writer->layout.n_set, "places of datasets");
    if (status.code == MDP_OK) status = mark_file(writer, runs);
    if (status.code == MDP_OK) status = size_of_file(writer, n_byte);
    unlink(path);
    mdp_free(runs);
    writer->path = NULL;
    return status;
}

/* Before HDF5 has been asked: the data and the texts. */
static int64_t guess_size(const native_writer *writer) {
    const mdp_output *output = writer->output;
    int64_t n_byte = data_bytes(&writer->layout) + output->config_byte;
    if (output->plan_text) n_byte += (int64_t)strlen(output->plan_text);
    if (output->provenance_text) n_byte += (int64_t)strlen(output->provenance_text);
    return n_byte;
}

static mdp_status add_costs(native_writer *writer, int size, bool exactly, mdp_write_cost *out) {
    const mdp_native_layout *layout = &writer->layout;
    int64_t n_byte = guess_size(writer);
    MDP_TRY(mdp_work_cost(layout->items, layout->n_item, writer->options, size, out));
    MDP_TRY(MDP_ALLOC(&writer->work.all_digests, layout->n_item, "checksums")); /* empty: their places count */
    if (exactly) MDP_TRY(measure_file(writer, &n_byte));
    out->shares[0].bytes_written += n_byte - data_bytes(layout);
    out->beside += HDF5_MEMORY + layout->n_set * (int64_t)(sizeof(mdp_native_set) + SET_MEMORY);
    return mdp_ok();
}

mdp_status mdp_write_native_cost(const mdp_output *output, const mdp_write_options *options, int size, bool exactly,
                                 mdp_write_cost *out) {
    native_writer writer = {.output = output, .options = options};
    writer.set = writer.file = writer.dataset = writer.space = writer.type = -1;
    *out = (mdp_write_cost){0};
    mdp_h5_silence silence = mdp_h5_silence_begin();
    mdp_status status = mdp_native_layout_make(output, &writer.layout);
    if (status.code == MDP_OK) status = add_costs(&writer, size, exactly, out);
    mdp_h5_silence_end(silence);
    mdp_native_layout_destroy(&writer.layout);
    mdp_work_close(&writer.work);
    return status;
}
