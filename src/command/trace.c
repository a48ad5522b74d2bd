/* trace.c - a result is made anew from its source, without writing: see trace.h.
 *
 * What a result says of itself is enough for that: the plan, the provenance (model, layers of an excerpt), whether
 * layers that predict further ahead are in it, and how its config.json tells numbers of experts. */
#include "command/trace.h"
#include "command/mtp.h"

#include <string.h>

#define BUFFER_BYTE (16ll << 20)

typedef struct tracer {
    const mdp_catalogue *result;
    const mdp_digest *digests;
    char *plan_text, *provenance_text; /* of the result; NULL: none */
    json_t *provenance;
    mdp_plan *plan;         /* NULL: the model as it is */
    mdp_replaced *replaced; /* parts that the plan has of its own, where the result has them; NULL: none */
    mdp_output *output;
} tracer;

/* ---- what the result says ---------------------------------------------------------------------------------------- */

/* Members of a record as texts. */
static mdp_status read_texts(const mdp_catalogue *result, char *texts[2]) {
    static const char *const keys[2] = {"plan", "provenance"};
    const char *known[2] = {result->plan_text, result->provenance_text};
    mdp_record record = {MDP_RECORD_NONE, NULL};
    mdp_status status = mdp_ok();
    if (result->container == MDP_HF_FOLDER) mdp_record_read(result->path, &record);
    for (int i = 0; i < 2 && status.code == MDP_OK; i++) {
        const json_t *member = json_object_get(record.root, keys[i]);
        if (known[i])
            status = mdp_copy_text(&texts[i], known[i]);
        else if (member)
            status = mdp_json_print(member, &texts[i]);
    }
    mdp_record_clear(&record);
    return status;
}

static mdp_status share_text_all(const mdp_comm *comm, char **text) {
    int64_t n_byte = *text ? (int64_t)strlen(*text) : -1;
    MDP_TRY(mdp_bcast_all(comm, &n_byte, (int64_t)sizeof n_byte, 0));
    return n_byte < 0 ? mdp_ok() : mdp_bcast_text_all(comm, text, &n_byte, 0);
}

static mdp_status read_all(const mdp_comm *comm, tracer *t) {
    char *texts[2] = {NULL, NULL};
    mdp_status status = mdp_agree_all(comm, comm->rank == 0 ? read_texts(t->result, texts) : mdp_ok());
    for (int i = 0; i < 2 && status.code == MDP_OK; i++) status = share_text_all(comm, &texts[i]);
    t->plan_text = texts[0];
    t->provenance_text = texts[1];
    return status;
}

/* ---- making it anew ---------------------------------------------------------------------------------------------- */

static mdp_status check_model(const mdp_session *session, tracer *t) {
    const char *text = t->provenance_text, *path = t->result->path;
    if (!text) return MDP_ERROR(MDP_BAD_INPUT, "%s: it has no provenance, so it cannot be traced to a model.", path);
    MDP_TRY(mdp_json_parse(text, (int64_t)strlen(text), path, &t->provenance));
    const char *of = json_string_value(json_object_get(json_object_get(t->provenance, "model"), "fingerprint"));
    if (of && strcmp(of, session->catalogue->fingerprint) == 0) return mdp_ok();
    return MDP_ERROR(MDP_BAD_INPUT, "%s: it was made of a model with fingerprint %s; %s has %s.", path,
                     of ? of : "(none)", session->catalogue->path, session->catalogue->fingerprint);
}

/* Is the source a result itself, of which the other was exported? */
static bool is_exported(const mdp_session *session, const tracer *t) {
    const char *source = session->catalogue->provenance_text;
    return source && t->provenance_text && strcmp(source, t->provenance_text) == 0;
}

