/* The catalogue on all ranks: what safetensors and h5py wrote is found and read right, one fingerprint for every
 * container of a model, and one sentence on every rank for folders and files that are wrong. */
#include "mdp/checkpoint.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define FIXTURES MDP_TEST_FIXTURES "/checkpoint"
#define GOLDEN MDP_TEST_FIXTURES "/golden"

static int n_wrong = 0;

static void expect(bool truth, const char *where, const char *what) {
    if (truth) return;
    n_wrong++;
    fprintf(stderr, "checkpoint_catalogue: %s: %s\n", where, what);
}

/* ---- what is right ------------------------------------------------------------------------------------------- */

static void check_bytes(mdp_reader *reader, const mdp_tensor *tensor, const char *hex) {
    int64_t n = (int64_t)strlen(hex) / 2;
    expect(tensor->n_byte == n, tensor->name, "number of bytes");
    if (tensor->n_byte != n) return;
    unsigned char *data = malloc((size_t)n + 1);
    mdp_status status = mdp_reader_read(reader, tensor->file, tensor->offset, n, data);
    expect(status.code == MDP_OK, tensor->name, status.text);
    bool equal = true;
    for (int64_t i = 0; i < n; i++) {
        char digits[3];
        snprintf(digits, sizeof digits, "%02x", data[i]);
        equal = equal && memcmp(digits, hex + 2 * i, 2) == 0;
    }
    expect(equal, tensor->name, "bytes differ from what safetensors wrote");
    free(data);
}

static void check_values(mdp_reader *reader, const mdp_tensor *tensor, const json_t *values) {
    mdp_matrix matrix = mdp_matrix_whole(tensor);
    float *out = NULL;
    mdp_status status = mdp_matrix_load(reader, &matrix, &out);
    expect(status.code == MDP_OK, tensor->name, status.text);
    if (status.code != MDP_OK) return;
    size_t n = json_array_size(values);
    expect((int64_t)n == matrix.n_row * matrix.n_col, tensor->name, "number of values");
    for (size_t i = 0; i < n; i++) {
        expect((double)out[i] == json_number_value(json_array_get(values, i)), tensor->name,
               "value differs from numpy's");
    }
    mdp_free(out);
}

static void check_tensor(mdp_reader *reader, const mdp_tensor *tensor, const json_t *expected) {
    const json_t *shape = json_object_get(expected, "shape");
    expect(strcmp(mdp_dtype_name(tensor->type), json_string_value(json_object_get(expected, "dtype"))) == 0,
           tensor->name, "dtype");
    expect((size_t)tensor->n_dim == json_array_size(shape), tensor->name, "number of dimensions");
    for (int i = 0; i < tensor->n_dim; i++) {
        expect(tensor->shape[i] == json_integer_value(json_array_get(shape, (size_t)i)), tensor->name, "shape");
    }
    check_bytes(reader, tensor, json_string_value(json_object_get(expected, "hex")));
    const json_t *values = json_object_get(expected, "values");
    if (values != NULL) check_values(reader, tensor, values);
}

static void check_side_files(const mdp_catalogue *catalogue, mdp_reader *reader) {
    static const struct {
        const char *name, *text;
    } expected[3] = {{"empty.txt", ""}, {"modeling_x.py", "x = 1\n"}, {"tokenizer.json", "{\"version\": \"1.0\"}"}};
    expect(catalogue->n_side_file == 3, catalogue->path, "number of side files");
    for (int64_t i = 0; i < catalogue->n_side_file && i < 3; i++) {
        const mdp_side_file *file = &catalogue->side_files[i];
        char text[64] = "";
        expect(strcmp(file->name, expected[i].name) == 0, file->name, "name of a side file");
        expect(file->n_byte == (int64_t)strlen(expected[i].text), file->name, "size of a side file");
        if (file->n_byte > 60) continue;
        expect(mdp_reader_read(reader, file->file, file->offset, file->n_byte, text).code == MDP_OK, file->name,
               "read");
        expect(strcmp(text, expected[i].text) == 0, file->name, "content of a side file");
    }
}

static void check_order(const mdp_catalogue *catalogue) {
    int64_t n_byte = 0;
    for (int64_t i = 0; i < catalogue->n_tensor; i++) {
        const mdp_tensor *tensor = &catalogue->tensors[i];
        n_byte += tensor->n_byte;
        expect(i == 0 || strcmp(tensor[-1].name, tensor->name) < 0, tensor->name, "names do not ascend");
        expect(mdp_catalogue_find(catalogue, tensor->name) == tensor, tensor->name, "is not found");
    }
    expect(n_byte == catalogue->tensor_byte, catalogue->path, "tensor_byte");
    expect(mdp_catalogue_find(catalogue, "model.layers") == NULL, catalogue->path, "finds what is not there");
    expect(mdp_catalogue_find(catalogue, "") == NULL, catalogue->path, "finds the empty name");
    expect(mdp_catalogue_find(catalogue, "zzz") == NULL, catalogue->path, "finds what is behind the last");
}

