/* dump.c - the arrays of a forward pass in an HDF5 file, for comparison with other implementations.
 *
 * Rank 0 lays out the file; then every rank writes the sequences it holds, layer after layer, independently. Only for
 * small inputs: the arrays of a batch are kept until their layer is done. */
#include "checkpoint/h5_make.h"
#include "checkpoint/h5_parallel.h"
#include "evaluate/evaluate.h"

#include <hdf5.h>
#include <string.h>
#include <unistd.h>

#define MDP_DUMP_MOST ((int64_t)1 << 30)

typedef enum dump_array {
    DUMP_MOE_INPUT,
    DUMP_MOE_OUTPUT,
    DUMP_ROUTER_LOGITS,
    DUMP_TOPK_INDEX,
    DUMP_TOPK_WEIGHT,
    DUMP_N_LAYER_ARRAY,
    DUMP_FINAL_HIDDEN = DUMP_N_LAYER_ARRAY,
    DUMP_LOGITS,
    DUMP_N_ARRAY
} dump_array;

static const char *const array_names[DUMP_N_ARRAY] = {"moe_input",   "moe_output",   "router_logits", "topk_index",
                                                      "topk_weight", "final_hidden", "logits"};

struct mdp_dump {
    const mdp_comm *comm;
    const mdp_model *model;
    const mdp_tokens *tokens;
    const mdp_eval_request *requests;
    int n_stream;
    const mdp_engine *engine;
    char *path;
    hid_t file;
    int64_t most_expert, most_k;
    int64_t n_local;            /* rows of the current batch */
    int32_t *n_expert, *top_k;  /* [n_stream] of each branch in the current layer */
    void *arrays[DUMP_N_ARRAY]; /* [n_stream, n_local, width of the array], 4-byte values */
};

/* Values in a row of an array; of the given stream's layer, or the most of any (stream < 0). */
static int64_t width_of(const mdp_dump *dump, dump_array array, int64_t n_expert, int64_t top_k) {
    switch (array) {
    case DUMP_ROUTER_LOGITS:
        return n_expert;
    case DUMP_TOPK_INDEX:
    case DUMP_TOPK_WEIGHT:
        return top_k;
    case DUMP_LOGITS:
        return dump->model->vocab_size;
    default:
        return dump->model->d_model;
    }
}

static int64_t most_width(const mdp_dump *dump, dump_array array) {
    return width_of(dump, array, dump->most_expert, dump->most_k);
}

static void layer_sizes(const mdp_dump *dump, int stream, int64_t layer, int64_t *n_expert, int64_t *top_k) {
    const mdp_view *view = dump->requests[stream].view;
    const mdp_moe *moe = &dump->model->layers[layer].moe;
    bool own = view && view->layers[layer].n_expert > 0;
    *n_expert = own ? view->layers[layer].n_expert : moe->n_expert;
    *top_k = own ? view->layers[layer].top_k : moe->top_k;
}

/* ---- layout ---- */

/* Where a sequence's arrays are: /<stream>/<category>/<i>, with ':' for '/' in a stream's name. */
static void sequence_path(const mdp_dump *dump, int stream, int64_t sequence, char *out, size_t n_byte) {
    int32_t category = dump->tokens->sequence_category[sequence];
    int64_t first = sequence;
    while (first > 0 && dump->tokens->sequence_category[first - 1] == category) first--;
    snprintf(out, n_byte, "%s/%s/%lld", dump->requests[stream].name, dump->tokens->category[category],
             (long long)(sequence - first));
    for (size_t i = 0; i < strlen(dump->requests[stream].name) && i < n_byte - 1; i++) {
        if (out[i] == '/') out[i] = ':';
    }
}

