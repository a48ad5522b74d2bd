/* write_checkpoint [SOURCE OUT]: with arguments, write the sample to OUT/all.h5 and OUT/all for other tests to look at.
 *
 * Both checkpoint writers: every rank count gives the bytes that one rank gives; each tensor, checksum and attribute of
 * model.h5 is what was to be written, read by HDF5 and hashed by xxHash themselves; what must not be replaced is not;
 * an error of one rank is the error of all and leaves nothing behind. */
#include "sample_output.h"

#include "mdp/outputs.h"

#include <hdf5.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

static int n_wrong = 0;

static void expect(const mdp_comm *comm, bool truth, const char *what, const char *detail) {
    if (truth) return;
    n_wrong++;
    fprintf(stderr, "write_checkpoint: rank %d of %d: %s: %s\n", comm->rank, comm->size, what, detail);
}

static char *in_folder(const char *folder, const char *name) {
    char *path = NULL;
    sample_must(mdp_path_join(&path, folder, name));
    return path;
}

static bool same_file(const char *left, const char *right) {
    char *a = NULL, *b = NULL;
    int64_t n_a = -1, n_b = -1;
    bool same = mdp_file_read_all(left, INT64_C(1) << 30, &a, &n_a).code == MDP_OK &&
                mdp_file_read_all(right, INT64_C(1) << 30, &b, &n_b).code == MDP_OK && n_a == n_b &&
                memcmp(a, b, (size_t)n_a) == 0;
    mdp_free(a);
    mdp_free(b);
    return same;
}

/* ---- the same bytes ------------------------------------------------------------------------------------------ */

static const char *const folder_files[] = {"config.json",
                                           "empty.txt",
                                           "generation_config.json",
                                           "model-00001-of-00003.safetensors",
                                           "model-00002-of-00003.safetensors",
                                           "model-00003-of-00003.safetensors",
                                           "model.safetensors.index.json",
                                           "moe-dist-prune.json",
                                           "tokenizer.json"};

static void write_both(const mdp_comm *comm, const sample *s, const char *folder, const char *tag,
                       int64_t buffer_byte) {
    mdp_write_options options = {.shard_byte = 200000, .buffer_byte = buffer_byte};
    char name[64];
    snprintf(name, sizeof name, "%s.h5", tag);
    char *native = in_folder(folder, name), *hf = in_folder(folder, tag);
    mdp_status status = mdp_write_native_all(comm, s->reader, &s->output, native, &options);
    expect(comm, status.code == MDP_OK, "writing model.h5", status.text);
    status = mdp_write_hf_all(comm, s->reader, &s->output, hf, &options);
    expect(comm, status.code == MDP_OK, "writing a HF folder", status.text);
    mdp_free(native);
    mdp_free(hf);
}

static void any_number_of_ranks_gives_the_bytes_of_one(const mdp_comm *comm, const mdp_comm *alone, const sample *s,
                                                       const char *folder) {
    write_both(comm, s, folder, "all", 3000);
    if (comm->rank != 0) return;
    sleep(1); /* a time stamp in a file would differ now */
    write_both(alone, s, folder, "one", 1 << 20);
    char *all = in_folder(folder, "all.h5"), *one = in_folder(folder, "one.h5");
    expect(comm, same_file(all, one), "differs from that of one rank", all);
    mdp_free(all);
    mdp_free(one);
    for (size_t i = 0; i < sizeof folder_files / sizeof *folder_files; i++) {
        char name[128];
        snprintf(name, sizeof name, "all/%s", folder_files[i]);
        all = in_folder(folder, name);
        snprintf(name, sizeof name, "one/%s", folder_files[i]);
        one = in_folder(folder, name);
        expect(comm, same_file(all, one), "differs from that of one rank", all);
        mdp_free(all);
        mdp_free(one);
    }
}

/* ---- model.h5 holds what it should --------------------------------------------------------------------------- */

