/* writer_hf.c - a HF checkpoint folder, written by all ranks at once.
 *
 * In: an mdp_output and a reader of its source. Out: the folder under the name given, complete, or nothing. Rank 0
 * makes it with every file at its full size and the safetensors headers in place; all ranks write the
 * tensors (and side files) that they own where they belong; rank 0 adds config.json, the index and moe-dist-prune.json;
 * every file is synced by who wrote it. The bytes depend on the output and the shard size alone. */
#include "checkpoint/hf_layout.h"
#include "checkpoint/output.h"
#include "checkpoint/work.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define INDEX "model.safetensors.index.json"
#define MANIFEST "moe-dist-prune.json"
#define JSON_PER_BYTE 4 /* memory for a byte of text, with the tree that it is printed from */

typedef struct hf_writer {
    const mdp_comm *comm;
    const mdp_output *output;
    const mdp_write_options *options;
    char *folder; /* without slashes at its end */
    bool made;    /* rank 0: the folder is ours and to be removed on error */
    mdp_hf_layout layout;
    mdp_work work;
    int64_t n_byte; /* that this rank has written */
    int64_t file;   /* index of the file open now, -1: none */
    char *path;     /* of that */
    int fd;         /* of that */
} hf_writer;

/* ---- rank 0 makes the files ---------------------------------------------------------------------------------- */

static mdp_status set_size(const char *path, int fd, int64_t n_byte) {
    MDP_TRY(mdp_fault(MDP_IO, "set a file's size"));
    if (ftruncate(fd, n_byte) != 0)
        return MDP_ERROR(MDP_IO, "%s: cannot give it its size of %lld bytes: %s.", path, (long long)n_byte,
                         strerror(errno));
    return mdp_ok();
}

static mdp_status fill_new_file(const hf_writer *writer, int64_t index, const char *path, int fd) {
    MDP_TRY(set_size(path, fd, writer->layout.files[index].n_byte));
    if (index >= writer->layout.n_shard) return mdp_ok();
    char *header = NULL;
    int64_t n_byte;
    MDP_TRY(mdp_hf_layout_header(&writer->layout, index, &header, &n_byte));
    mdp_status status = mdp_file_pwrite(path, fd, header, n_byte, 0);
    mdp_free(header);
    if (status.code == MDP_OK) mdp_profile_written(writer->options->profile, n_byte);
    if (status.code == MDP_OK) status = mdp_file_sync(path, fd);
    return status;
}

static mdp_status make_one_file(const hf_writer *writer, int64_t index) {
    char *path = NULL;
    int fd = -1;
    mdp_status status;
    MDP_TRY(mdp_path_join(&path, writer->folder, writer->layout.files[index].name));
    MDP_TRY_GOTO(status, end, mdp_file_create(path, &fd));
    status = fill_new_file(writer, index, path, fd);
    mdp_status closed = mdp_file_close(path, fd);
    if (status.code == MDP_OK) status = closed;
end:
    mdp_free(path);
    return status;
}

static mdp_status make_files(void *context) {
    hf_writer *writer = context;
    MDP_TRY(mdp_folder_remove(writer->folder));
    writer->made = true;
    MDP_TRY(mdp_folder_create(writer->folder));
    for (int64_t i = 0; i < writer->layout.n_file; i++) MDP_TRY(make_one_file(writer, i));
    return mdp_ok();
}

/* ---- all ranks fill them ------------------------------------------------------------------------------------- */

/* Sync and close the file open now, if any. */
static mdp_status leave_file(hf_writer *writer) {
    if (writer->file < 0) return mdp_ok();
    mdp_phase before = mdp_profile_switch(writer->options->profile, MDP_PHASE_SYNC);
    mdp_status status = mdp_file_sync(writer->path, writer->fd);
    mdp_status closed = mdp_file_close(writer->path, writer->fd);
    mdp_profile_switch(writer->options->profile, before);
    writer->file = -1;
    return status.code != MDP_OK ? status : closed;
}

static mdp_status enter_file(hf_writer *writer, int64_t index) {
    if (writer->file == index) return mdp_ok();
    MDP_TRY(leave_file(writer));
    mdp_free(writer->path);
    writer->path = NULL;
    MDP_TRY(mdp_path_join(&writer->path, writer->folder, writer->layout.files[index].name));
    MDP_TRY(mdp_file_open_write(writer->path, &writer->fd));
    writer->file = index;
    return mdp_ok();
}

