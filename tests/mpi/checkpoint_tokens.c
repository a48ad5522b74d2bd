/* tokens.h5 on all ranks: files that h5py wrote, ranges that cross categories, selection of categories, and one
 * sentence on every rank for each way in which a file can be wrong. */
#include "mdp/checkpoint.h"

#include <hdf5.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define CALIB MDP_TEST_FIXTURES "/text/calib.h5"
#define ODD MDP_TEST_FIXTURES "/checkpoint/tokens.h5"

static int n_wrong = 0;

static void expect(bool truth, const char *where, const char *what) {
    if (truth) return;
    n_wrong++;
    fprintf(stderr, "checkpoint_tokens: %s: %s\n", where, what);
}

static mdp_tokens *open_tokens(const mdp_comm *comm, const char *path, const char *categories, int64_t vocab_size) {
    mdp_tokens *tokens = NULL;
    mdp_status status = mdp_tokens_open_all(comm, path, categories, vocab_size, &tokens);
    expect(status.code == MDP_OK && tokens != NULL, path, status.text);
    return tokens;
}

/* ---- what is right ------------------------------------------------------------------------------------------- */

/* Sums of ids of each category, as h5py and numpy give them. */
static void calibration_text_is_read_right(const mdp_comm *comm) {
    static const struct {
        const char *name;
        int64_t sum;
        uint32_t first[4];
    } expected[6] = {{"c", 3665735, {0, 9, 408, 74}},         {"json", 2860778, {0, 275, 264, 1102}},
                     {"math", 1547959, {0, 420, 222, 19}},    {"prose", 4378569, {0, 1908, 466, 438}},
                     {"python", 4169877, {0, 972, 320, 432}}, {"spanish", 4559871, {0, 39, 38, 1218}}};
    mdp_tokens *tokens = open_tokens(comm, CALIB, NULL, 2048);
    if (tokens == NULL) return;
    expect(tokens->n_category == 6 && tokens->n_sequence == 6 * 32 && tokens->n_token == 6 * 8192, CALIB, "counts");
    for (int64_t i = 0; i <= tokens->n_sequence; i++) expect(tokens->offset[i] == 256 * i, CALIB, "offset");
    static uint32_t ids[8192];
    for (int c = 0; c < 6 && c < tokens->n_category; c++) {
        int64_t sum = 0;
        expect(strcmp(tokens->category[c], expected[c].name) == 0, expected[c].name, "name");
        expect(tokens->category_offset[c] == 8192 * c, expected[c].name, "first token");
        expect(tokens->sequence_category[32 * c] == c && tokens->sequence_category[32 * c + 31] == c, expected[c].name,
               "category of its sequences");
        mdp_status status = mdp_tokens_read(tokens, 8192 * c, 8192, ids);
        expect(status.code == MDP_OK, expected[c].name, status.text);
        for (int i = 0; i < 8192; i++) sum += ids[i];
        expect(sum == expected[c].sum, expected[c].name, "sum of ids differs from numpy's");
        expect(memcmp(ids, expected[c].first, sizeof expected[c].first) == 0, expected[c].name, "first ids");
    }
    mdp_tokens_destroy(tokens);
}

/* Every range of a small file, across categories; ranges outside are refused. */
static void every_range_is_read_right(const mdp_comm *comm) {
    static const uint32_t all[9] = {1, 2, 3, 5, 6, 7, 8, 9, 4};
    mdp_tokens *tokens = open_tokens(comm, ODD, NULL, 10);
    if (tokens == NULL) return;
    for (int64_t first = 0; first <= 9; first++) {
        for (int64_t n = 0; first + n <= 9; n++) {
            uint32_t ids[10];
            ids[n] = 77;
            mdp_status status = mdp_tokens_read(tokens, first, n, ids);
            expect(status.code == MDP_OK && memcmp(ids, all + first, (size_t)n * sizeof *ids) == 0 && ids[n] == 77, ODD,
                   "a range of tokens");
        }
    }
    uint32_t id;
    expect(mdp_tokens_read(tokens, 9, 1, &id).code == MDP_INTERNAL, ODD, "reads beyond the end");
    expect(mdp_tokens_read(tokens, -1, 1, &id).code == MDP_INTERNAL, ODD, "reads before the start");
    mdp_tokens_destroy(tokens);
}