static void attribute_text(hid_t object, const char *name, char *out, size_t n_byte) {
    memset(out, 0, n_byte);
    hid_t attribute = H5Aopen(object, name, H5P_DEFAULT);
    hid_t type = H5Aget_type(attribute);
    if (H5Tget_size(type) < n_byte) H5Aread(attribute, type, out);
    H5Tclose(type);
    H5Aclose(attribute);
}

static void digest_text(const char *data, int64_t n_byte, char out[33]) {
    XXH128_hash_t hash = XXH3_128bits(data, (size_t)n_byte);
    snprintf(out, 33, "%016llx%016llx", (unsigned long long)hash.high64, (unsigned long long)hash.low64);
}

/* One tensor against its dataset: bytes at its place in the stack, its checksum. */
static void check_tensor(const mdp_comm *comm, const sample *s, const mdp_output_tensor *tensor, hid_t dataset) {
    hid_t type = H5Dget_type(dataset);
    int64_t n_stored = (int64_t)H5Dget_storage_size(dataset);
    int64_t place = tensor->stack ? tensor->expert : 0;
    char *all = NULL, *expected = sample_expected(s, tensor), digest[33], digests[12 * 32 + 1];
    sample_must(MDP_ALLOC(&all, n_stored, "stored bytes"));
    expect(comm, n_stored >= (place + 1) * tensor->n_byte, "a dataset is too small", tensor->name);
    if (n_stored > 0) H5Dread(dataset, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, all);
    expect(comm, memcmp(all + place * tensor->n_byte, expected, (size_t)tensor->n_byte) == 0,
           "the bytes are not those of the source", tensor->name);
    digest_text(expected, tensor->n_byte, digest);
    hid_t attribute = H5Aopen(dataset, "xxh3_128", H5P_DEFAULT), text = H5Aget_type(attribute);
    H5Aread(attribute, text, digests);
    expect(comm, memcmp(digests + 32 * place, digest, 32) == 0, "the checksum is another", tensor->name);
    H5Tclose(text);
    H5Aclose(attribute);
    H5Tclose(type);
    mdp_free(all);
    mdp_free(expected);
}

static void check_stack(const mdp_comm *comm, const mdp_output_tensor *tensor, hid_t dataset) {
    int32_t original[12] = {0};
    hid_t attribute = H5Aopen(dataset, "original_expert", H5P_DEFAULT);
    H5Aread(attribute, H5T_NATIVE_INT32, original);
    H5Aclose(attribute);
    expect(comm, original[tensor->expert] == tensor->original_expert, "original_expert is another", tensor->name);
}

static void check_dataset(const mdp_comm *comm, const sample *s, const mdp_output_tensor *tensor, hid_t file) {
    char path[200], text[200];
    snprintf(path, sizeof path, "/%s", tensor->name);
    for (char *c = path; *c; c++)
        if (*c == '.') *c = '/';
    if (tensor->stack)
        snprintf(path, sizeof path, "/model/layers/%c/mlp/experts/up_proj/weight",
                 tensor->name[strlen("model.layers.")]);
    hid_t dataset = H5Dopen2(file, path, H5P_DEFAULT);
    expect(comm, dataset >= 0, "there is no dataset", path);
    if (dataset < 0) return;
    attribute_text(dataset, "hf_name", text, sizeof text);
    expect(comm, strcmp(text, tensor->stack ? tensor->stack : tensor->name) == 0, "hf_name is another", text);
    attribute_text(dataset, "stored_type", text, sizeof text);
    expect(comm, strcmp(text, mdp_dtype_name(tensor->type)) == 0, "stored_type is another", tensor->name);
    if (tensor->stack) check_stack(comm, tensor, dataset);
    check_tensor(comm, s, tensor, dataset);
    H5Dclose(dataset);
}

