/* inspect.c - the command `inspect`: what a file or folder of ours holds, as a table or, with --json, as one document.
 *
 * Nothing but headers is read of a checkpoint. */
#include "command/feasible.h"
#include "command/kind.h"
#include "command/opening.h"

#include <string.h>

/* ---- one description of each kind, as JSON ------------------------------------------------------------------- */

static json_t *describe_layers(const mdp_model *model) {
    json_t *list = json_array();
    for (int64_t l = 0; l < model->n_layer; l++) {
        const mdp_layer *layer = &model->layers[l];
        if (!layer->is_moe) continue;
        mdp_json_add(&list,
                     json_pack("{s:I, s:i, s:i, s:I}", "layer", (json_int_t)l, "experts", (int)layer->moe.n_expert,
                               "top_k", (int)layer->moe.top_k, "d_ff", (json_int_t)layer->moe.d_ff));
    }
    return list;
}

static json_t *describe_checkpoint(const mdp_model *model) {
    const mdp_catalogue *catalogue = model->catalogue;
    return json_pack("{s:s, s:s, s:s, s:s, s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:i, s:I, s:b, s:o}", "kind",
                     "checkpoint", "path", catalogue->path, "container",
                     catalogue->container == MDP_NATIVE ? "hdf5" : "safetensors", "model_type", model->model_type,
                     "fingerprint", catalogue->fingerprint, "layers", (json_int_t)model->n_layer, "d_model",
                     (json_int_t)model->d_model, "vocab_size", (json_int_t)model->vocab_size, "parameters",
                     (json_int_t)model->n_parameter, "active_parameters", (json_int_t)model->n_active, "tensors",
                     (json_int_t)catalogue->n_tensor, "bytes", (json_int_t)catalogue->tensor_byte, "weight_files",
                     (int)mdp_catalogue_weight_files(catalogue), "side_files", (json_int_t)catalogue->n_side_file,
                     "pruned", catalogue->plan_text != NULL, "moe_layers", describe_layers(model));
}

static json_t *describe_tokens(const mdp_tokens *tokens) {
    json_t *list = json_array();
    int64_t sequence = 0;
    for (int c = 0; c < tokens->n_category; c++) {
        int64_t n_sequence = 0;
        while (sequence < tokens->n_sequence && tokens->sequence_category[sequence] == c) {
            sequence++;
            n_sequence++;
        }
        mdp_json_add(&list,
                     json_pack("{s:s, s:I, s:I}", "name", tokens->category[c], "n_sequences", (json_int_t)n_sequence,
                               "n_tokens", (json_int_t)(tokens->category_offset[c + 1] - tokens->category_offset[c])));
    }
    return json_pack("{s:s, s:s, s:s, s:I, s:I, s:o}", "kind", "tokens", "path", tokens->path, "fingerprint",
                     tokens->fingerprint, "n_tokens", (json_int_t)tokens->n_token, "n_sequences",
                     (json_int_t)tokens->n_sequence, "categories", list);
}

static json_t *describe_stats(const mdp_stats *stats, const char *path) {
    json_t *categories = json_array(), *layers = json_array(), *similarities = json_array();
    for (int id = 0; id < MDP_N_SIMILARITY; id++)
        if (stats->similarity.wanted >> id & 1) mdp_json_add(&similarities, json_string(mdp_similarities[id].name));
    for (int c = 0; c < stats->n_category; c++)
        mdp_json_add(&categories, json_pack("{s:s, s:I}", "name", stats->category[c], "n_tokens",
                                            (json_int_t)stats->category_token[c]));
    for (int64_t i = 0; i < stats->n_layer; i++) {
        json_t *counts = json_array();
        for (mdp_expert_t e = 0; e < stats->layers[i].n_expert; e++)
            mdp_json_add(&counts, json_integer((json_int_t)mdp_stats_count(stats, i, e, NULL)));
        mdp_json_add(&layers,
                     json_pack("{s:I, s:i, s:i, s:o}", "layer", (json_int_t)stats->layers[i].layer, "experts",
                               (int)stats->layers[i].n_expert, "top_k", (int)stats->layers[i].top_k, "counts", counts));
    }
    return json_pack("{s:s, s:s, s:s, s:s, s:s, s:I, s:o, s:I, s:s, s:o, s:o}", "kind", "statistics", "path", path,
                     "model_type", stats->model_type, "model_fingerprint", stats->model_fingerprint,
                     "tokens_fingerprint", stats->tokens_fingerprint, "n_tokens", (json_int_t)stats->n_token,
                     "similarities", similarities, "probe_tokens", (json_int_t)stats->n_probe, "channel_norms",
                     mdp_channel_norms_names[stats->similarity.norms], "categories", categories, "layers", layers);
}

