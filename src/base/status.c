/* status.c - how an error is born.
 *
 * Owns: the sentence of a status and the place in the source that it came from. A sentence that does not fit is cut;
 * it never overruns. What it quotes is shown, so that no name reaches a terminal raw. Agreement between ranks is in
 * comm/agree.c. */
#include "mdp/base.h"

mdp_status mdp_error_at(mdp_code code, const char *file, int line, const char *format, ...) {
    char text[sizeof(((mdp_status *)0)->text)];
    mdp_status status = mdp_ok();
    status.code = code;
    status.line = line;
    snprintf(status.file, sizeof status.file, "%s", mdp_path_name(file));
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    mdp_text_show(status.text, sizeof status.text, text);
    return status;
}