static void model_h5_holds_every_tensor(const mdp_comm *comm, const sample *s, const char *folder) {
    if (comm->rank != 0) return;
    char *path = in_folder(folder, "all.h5"), text[100];
    hid_t file = H5Fopen(path, H5F_ACC_RDONLY, H5P_DEFAULT);
    for (int64_t i = 0; i < s->output.n_tensor; i++) check_dataset(comm, s, &s->output.tensors[i], file);
    attribute_text(file, "format", text, sizeof text);
    expect(comm, strcmp(text, "moe-dist-prune checkpoint") == 0, "format is another", text);
    attribute_text(file, "model_type", text, sizeof text);
    expect(comm, strcmp(text, "sample") == 0, "model_type is another", text);
    int32_t complete = 0;
    hid_t attribute = H5Aopen(file, "complete", H5P_DEFAULT);
    H5Aread(attribute, H5T_NATIVE_INT32, &complete);
    H5Aclose(attribute);
    expect(comm, complete == 1, "not complete", path);
    H5Fclose(file);
    mdp_free(path);
}

/* ---- both open again ----------------------------------------------------------------------------------------- */

static void check_read_back(const mdp_comm *comm, const sample *s, const mdp_output_tensor *tensor,
                            const mdp_catalogue *catalogue, mdp_reader *reader) {
    const mdp_tensor *found = mdp_catalogue_find(catalogue, tensor->name);
    expect(comm, found != NULL, "not in the catalogue", tensor->name);
    if (!found) return;
    bool same = found->type == tensor->type && found->n_dim == tensor->n_dim && found->n_byte == tensor->n_byte;
    for (int d = 0; same && d < tensor->n_dim; d++) same = found->shape[d] == tensor->shape[d];
    expect(comm, same, "type or shape is another when read again", tensor->name);
    if (!same) return;
    char *expected = sample_expected(s, tensor), *bytes = NULL;
    sample_must(MDP_ALLOC(&bytes, tensor->n_byte, "bytes"));
    mdp_status status = mdp_ok();
    if (tensor->n_byte > 0) status = mdp_reader_read(reader, found->file, found->offset, found->n_byte, bytes);
    expect(comm, status.code == MDP_OK, "cannot be read again", status.text);
    expect(comm, memcmp(bytes, expected, (size_t)tensor->n_byte) == 0, "other bytes when read again", tensor->name);
    mdp_free(expected);
    mdp_free(bytes);
}

static void written_checkpoint_opens_again(const mdp_comm *comm, const sample *s, const char *folder,
                                           const char *name) {
    char *path = in_folder(folder, name);
    mdp_catalogue *catalogue = NULL;
    mdp_reader *reader = NULL;
    mdp_status status = mdp_catalogue_open_all(comm, path, &catalogue);
    expect(comm, status.code == MDP_OK, "does not open again", status.text);
    mdp_free(path);
    if (status.code != MDP_OK) return;
    sample_must(mdp_reader_new(catalogue, &reader));
    expect(comm, catalogue->n_tensor == s->output.n_tensor, "another number of tensors", name);
    expect(comm, catalogue->n_side_file == SAMPLE_N_SIDE, "another number of side files", name);
    expect(comm, strcmp(catalogue->config_text, s->output.config_text) == 0, "another config", name);
    for (int64_t i = 0; i < s->output.n_tensor; i++) check_read_back(comm, s, &s->output.tensors[i], catalogue, reader);
    mdp_reader_destroy(reader);
    mdp_catalogue_destroy(catalogue);
}

/* ---- what is refused ----------------------------------------------------------------------------------------- */

static void expect_refused(const mdp_comm *comm, mdp_status status, int code, const char *part) {
    expect(comm, status.code == code, "another exit code than expected", status.text);
    expect(comm, strstr(status.text, part) != NULL, part, status.text);
}

typedef mdp_status write_fn(const mdp_comm *comm, mdp_reader *reader, const mdp_output *output, const char *path,
                            const mdp_write_options *options);