static mdp_status put(void *context, int64_t item, int64_t offset, int64_t n_byte, const void *data) {
    hf_writer *writer = context;
    int64_t number = writer->work.number[item], index = writer->layout.item_file[number];
    MDP_TRY(enter_file(writer, index));
    int64_t place = writer->layout.files[index].data_start + writer->layout.item_offset[number] + offset;
    MDP_TRY(mdp_file_pwrite(writer->path, writer->fd, data, n_byte, place));
    mdp_file_begin_sync(writer->fd, place, n_byte);
    writer->n_byte += n_byte;
    mdp_profile_written(writer->options->profile, n_byte);
    mdp_output_progress(writer->comm, writer->options, writer->output, writer->n_byte, writer->work.n_byte_own);
    return mdp_ok();
}

static mdp_status settle(void *context) {
    return leave_file(context);
}

/* Collective on writer->comm. */
static mdp_status fill_files_all(hf_writer *writer, mdp_reader *reader) {
    mdp_copy copy = {.reader = reader,
                     .buffer_byte = writer->options->buffer_byte,
                     .count_max = INT64_MAX, /* pwrite has no such limit */
                     .put = put,
                     .context = writer};
    mdp_status status = mdp_work_run_all(&writer->work, &copy, settle);
    mdp_status left = leave_file(writer);
    return mdp_agree_all(writer->comm, status.code != MDP_OK ? status : left);
}

/* ---- rank 0 adds what describes them ------------------------------------------------------------------------- */

static mdp_status write_text(const hf_writer *writer, const char *name, const char *text, int64_t n_byte) {
    char *path = NULL;
    MDP_TRY(mdp_path_join(&path, writer->folder, name));
    mdp_status status = mdp_file_write_all(path, text, n_byte);
    mdp_free(path);
    if (status.code == MDP_OK) mdp_profile_written(writer->options->profile, n_byte);
    return status;
}

/* Print and release `value` (NULL: memory ran out). New text. */
static mdp_status print_json(json_t *value, const char *name, char **out) {
    *out = NULL;
    mdp_status status =
        value ? mdp_json_print(value, out) : MDP_ERROR(MDP_EXHAUSTED, "no memory for the content of %s.", name);
    json_decref(value);
    return status;
}

/* Position in the layout of each tensor in order of name: shards are filled in that order, only sorted within. */
static mdp_status order_by_name(const hf_writer *writer, int64_t **out) {
    MDP_TRY(MDP_ALLOC(out, writer->output->n_tensor, "the order of tensors"));
    for (int64_t i = 0; i < writer->output->n_tensor; i++)
        (*out)[writer->layout.tensors[i] - writer->output->tensors] = i;
    return mdp_ok();
}

/* The text of the index, new; NULL when one shard needs none. */
static mdp_status make_index(const hf_writer *writer, const int64_t *by_name, char **out) {
    *out = NULL;
    if (writer->layout.n_shard == 1) return mdp_ok();
    json_t *map = json_object();
    for (int64_t i = 0; i < writer->output->n_tensor; i++) {
        const mdp_hf_file *file = &writer->layout.files[writer->layout.item_file[by_name[i]]];
        mdp_json_put(&map, writer->output->tensors[i].name, json_string(file->name));
    }
    json_t *root = json_pack("{s:{s:I}, s:o}", "metadata", "total_size", (json_int_t)writer->output->tensor_byte,
                             "weight_map", map);
    return print_json(root, INDEX, out);
}

/* A text of the output as a member of the manifest; nothing when it is absent. */
static mdp_status add_member(json_t **root, const char *key, const char *text) {
    if (!text) return mdp_ok();
    json_t *value = NULL;
    MDP_TRY(mdp_json_parse(text, (int64_t)strlen(text), key, &value));
    mdp_json_put(root, key, value);
    return mdp_ok();
}

/* Checksums of all that is not a tensor: shards' headers, and the other files whole. */
static mdp_status add_headers(const hf_writer *writer, json_t **headers) {
    for (int64_t i = 0; i < writer->layout.n_shard; i++) {
        char *header = NULL;
        int64_t n_byte;
        MDP_TRY(mdp_hf_layout_header(&writer->layout, i, &header, &n_byte));
        mdp_json_put(headers, writer->layout.files[i].name, json_string(mdp_hash_bytes(header, n_byte).hex));
        mdp_free(header);
    }
    return mdp_ok();
}

