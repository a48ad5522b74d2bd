/* page.c - report.html and the page of a frontier: the templates page.html and frontier.html, which the build turns
 * into arrays, with report.json or frontier.json inside.
 *
 * A page draws itself from that text; nothing in it comes from anywhere else, so its figures are the text's. */
#include "mdp/frontier.h"
#include "mdp/report.h"

#include <string.h>

/* The bytes of the templates and a 0; made by cmake/embed.cmake. */
extern const char mdp_report_template[], mdp_frontier_template[];

#define PLACE "@REPORT@" /* where the JSON goes; once in a template */

/* JSON in which no character can end the HTML element that holds it. New text. */
static mdp_status print_inside_html(const char *json, char **out) {
    size_t n = strlen(json), at = 0;
    char *text = NULL;
    MDP_TRY(MDP_ALLOC(&text, (mdp_count_t)(6 * n + 1), "the report page"));
    for (size_t i = 0; i < n; i++) {
        if (json[i] == '<')
            at += (size_t)snprintf(text + at, 7, "\\u003c");
        else
            text[at++] = json[i];
    }
    *out = text;
    return mdp_ok();
}

static mdp_status fill(const char *template, const char *json, char **out) {
    const char *place = strstr(template, PLACE);
    json_t *root = NULL;
    char *inside = NULL;
    *out = NULL;
    if (!place) return MDP_ERROR(MDP_INTERNAL, "the template of the report page has no %s.", PLACE);
    MDP_TRY(mdp_json_parse(json, (int64_t)strlen(json), "the JSON of a page", &root));
    char *compact = json_dumps(root, JSON_COMPACT | JSON_REAL_PRECISION(9));
    json_decref(root);
    mdp_status status =
        compact ? print_inside_html(compact, &inside) : MDP_ERROR(MDP_EXHAUSTED, "out of memory for the report page.");
    mdp_json_free(compact);
    if (status.code == MDP_OK)
        status = mdp_format(out, "%.*s%s%s", (int)(place - template), template, inside, place + strlen(PLACE));
    mdp_free(inside);
    return status;
}

mdp_status mdp_report_page(const char *json, char **out) {
    return fill(mdp_report_template, json, out);
}

mdp_status mdp_frontier_page(const char *json, char **out) {
    return fill(mdp_frontier_template, json, out);
}