/* Made in the state folder of `path`, then published: as commands do it. */
static mdp_status write_in(const mdp_comm *comm, const sample *s, write_fn *write, mdp_workshop *workshop,
                           const mdp_target *target) {
    mdp_write_options options = {.shard_byte = 1 << 30, .buffer_byte = 1 << 20};
    char *made = NULL;
    sample_must(mdp_workshop_path(workshop, mdp_path_name(target->path), &made));
    mdp_status status = mdp_agree_all(comm, comm->rank == 0 ? mdp_workshop_adopt(workshop, false) : mdp_ok());
    if (status.code == MDP_OK) status = write(comm, s->reader, &s->output, made, &options);
    if (status.code == MDP_OK)
        status = mdp_agree_all(comm, comm->rank == 0 ? mdp_workshop_publish(workshop, target) : mdp_ok());
    mdp_free(made);
    return status;
}

static mdp_status write_as(const mdp_comm *comm, const sample *s, write_fn *write, char *path, bool replace) {
    mdp_target target = {.path = path, .option = "--out", .replace = replace};
    mdp_workshop *workshop = NULL;
    char *state = NULL;
    target.kind = write == mdp_write_hf_all ? MDP_TARGET_FOLDER : MDP_TARGET_FILE;
    sample_must(mdp_workshop_name(path, false, &state));
    mdp_status status = mdp_workshop_open_all(comm, path, false, (mdp_claim){false, false}, false, &workshop);
    if (status.code == MDP_OK) status = write_in(comm, s, write, workshop, &target);
    mdp_status closed = mdp_workshop_close(workshop, false);
    expect(comm, closed.code == MDP_OK, "the state folder cannot be removed", closed.text);
    MPI_Barrier(comm->world);
    expect(comm, !mdp_path_exists(state), "the state folder stays", state);
    mdp_free(state);
    return status;
}

static void what_exists_is_kept_unless_asked(const mdp_comm *comm, const sample *s, const char *folder) {
    char *native = in_folder(folder, "all.h5"), *hf = in_folder(folder, "all"), *other = in_folder(folder, "foreign");
    char *shard = in_folder(hf, "model-00001-of-00003.safetensors"), *single = in_folder(hf, "model.safetensors");
    const char *exists = "exists already; give another --out or --overwrite";
    expect_refused(comm, write_as(comm, s, mdp_write_native_all, native, false), MDP_CANNOT_CREATE, exists);
    expect_refused(comm, write_as(comm, s, mdp_write_hf_all, hf, false), MDP_CANNOT_CREATE, exists);
    expect(comm, mdp_path_exists(shard), "the old output is gone", shard);
    MPI_Barrier(comm->world);
    mdp_status status = write_as(comm, s, mdp_write_native_all, native, true);
    expect(comm, status.code == MDP_OK, "replacing model.h5", status.text);
    status = write_as(comm, s, mdp_write_hf_all, hf, true);
    expect(comm, status.code == MDP_OK, "replacing a HF folder", status.text);
    expect(comm, mdp_path_exists(single) && !mdp_path_exists(shard), "the new output is not there alone", hf);
    char *mine = in_folder(hf, "mine.gguf");
    if (comm->rank == 0) {
        sample_must(mdp_folder_create(other));
        char *file = in_folder(other, "thesis.tex");
        sample_must(mdp_file_write_all(file, "x", 1));
        sample_must(mdp_file_write_all(mine, "x", 1));
        mdp_free(file);
    }
    MPI_Barrier(comm->world);
    expect_refused(comm, write_as(comm, s, mdp_write_hf_all, other, true), MDP_CANNOT_CREATE,
                   "this program did not write it");
    expect_refused(comm, write_as(comm, s, mdp_write_native_all, other, true), MDP_CANNOT_CREATE,
                   "is a folder, the output is to be a file");
    expect_refused(comm, write_as(comm, s, mdp_write_hf_all, hf, true), MDP_CANNOT_CREATE, "it holds mine.gguf");
    expect(comm, mdp_path_exists(mine) && mdp_path_exists(single), "a folder with a file of others was touched", hf);
    mdp_free(native);
    mdp_free(hf);
    mdp_free(other);
    mdp_free(shard);
    mdp_free(single);
    mdp_free(mine);
}