/* Compressed and wider ids, an empty sequence, a name outside ASCII, other things at the root. */
static void unusual_files_are_read(const mdp_comm *comm) {
    static const int64_t offsets[5] = {0, 3, 5, 8, 9}, categories[4] = {0, 3, 8, 9};
    static const int32_t of_sequence[4] = {0, 1, 1, 2};
    mdp_tokens *tokens = open_tokens(comm, ODD, NULL, 10);
    if (tokens == NULL) return;
    expect(tokens->n_category == 3 && tokens->n_sequence == 4 && tokens->n_token == 9, ODD, "counts");
    expect(strcmp(tokens->category[2], "\xc3\xa9") == 0, ODD, "the last category in byte order");
    expect(memcmp(tokens->offset, offsets, sizeof offsets) == 0, ODD, "offsets without the empty sequence");
    expect(memcmp(tokens->category_offset, categories, sizeof categories) == 0, ODD, "category offsets");
    expect(memcmp(tokens->sequence_category, of_sequence, sizeof of_sequence) == 0, ODD, "categories of sequences");
    mdp_tokens_destroy(tokens);
}

/* The bytes that the fingerprint is defined over, spelt out for one category. */
static void fingerprint_is_as_defined(const mdp_comm *comm) {
    const int64_t offsets[4] = {0, 2, 2, 5}, n_offset = 4;
    const uint32_t ids[5] = {5, 6, 7, 8, 9};
    unsigned char bytes[2 + 8 + 32 + 20];
    memcpy(bytes, "b", 2);
    memcpy(bytes + 2, &n_offset, 8);
    memcpy(bytes + 10, offsets, 32);
    memcpy(bytes + 42, ids, 20);
    mdp_tokens *b = open_tokens(comm, ODD, "b", 10), *all = open_tokens(comm, ODD, NULL, 10);
    mdp_tokens *named = open_tokens(comm, ODD, "\xc3\xa9,b,a,b", 11);
    if (b == NULL || all == NULL || named == NULL) return;
    expect(strcmp(b->fingerprint, mdp_hash_bytes(bytes, sizeof bytes).hex) == 0, ODD, "fingerprint");
    expect(strcmp(all->fingerprint, named->fingerprint) == 0, ODD, "order of the selection changes the fingerprint");
    expect(strcmp(all->fingerprint, b->fingerprint) != 0, ODD, "fingerprint of a part");
    mdp_tokens_destroy(b);
    mdp_tokens_destroy(all);
    mdp_tokens_destroy(named);
}

static void categories_are_selected_by_name(const mdp_comm *comm) {
    mdp_tokens *tokens = open_tokens(comm, CALIB, "prose,c", 2048);
    if (tokens == NULL) return;
    expect(tokens->n_category == 2 && tokens->n_token == 2 * 8192, CALIB, "counts of a selection");
    expect(strcmp(tokens->category[0], "c") == 0 && strcmp(tokens->category[1], "prose") == 0, CALIB,
           "byte order, not the order of the option");
    uint32_t ids[2];
    expect(mdp_tokens_read(tokens, 8193, 2, ids).code == MDP_OK && ids[0] == 1908 && ids[1] == 466, CALIB,
           "tokens of the second category selected");
    mdp_tokens_destroy(tokens);
}

/* ---- what is wrong ------------------------------------------------------------------------------------------- */

