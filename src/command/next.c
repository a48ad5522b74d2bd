/* next.c - what to do with the result of a run: see next.h. */
#include "command/next.h"
#include "command/feasible.h"

/* A path as Python reads it between quotes: like JSON. */
static mdp_status say_how_to_load(const mdp_session *session, char **out) {
    char *path = NULL;
    MDP_TRY(mdp_session_path(session, "hf", &path));
    json_t *value = json_string(path);
    char *text = value ? json_dumps(value, JSON_ENCODE_ANY) : NULL;
    mdp_status status = text ? mdp_format(out,
                                          "AutoModelForCausalLM.from_pretrained(%s)     (transformers; vLLM and "
                                          "llama.cpp load it too)",
                                          text)
                             : MDP_ERROR(MDP_EXHAUSTED, "out of memory for the last line.");
    mdp_json_free(text);
    json_decref(value);
    mdp_free(path);
    return status;
}

static mdp_status say_how_to_export(const mdp_session *session, char **out) {
    char *folder = NULL, *native = NULL, *hf = NULL, *line = NULL;
    mdp_status status = mdp_path_trim(&folder, mdp_session_option(session, OPTION_OUT)->text);
    if (status.code == MDP_OK) status = mdp_session_path(session, "model.h5", &native);
    if (status.code == MDP_OK) status = mdp_format(&hf, "%s-hf", folder);
    const char *const words[] = {"moe-dist-prune", "export", "--model", native, "--out", hf};
    if (status.code == MDP_OK) status = mdp_shell_line(6, words, &line);
    if (status.code == MDP_OK) status = mdp_format(out, "%s     (loads in transformers, vLLM, llama.cpp)", line);
    mdp_free(folder);
    mdp_free(native);
    mdp_free(hf);
    mdp_free(line);
    return status;
}

mdp_status mdp_session_next_step(const mdp_session *session, char **out) {
    return mdp_session_wants_hf(session) ? say_how_to_load(session, out) : say_how_to_export(session, out);
}