static bool create_array(const mdp_dump *dump, const char *path, dump_array array, int64_t n_row, int64_t width) {
    hsize_t shape[2] = {(hsize_t)n_row, (hsize_t)width};
    hid_t space = H5Screate_simple(2, shape, NULL), create = H5Pcreate(H5P_DATASET_CREATE);
    hid_t links = H5Pcreate(H5P_LINK_CREATE);
    H5Pset_create_intermediate_group(links, 1);
    H5Pset_obj_track_times(create, false);
    H5Pset_alloc_time(create, H5D_ALLOC_TIME_EARLY);
    H5Pset_fill_time(create, H5D_FILL_TIME_NEVER);
    hid_t type = array == DUMP_TOPK_INDEX ? H5T_STD_I32LE : H5T_IEEE_F32LE;
    hid_t dataset = H5Dcreate2(dump->file, path, type, space, links, create, H5P_DEFAULT);
    if (dataset >= 0) H5Dclose(dataset);
    H5Pclose(links);
    H5Pclose(create);
    H5Sclose(space);
    return dataset >= 0;
}

static bool create_sequence(const mdp_dump *dump, int stream, int64_t sequence) {
    char base[1024], path[1200];
    int64_t n_row = dump->tokens->offset[sequence + 1] - dump->tokens->offset[sequence];
    bool good = true;
    sequence_path(dump, stream, sequence, base, sizeof base);
    for (int array = DUMP_N_LAYER_ARRAY; good && array < DUMP_N_ARRAY; array++) {
        snprintf(path, sizeof path, "%s/%s", base, array_names[array]);
        good = create_array(dump, path, array, n_row, most_width(dump, array));
    }
    for (int64_t l = 0; good && l < dump->model->n_layer; l++) {
        int64_t n_expert, top_k;
        if (!dump->model->layers[l].is_moe) continue;
        layer_sizes(dump, stream, l, &n_expert, &top_k);
        for (int array = 0; good && array < DUMP_N_LAYER_ARRAY; array++) {
            snprintf(path, sizeof path, "%s/layers/%lld/%s", base, (long long)l, array_names[array]);
            good = create_array(dump, path, array, n_row, width_of(dump, array, n_expert, top_k));
        }
    }
    return good;
}

/* Rank 0's part: all datasets, empty. */
static mdp_status lay_out(mdp_dump *dump) {
    hid_t file;
    unlink(dump->path); /* what a killed run left */
    MDP_TRY(mdp_h5_create_old_file(dump->path, &file));
    dump->file = file;
    bool good = true;
    for (int stream = 0; stream < dump->n_stream; stream++) {
        for (int64_t s = 0; good && s < dump->tokens->n_sequence; s++) good = create_sequence(dump, stream, s);
    }
    mdp_status status = mdp_ok();
    if (!good) status = MDP_ERROR(MDP_IO, "%s: HDF5 cannot lay out the dump; is the disk full?", dump->path);
    dump->file = -1;
    return mdp_hdf5_close_written(file, dump->path, status);
}

static mdp_status check_size(const mdp_dump *dump) {
    int64_t n_moe = 0, row = most_width(dump, DUMP_LOGITS) + most_width(dump, DUMP_FINAL_HIDDEN), layer = 0;
    for (int64_t l = 0; l < dump->model->n_layer; l++) n_moe += dump->model->layers[l].is_moe;
    for (int array = 0; array < DUMP_N_LAYER_ARRAY; array++) layer += most_width(dump, array);
    double n_byte = 4.0 * (double)dump->n_stream * (double)dump->tokens->n_token * (double)(row + n_moe * layer);
    if (n_byte <= (double)MDP_DUMP_MOST) return mdp_ok();
    char text[32];
    return MDP_ERROR(MDP_USAGE, "--dump would write %s, and is for at most 1 GiB; take fewer tokens or streams.",
                     mdp_print_bytes(text, (int64_t)n_byte));
}

static void find_widest(mdp_dump *dump) {
    for (int64_t l = 0; l < dump->model->n_layer; l++) {
        const mdp_moe *moe = &dump->model->layers[l].moe;
        if (!dump->model->layers[l].is_moe) continue;
        if (moe->n_expert > dump->most_expert) dump->most_expert = moe->n_expert;
        if (moe->top_k > dump->most_k) dump->most_k = moe->top_k;
    }
}

mdp_status mdp_dump_check(const mdp_model *model, const mdp_tokens *tokens, int n_request) {
    mdp_dump dump = {.model = model, .tokens = tokens, .n_stream = n_request};
    find_widest(&dump);
    return check_size(&dump);
}