static mdp_status read_plan(const mdp_session *session, tracer *t) {
    if (is_exported(session, t)) return mdp_ok();
    MDP_TRY(check_model(session, t));
    if (!t->plan_text) return mdp_ok();
    MDP_TRY(mdp_plan_parse(t->plan_text, (int64_t)strlen(t->plan_text), t->result->path, &t->plan));
    return mdp_plan_check(t->plan, session->model);
}

static bool has_masks(const mdp_plan *plan) {
    for (int64_t i = 0; plan && i < plan->n_layer; i++)
        for (int32_t j = 0; j < plan->layers[i].n_kept; j++)
            if (plan->layers[i].kept[j].action == MDP_MASK) return true;
    return false;
}

/* What a refit has made is in no model: the result's own is read, and compared with the checksums in the plan. Local.
 */
static mdp_status find_replaced(const mdp_session *session, tracer *t) {
    mdp_model *result = NULL;
    int32_t *file_of = NULL;
    if (has_masks(t->plan))
        return MDP_ERROR(MDP_USAGE,
                         "%s: a masked model cannot be traced, since the norms that its masks follow from are not in "
                         "it; verify it without --model, and compare it with what apply makes of its plan.",
                         t->result->path);
    if (!t->plan || !mdp_plan_has_arrays(t->plan)) return mdp_ok();
    if (json_object_get(t->provenance, "layers"))
        return MDP_ERROR(MDP_USAGE, "%s: a part of a refitted model cannot be traced; trace the whole.",
                         t->result->path);
    MDP_TRY(mdp_model_bind(t->result, &result));
    mdp_status status = MDP_ALLOC(&file_of, t->result->n_file, "files of a result");
    for (int32_t i = 0; i < t->result->n_file && status.code == MDP_OK; i++)
        status = mdp_reader_add(session->reader, t->result->files[i], t->result->stamps[i].n_byte, &file_of[i]);
    if (status.code == MDP_OK) status = mdp_replaced_find_in(session->model, t->plan, result, file_of, &t->replaced);
    mdp_free(file_of);
    mdp_model_destroy(result);
    return status;
}

/* Do layers that predict tokens further ahead stay in the result? */
static bool has_extra(const mdp_session *session, const tracer *t) {
    const mdp_model *model = session->model;
    for (int64_t i = 0; model->n_extra > 0 && i < model->catalogue->n_tensor; i++) {
        if (model->extra[i] && mdp_catalogue_find(t->result, model->catalogue->tensors[i].name)) return true;
    }
    return false;
}

/* A result in another type says so. */
static mdp_status retype(const mdp_session *session, tracer *t) {
    const char *type = json_string_value(json_object_get(t->provenance, "type"));
    int to = 0;
    bool changed;
    if (!type) return mdp_ok();
    while (to < MDP_N_RETYPE && strcmp(mdp_retype_names[to], type) != 0) to++;
    if (to == MDP_N_RETYPE)
        return MDP_ERROR(MDP_BAD_INPUT, "%s: its type '%.100s' is not known.", t->result->path, type);
    return mdp_transform_retype(session->model, (mdp_retype)to, t->output, &changed);
}

static mdp_status describe(const mdp_session *session, mdp_unequal unequal, tracer *t) {
    mdp_extra extra;
    long long first, last;
    mdp_output_destroy(t->output);
    t->output = NULL;
    MDP_TRY(mdp_transform_output(session->model, t->plan, t->replaced, mdp_session_extra(session, &extra), t->plan_text,
                                 t->provenance_text, unequal, &t->output));
    MDP_TRY(retype(session, t));
    const char *layers = json_string_value(json_object_get(t->provenance, "layers"));
    if (!layers) return mdp_ok();
    if (sscanf(layers, "%lld-%lld", &first, &last) != 2)
        return MDP_ERROR(MDP_BAD_INPUT, "%s: its layers '%s' are no range.", t->result->path, layers);
    return mdp_transform_excerpt(t->output, first, last);
}

static bool has_same_config(const tracer *t) {
    return t->output->config_byte == t->result->config_byte &&
           memcmp(t->output->config_text, t->result->config_text, (size_t)t->output->config_byte) == 0;
}