static void expect_refusal(const mdp_comm *comm, const char *path, const char *categories, int64_t vocab_size,
                           const char *sentence) {
    mdp_tokens *tokens = NULL;
    mdp_status status = mdp_tokens_open_all(comm, path, categories, vocab_size, &tokens);
    bool right = status.code == MDP_BAD_INPUT && strstr(status.text, sentence) != NULL && tokens == NULL;
    if (!right) fprintf(stderr, "rank %d: code %d, \"%s\"\n", comm->rank, status.code, status.text);
    expect(right, path, sentence);
    mdp_tokens_destroy(tokens);
}

static void put_row(hid_t group, const char *name, hid_t type, int n_dim, int64_t n, const void *data, hid_t memory) {
    hsize_t dims[2] = {(hsize_t)n, 1};
    hid_t space = H5Screate_simple(n_dim, dims, NULL);
    hid_t dataset = H5Dcreate2(group, name, type, space, H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT);
    if (n > 0) expect(H5Dwrite(dataset, memory, H5S_ALL, H5S_ALL, H5P_DEFAULT, data) >= 0, name, "cannot be written");
    H5Dclose(dataset);
    H5Sclose(space);
}

/* A category "good", and "text" with what is given; NULL leaves a dataset out. */
typedef struct bad_file {
    const char *sentence;
    hid_t id_type;
    int n_dim;
    int64_t n_id, n_offset;
    const int64_t *ids, *offsets;
} bad_file;

static void write_tokens(const char *path, const bad_file *bad) {
    const int64_t ids[2] = {1, 2}, offsets[2] = {0, 2};
    hid_t file = H5Fcreate(path, H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT);
    hid_t good = H5Gcreate2(file, "good", H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT);
    hid_t text = H5Gcreate2(file, "text", H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT);
    put_row(good, "input_ids", H5T_STD_U32LE, 1, 2, ids, H5T_NATIVE_INT64);
    put_row(good, "offsets", H5T_STD_I64LE, 1, 2, offsets, H5T_NATIVE_INT64);
    if (bad->ids) put_row(text, "input_ids", bad->id_type, bad->n_dim, bad->n_id, bad->ids, H5T_NATIVE_INT64);
    if (bad->offsets) put_row(text, "offsets", H5T_STD_I64LE, 1, bad->n_offset, bad->offsets, H5T_NATIVE_INT64);
    H5Gclose(good);
    H5Gclose(text);
    H5Fclose(file);
}

static void bad_files_are_refused(const mdp_comm *comm) {
    static const int64_t ids[5] = {1, 2, 3, 100, 4}, negative[2] = {1, -1}, large[2] = {INT64_C(1) << 32, 0};
    static const int64_t right[3] = {0, 2, 5}, decreasing[4] = {0, 3, 2, 5}, overrun[3] = {0, 2, 6},
                         early[3] = {0, 2, 4};
    static const int64_t late[3] = {1, 2, 5}, none[2] = {0, 0}, two[2] = {0, 2}, far[2] = {0, INT64_MAX};
    const bad_file table[] = {
        {"category 'text', sequence 1, position 1: token id 100 is outside the vocabulary of 100 (vocab_size)",
         H5T_STD_U32LE, 1, 5, 3, ids, right},
        {"sequence 0, position 1: token id -1 is outside", H5T_STD_I32LE, 1, 2, 2, negative, two},
        {"sequence 0, position 0: token id 4294967296 is outside", H5T_STD_U64LE, 1, 2, 2, large, two},
        {"the offsets of category 'text' decrease: sequence 1 begins at 3 and ends at 2", H5T_STD_U32LE, 1, 5, 4, ids,
         decreasing},
        {"the offsets of category 'text' end at 6, but it has 5 tokens", H5T_STD_U32LE, 1, 5, 3, ids, overrun},
        {"end at 9223372036854775807, but it has 5 tokens", H5T_STD_U32LE, 1, 5, 2, ids, far},
        {"the offsets of category 'text' end at 4, but it has 5 tokens", H5T_STD_U32LE, 1, 5, 3, ids, early},
        {"the offsets of category 'text' begin at 1; expected 0", H5T_STD_U32LE, 1, 5, 3, ids, late},
        {"category 'text' has no tokens", H5T_STD_U32LE, 1, 0, 2, ids, none},
        {"category 'text' has no tokens", H5T_STD_U32LE, 1, 5, 1, ids, right},
        {"category 'text' has no dataset 'input_ids'", H5T_STD_U32LE, 1, 0, 3, NULL, right},
        {"category 'text' has no dataset 'offsets'", H5T_STD_U32LE, 1, 5, 0, ids, NULL},
        {"/text/input_ids is not a row of integers", H5T_IEEE_F32LE, 1, 5, 3, ids, right},
        {"/text/input_ids is not a row of integers", H5T_STD_U32LE, 2, 5, 3, ids, right},
    };
    char path[] = "/tmp/mdp-tokens-XXXXXX";
    if (comm->rank == 0) close(mkstemp(path));
    expect(mdp_bcast_all(comm, path, sizeof path, 0).code == MDP_OK, path, "broadcast");
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        if (comm->rank == 0) write_tokens(path, &table[i]);
        MPI_Barrier(comm->world);
        expect_refusal(comm, path, NULL, 100, table[i].sentence);
        mdp_tokens *good = open_tokens(comm, path, "good", 100); /* what is not used is not looked at */
        mdp_tokens_destroy(good);
        MPI_Barrier(comm->world);
    }
    if (comm->rank == 0) unlink(path);
}