static mdp_status new_local(mdp_dump *dump, const char *path) {
    find_widest(dump);
    MDP_TRY(check_size(dump));
    MDP_TRY(mdp_copy_text(&dump->path, path));
    MDP_TRY(MDP_ALLOC(&dump->n_expert, dump->n_stream, "the dump"));
    MDP_TRY(MDP_ALLOC(&dump->top_k, dump->n_stream, "the dump"));
    return dump->comm->rank == 0 ? lay_out(dump) : mdp_ok();
}

mdp_status mdp_dump_new_all(const mdp_comm *comm, const mdp_model *model, const mdp_tokens *tokens,
                            const mdp_eval_request *requests, int n_request, const char *path, mdp_dump **out) {
    mdp_dump *dump = NULL;
    *out = NULL;
    mdp_status status = mdp_agree_all(comm, MDP_ALLOC(&dump, 1, "the dump"));
    if (status.code != MDP_OK) {
        mdp_free(dump);
        return status;
    }
    *dump = (mdp_dump){
        .comm = comm, .model = model, .tokens = tokens, .requests = requests, .n_stream = n_request, .file = -1};
    status = mdp_agree_all(comm, new_local(dump, path));
    if (status.code == MDP_OK) status = mdp_h5_open_all(comm, dump->path, &dump->file);
    if (status.code != MDP_OK) return mdp_dump_finish_all(dump, status);
    *out = dump;
    return mdp_ok();
}

/* ---- taking ---- */

static float *row_of(const mdp_dump *dump, dump_array array, int branch, int64_t local) {
    return (float *)dump->arrays[array] + (branch * dump->n_local + local) * most_width(dump, array);
}

static void take_routed(void *context, const mdp_routed_token *token) {
    mdp_dump *dump = context;
    float *logits = row_of(dump, DUMP_ROUTER_LOGITS, token->branch, token->local);
    dump->n_expert[token->branch] = token->n_expert; /* the same from every thread */
    dump->top_k[token->branch] = token->top_k;
    memcpy(row_of(dump, DUMP_MOE_INPUT, token->branch, token->local), token->x,
           (size_t)dump->model->d_model * sizeof(float));
    for (int32_t e = 0; e < token->n_expert; e++) logits[e] = (float)token->logits[e];
    memcpy(row_of(dump, DUMP_TOPK_INDEX, token->branch, token->local), token->index,
           (size_t)token->top_k * sizeof(int32_t));
    memcpy(row_of(dump, DUMP_TOPK_WEIGHT, token->branch, token->local), token->weight,
           (size_t)token->top_k * sizeof(float));
}

static void take_combined(void *context, const mdp_combined_token *token) {
    const mdp_dump *dump = context;
    float *output = row_of(dump, DUMP_MOE_OUTPUT, token->branch, token->local);
    memcpy(output, token->routed, (size_t)dump->model->d_model * sizeof(float));
    if (token->shared) mdp_axpy(1.0F, token->shared, dump->model->d_model, output);
}

mdp_observers mdp_dump_observers(mdp_dump *dump) {
    return (mdp_observers){.routed = take_routed, .combined = take_combined, .context = dump};
}

void mdp_dump_take_logits(mdp_dump *dump, const mdp_logit_panel *panel) {
    for (int32_t i = 0; i < panel->n_row; i++) {
        memcpy(row_of(dump, DUMP_LOGITS, panel->branch, panel->first_local + i) + panel->first_token,
               panel->logits + (size_t)i * MDP_PANEL_ROWS, (size_t)panel->n_value * sizeof(float));
    }
}

void mdp_dump_take_hidden(mdp_dump *dump, int branch, int64_t first_local, int32_t n_row, const float *hidden) {
    memcpy(row_of(dump, DUMP_FINAL_HIDDEN, branch, first_local), hidden,
           (size_t)(n_row * dump->model->d_model) * sizeof(float));
}

mdp_status mdp_dump_begin_batch(mdp_dump *dump, const mdp_engine *engine) {
    dump->engine = engine;
    dump->n_local = mdp_engine_batch(engine)->n_token;
    for (int array = 0; array < DUMP_N_ARRAY; array++) {
        mdp_free(dump->arrays[array]);
        dump->arrays[array] = NULL;
        int64_t n = dump->n_stream * dump->n_local * most_width(dump, array);
        MDP_TRY(mdp_alloc(&dump->arrays[array], n, sizeof(float), "the dump"));
    }
    return mdp_ok();
}