static void fingerprint(const mdp_comm *comm, mdp_catalogue *catalogue, char out[33]) {
    mdp_status status = mdp_catalogue_fingerprint_all(comm, catalogue);
    expect(status.code == MDP_OK, catalogue->path, status.text);
    expect(strlen(catalogue->fingerprint) == 32, catalogue->path, "fingerprint");
    memcpy(out, catalogue->fingerprint, 33);
}

static void a_fixture_is_read_right(const mdp_comm *comm, const char *path, const json_t *expected, char print[33]) {
    mdp_catalogue *catalogue = NULL;
    mdp_reader *reader = NULL;
    mdp_status status = mdp_catalogue_open_all(comm, path, &catalogue);
    expect(status.code == MDP_OK, path, status.text);
    if (status.code != MDP_OK) return;
    expect(mdp_reader_new(catalogue, &reader).code == MDP_OK, path, "no reader");
    bool native = strstr(path, ".h5") != NULL;
    expect(strcmp(catalogue->path, path) == 0, path, "path");
    expect(catalogue->container == (native ? MDP_NATIVE : MDP_HF_FOLDER), path, "container");
    expect(strstr(catalogue->config_text, "\"num_local_experts\": 3") != NULL, path, "config.json");
    expect((int64_t)strlen(catalogue->config_text) == catalogue->config_byte, path, "length of config.json");
    expect(catalogue->plan_text == NULL, path, "a plan that is not there");
    expect(native ? strcmp(catalogue->provenance_text, "{\"seed\": 1}") == 0 : catalogue->provenance_text == NULL, path,
           "provenance");
    expect(catalogue->n_tensor == (int64_t)json_object_size(expected), path, "number of tensors");
    for (int64_t i = 0; i < catalogue->n_tensor; i++) {
        const json_t *entry = json_object_get(expected, catalogue->tensors[i].name);
        expect(entry != NULL, catalogue->tensors[i].name, "is not one of the tensors");
        if (entry != NULL) check_tensor(reader, &catalogue->tensors[i], entry);
    }
    check_order(catalogue);
    check_side_files(catalogue, reader);
    fingerprint(comm, catalogue, print);
    mdp_reader_destroy(reader);
    mdp_catalogue_destroy(catalogue);
}

/* One file, shards and our own container hold the same model: same bytes, same fingerprint. */
static void containers_agree(const mdp_comm *comm) {
    static const char *const paths[3] = {FIXTURES "/hf", FIXTURES "/sharded", FIXTURES "/native.h5"};
    char prints[3][33] = {"", "", ""};
    json_t *expected = json_load_file(FIXTURES "/expected.json", 0, NULL);
    expect(json_is_object(expected), FIXTURES, "expected.json");
    for (int i = 0; i < 3; i++) {
        a_fixture_is_read_right(comm, paths[i], expected, prints[i]);
        expect(strcmp(prints[0], prints[i]) == 0, paths[i], "fingerprint differs between containers");
    }
    json_decref(expected);
}

/* The golden checkpoints of transformers: counts known from their tensors.txt. */
static void golden_checkpoints_open(const mdp_comm *comm) {
    static const struct {
        const char *path;
        int n_file;
        mdp_dtype type;
    } golden[2] = {{GOLDEN "/mixtral", 1, MDP_F32}, {GOLDEN "/mixtral_bf16", 7, MDP_BF16}};
    char prints[2][33];
    for (int i = 0; i < 2; i++) {
        mdp_catalogue *catalogue = NULL;
        mdp_status status = mdp_catalogue_open_all(comm, golden[i].path, &catalogue);
        expect(status.code == MDP_OK, golden[i].path, status.text);
        if (status.code != MDP_OK) continue;
        expect(catalogue->n_file - catalogue->n_side_file == golden[i].n_file, golden[i].path,
               "number of weight files");
        const mdp_tensor *embedding = mdp_catalogue_find(catalogue, "model.embed_tokens.weight");
        expect(embedding != NULL && embedding->type == golden[i].type && embedding->shape[0] == 512 &&
                   embedding->shape[1] == 64,
               golden[i].path, "embeddings");
        check_order(catalogue);
        fingerprint(comm, catalogue, prints[i]);
        mdp_catalogue_destroy(catalogue);
    }
    expect(strcmp(prints[0], prints[1]) != 0, GOLDEN, "different models have one fingerprint");
}

