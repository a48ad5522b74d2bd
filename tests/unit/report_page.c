/* report.html: report.json goes into the page so that nothing in it can end the element or become markup. */
#include "mdp/report.h"

#include <setjmp.h>
#include <string.h>

#include <cmocka.h>

#define ELEMENT "<script type=\"application/json\" id=\"report\">"

/* The JSON inside a page, parsed; the caller releases it. */
static json_t *inside(const char *page) {
    const char *begin = strstr(page, ELEMENT);
    assert_non_null(begin);
    begin += strlen(ELEMENT);
    const char *end = strstr(begin, "</script>");
    assert_non_null(end);
    json_t *root = NULL;
    assert_int_equal(mdp_json_parse(begin, end - begin, "page", &root).code, MDP_OK);
    return root;
}

static void markup_in_a_path_stays_text(void **state) {
    (void)state;
    const char *path = "</script><script>alert(1)</script><!-- &amp; \xc3\xa9";
    char *page = NULL, *json = NULL;
    json_t *root = json_pack("{s:s, s:f}", "path", path, "value", 0.123456789);
    assert_int_equal(mdp_json_print(root, &json).code, MDP_OK);
    assert_int_equal(mdp_report_page(json, &page).code, MDP_OK);
    assert_null(strstr(page, "alert(1)</script>"));
    json_t *found = inside(page);
    assert_true(json_equal(root, found));
    assert_string_equal(json_string_value(json_object_get(found, "path")), path);
    json_decref(found);
    json_decref(root);
    mdp_free(json);
    mdp_free(page);
}

static void text_that_is_no_json_is_refused(void **state) {
    (void)state;
    char *page = NULL;
    assert_int_not_equal(mdp_report_page("{\"a\": ", &page).code, MDP_OK);
    assert_null(page);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(markup_in_a_path_stays_text),
        cmocka_unit_test(text_that_is_no_json_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
