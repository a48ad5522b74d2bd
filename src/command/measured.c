/* measured.c - see measured.h. */
#include "command/measured.h"

#include <string.h>

#define MAX_DOCUMENT (INT64_C(1) << 30)

mdp_status mdp_measured_is_done(const mdp_session *session, const void *context, const char *path, bool *done) {
    char *text = NULL;
    int64_t n_byte;
    json_t *root = NULL;
    (void)context;
    *done = false;
    if (mdp_file_read_all(path, MAX_DOCUMENT, &text, &n_byte).code != MDP_OK) return mdp_ok(); /* refused as it is */
    if (mdp_json_parse(text, n_byte, path, &root).code == MDP_OK) {
        const char *identity = json_string_value(json_object_get(root, "identity"));
        *done = identity && strcmp(identity, session->resume->digest) == 0;
    }
    json_decref(root);
    mdp_free(text);
    return mdp_ok();
}