/* ---- what is wrong ------------------------------------------------------------------------------------------- */

static void expect_refusal(const mdp_comm *comm, const char *path, const char *sentence) {
    mdp_catalogue *catalogue = NULL;
    mdp_status status = mdp_catalogue_open_all(comm, path, &catalogue);
    bool right = status.code == MDP_BAD_INPUT && strstr(status.text, sentence) != NULL && catalogue == NULL &&
                 strstr(status.text, "HDF5-DIAG") == NULL;
    if (!right) fprintf(stderr, "rank %d: code %d, \"%s\"\n", comm->rank, status.code, status.text);
    expect(right, path, sentence);
    if (status.code == MDP_OK) mdp_catalogue_destroy(catalogue);
}

static void bad_native_files_are_refused(const mdp_comm *comm) {
    expect_refusal(comm, FIXTURES "/native-chunked.h5", "/lm_head/weight is not stored as one contiguous run of bytes");
    expect_refusal(comm, FIXTURES "/native-chunked.h5", "h5repack -f NONE -l CONTI");
    expect_refusal(comm, FIXTURES "/native-unfinished.h5", "was not finished");
    expect_refusal(comm, FIXTURES "/native-newer.h5", "has format version 2.0; this program reads versions up to 1.x");
    expect_refusal(comm, FIXTURES "/native-foreign.h5",
                   "is a \"moe-dist-prune statistics\"; expected a \"moe-dist-prune "
                   "checkpoint\"");
    expect_refusal(comm, FIXTURES "/native-type.h5",
                   "the HDF5 type of /lm_head/weight is not the one for stored_type BF16");
    expect_refusal(comm, FIXTURES "/native-twice.h5", "'model.norm.weight' is stored twice");
    expect_refusal(comm, GOLDEN "/mixtral/golden.h5", "no checkpoint of moe-dist-prune");
    expect_refusal(comm, FIXTURES "/expected.json",
                   "this is no HDF5 file; expected a Hugging Face folder or a model.h5");
    expect_refusal(comm, FIXTURES "/nothing", "there is no such file or folder");
    expect_refusal(comm, FIXTURES, "no model.safetensors and no model.safetensors.index.json in this folder");
}

/* A scratch folder that rank 0 fills; other ranks only ever hear of it through the catalogue. */
typedef struct scratch {
    const mdp_comm *comm;
    char folder[64];
} scratch;

static void put(const scratch *s, const char *name, const void *data, int64_t n_byte) {
    if (s->comm->rank != 0) return;
    char path[200];
    snprintf(path, sizeof path, "%s/%s", s->folder, name);
    FILE *file = fopen(path, "wb");
    expect(file != NULL && fwrite(data, 1, (size_t)n_byte, file) == (size_t)n_byte, path, "cannot be written");
    if (file != NULL) fclose(file);
}

static void put_text(const scratch *s, const char *name, const char *text) {
    put(s, name, text, (int64_t)strlen(text));
}

/* A safetensors file of one-byte tensors with the given names. */
static void put_tensors(const scratch *s, const char *file, int n, const char *const *names) {
    char data[1000] = {0}, *header = data + 8;
    int at = sprintf(header, "{");
    for (int i = 0; i < n; i++) {
        at += sprintf(header + at, "%s\"%s\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[%d,%d]}", i ? "," : "",
                      names[i], i, i + 1);
    }
    at += sprintf(header + at, "}");
    data[0] = (char)(at & 255);
    data[1] = (char)(at >> 8);
    put(s, file, data, 8 + at + n);
}

static scratch begin(const mdp_comm *comm) {
    scratch s = {.comm = comm};
    snprintf(s.folder, sizeof s.folder, "/tmp/mdp-catalogue-XXXXXX");
    if (comm->rank == 0) expect(mkdtemp(s.folder) != NULL, s.folder, "cannot be made");
    mdp_status status = mdp_bcast_all(comm, s.folder, sizeof s.folder, 0);
    expect(status.code == MDP_OK, s.folder, status.text);
    put_text(&s, "config.json", "{}");
    return s;
}

static void end(const scratch *s) {
    if (s->comm->rank == 0) expect(mdp_folder_remove(s->folder).code == MDP_OK, s->folder, "cannot be removed");
}

