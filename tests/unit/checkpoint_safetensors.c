/* The strict safetensors reader: one bad file for each rule of the format, with the sentence that it must give, and
 * files that are unusual but right. */
#include "checkpoint/safetensors.h"

#include <setjmp.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

static char path[] = "/tmp/mdp-safetensors-XXXXXX";

/* A file: header length as given (or of the header, when -1), header text, n_data bytes of data. */
static void write_file(int64_t length, const char *header, int64_t n_data) {
    int64_t n_header = (int64_t)strlen(header);
    uint64_t n = length < 0 ? (uint64_t)n_header : (uint64_t)length;
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    for (int i = 0; i < 8; i++) fputc((int)(n >> 8 * i & 255), file);
    fwrite(header, 1, (size_t)n_header, file);
    for (int64_t i = 0; i < n_data; i++) fputc((int)(i & 255), file);
    assert_int_equal(fclose(file), 0);
}

static mdp_status read_file(mdp_draft *draft) {
    mdp_draft_init(draft, MDP_HF_FOLDER);
    return mdp_safetensors_add(draft, path);
}

static int n_wrong = 0;

/* Failures are counted, so that one run shows all of a table's. */
static void expect_refusal(const char *what, const char *sentence) {
    mdp_draft draft;
    mdp_status status = read_file(&draft);
    mdp_draft_clear(&draft);
    if (status.code != MDP_BAD_INPUT || strstr(status.text, sentence) == NULL || strstr(status.text, path) == NULL) {
        n_wrong++;
        print_error("%s: code %d, \"%s\"; expected \"%s\"\n", what, status.code, status.text, sentence);
    }
}

#define TENSOR(name, dtype, shape, begin, end)                                                                         \
    "\"" name "\":{\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":[" begin "," end "]}"

static void bad_headers_are_refused(void **state) {
    (void)state;
    static const struct {
        const char *header;
        int64_t length, n_data;
        const char *sentence;
    } table[] = {
        /* header length */
        {"", 100000001, 0, "the header length at byte 0 is 100000001, more than the 100,000,000"},
        {"", INT64_MAX, 0, "more than the 100,000,000"},
        {"{}", 3, 0, "the header ends at byte 11, past the file's end (10). The file is truncated; download it again."},
        {"{}", 0, 0, "the header does not begin with '{' at byte 8"},
        /* JSON */
        {"", -1, 0, "does not begin with '{' at byte 8"},
        {"[]", -1, 0, "does not begin with '{' at byte 8"},
        {"  \n x{}", -1, 0, "does not begin with '{' at byte 12"},
        {"{", -1, 0, "not valid JSON"},
        {"{} x", -1, 0, "not valid JSON"},
        {"{\"\xff\":1}", -1, 0, "not valid JSON"},
        {"{" TENSOR("a", "U8", "[1]", "0", "1") "," TENSOR("a", "U8", "[1]", "1", "2") "}", -1, 2, "duplicate"},
        /* metadata */
        {"{\"__metadata__\":[]}", -1, 0, "'__metadata__' is not an object of texts"},
        {"{\"__metadata__\":{\"format\":1}}", -1, 0, "'__metadata__' holds 'format', which is not a text"},
        /* entries */
        {"{\"a\":3}", -1, 0, "the entry of 'a' is not an object"},
        {"{\"a\":{\"shape\":[1],\"data_offsets\":[0,1]}}", -1, 1, "'a' has no text \"dtype\""},
        {"{" TENSOR("a", "F31", "[1]", "0", "1") "}", -1, 1, "'a' has the unknown dtype \"F31\""},
        {"{\"a\":{\"dtype\":\"U8\",\"data_offsets\":[0,1]}}", -1, 1, "'a' has no array \"shape\""},
        {"{" TENSOR("a", "U8", "[-1]", "0", "1") "}", -1, 1, "dimension 0 of the shape of 'a' is not a non-negative"},
        {"{" TENSOR("a", "U8", "[1,1.0]", "0", "1") "}", -1, 1,
         "dimension 1 of the shape of 'a' is not a non-negative"},
        {"{" TENSOR("a", "U8", "[1,1,1,1,1,1,1,1,1]", "0", "1") "}", -1, 1, "'a' has 9 dimensions"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[1]}}", -1, 1, "\"data_offsets\" of 'a' is not a pair"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1,2]}}", -1, 1, "is not a pair"},
        {"{" TENSOR("a", "U8", "[1]", "-1", "0") "}", -1, 1, "\"data_offsets\" of 'a' is not a pair"},
        {"{" TENSOR("a", "U8", "[1]", "0", "99999999999999999999") "}", -1, 1, "not valid JSON"},
        {"{" TENSOR("a", "U8", "[1]", "0", "9223372036854775807") "}", -1, 1,
         "'a' ends at data byte 9223372036854775807"},
        {"{" TENSOR("a", "U8", "[1]", "1", "0") "}", -1, 1, "'a' ends at byte 61, before it begins (62)"},
        /* sizes */
        {"{" TENSOR("a", "U8", "[4294967296,4294967296]", "0", "1") "}", -1, 1, "the shape of 'a' overflows"},
        {"{" TENSOR("a", "U8", "[4294967296,4294967296,0]", "0", "0") "}", -1, 0, "the shape of 'a' overflows"},
        {"{" TENSOR("a", "F4", "[3]", "0", "2") "}", -1, 2, "no whole number of bytes of F4"},
        {"{" TENSOR("a", "F32", "[2]", "0", "4") "}", -1, 4,
         "'a' takes 4 bytes from byte 62, but its shape and dtype F32 "
         "need 8."},
        /* cover */
        {"{" TENSOR("a", "U8", "[2]", "2", "4") "}", -1, 4,
         "'a' begins at byte 63, but the header ends at byte 61: the "
         "bytes between belong to no tensor"},
        {"{" TENSOR("a", "U8", "[2]", "0", "2") "," TENSOR("b", "U8", "[2]", "3", "5") "}", -1, 5,
         "'b' begins at byte 116, but the data before it ends at byte 115: the bytes between"},
        {"{" TENSOR("a", "U8", "[2]", "0", "2") "," TENSOR("b", "U8", "[2]", "1", "3") "}", -1, 3,
         "'b' begins at byte 114, but the data before it ends at byte 115: two tensors overlap"},
        {"{" TENSOR("a", "U8", "[2]", "0", "2") "," TENSOR("b", "U8", "[2]", "0", "2") "}", -1, 2,
         "two tensors overlap"},
        {"{" TENSOR("a", "U8", "[2]", "0", "2") "}", -1, 1,
         "'a' ends at byte 63, past the file's end (62). The file is truncated; download it again."},
        {"{" TENSOR("a", "U8", "[2]", "0", "2") "}", -1, 5,
         "the tensors end at byte 63, but the file has 66 bytes; the bytes after belong to no tensor"},
        {"{}", -1, 1, "the tensors end at byte 10, but the file has 11 bytes"},
    };
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        write_file(table[i].length, table[i].header, table[i].n_data);
        expect_refusal(table[i].header, table[i].sentence);
    }
    assert_int_equal(n_wrong, 0);
}