static json_t *describe_plan(const mdp_plan *plan, const char *path) {
    json_t *layers = json_array();
    for (int64_t i = 0; i < plan->n_layer; i++) {
        json_t *kept = json_array(), *zeroed = json_array(), *masked = json_array();
        for (int32_t j = 0; j < plan->layers[i].n_kept; j++) {
            const mdp_plan_expert *expert = &plan->layers[i].kept[j];
            if (expert->action == MDP_MASK) mdp_json_add(&masked, json_integer(expert->from[0]));
            mdp_json_add(expert->action == MDP_ZERO ? &zeroed : &kept, json_integer(expert->from[0]));
        }
        mdp_json_add(&layers,
                     json_pack("{s:I, s:i, s:o, s:o, s:o, s:o, s:o}", "layer", (json_int_t)plan->layers[i].layer,
                               "experts", (int)plan->layers[i].n_expert, "kept", kept, "zeroed", zeroed, "masked",
                               masked, "merged", mdp_plan_list_merged(&plan->layers[i]), "merges",
                               mdp_plan_describe_merged(&plan->layers[i])));
    }
    return json_pack("{s:s, s:s, s:s, s:s, s:O, s:b, s:o}", "kind", "plan", "path", path, "model_type",
                     plan->model_type, "fingerprint", plan->fingerprint, "recipe", plan->recipe, "uniform",
                     (int)plan->uniform, "layers", layers);
}

/* ---- showing it ---------------------------------------------------------------------------------------------- */

/* A value on one line: plain texts bare, numbers grouped in thousands, the rest as compact JSON. */
static void show_value(const json_t *value) {
    char number[32];
    if (json_is_string(value) && mdp_text_is_plain(json_string_value(value))) {
        mdp_print_text(json_string_value(value));
    } else if (json_is_integer(value)) {
        mdp_print("%s", mdp_print_count(number, json_integer_value(value)));
    } else {
        char *text = json_dumps(value, JSON_COMPACT | JSON_ENCODE_ANY | JSON_REAL_PRECISION(9));
        mdp_print("%s", text ? text : "");
        mdp_json_free(text);
    }
}

/* "layer 3, experts 8, top_k 2": an object of a list on one line. */
static void show_entry(const json_t *object) {
    const char *key;
    json_t *value;
    bool first = true;
    json_object_foreach((json_t *)object, key, value) {
        mdp_print("%s%s ", first ? "  " : ", ", key);
        show_value(value);
        first = false;
    }
    mdp_print("\n");
}

static void show_table(const json_t *root) {
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)root, key, value) {
        bool entries = json_is_array(value) && json_is_object(json_array_get(value, 0));
        mdp_print("%-20s", key);
        if (!entries) show_value(value);
        mdp_print("\n");
        for (size_t i = 0; entries && i < json_array_size(value); i++) show_entry(json_array_get(value, i));
    }
}

/* Rank 0; takes the description over. */
static mdp_status show(const mdp_session *session, json_t *description) {
    if (!description) return MDP_ERROR(MDP_EXHAUSTED, "out of memory for the description.");
    mdp_status status = mdp_ok();
    if (mdp_session_option(session, OPTION_JSON)->flag) {
        char *text = NULL;
        status = mdp_json_print(description, &text);
        if (status.code == MDP_OK) mdp_print_text(text);
        mdp_free(text);
    } else {
        show_table(description);
    }
    json_decref(description);
    return status;
}

/* ---- the command --------------------------------------------------------------------------------------------- */

static mdp_status inspect_checkpoint_all(mdp_session *session, const char *path) {
    MDP_TRY(mdp_catalogue_open_all(session->comm, path, &session->catalogue));
    MDP_AGREE(session->comm, mdp_model_bind(session->catalogue, &session->model));
    MDP_TRY(mdp_catalogue_fingerprint_all(session->comm, session->catalogue));
    mdp_status status = mdp_ok();
    if (session->comm->rank == 0) status = show(session, describe_checkpoint(session->model));
    return mdp_agree_all(session->comm, status);
}

static mdp_status inspect_tokens_all(mdp_session *session, const char *path) {
    MDP_TRY(mdp_tokens_open_all(session->comm, path, NULL, INT64_MAX, &session->tokens));
    mdp_status status = mdp_ok();
    if (session->comm->rank == 0) status = show(session, describe_tokens(session->tokens));
    return mdp_agree_all(session->comm, status);
}

/* Rank 0: files that one rank reads. */
static mdp_status inspect_stats(const mdp_session *session, const char *path) {
    mdp_stats *stats = NULL;
    MDP_TRY(mdp_stats_read(path, &stats));
    mdp_status status = show(session, describe_stats(stats, path));
    mdp_stats_destroy(stats);
    return status;
}

static mdp_status inspect_json(const mdp_session *session, const char *path, mdp_kind what) {
    char *text = NULL;
    int64_t n_byte = 0;
    mdp_plan *plan = NULL;
    json_t *root = NULL;
    MDP_TRY(mdp_file_read_all(path, 1ll << 30, &text, &n_byte));
    mdp_status status =
        what == MDP_KIND_PLAN ? mdp_plan_parse(text, n_byte, path, &plan) : mdp_json_parse(text, n_byte, path, &root);
    if (status.code == MDP_OK) status = show(session, what == MDP_KIND_PLAN ? describe_plan(plan, path) : root);
    mdp_plan_destroy(plan);
    mdp_free(text);
    return status;
}

mdp_status mdp_command_inspect_all(mdp_session *session) {
    const char *path = session->options->arguments[0];
    mdp_kind what;
    mdp_status status = mdp_ok();
    MDP_TRY(mdp_kind_find_all(session->comm, path, &what));
    if (what == MDP_KIND_CHECKPOINT) return inspect_checkpoint_all(session, path);
    if (what == MDP_KIND_TOKENS) return inspect_tokens_all(session, path);
    if (session->comm->rank == 0)
        status = what == MDP_KIND_STATS ? inspect_stats(session, path) : inspect_json(session, path, what);
    return mdp_agree_all(session->comm, status);
}