static void wrong_names_are_refused(const mdp_comm *comm) {
    expect_refusal(comm, CALIB, "c,pros", 2048, "there is no category 'pros'. Did you mean 'prose'?");
    expect_refusal(comm, CALIB, "", 2048, "there is no category ''");
    expect_refusal(comm, CALIB, "mathematics-and-more", 2048,
                   "there is no category 'mathematics-and-more'; the first of 6");
    expect_refusal(comm, CALIB, NULL, 1000, "is outside the vocabulary of 1000");
    expect_refusal(comm, MDP_TEST_FIXTURES "/nothing.h5", NULL, 2048, "nothing.h5");
    expect_refusal(comm, MDP_TEST_FIXTURES "/README.md", NULL, 2048, "this is no HDF5 file; expected a tokens file");
}

/* No groups at all: one sentence, not an empty run. */
static void a_file_without_categories_is_refused(const mdp_comm *comm) {
    char path[] = "/tmp/mdp-tokens-XXXXXX";
    if (comm->rank == 0) {
        close(mkstemp(path));
        H5Fclose(H5Fcreate(path, H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT));
    }
    expect(mdp_bcast_all(comm, path, sizeof path, 0).code == MDP_OK, path, "broadcast");
    expect_refusal(comm, path, NULL, 100, "there is no category: expected groups with input_ids and offsets");
    MPI_Barrier(comm->world);
    if (comm->rank == 0) unlink(path);
}

int main(int argc, char **argv) {
    MPI_Init(&argc, &argv);
    mdp_comm *comm = NULL;
    if (mdp_comm_new_all(MPI_COMM_WORLD, &comm).code != MDP_OK) MPI_Abort(MPI_COMM_WORLD, 1);
    calibration_text_is_read_right(comm);
    every_range_is_read_right(comm);
    unusual_files_are_read(comm);
    fingerprint_is_as_defined(comm);
    categories_are_selected_by_name(comm);
    bad_files_are_refused(comm);
    wrong_names_are_refused(comm);
    a_file_without_categories_is_refused(comm);
    int64_t wrong = n_wrong;
    if (mdp_sum_i64_all(comm, &wrong, 1).code != MDP_OK) wrong = 1;
    if (comm->rank == 0) printf("checkpoint_tokens: %s on %d ranks\n", wrong == 0 ? "passed" : "FAILED", comm->size);
    mdp_comm_destroy_all(comm);
    MPI_Finalize();
    return wrong == 0 ? 0 : 1;
}