/* As commands check one output before they begin. Rank 0 looks. */
static mdp_status check_place(const mdp_comm *comm, const char *path, mdp_target_kind kind, const char *input,
                              bool overwrite, int64_t n_byte) {
    mdp_places places = {0};
    char *folder = NULL;
    sample_must(mdp_places_add_target(&places, path, "--out", kind, overwrite));
    sample_must(mdp_places_add_input(&places, input));
    sample_must(mdp_path_folder(&folder, path));
    mdp_status status = mdp_ok();
    if (comm->rank == 0) status = mdp_places_check_apart(&places);
    if (comm->rank == 0 && status.code == MDP_OK) status = mdp_folder_check_room(folder, n_byte);
    if (comm->rank == 0 && status.code == MDP_OK) status = mdp_places_check_free(&places);
    mdp_places_clear(&places);
    mdp_free(folder);
    return mdp_agree_all(comm, status);
}

static void impossible_places_are_refused_before_writing(const mdp_comm *comm, const char *folder, const char *source) {
    static const struct {
        const char *name;
        mdp_target_kind kind;
        bool overwrite;
        int64_t n_byte;
        const char *part; /* NULL: accepted */
    } cases[] = {
        {"all.h5", MDP_TARGET_FILE, false, 0, "all.h5 exists already; give another --out or --overwrite"},
        {"all.h5", MDP_TARGET_FILE, true, 0, NULL},
        {"all/", MDP_TARGET_FOLDER, false, 0, "all exists already; give another --out or --overwrite"},
        {"all/", MDP_TARGET_FILE, true, 0, "all is a folder, the output is to be a file"},
        {"all.h5", MDP_TARGET_FOLDER, true, 0, "all.h5 is a file, the output is to be a folder"},
        {"new", MDP_TARGET_FILE, false, 1000, NULL},
        {"none/new", MDP_TARGET_FILE, false, 0,
         "in which the output is to be written, cannot be used: No such file or directory"},
        {"all.h5/new", MDP_TARGET_FILE, false, 0, "is not a folder"},
        {"source.bin", MDP_TARGET_FILE, true, 0, "is the input"},
        {"all/../source.bin", MDP_TARGET_FILE, true, 0, "is the input"},
        {"source.bin/new", MDP_TARGET_FILE, true, 0, "is not a folder"},
        {"../", MDP_TARGET_FOLDER, true, 0, "contains the input"},
        {"new", MDP_TARGET_FILE, false, INT64_C(1) << 60, "free; give another --out"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char *path = NULL;
        sample_must(mdp_format(&path, "%s/%s", folder, cases[i].name));
        mdp_status status = check_place(comm, path, cases[i].kind, source, cases[i].overwrite, cases[i].n_byte);
        if (cases[i].part)
            expect_refused(comm, status, MDP_CANNOT_CREATE, cases[i].part);
        else
            expect(comm, status.code == MDP_OK, "a good place is refused", status.text);
        mdp_free(path);
    }
}

static void an_output_inside_the_input_is_refused(const mdp_comm *comm, const char *folder) {
    char *path = in_folder(folder, "new");
    expect_refused(comm, check_place(comm, path, MDP_TARGET_FILE, folder, true, 0), MDP_CANNOT_CREATE,
                   "lies inside the input");
    mdp_free(path);
}

/* The last tensor claims bytes beyond the end of the file: only its owner can notice. */
static void an_error_of_one_rank_is_the_error_of_all(const mdp_comm *comm, sample *s, const char *folder) {
    mdp_write_options options = {.shard_byte = 1 << 30, .buffer_byte = 1000};
    mdp_tensor *source = (mdp_tensor *)s->output.tensors[s->output.n_tensor - 1].segments[0].source;
    int64_t good = source->offset;
    source->offset = SAMPLE_SOURCE_BYTE - 1;
    char *native = in_folder(folder, "bad.h5"), *hf = in_folder(folder, "bad");
    mdp_status status = mdp_write_native_all(comm, s->reader, &s->output, native, &options);
    expect(comm, status.code != MDP_OK && strstr(status.text, "source.bin"), "not the reading error", status.text);
    status = mdp_write_hf_all(comm, s->reader, &s->output, hf, &options);
    expect(comm, status.code != MDP_OK && strstr(status.text, "source.bin"), "not the reading error", status.text);
    MPI_Barrier(comm->world); /* rank 0 has cleaned up */
    expect(comm, !mdp_path_exists(native) && !mdp_path_exists(hf), "something was left", hf);
    source->offset = good;
    mdp_free(native);
    mdp_free(hf);
}

/* ---- main ---------------------------------------------------------------------------------------------------- */

static void remove_everything(const char *folder) {
    static const char *const below[] = {"all", "one", "foreign"};
    for (size_t i = 0; i < sizeof below / sizeof *below; i++) {
        char *path = in_folder(folder, below[i]);
        sample_must(mdp_folder_remove(path));
        mdp_free(path);
    }
    sample_must(mdp_folder_remove(folder));
}

static void run_tests(const mdp_comm *comm) {
    mdp_comm *alone = NULL;
    sample_must(mdp_comm_new_all(MPI_COMM_SELF, &alone));
    char folder[] = "/tmp/mdp-write-XXXXXX";
    if (comm->rank == 0 && !mkdtemp(folder)) abort();
    sample_must(mdp_bcast_all(comm, folder, sizeof folder, 0));
    char *source = in_folder(folder, "source.bin");
    sample s;
    sample_make(&s, source);
    if (comm->rank == 0) sample_write_source(&s);
    MPI_Barrier(comm->world);

    any_number_of_ranks_gives_the_bytes_of_one(comm, alone, &s, folder);
    MPI_Barrier(comm->world);
    model_h5_holds_every_tensor(comm, &s, folder);
    written_checkpoint_opens_again(comm, &s, folder, "all.h5");
    written_checkpoint_opens_again(comm, &s, folder, "all");
    impossible_places_are_refused_before_writing(comm, folder, source);
    an_output_inside_the_input_is_refused(comm, folder);
    what_exists_is_kept_unless_asked(comm, &s, folder);
    an_error_of_one_rank_is_the_error_of_all(comm, &s, folder);

    MPI_Barrier(comm->world);
    if (comm->rank == 0) remove_everything(folder);
    sample_end(&s);
    mdp_free(source);
    mdp_comm_destroy_all(alone);
}

/* Write the sample below `folder` as it stands, one container after the other; the exit code of the first error. */
static int write_for_others(const mdp_comm *comm, const char *source, const char *folder) {
    mdp_write_options options = {.shard_byte = 200000, .buffer_byte = 65536};
    sample s;
    sample_make(&s, source);
    if (comm->rank == 0 && !mdp_path_exists(source)) sample_write_source(&s);
    MPI_Barrier(comm->world);
    char *native = in_folder(folder, "all.h5"), *hf = in_folder(folder, "all");
    mdp_status status = mdp_write_native_all(comm, s.reader, &s.output, native, &options);
    if (status.code == MDP_OK) status = mdp_write_hf_all(comm, s.reader, &s.output, hf, &options);
    if (status.code != MDP_OK && comm->rank == 0) fprintf(stderr, "write_checkpoint: %s\n", status.text);
    mdp_free(native);
    mdp_free(hf);
    sample_end(&s);
    return status.code;
}

int main(int argc, char **argv) {
    MPI_Init(&argc, &argv);
    mdp_comm *comm = NULL;
    int code = 0;
    sample_must(mdp_comm_new_all(MPI_COMM_WORLD, &comm));
    if (argc == 3) {
        code = write_for_others(comm, argv[1], argv[2]);
    } else {
        run_tests(comm);
        MPI_Allreduce(MPI_IN_PLACE, &n_wrong, 1, MPI_INT, MPI_SUM, MPI_COMM_WORLD);
        if (comm->rank == 0) printf("write_checkpoint on %d ranks: %d wrong\n", comm->size, n_wrong);
        code = n_wrong > 0;
    }
    mdp_comm_destroy_all(comm);
    MPI_Finalize();
    return code;
}