static void index_is_refused(const mdp_comm *comm, const char *index, const char *sentence) {
    static const char *const first[2] = {"a", "b"}, *const second[1] = {"c"};
    scratch s = begin(comm);
    put_tensors(&s, "one.safetensors", 2, first);
    put_tensors(&s, "two.safetensors", 1, second);
    put_text(&s, "model.safetensors.index.json", index);
    expect_refusal(comm, s.folder, sentence);
    end(&s);
}

static void bad_indexes_are_refused(const mdp_comm *comm) {
    index_is_refused(comm, "", "not valid JSON");
    index_is_refused(comm, "[]", "no object \"weight_map\"");
    index_is_refused(comm, "{\"metadata\":{}}", "no object \"weight_map\"");
    index_is_refused(comm, "{\"weight_map\":{}}", "no object \"weight_map\"");
    index_is_refused(comm, "{\"weight_map\":{\"a\":1}}", "'a' is mapped to something that is no text");
    index_is_refused(comm, "{\"weight_map\":{\"a\":\"../one.safetensors\"}}",
                     "\"../one.safetensors\", which is not the plain "
                     "name of a file");
    index_is_refused(comm, "{\"weight_map\":{\"a\":\"..\"}}", "which is not the plain name");
    index_is_refused(comm, "{\"weight_map\":{\"a\":\"\"}}", "which is not the plain name");
    index_is_refused(comm, "{\"weight_map\":{\"a\":\"/etc/passwd\"}}", "which is not the plain name");
    index_is_refused(comm, "{\"weight_map\":{\"a\":\"three.safetensors\"}}",
                     "names three.safetensors, which is not in the "
                     "folder");
    index_is_refused(comm, "{\"weight_map\":{\"a\":\"one.safetensors\",\"a\":\"two.safetensors\"}}", "duplicate");
    index_is_refused(comm, "{\"weight_map\":{\"a\":\"one.safetensors\",\"c\":\"two.safetensors\"}}",
                     "'b' is stored in one.safetensors, but the index does not name it");
    index_is_refused(comm,
                     "{\"weight_map\":{\"a\":\"one.safetensors\",\"b\":\"two.safetensors\",\"c\":\"two.safetensors\"}}",
                     "'b' is mapped to two.safetensors, but is stored in one.safetensors");
    index_is_refused(comm,
                     "{\"weight_map\":{\"a\":\"one.safetensors\",\"b\":\"one.safetensors\",\"c\":\"two.safetensors\","
                     "\"d\":\"two.safetensors\"}}",
                     "'d' is mapped to two.safetensors, but is not stored there");
}

static void folders_without_parts_are_refused(const mdp_comm *comm) {
    static const char *const names[1] = {"a"};
    scratch s = begin(comm);
    expect_refusal(comm, s.folder,
                   "no model.safetensors and no model.safetensors.index.json in this folder; a checkpoint");
    put_tensors(&s, "other.safetensors", 1, names);
    expect_refusal(comm, s.folder, "in this folder, only other.safetensors");
    put_tensors(&s, "consolidated.safetensors", 1, names);
    expect_refusal(comm, s.folder,
                   "there is consolidated.safetensors, and no model.safetensors here: weights in the form of the "
                   "model's authors");
    put_text(&s, "model.h5", "");
    expect_refusal(comm, s.folder, "/model.h5.");
    put_text(&s, "model.safetensors", "");
    expect_refusal(comm, s.folder, "model.safetensors: the file has 0 bytes");
    end(&s);
    s = begin(comm);
    put_tensors(&s, "model.safetensors", 1, names);
    if (comm->rank == 0) {
        char path[200];
        snprintf(path, sizeof path, "%s/config.json", s.folder);
        unlink(path);
    }
    expect_refusal(comm, s.folder, "no config.json in this folder");
    end(&s);
}

/* The single file wins over an index beside it; links are followed, and one that leads nowhere is refused, unless its
 * name is of no use; what is left out is named. */