static json_t *list_files(const hf_writer *writer, const char *index) {
    json_t *files = json_object();
    const mdp_output *output = writer->output;
    mdp_digest config = mdp_hash_bytes(output->config_text, output->config_byte);
    mdp_json_put(&files, "config.json", json_string(config.hex));
    if (index) mdp_json_put(&files, INDEX, json_string(mdp_hash_bytes(index, (int64_t)strlen(index)).hex));
    for (int64_t i = writer->layout.n_shard; i < writer->layout.n_file; i++) {
        const mdp_hf_file *file = &writer->layout.files[i];
        mdp_json_put(&files, file->name, json_string(writer->work.all_digests[file->first_item].hex));
    }
    return files;
}

/* The manifest ends with the checksum of everything before that, so that nothing in it can change unseen. */
static mdp_status print_sealed(json_t *root, char **out) {
    static const char end[] = "\n}\n";
    char *text = NULL;
    MDP_TRY(print_json(root, MANIFEST, &text));
    int64_t n_byte = (int64_t)(strlen(text) - strlen(end));
    mdp_status status =
        mdp_format(out, "%.*s,\n \"seal\": \"%s\"%s", (int)n_byte, text, mdp_hash_bytes(text, n_byte).hex, end);
    mdp_free(text);
    return status;
}

/* The text of the manifest, new; `index`: that of the index, or NULL. */
static mdp_status make_manifest(const hf_writer *writer, const int64_t *by_name, const char *index, char **out) {
    json_t *root = json_pack("{s:s, s:s}", "format", "moe-dist-prune manifest", "version", "1.0"),
           *checksums = json_object(), *headers = json_object();
    for (int64_t i = 0; i < writer->output->n_tensor; i++)
        mdp_json_put(&checksums, writer->output->tensors[i].name,
                     json_string(writer->work.all_digests[by_name[i]].hex));
    mdp_status status = add_member(&root, "provenance", writer->output->provenance_text);
    if (status.code == MDP_OK) status = add_member(&root, "plan", writer->output->plan_text);
    if (status.code == MDP_OK) status = add_headers(writer, &headers);
    mdp_json_put(&root, "files", list_files(writer, index));
    mdp_json_put(&root, "headers", headers);
    mdp_json_put(&root, "checksums", checksums);
    if (status.code == MDP_OK) return print_sealed(root, out);
    json_decref(root);
    return status;
}

/* Both texts are new. */
static mdp_status make_texts(const hf_writer *writer, char **index, char **manifest) {
    int64_t *by_name = NULL;
    MDP_TRY(order_by_name(writer, &by_name));
    mdp_status status = make_index(writer, by_name, index);
    if (status.code == MDP_OK) status = make_manifest(writer, by_name, *index, manifest);
    mdp_free(by_name);
    return status;
}

static mdp_status describe_files(void *context) {
    const hf_writer *writer = context;
    char *index = NULL, *manifest = NULL;
    mdp_status status = make_texts(writer, &index, &manifest);
    if (status.code == MDP_OK)
        status = write_text(writer, "config.json", writer->output->config_text, writer->output->config_byte);
    if (status.code == MDP_OK && index) status = write_text(writer, INDEX, index, (int64_t)strlen(index));
    if (status.code == MDP_OK) status = write_text(writer, MANIFEST, manifest, (int64_t)strlen(manifest));
    mdp_free(index);
    mdp_free(manifest);
    MDP_TRY(status);
    return mdp_folder_sync(writer->folder);
}

/* Twice if need be: on network file systems the first try may only rename what another node has open still. */
static void remove_rest(const hf_writer *writer) {
    if (mdp_folder_remove(writer->folder).code == MDP_OK) return;
    mdp_status ignored = mdp_folder_remove(writer->folder);
    (void)ignored; /* the error that led here is the one to tell */
}

/* ---- the whole ----------------------------------------------------------------------------------------------- */

static mdp_status prepare(hf_writer *writer, const char *folder) {
    MDP_TRY(mdp_path_trim(&writer->folder, folder));
    return mdp_hf_layout_make(writer->output, writer->options->shard_byte, &writer->layout);
}