/* ---- writing ---- */

/* Rows of one array of one sequence; row_width values of each stored row of full_width are written. */
static bool write_array(const mdp_dump *dump, const char *path, dump_array array, int branch, int64_t local,
                        int64_t n_row, int64_t row_width) {
    hid_t memory_type = array == DUMP_TOPK_INDEX ? H5T_NATIVE_INT32 : H5T_NATIVE_FLOAT;
    hsize_t full[2] = {(hsize_t)n_row, (hsize_t)most_width(dump, array)}, zero[2] = {0, 0};
    hsize_t part[2] = {(hsize_t)n_row, (hsize_t)row_width};
    hid_t memory = H5Screate_simple(2, full, NULL);
    H5Sselect_hyperslab(memory, H5S_SELECT_SET, zero, NULL, part, NULL);
    hid_t dataset = H5Dopen2(dump->file, path, H5P_DEFAULT);
    bool good = dataset >= 0 &&
                H5Dwrite(dataset, memory_type, memory, H5S_ALL, H5P_DEFAULT, row_of(dump, array, branch, local)) >= 0;
    if (dataset >= 0) H5Dclose(dataset);
    H5Sclose(memory);
    return good;
}

/* Arrays first .. end-1 of all local sequences of all streams; layer < 0: those after the last layer. */
static mdp_status write_arrays(mdp_dump *dump, int64_t layer, int first, int end) {
    const mdp_local_batch *batch = mdp_engine_batch(dump->engine);
    const int64_t *offset = dump->tokens->offset;
    for (int stream = 0; stream < dump->n_stream; stream++) {
        int branch = mdp_engine_branch_of(dump->engine, stream);
        for (int64_t s = 0; s < dump->tokens->n_sequence; s++) {
            if (offset[s] < batch->first_token || offset[s + 1] > batch->first_token + batch->n_token) continue;
            if (offset[s] == offset[s + 1]) continue;
            char base[1024], path[1200];
            sequence_path(dump, stream, s, base, sizeof base);
            for (int array = first; array < end; array++) {
                int64_t width = width_of(dump, array, dump->n_expert[branch], dump->top_k[branch]);
                if (layer < 0) {
                    snprintf(path, sizeof path, "%s/%s", base, array_names[array]);
                } else {
                    snprintf(path, sizeof path, "%s/layers/%lld/%s", base, (long long)layer, array_names[array]);
                }
                MDP_TRY(mdp_fault(MDP_IO, "write to HDF5"));
                if (write_array(dump, path, array, branch, offset[s] - batch->first_token, offset[s + 1] - offset[s],
                                width)) {
                    continue;
                }
                return MDP_ERROR(MDP_IO, "%s: HDF5 cannot write %s; is the disk full?", dump->path, path);
            }
        }
    }
    return mdp_ok();
}

mdp_status mdp_dump_layer(mdp_dump *dump, int64_t layer) {
    return dump->model->layers[layer].is_moe ? write_arrays(dump, layer, 0, DUMP_N_LAYER_ARRAY) : mdp_ok();
}

mdp_status mdp_dump_head(mdp_dump *dump) {
    return write_arrays(dump, -1, DUMP_N_LAYER_ARRAY, DUMP_N_ARRAY);
}

mdp_status mdp_dump_finish_all(mdp_dump *dump, mdp_status status) {
    if (dump->file >= 0) status = mdp_h5_close_all(dump->comm, dump->path, dump->file, status);
    if (status.code == MDP_OK) status = mdp_h5_sync_all(dump->comm, dump->path);
    if (status.code != MDP_OK && dump->path && dump->comm->rank == 0) unlink(dump->path);
    for (int array = 0; array < DUMP_N_ARRAY; array++) mdp_free(dump->arrays[array]);
    mdp_free(dump->n_expert);
    mdp_free(dump->top_k);
    mdp_free(dump->path);
    mdp_free(dump);
    return status;
}