static void single_file_wins_and_links_are_followed(const mdp_comm *comm) {
    static const char *const names[1] = {"a"};
    scratch s = begin(comm);
    put_tensors(&s, "blob", 1, names);
    put_text(&s, "model.safetensors.index.json", "broken");
    if (comm->rank == 0) {
        char link[200], folder[200];
        snprintf(link, sizeof link, "%s/model.safetensors", s.folder);
        expect(symlink("blob", link) == 0, link, "cannot be made");
        snprintf(link, sizeof link, "%s/dangling.txt", s.folder);
        expect(symlink("nowhere", link) == 0, link, "cannot be made");
        snprintf(folder, sizeof folder, "%s/folder", s.folder);
        expect(mkdir(folder, 0777) == 0, folder, "cannot be made");
    }
    expect_refusal(comm, s.folder, "dangling.txt: is a link to a file that is not there");
    if (comm->rank == 0) {
        char link[200], other[200];
        snprintf(link, sizeof link, "%s/dangling.txt", s.folder);
        snprintf(other, sizeof other, "%s/dangling.gguf", s.folder);
        expect(rename(link, other) == 0, link, "cannot be renamed");
    }
    mdp_catalogue *catalogue = NULL;
    mdp_status status = mdp_catalogue_open_all(comm, s.folder, &catalogue);
    expect(status.code == MDP_OK, s.folder, status.text);
    if (status.code == MDP_OK) {
        expect(catalogue->n_tensor == 1 && strcmp(catalogue->tensors[0].name, "a") == 0, s.folder, "tensors");
        expect(catalogue->n_side_file == 1 && strcmp(catalogue->side_files[0].name, "blob") == 0, s.folder,
               "side files");
        expect(catalogue->left_out &&
                   strcmp(catalogue->left_out, "dangling.gguf, folder/, model.safetensors.index.json") == 0,
               s.folder, catalogue->left_out ? catalogue->left_out : "nothing is left out");
        mdp_catalogue_destroy(catalogue);
    }
    if (comm->rank == 0) {
        char folder[200];
        snprintf(folder, sizeof folder, "%s/folder", s.folder);
        rmdir(folder);
    }
    end(&s);
}

/* A file that has grown or shrunk since it was listed is not read, whichever end is read. */
static void files_of_another_size_are_refused(const mdp_comm *comm) {
    static const char *const names[1] = {"a"}, *const texts[] = {"longer than it was", "short"};
    for (int i = 0; i < 2; i++) {
        scratch s = begin(comm);
        char byte;
        mdp_catalogue *catalogue = NULL;
        mdp_reader *reader = NULL;
        put_tensors(&s, "model.safetensors", 1, names);
        put_text(&s, "vocab.txt", "as it was");
        mdp_status status = mdp_catalogue_open_all(comm, s.folder, &catalogue);
        expect(status.code == MDP_OK && catalogue->n_side_file == 1, s.folder, status.text);
        put_text(&s, "vocab.txt", texts[i]);
        MPI_Barrier(MPI_COMM_WORLD);
        if (status.code == MDP_OK) status = mdp_reader_new(catalogue, &reader);
        if (status.code == MDP_OK) status = mdp_reader_read(reader, catalogue->side_files[0].file, 0, 1, &byte);
        expect(status.code == MDP_BAD_INPUT && strstr(status.text, "vocab.txt: the file has") != NULL, s.folder,
               status.text);
        mdp_reader_destroy(reader);
        mdp_catalogue_destroy(catalogue);
        MPI_Barrier(MPI_COMM_WORLD);
        end(&s);
    }
}

/* A truncated model.h5, cut anywhere: refused, or read with every extent inside the file. */
static void truncated_native_files_are_refused(const mdp_comm *comm) {
    scratch s = begin(comm);
    char path[200];
    snprintf(path, sizeof path, "%s/cut.h5", s.folder);
    for (int64_t part = 1; part < 8; part++) {
        if (comm->rank == 0) {
            char *data = NULL;
            int64_t n_byte;
            expect(mdp_file_read_all(FIXTURES "/native.h5", 1 << 20, &data, &n_byte).code == MDP_OK, FIXTURES, "read");
            put(&s, "cut.h5", data, n_byte * part / 8);
            mdp_free(data);
        }
        expect_refusal(comm, path, "cannot be opened: it is truncated, damaged, or still being written");
    }
    end(&s);
}

int main(int argc, char **argv) {
    MPI_Init(&argc, &argv);
    mdp_comm *comm = NULL;
    if (mdp_comm_new_all(MPI_COMM_WORLD, &comm).code != MDP_OK) MPI_Abort(MPI_COMM_WORLD, 1);
    containers_agree(comm);
    golden_checkpoints_open(comm);
    bad_native_files_are_refused(comm);
    bad_indexes_are_refused(comm);
    folders_without_parts_are_refused(comm);
    single_file_wins_and_links_are_followed(comm);
    files_of_another_size_are_refused(comm);
    truncated_native_files_are_refused(comm);
    int64_t wrong = n_wrong;
    if (mdp_sum_i64_all(comm, &wrong, 1).code != MDP_OK) wrong = 1;
    if (comm->rank == 0) printf("checkpoint_catalogue: %s on %d ranks\n", wrong == 0 ? "passed" : "FAILED", comm->size);
    mdp_comm_destroy_all(comm);
    MPI_Finalize();
    return wrong == 0 ? 0 : 1;
}