static void short_files_are_refused(void **state) {
    (void)state;
    for (int n = 0; n < 8; n++) {
        FILE *file = fopen(path, "wb");
        assert_non_null(file);
        for (int i = 0; i < n; i++) fputc(0, file);
        assert_int_equal(fclose(file), 0);
        expect_refusal("short file", "a safetensors file begins with 8 bytes of header length. The file is empty or "
                                     "truncated; download it again.");
    }
    assert_int_equal(n_wrong, 0);
}

static void missing_file_and_folder_are_refused(void **state) {
    (void)state;
    mdp_draft draft;
    mdp_draft_init(&draft, MDP_HF_FOLDER);
    assert_int_equal(mdp_safetensors_add(&draft, "/tmp/mdp-no-such-file").code, MDP_BAD_INPUT);
    assert_int_equal(mdp_safetensors_add(&draft, "/tmp").code, MDP_BAD_INPUT);
    mdp_draft_clear(&draft);
}

/* Leading and trailing white space, fields that we do not know, data in another order than the header, empty tensors in
 * any place, scalars, sub-byte formats. */
static void unusual_files_are_read(void **state) {
    (void)state;
    const char *header = " \t\n{" TENSOR("late", "F32", "[]", "3", "7") "," TENSOR(
        "none", "BF16", "[0,9]", "3",
        "3") ",\"__metadata__\":{\"format\":\"pt\"},"
             "\"early\":{\"dtype\":\"F4\",\"shape\":[2,3],\"data_offsets\":[0,3],\"more\":[{}]}"
             "}\r\n  ";
    write_file(-1, header, 7);
    mdp_draft draft;
    mdp_status status = read_file(&draft);
    assert_string_equal(status.text, "");
    assert_int_equal(draft.n_tensor, 3);
    int64_t start = 8 + (int64_t)strlen(header);
    for (int64_t i = 0; i < 3; i++) {
        const char *name = draft.pool + draft.tensor_at[i];
        const mdp_tensor *t = &draft.tensors[i];
        if (strcmp(name, "late") == 0) {
            assert_true(t->type == MDP_F32 && t->n_dim == 0 && t->n_byte == 4 && t->offset == start + 3);
        } else if (strcmp(name, "none") == 0) {
            assert_true(t->type == MDP_BF16 && t->n_dim == 2 && t->shape[1] == 9 && t->n_byte == 0);
        } else {
            assert_string_equal(name, "early");
            assert_true(t->type == MDP_F4 && t->n_byte == 3 && t->offset == start);
        }
    }
    mdp_draft_clear(&draft);
}

static void a_file_without_tensors_is_read(void **state) {
    (void)state;
    write_file(-1, "{}", 0);
    mdp_draft draft;
    assert_int_equal(read_file(&draft).code, MDP_OK);
    assert_int_equal(draft.n_tensor, 0);
    mdp_draft_clear(&draft);
}

/* Every truncation of a right file is refused, wherever it is cut. */
static void every_truncation_is_refused(void **state) {
    (void)state;
    const char *header = "{" TENSOR("a", "BF16", "[2,3]", "0", "12") "," TENSOR("b", "U8", "[4]", "12", "16") "}";
    write_file(-1, header, 16);
    int64_t whole = 8 + (int64_t)strlen(header) + 16;
    for (int64_t n = whole - 1; n >= 0; n--) {
        mdp_draft draft;
        assert_int_equal(truncate(path, n), 0);
        assert_int_equal(read_file(&draft).code, MDP_BAD_INPUT);
        mdp_draft_clear(&draft);
    }
}

static int make_path(void **state) {
    (void)state;
    int fd = mkstemp(path);
    return fd < 0 ? -1 : close(fd);
}

static int remove_path(void **state) {
    (void)state;
    return unlink(path);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bad_headers_are_refused),
        cmocka_unit_test(short_files_are_refused),
        cmocka_unit_test(missing_file_and_folder_are_refused),
        cmocka_unit_test(unusual_files_are_read),
        cmocka_unit_test(a_file_without_tensors_is_read),
        cmocka_unit_test(every_truncation_is_refused),
    };
    return cmocka_run_group_tests_name("checkpoint_safetensors", tests, make_path, remove_path);
}