/* Layers with other numbers of experts may be told in three ways. */
static mdp_status describe_as_it_is(const mdp_session *session, tracer *t) {
    MDP_TRY(describe(session, MDP_UNEQUAL_STACKED, t));
    if (t->output->uniform || t->result->container == MDP_NATIVE) return mdp_ok();
    if (mdp_transform_check_pad(session->model).code == MDP_OK) {
        MDP_TRY(describe(session, MDP_UNEQUAL_PADDED, t));
        if (has_same_config(t)) return mdp_ok();
    }
    return describe(session, MDP_UNEQUAL_LISTED, t);
}

/* ---- comparing -----------------------------------------------------------------------------------------------------
 */

static mdp_status differs(const mdp_session *session, const tracer *t, const char *kind, const char *name) {
    return MDP_ERROR(MDP_BAD_INPUT,
                     "%s: %s '%s' is not what %s and the plan in it give; the result is of other weights, or of two "
                     "models.",
                     t->result->path, kind, name, session->catalogue->path);
}

/* made [tensors of the output, then side files of its source] */
static mdp_status compare(const mdp_session *session, const tracer *t, const mdp_digest *made) {
    const mdp_catalogue *source = session->catalogue, *result = t->result;
    if (!has_same_config(t)) return differs(session, t, "the text", "config.json");
    if (result->n_tensor != t->output->n_tensor)
        return MDP_ERROR(MDP_BAD_INPUT, "%s: it has %lld tensors; %s and the plan in it give %lld.", result->path,
                         (long long)result->n_tensor, source->path, (long long)t->output->n_tensor);
    for (int64_t i = 0; i < t->output->n_tensor; i++) { /* both ascend by name */
        const char *name = t->output->tensors[i].name;
        bool same = strcmp(result->tensors[i].name, name) == 0 && strcmp(t->digests[i].hex, made[i].hex) == 0;
        if (!same) return differs(session, t, "tensor", name);
    }
    for (int64_t i = 0; i < result->n_side_file; i++) {
        const char *digest = t->digests[result->n_tensor + i].hex;
        for (int64_t s = 0; s < source->n_side_file && *digest; s++) {
            if (strcmp(source->side_files[s].name, result->side_files[i].name) != 0) continue;
            if (strcmp(digest, made[t->output->n_tensor + s].hex) != 0)
                return differs(session, t, "side file", result->side_files[i].name);
        }
    }
    return mdp_ok();
}

static mdp_status trace_all(mdp_session *session, tracer *t) {
    const mdp_comm *comm = session->comm;
    mdp_digest *made = NULL;
    MDP_TRY(read_all(comm, t));
    MDP_AGREE(comm, read_plan(session, t));
    MDP_AGREE(comm, find_replaced(session, t));
    if (has_extra(session, t)) MDP_AGREE(comm, mdp_model_bind_extra(session->model, &session->mtp_model));
    if (t->plan) MDP_TRY(mdp_session_plan_mtp_all(session, t->plan, false));
    MDP_AGREE(comm, describe_as_it_is(session, t));
    mdp_status status = mdp_output_hash_all(comm, session->reader, t->output, BUFFER_BYTE, &made);
    if (status.code == MDP_OK && comm->rank == 0) status = compare(session, t, made);
    mdp_free(made);
    return mdp_agree_all(comm, status);
}

mdp_status mdp_session_trace_all(mdp_session *session, const mdp_catalogue *result, const mdp_digest *digests) {
    tracer t = {.result = result, .digests = digests};
    mdp_status status = trace_all(session, &t);
    mdp_output_destroy(t.output);
    mdp_replaced_destroy(t.replaced);
    mdp_plan_destroy(t.plan);
    json_decref(t.provenance);
    mdp_free(t.plan_text);
    mdp_free(t.provenance_text);
    return status;
}