/* Rank 0: does the partial folder have every file at its size? */
static bool partial_is_whole(const hf_writer *writer) {
    for (int64_t i = 0; i < writer->layout.n_file; i++) {
        char *path = NULL;
        struct stat info;
        if (mdp_path_join(&path, writer->folder, writer->layout.files[i].name).code != MDP_OK) return false;
        bool whole = stat(path, &info) == 0 && info.st_size == writer->layout.files[i].n_byte;
        mdp_free(path);
        if (!whole) return false;
    }
    return true;
}

/* Collective on writer->comm. Every return is agreed. */
static mdp_status write_all(hf_writer *writer, mdp_reader *reader, const char *folder) {
    const mdp_comm *comm = writer->comm;
    mdp_profile *profile = writer->options->profile;
    MDP_AGREE(comm, prepare(writer, folder));
    mdp_profile_switch(profile, MDP_PHASE_WAIT_RANKS); /* but for the steps below */
    bool there = comm->rank == 0 && writer->options->resume && partial_is_whole(writer);
    MDP_TRY(mdp_work_open_all(comm, writer->options, writer->output, writer->folder, there, writer->layout.items,
                              writer->layout.n_item, &writer->work));
    writer->made = comm->rank == 0 && writer->work.continues;
    if (!writer->work.continues)
        MDP_AGREE(comm, comm->rank == 0 ? mdp_profile_step(profile, MDP_PHASE_WRITE, make_files, writer) : mdp_ok());
    MDP_TRY(fill_files_all(writer, reader));
    MDP_AGREE(comm, comm->rank == 0 ? mdp_profile_step(profile, MDP_PHASE_WRITE, describe_files, writer) : mdp_ok());
    return mdp_ok();
}

mdp_status mdp_write_hf_all(const mdp_comm *comm, mdp_reader *reader, const mdp_output *output, const char *folder,
                            const mdp_write_options *options) {
    hf_writer writer = {.comm = comm, .output = output, .options = options, .file = -1, .fd = -1};
    mdp_status status = write_all(&writer, reader, folder);
    if (status.code != MDP_OK && writer.made && !writer.work.recorded) remove_rest(&writer);
    mdp_hf_layout_destroy(&writer.layout);
    mdp_work_close(&writer.work);
    mdp_free(writer.path);
    mdp_free(writer.folder);
    return status;
}

/* ---- what it would take ---------------------------------------------------------------------------------------- */

static mdp_status add_costs(hf_writer *writer, int size, mdp_write_cost *out) {
    const mdp_hf_layout *layout = &writer->layout;
    char *index = NULL, *manifest = NULL;
    int64_t largest = 0;
    MDP_TRY(mdp_work_cost(layout->items, layout->n_item, writer->options, size, out));
    MDP_TRY(MDP_ALLOC(&writer->work.all_digests, layout->n_item, "checksums")); /* any: all have one length */
    for (int64_t i = 0; i < layout->n_item; i++) memset(writer->work.all_digests[i].hex, '0', 32);
    mdp_status status = make_texts(writer, &index, &manifest);
    int64_t n_text = (int64_t)((manifest ? strlen(manifest) : 0) + (index ? strlen(index) : 0));
    mdp_free(index);
    mdp_free(manifest);
    out->shares[0].bytes_written += writer->output->config_byte + n_text;
    for (int64_t i = 0; i < layout->n_shard; i++) {
        int64_t n_header = layout->files[i].data_start;
        out->shares[0].bytes_written += n_header;
        largest = n_header > largest ? n_header : largest;
    }
    out->beside += JSON_PER_BYTE * (n_text > largest ? n_text : largest);
    return status;
}

mdp_status mdp_write_hf_cost(const mdp_output *output, const mdp_write_options *options, int size,
                             mdp_write_cost *out) {
    hf_writer writer = {.output = output, .options = options, .file = -1, .fd = -1};
    *out = (mdp_write_cost){0};
    mdp_status status = mdp_hf_layout_make(output, options->shard_byte, &writer.layout);
    if (status.code == MDP_OK) status = add_costs(&writer, size, out);
    mdp_hf_layout_destroy(&writer.layout);
    mdp_work_close(&writer.work);
    return status;
}
